"""The verbs of `python -m pipeline`, as one table. Nothing heavy is imported before a verb is known, so that help is instant."""

import argparse
import keyword
import sys
from importlib import import_module

from data_prep.files import InputError, sentence_of

TRAINING = {
    "fit": "train a model on token shards, or go on where it stopped",
    "validate": "loss, perplexity and bits per byte on the validation split",
    "test": "the same on the test split",
    "predict": "write the loss of every token of the test split",
}
COMMANDS = {
    "evaluate": "zero- and few-shot tasks through lm-evaluation-harness",
    "generate": "continue a prompt",
    "translate": "a file through an encoder-decoder, line by line, with BLEU and chrF",
    "inspect": "attention maps, gradient flow, loss by position, as pages; which documents a step read",
    "import": "a Hugging Face folder into a run directory",
    "export": "a run into a Hugging Face folder",
    "report": "one HTML page on every run of a folder",
    "checkpoint": "verify a checkpoint, cut it for other ranks, or take its weights out as one file",
    "plan": "what a run will need, before it runs: memory, time, cost, disk",
    "bench": "measure this machine, for plans that know it",
    "submit": "plan a run, check the cluster, and queue it on Slurm: data, training, evaluation",
    "status": "how a submitted run is doing",
    "cancel": "take a submitted run off the cluster",
    "logs": "the output of a submitted run",
    "preflight": "check the nodes of a job before training: GPUs, network, clocks, disks",
    "supervise": "start training again after a crash or a preemption, within bounds",
    "verify-resume": "prove on your own configuration that a killed run goes on exactly, on any number of ranks",
}


def main(arguments: list[str] | None = None) -> int:
    """Run one verb; return the exit status: 0 done, 2 a usable sentence on what was wrong with the input."""
    arguments = sys.argv[1:] if arguments is None else arguments
    verb = arguments[0] if arguments else "--help"
    try:
        if verb in TRAINING:
            import_module("pipeline.training_cli").main(arguments)
            return 0
        if verb in COMMANDS:
            return run_command(verb, arguments[1:])
    except (InputError, OSError) as error:
        print(f"error: {sentence_of(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    if verb in ("-h", "--help"):
        print(usage())
        return 0
    print(f"error: {verb!r} is not a verb of the pipeline; it has: {', '.join(TRAINING | COMMANDS)}", file=sys.stderr)
    return 2


def run_command(verb: str, arguments: list[str]) -> int:
    module = f"{verb}_" if keyword.iskeyword(verb) else verb.replace("-", "_")
    command = import_module(f"pipeline.commands.{module}")
    parser = argparse.ArgumentParser(
        prog=f"python -m pipeline {verb}", description=f"{COMMANDS[verb][0].upper()}{COMMANDS[verb][1:]}."
    )
    command.add_arguments(parser)
    if not getattr(command, "PASSES_OPTIONS_ON", False):
        return command.run(parser.parse_args(arguments))
    known, others = parser.parse_known_args(arguments)
    return command.run(known, others)


def usage() -> str:
    lines = ["usage: python -m pipeline VERB [options]", "", "Train, judge and report language models.", ""]
    lines += [f"  {verb:14s} {what}" for verb, what in (TRAINING | COMMANDS).items()]
    lines += ["", "`python -m pipeline VERB --help` explains a verb's options. Data comes from `python -m data_prep`."]
    return "\n".join(lines)
