"""The stage of filters: what it keeps, counts and writes aside, and the sentences that it ends with."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep import document
from data_prep.__main__ import main
from data_prep.configuration import DataConfig
from data_prep.document import DocumentWriter
from data_prep.filtering.c4 import C4
from data_prep.filtering.classifier import Classifier, Scores, pareto, train, uniform
from data_prep.filtering.fineweb import FineWeb
from data_prep.filtering.gopher import GopherQuality, GopherRepetition
from data_prep.filtering.language import Language
from data_prep.filtering.privacy import Masking
from data_prep.filtering.repair import repair
from data_prep.filtering.stage import FilterConfig, Filters, filter_source
from data_prep.filtering.words import Texts, Vocabulary
from data_prep.sources import Text

GOOD = (
    "The history of the town begins with a small harbour that merchants built to have shelter from the wind. "
    "Fishermen and farmers came to live there, and within a century the place had a market, two churches and a school. "
    "Later kings gave it rights of its own. A wall was raised around it to keep strangers out. "
    "Nobody knows how many people died of plague in those years! Today visitors come for quiet beaches."
)


def apply(config: FilterConfig, *texts: str):
    columns = {"id": [str(k) for k in range(len(texts))], "text": list(texts), "source": ["web"] * len(texts)}
    return Filters(config).apply(pa.record_batch(columns))


def reasons(config: FilterConfig, *texts: str) -> list[str | None]:
    found = apply(config, *texts)
    dropped = dict(zip(found.dropped["id"].to_pylist(), found.dropped["reason"].to_pylist(), strict=True))
    return [dropped.get(str(k)) for k in range(len(texts))]


def test_a_text_of_fifty_words_is_long_enough_and_one_of_forty_nine_is_not():
    config = FilterConfig(gopher_quality=GopherQuality())
    words = ["the", "be", "river"] * 20
    assert reasons(config, " ".join(words[:50]), " ".join(words[:49]) + " . , !") == [None, "gopher_short_doc"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("the of and to " * 20, "gopher_below_avg_threshold"),
        ("internationalisation straightforwardly and the " * 20, "gopher_above_avg_threshold"),
        (GOOD + " #" * 20, "gopher_too_many_hashes"),
        (GOOD + " more... " * 12, "gopher_too_many_ellipsis"),
        ("\n".join("- " + line for line in GOOD.split(". ")), "gopher_too_many_bullets"),
        ("...\n".join(GOOD.split(". ")) + "...", "gopher_too_many_end_ellipsis"),
        (GOOD + " 19 20 21 22 23" * 10, "gopher_below_alpha_threshold"),
        ("these heavy stones never moved again " * 10, "gopher_enough_stop_words"),
        (GOOD, None),
    ],
)
def test_each_rule_of_gopher_quality_has_a_text_that_breaks_it_first(text, reason):
    assert reasons(FilterConfig(gopher_quality=GopherQuality()), text) == [reason]


def test_a_rule_that_is_null_is_off():
    short = "the and"
    assert reasons(FilterConfig(gopher_quality=GopherQuality(min_words=None)), short) == [None]
    assert reasons(FilterConfig(gopher_repetition=GopherRepetition(top_ngrams={}, repeated_ngrams={})), "a b " * 9) == [
        None
    ]


def test_repeated_ngrams_are_counted_by_hand():
    # Of 12 words, "a b c d e" comes twice: 5 of 13 characters (spaces are not counted, but they are in the text).
    text = "a b c d e x a b c d e y"
    limits = {"top_ngrams": {}}
    assert len(text) == 23
    for most, reason in ((0.21, "duplicated_5_n_grams"), (0.22, None)):
        rules = GopherRepetition(**limits, repeated_ngrams={5: most})
        assert reasons(FilterConfig(gopher_repetition=rules), text) == [reason]
    # "a b" comes twice, with its space 3 characters each: 6 of 23.
    for most, reason in ((0.26, "top_2_gram"), (0.27, None)):
        rules = GopherRepetition(top_ngrams={2: most}, repeated_ngrams={})
        assert reasons(FilterConfig(gopher_repetition=rules), text) == [reason]


def test_c4_keeps_whole_sentences_and_leaves_the_rest_of_a_page_out():
    lines = [
        "Home | About | Contact",
        "The harbour was built by merchants.[1]",
        "Please enable JavaScript to see the map.",
        "By going on you accept our use of cookies.",
        "Two words.",
        "It has a market. It has two churches! Has it a school?",
        "Read more about the harbour...",
        'He said that "nobody knows."',
    ]
    found = apply(FilterConfig(c4=C4()), "\n".join(lines), "\n".join([*lines, "Then {x} came here."]))
    expected = (
        "The harbour was built by merchants.\nIt has a market. It has two churches! Has it a school?\n" + lines[-1]
    )
    assert found.kept["text"].to_pylist() == [expected]
    assert found.dropped["reason"].to_pylist() == ["curly_bracket"]
    assert found.counts["c4_lines", "line-filter-policy"] == 2


def test_fineweb_reads_what_c4_left():
    lines = ["A sentence that is long enough stays here, with the end that it has."] * 2
    page = "\n".join([*lines, *("menu item" for _ in range(20))])
    assert reasons(FilterConfig(fineweb=FineWeb()), page) == ["line_punct_ratio"]
    assert reasons(FilterConfig(c4=C4(min_sentences=1), fineweb=FineWeb()), page) == ["char_dup_ratio"]


def test_what_is_dropped_does_not_depend_on_which_documents_are_beside_it(real_text):
    texts = real_text("lm/wiki_vital_en.val.txt.gz").split("\n\n\n")
    config = FilterConfig(
        gopher_repetition=GopherRepetition(), gopher_quality=GopherQuality(), c4=C4(), fineweb=FineWeb()
    )
    together = reasons(config, *texts)
    assert reasons(config, *texts[::-1]) == together[::-1]
    assert [reasons(config, text)[0] for text in texts[:40]] == together[:40]


def test_a_vocabulary_that_forgets_changes_nothing(real_text, monkeypatch):
    texts = Texts(pa.array(real_text("lm/wiki_vital_en.val.txt.gz").split("\n\n\n")))
    vocabulary = Vocabulary()
    before = vocabulary.words(texts)
    lengths = vocabulary.lengths[before.tokens]
    monkeypatch.setattr("data_prep.filtering.words.PIECES", 10)
    again = vocabulary.words(texts)
    assert np.array_equal(vocabulary.lengths[again.tokens], lengths)
    assert np.array_equal(again.bounds, before.bounds)


def test_languages_are_told_apart(real_text):
    rows = [line.split("\t") for line in real_text("translation/python-docs.en-fr.tsv.gz").splitlines()]
    pairs = [
        (" ".join(row[1] for row in part), " ".join(row[2] for row in part)) for part in np.array_split(rows[:2000], 50)
    ]
    english, french = zip(*pairs, strict=True)
    found = reasons(FilterConfig(language=Language()), *english, *french)
    assert found[:50].count(None) >= 48
    assert found[50:].count("language_fr") >= 48
    assert reasons(FilterConfig(language=Language(("fr", "en"))), *english, *french).count(None) >= 96


def test_addresses_are_replaced_in_turn_and_in_each_document_from_the_first():
    text = "ask a.b@mail.org or c@d.example, not @e or f@; 8.8.8.8 and 10.0.0.1 and 1.1.1.1"
    masked = (
        apply(FilterConfig(masking=Masking(ip_replacements=("IP",))), text, text, "nothing").kept["text"].to_pylist()
    )
    one = "ask email@example.com or firstname.lastname@example.org, not @e or f@; IP and 10.0.0.1 and IP"
    assert masked == [one, one, "nothing"]
    every = Masking(emails=False, public_ips_only=False, ip_replacements=("IP",))
    assert every.masked("10.0.0.1 x@y.org 300.1.1.1") == "IP x@y.org 3IP"


def test_a_page_of_base64_with_an_address_is_masked_at_once():
    page = "data:" + "QmFzZTY0/+" * 100_000 + " a@b.org " + "x!" * 100_000
    assert Masking().masked(page) == page.replace("a@b.org", "email@example.com")


def test_wrongly_decoded_text_is_repaired_and_other_text_is_left_as_it_is():
    texts = ["It’s a café".encode().decode("cp1252"), "bread &amp; butter", "“curled” ﬁ\r\n", "plain"]
    column, changed = repair(pa.array(texts))
    assert column.to_pylist() == ["It’s a café", "bread & butter", "“curled” ﬁ\r\n", "plain"]
    assert changed == 2


def write_source(folder, *texts: str) -> None:
    with DocumentWriter(folder, "web") as writer:
        writer.add(pa.record_batch({"id": [f"d{k}" for k in range(len(texts))], "text": list(texts)}))


def test_dropped_documents_are_written_aside_as_they_came_with_their_reason(tmp_path):
    texts = [GOOD[:200] + " &amp; ?", GOOD, "\n".join([GOOD.replace(".", "")] * 3)]
    write_source(tmp_path / "in", *texts)
    config = FilterConfig(
        repair=True, gopher_repetition=GopherRepetition(), gopher_quality=GopherQuality(), keep_dropped=True
    )
    record = filter_source(tmp_path / "in", "web", config, None, tmp_path / "out")
    assert record["documents"] == 1
    assert record["dropped"] == 2
    assert record["reasons"]["gopher_quality"]["gopher_short_doc"] == 1
    aside = pq.read_table(tmp_path / "out" / "dropped" / "web-00000.parquet").to_pylist()
    assert aside == [
        {"id": "d0", "text": texts[0], "source": "web", "rule": "gopher_quality", "reason": "gopher_short_doc"},
        {"id": "d2", "text": texts[2], "source": "web", "rule": "gopher_repetition", "reason": "dup_line_frac"},
    ]
    assert [row["text"] for batch in document.read(tmp_path / "out", "web") for row in batch.to_pylist()] == [GOOD]


def test_a_corpus_is_filtered_by_its_configuration_and_only_where_it_says_so(corpus, tmp_path, capsys):
    page = tmp_path / "page.txt"
    page.write_text("|".join([GOOD, "short", GOOD.upper(), GOOD.replace("The", "A")]))
    web = {"class_path": "Text", "init_args": {"files": [str(page)], "separator": "|"}}
    kept = {"class_path": "Text", "init_args": {"files": [f"{corpus}/*.txt"]}}
    config = {
        "output": str(tmp_path / "out"),
        "sources": {"web": web, "kept": kept},
        "filter": {"sources": ["web"], "gopher_quality": {}, "gopher_repetition": {}, "keep_dropped": True},
    }
    (tmp_path / "data.yaml").write_text(json.dumps(config))
    assert main(["dedup", "--config", str(tmp_path / "data.yaml")]) == 0
    assert "2 dropped" in capsys.readouterr().out
    record = json.loads((tmp_path / "out" / "unique" / "stage.json").read_text())["record"]
    assert {name: source["documents"] for name, source in record["sources"].items()} == {"web": 2, "kept": 120}
    assert not (tmp_path / "out" / "filtered" / "kept").exists()
    assert main(["dedup", "--config", str(tmp_path / "data.yaml")]) == 0
    assert capsys.readouterr().out.count("unchanged") == 4


def test_filters_that_drop_every_document_of_a_corpus_say_why(corpus, tmp_path, capsys):
    text = {"class_path": "Text", "init_args": {"files": [f"{corpus}/*.txt"]}}
    config = {"output": str(tmp_path / "out"), "sources": {"text": text}, "filter": {"gopher_quality": {}}}
    (tmp_path / "data.yaml").write_text(json.dumps(config))
    assert main(["run", "--config", str(tmp_path / "data.yaml")]) == 2
    assert "The filters drop every document of text (gopher_short_doc 120)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Language(("xx",)), "'xx', which is none of the codes"),
        (lambda: Language(threshold=1.0), "filter.language.threshold is 1.0"),
        (lambda: Masking(email_replacements=()), "filter.masking.email_replacements is empty"),
        (lambda: GopherRepetition(repeated_ngrams={0: 0.1}), "filter.gopher_repetition.repeated_ngrams has 0"),
        (lambda: GopherQuality(min_words=10, max_words=5), "min_words is 10 and max_words 5"),
        (
            lambda: DataConfig("out", {"a": Text(files=["x"])}, filter=FilterConfig(sources=("b",))),
            "filter.sources names 'b'",
        ),
    ],
)
def test_a_mistake_in_the_settings_is_one_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


@pytest.fixture
def good_and_raw(tmp_path, real_text):
    """A folder of documents of encyclopedia, which are good, and one in which half are encyclopedia and half dialogue."""
    wiki = [text for text in real_text("lm/wiki_vital_en.train.txt.gz").split("\n\n\n") if len(text) > 300]
    talk = real_text("dialogue/sgd.dev.utterances.jsonl.gz").splitlines()[:300]
    for name, texts in (("good", wiki[:300]), ("raw", [*wiki[300:600], *talk])):
        with DocumentWriter(tmp_path / name, name) as writer:
            writer.add(pa.record_batch({"id": [f"{name}{k}" for k in range(len(texts))], "text": texts}))
    return tmp_path


def test_the_classifier_keeps_what_is_like_the_reference_and_a_pareto_share_of_the_rest(good_and_raw):
    config = Classifier(reference=("good",), features=2**14)
    sizes = {"good": 300, "raw": 600}
    folders = [{name: good_and_raw / name} for name in ("good", "raw")]
    record = train(config, *folders, sizes, good_and_raw / "model")
    assert record["reference_documents"] == 300
    assert record["raw_documents"] == 600
    path = good_and_raw / "model" / "classifier.npy"
    result = filter_source(good_and_raw / "raw", "raw", FilterConfig(classifier=config), path, good_and_raw / "out")
    kept = {id for batch in document.read(good_and_raw / "out", "raw") for id in batch["id"].to_pylist()}
    assert result["reasons"]["classifier"]["low_score"] == 600 - len(kept)
    # By the rule with numpy's own formula, from the scores.
    scores = Scores.load(path, 9.0)
    for batch in document.read(good_and_raw / "raw", "raw"):
        place = uniform(batch["id"], "pareto")
        expected = np.expm1(-np.log1p(-place) / 9.0) > 1 - scores.of(batch["text"])
        assert {id for id, keep in zip(batch["id"].to_pylist(), expected, strict=True) if keep} == kept
    wiki = sum(f"raw{k}" in kept for k in range(300))
    talk = sum(f"raw{k}" in kept for k in range(300, 600))
    assert wiki > 5 * talk
    assert talk > 0 or wiki < 300


def test_pareto_variates_have_the_distribution_of_their_name():
    variates = pareto(pa.array([str(k) for k in range(20_000)]), 9.0)
    for limit in (0.05, 0.1, 0.5):
        assert (variates > limit).mean() == pytest.approx((1 + limit) ** -9.0, abs=0.01)


def test_a_classifier_trained_twice_is_the_same_file(good_and_raw):
    config = Classifier(reference=("good",), features=2**12, documents=100)
    folders = [{name: good_and_raw / name} for name in ("good", "raw")]
    written = []
    for name in ("first", "second"):
        record = train(config, *folders, {"good": 300, "raw": 600}, good_and_raw / name)
        assert 50 < record["raw_documents"] < 150
        written.append((good_and_raw / name / "classifier.npy").read_bytes())
    assert written[0] == written[1]


def test_a_corpus_is_filtered_by_a_classifier_of_its_own_sources(corpus, tmp_path, capsys):
    (tmp_path / "raw.txt").write_text("|".join(f"buy {k} cheap watches now {k}" for k in range(50)))
    raw = {"class_path": "Text", "init_args": {"files": [str(tmp_path / "raw.txt")], "separator": "|"}}
    good = {"class_path": "Text", "init_args": {"files": [f"{corpus}/*.txt"]}}
    config = {"output": str(tmp_path / "out"), "sources": {"raw": raw, "good": good}}
    config["filter"] = {"classifier": {"reference": ["good"], "features": 4096}}
    (tmp_path / "data.yaml").write_text(json.dumps(config))
    assert main(["filter", "--config", str(tmp_path / "data.yaml")]) == 0
    assert not list(document.read(tmp_path / "out" / "filtered" / "raw", "raw"))
    assert "120 reference documents" in capsys.readouterr().out
    assert not (tmp_path / "out" / "filtered" / "good").exists()
    assert main(["filter", "--config", str(tmp_path / "data.yaml"), "--filter.classifier.reference", "[bad]"]) == 2
    assert "filter.classifier.reference names 'bad'" in capsys.readouterr().err
