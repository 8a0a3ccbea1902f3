"""Indexed data sets that another program wrote become a corpus: checked, counted, trained on, or refused with a way out."""

import json
import os
import pydoc_data.topics
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tiny_runs import GPT, losses, write_config

from data_prep.cli import main
from data_prep.corpus import open_corpus
from data_prep.foreign_names import origins
from data_prep.shards import Manifest
from data_prep.tokenizer import Tokenizer

CODES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 6: "<f8", 7: "<f4", 8: "<u2"}
END = 0
WORDS = ["the", "river", "äther", "falls", "on", "a", "stone", "and", "sings", "of", "rain"]


def write_indexed(base: Path, documents: list[list[list[int]]], code: int = 8, modes: bytes = b"") -> None:
    """A data set as Megatron-LM's IndexedDatasetBuilder writes it: a document is a list of sequences."""
    base.parent.mkdir(parents=True, exist_ok=True)
    sequences = [np.array(ids, CODES[code]) for document in documents for ids in document]
    base.with_name(f"{base.name}.bin").write_bytes(b"".join(ids.tobytes() for ids in sequences))
    offsets = np.cumsum([0, *(ids.nbytes for ids in sequences)])[:-1].astype("<i8")
    boundaries = np.cumsum([0, *map(len, documents)]).astype("<i8")
    with open(base.with_name(f"{base.name}.idx"), "wb") as stream:
        stream.write(b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, code, len(sequences), len(boundaries)))
        stream.write(np.array([len(ids) for ids in sequences], "<i4").tobytes())
        stream.write(offsets.tobytes() + boundaries.tobytes() + modes)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    noise = np.random.default_rng(0)
    return [f"Poem {k}: " + " ".join(noise.choice(WORDS, noise.integers(3, 90))) for k in range(200)]


@pytest.fixture(scope="module")
def vocabulary(texts, tmp_path_factory) -> Path:
    """The file of a byte-level tokenizer of 300 ids."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    Tokenizer.train(texts, 300).save(path)
    return path


@pytest.fixture(scope="module")
def documents(texts, vocabulary) -> list[list[list[int]]]:
    """The texts as Megatron-LM's preprocessing has them with --append-eod: by `tokenizers`, with nothing of ours."""
    reads = tokenizers.Tokenizer.from_file(str(vocabulary))
    return [[[*reads.encode(text).ids, END]] for text in texts]


@pytest.fixture
def adopt(vocabulary, capsys):
    def call(*arguments, status: int = 0) -> str:
        """What it prints; where it fails, its one line."""
        capsys.readouterr()
        if "--tokenizer" not in arguments:
            arguments = (*arguments, "--tokenizer", vocabulary)
        assert main(["adopt", *map(str, arguments)]) == status
        printed = capsys.readouterr()
        if status:
            assert printed.err.startswith("error: ")
            assert printed.err.count("\n") == 1
        return printed.err if status else printed.out

    return call


def decoded(folder: Path, split: str = "train") -> list[str]:
    manifest, tokenizer = open_corpus(folder)
    reader = manifest.open(split)
    assert all(reader.document(k)[-1] == END for k in range(reader.documents))
    return [tokenizer.decode(reader.document(k)[:-1]) for k in range(reader.documents)]


def verified(folder: Path) -> bool:
    return main(["verify", str(folder)]) == 0


@pytest.mark.parametrize("code", [4, 8])
def test_what_megatron_wrote_is_read_where_it_lies_and_as_links(tmp_path, adopt, texts, documents, code):
    write_indexed(tmp_path / "in" / "poems_text_document", documents, code)
    before = {file.name: file.read_bytes() for file in (tmp_path / "in").iterdir()}
    adopt(tmp_path / "in", "--output", tmp_path / "out")
    assert {file.name: file.read_bytes() for file in (tmp_path / "in").iterdir()} == before
    adopt(tmp_path / "in")
    for folder in (tmp_path / "in", tmp_path / "out"):
        assert decoded(folder) == texts
        assert verified(folder)
        assert main(["inspect", str(folder), "--histograms"]) == 0
        [shard] = Manifest.load(folder).splits["train"]
        assert (shard.source, shard.documents) == ("poems", 200)
        assert shard.text_bytes == sum(len(text.encode()) for text in texts)
    assert (tmp_path / "in/poems_text_document.bin").samefile(tmp_path / "out/train/poems-00000.bin")
    assert {name: (tmp_path / "in" / name).read_bytes() for name in before} == before


