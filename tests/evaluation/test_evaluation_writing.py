"""News: figures of written text as counted by hand, the perplexity of real articles however long, and both tasks end to end."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance

from pipeline.evaluation import protocol, tasks
from pipeline.evaluation.harness import PipelineLM
from pipeline.evaluation.task_files import remarks
from pipeline.evaluation.writing import articles, bits, distinct, figures, perplexity, repetition, shortened

NEWS = Path(__file__).with_name("fixtures") / "news.jsonl"
MASC = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "news" / "masc_newspaper.jsonl.gz"


def load(name: str, file: Path = NEWS):
    manager, _ = tasks.find([name], None, {"data": {"news_articles": {"test": str(file)}}})
    return tasks.load(manager, name)


def test_distinct_n_counts_different_n_grams():
    text = "the cat sat on the mat"  # 6 words, "the" twice; 5 pairs; 4 triples
    assert distinct([text], 1) == pytest.approx(5 / 6)
    assert distinct([text], 2) == 1
    # Over two texts the same n-grams count once, and none spans both.
    assert distinct([text, "The cat ran"], 1) == pytest.approx(6 / 9)
    assert distinct([text, "The cat ran"], 2) == pytest.approx(6 / 7)
    assert distinct([text, "The cat ran"], 3) == 1
    assert distinct(["one", ""], 2) == 0


def test_repetition_is_the_share_of_four_grams_seen_before():
    assert repetition("a b c d e f g") == 0
    # Nine words have six 4-grams: abcd bcda cdab dabc abcd bcda.
    assert repetition("a b c d a b c d a") == pytest.approx(2 / 6)
    assert repetition("no no no no no no") == pytest.approx(2 / 3)
    assert repetition("too short") == 0


def test_an_article_is_cut_after_a_whole_sentence():
    text = "One two three. Four five six!\nSeven eight nine ten eleven."
    assert shortened(text, 100) == text
    assert shortened(text, 8) == "One two three. Four five six!"
    assert shortened(text, 3) == "One two three."
    # Where half of it would go, the sentence is cut.
    assert shortened("Yes. one two three four five six seven eight", 8) == "Yes. one two three four five six seven"


def test_figures_of_an_article():
    found = figures({}, [" No, no. \n"])
    assert found["distinct_1"] == pytest.approx(3 / 4)  # no , no .
    assert found["distinct_3"] == 1
    assert found["words"] == 2
    assert found["whole_sentence"] == 1
    assert found["distinct_2_overall"] == "No, no."
    empty = figures({}, [""])
    assert (empty["distinct_1"], empty["repetition"], empty["words"], empty["whole_sentence"]) == (0, 0, 0, 0)


def test_perplexity_weighs_articles_by_their_length():
    pieces = [(-10.0, 5), (-2.0, 1)]
    assert perplexity(pieces) == pytest.approx(math.exp(12 / 6))
    assert bits(pieces) == pytest.approx(2 / math.log(2))
    assert perplexity([(-1e6, 1)]) == math.inf


def test_titles_are_found_in_the_column_or_the_first_line(tmp_path):
    rows = [
        {"headline": "A", "description": "B", "text": "C c."},
        {"text": "Title\nText of it."},
        {"title": "Nothing below", "text": " "},
        {"title": None, "text": "A line alone"},
    ]
    (tmp_path / "news.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    parts = articles(name="n", data={"n": {"test": tmp_path / "news.jsonl"}})
    assert parts["test"].to_list() == [
        {"title": "A", "subtitle": "B", "article": "C c."},
        {"title": "Title", "subtitle": "", "article": "Text of it."},
    ]
    assert remarks(parts["test"]) == "1 without article, 1 without an article under a title"


def test_prompts_have_the_papers_form():
    [task] = load("news_articles")["tasks"].values()
    documents: list[Any] = [*task.dataset["test"], *task.dataset["fewshot"]]
    titles = {doc["title"]: doc for doc in documents}
    assert task.doc_to_text(titles["Frost ruins early apples"]) == (
        "Title: Frost ruins early apples\nSubtitle: Growers ask for help\nArticle:"
    )
    assert task.doc_to_text(titles["Library lends tools"]) == "Title: Library lends tools\nArticle:"
    assert titles["Market moves to the square"]["article"].startswith("The weekly market")


def test_sampled_articles_are_kept_and_counted(gpt, tokenizer):
    loaded = load("news_articles")
    output = protocol.score(PipelineLM(gpt, tokenizer), loaded, 1, seed=0)
    rows = {row["metric"]: row for row in protocol.rows_of(output, loaded)}
    texts = [sample["filtered_resps"][0].strip() for sample in output["samples"]["news_articles"]]
    assert len(set(texts)) == len(texts) == 7
    assert rows["distinct_2_overall"]["score"] == pytest.approx(distinct(texts, 2))
    assert rows["distinct_2"]["score"] == pytest.approx(sum(distinct([text], 2) for text in texts) / 7)
    assert rows["repetition"]["score"] == pytest.approx(sum(map(repetition, texts)) / 7)
    assert rows["words"]["score"] == pytest.approx(sum(len(text.split()) for text in texts) / 7)
    assert all(row["chance"] is None for row in rows.values())


def test_perplexity_of_articles_is_that_of_the_article_after_its_prompt(lstm, tokenizer):
    loaded, lm = load("news_perplexity"), PipelineLM(lstm, tokenizer)  # a context longer than every article
    output = protocol.score(lm, loaded, 1, seed=0)
    rows = {row["metric"]: row["score"] for row in protocol.rows_of(output, loaded)}
    total = words = size = 0
    for sample in output["samples"]["news_perplexity"]:
        text, prompt = (arguments[0] for arguments in sample["arguments"])
        assert text == f"{prompt} {sample['doc']['article']}"
        assert prompt.count("Title: ") == 2
        request = Instance("loglikelihood", doc={}, arguments=(prompt, f" {sample['doc']['article']}"), idx=0)
        [(log_likelihood, _)] = lm.loglikelihood([request])
        total += log_likelihood
        words += len(sample["doc"]["article"].split())
        size += len(sample["doc"]["article"].encode())
    assert rows["word_perplexity"] == pytest.approx(math.exp(-total / words), rel=1e-4)
    assert rows["byte_perplexity"] == pytest.approx(math.exp(-total / size), rel=1e-4)
    assert rows["bits_per_byte"] == pytest.approx(-total / size / math.log(2), rel=1e-4)


@torch.inference_mode()
def test_an_article_longer_than_the_context_is_scored_whole(gpt, tokenizer):
    loaded = load("news_perplexity")
    output = protocol.score(PipelineLM(gpt, tokenizer), loaded, 0, seed=0, limit=2)

    def by_hand(text: str) -> float:
        tokens, total = [tokenizer.end_of_text, *tokenizer.encode(text)], 0.0
        for start in range(1, len(tokens), gpt.context):
            end = min(start + gpt.context, len(tokens))
            window = tokens[max(0, end - gpt.context - 1) : end]
            logits_TV = gpt(torch.tensor([window[:-1]]))[0][0].log_softmax(-1)
            new = end - start
            total += sum(float(logits_TV[i][window[i + 1]]) for i in range(len(window) - 1 - new, len(window) - 1))
        return total

    for sample in output["samples"]["news_perplexity"]:
        whole, prompt = (arguments[0] for arguments in sample["arguments"])
        assert len(tokenizer.encode(sample["doc"]["article"])) > gpt.context
        log_likelihood, words = sample["word_perplexity"]
        assert words == len(sample["doc"]["article"].split())
        assert log_likelihood == pytest.approx(by_hand(whole) - by_hand(prompt), abs=1e-3)


def test_real_articles_are_read_with_their_headlines():
    if not MASC.exists():
        pytest.skip("shared/data/news/masc_newspaper.jsonl.gz is not here")
    [task] = load("news_perplexity", MASC)["tasks"].values()
    assert {part: len(rows) for part, rows in task.dataset.items()} == {"test": 42, "fewshot": 10}
    documents: list[Any] = [*task.dataset["test"], *task.dataset["fewshot"]]
    [article] = [row["article"] for row in documents if row["title"] == "Iraq clears visit by Ohio official"]
    assert article.startswith("By Scott Montgomery Washington\nThe Iraqi government")
    assert max(len(row["article"].split()) for row in documents) <= 200
