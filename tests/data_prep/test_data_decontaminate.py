"""Decontamination against cases that can be counted by hand, and against a plain search a word at a time."""

import gzip
import json
import re
import string
import subprocess
import sys
import unicodedata
from collections import Counter
from dataclasses import replace
from pathlib import Path
from pydoc_data.topics import topics

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from data_prep import document
from data_prep.cli import main
from data_prep.collisions import TestNgrams
from data_prep.configuration import DataConfig
from data_prep.cutting import whole_id
from data_prep.decontaminate import DecontaminateConfig, decontaminate
from data_prep.document import DocumentWriter
from data_prep.files import InputError
from data_prep.pair_sources import Pairs
from data_prep.sources import Source
from data_prep.test_sets import file_examples, local_test_files, unread_files

PASSAGE = "one two three four five six seven eight nine ten eleven twelve thirteen"


def filler(characters: int) -> str:
    """So many characters of words that no test has, with white space at both ends."""
    return (" " + "lorem ipsum dolor sit amet " * (characters // 27 + 1))[: characters - 1] + " "


@pytest.fixture
def clean(tmp_path):
    """Decontaminates texts with the ids 0, 1, ...; returns the documents, the removed rows and the record."""

    def call(texts: list[str], tests: str | list[str] = PASSAGE, **settings):
        for folder in ("in", "out"):
            for path in sorted((tmp_path / folder).rglob("*.parquet")):
                path.unlink()
            (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / "tests.jsonl").write_text(
            "".join(json.dumps(t) + "\n" for t in [tests] * isinstance(tests, str) or tests)
        )
        with DocumentWriter(tmp_path / "in", "a") as writer:
            for first in range(0, len(texts), 7):
                part = texts[first : first + 7]
                writer.add(pa.record_batch({"id": [str(first + k) for k in range(len(part))], "text": part}))
        config = DecontaminateConfig(files=[str(tmp_path / "tests.jsonl")], **settings)
        record = decontaminate({"a": tmp_path / "in"}, config, tmp_path / "out")
        rows = [row for batch in document.read(tmp_path / "out", "a") for row in batch.to_pylist()]
        assert {row.pop("source") for row in rows} <= {"a"}
        removed = [
            row for path in (tmp_path / "out/removed").glob("*.parquet") for row in pq.read_table(path).to_pylist()
        ]
        return rows, removed, record

    return call


def test_a_match_in_the_middle_goes_with_200_characters_on_each_side(clean):
    text = filler(500) + PASSAGE + filler(700)
    kept, removed, record = clean(["untouched", text])
    end = 500 + len(PASSAGE) + 200
    assert kept == [
        {"id": "0", "text": "untouched"},
        {"id": "1[0:300]", "text": text[:300]},
        {"id": f"1[{end}:{len(text)}]", "text": text[end:]},
    ]
    assert removed == [
        {
            "id": "1", "source": "a", "side": "text", "start": 300, "end": end, "reason": "match",
            "test_sets": ["tests.jsonl"], "words": [PASSAGE], "text": text[300:end],
        }
    ]  # fmt: skip
    counts = {"contaminated": 1, "dropped": 0, "removed_passages": 1, "removed_characters": end - 300}
    assert counts.items() <= record.items()
    assert record["sources"]["a"]["documents"] == record["documents"] == 3
    assert record["test_sets"]["tests.jsonl"] == {
        "examples": 1, "short_examples": 0, "ngrams": 1, "found_ngrams": 1, "ignored_ngrams": 0, "removed_passages": 1
    }  # fmt: skip


@pytest.mark.parametrize("place", ["start", "end"])
def test_a_match_at_an_end_of_the_document_leaves_one_piece(clean, place):
    text = PASSAGE + filler(500) if place == "start" else filler(500) + PASSAGE
    (kept,), (removed,), _ = clean([text])
    piece = (len(PASSAGE) + 200, len(text)) if place == "start" else (0, 300)
    assert kept == {"id": f"0[{piece[0]}:{piece[1]}]", "text": text[slice(*piece)]}
    assert removed["text"] == (text[: piece[0]] if place == "start" else text[300:])


def test_a_piece_of_199_characters_is_dropped_and_one_of_200_is_kept(clean):
    for before, count in ((399, 0), (400, 1)):
        kept, removed, _ = clean([filler(before) + PASSAGE + filler(100)])
        assert [len(row["text"]) for row in kept] == [200] * count
        assert [row["reason"] for row in removed] == ["short piece", "match"][count:]


def test_a_document_that_is_nothing_but_the_match_goes_whole(clean):
    kept, removed, record = clean([PASSAGE, "x"])
    assert [row["id"] for row in kept] == ["1"]
    assert removed[0]["text"] == PASSAGE
    assert (record["dropped"], record["documents"]) == (1, 1)


def test_a_short_document_without_a_match_stays(clean):
    kept, removed, _ = clean(["short"])
    assert kept == [{"id": "0", "text": "short"}]
    assert removed == []


def test_overlapping_ngrams_and_touching_windows_are_one_passage(clean):
    longer = f"{PASSAGE} fourteen fifteen"
    text = filler(600) + longer + filler(400) + PASSAGE + filler(600)
    kept, (removed,), _ = clean([text], [longer, PASSAGE])
    assert removed["start"] == 400
    assert removed["end"] == 600 + len(longer) + 400 + len(PASSAGE) + 200
    assert removed["words"] == [longer, PASSAGE]
    assert len(kept) == 2
    text = filler(600) + longer + filler(401) + PASSAGE + filler(600)
    kept, removed, _ = clean([text], [longer, PASSAGE])
    assert [row["reason"] for row in removed] == ["match", "short piece", "match"]
    assert removed[1]["end"] - removed[1]["start"] == 1


def test_ten_splits_are_kept_and_the_eleventh_drops_the_document(clean):
    for splits, kept_pieces in ((10, 11), (11, 0)):
        text = filler(700) + (PASSAGE + filler(700)) * splits
        kept, removed, record = clean([text])
        assert len(kept) == kept_pieces
        assert record["dropped"] == (not kept_pieces)
        assert Counter(row["reason"] for row in removed) == Counter(
            {"match": splits} | ({} if kept_pieces else {"split too often": 12})
        )


def test_an_ngram_in_10_documents_is_removed_and_one_in_11_is_ignored(clean, tmp_path):
    text = filler(300) + PASSAGE + filler(300) + PASSAGE  # Twice in a document counts once.
    kept, removed, record = clean([text] * 10)
    assert (len(kept), record["contaminated"]) == (0, 10)
    assert pq.read_table(tmp_path / "out/ignored.parquet").num_rows == 0
    kept, removed, record = clean([text] * 11)
    assert [row["text"] for row in kept] == [text] * 11
    assert removed == []
    assert pq.read_table(tmp_path / "out/ignored.parquet").to_pylist() == [{"words": PASSAGE, "documents": 11}]
    assert record["test_sets"]["tests.jsonl"]["ignored_ngrams"] == 1


def test_an_ignored_ngram_does_not_save_a_rare_one_beside_it(clean):
    longer = f"{PASSAGE} fourteen"
    kept, removed, record = clean([filler(300) + PASSAGE] * 11 + [longer + filler(600)], [longer])
    assert len(kept) == 12
    assert [(row["id"], row["words"]) for row in removed] == [("11", [longer.removeprefix("one ")])]
    assert record["test_sets"]["tests.jsonl"]["found_ngrams"] == 2


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("ONE, two-- (three) «four» five six seven\n\neight... nine\tten 'eleven' — twelve thirteen!", True),
        ("o'ne two three four five six seven eight nine ten eleven twelve thir-teen", True),
        ("one two three four five six seven eight nine ten eleven twelve", False),
        ("one two three four five six seven eight nine ten eleven twelve thirteenth", False),
        ("two one three four five six seven eight nine ten eleven twelve thirteen", False),
    ],
)
def test_case_and_punctuation_do_not_count_and_words_and_their_order_do(clean, text, found):
    _, removed, _ = clean([filler(500) + text + filler(500)])
    assert bool(removed) == found
    if found:
        assert (removed[0]["start"], removed[0]["end"]) == (300, 500 + len(text) + 200)


