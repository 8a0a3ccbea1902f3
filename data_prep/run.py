"""A run: stage after stage brought up to date, and what is said of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from data_prep import card
from data_prep.configuration import DataConfig
from data_prep.decontaminate import report as print_contamination
from data_prep.dedup import report as print_threshold
from data_prep.fertility import report as print_fertility
from data_prep.mix import report as print_mixture
from data_prep.recipe import STAGES, described
from data_prep.stages import Finished, Stage, exclusive, perform
from data_prep.workers import UnitsFailed
from data_prep.workers import workers as running


@dataclass(frozen=True)
class Prepared:
    """What a run has brought up to date."""

    stages: dict[str, Finished]
    peak_bytes: int
    """The most memory that one of its processes has held, where they did any work."""


def run(config: DataConfig, last: str, console: Console) -> Prepared:
    """Bring all stages up to and including those of the verb `last` up to date.

    Raises:
        UnitsFailed: units of a verb could not be done; all others of this verb are.
    """
    output = Path(config.output)
    failed: list[tuple[str, UnitsFailed]] = []
    with exclusive(output), running(config.workers) as workers:

        def bring(verb: str, _: int, stages: Sequence[Stage]) -> list[Finished | None]:
            ended = perform(stages, output, workers, console)
            failed.extend((verb, each) for each in ended if isinstance(each, UnitsFailed))
            return [each if isinstance(each, Finished) else None for each in ended]

        done = reach(config, last, bring)
        if failed:
            raise together(failed)
        report(last, done, console)
        if "tokens" in done:
            card.write(output, [described(name, source) for name, source in config.sources.items()], done)
        return Prepared(done, workers.peak)


def together(failed: list[tuple[str, UnitsFailed]]) -> UnitsFailed:
    """What failed in several stages of a verb as one error."""
    [verb, first] = failed[0]
    return first if len(failed) == 1 else UnitsFailed(verb, [each for _, error in failed for each in error.failures])


class NotReached(KeyError):
    """A stage was asked for another one that is not finished."""


class Reached(dict[str, Finished]):
    """Finished stages by name."""

    def __missing__(self, name: str) -> Finished:
        raise NotReached(name)


Bring = Callable[[str, int, Sequence[Stage]], list[Finished | None]]
"""Given a verb, the number in it of the first of some stages, and these, brings them up to date; None for those where it cannot."""


def one_by_one(bring: Callable[[str, int, Stage], Finished | None]) -> Bring:
    """What brings one stage up to date as what brings several."""
    return lambda verb, first, stages: [bring(verb, number, stage) for number, stage in enumerate(stages, first)]


def reach(config: DataConfig, last: str, bring: Bring) -> dict[str, Finished]:
    """Go through the stages up to the verb `last`, and through all of a verb before the next; returns those that are finished.

    After a verb of which a stage cannot be finished, the others are left.
    """
    done = Reached()
    for verb, rounds in STAGES.items():
        whole, number = True, 0
        try:
            for stages in rounds(config, done):
                for stage, finished in zip(stages, bring(verb, number, stages), strict=True):
                    if finished is None:
                        whole = False
                    else:
                        done[stage.name] = finished
                number += len(stages)
        except NotReached:
            # Of the stages of a verb, some may need another that could not be finished.
            if whole:
                raise
        if not whole or verb == last:
            break
    return done


def report(verb: str, done: dict[str, Finished], console: Console) -> None:
    """What the verb that was asked for says beyond its stage's line."""
    if verb == "tokenizer":
        print_fertility(done["tokenizer"].record, console)
    if verb == "dedup":
        print_threshold(done["unique"].record, console)
    if verb == "mix" and "mixture" in done:
        print_mixture(done["mixture"].record, console)
    if verb == "decontaminate" and "decontaminated" in done:
        print_contamination(done["decontaminated"].record, console)
    elif verb == "decontaminate":
        console.print(
            "decontaminate: nothing to do, the configuration names no test set (decontaminate.files or .tasks)"
        )
