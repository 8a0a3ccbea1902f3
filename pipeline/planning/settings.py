"""The settings of a run, read as `fit` reads them, without what makes `fit` slow to start.

Files merge and options override as they do there, since the same parser does it; only the Trainer's own options, most of which no plan
depends on, are merged as plain values. A preset of a model alone can be planned too: what is missing is None.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings

from data_prep.files import InputError
from pipeline.batch_schedule import BatchRamp
from pipeline.mixture_parts import MixturePart
from pipeline.models import families  # noqa: F401  known to the parser by their short names
from pipeline.models.base import ModelConfig
from pipeline.optim import AdamW, Optimizer
from pipeline.planning.shapes import without_numbers
from pipeline.schedule import CosineSchedule, Schedule
from pipeline.trainer_defaults import TRAINER_DEFAULTS

SECTIONS = ("model", "data", "checkpoint", "plan")
"""What of a run's YAML is read here, beside `trainer`."""

STAGES = {"single": None, "ddp": 0} | {f"{kind}{n}": n for kind in ("zero", "deepspeed_stage_") for n in (1, 2, 3)}
"""ZeRO's stage by the name of a strategy; 0: DDP, None: one device."""


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """Of the section `model`, as `fit --help` explains it."""

    architecture: ModelConfig
    optimizer: Optimizer = AdamW()  # noqa: RUF009  frozen
    schedule: Schedule = CosineSchedule()  # noqa: RUF009  frozen
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    scheduled_sampling: float = 0.0
    pretrained: str | None = None
    compile: bool = False
    checkpoint_blocks: int = 0
    ema_half_life_tokens: int | None = None
    noise_scale: bool = False


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Of the section `data`, as `fit --help` explains it."""

    path: str | None = None
    context: int | None = None
    batch_tokens: int | None = None
    micro_batch: int | None = None
    total_tokens: int | None = None
    total_epochs: float | None = None
    order: Literal["shuffled", "stream", "pairs"] = "shuffled"
    labels: list[str] | None = None
    seed: int = 0
    mixture: dict[str, MixturePart] | None = None
    batch_ramp: BatchRamp | None = None
    context_schedule: dict[int, int] | None = None
    validate_every_tokens: int | None = None
    validation_tokens: int | None = None
    prefetch: int = 2
    allow_changes: list[str] | None = None


@dataclass(frozen=True, kw_only=True)
class CheckpointSettings:
    """Of the section `checkpoint`, as `fit --help` explains it."""

    every_tokens: int | None = None
    keep_last: int = 2
    keep_every_tokens: int | None = None
    keep_early: bool = False
    asynchronous: bool = True
    disk_budget_gb: float | None = None


@dataclass(frozen=True, kw_only=True)
class PlanSettings:
    """What `plan` and `submit` reckon with; `fit` does not look at it."""

    gpu: str | None = None
    """Of A100-40, A100-80, H100, H200, B200, MI300X, V100 and CPU; what `bench` has measured when not given."""
    mfu: float | None = None
    """Share of the peak arithmetic that training will use, in (0, 1]; the preset's assumption, or what `bench` predicts, when not
    given."""
    price_per_gpu_hour: float | None = None
    """In dollars; the preset's assumption when not given."""
    power_watts: float | None = None
    """Of one GPU with its share of the node; the GPU's own limit when not given."""
    time_limit_hours: float | None = None
    """Wall time of one job, after which the run is queued again."""
    bench: str | None = None
    """File that `bench` has written; its default place when not given."""

    def __post_init__(self):
        for name in ("mfu", "price_per_gpu_hour", "power_watts", "time_limit_hours"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"plan.{name} is {value}: it must be positive")
        if self.mfu is not None and self.mfu > 1:
            raise ValueError(f"plan.mfu is {self.mfu}: it is a share of the peak, at most 1")


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """How ranks share the state, from trainer.strategy."""

    stage: int | None = None
    """Of ZeRO; 0: every rank has all of it (DDP), None: whichever of one device and DDP the number of ranks asks for."""
    offload_optimizer: str | None = None
    offload_parameters: str | None = None
    bucket_megabytes: int = 200
    overlap: bool = True


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What a plan depends on."""

    model: ModelSettings
    data: DataSettings
    checkpoint: CheckpointSettings
    plan: PlanSettings
    strategy: Strategy
    trainer: dict[str, Any] = field(default_factory=dict)
    """The Trainer's options as plain values, over the defaults of `fit`."""

    @property
    def run_directory(self) -> Path:
        return Path(self.trainer["default_root_dir"])

    @property
    def precision(self) -> str | None:
        """None where the device decides."""
        given = self.trainer.get("precision")
        return (
            None if given is None else {"32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}.get(str(given), given)
        )

    @property
    def accelerator(self) -> str:
        return str(self.trainer.get("accelerator", "auto"))

    @property
    def nodes(self) -> int:
        return int(self.trainer.get("num_nodes", 1))

    @property
    def devices(self) -> int | None:
        """Processes a node; None where the machine decides."""
        given = self.trainer.get("devices", "auto")
        if isinstance(given, list):
            return len(given)
        if str(given) in ("auto", "-1"):
            return None
        return len(str(given).split(",")) if "," in str(given) else int(given)


def read_settings(options: Sequence[str]) -> RunSettings:
    """The settings that `fit` would have from these options: `--config FILE` any number of times, and dotted overrides.

    Raises:
        InputError: a file that is not there or not YAML, an option that does not exist or has no value, a value that does not fit.
    """
    files, overrides = split_options(options)
    contents = [read_yaml(file) for file in files]
    parser = sections_parser()
    arguments: list[str] = []
    for content in contents:
        chosen = {name: content[name] for name in SECTIONS if content.get(name) is not None}
        arguments += ["--config", yaml.safe_dump(chosen)] if chosen else []
    trainer = dict(TRAINER_DEFAULTS)
    for content in contents:
        merge(trainer, content.get("trainer") or {})
    for name, value in overrides:
        section, _, key = name.partition(".")
        if section in SECTIONS:
            arguments += [f"--{name}={value}"]
        elif section == "trainer" and key:
            merge(trainer, nested(key.split("."), parsed(name, value)))
    try:
        with warnings.catch_warnings(), without_numbers():
            warnings.simplefilter("ignore")
            namespace = parser.parse_args(arguments)
            read: Any = parser.instantiate_classes(namespace)
    except (ArgumentError, ValueError) as error:
        sentence = "; ".join(line.strip().rstrip(":;") for line in str(error).splitlines() if line.strip())
        raise InputError(sentence.replace('"<unicode string>"', " or ".join(files))) from error
    return RunSettings(
        model=read.model, data=read.data, checkpoint=read.checkpoint, plan=read.plan,
        strategy=strategy_of(trainer.get("strategy", "auto")), trainer=trainer,
    )  # fmt: skip


def sections_parser() -> ArgumentParser:
    set_parsing_settings(subclasses_enabled=[ModelConfig, Optimizer, Schedule])
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    kinds = (ModelSettings, DataSettings, CheckpointSettings, PlanSettings)
    for name, kind in zip(SECTIONS, kinds, strict=True):
        parser.add_class_arguments(kind, name)
    return parser


def split_options(options: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """The configuration files, and the other options with their values, each in order."""
    files: list[str] = []
    others: list[tuple[str, str]] = []
    waiting = iter(options)
    for option in waiting:
        if not option.startswith("-"):
            raise InputError(
                f"{option!r} is not an option: settings are given as --config FILE or as --section.name VALUE"
            )
        name, equals, value = option.lstrip("-").partition("=")
        if not equals:
            value = next(waiting, None)
            if value is None:
                raise InputError(f"{option} has no value: give one, as in {option} VALUE")
        if name in ("config", "c"):
            files.append(value)
        else:
            others.append((name, value))
    return files, others


def read_yaml(path: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no settings by name: it should have sections such as model, data and trainer")
    return content


def parsed(name: str, value: str) -> Any:
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise InputError(f"--{name} is {value!r}, which is not YAML: quote it") from error


def nested(keys: list[str], value: Any) -> dict[str, Any]:
    for key in reversed(keys):
        value = {key: value}
    return value


def merge(into: dict[str, Any], new: dict[str, Any]) -> None:
    """Settings over others, key by key; a class over another, or over a plain value, begins anew."""
    for key, value in new.items():
        there = into.get(key)
        if not isinstance(value, dict):
            into[key] = value
            continue
        same = isinstance(there, dict) and value.get("class_path", there.get("class_path")) == there.get("class_path")
        if not same:
            into[key] = {}
        merge(into[key], value)


def strategy_of(given: Any) -> Strategy:
    """The strategy that trainer.strategy names.

    Raises:
        InputError: it is none of this project's.
    """
    known = f"it must be auto, {', '.join(STAGES)}, or a class_path as in configs/strategy/"
    if isinstance(given, str) and "." not in given:
        if given == "auto":
            return Strategy()
        if given not in STAGES:
            raise InputError(f"trainer.strategy is {given}: {known}")
        return Strategy(stage=STAGES[given])
    described: dict[str, Any] = {"class_path": given} if isinstance(given, str) else dict(given)
    kind = str(described.get("class_path", "")).rpartition(".")[2]
    arguments: dict[str, Any] = dict(described.get("init_args") or {})
    arguments |= {k: v for k, v in described.items() if k not in ("class_path", "init_args")}
    if kind == "ZeRO":
        chosen = {k: v for k, v in arguments.items() if k in Strategy.__dataclass_fields__}
        return Strategy(**{"stage": 2, **chosen})
    if kind not in ("DDP", "SingleDevice"):
        raise InputError(f"trainer.strategy is {kind or given}: {known}")
    return Strategy(stage=0 if kind == "DDP" else None, bucket_megabytes=arguments.get("bucket_megabytes", 25))
