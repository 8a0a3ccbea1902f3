"""What every strategy does alike: it saves its state in pieces, each rank its own, and loads the pieces that others have saved."""

import errno
import shutil
import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from data_prep.files import InputError
from pipeline.checkpoint import NAMES, RECORD_KEY, SCALARS, RunState, open_state
from pipeline.run_state import note_broken
from pipeline.state_files import AVERAGE, WEIGHTS, FolderWriter, Piece, older_checkpoints, point, set_aside


@dataclass(frozen=True)
class SaveOptions:
    """How a checkpoint is written, beside where."""

    asynchronous: bool = False
    """Whether training goes on while the state, copied in memory, is written."""
    written: Callable[[Path], None] | None = None
    """Called on the first rank when the checkpoint stands under its name."""


class ShardedState(Strategy):
    """Saving and loading for a strategy that tells where its state lies (`local_state`)."""

    world_size: int
    global_rank: int

    partitioned = False
    """Whether each rank has pieces of its own, rather than all of the state."""
    clips_gradients = False
    """Whether the strategy clips on its own and has the norm before that as `gradient_norm`."""
    keeps_master_weights = False
    """Whether the strategy itself keeps fp32 weights beside those of lower precision."""

    writing: threading.Thread | None = None
    failure: BaseException | None = None
    pause_seconds = 0.0
    """For how long the last save held training up."""
    longest_write = 0.0
    """Seconds that the slowest write of a checkpoint took, this rank's part and on the first rank the wait for the others'."""

    @property
    def task(self) -> LightningModule:
        assert self.lightning_module is not None
        return self.lightning_module

    @property
    def label(self) -> str:
        """What people call it."""
        return type(self).__name__

    # -- what a strategy says of its state

    @abstractmethod
    def local_state(self) -> Iterator[Piece]:
        """The weights in their full precision and, in training, the optimizer's tensors, as far as this rank has them."""

    @abstractmethod
    def optimizer_scalars(self) -> dict[str, dict[str, float]]:
        """Numbers that the optimizer keeps for the parameters that this rank has: {parameter: {"step": 20.0}}."""

    @abstractmethod
    def create_optimizer_state(self, kinds: set[str], scalars: Mapping[str, Mapping[str, float]]) -> None:
        """Make the tensors that the optimizer would make in its first step, so that a checkpoint can be loaded into them."""

    def state_loaded(self) -> None:
        """Called when the pieces hold what a checkpoint said."""

    # -- saving

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: Any, storage_options: SaveOptions | None = None
    ) -> None:
        """Write a checkpoint folder; every rank calls it.

        Raises:
            InputError: on every rank, if the disk was full for this save, or an asynchronous one before it, on any.
            OSError: the same, where they failed for another reason.
        """
        options, began = storage_options or SaveOptions(), time.perf_counter()
        self.finish_writing()
        writer = FolderWriter(Path(filepath), self.global_rank, self.world_size)
        writer.begin()
        scalars = self.gather(self.optimizer_scalars())
        pieces = self.own_pieces()
        if options.asynchronous:
            pieces = [piece.staged() for piece in pieces]
        training = about = None
        if self.is_global_zero:
            record = checkpoint[RECORD_KEY]
            training = {
                key: value for key, value in checkpoint.items() if key not in ("state_dict", "optimizer_states")
            }
            training[SCALARS] = {name: values for part in scalars for name, values in part.items()}
            about = {
                "strategy": self.label,
                **{key: value for key, value in record.items() if key not in ("carried", "format")},
            }
        self.barrier()

        def write() -> None:
            start = time.perf_counter()
            try:
                writer.write(pieces, training, about)
                if self.is_global_zero and options.written:
                    options.written(Path(filepath))
            except BaseException as error:
                self.failure = error
            self.longest_write = max(self.longest_write, time.perf_counter() - start)

        if options.asynchronous:
            self.writing = threading.Thread(target=write, name="checkpoint")
            self.writing.start()
        else:
            write()
            self.finish_writing()
        self.pause_seconds = time.perf_counter() - began

    def finish_writing(self) -> None:
        """Wait for an asynchronous save; raise on every rank what went wrong on any."""
        if self.writing:
            self.writing.join()
            self.writing = None
        failure, self.failure = self.failure, None
        if not self.reduce_boolean_decision(failure is not None, all=False):
            return
        no_room = isinstance(failure, OSError) and failure.errno in (errno.ENOSPC, errno.EDQUOT)
        own = str(failure.filename) if isinstance(failure, OSError) and no_room else None
        if where := next((path for path in self.gather(own) if path), None):
            raise InputError(
                f"The disk is full, so the checkpoint was not written ({where}); the one before it is whole: make room, and go on "
                "with --ckpt_path last"
            ) from failure
        raise failure or OSError("another rank could not write its part of the checkpoint: its own message says why")

    def all_state(self) -> Iterator[Piece]:
        """`local_state`, and the average of the weights where the task keeps one."""
        yield from self.local_state()
        averaged = getattr(self.task, "averaged", None)
        if averaged:
            yield from averaged.pieces()

    def own_pieces(self) -> list[Piece]:
        """What this rank writes."""
        pieces = [*self.all_state()]
        if self.partitioned or self.world_size == 1:
            return pieces
        return [piece.share(self.global_rank, self.world_size) for piece in pieces]

    def gather(self, value: Any) -> list[Any]:
        """What each rank has."""
        if self.world_size == 1:
            return [value]
        gathered: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(gathered, value)
        return gathered

    # -- loading

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        return True

    @property
    def lightning_restore_optimizer(self) -> bool:
        return False

    def lightning_module_state_dict(self) -> dict[str, Any]:
        return {}

    def optimizer_state(self, optimizer: Any) -> dict[str, Tensor]:
        return {}

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """What Lightning and the task keep in a checkpoint; weights and optimizer follow in `load_model_state_dict`.

        Training that goes on from last.ckpt or best.ckpt takes an older checkpoint where that is damaged, and keeps it aside.

        Raises:
            InputError: on every rank, where the checkpoint is damaged and no other may take its place.
        """
        path = Path(checkpoint_path)
        training = self.task.trainer.state.fn == TrainerFn.FITTING
        if training and path.name in [f"{name}.ckpt" for name in NAMES]:
            self.source: RunState = self.newest_whole(path)
        else:
            damage = self.open_whole(path, every_byte=training)
            if damage:
                raise InputError(damage)
        return self.source.training()

    def open_whole(self, path: Path, every_byte: bool) -> str | None:
        """Open a checkpoint as `source`, or say what is wrong with it; every rank calls it and all get the same answer.

        Args:
            every_byte: Read all of it, each rank a share, whatever its size.
        """
        damage = None
        try:
            self.source = open_state(path)
            if every_byte:
                self.source.verify(self.global_rank, self.world_size)
            elif self.is_global_zero:
                self.source.check()
        except (InputError, OSError) as error:
            damage = str(error)
        return next((found for found in self.gather(damage) if found), None)

    def newest_whole(self, link: Path) -> RunState:
        """The newest checkpoint that is whole, at or before the one that a link names; those passed over are kept aside.

        Raises:
            InputError: none is whole; then all stay where they are.
        """
        candidates: list[Path] = self.broadcast(older_checkpoints(link) if self.is_global_zero else [])
        broken: list[tuple[Path, str]] = []
        for path in candidates:
            damage = self.open_whole(path, every_byte=True)
            if damage is None:
                break
            broken.append((path, damage))
        else:
            reasons = "; ".join(reason for _, reason in broken) or "there is none"
            raise InputError(
                f"No checkpoint of {link.parent.parent} is whole ({reasons}): put one back from a copy, or start anew with another "
                "--trainer.default_root_dir"
            )
        if self.is_global_zero:
            used = self.source.path
            for path, reason in broken:
                aside = set_aside(path)
                note_broken(
                    link.parent.parent, checkpoint=path.name, reason=reason, aside=aside and aside.name, used=used.name
                )
                kept = f"it is kept as {aside}" if aside else "nothing is left of it"
                print(
                    f"{path.name} is damaged and was passed over ({reason}): {kept}; going on from {used.name}",
                    flush=True,
                )
            names = [link, *(link.with_name(f"{name}.ckpt") for name in NAMES)] if used.is_dir() else []
            for name in names:
                if name == link or (name.is_symlink() and not name.exists()):
                    point(name, used)
        self.barrier()
        return self.source

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        trainer = self.task.trainer
        training = trainer.state.fn == TrainerFn.FITTING
        if training:
            kinds = set(self.source.kinds) - {WEIGHTS, AVERAGE}
            if SCALARS not in checkpoint:
                raise InputError(
                    f"{self.source.path} has weights alone and cannot be trained on: "
                    "give model.pretrained the run's folder to begin with its weights"
                )
            self.create_optimizer_state(kinds, checkpoint[SCALARS])
        self.announce(trainer)
        with torch.no_grad():
            for piece in self.all_state():
                # An average that the run has not had so far begins with the weights.
                kind = WEIGHTS if piece.kind == AVERAGE and AVERAGE not in self.source.kinds else piece.kind
                piece.write(self.source.read(kind, piece.name, piece.start, piece.stop).to(piece.values))
        self.state_loaded()

    def announce(self, trainer: Trainer) -> None:
        """Say so where the layout changes."""
        before, now = self.source.written_by, (self.world_size, self.label)
        if self.is_global_zero and trainer.state.fn == TrainerFn.FITTING and before != now:
            print(
                f"{self.source.path} was written by {before[0]} rank(s) under {before[1]}; {now[0]} under {now[1]} go on with it",
                flush=True,
            )

    def teardown(self) -> None:
        if self.writing:
            self.writing.join()
        super().teardown()


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint so that a kill in the middle leaves nothing under its name."""
    gone = path.with_name(f".{path.name}.partial")
    shutil.rmtree(gone, ignore_errors=True)
    path.rename(gone)
    shutil.rmtree(gone)
