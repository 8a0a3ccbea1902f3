"""Plans have the figures of the literature where it states them, and those of the code that trains where it does not."""

import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from data_prep.files import InputError
from pipeline import budget
from pipeline.cli import main
from pipeline.commands.plan import seconds_of
from pipeline.data import TokenDataModule
from pipeline.planning import scaling
from pipeline.planning.hardware import PRESETS, choose
from pipeline.planning.memory import Layout, memory_of
from pipeline.planning.plan import make_plan
from pipeline.planning.rehearsal import Rehearsal, rehearse
from pipeline.planning.settings import read_settings
from pipeline.planning.step_time import Table

ROOT = Path(__file__).parent.parent.parent
GPT3 = {"small": 2.60, "medium": 7.42, "large": 15.8, "xl": 27.5, "2.7b": 55.2, "6.7b": 139, "13b": 268, "175b": 3640}
"""Total training compute in petaflop/s-days (Brown et al. 2020, table D.1)."""
TINY = ["--config", str(ROOT / "configs/demo/gpt.yaml")]


def preset(name: str) -> list[str]:
    return ["--config", str(ROOT / f"configs/model/{name}.yaml")]


@pytest.fixture
def run(tokens_folder):
    """Options of a small run on the shards of the tests."""
    return [
        *TINY, f"--data.path={tokens_folder}", "--model.architecture.vocab_size=512", "--data.context=64", "--data.batch_tokens=1024",
        "--data.micro_batch=4", "--data.total_tokens=100000",
    ]  # fmt: skip


# -- known answers


@pytest.mark.parametrize("size", GPT3)
def test_a_gpt3_takes_the_compute_of_table_d1(size):
    plan = make_plan([*preset(f"gpt3_{size}"), "--data.total_tokens=300000000000"], hardware="A100-80")
    assert plan.dense_flops is not None
    days = plan.dense_flops / budget.PETAFLOP_S_DAY
    assert days == pytest.approx(GPT3[size], rel=0.03)


def test_gpt3_at_2020s_prices_costs_what_was_estimated_then():
    # 28 TFLOP/s sustained of a V100, at 1.50 dollars an hour, are the figures of the best known estimate, 4.6 million dollars.
    plan = make_plan([*preset("gpt3_175b"), "--data.total_tokens=300000000000"], hardware="V100")
    assert plan.mfu == 28 / 125
    assert plan.price_per_hour == 1.50
    assert plan.dense_flops == pytest.approx(3.14e23, rel=0.01)
    assert plan.cost is not None
    assert 4.6e6 <= plan.cost <= 12e6


@pytest.mark.parametrize(
    ("flops", "parameters", "tokens"), [(1.92e19, 4e8, 8.0e9), (1.21e20, 1e9, 20.2e9), (5.76e23, 67e9, 1.5e12)]
)
def test_compute_optimal_sizes_are_chinchillas(flops, parameters, tokens):
    # Hoffmann et al. 2022, table 3; the last row is Gopher's budget.
    found = scaling.chinchilla(flops)
    assert found.parameters == pytest.approx(parameters, rel=0.05)
    assert found.tokens == pytest.approx(tokens, rel=0.1)


def test_the_fitted_loss_is_lowest_where_it_is_said_to_be():
    best = scaling.chinchilla_fit(5.76e23)
    assert best.flops == pytest.approx(5.76e23)
    loss = scaling.fitted_loss(best.parameters, best.tokens)
    for factor in (0.8, 0.95, 1.05, 1.25):
        assert scaling.fitted_loss(best.parameters * factor, best.tokens / factor) > loss


def test_kaplans_optimum_has_his_exponents_and_scale():
    day = scaling.kaplan(budget.PETAFLOP_S_DAY)
    assert (day.parameters, day.tokens) == pytest.approx((1.3e9, 2.0e10))
    assert scaling.kaplan(10 * budget.PETAFLOP_S_DAY).parameters / day.parameters == pytest.approx(10**0.73)


# -- memory


