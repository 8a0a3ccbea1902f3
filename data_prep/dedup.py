"""Deduplication: of documents with the same text, or nearly the same, the first in the order of the sources is kept.

A pair repeats another only if both sides do. Files are worked at one by one, and what they give to be compared is sorted, so that
parts of it, ranges of keys over all files, are worked at one by one, too. Only what follows from pairs of numbers is of one piece.
"""

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from rich.console import Console

from data_prep import disk_arrays
from data_prep.dedup_files import (
    BANDS,
    DIGESTS,
    DROPPED,
    EXACT,
    NEAR,
    Slice,
    band_file,
    digest_file,
    set_file,
    write_file,
)
from data_prep.dedup_pairs import (
    MARKS,
    PAIRS,
    REPEATS,
    ROOTS,
    Sets,
    cluster,
    first_pairs_of_part,
    join,
    mark,
    near_pairs_of_part,
    similar_in_part,
)
from data_prep.disk_arrays import Rows, parts_of
from data_prep.document import DocumentFile, hashed_files, link_documents, path_name, total_of
from data_prep.files import fingerprint
from data_prep.minhash import SIGNATURES, MinhashConfig
from data_prep.stages import fill_folder
from data_prep.units import Output, Phase, Record, Steps, Unit, link
from data_prep.workers import workers as running

WINDOW = 16
"""A document is compared with the first of its band and with so many before it."""
COMPARED_BYTES = 4 * 2**20
"""Pairs that one unit compares. It reads many times as much: the N-grams of the documents."""
FOLDER = "dropped"


@dataclass(frozen=True)
class DedupConfig:
    """Which documents count as repeats. Of those that do, that of the earlier source is kept, inside a source the first."""

    normalize: bool = False
    """Compare texts in lower case, without punctuation and white space. Off, they have to be equal byte by byte."""
    fuzzy: bool = False
    """Also drop near-duplicates."""
    minhash: MinhashConfig = field(default_factory=MinhashConfig)
    keep_dropped: bool = False
    """Write what was dropped to the folder `unique/dropped`, with the id of the document that was kept."""

    def settings(self) -> dict[str, Any]:
        """What the result depends on, as JSON; empty where all is at its default."""
        own = {name: True for name in ("normalize", "keep_dropped") if getattr(self, name)}
        return {**own, "minhash": asdict(self.minhash), "signatures": SIGNATURES} if self.fuzzy else own

    @property
    def columns(self) -> tuple[str, ...]:
        """Which numbers of the record the terminal shows."""
        return (
            "documents",
            "text_bytes",
            "duplicates",
            *((EXACT, NEAR, "threshold", "band_threshold") if self.fuzzy else ()),
        )


def deduplicate(folders: Mapping[str, Path], config: DedupConfig, target: Path, workers: int = 1) -> Record:
    """Copy each source's documents without repeats, without a stage around it; returns the stage's record."""
    files = {name: hashed_files(folder, name) for name, folder in folders.items()}
    with running(workers) as pool:
        return fill_folder(deduplicating(files, config), target, pool)


def report(record: Mapping[str, Any], console: Console) -> None:
    """Say which near-duplicates were looked for, where any were."""
    if "minhash" in record:
        console.print(record["minhash"], highlight=False)


