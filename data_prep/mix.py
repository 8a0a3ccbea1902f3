"""The mixture that a corpus is to be trained on: how often training reads each source (Brown et al. 2020, Table 2.2).

The shards stay as they are. `data.mixture` of training draws by these weights, and the file written here is its configuration.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from rich import box
from rich.console import Console
from rich.table import Table

from data_prep.files import InputError, write_text

FILE = "mixture.yaml"
NAMES = ("weights", "tokens")


@dataclass(frozen=True)
class MixConfig:
    """How much training is to read of each source. Off without `total_tokens` and `tokens`."""

    weights: dict[str, float] = field(default_factory=dict)
    """Share of each source that is read; normalised to sum to 1. Without weights or tokens, sources count by their size."""
    tokens: dict[str, float] = field(default_factory=dict)
    """Tokens to read of each source, instead of weights; their sum is then `total_tokens`."""
    total_tokens: float | None = None
    """Tokens that training is planned to read, as its `data.total_tokens`."""

    def __post_init__(self) -> None:
        if self.weights and self.tokens:
            raise InputError("mix has weights and tokens: give one of them.")
        for kind in NAMES:
            for name, value in getattr(self, kind).items():
                if not (math.isfinite(value) and value > 0):
                    raise InputError(f"mix.{kind}.{name} is {value}: it must be above 0; leave out what is not wanted.")
        if self.total_tokens is not None and not (math.isfinite(self.total_tokens) and self.total_tokens >= 1):
            raise InputError(f"mix.total_tokens is {self.total_tokens}: training reads at least one token.")
        if self.tokens and self.total_tokens not in (None, sum(self.tokens.values())):
            raise InputError(
                f"mix.total_tokens is {self.total_tokens:,.0f}, but mix.tokens sum to {sum(self.tokens.values()):,.0f}: "
                "leave one of them away, or give weights."
            )
        if self.weights and self.total_tokens is None:
            raise InputError("mix.weights says how to share, but not what: give mix.total_tokens.")

    @property
    def wanted(self) -> bool:
        return self.total_tokens is not None or bool(self.tokens)

    @property
    def planned(self) -> int:
        """Tokens that training is planned to read."""
        return round(self.total_tokens or sum(self.tokens.values()))

    @property
    def given(self) -> dict[str, float]:
        """What was given of each source, in proportion to what is read; empty for sizes."""
        return self.weights or self.tokens


def epochs_elapsed(sizes: Mapping[str, int], given: Mapping[str, float], planned: int) -> dict[str, dict[str, float]]:
    """For each source its tokens, its weight (these sum to 1) and how often `planned` tokens of training read it.

    Args:
        sizes: tokens of each source.
        given: its weight, in any unit; a source without one is not read. Empty for all sources by their size.

    Raises:
        InputError: a weight for a source without tokens.
    """
    given = given or {name: size for name, size in sizes.items() if size}
    for name in given:
        if not sizes.get(name):
            raise InputError(f"mix gives {name} a share, but its train split has no tokens: leave it out.")
    total = sum(given.values())
    rows = {}
    for name, size in sizes.items():
        weight = given.get(name, 0.0) / total
        rows[name] = {"tokens": size, "weight": weight, "epochs": planned * weight / max(size, 1)}
    return rows


def mix(config: MixConfig, sizes: Mapping[str, int], data_path: str, target: Path) -> dict[str, Any]:
    """Write `mixture.yaml`, a part of a training configuration; returns the record with the report's rows.

    Args:
        sizes: tokens of the train split by source.
        data_path: the folder of the shards as training is to be given it.
    """
    rows = epochs_elapsed(sizes, config.given, config.planned)
    data: dict[str, Any] = {"path": data_path, "total_tokens": config.planned}
    if config.given:
        # As they were given: training makes its pattern of their digits, and normalises by itself.
        data["mixture"] = {name: {"weight": weight} for name, weight in config.given.items()}
    write_text(target / FILE, yaml.safe_dump({"data": data}, sort_keys=False))
    notice = None
    total = sum(config.weights.values())
    if config.weights and not math.isclose(total, 1, rel_tol=1e-9):
        shares = ", ".join(f"{name} {rows[name]['weight']:.4g}" for name in config.weights)
        notice = f"The weights of mix.weights sum to {total:.6g}; made to sum to 1: {shares}"
    return {"planned_tokens": config.planned, "sources": rows, "notice": notice}


def report(record: Mapping[str, Any], console: Console) -> None:
    """Print the mixture as Table 2.2 of Brown et al. 2020 has it."""
    if record["notice"]:
        console.print(record["notice"], highlight=False, soft_wrap=True)
    table = Table("source", box=box.SIMPLE_HEAD)
    for heading in ("tokens", "weight", f"epochs in {record['planned_tokens']:,} tokens"):
        table.add_column(heading, justify="right")
    for name, row in record["sources"].items():
        epochs = f"{row['epochs']:.3g}" if row["weight"] else "not read"
        table.add_row(name, f"{row['tokens']:,}", f"{row['weight']:.2%}", epochs)
    console.print(table)
