"""Characters, unigram pieces and tokenizers of other projects, against `tokenizers`, nanoGPT's rule and known ids."""

import json
import shutil
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from data_prep import document
from data_prep.cli import main
from data_prep.document import DocumentWriter
from data_prep.fertility import beginning, fertility
from data_prep.files import InputError
from data_prep.python_sources import PythonDocs
from data_prep.shards import Manifest
from data_prep.tokenization import TokenizerConfig
from data_prep.tokenizer import Encoder, Tokenizer
from data_prep.tokenizer_files import with_end_of_text, with_member

ODD = ["", " ", "naïve 数学 👩‍👩‍👧 e\u0301\r\n\x00", "a<|endoftext|>b", "\ufffd", "the end\n\n"]


@cache
def texts_of(name: str, real_text) -> list[str]:
    if name == "python_docs":
        return [text for _, text in PythonDocs(packages=("networkx",)).documents(1, {})][:150]
    return real_text(f"lm/{name}").split("\n\n")[:4000]


def check_against_tokenizers(tokenizer: Tokenizer, texts: list[str], engine: str) -> None:
    encoder = Encoder(tokenizer, texts[:10])
    assert encoder.engine == engine
    ids, lengths = encoder.encode(pa.array([*texts, *ODD]).slice(1))
    plain = tokenizers.Tokenizer.from_str(tokenizer.content)
    plain.encode_special_tokens = True
    rows = plain.encode_batch_fast([*texts, *ODD][1:], add_special_tokens=False)
    assert lengths.tolist() == [len(row.ids) for row in rows]
    assert ids.tolist() == [i for row in rows for i in row.ids]


CORPORA = ["python_docs", "wiki_vital_en.val.txt.gz", "tinyshakespeare.txt.gz"]


@pytest.mark.parametrize("name", CORPORA)
def test_ids_by_gpt2s_vocabulary_equal_tokenizers_for_every_document(name, real_file, real_text):
    tokenizer = Tokenizer.load(real_file("gpt2-bpe/encoder.json").parent)
    check_against_tokenizers(tokenizer, texts_of(name, real_text), "gigatoken")


@pytest.mark.parametrize("name", CORPORA)
def test_ids_of_characters_equal_tokenizers_for_every_document(name, real_text):
    texts = texts_of(name, real_text)
    check_against_tokenizers(Tokenizer.train_characters(texts[::2], 80), texts, "a table of characters")


@pytest.mark.parametrize("name", CORPORA)
def test_ids_by_unigram_equal_tokenizers_for_every_document(name, real_text):
    texts = texts_of(name, real_text)[:400]
    check_against_tokenizers(Tokenizer.train_unigram(texts[::3], 600), texts, "tokenizers")


@pytest.mark.parametrize("given", ["", "encoder.json", "vocab.bpe"])
def test_gpt2s_two_files_give_its_published_ids(real_file, given, tmp_path):
    tokenizer = Tokenizer.load(real_file("gpt2-bpe/encoder.json").parent / given)
    assert tokenizer.encode("Hello world") == [15496, 995]
    assert tokenizer.end_of_text == 50256
    assert tokenizer.vocab_size == 50257
    assert tokenizer.lossless
    for text in ODD:
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert tokenizer.token_bytes()[tokenizer.encode(text)].sum() == len(text.encode())
    tokenizer.save(tmp_path)
    assert Tokenizer.load(tmp_path).fingerprint == tokenizer.fingerprint


def test_the_files_later_names_are_read_too_and_tokenizer_json_comes_first(real_file, tmp_path):
    shutil.copy(real_file("gpt2-bpe/encoder.json"), tmp_path / "vocab.json")
    with pytest.raises(InputError, match="one of two files"):
        Tokenizer.load(tmp_path / "vocab.json")
    shutil.copy(real_file("gpt2-bpe/vocab.bpe"), tmp_path / "merges.txt")
    assert Tokenizer.load(tmp_path).encode("Hello world") == [15496, 995]
    Tokenizer.train_characters(["abc"], 10).save(tmp_path)
    assert Tokenizer.load(tmp_path).encode("abc") == [0, 1, 2]
    (tmp_path / "merges.txt").write_text("#version: 0.2\nĠ t\nno pair\n")
    with pytest.raises(InputError, match="has the line 'no pair'"):
        Tokenizer.load(tmp_path / "vocab.json")


def test_characters_have_the_ids_of_nanogpts_prepare(real_text):
    text = real_text("lm/tinyshakespeare.txt.gz")
    tokenizer = Tokenizer.train_characters([*text.split("\n\n"), "\n"], 4096)
    number = {character: i for i, character in enumerate(sorted(set(text)))}
    assert tokenizer.vocab_size == 65 + 2
    assert tokenizer.unknown == 65
    assert tokenizer.end_of_text == 66
    ids, _ = Encoder(tokenizer, []).encode(pa.array([text]))
    assert ids.tolist() == [number[character] for character in text]
    assert tokenizer.decode(ids[:5000]) == text[:5000]


