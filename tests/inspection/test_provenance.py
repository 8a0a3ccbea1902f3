"""`inspect --step` and `--document` against the batches that training was really given."""

import json
import pydoc_data.topics
import shutil
from collections import defaultdict
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random

import numpy as np
import pyarrow as pa
import pytest
import yaml

from data_prep.document import DocumentWriter
from data_prep.shards import Manifest, ShardWriter
from data_prep.tokenizer import Tokenizer
from pipeline import cli
from pipeline.batch import Batch
from pipeline.inspection.provenance import Provenance
from pipeline.loader import TrainingLoader
from pipeline.models.base import NO_TOKEN

BATCH, STEPS, EPOCHS_STEPS = 256, 12, 100
LSTM = {"class_path": "LSTMConfig", "init_args": {"vocab_size": 512, "layers": 1, "width": 8}}
SEQ2SEQ = {
    "class_path": "RecurrentSeq2SeqConfig",
    "init_args": {"vocab_size": 512, "layers": 1, "width": 8, "cell": "gru"},
}
CLASSIFIER = {"class_path": "ClassifierConfig", "init_args": {"vocab_size": 512, "classes": 2, "body": LSTM}}
CASES = {
    "windows": (LSTM, "library", {}),
    "epochs": (LSTM, "library", {"total_tokens": EPOCHS_STEPS * BATCH}),
    "streams": (LSTM, "library", {"order": "stream"}),
    "mixture": (LSTM, "library", {"mixture": {"prose": {"weight": 0.7}, "verse": {"weight": 0.3}}}),
    "ramp": (LSTM, "library", {"batch_ramp": {"start_tokens": 64, "over_tokens": 6 * BATCH}}),
    "contexts": (LSTM, "library", {"context_schedule": {0: 8, 4 * BATCH: 32}}),
    "continued with other batches": (LSTM, "library", {}),
    "pairs": (SEQ2SEQ, "pairs_folder", {"order": "pairs"}),
    "labels": (CLASSIFIER, "labelled_folder", {"order": "pairs", "labels": ["with", "without"]}),
}

