"""The GPT-3 paper's way to score, checked by hand: likelihood per token, over the bare answer's, and a second way to write."""

import json

import pytest
import torch
import yaml

from data_prep.files import InputError
from pipeline.evaluation import protocol, tasks
from pipeline.evaluation.harness import PipelineLM
from pipeline.evaluation.results_cache import ResultsCache

CHOICES = ["items", "a very long list of strange objects", "x"]


class Told(PipelineLM):
    """Gives the likelihoods that a table says."""

    table: dict[tuple[str, str], float]

    def loglikelihood(self, requests, disable_tqdm: bool = True):
        return [(self.table[request.args], False) for request in requests]


def task_of(folder, *more: dict, **fields):
    """One question, of whose three choices the second is right, and `more`."""
    folder.mkdir(exist_ok=True)
    rows = [{"q": "What is returned?", "gold": 1, "answer": CHOICES[1]}, *more]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": "told", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / "test.jsonl")}},
        "test_split": "test", "num_fewshot": 0, "output_type": "multiple_choice", "doc_to_text": "{{q}}", "doc_to_target": "gold",
        **({} if fields.get("output_type") == "generate_until" else {"doc_to_choice": CHOICES}), **fields,
    }  # fmt: skip
    (folder / "told.yaml").write_text(yaml.safe_dump(task))
    manager, _ = tasks.find(["told"], folder, {})
    return tasks.load(manager, "told")


def marks(output) -> dict[str, float]:
    return {key: value for key, value in output["results"]["told"].items() if "," in key and "stderr" not in key}


def test_choices_are_compared_by_likelihood_per_token_and_over_that_of_the_bare_answer(tmp_path, gpt, tokenizer):
    lm = Told(gpt, tokenizer)
    lengths = [
        len(tokenizer.encode("What is returned? " + choice)) - len(tokenizer.encode("What is returned?"))
        for choice in CHOICES
    ]
    assert lengths[0] < lengths[1]
    # In all, the first is most likely; per token the second; and against what a choice is worth anywhere, the third.
    after_question = [-3.0, -0.5 * lengths[1], -3.5]
    after_answer = [-2.0, -0.4 * lengths[1], -9.5]
    lm.table = {
        ("What is returned?", " " + choice): value for choice, value in zip(CHOICES, after_question, strict=True)
    }
    lm.table |= {("Answer:", " " + choice): value for choice, value in zip(CHOICES, after_answer, strict=True)}
    assert after_question[1] / lengths[1] > max(-3.0 / lengths[0], -3.5 / lengths[2])
    assert after_question[1] < after_question[0]
    output = protocol.score(lm, task_of(tmp_path, metadata={"paper": {"answer_context": "Answer:"}}), 0, seed=0)
    assert marks(output) == {
        "acc,none": 0.0,
        "acc_norm,none": output["results"]["told"]["acc_norm,none"],
        "acc_per_token,paper": 1.0,
        "acc_unconditional,paper": 0.0,
    }
    # ln P(c | question) - ln P(c | answer): -1, -0.1 x length, +6: now let the second win there, too.
    lm.table["Answer:", " x"] = -3.0
    lm.table["Answer:", " " + CHOICES[1]] = -2.0 * lengths[1]
    output = protocol.score(lm, task_of(tmp_path, metadata={"paper": {"answer_context": "Answer:"}}), 0, seed=0)
    assert marks(output)["acc_unconditional,paper"] == 1.0


def test_without_an_answer_context_there_is_no_ratio_and_without_the_paper_no_score_of_its(tmp_path, gpt, tokenizer):
    loaded = task_of(tmp_path)
    lm = PipelineLM(gpt, tokenizer)
    assert "acc_unconditional,paper" not in marks(protocol.score(lm, loaded, 0, seed=0))
    assert set(marks(protocol.score(lm, loaded, 0, seed=0, scoring="harness"))) == {"acc,none", "acc_norm,none"}


def test_likelihood_per_token_is_what_the_model_says(tmp_path, gpt, tokenizer):
    means = []
    context = tokenizer.encode("What is returned?")
    for choice in CHOICES:
        tokens = tokenizer.encode("What is returned? " + choice)
        logits, _ = gpt(torch.tensor([tokens]))
        chosen = logits[0, :-1].log_softmax(-1)[torch.arange(len(tokens) - 1), torch.tensor(tokens[1:])]
        means.append(chosen[len(context) - 1 :].mean().item())
    output = protocol.score(PipelineLM(gpt, tokenizer), task_of(tmp_path), 0, seed=0)
    assert marks(output)["acc_per_token,paper"] == float(means.index(max(means)) == 1)


