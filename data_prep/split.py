"""Train, validation and test: which of them a document belongs to is a function of its id and of nothing else.

So no document changes sides when others are added or removed, and the documentation and the source code of one module,
which share its name as id, stay together.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from data_prep import document
from data_prep.document import DocumentFile, DocumentWriter, link_documents, total_of
from data_prep.files import InputError
from data_prep.shards import SPLITS
from data_prep.units import Phase, Steps, Unit


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


def dividing(
    files: Mapping[str, Sequence[DocumentFile]],
    sources: Mapping[str, str | None],
    config: SplitConfig,
    document_of: Callable[[str], str],
) -> Steps:
    """The stage that writes each source's documents to a folder a split; a source that names a split goes there whole.

    `document_of` gives the id that decides: of pieces, the id of the document that they were cut from.
    """
    units, owners = [], []
    for source, fixed in sources.items():
        for file in files[source]:
            call = partial(divide_file, file.path, source, fixed, config, document_of)
            units.append(Unit(file.name, call, [source, fixed, file.digest], file.bytes))
            owners.append(source)
    outputs = yield Phase("split", 1, [asdict(config), document_of.__name__], units)
    parts = {source: [o for o, owner in zip(outputs, owners, strict=True) if owner == source] for source in sources}
    counts = {
        split: {source: total_of(output.record[split] for output in own) for source, own in parts.items()}
        for split in SPLITS
    }
    totals = {
        split: {name: sum(record[name] for record in records.values()) for name in ("documents", "text_bytes")}
        for split, records in counts.items()
    }
    require_all(totals, config)

    def fill(target: Path) -> dict[str, Any]:
        for split in SPLITS:
            for source, own in parts.items():
                link_documents([output.folder / split for output in own], source, target / split)
        return {**{split: each["documents"] for split, each in totals.items()}, "totals": totals, "sources": counts}

    return fill


def require_all(totals: Mapping[str, Mapping[str, int]], config: SplitConfig) -> None:
    """Raise InputError where a split that has a share has no document."""
    shares = {"train": 1.0, "validation": config.validation, "test": config.test}
    for split, total in totals.items():
        if total["documents"] == 0 and shares[split] > 0:
            documents = sum(total["documents"] for total in totals.values())
            raise InputError(
                f"None of the {documents} documents fell to {split}, whose share is {shares[split]:.3g}: "
                "divide the text into more documents (`separator`, `document_characters`), give more, "
                f"or change the shares (`split.{split}`)."
            )


def divide_file(
    path: Path, source: str, fixed: str | None, config: SplitConfig, document_of: Callable[[str], str], target: Path
) -> dict[str, Any]:
    """Write one file's documents to a folder a split; returns the counts of each."""
    with ExitStack() as stack:
        writers = {split: stack.enter_context(DocumentWriter(target / split, source)) for split in SPLITS}
        for batch in document.read_file(path):
            places = [fixed or config.of(document_of(id)) for id in batch.column("id").to_pylist()]
            for split, writer in writers.items():
                writer.add(batch.filter(pa.array([place == split for place in places])))
    return {split: writer.record for split, writer in writers.items()}