CONTINUED = [
    "--ckpt_path", "last", "--data.batch_tokens", "128", "--data.allow_changes", "[batch_tokens]",
    "--data.total_tokens", str(2 * STEPS * BATCH),
]  # fmt: skip


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sources of short documents in several shards, with their Parquet files as `data_prep run` leaves them."""
    folder, random = tmp_path_factory.mktemp("library"), Random(0)
    words = pydoc_data.topics.topics["assignment"].split()
    texts = {
        name: [" ".join(random.choices(words, k=random.randint(1, 20))) for _ in range(count)]
        for name, count in (("prose", 300), ("verse", 170))
    }
    tokenizer = Tokenizer.train([text for some in texts.values() for text in some], 512)
    tokens, splits = folder / "tokens", {}
    for split in ("train", "validation"):
        shards = []
        for source, documents in texts.items():
            rows = [np.append(ids, tokenizer.end_of_text) for ids in tokenizer.encode_batch(documents)]
            with ShardWriter(tokens, split, source, "uint16", 1500) as writer:
                writer.add(np.concatenate(rows), np.array([len(row) for row in rows]), np.array([*map(len, documents)]))
            shards += writer.shards
            ids = [f"{split}/{source}/{number}" for number in range(len(documents))]
            with DocumentWriter(folder / "split" / split, source) as parquet:
                parquet.add(pa.record_batch({"id": ids, "text": documents}))
        splits[split] = tuple(shards)
    tokenizer.save(tokens)
    sources = [{"name": name, "kind": "test", "fingerprint": "0" * 64} for name in texts]
    Manifest(
        tokens, "uint16", tokenizer.vocab_size, tokenizer.end_of_text, tokenizer.fingerprint, sources, splits
    ).save()
    return tokens


class Trained:
    """A run, and the batches that its loader handed out, by step from 1."""

    def __init__(self, folder: Path, steps: list[list[Batch]]):
        self.folder, self.steps = folder, dict(enumerate(steps, 1))


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Callable[[str], Trained]:
    """Trains a case once."""

    @cache
    def train(case: str) -> Trained:
        folder = tmp_path_factory.mktemp(case)
        architecture, fixture, settings = CASES[case]
        data = {
            "path": str(request.getfixturevalue(fixture)), "context": 32, "batch_tokens": BATCH, "micro_batch": 2,
            "total_tokens": STEPS * BATCH, "validation_tokens": 64,
        }  # fmt: skip
        config = {
            "trainer": {"default_root_dir": str(folder / "run"), "enable_progress_bar": False},
            "model": {"architecture": architecture},
            "data": data | settings,
            "wandb": {"mode": "disabled"},
        }
        (folder / "run.yaml").write_text(yaml.safe_dump(config))
        steps: list[list[Batch]] = [[]]
        iterate = TrainingLoader.__iter__

        def recorded(self):
            for batch in iterate(self):
                steps[-1].append(batch)
                if batch.ends_step:
                    steps.append([])
                yield batch

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(TrainingLoader, "__iter__", recorded)
            for arguments in [[], CONTINUED] if case == "continued with other batches" else [[]]:
                assert cli.main(["fit", "--config", str(folder / "run.yaml"), *arguments]) == 0
        return Trained(folder / "run", [step for step in steps if step])

    return train


def read_by(batch: Batch) -> list[list[int]]:
    """The tokens that each row of a batch has, the last target included."""
    rows = []
    for row in range(len(batch.samples_B)):
        if batch.source_BS is not None:
            sides = [batch.source_BS[row], batch.targets_BT[row]]
            rows.append([token for side in sides for token in side.tolist() if token != NO_TOKEN])
        else:
            rows.append([*batch.tokens_BT[row].tolist(), batch.targets_BT[row, -1].item()])
    return rows


def inspected(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict:
    capsys.readouterr()
    assert cli.main(["inspect", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def tokens_of(folder: Path, passage: dict) -> list[int]:
    """What stands in the shard at the place that a passage names."""
    shard = np.fromfile(folder / f"{passage['document']['shard']}.bin", np.uint16)
    return shard[passage["offset"] :][: passage["tokens"]].tolist()


@pytest.mark.parametrize("case", [case for case in CASES if case != "labels"])
def test_a_step_lists_what_training_was_given(case, train, capsys, request):
    run, folder = train(case), request.getfixturevalue(CASES[case][1])
    assert len(run.steps) == Provenance(run.folder).steps
    tokenizer = Tokenizer.load(folder)
    for step in (1, 2, len(run.steps) // 2, len(run.steps)):
        shown = inspected(capsys, "--run", run.folder, "--step", step)
        assert shown["trained"]
        positions = [int(position) for batch in run.steps[step] for position in batch.samples_B]
        assert [sample["position"] for sample in shown["samples"]] == positions
        rows = [row for batch in run.steps[step] for row in read_by(batch)]
        for sample, row in zip(shown["samples"], rows, strict=True):
            assert [token for passage in sample["passages"] for token in tokens_of(folder, passage)] == row
            for passage in sample["passages"]:
                texts = "".join(passage[side] or "" for side in ("text", "target"))
                assert texts == tokenizer.decode(tokens_of(folder, passage)).replace("<|endoftext|>", "")


def test_a_step_of_labelled_texts_lists_text_and_label(train, capsys, labelled_folder):
    run, tokenizer = train("labels"), Tokenizer.load(labelled_folder)
    shown = inspected(capsys, "--run", run.folder, "--step", 3)
    rows = [(row, target) for batch in run.steps[3] for row, target in zip(*batch[:2], strict=True)]
    for sample, (tokens, targets) in zip(shown["samples"], rows, strict=True):
        [passage] = sample["passages"]
        end = int((targets != NO_TOKEN).nonzero())
        assert passage["text"] == tokenizer.decode(tokens[:end].tolist())
        assert passage["target"] == ["with", "without"][int(targets[end])]


@pytest.mark.parametrize("case", CASES)
def test_a_document_lists_all_steps_that_list_it_and_no_other(case, train, capsys):
    run = train(case)
    provenance = Provenance(run.folder)
    expected: defaultdict[str, dict[int, list[int]]] = defaultdict(dict)
    for step in range(1, provenance.steps + 1):
        for sample in provenance.batch(step):
            for passage in sample.passages:
                expected[passage.document.name].setdefault(step, []).append(sample.position)
    for name, manifest in provenance.data.part_manifests.items():
        for number in range(0, manifest.open("train").documents, 13):
            name_of = f"{name}:{number}" if case == "mixture" else str(number)
            assert provenance.reads(provenance.find(name_of)) == expected.get(name_of, {})
    name, steps = next(iter(expected.items()))
    shown = inspected(capsys, "--run", run.folder, "--document", name)
    assert {step["step"]: step["samples"] for step in shown["steps"]} == steps
    assert shown["document"]["name"] == name


def test_documents_have_the_ids_of_their_parquet_files_and_are_found_by_them(train, capsys):
    run = train("mixture")
    for sample in inspected(capsys, "--run", run.folder, "--step", 2)["samples"]:
        for passage in sample["passages"]:
            document = passage["document"]
            assert document["id"] == f"train/{document['source']}/{document['number']}"
            found = inspected(capsys, "--run", run.folder, "--document", document["id"])
            assert found["document"] == document
            assert 2 in [step["step"] for step in found["steps"]]


def test_the_case_of_several_epochs_has_several(train):
    assert Provenance(train("epochs").folder).data.epochs_at(EPOCHS_STEPS)["train"] > 1.2


def test_ids_are_numbered_by_source_where_the_corpus_has_several(train, library):
    provenance = Provenance(train("windows").folder)
    document = provenance.find("train/verse/5")
    assert (document.number, document.source) == (305, "verse")
    assert provenance.find("305") == document


def test_without_parquet_files_documents_have_their_numbers_alone(train, capsys):
    run = train("pairs")
    [passage] = inspected(capsys, "--run", run.folder, "--step", 1)["samples"][0]["passages"]
    assert passage["document"]["id"] is None


def test_what_is_planned_is_told_from_what_was_trained(train, capsys, tmp_path):
    run = shutil.copytree(train("epochs").folder, tmp_path / "run", symlinks=True)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"]["total_tokens"] = 400 * BATCH  # A run that was stopped after EPOCHS_STEPS.
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    shown = inspected(capsys, "--run", run, "--document", 7)
    assert (shown["steps_trained"], shown["steps_planned"]) == (EPOCHS_STEPS, 400)
    steps = [step["step"] for step in shown["steps"]]
    assert [step["trained"] for step in shown["steps"]] == [step <= EPOCHS_STEPS for step in steps]
    assert min(steps) <= EPOCHS_STEPS < max(steps)
    (run / "checkpoints" / "last.ckpt").unlink()
    assert cli.main(["inspect", "--run", str(run), "--step", "4"]) == 0
    assert "Step 4 of 400 (planned; the last checkpoint is of step 0)" in capsys.readouterr().out
    config["trainer"]["max_steps"] = 100
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert Provenance(run).steps == 100


def test_the_table_fits_the_terminal_and_full_texts_are_whole(train, capsys, monkeypatch):
    run = train("windows")
    monkeypatch.setenv("COLUMNS", "100")
    capsys.readouterr()
    assert cli.main(["inspect", "--run", str(run.folder), "--step", "1"]) == 0
    head, headings, *lines = capsys.readouterr().out.splitlines()
    assert head.startswith(f"Step 1 of {STEPS} (trained): 8 samples, 264 tokens read")
    assert headings.split() == ["sample", "document", "shard", "from", "token", "tokens", "text"]
    passages = [passage for sample in Provenance(run.folder).batch(1) for passage in sample.passages]
    assert len(lines) == len(passages)
    assert max(map(len, lines)) <= 100
    assert cli.main(["inspect", "--run", str(run.folder), "--step", "1", "--full"]) == 0
    full = capsys.readouterr().out
    assert all(passage.text in full for passage in passages)


def test_a_run_that_may_have_changed_its_order_says_so(train, capsys, tmp_path):
    run = shutil.copytree(train("windows").folder, tmp_path / "run", symlinks=True)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"]["allow_changes"] = ["batch_tokens", "seed"]
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    capsys.readouterr()
    assert cli.main(["inspect", "--run", str(run), "--step", "1", "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["step"] == 1
    assert "may have gone on with another seed: steps before that read other samples than are shown" in printed.err


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert cli.main(["inspect", *map(str, arguments)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    return line


def test_what_cannot_be_traced_is_refused_in_one_sentence(train, capsys, tmp_path):
    run = shutil.copytree(train("windows").folder, tmp_path / "run", symlinks=True)
    assert f"There is no step 13: {run} has steps 1 to 12" in refused(capsys, "--run", run, "--step", 13)
    assert "There is no step 0" in refused(capsys, "--run", run, "--step", 0)
    assert "There is no document 470: this split has documents 0 to 469" in refused(
        capsys, "--run", run, "--document", 470
    )
    assert "has the id 'x', as far as" in refused(capsys, "--run", run, "--document", "x")
    assert "--json goes with --step" in refused(capsys, "--run", run, "--loss-by-position", "--json")
    assert "look at one run" in refused(capsys, "--runs", tmp_path, "--step", 1)
    assert "There is no config.yaml" in refused(capsys, "--run", tmp_path / "none", "--step", 1)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"]["path"] = str(tmp_path / "gone")
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert "There is no token manifest" in refused(capsys, "--run", run, "--step", 1)


def test_a_run_on_other_shards_is_refused_with_both_fingerprints(train, capsys, tmp_path, tokens_folder):
    run = shutil.copytree(train("windows").folder, tmp_path / "run", symlinks=True)
    config = yaml.safe_load((run / "config.yaml").read_text())
    was = Manifest.load(config["data"]["path"]).fingerprint
    config["data"]["path"] = str(tokens_folder)
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    now = Manifest.load(tokens_folder).fingerprint
    assert f"fingerprint was {was}, is {now}" in refused(capsys, "--run", run, "--step", 1)
