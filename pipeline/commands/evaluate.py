"""`evaluate`: score a run's checkpoint on lm-evaluation-harness tasks, without and with examples in the prompt."""

import argparse
import json
import logging
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.files import InputError, write_json, write_text
from pipeline.commands.checkpoint_choice import add_checkpoint_arguments

if TYPE_CHECKING:
    from rich.progress import Progress

    from pipeline.checkpoint import LoadedRun
    from pipeline.evaluation.clean_scores import CleanScores
    from pipeline.evaluation.harness import PipelineLM

REFUSED = 2
WIDTH_OF_FILES = 120


def add_arguments(parser: argparse.ArgumentParser) -> None:
    # torchrun reads `--run` as an abbreviation of an option of its own, wherever it stands.
    parser.add_argument("folder", nargs="?", type=Path, metavar="RUN", help="run directory, as fit leaves it")
    parser.add_argument("--run", type=Path, help="the same, as other verbs take it")
    add_checkpoint_arguments(parser)
    parser.add_argument(
        "--tasks",
        type=names,
        metavar="A,B",
        help="tasks, groups or tags by name, the harness's or ours (default: a first look at what needs no data, and those of --data)",
    )
    parser.add_argument(
        "--shots",
        type=counts,
        metavar="K,K",
        help="examples in the prompt, several numbers for several scores (default: the task's)",
    )
    parser.add_argument(
        "--seeds",
        "--seed",
        type=whole_numbers,
        default=[0],
        metavar="N,N",
        help="draw the examples, and sampled answers; several for several draws and their spread (default: 0)",
    )
    parser.add_argument(
        "--data",
        type=data_file,
        action="append",
        default=[],
        metavar="TASK=FILE",
        help="a local file for a task's questions; TASK:fewshot=FILE for its examples (may be given again)",
    )
    parser.add_argument("--include", type=Path, metavar="FOLDER", help="folder of task YAMLs of your own")
    parser.add_argument("--limit", type=positive, metavar="N", help="score only the first N examples of each task")
    parser.add_argument(
        "--scoring",
        choices=("harness", "paper", "both"),
        default="both",
        help="the harness's way to score, the GPT-3 paper's beside it, and of written answers one of them or both (default: both)",
    )
    parser.add_argument(
        "--contamination",
        action="store_true",
        help="mark the questions that the training data contains, and score both parts",
    )
    parser.add_argument(
        "--compare",
        type=Path,
        metavar="RUN",
        help="another run that was evaluated: is the difference more than chance?",
    )
    parser.add_argument(
        "--allow-code-execution",
        action="store_true",
        help="run the programs that the model writes, where a task does that",
    )
    parser.add_argument(
        "--batch_tokens", type=positive, default=4096, metavar="N", help="tokens in a batch (default: 4096)"
    )
    parser.add_argument("--fresh", action="store_true", help="score again what an earlier evaluation has finished")
    parser.add_argument("--no-wandb", action="store_true", help="leave the run's wandb log as it is")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="where to write (default: RUN/evaluation/results.json)"
    )


def run(arguments: argparse.Namespace) -> int:
    if (arguments.run is None) == (arguments.folder is None):
        raise InputError("Which run? Give one run directory, as --run RUN or by itself.")
    arguments.run = arguments.run or arguments.folder
    # The harness has no arguments for these: its progress bars, and the processes that it forks to bootstrap an error.
    os.environ.update(TQDM_DISABLE="1", DISABLE_MULTIPROC="1")
    for library in ("lm_eval", "huggingface_hub"):
        logging.getLogger(library).setLevel(logging.ERROR)

    from data_prep.process_memory import keep_freed_memory
    from pipeline.checkpoint import load_run
    from pipeline.evaluation import ranks
    from pipeline.evaluation.harness import PipelineLM

    started = time.time()
    keep_freed_memory()
    with ranks.joined() as together:
        loaded = load_run(arguments.run, arguments.checkpoint, averaged=arguments.ema)
        if loaded.model.config.family == "classifier":
            raise InputError(
                f"{arguments.run} is a classifier, which writes no text: its accuracy is what `python -m pipeline validate` gives"
            )
        loaded.model.to(together.device)
        lm = PipelineLM(
            loaded.model,
            loaded.tokenizer,
            batch_tokens=arguments.batch_tokens,
            seed=arguments.seeds[0],
            ranks=together,
        )
        return lm.serve() if together.rank else evaluate(arguments, loaded, lm, started)


