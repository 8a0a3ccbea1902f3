"""What `evaluate` prints: the scores, and beside them chance, published models, contamination and another run."""

from collections.abc import Callable, Iterable
from typing import Any

from rich import box
from rich.table import Table

Row = dict[str, Any]
LEFT = {"task", "metric", "model", "same"}
SIGNIFICANT = 0.05
PARTS = ("clean", "dirty")


def scores(rows: list[Row], title: str) -> Table:
    """Every score with its standard error; a star where it differs from chance."""
    seeds = any(row.get("spread") is not None for row in rows)
    columns = ["task", "K", "metric", "score", *(["over seeds"] if seeds else []), "chance", "n"]
    table = empty(title, columns)
    table.caption = "K examples in the prompt; ± one standard error; * differs from chance with p < 0.05"
    for row, task in with_tasks(rows):
        chance = "-" if row["chance"] is None else f"{row['chance']:.3f}"
        star = "*" if row.get("p_chance") is not None and row["p_chance"] < SIGNIFICANT else " "
        spread = [] if not seeds else ["-" if row["spread"] is None else f"± {digits(row['spread'], row['score'])}"]
        cells = [task, str(row["shots"]), metric(row), with_error(row["score"], row["stderr"]), *spread]
        table.add_row(*cells, chance + star, str(row["n"]))
    return table


def published(rows: list[Row]) -> Table | None:
    """Our scores beside those of published models; None where no task is known there."""
    known = [row for row in rows if row.get("published")]
    if not known:
        return None
    table = empty("Beside published models", ["task", "K", "metric", "score", "model", "K", "theirs", "same"])
    table.caption = "same: whether ours are all the questions that theirs were taken on"
    for row, task in with_tasks(known):
        own = [task, str(row["shots"]), metric(row), with_error(row["score"], None)]
        for number, figure in enumerate(row["published"]):
            theirs = [figure["model"], str(figure["shots"]), digits(figure["score"], row["score"])]
            table.add_row(*(own if number == 0 else [""] * 4), *theirs, "yes" if figure["full"] else "no")
    return table


def contamination(rows: list[Row]) -> Table | None:
    """The questions that the training data has not, and those that it has; None where nobody looked."""
    known = [row for row in rows if row.get("clean") is not None or row.get("dirty") is not None]
    if not known:
        return None
    table = empty("Had it seen the questions?", ["task", "K", "metric", "clean", "dirty", "dirty n"])
    table.caption = "dirty: some N words in a row of the question stand in what it was trained on"
    for row, task in with_tasks(known):
        parts = ["-" if (part := row[name]) is None else with_error(part["score"], part["stderr"]) for name in PARTS]
        count = f"{row['dirty']['n'] if row['dirty'] else 0} of {row['n']}"
        table.add_row(task, str(row["shots"]), metric(row), *parts, count)
    return table


def against(rows: list[Row]) -> Table | None:
    """The difference to another run, with the interval of the paired bootstrap; None where there is none."""
    known = [row for row in rows if row.get("against")]
    if not known:
        return None
    table = empty(
        f"Against {known[0]['against']['run']}, on the same questions",
        ["task", "K", "metric", "difference", "95 %", "p"],
    )
    table.caption = "* differs with p < 0.05"
    for row, task in with_tasks(known):
        other, size = row["against"], row["score"]
        interval = f"{digits(other['low'], size)} to {digits(other['high'], size)}"
        star = "*" if other["p"] < SIGNIFICANT else " "
        difference = f"{other['difference']:+.{places(size)}f}"
        table.add_row(task, str(row["shots"]), metric(row), difference, interval, f"{other['p']:.3f}{star}")
    return table


def remarks(rows: Iterable[Row], longest: int) -> list[str]:
    """What did not fit the model's context, a sentence for each task and K."""
    found = []
    for row in {(row["task"], row["shots"]): row for row in rows}.values():
        label = f"{row['task']}, {row['shots']}-shot"
        if row.get("shots_cut"):
            mean = f"{row['shots_mean']:.1f} on average"
            found.append(
                f"{label}: {row['shots_cut']} of {row['n']} prompts hold fewer examples ({mean}), for the context is {longest} tokens."
            )
        if row.get("truncated"):
            found.append(
                f"{label}: {row['truncated']} requests exceeded the context of {longest} tokens and lost their beginning."
            )
    return found


def empty(title: str, columns: list[str]) -> Table:
    table = Table(title=title, title_justify="left", caption_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="left" if column in LEFT else "right", no_wrap=True)
    return table


def with_tasks(rows: Iterable[Row]) -> Iterable[tuple[Row, str]]:
    """Each row with the task's name where it is not that of the row before."""
    previous = None
    for row in rows:
        yield row, row["task"] if row["task"] != previous else ""
        previous = row["task"]


def metric(row: Row) -> str:
    """The metric's name; of what was written by the paper's decoding it says so."""
    written = row["scoring"] == "paper" and not row["metric"].startswith("acc_")
    return f"{row['metric']} (beam)" if written else row["metric"]


def with_error(score: float | None, error: float | None) -> str:
    if score is None:
        return "-"
    return digits(score, score) + ("" if error is None else f" ± {digits(error, score)}")


def places(size: float | None) -> int:
    """Decimal places for a score of this size: shares need three, perplexities none."""
    return 3 if (size or 0) < 10 else 1 if (size or 0) < 1000 else 0


def digits(value: float, size: float | None) -> str:
    return f"{value:.{places(size)}f}"


TABLES: tuple[Callable[[list[Row]], Table | None], ...] = (published, contamination, against)
"""What is printed below the scores, where it has something to say."""
