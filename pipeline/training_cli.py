"""fit, validate, test and predict: LightningCLI with this project's task, data, loggers and callbacks."""

import difflib
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import torch
from jsonargparse import set_parsing_settings
from lightning import Trainer
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import Strategy

from data_prep.files import InputError
from data_prep.process_memory import keep_freed_memory
from pipeline.callbacks.checkpoints import Checkpoints
from pipeline.callbacks.few_shot import FewShot, FewShotInTraining
from pipeline.callbacks.gauges import LayerNorms, MemoryByRank
from pipeline.callbacks.graceful_stop import GracefulStop
from pipeline.callbacks.heartbeat import Heartbeat, Watchdog
from pipeline.callbacks.last_words import LastWords
from pipeline.callbacks.metrics_log import MetricsLog
from pipeline.callbacks.noise_scale import NoiseScaleOfTraining
from pipeline.callbacks.predictions import TokenLosses
from pipeline.callbacks.progress import StepProgress
from pipeline.callbacks.run_record import RunRecord
from pipeline.callbacks.spike_guard import SpikeGuard
from pipeline.callbacks.step_times import StepTimes
from pipeline.callbacks.wall_time import WallTime
from pipeline.checkpoint import NAMES, find_checkpoint
from pipeline.data import TokenDataModule
from pipeline.distributed import DDP, SingleDevice, ZeRO
from pipeline.distributed.sharded_state import ShardedState
from pipeline.models import families  # noqa: F401  known to the parser by their short names
from pipeline.models.base import ModelConfig
from pipeline.optim import Optimizer
from pipeline.planning.settings import PlanSettings
from pipeline.schedule import Schedule
from pipeline.slurm.settings import Slurm
from pipeline.spikes import Spikes
from pipeline.state_files import BROKEN, StateFolder, older_checkpoints
from pipeline.step_loop import count_steps
from pipeline.task import LanguageModelling
from pipeline.tracking import CSVLog, Wandb, how_to_upload
from pipeline.trainer_defaults import TRAINER_DEFAULTS, default_precision

set_parsing_settings(subclasses_enabled=[ModelConfig, Optimizer, Schedule], docstring_parse_attribute_docstrings=True)


STRATEGIES: dict[str, Callable[[], Strategy]] = {
    "single": SingleDevice,
    "ddp": DDP,
    **{f"zero{stage}": partial(ZeRO, stage) for stage in (1, 2, 3)},
    **{f"deepspeed_stage_{stage}": partial(ZeRO, stage) for stage in (1, 2, 3)},
}


