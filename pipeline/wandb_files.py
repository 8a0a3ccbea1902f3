"""What wandb writes offline: records in blocks, as LevelDB's log."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK_BYTES, FILE_HEADER_BYTES, RECORD_HEADER = 1 << 15, 7, struct.Struct("<IHB")
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def stored_records(path: Path) -> Iterator[bytes]:
    """The records of a .wandb file; what a kill cut short ends them."""
    content, place, parts = path.read_bytes(), FILE_HEADER_BYTES, b""
    while place + RECORD_HEADER.size <= len(content):
        left = BLOCK_BYTES - place % BLOCK_BYTES
        if left < RECORD_HEADER.size:
            place += left
            continue
        _, length, kind = RECORD_HEADER.unpack_from(content, place)
        place += RECORD_HEADER.size
        if kind not in (FULL, FIRST, MIDDLE, LAST) or place + length > len(content):
            return
        part, place = content[place : place + length], place + length
        parts = part if kind in (FULL, FIRST) else parts + part
        if kind in (FULL, LAST):
            yield parts


def stored_rows(folder: Path) -> Iterator[dict[str, Any]]:
    """The rows of an offline run's folder, with wandb's own `_step`."""
    from wandb.proto.wandb_internal_pb2 import Record  # pyright: ignore[reportAttributeAccessIssue]

    for path in sorted(folder.glob("run-*.wandb")):
        for content in stored_records(path):
            record = Record.FromString(content)
            if record.HasField("history"):
                items = record.history.item
                yield {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def last_row(folder: Path) -> tuple[int, frozenset[str]] | None:
    """The last step in an offline run's folder and the names of what it has; None where there is none, or it cannot be read."""
    last = None
    try:
        for row in stored_rows(folder):
            last = int(row["_step"]), frozenset(row)
    except Exception:  # Another version of wandb may write otherwise; then the progress file is all there is.
        return last
    return last