def deduplicating(files: Mapping[str, Sequence[DocumentFile]], config: DedupConfig) -> Steps:
    """The stage that copies the documents of each source, given its files, without repeats."""
    corpus = Corpus(files)
    each = corpus.units(lambda k: partial(digest_file, corpus.paths[k], config.normalize, config.keep_dropped))
    digests = yield Phase("digests", 1, [config.normalize, config.keep_dropped], each)
    corpus.number(digests)

    keys = corpus.rows(digests, DIGESTS, 2 * corpus.sides + 1)
    outputs = yield Phase(
        "equal", 1, [], keys.units(partial(first_pairs_of_part, keys.rows), disk_arrays.PART_BYTES), scratch=True
    )
    equal = pairs_from(outputs)
    near: list[Table] = []
    if config.fuzzy:
        near = yield from finding_near(corpus, equal, config.minhash)

    # With the documents that are dropped goes the id of what was kept, which depends on the file that it is in.
    matters = [f"{name} {file.digest}" if config.keep_dropped else name for name, file in corpus.files]
    work = partial(cluster, equal.rows, [table.rows for table in near], corpus.firsts, matters, config.keep_dropped)
    inputs = [equal.keys, [table.keys for table in near], corpus.firsts, matters]
    [clusters] = yield alone(
        "clusters", [config.keep_dropped], work, inputs, sum(table.bytes for table in (equal, *near))
    )
    counts = clusters.record["counts"]
    repeats = corpus.slices(clusters.folder / REPEATS, list(accumulate(counts, initial=0)))
    owners = tuple(name for name, _ in corpus.files)
    ids = tuple(output.folder / "ids" for output in digests) if config.keep_dropped else ()
    each = corpus.units(
        lambda k: partial(write_file, corpus.paths[k], owners[k], repeats[k], owners, ids),
        [[owner, digest] for owner, digest in zip(owners, clusters.record["slices"], strict=True)],
        hashed=True,
    )
    written = yield Phase("documents", 1, [config.keep_dropped], each)

    def fill(target: Path) -> Record:
        records = {}
        for name in files:
            own = [output for output, owner in zip(written, owners, strict=True) if owner == name]
            link_documents([output.folder for output in own], name, target)
            for number, output in enumerate(output for output in own if DROPPED in output.files):
                link(output.folder / DROPPED, target / FOLDER / path_name(name, number))
            found = total_of((output.record for output in own), EXACT, NEAR)
            of_sources = found.pop("duplicate_of", {})
            records[name] = {
                **found,
                "duplicate_of": {other: of_sources[other] for other in files if other in of_sources},
            }
        return total_record(records, config)

    return fill


def finding_near(
    corpus: "Corpus", equal: "Table", config: MinhashConfig
) -> Generator[Phase, list[Output], list["Table"]]:
    """The phases that find near-duplicates among documents with different digests; returns pairs of them."""
    work = partial(mark, equal.rows, slice(1, 2), corpus.firsts)
    [marked] = yield alone("distinct", [], work, [equal.keys, corpus.firsts], equal.bytes)
    repeated = corpus.slices(marked.folder / MARKS, corpus.firsts)
    apart = ["" if config.across else name for name, _ in corpus.files]
    each = corpus.units(
        lambda k: partial(band_file, corpus.paths[k], apart[k], repeated[k], config),
        list(zip(apart, marked.record["slices"], strict=True)),
    )
    settings = [config.ngram, config.unit, config.bands, config.rows, SIGNATURES]
    bands = corpus.rows((yield Phase("bands", 1, settings, each)), BANDS, 2)

    each = bands.units(partial(first_pairs_of_part, bands.rows), disk_arrays.PART_BYTES)
    firsts = pairs_from((yield Phase("pairs", 1, [], each, scratch=True)))
    if not config.verify:
        return [firsts]

    # All that share a key with any other one: these pairs name them, and the pairs that come later no others.
    work = partial(mark, firsts.rows, slice(0, 2), corpus.firsts)
    [marked] = yield alone("compared", [], work, [firsts.keys, corpus.firsts], firsts.bytes)
    wanted = corpus.slices(marked.folder / MARKS, corpus.firsts)
    each = corpus.units(
        lambda k: partial(set_file, corpus.paths[k], wanted[k], corpus.sides, config.ngram, config.unit),
        marked.record["slices"],
    )
    outputs = yield Phase("sets", 1, [config.ngram, config.unit], each, scratch=True)
    sets = Sets(tuple(output.folder for output in outputs), tuple(corpus.firsts[:-1]), corpus.sides)
    content, least = [output.key for output in outputs], config.least_similarity
    each = firsts.units(partial(similar_in_part, firsts.rows, sets, least), COMPARED_BYTES, content)
    similar = pairs_from((yield comparing("similar", least, each)))

    # Most documents of a band are in one cluster now: only the others need be compared with each other.
    work = partial(join, similar.rows, corpus.count)
    [joined] = yield alone("joined", [], work, [similar.keys, corpus.count], similar.bytes)
    work = partial(near_pairs_of_part, bands.rows, joined.folder / ROOTS, WINDOW)
    each = bands.units(work, disk_arrays.PART_BYTES, joined.key)
    others = pairs_from((yield Phase("other-pairs", 1, WINDOW, each, scratch=True)))
    each = others.units(partial(similar_in_part, others.rows, sets, least), COMPARED_BYTES, content)
    return [similar, pairs_from((yield comparing("other-similar", least, each)))]


