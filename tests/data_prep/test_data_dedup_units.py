"""Deduplication in units of work: what is done again and what is not, by how many processes, and what a killed one leaves."""

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from data_prep import dedup, disk_arrays, document
from data_prep.dedup import DedupConfig, deduplicating
from data_prep.document import DocumentFile, DocumentWriter
from data_prep.files import sha256_file
from data_prep.minhash import MinhashConfig
from data_prep.stages import Finished, Stage, perform
from data_prep.units import Phase, Steps
from data_prep.workers import workers as running

CONFIG = DedupConfig(fuzzy=True, keep_dropped=True)
PHASES = [
    *("digests", "equal", "distinct", "bands", "pairs", "compared", "sets", "similar"),
    *("joined", "other-pairs", "other-similar", "clusters", "documents"),
]
ALONE = {"distinct", "compared", "joined", "clusters"}


def texts_of(count: int, seed: int = 0) -> list[str]:
    """Of every eight texts, two repeat an earlier one and three are edits of one."""
    rng = np.random.default_rng(seed)
    originals: list[str] = []
    texts = []
    for k in range(count):
        if k % 8 in (1, 2, 4) or not originals:
            originals.append(" ".join(f"w{word}" for word in rng.integers(0, 5000, 60)))
            texts.append(originals[-1])
        else:
            words = originals[rng.integers(len(originals))].split()
            for place in rng.integers(0, 60, k % 8 % 3):
                words[place] = f"edit{rng.integers(1000)}"
            texts.append(" ".join(words))
    return texts


def documents(folder: Path, texts: list[str], first: int, bounds: list[int], source: str = "a") -> list[DocumentFile]:
    """The texts divided at these places into files, with ids by their places."""
    found = []
    for begin, end in zip([0, *bounds], [*bounds, len(texts)], strict=True):
        own = folder / f"{first + begin}-{first + end}"
        own.mkdir(parents=True, exist_ok=True)
        with DocumentWriter(own, source) as writer:
            ids = [str(first + k) for k in range(begin, end)]
            writer.add(pa.record_batch({"id": pa.array(ids), "text": pa.array(texts[begin:end])}))
        found += [DocumentFile(path, sha256_file(path)) for path in document.files(own, source)]
    return found


def changed(steps: Steps, change: Callable[[Phase], Phase]) -> Steps:
    try:
        phase = next(steps)
        while True:
            phase = steps.send((yield change(phase)))
    except StopIteration as end:
        return end.value


def logged(call: Callable, log: Path, phase: str, target: Path) -> dict:
    record = call(target)
    with open(log, "a") as stream:
        stream.write(f"{phase} {target.name.split('.')[1]}\n")
    return record


def counting(log: Path, phase: Phase) -> Phase:
    """The phase with units that are worth processes, however small, and write down that they were done."""
    units = [replace(unit, call=partial(logged, unit.call, log, phase.name)) for unit in phase.units]
    return replace(phase, units=units, least_bytes=0)


def run(files: dict[str, list[DocumentFile]], output: Path, workers: int = 1, config: DedupConfig = CONFIG) -> Finished:
    """The stage as a run has it; its units are written to the file `log`."""
    inputs = [[name, [file.digest for file in own]] for name, own in files.items()]
    change = partial(counting, output / "log")
    stage = Stage("unique", 1, config.settings(), inputs, lambda: changed(deduplicating(files, config), change))
    output.mkdir(exist_ok=True)
    with running(workers) as pool:
        [finished] = perform([stage], output, pool, Console(quiet=True))
        assert isinstance(finished, Finished)
        return finished


def units_done(output: Path) -> Counter[str]:
    """How many units of each phase were done since this was asked for last."""
    log = output / "log"
    lines = log.read_text().split("\n")[:-1] if log.exists() else []
    log.unlink(missing_ok=True)
    return Counter(line.split()[0] for line in lines)