def test_with_too_many_characters_the_most_frequent_stay_and_others_become_one_sign():
    tokenizer = Tokenizer.train_characters(["bbb aa", "数 c aa"], 5)
    assert [tokenizer.decode([i]) for i in range(5)] == [" ", "a", "b", "\ufffd", "<|endoftext|>"]
    text = "ab数c\n"
    assert tokenizer.decode(tokenizer.encode(text)) == "ab\ufffd\ufffd\ufffd"
    assert tokenizer.token_bytes()[tokenizer.encode(text)].sum() == len("ab\ufffd\ufffd\ufffd".encode())
    assert b"".join(tokenizer.token_contents()[i] for i in tokenizer.encode(text)).decode() == "ab\ufffd\ufffd\ufffd"
    with pytest.raises(InputError, match="vocab_size is 2: U"):
        Tokenizer.train_characters(["a"], 2)


def test_unigram_keeps_any_text_whole_and_has_as_many_ids_as_asked_for():
    tokenizer = Tokenizer.train_unigram([topics["assignment"], topics["class"]], 400)
    assert tokenizer.vocab_size == 400
    assert tokenizer.lossless
    for text in [*ODD, topics["lists"]]:
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert tokenizer.end_of_text not in tokenizer.encode(text)
        assert tokenizer.token_bytes()[tokenizer.encode(text)].sum() == len(text.encode())
    assert len(tokenizer.encode(topics["class"])) < 0.6 * len(topics["class"])
    for vocab_size in (200, 5000):
        with pytest.raises(InputError, match=f"vocab_size is {vocab_size}"):
            Tokenizer.train_unigram(["too little text"], vocab_size)


def test_training_unigram_again_or_in_another_order_gives_the_same_bytes(real_text):
    texts = real_text("lm/wiki_vital_en.val.txt.gz").split("\n\n")[:200]
    assert len({Tokenizer.train_unigram(order, 700).content for order in (texts, texts, texts[::-1], texts)}) == 1


