"""Evaluation on several ranks: the same scores and answers, one voice when something is wrong, and nobody left waiting."""

import dataclasses
import json
import sys
import textwrap
from pathlib import Path

import pytest
from distributed.session import run_commands, start_ranks

from data_prep.files import InputError
from pipeline.cli import main
from pipeline.evaluation import ranks
from pipeline.evaluation.ranks import Place, Ranks, Stopped, place_in_job
from pipeline.exit_codes import REFUSED


class Conference:
    """Ranks that compute one after another in one process: what the first gets, without a network."""

    def __init__(self, size: int, **options):
        self.all = [Ranks(rank=rank, size=size, **options) for rank in range(size)]

    def compute(self, perform, items):
        def exchange(own, turn):
            return [each.do(perform if callable(perform) else perform[each.rank], turn) for each in self.all]

        first = type("First", (Ranks,), {"exchange": lambda own, perform, turn: exchange(own, turn)})
        return first(**{name.name: getattr(self.all[0], name.name) for name in dataclasses.fields(Ranks)}).compute(
            perform, items
        )


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("lockstep", [False, True])
def test_every_item_is_answered_once_on_any_number_of_ranks(size, lockstep):
    done, items = [], list(range(23))
    found = dict(Conference(size, lockstep=lockstep).compute(lambda item: done.append(item) or item**2, items))
    assert found == {item: item**2 for item in items}
    assert sorted(done) == sorted(items * (size if lockstep else 1))


def test_a_failure_of_another_rank_is_told_by_the_first():
    def fails(item):
        raise InputError("no room here")

    with pytest.raises(InputError, match="On rank 1: no room here"):
        list(Conference(2).compute({0: lambda item: item, 1: fails}, [1, 2, 3]))


def test_where_one_rank_wants_to_stop_the_first_stops_after_the_batches_in_hand():
    meeting, done = Conference(2, batches_a_turn=1), []
    meeting.all[1] = dataclasses.replace(meeting.all[1], wants_stop=lambda: len(done) >= 3)
    with pytest.raises(Stopped):
        list(meeting.compute(done.append, range(20)))
    assert len(done) == 4


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({}, Place()),
        ({"TORCHELASTIC_RUN_ID": "a", "RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, Place(3, 8, 1)),
        ({"RANK": "3", "WORLD_SIZE": "8"}, Place()),
        # A script of sbatch sees the tasks of its job, but only srun starts them.
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, Place()),
        (
            {
                "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "2", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1",
                "SLURM_STEP_NODELIST": "gpu[12-13,20]",
            },
            Place(3, 4, 1, "gpu12", 15114),
        ),
    ],
    ids=["alone", "torchrun", "neither", "sbatch", "srun"],
)  # fmt: skip
def test_a_process_knows_its_place(environment, place):
    assert place_in_job(environment) == place