def test_words_of_other_scripts_are_cut_at_characters_not_bytes(clean):
    test = "Η ΟΔΥΣΣΕΥΣ 東京 は наука 😀 naïve Straße é ü İstanbul x y"
    text = filler(300) + "😀" * 200 + " " + test.replace("İ", "i").lower() + " " + "é" * 450
    kept, (removed,), _ = clean([text], test)
    assert [row["text"] for row in kept] == [text[:301], "é" * 251] == [filler(300) + "😀", "é" * 251]
    assert text[removed["start"] : removed["end"]] == removed["text"]


def test_no_ngram_runs_from_one_document_into_the_next(clean):
    words = PASSAGE.split()
    texts = [" ".join(words[:7]), " ".join(words[7:]), "", PASSAGE[:-1]]
    kept, removed, _ = clean(texts)
    assert [row["text"] for row in kept] == texts
    assert removed == []


def test_a_short_example_is_looked_for_only_where_least_words_allows_it(clean):
    eight = "one two three four five six seven eight"
    texts = [filler(500) + eight + filler(500), filler(500) + eight[:-6] + filler(500)]
    tests = [eight, "one two three four five six seven", PASSAGE]
    _, removed, record = clean(texts, tests)
    assert removed == []
    assert record["test_sets"]["tests.jsonl"]["short_examples"] == 2
    _, removed, record = clean(texts, tests, least_words=8)
    assert [row["words"] for row in removed] == [[eight]]
    assert record["test_sets"]["tests.jsonl"]["short_examples"] == 1


