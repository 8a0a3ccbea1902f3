"""`python -m pipeline supervise`: training that is started again until it is done, within bounds."""

import argparse
import shlex
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "python -m pipeline supervise --run RUN [options] -- COMMAND ..."
    parser.epilog = (
        "The command starts training and, started again, goes on with it: python -m pipeline fit --config ... --ckpt_path last. "
        "Inside a Slurm job, what ends by a signal or for want of time is requeued; a crash starts again in the same allocation. "
        "RUN/attempts.jsonl says how each attempt ended. The exit status is 0 only when the run is trained to its end."
    )
    parser.add_argument("--run", required=True, type=Path, help="the run directory (trainer.default_root_dir)")
    parser.add_argument(
        "--max-restarts",
        type=int,
        default=3,
        metavar="N",
        help="attempts in a row without a newer checkpoint (default: 3)",
    )
    parser.add_argument(
        "--preflight", type=shlex.split, default=[], metavar="COMMAND", help="checks the nodes before each attempt"
    )
    parser.add_argument("command", nargs="*", metavar="COMMAND", help="what to run, after --")


def run(options: argparse.Namespace) -> int:
    from pipeline.slurm.supervisor import Supervisor

    return Supervisor(
        options.run, options.command, preflight=options.preflight, max_restarts=options.max_restarts
    ).supervise()
