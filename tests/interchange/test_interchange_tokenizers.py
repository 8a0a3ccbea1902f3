"""Tokenizers of other projects: the same ids as they give, the same text back, and end-of-text under our name."""

import json
import struct
from itertools import pairwise
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors, trainers

from data_prep.files import InputError
from data_prep.tokenizer import END_OF_TEXT
from pipeline.interchange.comparison import PARAGRAPH
from pipeline.interchange.vocabulary import load_tokenizer

TOK512 = Path(__file__).parents[3] / "shared" / "data" / "models" / "tok512.bin"

Pieces = list[tuple[float, bytes]]


@pytest.fixture(scope="module")
def trained_bin(tmp_path_factory) -> Path:
    """A llama2.c file of pieces that were learned here: merges by rank, then the alphabet, as SentencePiece orders them."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.train_from_iterator(
        list(topics.values())[:20], trainers.BpeTrainer(vocab_size=400, show_progress=False, special_tokens=[])
    )
    vocabulary = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    texts = sorted(vocabulary, key=lambda piece: len(piece) == 1)  # stable: merges keep their order
    pieces: Pieces = [(0.0, b"<unk>"), (0.0, b"\n<s>\n"), (0.0, b"\n</s>\n")]
    pieces += [(0.0, f"<0x{byte:02X}>".encode()) for byte in range(256)]
    pieces += [(-float(rank), text.replace("▁", " ").encode()) for rank, text in enumerate(texts)]
    path = tmp_path_factory.mktemp("llama2c") / "tok.bin"
    body = b"".join(struct.pack("<fi", score, len(piece)) + piece for score, piece in pieces)
    path.write_bytes(struct.pack("<i", max(len(piece) for _, piece in pieces)) + body)
    return path


@pytest.fixture(params=["trained here", "tok512"])
def llama2c(request, trained_bin) -> Path:
    if request.param == "tok512" and not TOK512.is_file():
        pytest.skip("the shared models are not on this machine")
    return trained_bin if request.param == "trained here" else TOK512


def pieces_of(content: bytes) -> Pieces:
    pieces, position = [], 4
    while position < len(content):
        score, length = struct.unpack_from("<fi", content, position)
        pieces.append((score, content[position + 8 : position + 8 + length]))
        position += 8 + length
    return pieces


def encode_as_run_c(pieces: Pieces, text: str) -> list[int]:
    """The function `encode` of llama2.c's run.c, without BOS: join the neighbours of the highest score while there are any."""
    ids = {piece: i for i, (_, piece) in enumerate(pieces)}
    tokens: list[int] = [ids[b" "]] if text else []
    for character in text:
        utf8 = character.encode()
        tokens += [ids[utf8]] if utf8 in ids else [byte + 3 for byte in utf8]
    while True:
        joined = [ids.get(pieces[a][1] + pieces[b][1]) for a, b in pairwise(tokens)]
        candidates = [(pieces[token][0], -place) for place, token in enumerate(joined) if token is not None]
        if not candidates:
            return tokens
        place = -max(candidates)[1]
        tokens[place : place + 2] = [joined[place]]


TEXTS = {
    "paragraph": PARAGRAPH,
    "story": "Once upon a time, there was a little girl named Lily. She loved to play outside in the park.",
    "help": topics["assignment"][:2000],
    "spaces": "  two  spaces,\n\ta tab and an end  ",
    "other scripts": "naïve café – 東京 🙂",
    "specials": "a <s> b </s> <unk> <|endoftext|> <0x41>",
    "empty": "",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_llama2c_tokenizer_gives_the_ids_of_llama2c(text, llama2c):
    tokenizer = load_tokenizer(llama2c, boundary=1)
    assert tokenizer.encode(text) == encode_as_run_c(pieces_of(llama2c.read_bytes()), text)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.end_of_text == 1


def test_a_cut_llama2c_file_is_refused(llama2c, tmp_path):
    (tmp_path / "cut.bin").write_bytes(llama2c.read_bytes()[:-1])
    with pytest.raises(InputError, match="not a whole llama2.c tokenizer"):
        load_tokenizer(tmp_path / "cut.bin", boundary=1)
    (tmp_path / "other.bin").write_bytes(struct.pack("<i", 3) + struct.pack("<fi", 0.0, 1) + b"a")
    with pytest.raises(InputError, match="256 single bytes"):
        load_tokenizer(tmp_path / "other.bin", boundary=1)


@pytest.fixture
def with_specials(tmp_path) -> Path:
    """A tokenizer.json in LLaMA's manner: <s> begins each text and </s> ends it."""
    tokenizer = tokenizers.Tokenizer(models.BPE({"<s>": 0, "</s>": 1, "a": 2, "b": 3, "ab": 4}, [("a", "b")]))
    tokenizer.add_special_tokens([AddedToken("<s>"), AddedToken("</s>")])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.decoder = decoders.Fuse()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


@pytest.mark.parametrize(("boundary", "expected"), [(0, 0), (1, 1), ("</s>", 1)])
def test_the_token_between_documents_gets_our_name_and_keeps_its_id(boundary, expected, with_specials):
    tokenizer = load_tokenizer(with_specials, boundary)
    assert tokenizer.end_of_text == expected
    assert tokenizer.encode("aab") == [2, 4]
    added = {token["id"]: token for token in json.loads(tokenizer.content)["added_tokens"]}
    assert added[expected]["content"] == END_OF_TEXT
    assert added[expected]["special"]


def test_what_a_post_processor_adds_is_renamed_too(with_specials):
    content = load_tokenizer(with_specials, 0).content
    assert tokenizers.Tokenizer.from_str(content).encode("ab").tokens == [END_OF_TEXT, "ab"]


@pytest.mark.parametrize("boundary", [None, 9, 4, "<eos>", "ab"])
def test_a_tokenizer_without_a_token_between_documents_is_refused(boundary, with_specials):
    with pytest.raises(InputError, match="name one of <s>, </s> with --end_of_text"):
        load_tokenizer(with_specials, boundary)


def test_a_tokenizer_that_has_our_name_is_taken_as_it_is(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    assert load_tokenizer(tmp_path, 7).content == tokenizer.content
    assert load_tokenizer(tmp_path, END_OF_TEXT).content == tokenizer.content
    with pytest.raises(InputError, match="leave --end_of_text away"):
        load_tokenizer(tmp_path, "a")


def test_a_file_that_is_no_tokenizer_is_refused(tmp_path):
    for content in (b"{}", b"\xff\xfe", b""):
        (tmp_path / "tokenizer.json").write_bytes(content)
        with pytest.raises(InputError, match="is not a tokenizer that tokenizers"):
            load_tokenizer(tmp_path, 0)
    with pytest.raises(InputError, match="There is no tokenizer"):
        load_tokenizer(tmp_path / "none.json", 0)
