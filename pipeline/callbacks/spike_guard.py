"""Judges every step before it changes the weights, on all ranks alike, and leaves out, goes back or stops where it is a spike."""

import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer
from torch import Tensor

from data_prep.files import InputError, write_json
from pipeline import exit_codes
from pipeline.batch import Batch
from pipeline.callbacks.graceful_stop import GracefulStop
from pipeline.inspection.provenance import Provenance
from pipeline.spikes import FILE, Spikes, StepRanges, Usual, decisions
from pipeline.state_files import older_checkpoints, point
from pipeline.step_records import append_line, keep_lines
from pipeline.task import LanguageModelling

JOURNAL = "spikes.jsonl"
SAMPLES_NAMED = 32
"""Of a batch with a spike, the documents of so many samples are named."""


class SpikeGuard(Callback):
    """Carries out the `spikes` section.

    What is decided stands in the run directory before it is done: for people in spikes.jsonl (step, figures, limits, what was done,
    documents), and the ranges of steps that no continuation may train on in left-out.json. Every checkpoint's record lists under
    `skipped` the steps up to it that were left out.
    """

    def __init__(self, settings: Spikes, graceful: GracefulStop):
        self.settings, self.graceful, self.checkpoints = settings, graceful, graceful.checkpoints
        self.usual = Usual(settings)
        self.in_a_row = 0
        self.rollbacks = 0
        self.skipped = StepRanges()
        """Left out so far, one by one."""
        self.passed = StepRanges()
        """To be passed over, or passed over already."""

    def state_dict(self) -> dict[str, Any]:
        return {**self.usual.state_dict(), "in_a_row": self.in_a_row, "skipped": self.skipped.as_lists()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.usual.load_state_dict(state_dict)
        self.in_a_row, self.skipped = state_dict["in_a_row"], StepRanges(state_dict["skipped"])

    def on_fit_start(self, trainer: Trainer, pl_module: LanguageModelling) -> None:
        self.run = Path(trainer.default_root_dir)
        self.trainer, self.task = trainer, pl_module
        self.half = str(trainer.precision).startswith("16")
        if trainer.is_global_zero and "back_to" in (decided := decisions(self.run)):
            # Killed on its way back: the rest of the way, before the checkpoint is looked for.
            self.point_back(decided)

    def on_train_start(self, trainer: Trainer, pl_module: LanguageModelling) -> None:
        step, ranges = trainer.global_step, []
        if trainer.is_global_zero:
            if step == 0:
                (self.run / FILE).unlink(missing_ok=True)
            decided = decisions(self.run)
            ranges, self.rollbacks = decided["ranges"], decided["rollbacks"]
            # Decisions that reach beyond their step stay, although the step is not done any more.
            keep_lines(self.run / JOURNAL, lambda line: step > 0 and (line["step"] <= step or line["done"] != "skip"))
        ranges, self.rollbacks = trainer.strategy.broadcast((ranges, self.rollbacks))
        # A copy of a run may lack the file: what was passed over before the checkpoint, that knows.
        self.passed = StepRanges([*ranges, *pl_module.loaded.get("passed", [])] if step else ranges)
        pl_module.left_out = self.passed
        pl_module.judge = None if self.settings.policy == "off" else self.refuses

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LanguageModelling, batch: Batch, batch_idx: int
    ) -> None:
        self.valid_tokens = batch.valid_tokens

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LanguageModelling, checkpoint: dict[str, Any]) -> None:
        left_out = StepRanges([*self.skipped.ranges, *self.passed.ranges]).up_to(trainer.global_step)
        if left_out.ranges:
            pl_module.notes["skipped"] = left_out.as_lists()
        if self.passed.ranges:
            pl_module.notes["passed"] = self.passed.as_lists()

    # -- judging

    def refuses(self, norm: Tensor | float) -> bool:
        """Whether the step in hand is left out; the same answer on all ranks."""
        loss, norm = self.of_all_ranks(norm)
        step = self.trainer.global_step + 1
        judged = 0.0 if self.half and not norm < torch.inf else norm  # The loss scaler sees to those.
        strange = self.usual.strange(step, loss, judged)
        if not strange:
            if judged == norm:
                self.usual.add(loss, norm)
            self.in_a_row = 0
            return False
        doing = self.choose()
        line = self.note(step, loss, norm, strange, doing)
        if doing == "skip":
            self.in_a_row += 1
            self.skipped.add(step, step)
        else:
            self.task.withdraw = partial({"stop": self.stop, "roll_back": self.roll_back}[doing], step, line)
        return True

    def of_all_ranks(self, norm: Tensor | float) -> tuple[float, float]:
        """Loss of the global batch, and the norm, in one reduction; what is not finite on one rank is so on all."""
        trainer, nll = self.trainer, self.task.step_nll
        share = torch.as_tensor(norm, dtype=nll.dtype, device=nll.device) / trainer.world_size
        nll_of_all, norm_of_all = trainer.strategy.reduce(torch.stack([nll, share]), reduce_op="sum").tolist()
        return nll_of_all / self.valid_tokens, norm_of_all

    def choose(self) -> str:
        """What is done now, within the bounds of the settings."""
        policy = self.settings.policy
        if policy == "skip" and self.in_a_row >= self.settings.skips_in_a_row:
            return "stop"
        if policy == "roll_back" and self.rollbacks >= self.settings.rollbacks:
            return "stop"
        return policy

    def note(self, step: int, loss: float, norm: float, strange: list[dict[str, Any]], doing: str) -> str:
        """Write it down, first of all; return it as a clause."""
        figures = [
            f"its {each['figure']} is {each['value']:.6g}"
            + (f", over the limit of {each['limit']:.6g}" if each["limit"] else "")
            for each in strange
        ]
        clause = f"{' and '.join(figures)}"
        if self.trainer.is_global_zero:
            documents, cut = self.documents(step)
            line = {
                "step": step, "done": doing, "loss": finite(loss), "grad_norm": finite(norm), "policy": self.settings.policy,
                "outside": [each | {"value": finite(each["value"])} for each in strange],
                "documents": documents, "all_documents": not cut, "time": time.time(),
            }  # fmt: skip
            append_line(self.run / JOURNAL, line)
            names = [each["id"] or each["name"] for each in documents if "name" in each]
            shown = ", ".join(map(str, names[:3])) + (" ..." if len(names) > 3 else "")
            clause += f"; its batch begins with document {shown}" if names else ""
            if doing == "skip":
                print(f"\nStep {step} is left out: {clause} (all in {self.run / JOURNAL})", flush=True)
        return clause

    def documents(self, step: int) -> tuple[list[dict[str, Any]], bool]:
        """The documents of a step's batch, and whether there are more of them."""
        try:
            provenance = Provenance(self.run, self.task.data)
            samples = provenance.batch(step, SAMPLES_NAMED)
        except (InputError, OSError) as error:
            return [{"unknown": str(error)}], True
        found = {passage.document.name: passage.document for sample in samples for passage in sample.passages}
        cut = self.task.data.position_at(step) - self.task.data.position_at(step - 1) > SAMPLES_NAMED
        return [
            {"name": each.name, "id": each.id, "source": each.source, "shard": each.shard} for each in found.values()
        ], cut

    # -- what follows, out of the loops

    def stop(self, step: int, why: str, more: str = "") -> None:
        """Save the state before the step and end the run; every rank calls it."""
        trainer = self.trainer
        saved = "Nothing was trained before it"
        if trainer.global_step:
            self.forget_step(trainer.global_step)
            saved = f"The state before it is saved as {self.checkpoints.save_last(trainer, self.task, wait=True)}"
        sentence = (
            f"Step {step} was not taken{more}: {why}. {saved}. "
            f"Look at its batch with `python -m pipeline inspect --run {self.run} --step {step}` and at {self.run / JOURNAL}; "
            "then go on with --ckpt_path last and --spikes.policy skip or roll_back, or with other settings"
        )
        self.graceful.end(trainer, exit_codes.SPIKE_STOPPED, sentence, trainer.global_step)

    def forget_step(self, done: int) -> None:
        """Have the counters as they were after `done` steps, as far as a checkpoint takes them from here."""
        trainer, progress = (
            self.trainer,
            self.trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step,
        )
        for counts in (progress.total, progress.current):
            counts.ready = counts.completed
        trainer.train_dataloader.consumed = self.task.data.position_at(done)  # pyright: ignore[reportOptionalMemberAccess]

    def roll_back(self, step: int, why: str) -> None:
        """Go on from an older checkpoint, to pass over the range around the step; every rank calls it."""
        trainer, strategy = self.trainer, self.trainer.strategy
        strategy.finish_writing()  # pyright: ignore[reportAttributeAccessIssue]
        first, last = self.settings.range_around(step)
        link = self.checkpoints.folder(trainer) / "last.ckpt"
        target = strategy.broadcast(self.old_enough(link, first) if trainer.is_global_zero else None)
        if target is None:
            self.stop(step, why, more=", and there is no checkpoint to go back to")
            return
        if trainer.is_global_zero:
            self.passed.add(first, last)
            decided = {"ranges": self.passed.as_lists(), "rollbacks": self.rollbacks + 1, "back_to": target}
            write_json(self.run / FILE, decided)
            self.point_back(decided)
            print(
                f"\nStep {step} was not taken: {why}. Going back to {target}; steps {first} to {last} are left out",
                flush=True,
            )
        strategy.barrier()
        trainer.fit_loop.go_back(link)  # pyright: ignore[reportAttributeAccessIssue]

    @staticmethod
    def old_enough(link: Path, first: int) -> str | None:
        """The newest checkpoint before the steps that are left out, else the oldest; None where there is none."""
        names = [path.name for path in older_checkpoints(link) if path.is_dir() and path.name.startswith("step-")]
        before = [name for name in names if int(name.removeprefix("step-")) < first]
        return before[0] if before else names[-1] if names else None

    def point_back(self, decided: dict[str, Any]) -> None:
        folder = self.checkpoints.folder(self.trainer)
        if (folder / decided["back_to"]).exists():
            point(folder / "last.ckpt", folder / decided["back_to"])
        write_json(self.run / FILE, {name: value for name, value in decided.items() if name != "back_to"})


def finite(value: float) -> float | str:
    """A number as JSON can hold it."""
    return value if abs(value) < float("inf") else str(value)
