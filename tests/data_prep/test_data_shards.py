"""The token format, against a reader written here from Megatron-LM's definition of it."""

import json
import struct
import tracemalloc
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from data_prep.files import InputError
from data_prep.shards import Manifest, ShardWriter, dtype_for

TYPES = {1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 6: np.float64, 7: np.float32, 8: np.uint16}


def megatron_documents(prefix: Path) -> list[list[np.ndarray]]:
    """Each document's sequences as Megatron-LM's IndexedDataset takes them: header, lengths, pointers, boundaries."""
    index = prefix.with_suffix(".idx").read_bytes()
    assert index[:9] == b"MMIDIDX\x00\x00"
    version, code = struct.unpack("<QB", index[9:18])
    assert version == 1
    dtype = TYPES[code]
    sequences, boundaries = struct.unpack("<QQ", index[18:34])
    lengths = np.frombuffer(index, np.int32, sequences, 34)
    pointers = np.frombuffer(index, np.int64, sequences, 34 + 4 * sequences)
    documents = np.frombuffer(index, np.int64, boundaries, 34 + 12 * sequences)
    assert len(index) == 34 + 12 * sequences + 8 * boundaries
    assert documents[0] == 0
    assert documents[-1] == sequences
    content = prefix.with_suffix(".bin").read_bytes()
    found = [np.frombuffer(content, dtype, n, p) for n, p in zip(lengths.tolist(), pointers.tolist(), strict=True)]
    return [found[begin:end] for begin, end in pairwise(documents.tolist())]


def write(folder: Path, documents: list[np.ndarray], vocab_size: int, shard_tokens: int, batch: int = 7) -> Manifest:
    dtype = dtype_for(vocab_size)
    with ShardWriter(folder, "train", "words", dtype, shard_tokens) as writer:
        for start in range(0, len(documents), batch):
            some = documents[start : start + batch]
            lengths = np.array([len(document) for document in some])
            writer.add(np.concatenate(some), lengths, lengths * 3)
    sources = [{"name": "words"}]
    Manifest(folder, dtype, vocab_size, 0, "no tokenizer", sources, {"train": tuple(writer.shards)}).save()
    return Manifest.load(folder)


def write_pairs(
    folder: Path, pairs: list[tuple[np.ndarray, np.ndarray]], shard_tokens: int, batch: int = 7
) -> Manifest:
    with ShardWriter(folder, "train", "words", "uint16", shard_tokens, sequences_per_document=2) as writer:
        for start in range(0, len(pairs), batch):
            some = pairs[start : start + batch]
            lengths = np.array([[len(source), len(target)] for source, target in some])
            writer.add(np.concatenate([side for pair in some for side in pair]), lengths, lengths.sum(axis=1))
    sources = [{"name": "words"}]
    splits = {"train": tuple(writer.shards)}
    Manifest(folder, "uint16", 300, 0, "no tokenizer", sources, splits, sequences_per_document=2).save()
    return Manifest.load(folder)


def random_documents(vocab_size: int, seed: int = 0) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.integers(0, vocab_size, random.integers(1, 60)) for _ in range(100)]


@pytest.mark.parametrize(
    ("vocab_size", "dtype"), [(4096, "uint16"), (65_535, "uint16"), (65_536, "int32"), (200_000, "int32")]
)
def test_megatron_reads_the_documents_that_were_written(tmp_path, vocab_size, dtype):
    documents = random_documents(vocab_size)
    manifest = write(tmp_path, documents, vocab_size, shard_tokens=500)
    assert manifest.dtype == dtype
    assert len(manifest.shards("train")) > 3
    taken = [document for shard in manifest.shards("train") for document in megatron_documents(tmp_path / shard.file)]
    found = [sequence for document in taken for sequence in document]
    assert len(found) == len(taken), "one sequence a document"
    assert all(document.dtype == dtype for document in found)
    assert [document.tolist() for document in found] == [document.tolist() for document in documents]
    reader = manifest.open("train")
    assert [reader.document(k).tolist() for k in range(reader.documents)] == [d.tolist() for d in documents]


def random_pairs() -> list[tuple[np.ndarray, np.ndarray]]:
    sides = random_documents(300)
    return list(zip(sides[::2], sides[1::2], strict=True))


def plain(pairs: Iterable[Sequence[np.ndarray]]) -> list[list[list[int]]]:
    return [[side.tolist() for side in pair] for pair in pairs]


