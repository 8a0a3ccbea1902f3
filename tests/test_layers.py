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
    "allocator": set(),
    "budget": set(),
    "order": set(),
    "mixture": set(),
    "batch_schedule": set(),
    "metrics": set(),
    "schedule": set(),
    "optim": {"muon"},
    "muon": set(),
    "norms": set(),
    "noise_scale": set(),
    "averaging": {"state_files"},
    "models": {"models", "layers", "budget"},
    "batch": {"order", "mixture", "batch_schedule", "models"},
    "loader": {"batch", "models"},
    "loss": {"models"},
    "data": {"batch", "loader", "mixture", "batch_schedule"},
    "carried_state": {"models"},
    "scheduled_sampling": {"models"},
    "generation": {"generation", "models"},
    "checkpoint": {"models", "state_files"},
    "state_files": set(),
    "distributed": {"distributed", "checkpoint", "state_files", "master_weights"},
    "tracking": set(),
    "interchange": {"interchange", "models", "checkpoint", "state_files"},
    "inspection": {"inspection", "models", "checkpoint", "generation", "data"},
    "task": {
        "models", "layers", "batch", "metrics", "optim", "schedule", "data", "checkpoint", "carried_state", "scheduled_sampling",
        "averaging", "norms", "master_weights",
    },
    "master_weights": set(),
    "step_loop": {"task"},
    "callbacks": {
        "callbacks", "task", "checkpoint", "metrics", "tracking", "models", "state_files", "distributed", "batch", "norms", "noise_scale",
    },
    "evaluation": {"evaluation", "models", "checkpoint", "generation", "batch", "loss"},
    "reporting": {"reporting"},
    "training_cli": {
        "distributed", "allocator", "callbacks", "task", "data", "models", "checkpoint", "tracking", "optim", "schedule",
        "step_loop",
    },
    "commands": {
        "allocator", "commands", "evaluation", "generation", "checkpoint", "reporting", "budget", "inspection", "interchange",
        "models", "state_files",
    },
    "cli": {"commands", "training_cli"},
    "__main__": {"cli"},
    "__init__": set(),
}
# fmt: on
OF_DATA_PREP = {"files", "shards", "tokenizer"}


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
