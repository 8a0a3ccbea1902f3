"""Exact deduplication against a dictionary, and what the stage counts, writes aside and says."""

import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from data_prep import disk_arrays, document
from data_prep.cli import main
from data_prep.dedup import DedupConfig, deduplicate
from data_prep.document import DocumentWriter
from data_prep.files import read_json
from data_prep.minhash import MinhashConfig


@pytest.fixture
def deduplicated(tmp_path):
    """Deduplicates texts (or pairs) of sources, ids `a0`, `a1`, ...; returns the ids kept of each source and the record."""

    def call(sources: dict[str, list], batch: int = 7, **settings):
        documents, target = tmp_path / "documents", tmp_path / "unique"
        for folder in (documents, target):
            folder.mkdir(exist_ok=True)
            for path in folder.rglob("*.parquet"):
                path.unlink()
        for name, rows in sources.items():
            with DocumentWriter(documents, name) as writer:
                for begin in range(0, len(rows), batch):
                    some = rows[begin : begin + batch]
                    ids = pa.array([f"{name}{begin + k}" for k in range(len(some))])
                    columns = [some] if isinstance(some[0], str) else list(zip(*some, strict=True))
                    sides = {side: pa.array(column) for side, column in zip(document.SIDES, columns, strict=False)}
                    writer.add(pa.record_batch({"id": ids, **sides}))
        record = deduplicate(dict.fromkeys(sources, documents), DedupConfig(**settings), target)
        kept = {
            name: [id for batch in document.read(target, name) for id in batch.column("id").to_pylist()]
            for name in sources
        }
        assert not (target / ".scratch").exists()
        return kept, record

    return call


def first_of_each(sources: dict[str, list], key) -> dict[str, list[str]]:
    """Which ids stay, with a set of all that was seen."""
    seen, kept = set(), {name: [] for name in sources}
    for name, rows in sources.items():
        for number, row in enumerate(rows):
            if key(row) not in seen:
                kept[name].append(f"{name}{number}")
            seen.add(key(row))
    return kept


def plain(text: str) -> str:
    """Lower case without punctuation and white space, a character at a time; the text itself where nothing stays."""
    marks = {
        c for c in text if unicodedata.category(c)[0] == "P" or (c.isascii() and not c.isalnum() and c.isprintable())
    }
    return "".join(c for c in text.lower() if c not in marks and not c.isspace()) or f"as it is: {text}"


RNG = np.random.default_rng(0)
VARIANTS = [
    "Don't stop",
    "dont  stop!",
    "DON’T STOP",
    "Don't stop",
    "!!",
    "?!",
    "!!",
    " ",
    "\n",
    "東京、大阪",
    "東京大阪",
    "a b",
    "ab",
    "",
]
SOURCES = {
    name: [str(text) for text in RNG.choice(VARIANTS, 30)] + [f"{name} {k % 20}" for k in range(40)] for name in "abc"
}