def evaluate(arguments: argparse.Namespace, loaded: "LoadedRun", lm: "PipelineLM", started: float) -> int:
    """Score, write and print, on the process that leads."""
    from rich.console import Console

    from pipeline.commands import score_tables

    # A file has room for what a terminal may have to cut.
    console, errors = Console(width=None if sys.stdout.isatty() else WIDTH_OF_FILES), Console(stderr=True)
    outputs, scores, clean, refused = score_tasks(arguments, loaded, lm, errors)
    output = arguments.output or arguments.run / "evaluation" / "results.json"
    write_results(output, outputs, scores, clean, arguments, loaded, started)
    told = None if arguments.no_wandb else log_to_wandb(arguments.run, scores)

    console.print(score_tables.scores(scores, f"{loaded.record['name']}, step {loaded.step}"))
    for table in score_tables.TABLES:
        if (shown := table(scores)) is not None:
            console.print(shown)
    for remark in score_tables.remarks(scores, lm.max_length):
        console.print(remark, style="yellow", soft_wrap=True, highlight=False)
    console.print(f"Scores: {output}\nPrompts and answers: {samples_of(output)}", soft_wrap=True, highlight=False)
    for sentence in clean.remarks() if clean else []:
        console.print(sentence, style="yellow", soft_wrap=True, highlight=False)
    if arguments.allow_code_execution and (kept := walls(outputs)):
        console.print(f"Programs were run behind walls: {kept}", soft_wrap=True, highlight=False)
    if told:
        console.print(told, soft_wrap=True, highlight=False)
    for error in refused:
        errors.print(f"error: {error}", style="red", soft_wrap=True, highlight=False)
    return REFUSED if refused else 0


def score_tasks(
    arguments: argparse.Namespace, loaded: "LoadedRun", lm: "PipelineLM", console: Any
) -> tuple[dict[int, list[dict[str, Any]]], list[dict[str, Any]], "CleanScores | None", list[str]]:
    """Score every chosen task at each K and seed.

    Returns:
        The harness's outputs by seed, the rows of scores, what is known of contamination, and why tasks that were asked for could not be scored.
    """
    from rich.progress import Progress

    from pipeline.evaluation import comparison, protocol, tasks
    from pipeline.evaluation.results_cache import ResultsCache, weights_of

    other = comparison.samples_folder(arguments.compare) if arguments.compare else None
    metadata = {"documents": documents_of(loaded.record), "data": files_by_task(arguments.data)}
    manager, chosen = tasks.find(arguments.tasks, arguments.include, metadata)
    weights = weights_of(loaded, arguments.ema)
    cache = ResultsCache(arguments.run / "evaluation" / "cache", weights, fresh=arguments.fresh)
    outputs: dict[int, list[dict[str, Any]]] = {seed: [] for seed in arguments.seeds}
    scores: list[dict[str, Any]] = []
    refused: list[str] = []
    remarks: list[str] = []
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("")
        lm.on_progress = lambda requests: progress.advance(bar, requests)
        clean = clean_scores(loaded, progress, bar) if arguments.contamination else None
        for name in chosen:
            progress.update(bar, description=f"{name}: its examples", total=None, completed=0)
            try:
                task = tasks.load(manager, name)
                left_out = {text for each in task["tasks"].values() if (text := tasks.left_out(each))}
                remarks += [f"{name}: {text} were left out." for text in left_out]
                for shots in protocol.shots_of(task, arguments.shots):
                    rows: dict[int, list[dict[str, Any]]] = {}
                    for seed in arguments.seeds if protocol.depends_on_seed(task, shots) else arguments.seeds[:1]:
                        progress.update(bar, description=f"{name}, {shots}-shot, seed {seed}", completed=0)
                        output = protocol.score(
                            lm,
                            task,
                            shots,
                            seed=seed,
                            limit=arguments.limit,
                            allow_code=arguments.allow_code_execution,
                            scoring=arguments.scoring,
                            cache=cache,
                        )
                        rows[seed] = protocol.rows_of(output, task, whole=arguments.limit is None)
                        if clean is not None:
                            clean.add(rows[seed], output, task)
                        if other is not None and seed == arguments.seeds[0]:
                            remarks += comparison.compare(rows[seed], output, task, other, arguments.compare.name)
                        outputs[seed].append(output)
                    scores += protocol.over_seeds(rows)
            except InputError as error:
                # What can be scored is scored; a task that was asked for and cannot be is an error at the end.
                if arguments.tasks or arguments.include or name in metadata["data"]:
                    refused.append(str(error))
                else:
                    console.print(f"{name} is left out. {error}", style="yellow", soft_wrap=True, highlight=False)
    if not scores:
        none = "No task could be evaluated: see the reasons above, or name other --tasks."
        raise InputError("\n".join(refused) or none)
    if cache.taken:
        console.print(
            f"{cache.taken} scores were there from before (--fresh makes them anew).", style="dim", highlight=False
        )
    for remark in remarks:
        console.print(remark, style="yellow", soft_wrap=True, highlight=False)
    return outputs, scores, clean, refused