@pytest.mark.parametrize(
    ("stage", "precision", "bytes_each"),
    # Rajbhandari et al. 2020, sections 3 and 5, with fp32 masters of what is partitioned; R = 8.
    [
        (0, "32-true", 16), (1, "32-true", 8 + 12 / 8), (2, "32-true", 4 + 16 / 8), (3, "32-true", 20 / 8),
        (1, "bf16-true", 4 + 12 / 8), (2, "bf16-true", 2 + 14 / 8), (3, "bf16-true", 16 / 8),
    ],
)  # fmt: skip
def test_the_state_of_a_rank_takes_the_bytes_of_the_zero_paper(stage, precision, bytes_each):
    N = 10**9
    memory = memory_of(Rehearsal(), Layout(8, stage), precision, parameters=N, largest=1, moments=2.0)
    assert memory.weights + memory.gradients + memory.optimizer == bytes_each * N


def test_offload_moves_bytes_to_the_host():
    options = {"parameters": 10**9, "largest": 1, "moments": 2.0}
    here = memory_of(Rehearsal(), Layout(8, 3), "bf16-true", **options)
    there = memory_of(Rehearsal(), Layout(8, 3, "cpu", "cpu"), "bf16-true", **options)
    assert there.weights == there.optimizer == there.gradients == 0
    assert there.host >= here.weights + here.optimizer


@pytest.mark.parametrize("every", [0, 1])
def test_the_largest_micro_batch_fits_and_one_more_does_not(every):
    options = [
        *preset("gpt2_small"), "--data.context=1024", "--data.micro_batch=2", "--data.batch_tokens=1048576",
        f"--model.checkpoint_blocks={every}",
    ]  # fmt: skip
    plan = make_plan(options, hardware="A100-40")
    config = read_settings(options).model.architecture
    own = plan.chosen

    def total(micro_batch: int) -> float:
        step = rehearse(config, micro_batch, 1024, plan.precision, "cuda", checkpoint_blocks=every)
        largest = config.vocab_size * config.width  # pyright: ignore[reportAttributeAccessIssue]
        return memory_of(
            step,
            own.layout,
            plan.precision,
            parameters=plan.parameters["total"],
            largest=largest,
            moments=2.0,
            accumulates=True,
        ).total

    assert total(own.micro_batch) <= plan.hardware.fits_bytes < total(own.micro_batch + max(1, own.micro_batch // 50))


def test_what_cannot_fit_is_refused_with_what_would():
    options = [*preset("llama_7b"), "--data.context=2048", "--data.batch_tokens=131072", "--data.micro_batch=8"]
    plan = make_plan(options, hardware="A100-40", devices=8)
    [sentence] = plan.refusals
    assert "DDP on 8 rank(s) needs" in sentence
    assert "A100-40 has" in sentence
    assert "trainer.strategy zero3 with model.checkpoint_blocks 1 and data.micro_batch" in sentence
    micro_batch = sentence.partition("data.micro_batch ")[2].partition(
        "zero3 with model.checkpoint_blocks 1 and data.micro_batch "
    )[2]
    advised = [
        *options,
        "--trainer.strategy=zero3",
        "--model.checkpoint_blocks=1",
        f"--data.micro_batch={micro_batch.split()[0]}",
    ]
    assert make_plan(advised, hardware="A100-40", devices=8).chosen.fits


# -- steps, tokens, epochs: as the DataModule of a run has them


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"order": "stream", "batch_tokens": 512},
        {"batch_ramp": {"start_tokens": 256, "over_tokens": 20000}},
        {"context_schedule": {0: 16, 20000: 64}},
        {"total_tokens": None, "total_epochs": 2.5},
        {"mixture": {"a": {"weight": 0.7, "source": "topics"}}},
    ],
    ids=str,
)
def test_steps_tokens_and_epochs_are_those_of_the_run(tokens_folder, tmp_path, more):
    data = {
        "path": str(tokens_folder),
        "context": 64,
        "batch_tokens": 1024,
        "micro_batch": 4,
        "total_tokens": 100000,
    } | more
    file = tmp_path / "data.yaml"
    file.write_text(yaml.safe_dump({"data": data}))
    work = make_plan([*TINY, "--config", str(file), "--model.architecture.vocab_size=512"], hardware="A100-80").work
    settings = read_settings([*TINY, "--config", str(file)]).data
    module = TokenDataModule(**{field.name: getattr(settings, field.name) for field in fields(settings)})
    module.setup("fit")
    assert work.steps == module.steps
    assert work.tokens == module.tokens_at(module.steps)
    assert work.epochs == pytest.approx(module.epochs_at(module.steps))
    assert work.train_tokens == module.train_tokens


