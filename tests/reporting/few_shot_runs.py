"""The evaluation of a run as `evaluate` and the training loop leave it: many tasks, shots, seeds and scorings, from formulas."""

import json
import math
import random
from pathlib import Path
from typing import Any

TASKS: tuple[tuple[str, str, str, float | None, float], ...] = (
    ("translation_en_fr", "translation", "bleu", None, 9.0),
    ("translation_fr_en", "translation", "bleu", None, 14.0),
    ("squad_v2", "reading_comprehension", "f1", 0.0, 0.3),
    ("webquestions", "closed_book_qa", "exact_match", 0.0, 0.05),
    ("snli", "nli", "acc", 1 / 3, 0.06),
    ("news_articles", "news", "distinct_2", None, 0.7),
    ("dialogue_turns", "dialogue", "acc", 0.1, 0.2),
    ("dialogue_replies", "dialogue", "perplexity", None, 60.0),
    ("last_word", "cloze", "acc", 0.0, 0.3),
    ("copa", "commonsense", "acc", 0.5, 0.12),
    ("piqa", "commonsense", "acc", 0.5, 0.11),
    ("two_digit_addition", "arithmetic", "exact_match", 0.005, 0.02),
    ("unscramble_choice", "scrambling", "acc", 0.25, 0.1),
    ("sentence_polarity", "sentiment", "acc", 0.5, 0.1),
    ("mbpp", "code", "pass@1", 0.0, 0.01),
)
"""Name, kind, metric, chance, and what the best run gains."""

PUBLISHED = {
    "webquestions": {0: 0.0177, 1: 0.0256, 8: 0.0546},
    "copa": {0: 0.66, 1: 0.62, 8: 0.67},
    "piqa": {0: 0.646, 1: 0.643, 8: 0.643},
}
ARTICLE = "The council of the old harbour met on Tuesday, and it <b>met</b> again.\n\nNobody knew why & nobody asked. "
WRITERS = {
    "translation_en_fr": ("English: The sea is calm.\nFrench:", "La mer est calme.", "La mer est calme."),
    "news_articles": ("Title: A harbour reopens\nSubtitle: Boats return\nArticle:", "", " " + ARTICLE * 60),
    "dialogue_replies": ("Guest: Is breakfast included?\nClerk:", "It is, from seven to ten.", " Yes, it is.\n"),
    "webquestions": ("Q: what is the capital of peru?\nA:", "Lima", " Lima"),
}
NEVER_FULL = {"split": "test", "n": 2032, "full": False}


def evaluate(
    run: Path, strength: float = 1.0, shots: tuple[int, ...] = (0, 1, 8), copies: int = 1, shards: bool = True
) -> Path:
    """Write a run's evaluation folder: results.json, samples and in_loop.jsonl.

    Args:
        copies: how often the list of tasks is repeated under other names, for a page with many tasks.
        shards: whether questions were looked up in the training data.
    """
    rows = [
        row
        for copy in range(copies)
        for task, kind, metric, chance, gain in TASKS
        for count in shots
        for row in rows_of(
            task + ("" if not copy else f"_{copy + 1}"), kind, metric, chance, gain * strength, count, shards
        )
    ]
    folder = run / "evaluation"
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    kept = json.loads((folder / "results.json").read_text())["pipeline"] if (folder / "results.json").exists() else {}
    met = {
        "question": "what is the capital of peru",
        "ngram": "capital of peru",
        "step": 12,
        "document": "en/geo:4",
        "run": None,
    }
    index = {
        "tasks": {
            "webquestions": {"ngram": 8, "dirty": 60, "clean": 340, "short": 2, "unknown": 0, "examples": [met] * 5}
        },
        "read": [{"run": str(run), "step": 400, "tokens": 3_276_800}],
        "unknown": None,
        "indices": {"8": {"ngrams": 3_100_000, "bytes": 25_000_000}},
    }
    kept |= {"scores": rows, "contamination": index if shards else None}
    configs = {f"{task}@{count}": {"fewshot_delimiter": "\n\n"} for task in WRITERS for count in shots}
    (folder / "results.json").write_text(json.dumps({"pipeline": kept, "configs": configs}))
    for task, (question, target, answer) in WRITERS.items():
        for count in shots:
            (folder / "samples" / f"{task}@{count}.jsonl").write_text(
                samples(question, target, answer, count, strength)
            )
    (folder / "samples" / "copa@0.jsonl").write_text(
        json.dumps({"prompt": "It rained because", "asked": [" a", " b"], "answers": [[-1.5, False], [-2.0, False]]})
        + "\n"
    )
    with (folder / "in_loop.jsonl").open("w") as file:
        for step in range(50, 401, 50):
            share = strength * (1 - math.exp(-step / 150))
            record = {"step": step, "tokens": step * 8192, "seconds": 2.5 * step / 50, "share": 0.021}
            scores = [
                {"task": "copa", "shots": 0, "metric": "acc", "score": 0.5 + 0.12 * share, "stderr": 0.02, "chance": 0.5, "n": 200},
                {"task": "last_word", "shots": 1, "metric": "acc", "score": 0.3 * share, "stderr": 0.02, "chance": 0.0, "n": 200},
            ]  # fmt: skip
            file.write(json.dumps(record | {"scores": scores}) + "\n")
    return run


