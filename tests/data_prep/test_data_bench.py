"""The verb `bench`: what its repeats of a corpus are, and that what it says makes sense. Not how fast anything is."""

import json
import os
import re
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pyarrow as pa
import pytest
from rich.console import Console

from data_prep.bench import command, options, whole_run
from data_prep.bench.corpora import Corpus, read_file
from data_prep.bench.options import BenchOptions
from data_prep.bench.process import Done
from data_prep.bench.repeats import KEPT, Repeats
from data_prep.bench.report import apartness, as_json, print_rows, print_runs
from data_prep.bench.rounds import Row, fastest, on_one_core
from data_prep.bench.whole_run import StageCost, WholeRun
from data_prep.cli import main
from data_prep.files import InputError

WORD = re.compile(r"[0-9A-Za-z_\u0080-\U0010ffff]+")


@pytest.fixture(scope="module")
def corpus(real_file) -> Corpus:
    return read_file(real_file("lm/wiki_vital_en.train.txt.gz")).sample(1e6)


@pytest.fixture(scope="module")
def own_corpus() -> Corpus:
    """Code, marks, several alphabets, an empty line, and words that none other has."""
    texts = [f"def f{k}(x):\n    return x + {k}\n\n— größe_{k} “中文{k}”, Ж{k}!\n" * (k % 3 + 1) for k in range(400)]
    return Corpus("own", pa.array([f"o{k}" for k in range(400)]), pa.array(texts))


def texts_of(repeats: Repeats, number: int) -> dict[str, str]:
    rows = [row for batch in repeats.repeat(number) for row in batch.to_pylist()]
    return {row["id"]: row["text"] for row in rows}


def test_the_first_repeat_is_the_corpus_itself_but_for_edited_copies(own_corpus):
    first = texts_of(Repeats(own_corpus), 0)
    originals = dict(zip(own_corpus.ids.to_pylist(), own_corpus.texts.to_pylist(), strict=True))
    assert {id.removesuffix("-0"): text for id, text in first.items() if id.endswith("-0")} == originals
    assert {id for id in first if not id.endswith("-0")} <= {f"{id}-0-edited" for id in originals}


@pytest.mark.parametrize("which", ["corpus", "own_corpus"])
def test_a_repeat_has_other_words_between_the_same_marks_and_spaces(which, request):
    chosen = request.getfixturevalue(which)
    repeated = texts_of(Repeats(chosen), 3)
    kept = changed = 0
    for id, text in zip(chosen.ids.to_pylist(), chosen.texts.to_pylist(), strict=True):
        other = repeated[f"{id}-3"]
        assert WORD.sub("w", other) == WORD.sub("w", text)
        pairs = list(zip(WORD.findall(text), WORD.findall(other), strict=True))
        kept += sum(a == b for a, b in pairs)
        changed += sum(a != b for a, b in pairs)
    assert 0.1 < changed / (kept + changed) < 0.5


def test_in_a_repeat_equal_words_are_equal_and_the_most_frequent_stay(corpus):
    repeats = Repeats(corpus)
    repeated, spelled, counts = texts_of(repeats, 1), {}, Counter()
    for id, text in zip(corpus.ids.to_pylist(), corpus.texts.to_pylist(), strict=True):
        words = WORD.findall(text)
        counts.update(words)
        for word, other in zip(words, WORD.findall(repeated[f"{id}-1"]), strict=True):
            assert spelled.setdefault(word, other) == other
    assert all(spelled[word] == word for word, _ in counts.most_common(KEPT - 20))
    new = [other for other in spelled.values() if other not in counts]
    assert 0.02 < len(new) / len(spelled) < 0.08


def test_repeats_are_the_same_every_time_and_differ_from_one_another(corpus):
    second, fourth = (texts_of(Repeats(corpus), number) for number in (2, 4))
    assert texts_of(Repeats(corpus), 2) == second
    assert not set(second) & set(fourth)
    assert len(set(second.values()) & set(fourth.values())) < 0.001 * len(second)


def test_batches_have_the_size_that_was_asked_for_to_a_document(own_corpus):
    for size in (1, 5_000, 100_000, 300_000):
        batches = list(Repeats(own_corpus).batches(size))
        lengths = [len(text.encode()) for batch in batches for text in batch.column("text").to_pylist()]
        assert size - max(lengths) <= sum(lengths) < size + max(lengths)
        for batch in batches:
            batch.validate(full=True)