WRITTEN = {
    "output_type": "generate_until",
    "doc_to_target": "answer",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 6},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    "metadata": {"paper": {"decoding": {"num_beams": 4, "length_penalty": 0.6}}},
}


def test_an_answer_is_written_greedily_and_by_the_papers_beam(tmp_path, gpt, tokenizer):
    output = protocol.score(PipelineLM(gpt, tokenizer), task_of(tmp_path, **WRITTEN), 0, seed=0)
    assert set(marks(output)) == {"exact_match,none", "exact_match,paper"}
    [sample] = output["samples"]["told"]
    beam = {"until": ["\n"], "max_gen_toks": 6, "num_beams": 4, "length_penalty": 0.6}
    greedy = dict(list(beam.items())[:2])
    for answers, settings in ((sample["filtered_resps"], greedy), (sample["paper"]["answers"], beam)):
        assert answers == PipelineLM(gpt, tokenizer).generate_until([request("What is returned?", settings)])
    rows = protocol.rows_of(output, task_of(tmp_path, **WRITTEN))
    assert [(row["metric"], row["scoring"]) for row in rows] == [("exact_match", "harness"), ("exact_match", "paper")]


def request(prompt: str, settings: dict):
    from lm_eval.api.instance import Instance

    return Instance("generate_until", doc={}, arguments=(prompt, settings), idx=0, metadata=("told", 0, 1))


def test_one_of_the_two_ways_can_be_had_alone(tmp_path, gpt, tokenizer):
    loaded, lm = task_of(tmp_path, **WRITTEN), PipelineLM(gpt, tokenizer)
    assert set(marks(protocol.score(lm, loaded, 0, seed=0, scoring="harness"))) == {"exact_match,none"}
    both, paper = (protocol.score(lm, loaded, 0, seed=0, scoring=scoring) for scoring in ("both", "paper"))
    assert set(marks(paper)) == {"exact_match,paper"}
    assert marks(paper)["exact_match,paper"] == marks(both)["exact_match,paper"]
    assert protocol.values_of(paper["samples"]["told"], "exact_match", "paper") == protocol.values_of(
        both["samples"]["told"], "exact_match", "paper"
    )


def test_a_question_whose_answer_is_no_choice_is_named(tmp_path, gpt, tokenizer):
    loaded = task_of(tmp_path, {"q": "And then?", "gold": 7, "answer": "?"})
    with pytest.raises(InputError, match="'told' has a question whose answer 7 is none of its 3 choices"):
        protocol.score(PipelineLM(gpt, tokenizer), loaded, 0, seed=0)


def test_a_finished_task_is_taken_from_the_cache_and_only_for_the_same_question(tmp_path, gpt, tokenizer):
    lm, loaded = PipelineLM(gpt, tokenizer), task_of(tmp_path / "task")
    first = protocol.score(lm, loaded, 0, seed=0, cache=ResultsCache(tmp_path / "cache", "weights"))

    silent = Told(gpt, tokenizer)
    silent.table = {}
    cache = ResultsCache(tmp_path / "cache", "weights")
    again = protocol.score(silent, loaded, 0, seed=0, cache=cache)
    assert again == first
    assert cache.taken == 1
    assert protocol.rows_of(again, loaded) == protocol.rows_of(first, loaded)
    for other in (
        {"cache": ResultsCache(tmp_path / "cache", "other weights")},
        {"cache": ResultsCache(tmp_path / "cache", "weights"), "limit": 1},
        {"cache": ResultsCache(tmp_path / "cache", "weights", fresh=True)},
    ):
        with pytest.raises(KeyError):
            protocol.score(silent, loaded, 0, **{"seed": 0, **other})
    with pytest.raises(KeyError):
        protocol.score(silent, task_of(tmp_path / "task", doc_to_text="{{q}} Say:"), 0, seed=0, cache=cache)


def test_a_damaged_cache_counts_as_none(tmp_path, gpt, tokenizer):
    lm, loaded, cache = PipelineLM(gpt, tokenizer), task_of(tmp_path / "task"), ResultsCache(tmp_path / "cache", "w")
    first = protocol.score(lm, loaded, 0, seed=0, cache=cache)
    [file] = (tmp_path / "cache").glob("*.json")
    file.write_text(file.read_text()[:100])
    assert protocol.score(lm, loaded, 0, seed=0, cache=cache) == first
    assert cache.taken == 0
