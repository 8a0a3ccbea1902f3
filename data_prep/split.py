"""Train, validation and test: which of them a document belongs to is a function of its id and of nothing else.

So no document changes sides when others are added or removed, and the documentation and the source code of one module,
which share its name as id, stay together.
"""

import hashlib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from data_prep import document
from data_prep.document import DocumentWriter
from data_prep.files import InputError
from data_prep.shards import SPLITS


@dataclass(frozen=True)
class SplitConfig:
    """How documents are divided."""

    validation: float = 0.02
    """Share of documents for validation."""
    test: float = 0.02
    """Share of documents for the final test."""

    def __post_init__(self) -> None:
        if min(self.validation, self.test) < 0 or self.validation + self.test >= 1:
            raise InputError(
                f"split.validation is {self.validation} and split.test {self.test}: "
                "both must be at least 0 and leave a rest for train."
            )

    def of(self, id: str) -> str:
        """The split of the document with this id. A document held out stays so when a share is raised."""
        place = int.from_bytes(hashlib.sha256(id.encode()).digest()[:8], "big") / 2**64
        # From both ends, so that changing one share moves nothing between the other and train.
        return "validation" if place < self.validation else "test" if place >= 1 - self.test else "train"


def divide(
    folder: Path,
    sources: dict[str, str | None],
    config: SplitConfig,
    document_of: Callable[[str], str],
    target: Path,
) -> dict[str, Any]:
    """Write each source's documents to a folder a split; a source that names a split goes there whole.

    `document_of` gives the id that decides: of pieces, the id of the document that they were cut from.
    """
    counts: dict[str, Any] = {}
    with ExitStack() as stack:
        for source, fixed in sources.items():
            writers = {split: stack.enter_context(DocumentWriter(target / split, source)) for split in SPLITS}
            for batch in document.read(folder, source):
                places = [fixed or config.of(document_of(id)) for id in batch.column("id").to_pylist()]
                for split, writer in writers.items():
                    writer.add(batch.filter(pa.array([place == split for place in places])))
            stack.pop_all().close()
            for split, writer in writers.items():
                counts.setdefault(split, {})[source] = writer.record
    totals = {
        split: {name: sum(record[name] for record in records.values()) for name in ("documents", "text_bytes")}
        for split, records in counts.items()
    }
    shares = {"train": 1.0, "validation": config.validation, "test": config.test}
    for split, total in totals.items():
        if total["documents"] == 0 and shares[split] > 0:
            documents = sum(total["documents"] for total in totals.values())
            raise InputError(
                f"None of the {documents} documents fell to {split}, whose share is {shares[split]:.3g}: "
                "divide the text into more documents (`separator`, `document_characters`), give more, "
                f"or change the shares (`split.{split}`)."
            )
    return {**{split: total["documents"] for split, total in totals.items()}, "totals": totals, "sources": counts}
