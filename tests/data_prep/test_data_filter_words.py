"""Words of whole batches in arrays, against `str` and against the rules that cut one piece after the other."""

import random
from collections.abc import Iterable
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest

from data_prep.filtering.ascii_words import LONGEST, cut_pieces
from data_prep.filtering.english import SPECIAL, UNITS, split_piece
from data_prep.filtering.lines import lines_of
from data_prep.filtering.words import SENTENCE_ENDS, Texts, Vocabulary, properties, properties_of

MARKS = [
    *"aB9.-,:;'\"()/$%+=<>*#@~_!?&[]{}|^`\\\0",
    "don't",
    "U.S.",
    "km",
    "'s",
    "):",
    "5pm",
    "--",
    "..",
    "US$",
    "X",
    "id",
]
ADDRESSES = [
    *"/aX.-_:@+=",
    "http",
    "://",
    "bc",
    "org",
    "192.168.1.1",
    "8.8.8.8",
    ":80",
    "?q",
    "#f",
    "a.b",
    "A.b",
    "x" * 64,
]


def cut_at_once(pieces: list[str]) -> tuple[list[list[str]], np.ndarray]:
    """The words of each piece by `cut_pieces`, and of which they are known."""
    content = Texts(pa.array(pieces, pa.string()))
    opening, known = cut_pieces(content.bytes, content.offsets)
    words = []
    for piece, start, end in zip(pieces, content.starts.tolist(), content.ends.tolist(), strict=True):
        places = [*np.flatnonzero(opening[start:end]).tolist(), end - start]
        words.append([piece.encode()[a:b].decode(errors="replace") for a, b in pairwise(places)])
    return words, known


def random_pieces(parts: list[str], most: int, count: int) -> list[str]:
    chance = random.Random(0)
    return sorted({"".join(chance.choices(parts, k=chance.randint(1, most))) for _ in range(count)})


def different(pieces: Iterable[str], least_known: float) -> list[tuple[str, list[str]]]:
    """What is cut otherwise than by `split_piece`, of which it is known; at least such a share must be."""
    pieces = list(pieces)
    words, known = cut_at_once(pieces)
    assert known.mean() > least_known
    return [
        (piece, found)
        for piece, found, sure in zip(pieces, words, known.tolist(), strict=True)
        if sure and found != split_piece(piece)
    ]


@pytest.mark.parametrize(
    ("parts", "most", "least_known"),
    [
        (MARKS, 9, 0.7),
        ([*(piece for piece in SPECIAL if piece.isascii()), *UNITS, *MARKS], 3, 0.3),
        (ADDRESSES, 8, 0.7),
    ],
    ids=["marks", "special", "addresses"],
)
def test_pieces_cut_at_once_have_the_words_of_those_cut_one_by_one(parts, most, least_known):
    assert not different(random_pieces(parts, most, 12_000), least_known)


def test_nearly_all_pieces_of_real_text_and_of_code_are_cut_at_once(real_text):
    for name in ("lm/wiki_vital_en.val.txt.gz", "translation/python-docs.en-fr.tsv.gz", "code/mbpp.jsonl.gz"):
        pieces = {piece for piece in real_text(name).split() if piece.isascii()}
        assert not different(sorted(pieces)[::3], 0.95)


def test_long_pieces_and_other_scripts_are_left_to_the_rules_in_a_loop():
    _, known = cut_at_once(["a" * LONGEST, "a" * (LONGEST + 1), "é", "(" * 50, "a"] + ["word"] * 20)
    assert known.tolist() == [True, False, False, False, True] + [True] * 20


def test_a_vocabulary_has_the_words_of_each_text_and_their_properties(monkeypatch):
    monkeypatch.setattr("data_prep.filtering.words.CUT_BYTES", 100)
    chance = random.Random(1)
    pieces = [*random_pieces(MARKS, 6, 300), "don't", "e\u0301a", "中文。", "…", "naïve", "(" * 60, "x" * 300]
    texts = [
        chance.choice([" ", "\n", "\u3000", "\x1c"]).join(chance.choices(pieces, k=chance.randint(0, 9)))
        for _ in range(400)
    ]
    vocabulary = Vocabulary()
    found = vocabulary.words(Texts(pa.array(texts[:100]))), vocabulary.words(Texts(pa.array(texts[100:])))
    names = list(vocabulary.word_numbers)
    assert list(vocabulary.word_numbers.values()) == list(range(len(names)))
    words = [
        [names[token] for token in batch.tokens[first:last].tolist()]
        for batch in found
        for first, last in pairwise(batch.bounds)
    ]
    assert words == [[word for piece in text.split() for word in split_piece(piece)] for text in texts]
    assert vocabulary.lengths.tolist() == list(map(len, names))
    assert vocabulary.enders.tolist() == [name in SENTENCE_ENDS for name in names]
    assert properties_of(Texts(pa.array(names))).tolist() == list(map(properties, names))
    assert len(set(vocabulary.hashes.tolist())) == len(names)


def test_pieces_and_lines_of_texts_side_by_side_are_those_of_each_alone():
    chance = random.Random(2)
    parts = ["a", "b-c", "é", "中", " ", "\t", "\n", "\r\n", "\r", "\x1d", "\x85", "\xa0", "\u2028", "\u2003", "\u3000"]
    texts = ["".join(chance.choices(parts, k=chance.randint(0, 8))) for _ in range(3000)]
    content = Texts(pa.array(["before", *texts]).slice(1))
    pieces, bounds = content.pieces
    column = pieces.to_pylist()
    assert [column[a:b] for a, b in pairwise(bounds)] == [text.split() for text in texts]
    assert content.characters.tolist() == list(map(len, texts))
    lines = lines_of(content)
    found = [bytes(content.bytes[a:b]).decode() for a, b in zip(lines.starts, lines.ends, strict=True)]
    assert [found[a:b] for a, b in pairwise(lines.bounds)] == [text.splitlines() for text in texts]
    characters = content.characters_of(lines.starts, lines.ends)
    assert characters.tolist() == list(map(len, found))
