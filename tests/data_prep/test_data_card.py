"""The data card says what lies on disk: counted from the stages' files, not from their records."""

import json
import os
from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from data_prep import card as data_card
from data_prep import statistics
from data_prep.cli import main
from data_prep.shards import Manifest, TokenReader

PASSAGE = "the quick brown fox jumps over the lazy dog while seven wizards quietly brew a potion of ink"


@pytest.fixture
def crawl(tmp_path, monkeypatch):
    """Two sources with documents that are too short, repeated, and contaminated; prepared."""
    monkeypatch.chdir(tmp_path)
    prose = [" ".join(f"word{n}{chr(97 + i % 26)} of text {i}" for i in range(60)) + "." for n in range(60)]
    web = [*prose[:40], "too short.", "short as well.", prose[0], f"{prose[50]} {PASSAGE} {prose[51]}"]
    for name, texts in (("books", prose[40:50]), ("web", web)):
        with open(f"{name}<b>.jsonl", "w") as file:
            file.writelines(json.dumps({"id": f"{name}{i}", "text": text}) + "\n" for i, text in enumerate(texts))
    (tmp_path / "tests.txt").write_text(PASSAGE)
    # Of the rules that on the number of words alone.
    off = ("max_words", "min_word_length", "max_word_length", "max_symbols", "max_bullet_lines", "max_ellipsis_lines")
    rules = {"min_words": 50, **dict.fromkeys([*off, "min_alphabetic", "min_stop_words"])}
    config = {
        "output": "out",
        "sources": {
            name: {"class_path": "Jsonl", "init_args": {"files": [f"{name}<b>.jsonl"], "id_column": "id"}} for name in ("books", "web")
        },
        "filter": {"sources": ["web"], "gopher_quality": rules},
        "decontaminate": {"files": ["tests.txt"]},
        "split": {"validation": 0.1, "test": 0.1},
        "tokenizer": {"vocab_size": 330},
        "mix": {"weights": {"books": 1, "web": 3}, "total_tokens": 1000},
    }  # fmt: skip
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(["run", "--config", "config.yaml"]) == 0
    return tmp_path / "out"


def rows(folder) -> dict[str, int]:
    counts = {"books": 0, "web": 0}
    for file in folder.glob("*-*.parquet"):
        counts[file.name.split("-")[0]] += pq.ParquetFile(file).metadata.num_rows
    return counts


def test_every_stage_of_the_funnel_has_the_documents_of_its_files(crawl):
    card = json.loads((crawl / "card.json").read_text())
    found = {step["stage"]: step["sources"]["documents"] for step in card["funnel"]}
    assert (
        found["collected"]
        == {name: rows(crawl / "documents" / name)[name] for name in ("books", "web")}
        == {"books": 10, "web": 44}
    )
    assert (
        found["filtered"] == {"books": 10, "web": rows(crawl / "filtered" / "web")["web"]} == {"books": 10, "web": 42}
    )
    assert found["unique"] == rows(crawl / "unique") == {"books": 10, "web": 41}
    assert found["clean of test sets"] == rows(crawl / "decontaminated")
    assert card["dropped"] == [
        {"source": "web", "filter": "gopher_quality", "reason": "gopher_short_doc", "documents": 2}
    ]
    assert card["duplicates"]["web"]["exact"] == 1
    assert (card["contamination"]["contaminated"], card["contamination"]["removed_passages"]) == (1, 1)
    manifest = Manifest.load(crawl / "tokens")
    assert card["fingerprint"] == manifest.fingerprint
    assert card["tokens"] == sum(shard.tokens for shards in manifest.splits.values() for shard in shards)
    assert card["mixture"]["sources"]["web"]["weight"] == 0.75


def test_the_page_shows_it_and_escapes_what_users_write(crawl):
    page = (crawl / "card.html").read_text()
    assert "<h1>A corpus of books, web</h1>" in page
    assert "web&lt;b&gt;.jsonl" in page
    assert "<b>" not in page
    assert "gopher_short_doc" in page
    assert page.count("<svg") == 4
    assert "Settings of filtered/web" in page
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")


def test_a_run_that_changes_nothing_leaves_the_card_alone(crawl, tmp_path):
    before = {name: os.stat(crawl / name).st_mtime_ns for name in ("card.json", "card.html")}
    assert main(["run", "--config", "config.yaml"]) == 0
    assert {name: os.stat(crawl / name).st_mtime_ns for name in before} == before


