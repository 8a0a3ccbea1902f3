"""Looking at a corpus and checking it: what is printed is what brute force over the files finds."""

import re
import shutil
import struct
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml

from data_prep import document, places, statistics, svg
from data_prep.cli import main
from data_prep.corpus import open_corpus
from data_prep.indexed import IndexedTokens
from data_prep.shards import SPLITS

CODES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 6: "<f8", 7: "<f4", 8: "<u2"}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """A corpus of two sources, in several shards."""
    folder = tmp_path_factory.mktemp("prepared")
    noise = np.random.default_rng(0)
    for source, words in (("near", 12), ("far", 90)):
        texts = [
            f"Line {k} of {source}: "
            + " ".join(f"w{word}" for word in noise.integers(0, 200, noise.integers(1, words)))
            for k in range(150)
        ]
        (folder / f"{source}.txt").write_text("|".join([*texts, f"A needle, a NEEDLE and a needle in {source}."]))
    sources = {
        name: {"class_path": "Text", "init_args": {"files": [f"{folder}/{name}.txt"], "separator": "|"}}
        for name in ("near", "far")
    }
    config = {
        "output": str(folder / "out"),
        "sources": sources,
        "split": {"validation": 0.1, "test": 0.1},
        "tokenizer": {"vocab_size": 300},
        "shards": {"tokens": 3000},
    }
    (folder / "x.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    assert main(["run", "--config", str(folder / "x.yaml")]) == 0
    return folder / "out"


@pytest.fixture
def alone(prepared, tmp_path) -> Path:
    """A copy of the tokens without Parquet beside them."""
    shutil.copytree(prepared / "tokens", tmp_path / "alone")
    return tmp_path / "alone"


def rows(prepared: Path, split: str) -> list[dict[str, str]]:
    sources = ("near", "far")
    return [
        row
        for name in sources
        for batch in document.read(prepared / "split" / split, name)
        for row in batch.to_pylist()
    ]


def inspect(capsys, *arguments) -> str:
    assert main(["inspect", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def place_of(line: str) -> tuple[int, str, str, int]:
    match = re.search(r"document (\d+) of (\w+): .* shard (\S+) row \d+ offset (\d+)", line)
    assert match is not None, line
    return int(match[1]), match[2], match[3], int(match[4])


def test_an_id_leads_to_shard_and_offset_and_these_lead_back(prepared, capsys):
    manifest, tokenizer = open_corpus(prepared)
    assert len(manifest.splits["train"]) > 3
    for split in SPLITS:
        for k, row in list(enumerate(rows(prepared, split)))[::17]:
            number, found_split, shard, offset = place_of(inspect(capsys, prepared, "--id", row["id"]))
            assert (number, found_split) == (k, split)
            ids = np.fromfile(prepared / "tokens" / f"{shard}.bin", manifest.dtype)[offset:].astype(np.int64)
            end = int(np.flatnonzero(ids == manifest.end_of_text)[0])
            assert tokenizer.decode(ids[:end]) == row["text"]
            for token in (offset, offset + end):  # The first and the last of its tokens.
                for name in (shard, f"{prepared}/tokens/{shard}.bin"):
                    printed = inspect(capsys, prepared, "--shard", name, "--offset", token)
                    assert place_of(printed) == (k, split, shard, offset)
                    assert repr(row["id"]) in printed
            assert f"token {end} of it is id {manifest.end_of_text}" in printed


def test_a_text_is_found_where_python_finds_it(prepared, alone, capsys):
    manifest, tokenizer = open_corpus(prepared)
    lone, _ = open_corpus(alone)
    for text, ignore_case in (("needle", False), ("needle", True), ("w1", False), ("w1 w", True), ("no such", False)):
        expected, documents = [], 0
        for k, row in enumerate(rows(prepared, "train")):
            own = [match.start() for match in re.finditer(text, row["text"], re.IGNORECASE if ignore_case else 0)]
            expected += [(k, offset) for offset in own]
            documents += bool(own)
        for corpus in (manifest, lone):  # Text from Parquet, and what the ids spell.
            found = places.find(corpus, tokenizer, "train", text, ignore_case, 10**6)
            assert [(match.number, match.offset) for match in found.first] == expected
            assert (found.matches, found.documents) == (len(expected), documents)
    printed = inspect(capsys, prepared, "--find", "needle", "--first", 3)
    assert "'needle': 4 times in 2 documents, the first 3 shown" in printed
    assert printed.count("character ") == 3
    assert "character 2: A needle, a NEEDLE" in printed
    assert "6 times" in inspect(capsys, prepared, "--find", "NEEDLE", "--ignore-case")
    assert "needle in" in inspect(capsys, alone, "--find", "needle")


def test_lengths_and_frequencies_are_those_of_a_count_by_hand(prepared):
    manifest, _ = open_corpus(prepared)
    reader = manifest.open("train")
    documents = [reader.document(k).tolist() for k in range(reader.documents)]
    counted = Counter(token for ids in documents for token in ids)
    totals = statistics.token_counts(manifest, "train")
    assert {token: int(times) for token, times in enumerate(totals) if times} == dict(counted)
    counts = {count.source: count.documents for count in statistics.counts(manifest) if count.split == "train"}
    first = 0
    for lengths in statistics.document_lengths(manifest, "train"):
        own = sorted(map(len, documents[first : first + counts[lengths.source]]))
        first += counts[lengths.source]
        bins = Counter(length.bit_length() - 1 for length in own)
        assert {power: n for power, n in enumerate(lengths.bins.tolist()) if n} == dict(bins)
        assert (lengths.shortest, lengths.longest) == (own[0], own[-1])
        assert lengths.percentiles[2] in own[len(own) // 2 - 1 : len(own) // 2 + 1]
    assert first == len(documents)


def test_histograms_are_printed_with_every_source_and_the_most_frequent_token(prepared, capsys):
    manifest, _ = open_corpus(prepared)
    printed = inspect(capsys, prepared, "--histograms", "--split", "train")
    totals = statistics.token_counts(manifest, "train")
    assert "train, near" in printed
    assert "train, far" in printed
    assert f"{int(totals.max()):,}" in printed
    assert f"{int((totals > 0).sum()):,} of 300 ids occur, in {int(totals.sum()):,} tokens" in printed


def test_ids_that_are_in_no_vocabulary_are_one_sentence(alone, capsys):
    manifest, _ = open_corpus(alone)
    file = alone / f"{manifest.splits['train'][0].file}.bin"
    ids = np.fromfile(file, manifest.dtype)
    ids[7] = 60_000
    ids.tofile(file)
    assert main(["inspect", str(alone), "--histograms"]) == 2
    assert "to 60000, the vocabulary has 300" in capsys.readouterr().err


class Page(HTMLParser):
    """Collects what a page would load, its tags, and whether they are balanced."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loaded: list[str] = []
        self.tags: Counter[str] = Counter()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.loaded += [value for name, value in attrs if name in ("src", "href") and value]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_one_file_with_plots_and_shows_the_counts(prepared, tmp_path, capsys):
    file = tmp_path / "page.html"
    assert "page.html written" in inspect(capsys, prepared, "--html", file)
    content = file.read_text()
    page = Page()
    page.feed(content)
    assert page.open == []
    assert page.loaded == []
    assert page.tags["svg"] == 2
    assert page.tags["rect"] > 5
    assert page.tags["script"] == 0
    manifest, _ = open_corpus(prepared)
    assert all(f"{count.tokens:,}" in content for count in statistics.counts(manifest))
    main(["inspect", str(prepared), "--html", str(tmp_path / "again.html")])
    assert (tmp_path / "again.html").read_text() == content


def test_columns_are_as_high_as_their_numbers():
    plot = svg.columns(["a", "b"], [[10, 0], [30, 20]], ["x", "y"], "axis", "things")
    heights = [float(height) for height in re.findall(r'height="([\d.]+)"><title>', plot)]
    assert np.allclose(np.array(heights) / svg.INNER_HEIGHT, [10 / 50, 30 / 50, 20 / 50], atol=1e-4)
    assert "y, a: 30 things" in plot


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--id", "nobody"], "has the id 'nobody'"),
        (["--document", "99999"], "There is no document 99999"),
        (["--shard", "train/none-00000"], "There is no shard 'train/none-00000'"),
        (["--shard", "train/near-00000", "--offset", "999999"], "There is no token 999999"),
        (["--find", ""], "--find is empty"),
    ],
)
def test_what_is_not_there_is_one_sentence_and_status_2(prepared, capsys, arguments, sentence):
    assert main(["inspect", str(prepared), *arguments]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1


def test_verify_goes_on_after_a_problem_lists_all_and_says_rates(alone, capsys):
    assert main(["verify", str(alone)]) == 0
    assert capsys.readouterr().out.count("M tokens/s") == 3
    manifest, _ = open_corpus(alone)
    first, second, *_ = manifest.splits["train"]
    for shard, value in ((first, 299), (second, manifest.end_of_text)):
        ids = np.fromfile(alone / f"{shard.file}.bin", manifest.dtype)
        ids[3] = value
        ids.tofile(alone / f"{shard.file}.bin")
    (alone / f"{manifest.splits['test'][0].file}.idx").unlink()
    assert main(["verify", str(alone)]) == 2
    printed = capsys.readouterr()
    problems = [line for line in printed.out.splitlines() if line.startswith("problem: ")]
    assert len(problems) == 4
    for part, problem in zip((first.file, second.file, "in end-of-text", "is missing"), problems, strict=True):
        assert part in problem
    assert printed.err.startswith(f"error: 4 problems in {alone}, the first: ")
    assert printed.err.count("\n") == 1
    assert "validation" in printed.out


def test_verify_lists_no_more_of_one_kind_than_a_screen_holds(prepared, tmp_path, capsys):
    shutil.copytree(prepared, tmp_path / "out")
    for name in ("near", "far"):
        file = tmp_path / "out" / "split" / "train" / f"{name}-00000.parquet"
        other = tmp_path / "out" / "split" / "validation" / f"{name}-00000.parquet"
        shutil.copy(other, file)
    assert main(["verify", str(tmp_path / "out")]) == 2
    printed = capsys.readouterr()
    problems = [line for line in printed.out.splitlines() if line.startswith("problem: ")]
    assert len(problems) == 11
    assert "more like these" in problems[-1]
    assert "does not decode to its text" in printed.err


def write_indexed(base: Path, documents: list[list[np.ndarray]], code: int, modes: bool = False) -> None:
    """A data set as the definition of Megatron-LM's format has it, written with nothing of ours."""
    sequences = [np.asarray(ids, CODES[code]) for sequences in documents for ids in sequences]
    base.with_suffix(".bin").write_bytes(b"".join(ids.tobytes() for ids in sequences))
    offsets = np.cumsum([0, *(ids.nbytes for ids in sequences)])[:-1]
    boundaries = np.cumsum([0, *map(len, documents)])
    with open(base.with_suffix(".idx"), "wb") as stream:
        stream.write(b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, code, len(sequences), len(boundaries)))
        stream.write(np.array([len(ids) for ids in sequences], "<i4").tobytes())
        stream.write(offsets.astype("<i8").tobytes() + boundaries.astype("<i8").tobytes())
        stream.write(b"\0" * len(sequences) * modes)


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("modes", [False, True])
def test_what_another_program_wrote_in_the_format_is_read(tmp_path, code, modes):
    noise = np.random.default_rng(code)
    documents = [
        [noise.integers(1, 100, noise.integers(1, 30)) for _ in range(noise.integers(1, 4))] for _ in range(40)
    ]
    for sequences in documents:
        sequences[-1][-1] = 0
    write_indexed(tmp_path / "theirs", documents, code, modes)
    for name in ("theirs", "theirs.bin", "theirs.idx"):
        data = IndexedTokens(tmp_path / name)
        assert data.documents == 40
        assert data.tokens == sum(len(ids) for sequences in documents for ids in sequences)
        found = [[ids.tolist() for ids in data.sequences(k)] for k in range(40)]
        assert found == [[ids.tolist() for ids in sequences] for sequences in documents]
        assert data.last_ids() == {0: 40}


def test_a_folder_without_manifest_is_inspected_as_it_stands(prepared, tmp_path, capsys):
    write_indexed(tmp_path / "text_document", [[np.array([5, 6, 0])], [np.array([7, 0]), np.array([8, 0])]], 4)
    printed = " ".join(inspect(capsys, tmp_path).split())
    assert "int32 2 3 7 0 in 100%" in printed
    assert "7 0\n" in inspect(capsys, tmp_path / "text_document.bin", "--document", 1)
    shard = prepared / "tokens" / "train" / "near-00000.bin"
    text = rows(prepared, "train")[3]["text"]
    tokenizer = prepared / "tokens" / "tokenizer.json"
    assert text in inspect(capsys, shard, "--document", 3, "--tokenizer", tokenizer)


def test_a_damaged_indexed_data_set_is_one_sentence(tmp_path, capsys):
    base = tmp_path / "x"
    documents = [[np.array([5, 6, 0])], [np.array([7, 0])]]
    for change, sentence in [
        (lambda: base.with_suffix(".bin").unlink(), "is missing"),
        (lambda: base.with_suffix(".bin").write_bytes(b"123"), "its index goes to 10"),
        (lambda: base.with_suffix(".idx").write_bytes(base.with_suffix(".idx").read_bytes()[:-5]), "so it was cut"),
        (lambda: base.with_suffix(".idx").write_bytes(b"no index at all"), "is not the index"),
    ]:
        write_indexed(base, documents, 8)
        change()
        assert main(["inspect", str(tmp_path)]) == 2
        error = capsys.readouterr().err
        assert sentence in error
        assert error.count("\n") == 1


def test_an_empty_data_set_has_no_documents(tmp_path, capsys):
    write_indexed(tmp_path / "x", [], 8)
    assert IndexedTokens(tmp_path / "x").last_ids() == {}
    assert "uint16 0 0 0" in " ".join(inspect(capsys, tmp_path).split())