def comparing(name: str, least: float, each: Sequence[Unit]) -> Phase:
    """A phase that compares pairs, for which processes are worth their start sooner than the pairs' bytes say."""
    return Phase(name, 1, least, each, least_bytes=COMPARED_BYTES, scratch=True)


def alone(name: str, settings: Any, work: Callable[[Path], Record], inputs: Any, size: int) -> Phase:
    """A phase of one unit that sees everything."""
    return Phase(name, 1, settings, [Unit(name, work, inputs, size, hashed=False)], scratch=True, alone=True)


def total_record(records: Mapping[str, Record], config: DedupConfig) -> Record:
    """The stage's record from those of the sources."""
    total: Record = {
        key: sum(record[key] for record in records.values()) for key in ("documents", "text_bytes", EXACT, NEAR)
    }
    total["duplicates"] = total[EXACT] + total[NEAR]
    if config.fuzzy:
        total["threshold"] = round(config.minhash.least_similarity, 4)
        total["band_threshold"] = round(config.minhash.band_threshold, 4)
        total["minhash"] = config.minhash.describe()
    return {**total, "sources": records}


@dataclass(frozen=True)
class Table:
    """Rows on disk, as the work of units that look at a part each."""

    rows: Rows
    keys: tuple[str, ...]
    """What changes when they do."""
    bytes: int

    def units(self, work: Callable[..., Record], part_bytes: int, *inputs: Any) -> list[Unit]:
        """Units that do this work, given which part and of how many."""
        parts = parts_of(self.bytes, part_bytes)
        content = fingerprint([self.keys, self.rows.firsts, *inputs])
        return [
            Unit(
                f"part {part + 1} of {parts}",
                partial(work, part, parts),
                [content, part, parts],
                self.bytes // parts,
                hashed=False,
            )
            for part in range(parts)
        ]


class Corpus:
    """The files of all sources, in the order in which documents are numbered."""

    def __init__(self, files: Mapping[str, Sequence[DocumentFile]]):
        self.files = [(name, file) for name, own in files.items() for file in own]
        self.paths = [file.path for _, file in self.files]
        self._sizes = [file.bytes for _, file in self.files]
        self.firsts: list[int] = [0]
        """The number of the first document of each file, and of all documents."""
        self.sides = 1

    @property
    def count(self) -> int:
        return self.firsts[-1]

    def number(self, digests: Sequence[Output]) -> None:
        """Number the documents, given what the first phase has found."""
        self.firsts = list(accumulate((output.record["documents"] for output in digests), initial=0))
        self.sides = max((output.record["sides"] for output in digests), default=1)

    def units(
        self, work: Callable[[int], Callable[[Path], Record]], inputs: Sequence[Any] = (), hashed: bool = False
    ) -> list[Unit]:
        """A unit a file, given the work of the k-th, and what it depends on besides the file."""
        more = inputs or [None] * len(self.files)
        return [
            Unit(file.name, work(k), [file.digest, more[k]], self._sizes[k], hashed=hashed)
            for k, (_, file) in enumerate(self.files)
        ]

    def slices(self, path: Path, bounds: Sequence[int]) -> list[Slice]:
        """What each file has of an array that lies in this file."""
        return [Slice(path, begin, end - begin) for begin, end in pairwise(bounds)]

    def rows(self, outputs: Iterable[Output], name: str, columns: int) -> Table:
        """The rows that the units of all files have written, with the numbers that documents have in the corpus."""
        return table(outputs, name, columns, self.firsts)


def pairs_from(outputs: Sequence[Output]) -> Table:
    """The pairs of numbers that units have written."""
    return table(outputs, PAIRS, 2, [0] * len(outputs))


def table(outputs: Iterable[Output], name: str, columns: int, firsts: Sequence[int]) -> Table:
    paths, numbers, keys, size = [], [], [], 0
    for output, first in zip(outputs, firsts, strict=False):
        keys.append(output.key)
        for path in sorted(path for path in output.files if path.startswith(f"{name}-")):
            paths.append(output.folder / path)
            numbers.append(first)
            size += output.files[path][0]
    return Table(Rows(tuple(paths), columns, tuple(numbers)), tuple(keys), size)