def brute_force(texts: list[str], tests: list[str]) -> list[str]:
    """The paper's rule word by word with sets and regular expressions."""

    def grams(text: str) -> list[tuple[tuple[str, ...], int, int]]:
        words = []
        for found in re.finditer(r"\S+", text):
            marks = (c for c in found[0] if not unicodedata.category(c).startswith("P") and c not in string.punctuation)
            if word := "".join(marks).lower():
                words.append((word, found.start(), found.end()))
        return [
            (tuple(w for w, _, _ in words[k : k + 13]), words[k][1], words[k + 12][2]) for k in range(len(words) - 12)
        ]

    wanted = {gram for test in tests for gram, _, _ in grams(test)}
    hits = [[each for each in grams(text) if each[0] in wanted] for text in texts]
    documents = Counter(gram for each in hits for gram in {gram for gram, _, _ in each})
    pieces = []
    for text, each in zip(texts, hits, strict=True):
        keep = [True] * len(text)
        for gram, start, end in each:
            if documents[gram] <= 10:
                start, end = max(0, start - 200), min(len(text), end + 200)
                keep[start:end] = [False] * (end - start)
        if all(keep):
            pieces.append(text)
            continue
        flags = "".join("x" if kept else "." for kept in keep)
        if len(re.findall(r"\.+", flags)) <= 10:
            pieces += [text[m.start() : m.end()] for m in re.finditer("x+", flags) if m.end() - m.start() >= 200]
    return pieces


def test_python_s_documentation_with_planted_passages_is_cut_as_by_brute_force(clean):
    texts = [topics[name] for name in sorted(topics)]
    tests = [" ".join(texts[k].split()[40:75]).upper() for k in range(0, len(texts), 9)]
    planted = [*texts]
    for k, test in enumerate(tests):  # The first in many documents, others in few, one often in a single one.
        for place in range(12 if k == 0 else 1 + k % 3):
            own = (k * 7 + place * 5) % len(texts)
            middle = planted[own].find(" ", len(planted[own]) // 3)
            planted[own] = f"{planted[own][:middle]} {test} {planted[own][middle:]}"
    planted[3] = "\n\n".join(part + texts[5][:900] for part in [tests[2]] * 14)
    kept, removed, record = clean(planted, tests)
    assert [row["text"] for row in kept] == brute_force(planted, tests)
    assert record["dropped"] >= 1
    assert record["test_sets"]["tests.jsonl"]["ignored_ngrams"] > 0
    # Pieces and removed passages make up the documents that were touched.
    spans: dict[str, list[tuple[int, str]]] = {}
    for row in removed:
        spans.setdefault(row["id"], []).append((row["start"], row["text"]))
    for row in kept:
        if whole_id(row["id"]) != row["id"]:
            start = int(row["id"].rpartition("[")[2].partition(":")[0])
            spans[whole_id(row["id"])].append((start, row["text"]))
    assert len(spans) > 5
    for id, parts in spans.items():
        assert "".join(text for _, text in sorted(parts)) == planted[int(id)]


def test_small_chunks_give_the_same_documents(clean, monkeypatch):
    texts = [topics[name] for name in sorted(topics)][:25]
    test = " ".join(texts[4].split()[20:60])
    expected = clean(texts, test)
    monkeypatch.setattr("data_prep.collisions.CHUNK_CHARACTERS", 1000)
    assert clean(texts, test) == expected


@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.gz", "t.json", "t.csv", "t.tsv", "t.parquet", "t.txt.gz"])
def test_every_kind_of_test_file_gives_the_text_of_its_examples(tmp_path, name):
    rows = [{"q": 'say "a", b', "n": 1, "a": ["x", "é"]}, {"q": "c d", "n": 2, "a": ["y"]}]
    flat = [{**row, "a": " ".join(row["a"])} for row in rows]
    kind = name.split(".")[1]
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / name)
    else:
        content = {
            "jsonl": "".join(json.dumps(row) + "\n" for row in rows),
            "json": json.dumps({"version": 1, "data": rows}),
            "csv": 'q,n,a\n"say ""a"", b",1,x é\nc d,2,y\n',
            "tsv": "q\tn\ta\n" + "".join("\t".join(map(str, row.values())) + "\n" for row in flat),
            "txt": 'say "a", b\nx é\nc d\ny\n',
        }[kind].encode()
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    found = [
        text.replace("x\né", "x é") for text in file_examples(tmp_path / name, [] if kind == "txt" else ["q", "a"])
    ]
    assert found == (['say "a", b\nx é\nc d\ny\n'] if kind == "txt" else ['say "a", b\nx é', "c d\ny"])
    (tmp_path / "README.md").touch()
    assert local_test_files([str(tmp_path)]) == {name: tmp_path / name}
    assert unread_files([str(tmp_path)]) == [tmp_path / "README.md"]
    if kind != "txt":
        assert 'say "a", b' in "\n".join(file_examples(tmp_path / name, []))
        with pytest.raises(InputError, match="has none of the columns nowhere"):
            list(file_examples(tmp_path / name, ["nowhere"]))


