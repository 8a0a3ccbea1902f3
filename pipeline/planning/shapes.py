"""Models as shapes without numbers: built on the meta device in no time, and without loading what filling a tensor there would load."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from pipeline.models.base import LanguageModel, ModelConfig

FILLING = {
    "normal_", "uniform_", "trunc_normal_", "xavier_uniform_", "xavier_normal_", "kaiming_uniform_", "kaiming_normal_", "constant_",
    "zeros_", "ones_", "eye_", "fill_", "zero_", "bernoulli_",
}  # fmt: skip
"""Functions that give their first argument numbers and return it. On the meta device they do nothing, but some of them import torch's
compiler first, which takes a second."""


class LeaveUnfilled(TorchFunctionMode):
    def __torch_function__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(function, "__name__", "") in FILLING:
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)


@contextmanager
def without_numbers() -> Iterator[None]:
    """Tensors made inside have a shape and no memory."""
    with torch.device("meta"), LeaveUnfilled():
        yield


def build(config: ModelConfig) -> LanguageModel:
    """The model as shapes."""
    with without_numbers():
        return config.build()
