"""Imports point downwards: cli -> commands -> task, data, evaluation ... -> models -> layers; data_prep never imports pipeline."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(p.relative_to(ROOT) for package in ("pipeline", "data_prep") for p in (ROOT / package).rglob("*.py"))

# fmt: off
# What each part of `pipeline` may import of it. A part that is not named here must be given its place.
ALLOWED = {
    "layers": {"layers"},
    "budget": set(),
    "exit_codes": set(),
    "run_state": set(),
    "process_end": set(),
    "signals": set(),
    "trainer_defaults": set(),
    "planning": {
        "planning", "budget", "models", "layers", "batch_schedule", "mixture", "mixture_parts", "order", "metrics", "optim", "schedule", "state_files",
        "trainer_defaults", "muon", "batch", "loader",
    },
    "slurm": {"slurm", "run_state", "exit_codes", "planning", "trainer_defaults", "step_records"},
    "order": set(),
    "mixture": set(),
    "mixture_parts": {"mixture"},
    "batch_schedule": set(),
    "metrics": set(),
    "schedule": set(),
    "optim": {"muon"},
    "muon": set(),
    "norms": set(),
    "noise_scale": set(),
    "spikes": set(),
    "averaging": {"state_files"},
    "models": {"models", "layers", "budget"},
    "batch": {"order", "mixture", "batch_schedule", "models"},
    "loader": {"batch", "models"},
    "loss": {"models"},
    "data": {"batch", "loader", "mixture", "mixture_parts", "batch_schedule"},
    "carried_state": {"models"},
    "scheduled_sampling": {"models"},
    "generation": {"generation", "models"},
    "checkpoint": {"models", "state_files"},
    "state_files": set(),
    "distributed": {"distributed", "checkpoint", "run_state", "state_files", "master_weights"},
    "tracking": {"step_records", "wandb_files"},
    "wandb_files": set(),
    "step_records": set(),
    "interchange": {"interchange", "models", "checkpoint", "state_files"},
    "inspection": {"inspection", "models", "checkpoint", "generation", "data", "spikes"},
    "task": {
        "models", "layers", "batch", "metrics", "optim", "schedule", "data", "checkpoint", "carried_state", "scheduled_sampling",
        "averaging", "norms", "master_weights",
    },
    "master_weights": set(),
    "step_loop": {"task"},
    "callbacks": {
        "callbacks", "task", "step_loop", "checkpoint", "run_state", "exit_codes", "signals", "metrics", "tracking", "models", "state_files", "distributed", "batch", "norms", "noise_scale", "spikes",
        "inspection", "step_records", "evaluation",
    },
    "evaluation": {"evaluation", "models", "checkpoint", "generation", "batch", "loss", "state_files", "data", "inspection", "spikes"},
    "reporting": {"reporting"},
    "training_cli": {
        "distributed", "callbacks", "task", "data", "models", "checkpoint", "tracking", "optim", "schedule",
        "step_loop", "run_state", "exit_codes", "slurm", "state_files", "spikes", "planning", "trainer_defaults",
    },
    "commands": {
        "commands", "evaluation", "generation", "checkpoint", "reporting", "budget", "inspection", "interchange",
        "models", "state_files", "planning", "slurm", "run_state", "exit_codes", "metrics", "step_records",
        "tracking",
    },
    "cli": {"commands", "training_cli"},
    "__main__": {"cli", "process_end", "signals"},
    "__init__": set(),
}
# fmt: on
OF_DATA_PREP = {"files", "ngrams", "process_memory", "shards", "slurm_time", "tokenizer", "tokenizer_files"}


def imported(path: Path) -> set[str]:
    """Dotted names that a file imports, `from a import b` as a.b."""
    names = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def part(name: str) -> str:
    return [*name.split("."), "__init__"][1]


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_file_imports_only_what_lies_below_it(path):
    package, here = path.parts[0], path.parts[1].removesuffix(".py")
    of_pipeline = {part(name) for name in imported(path) if name.split(".")[0] == "pipeline"}
    of_data_prep = {part(name) for name in imported(path) if name.split(".")[0] == "data_prep"}
    if package == "data_prep":
        assert not of_pipeline
        return
    assert of_pipeline <= ALLOWED[here] | {"__init__"}
    assert of_data_prep <= OF_DATA_PREP


def test_no_part_imports_itself_through_others():
    seen: dict[str, int] = {}

    def visit(name: str) -> None:
        assert seen.get(name) != 1, f"{name} is part of a cycle"
        if name not in seen:
            seen[name] = 1
            for below in ALLOWED[name] - {name}:
                visit(below)
            seen[name] = 2

    for name in ALLOWED:
        visit(name)