def test_shards_whose_manifest_is_lost_are_the_corpus_that_they_were(prepare, config_for, corpus, tmp_path, adopt):
    prepare(config_for(corpus))
    own = Manifest.load(tmp_path / "out/tokens")
    shutil.copytree(tmp_path / "out/tokens", tmp_path / "copy")
    (tmp_path / "copy/manifest.json").unlink()
    adopt(tmp_path / "copy", "--tokenizer", tmp_path / "out/tokens/tokenizer.json")
    found = Manifest.load(tmp_path / "copy")
    assert found.fingerprint == own.fingerprint
    assert found.splits == own.splits


def test_training_reads_adopted_files_as_the_corpus_they_are_copies_of(tmp_path, tokens_folder, adopt):
    own = Manifest.load(tokens_folder)
    for split, shards in own.splits.items():
        for shard in shards:
            for suffix in ("bin", "idx"):
                name = f"{split}_{shard.file.rpartition('/')[2]}_text_document.{suffix}"
                (tmp_path / "in").mkdir(exist_ok=True)
                shutil.copy(tokens_folder / f"{shard.file}.{suffix}", tmp_path / "in" / name)
    adopt(tmp_path / "in", "--tokenizer", tokens_folder)
    # The order of training follows from it.
    assert Manifest.load(tmp_path / "in").fingerprint == own.fingerprint
    found = losses(write_config(tmp_path / "config.yaml", tmp_path / "in", GPT))
    assert len(found) == 10
    assert found[-1] < found[0]
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["data"]["sources"][0]["kind"] == "IndexedTokens"


@pytest.mark.parametrize(("code", "dtype"), [(3, "uint16"), (5, "uint16"), (4, "int32")])
def test_sentences_become_one_document_and_other_types_a_type_of_shards(tmp_path, adopt, texts, documents, code, dtype):
    sentences = [[ids[:5], ids[5:9], ids[9:]] if k % 3 else [ids] for k, [ids] in enumerate(documents)]
    sentences.insert(7, [[]])
    write_indexed(tmp_path / "in" / "poems_text_sentence", sentences, code, modes=b"\0" * sum(map(len, sentences)))
    error = adopt(tmp_path / "in", status=2)
    assert "Give --output FOLDER" in error
    assert sorted(os.listdir(tmp_path / "in")) == ["poems_text_sentence.bin", "poems_text_sentence.idx"]
    assert "written anew" in adopt(tmp_path / "in", "--output", tmp_path / "out")
    assert decoded(tmp_path / "out") == texts
    assert verified(tmp_path / "out")
    manifest = Manifest.load(tmp_path / "out")
    assert manifest.dtype == dtype
    assert sum(shard.text_bytes for shard in manifest.shards("train")) == sum(len(text.encode()) for text in texts)


def test_documents_without_an_end_are_refused_and_get_one_where_asked_for(tmp_path, adopt, texts, documents):
    open_ends = [[ids[:-1]] if k % 2 else [ids] for k, [ids] in enumerate(documents)]
    write_indexed(tmp_path / "in" / "poems", open_ends)
    error = adopt(tmp_path / "in", status=2)
    assert "100 of 200 documents" in error
    assert "--append-end-of-text" in error
    assert "Give --output" in adopt(tmp_path / "in", "--append-end-of-text", status=2)
    adopt(tmp_path / "in", "--append-end-of-text", "--output", tmp_path / "out")
    assert decoded(tmp_path / "out") == texts
    assert verified(tmp_path / "out")


def test_documents_that_all_end_in_the_same_word_do_not_end_in_end_of_text(tmp_path, adopt, documents):
    write_indexed(tmp_path / "in" / "poems", [[[*ids[:-1], 20]] for [ids] in documents])
    assert "200 of 200 documents" in adopt(tmp_path / "in", status=2)


def test_the_vocabulary_of_gpt2_is_taken_as_it_was_published(tmp_path, adopt, real_file):
    write_indexed(tmp_path / "in" / "hello_text_document", [[[15496, 995, 50256]]] * 3)
    adopt(tmp_path / "in", "--tokenizer", real_file("gpt2-bpe/encoder.json"))
    manifest, tokenizer = open_corpus(tmp_path / "in")
    assert tokenizer.decode(manifest.open("train").document(2)[:-1]) == "Hello world"
    assert manifest.shards("train")[0].text_bytes == 3 * len("Hello world")
    assert verified(tmp_path / "in")