@pytest.mark.parametrize("small_parts", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
def test_the_first_of_equal_documents_is_kept_over_all_sources(deduplicated, monkeypatch, normalize, small_parts):
    if small_parts:
        # Many parts, and parts that are read in several pieces.
        monkeypatch.setattr(disk_arrays, "PART_BYTES", 96)
        monkeypatch.setattr(disk_arrays, "MAX_PARTS", 5)
        monkeypatch.setattr(disk_arrays, "BUFFER_BYTES", 200)
    kept, record = deduplicated(SOURCES, normalize=normalize)
    assert kept == first_of_each(SOURCES, plain if normalize else str)
    assert record["documents"] + record["duplicates"] == 210
    assert record["duplicates"] == record["exact"] == sum(own["exact"] for own in record["sources"].values())


def test_case_punctuation_and_white_space_count_unless_normalized(deduplicated):
    texts = {"a": ["Don't stop", "DONT\tSTOP!", "dont stop it"]}
    assert deduplicated(texts)[0] == {"a": ["a0", "a1", "a2"]}
    assert deduplicated(texts, normalize=True)[0] == {"a": ["a0", "a2"]}


@pytest.mark.parametrize("settings", [{}, {"normalize": True}, {"fuzzy": True}])
def test_a_pair_repeats_another_only_if_both_sides_do(deduplicated, settings):
    pairs = [
        ("one two", "un deux"),
        ("one two", "eins zwei"),
        ("one", "two un deux"),
        ("one two", "un deux"),
        ("un deux", "one two"),
    ]
    kept, _ = deduplicated({"a": pairs}, **settings)
    assert kept == {"a": ["a0", "a1", "a2", "a4"]}


def test_the_end_of_one_document_is_no_part_of_the_next(deduplicated):
    """Σ is written in two ways in lower case, by what follows."""
    texts = {"a": ["ΟΔΟΣ", "Α", "ΟΔΟΣ", "Α", "ΟΔΟΣ"]}
    kept, record = deduplicated(texts, normalize=True, fuzzy=True)
    assert kept == {"a": ["a0", "a1"]}
    assert record["exact"] == 3


def test_counts_say_of_which_source_the_kept_document_is(deduplicated):
    sources = {"a": ["x", "y", "x"], "b": ["y", "z", "z"], "c": ["x", "z", "w"]}
    _, record = deduplicated(sources)
    assert [record["sources"][name]["duplicate_of"] for name in "abc"] == [{"a": 1}, {"a": 1, "b": 1}, {"a": 1, "b": 1}]
    assert [record["sources"][name]["documents"] for name in "abc"] == [2, 1, 1]


def test_dropped_documents_are_written_aside_with_what_was_kept(deduplicated, tmp_path):
    words = [f"word{k}" for k in range(60)]
    long, near = " ".join(words), " ".join([*words[:59], "other"])
    sources = {"a": ["x", long, "é"], "b": ["x", near, near, "é"], "c": ["new"]}
    kept, record = deduplicated(sources, keep_dropped=True, fuzzy=True, minhash=MinhashConfig(threshold=0.8, bands=40))
    assert kept == {"a": ["a0", "a1", "a2"], "b": [], "c": ["c0"]}
    assert (record["exact"], record["near"]) == (3, 1)
    rows = pq.read_table(tmp_path / "unique" / "dropped" / "b-00000.parquet").to_pylist()
    assert [(row["id"], row["reason"], row["duplicate_of"], row["duplicate_of_source"]) for row in rows] == [
        ("b0", "exact", "a0", "a"),
        ("b1", "near", "a1", "a"),
        ("b2", "exact", "a1", "a"),
        ("b3", "exact", "a2", "a"),
    ]
    assert [row["text"] for row in rows] == sources["b"]
    assert [path.name for path in (tmp_path / "unique" / "dropped").iterdir()] == ["b-00000.parquet"]


def test_a_source_without_documents_changes_nothing(deduplicated):
    assert deduplicated({"a": [], "b": ["x", "x"]}, fuzzy=True)[0] == {"a": [], "b": ["b0"]}
    assert deduplicated({"a": []}, fuzzy=True, keep_dropped=True)[1]["documents"] == 0


def test_default_settings_leave_the_fingerprint_of_the_stage_as_it_was():
    assert DedupConfig().settings() == {}
    assert DedupConfig(fuzzy=True).settings()["minhash"]["bands"] == 20


def config_file(tmp_path: Path, corpus: Path, dedup: dict) -> str:
    sources = {"text": {"class_path": "Text", "init_args": {"files": [f"{corpus}/*.txt"]}}}
    file = tmp_path / "data.yaml"
    file.write_text(yaml.safe_dump({"output": str(tmp_path / "out"), "sources": sources, "dedup": dedup}))
    return str(file)


def test_the_verb_prints_the_threshold_that_bands_and_rows_give(corpus, tmp_path, capsys):
    file = config_file(tmp_path, corpus, {"fuzzy": True, "minhash": {"bands": 20, "rows": 5}})
    assert main(["dedup", "--config", file]) == 0
    printed = capsys.readouterr().out
    assert "20 bands of 5 hashes" in printed
    assert "= 0.549" in printed  # (1/20)^(1/5)
    assert "0.5493 band threshold" in printed
    assert main(["dedup", "--config", file]) == 0
    assert "unchanged" in (again := capsys.readouterr().out)
    assert "0.5493 band threshold" in again
    # The signatures of GPT-3 (Brown et al. 2020, appendix A) have 10 hashes.
    options = ["--dedup.minhash.bands", "10", "--dedup.minhash.rows", "1", "--dedup.minhash.threshold", "0.5"]
    assert main(["dedup", "--config", file, *options]) == 0
    assert "= 0.100" in capsys.readouterr().out
    assert read_json(tmp_path / "out" / "unique" / "stage.json")["record"]["threshold"] == 0.5


@pytest.mark.parametrize(
    ("minhash", "sentence"),
    [
        ({"bands": 0}, "dedup.minhash.bands is 0: it has to be at least 1"),
        ({"ngram": -1}, "dedup.minhash.ngram is -1"),
        ({"bands": 5000, "rows": 5000}, "a signature has at most"),
        ({"threshold": 1.5}, "dedup.minhash.threshold is 1.5: a similarity is above 0 and at most 1"),
        ({"threshold": 0}, "dedup.minhash.threshold is 0"),
    ],
)
def test_settings_that_make_no_sense_are_one_sentence(corpus, tmp_path, capsys, minhash, sentence):
    assert main(["dedup", "--config", config_file(tmp_path, corpus, {"minhash": minhash})]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1


PEAK = """
import sys, threading, time
from pathlib import Path
from data_prep import disk_arrays
from data_prep.dedup import DedupConfig, deduplicate

peak, done = 0, False

def watch():
    global peak
    while not done:
        lines = Path("/proc/self/status").read_text().splitlines()
        peak = max(peak, *(int(line.split()[1]) // 1024 for line in lines if line.startswith("RssAnon")))
        time.sleep(0.005)

disk_arrays.PART_BYTES = disk_arrays.BUFFER_BYTES = 2**21
threading.Thread(target=watch).start()
try:
    deduplicate({"a": Path(sys.argv[1])}, DedupConfig(fuzzy=True, keep_dropped=True), Path(sys.argv[2]))
finally:
    done = True
print(peak)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_corpus(tmp_path):
    """What is mapped from files is left out: the kernel takes it back when memory is wanted."""
    rng = np.random.default_rng(1)
    words = np.array([f"w{k}" for k in range(30_000)])
    peaks = []
    for millions_of_words in (3, 12):
        documents, target = (tmp_path / f"{name}{millions_of_words}" for name in ("documents", "unique"))
        documents.mkdir()
        target.mkdir()
        with DocumentWriter(documents, "a") as writer:
            for begin in range(0, millions_of_words * 20_000, 5_000):
                texts = [" ".join(row) for row in words[rng.integers(0, len(words), (2_500, 50))]]
                texts = [*texts, *(text.replace("w1", "x1", 1) for text in texts)]
                ids = [str(begin + k) for k in range(len(texts))]
                writer.add(pa.record_batch({"id": ids, "text": texts}))
        done = subprocess.run(
            [sys.executable, "-c", PEAK, documents, target], check=True, stdout=subprocess.PIPE, text=True
        )
        peaks.append(int(done.stdout.splitlines()[-1]))
    assert peaks[1] < 1.15 * peaks[0], peaks
