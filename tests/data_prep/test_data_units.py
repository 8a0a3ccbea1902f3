"""Units of work: whole or absent, found again by what went into them, tried again where they fail."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import yaml

from data_prep import sources, workers
from data_prep.cli import main
from data_prep.files import InputError
from data_prep.units import Output, Phase, Store, Unit, perform, total
from data_prep.workers import Job, Workers


def writes(text: str, target: Path) -> dict:
    (target / "sub").mkdir()
    (target / "sub" / "file").write_text(text)
    return {"letters": len(text)}


def fails(log: Path, target: Path) -> dict:
    (target / "half").write_text("half")
    with log.open("a") as stream:
        stream.write("x")
    raise ValueError("no such luck")


def dies(log: Path, times: int, target: Path) -> dict:
    """Kills its process so many times, and then goes well."""
    with log.open("a") as stream:
        stream.write("x")
    if len(log.read_text()) <= times:
        os.kill(os.getpid(), signal.SIGKILL)
    return writes("late", target)


def is_wrong(log: Path, target: Path) -> dict:
    with log.open("a") as stream:
        stream.write("x")
    raise InputError("x.jsonl line 3 is not JSON: mend it.")


def unit(name: str, call=None, **given) -> Unit:
    return Unit(name, call or partial(writes, name), name, **given)


def phase_of(*units: Unit, **given) -> Phase:
    return Phase(**{"name": "p", "version": 1, "settings": None, "units": units, **given})


def test_a_unit_is_found_by_what_it_reads_and_by_the_settings_and_by_nothing_else(tmp_path):
    store = Store(tmp_path)
    phase = phase_of(unit("a"), unit("b"))
    perform(phase.units[0], store.place(phase, phase.units[0]))
    found, missing = store.find(phase)
    assert missing is None
    assert found is not None
    assert found.record == {"letters": 1}
    assert (found.folder / "sub/file").read_text() == "a"
    assert found.files["sub/file"][0] == 1
    renamed = phase_of(Unit("another name", phase.units[0].call, "a", bytes=7))
    assert store.find(renamed)[0] == found
    for other in (replace(phase, version=2), replace(phase, settings={"n": 1}), phase_of(Unit("a", writes, "c"))):
        assert store.find(other)[0] is None


def test_a_unit_that_raises_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="no such luck"):
        perform(unit("a", partial(fails, tmp_path / "log")), tmp_path / "store" / "a")
    assert list((tmp_path / "store").iterdir()) == []


@pytest.mark.parametrize("harm", ["missing", "shorter", "no marker"])
def test_a_damaged_unit_is_done_again(tmp_path, harm):
    perform(unit("abc"), tmp_path / "a")
    file = tmp_path / "a/sub/file"
    if harm == "missing":
        file.unlink()
    elif harm == "shorter":
        os.truncate(file, 1)
    else:
        (tmp_path / "a/unit.json").unlink()
    assert Output.read(tmp_path / "a") is None
    perform(unit("abc"), tmp_path / "a")
    assert file.read_text() == "abc"


def test_the_same_unit_at_the_same_time_does_no_harm(tmp_path):
    both = threading.Barrier(2)

    def call(target: Path) -> dict:
        record = writes("same", target)
        both.wait()
        return record

    threads = [threading.Thread(target=perform, args=(unit("a", call), tmp_path / "a")) for _ in range(2)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    found = Output.read(tmp_path / "a")
    assert found is not None
    assert (found.folder / "sub/file").read_text() == "same"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_tidying_keeps_the_units_of_now(tmp_path):
    store = Store(tmp_path)
    for phase in (phase_of(unit("a"), unit("b")), phase_of(unit("a"), settings="old")):
        for each in phase.units:
            perform(each, store.place(phase, each))
    (tmp_path / "p" / ".x.partial").mkdir()
    now = phase_of(unit("a"), unit("b"))
    store.tidy(now)
    assert all(store.find(now))
    assert len(list((tmp_path / "p").iterdir())) == 2
    store.tidy(replace(now, scratch=True))
    assert list((tmp_path / "p").iterdir()) == []


def test_records_are_added_up():
    assert total([{"a": 1, "b": {"x": 2}, "c": [1]}, {"a": 2, "b": {"y": 1, "x": 1}, "c": [2]}]) == {
        "a": 3,
        "b": {"x": 3, "y": 1},
        "c": [1, 2],
    }


@pytest.fixture(params=["here", "in processes"])
def pool(request):
    with workers.workers(1 if request.param == "here" else 2) as made:
        yield made


def run_jobs(pool: Workers, folder: Path, *units: Unit) -> tuple[list[str], list[str]]:
    finished: list[str] = []
    failures = pool.run(
        [Job(each, folder / each.name) for each in units], lambda job, seconds: finished.append(job.unit.name), 0
    )
    return sorted(finished), [str(failure) for failure in failures]


def test_a_failing_unit_is_tried_three_times_and_holds_nothing_up(pool, tmp_path):
    log = tmp_path / "log"
    names = ["a", "b", "c", "d"]
    finished, failures = run_jobs(pool, tmp_path / "s", unit("bad", partial(fails, log)), *map(unit, names))
    assert finished == names
    assert log.read_text() == "xxx"
    assert len(failures) == 1
    assert re.fullmatch(r"bad: ValueError: no such luck \(test_data_units.py line \d+\) \(tried 3 times\)", failures[0])
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == names


def test_what_the_input_makes_wrong_is_not_tried_again(pool, tmp_path):
    log = tmp_path / "log"
    finished, failures = run_jobs(pool, tmp_path / "s", unit("bad", partial(is_wrong, log)), unit("a"))
    assert (finished, failures) == (["a"], ["x.jsonl line 3 is not JSON: mend it."])
    assert log.read_text() == "x"


@pytest.mark.parametrize(("times", "ends_well"), [(2, True), (9, False)])
def test_a_killed_worker_is_replaced_and_its_unit_tried_again(tmp_path, times, ends_well):
    log = tmp_path / "log"
    with workers.workers(2) as pool:
        units = [unit("bad", partial(dies, log, times)), *map(unit, "abcdef")]
        finished, failures = run_jobs(pool, tmp_path / "s", *units)
    assert log.read_text() == "xxx"
    assert finished == sorted([*"abcdef"] + ["bad"] * ends_well)
    if not ends_well:
        assert failures == [
            "bad: a process that worked on it was killed (signal 9), most likely for want of memory: give fewer `workers`"
            " (tried 3 times)"
        ]
    assert not list((tmp_path / "s").glob("bad")) or ends_well


def test_a_worker_killed_before_it_did_anything_is_replaced_too(monkeypatch, tmp_path):
    start, killed = workers.Worker.__init__, []

    def start_and_kill(worker, threads):
        start(worker, threads)
        if not killed:
            killed.append(worker.process.pid)
            os.kill(worker.process.pid, signal.SIGKILL)

    monkeypatch.setattr(workers.Worker, "__init__", start_and_kill)
    with workers.workers(2) as pool:
        assert run_jobs(pool, tmp_path / "s", *map(unit, "abcd")) == ([*"abcd"], [])
    assert killed


def test_what_the_system_refuses_is_said_in_its_words(tmp_path):
    def full(target: Path) -> dict:
        raise OSError(28, "No space left on device", "x")

    with workers.workers(1) as pool:
        _, [failure] = run_jobs(pool, tmp_path / "s", unit("a", full))
    assert failure.startswith("a: No space left on device: x (")


# -- a whole corpus


@pytest.fixture
def crawl(tmp_path, monkeypatch):
    """Four JSON line files, each of which is a unit, with repeats between them, and a configuration with every stage."""
    folder = tmp_path / "crawl"
    folder.mkdir()
    for number in range(4):
        write_lines(folder / f"{number}.jsonl", number)
    monkeypatch.setattr(sources, "PART_BYTES", 2**15)
    (tmp_path / "tests.txt").write_text(sentence(1, 5))
    config = {
        "output": str(tmp_path / "out"),
        "sources": {"web": {"class_path": "Jsonl", "init_args": {"files": [f"{folder}/*.jsonl"]}}},
        "filter": {"gopher_quality": {"min_words": 20}, "keep_dropped": True},
        "dedup": {"fuzzy": True, "keep_dropped": True},
        "decontaminate": {"files": [str(tmp_path / "tests.txt")], "most_documents": 1000},
        "split": {"validation": 0.1, "test": 0.1},
        "tokenizer": {"vocab_size": 300},
        "shards": {"tokens": 20_000},
    }
    path = tmp_path / "crawl.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def sentence(file: int, line: int) -> str:
    words = ["the", "of", "and", "to", "that", "have", "with", "river", "mountain", "valley", "stone", "bridge"]
    return " ".join(f"{words[(line * 7 + k * (file + 3)) % 12]}{'' if k % 3 else (line * k) % 97}" for k in range(60))


def write_lines(path: Path, file: int) -> None:
    rows = [sentence(file, line) for line in range(60)] + [sentence(0, line) for line in range(10)] + ["short"]
    path.write_text("".join(json.dumps({"text": f"{text}."}) + "\n" for text in rows))


def content(folder: Path) -> dict[str, bytes]:
    """What a run has made, but for the units behind it."""
    paths = [path for path in folder.rglob("*") if path.is_file() and ".units" not in path.parts]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def always_in_processes(monkeypatch) -> None:
    """However little there is to do."""
    do = Workers.run
    monkeypatch.setattr(Workers, "run", lambda pool, jobs, finished, *_: do(pool, jobs, finished, 0))


def run(config: Path, *options: str) -> int:
    return main(["run", "--config", str(config), *options])


def test_any_number_of_workers_makes_the_same_bytes_in_every_stage(crawl, tmp_path, monkeypatch):
    always_in_processes(monkeypatch)
    made = []
    for count in (1, 3):
        assert run(crawl, "--workers", str(count), "--output", str(tmp_path / f"out{count}")) == 0
        made.append(content(tmp_path / f"out{count}"))
    assert made[0].keys() == made[1].keys()
    assert made[0] == made[1]
    assert len([name for name in made[0] if name.startswith("filtered/web/web-")]) == 4


def test_a_further_file_is_all_that_is_read_and_filtered(crawl, tmp_path, capsys):
    assert run(crawl) == 0
    write_lines(tmp_path / "crawl/4.jsonl", 4)
    capsys.readouterr()
    assert run(crawl) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line[:1].isalpha()}
    assert lines["documents/web"].endswith("(4 of 5 units reused)")
    assert lines["filtered/web"].endswith("(4 of 5 units reused)")
    longer = content(tmp_path / "out")
    assert run(crawl, "--output", str(tmp_path / "anew")) == 0
    assert content(tmp_path / "anew") == longer


def test_a_bad_line_stops_its_unit_alone_and_mended_is_all_that_is_read(crawl, tmp_path, capsys):
    bad = tmp_path / "crawl/2.jsonl"
    good = bad.read_text()
    bad.write_text(good.replace("{", "[", 1))
    assert run(crawl) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {bad} line 1 is not JSON")
    assert error.count("\n") == 1
    other = tmp_path / "crawl/3.jsonl"
    other.write_text(other.read_text() + "no\n")
    assert run(crawl) == 2
    error = capsys.readouterr().err
    assert "2 units failed, all others are done" in error
    assert f"{bad} line 1 is" in error
    assert f"{other} line 72 is" in error
    bad.write_text(good)
    write_lines(other, 3)
    assert run(crawl) == 0
    assert re.search(r"documents/web .*\(2 of 4 units reused\)\n", capsys.readouterr().out)


def two_sources(crawl: Path, tmp_path: Path) -> Path:
    """The configuration with its files divided between two sources."""
    config = yaml.safe_load(crawl.read_text())
    kind = config["sources"]["web"]["class_path"]
    files = {"even": [0, 2], "odd": [1, 3]}
    config["sources"] = {
        name: {"class_path": kind, "init_args": {"files": [f"{tmp_path}/crawl/{k}.jsonl" for k in own]}}
        for name, own in files.items()
    }
    path = tmp_path / "two.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def test_sources_are_worked_on_side_by_side_and_share_the_time(crawl, tmp_path, monkeypatch, capsys):
    config = two_sources(crawl, tmp_path)
    given: list[list[str]] = []
    do = Workers.run

    def noted(pool, jobs, *more):
        given.append([job.unit.name for job in jobs])
        return do(pool, jobs, *more)

    monkeypatch.setattr(Workers, "run", noted)
    began = time.perf_counter()
    assert run(config) == 0
    passed = time.perf_counter() - began
    collected, filtered = given[:2]
    assert [Path(name).name for name in collected] == ["0.jsonl", "2.jsonl", "1.jsonl", "3.jsonl"]
    assert [Path(name).name for name in filtered] == [
        f"{name}-0000{k}.parquet" for name in ("even", "odd") for k in (0, 1)
    ]
    printed = capsys.readouterr().out
    lines = re.findall(r"^(\S+) +(\d+\.\d) s ", printed, re.MULTILINE)
    assert [name for name, _ in lines[:4]] == ["documents/even", "documents/odd", "filtered/even", "filtered/odd"]
    assert sum(float(seconds) for _, seconds in lines) <= passed + 0.05 * len(lines)


def test_a_source_that_fails_leaves_the_others_of_its_stage_finished(crawl, tmp_path, capsys):
    config = two_sources(crawl, tmp_path)
    bad = tmp_path / "crawl/1.jsonl"
    good = bad.read_text()
    bad.write_text(good.replace("{", "[", 1))
    assert run(config) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(f"error: {bad} line 1 is not JSON")
    assert [line.split()[0] for line in printed.out.splitlines()] == ["documents/even"]
    bad.write_text(good)
    assert run(config) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^documents/even +unchanged ", printed, re.MULTILINE)
    assert re.search(r"^documents/odd .*\(1 of 2 units reused\)$", printed, re.MULTILINE)


KILLING = """
import sys, threading
from data_prep import sources, workers
from data_prep.cli import main