class OneSentenceParser(LightningArgumentParser):
    """A parser that answers what it cannot read with one sentence instead of pages of usage."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        sentence = "; ".join(line.strip().rstrip(":;") for line in message.splitlines() if line.strip())
        files = [path for option, path in pairwise(sys.argv) if option in ("-c", "--config")]
        sentence = sentence.replace('"<unicode string>"', " or ".join(files))
        self.exit(2, f"error: {sentence}{self.nearest_option(sentence)}\n")

    def nearest_option(self, sentence: str) -> str:
        """A suggestion where the sentence is about an option that does not exist."""
        unknown = re.search(r"(?:does not accept option '|unrecognized arguments: --)([\w.]+)", sentence)
        if not unknown:
            return ""
        parsers = [self, *(self._subcommands_action._name_parser_map.values() if self._subcommands_action else ())]
        options = {option.lstrip("-") for parser in parsers for option in parser._option_string_actions}
        near = difflib.get_close_matches(unknown[1], sorted(options), n=3)
        return f" (near it: {', '.join(near)}; all: --help)" if near else " (all options: --help)"


def choose_strategy(strategy: Strategy | str, devices: Any, nodes: int, accelerator: Any) -> Strategy:
    """This project's strategy for what the Trainer was told; its names for others' strategies mean ours.

    Raises:
        InputError: a name that is not known.
    """
    if isinstance(strategy, str) and strategy == "auto":
        cuda = torch.cuda.is_available() and accelerator not in ("cpu", CPUAccelerator)
        several = nodes > 1 or count_devices(devices, cuda) > 1
        strategy = DDP() if several else SingleDevice(first_device(devices) if cuda else "cpu")
    elif isinstance(strategy, str):
        if strategy not in STRATEGIES:
            raise InputError(
                f"trainer.strategy is {strategy}: it must be auto, {', '.join(STRATEGIES)}, or a class_path as in configs/strategy/"
            )
        strategy = STRATEGIES[strategy]()
    if not isinstance(strategy, ShardedState):
        raise InputError(
            f"trainer.strategy is {type(strategy).__name__}, whose checkpoints are tied to it: take one of configs/strategy/"
        )
    return strategy


def layout_given(devices: Any, nodes: int) -> tuple[Any, int]:
    """Processes a node and nodes: as the Trainer is told or, where it is told nothing, as torchrun or srun has started them."""
    given = (devices, nodes)
    if given != ("auto", 1):
        return given
    if "TORCHELASTIC_RUN_ID" in os.environ:
        local = int(os.environ["LOCAL_WORLD_SIZE"])
        return local, int(os.environ["WORLD_SIZE"]) // local
    tasks = os.environ.get("SLURM_NTASKS_PER_NODE", "")
    if SLURMEnvironment.detect() and tasks.isdigit():
        return int(tasks), int(os.environ.get("SLURM_NNODES", 1))
    return given


def count_devices(devices: Any, cuda: bool) -> int:
    """Processes on this node that trainer.devices asks for."""
    if isinstance(devices, list | tuple):
        return len(devices)
    if str(devices) in ("auto", "-1"):
        return torch.cuda.device_count() if cuda else 1
    return len(str(devices).split(",")) if "," in str(devices) else int(devices)


def first_device(devices: Any) -> str:
    """The GPU of a run on one."""
    if isinstance(devices, list | tuple):
        return f"cuda:{devices[0]}"
    return f"cuda:{str(devices).split(',')[0]}" if "," in str(devices) else "cuda:0"


def tracked_as(checkpoint: str | None) -> str | None:
    """The id under which wandb knows the run of a checkpoint, or of those before it where it cannot be read."""
    for path in older_checkpoints(Path(checkpoint)) if checkpoint else []:
        try:
            return StateFolder(path).record.get("wandb")
        except (InputError, OSError):
            continue
    return None


class TrainingCLI(LightningCLI):
    """One YAML, or several that merge, describe a run; every key can be given on the command line.

    Args:
        verb: the one that is called, of the Trainer's; a parser for each of them would take a second to build.
    """

    def __init__(self, verb: str):
        self.verb = verb
        super().__init__(
            LanguageModelling,
            TokenDataModule,
            parser_class=OneSentenceParser,
            parser_kwargs={"prog": "python -m pipeline"},
            save_config_callback=RunRecord,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            trainer_defaults=TRAINER_DEFAULTS | {"precision": default_precision()},
        )

    def subcommands(self) -> dict[str, set[str]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return {self.verb: LightningCLI.subcommands()[self.verb]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(Checkpoints, "checkpoint")
        parser.add_class_arguments(Wandb, "wandb")
        parser.add_class_arguments(PlanSettings, "plan")
        parser.add_class_arguments(Slurm, "slurm")
        parser.add_class_arguments(WallTime, "wall_time")
        parser.add_class_arguments(Watchdog, "watchdog")
        parser.add_class_arguments(Spikes, "spikes")
        parser.add_class_arguments(FewShot, "few_shot")

    def before_instantiate_classes(self) -> None:
        config = self.config[str(self.subcommand)]
        config.ckpt_path = self.resolve_checkpoint(config.trainer.default_root_dir, config.ckpt_path)

    def resolve_checkpoint(self, run: str, name: str | None) -> str | None:
        """`best` and `last` mean this run's own; `fit` goes on from `last` where there is one."""
        folder = Path(run) / "checkpoints"
        last, named = folder / "last.ckpt", folder / f"{name}.ckpt"
        if self.subcommand == "fit":
            # Where all there is is damaged, too, the run does not begin anew without a word.
            began = [*older_checkpoints(last), *folder.glob(f"{BROKEN}*")]
            if name in (None, "last") and not began:
                return None
            if name is None:
                raise InputError(
                    f"{run} already holds a run: go on with --ckpt_path last, or start another with --trainer.default_root_dir"
                )
            if name == "last" or (name in NAMES and named.is_symlink()):
                return str(named)
        return str(find_checkpoint(run, name or "best"))

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except ValueError as error:
            raise InputError(str(error)) from error

    def after_fit(self) -> None:
        """The last lines of a fit: where the run stands and what was kept."""
        if not self.trainer.is_global_zero:
            return
        run, step = Path(self.trainer.default_root_dir), self.trainer.global_step
        print(
            f"{run} is trained on {self.datamodule.tokens_at(step):,} tokens (step {step} of {self.trainer.max_steps}); "
            f"checkpoints: {run / 'checkpoints'}, metrics: {run / 'metrics.csv'}"
        )
        if hint := how_to_upload(run):
            print(hint)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = self._get(self.config_init, "trainer")
        run = Path(config["default_root_dir"])
        gauges = [NoiseScaleOfTraining(), StepTimes(), LayerNorms(), MemoryByRank()]
        clock = MetricsLog(gauges)
        checkpoints = self._get(self.config_init, "checkpoint")
        stop = GracefulStop(checkpoints, self._get(self.config_init, "wall_time"))
        heartbeat = Heartbeat(self._get(self.config_init, "watchdog"))
        own = [
            heartbeat,
            *gauges,
            clock,
            FewShotInTraining(self._get(self.config_init, "few_shot"), clock, heartbeat, stop),
            SpikeGuard(self._get(self.config_init, "spikes"), stop),
            stop,
            LastWords(),
            TokenLosses(),
        ]
        if config.get("enable_progress_bar") is not False:
            own.append(StepProgress(clock))
        tracker = (
            self._get(self.config_init, "wandb").logger(run, tracked_as(self._get(self.config_init, "ckpt_path")))
            if self.subcommand == "fit"
            else None
        )
        chosen = config.get("logger")
        more = [chosen] if isinstance(chosen, Logger) else chosen if isinstance(chosen, list) else []
        loggers = [CSVLog(run), *([tracker] if tracker else []), *more]
        plugins = [*(config.get("plugins") or [])]
        by_srun = SLURMEnvironment.detect() and "TORCHELASTIC_RUN_ID" not in os.environ
        if by_srun and not any(isinstance(plugin, ClusterEnvironment) for plugin in plugins):
            # Lightning's own requeueing saves inside the signal handler, where ranks at different steps wait for ever.
            plugins.append(SLURMEnvironment(auto_requeue=False))
        devices, nodes = layout_given(config["devices"], config["num_nodes"])
        trainer = super().instantiate_trainer(
            callbacks=[*(config.get("callbacks") or []), *own],
            logger=loggers,
            plugins=plugins,
            strategy=choose_strategy(config["strategy"], devices, nodes, config["accelerator"]),
            devices=devices,
            num_nodes=nodes,
            **kwargs,
        )
        count_steps(trainer)
        return trainer


def main(arguments: list[str]) -> None:
    """Run one of the Trainer's verbs, given the command line without the program's name."""
    sys.argv[1:] = arguments
    keep_freed_memory()
    # What matters of their news stands in our own first lines; warnings of libraries about themselves help no user.
    for library in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(library).setLevel(logging.WARNING)
    warnings.filterwarnings(
        "ignore",
        message=r".*(LeafSpec|`srun` command is available|smaller than the logging interval|does not have many workers|weights_only|torch\.distributed|handles gradient clipping).*",
    )
    TrainingCLI(arguments[0])
