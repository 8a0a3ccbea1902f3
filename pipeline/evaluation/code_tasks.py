"""Tasks whose answers are programs: HumanEval (Chen et al. 2021) and MBPP (Austin et al. 2021), judged by running their tests."""

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset, concatenate_datasets

from data_prep.files import InputError
from pipeline.evaluation.code_execution import Limits, Outcome, execute_all, pass_at_k
from pipeline.evaluation.shared_files import own_or_shared
from pipeline.evaluation.task_files import Row, dataset

# Of its 974 problems (Austin et al. 2021, section 2.1): for prompts, and for the scores that are published.
MBPP_EXAMPLES, MBPP_TEST = range(1, 11), range(11, 511)
MBPP_COLUMNS = {
    "task_id": {"from": [], "default": None},
    "text": ["prompt"],
    "code": [],
    "test_list": [],
    "test_setup_code": {"from": [], "default": ""},
    "test_imports": {"from": [], "default": []},
}
HUMAN_EVAL_COLUMNS = {
    "task_id": {"from": [], "default": None},
    "prompt": [],
    "solution": {"from": ["canonical_solution"], "default": ""},
    "test": [],
    "entry_point": [],
}
STOPPED = ("timed out", "out of memory", "refused")


def mbpp(
    *,
    name: str,
    family: Sequence[str] = (),
    data: Mapping[str, Any] | None = None,
    k: Sequence[int] = (1,),
    limits: Mapping[str, Any] | None = None,
    **options: Any,
) -> dict[str, Dataset]:
    """MBPP's problems: `text`, `code`, `tests` (one string), and what the sandbox is to know.

    A file of all problems is split as in the paper, by `task_id`; another as any task's file.

    Args:
        family: tasks whose files serve this one too.
        k: of the pass@k to estimate.
        limits: of code_execution.Limits, where they differ from its defaults.
    """

    def problems(rows: list[Row]) -> list[Row]:
        found = []
        for row in rows:
            tests = row["test_list"]
            if not isinstance(tests, list) or not tests:
                raise InputError(f"{row.place} has the test_list {tests!r:.60}: give a list of assert statements.")
            imports = row["test_imports"] or []
            setup = "\n".join([*([imports] if isinstance(imports, str) else imports), row["test_setup_code"] or ""])
            values = {
                "task_id": row["task_id"],
                "text": row["text"].strip(),
                # Half of the published solutions have the line ends of another system, which no prompt should teach.
                "code": unix_lines(row["code"]).strip(),
                "tests": unix_lines("\n".join(tests)),
                "setup": unix_lines(setup).strip(),
            }
            found.append(Row({**values, **judging(k, limits)}, row.place))
        return found

    data = own_or_shared(data, name, family)
    parts = dataset(name=name, data=data, **{"columns": MBPP_COLUMNS, "form": problems, "key": "text", **options})
    own = data.get(name)
    if isinstance(own, Mapping) and own.get("fewshot"):
        return parts
    return as_in_the_paper(parts)


def as_in_the_paper(parts: dict[str, Dataset]) -> dict[str, Dataset]:
    """MBPP's own parts where its problems are there by their numbers."""
    together = concatenate_datasets([parts["fewshot"], parts["test"]])
    rows: dict[int, int] = {}
    for row, number in enumerate(together["task_id"]):
        if number is not None and str(number).isdigit():
            rows[int(number)] = row
    test = [rows[number] for number in MBPP_TEST if number in rows]
    if not test or any(number not in rows for number in MBPP_EXAMPLES):
        return parts
    return {"test": together.select(test), "fewshot": together.select([rows[number] for number in MBPP_EXAMPLES])}


def human_eval(
    *,
    name: str,
    family: Sequence[str] = (),
    data: Mapping[str, Any] | None = None,
    k: Sequence[int] = (1,),
    limits: Mapping[str, Any] | None = None,
    **options: Any,
) -> dict[str, Dataset]:
    """HumanEval's problems: `prompt` (a function's head and docstring), `solution`, `test` and `entry_point`.

    All of a single file are scored, for prompts hold no examples. Arguments are those of `mbpp`.
    """

    def problems(rows: list[Row]) -> list[Row]:
        found = []
        for row in rows:
            if not str(row["entry_point"]).isidentifier():
                raise InputError(f"{row.place} has the entry_point {row['entry_point']!r}: give the function's name.")
            found.append(Row({**row, **judging(k, limits)}, row.place))
        return found

    ours = {"columns": HUMAN_EVAL_COLUMNS, "form": problems, "key": "prompt", "fewshot": 0}
    return dataset(name=name, data=own_or_shared(data, name, family), **{**ours, **options})


def judging(k: Sequence[int], limits: Mapping[str, Any] | None) -> dict[str, Any]:
    """What goes with each problem to where its programs are judged."""
    try:
        Limits(**(limits or {}))
    except TypeError:
        known = ", ".join(Limits.__annotations__)
        raise InputError(
            f"The limits of a task that runs code are {dict(limits or {})}: they may be {known}."
        ) from None
    return {"k": list(k), "limits": dict(limits) if limits else None}


def unix_lines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def all_samples(responses: list[list[str]], documents: list[dict[str, Any]]) -> list[list[str]]:
    """A harness filter that keeps all the programs written for a problem; its own keeps the first."""
    return responses


def mbpp_marks(document: dict[str, Any], results: list[list[str]]) -> dict[str, Any]:
    """Estimates of pass@k from the programs written for one of MBPP's problems."""
    tests = "\n".join(filter(None, [document["setup"], document["tests"]]))
    return marks(document, [(unix_lines(program), tests) for program in results[0]])


def human_eval_marks(document: dict[str, Any], results: list[list[str]]) -> dict[str, Any]:
    """As `mbpp_marks`, of HumanEval's: a program is the head of a function with what the model wrote after it."""
    tests = f"{document['test']}\ncheck({document['entry_point']})"
    return marks(document, [(document["prompt"] + unix_lines(written), tests) for written in results[0]])


def marks(document: dict[str, Any], programs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """pass@k for each k of the task, and under `stopped` how each program ended."""
    if len(programs) < max(document["k"]):
        raise InputError(
            f"pass@{max(document['k'])} needs as many programs for each problem, not {len(programs)}: "
            "set `repeats` of the task's YAML to at least its largest k."
        )
    limits = Limits(**{name: value for name, value in (document["limits"] or {}).items() if value is not None})
    outcomes = execute_all(programs, limits)
    passed = sum(outcome.passed for outcome in outcomes)
    estimates = {f"pass@{k}": pass_at_k(len(programs), passed, k) for k in document["k"]}
    return {**estimates, "stopped": [described(outcome) for outcome in outcomes]}


def described(outcome: Outcome) -> str:
    return f"{outcome.verdict}: {outcome.detail}" if outcome.detail else outcome.verdict


def share_stopped(outcomes: Sequence[Sequence[str]]) -> float:
    """The share of programs that the sandbox stopped: too long, too large, or at something that it does not allow."""
    programs = [outcome for of_problem in outcomes for outcome in of_problem]
    return sum(outcome.startswith(STOPPED) for outcome in programs) / len(programs)
