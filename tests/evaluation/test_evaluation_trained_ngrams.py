"""The index of N-grams on disk: built once, whole or absent, bounded in memory, refused in a sentence."""

import os
import shutil
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from evaluation.runs_that_read import (
    SENTENCE,
    STEPS,
    N,
    at,
    compare,
    make_run,
    ngrams_by_hand,
    read_by_hand,
    texts,
    write_corpus,
    write_shards,
)

from data_prep.files import InputError
from data_prep.ngrams import find_words
from pipeline.evaluation import ngram_table, trained_ngrams, trained_text
from pipeline.evaluation.contamination import Contamination
from pipeline.evaluation.ngram_table import Grams, Table, write_table
from pipeline.inspection.provenance import Provenance


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return cache(lambda name: write_corpus(name, tmp_path_factory.mktemp(name)))


def test_an_index_is_built_once_and_a_damaged_one_again(corpora, tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", corpora("library"), STEPS)
    asked: list[tuple[int, int]] = []
    first = Contamination(at(run, STEPS), lambda *progress: asked.append(progress)).marks([*texts(30)], N)
    total = sum(len(part) for part in Provenance(run).data.parts)
    assert asked[-1] == (total, total)
    asked.clear()
    contamination = Contamination(at(run, STEPS), lambda *progress: asked.append(progress))
    assert contamination.marks([*texts(30)], N) == first
    assert not asked
    about = contamination.about()
    folder = next((run / "evaluation" / "ngrams").glob("*/steps-*"))
    assert about["indices"][str(N)] == {"ngrams": len(Table(folder)), "bytes": 20 * len(Table(folder))}
    with open(folder / "steps.bin", "ab") as file:
        file.truncate(100)
    assert Contamination(at(run, STEPS), lambda *progress: asked.append(progress)).marks([*texts(30)], N) == first
    assert asked
    assert Contamination(at(run, STEPS)).marks([*texts(30)], 9), "another N has an index of its own"
    assert {path.name[:8] for path in (run / "evaluation" / "ngrams").iterdir()} == {"8-grams-", "9-grams-"}


BUILD_AND_STALL = """
import sys, time
from pathlib import Path
from pipeline.evaluation import trained_ngrams
from pipeline.evaluation.trained_ngrams import reading_of
run = Path(sys.argv[1])
def stall(done, total):
    print("building", flush=True)
    time.sleep(60)
trained_ngrams.trained_ngrams(reading_of(run, run / "checkpoints" / "last.ckpt"), 8, stall)
"""


@pytest.mark.slow
def test_a_build_that_is_killed_leaves_nothing_under_the_final_name(corpora, tmp_path):
    run = make_run(tmp_path / "run", corpora("library"), STEPS)
    process = subprocess.Popen(
        [sys.executable, "-c", BUILD_AND_STALL, str(run)],
        stdout=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"building\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    folder = next((run / "evaluation" / "ngrams").iterdir())
    assert [path.name for path in folder.iterdir() if path.is_dir()] == [f".steps-0-{STEPS}-4f53cda1.partial"]
    expected = ngrams_by_hand(run, read_by_hand(run, STEPS))
    compare(Contamination(at(run, STEPS)), expected, STEPS)
    assert [path.name for path in folder.iterdir() if path.is_dir()] == [f"steps-0-{STEPS}-4f53cda1"]


def test_a_full_disk_is_told_in_a_sentence(corpora, tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", corpora("library"), STEPS)

    def full(folder, source):
        (folder / "hashes.bin").write_bytes(b"1")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trained_ngrams, "write_table", full)
    with pytest.raises(InputError, match="The disk that holds .* is full: .* make room"):
        Contamination(at(run, STEPS)).marks([SENTENCE], N)
    assert not [path for path in next((run / "evaluation" / "ngrams").iterdir()).iterdir() if path.is_dir()]


def test_a_run_that_cannot_be_written_to_is_refused_in_a_sentence(corpora, tmp_path):
    run = make_run(tmp_path / "run", corpora("library"), STEPS)
    (run / "evaluation").write_text("in the way")
    with pytest.raises(InputError, match="cannot be written to .*evaluation/ngrams/8-grams"):
        Contamination(at(run, STEPS)).marks([SENTENCE], N)


def test_a_run_whose_shards_are_gone_or_others_is_refused_in_a_sentence(corpora, tmp_path):
    tokens = shutil.copytree(corpora("library"), tmp_path / "tokens")
    run = make_run(tmp_path / "run", tokens, STEPS)
    Contamination(at(run, STEPS)).index(N)
    (tokens / "train" / "prose-00001.bin").unlink()
    with pytest.raises(InputError, match=r"trained on is not at hand.*prose-00001\.bin is missing.*data_prep run"):
        Contamination(at(run, STEPS))
    shutil.rmtree(tokens)
    with pytest.raises(InputError, match=r"trained on is not at hand.*no token manifest"):
        Contamination(at(run, STEPS))
    shutil.copytree(corpora("small_library"), tokens)
    with pytest.raises(InputError, match=r"fingerprint was .*, is "):
        Contamination(at(run, STEPS))
    (run / "config.yaml").unlink()
    with pytest.raises(InputError, match=r"There is no config\.yaml"):
        Contamination(at(run, STEPS))


def test_a_table_has_of_equal_hashes_the_earliest(tmp_path, monkeypatch):
    monkeypatch.setattr(ngram_table, "PART", 300)
    random = np.random.default_rng(0)
    hashes = random.choice(random.integers(0, 2**64, 800, dtype=np.uint64), 3000)
    hashes[:2] = 0, 2**64 - 1
    steps, places = random.integers(1, 40, 3000).astype(np.int32), np.arange(3000)
    rows = [slice(start, start + 77) for start in range(0, 3000, 77)]
    write_table(tmp_path, (Grams(hashes, steps, places).take(row) for row in rows))
    expected: dict[int, tuple[int, int]] = {}
    for hash, *value in zip(hashes.tolist(), steps.tolist(), places.tolist(), strict=True):
        expected[hash] = min(expected.get(hash, (99, 0)), (value[0], value[1]))
    table = Table(tmp_path)
    found = table.read(0, len(table))
    assert found.hashes.tolist() == sorted(expected)
    assert [*zip(found.steps.tolist(), found.places.tolist(), strict=True)] == [expected[h] for h in sorted(expected)]
    asked = np.concatenate([hashes[:5], random.integers(0, 2**64, 5, dtype=np.uint64)])
    assert table.find(asked)[0].tolist() == [0, 1, 2, 3, 4]
    empty = tmp_path / "empty"
    empty.mkdir()
    write_table(empty, iter(()))
    assert len(Table(empty)) == 0
    assert not len(Table(empty).find(asked)[0])


@pytest.mark.slow
def test_memory_does_not_grow_with_the_text(tmp_path, monkeypatch):
    """Four times the text, and the same peak, which is that of the parts and stretches."""
    monkeypatch.setattr(trained_text, "STRETCH", 1 << 13)
    monkeypatch.setattr(ngram_table, "PART", 1 << 14)
    find_words("Tables of characters are made once.")
    peaks = []
    for documents in (300, 1200):
        tokens = write_shards(tmp_path / f"tokens {documents}", {"own": texts(documents, seed=documents, longest=600)})
        run = make_run(tmp_path / f"run {documents}", tokens, 20, {"batch_tokens": 1 << 16, "total_tokens": 20 << 16})
        contamination = Contamination(at(run, 20))
        tracemalloc.start()
        found = len(contamination.index(N)[0])
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert found > 100 * documents
    assert peaks[1] < 1.1 * peaks[0]
