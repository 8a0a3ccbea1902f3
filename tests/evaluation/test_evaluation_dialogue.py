"""Dialogue: turns read from every published form, distractors that are none of the truth, and ranks counted by hand."""

import json
import math
from pathlib import Path

import pytest
from lm_eval.api.instance import Instance

from data_prep.files import InputError
from pipeline.evaluation import protocol, tasks
from pipeline.evaluation.dialogue import alike, dialogues, ranking, replies
from pipeline.evaluation.harness import PipelineLM
from pipeline.evaluation.task_files import remarks
from pipeline.evaluation.writing import distinct

FIXTURES = Path(__file__).with_name("fixtures")
SGD = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "dialogue" / "sgd.dev.utterances.jsonl.gz"
NAMES = {"U": "User", "S": "System"}


def rows_of(path: Path, **options):
    parts = dialogues(name="d", data={"d": {"test": path}}, **options)
    return [row for part in parts.values() for row in part.to_list()]


def load(name: str, file: Path = FIXTURES / "dialogue.jsonl"):
    manager, _ = tasks.find([name], None, {"data": {"dialogue_ranking": {"test": str(file)}}})
    return tasks.load(manager, name)


def write(path: Path, *dialogues_: object) -> Path:
    path.write_text("".join(json.dumps({"turns": turns}) + "\n" for turns in dialogues_))
    return path


def test_a_turn_follows_all_turns_before_it():
    sources = [json.loads(line)["turns"] for line in (FIXTURES / "dialogue.jsonl").read_text().splitlines()]
    by_first = {turns[0][1]: turns for turns in sources}
    rows = rows_of(FIXTURES / "dialogue.jsonl", speakers=NAMES)
    assert len(rows) == 12
    for row in rows:
        lines = [line.split(": ", 1) for line in row["context"].split("\n")]
        whole = [[NAMES[speaker], text] for speaker, text in by_first[lines[0][1]]]
        assert whole[: len(lines) + 1] == [*lines, [row["speaker"], row["turn"]]]
    assert {row["speaker"] for row in rows} == {"User", "System"}


def test_a_dialogue_is_asked_the_same_whatever_else_is_in_the_file(tmp_path):
    whole = FIXTURES / "dialogue.jsonl"
    (tmp_path / "half.jsonl").write_text("".join(whole.read_text().splitlines(keepends=True)[::2]))
    asked = {(row["context"], row["turn"]) for row in rows_of(whole)}
    assert {(row["context"], row["turn"]) for row in rows_of(tmp_path / "half.jsonl")} < asked
    assert {(row["context"], row["turn"]) for row in rows_of(whole, seed=1)} != asked


@pytest.mark.parametrize(
    "turns",
    [
        [["A", "Hello there."], ["B", "Good day."]],
        [{"speaker": "A", "text": "Hello there."}, {"speaker": "B", "text": "Good day."}],
        [
            {"role": "A", "content": " Hello\nthere. "},
            {"role": "B", "content": "Good day."},
            {"role": "A", "content": ""},
        ],
        ["Hello there.", "Good day."],
    ],
)
def test_every_form_of_a_dialogue_is_read(turns, tmp_path):
    [row] = rows_of(write(tmp_path / "d.jsonl", turns))
    assert row == {"context": "A: Hello there.", "speaker": "B", "turn": "Good day."}


def test_both_shipped_forms_say_the_same():
    pairs = rows_of(FIXTURES / "dialogue.jsonl", speakers={"U": "Ann", "S": "Clerk"})
    assert pairs == rows_of(FIXTURES / "dialogue_named.jsonl")


def test_distractors_are_other_turns_of_the_same_speaker():
    speaker_of = {}
    for line in (FIXTURES / "dialogue.jsonl").read_text().splitlines():
        for speaker, text in json.loads(line)["turns"]:
            speaker_of[text] = NAMES[speaker]
    rows = rows_of(FIXTURES / "dialogue.jsonl", speakers=NAMES, distractors=9)
    for row in rows:
        assert len({alike(choice) for choice in row["choices"]}) == 10
        assert row["choices"][row["gold"]] == row["turn"]
        assert {speaker_of[choice] for choice in row["choices"]} == {row["speaker"]}
        own = row["context"].split("\n")
        assert not any(f"{row['speaker']}: {choice}" in own for choice in row["choices"])
    assert len({row["gold"] for row in rows}) > 3
    assert rows == rows_of(FIXTURES / "dialogue.jsonl", speakers=NAMES, distractors=9)
    assert rows != rows_of(FIXTURES / "dialogue.jsonl", speakers=NAMES, distractors=9, seed=1)


def test_a_distractor_that_reads_as_the_truth_is_passed_over(tmp_path):
    same = [[["U", "Hi."], ["S", text]] for text in ("Good day.", "good day!", "Goodbye.", "Good  day.")]
    rows = rows_of(write(tmp_path / "d.jsonl", *same), distractors=1)
    assert all({alike(choice) for choice in row["choices"]} == {"goodday", "goodbye"} for row in rows)
    with pytest.raises(InputError, match=r"d\.jsonl line 1 has 1 different turns of S in other dialogues .* not 2"):
        rows_of(tmp_path / "d.jsonl", distractors=2)


