"""The data card says what lies on disk: counted from the stages' files, not from their records."""

import json
import os

import pyarrow.parquet as pq
import pytest
import yaml

from data_prep.cli import main
from data_prep.shards import Manifest

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
    assert page.count("<svg") == 2
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")


def test_a_run_that_changes_nothing_leaves_the_card_alone(crawl, tmp_path):
    before = {name: os.stat(crawl / name).st_mtime_ns for name in ("card.json", "card.html")}
    assert main(["run", "--config", "config.yaml"]) == 0
    assert {name: os.stat(crawl / name).st_mtime_ns for name in before} == before


def test_a_stage_before_the_shards_writes_no_card(config_for, corpus, prepare, tmp_path):
    prepare(config_for(corpus), "split")
    assert not list(tmp_path.rglob("card.*"))
    prepare(config_for(corpus))
    assert len(list(tmp_path.rglob("card.*"))) == 2
