"""Run folders as training, judging and sampling leave them, with curves from formulas and seeded noise."""

import csv
import hashlib
import json
import math
import random
from collections.abc import Callable
from pathlib import Path

import pytest

COLUMNS: list[str] = [
    *("step", "tokens", "seconds", "flops"),
    *("train/loss", "train/perplexity", "train/grad_norm", "train/grad_norm_clipped", "train/learning_rate"),
    *("train/tokens_per_second", "train/mfu", "val/loss", "val/perplexity", "val/bits_per_byte"),
]
BITS_PER_NAT_OF_A_BYTE = 1 / math.log(2) / 3.4
BATCH_TOKENS = 8192
SHA = {
    name: hashlib.sha256(name.encode()).hexdigest()
    for name in ("data", "tokenizer", "docs", "source", "torch", "numpy")
}


def write_run(
    directory: Path, family: str = "transformer", floor: float = 3.9, steps: int = 400, planned: int = 400
) -> Path:
    """A run that falls as a power of its tokens to `floor` nats per token; deterministic for its arguments."""
    noise = random.Random(f"{family} {floor} {steps}")
    speed, parameters = (16_500.0, 5_300_000) if family == "transformer" else (11_800.0, 5_150_000)
    directory.mkdir(parents=True)
    (directory / "checkpoints").mkdir()
    (directory / "checkpoints" / "best.ckpt").write_bytes(family.encode() * 1000)
    (directory / "config.yaml").write_text(f"model:\n  class_path: pipeline.models.{family}\n  # <b>not bold</b>\n")
    record = {
        "format": 1,
        "name": directory.name,
        "family": family,
        "started": "2026-01-02T03:04:05+00:00",
        "model": {"class_path": f"pipeline.models.{family}", "init_args": {"layers": 4}},
        "parameters": {"total": parameters, "non_embedding": 3_200_000},
        "flops_per_token": 6.0 * parameters,
        "data": {
            "path": "data/demo/tokens",
            "fingerprint": SHA["data"],
            "tokenizer": SHA["tokenizer"],
            "context": 256,
            "vocab_size": 4096,
            "train_tokens": 7_410_000,
            "sources": [
                {
                    "name": "python_docs",
                    "kind": "python_docs",
                    "fingerprint": SHA["docs"],
                    "packages": [
                        {"name": "torch", "version": "2.13.0", "sha256": SHA["torch"]},
                        {"name": "numpy", "version": "2.3.1", "sha256": SHA["numpy"]},
                    ],
                    "documents": 5323,
                    "text_bytes": 15_020_000,
                },
                {
                    "name": "python_source",
                    "kind": "python_source",
                    "fingerprint": SHA["source"],
                    "packages": [],
                    "documents": {"train": 1210, "validation": 24, "test": 25},
                },
            ],
        },
        "total_tokens": planned * BATCH_TOKENS,
        "environment": {
            "python": "3.11.2",
            "torch": "2.13.0",
            "processor": "Example Processor 9000",
            "cores": 2,
            "precision": "bf16",
            "matmul_peak_flops": 1.9e12,
            "world_size": 1,
        },
        "code": {"version": "0.1.0", "commit": None},
    }
    (directory / "run.json").write_text(json.dumps(record))

    def loss_at(step: int) -> float:
        return floor + (math.log(4096) - floor) * (1 + step / 12) ** -0.95

    with (directory / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="")
        writer.writeheader()
        for step in range(1, steps + 1):
            tokens = step * BATCH_TOKENS
            loss = loss_at(step)
            progress: dict[str, float] = {
                "step": step,
                "tokens": tokens,
                "seconds": round(tokens / speed, 3),
                "flops": tokens * record["flops_per_token"],
            }
            if step % 2 == 0:
                seen, norm = loss + noise.gauss(0, 0.06), 0.45 + 2.5 * math.exp(-step / 40) + abs(noise.gauss(0, 0.15))
                pace = speed * (1 - 0.08 * abs(noise.gauss(0, 1)))
                writer.writerow(
                    progress
                    | {
                        "train/loss": round(seen, 5),
                        "train/perplexity": round(math.exp(seen), 3),
                        "train/grad_norm": round(norm, 4),
                        "train/grad_norm_clipped": round(min(norm, 1.0), 4),
                        "train/learning_rate": 1e-3 * min(step / 20, 0.55 + 0.45 * math.cos(math.pi * step / planned)),
                        "train/tokens_per_second": round(pace, 1),
                        "train/mfu": round(pace * record["flops_per_token"] / 1.9e12, 5),
                    }
                )
            if step % 25 == 0:
                writer.writerow(
                    progress
                    | {
                        "val/loss": round(loss + 0.05, 5),
                        "val/perplexity": round(math.exp(loss + 0.05), 4),
                        "val/bits_per_byte": round((loss + 0.05) * BITS_PER_NAT_OF_A_BYTE, 5),
                    }
                )

    final = loss_at(steps) + 0.05
    forgets = 0.35 if family == "lstm" else 0.62
    by_position = [floor + forgets * (2.4 * (t + 1) ** -0.45 - 0.2) + noise.gauss(0, 0.05) for t in range(256)]
    validation = {
        "checkpoint": "best",
        "step": steps,
        "tokens_seen": steps * BATCH_TOKENS,
        "split": "validation",
        "loss": final,
        "perplexity": math.exp(final),
        "bits_per_byte": final * BITS_PER_NAT_OF_A_BYTE,
        "tokens": 300_000,
        "bytes": 1_020_000,
        "loss_by_position": by_position,
    }
    (directory / "validation.json").write_text(json.dumps(validation))

    strength = 1.0 if family == "transformer" else 0.7
    tasks = (
        ("two_digit_addition", "exact_match", 0.0, 0.012),
        ("two_digit_addition_choice", "acc", 0.25, 0.09),
        ("cycle_letters_choice", "acc", 0.25, 0.16),
        ("random_insertion_choice", "acc", 0.25, 0.21),
        ("last_word_cloze", "acc", 0.0, 0.11),
        ("last_word_cloze_choice", "acc", 0.25, 0.33),
    )
    scores = []
    for task, metric, chance, gain in tasks:
        for shots in (0, 5):
            score = round(chance + gain * strength * (1.0 if shots else 0.8), 4)
            scores.append(
                {
                    "task": task,
                    "shots": shots,
                    "metric": metric,
                    "score": score,
                    "stderr": round(math.sqrt(score * (1 - score) / 300), 5),
                    "chance": chance,
                    "n": 300,
                    "higher_is_better": True,
                }
            )
    perplexity = {
        "task": "last_word_cloze",
        "shots": 0,
        "metric": "perplexity",
        "score": 92.4 / strength,
        "stderr": 7.1,
    }
    scores.append(perplexity | {"chance": None, "n": 300, "higher_is_better": False})
    judged = {"checkpoint": "best", "step": steps, "tokenizer": SHA["tokenizer"], "data_fingerprint": SHA["data"]}
    (directory / "evaluation").mkdir()
    (directory / "evaluation" / "results.json").write_text(json.dumps({"pipeline": judged | {"scores": scores}}))

    settings = {"temperature": 0.8, "top_k": 40, "top_p": None, "seed": 0, "max_new_tokens": 96}
    call = {
        "time": "2026-01-02T03:14:05+00:00",
        "checkpoint": "best",
        "tokens_seen": steps * BATCH_TOKENS,
        "settings": settings,
    }
    calls = [
        {
            "prompt": "Return the number of",
            "completions": [
                " elements in the sequence that are equal to *value*.\n\n    >>> count([1, 2, 2], 2)\n    2\n\n"
                "If the sequence is empty, :exc:`ValueError` is raised. See also\n`index` and `find`.",
                " <script>alert(1)</script> tags that were found & closed.\n\ngenerate_tokens(readline)"
                " → “tokens”, naïve ☃ 日本語\n",
            ],
        },
        {
            "prompt": "class ",
            "completions": ["Queue(maxsize=0)\n    A queue that blocks.\n\n    def put(self, item): ..."],
        },
    ]
    (directory / "samples.jsonl").write_text("".join(json.dumps(call | one) + "\n" for one in calls), encoding="utf-8")
    return directory


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Writes a run folder below the test's folder of runs: make_run("gpt", family=..., steps=...) -> its path."""

    def make(name: str = "gpt", **settings: object) -> Path:
        return write_run(tmp_path / "runs" / name, **settings)  # pyright: ignore[reportArgumentType]

    return make
