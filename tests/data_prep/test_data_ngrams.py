"""Words and N-grams by arrays against words and N-grams by hand."""

import re
import string
import sys
import unicodedata
from pydoc_data.topics import topics

import numpy as np
import pytest

from data_prep.ngrams import code_points, find_words, lowered, ngram_hashes, words_of
from data_prep.tokenizer import Tokenizer

MASK, FACTOR = 2**64 - 1, 0xD1342543DE82EF95

TEXTS = {
    "prose": '"Don\'t," he said -- twice... (On 3.5 x 10^6 e-mails!)',
    "nothing": "",
    "punctuation alone": " ... -- «» \n",
    "white space": "\ta\u00a0b\u2003c\u3000\x85d\x1fe\n\n",
    "one letter": "a",
    "scripts": "ΟΔΥΣΣΕΥΣ Straße ÉCOLE „東京“、 наука naïve\u0301 😀 İstanbul",
    "no word twice alike": "ab ba aab aba baa a b",
}


def by_hand(text: str) -> list[str]:
    """A word at a time, with a regular expression instead of a table."""
    marks = "".join(chr(c) for c in range(sys.maxunicode) if unicodedata.category(chr(c))[0] == "P")
    marks = re.compile(f"[{re.escape(string.punctuation + marks)}]")
    return [word for piece in text.replace("İ", "i").lower().split() if (word := marks.sub("", piece))]


@pytest.mark.parametrize("text", [*TEXTS.values(), topics["assignment"]], ids=[*TEXTS, "a document"])
def test_words_are_lower_case_between_white_space_without_punctuation(text):
    assert words_of(text) == by_hand(text)


def test_words_of_a_sentence():
    assert words_of(TEXTS["prose"]) == ["dont", "he", "said", "twice", "on", "35", "x", "106", "emails"]


@pytest.mark.parametrize("text", [*TEXTS.values(), topics["assignment"]], ids=[*TEXTS, "a document"])
def test_places_and_hashes_are_those_of_the_words(text):
    words, found = words_of(text), find_words(text)
    pieces = [text[start:end] for start, end in zip(found.starts, found.ends, strict=True)]
    assert [words_of(piece) for piece in pieces] == [[word] for word in words]
    assert all(piece[0] not in string.punctuation and piece[-1] not in string.punctuation for piece in pieces)
    names: dict[int, str] = {}
    assert all(names.setdefault(hash, word) == word for hash, word in zip(found.hashes.tolist(), words, strict=True))
    assert len(names) == len({*words})


def test_hashes_do_not_depend_on_the_text_around():
    alone = {word: find_words(word).hashes[0] for word in words_of(topics["assignment"])}
    assert [alone[word] for word in words_of(topics["assignment"])] == find_words(topics["assignment"]).hashes.tolist()


def test_a_hash_is_the_same_on_every_machine():
    """An index on disk would be of no use otherwise: the same sum in Python's own whole numbers."""

    def mixed(value: int) -> int:
        value = value + 0x9E3779B97F4A7C15 & MASK
        value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & MASK
        value = (value ^ value >> 27) * 0x94D049BB133111EB & MASK
        return value ^ value >> 31

    words = ["the", "東京", "of"]
    hashes = [sum(mixed(ord(c)) * FACTOR**k for k, c in enumerate(word)) & MASK for word in words]
    found = find_words("The 東京, of").hashes
    assert found.tolist() == hashes
    assert ngram_hashes(found, 3) == [mixed(sum(h * FACTOR ** (2 - k) for k, h in enumerate(hashes)) & MASK)]


@pytest.mark.parametrize(
    ("text", "open"), [("a b", True), ("a b ", False), ("a b.", True), ("a b. -", False), ("", False)]
)
def test_a_text_says_whether_its_last_word_may_go_on(text, open):
    assert find_words(text).open == open


def test_only_one_character_becomes_two_in_lower_case():
    """Or else places in the lower-case text would not be places in the text."""
    everything = "".join(map(chr, range(sys.maxunicode + 1)))
    assert len(lowered(everything)) == len(everything) == len(code_points(everything))


@pytest.mark.parametrize("n", [1, 2, 8, 13, 400])
def test_ngrams_have_equal_hashes_just_where_their_words_are_equal(n):
    words = words_of(topics["assignment"] + topics["assignment"][:3000])[:2000]
    hashes = ngram_hashes(find_words(" ".join(words)).hashes, n).tolist()
    grams = [tuple(words[k : k + n]) for k in range(len(words) - n + 1)]
    assert len(hashes) == len(grams)
    assert len({*zip(hashes, grams, strict=True)}) == len({*hashes}) == len({*grams})


def test_ngrams_have_an_order():
    first, second = (ngram_hashes(find_words(text).hashes, 3) for text in ("a b c", "c b a"))
    assert first != second


def test_a_text_shorter_than_n_has_no_ngram():
    assert ngram_hashes(find_words("one two three").hashes, 4).shape == (0,)
    assert ngram_hashes(np.empty(0, np.uint64), 8).shape == (0,)


@pytest.mark.parametrize("kind", ["bytes", "words"])
def test_contents_of_tokens_are_the_text(kind):
    text = topics["assignment"] + " naïve 東京 😀\n"
    make = {"bytes": Tokenizer.train, "words": Tokenizer.train_words}[kind]
    tokenizer = make([text], 300)
    contents, ids = tokenizer.token_contents(), tokenizer.encode(text)
    assert [len(content) for content in contents] == tokenizer.token_bytes().tolist()
    spelled = b"".join(contents[i] for i in ids).decode()
    if kind == "bytes":
        assert spelled == text
        assert tokenizer.unknown is None
    else:
        assert spelled.split() == tokenizer.decode(ids).split()
        assert tokenizer.unknown == tokenizer.encode("neverseen")[0]