def kept(finished: Finished, *names: str) -> list[str]:
    return [id for name in names for batch in document.read(finished.folder, name) for id in batch["id"].to_pylist()]


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


@pytest.fixture
def small_parts(monkeypatch):
    """Several parts of everything."""
    monkeypatch.setattr(disk_arrays, "PART_BYTES", 2**16)
    monkeypatch.setattr(dedup, "COMPARED_BYTES", 2**12)


@pytest.fixture
def two_sources(tmp_path) -> dict[str, list[DocumentFile]]:
    texts = texts_of(600)
    a = documents(tmp_path / "texts", texts[:400], 0, [150, 151, 300])
    return {"a": a, "b": documents(tmp_path / "texts", texts[400:], 400, [90], "b")}


def test_two_processes_write_the_same_bytes_as_one(two_sources, tmp_path, small_parts):
    one, two = (run(two_sources, tmp_path / f"by{count}", count) for count in (1, 2))
    assert contents(one.folder) == contents(two.folder)
    record = one.record
    assert min(record["exact"], record["near"]) > 50
    assert {"a": 0, "b": 0}.keys() == record["sources"]["b"]["duplicate_of"].keys()
    assert units_done(tmp_path / "by1") == (done := units_done(tmp_path / "by2"))
    assert [*done] == PHASES
    assert all(done[name] == 1 for name in ALONE)
    assert all(done[name] > 1 for name in {*PHASES} - ALONE - {"equal", "other-pairs", "other-similar"}), done


@pytest.mark.parametrize(
    "config", [CONFIG, DedupConfig(normalize=True), DedupConfig(fuzzy=True, minhash=MinhashConfig(verify=False))]
)
def test_how_texts_are_divided_into_files_changes_nothing_that_is_kept(tmp_path, small_parts, config):
    texts = texts_of(600)
    found = []
    for k, bounds in enumerate([[], [1, 2, 450, 500]]):
        files = {"a": documents(tmp_path / f"texts{k}", texts, 0, bounds)}
        finished = run(files, tmp_path / f"out{k}", config=config)
        rows = [
            row for path in sorted((finished.folder / "dropped").glob("*")) for row in pq.read_table(path).to_pylist()
        ]
        counts = {
            name: finished.record["sources"]["a"][name] for name in ("documents", "exact", "near", "duplicate_of")
        }
        found.append((kept(finished, "a"), rows, counts))
    assert found[0] == found[1]
    assert len(found[0][0]) < 500


def test_a_second_run_does_nothing_and_files_are_told_by_their_content(two_sources, tmp_path, small_parts):
    output = tmp_path / "out"
    first = run(two_sources, output)
    assert units_done(output)
    second = run(two_sources, output)
    assert second.seconds is None
    assert units_done(output) == Counter()
    # As when the folder is gone and only units are left: what is big and of no other use is done again.
    (output / "unique" / "stage.json").unlink()
    assert run(two_sources, output).output == first.output
    assert not units_done(output).keys() & {"digests", "bands", "documents"}


def test_one_more_file_is_the_only_one_whose_texts_are_worked_at(two_sources, tmp_path, small_parts):
    """Besides the sets of documents that are compared, which take too much room to be kept."""
    output = tmp_path / "out"
    before = kept(run(two_sources, output), "a", "b")
    units_done(output)
    more = documents(tmp_path / "texts", [*texts_of(600)[5:9], *texts_of(80, 1)], 600, [], "b")
    files = {"a": two_sources["a"], "b": [*two_sources["b"], *more]}
    after = run(files, output)
    done = units_done(output)
    assert {name: done[name] for name in ("digests", "bands", "documents")} == {
        "digests": 1,
        "bands": 1,
        "documents": 1,
    }
    assert done["sets"] == len(files["a"] + files["b"])
    assert kept(after, "a", "b")[: len(before)] == before
    assert after.output == run(files, tmp_path / "anew").output
    # Another threshold asks for other clusters of the same bands.
    run(files, output, config=replace(CONFIG, minhash=MinhashConfig(threshold=0.7)))
    assert not units_done(output).keys() & {"digests", "bands"}