@pytest.mark.parametrize("append", [False, True])
def test_ends_inside_documents_are_refused_and_cut_where_asked_for(tmp_path, adopt, texts, documents, append):
    packed = [[[i for [ids] in documents[k : k + 4] for i in ids][: -1 if append else None]] for k in range(0, 200, 4)]
    write_indexed(tmp_path / "in" / "poems", packed)
    assert "end-of-text (id 0) inside" in adopt(
        tmp_path / "in", *["--append-end-of-text", "--output", tmp_path / "x"], status=2
    )
    assert not list(tmp_path.glob("*x*"))
    extra = ["--append-end-of-text"] if append else []
    adopt(tmp_path / "in", "--cut-at-end-of-text", *extra, "--output", tmp_path / "out")
    assert decoded(tmp_path / "out") == texts
    assert verified(tmp_path / "out")


def test_documents_of_two_texts_are_pairs_only_where_that_is_said(tmp_path, adopt, texts, documents):
    pairs = [[documents[k][0], documents[k + 1][0]] for k in range(0, 200, 2)]
    write_indexed(tmp_path / "in" / "pairs", pairs)
    assert "give --pairs" in adopt(tmp_path / "in", status=2)
    adopt(tmp_path / "in", "--pairs")
    reader = Manifest.load(tmp_path / "in").open("train")
    assert [[side.tolist() for side in reader.pair(k)] for k in range(reader.pairs)] == pairs
    assert verified(tmp_path / "in")
    adopt(tmp_path / "in", "--cut-at-end-of-text", "--output", tmp_path / "out")
    assert decoded(tmp_path / "out") == texts


def test_the_end_of_text_of_another_project_is_named_in_the_error_and_then_taken(
    tmp_path, adopt, vocabulary, documents
):
    content = json.loads(vocabulary.read_text())
    content["added_tokens"].append({**content["added_tokens"][0], "id": 300, "content": "<stop>"})
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    write_indexed(tmp_path / "in" / "poems", [[[*ids[:-1], 300]] for [ids] in documents])
    given = "--tokenizer", tmp_path / "tokenizer.json"
    assert "give --end-of-text '<stop>'" in adopt(tmp_path / "in", *given, status=2)
    content["model"]["vocab"] = {k: v for k, v in content["model"]["vocab"].items() if v}
    content["model"]["vocab"]["<|nothing|>"] = 0
    content["added_tokens"][0]["content"] = "<|nothing|>"
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    adopt(tmp_path / "in", *given, "--end-of-text", "<stop>")
    assert Manifest.load(tmp_path / "in").end_of_text == 300
    assert verified(tmp_path / "in")


def test_another_tokenizer_is_noticed(tmp_path, adopt, texts, documents):
    write_indexed(tmp_path / "in" / "poems", documents)
    assert "notice" not in adopt(tmp_path / "in", "--output", tmp_path / "out")
    Tokenizer.train(pydoc_data.topics.topics.values(), 300).save(tmp_path / "other.json")
    assert " of 32 documents of poems that were looked at have other ids" in adopt(
        tmp_path / "in", "--tokenizer", tmp_path / "other.json"
    )


def test_bytes_of_text_are_those_of_the_decoded_words_where_tokens_have_none_of_their_own(tmp_path, adopt, texts):
    Tokenizer.train_words(texts, 200).save(tmp_path / "words.json")
    tokenizer = Tokenizer.load(tmp_path / "words.json")
    ids = [[[*tokenizer.encode(text), tokenizer.end_of_text]] for text in texts]
    write_indexed(tmp_path / "in" / "poems", ids)
    adopt(tmp_path / "in", "--tokenizer", tmp_path / "words.json")
    [shard] = Manifest.load(tmp_path / "in").splits["train"]
    assert shard.text_bytes == sum(len(tokenizer.decode(tokenizer.encode(text)).encode()) for text in texts)


@pytest.mark.parametrize(
    ("name", "split", "source"),
    [
        ("poems_text_document", "train", "poems"),
        ("poems_train_text_document", "train", "poems"),
        ("poems.valid_text_sentence", "validation", "poems"),
        ("train/books-00012", "train", "books"),
        ("wiki-2023_02_text_document", "train", "wiki-2023"),
        ("c4/test_text_document", "test", "c4"),
        ("c4/en/dev-00001-of-00002", "validation", "c4-en"),
        ("latest_news_text_document", "train", "latest_news"),
        ("train", "train", "all"),
    ],
)
def test_split_and_source_are_what_the_name_speaks_of(tmp_path, name, split, source):
    write_indexed(tmp_path / "all" / name, [[[5, END]]])
    [origin], _ = origins(tmp_path / "all", {}, None)
    assert (origin.name, origin.split, origin.source) == (name, split, source)


