"""`python -m pipeline preflight`: the nodes of a job, before training starts on them."""

import argparse
import os
from pathlib import Path
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "python -m pipeline preflight --run RUN [options] [-- LAUNCHER ... python]"
    parser.epilog = (
        "The launcher, such as `srun python`, starts a rank wherever training will have one; without it, one is started here. Each node shows "
        "its GPUs, its clock, its room and paths, and that it sees the same run directory; then all add up a number together. "
        "RUN/state/preflight.json has what was found. Exit status 78: RUN/state/bad_nodes names the nodes that do not work; 2: every node "
        "fails in the same way."
    )
    parser.add_argument("--run", required=True, type=Path, help="the run directory")
    parser.add_argument(
        "--arrival-seconds",
        type=float,
        default=120.0,
        metavar="S",
        help="for each rank to start, and to look at its node (default: 120)",
    )
    parser.add_argument(
        "--collective-seconds", type=float, default=60.0, metavar="S", help="for a sum over all ranks (default: 60)"
    )
    parser.add_argument(
        "--skew-seconds", type=float, default=10.0, metavar="S", help="by how much clocks may differ (default: 10)"
    )
    parser.add_argument(
        "--gpus", type=int, metavar="N", help="GPUs that each rank should see (default: what Slurm has given the node)"
    )
    parser.add_argument("--report-to", metavar="HOST:PORT", help=argparse.SUPPRESS)
    parser.add_argument("launcher", nargs="*", metavar="LAUNCHER", help="starts Python on all ranks, after --")


def run(options: argparse.Namespace) -> int:
    from pipeline.slurm import preflight

    folder = options.run.absolute()
    if options.report_to:
        return preflight.answer(options.report_to, folder, os.environ)
    folder.mkdir(parents=True, exist_ok=True)
    gpus = options.gpus if options.gpus is not None else int(os.environ.get("SLURM_GPUS_ON_NODE", 0))
    limits = preflight.Limits(options.arrival_seconds, options.collective_seconds, options.skew_seconds)
    code, found, why = preflight.preflight(folder, options.launcher, limits, gpus)
    print("\n".join(table(found)), flush=True)
    if code:
        print(f"preflight failed: {why}", flush=True)
    return code


def table(found: dict[str, Any]) -> list[str]:
    """A line a node. Plain text: this runs where nothing need be installed."""
    rows = [("node", "ranks", "GPUs", "clock", "/tmp free", "run free", "")]
    for node, facts in found["nodes"].items():
        rows.append((
            node, span(facts["ranks"]), str(facts.get("gpus", "?")), f"{facts['skew_seconds']:+.3f} s" if "skew_seconds" in facts else "?",
            size(facts.get("temporary_bytes")), size(facts.get("run_bytes")), "; ".join(facts["problems"]) or "fine",
        ))  # fmt: skip
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    if found["sum_seconds"] is not None:
        lines.append(f"a sum over all ranks took {found['sum_seconds']:.2f} s")
    return lines


def span(numbers: list[int]) -> str:
    return f"{numbers[0]}-{numbers[-1]}" if len(numbers) > 1 else str(numbers[0])


def size(count: float | None) -> str:
    return "?" if count is None else f"{count / 1e9:.1f} GB"
