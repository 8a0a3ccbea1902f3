"""Continue prompts with a run's model, streamed to the terminal where there is one, and keep what it said in samples.jsonl."""

import argparse
import json
import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.files import InputError
from pipeline.commands.checkpoint_choice import add_checkpoint_arguments
from pipeline.commands.decoding_options import TEMPERATURE, add_decoding_arguments, decoding_of, settings_of
from pipeline.commands.lines import read_lines

if TYPE_CHECKING:
    from pipeline.checkpoint import LoadedRun
    from pipeline.generation.stopping import StopStrings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", required=True, help="run directory")
    add_checkpoint_arguments(parser)
    prompts = parser.add_mutually_exclusive_group(required=True)
    prompts.add_argument(
        "--prompt", action="append", metavar="TEXT", help="text to continue; may be empty, and given several times"
    )
    prompts.add_argument("--prompts", type=Path, metavar="FILE", help="a file of prompts, one a line")
    parser.add_argument(
        "--mid_document", action="store_true",
        help="do not begin a document with the prompt: leave out the end-of-text token before it",
    )  # fmt: skip
    parser.add_argument("--samples", type=int, default=1, metavar="N", help="continuations of each prompt (default: 1)")
    parser.add_argument(
        "--max_new_tokens", type=int, default=120, metavar="N", help="tokens to add at most (default: 120)"
    )
    parser.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end before this text; may be given several times"
    )
    add_decoding_arguments(parser, otherwise=f"tokens are drawn at temperature {TEMPERATURE}")


def run(arguments: argparse.Namespace) -> int:
    for name in ("max_new_tokens", "samples"):
        if getattr(arguments, name) < 1:
            raise InputError(f"--{name} is {getattr(arguments, name)}: it must be at least 1")
    prompts = read_lines(arguments.prompts) if arguments.prompts else arguments.prompt
    if not prompts:
        raise InputError(f"{arguments.prompts} has no line: write one prompt a line")
    import torch

    from data_prep.process_memory import keep_freed_memory
    from pipeline.checkpoint import load_run
    from pipeline.generation.beam import Beam
    from pipeline.generation.decoding import decode
    from pipeline.generation.sampling import Sampling, generate
    from pipeline.generation.stopping import StopStrings

    how = decoding_of(arguments, otherwise=Sampling(temperature=TEMPERATURE))
    if isinstance(how, Beam) and arguments.samples > how.width:
        raise InputError(
            f"--samples is {arguments.samples}, but a beam of {how.width} finds no more than that: widen it"
        )
    keep_freed_memory()
    loaded = load_run(arguments.run, arguments.checkpoint, averaged=arguments.ema)
    refuse_other_families(loaded)
    tokenizer = loaded.tokenizer
    end = tokenizer.end_of_text
    try:
        stops = StopStrings(arguments.stop, tokenizer.continuation)
    except ValueError as error:
        raise InputError(f"--stop: {error}") from error
    # A document begins after the end of another: so it did in training.
    beginning = [] if arguments.mid_document else [end]
    rows = [[*beginning, *tokenizer.encode(prompt)] or [end] for prompt in prompts]
    generator = torch.Generator().manual_seed(arguments.seed)
    ends: dict[str, Any] = {"generator": generator, "stop": frozenset([end]), "stop_when": stops.reached}
    if len(rows) == arguments.samples == 1 and isinstance(how, Sampling):
        sys.stdout.write(prompts[0])
        stream = TextStream(tokenizer.continuation, end, stops)
        generate(loaded.model, rows, arguments.max_new_tokens, how, on_token=stream.add, **ends)
        completions = [[stream.finish()]]
    else:
        new = decode(loaded.model, rows, arguments.max_new_tokens, how, samples=arguments.samples, **ends)
        completions = [
            [stops.cut(tokenizer.continuation(token for token in row if token != end)) for row in of_prompt]
            for of_prompt in new
        ]
        show(prompts, completions)
    settings = settings_of(how, arguments) | {
        "stop": arguments.stop or None,
        "mid_document": arguments.mid_document or None,
    }
    keep(loaded, prompts, completions, settings)
    return 0


def refuse_other_families(loaded: "LoadedRun") -> None:
    """Raise InputError for a model that continues no text."""
    if loaded.model.reads_source:
        raise InputError(
            f"{loaded.directory} holds an encoder-decoder, which writes a target for a source and continues no prompt: "
            f"use `python -m pipeline translate --run {loaded.directory} --input FILE`"
        )
    if loaded.model.config.family == "classifier":
        raise InputError(f"{loaded.directory} holds a classifier, which writes no text: give a run of a language model")


def show(prompts: list[str], completions: list[list[str]]) -> None:
    """Print each prompt with each of its completions, numbered."""
    for p, (prompt, of_prompt) in enumerate(zip(prompts, completions, strict=True), 1):
        for s, completion in enumerate(of_prompt, 1):
            numbers = [f"prompt {p} of {len(prompts)}"] * (len(prompts) > 1)
            numbers += [f"sample {s} of {len(of_prompt)}"] * (len(of_prompt) > 1)
            if numbers:
                print("---", ", ".join(numbers))
            print(prompt + completion)


class TextStream:
    """Prints tokens as text as they come; what later tokens may change (an unfinished character, the beginning of a stop
    string) waits for them."""

    def __init__(self, decode: Callable[[list[int]], str], end: int, stops: "StopStrings"):
        self.decode, self.end, self.stops = decode, end, stops
        self.tokens: list[int] = []
        self.shown = 0

    def add(self, row: int, token: int) -> None:
        if token == self.end:
            return
        self.tokens.append(token)
        text = self.decode(self.tokens)
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):
            self.show(self.stops.settled(text))

    def show(self, text: str) -> None:
        sys.stdout.write(text[self.shown :])
        sys.stdout.flush()
        self.shown = max(self.shown, len(text))

    def finish(self) -> str:
        """Print what has waited; return the whole text."""
        text = self.stops.cut(self.decode(self.tokens))
        self.show(text)
        sys.stdout.write("\n")
        return text


def keep(loaded: "LoadedRun", prompts: list[str], completions: list[list[str]], settings: dict[str, Any]) -> None:
    """Append a line on each prompt to the run's samples.jsonl."""
    about = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "checkpoint": str(loaded.checkpoint),
        "tokens_seen": loaded.tokens,
    }
    with (loaded.directory / "samples.jsonl").open("a", encoding="utf-8") as file:
        for prompt, of_prompt in zip(prompts, completions, strict=True):
            line = {**about, "prompt": prompt, "settings": settings, "completions": of_prompt}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
