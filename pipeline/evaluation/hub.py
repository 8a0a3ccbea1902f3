"""The Hugging Face hub, where there is one: asked once whether it answers, so that nothing ever waits for a network that is not there."""

import contextlib
import os
import sys
import threading
from functools import cache
from random import Random
from typing import NamedTuple

import datasets
import datasets.config
import huggingface_hub.constants
from huggingface_hub.utils import get_session

from data_prep.files import InputError
from pipeline.evaluation.file_rows import Row

PATIENCE = 3.0
"""Seconds that the hub has for its first answer."""


class Split(NamedTuple):
    """A split of a data set on the hub, and the task that reads it; `columns` says which a file in its place needs."""

    path: str
    config: str | None
    split: str
    task: str
    columns: str

    def __str__(self) -> str:
        return f"{self.path}{f' ({self.config})' if self.config else ''}, split {self.split},"

    def rows(self, at_most: int | None = None) -> list[Row]:
        """Its rows, of a large one as many as asked for, drawn by a fixed seed.

        Raises:
            InputError: it is neither in reach nor in the cache; the sentence says how to give a file instead.
        """
        prepare()
        try:
            loaded = datasets.load_dataset(self.path, self.config, split=self.split)
        except Exception as error:  # The hub's, the network's and the file formats' errors have no type in common.
            raise InputError(
                f"Task {self.task!r} would fetch {self} from the Hugging Face hub{because(error)}: give a file with the "
                f"columns {self.columns} as --data {self.task}=FILE, or evaluate once where the hub can be reached."
            ) from None
        assert isinstance(loaded, datasets.Dataset), "a named split is one table"
        numbers = range(len(loaded))
        if at_most is not None and at_most < len(numbers):
            numbers = sorted(Random(0).sample(numbers, at_most))
            loaded = loaded.select(numbers)
        return [
            Row(values, f"{self} row {number + 1}") for number, values in zip(numbers, loaded.to_list(), strict=True)
        ]


def because(error: Exception) -> str:
    """Why a fetch failed, in a few words: no network, or what the hub says of the data set."""
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return ", which cannot be reached"
    message = next(iter(str(error).strip().splitlines()), "").rstrip(".:")
    return f", which failed ({type(error).__name__}: {message})"


def prepare() -> bool:
    """Whether the hub answers; where it does not, its libraries are switched to their caches."""
    answers = reachable()
    if not answers:
        go_offline()
    return answers


@cache
def reachable() -> bool:
    """Ask the hub's address (HF_ENDPOINT, through proxies as the libraries take them) once a process; no answer is a no."""
    if huggingface_hub.constants.HF_HUB_OFFLINE or datasets.config.HF_HUB_OFFLINE:
        return False
    answers: list[int] = []

    def ask() -> None:
        # Refused, unknown, hanging or broken: all mean the same here.
        with contextlib.suppress(Exception):
            answers.append(get_session().head(huggingface_hub.constants.ENDPOINT, timeout=PATIENCE).status_code)

    # In a thread, for looking up a name has no limit of time of its own, and neither has an answer in drops.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(PATIENCE)
    return any(status < 500 and status != 407 for status in answers)  # 407 and 5xx are a proxy's


def go_offline() -> None:
    """Set the offline switches of datasets, huggingface_hub and evaluate, which read their environment when they are imported."""
    for variable in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE"):
        os.environ[variable] = "1"
    switches = {
        "huggingface_hub.constants": ["HF_HUB_OFFLINE"],
        "datasets.config": ["HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"],
        "evaluate.config": ["HF_EVALUATE_OFFLINE"],
    }
    for module, names in switches.items():
        # The harness imports evaluate only where a task needs it.
        for name in names if module in sys.modules else []:
            setattr(sys.modules[module], name, True)