def test_lengths_and_frequencies_are_those_of_the_shards_one_document_after_the_other(crawl):
    found = json.loads((crawl / "card.json").read_text())["shards"]
    manifest = Manifest.load(crawl / "tokens")
    reader = manifest.open("train")
    documents = [reader.document(k).tolist() for k in range(reader.documents)]
    sources = [shard.source for shard in manifest.shards("train") for _ in range(shard.documents)]
    for row in found["lengths"]:
        own = [len(ids) for ids, source in zip(documents, sources, strict=True) if source == row["source"]]
        assert {k: n for k, n in enumerate(row["bins"]) if n} == dict(Counter(n.bit_length() - 1 for n in own))
        assert (row["shortest"], row["longest"]) == (min(own), max(own))
        nearest = [sorted(own)[round(point / 100 * (len(own) - 1))] for point in statistics.PERCENTILES]
        assert row["percentiles"] == nearest
    assert [row["source"] for row in found["lengths"]] == ["books", "web"]
    counted = Counter(i for ids in documents for i in ids)
    top = found["frequencies"]["top"]
    assert [row["times"] for row in top] == [times for _, times in counted.most_common(len(top))]
    assert all(counted[row["id"]] == row["times"] for row in top)
    assert found["frequencies"]["read"] == found["frequencies"]["of"] == len(reader)
    counts = {(row["split"], row["source"]): row["documents"] for row in found["counts"]}
    assert counts[("train", "web")] == sources.count("web")


def test_of_many_tokens_a_sample_is_read_and_the_page_says_so(crawl, monkeypatch):
    monkeypatch.setattr(data_card, "SAMPLED_TOKENS", 3000)
    monkeypatch.setattr(statistics, "BLOCK_TOKENS", 100)
    (crawl / "card.json").unlink()
    windows = []
    read = TokenReader.read
    monkeypatch.setattr(TokenReader, "read", lambda self, start, n: windows.append((start, n)) or read(self, start, n))
    assert main(["run", "--config", "config.yaml"]) == 0
    found = json.loads((crawl / "card.json").read_text())["shards"]["frequencies"]
    assert len(windows) == 30
    assert found["read"] == sum(n for _, n in windows) == 3000
    assert max(start for start, _ in windows) > 0.9 * found["of"]
    assert np.all(np.diff([start for start, _ in windows]) >= 100)
    assert f"Counted in 3,000 of {found['of']:,} tokens" in (crawl / "card.html").read_text()


def test_a_source_is_traced_through_its_stages_to_their_settings(crawl):
    card = json.loads((crawl / "card.json").read_text())
    trails = {source["name"]: source["stages"] for source in card["sources"]}
    assert trails["books"] == ["documents/books", "unique", "decontaminated", "split", "tokens"]
    assert trails["web"] == ["documents/web", "filtered/web", *trails["books"][1:]]
    for name in {*trails["books"], *trails["web"]}:
        marker = json.loads((crawl / name / "stage.json").read_text())
        assert card["stages"][name] == {key: marker[key] for key in ("fingerprint", "output", "settings")}
    assert card["stages"]["decontaminated"]["settings"]["files"] == ["tests.txt"]


def test_the_card_has_the_same_bytes_in_another_folder_and_by_two_workers(crawl, tmp_path):
    assert main(["run", "--config", "config.yaml", "--output", str(tmp_path / "else/where"), "--workers", "2"]) == 0
    for name in ("card.json", "card.html"):
        assert (tmp_path / "else/where" / name).read_bytes() == (crawl / name).read_bytes()


def test_a_second_run_reads_no_shard_for_the_card(crawl, monkeypatch):
    for name in ("document_lengths", "token_counts"):
        monkeypatch.setattr(data_card, name, None)
    assert main(["run", "--config", "config.yaml"]) == 0


def test_a_stage_before_the_shards_writes_no_card(config_for, corpus, prepare, tmp_path):
    prepare(config_for(corpus), "split")
    assert not list(tmp_path.rglob("card.*"))
    prepare(config_for(corpus))
    assert len(list(tmp_path.rglob("card.*"))) == 2