def test_a_group_of_harness_tasks_is_looked_for_by_the_text_of_its_test_and_validation_parts(clean, tmp_path):
    for split, words in (("train", "drilled"), ("test", "tested"), ("validation", "validated")):
        rows = [{"question": f"{words} {PASSAGE}", "answer": k} for k in range(3)]
        (tmp_path / f"{split}.json").write_text("\n".join(map(json.dumps, rows)))
    folder = tmp_path / "tasks"
    folder.mkdir()
    files = {split: str(tmp_path / f"{split}.json") for split in ("train", "test", "validation")}
    task = {
        "task": "own_task", "tag": "own_tag", "dataset_path": "json", "dataset_kwargs": {"data_files": files},
        "training_split": "train", "test_split": "test", "validation_split": "validation", "output_type": "generate_until",
        "doc_to_text": "{{question}}", "doc_to_target": "{{answer}}",
    }  # fmt: skip
    (folder / "own.yaml").write_text(yaml.safe_dump(task))
    words = " ".join(PASSAGE.split()[:-1])
    texts = [f"{word} {words}" + filler(500) for word in ("drilled", "tested", "validated")]
    _, removed, record = clean(texts, "no match here " * 13, tasks=["own_tag"], include=str(folder))
    assert [(row["id"], row["test_sets"]) for row in removed] == [("1", ["own_task"]), ("2", ["own_task"])]
    assert record["test_sets"]["own_task"]["examples"] == 6
    assert record["lm_eval"]


def pairs_config(tmp_path: Path) -> DataConfig:
    lines = [f"source {k} here\ttarget {k} there" for k in range(40)]
    lines += [f"source with\t{PASSAGE} there", f"{PASSAGE} in source\ttarget", f"{PASSAGE[:40]}\t{PASSAGE[40:]}"]
    (tmp_path / "pairs.tsv").write_text("\n".join(lines))
    (tmp_path / "test.txt").write_text(PASSAGE)
    sources: dict[str, Source] = {"pairs": Pairs(files=[str(tmp_path / "pairs.tsv")])}
    return DataConfig(
        str(tmp_path / "out"), sources, decontaminate=DecontaminateConfig(files=[str(tmp_path / "test.txt")]), workers=1
    )


def test_a_pair_with_a_match_on_either_side_is_dropped_whole(tmp_path, prepare):
    printed = prepare(pairs_config(tmp_path), "decontaminate")
    assert "41 documents" in printed
    assert "2 contaminated" in printed
    assert "passages removed" in printed
    (batch,) = document.read(tmp_path / "out/decontaminated", "pairs")
    assert not [row for row in batch.to_pylist() if PASSAGE in row["text"] or PASSAGE in row["target"]]
    removed = pq.read_table(tmp_path / "out/decontaminated/removed/pairs-00000.parquet").to_pylist()
    assert {(row["side"], row["reason"]) for row in removed} == {
        ("text", "match"), ("target", "match"), ("text", "rest of a pair"), ("target", "rest of a pair")
    }  # fmt: skip


