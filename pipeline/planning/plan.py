"""What a run will need: the figures of `python -m pipeline plan`, and what cannot be."""

import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from pipeline import budget
from pipeline.models.base import LanguageModel
from pipeline.muon import divided
from pipeline.optim import SGD, Muon, Optimizer
from pipeline.planning import scaling, shapes
from pipeline.planning.hardware import Hardware, choose
from pipeline.planning.memory import Layout, Memory, memory_of
from pipeline.planning.rehearsal import Rehearsal, rehearse_any_depth
from pipeline.planning.settings import RunSettings, read_settings
from pipeline.planning.step_time import Speeds, step_seconds
from pipeline.planning.work import Work, work_of

PROCESS_BYTES = 62e6
"""That a process on a CPU grows by when its libraries compute for the first time: fitted to runs (docs/planning.md)."""
HEAP_SHARE = 0.38
"""Of what comes and goes in a step, that a process on a CPU holds besides, since freed places are not of the sizes wanted next: fitted, too."""
MAPPED_BYTES = 2**28
"""Of shards, that stay in memory at most; the kernel takes them back where it needs them."""
LINEAR_TOKENS = 8192
"""Tokens of a micro-batch from which on its memory grows evenly."""
MOST_SEQUENCES = 2**16
"""Of a micro-batch; more are not looked for."""
START_SECONDS = 120.0
"""That a job loses to starting: Python, the communication library, the first step."""
SIGNAL_SECONDS = 120.0
"""Before the end of its time at which a job saves and stops."""
STORE_BANDWIDTH = 1e9
"""Bytes/s at which a checkpoint is written or read, where `bench` has not measured it."""


@dataclass(frozen=True)
class BlockCount:
    """Parameters of one part of a model."""

    name: str
    parameters: int
    blocks: int = 1
    """Of like parts that they are the sum of."""


@dataclass(frozen=True)
class Option:
    """A layout of the state over the ranks, and what it takes."""

    layout: Layout
    memory: Memory
    recomputed: Memory | None
    """The same with activation checkpointing; None of a model without blocks."""
    fits: bool
    chosen: bool
    micro_batch: int
    """The largest that fits, 0 where none does."""
    micro_batch_recomputed: int | None


@dataclass(frozen=True)
class Plan:
    """What a run will need. None: it is not known."""

    run_directory: Path
    hardware: Hardware
    hardware_source: str
    nodes: int
    devices: int
    precision: str
    parameters: dict[str, int]
    """`total`, and `non_embedding`."""
    blocks: list[BlockCount]
    flops_per_token: dict[str, float]
    """`dense`: 6 N; `exact`: with attention, without tables that are only looked up."""
    work: Work
    options: list[Option]
    dense_flops: float | None
    """Of all tokens to train on, by 6 N."""
    flops: float | None
    mfu: float
    step_seconds: float | None
    seconds: float | None
    """Of training, waiting in queues and starting apart."""
    gpu_hours: float | None
    cost: float | None
    """Dollars."""
    energy_kwh: float | None
    price_per_hour: float
    power_watts: float
    time_limit_seconds: float | None
    requeues: int | None
    state_bytes: int
    """Of one checkpoint."""
    checkpoints: int
    """That are on the disk at once, at most."""
    optimum: dict[str, scaling.Allocation] | None
    """Of the same budget, by Kaplan and by Chinchilla."""
    refusals: list[str] = field(default_factory=list)
    """What cannot be, each in a sentence that says what could."""
    notes: list[str] = field(default_factory=list)

    @property
    def ranks(self) -> int:
        return self.nodes * self.devices

    @property
    def chosen(self) -> Option:
        return next(option for option in self.options if option.chosen)

    @property
    def disk_bytes(self) -> int:
        """That the run directory will take."""
        return self.checkpoints * self.state_bytes

    def text(self, width: int | None = None) -> str:
        """Tables to read, `width` columns wide; the terminal's when not given."""
        from pipeline.planning.display import text

        return text(self, width)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        content: dict[str, Any] = asdict(self) | {"ranks": self.ranks, "disk_bytes": self.disk_bytes}
        for option, found in zip(content["options"], self.options, strict=True):
            option["layout"]["name"] = found.layout.name
            option["memory"]["total"] = found.memory.total
            if found.recomputed is not None:
                option["recomputed"]["total"] = found.recomputed.total
        content["hardware"].pop("measured")
        return plain(content)


