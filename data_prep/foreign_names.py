"""Indexed data sets that others wrote, by their names: which split and which source each of them is."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from data_prep.files import InputError
from data_prep.indexed import pairs_of_files
from data_prep.shards import SPLITS

SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}
WORD_OF_A_SPLIT = re.compile(rf"(?:^|(?<=[_.-]))({'|'.join(SPLIT_WORDS)})(?:$|[_.-]+)", re.IGNORECASE)
# Megatron-LM calls its files <prefix>_<key of the JSON>_<level>.
LEVEL = re.compile(r"_[^_]+_(document|sentence)$")
# Four digits that do not begin with 0 may be a year.
NUMBER = re.compile(r"(^|[_.-])(\d+-of-\d+|0\d*|\d{1,3})$")


@dataclass(frozen=True)
class Origin:
    """One pair of files."""

    path: Path
    """Without suffix."""
    name: str
    """Below the folder that was given, without suffix."""
    split: str
    source: str


def origins(folder: Path, patterns: Mapping[str, Sequence[str]], source: str | None) -> tuple[list[Origin], list[str]]:
    """The pairs of files of a folder, or the one that is named, by source and name; and the names of those left out.

    Args:
        patterns: for a split, the names of its files, with wildcards. Without any, a file belongs to the split that its name
            or folder speaks of, and otherwise to train.
        source: one for all files; else their names without split, level and number.
    """
    base = folder if folder.is_dir() else folder.parent
    paths = [
        path for path in pairs_of_files(folder) if not any(p.startswith(".") for p in path.relative_to(base).parts)
    ]
    if not paths:
        raise InputError(f"{folder} has no .bin and .idx files, in it or below it: give the folder that holds them.")
    found, left_out, used = [], [], set()
    for path in paths:
        name = path.relative_to(base).as_posix()
        splits = matching(name, patterns, used) if any(patterns.values()) else spoken_of(name) or {"train"}
        if len(splits) > 1:
            raise InputError(
                f"{name} could be of {' and of '.join(sorted(splits))}: say which by --train, --validation and --test."
            )
        if splits:
            found.append(Origin(path, name, splits.pop(), source or source_of(name) or safe(base.resolve().name)))
        else:
            left_out.append(name)
    for split, own in patterns.items():
        for pattern in own:
            if pattern not in used:
                some = ", ".join(path.relative_to(base).as_posix() for path in paths[:3])
                raise InputError(f"--{split} {pattern} matches no file of {folder}: it has {some} ...")
    return sorted(found, key=lambda one: (one.source, one.name)), left_out


def matching(name: str, patterns: Mapping[str, Sequence[str]], used: set[str]) -> set[str]:
    """The splits that have a pattern for this name, or for its last part; the patterns that matched are added to `used`."""
    found = set()
    for split in SPLITS:
        for pattern in patterns.get(split, ()):
            plain = pattern.removesuffix(".bin").removesuffix(".idx")
            if fnmatchcase(name, plain) or fnmatchcase(name.rpartition("/")[2], plain):
                found.add(split)
                used.add(pattern)
    return found


def spoken_of(name: str) -> set[str]:
    """The splits whose words stand in a name or in its folders."""
    return {
        SPLIT_WORDS[match[1].lower()]
        for part in name.split("/")
        for match in WORD_OF_A_SPLIT.finditer(plain_name(part))
    }


def source_of(name: str) -> str:
    """What is left of a name without split, level and number; may be nothing."""
    parts = [WORD_OF_A_SPLIT.sub("", plain_name(part)).strip("_.-") for part in name.split("/")]
    parts[-1] = NUMBER.sub("", parts[-1]).strip("_.-")
    return safe("-".join(filter(None, parts)))


def plain_name(part: str) -> str:
    return LEVEL.sub("", part)


def safe(name: str) -> str:
    """A name that files can have, as the names of sources do."""
    return re.sub(r"[^\w-]+", "-", name)