def rows_of(
    task: str, kind: str, metric: str, chance: float | None, gain: float, shots: int, shards: bool
) -> list[dict[str, Any]]:
    noise = random.Random(f"{task} {gain} {shots}")
    n = 400
    grown = gain * (0.6 + 0.12 * math.log2(1 + shots))
    score = gain * (2 - 0.2 * math.log2(1 + shots)) if metric == "perplexity" else (chance or 0.0) + grown
    whole = metric in ("bleu", "perplexity")
    stderr = 0.05 * score if whole else math.sqrt(max(score * (1 - score), 1e-4) / n)
    seeds = [score + noise.gauss(0, stderr / 2) for _ in range(3)] if shots else [score]
    mean = sum(seeds) / len(seeds)
    spread = math.sqrt(sum((one - mean) ** 2 for one in seeds) / max(1, len(seeds) - 1)) if len(seeds) > 1 else None
    row: dict[str, Any] = {
        "task": task, "kind": kind, "shots": shots, "metric": metric, "scoring": "harness", "score": mean, "stderr": stderr,
        "seeds": list(range(len(seeds))), "seed_scores": seeds, "spread": spread, "chance": chance, "n": n,
        "p_chance": None if chance is None else math.erfc(abs(mean - chance) / stderr / math.sqrt(2)),
        "higher_is_better": metric != "perplexity", "truncated": 3 if task == "squad_v2" else 0,
        "shots_cut": 41 if task == "squad_v2" and shots > 1 else 0, "shots_mean": 5.4 if task == "squad_v2" and shots > 1 else shots,
        "published": [{"model": "GPT-3 Small", "score": PUBLISHED[task][shots], "shots": 64 if shots > 1 else shots, **NEVER_FULL}]
        if task in PUBLISHED and shots in PUBLISHED[task]
        else [],
    }  # fmt: skip
    if kind == "commonsense":
        row["against"] = {"run": "other", "difference": 0.031, "low": 0.004, "high": 0.058, "p": 0.024}
    if shards:
        dirty = 0.15 if task == "webquestions" else 0.02 if kind == "cloze" else 0.0
        parts = {"clean": {"score": mean * (1 - dirty), "stderr": stderr * 1.1, "n": round(n * (1 - dirty))}}
        if dirty:
            parts["dirty"] = {"score": mean * (1 + 12 * dirty), "stderr": stderr * 1.4, "n": round(n * dirty)}
        row |= parts | {"dirty_share": dirty, "ngram": 8}
    rows = [row]
    if metric in ("acc", "exact_match"):
        paper = "acc_per_token" if metric == "acc" else metric
        rows.append(row | {"metric": paper, "scoring": "paper", "score": mean + 0.01, "published": []})
    return rows


def samples(question: str, target: str, answer: str, shots: int, strength: float) -> str:
    lines = []
    for number in range(5):
        asked = question.replace(":", f" {number}:", 1)
        prompt = "".join(f"{question} solved example {k}\n\n" for k in range(shots)) + asked
        line = {"prompt": prompt, "asked": [{"until": ["\n"]}], "target": target, "answers": [f"{answer} {strength}"]}
        lines.append(
            line
            | {
                "exact_match": 0.0,
                "f1": 0.5,
                "contaminated": number == 1,
                "paper": {"answers": [""], "exact_match": 1.0},
            }
        )
    return "".join(json.dumps(line) + "\n" for line in lines)
