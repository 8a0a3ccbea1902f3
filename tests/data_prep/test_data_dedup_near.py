"""Near-duplicates against the Jaccard similarity of all pairs, by sets of words, on real documents that were edited."""

import re
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from data_prep import dedup, dedup_pairs, disk_arrays, document, minhash
from data_prep.dedup import DedupConfig, deduplicate
from data_prep.document import DocumentWriter
from data_prep.minhash import MinhashConfig, band_keys, signatures
from data_prep.ngrams import words_of
from data_prep.shingles import shingle_sets, shingles, word_hashes

FINEWEB = MinhashConfig(bands=14, rows=8, verify=False)


def grams_of(text: str, n: int) -> set[tuple[str, ...]]:
    """The set of word N-grams; all words of a text with fewer."""
    words = words_of(text)
    return {tuple(words[k : k + n]) for k in range(max(1, len(words) - n + 1))} if words else set()


def jaccard_of_all_pairs(texts: list[str], n: int) -> np.ndarray:
    """Shape (texts, texts), by the product of the matrix of which text has which N-gram with itself."""
    numbers: dict[tuple[str, ...], int] = {}
    rows = [[numbers.setdefault(gram, len(numbers)) for gram in grams_of(text, n)] for text in texts]
    starts = np.cumsum([0, *map(len, rows)])
    columns = np.array([column for row in rows for column in row], np.int64)
    matrix = csr_array((np.ones(len(columns)), columns, starts), shape=(len(texts), max(len(numbers), 1)))
    common, sizes = (matrix @ matrix.T).toarray(), np.diff(starts)
    return common / np.maximum(sizes[:, None] + sizes[None] - common, 1)


def edited(text: str, share: float, rng: np.random.Generator) -> str:
    """Each word is, with this probability, replaced, left out or repeated."""
    words = []
    for word in text.split(" "):
        kind = rng.integers(3) if rng.random() < share else 3
        words += [["edited"], [], [word, word], [word]][kind]
    return " ".join(words)


@pytest.fixture(scope="module")
def originals(real_text) -> list[str]:
    texts = re.split(r"\n(?== )", real_text("lm/wiki_vital_en.train.txt.gz"))
    return [text for text in texts if len(text.split()) > 60][:260]


@pytest.fixture(scope="module")
def edits(originals) -> tuple[list[str], np.ndarray]:
    """Originals with four edited copies each, from a word in 500 to one in 20, shuffled; and the similarity of all pairs."""
    rng = np.random.default_rng(0)
    texts = [edited(text, share, rng) for text in originals for share in (0, 0.002, 0.008, 0.02, 0.05)]
    rng.shuffle(texts)
    texts = list(dict.fromkeys(texts))
    return texts, jaccard_of_all_pairs(texts, 5)


@pytest.fixture
def clusters_of(tmp_path: Path):
    """The cluster of each text, named by its first text, as the stage has them; with what it returns."""

    def call(texts: list[str], config: MinhashConfig, sources: int = 1):
        folder, target = tmp_path / "documents", tmp_path / "unique"
        for each in (folder, target):
            shutil.rmtree(each, ignore_errors=True)
            each.mkdir()
        bounds = np.linspace(0, len(texts), sources + 1).astype(int)
        for name, (begin, end) in zip("abcdefgh", pairwise(bounds), strict=False):
            with DocumentWriter(folder, name) as writer:
                ids = pa.array([str(k) for k in range(begin, end)])
                writer.add(pa.record_batch({"id": ids, "text": pa.array(texts[begin:end])}))
        names = [*"abcdefgh"[:sources]]
        settings = DedupConfig(fuzzy=True, minhash=config, keep_dropped=True)
        record = deduplicate(dict.fromkeys(names, folder), settings, target)
        roots = np.full(len(texts), -1)
        kept = [int(id) for name in names for batch in document.read(target, name) for id in batch["id"].to_pylist()]
        roots[kept] = kept
        for path in (target / "dropped").glob("*.parquet"):
            dropped = pq.read_table(path)
            roots[np.array(dropped["id"].to_pylist(), int)] = np.array(dropped["duplicate_of"].to_pylist(), int)
        assert roots.min() >= 0
        assert kept == np.flatnonzero(roots == np.arange(len(texts))).tolist()
        return roots, record

    return call


