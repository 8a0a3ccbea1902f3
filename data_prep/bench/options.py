"""What `bench` is asked to measure, and on how much text."""

import argparse
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from data_prep.files import InputError

MEASURES = ("tokenize", "gopher", "signatures", "run")
DISK = 4
"""The stages of a whole run hold so many times its bytes at most, its JSON lines included."""


@dataclass(frozen=True)
class BenchOptions:
    """Sizes are in megabytes of text."""

    only: tuple[str, ...] = MEASURES
    corpus: tuple[Path, ...] = ()
    megabytes: float = 200
    run_megabytes: float = 1000
    peer_megabytes: float = 4
    vocabularies: tuple[int, ...] = (4096, 32768)
    packages: tuple[str, ...] | None = None
    rounds: int = 3
    workers: int = 0
    folder: Path | None = None
    json: Path | None = None
    quick: bool = False
    """On so little text that the ratios wanted do not apply."""

    def __post_init__(self) -> None:
        for name in self.only:
            if name not in MEASURES:
                raise InputError(f"--only names {name!r}: what can be measured is {', '.join(MEASURES)}.")
        for name in ("megabytes", "run_megabytes", "peer_megabytes", "rounds"):
            if getattr(self, name) <= 0:
                raise InputError(f"--{name.replace('_', '-')} is {getattr(self, name)}: it has to be more than 0.")
        if self.workers < 0:
            raise InputError(f"--workers is {self.workers}: it has to be at least 0, which is one a core.")
        for place in self.corpus:
            if not place.is_file():
                raise InputError(f"--corpus names {place}, which is not a file: give a text file, .gz or plain.")
        if self.packages == () and not self.corpus:
            raise InputError("There is nothing to measure on: give --corpus, or leave --packages away.")

    @property
    def place(self) -> Path:
        """The folder below which the work is done."""
        return self.folder or Path(tempfile.gettempdir())

    def require_disk(self) -> None:
        """Raise InputError where the work would not fit on the disk."""
        self.place.mkdir(parents=True, exist_ok=True)
        sizes = [self.run_megabytes if name == "run" else self.megabytes for name in self.only]
        needed, free = DISK * max(sizes) * 1e6, shutil.disk_usage(self.place).free
        if free < needed:
            raise InputError(
                f"{self.place} has {free / 1e9:.1f} GB free, and the work may take {needed / 1e9:.1f} GB: "
                "give another --folder, or less with --megabytes and --run-megabytes."
            )


def quick(options: BenchOptions) -> BenchOptions:
    """The same on so little text that it takes seconds and says little."""
    small = replace(
        options, megabytes=0.6, run_megabytes=1, peer_megabytes=0.2, vocabularies=(300,), rounds=1, quick=True
    )
    return small if options.corpus or options.packages else replace(small, packages=("json", "email"))


def add_options(parser: argparse.ArgumentParser) -> None:
    default = BenchOptions()
    parser.add_argument(
        "--only", type=lambda text: tuple(text.split(",")), default=MEASURES, metavar="NAME,...",
        help=f"of {', '.join(MEASURES)} (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--corpus", type=Path, nargs="+", action="extend", default=[], metavar="FILE",
        help="text beside the Python documentation: its documents stand between two blank lines or more; may be compressed",
    )  # fmt: skip
    parser.add_argument(
        "--packages", nargs="*", metavar="NAME",
        help="whose documentation is read (default: as the source PythonDocs); without names none",
    )  # fmt: skip
    sizes = {
        "megabytes": "text of each corpus, repeated with other words",
        "run-megabytes": "JSON lines of the whole run; the run beside it has a tenth",
        "peer-megabytes": "text for sides that are much slower",
    }
    for name, text in sizes.items():
        value = getattr(default, name.replace("-", "_"))
        parser.add_argument(f"--{name}", type=float, default=value, metavar="MB", help=f"{text} (default: {value})")
    parser.add_argument(
        "--vocabularies", type=int, nargs="+", default=default.vocabularies, metavar="IDS",
        help=f"of the tokenizers to encode with (default: {' '.join(map(str, default.vocabularies))})",
    )  # fmt: skip
    parser.add_argument(
        "--rounds", type=int, default=default.rounds, help=f"by turns; the best counts (default: {default.rounds})"
    )
    parser.add_argument("--workers", type=int, default=0, help="processes of our stages (default: one a core)")
    parser.add_argument(
        "--folder", type=Path, help="where to work; what is written goes again (default: temporary files)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures as JSON")
    parser.add_argument("--quick", action="store_true", help="on next to no text: shows that it works, not how fast")


def from_arguments(given: argparse.Namespace) -> BenchOptions:
    options = BenchOptions(
        only=given.only,
        corpus=tuple(given.corpus),
        megabytes=given.megabytes,
        run_megabytes=given.run_megabytes,
        peer_megabytes=given.peer_megabytes,
        vocabularies=tuple(given.vocabularies),
        packages=None if given.packages is None else tuple(given.packages),
        rounds=given.rounds,
        workers=given.workers,
        folder=given.folder,
        json=given.json,
    )
    return quick(options) if given.quick else options
