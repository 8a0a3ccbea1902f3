"""The report as one HTML page: which numbers and sentences stand where. How they look is in template/."""

from dataclasses import dataclass
from typing import Any

from pipeline.reporting import document, few_shot
from pipeline.reporting.figures.context import context_loss
from pipeline.reporting.figures.curves import learning_curves
from pipeline.reporting.figures.figure import Figure, colour
from pipeline.reporting.figures.optimisation import optimisation
from pipeline.reporting.figures.throughput import throughput
from pipeline.reporting.lineage import corpora, source_records
from pipeline.reporting.quantities import MISSING, and_list, digits, duration, percent, power, si
from pipeline.reporting.records import number
from pipeline.reporting.runs import Run, best, of_one_text

SAMPLES = 6
"""Generate calls that are shown of each run, the newest; a page is read, a samples.jsonl is searched."""
SAMPLE_CHARACTERS = 4000


@dataclass(frozen=True)
class Section:
    """One figure's section; without a figure, `missing` says what would bring it."""

    name: str
    title: str
    lead: str
    figure: Figure | None
    missing: str


def render(runs: list[Run], remarks: list[str], title: str) -> str:
    """The page for these runs; the same folders give the same text."""
    parts = sections(runs)
    tasks = few_shot.of_runs(runs)
    return document.render(
        "report.html",
        document.plot_scripts() if any(part.figure for part in parts) or tasks.drawn else [],
        title=title,
        runs=runs,
        colours={run.name: colour(position) for position, run in enumerate(runs)},
        remarks=remarks + [f"{run.name}: {remark}." for run in runs for remark in run.remarks],
        headline=headline(runs),
        summary=summary(runs),
        comparison=comparison(runs),
        sections=parts,
        few_shot=tasks,
        samples=samples(runs),
        corpora=corpora(runs),
        environments=[(run, environment_rows(run)) for run in runs],
        missing=MISSING,
    )


def headline(runs: list[Run]) -> str:
    """The page's one result: the best run by bits per byte, or by loss where bytes were not counted; of labelled texts the most
    accurate one."""
    if not of_one_text(runs):
        return f"{len(runs)} runs on {len({run.text for run in runs})} kinds of text"
    if runs[0].get("data", "labels"):
        accurate = best(runs, lambda run: None if (share := run.judged("accuracy")) is None else -share)
        if accurate is not None:
            return f"{accurate.name} names {percent(accurate.judged('accuracy'))} of the labels right"
    for metric, unit in (("bits_per_byte", "bits per byte"), ("loss", "nats per token")):
        if (run := best(runs, lambda run, metric=metric: run.judged(metric))) is not None:
            return f"{run.name} reaches {digits(run.judged(metric))} {unit}"
    return f"{len(runs)} run{'s' if len(runs) > 1 else ''}, not validated yet"


def summary(runs: list[Run]) -> str:
    """What was trained, on what, for how long and where, in the words of the best run."""
    run = best(runs, lambda run: run.judged("bits_per_byte")) or best(runs, lambda run: run.judged("loss")) or runs[0]
    words = f"{article(family(run))} of {si(number(run.get('parameters', 'total')))} parameters"
    if tokens := run.last("tokens"):
        words += f", trained on {si(tokens)} tokens"
    if sources := [str(source["name"]) for source in source_records(run) if source.get("name")]:
        words += f" of {and_list(sources)}"
    if seconds := run.last("seconds"):
        words += f" in {duration(seconds)}"
    if processor := run.get("environment", "processor"):
        words += f" on {processor}"
        cores, precision = run.get("environment", "cores"), run.get("environment", "precision")
        extra = [f"{cores} cores" if cores else "", str(precision or "")]
        words += f" ({', '.join(filter(None, extra))})" if any(extra) else ""
    others = [f"{other.name}, {article(family(other))}" for other in runs if other is not run]
    if 0 < len(others) <= 3:
        words += f". Beside it {'stands' if len(others) == 1 else 'stand'} {and_list(others)}"
    elif others:
        words += f". Beside it stand {len(others)} other runs"
    return words[0].upper() + words[1:] + "."


def family(run: Run) -> str:
    """The family's name in prose, initialisms in capitals."""
    name = str(run.get("family") or "model").replace("_", " ")
    return name.upper() if name in {"lstm", "gru", "rnn"} else name


def article(name: str) -> str:
    """The name with its article, by its sound."""
    return ("an " if name[0].lower() in "aeiou" or name in {"LSTM", "RNN"} else "a ") + name


@dataclass(frozen=True)
class Column:
    title: str
    explanation: str
    values: list[str]
    leading: int | None
    """The place of the run that is best in this column; None where better has no meaning."""
    words: bool = False