def test_megatron_reads_a_pair_as_a_document_of_two_sequences(tmp_path):
    pairs = random_pairs()
    manifest = write_pairs(tmp_path, pairs, shard_tokens=300)
    assert len(manifest.shards("train")) > 3
    assert sum(shard.documents for shard in manifest.shards("train")) == len(pairs)
    found = [document for shard in manifest.shards("train") for document in megatron_documents(tmp_path / shard.file)]
    assert plain(found) == plain(pairs)


def test_pairs_are_read_one_by_one_together_and_as_a_stream(tmp_path):
    pairs = random_pairs()
    manifest = write_pairs(tmp_path, pairs, shard_tokens=300)
    assert manifest.pairs
    reader = manifest.open("train")
    assert reader.pairs == reader.documents == len(pairs)
    assert plain(reader.pair(k) for k in range(len(pairs))) == plain(pairs)
    assert all(side.dtype == np.int64 for side in reader.pair(3))
    order = np.random.default_rng(0).permutation(len(pairs))
    assert plain(reader.gather_pairs(order)) == plain(pairs[k] for k in order)
    lengths = reader.pair_lengths()
    assert lengths.dtype == np.int32
    assert lengths.tolist() == [[len(source), len(target)] for source, target in pairs]
    assert reader.read(0, len(reader)).tolist() == [i for pair in pairs for side in pair for i in side]
    for k in (-1, len(pairs)):
        with pytest.raises(InputError, match="There is no"):
            reader.pair(k)


def test_pairs_are_never_divided_between_shards(tmp_path):
    lengths = [(40, 60), (10, 1), (300, 5), (50, 50), (1, 1)]
    manifest = write_pairs(tmp_path, [(np.full(s, 7), np.full(t, 8)) for s, t in lengths], shard_tokens=100)
    assert [shard.tokens for shard in manifest.shards("train")] == [100, 11, 305, 100, 2]
    one, other = (write_pairs(tmp_path / str(batch), random_pairs(), 300, batch) for batch in (1, 100))
    assert one.fingerprint == other.fingerprint


def test_a_manifest_that_does_not_speak_of_pairs_is_of_plain_documents(tmp_path):
    def forget(folder: Path) -> Manifest:
        content = json.loads((folder / "manifest.json").read_text())
        del content["sequences_per_document"]
        (folder / "manifest.json").write_text(json.dumps(content))
        return Manifest.load(folder)

    write(tmp_path / "plain", random_documents(300), 300, shard_tokens=500)
    manifest = forget(tmp_path / "plain")
    assert not manifest.pairs
    reader = manifest.open("train")
    for ask in (lambda: reader.pairs, lambda: reader.pair(0), lambda: reader.gather_pairs([0]), reader.pair_lengths):
        with pytest.raises(InputError, match="holds plain text, not pairs"):
            ask()
    write_pairs(tmp_path / "pairs", random_pairs(), 300)
    with pytest.raises(InputError, match="bytes instead of"):
        forget(tmp_path / "pairs").open("train")


def test_shards_are_full_but_never_over_the_limit_unless_one_document_is(tmp_path):
    lengths = [40, 60, 10, 300, 5, 95, 1]
    manifest = write(tmp_path, [np.full(length, 7) for length in lengths], 300, shard_tokens=100)
    assert [shard.tokens for shard in manifest.shards("train")] == [100, 10, 300, 100, 1]
    assert [shard.documents for shard in manifest.shards("train")] == [2, 1, 1, 2, 1]
    assert sum(shard.text_bytes for shard in manifest.shards("train")) == 3 * sum(lengths)


def test_shards_do_not_depend_on_how_documents_were_batched(tmp_path):
    documents = random_documents(300)
    one, other = (write(tmp_path / str(batch), documents, 300, 500, batch) for batch in (1, 100))
    assert one.splits == other.splits
    assert one.fingerprint == other.fingerprint


def test_windows_across_shards_equal_slices_of_all_tokens(tmp_path):
    documents = random_documents(300)
    tokens = np.concatenate(documents)
    reader = write(tmp_path, documents, 300, shard_tokens=50).open("train")
    assert len(reader) == len(tokens)
    starts = np.random.default_rng(1).integers(0, len(tokens) - 200, 50)
    windows = reader.gather(starts, 200)
    assert windows.dtype == np.int64
    assert (windows == np.stack([tokens[start : start + 200] for start in starts])).all()
    assert (reader.read(0, len(tokens)) == tokens).all()
    for start, length in ((-1, 5), (len(tokens) - 3, 4)):
        with pytest.raises(IndexError):
            reader.read(start, length)