def components(similar: np.ndarray) -> np.ndarray:
    """The least number of each one's connected component."""
    count, labels = connected_components(csr_array(similar))
    least = np.full(count, len(labels))
    np.minimum.at(least, labels, np.arange(len(labels)))
    return least[labels]


def pairs_together(roots: np.ndarray) -> np.ndarray:
    return np.triu(roots[:, None] == roots[None], 1)


def test_recall_and_precision_are_above_0_95_at_the_configured_threshold(edits, clusters_of):
    """Recall: pairs of at least this similarity that are in one cluster. Precision: pairs in one cluster that are in one
    component of the graph of all such pairs. No margin around the threshold is left out."""
    texts, similarity = edits
    similar = np.triu(similarity >= MinhashConfig().least_similarity, 1)
    assert similar.sum() > 400
    assert (np.abs(similarity - 0.8) < 0.03).sum() / 2 > 25
    found, _ = clusters_of(texts, MinhashConfig())
    together, expected = pairs_together(found), pairs_together(components(similar))
    assert together[similar].mean() > 0.98
    assert expected[together].mean() == 1
    assert np.mean(found == components(similar)) > 0.98


def test_without_comparing_recall_and_precision_hold_outside_a_margin_around_the_threshold(edits):
    """Of pairs from 0.13 above (1/14)^(1/8) = 0.72, and of pairs that share a band none is from 0.25 below it."""
    texts, similarity = edits
    config = FINEWEB
    keys = band_keys(pa.record_batch({"text": texts}), config).keys
    shared = np.triu((keys[:, None] == keys[None]).any(axis=2), 1)
    upper = np.triu(np.ones_like(shared), 1)
    assert shared[upper & (similarity > config.band_threshold + 0.13)].mean() > 0.95
    assert (similarity[shared] > config.band_threshold - 0.25).mean() > 0.95


@pytest.mark.parametrize("size", [6, 40, 600])
def test_bands_are_shared_with_the_probability_of_the_formula(size):
    """1 - (1 - s^rows)^bands, for short and for long documents: signatures are unbiased and bands independent."""
    rng = np.random.default_rng(size)
    config, trials = FINEWEB, 1500
    for wanted in (0.5, 0.7, 0.85):
        common = round(2 * size * wanted / (1 + wanted))
        similarity = common / (2 * size - common)
        values = rng.integers(0, 2**63, (trials, 2 * size - common), dtype=np.uint64)
        sets = np.stack([values[:, :size], np.roll(values, -(size - common), axis=1)[:, :size]], axis=1)
        found = signatures(sets.ravel(), np.full(2 * trials, size), 14 * 8).reshape(trials, 2, 14, 8)
        equal = found[:, 0] == found[:, 1]
        chance = config.chance(similarity)
        deviation = (chance * (1 - chance) / trials) ** 0.5
        assert abs(equal.mean() - similarity) < 0.01
        assert abs(equal.all(axis=2).any(axis=1).mean() - chance) < 4 * deviation + 0.01


