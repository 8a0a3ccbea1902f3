"""How fast a corpus is prepared: what `python -m data_prep bench` measures, on the Python documentation and on an encyclopedia.

By hand, on an idle machine with 8 GB of disk free: `pytest -m benchmark -s tests/benchmarks/test_speed_of_data_preparation.py`.
"""

from pathlib import Path

import pytest
from rich.console import Console

from data_prep.bench.command import bench
from data_prep.bench.options import BenchOptions

pytestmark = pytest.mark.benchmark

ENCYCLOPEDIA = Path(__file__).resolve().parents[3] / "shared" / "data" / "lm" / "wiki_vital_en.train.txt.gz"


def measured(name: str) -> dict:
    corpus = (ENCYCLOPEDIA,) if ENCYCLOPEDIA.is_file() else ()
    return bench(BenchOptions(only=(name,), corpus=corpus), Console(width=100))


@pytest.mark.parametrize("name", ["tokenize", "gopher", "signatures"])
def test_all_ratios_to_peers_are_those_wanted(name):
    rows = measured(name)["comparisons"]
    assert rows
    assert [row for row in rows if not row["met"]] == []


def test_a_whole_run_needs_little_memory_and_time_that_grows_with_the_text():
    whole = measured("run")["whole_run"]
    assert whole["memory_met"]
    assert whole["linear"]
