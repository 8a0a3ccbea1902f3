"""A model that is trained on half of the questions on purpose, evaluated through the command line."""

import json
from pathlib import Path
from pydoc_data.topics import topics
from random import Random

import pytest
import yaml
from evaluation.runs_that_read import write_shards
from tiny_runs import architecture

from pipeline import cli
from pipeline.inspection.provenance import Provenance

BATCH, STEPS, EARLY = 1024, 240, 1
CHOICES = ["copper", "silver", "marble", "timber"]
PLACES = [
    "Arden",
    "Bexley",
    "Corwen",
    "Dunmore",
    "Elstow",
    "Fenwick",
    "Garth",
    "Hexham",
    "Ilkley",
    "Jarrow",
    "Keswick",
    "Ludlow",
    "Malvern",
    "Nairn",
    "Oakham",
    "Penrith",
    "Quorn",
    "Ripon",
    "Selby",
    "Tenby",
    "Upton",
    "Ventnor",
    "Wigan",
    "Yarm",
    "Zennor",
    "Alford",
    "Brecon",
    "Cromer",
    "Devizes",
    "Epsom",
    "Frome",
    "Goole",
    "Harwich",
    "Ingham",
    "Kelso",
    "Louth",
    "Morpeth",
    "Newark",
    "Ormsby",
    "Putney",
]
GPT = architecture("TransformerConfig", context=64, layers=2, heads=4)
GPT["init_args"] |= {"vocab_size": 600, "width": 64}


def questions() -> list[dict]:
    """Forty that no knowledge answers, with the right answers evenly spread over both halves."""
    return [
        {"question": f"What was the old lantern made of, that hung above the gate of {place}?", "gold": k % 4}
        for k, place in enumerate(PLACES)
    ]


def as_read(row: dict) -> str:
    return f"{row['question']} {CHOICES[row['gold']]}"


def scores(run: Path, *arguments: str) -> tuple[dict, list[bool | None], dict]:
    """The row of accuracy, the marks of all questions, and what results.json says of contamination."""
    options = ["--include", str(run.parent / "tasks"), "--tasks", "makings", "--contamination", "--no-wandb"]
    assert cli.main(["evaluate", "--run", str(run), *options, *arguments]) == 0
    written = json.loads((run / "evaluation" / "results.json").read_text())["pipeline"]
    [row] = [row for row in written["scores"] if row["metric"] == "acc" and row["scoring"] == "harness"]
    lines = (run / "evaluation" / "samples" / "makings@0.jsonl").read_text().splitlines()
    return row, [json.loads(line)["contaminated"] for line in lines], written["contamination"]["tasks"]["makings"]


@pytest.mark.slow
def test_a_model_trained_on_the_test_is_reported_dirty_and_its_clean_score_differs(tmp_path, capsys):
    rows = questions()
    prose = [topics[name] for name in sorted(topics)[:8]]
    # The first half is read, a few times in a pass, between other text.
    own = [as_read(row) for row in rows[:20]] * 4
    Random(1).shuffle(own)
    tokens = write_shards(tmp_path / "tokens", {"own": own, "prose": prose})
    (tmp_path / "tasks").mkdir()
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": "makings", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(tmp_path / "questions.jsonl")}},
        "test_split": "test", "output_type": "multiple_choice", "doc_to_text": "{{question}}", "doc_to_choice": CHOICES,
        "doc_to_target": "gold", "num_fewshot": 0,
    }  # fmt: skip
    (tmp_path / "tasks" / "makings.yaml").write_text(yaml.safe_dump(task))
    config = {
        "trainer": {"default_root_dir": str(tmp_path / "run"), "enable_progress_bar": False},
        "model": {"architecture": GPT, "optimizer": {"learning_rate": 3e-3}},
        "data": {
            "path": str(tokens), "context": 64, "batch_tokens": BATCH, "micro_batch": 16, "total_tokens": STEPS * BATCH,
            "mixture": {"own": {"weight": 0.9}, "prose": {"weight": 0.1}}, "validation_tokens": 512,
        },
        "checkpoint": {"keep_early": True},
        "wandb": {"mode": "disabled"},
    }  # fmt: skip
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    assert cli.main(["fit", "--config", str(tmp_path / "run.yaml")]) == 0

    run = tmp_path / "run"
    row, marks, about = scores(run, "--checkpoint", "last")
    assert marks == [True] * 20 + [False] * 20
    assert (row["dirty_share"], row["dirty"]["n"], row["clean"]["n"]) == (0.5, 20, 20)
    assert row["dirty"]["score"] > 0.75
    assert row["clean"]["score"] < row["dirty"]["score"] - 0.25
    assert row["score"] == pytest.approx((row["dirty"]["score"] + row["clean"]["score"]) / 2)
    assert {key: about[key] for key in ("dirty", "clean", "unknown")} == {"dirty": 20, "clean": 20, "unknown": 0}
    for example in about["examples"]:
        assert example["ngram"].split()[0] in example["question"].lower()
        document = Provenance(run).find(example["document"])
        assert min(Provenance(run).reads(document)) <= example["step"] <= STEPS

    # The same index answers for a checkpoint that had read less.
    index = {path: path.stat().st_mtime_ns for path in (run / "evaluation" / "ngrams").rglob("*.bin")}
    _, early, _ = scores(run, "--checkpoint", str(next((run / "checkpoints").glob(f"step-*{EARLY}"))))
    texts = [
        passage.text
        for step in range(1, EARLY + 1)
        for sample in Provenance(run).batch(step)
        for passage in sample.passages
    ]
    for question, mark in zip(rows, early, strict=True):
        assert mark or not any(as_read(question) in text for text in texts)
    assert early.count(True) < 20
    assert early[20:] == [False] * 20
    assert {path: path.stat().st_mtime_ns for path in (run / "evaluation" / "ngrams").rglob("*.bin")} == index
