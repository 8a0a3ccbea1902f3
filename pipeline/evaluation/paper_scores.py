"""The GPT-3 paper's own way to score, beside the harness's: likelihood per token, likelihood over that of the bare answer, beam search.

Brown et al. 2020, section 2.4. Choices are compared by their likelihood per token; for ARC, OpenBookQA and RACE by P(choice | question) / P(choice | "Answer: ");
text is written by beam search of width 4 with length penalty 0.6. Their figures stand in the harness's output under the filter `paper`.
"""

from collections.abc import Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.task import Task

from data_prep.files import InputError
from pipeline.evaluation.harness import PipelineLM
from pipeline.evaluation.statistics import mean_stderr
from pipeline.evaluation.tasks import of_paper

FILTER = "paper"
PER_TOKEN, UNCONDITIONAL = "acc_per_token", "acc_unconditional"
# Tasks of the harness whose answers the paper sets against what an answer is worth anywhere; shipped ones say it themselves.
ANSWER_CONTEXTS = {"arc_easy": "Answer:", "arc_challenge": "Answer:", "openbookqa": "Answer:", "race": "Answer:"}


def answer_context(task: Task) -> str | None:
    return of_paper(task).get("answer_context", ANSWER_CONTEXTS.get(str(task.get_config("task"))))


def decoding(task: Task) -> dict[str, Any] | None:
    """The generation settings of the paper's second way to write an answer; None where it has none."""
    return of_paper(task).get("decoding") if task.OUTPUT_TYPE == "generate_until" else None


def right_choices(task: Task, doc: Any) -> set[int]:
    """The numbers of the right choices of a question, as the harness reads them."""
    gold = task.doc_to_text(doc) if getattr(task, "multiple_input", 0) else task.doc_to_target(doc)
    choices = task.doc_to_choice(doc)  # pyright: ignore[reportAttributeAccessIssue]
    found: set[int] = set()
    for right in gold if isinstance(gold, list) else [gold]:
        if isinstance(right, int):
            found |= {right} & set(range(len(choices)))
        elif right in choices:
            found.add(choices.index(right))
    if not found:
        name, number = task.get_config("task"), len(choices)
        raise InputError(
            f"Task {name!r} has a question whose answer {gold!r} is none of its {number} choices: correct it"
        )
    return found


def add_choice_scores(lm: PipelineLM, task: Task, name: str, output: dict[str, Any]) -> None:
    """Add the paper's marks of each choice question to its sample, and their means to the results."""
    samples = [sample for sample in output["samples"][name] if sample["filter"] == output["samples"][name][0]["filter"]]
    alone = unconditional(lm, task, samples)
    for sample in samples:
        right = right_choices(task, sample["doc"])
        asked = sample["arguments"][: len(task.doc_to_choice(sample["doc"]))]  # pyright: ignore[reportAttributeAccessIssue]
        likelihoods = [float(answer[0]) for answer in sample["filtered_resps"][: len(asked)]]
        # A choice that merges into its context has no token of its own.
        lengths = [max(1, length(lm, context, choice)) for context, choice, *_ in asked]
        per_token = [value / length for value, length in zip(likelihoods, lengths, strict=True)]
        sample[PER_TOKEN] = float(first_best(per_token) in right)
        marks = [PER_TOKEN]
        if alone is not None:
            over = [value - alone[choice] for value, (_, choice, *_) in zip(likelihoods, asked, strict=True)]
            sample[UNCONDITIONAL] = float(first_best(over) in right)
            marks.append(UNCONDITIONAL)
        sample["metrics"] = [*sample["metrics"], *marks]
    for metric in (PER_TOKEN, UNCONDITIONAL):
        if values := [sample[metric] for sample in samples if metric in sample]:
            results = output["results"][name]
            results[f"{metric},{FILTER}"] = sum(values) / len(values)
            results[f"{metric}_stderr,{FILTER}"] = mean_stderr(values)
            output["higher_is_better"].setdefault(name, {})[metric] = True


def unconditional(lm: PipelineLM, task: Task, samples: Sequence[dict[str, Any]]) -> dict[str, float] | None:
    """The log-likelihood of each choice after the task's bare answer context; None for a task without one."""
    context = answer_context(task)
    if context is None or getattr(task, "multiple_input", 0):
        return None
    choices = sorted({choice for sample in samples for _, choice, *_ in sample["arguments"]})
    requests = [
        Instance("loglikelihood", doc={}, arguments=(context, choice), idx=0, metadata=("", i, 1))
        for i, choice in enumerate(choices)
    ]
    return dict(zip(choices, (value for value, _ in lm.loglikelihood(requests)), strict=True))


def add_second_pass(name: str, output: dict[str, Any], second: dict[str, Any]) -> None:
    """Add what a pass with the paper's decoding gave to the first one's output and samples."""
    for key, value in second["results"][name].items():
        metric, comma, filtered = key.partition(",")
        if comma:
            label = FILTER if filtered == "none" else f"{filtered}-{FILTER}"
            output["results"][name][f"{metric},{label}"] = value
    theirs = {(sample["doc_id"], sample["filter"]): sample for sample in second["samples"][name]}
    for sample in output["samples"][name]:
        other = theirs[sample["doc_id"], sample["filter"]]
        sample[FILTER] = {
            "answers": other["filtered_resps"],
            **{metric: other[metric] for metric in other["metrics"]},
        }


def length(lm: PipelineLM, context: str, choice: str) -> int:
    """Tokens of a choice after its context."""
    return len((lm._encode_pair(context, choice) if context.strip() else lm.after_nothing(context + choice))[1])


def first_best(values: Sequence[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)
