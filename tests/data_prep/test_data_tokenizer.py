"""The tokenizer, and the fast engine against the one that defines the ids."""

import sys
from collections import Counter

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


LINES = " the cat <unk> the \n sat  on\ta mat \n\n the cat sat\n"


def test_words_are_numbered_by_frequency_then_spelling_and_text_comes_back_with_single_blanks():
    tokenizer = Tokenizer.train_words([LINES], 9)
    vocabulary = ["<unk>", "<eos>", "the", "cat", "sat", "a", "mat", "on", "<|endoftext|>"]
    assert [tokenizer.decode([i]) for i in range(9) if i != 1] == [word for word in vocabulary if word != "<eos>"]
    assert tokenizer.encode(LINES) == [2, 3, 0, 2, 1, 4, 7, 5, 6, 1, 1, 2, 3, 4, 1]
    assert tokenizer.end_of_text == 8
    assert not tokenizer.lossless
    assert tokenizer.decode(tokenizer.encode(LINES)) == "the cat <unk> the\nsat on a mat\n\nthe cat sat\n"


def test_the_rarest_words_are_unknown_and_a_small_text_has_fewer_ids_than_asked_for():
    small = Tokenizer.train_words([LINES], 6)
    assert small.vocab_size == 6
    assert small.encode("the mat sat") == [2, 0, 4]
    assert Tokenizer.train_words([LINES], 1000).vocab_size == 9
    with pytest.raises(InputError, match="vocab_size is 3: <unk>, <eos>"):
        Tokenizer.train_words([LINES], 3)


@pytest.mark.parametrize(
    "text", ["", "\n", " \n\n a", "a\n b\r\n", "a <eos> b", "##a ##b", "x<eos> <eos>x\n", "\u00a0é\u2003数"]
)
def test_decoded_words_are_the_lines_without_extra_blanks_and_encode_to_the_same_ids(text):
    tokenizer = Tokenizer.train_words([text, "a b"], 50)
    ids = tokenizer.encode(text)
    decoded = tokenizer.decode(ids)
    lines = text.replace(" <eos> ", "\n").split("\n")
    assert decoded == "\n".join(" ".join(line.split()) for line in lines)
    assert tokenizer.encode(decoded) == ids


def test_a_document_of_words_cannot_write_end_of_text_even_if_it_was_trained_on():
    text = "a <|endoftext|> <|endoftext|> b"
    tokenizer = Tokenizer.train_words([text], 100)
    assert tokenizer.encode(text) == [2, 0, 0, 3]
    assert tokenizer.end_of_text == 4
    assert tokenizer.decode([2, 4, 3]) == "a <|endoftext|> b"


def test_words_of_wikitext_equal_a_count_in_python(real_text):
    text = real_text("lm/wikitext2.valid.tokens.gz")
    words = text.replace("\n", " <eos> ").split()
    counts = Counter(words)
    ranked = [word for word, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
    for size in (5000, 50_000):
        tokenizer = Tokenizer.train_words(text.splitlines(keepends=True), size)
        kept = ["<unk>", "<eos>", *[word for word in ranked if word not in ("<unk>", "<eos>")]][: size - 1]
        number = {word: i for i, word in enumerate(kept)}
        assert tokenizer.vocab_size == len(kept) + 1
        ids, lengths = Encoder(tokenizer, []).encode(pa.array([text, "a b"]))
        assert ids[: lengths[0]].tolist() == [number.get(word, 0) for word in words]
    assert (len(words), len(counts)) == (217_646, 13_777)


def test_training_words_twice_or_in_another_order_gives_the_same_bytes():
    texts = [f"word{number % 70} word{number * number % 31} tie{number}" for number in range(500)]
    assert Tokenizer.train_words(texts, 200).content == Tokenizer.train_words(texts[::-1], 200).content


def test_token_bytes_of_words_are_those_of_a_text_with_a_blank_after_each_word():
    text = "ein Wörtchen , 数学 . \n\n noch eins \n"
    tokenizer = Tokenizer.train_words([text], 100)
    counts = tokenizer.token_bytes()
    assert counts[tokenizer.encode(text)].sum() == len(text.replace("\n ", "\n").encode())
    assert counts[tokenizer.end_of_text] == 0
    assert counts[tokenizer.encode("unheard-of")].tolist() == [len("<unk> ")]
    other = tokenizers.Tokenizer(tokenizers.models.Unigram([("a", 0.0)]))
    other.add_special_tokens(["<|endoftext|>"])
    with pytest.raises(InputError, match="Only a byte-level or word tokenizer says"):
        Tokenizer(other.to_str()).token_bytes()


def test_a_word_tokenizer_loads_again_and_is_encoded_by_tokenizers(tmp_path):
    tokenizer = Tokenizer.train_words([LINES], 50)
    tokenizer.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert loaded.fingerprint == tokenizer.fingerprint
    encoder = Encoder(loaded, [LINES])
    assert encoder.engine == "tokenizers"
    assert "gigatoken" in (encoder.notice or "")
    ids, lengths = encoder.encode(pa.array([LINES, "", "the"]))
    assert ids.tolist() == tokenizer.encode(LINES) + tokenizer.encode("the")
    assert lengths.tolist() == [15, 0, 1]


def test_a_continuation_begins_with_the_blank_that_decoding_alone_would_lose():
    words = Tokenizer.train_words([LINES], 50)
    text, more = "the cat", "sat"
    ids = words.encode(more)
    assert text + words.continuation(ids) == "the cat <unk>" if 0 in ids else "the cat sat"
    letters = Tokenizer.train(["the cat sat on the mat"] * 3, 262)
    assert letters.continuation(letters.encode(" sat")) == " sat"
    assert letters.continuation(letters.encode("sat")) == "sat"
    assert letters.continuation([]) == ""