@pytest.fixture
def tasks(tmp_path) -> Path:
    """Choices, written text that is sampled, and running text."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    for split, count in (("train", 4), ("test", 9)):
        rows = [{"q": f"Copy {split} {i}:" + " again" * (i % 4), "gold": i % 2} for i in range(count)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {split: str(folder / f"{split}.jsonl") for split in ("train", "test")}
    common = {"dataset_path": "json", "dataset_kwargs": {"data_files": files}, "test_split": "test"}
    common |= {"fewshot_split": "train", "doc_to_text": "{{q}}", "metadata": {"version": 1}}
    choice = {"output_type": "multiple_choice", "doc_to_choice": ["yes", "no"], "doc_to_target": "gold"}
    mean = [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}]
    sampled = {"until": ["\n"], "max_gen_toks": 4, "do_sample": True, "temperature": 1.0}
    written = {"output_type": "generate_until", "doc_to_target": "{{gold}}", "generation_kwargs": sampled}
    running = {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{q}}", "num_fewshot": 0}
    perplexity = [{"metric": "word_perplexity", "aggregation": "weighted_perplexity", "higher_is_better": False}]
    for name, task in {
        "chosen": choice,
        "written": written | {"metric_list": mean, "repeats": 2},
        "running": running | {"metric_list": perplexity},
    }.items():
        (folder / f"{name}.yaml").write_text(json.dumps({"task": name} | common | task))
    return folder


def evaluating(run: Path, tasks: Path, names: str, output: Path) -> list[str]:
    more = [
        "--include",
        str(tasks),
        "--tasks",
        names,
        "--shots",
        "0,2",
        "--batch_tokens",
        "60",
        "--output",
        str(output),
    ]
    return ["evaluate", "--run", str(run), *more]


def samples(folder: Path) -> dict[str, list[dict]]:
    return {path.name: [json.loads(line) for line in path.open()] for path in sorted((folder / "samples").iterdir())}


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
def test_scores_prompts_and_answers_are_those_of_one_process(size, run_directory, tasks, tmp_path):
    names = "chosen,written,running"
    assert main([*evaluating(run_directory, tasks, names, tmp_path / "one" / "results.json"), "--fresh"]) == 0
    command = [*evaluating(run_directory, tasks, names, tmp_path / "many" / "results.json"), "--fresh"]
    output = run_commands([command], size)
    assert output.count("Scores:") == 1
    one, many = (json.loads((tmp_path / folder / "results.json").read_text()) for folder in ("one", "many"))
    for a, b in zip(one["pipeline"]["scores"], many["pipeline"]["scores"], strict=True):
        assert a == {
            **b,
            **{name: pytest.approx(b[name], rel=1e-5) for name in ("score", "stderr") if b[name] is not None},
        } | {name: a[name] for name in ("seed_scores",)}
    assert [*samples(tmp_path / "one")] == [*samples(tmp_path / "many")]
    for name, expected in samples(tmp_path / "one").items():
        for a, b in zip(expected, samples(tmp_path / "many")[name], strict=True):
            assert (a["prompt"], a["asked"], a["target"]) == (b["prompt"], b["asked"], b["target"])
            if name.startswith("written"):
                assert a["answers"] == b["answers"]


@pytest.mark.slow
def test_what_is_wrong_is_said_once_and_ends_all_ranks(run_directory, tasks, tmp_path):
    result = tmp_path / "none" / "results.json"
    for command, sentence in (
        (evaluating(run_directory, tasks, "choosen", result), "There is no task 'choosen'"),
        (evaluating(tmp_path / "no-run", tasks, "chosen", result), "There is no run directory"),
    ):
        output = run_commands([command], 2, statuses=[REFUSED])
        assert output.count("error:") == 1
        assert sentence in output
        assert "Traceback" not in output


JOINING = """
    import sys, time
    from data_prep.files import InputError
    from pipeline.evaluation import ranks
    mode = sys.argv[1]
    try:
        with ranks.joined() as together:
            if together.rank:
                if mode == "other fails early":
                    raise InputError("nothing to read")
                if mode == "other dies":
                    import os
                    os._exit(9)
                def perform(item):
                    if mode == "other fails":
                        raise InputError("no room")
                    if mode == "other crashes":
                        return 1 / 0
                    return item
                if status := together.serve(perform):
                    raise SystemExit(status)
            else:
                time.sleep(0.5)
                if mode == "first crashes":
                    raise ZeroDivisionError("a mistake")
                print(dict(together.compute(lambda item: item, list(range(9)))))
    except InputError as error:
        print(f"error: {error}")
        sys.exit(2)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "statuses", "said"),
    [
        ("all is well", [0, 0], "{0: 0, "),
        ("other fails early", [2, 2], "error: On rank 1: nothing to read"),
        ("other fails", [2, 2], "error: On rank 1: no room"),
        ("other crashes", [1, 1], "ZeroDivisionError"),
        ("first crashes", [1, 1], "a mistake"),
        ("other dies", [2, 9], "error: Another rank has ended in the middle of the evaluation"),
    ],
)
def test_no_rank_is_left_waiting(mode, statuses, said, tmp_path):
    script = tmp_path / "joining.py"
    root = f"import sys; sys.path.insert(0, {str(Path(ranks.__file__).parents[2])!r})\n"
    script.write_text(root + textwrap.dedent(JOINING))
    processes = start_ranks([sys.executable, str(script), mode], 2)
    try:
        outputs = [process.communicate(timeout=60)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == statuses, outputs
    assert said in outputs[0]
    assert "error" not in outputs[1]