@pytest.mark.parametrize("suffix", ["bin", "idx"])
def test_a_truncated_shard_is_refused_on_opening_by_name(tmp_path, suffix):
    manifest = write(tmp_path, random_documents(300), 300, shard_tokens=500)
    file = tmp_path / f"{manifest.shards('train')[1].file}.{suffix}"
    file.write_bytes(file.read_bytes()[:-2])
    with pytest.raises(InputError, match=f"{file.name} has .* bytes instead of"):
        manifest.open("train")


@pytest.mark.parametrize("suffix", ["bin", "idx"])
def test_one_changed_bit_is_found_by_verify(tmp_path, suffix):
    manifest = write(tmp_path, random_documents(300), 300, shard_tokens=500)
    manifest.verify()
    file = tmp_path / f"{manifest.shards('train')[1].file}.{suffix}"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match=f"{file.name} does not match its checksum"):
        manifest.verify()


def test_manifest_fingerprint_follows_the_content_and_not_the_place(tmp_path):
    here, there = (write(tmp_path / name, random_documents(300), 300, 500) for name in ("here", "there"))
    other = write(tmp_path / "other", random_documents(300, seed=1), 300, 500)
    assert here.fingerprint == there.fingerprint != other.fingerprint


def test_a_folder_without_manifest_and_an_empty_split_are_input_errors(tmp_path):
    with pytest.raises(InputError, match="no token manifest"):
        Manifest.load(tmp_path)
    manifest = write(tmp_path, random_documents(300), 300, 500)
    with pytest.raises(InputError, match="no tokens in split 'test'; splits with tokens: train"):
        manifest.open("test")
    (tmp_path / "manifest.json").write_text('{"format": 1, "splits": {}}')
    with pytest.raises(InputError, match="not a token manifest"):
        Manifest.load(tmp_path)


@pytest.mark.parametrize("each", [1, 2])
def test_every_token_belongs_to_the_document_that_brute_force_finds(tmp_path, each):
    random = np.random.default_rng(3)
    if each == 1:
        documents = [random.integers(1, 300, random.integers(1, 30)) for _ in range(60)]
        manifest = write(tmp_path, documents, 300, shard_tokens=100)
    else:
        pairs = [(random.integers(1, 300, random.integers(1, 9)), random.integers(1, 300, 5)) for _ in range(60)]
        documents, manifest = [np.concatenate(pair) for pair in pairs], write_pairs(tmp_path, pairs, shard_tokens=100)
    assert len(manifest.shards("train")) > 3
    reader = manifest.open("train")
    owner = np.repeat(np.arange(60), [len(document) for document in documents])
    for start in range(0, len(reader), 7):
        for length in (1, 2, 40, 300):
            if start + length <= len(reader):
                expected = np.unique(owner[start : start + length])
                assert list(reader.documents_of(start, length)) == expected.tolist()
    for k, document in enumerate(documents):
        place = reader.place(k)
        assert np.array_equal(reader.read(place.start, place.tokens), document)
        shard = np.fromfile(tmp_path / f"{place.shard.file}.bin", manifest.dtype)
        assert np.array_equal(shard[place.offset :][: place.tokens], document)
        assert np.array_equal(megatron_documents(tmp_path / place.shard.file)[place.row][0], reader.sequences(k)[0])
    for start, length in ((-1, 2), (0, 0), (len(reader), 1), (len(reader) - 1, 2)):
        with pytest.raises(IndexError, match="outside"):
            reader.documents_of(start, length)


def test_finding_a_document_copies_nothing_of_the_index(tmp_path):
    lengths = np.full(200_000, 3)
    with ShardWriter(tmp_path, "train", "words", "uint16", 10**7) as writer:
        writer.add(np.ones(600_000, np.uint16), lengths, lengths)
    reader = Manifest(tmp_path, "uint16", 9, 0, "none", [], {"train": tuple(writer.shards)}).open("train")
    tracemalloc.start()
    assert reader.documents_of(300_000, 2) == range(100_000, 100_001)
    assert reader.place(100_000).offset == 300_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50_000  # The offsets alone are 1.6 MB.
