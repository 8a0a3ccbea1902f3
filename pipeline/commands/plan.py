"""`python -m pipeline plan`: what a run will need, before it runs."""

import argparse
import json

from data_prep.files import InputError

PASSES_OPTIONS_ON = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "All other options are those of `fit`: --config FILE (more than one merge), --section.name VALUE. It needs no GPU, and of the "
        "data no more than the manifest. docs/planning.md has every formula."
    )
    parser.add_argument("--nodes", type=int, metavar="N", help="nodes (default: trainer.num_nodes)")
    parser.add_argument("--devices", type=int, metavar="N", help="GPUs of each node (default: trainer.devices)")
    parser.add_argument(
        "--gpu",
        metavar="NAME",
        help="A100-40, A100-80, H100, H200, B200, MI300X, V100 or CPU (default: what `bench` has measured)",
    )
    parser.add_argument("--mfu", type=float, metavar="X", help="share of the peak that training uses, in (0, 1]")
    parser.add_argument("--price-per-gpu-hour", type=float, metavar="X", help="in dollars")
    parser.add_argument("--power-watts", type=float, metavar="X", help="of one GPU with its share of the node")
    parser.add_argument("--time-limit", metavar="[D-]HH:MM:SS", help="wall time of one job, to count requeues")
    parser.add_argument("--bench", metavar="FILE", help="what `bench` has saved, where not in its default place")
    parser.add_argument("--json", action="store_true", help="as JSON, for programs")


def run(arguments: argparse.Namespace, options: list[str]) -> int:
    for name in ("nodes", "devices", "mfu", "price_per_gpu_hour", "power_watts"):
        value = getattr(arguments, name)
        if value is not None and value <= 0:
            raise InputError(f"--{name.replace('_', '-')} is {value}: it must be positive")
    if arguments.mfu is not None and arguments.mfu > 1:
        raise InputError(f"--mfu is {arguments.mfu}: it is a share of the peak, at most 1")
    limit = None if arguments.time_limit is None else seconds_of(arguments.time_limit)
    from pipeline.planning.plan import make_plan

    plan = make_plan(
        options, nodes=arguments.nodes, devices=arguments.devices, hardware=arguments.gpu, time_limit_seconds=limit,
        mfu=arguments.mfu, price_per_gpu_hour=arguments.price_per_gpu_hour, power_watts=arguments.power_watts, bench=arguments.bench,
    )  # fmt: skip
    print(json.dumps(plan.to_json(), indent=2) if arguments.json else plan.text())
    return 0


def seconds_of(text: str) -> float:
    """Of a wall time as Slurm writes it: minutes, MM:SS, HH:MM:SS, D-HH, D-HH:MM or D-HH:MM:SS.

    Raises:
        InputError: it is none of these.
    """
    days, dash, rest = text.rpartition("-")
    parts = rest.split(":")
    try:
        numbers = [int(part) for part in parts]
        if not 1 <= len(numbers) <= 3 or min(numbers) < 0:
            raise ValueError
        units = (3600, 60, 1) if dash else {1: (60,), 2: (60, 1), 3: (3600, 60, 1)}[len(numbers)]
        seconds = sum(number * unit for number, unit in zip(numbers, units, strict=False)) + (
            86400 * int(days) if dash else 0
        )
    except ValueError as error:
        raise InputError(f"--time-limit is {text!r}: write it as Slurm does, as in 04:00:00 or 2-12:00:00") from error
    if not seconds:
        raise InputError("--time-limit is 0: give the wall time of one job")
    return float(seconds)
