"""Training through the command line's own entry, in this process: exactness, resuming, refusing, overfitting."""

import csv
import json
import os
import signal
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny_runs
import torch
import yaml
from lightning import Callback

from data_prep.shards import Manifest
from pipeline.checkpoint import find_checkpoint, open_state, read_weights
from pipeline.cli import main
from pipeline.training_cli import TrainingCLI

STEPS, BATCH = 50, 512
GPT = {
    "class_path": "TransformerConfig",
    "init_args": {"vocab_size": 512, "context": 32, "layers": 2, "width": 32, "heads": 2, "dropout": 0.1},
}
LSTM = {"class_path": "LSTMConfig", "init_args": {"vocab_size": 512, "layers": 2, "width": 32, "dropout": 0.1}}
GRU = {
    "class_path": "GRUConfig",
    "init_args": {"vocab_size": 512, "layers": 2, "width": 32, "dropout": 0.1, "variational": True},
}
RNN = {
    "class_path": "RNNConfig",
    "init_args": {"vocab_size": 512, "layers": 1, "width": 32, "embedding": "one-hot", "tied": False},
}
RECURRENT_SEQ2SEQ = {
    "class_path": "RecurrentSeq2SeqConfig",
    "init_args": {
        "vocab_size": 512, "layers": 1, "width": 32, "cell": "gru", "attention": "additive", "bidirectional": True, "dropout": 0.1,
    },
}  # fmt: skip
TRANSFORMER_SEQ2SEQ = {
    "class_path": "TransformerSeq2SeqConfig",
    "init_args": {
        "vocab_size": 512, "context": 32, "encoder_layers": 1, "decoder_layers": 1, "width": 32, "heads": 2, "dropout": 0.1,
    },
}  # fmt: skip
CLASSIFIER = {"class_path": "ClassifierConfig", "init_args": {"vocab_size": 512, "classes": 2, "body": GPT}}

# Every family on the kind of data that it is for: architecture, fixture of the shards, what else the configuration says.
FAMILIES = {
    "gpt": (GPT, "tokens_folder", {}),
    "lstm": (LSTM, "tokens_folder", {}),
    "lstm on streams": (LSTM, "tokens_folder", {"data__order": "stream"}),
    "gru on streams": (GRU, "tokens_folder", {"data__order": "stream"}),
    "rnn on streams": (RNN, "tokens_folder", {"data__order": "stream"}),
    "recurrent seq2seq": (
        RECURRENT_SEQ2SEQ, "pairs_folder",
        {"data__order": "pairs", "model__scheduled_sampling": 0.5, "model__label_smoothing": 0.1, "data__total_tokens": 30 * 256},
    ),
    "transformer seq2seq": (TRANSFORMER_SEQ2SEQ, "pairs_folder", {"data__order": "pairs"}),
    "classifier": (CLASSIFIER, "labelled_folder", {"data__order": "pairs", "data__labels": ["with", "without"]}),
}  # fmt: skip


def write_config(path: Path, tokens: Path, architecture: dict, **overrides) -> Path:
    longer = {"model__schedule": {"warmup_tokens": 4 * BATCH}, "data__total_tokens": STEPS * BATCH}
    return tiny_runs.write_config(
        path, tokens, architecture, **(longer | {"data__validate_every_tokens": 20 * BATCH} | overrides)
    )


def fit(config: Path, *arguments: str) -> list[dict[str, str]]:
    """Train, and return the rows of metrics.csv."""
    assert main(["fit", "--config", str(config), *arguments]) == 0
    return rows(config.parent / "run")


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def exact(logged: list[dict[str, str]]) -> list[tuple[str, ...]]:
    """What must be the same, to the last digit, however a run was cut into pieces."""
    names = ("step", "tokens", "train/loss", "train/grad_norm", "train/learning_rate", "val/loss", "val/bits_per_byte")
    return [tuple(row.get(name, "") for name in names) for row in logged]


class SignalAfter(Callback):
    """Sends this process a signal in the middle of a step."""

    def __init__(self, step: int):
        self.step = step

    def on_before_zero_grad(self, trainer, pl_module, optimizer):
        if trainer.global_step == self.step and pl_module.step_begins:
            os.kill(os.getpid(), signal.SIGINT)


