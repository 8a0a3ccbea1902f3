"""The parts of a mixture as a YAML names them, and the tokens that they stand for."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from data_prep.files import InputError
from data_prep.shards import Manifest
from pipeline.mixture import whole_weights


@dataclass(frozen=True, kw_only=True)
class MixturePart:
    """Tokens that a mixture takes samples from, and how many of them."""

    weight: float
    """Share of the samples; the weights of a mixture are normalised to sum to 1."""
    path: str | None = None
    """Folder with manifest.json, of the same tokenizer; data.path when not given."""
    source: str | None = None
    """The source of that folder to take; when not given, all of `path`, or, without a path, the source of the part's name."""

    def manifest(self, name: str, folder: Path) -> Manifest:
        """The shards of this part.

        Raises:
            InputError: no such folder, or no such source in its train split.
        """
        whole = Manifest.load(self.path or folder)
        source = self.source or (None if self.path else name)
        if source is None:
            return whole
        there = sorted({shard.source for shard in whole.splits.get("train", ())})
        if source not in there:
            raise InputError(
                f"data.mixture.{name} takes the source {source!r}, of which {whole.folder} has no tokens to train on: "
                f"it has {', '.join(there) or 'none'}"
            )
        chosen = {split: tuple(s for s in shards if s.source == source) for split, shards in whole.splits.items()}
        return replace(whole, splits=chosen)


def mixture_weights(given: Mapping[str, float]) -> dict[str, int]:
    """The weights as whole numbers in the same proportion.

    Raises:
        ValueError: a weight that is not above 0, or too small to be met.
    """
    try:
        return whole_weights(given)
    except ValueError as error:
        raise ValueError(f"data.mixture: {error}") from error


def normalised(given: Mapping[str, float], whole: Mapping[str, int]) -> str:
    """What is said where the weights do not sum to 1."""
    shares = ", ".join(f"{name} {weight / sum(whole.values()):.4g}" for name, weight in whole.items())
    return f"The weights of data.mixture sum to {sum(given.values()):.6g}; made to sum to 1: {shares}"