def other_tokenizer(special: list[str], **settings) -> str:
    tokenizer = tokenizers.Tokenizer(models.WordLevel({"a": 0, "b": 1, "<unk>": 2}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(special)
    if settings.get("truncate"):
        tokenizer.enable_truncation(2)
        tokenizer.enable_padding(length=10)
    return tokenizer.to_str()


def test_the_end_of_text_of_another_tokenizer_is_renamed_and_keeps_its_id(tmp_path):
    file = tmp_path / "tokenizer.json"
    file.write_text(other_tokenizer(["<s>", "</s>"]))
    tokenizer, notice = TokenizerConfig(path=str(file)).existing()
    assert tokenizer.end_of_text == 4
    assert "'</s>'" in (notice or "")
    assert tokenizer.encode("a </s> b <|endoftext|>") == [0, 2, 1, 2]
    assert TokenizerConfig(path=str(file), end_of_text="<s>").existing()[0].end_of_text == 3
    with pytest.raises(InputError, match="the added tokens of .* are <s>, </s>: name one of them"):
        TokenizerConfig(path=str(file), end_of_text="<stop>").existing()
    file.write_text(other_tokenizer(["[CLS]"]))
    with pytest.raises(InputError, match="has no '<|endoftext|>' token: documents need one between them, so name one"):
        TokenizerConfig(path=str(file)).existing()
    with pytest.raises(InputError, match="leave it away"):
        TokenizerConfig(end_of_text="</s>")


def test_a_tokenizer_that_has_end_of_text_is_taken_as_it_stands():
    content = other_tokenizer(["</s>", "<|endoftext|>"])
    assert with_end_of_text(content, None, "<|endoftext|>", "x") == (content, None)


def test_truncation_and_padding_of_a_file_do_not_touch_documents():
    tokenizer = Tokenizer(other_tokenizer(["<|endoftext|>"], truncate=True))
    assert tokenizer.encode("a b a b a") == [0, 1, 0, 1, 0]
    assert [row.tolist() for row in tokenizer.encode_batch(["a b a", "b"])] == [[0, 1, 0], [1]]


def test_fertility_of_small_sources_is_that_of_all_their_text(tmp_path):
    tokenizer = Tokenizer.train(["the cat sat on the mat " * 50], 262)
    texts = {"cats": ["the cat sat on the mat", "the cat"], "others": ["zzz qqq é"], "none": []}
    for source, own in texts.items():
        with DocumentWriter(tmp_path, source) as writer:
            writer.add(pa.record_batch({"id": list(map(str, range(len(own)))), "text": pa.array(own, pa.string())}))
    counts = fertility(tokenizer, tmp_path, list(texts))
    assert counts == {
        source: {
            "texts": len(own),
            "text_bytes": sum(len(text.encode()) for text in own),
            "words": sum(len(text.split()) for text in own),
            "tokens": sum(len(tokenizer.encode(text)) for text in own),
        }
        for source, own in texts.items()
        if own
    }


def test_the_sample_of_a_large_source_is_bounded_and_spread(tmp_path, monkeypatch):
    monkeypatch.setattr(document, "ROW_GROUP_DOCUMENTS", 50)
    monkeypatch.setattr("data_prep.fertility.SAMPLE_BYTES", 8000)
    with DocumentWriter(tmp_path, "a") as writer:
        for k in range(0, 2000, 50):
            writer.add(pa.record_batch({"id": [str(k + j) for j in range(50)], "text": ["word " * 20] * 50}))
    counts = fertility(Tokenizer.train_characters(["word "], 20), tmp_path, ["a"])["a"]
    assert counts == {"texts": 80, "text_bytes": 8000, "words": 1600, "tokens": 8000}


@pytest.mark.parametrize("size", [0, 1, 4, 9, 10, 11, 630, 640, 645, 10**6])
@pytest.mark.parametrize("lengths", [[10] * 200, [1000, 1, 1], [1] * 63 + [5, 600, 7], [3]])
@pytest.mark.parametrize("sides", [["text"], ["text", "target"]])
def test_the_beginning_of_a_row_group_is_what_fits_but_one_text_at_least(tmp_path, size, lengths, sides):
    with DocumentWriter(tmp_path, "a") as writer:
        columns = {side: [chr(97 + k % 26) * length for k, length in enumerate(lengths)] for side in sides}
        writer.add(pa.record_batch({"id": list(map(str, range(len(lengths)))), **columns}))
    texts = [text for row in zip(*columns.values(), strict=True) for text in row]
    ends = np.cumsum([len(text) for text in texts])
    with pq.ParquetFile(tmp_path / "a-00000.parquet") as parquet:
        found = beginning(parquet, 0, size).to_pylist()
    assert found == texts[: max(1, int((ends <= size).sum()))]


@pytest.mark.parametrize("kind", ["char", "unigram"])
def test_a_corpus_of_each_kind_is_made_and_verified_and_the_verb_prints_fertility(corpus, tmp_path, capsys, kind):
    source = {"class_path": "Text", "init_args": {"files": [f"{corpus}/*.txt"]}}
    config = {
        "output": str(tmp_path / "out"),
        "sources": {"text": source},
        "tokenizer": {"kind": kind, "vocab_size": 300},
    }
    config["split"] = {"validation": 0.1, "test": 0.1}
    (tmp_path / "c.yaml").write_text(json.dumps(config))
    for _ in range(2):  # The second time nothing is made, and the table is printed all the same.
        assert main(["tokenizer", "--config", str(tmp_path / "c.yaml")]) == 0
        printed = capsys.readouterr().out
        assert "bytes/token" in printed
    assert main(["run", "--config", str(tmp_path / "c.yaml")]) == 0
    assert main(["verify", str(tmp_path / "out")]) == 0
    manifest = Manifest.load(Path(tmp_path / "out/tokens"))
    shards = manifest.splits["train"]
    size, tokens = (sum(getattr(shard, name) for shard in shards) for name in ("text_bytes", "tokens"))
    ratio = size / (tokens - sum(shard.documents for shard in shards))
    assert np.isclose(ratio, 1.0) == (kind == "char")
    assert f"{ratio:.3f}" in printed


@pytest.mark.parametrize(
    "content",
    [
        {"version": "1.0", "added_tokens": [1, 2], "model": {"vocab": {'"added_tokens":[': 0}}},
        {"model": {"added_tokens": [7], "vocab": {"a": 0}}, "truncation": None, "added_tokens": [1, 2]},
        {"added_tokens": [], "pad": "\\"},
    ],
)
@pytest.mark.parametrize("indent", [None, 2])
def test_a_member_of_a_json_object_is_changed_wherever_it_stands(content, indent):
    changed = json.loads(with_member(json.dumps(content, indent=indent), "added_tokens", lambda found: [*found, 3]))
    assert changed == {**content, "added_tokens": [*content["added_tokens"], 3]}
    assert list(changed) == list(content)


@pytest.mark.parametrize("content", ["", "[1]", "{}", '{"a": 1}', '{"a": 1,, "b": 2}', '{"a" 1}', '{"a": '])
def test_a_member_that_is_not_there_is_an_error(content):
    with pytest.raises(ValueError, match="character|Expecting"):
        with_member(content, "b", lambda found: found)
