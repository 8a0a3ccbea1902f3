"""When a run saves, and what it keeps: `last` at every validation, every so many tokens and at a stop; `best` when validation improves."""

import math
import shutil
from pathlib import Path
from typing import Any

from lightning import Trainer
from lightning.pytorch.callbacks import Checkpoint

from data_prep.files import InputError
from pipeline.distributed.sharded_state import SaveOptions, remove_checkpoint
from pipeline.state_files import clear_leftovers, point
from pipeline.task import LanguageModelling

EARLY_STEPS = tuple(2**k for k in range(10))
"""Steps of the dense early schedule (Biderman et al. 2023, section 2.1)."""

GIGABYTE = 10**9


class Checkpoints(Checkpoint):
    """Keeps checkpoints/step-XXXXXXXX, and beside them the names last.ckpt and best.ckpt (lowest validation loss).

    Args:
        every_tokens: Tokens between two saves of `last`, beside the one at each validation.
        keep_last: How many of the newest checkpoints stay, beside `best`; of two, one is whole when the other is damaged.
        keep_every_tokens: A checkpoint stays for good whenever the run passes a multiple of so many tokens.
        keep_early: Also save and keep steps 1, 2, 4, ... 512, where a model changes fastest.
        asynchronous: Train on while a checkpoint, copied in memory, is written.
        disk_budget_gb: The most that the checkpoints of this run may take in all, in 10^9 bytes; a save that would pass it, or fill
            the disk, is refused before it is written.
    """

    def __init__(
        self,
        every_tokens: int | None = None,
        keep_last: int = 2,
        keep_every_tokens: int | None = None,
        keep_early: bool = False,
        asynchronous: bool = True,
        disk_budget_gb: float | None = None,
    ):
        for name, value in (
            ("every_tokens", every_tokens),
            ("keep_last", keep_last),
            ("keep_every_tokens", keep_every_tokens),
        ):
            if value is not None and value < 1:
                raise ValueError(
                    f"checkpoint.{name} is {value}: it must be at least 1{'' if name == 'keep_last' else ', or null'}"
                )
        if disk_budget_gb is not None and disk_budget_gb <= 0:
            raise ValueError(f"checkpoint.disk_budget_gb is {disk_budget_gb}: it must be positive, or null")
        self.every_tokens, self.keep_last, self.keep_every_tokens = every_tokens, keep_last, keep_every_tokens
        self.keep_early, self.asynchronous, self.disk_budget_gb = keep_early, asynchronous, disk_budget_gb
        self.best_loss = math.inf
        self.saved_step = -1
        self.kept: list[int] = []
        """Steps that stay for good."""

    def state_dict(self) -> dict[str, Any]:
        return {"best_loss": self.best_loss, "kept": self.kept}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_loss, self.kept = state_dict["best_loss"], list(state_dict.get("kept", []))
        self.saved_step = -1

    @staticmethod
    def folder(trainer: Trainer) -> Path:
        return Path(trainer.default_root_dir) / "checkpoints"

    @staticmethod
    def pause_seconds(trainer: Trainer) -> float:
        """For how long the last save held training up."""
        return trainer.strategy.pause_seconds  # pyright: ignore[reportAttributeAccessIssue]

    def on_fit_start(self, trainer: Trainer, pl_module: LanguageModelling) -> None:
        if trainer.is_global_zero:
            clear_leftovers(self.folder(trainer))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LanguageModelling, *args: Any) -> None:
        # Where a validation follows, the save waits for it: a resumed run would not make it up.
        if not pl_module.step_ended or pl_module.validation_follows():
            return
        if pl_module.data.due(trainer.global_step, self.every_tokens) or self.stays(trainer, pl_module):
            self.save_last(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LanguageModelling) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        improved = pl_module.evaluation["loss"] < self.best_loss
        if improved:
            self.best_loss = pl_module.evaluation["loss"]
        self.save_last(trainer, pl_module, best=improved)

    def on_train_end(self, trainer: Trainer, pl_module: LanguageModelling) -> None:
        trainer.strategy.finish_writing()  # pyright: ignore[reportAttributeAccessIssue]

    def stays(self, trainer: Trainer, pl_module: LanguageModelling) -> bool:
        """Whether the checkpoint of this step is kept for good."""
        step = trainer.global_step
        early = self.keep_early and step in EARLY_STEPS
        return early or pl_module.data.due(step, self.keep_every_tokens)

    def save_last(self, trainer: Trainer, pl_module: LanguageModelling, best: bool = False, wait: bool = False) -> Path:
        """Write this step's checkpoint and name it last.ckpt; every rank calls it. Saving the same step twice writes once.

        Args:
            best: name it best.ckpt, too.
            wait: return when it is on the disk.

        Raises:
            InputError: there is no room for it; what is there stays.
        """
        step = trainer.global_step
        path = self.folder(trainer) / f"step-{step:08d}"
        if self.saved_step != step:
            if self.stays(trainer, pl_module):
                self.kept.append(step)
            self.refuse_without_room(trainer)
            kept = list(self.kept)

            def written(path: Path) -> None:
                for name in ("last.ckpt", *(["best.ckpt"] if best else [])):
                    point(path.with_name(name), path)
                self.remove_others(path, kept)

            options = SaveOptions(self.asynchronous and not wait, written)
            trainer.save_checkpoint(path, weights_only=False, storage_options=options)
            self.saved_step = step
        if wait:
            trainer.strategy.finish_writing()  # pyright: ignore[reportAttributeAccessIssue]
        return path

    def remove_others(self, newest: Path, kept: list[int]) -> None:
        """Remove what the policy does not keep, and what a continuation that was given up has left."""
        folder = newest.parent
        named = {link.resolve().name for link in folder.glob("*.ckpt")}
        steps = sorted(path.name for path in folder.glob("step-*"))
        stay = named | {f"step-{step:08d}" for step in kept}
        stay |= set([name for name in steps if name <= newest.name][-self.keep_last :])
        for name in steps:
            if name not in stay:
                remove_checkpoint(folder / name)

    def refuse_without_room(self, trainer: Trainer) -> None:
        """Raise InputError on every rank where the next checkpoint has no room."""
        strategy, folder = trainer.strategy, self.folder(trainer)
        strategy.finish_writing()  # pyright: ignore[reportAttributeAccessIssue]  what is still being written counts
        own = sum(piece.values.numel() * piece.values.element_size() for piece in strategy.own_pieces())  # pyright: ignore[reportAttributeAccessIssue]
        need = sum(strategy.gather(own))  # pyright: ignore[reportAttributeAccessIssue]
        if not trainer.is_global_zero:
            reason = None
        else:
            folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(folder).free
            there = sum(file.stat().st_size for path in folder.glob("step-*") for file in path.iterdir())
            reason = None
            if need > free:
                reason = f"it needs {need / GIGABYTE:.2f} GB, the disk has {free / GIGABYTE:.2f} GB free: make room"
            elif self.disk_budget_gb is not None and there + need > self.disk_budget_gb * GIGABYTE:
                reason = (
                    f"with {there / GIGABYTE:.3f} GB of checkpoints there, {need / GIGABYTE:.3f} GB more pass "
                    f"checkpoint.disk_budget_gb {self.disk_budget_gb}: raise it, keep fewer, or remove some"
                )
        reason = strategy.broadcast(reason)
        if reason:
            raise InputError(
                f"The checkpoint of step {trainer.global_step} was not written, {reason}, and go on with --ckpt_path last"
            )
