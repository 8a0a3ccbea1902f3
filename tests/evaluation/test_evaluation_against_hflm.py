"""The harness's own HFLM on the same weights: each likelihood within 1e-4, each text the same, task by task and case by case."""

import json
from pathlib import Path

import pytest
import torch
from evaluation.twins import as_fast, as_gpt2, hflm
from lm_eval.api.instance import Instance
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager

from pipeline.checkpoint import load_run
from pipeline.cli import main
from pipeline.evaluation.harness import PipelineLM

STORIES = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "models"
CAPITALS = [
    ("France", "Paris"),
    ("Italy", "Rome"),
    ("Spain", "Madrid"),
    ("Peru", "Lima"),
    ("Cuba", "Havana"),
    ("Kenya", "Nairobi"),
]

COMMON = {
    "dataset_path": "json",
    "test_split": "test",
    "fewshot_split": "train",
    "tag": "compared",
    "metadata": {"version": 1},
}
TASKS = {
    "choose": {
        "output_type": "multiple_choice", "doc_to_text": "The capital of {{country}} is", "doc_to_target": "{{gold}}",
        "doc_to_choice": "{{choices}}", "target_delimiter": " ",
    },
    "told": {
        "output_type": "loglikelihood", "doc_to_text": "The capital of {{country}} is", "doc_to_target": " {{city}}, and so on.",
        "target_delimiter": "",
        "metric_list": [{"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}],
    },
    "write": {
        "output_type": "generate_until", "doc_to_text": "Q: What is the capital of {{country}}?\nA:", "doc_to_target": "{{city}}",
        "generation_kwargs": {"until": ["\n", "Q:"], "max_gen_toks": 12},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    },
    "read": {
        "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}", "num_fewshot": 0,
        "metric_list": [{"metric": "word_perplexity", "aggregation": "weighted_perplexity", "higher_is_better": False}],
    },
}  # fmt: skip
SHOTS = 3


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> Path:
    """Four tasks of the kinds that the harness knows, over one local file."""
    folder = tmp_path_factory.mktemp("compared")
    rows = []
    for i, (country, city) in enumerate(CAPITALS):
        choices = [city, CAPITALS[i - 1][1], "a cat", "x"]
        # No sentence twice: of windows that end alike HFLM's cache for one-token answers gives one the other's likelihood.
        others = [f"{b} is not the capital of {a}" for a, _ in CAPITALS for _, b in CAPITALS if (a, b) not in CAPITALS]
        text = f"{city} is the capital of {country}. " + ". ".join(others[: 5 * i])
        rows.append({"country": country, "city": city, "choices": choices, "gold": 0, "text": text})
    files = {}
    for split, part in (("train", rows[:4]), ("test", rows[3:])):
        files[split] = str(folder / f"{split}.jsonl")
        Path(files[split]).write_text("".join(json.dumps(row) + "\n" for row in part))
    for name, fields in TASKS.items():
        task = {"task": name, "dataset_kwargs": {"data_files": files}, **COMMON, **fields}
        (folder / f"{name}.yaml").write_text(json.dumps(task))
    return folder


def answers(lm, folder: Path) -> dict[str, list]:
    """What the harness got of a model for each question of each task, three examples before it."""
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    found = {}
    for name in TASKS:
        loaded = manager.load([name])
        [task] = loaded["tasks"].values()
        if TASKS[name].get("num_fewshot") is None:
            task.set_config("num_fewshot", SHOTS)
        task.set_fewshot_seed(0)
        samples = evaluate(lm, loaded, bootstrap_iters=0)["samples"][name]
        found[name] = [sample["resps"] for sample in sorted(samples, key=lambda sample: sample["doc_id"])]
        if name != "read":
            assert samples[0]["arguments"][0][0].count("capital") == SHOTS + 1
    return found


def flat(answer) -> list:
    return [each for part in answer for each in flat(part)] if isinstance(answer, list | tuple) else [answer]


def assert_same_answers(ours, theirs, folder: Path) -> None:
    mine, other = answers(ours, folder), answers(theirs, folder)
    for name in TASKS:
        for a, b in zip(flat(mine[name]), flat(other[name]), strict=True):
            assert a == (pytest.approx(b, abs=1e-4, rel=1e-6) if isinstance(b, float) else b), name
    assert len({*flat(mine["write"])}) > 1, "all answers are alike, which compares little"


@pytest.fixture(scope="module")
def roomy(tokenizer):
    """A GPT-2 that three examples fit into."""
    from evaluation.conftest import spread_out

    from pipeline.models.transformer import TransformerConfig

    torch.manual_seed(1)
    return spread_out(
        TransformerConfig(vocab_size=tokenizer.vocab_size, context=160, layers=2, width=32, heads=4).build()
    )


def test_four_kinds_of_few_shot_tasks_have_the_answers_of_hflm(roomy, tokenizer, tasks):
    theirs = hflm(as_gpt2(roomy), as_fast(tokenizer), max_length=roomy.context)
    assert_same_answers(PipelineLM(roomy, tokenizer, batch_tokens=300), theirs, tasks)


def test_cut_few_shot_prompts_have_the_answers_of_hflm_too(gpt, tokenizer, tasks):
    ours = PipelineLM(gpt, tokenizer)
    assert_same_answers(ours, hflm(as_gpt2(gpt), as_fast(tokenizer), max_length=gpt.context), tasks)
    assert ours.truncated > 0


@pytest.mark.skipif(not STORIES.is_dir(), reason="the shared models are not on this machine")
def test_stories260k_has_the_answers_of_hflm(tmp_path, tasks):
    transformers = pytest.importorskip("transformers")
    folder, run = STORIES / "stories260K-hf", tmp_path / "run"
    assert main(["import", "--from", str(folder), "--run", str(run), "--tokenizer", str(STORIES / "tok512.bin")]) == 0
    loaded = load_run(run)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    theirs = hflm(theirs, as_fast(loaded.tokenizer), max_length=loaded.model.context)
    assert_same_answers(PipelineLM(loaded.model, loaded.tokenizer), theirs, tasks)


BOUNDARIES = {
    "a word that goes on": ("The inter", "nal value"),
    "a blank at the end of the context": ("The internal ", "value"),
    "two blanks at the end": ("The internal  ", "value"),
    "a line break at the end": ("The internal\n", "value"),
    "a blank before and after": ("The internal ", " value "),
    "blanks alone are scored": ("The internal", "   "),
    "punctuation that joins": ("print(", ")."),
    "characters of several bytes": ("naïve café", "é – 日本語"),
    "a character cut in two by nothing": ("日", "本"),
    "nothing before": ("", " value of it"),
    "one token": ("The value of", " the"),
    "digits that join": ("12", "34"),
}


@pytest.mark.parametrize("case", BOUNDARIES)
def test_a_continuation_is_split_from_its_context_as_by_hflm(case, gpt, tokenizer):
    asked = [Instance("loglikelihood", doc={}, arguments=BOUNDARIES[case], idx=0, metadata=("t", 0, 1))]
    theirs = hflm(as_gpt2(gpt), as_fast(tokenizer), max_length=gpt.context)
    [(score, greedy)] = PipelineLM(gpt, tokenizer).loglikelihood(asked)
    [(expected, same)] = theirs.loglikelihood(asked, disable_tqdm=True)
    assert score == pytest.approx(expected, abs=1e-4)
    assert greedy == same


def merging_pair(tokenizer) -> tuple[str, str]:
    """A context and a continuation that together have no more tokens than the context alone."""
    for token in range(256, tokenizer.vocab_size):
        text = tokenizer.decode([token])
        for cut in range(1, len(text)):
            if len(tokenizer.encode(text[:cut])) == len(tokenizer.encode(text)) and text[:cut].strip() == text[:cut]:
                return text[:cut], text[cut:]
    raise AssertionError("no token of this vocabulary merges so")


def test_a_continuation_that_merges_into_its_context_whole_is_certain(gpt, tokenizer):
    # HFLM refuses these with an assertion: there is no token of which it could give the likelihood.
    cases = [merging_pair(tokenizer), ("The value", ""), ("", ""), ("  ", "")]
    asked = [
        Instance("loglikelihood", doc={}, arguments=case, idx=0, metadata=("t", i, 1)) for i, case in enumerate(cases)
    ]
    scores = PipelineLM(gpt, tokenizer).loglikelihood(asked)
    assert scores[:3] == [(0.0, True)] * 3
    assert scores[3][0] < 0, "blanks alone are what is scored"


def test_a_beam_search_without_a_length_penalty_finds_the_texts_of_hflm(gpt, tokenizer):
    theirs = hflm(as_gpt2(gpt), as_fast(tokenizer), max_length=gpt.context)
    settings = {"until": ["\n\n"], "max_gen_toks": 6, "num_beams": 3}
    texts = ["Return the number", "If the", "An object that", "The value of"]

    def asked(**more) -> list[Instance]:
        return [
            Instance("generate_until", doc={}, arguments=(text, settings | more), idx=0, metadata=("t", i, 1))
            for i, text in enumerate(texts)
        ]

    mine = PipelineLM(gpt, tokenizer).generate_until(asked(length_penalty=0.0))
    # Only so does transformers go on until no open beam can win, as our search does.
    other = theirs.generate_until(asked(length_penalty=0.0, early_stopping="never"), disable_tqdm=True)
    assert mine == other
