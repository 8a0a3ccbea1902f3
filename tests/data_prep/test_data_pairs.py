"""Pairs of a text and its target: read from tables as they stand, and carried whole from there to the shards."""

import gzip
import io
import os
import re
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
import yaml
from rich.console import Console

from data_prep import document, verification
from data_prep.cli import main
from data_prep.collect import collect
from data_prep.document import DocumentWriter
from data_prep.files import InputError
from data_prep.pair_sources import Pairs
from data_prep.run import run
from data_prep.shards import SPLITS, Manifest
from data_prep.sources import Text
from data_prep.tokenization import TokenizerConfig
from data_prep.tokenizer import Tokenizer

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "data"


def rows(source: Pairs) -> list[tuple[str, str]]:
    return [(text, target) for _, text, target in source.documents(1, {})]


def table(tmp_path: Path, content: str, name: str = "pairs.tsv") -> str:
    path = tmp_path / name
    path.write_bytes(gzip.compress(content.encode()) if name.endswith(".gz") else content.encode())
    return str(path)


READ = {
    "tsv": ('a "b"\tc \n\n \t\nd,e\tf\tg', {}, [('a "b"', "c "), ("d,e", "f")]),
    "line ends of Windows": ("a\tb\r\nc\td\r\n", {}, [("a", "b"), ("c", "d")]),
    "other columns": ("x\ta\tb\ny\tc\td\n", {"text_column": 2, "target_column": 1}, [("b", "a"), ("d", "c")]),
    "rest of the line": ("one W AH1 N\n", {"separator": " ", "columns": 2}, [("one", "W AH1 N")]),
    "characters": ("née\tN EY\n", {"text_form": "characters"}, [("n é e", "N EY")]),
    "both as characters": ("ab\tcd\n", {"text_form": "characters", "target_form": "characters"}, [("a b", "c d")]),
    "csv": ('"a, ""b""\nc",d\n\ne,f\n', {"separator": ",", "quotes": True}, [('a, "b"\nc', "d"), ("e", "f")]),
    "names": (
        "id,fr,en\n1,un,one\n",
        {"separator": ",", "header": True, "text_column": "en", "target_column": "fr"},
        [("one", "un")],
    ),
    "header with numbers": ("en\tfr\none\tun\n", {"header": True}, [("one", "un")]),
    "skipped lines": ("a\tb\n# c\td\ne(2)\tf\n", {"skip": r"^#|\(\d\)"}, [("a", "b")]),
    "bad lines": ("a\tb\nc\nd\te\n", {"skip_bad": True}, [("a", "b"), ("d", "e")]),
}


@pytest.mark.parametrize("chunk_bytes", [3, 2**20])
@pytest.mark.parametrize("name", ["pairs.tsv", "pairs.tsv.gz"])
@pytest.mark.parametrize(("content", "settings", "expected"), READ.values(), ids=READ)
def test_pairs_are_read_from(tmp_path, monkeypatch, content, settings, expected, name, chunk_bytes):
    monkeypatch.setattr("data_prep.sources.CHUNK_BYTES", chunk_bytes)
    assert rows(Pairs(files=[table(tmp_path, content, name)], **settings)) == expected


@pytest.mark.parametrize(
    ("content", "settings", "sentence"),
    [
        ("a\tb\n\nc\n", {}, r"pairs.tsv line 3 has 1 column\(s\), so none with number 1 .* `skip_bad: true`"),
        ("a,b\n", {}, "line 1 has 1 column"),
        ("a\tb\n", {"text_column": 4}, r"has 2 column\(s\), so none with number 4"),
        ('a,b\n"c"d,e\n', {"separator": ",", "quotes": True}, "pairs.tsv line 2 is not CSV .*`quotes: false`"),
        ("en\tde\n", {"header": True, "target_column": "fr"}, "no column 'fr', only en, de: set"),
    ],
)
def test_a_bad_table_is_refused_with_file_and_line(tmp_path, content, settings, sentence):
    with pytest.raises(InputError, match=sentence):
        rows(Pairs(files=[table(tmp_path, content)], **settings))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"separator": ""}, "`separator` is ''"),
        ({"separator": "||", "quotes": True}, "with `quotes` a single character"),
        ({"columns": 1}, "`columns` is 1: it must be at least 2"),
        ({"columns": 2, "quotes": True}, "does not go with `quotes`"),
        ({"text_column": "en"}, "`text_column` is 'en': set `header: true`"),
        ({"target_column": -1}, "`target_column` is -1: columns are counted from 0"),
        ({"skip": "("}, r"`skip` is '\(', which is no regular expression"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings, sentence):
    with pytest.raises(InputError, match=sentence):
        Pairs(files=["x"], **settings)