def stop_at(config: Path, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    original = TrainingCLI.instantiate_trainer

    def with_signal(self, **kwargs):
        trainer = original(self, **kwargs)
        trainer.callbacks.insert(0, SignalAfter(step))
        return trainer

    with monkeypatch.context() as patch:
        patch.setattr(TrainingCLI, "instantiate_trainer", with_signal)
        with pytest.raises(SystemExit) as stopped:
            main(["fit", "--config", str(config)])
    assert stopped.value.code == 128 + signal.SIGINT


def corpus_of(family: str, request: pytest.FixtureRequest) -> tuple[dict, Path, dict]:
    architecture, folder, options = FAMILIES[family]
    return architecture, request.getfixturevalue(folder), options


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("micro_batch", [16, 4], ids=["whole", "accumulated"])
def test_a_run_stopped_in_the_middle_and_resumed_repeats_every_loss(
    family, micro_batch, request, tmp_path, monkeypatch
):
    architecture, tokens, options = corpus_of(family, request)
    steps = STEPS if family in ("gpt", "lstm on streams") else 20
    options = options | {
        "data__micro_batch": micro_batch,
        "data__total_tokens": steps * BATCH // (2 if "pairs" in str(options) else 1),
    }
    whole = fit(write_config(tmp_path / "whole" / "c.yaml", tokens, architecture, **options))
    if micro_batch == 16:
        again = fit(write_config(tmp_path / "again" / "c.yaml", tokens, architecture, **options))
        assert exact(again) == exact(whole)

    config = write_config(tmp_path / "stopped" / "c.yaml", tokens, architecture, **options)
    middle = int(whole[-1]["step"]) // 2
    stop_at(config, middle, monkeypatch)
    stopped = rows(tmp_path / "stopped" / "run")
    assert middle <= int(stopped[-1]["step"]) < middle + 3  # further where a validation was due
    resumed = fit(config, "--ckpt_path", "last")
    assert exact(resumed) == exact(whole)
    assert [row["step"] for row in resumed if row["train/loss"]] == [str(k + 1) for k in range(int(whole[-1]["step"]))]


@pytest.mark.parametrize("family", FAMILIES)
def test_accumulation_changes_no_loss(family, request, tmp_path):
    architecture, tokens, options = corpus_of(family, request)
    architecture = yaml.safe_load(yaml.safe_dump(architecture).replace("dropout: 0.1", "dropout: 0.0"))
    options = options | {
        "model__scheduled_sampling": 0.0, "trainer__precision": "32-true", "data__total_tokens": 3000, "data__validation_tokens": 100,
    }  # fmt: skip
    losses = []
    for micro_batch in (16, 4):
        config = write_config(
            tmp_path / str(micro_batch) / "c.yaml", tokens, architecture, **options, data__micro_batch=micro_batch
        )
        losses.append([float(row["train/loss"]) for row in fit(config) if row["train/loss"]])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_training_lowers_the_validation_loss(family, request, tmp_path):
    architecture, tokens, options = corpus_of(family, request)
    config = write_config(tmp_path / "c.yaml", tokens, architecture, **options, data__validation_tokens=None)
    logged = fit(config)
    classes = len(options.get("data__labels", ()))
    last = [float(row["val/loss"]) for row in logged if row["val/loss"]][-1]
    assert last < (0.69 if classes else 6.0)  # ln 2, and ln 512 = 6.24
    assert (logged[-1].get("val/bits_per_byte", "") == "") == bool(classes)
    assert main(["validate", "--config", str(config), "--ckpt_path", "last"]) == 0
    record = json.loads((tmp_path / "run" / "validation.json").read_text())
    assert record["loss"] == pytest.approx(last, rel=1e-6)
    assert record["tokens_seen"] == int(logged[-1]["tokens"])
    assert main(["predict", "--config", str(config), "--ckpt_path", "last"]) == 0
    predictions = pq.read_table(tmp_path / "run" / "predictions.parquet").to_pydict()
    assert all(np.isfinite(nll).all() for nll in predictions["nll"])


def test_a_stream_carries_its_state_so_that_short_batches_lose_no_past(tokens_folder, tmp_path):
    """With the weights at rest, rows of 8 tokens with a carried state have the loss of rows of 32 tokens."""
    losses = {}
    for context in (8, 32):
        options = {"data__order": "stream", "data__context": context, "data__batch_tokens": 16 * context}
        options |= {"data__micro_batch": 16, "data__total_tokens": 16 * 32 * 10, "trainer__precision": "32-true"}
        config = write_config(tmp_path / str(context) / "c.yaml", tokens_folder, LSTM, **options)
        rate = ["--model.optimizer.learning_rate", "1e-30", "--model.architecture.dropout", "0"]
        losses[context] = [float(row["train/loss"]) for row in fit(config, *rate) if row["train/loss"]]
    of_four = np.array(losses[8]).reshape(-1, 4).mean(1)
    assert of_four.tolist() == pytest.approx(losses[32], rel=1e-5)


def test_a_classifier_begins_with_the_weights_of_a_run(labelled_folder, tmp_path):
    options = {"data__total_tokens": None, "data__total_epochs": 1}
    fit(write_config(tmp_path / "language" / "c.yaml", labelled_folder, GPT, **options))
    taught = {
        "data__order": "pairs",
        "data__labels": ["with", "without"],
        "model__pretrained": str(tmp_path / "language/run"),
    }
    config = write_config(tmp_path / "sentiment" / "c.yaml", labelled_folder, CLASSIFIER, **taught)
    fit(config, "--model.optimizer.learning_rate", "1e-30", "--model.optimizer.weight_decay", "0")
    before, after = (
        read_weights(open_state(find_checkpoint(tmp_path / name / "run", "last"))) for name in ("language", "sentiment")
    )
    best = read_weights(open_state(find_checkpoint(tmp_path / "language/run")))
    body = {name.removeprefix("body."): w for name, w in after.items() if name.startswith("body.")}
    assert len(body) > 20
    assert all(torch.equal(weight, best[name]) for name, weight in body.items())
    assert set(before) >= set(body)


def test_epochs_are_counted_where_tokens_are_not_given(pairs_folder, tmp_path):
    options = {"data__order": "pairs", "data__total_tokens": None, "data__total_epochs": 2}
    logged = fit(write_config(tmp_path / "c.yaml", pairs_folder, TRANSFORMER_SEQ2SEQ, **options))
    lengths = Manifest.load(pairs_folder).open("train").pair_lengths()
    kept = lengths[lengths.max(1) <= 32]
    assert int(logged[-1]["step"]) == 2 * len(kept) // 16
    assert int(logged[-1]["tokens"]) == pytest.approx(2 * kept[:, 1].sum(), rel=0.02)


@pytest.mark.parametrize(
    ("family", "options", "words"),
    [
        ("gpt", {"data__order": "stream"}, "has no state to carry"),
        (
            "gpt",
            {"model__architecture": GPT | {"init_args": GPT["init_args"] | {"document_end": 7}}},
            "document_end is 7, but",
        ),
        ("gpt", {"data__order": "pairs"}, "holds plain documents"),
        ("transformer seq2seq", {"data__order": "shuffled"}, "encoder-decoders train on data.order pairs"),
        ("classifier", {"data__labels": None}, "labels names 0 classes"),
        ("classifier", {"data__labels": ["with", "without", "third"]}, "labels names 3 classes"),
        ("classifier", {"data__labels": ["with", "wihtout"]}, "does not name: 'without'"),
        ("classifier", {"data__order": "shuffled"}, "and data.order pairs"),
        ("gpt", {"model__scheduled_sampling": 0.5}, "scheduled_sampling is for encoder-decoders"),
        ("gpt", {"model__label_smoothing": 1.0}, "label_smoothing is 1.0"),
        ("gpt", {"data__total_epochs": 2}, "give one of the two"),
        ("gpt", {"model__pretrained": "nowhere"}, "no run directory nowhere"),
    ],
)
def test_a_model_on_data_that_it_cannot_use_is_refused(family, options, words, request, tmp_path, capsys):
    architecture, tokens, usual = corpus_of(family, request)
    config = write_config(tmp_path / "c.yaml", tokens, architecture, **usual | options)
    try:
        status = main(["fit", "--config", str(config)])
    except SystemExit as stopped:
        status = stopped.code
    captured = capsys.readouterr()
    assert status == 2, captured.err
    assert words in captured.err
    assert not (tmp_path / "run" / "run.json").exists()