def comparison(runs: list[Run]) -> list[Column]:
    """The table of runs, column by column."""

    def column(title: str, explanation: str, values: list[Any], show: Any, better: Any = None) -> Column:
        known = [value for value in values if value is not None]
        leading = values.index(better(known)) if better and len(runs) > 1 and len(set(known)) > 1 else None
        return Column(title, explanation, [show(value) for value in values], leading)

    parameters = [number(run.get("parameters", "total")) for run in runs]
    # Losses of different text do not compare, so none of them leads.
    lowest, highest = (min, max) if of_one_text(runs) else (None, None)
    return [
        Column("Family", "of the model", [family(run) for run in runs], leading=None, words=True),
        column("Parameters", "all, with embeddings", parameters, si),
        column("Tokens", "trained on, counting repeats", [run.last("tokens") for run in runs], si),
        column("Val. loss", "nats per token", [run.judged("loss") for run in runs], digits, lowest),
        column("Perplexity", "per token", [run.judged("perplexity") for run in runs], digits, lowest),
        column("Bits/byte", "of validation text", [run.judged("bits_per_byte") for run in runs], digits, lowest),
        column(
            "Accuracy", "tokens or labels predicted first", [run.judged("accuracy") for run in runs], percent, highest
        ),
        column("Tokens/s", "median over the run", [run.median("train/tokens_per_second") for run in runs], si, max),
        column("MFU", "median, of the measured matmul peak", [run.median("train/mfu") for run in runs], percent, max),
        column("FLOPs", "of training", [run.last("flops") for run in runs], power),
        column("Time", "of training", [run.last("seconds") for run in runs], duration),
    ]


def sections(runs: list[Run]) -> list[Section]:
    return [
        Section(
            "curves",
            "Learning curves",
            "Thin lines are training batches, thick lines the validation split.",
            learning_curves(runs),
            "No loss is logged yet: the curves appear with the first lines of metrics.csv.",
        ),
        Section(
            "context",
            "Loss by position",
            "A model that uses its context predicts late positions in it better than early ones. Thin lines are single "
            "positions, thick lines means over stretches that grow with the position.",
            context_loss(runs),
            "No loss by position yet: python -m pipeline validate measures it.",
        ),
        Section(
            "scores",
            "Few-shot scores",
            "Each task is answered with no or with a few solved examples before the question. Bars are one standard "
            "error to each side; the dotted mark is what guessing would score.",
            few_shot.overview(runs),
            "No scores yet: python -m pipeline evaluate gives them.",
        ),
        Section(
            "throughput",
            "Speed",
            "MFU is the share of the machine's measured matrix-multiplication peak that training put to use. "
            "Thin lines are single measurements, thick lines running medians.",
            throughput(runs),
            "No speed is logged yet.",
        ),
        Section(
            "optimisation",
            "Learning rate and gradients",
            "The gradient's global norm before clipping (thin) and after it (thick).",
            optimisation(runs),
            "No learning rate or gradient norm is logged yet.",
        ),
    ]


@dataclass(frozen=True)
class Sample:
    """One generate call: its prompt, its completions, and the settings as label and value."""

    prompt: str
    completions: list[str]
    settings: list[tuple[str, str]]


def samples(runs: list[Run]) -> list[tuple[Run, list[Sample], int]]:
    """For each run that has samples: the newest, and how many older ones are left to samples.jsonl."""
    shown = []
    for run in runs:
        if run.samples:
            newest = [sample(record) for record in run.samples[:SAMPLES]]
            shown.append((run, newest, len(run.samples) - len(newest)))
    return shown


def sample(record: dict[str, Any]) -> Sample:
    names = {"max_new_tokens": "new tokens", "top_k": "top-k", "top_p": "top-p"}
    given = record.get("settings")
    settings = given if isinstance(given, dict) else {}
    shown = [(names.get(str(key)) or str(key), str(value)) for key, value in settings.items() if value is not None]
    if (tokens := number(record.get("tokens_seen"))) is not None:
        shown.append(("after", f"{si(tokens)} tokens"))
    if record.get("checkpoint"):
        shown.append(("checkpoint", str(record["checkpoint"]).rsplit("/", 1)[-1]))
    if record.get("time"):
        shown.append(("written", str(record["time"])[:16].replace("T", " ")))
    return Sample(str(record.get("prompt", "")), [cut(str(text)) for text in record["completions"]], shown)


def cut(text: str) -> str:
    return text if len(text) <= SAMPLE_CHARACTERS else text[:SAMPLE_CHARACTERS] + " […]"


def environment_rows(run: Run) -> list[tuple[str, str]]:
    """What the run was made with: the environment, then the model's own settings."""
    environment = run.get("environment")
    rows = [(key, value) for key, value in environment.items()] if isinstance(environment, dict) else []
    shown = [
        (key.replace("_", " "), power(number(value)) if key.endswith("flops") else str(value)) for key, value in rows
    ]
    if class_path := run.get("model", "class_path"):
        shown.insert(0, ("model", str(class_path)))
    if run.get("started"):
        shown.insert(0, ("started", str(run.get("started"))))
    return shown