@pytest.mark.parametrize("verify", [True, False])
def test_clusters_are_those_of_the_candidates_by_brute_force(edits, clusters_of, monkeypatch, verify):
    """The same bands, with all pairs at once instead of sorted parts, small enough here to be many and cut."""
    texts, similarity = edits
    monkeypatch.setattr(disk_arrays, "PART_BYTES", 2**12)
    monkeypatch.setattr(disk_arrays, "BUFFER_BYTES", 2**13)
    monkeypatch.setattr(disk_arrays, "MAX_PARTS", 7)
    monkeypatch.setattr(minhash, "COMPARED_AT_ONCE", 5000)
    monkeypatch.setattr(dedup, "COMPARED_BYTES", 2**12)
    monkeypatch.setattr(dedup_pairs, "PAIRS_AT_ONCE", 100)
    monkeypatch.setattr(dedup_pairs, "SETS_AT_ONCE", 3000)
    config = MinhashConfig(verify=verify, threshold=None)
    keys = band_keys(pa.record_batch({"text": texts}), config).keys
    shared = (keys[:, None] == keys[None]).any(axis=2)
    found, _ = clusters_of(texts, config)
    assert found.tolist() == components(shared & (similarity >= config.least_similarity) if verify else shared).tolist()


def test_the_order_of_documents_changes_which_is_kept_and_not_the_clusters(edits, clusters_of):
    texts, _ = edits
    order = np.random.default_rng(3).permutation(len(texts))
    found, _ = clusters_of(texts, MinhashConfig())
    again, _ = clusters_of([texts[k] for k in order], MinhashConfig())
    back = np.empty_like(again)
    back[order] = order[again]
    for roots in (found, back):
        assert len(np.unique(roots)) == len(np.unique(found))
    assert len(np.unique(np.stack([found, back]), axis=1).T) == len(np.unique(found))


def test_the_earlier_source_keeps_its_document_and_sources_can_be_left_apart(originals, clusters_of):
    long = [text for text in originals if len(text.split()) > 120][:40]
    texts = [text.replace(" ", f" {source} ", 1) for source in ("first", "second", "third") for text in long]
    texts[0] = texts[1]  # Repeated inside the first source and, changed, in the others.
    roots, record = clusters_of(texts, MinhashConfig(), sources=3)
    expected = [1 if k == 0 else k for _ in range(3) for k in range(40)]
    expected[0], expected[1] = 0, 0
    expected[40], expected[80] = 40, 40  # Nothing like the text that stood first is left in the first source.
    expected[41] = expected[81] = 0
    assert roots.tolist() == expected
    assert {name: own["duplicate_of"] for name, own in record["sources"].items()} == {
        "a": {"a": 1},
        "b": {"a": 39},
        "c": {"a": 39, "b": 1},
    }
    apart = MinhashConfig(across=False)
    roots, _ = clusters_of(texts, apart, sources=3)
    assert roots.tolist() == [0, 0, *range(2, 120)]
    # Equal documents are dropped over all sources all the same.
    assert clusters_of([*texts[:40], *texts[:40]], apart, sources=2)[1]["sources"]["b"]["documents"] == 0


def test_the_threshold_that_bands_and_rows_give_holds_from_a_margin_above_it(edits, clusters_of):
    """Of the pairs just above (1/14)^(1/8) = 0.72 a third shares no band."""
    texts, similarity = edits
    config = MinhashConfig(bands=14, rows=8, threshold=None)
    found, _ = clusters_of(texts, config)
    together = pairs_together(found)
    assert together[np.triu(similarity > config.least_similarity + 0.05, 1)].mean() > 0.95
    assert pairs_together(components(similarity >= config.least_similarity))[together].mean() == 1


def test_shingles_are_the_word_ngrams_of_each_document_alone():
    texts = [
        "a b c d e f a b c d e f",
        "",
        "one two",
        "...",
        "One, two!",
        "x",
        "a b c d e",
        "ΟΔΟΣ",
        "É b c d é f g",
        "b " * 40,
    ]
    for n in (1, 2, 5, 13):
        values, lengths = shingle_sets(pa.array(texts), n)
        found = [set(part.tolist()) for part in np.split(values, np.cumsum(lengths)[:-1])]
        expected = [grams_of(text, n) for text in texts]
        assert [len(own) for own in found] == lengths.tolist() == [len(own) for own in expected]
        for a in range(len(texts)):
            for b in range(len(texts)):
                assert len(found[a] & found[b]) == len(expected[a] & expected[b])
        every, counts = shingles(pa.array(texts), n)
        assert len(every) == counts.sum()
        assert {*every.tolist()} == set().union(*found)