def test_of_pairs_too(pairs_folder):
    options = [
        *preset("seq2seq_transformer_tiny"), f"--data.path={pairs_folder}", "--data.order=pairs", "--data.context=32",
        "--data.batch_tokens=512", "--data.micro_batch=4", "--data.total_epochs=2", "--model.architecture.vocab_size=512",
    ]  # fmt: skip
    module = TokenDataModule(str(pairs_folder), 32, 512, 4, total_epochs=2, order="pairs")
    module.setup("fit")
    work = make_plan(options, hardware="A100-80").work
    assert (work.steps, work.tokens) == (module.steps, module.tokens_at(module.steps))


def test_without_a_manifest_epochs_are_left_out_and_it_says_so(run):
    plan = make_plan([*run, "--data.path=nowhere"], hardware="A100-80")
    assert plan.work.epochs is None
    assert plan.work.steps == 97
    assert "no manifest in nowhere" in plan.text()


# -- time, cost, disk


def test_time_cost_and_energy_follow_from_the_flops(run):
    plan = make_plan(run, hardware="H100", devices=4, mfu=0.5, price_per_gpu_hour=2.0, power_watts=1000)
    flops = plan.flops_per_token["exact"] * 99328
    assert plan.seconds == pytest.approx(flops / (4 * 0.5 * 989e12))
    assert plan.gpu_hours == pytest.approx(plan.seconds * 4 / 3600)
    assert (plan.cost, plan.energy_kwh) == pytest.approx((2 * plan.gpu_hours, plan.gpu_hours))


def test_requeues_count_what_a_job_loses():
    assert budget.jobs_of(1000, None, 100) == 1
    assert budget.jobs_of(1000, 600, 100) == 2
    assert budget.jobs_of(1001, 600, 100) == 3
    with pytest.raises(ValueError, match="leaves nothing to train in"):
        budget.jobs_of(1000, 100, 100)


def test_a_time_limit_that_is_too_short_is_refused(run):
    assert any(
        "leaves nothing" in sentence for sentence in make_plan(run, hardware="H100", time_limit_seconds=60).refusals
    )


def test_checkpoints_take_what_the_policy_keeps(run):
    policy = ["--checkpoint.keep_last=2", "--checkpoint.keep_every_tokens=20000", "--checkpoint.keep_early=true"]
    plan = make_plan([*run, *policy], hardware="H100")
    # The two newest, the best, one being written, 20,000 to 80,000 tokens, and steps 1 to 64.
    assert plan.checkpoints == 2 + 1 + 1 + 4 + 7
    assert plan.state_bytes == 12 * plan.parameters["total"]


# -- what is asked and answered


