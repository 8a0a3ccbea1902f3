"""The tokenizer, and the fast engine against the one that defines the ids."""

import sys

import numpy as np
import pyarrow as pa
import pytest
import tokenizers

from data_prep.files import InputError
from data_prep.python_sources import PythonDocs
from data_prep.tokenizer import Encoder, Tokenizer

ODD_TEXTS = [
    "",
    " ",
    "\n\n\n",
    "  two  spaces\tand tab",
    "it's we'll I'D",
    "naïve café ﬁ Ⅷ 数学 𝒳 👩‍👩‍👧 \u0301e\u0301",
    "\u00a0\u2003x\u2028y\x85z",
    "1234567890 ٣٤٥ ½",
    "\x00\x01\x7f",
    "end <|endoftext|> of<|endoftext|>text",
    "<|endoftext|>",
    "<|endoftext|><|endoftext|>",
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    import json.decoder
    import pathlib

    return Tokenizer.train([pathlib.Path(json.decoder.__file__).read_text(), *ODD_TEXTS], 600)


def documents(name: str, real_text) -> list[str]:
    if name == "python_docs":
        return [text for _, text in PythonDocs(packages=("networkx",)).documents(2, {})][:250]
    return real_text(f"lm/{name}").split("\n\n")


@pytest.mark.parametrize("name", ["python_docs", "wiki_vital_en.train.txt.gz", "tinyshakespeare.txt.gz"])
def test_gigatoken_gives_the_ids_of_tokenizers_for_every_document(name, real_text):
    texts = documents(name, real_text)
    tokenizer = Tokenizer.train(texts[::10], 4096)
    encoder = Encoder(tokenizer, texts[:10])
    assert encoder.engine == "gigatoken"
    ids, lengths = encoder.encode(pa.array(texts))
    reference = tokenizers.Tokenizer.from_str(tokenizer.content).encode_batch_fast(texts, add_special_tokens=False)
    assert lengths.tolist() == [len(row.ids) for row in reference]
    assert ids.tolist() == [i for row in reference for i in row.ids]


def test_odd_texts_have_the_same_ids_in_both_engines_and_come_back_whole(tokenizer):
    encoder = Encoder(tokenizer, [])
    assert encoder.engine == "gigatoken"
    ids, lengths = encoder.encode(pa.array(ODD_TEXTS))
    rows = np.split(ids, np.cumsum(lengths)[:-1])
    for text, row in zip(ODD_TEXTS, rows, strict=True):
        assert row.tolist() == tokenizer.encode(text)
        assert tokenizer.decode(row) == text


def test_end_of_text_in_a_document_is_plain_text(tokenizer):
    ids, _ = Encoder(tokenizer, []).encode(pa.array(ODD_TEXTS))
    assert tokenizer.end_of_text not in ids
    assert tokenizer.end_of_text not in tokenizer.encode("<|endoftext|>")
    assert tokenizer.end_of_text not in np.concatenate(tokenizer.encode_batch(ODD_TEXTS))
    assert tokenizer.decode([tokenizer.end_of_text]) == "<|endoftext|>"


def test_without_gigatoken_tokenizers_encodes_and_says_so(tokenizer, monkeypatch):
    expected, _ = Encoder(tokenizer, []).encode(pa.array(ODD_TEXTS))
    monkeypatch.setitem(sys.modules, "gigatoken", None)
    encoder = Encoder(tokenizer, [])
    assert encoder.engine == "tokenizers"
    assert "gigatoken" in (encoder.notice or "")
    assert encoder.encode(pa.array(ODD_TEXTS))[0].tolist() == expected.tolist()


def test_a_fast_engine_that_disagrees_on_the_sample_is_not_used(tokenizer, monkeypatch):
    import gigatoken

    other = Tokenizer.train(["zzz yyy zzz yyy xxx " * 50], 262)
    monkeypatch.setattr(gigatoken.Tokenizer, "from_json", lambda content: gigatoken.Tokenizer(other._tokenizer))
    encoder = Encoder(tokenizer, ["json decoder"])
    assert encoder.engine == "tokenizers"
    assert "differ on a sample" in (encoder.notice or "")
    assert encoder.encode(pa.array(["json decoder"]))[0].tolist() == tokenizer.encode("json decoder")


def test_training_twice_gives_the_same_bytes():
    texts = [f"line {number} of many words and numbers {number * 7919}" for number in range(2000)]
    assert Tokenizer.train(texts, 500).content == Tokenizer.train(texts, 500).content


def test_token_bytes_add_up_to_the_bytes_of_the_text(tokenizer):
    counts = tokenizer.token_bytes()
    assert counts.shape == (tokenizer.vocab_size,)
    assert counts[tokenizer.end_of_text] == 0
    for text in ODD_TEXTS:
        assert counts[tokenizer.encode(text)].sum() == len(text.encode())


def test_a_saved_tokenizer_loads_with_the_same_fingerprint_and_ids(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert loaded.fingerprint == tokenizer.fingerprint
    assert loaded.encode(ODD_TEXTS[5]) == tokenizer.encode(ODD_TEXTS[5])


def test_what_is_no_tokenizer_or_has_no_end_of_text_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="no tokenizer at"):
        Tokenizer.load(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="cannot be used"):
        Tokenizer.load(tmp_path)
    with pytest.raises(InputError, match="has no .* token: documents need one"):
        Tokenizer(tokenizers.Tokenizer(tokenizers.models.BPE()).to_str())


@pytest.mark.parametrize("vocab_size", [100, 5000])
def test_a_vocabulary_that_cannot_be_reached_is_an_input_error(vocab_size):
    with pytest.raises(InputError, match=f"vocab_size is {vocab_size}"):
        Tokenizer.train(["too little text"], vocab_size)