def clean_scores(loaded: "LoadedRun", progress: "Progress", bar: Any) -> "CleanScores":
    from pipeline.evaluation.clean_scores import CleanScores
    from pipeline.evaluation.contamination import Contamination

    def show(done: int, total: int) -> None:
        progress.update(bar, description="N-grams of the training text", completed=done, total=total)

    return CleanScores(Contamination(loaded, show))


def write_results(
    output: Path,
    outputs: dict[int, list[dict[str, Any]]],
    scores: list[dict[str, Any]],
    clean: "CleanScores | None",
    arguments: argparse.Namespace,
    loaded: "LoadedRun",
    started: float,
) -> None:
    """Write the harness's JSON with our scores, and beside it each task's prompts and answers."""
    import lm_eval

    from pipeline.evaluation import comparison, protocol, translation_scores

    first = arguments.seeds[0]
    for seed, results in outputs.items():
        for result in results:
            for name, examples in result["samples"].items():
                shots = result["n-shot"].get(name) or 0
                path = comparison.sample_file(samples_of(output), name, shots, None if seed == first else seed)
                write_lines(path, [protocol.readable(example) for example in examples])
    results = protocol.merged(outputs[first])
    results["lm_eval_version"] = lm_eval.__version__
    results["date"] = started
    results["pipeline"] = {
        "run": loaded.record["name"],
        "checkpoint": str(loaded.checkpoint),
        "step": loaded.step,
        "tokens_seen": loaded.tokens,
        "tokenizer": loaded.tokenizer.fingerprint,
        "data_fingerprint": loaded.record["data"]["fingerprint"],
        "parameters": loaded.model.parameter_counts(),
        "seed": first,
        "seeds": arguments.seeds,
        "limit": arguments.limit,
        "scores": scores,
        "sacrebleu": translation_scores.signatures() if {"bleu", "chrf"} & {row["metric"] for row in scores} else None,
        "code_execution": walls(outputs) if arguments.allow_code_execution else None,
        "contamination": {"tasks": clean.about, **clean.contamination.about()} if clean else None,
        "seconds": round(time.time() - started, 1),
    }
    write_json(output, results)


def log_to_wandb(run: Path, scores: list[dict[str, Any]]) -> str | None:
    """Add the scores to the run's own wandb run, where it has one; returns what there is to say of it."""
    from pipeline import tracking
    from pipeline.reporting.tables import score_summary, score_table

    columns, rows = score_table(scores)
    return tracking.log_table(run, "evaluation/scores", columns, rows, score_summary(scores))


def walls(outputs: dict[int, list[dict[str, Any]]]) -> str | None:
    """What kept the programs that were run from the rest of the machine; None where no task ran any."""
    from pipeline.evaluation.code_execution import WALLS, available_walls

    configs = [config for results in outputs.values() for result in results for config in result["configs"].values()]
    return WALLS[available_walls()] if any(config.get("unsafe_code") for config in configs) else None


def samples_of(output: Path) -> Path:
    """The folder of prompts and answers beside a file of results."""
    return output.parent / "samples"


def documents_of(record: dict[str, Any]) -> str | None:
    """The documents behind a run's shards, train, validation and test apart; None where only the shards are at hand."""
    documents = Path(record["data"]["path"]).parent / "split"
    return str(documents) if documents.is_dir() else None


def write_lines(path: Path, objects: list[dict[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(obj, ensure_ascii=False) + "\n" for obj in objects))


def files_by_task(given: list[tuple[str, str, Path]]) -> dict[str, dict[str, str]]:
    """The files of --data by task and split, as tasks take them."""
    files: dict[str, dict[str, str]] = {}
    for task, split, path in given:
        files.setdefault(task, {})[split] = str(path)
    return files


def names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def whole_numbers(text: str) -> list[int]:
    try:
        return list(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers, such as 0,1,2") from None


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


def data_file(text: str) -> tuple[str, str, Path]:
    """`TASK=FILE` or `TASK:fewshot=FILE`."""
    task, equals, file = text.partition("=")
    task, _, split = task.partition(":")
    if not equals or not task or not file or split not in ("", "test", "fewshot"):
        raise argparse.ArgumentTypeError(f"{text!r} is not TASK=FILE, nor TASK:fewshot=FILE for a task's examples")
    if not Path(file).exists():
        raise argparse.ArgumentTypeError(f"{file} does not exist: name the file with the questions of {task}")
    return task, split or "test", Path(file)