every, delay = int(sys.argv[1]), float(sys.argv[2])
sources.PART_BYTES = 2**15
run, send = workers.Workers.run, workers.Worker.send
sent, timers = [], []

def send_and_kill(worker, job):
    sent.append(job.unit.name)
    # Fewer than the tries that a unit has, so that none can be given up.
    if len(sent) % every == 0 and len(timers) < workers.TRIES - 1:
        timers.append(threading.Timer(delay, worker.process.kill))
        timers[-1].start()
    return send(worker, job)

workers.Worker.send = send_and_kill
workers.Workers.run = lambda pool, jobs, finished, *_: run(pool, jobs, finished, 0)

if __name__ == "__main__":
    status = main(sys.argv[3:])
    print("killed", len(timers), file=sys.stderr)
    sys.exit(status)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("every", "delay"), [(1, 0.0), (2, 0.4), (5, 0.0), (6, 0.02), (9, 0.1)])
def test_workers_killed_while_a_run_goes_on_change_nothing(crawl, tmp_path, every, delay):
    """As they start, while they import, at once, in a unit or when they wait for the next one."""
    script = tmp_path / "killing.py"
    script.write_text(KILLING)
    root = Path(__file__).resolve().parents[2]
    assert run(crawl, "--workers", "1") == 0
    again = tmp_path / "again"
    command = [sys.executable, str(script), str(every), str(delay), "run", "--config", str(crawl), "--workers", "2"]
    environment = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run([*command, "--output", str(again)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.endswith("killed 2\n")
    assert content(again) == content(tmp_path / "out")


def test_parts_of_a_source_follow_from_its_files_alone_and_have_each_line_once(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "LEAST_PART_BYTES", 64)
    sizes = [3000, 10, 20, 5000, 1, 40]
    for number, count in enumerate(sizes):
        (tmp_path / f"{number}.jsonl").write_text("".join(f'{{"text": "{number} {k}"}}\n' for k in range(count)))
    source = sources.Jsonl(files=[f"{tmp_path}/*.jsonl"])
    parts = source.parts()
    assert 16 <= len(parts) <= 34
    assert max(part.bytes for part in parts) <= sources.part_bytes(
        sum(path.stat().st_size for path in tmp_path.iterdir())
    )
    found = [text for part in parts for batch in part.batches(1, {}) for text in batch.column("text").to_pylist()]
    assert found == [f"{number} {k}" for number, count in enumerate(sizes) for k in range(count)]
    assert [part.inputs() for part in source.parts()] == [part.inputs() for part in parts]
    whole = sources.Jsonl(files=[f"{tmp_path}/*.jsonl"], limit=5).parts()
    assert [part.ranges for part in whole] == [None]


@pytest.mark.parametrize(
    ("total", "expected"), [(0, 22), (2**26 - 1, 22), (2**27, 23), (3 * 2**27, 24), (2**30, 26), (2**40, 26)]
)
def test_parts_are_a_sixteenth_of_a_source_as_a_power_of_two(total, expected):
    assert sources.part_bytes(total) == 2**expected


def test_what_verify_says_of_a_changed_shard_mends_it(crawl, tmp_path, capsys):
    assert run(crawl) == 0
    whole = content(tmp_path / "out")
    shard = next((tmp_path / "out/tokens/train").glob("*.bin"))
    with shard.open("r+b") as stream:
        stream.write(b"\x07\x07")
    capsys.readouterr()
    assert main(["verify", str(tmp_path / "out")]) == 2
    printed = capsys.readouterr()
    folders = re.search(
        r"remove the folders (\S+) and (\S+), and run `python -m data_prep run`", printed.out + printed.err
    )
    assert folders
    for folder in folders.groups():
        assert Path(folder).is_relative_to(tmp_path / "out")
        shutil.rmtree(folder)
    assert run(crawl) == 0
    assert main(["verify", str(tmp_path / "out")]) == 0
    assert content(tmp_path / "out") == whole