def test_what_cannot_be_is_said_in_sentences(run):
    def refusals(*more: str) -> str:
        return " ".join(make_plan([*run, *more], hardware="H100", devices=2).refusals)

    assert refusals() == ""
    assert "vocabulary of 512, the model has 600" in refusals("--model.architecture.vocab_size=600")
    assert "longer than the model's context" in refusals("--data.context=1024", "--data.batch_tokens=8192")
    assert "does not divide into micro-batches of 3" in refusals("--data.micro_batch=3")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--gpu", "A1000"], "--gpu is A1000: it must be one of V100, A100-40"),
        (["--mfu", "40"], "--mfu is 40.0: it is a share of the peak"),
        (["--nodes", "0"], "--nodes is 0: it must be positive"),
        (["--time-limit", "soon"], "--time-limit is 'soon'"),
        (["--data.micro_bach", "4"], "micro_bach"),
        (["--trainer.strategy", "fsdp"], "trainer.strategy is fsdp: it must be auto, single, ddp"),
        (["--data.batch_tokens", "1000"], "not a whole number of sequences"),
        (["--config"], "--config has no value"),
        (["--gpu", "V100", "--trainer.precision", "bf16-mixed"], "V100 does not multiply bf16"),
        (["--bench", "nowhere.json"], "There is no nowhere.json"),
    ],
)
def test_what_cannot_be_planned_is_one_sentence(run, options, sentence, capsys):
    assert main(["plan", *run, *options]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 5400), ("30:15", 1815), ("04:00:00", 14400), ("1-12", 129600), ("2-12:30:00", 217800)]
)
def test_a_time_limit_reads_as_slurm_writes_it(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("width", [80, 140])
def test_the_tables_fit_their_columns(run, width):
    text = make_plan([*run, "--data.micro_batch=8"], hardware="B200", devices=2).text(width)
    assert max(len(line) for line in text.splitlines()) <= width
    assert "…" not in text
    for word in ("parameters", "FLOPs a token", "epochs", "time", "disk", "ZeRO 3 + offload", "Chinchilla"):
        assert word in text


def test_json_holds_the_same_figures(run, capsys):
    assert main(["plan", *run, "--gpu", "h100", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    plan = make_plan(run, hardware="H100")
    assert content["parameters"] == plan.parameters
    assert content["options"][0]["memory"]["total"] == plan.chosen.memory.total
    assert content["seconds"] == plan.seconds


def test_a_plan_loads_neither_lightning_nor_the_compiler(run):
    code = (
        "import sys; from pipeline.cli import main; assert main(['plan', *sys.argv[1:]]) == 0; "
        "print([name for name in ('lightning', 'torch._dynamo', 'sympy', 'deepspeed') if name in sys.modules])"
    )
    for more in ([], ["--model.checkpoint_blocks=1", "--trainer.devices=4", "--trainer.strategy=zero3"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *run, "--gpu=H100", *more],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        assert done.stdout.splitlines()[-1] == "[]"


# -- machines


def test_presets_are_found_in_any_case_and_know_their_precision():
    assert choose("a100-80", None)[0] is PRESETS["A100-80"]
    assert PRESETS["V100"].default_precision == "16-mixed"
    assert PRESETS["H100"].default_precision == "bf16-mixed"


def test_what_bench_measured_is_used_where_no_gpu_is_named(run, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert choose(None, None)[0].name == "CPU"
    file = tmp_path / "pretraining-pipeline" / "bench.json"
    file.parent.mkdir()
    measured = {
        "name": "EPYC, 2 threads", "kind": "cpu", "memory_bytes": 2**34, "flops": {"fp32": 1e11}, "memory_bandwidth": 1e10,
        "link_bandwidth": 1e9, "power_watts": 20, "price_per_hour": 0.1, "mfu": 0.5,
    }  # fmt: skip
    one = {"axes": [[1]], "values": [1e11]}
    two, three = {"axes": [[1], [1]], "values": [1e11]}, {"axes": [[1], [1], [1]], "values": [1e11]}
    sides = [f"{dtype} {side}" for dtype in ("fp32", "bf16") for side in ("forward", "backward")]
    speeds = {
        "matmul": {"fp32": three, "bf16": three}, "attention": dict.fromkeys(sides, two), "recurrence": {},
        "moves": {"move": one, "function fp32": one, "function bf16": one}, "operation_seconds": 0.0,
        "optimizer_seconds_per_parameter": 0.0, "loop_seconds": 0.0,
    }  # fmt: skip
    file.write_text(json.dumps({"hardware": measured, "measured": speeds}))
    plan = make_plan(run)
    assert plan.hardware_source == f"measured by bench ({file})"
    # All at 10^11 FLOP/s: the share of the peak is what is left when bytes are moved as well.
    assert 0.8 < plan.mfu <= 1.05
    file.write_text("{}")
    with pytest.raises(InputError, match="run it again"):
        make_plan(run)


def test_between_measured_sizes_logarithms_are_interpolated():
    table = Table([[1, 100], [10, 1000]], [1.0, 10.0, 100.0, 1000.0])
    # It is x * y^(1/2) / 10^(1/2) at the corners, and so between them.
    for x, y in ((1, 10), (100, 1000), (10, 100), (7, 333)):
        assert table(x, y) == pytest.approx(x * (y / 10) ** 0.5)
    assert table(0.1, 5) == pytest.approx(1.0)


def test_on_a_gpu_kernels_are_those_of_a_gpu():
    config = read_settings(TINY).model.architecture
    of_cpu, of_gpu = (rehearse(config, 8, 256, "bf16-mixed", device) for device in ("cpu", "cuda"))
    assert of_gpu.in_head > of_cpu.in_head