def test_what_is_kept_of_a_file_that_comes_first_is_written_anew_only_where_it_changes(tmp_path):
    """A new first source changes all numbers of documents; what stays of the others does not hang on numbers."""
    texts = [" ".join(f"w{word}" for word in row) for row in np.random.default_rng(2).integers(0, 5000, (90, 40))]
    old = documents(tmp_path / "texts", texts[:60], 0, [20, 40], "b")
    output = tmp_path / "out"
    run({"a": documents(tmp_path / "few", ["x"], 100, []), "b": old}, output)
    units_done(output)
    finished = run({"a": documents(tmp_path / "many", [*texts[60:], texts[25]], 200, []), "b": old}, output)
    done = units_done(output)
    assert done["digests"] == 1
    assert done["bands"] == done["documents"] == 2  # Of the new file, and of the one that has text 25.
    assert finished.record["sources"]["b"]["duplicate_of"] == {"a": 1}


def test_intermediate_results_that_are_large_are_gone_when_the_stage_is_complete(two_sources, tmp_path):
    run(two_sources, tmp_path / "out")
    left = {path.parent.name for path in (tmp_path / "out" / ".units" / "unique").glob("*/*")}
    assert left == {"digests", "bands", "documents"}


def killed_once(call: Callable, mark: Path, target: Path) -> dict:
    """Ends its process in the middle of the work, with files half-written, the first time it is called."""
    if not mark.exists():
        mark.touch()
        call(target)
        for path in target.iterdir():
            os.truncate(path, path.stat().st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)
    return call(target)


def run_until_killed(texts: Path, output: Path, workers: int) -> None:
    """The whole run, in which one unit of each phase kills its process once."""

    def change(phase: Phase) -> Phase:
        last = phase.units[-1]
        victim = replace(last, call=partial(killed_once, last.call, output / f"{phase.name}.killed"))
        return counting(output / "log", replace(phase, units=[*phase.units[:-1], victim]))

    paths = sorted(texts.glob("*/*.parquet"), key=lambda path: int(path.parent.name.split("-")[0]))
    files = {name: [DocumentFile(p, sha256_file(p)) for p in paths if p.name.startswith(name)] for name in "ab"}
    inputs = [[name, [file.digest for file in own]] for name, own in files.items()]
    stage = Stage("unique", 1, CONFIG.settings(), inputs, lambda: changed(deduplicating(files, CONFIG), change))
    disk_arrays.PART_BYTES, dedup.COMPARED_BYTES = 2**16, 2**12
    with running(workers) as pool:
        perform([stage], output, pool, Console(quiet=True))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_process_killed_in_any_phase_costs_only_the_unit_that_it_was_at(two_sources, tmp_path, small_parts, workers):
    expected = run(two_sources, tmp_path / "undisturbed")
    done = units_done(tmp_path / "undisturbed")
    output = tmp_path / "out"
    output.mkdir()
    script = (
        "import sys; from pathlib import Path; from tests.data_prep.test_data_dedup_units import run_until_killed; "
        "run_until_killed(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))"
    )
    deaths = 0
    while code := subprocess.run([sys.executable, "-c", script, tmp_path / "texts", output, str(workers)]).returncode:
        assert code == -signal.SIGKILL
        deaths += 1
        assert deaths <= len(PHASES)
    # A worker is replaced; one unit alone is done by the run itself.
    assert deaths == (len(PHASES) if workers == 1 else sum(done[name] == 1 for name in PHASES))
    assert len(list(output.glob("*.killed"))) == len(PHASES)
    assert contents(output / "unique") == contents(expected.folder)
    assert units_done(output) == done
    assert not [*output.rglob("*.partial*")]