def plain(value: Any) -> Any:
    """Paths as text and keys as strings, all the way down."""
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return str(value) if isinstance(value, Path) else value


def make_plan(
    options: Sequence[str], *, nodes: int | None = None, devices: int | None = None, hardware: str | None = None,
    time_limit_seconds: float | None = None, mfu: float | None = None, price_per_gpu_hour: float | None = None,
    power_watts: float | None = None, bench: str | None = None,
) -> Plan:  # fmt: skip
    """The plan of a run.

    Args:
        options: as `fit` takes them: `--config FILE`, and dotted overrides.
        nodes: in place of trainer.num_nodes.
        devices: of each node, in place of trainer.devices.
        hardware: name of a preset, as plan.gpu.
        time_limit_seconds: wall time of a job.
        mfu, price_per_gpu_hour, power_watts, bench: as in the section `plan`.

    Raises:
        InputError: settings that `fit` would not take either.
    """
    settings = read_settings(options)
    given = settings.plan
    machine, source = choose(hardware or given.gpu, bench or given.bench)
    nodes = nodes or settings.nodes
    devices = devices or settings.devices or 1
    ranks = nodes * devices
    precision = settings.precision or machine.default_precision
    model = shapes.build(settings.model.architecture)
    work = work_of(settings.data, model_context=model.context, ranks=ranks, sequences=1)
    planner = Planner(settings, machine, model, work, nodes, devices, precision)
    limit = time_limit_seconds or (given.time_limit_hours and given.time_limit_hours * 3600)
    return planner.plan(
        source, limit, mfu or given.mfu, first(price_per_gpu_hour, given.price_per_gpu_hour, machine.price_per_hour),
        first(power_watts, given.power_watts, machine.power_watts),
    )  # fmt: skip


def first(*values: float | None) -> float:
    return next(value for value in values if value is not None)


