"""Scores of clean and of dirty questions, by hand."""

import json

import pytest
import yaml

from pipeline.commands import score_tables
from pipeline.evaluation import protocol, tasks
from pipeline.evaluation.clean_scores import CleanScores
from pipeline.evaluation.contamination import Mark
from pipeline.evaluation.harness import PipelineLM


class Read:
    """Says that texts with the word `seen` were trained on, that of those with `lost` nothing is known, and counts its calls."""

    def __init__(self):
        self.asked: list[tuple[list[str], int]] = []

    def marks(self, texts, n):
        self.asked.append((list(texts), n))
        return [
            Mark(True, ngram="is it seen", step=3, document="d7")
            if "seen" in text
            else Mark(None if "lost" in text else False)
            for text in texts
        ]


@pytest.fixture
def loaded(tmp_path):
    """Five questions, of which the second and third are dirty and nothing is known of the last, and two examples."""
    words = ["new", "seen", "seen", "fresh", "lost"]
    for split, rows in (("test", words), ("train", ["a", "b"])):
        lines = [json.dumps({"q": f"Is {word} question {i} one?", "gold": i % 2}) for i, word in enumerate(rows)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    files = {split: str(tmp_path / f"{split}.jsonl") for split in ("train", "test")}
    task = {
        "task": "split", "dataset_path": "json", "dataset_kwargs": {"data_files": files}, "test_split": "test", "fewshot_split": "train",
        "output_type": "multiple_choice", "doc_to_text": "{{q}}", "doc_to_choice": ["no", "yes"], "doc_to_target": "gold",
    }  # fmt: skip
    (tmp_path / "split.yaml").write_text(yaml.safe_dump(task))
    manager, _ = tasks.find(["split"], tmp_path, {})
    return tasks.load(manager, "split")


def test_both_parts_are_scored_and_unknown_questions_are_in_neither(loaded, gpt, tokenizer):
    output = protocol.score(PipelineLM(gpt, tokenizer), loaded, 0, seed=0)
    rows = protocol.rows_of(output, loaded)
    read = Read()
    clean = CleanScores(read)
    clean.add(rows, output, loaded)
    samples = output["samples"]["split"]
    assert [sample["contaminated"] for sample in samples] == [False, True, True, False, None]
    for row in rows:
        marks = [sample[row["metric"]] for sample in samples]
        assert row["clean"] | {"stderr": 0} == {"score": (marks[0] + marks[3]) / 2, "stderr": 0, "n": 2}
        assert row["dirty"] | {"stderr": 0} == {"score": (marks[1] + marks[2]) / 2, "stderr": 0, "n": 2}
        assert (row["dirty_share"], row["ngram"]) == (0.4, 8)
    # The right answer belongs to what must not have been read; wrong ones do not.
    assert read.asked[0] == ([f"{text}\n{answer}" for text, answer in asked()], 8)
    about = clean.about["split"]
    assert {key: about[key] for key in ("ngram", "dirty", "clean", "unknown")} == {
        "ngram": 8,
        "dirty": 2,
        "clean": 2,
        "unknown": 1,
    }
    assert about["examples"][0]["step"] == 3
    assert score_tables.contamination(rows).row_count == len(rows)


def asked():
    words = ["new", "seen", "seen", "fresh", "lost"]
    return [(f"Is {word} question {i} one?", ["no", "yes"][i % 2]) for i, word in enumerate(words)]


def test_questions_are_looked_up_once_for_all_k_and_seeds(loaded, gpt, tokenizer):
    lm, read = PipelineLM(gpt, tokenizer), Read()
    clean = CleanScores(read)
    for shots, seed in ((0, 0), (1, 0), (1, 1)):
        output = protocol.score(lm, loaded, shots, seed=seed)
        clean.add(protocol.rows_of(output, loaded), output, loaded)
    assert len(read.asked) == 1
