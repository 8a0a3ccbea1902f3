"""`python -m pipeline bench`: measure this machine, and keep the figures for `plan`."""

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_prep.files import InputError, write_json

PASSES_OPTIONS_ON = True
LOOP_SECONDS = 0.003
"""What the Trainer, its callbacks and the loader add to a micro-batch; tests/benchmarks compares it with runs of `fit`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "Takes about a minute on an idle machine, which it should be. Under torchrun or srun the all-reduce is that of the ranks there are. "
        "With --config FILE and other options of `fit`, the training step of that run is timed beside the built-in ones."
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="where to keep the figures (default: the user's cache)"
    )
    parser.add_argument(
        "--ranks", type=int, default=2, metavar="N", help="local processes of the all-reduce (default: 2; 1: none)"
    )


def run(arguments: argparse.Namespace, options: list[str]) -> int:
    if arguments.ranks < 1:
        raise InputError(f"--ranks is {arguments.ranks}: it must be at least 1")
    import torch

    from data_prep.process_memory import keep_freed_memory
    from pipeline.metrics import processor
    from pipeline.planning import measure
    from pipeline.planning.hardware import default_bench_file, nearest_preset, this_cpu

    keep_freed_memory()
    presets = measure.PRESETS | (chosen(options) if options else {})
    rank, ranks = int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", 0))), int(os.environ.get("WORLD_SIZE", 1))
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if cuda else torch.device("cpu")
    watch = measure.Stopwatch(device)
    report = Report(quiet=rank > 0)
    if ranks > 1:
        torch.distributed.init_process_group("nccl" if cuda else "gloo")
    with measure.scratch() as scratch:
        folder = Path(scratch)
        peaks = report.of(
            "matmul peak",
            lambda: measure.peak_of(device),
            lambda p: ", ".join(f"{k} {v / 1e9:,.0f} GFLOP/s" for k, v in p.items()),
        )
        bandwidth = report.of("memory bandwidth", lambda: measure.memory_bandwidth(watch), per_second)
        all_reduce = None
        if ranks > 1:
            all_reduce = report.of(f"all-reduce of {ranks} ranks", lambda: measure.all_reduce_speed(device), per_second)
            torch.distributed.destroy_process_group()
            if rank:
                return 0
        elif arguments.ranks > 1:
            all_reduce = report.of(
                f"all-reduce of {arguments.ranks} local ranks",
                lambda: measure.local_all_reduce(arguments.ranks, folder),
                per_second,
            )
        loader = report.of("loader", lambda: measure.loader_speed(folder / "tokens"), lambda v: f"{v:,.0f} tokens/s")
        checkpoint = report.of("checkpoint write", lambda: measure.checkpoint_speed(folder), per_second)
        low = "bf16" in peaks and (cuda or peaks["bf16"] > peaks["fp32"])
        peak = peaks["bf16" if low else "fp32"]
        training = {
            name: report.of(
                f"training step, {name}", lambda p=preset: measure.training_speed(p[0], p[1], p[2], watch, low, peak),
                lambda v: f"{v['tokens_per_second']:,.0f} tokens/s, {v['mfu']:.1%} MFU in {'bf16' if low else 'fp32'}",
            )
            for name, preset in presets.items()
        }  # fmt: skip
        speeds = report.of(
            "single operations",
            lambda: operations(watch),
            lambda v: f"{v['operation_seconds'] * 1e6:.1f} µs each at least",
        )
    preset = nearest_preset(processor(device)) if cuda else this_cpu()
    described: dict[str, Any] = {
        "name": processor(device), "kind": device.type, "memory_bytes": measure.total_memory(device), "flops": peaks,
        "memory_bandwidth": bandwidth, "link_bandwidth": all_reduce or preset.link_bandwidth, "power_watts": preset.power_watts,
        "price_per_hour": preset.price_per_hour, "mfu": next(iter(training.values()))["mfu"],
    }  # fmt: skip
    described["flops"] = {k: v for k, v in peaks.items() if cuda or k == "fp32" or low}
    found = {
        **speeds, "all_reduce_bytes_per_second": all_reduce, "ranks": ranks if ranks > 1 else arguments.ranks,
        "loader_tokens_per_second": loader, "checkpoint_bytes_per_second": checkpoint, "training": training, "loop_seconds": LOOP_SECONDS,
    }  # fmt: skip
    file = arguments.output or default_bench_file()
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, {"hardware": described, "measured": found, "written": time.strftime("%Y-%m-%dT%H:%M:%S%z")})
    print(f"kept in {file}; `python -m pipeline plan` reckons with it where no --gpu is named")
    return 0


def operations(watch: Any) -> dict[str, Any]:
    """What the time of any step is reckoned from."""
    from pipeline.planning import measure

    return {
        "matmul": measure.matmul_speeds(watch),
        "attention": measure.attention_speeds(watch),
        "recurrence": measure.recurrence_speeds(watch),
        "moves": measure.move_speeds(watch),
        "operation_seconds": measure.operation_seconds(watch),
        "optimizer_seconds_per_parameter": measure.optimizer_seconds(watch),
    }


def chosen(options: list[str]) -> dict[str, Any]:
    """The model of a run's configuration, with its micro-batch and context."""
    from pipeline.planning.settings import read_settings

    settings = read_settings(options)
    context = settings.data.context or getattr(settings.model.architecture, "context", 256)
    return {f"of {settings.run_directory}": (settings.model.architecture, settings.data.micro_batch or 1, context)}


def per_second(value: float) -> str:
    return f"{value / 1e9:.2f} GB/s" if value >= 1e9 else f"{value / 1e6:.0f} MB/s"


class Report:
    """One line for each measurement as it is done."""

    def __init__(self, quiet: bool):
        self.quiet = quiet

    def of(self, what: str, measure: Callable[[], Any], tell: Callable[[Any], str]) -> Any:
        value = measure()
        if not self.quiet:
            print(f"{what:32s} {tell(value)}", flush=True)
        return value