def test_files_are_divided_at_blank_lines_and_names_become_names_of_sources(tmp_path):
    (tmp_path / "my texts.v2.txt").write_text("a\n\nb\n\n\nc\r\n\r\n\r\n\r\nd\n")
    read = read_file(tmp_path / "my texts.v2.txt")
    assert (read.name, read.texts.to_pylist()) == ("my_texts", ["a\n\nb", "c", "d\n"])
    (tmp_path / "one.txt").write_text("a\n\nb\nc")
    assert read_file(tmp_path / "one.txt").texts.to_pylist() == ["a", "b\nc"]
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(InputError, match=r"latin.txt is not UTF-8 .* byte 3"):
        read_file(tmp_path / "latin.txt")
    (tmp_path / "empty.txt").write_text("\n\n\n")
    with pytest.raises(InputError, match="holds no text"):
        read_file(tmp_path / "empty.txt")


def test_a_sample_is_spread_evenly(own_corpus):
    sample = own_corpus.sample(own_corpus.bytes / 10)
    places = [int(id[1:]) for id in sample.ids.to_pylist()]
    assert len(places) == 40
    assert {b - a for a, b in pairwise(places)} <= {9, 10, 11}
    assert own_corpus.sample(1e9) is own_corpus


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--only", "tokenise"], "--only names 'tokenise': what can be measured is tokenize, gopher, signatures, run."),
        (["--megabytes", "0"], "--megabytes is 0.0: it has to be more than 0."),
        (["--packages"], "There is nothing to measure on: give --corpus, or leave --packages away."),
        (["--corpus", "nowhere.txt"], "--corpus names nowhere.txt, which is not a file"),
        (["--run-megabytes", "1e12"], "give another --folder, or less with --megabytes and --run-megabytes"),
    ],
)
def test_what_cannot_be_measured_is_said_in_a_sentence(arguments, sentence, capsys):
    assert main(["bench", *arguments]) == 2
    printed = capsys.readouterr().err
    assert sentence in printed
    assert printed.count("\n") == 1


def test_the_fastest_of_rounds_that_go_by_turns_counts():
    seconds = {"a": iter([3.0, 1.0, 2.0]), "b": iter([5.0, 6.0, 4.0])}
    order = []
    works = {name: lambda name=name: (order.append(name), next(seconds[name]))[1] for name in seconds}
    assert fastest(works, 3) == {"a": 1.0, "b": 4.0}
    assert order == ["a", "b"] * 3


def test_ratios_and_whether_they_are_met():
    row = Row("gopher", "c", "cold", "datatrove", 40.0, 2.0, 20)
    assert (row.ratio, row.met) == (20, True)
    assert Row("gopher", "c", "cold", "datatrove", 39.0, 2.0, 20).met is False
    absent = Row("gopher", "c", "cold", "datatrove", 39.0, None, 20, "datatrove is not installed")
    assert (absent.ratio, absent.met) == (None, None)
    assert "datatrove is not installed" in command.line(absent)


def finished(seconds: float, **record) -> Done:
    return Done(seconds, record)


def test_a_stage_reads_what_the_one_before_it_wrote():
    done = {
        "documents/a": finished(1, text_bytes=70, documents=7),
        "documents/b": finished(2, text_bytes=30, documents=3),
        "filtered/a": finished(1, text_bytes=40, documents=4),
        "filtered/b": finished(1, text_bytes=20, documents=2),
        "unique": finished(4, text_bytes=50, documents=5),
        "split": finished(1, totals={s: {"text_bytes": 25, "documents": n} for s, n in (("train", 3), ("test", 2))}),
        "tokenizer": finished(9, vocab_size=3),
        "tokens": finished(5, text_bytes=50, documents=5),
    }
    costs = whole_run.costs(done, 120)
    assert [(cost.name, cost.read_bytes, cost.written_bytes, cost.documents, cost.seconds) for cost in costs] == [
        ("collect", 120, 100, 10, 3),
        ("filter", 100, 60, 6, 2),
        ("dedup", 60, 50, 5, 4),
        ("split", 50, 50, 5, 1),
        ("tokenize", 50, 50, 5, 5),
    ]
    assert costs[2].rate == pytest.approx(60e-6 / 4)


