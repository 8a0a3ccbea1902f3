"""A run directory as the harness makes a model of it, from the arguments of its command line."""

import atexit
import os
from typing import Any

import torch
from torch import Tensor, distributed

from data_prep.files import InputError
from pipeline.checkpoint import load_run
from pipeline.evaluation.harness import PipelineLM
from pipeline.evaluation.ranks import ALONE, Ranks, connect, device_of, place_in_job

BATCH_TOKENS = 4096


class TrainedRun(PipelineLM):
    """A run's checkpoint for `lm_eval`.

    Under torchrun or srun the first rank evaluates and the others compute for it, where `lm_eval` was started so. In a program that
    calls `simple_evaluate` the harness divides the questions among the ranks, as for its own models, and draws other examples then.

    Args:
        run: the run directory.
        checkpoint: `best`, `last` or a path.
        ema: take the moving average of the weights.
        batch_tokens: bounds a batch, padding included.
        batch_size: the harness's bound: so many rows of the longest input, where batch_tokens is not given; 1, its default, and
            `auto` leave ours.
        device: such as `cpu` or `cuda:0`; a GPU where there is one.
        seed: of sampled answers.
        others: what the harness's other models know and this one does not.

    Raises:
        InputError: an argument that it does not know, no such run, or a model that writes no text.
    """

    together: Ranks | None = None
    """The ranks of the harness's command line, connected."""

    def __init__(
        self,
        run: str | None = None,
        checkpoint: str = "best",
        ema: bool = False,
        batch_tokens: int | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
        seed: int = 0,
        **others: Any,
    ):
        if run is None:
            raise InputError(
                "--model pipeline needs a run: give --model_args run=FOLDER, as `python -m pipeline fit` leaves it"
            )
        if others:
            raise InputError(
                f"--model pipeline does not know {', '.join(others)}: it takes run, checkpoint, ema, batch_tokens, device and seed"
            )
        loaded = load_run(str(run), str(checkpoint), averaged=ema)
        if loaded.model.config.family == "classifier":
            raise InputError(f"{run} is a classifier, which writes no text: it has no few-shot scores")
        place = place_in_job(os.environ)
        if batch_tokens is None:
            rows = int(batch_size) if batch_size and str(batch_size).isdigit() else 1
            batch_tokens = rows * loaded.context if rows > 1 else BATCH_TOKENS
        if not isinstance(batch_tokens, int) or batch_tokens < 1:
            raise InputError(f"batch_tokens is {batch_tokens}: it must be a whole number from 1 on")
        # The harness's default is cuda:0, whatever there is, and on every rank.
        anywhere = device in (None, "auto", "cuda", "cuda:0") or place.size > 1
        try:
            chosen = device_of(place.local_rank) if anywhere and device != "cpu" else torch.device(device or "cpu")
            model = loaded.model.to(chosen)
        except (RuntimeError, AssertionError) as error:  # torch's two ways to say that there is no such device
            raise InputError(
                f"device {device} cannot be used ({str(error).splitlines()[0]}): give cpu or cuda"
            ) from None
        super().__init__(model, loaded.tokenizer, batch_tokens=batch_tokens, seed=seed, ranks=self.together or ALONE)
        self.loaded = loaded
        if self.together is not None:
            if self.together.rank:
                raise SystemExit(self.serve())
        elif place.size > 1:
            self._rank, self._world_size = place.rank, place.size
            if not distributed.is_initialized():
                connect(place)
                atexit.register(distributed.destroy_process_group)

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes into its results about the model."""
        return {
            "model_num_parameters": self.model.parameter_counts()["total"],
            "model_dtype": str(next(self.model.parameters()).dtype),
            "model_checkpoint": str(self.loaded.checkpoint),
            "model_step": self.loaded.step,
            "model_tokens_seen": self.loaded.tokens,
            "model_tokenizer": self.encoding.fingerprint,
        }

    # -- how the harness's own division of the questions meets again

    def all_gather(self, tensor: Tensor) -> Tensor:
        parts = [torch.zeros_like(tensor, device="cpu") for _ in range(self.world_size)]
        distributed.all_gather(parts, tensor.cpu())
        return torch.stack(parts)

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        gathered: list[Any] | None = [None] * self.world_size if self.rank == dst else None
        distributed.gather_object(obj, gathered, dst=dst)
        return gathered

    def barrier(self) -> None:
        distributed.barrier()
