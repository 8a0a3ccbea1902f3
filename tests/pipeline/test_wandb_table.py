"""The scores of an evaluation as a table in the run's own wandb run, which a continued training does not notice."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import wandb
from wandb.errors import CommError
from wandb.proto.wandb_internal_pb2 import Record  # pyright: ignore[reportAttributeAccessIssue]

from pipeline.tracking import Wandb, log_table
from pipeline.wandb_files import stored_records, stored_rows

COLUMNS = ["task", "shots", "score", "chance"]
ROWS = [["copa", 0, 0.61, 0.5], ["wikitext", 0, 35.1, None]]


def tracked_run(directory: Path, mode: str = "offline") -> Path:
    """A run directory that wandb was told of, with two steps logged."""
    directory.mkdir()
    (directory / "config.yaml").write_text(
        f"wandb:\n  mode: {mode}\n  project: few-shot\n  entity: null\n  name: null\n"
    )
    (directory / "wandb-id").write_text("run4711\n")
    (directory / "metrics.csv").write_text("step,train/loss,val/loss\n1,3.5,\n2,3.25,\n2,,3.4\n")
    return directory


def records(folder: Path) -> list[Any]:
    """What wandb stored of a run, once its service has written the end."""
    [file] = folder.glob("run-*.wandb")
    deadline = time.monotonic() + 10
    while True:
        found = [Record.FromString(content) for content in stored_records(file)]
        if any(record.HasField("exit") for record in found) or time.monotonic() > deadline:
            return found
        time.sleep(0.05)


def test_the_table_reads_back_from_the_runs_own_wandb_run_and_adds_no_step(tmp_path: Path) -> None:
    run = tracked_run(tmp_path / "gpt")
    told = log_table(run, "evaluation/scores", COLUMNS, ROWS, {"evaluation/copa/acc@0": 0.61})
    assert told == f"wandb kept this run offline; to upload it: wandb sync {run}/wandb/offline-run-*"
    [folder] = run.glob("wandb/offline-run-*")
    stored = records(folder)
    [header] = [record.run for record in stored if record.HasField("run")]
    assert (header.run_id, header.project, header.display_name) == ("run4711", "few-shot", "gpt")
    items = [item for record in stored if record.HasField("summary") for item in record.summary.update]
    summary = {item.key: json.loads(item.value_json) for item in items if item.key}
    assert summary["evaluation/copa/acc@0"] == 0.61
    # The last part that is uploaded gives the run its summary, so what training had reached has to stand in it too.
    assert (summary["train/loss"], summary["val/loss"]) == (3.25, 3.4)
    table = json.loads((folder / "files" / summary["evaluation/scores"]["path"]).read_text())
    assert (table["columns"], table["data"]) == (COLUMNS, ROWS)
    # A training that goes on asks these rows for its last step: there is none that could stand in its way.
    assert list(stored_rows(folder)) == []
    assert wandb.run is None


@pytest.mark.parametrize("mode", ["disabled", "offline"])
def test_a_run_without_wandb_is_left_alone(tmp_path: Path, mode: str) -> None:
    run = tracked_run(tmp_path / "gpt", mode)
    if mode == "offline":
        (run / "wandb-id").unlink()
    assert log_table(run, "evaluation/scores", COLUMNS, ROWS) is None
    assert not (run / "wandb").exists()
    assert (run / "wandb-id").exists() == (mode == "disabled")


class Told:
    """Stands for wandb.init: keeps what it was asked, and has no network where told so."""

    def __init__(self, reachable: bool) -> None:
        self.reachable, self.asked, self.summary = reachable, [], {}

    def __call__(self, **options: Any) -> "Told":
        self.asked.append(options)
        if options["mode"] == "online" and not self.reachable:
            raise CommError("no network")
        return self

    def finish(self) -> None:
        self.finished = True


@pytest.mark.parametrize(
    ("folders", "reachable", "modes"),
    [
        (["run-20260101_000000-run4711"], True, ["online"]),
        (["run-20260101_000000-run4711"], False, ["online", "offline"]),
        (["run-20260101_000000-run4711", "offline-run-20260102_000000-run4711"], True, ["offline"]),
        (["offline-run-20260101_000000-run4711", "run-20260102_000000-run4711"], True, ["online"]),
    ],
    ids=["online", "online, but not now", "offline since", "online since"],
)
def test_the_table_goes_where_the_run_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folders: list[str], reachable: bool, modes: list[str]
) -> None:
    run = tracked_run(tmp_path / "gpt", "online")
    for folder in folders:
        (run / "wandb" / folder).mkdir(parents=True)
    told = Told(reachable)
    monkeypatch.setattr(wandb, "init", told)
    log_table(run, "evaluation/scores", COLUMNS, ROWS)
    assert [asked["mode"] for asked in told.asked] == modes
    assert all((asked["id"], asked["resume"]) == ("run4711", "allow") for asked in told.asked)
    assert told.summary["evaluation/scores"].data == ROWS
    # The server knows an online run's last values.
    assert ("train/loss" in told.summary) == (modes[-1] == "offline")
    assert told.finished


def test_the_settings_of_an_unreadable_config_are_the_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tracked_run(tmp_path / "gpt")
    (run / "config.yaml").write_text("wandb: [")
    told = Told(reachable=True)
    monkeypatch.setattr(wandb, "init", told)
    monkeypatch.setenv("WANDB_MODE", "offline")
    log_table(run, "evaluation/scores", COLUMNS, ROWS)
    assert (told.asked[0]["project"], told.asked[0]["mode"]) == (Wandb().project, "offline")
