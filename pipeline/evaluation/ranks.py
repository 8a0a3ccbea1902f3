"""Evaluation on several processes: the first asks, all compute, the first gets what they found.

The first rank alone runs the harness; the others wait in `serve` for work and do their share of it. So examples are loaded and
generated programs run once, and scores and answers are the same on any number of ranks.
"""

import contextlib
import os
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple

import torch
from torch import distributed

from data_prep.files import InputError

# The first rank may load a data set or run programs for hours while the others wait; where it dies, they hear of it at once.
PATIENCE = timedelta(days=30)
BATCHES_A_TURN = 4
"""Batches that a rank computes between two exchanges."""

CPU = torch.device("cpu")
Perform = Callable[[Any], Any]


class Stopped(Exception):
    """Raised on the first rank where one of the ranks wants to stop."""


class Order(NamedTuple):
    """What the first rank asks for: items of work, or the end."""

    items: list[Any] | None
    status: int = 0
    """The exit status of the first rank, at the end."""


class Outcome(NamedTuple):
    """What a rank has to say of an order."""

    results: list[Any]
    failure: BaseException | None = None
    trace: str = ""
    stop: bool = False


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """The processes of an evaluation, as one of them sees them."""

    rank: int = 0
    size: int = 1
    device: torch.device = CPU
    group: Any = None
    """For objects, between CPUs; None: the default one."""
    lockstep: bool = False
    """Every rank computes every batch, since a forward pass needs all of them (weights that are sharded)."""
    batches_a_turn: int = BATCHES_A_TURN
    wants_stop: Callable[[], bool] = lambda: False
    """Asked on every rank after each turn."""
    on_turn: Callable[[], None] = lambda: None
    """Called on every rank after each turn, as often on one as on another."""

    # -- on the first rank

    def compute(self, perform: Perform, items: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """The number of each item with what `perform` makes of it, as the ranks get done.

        Raises:
            Stopped: a rank wants to.
            InputError: another rank has failed.
        """
        each = 1 if self.size == 1 or self.lockstep else self.batches_a_turn * self.size
        for start in range(0, len(items), each):
            turn = list(items[start : start + each])
            outcomes = self.exchange(perform, turn)
            for rank, outcome in enumerate(outcomes):
                if outcome.failure is not None:
                    raise outcome.failure if rank == self.rank else of_another(rank, outcome)
            own = outcomes[:1] if self.lockstep else outcomes
            for rank, outcome in enumerate(own):
                places = range(start + rank, start + len(turn), len(own))
                yield from zip(places, outcome.results, strict=True)
            if any(outcome.stop for outcome in outcomes):
                raise Stopped

    def exchange(self, perform: Perform, items: list[Any]) -> list[Outcome]:
        if self.size == 1:
            return [self.do(perform, items)]
        self.tell(Order(items))
        outcome = self.do(perform, items)
        gathered: list[Any] = [None] * self.size
        with connected("Another rank"):
            distributed.gather_object(outcome, gathered, group=self.group)
        return gathered

    def end(self, status: int = 0) -> None:
        """Release the others; they end with this status."""
        if self.size > 1:
            self.tell(Order(None, status))

    def tell(self, order: Order) -> None:
        with connected("Another rank"):
            distributed.broadcast_object_list([order], group=self.group)

    # -- on the others

    def serve(self, perform: Perform) -> int:
        """Do what the first rank asks for until it has done; return its status."""
        while True:
            received: list[Any] = [None]
            with connected("The first rank"):
                distributed.broadcast_object_list(received, group=self.group)
            [order] = received
            if order.items is None:
                return order.status
            outcome = self.do(perform, order.items)
            with connected("The first rank"):
                distributed.gather_object(outcome, group=self.group)

    # -- on all

    def do(self, perform: Perform, items: list[Any]) -> Outcome:
        """This rank's share of the items."""
        share = items if self.lockstep else items[self.rank :: self.size]
        results, failure, trace = [], None, ""
        try:
            results = [perform(item) for item in share]
        except Exception as error:  # The others wait for an answer, whatever it is.
            failure, trace = error, traceback.format_exc()
            if self.rank:
                known = isinstance(error, InputError | OSError)
                failure = InputError(str(error)) if known else RuntimeError(str(error))  # what can be sent
        self.on_turn()
        return Outcome(results, failure, trace, self.wants_stop())


ALONE = Ranks()


def of_another(rank: int, outcome: Outcome) -> Exception:
    if isinstance(outcome.failure, InputError):
        return InputError(f"On rank {rank}: {outcome.failure}")
    return RuntimeError(f"Rank {rank} failed:\n{outcome.trace}")


@contextlib.contextmanager
def connected(who: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # gloo's, of a connection that is gone
        raise InputError(f"{who} has ended in the middle of the evaluation: its own output says why") from error


@contextlib.contextmanager
def joined() -> Iterator[Ranks]:
    """The ranks that torchrun or srun has started, connected; one alone where neither has.

    When the block ends, on the first rank with or without an error, the others are released. An InputError that several ranks
    meet is raised on the first alone; the others end with its status.
    """
    place = place_in_job(os.environ)
    if place.size == 1:
        yield Ranks(device=device_of(place.local_rank))
        return
    ranks = Ranks(rank=place.rank, size=place.size, device=device_of(place.local_rank))
    connect(place)
    try:
        if ranks.rank == 0:
            with ended(ranks):
                yield ranks
        else:
            with answered(ranks):
                yield ranks
    finally:
        distributed.destroy_process_group()


def connect(place: "Place") -> None:
    """Meet the other processes of the job; they exchange objects only, so gloo does on GPUs too."""
    if place.address:
        os.environ.setdefault("MASTER_ADDR", place.address)
        os.environ.setdefault("MASTER_PORT", str(place.port))
    distributed.init_process_group("gloo", rank=place.rank, world_size=place.size, timeout=PATIENCE)


@contextlib.contextmanager
def ended(ranks: Ranks) -> Iterator[None]:
    """On the first rank: release the others at the end of the block, however it ends."""
    status = 1
    try:
        yield
        status = 0
    except (InputError, OSError):
        status = 2
        raise
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
        raise
    finally:
        with contextlib.suppress(InputError):  # a rank that is gone needs no release
            ranks.end(status)


@contextlib.contextmanager
def answered(ranks: Ranks) -> Iterator[None]:
    """On another rank: where it fails before it serves, say so when the first asks, and end as that one does."""
    try:
        yield
    except Exception as error:
        failure = error

        def refuse(item: Any) -> None:
            raise failure

        if status := ranks.serve(refuse):
            raise SystemExit(status) from None
        raise


# -- who started this process


class Place(NamedTuple):
    """Where a process stands among those that were started together."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    address: str | None = None
    """Of the first rank; None where the environment already says it."""
    port: int | None = None


def place_in_job(environment: "os._Environ[str] | dict[str, str]") -> Place:
    """What torchrun or srun have set; a script of sbatch that calls no srun is one process, whatever the job has."""
    if "TORCHELASTIC_RUN_ID" in environment:
        rank, size, local_rank = (int(environment[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        return Place(rank, size, local_rank)
    size = int(environment.get("SLURM_STEP_NUM_TASKS", 1))
    if size == 1:
        return Place()
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

    nodes = environment.get("SLURM_STEP_NODELIST", environment.get("SLURM_NODELIST", "127.0.0.1"))
    # Steps of one job may run side by side.
    port = 15000 + (int(environment.get("SLURM_JOB_ID", 0)) * 16 + int(environment.get("SLURM_STEP_ID", 0))) % 15000
    rank, local_rank = (int(environment[name]) for name in ("SLURM_PROCID", "SLURM_LOCALID"))
    return Place(rank, size, local_rank, SLURMEnvironment.resolve_root_node_address(nodes), port)


def device_of(local_rank: int) -> torch.device:
    """A GPU for each process of a machine, where there are any (not tried on GPUs)."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return torch.device("cuda", local_rank % count) if count else torch.device("cpu")
