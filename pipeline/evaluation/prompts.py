"""K examples before each question, as GPT-3 was asked: drawn for each question anew, and as many as its context holds.

The harness draws examples in the order of the questions and cuts what is too long at its left, through the middle of an example. Here
the examples of a question depend on the seed and on that question alone (neither on --limit nor on the number of processes), those for a
smaller K are the first of those for a larger one, and an example that does not fit is left out whole.
"""

import contextlib
import functools
import json
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any

import lm_eval.utils
from lm_eval.api.samplers import ContextSampler
from lm_eval.api.task import Task
from lm_eval.defaults import DEFAULT_MAX_GEN_TOKS

from data_prep.files import InputError, fingerprint
from pipeline.evaluation.harness import PipelineLM
from pipeline.evaluation.tasks import of_paper

# The harness compiles a task's template anew for every example of every prompt, which takes longer than to fill it in.
lm_eval.utils.env.from_string = functools.lru_cache(lm_eval.utils.env.from_string)  # pyright: ignore[reportAttributeAccessIssue]


def question_key(doc: Any) -> str:
    """A name for a question by its content."""
    return fingerprint(json.loads(json.dumps(doc, sort_keys=True, default=str)))[:16]


def drawn(pool: Sequence[Any], count: int, *, seed: int, question: Any) -> list[Any]:
    """`count` different examples for a question, never that question itself (Brown et al. 2020, section 2.4).

    Raises:
        InputError: the pool has fewer.
    """
    random = Random(f"{seed} {question_key(question)}")
    chosen: list[Any] = []
    # A shuffle from the front, as far as it is needed: a larger count goes on where a smaller one ends. Only what has moved is kept.
    moved: dict[int, int] = {}
    for place in range(len(pool)):
        if len(chosen) == count:
            break
        other = random.randrange(place, len(pool))
        number, moved[other] = moved.get(other, other), moved.get(place, place)
        if pool[number] != question:
            chosen.append(pool[number])
    if len(chosen) < count:
        raise InputError(f"there are {len(chosen)} examples to draw from, not {count}: ask for fewer --shots")
    return chosen


class Given(ContextSampler):
    """A sampler whose draw is decided elsewhere."""

    def __init__(self, pool: Sequence[Any]):
        super().__init__(pool)  # pyright: ignore[reportArgumentType]
        self.examples: Sequence[Any] = ()

    def sample(self, n: int, *arguments: Any, **keywords: Any) -> Sequence[Any]:
        return self.examples[:n]


class Prompts:
    """Builds the prompts of one task at one K, and remembers how many examples each got.

    Attributes:
        counts: number of examples in each prompt, in the order in which they were built.
    """

    def __init__(self, task: Task, lm: PipelineLM, seed: int):
        self.task, self.lm, self.seed = task, lm, seed
        self.counts: list[int] = []
        self.original = getattr(task, "sampler", None)
        self.build: Callable[..., Any] = task.fewshot_context
        self.pool = list(self.original.df) if self.original is not None else []

    def __call__(self, doc: Any, num_fewshot: int = 0, **options: Any) -> Any:
        """The harness's own prompt for a question, with as many of its `num_fewshot` examples as fit."""
        if num_fewshot == 0:
            self.counts.append(0)
            return self.build(doc, num_fewshot=0, **options)
        sampler = Given(self.pool)
        # A task that names its examples (the first N, say) gets those.
        if self.original is not None and type(self.original) is not ContextSampler:
            sampler.examples = list(self.original.sample(num_fewshot, eval_doc=doc))
        else:
            sampler.examples = drawn(self.pool, num_fewshot, seed=self.seed, question=doc)
        self.task.sampler = sampler  # pyright: ignore[reportAttributeAccessIssue]
        room = self.room(doc)
        prompts: dict[int, Any] = {}

        def fits(count: int) -> bool:
            prompts[count] = self.build(doc, num_fewshot=count, **options)
            return all(self.fits(prompt, room) for prompt in as_list(prompts[count]))

        count = num_fewshot if fits(num_fewshot) else largest(fits, num_fewshot)
        self.counts.append(count)
        return prompts[count] if count in prompts else self.build(doc, num_fewshot=count, **options)

    def room(self, doc: Any) -> int:
        """Tokens that what follows the prompt takes: the longest choice, the target, or the most that may be written."""
        task, lm = self.task, self.lm
        if task.OUTPUT_TYPE == "generate_until":
            settings = task.get_config("generation_kwargs") or {}
            return lm.contexts.room(int(settings.get("max_gen_toks", DEFAULT_MAX_GEN_TOKS)), lm.max_length)
        delimiter = task.get_config("target_delimiter") or ""
        if task.OUTPUT_TYPE == "multiple_choice" and not getattr(task, "multiple_input", 0):
            texts = [delimiter + choice for choice in task.doc_to_choice(doc)]  # pyright: ignore[reportAttributeAccessIssue]
        else:
            target = task.doc_to_target(doc)
            texts = [delimiter + str(part) for part in as_list(target)]
        return max((len(lm.tok_encode(text)) for text in texts), default=0)

    def fits(self, prompt: str, room: int) -> bool:
        lm = self.lm
        return lm.contexts.prompt(lm.tok_encode(prompt), room, lm.max_length)[1] == 0


def largest(fits: Callable[[int], bool], above: int) -> int:
    """The most examples below `above` that fit: by halving, for a prompt grows with each."""
    low, high = 0, above
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


@contextlib.contextmanager
def prompting(task: Task, lm: PipelineLM, shots: int, seed: int) -> Iterator[Prompts]:
    """Let the harness ask `task` with `shots` examples drawn by `seed`; everything is put back afterwards.

    Raises:
        InputError: a task has fewer examples to draw from.
    """
    sampler = getattr(task, "sampler", None)
    name = task.get_config("task")
    if shots and (sampler is None or len(sampler.df) < shots):
        pool = 0 if sampler is None else len(sampler.df)
        raise InputError(f"Task {name!r} has {pool} examples to draw from, not {shots}: ask for fewer --shots.")
    # None is the harness's other word for 0, and does not read as a YAML's fixed 0 when the next K comes.
    changed: dict[str, Any] = {} if task.get_config("num_fewshot") == 0 else {"num_fewshot": shots or None}
    if shots == 0:
        changed |= of_paper(task).get("zero_shot") or {}
    before = {key: task.get_config(key) for key in changed}
    prompts = Prompts(task, lm, seed)
    try:
        for key, value in changed.items():
            task.set_config(key, value)
        task.fewshot_context = prompts  # pyright: ignore[reportAttributeAccessIssue]
        yield prompts
    except InputError as error:
        raise InputError(f"Task {name!r}: {error}") from error
    finally:
        del task.fewshot_context
        for key, value in before.items():
            task.set_config(key, value)
        if sampler is not None:
            task.sampler = sampler  # pyright: ignore[reportAttributeAccessIssue]