def test_collect_counts_what_it_left_out_and_its_parquet_opens_with_datasets(tmp_path):
    import datasets

    file = table(tmp_path, "a\tb\n# x\ty\nalone\n \tno text\nno target\t \nc\td\ne\tf\n")
    source = Pairs(files=[file], skip="^#", skip_bad=True, limit=2)
    record = collect("mine", source, 1, tmp_path / "out")
    counts = {name: record[name] for name in ("documents", "text_bytes", "empty", "skipped_lines", "bad_lines")}
    assert counts == {"documents": 2, "text_bytes": 4, "empty": 2, "skipped_lines": 1, "bad_lines": 1}
    found = datasets.load_dataset(
        "parquet", data_dir=str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert [[row[name] for name in ("text", "target", "source")] for row in map(dict, found)] == [
        ["a", "b", "mine"],
        ["c", "d", "mine"],
    ]


def test_a_fingerprint_of_pairs_tells_sides_apart(tmp_path):
    def written(folder: str, texts: list[str], targets: list[str]) -> str:
        with DocumentWriter(tmp_path / folder, "x") as writer:
            writer.add(pa.record_batch({"id": ["1", "2"], "text": texts, "target": targets}))
        return writer.record["fingerprint"]

    assert len({written("a", ["ab", "c"], ["d", "e"]), written("b", ["a", "bc"], ["d", "e"]),
                written("c", ["d", "e"], ["ab", "c"]), written("d", ["ab", "c"], ["de", ""])}) == 4  # fmt: skip


ENGLISH = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
FRENCH = ["un", "deux", "trois", "quatre", "cinq", "six", "sept", "huit", "neuf", "dix"]


def number(words: list[str], k: int) -> str:
    return " ".join(words[int(digit)] for digit in str(k))


@pytest.fixture
def pairs(tmp_path) -> list[tuple[str, str]]:
    """300 numbers in English and French; some texts have two targets."""
    found = [(number(ENGLISH, k), number(FRENCH, k)) for k in range(300)]
    return found + [(text, f"{target} !") for text, target in found[::10]]


@pytest.fixture
def pair_config(tmp_path, config_for, pairs):
    """Makes the configuration of those pairs; each stands twice in the file."""
    table(tmp_path, "".join(f"{text}\t{target}\n" for text, target in pairs + pairs[::-1]))

    def make(**parts):
        return config_for(tmp_path, **{"sources": {"numbers": Pairs(files=[f"{tmp_path}/pairs.tsv"])}, **parts})

    return make


def content(output: Path) -> dict[str, bytes]:
    return {
        path.relative_to(output).as_posix(): path.read_bytes()
        for path in output.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def test_every_pair_is_in_one_split_with_both_sides_whole(pair_config, prepare, pairs, tmp_path):
    printed = prepare(pair_config())
    assert f"{len(pairs)} duplicates" in printed
    manifest = Manifest.load(tmp_path / "out" / "tokens")
    assert manifest.pairs
    tokenizer = Tokenizer.load(manifest.folder)
    places: dict[str, set[str]] = {}
    found = []
    for split in SPLITS:
        reader = manifest.open(split)
        for source, target in reader.gather_pairs(range(reader.pairs)):
            for side in (source, target):
                assert np.flatnonzero(side == tokenizer.end_of_text).tolist() == [len(side) - 1]
            found.append((tokenizer.decode(source[:-1]), tokenizer.decode(target[:-1])))
            places.setdefault(found[-1][0], set()).add(split)
    assert sorted(found) == sorted(pairs)
    assert all(len(splits) == 1 for splits in places.values()), "all targets of a text share its split"
    sizes = [shard.text_bytes for shards in manifest.splits.values() for shard in shards]
    assert sum(sizes) == sum(len(text) + len(target) for text, target in pairs)


def test_the_tokenizer_is_trained_on_both_sides(pair_config, prepare, tmp_path):
    prepare(pair_config(tokenizer=TokenizerConfig(kind="word", vocab_size=300)), "tokenizer")
    tokenizer = Tokenizer.load(tmp_path / "out" / "tokenizer")
    assert tokenizer.vocab_size == len({*ENGLISH, *FRENCH, "!", "<unk>", "<eos>", "<|endoftext|>"})
    assert tokenizer.decode(tokenizer.encode("eight quatre !")) == "eight quatre !"


def test_pairs_prepared_again_are_unchanged_and_elsewhere_the_same_bytes(pair_config, prepare, tmp_path):
    prepare(pair_config())
    assert all("unchanged" in line for line in prepare(pair_config(workers=2)).splitlines())
    prepare(pair_config(output=str(tmp_path / "there")))
    assert content(tmp_path / "out") == content(tmp_path / "there")


@pytest.mark.parametrize("stage", ["documents/numbers", "unique", "split", "tokenizer", "tokens"])
def test_pairs_interrupted_in_any_stage_end_with_the_same_bytes(pair_config, prepare, tmp_path, monkeypatch, stage):
    from data_prep import stages

    prepare(pair_config(output=str(tmp_path / "whole")))
    write = stages.write_json

    def stop(path: Path, marker: dict) -> None:
        if marker["stage"] == stage:
            raise KeyboardInterrupt
        write(path, marker)

    monkeypatch.setattr(stages, "write_json", stop)
    with pytest.raises(KeyboardInterrupt):
        run(pair_config(), "tokenize", Console(file=open(os.devnull, "w")))
    monkeypatch.undo()
    assert not (tmp_path / "out" / stage).exists()
    prepare(pair_config())
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_pairs_and_plain_text_do_not_make_one_corpus(pair_config, corpus):
    sources = {"numbers": Pairs(files=["pairs.tsv"]), "book": Text(files=["book.txt"])}
    with pytest.raises(InputError, match="Source 'numbers' gives pairs and source 'book' gives plain text"):
        pair_config(sources=sources)


def test_verify_reads_both_sides(pair_config, prepare, tmp_path, capsys):
    prepare(pair_config())
    assert main(["verify", str(tmp_path / "out")]) == 0
    assert "pairs equal their text\n" in capsys.readouterr().out
    folder = tmp_path / "out" / "split" / "test"
    (batch,) = document.read(folder, "numbers")
    ids, texts, targets = (batch.column(name) for name in ("id", "text", "target"))
    with DocumentWriter(folder, "numbers") as writer:
        writer.add(pa.record_batch({"id": ids, "text": texts, "target": pa.array([*targets.to_pylist()[:-1], "x"])}))
    with pytest.raises(InputError, match="of split test .* does not decode to its text"):
        verification.verify(tmp_path / "out", Console(file=io.StringIO()))


def test_verify_finds_a_pair_without_the_end_of_its_source(pair_config, prepare, tmp_path):
    prepare(pair_config())
    folder = tmp_path / "out" / "tokens"
    manifest = Manifest.load(folder)
    shard = manifest.splits["train"][0]
    tokens = np.fromfile(folder / f"{shard.file}.bin", "<u2")
    (end, *_) = np.flatnonzero(tokens == manifest.end_of_text)
    tokens[[end - 1, end]] = tokens[[end, end - 1]]
    tokens.tofile(folder / f"{shard.file}.bin")
    (problem,) = verification.token_problems(manifest, "train")
    assert re.search(r"texts, two a pair, (\d+) of which end in end-of-text", problem)


def test_inspect_shows_both_sides_of_a_pair(pair_config, prepare, tmp_path, capsys):
    prepare(pair_config())
    row = document.read_one(tmp_path / "out" / "split" / "train", "numbers", 7)
    assert row is not None
    assert main(["inspect", str(tmp_path / "out"), "--document", "7"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert row["id"] in printed[0]
    assert [line for line in printed if line in (row["text"], row["target"])] == [row["text"], row["target"]]
    assert main(["inspect", str(tmp_path / "out")]) == 0
    assert "numbers" in capsys.readouterr().out


def test_a_mistake_in_a_pair_source_is_one_sentence_and_status_2(tmp_path, capsys):
    source = {"class_path": "Pairs", "init_args": {"files": [table(tmp_path, "a b\n")], "text_column": "en"}}
    config = tmp_path / "data.yaml"
    config.write_text(yaml.safe_dump({"output": str(tmp_path / "out"), "sources": {"mine": source}}))
    for arguments, sentence in (([], "`header: true`"), (["--sources.mine.text_column", "0"], "line 1 has 1 column")):
        assert main(["run", "--config", str(config), *arguments]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert sentence in error


def shipped(name: str, tmp_path: Path, monkeypatch, *arguments: str) -> Manifest:
    """Run a configuration that ships, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    assert main(["run", "--config", str(CONFIGS / f"{name}.yaml"), *arguments]) == 0
    assert main(["verify", f"data/{name}"]) == 0
    return Manifest.load(f"data/{name}/tokens")


def put(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(text, encoding="utf-8")


def test_the_translation_config_takes_real_pairs(real_text, tmp_path, monkeypatch):
    text = real_text("translation/python-docs.en-fr.tsv.gz")
    put(tmp_path, "corpus/pairs.tsv", text)
    columns = ["--sources.pairs.text_column", "1", "--sources.pairs.target_column", "2"]
    manifest = shipped("translation", tmp_path, monkeypatch, *columns)
    assert sum(manifest.open(split).pairs for split in SPLITS) == 21_148
    expected = {tuple(line.split("\t")[1:]) for line in text.splitlines()}
    tokenizer = Tokenizer.load(manifest.folder)
    reader = manifest.open("test")
    for sides in reader.gather_pairs(range(0, reader.pairs, 10)):
        assert tuple(tokenizer.decode(side[:-1]) for side in sides) in expected


def test_the_phoneme_config_takes_real_words(real_text, tmp_path, monkeypatch):
    text = real_text("seq2seq/cmudict.dict.gz")
    put(tmp_path, "corpus/cmudict.dict", text)
    manifest = shipped("phonemes", tmp_path, monkeypatch)
    tokenizer = Tokenizer.load(manifest.folder)
    spoken = dict(line.split(" ", 1) for line in text.splitlines() if "(" not in line and "#" not in line)
    assert sum(manifest.open(split).pairs for split in SPLITS) == len(spoken)
    reader = manifest.open("validation")
    for letters, phonemes in reader.gather_pairs(range(200)):
        word = tokenizer.decode(letters[:-1]).replace(" ", "")
        assert tokenizer.decode(phonemes[:-1]) == spoken[word]
        assert len(letters) == len(word) + 1


def test_the_sentiment_config_takes_real_sentences_and_every_label_is_there(real_file, tmp_path, monkeypatch):
    with zipfile.ZipFile(real_file("sentiment/sentence_polarity.zip")) as archive:
        lines = [
            f"{sentence}\t{label}\n"
            for label, suffix in (("negative", "neg"), ("positive", "pos"))
            for sentence in archive.read(f"sentence_polarity/rt-polarity.{suffix}").decode("latin-1").splitlines()
        ]
    put(tmp_path, "corpus/sentences.tsv", "".join(lines))
    manifest = shipped("sentiment", tmp_path, monkeypatch)
    tokenizer = Tokenizer.load(manifest.folder)
    labels = []
    for split in SPLITS:
        reader = manifest.open(split)
        labels += [tokenizer.decode(label[:-1]) for _, label in reader.gather_pairs(range(reader.pairs))]
    assert sorted(labels) == ["negative"] * 5331 + ["positive"] * 5331


def test_a_quoted_csv_is_read_as_pyarrow_reads_it(real_text, tmp_path):
    content = real_text("nli/snli.dev.csv.gz")
    source = Pairs(
        files=[table(tmp_path, content, "snli.csv")], separator=",", quotes=True, header=True,
        text_column="premise", target_column="hypothesis",
    )  # fmt: skip
    expected = pyarrow.csv.read_csv(io.BytesIO(content.encode())).to_pylist()
    assert rows(source) == [(row["premise"], row["hypothesis"]) for row in expected]


def test_the_ptb_config_keeps_every_line_in_its_place(tmp_path, monkeypatch, capsys):
    lines = {
        "train": [" the cat sat \n", " the cat sat \n", "\n", " a <unk> ran \n"],
        "valid": [" the dog sat \n"],
        "test": [" a cat ran \n", " the cat sat \n"],
    }
    for name, some in lines.items():
        put(tmp_path, f"data/ptb-raw/ptb.{name}.txt", "".join(some))
    manifest = shipped("ptb", tmp_path, monkeypatch)
    assert "as far as this tokenizer keeps it" in capsys.readouterr().out
    tokenizer = Tokenizer.load(manifest.folder)
    for split, name in zip(SPLITS, lines, strict=True):
        reader = manifest.open(split)
        text = "".join(lines[name]).replace(" dog ", " <unk> ")
        assert reader.documents == 1
        assert len(reader) == len(text.split()) + text.count("\n") + 1
        decoded = tokenizer.decode(reader.document(0)[:-1])
        assert decoded == "\n".join(" ".join(line.split()) for line in text.split("\n"))
    assert manifest.vocab_size == len({"the", "cat", "sat", "a", "ran", "<unk>", "<eos>", "<|endoftext|>"})


def test_the_ptb_config_gives_wikitext_ten_thousand_types(real_text, tmp_path, monkeypatch):
    text = real_text("lm/wikitext2.valid.tokens.gz")
    for name in ("train", "valid", "test"):
        put(tmp_path, f"data/ptb-raw/ptb.{name}.txt", text if name == "train" else text[:20_000])
    manifest = shipped("ptb", tmp_path, monkeypatch)
    assert manifest.vocab_size == 10_001
    assert manifest.tokens("train") == 217_646 + 1