def test_a_run_with_test_sets_trains_on_no_match_and_keeps_the_pieces_of_a_document_in_one_split(
    corpus, config_for, prepare, tmp_path
):
    for number in range(8):
        (corpus / f"{number:03d}.txt").write_text(f"{filler(900 + number)}{PASSAGE} x{number}{filler(900)}")
    (tmp_path / "test.txt").write_text(PASSAGE)
    config = config_for(corpus)
    before = prepare(config)
    assert "decontaminated" not in before
    config = replace(config, decontaminate=DecontaminateConfig(files=[str(tmp_path / "test.txt")]))
    after = prepare(config)
    assert [line.split()[0] for line in after.splitlines() if "unchanged" in line] == ["documents/text", "unique"]
    assert prepare(config).count("unchanged") == len(after.splitlines())
    places: dict[str, set[str]] = {}
    for split in ("train", "validation", "test"):
        for batch in document.read(tmp_path / "out/split" / split, "text"):
            for row in batch.to_pylist():
                assert PASSAGE not in row["text"]
                places.setdefault(whole_id(row["id"]), set()).add(split)
    assert len(places) == 120
    assert all(places[id] == {config.split.of(id)} for id in places)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--decontaminate.files", "[nowhere.jsonl]"], "No file matches 'nowhere.jsonl'"),
        (["--decontaminate.files", "[{0}/a.pdf]"], "is of no kind that can be read"),
        (["--decontaminate.files", "[{0}/empty]"], "has no test data"),
        (["--decontaminate.files", "[{0}/bad.jsonl]"], "bad.jsonl line 2 is not JSON"),
        (["--decontaminate.files", "[{0}/short.txt]"], "no example of 13 words or more"),
        pytest.param(
            ["--decontaminate.tasks", "[no_such_task]", "--decontaminate.include", "{0}/empty"],
            "there is no task 'no_such_task'", marks=pytest.mark.slow,
        ),
        (["--decontaminate.columns", "[question]"], "names no test set"),
        (["--decontaminate.n", "5"], "least_words 13"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence_and_status_2(corpus, tmp_path, capsys, arguments, sentence):
    (tmp_path / "a.pdf").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.jsonl").write_text('{"a": "b"}\n{"a"\n')
    (tmp_path / "short.txt").write_text("short")
    source = {"class_path": "Text", "init_args": {"files": [f"{corpus}/*.txt"]}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"output": str(tmp_path / "out"), "sources": {"text": source}}))
    arguments = [argument.format(tmp_path) for argument in arguments]
    assert main(["decontaminate", "--config", str(tmp_path / "c.yaml"), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert sentence in error


def test_memory_for_the_tests_is_as_stated():
    words = (f"w{k}" for k in range(200_000))
    tests = TestNgrams({"all": [" ".join(words)]}, 13, 13)
    held = tests.hashes.nbytes + tests._filter.nbytes + sum(each.nbytes for each in tests.members.values())
    assert held / len(tests) < 50


@pytest.mark.slow
def test_memory_does_not_grow_with_the_corpus(tmp_path):
    """Only with the tests' N-grams: a corpus five times as large takes no more than a tenth more, once there are row groups enough to be read ahead."""
    (tmp_path / "test.txt").write_text(" ".join(topics["assignment"].split()[:60]))
    program = """
import resource, sys
from pathlib import Path
from data_prep.decontaminate import DecontaminateConfig, decontaminate
from data_prep.process_memory import peak_resident_bytes
record = decontaminate({"a": Path(sys.argv[1])}, DecontaminateConfig(files=[sys.argv[2]]), Path(sys.argv[3]))
print(record["contaminated"], peak_resident_bytes() // 1024)
"""
    peaks = []
    for size in (3, 16):
        folders = [tmp_path / f"in{size}", tmp_path / f"out{size}"]
        [folder.mkdir() for folder in folders]
        with DocumentWriter(folders[0], "a") as writer:
            for k in range(40 * size):
                texts = [f"{text} {k}" for text in topics.values()]
                writer.add(pa.record_batch({"id": [f"{k}-{j}" for j in range(len(texts))], "text": texts}))
        command = [sys.executable, "-c", program, str(folders[0]), str(tmp_path / "test.txt"), str(folders[1])]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        assert printed[0] == "0"  # In more than ten documents, and so common.
        peaks.append(int(printed[1]))
    assert peaks[1] < 1.1 * peaks[0], peaks
