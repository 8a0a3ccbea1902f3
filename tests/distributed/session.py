"""Runs one command of the pipeline after another in the same group of processes: a group costs as long to start as ten short runs."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import yaml

RENDEZVOUS_SECONDS = 300
TESTS = Path(__file__).parents[1]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def fit_command(folder: Path, config: dict) -> list[str]:
    """The command that trains by a configuration, which is written into a new folder."""
    folder.mkdir(parents=True)
    path = folder / "given.yaml"
    path.write_text(yaml.safe_dump(config))
    return ["fit", "--config", str(path)]


def start_ranks(program: Sequence[str], ranks: int) -> list[subprocess.Popen]:
    """The processes of one program, which find each other as torchrun's do."""
    shared = os.environ | {
        "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()), "TORCHELASTIC_RUN_ID": "test", "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu",
        "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
    }  # fmt: skip
    return [
        subprocess.Popen(
            program, env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for rank in range(ranks)
    ]  # fmt: skip


def run_commands(
    commands: Sequence[Sequence[str]],
    ranks: int,
    timeout: float = RENDEZVOUS_SECONDS,
    statuses: Sequence[int] | None = None,
) -> str:
    """Run commands (the arguments after `python -m pipeline`) on so many CPU processes; return what they printed.

    Args:
        statuses: with which each command must end; 0 when not given.

    Raises:
        AssertionError: a command ended with another status.
    """
    expected = [0] * len(commands) if statuses is None else statuses
    work = [([*map(str, command)], status) for command, status in zip(commands, expected, strict=True)]
    processes = start_ranks([sys.executable, __file__, json.dumps(work)], ranks)
    deadline = time.monotonic() + timeout
    outputs = []
    try:
        for process in processes:
            outputs.append(process.communicate(timeout=max(1, deadline - time.monotonic()))[0])
    finally:
        for process in processes:
            process.kill()
    text = "\n".join(f"--- rank {rank}\n{output}" for rank, output in enumerate(outputs))
    assert all(process.returncode == 0 for process in processes), text
    return text


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from pipeline.process_end import END

    END.prepare()
    import torch

    from pipeline.cli import main

    torch.set_num_threads(1)
    for command, expected in json.loads(sys.argv[1]):
        try:
            status = main(command)
        except SystemExit as end:
            status = end.code
        if status != expected:
            sys.exit(f"{command} ended with {status}, not with {expected}")
    END.status = 0