def test_patterns_say_which_files_are_for_which_split(tmp_path, adopt, documents):
    for number in range(5):
        write_indexed(tmp_path / "in" / f"poems_{number}_text_document", documents[number * 10 : number * 10 + 10])
    printed = adopt(
        tmp_path / "in", "--train", "poems_[012]*", "--validation", "poems_3_text_document.bin", "--source", "verse"
    )
    assert "left out, as no pattern matches them: poems_4_text_document" in printed
    manifest = Manifest.load(tmp_path / "in")
    assert {name: [shard.file[6] for shard in shards] for name, shards in manifest.splits.items()} == {
        "train": ["0", "1", "2"],
        "validation": ["3"],
        "test": [],
    }
    assert manifest.sources[0]["name"] == "verse"
    found = [manifest.open("train").document(k).tolist() for k in range(30)]
    assert found == [ids for [ids] in documents[:30]]
    for extra, sentence in (
        (["--train", "*", "--test", "poems_1*"], "could be of test and of train"),
        (["--train", "*", "--test", "prose*"], "--test prose* matches no file"),
    ):
        assert sentence in adopt(tmp_path / "in", *extra, "--output", tmp_path / "x", status=2)


def test_the_same_files_give_the_same_bytes_wherever_they_lie(tmp_path, adopt, documents):
    for place in ("one", "two/deeper"):
        write_indexed(tmp_path / place / "poems", documents, 5)
        adopt(tmp_path / place, "--output", tmp_path / place / "out")
    names = sorted(
        path.relative_to(tmp_path / "one/out") for path in (tmp_path / "one/out").rglob("*") if path.is_file()
    )
    assert len(names) == 4
    for name in names:
        assert (tmp_path / "one/out" / name).read_bytes() == (tmp_path / "two/deeper/out" / name).read_bytes()


def test_what_cannot_be_adopted_is_one_sentence_and_leaves_nothing(tmp_path, adopt, documents):
    base = tmp_path / "in" / "poems"
    some = documents[:5]

    def boundaries(values: list[int]) -> None:
        content = base.with_suffix(".idx").read_bytes()
        base.with_suffix(".idx").write_bytes(content[: -8 * 6] + np.array(values, "<i8").tobytes())

    cases = [
        (lambda: write_indexed(base, [*some, [[5, 300, END]]]), "has id 300, the tokenizer's vocabulary has 300"),
        (lambda: write_indexed(base, [*some, [[-5, END]]], 4), "Document 5 of"),
        (lambda: write_indexed(base, some, 7), "ids are float32"),
        (lambda: write_indexed(base, some, modes=b"\0\1\0\0\0"), "of several modes"),
        (lambda: boundaries([0, 1, 2, 3, 4, 4]), "do not follow one another"),
        (lambda: base.with_suffix(".bin").write_bytes(base.with_suffix(".bin").read_bytes() + b"12"), "a rest"),
        (lambda: base.with_suffix(".bin").unlink(), "is missing"),
        (lambda: base.with_suffix(".idx").unlink(), "has no .bin and .idx files"),
    ]
    for change, sentence in cases:
        write_indexed(base, some)
        change()
        for output in ([], ["--output", tmp_path / "out"]):
            assert sentence in adopt(tmp_path / "in", *output, status=2), sentence
        assert {path.suffix for path in (tmp_path / "in").iterdir()} <= {".bin", ".idx"}
        assert sorted(os.listdir(tmp_path)) == ["in"]


def test_nothing_that_is_there_is_written_over(tmp_path, adopt, texts, documents):
    write_indexed(tmp_path / "in" / "poems", documents)
    (tmp_path / "in" / "tokenizer.json").write_text(Tokenizer.train_words(texts, 50).content)
    assert "is another tokenizer" in adopt(tmp_path / "in", status=2)
    (tmp_path / "in" / "tokenizer.json").unlink()
    adopt(tmp_path / "in")
    assert "has a manifest.json already" in adopt(tmp_path / "in", status=2)
    adopt(tmp_path / "in", "--output", tmp_path / "out")
    assert "is there already" in adopt(tmp_path / "in", "--output", tmp_path / "out", status=2)
    assert "--pairs and --cut-at-end-of-text" in adopt(tmp_path / "in", "--pairs", "--cut-at-end-of-text", status=2)
    assert "cannot name files" in adopt(tmp_path / "in", "--source", "a/b", status=2)