def test_characters_find_near_duplicates_in_a_script_without_spaces(clusters_of):
    signs = [chr(0x4E00 + sign) for sign in np.random.default_rng(0).integers(0, 500, 400)]
    text = "".join("。" if k % 40 == 39 else sign for k, sign in enumerate(signs))
    texts = [text, text.replace(text[100], "新", 1), text[::-1], "好。", "好", "新好"]
    assert clusters_of(texts, MinhashConfig(unit="characters"))[0].tolist() == [0, 0, 2, 3, 3, 5]
    values, lengths = shingle_sets(pa.array(texts), 5, "characters")
    plain = ["".join(words_of(text)) for text in texts]
    grams = [{text[k : k + 5] for k in range(max(1, len(text) - 4))} for text in plain]
    assert lengths.tolist() == [len(own) for own in grams]
    assert len({*values.tolist()}) == len(set().union(*grams))


def test_words_are_found_in_pieces_as_at_once(originals, monkeypatch):
    texts = pa.array([*originals[:20], "no white space at the end"])
    hashes, counts = word_hashes(texts)
    assert counts.tolist() == [len(words_of(text)) for text in texts.to_pylist()]
    monkeypatch.setattr("data_prep.shingles.PIECE_CHARACTERS", 37)
    again, same = word_hashes(texts)
    assert (hashes.tolist(), counts.tolist()) == (again.tolist(), same.tolist())


def test_keys_do_not_depend_on_the_documents_beside(originals):
    texts = [*originals[:30], "short", "", "two words"]
    together = band_keys(pa.record_batch({"text": texts}), MinhashConfig())
    assert together.documents.tolist() == [k for k in range(33) if k != 31]
    alone = [band_keys(pa.record_batch({"text": [texts[k]]}), MinhashConfig()).keys[0] for k in together.documents]
    assert np.array_equal(together.keys, alone)


def test_short_documents_are_near_duplicates_only_of_the_same_words_and_wordless_ones_of_none(clusters_of):
    texts = ["", "Hello, world", "hello world!", "hello there world", "...", "!?", "world hello", "x", "X."]
    for config in (MinhashConfig(), FINEWEB, MinhashConfig(bands=10, rows=1, threshold=0.5)):
        roots, record = clusters_of(texts, config)
        assert roots.tolist() == [0, 1, 1, 3, 4, 5, 6, 7, 7]
        assert (record["exact"], record["near"]) == (0, 2)


def test_ten_hashes_of_one_row_find_all_that_is_half_the_same(edits, clusters_of):
    """GPT-3's number of hashes (Brown et al. 2020, appendix A): nearly all pairs of some similarity are compared."""
    texts, similarity = edits
    config = MinhashConfig(bands=10, rows=1, threshold=0.5)
    assert config.band_threshold == pytest.approx(0.1)
    found, _ = clusters_of(texts, config)
    assert np.mean(found == components(similarity >= 0.5)) > 0.99


@pytest.mark.parametrize(
    ("bands", "rows", "threshold", "at_0_8"), [(14, 8, 0.719, 0.924), (10, 1, 0.1, 1.0), (20, 6, 0.607, 0.998)]
)
def test_the_threshold_and_the_chance_are_those_of_the_formulas(bands, rows, threshold, at_0_8):
    """0.924 for 14 bands of 8 rows is what datatrove's own comment says."""
    config = MinhashConfig(bands=bands, rows=rows, threshold=None)
    assert config.band_threshold == pytest.approx(threshold, abs=5e-4)
    assert config.chance(0.8) == pytest.approx(at_0_8, abs=6e-4)
    assert config.least_similarity == config.band_threshold
    assert f"= {threshold:.3f}" in config.describe()
