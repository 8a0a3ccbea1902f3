"""What the models wrote when they were evaluated: a few articles, replies, translations and answers of each task."""

import re
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from pipeline.reporting.quantities import digits
from pipeline.reporting.records import dig, number, parse_json
from pipeline.reporting.runs import Run
from pipeline.reporting.scores import KINDS, score_rows

QUESTIONS = 3
"""Questions that are shown of each task."""
LINES_READ = 12
"""Lines of a file that are looked at for them: every way of scoring has a line for each question."""
QUESTION_CHARACTERS = 1200
ANSWER_CHARACTERS = 3000
NOT_MARKS = ("prompt", "asked", "target", "answers", "contaminated")


@dataclass(frozen=True)
class Answer:
    """What one run wrote, and its marks as name and value."""

    run: Run
    way: str
    """How it was decoded, where not as the task has it."""
    text: str
    cut: int
    """Characters that were left out at its end."""
    marks: list[tuple[str, str]]
    contaminated: bool


@dataclass
class Question:
    """The question without the solved examples before it, the answer wanted, and what each run wrote."""

    text: str
    cut: int
    """Characters that were left out at its start."""
    target: str
    answers: list[Answer] = field(default_factory=list)


@dataclass(frozen=True)
class TaskAnswers:
    task: str
    shots: int
    kind: str
    questions: list[Question]


def written(runs: list[Run]) -> list[TaskAnswers]:
    """A few questions of each task that is answered in writing, with the most examples, news articles first."""
    kinds = {row.task: row.kind for row in score_rows(runs)}
    found: dict[tuple[str, int], dict[str, Question]] = {}
    for run in runs:
        for task, (shots, path) in answer_files(run).items():
            alone = {str(line["prompt"]) for line in first_lines(path.with_name(f"{task}@0.jsonl"))}
            delimiter = dig(run.evaluation, "configs", f"{task}@{shots}", "fewshot_delimiter")
            for line in first_lines(path):
                if answers := answers_of(run, line):
                    asked = question_of(str(line["prompt"]), shots, alone, delimiter)
                    add(found.setdefault((task, shots), {}), asked, line.get("target"), answers)
    order = [*KINDS]
    tasks = [
        TaskAnswers(task, shots, kinds.get(task, ""), list(asked.values())) for (task, shots), asked in found.items()
    ]
    return sorted(
        tasks, key=lambda one: (order.index(one.kind) if one.kind in order else len(order), one.task, one.shots)
    )


def add(questions: dict[str, Question], asked: str, target: Any, answers: list[Answer]) -> None:
    """Put answers below their question, which several runs may share, while there are few enough questions."""
    if asked not in questions:
        if len(questions) == QUESTIONS:
            return
        shown = asked[-QUESTION_CHARACTERS:]
        questions[asked] = Question(shown, len(asked) - len(shown), target_text(target))
    known = [(answer.run.name, answer.way, answer.text) for answer in questions[asked].answers]
    # Every filter of the harness has a line for the same answer.
    questions[asked].answers += [one for one in answers if (one.run.name, one.way, one.text) not in known]


def answer_files(run: Run) -> dict[str, tuple[int, Path]]:
    """Each task's file with the most examples, drawn by the first seed; none of an evaluation before that of results.json."""
    scored = {(str(score["task"]), number(score.get("shots"))) for score in run.scores}
    files: dict[str, tuple[int, Path]] = {}
    for path in sorted((run.directory / "evaluation" / "samples").glob("*.jsonl")):
        named = re.fullmatch(r"(.+)@(\d+)", path.stem)
        if named and (not scored or (named[1], int(named[2])) in scored):
            files[named[1]] = max(files.get(named[1], (0, path)), (int(named[2]), path))
    return files


def first_lines(path: Path) -> list[dict[str, Any]]:
    """The first records of a file of prompts and answers; none where it is missing, and none of those that are torn."""
    try:
        with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
            lines = list(islice(file, LINES_READ))
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            record = parse_json(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("prompt"), str):
            found.append(record)
    return found


def answer_text(answers: Any) -> str | None:
    """The first text among the answers; None where a choice was scored and nothing written."""
    while isinstance(answers, list) and answers:
        answers = answers[0]
    return answers if isinstance(answers, str) else None


def question_of(prompt: str, shots: int, alone: set[str], delimiter: Any) -> str:
    """A prompt without its solved examples: the question as it is asked without any, else what follows the last delimiter."""
    if not shots:
        return prompt
    known = [question for question in alone if question and prompt.endswith(question)]
    if known:
        return max(known, key=len)
    return prompt.rsplit(delimiter if isinstance(delimiter, str) and delimiter else "\n\n", 1)[-1]


def target_text(target: Any) -> str:
    """The answer wanted; of several that count, the first few."""
    wanted = [str(one) for one in target] if isinstance(target, list) else [] if target is None else [str(target)]
    text = " / ".join(wanted[:5]) + (" / …" if len(wanted) > 5 else "")
    return text if len(text) <= QUESTION_CHARACTERS else text[:QUESTION_CHARACTERS] + " […]"


def answers_of(run: Run, line: dict[str, Any]) -> list[Answer]:
    """What stands in a line as written by the task's own way of decoding and by the paper's; nothing where choices were scored."""
    contaminated = line.get("contaminated") is True
    ways = [("", line), ("as the paper decodes", line.get("paper"))]
    return [
        Answer(
            run, way, text[:ANSWER_CHARACTERS], max(0, len(text) - ANSWER_CHARACTERS), marks_of(record), contaminated
        )
        for way, record in ways
        if isinstance(record, dict) and (text := answer_text(record.get("answers"))) is not None
    ]


def marks_of(record: dict[str, Any]) -> list[tuple[str, str]]:
    values = [(str(name), number(value)) for name, value in record.items() if name not in NOT_MARKS]
    return [(name, mark_words(value)) for name, value in values if value is not None]


def mark_words(value: float) -> str:
    return str(int(value)) if value in (0, 1) else digits(value, 2)