class Planner:
    """The steps of a plan."""

    def __init__(
        self, settings: RunSettings, machine: Hardware, model: LanguageModel, work: Work, nodes: int, devices: int, precision: str
    ):  # fmt: skip
        self.settings, self.machine, self.model, self.work = settings, machine, model, work
        self.nodes, self.devices, self.precision = nodes, devices, precision
        self.ranks = nodes * devices
        self.counts = model.parameter_counts()
        self.largest_tensor = max(parameter.numel() for parameter in model.parameters())
        self.moments = moments(settings.model.optimizer, model)
        self.rehearsed: dict[tuple[int, int], Rehearsal] = {}

    def plan(self, source: str, limit: float | None, mfu: float | None, price: float, power: float) -> Plan:
        settings, work, machine = self.settings, self.work, self.machine
        exact = self.model.flops_per_token(work.context)
        per_token = {"dense": float(budget.dense_flops_per_token(self.counts["total"])), "exact": float(exact)}
        dense, flops = (None if work.tokens is None else work.tokens * per_token[kind] for kind in ("dense", "exact"))
        step_seconds, mfu = self.speed(mfu, per_token["exact"])
        seconds = None
        if work.tokens is not None and work.steps is not None:
            seconds = work.tokens * per_token["exact"] / (self.machine.peak(self.precision) * mfu * self.ranks)
        state = self.state_bytes()
        hours = None if seconds is None else seconds * self.ranks / 3600
        refusals, notes = self.refusals(), [*work.notes]
        requeues = None
        lost = START_SECONDS + SIGNAL_SECONDS + state / STORE_BANDWIDTH / self.ranks
        if seconds is not None:
            try:
                requeues = budget.jobs_of(seconds, limit, lost) - 1
            except ValueError as error:
                refusals.append(str(error))
        options = self.options()
        refusals += self.too_large(options)
        return Plan(
            run_directory=settings.run_directory, hardware=machine, hardware_source=source, nodes=self.nodes, devices=self.devices,
            precision=self.precision, parameters=self.counts, blocks=block_counts(self.model), flops_per_token=per_token, work=work,
            options=options, dense_flops=dense, flops=flops, mfu=mfu, step_seconds=step_seconds, seconds=seconds, gpu_hours=hours,
            cost=None if hours is None else hours * price, energy_kwh=None if hours is None else hours * power / 1000,
            price_per_hour=price, power_watts=power, time_limit_seconds=limit, requeues=requeues, state_bytes=state,
            checkpoints=self.checkpoints(), optimum=None if flops is None else {
                "Kaplan": scaling.kaplan(flops), "Chinchilla (20 tokens a parameter)": scaling.chinchilla(flops),
                "Chinchilla (fitted loss)": scaling.chinchilla_fit(flops),
            },
            refusals=refusals, notes=notes,
        )  # fmt: skip

    # -- time

    def speed(self, mfu: float | None, flops_per_token: float) -> tuple[float | None, float]:
        """Seconds of a full step, and the share of the peak that they stand for."""
        peak, batch = self.machine.peak(self.precision), self.work.batch_tokens
        every, measured = self.settings.model.checkpoint_blocks, self.machine.measured
        if mfu is None and measured and self.machine.kind == "cpu":
            micro_batches = self.work.micro_batches(self.ranks)
            step = self.step(self.work.micro_batch, every)
            seconds = step_seconds(Speeds(measured), step, micro_batches=micro_batches, parameters=self.counts["total"])
            if self.ranks > 1:
                seconds += 4 * self.counts["total"] / self.machine.link_bandwidth
            return seconds, batch * flops_per_token / (seconds * peak * self.ranks)
        if mfu is None:
            # What is computed twice is not counted twice.
            mfu = self.machine.mfu / (1 + (1 / 3 / every if every else 0))
        return batch * flops_per_token / (peak * mfu * self.ranks), mfu

    # -- memory

    def step(self, micro_batch: int, every: int) -> Rehearsal:
        """One micro-batch, with every so many blocks recomputed."""
        # From several chunks of the head on each sequence adds the same.
        low = max(self.work.micro_batch, -(-LINEAR_TOKENS // self.work.context))
        if micro_batch <= low:
            return self.rehearsed_at(micro_batch, every)
        one, two = (self.rehearsed_at(each, every) for each in (low, 2 * low))
        return one.combined(two - one, (micro_batch - low) / low)

    def rehearsed_at(self, micro_batch: int, every: int) -> Rehearsal:
        if (micro_batch, every) not in self.rehearsed:
            model, data = self.settings.model, self.settings.data
            self.rehearsed[micro_batch, every] = rehearse_any_depth(
                model.architecture, micro_batch, min(self.work.context, self.model.context or self.work.context), self.precision, self.machine.kind, checkpoint_blocks=every,
                carried=data.order == "stream", label_smoothing=model.label_smoothing, z_loss=model.z_loss,
            )  # fmt: skip
        return self.rehearsed[micro_batch, every]

    @property
    def has_blocks(self) -> bool:
        return any(isinstance(part, LanguageModel) and part.has_blocks for part in self.model.modules())

    def layouts(self) -> list[Layout]:
        """The run's own first, then the others that there are for as many ranks."""
        asked = self.settings.strategy
        stage = asked.stage
        if (self.ranks == 1 and stage == 0) or (stage is None and self.ranks > 1):
            stage = 0
        own = Layout(
            self.ranks, stage, asked.offload_optimizer, asked.offload_parameters, asked.bucket_megabytes, asked.overlap
        )
        others = [Layout(self.ranks, None if self.ranks == 1 else 0)]
        others += [
            Layout(self.ranks, number, offload, offload if number == 3 else None)
            for offload in (None, "cpu")
            for number in (1, 2, 3)
            if not (offload and number == 1)
        ]
        key = [(own.stage, bool(own.offload_optimizer), bool(own.offload_parameters))]
        return [
            own,
            *(o for o in others if (o.stage, bool(o.offload_optimizer), bool(o.offload_parameters)) not in key),
        ]

    def memory(self, layout: Layout, micro_batch: int, every: int) -> Memory:
        accumulates = self.work.batch_tokens // self.work.context > micro_batch * self.ranks
        memory = memory_of(
            self.step(micro_batch, every), layout, self.precision, parameters=self.counts["total"], largest=self.largest_tensor,
            moments=self.moments,
            averaged=self.settings.model.ema_half_life_tokens is not None, accumulates=accumulates,
        )  # fmt: skip
        if self.machine.kind == "cpu":
            # Everything lies in the process there: the copy of the state that is written while training goes on, and mapped shards.
            copy = self.state_bytes() / self.ranks if self.saves_while_training else 0.0
            mapped = min(self.work.shard_bytes or 0, MAPPED_BYTES)
            gaps = HEAP_SHARE * (memory.activations + memory.logits + memory.buffers)
            memory = replace(memory, buffers=memory.buffers + gaps + copy + mapped + PROCESS_BYTES)
        return memory

    @property
    def saves_while_training(self) -> bool:
        """Whether a copy of the state is written while steps go on; of the last save there are none."""
        every = (self.settings.checkpoint.every_tokens, self.settings.data.validate_every_tokens)
        return self.settings.checkpoint.asynchronous and any(e and e < (self.work.tokens or e + 1) for e in every)

    def options(self) -> list[Option]:
        own_every, micro_batch = self.settings.model.checkpoint_blocks, self.work.micro_batch
        found = []
        for number, layout in enumerate(self.layouts()):
            chosen = number == 0
            memory = self.memory(layout, micro_batch, own_every)
            recomputed = self.memory(layout, micro_batch, 1) if self.has_blocks else None
            found.append(
                Option(
                    layout, memory, recomputed, memory.total <= self.machine.fits_bytes, chosen, self.largest(layout, own_every),
                    self.largest(layout, 1) if self.has_blocks else None,
                )
            )  # fmt: skip
        return found

    def largest(self, layout: Layout, every: int) -> int:
        """The largest micro-batch that fits; 0: not even one sequence."""
        fitting = bisect_left(
            range(1, MOST_SEQUENCES),
            True,
            key=lambda each: self.memory(layout, each, every).total > self.machine.fits_bytes,
        )
        return fitting

    # -- disk

    def state_bytes(self) -> int:
        """Of one checkpoint: fp32 weights, what the optimizer keeps, and a moving average."""
        model = self.settings.model
        kept = 1 + self.moments + (1 if model.ema_half_life_tokens else 0)
        return int(4 * kept * self.counts["total"])

    def checkpoints(self) -> int:
        """Folders on the disk at once: the newest, the best, those that stay, and the one being written."""
        policy, tokens = self.settings.checkpoint, self.work.tokens
        stay = 0
        if policy.keep_every_tokens and tokens:
            stay += tokens // policy.keep_every_tokens
        if policy.keep_early and self.work.steps:
            stay += len([k for k in range(10) if 2**k <= self.work.steps])
        return policy.keep_last + 1 + 1 + stay

    # -- what cannot be

    def refusals(self) -> list[str]:
        settings, work = self.settings, self.work
        found = []
        limit, architecture = self.model.context, settings.model.architecture
        if limit is not None and work.context > limit:
            found.append(
                f"data.context {work.context} is longer than the model's context of {limit}: lower data.context or raise "
                "model.architecture.context"
            )
        if work.vocab_size is not None and work.vocab_size != architecture.vocab_size:
            found.append(
                f"Shards were written with a vocabulary of {work.vocab_size}, the model has {architecture.vocab_size}: set "
                "model.architecture.vocab_size or run data_prep tokenize again"
            )
        if work.divisor % (work.micro_batch * self.ranks):
            found.append(
                f"A batch in multiples of {work.divisor} sequences does not divide into micro-batches of {work.micro_batch} on "
                f"{self.ranks} rank(s): make data.micro_batch a divisor of {work.divisor // self.ranks or 1}, or change data.batch_tokens"
            )
        if settings.model.checkpoint_blocks and not self.has_blocks:
            found.append(
                f"model.checkpoint_blocks is set, but a {architecture.family} has no blocks to run again: set it to 0"
            )
        if settings.strategy.stage in (1, 2, 3) and settings.model.optimizer.needs_whole_matrices:
            found.append(
                f"{type(settings.model.optimizer).__name__} steps whole matrices, which ZeRO cuts: use AdamW, or trainer.strategy ddp"
            )
        return found

    def too_large(self, options: list[Option]) -> list[str]:
        """A sentence on what does not fit and what would, smallest change first."""
        own = options[0]
        if own.fits:
            return []
        ways = []
        if own.micro_batch >= 1:
            ways.append(f"data.micro_batch {own.micro_batch}")
        if (
            self.has_blocks
            and self.settings.model.checkpoint_blocks != 1
            and (own.micro_batch_recomputed or 0) >= self.work.micro_batch
        ):
            ways.append("model.checkpoint_blocks 1")
        ways += [f"trainer.strategy {strategy_name(o.layout)}" for o in options[1:] if o.fits][:2]
        if not ways:
            with_all = [o for o in options[1:] if o.micro_batch_recomputed]
            ways += [
                f"trainer.strategy {strategy_name(o.layout)} with model.checkpoint_blocks 1 and data.micro_batch "
                f"{min(o.micro_batch_recomputed or 1, self.work.micro_batch)}"
                for o in with_all
            ][:2]
        if not ways and (ranks := self.ranks_that_fit()):
            ways.append(f"ZeRO 3 with model.checkpoint_blocks 1 on {ranks} GPUs")
        room, need = self.machine.fits_bytes / 2**30, own.memory.total / 2**30
        return [
            f"{own.layout.name} on {self.ranks} rank(s) needs {need:.1f} GiB a rank at data.micro_batch {self.work.micro_batch}, and "
            f"{self.machine.name} has {room:.1f} GiB for it: " + (" or ".join(ways) + " would fit" if ways else
            "no layout of this model fits; take a smaller model or a larger GPU")
        ]  # fmt: skip

    def ranks_that_fit(self) -> int | None:
        """The smallest power of two of ranks on which stage 3 fits at a micro-batch of one."""
        for power in range(17):
            ranks = 2**power
            layout = Layout(ranks, 3)
            if ranks > self.ranks:
                memory = memory_of(
                    self.step(1, 1 if self.has_blocks else 0), layout, self.precision, parameters=self.counts["total"],
                    largest=self.largest_tensor, moments=self.moments,
                )  # fmt: skip
                if memory.total <= self.machine.fits_bytes:
                    return ranks
        return None


def strategy_name(layout: Layout) -> str:
    """As a YAML has it."""
    if layout.stage is None:
        return "single"
    if layout.stage == 0:
        return "ddp"
    offload = "_offload" if layout.offload_optimizer else ""
    return f"zero{layout.stage}" if not offload else f"of configs/strategy/zero{layout.stage}{offload}.yaml"


def moments(optimizer: Optimizer, model: nn.Module) -> float:
    """Numbers that an optimizer keeps for each parameter, on average."""
    if isinstance(optimizer, SGD):
        return 1.0 if optimizer.momentum else 0.0
    if isinstance(optimizer, Muon):
        hidden, rest = divided(model)
        sizes = [sum(p.numel() for p in part) for part in (hidden, rest)]
        return (sizes[0] + 2 * sizes[1]) / max(1, sum(sizes))
    return 2.0


def block_counts(model: LanguageModel) -> list[BlockCount]:
    """The parameters of each part; like blocks of a stack together."""
    names: dict[str, tuple[int, set[str]]] = {}
    for name, parameter in model.named_parameters():
        found = re.search(r"\.(\d+)\.|_l(\d+)", name)
        part = name[: found.start()] if found else name.rpartition(".")[0]
        number = (found[1] or found[2]) if found else "0"
        total, numbers = names.get(part, (0, set()))
        names[part] = (total + parameter.numel(), numbers | {number})
    return [BlockCount(part, total, len(numbers)) for part, (total, numbers) in names.items()]
