"""`evaluate`: score a run's checkpoint on lm-evaluation-harness tasks, without and with examples in the prompt."""

import argparse
import json
import logging
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.files import InputError, write_json, write_text
from pipeline.commands.checkpoint_choice import add_checkpoint_arguments

if TYPE_CHECKING:
    from pipeline.checkpoint import LoadedRun


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", type=Path, required=True, help="run directory, as fit leaves it")
    add_checkpoint_arguments(parser)
    parser.add_argument(
        "--tasks", type=names, metavar="A,B", help="tasks or groups by name (default: all shipped ones)"
    )
    parser.add_argument(
        "--shots",
        type=counts,
        metavar="K,K",
        help="examples in the prompt, several numbers for several scores (default: the task's)",
    )
    parser.add_argument("--include", type=Path, metavar="FOLDER", help="folder of task YAMLs of your own")
    parser.add_argument("--limit", type=positive, metavar="N", help="score only the first N examples of each task")
    parser.add_argument(
        "--batch_tokens", type=positive, default=4096, metavar="N", help="tokens in a batch (default: 4096)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="draws the examples in the prompts, and sampled answers (default: 0)"
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="where to write (default: RUN/evaluation/results.json)"
    )


def run(arguments: argparse.Namespace) -> int:
    # The harness has no arguments for these: its progress bars, and the processes that it forks to bootstrap an error.
    os.environ.update(TQDM_DISABLE="1", DISABLE_MULTIPROC="1")
    for library in ("lm_eval", "huggingface_hub"):
        logging.getLogger(library).setLevel(logging.ERROR)

    from rich.console import Console

    from pipeline.allocator import keep_freed_memory
    from pipeline.checkpoint import load_run

    started = time.time()
    keep_freed_memory()
    loaded = load_run(arguments.run, arguments.checkpoint, averaged=arguments.ema)
    if loaded.model.config.family == "classifier":
        raise InputError(
            f"{arguments.run} is a classifier, which writes no text: its accuracy is what `python -m pipeline validate` gives"
        )
    outputs, scores, longest = score_tasks(arguments, loaded)
    output = arguments.output or arguments.run / "evaluation" / "results.json"
    write_results(output, outputs, scores, arguments, loaded, started)

    console = Console()
    console.print(table_of(scores, f"{loaded.record['name']}, step {loaded.step}"))
    for row in {(row["task"], row["shots"]): row for row in scores}.values():
        if row["truncated"]:
            remark = f"{row['truncated']} requests exceeded the context of {longest} tokens and lost their beginning."
            console.print(f"{row['task']}, {row['shots']}-shot: {remark}", style="yellow", soft_wrap=True)
    console.print(f"Scores: {output}\nPrompts and answers: {samples_of(output)}", soft_wrap=True, highlight=False)
    return 0


def score_tasks(
    arguments: argparse.Namespace, loaded: "LoadedRun"
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], int]:
    """Score every chosen task at each K. Returns the harness's outputs, the rows of scores, and the longest input in tokens."""
    from rich.console import Console
    from rich.progress import Progress

    from pipeline.evaluation import protocol, tasks
    from pipeline.evaluation.harness import PipelineLM

    manager, chosen = tasks.find(arguments.tasks, arguments.include, {"documents": documents_of(loaded.record)})
    outputs: list[dict[str, Any]] = []
    scores: list[dict[str, Any]] = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("")
        lm = PipelineLM(
            loaded.model,
            loaded.tokenizer,
            batch_tokens=arguments.batch_tokens,
            seed=arguments.seed,
            on_progress=lambda requests: progress.advance(bar, requests),
        )
        for name in chosen:
            progress.update(bar, description=f"{name}: its examples", total=None, completed=0)
            try:
                task = tasks.load(manager, name)
            except InputError as error:
                if arguments.tasks or arguments.include:
                    raise
                progress.console.print(f"{name} is left out. {error}", style="yellow", soft_wrap=True)
                continue
            for shots in protocol.shots_of(task, arguments.shots):
                progress.update(bar, description=f"{name}, {shots}-shot", completed=0)
                truncated = lm.truncated
                outputs.append(protocol.score(lm, task, shots, seed=arguments.seed, limit=arguments.limit))
                rows = protocol.rows_of(outputs[-1], task)
                scores += [{**row, "truncated": lm.truncated - truncated} for row in rows]
    if not outputs:
        raise InputError("No task could be evaluated: see the reasons above, or name --tasks that need no documents.")
    return outputs, scores, lm.max_length


def write_results(
    output: Path,
    outputs: list[dict[str, Any]],
    scores: list[dict[str, Any]],
    arguments: argparse.Namespace,
    loaded: "LoadedRun",
    started: float,
) -> None:
    """Write the harness's JSON with our scores, and beside it each task's prompts and answers."""
    import lm_eval

    from pipeline.evaluation import protocol

    for result in outputs:
        for name, examples in result["samples"].items():
            path = samples_of(output) / f"{name}@{result['n-shot'].get(name, 0)}.jsonl"
            write_lines(path, [protocol.readable(example) for example in examples])
    results = protocol.merged(outputs)
    results["lm_eval_version"] = lm_eval.__version__
    results["date"] = started
    results["pipeline"] = {
        "run": loaded.record["name"],
        "checkpoint": str(loaded.checkpoint),
        "step": loaded.step,
        "tokens_seen": loaded.tokens,
        "tokenizer": loaded.tokenizer.fingerprint,
        "data_fingerprint": loaded.record["data"]["fingerprint"],
        "seed": arguments.seed,
        "limit": arguments.limit,
        "scores": scores,
        "seconds": round(time.time() - started, 1),
    }
    write_json(output, results)


def samples_of(output: Path) -> Path:
    """The folder of prompts and answers beside a file of results."""
    return output.parent / "samples"


def documents_of(record: dict[str, Any]) -> str | None:
    """The documents behind a run's shards, train, validation and test apart; None where only the shards are at hand."""
    documents = Path(record["data"]["path"]).parent / "split"
    return str(documents) if documents.is_dir() else None


def write_lines(path: Path, objects: list[dict[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(obj, ensure_ascii=False) + "\n" for obj in objects))


def table_of(scores: list[dict[str, Any]], title: str):
    from rich import box
    from rich.table import Table

    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("task", "shots", "metric", "score", "chance", "n"):
        table.add_column(column, justify="left" if column in ("task", "metric") else "right")
    previous = None
    for row in scores:
        digits = 3 if (row["score"] or 0) < 10 else 1 if row["score"] < 1000 else 0
        score = "-" if row["score"] is None else f"{row['score']:.{digits}f}"
        error = "" if row["stderr"] is None else f" ± {row['stderr']:.{digits}f}"
        chance = "-" if row["chance"] is None else f"{row['chance']:.3f}"
        table.add_row(
            row["task"] if row["task"] != previous else "",
            str(row["shots"]),
            row["metric"],
            score + error,
            chance,
            str(row["n"]),
        )
        previous = row["task"]
    return table


def names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def counts(text: str) -> list[int]:
    try:
        shots = [int(part) for part in text.split(",")]
    except ValueError:
        shots = [-1]
    if min(shots) < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers from 0 on, such as 0,5")
    return shots


def positive(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)
