"""How far a run is, and three ways to go on from there: a share of the units, what no array of jobs is for, and all that is left.

Each begins by finding out what is there, so any of them may be done again, or by somebody else, at any time.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from data_prep.configuration import DataConfig
from data_prep.files import InputError
from data_prep.progress import progress
from data_prep.run import one_by_one, reach
from data_prep.stages import Asked, Finished, Stage, current, do_units, exclusive, follow, perform, store_of
from data_prep.units import Output, Phase
from data_prep.workers import Job, UnitsFailed, workers


class UnitsMissing(Exception):
    """A phase is not whole, and it is not for us to do the rest."""


@dataclass(frozen=True)
class Share:
    """Which units one job of an array does."""

    index: int
    tasks: int

    def has(self, stage: int, unit: int) -> bool:
        """Whether a unit is in it, by its number and that of its stage: many stages of one unit are divided too."""
        return (stage + unit) % self.tasks == self.index


@dataclass(frozen=True)
class Front:
    """The first phase of a stage that is not whole; without units the stage is only to be put together."""

    verb: str
    stage: str
    phase: str = ""
    units: int = 0
    found: int = 0
    bytes: int = 0
    done: int = 0
    """Bytes of the units that are there."""
    mapped: bool = False
    """Whether an array of jobs is for it."""


def whole(found: Sequence[Output | None]) -> list[Output]:
    """What the units of a phase have written; raises UnitsMissing where one is missing."""
    if None in found:
        raise UnitsMissing
    return [output for output in found if output]


def survey(config: DataConfig, last: str) -> list[Front]:
    """What is to be done next; nothing where all is up to date. All fronts are of one verb."""
    output, fronts = Path(config.output), []

    def bring(verb: str, number: int, stage: Stage) -> Finished | None:
        if finished := current(stage, output):
            return finished

        def look(phase: Phase) -> list[Output]:
            found = store_of(stage, output).find(phase)
            if all(found):
                return whole(found)
            sizes = [unit.bytes for unit in phase.units]
            done = sum(size for size, each in zip(sizes, found, strict=True) if each)
            there = len(found) - found.count(None)
            fronts.append(
                Front(verb, stage.name, phase.name, len(found), there, sum(sizes), done, mapped=not phase.alone)
            )
            raise UnitsMissing

        try:
            follow(stage.steps(), look)
            fronts.append(Front(verb, stage.name))
        except UnitsMissing:
            pass
        return None

    reach(config, last, one_by_one(bring))
    return fronts


def do_share(
    config: DataConfig, last: str, share: Share, processes: int, console: Console, finished: Callable[[], None]
) -> list[str]:
    """Do those units of the frontier that are in a share, and of later phases where all before them are there.

    Args:
        finished: Called after each unit.

    Returns:
        A sentence for each unit, or stage, that failed.
    """
    output, failed = Path(config.output), []
    with workers(processes) as pool:

        def bring(verb: str, number: int, stage: Stage) -> Finished | None:
            if done := current(stage, output):
                return done

            def do(phase: Phase) -> list[Output]:
                store = store_of(stage, output)
                found = store.find(phase)
                mine = [
                    Job(unit, store.place(phase, unit))
                    for place, (unit, there) in enumerate(zip(phase.units, found, strict=True))
                    if there is None and share.has(number, place) and not phase.alone
                ]
                if mine:
                    console.print(f"{stage.name}, {phase.name}: {len(mine)} of {len(found)} units", highlight=False)
                    sizes = [job.unit.bytes for job in mine]

                    def after(job: Job, _: float) -> None:
                        shown.add(job.unit.bytes)
                        finished()

                    with progress(stage.name, sizes, sizes, console) as shown:
                        failures = pool.run(mine, after, phase.least_bytes, phase.threaded)
                    for failure in failures:
                        console.print(failure.trace, markup=False, highlight=False)
                    failed.extend(map(str, failures))
                    found = store.find(phase)
                return whole(found)

            try:
                follow(stage.steps(), do)
            except UnitsMissing:
                pass
            except InputError as error:
                failed.append(str(error))
            return None

        reach(config, last, one_by_one(bring))
    return failed


def advance(config: DataConfig, last: str, processes: int, console: Console) -> list[str]:
    """Put stages together and do what sees everything at once, up to units that an array of jobs is for.

    Returns a sentence for each unit, or stage, that failed.
    """
    output, failed = Path(config.output), []
    with exclusive(output), workers(processes) as pool:

        def bring(verb: str, number: int, stage: Stage) -> Finished | None:
            if done := current(stage, output):
                return done

            def do(phase: Phase) -> list[Output]:
                store = store_of(stage, output)
                found = store.find(phase)
                if None in found and not phase.alone:
                    missing = found.count(None)
                    console.print(f"{stage.name}, {phase.name}: {missing} of {len(found)} units left", highlight=False)
                    raise UnitsMissing
                return do_units([Asked(stage.name, phase, store)], pool, console)[0].whole()

            try:
                follow(stage.steps(), do)
                [finished] = perform([stage], output, pool, console)
                if isinstance(finished, Finished):
                    return finished
                raise finished
            except UnitsMissing:
                return None
            except UnitsFailed as error:
                failed.extend(map(str, error.failures))
            except InputError as error:
                failed.append(str(error))
            return None

        reach(config, last, one_by_one(bring))
    return failed
