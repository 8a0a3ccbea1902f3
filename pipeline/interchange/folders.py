"""Folders that are either whole or absent: a run that is imported, a model that is exported."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data_prep.files import InputError, sync


@contextmanager
def whole_folder(final: Path) -> Iterator[Path]:
    """Yield an empty folder beside `final`. It becomes `final` when the block ends and goes when the block raises.

    Raises:
        InputError: `final` exists; nothing is overwritten.
    """
    final = final.absolute()
    if os.path.lexists(final):
        raise InputError(f"{final} exists already and is not overwritten: give another name, or remove it first")
    aside = final.with_name(f".{final.name}.{os.getpid()}.partial")
    aside.mkdir(parents=True)
    try:
        yield aside
        for path in aside.rglob("*"):
            sync(path)
        aside.rename(final)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    sync(final.parent)
