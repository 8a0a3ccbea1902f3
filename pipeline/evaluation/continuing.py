"""What a model writes after prompts, as the harness's settings of a task ask for it."""

import hashlib
import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

from data_prep.files import InputError
from data_prep.tokenizer import Tokenizer
from pipeline.evaluation.contexts import Contexts, Tokens
from pipeline.generation.beam import Beam
from pipeline.generation.decoding import decode
from pipeline.generation.rows import batches
from pipeline.generation.sampling import Sampling
from pipeline.generation.stopping import StopStrings
from pipeline.models.base import LanguageModel


class Settings(NamedTuple):
    """How prompts are continued."""

    how: Sampling | Beam
    room: int
    """The most tokens of a continuation."""
    until: tuple[str, ...]

    @property
    def drawn(self) -> bool:
        """Whether the same prompt may get several answers."""
        return isinstance(self.how, Sampling) and self.how.temperature > 0


class Prompt(NamedTuple):
    """A prompt and the requests that have it."""

    tokens: Tokens
    owners: tuple[int, ...]
    """Numbers of those requests."""
    seeds: tuple[int, ...]
    """Of the continuation for each of them; one for all where nothing is drawn."""


class Writing(NamedTuple):
    """Prompts that are continued together."""

    settings: Settings
    prompts: list[Prompt]


def settings_of(asked: dict[str, Any], room: int) -> Settings:
    """A task's `generation_kwargs`. Raises InputError where an option is outside its range."""
    until = asked.get("until") or []
    return Settings(decoding_of(asked), room, tuple(filter(None, [until] if isinstance(until, str) else until)))


def decoding_of(settings: dict[str, Any]) -> Sampling | Beam:
    """How a task's `generation_kwargs`, named as in transformers, choose tokens; `num_beams` above 1 makes a beam search.

    Raises:
        InputError: an option is outside its range.
    """
    try:
        if settings.get("num_beams", 1) > 1:
            return Beam(width=settings["num_beams"], length_penalty=settings.get("length_penalty", Beam.length_penalty))
        sampled = settings.get("do_sample", settings.get("temperature", 0.0) > 0)
        return Sampling(
            temperature=float(settings.get("temperature", 1.0)) if sampled else 0.0,
            repetition_penalty=settings.get("repetition_penalty", 1.0),
            top_k=settings.get("top_k") or None,  # 0 is off there.
            top_p=settings.get("top_p"),
            min_p=settings.get("min_p") or None,
        )
    except ValueError as error:
        raise InputError(f"The generation_kwargs of a task cannot be used: {error}") from error


def seed_of(seed: int, prompt: Tokens, repeat: int) -> int:
    """The seed of one continuation: whatever else is asked for, and wherever it is drawn, it is the same."""
    digest = hashlib.blake2b(f"{seed} {repeat} {' '.join(map(str, prompt))}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def prompts_of(settings: Settings, owners: dict[Tokens, list[int]], seed: int, batch_tokens: int) -> list[Prompt]:
    """Each prompt once for all requests that have it; drawn continuations in parts that fit a batch."""
    prompts = []
    for tokens, numbers in owners.items():
        if not settings.drawn:
            prompts.append(Prompt(tokens, tuple(numbers), (0,)))
            continue
        most = max(1, batch_tokens // (len(tokens) + settings.room))
        for start in range(0, len(numbers), most):
            part = numbers[start : start + most]
            seeds = (seed_of(seed, tokens, start + repeat) for repeat in range(len(part)))
            prompts.append(Prompt(tokens, tuple(part), tuple(seeds)))
    return prompts


def in_batches(settings: Settings, prompts: list[Prompt], batch_tokens: int) -> Iterator[Writing]:
    """Prompts with as many continuations each together, at most `batch_tokens` with all that may be written."""

    def rows(prompt: Prompt) -> int:
        return len(prompt.seeds)

    for count, alike in itertools.groupby(sorted(prompts, key=rows), key=rows):
        width = count * settings.how.width
        for batch in batches(list(alike), lambda each, w=width: w * (len(each.tokens) + settings.room), batch_tokens):
            yield Writing(settings, batch)


def continuations(
    model: LanguageModel, contexts: Contexts, tokenizer: Tokenizer, writing: Writing
) -> list[tuple[tuple[int, ...], list[str]]]:
    """For each prompt its owners, and for each of these its text, which ends before a stop string."""
    (how, room, strings), prompts = writing
    until, end = StopStrings(strings, tokenizer.decode), tokenizer.end_of_text
    answers = decode(
        model,
        max_new_tokens=room,
        how=how,
        samples=len(prompts[0].seeds),
        seeds=[seed for prompt in prompts for seed in prompt.seeds],
        stop=frozenset([end]),
        stop_when=until.reached,
        **contexts.decoding([list(prompt.tokens) for prompt in prompts]),
    )

    def text(tokens: list[int]) -> str:
        return until.cut(tokenizer.decode(itertools.takewhile(lambda token: token != end, tokens)))

    texts = [[text(tokens) for tokens in each] for each in answers]
    return [
        (prompt.owners, each if len(each) == len(prompt.owners) else each * len(prompt.owners))
        for prompt, each in zip(prompts, texts, strict=True)
    ]