def test_tables_and_json_say_what_is_met_and_nothing_of_it_where_there_is_too_little_text(capsys):
    stages = [StageCost("collect", 100, 90, 3, 1.0)]
    runs = [
        WholeRun(100_000_000, 10.0, 1.0, 10**9, 10**8, stages),
        WholeRun(10**9, 120.0, 1.0, 3 * 10**9, 10**8, stages),
    ]
    assert apartness(runs) == pytest.approx(-1 / 6)
    slower = replace(runs[0], seconds=11.0)
    assert command.fastest_of_each_size([slower, runs[1], runs[0]]) == runs
    rows = [Row("signatures", "docs", "20 x 6", "datatrove", 10.0, 1.0, 20)]
    found = as_json(rows, runs, True, {}, {})["whole_run"]
    assert (found["linear"], found["memory_met"]) == (False, False)
    assert as_json(rows, runs[:1], True, {}, {})["whole_run"]["memory_met"]
    assert as_json(rows, runs, False, {}, {})["whole_run"]["linear"] is None
    console = Console(width=100)
    print_rows(rows, console)
    print_runs(runs, console, True)
    printed = capsys.readouterr().out
    assert re.search(r"docs +20 x 6 +datatrove +10.0 +1.0 +10.00 +20 not met", printed)
    assert "MB/s of the larger run are 0.83 of the smaller's (wanted: 0.85 to 1.15, not met)" in printed
    assert "at most 3,000 MB of memory in a worker" in printed
    print_runs(runs, console, False)
    assert "met" not in capsys.readouterr().out


def cores() -> int:
    return len(os.sched_getaffinity(0))


def test_a_comparison_on_one_core_has_one_core():
    assert on_one_core(cores) == 1


def check(result: dict, measures: set[str], corpora: set[str]) -> None:
    rows = result["comparisons"]
    assert {row["measure"] for row in rows} == measures
    assert {row["corpus"] for row in rows} == corpora
    for row in rows:
        assert row["rate"] > 0
        assert row["peer_rate"] > 0 or "not installed" in row["note"]
        assert row["ratio"] == pytest.approx(row["rate"] / row["peer_rate"])
        assert (row["least"], row["met"]) == (None, None)
    assert result["machine"]["cores"] >= 1
    assert result["machine"]["versions"]["gigatoken"]


def test_tokenizing_is_measured_quickly_and_nothing_is_left_behind(own_corpus, tmp_path, capsys):
    file, work = tmp_path / "own.txt", tmp_path / "work"
    file.write_text("\n\n\n".join(own_corpus.texts.to_pylist()))
    arguments = ["--quick", "--only", "tokenize", "--packages", "--corpus", str(file), "--folder", str(work)]
    arguments += ["--json", str(tmp_path / "bench.json")]
    assert main(["bench", *arguments]) == 0
    result = json.loads((tmp_path / "bench.json").read_text())
    check(result, {"tokenize"}, {"own"})
    assert [(row["what"], row["beside"]) for row in result["comparisons"]] == [
        ("300 ids", beside) for beside in ("gigatoken", "gigatoken warm", "tokenizers")
    ]
    assert result["whole_run"]["runs"] == []
    assert list(work.iterdir()) == []
    assert "own: 400 documents" in capsys.readouterr().out


@pytest.mark.slow
def test_all_is_measured_on_the_python_documentation_and_on_a_file(real_file, tmp_path):
    pytest.importorskip("datatrove")
    file = real_file("lm/wiki_vital_en.train.txt.gz")
    result = command.bench(
        options.quick(BenchOptions(corpus=(file,), packages=("json", "email"), folder=tmp_path)), Console(quiet=True)
    )
    check(result, {"tokenize", "gopher", "signatures"}, {"python_docs", "wiki_vital_en"})
    small, large = result["whole_run"]["runs"]
    assert 8 < large["bytes"] / small["bytes"] < 12
    for run in (small, large):
        names = [stage["name"] for stage in run["stages"]]
        assert names == ["collect", "filter", "dedup", "decontaminate", "split", "tokenize"]
        collected, filtered, unique = run["stages"][:3]
        assert collected["read_bytes"] == run["bytes"] > collected["written_bytes"] == filtered["read_bytes"]
        # Deduplication has something to do and leaves most; so do the filters of encyclopedia.
        assert 0.4 * collected["documents"] < filtered["documents"] < collected["documents"]
        assert 0.85 * filtered["documents"] < unique["documents"] <= filtered["documents"]
        assert run["worker_peak_bytes"] < 2e9
        assert sum(stage["seconds"] for stage in run["stages"]) < run["seconds"]
    assert large["stages"][2]["documents"] < large["stages"][1]["documents"]
    contaminated = large["stages"][3]
    assert contaminated["written_bytes"] < contaminated["read_bytes"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_whole_run_that_fails_says_why_and_what_was_measured_stays(tmp_path, capsys):
    file = tmp_path / "short.txt"
    file.write_text("\n\n\n".join(f"{k} words are few here and some are {k * k}." for k in range(3000)))
    arguments = ["--quick", "--only", "signatures,run", "--packages", "--corpus", str(file), "--folder", str(tmp_path)]
    assert main(["bench", *arguments, "--json", str(tmp_path / "bench.json")]) == 2
    assert "The run that was to be measured failed: The filters drop every document" in capsys.readouterr().err
    assert len(json.loads((tmp_path / "bench.json").read_text())["comparisons"]) == 2