def test_a_dialogue_in_no_known_form_is_named(tmp_path):
    with pytest.raises(InputError, match=r"d\.jsonl line 1 has turn 2 .*give \[speaker, text\]"):
        rows_of(write(tmp_path / "d.jsonl", [["U", "Hi."], {"speaker": "S"}]))
    with pytest.raises(InputError, match="give a list of"):
        rows_of(write(tmp_path / "d.jsonl", "Hi."))
    with pytest.raises(InputError, match="holds no question"):
        rows_of(write(tmp_path / "d.jsonl", [["U", "Hi."]], []))


def test_a_dialogue_of_one_turn_is_left_out_and_counted(tmp_path):
    parts = dialogues(name="d", data={"d": {"test": write(tmp_path / "d.jsonl", ["Hi.", "Hello."], ["Alone."], [])}})
    assert [row["turn"] for row in parts["test"].to_list()] == ["Hello."]
    assert "2 of fewer than two turns" in remarks(parts["test"])


def test_rank_counts_what_is_likelier():
    document = {"gold": 2, "choices": ["aa", "aaaa", "aaaaaaaa", "a"]}
    results = [(-5.0, False), (-6.0, False), (-8.0, False), (-9.0, False)]
    # Per character: -2.5, -1.5, -1, -9.
    assert ranking(document, results) == {"acc": 0.0, "acc_norm": 1.0, "mrr": pytest.approx(1 / 3), "mrr_norm": 1.0}
    # Of equal ones the first is taken.
    assert ranking({"gold": 1, "choices": ["a", "b"]}, [(-1.0, False), (-1.0, False)])["mrr"] == 0.5
    assert ranking({"gold": 0, "choices": ["a", "b"]}, [(-1.0, False), (-1.0, False)])["acc"] == 1.0


def test_a_reply_is_compared_with_the_true_turn():
    marks = replies({"turn": "It starts at nine."}, [" It starts at seven \n"])
    assert marks["f1"] == pytest.approx(3 / 4)  # three of four words, both ways
    assert marks["words"] == 4
    assert marks["distinct_1"] == "It starts at seven"


@pytest.mark.parametrize("shots", [0, 1])
def test_ranking_end_to_end(shots, lstm, tokenizer):
    loaded, lm = load("dialogue_ranking"), PipelineLM(lstm, tokenizer)
    output = protocol.score(lm, loaded, shots, seed=0)
    rows = {(row["metric"], row["scoring"]): row for row in protocol.rows_of(output, loaded)}
    marks = []
    for sample in output["samples"]["dialogue_ranking"]:
        doc, (prompt, _) = sample["doc"], sample["arguments"][0]
        assert prompt.endswith(f"{doc['context']}\n{doc['speaker']}:")
        assert prompt.count("\n\n") == shots
        asked = [
            Instance("loglikelihood", doc={}, arguments=(prompt, f" {choice}"), idx=0) for choice in doc["choices"]
        ]
        scores = [score for score, _ in lm.loglikelihood(asked)]
        marks.append(1 / (1 + sum(score > scores[doc["gold"]] for score in scores)))
    assert rows["mrr", "harness"]["score"] == pytest.approx(sum(marks) / len(marks))
    assert rows["acc", "harness"]["score"] == pytest.approx(sum(mark == 1 for mark in marks) / len(marks))
    assert rows["acc", "harness"]["chance"] == rows["acc_per_token", "paper"]["chance"] == pytest.approx(0.1)
    assert rows["mrr", "harness"]["chance"] == pytest.approx(sum(1 / rank for rank in range(1, 11)) / 10, abs=1e-4)


def test_perplexity_of_the_next_turn_end_to_end(lstm, tokenizer):
    loaded = load("dialogue_perplexity")
    output = protocol.score(PipelineLM(lstm, tokenizer), loaded, 1, seed=0)
    rows = {row["metric"]: row["score"] for row in protocol.rows_of(output, loaded)}
    samples = output["samples"]["dialogue_perplexity"]
    total = sum(sample["filtered_resps"][0][0] for sample in samples)
    words = sum(len(sample["doc"]["turn"].split()) for sample in samples)
    assert rows["word_perplexity"] == pytest.approx(math.exp(-total / words))
    size = sum(len(sample["doc"]["turn"].encode()) for sample in samples)
    assert rows["bits_per_byte"] == pytest.approx(-total / size / math.log(2))


def test_replies_end_to_end(gpt, tokenizer):
    loaded = load("dialogue_replies")
    output = protocol.score(PipelineLM(gpt, tokenizer), loaded, 1, seed=0)
    rows = {row["metric"]: row["score"] for row in protocol.rows_of(output, loaded)}
    texts = [sample["filtered_resps"][0] for sample in output["samples"]["dialogue_replies"]]
    assert not any("\n" in text for text in texts)
    assert rows["distinct_2"] == pytest.approx(distinct(texts, 2))
    assert rows["words"] == pytest.approx(sum(len(text.split()) for text in texts) / len(texts))
    assert 0 <= rows["f1"] <= 1


def test_real_dialogues_are_read():
    if not SGD.exists():
        pytest.skip("shared/data/dialogue/sgd.dev.utterances.jsonl.gz is not here")
    rows = rows_of(SGD, speakers=NAMES, distractors=9)
    assert len(rows) == 2098
    assert {row["speaker"] for row in rows} == {"User", "System"}
    assert all(len({alike(choice) for choice in row["choices"]}) == 10 for row in rows)
