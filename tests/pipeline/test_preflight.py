"""The judge of a job's nodes, before ranks that behave, hang, leave or tell the wrong time."""

import json
import socket
import threading
import time
from pathlib import Path

import pytest

from pipeline import exit_codes, run_state
from pipeline.cli import main
from pipeline.slurm.preflight import Judge, Limits, Rank, blamed, look

LIMITS = Limits(arrival_seconds=0.5, collective_seconds=0.3, skew_seconds=5)
FINE = {
    "hello": {}, "clock": {}, "look": {"problems": [], "gpus": 1, "temporary_bytes": 1, "run_bytes": 1, "host": "127.0.0.1", "port": 1},
    "sum": {"problem": None, "seconds": 0.1}, "reach": {"unreachable": []},
}  # fmt: skip


def play(address: str, number: int, node: str, answers: dict) -> None:
    """A rank that says what it is told to; None: nothing from then on, "leave": it ends."""
    host, port = address.rsplit(":", 1)
    with socket.create_connection((host, int(port))) as connection:
        stream = connection.makefile("rw")

        def say(what: str, **more) -> None:
            stream.write(json.dumps({"answer": what, **more}) + "\n")
            stream.flush()

        say("hello", rank=number, node=node)
        for line in stream:
            asked = json.loads(line)["ask"]
            given = answers.get(asked)
            if asked == "clock":
                say("clock", time=time.time() + answers["clock"].get("ahead", 0))
            elif given == "leave" or asked == "bye":
                return
            elif given is not None:
                say(asked, **given)


@pytest.fixture
def judged(tmp_path, monkeypatch):
    """Let ranks play on nodes of two ranks each, and return the verdict; a rank without a part never arrives."""
    monkeypatch.delenv("SLURMD_NODENAME", raising=False)
    monkeypatch.setattr("pipeline.slurm.preflight.PEER_SECONDS", 0.5)
    monkeypatch.setattr("pipeline.slurm.preflight.MARGIN_SECONDS", 0.2)

    def run(*parts: dict | None) -> tuple[int, str]:
        judge = Judge([Rank(number, f"node{number // 2 + 1}") for number in range(len(parts))], tmp_path, LIMITS)
        address = f"127.0.0.1:{judge.listener.getsockname()[1]}"
        threads = [
            threading.Thread(target=play, args=(address, number, f"node{number // 2 + 1}", FINE | part), daemon=True)
            for number, part in enumerate(parts) if part is not None
        ]  # fmt: skip
        for thread in threads:
            thread.start()
        judge.ask_all(gpus=0)
        code, why = judge.verdict()
        assert judge.report()["bad"] == judge.bad
        return code, why

    return run


def test_nodes_on_which_all_is_well_pass(judged):
    assert judged({}, {}, {}, {}) == (exit_codes.DONE, "")


def test_the_node_whose_rank_never_arrives_is_named(judged):
    assert judged({}, {}, {}, None) == (exit_codes.BAD_NODE, "node2: rank 3 never arrived within 0.5 s")


def test_the_node_that_hangs_in_the_sum_is_named_and_not_those_that_wait_for_it(judged):
    failed = {"sum": {"problem": "timed out", "seconds": None}}
    code, why = judged(failed, failed, {"sum": None}, failed)
    assert (code, why) == (exit_codes.BAD_NODE, "node2: rank 2 did not finish the sum over all ranks within 0.5 s")


def test_the_node_whose_rank_dies_while_it_looks_is_named_at_once(judged):
    began = time.monotonic()
    assert judged({}, {}, {"look": "leave"}, {"look": "leave"})[1].startswith("node2: rank 2 looked at its node")
    assert time.monotonic() - began < 5


def test_the_node_that_the_others_cannot_reach_is_named(judged):
    failed = {"sum": {"problem": "no route", "seconds": None}}
    look = {"look": FINE["look"] | {"peer_port": 1}}
    code, why = judged(
        failed | look, failed, failed | look | {"reach": {"unreachable": ["node3"]}}, failed,
        failed | look | {"reach": {"unreachable": ["node1"]}}, failed,
    )  # fmt: skip
    assert (code, why) == (exit_codes.BAD_NODE, "node3: cannot be reached from, or cannot reach, node1, node2")


def test_a_sum_that_fails_on_nodes_that_reach_each_other_is_nobodys_fault(judged):
    failed = {"sum": {"problem": "unsupported", "seconds": None}}
    look = {"look": FINE["look"] | {"peer_port": 1}}
    code, why = judged(failed | look, failed, failed | look, failed)
    assert (code, why) == (1, "the sum over all ranks failed, and every node reaches every other one: unsupported")


def test_a_clock_that_is_off_names_its_node(judged):
    code, why = judged({}, {}, {"clock": {"ahead": 60}}, {"clock": {"ahead": 60}})
    assert code == exit_codes.BAD_NODE
    assert why.startswith("node2: its clock is off by +60.0 s")


def test_what_every_node_complains_of_is_not_a_node(judged):
    blind = {"look": FINE["look"] | {"problems": ["0 GPUs are visible, 8 were asked for"]}}
    code, why = judged(blind, blind, blind, blind)
    assert code == exit_codes.REFUSED
    assert why.startswith("every node fails, so it is not the nodes: node1: 0 GPUs are visible")


@pytest.mark.parametrize(
    ("cut", "nodes", "guilty"),
    [
        ({("a", "c"), ("b", "c"), ("c", "d")}, "abcd", {"c": ["a", "b", "d"]}),
        ({("a", "b")}, "ab", {"b": ["a"]}),
        ({("a", "b")}, "abcdef", {}),
        (set(), "abc", {}),
    ],
)  # fmt: skip
def test_of_broken_connections_those_in_most_of_them_are_blamed(cut, nodes, guilty):
    assert blamed(cut, [*nodes], home="a") == guilty


def test_a_folder_that_is_not_the_judges_is_noticed(tmp_path):
    assert "is not the folder" in look(tmp_path, "token", 0, 0)["problems"][0]
    run_state.state_folder(tmp_path).mkdir()
    (run_state.state_folder(tmp_path) / "preflight-token").write_text("another")
    assert "is not the folder" in look(tmp_path, "token", 0, 0)["problems"][0]
    (run_state.state_folder(tmp_path) / "preflight-token").write_text("token")
    assert look(tmp_path, "token", 0, 0)["problems"] == []
    assert look(tmp_path, "token", 2, 0)["problems"] == ["0 GPUs are visible, 2 were asked for"]


def test_without_a_cluster_one_rank_is_checked_here(tmp_path: Path, capfd):
    assert main(["preflight", "--run", str(tmp_path / "run")]) == 0
    found = json.loads((tmp_path / "run" / "state" / "preflight.json").read_text())
    assert found["code"] == 0
    assert found["sum_seconds"] is not None
    assert not (tmp_path / "run" / "state" / "preflight-token").exists()
    assert "fine" in capfd.readouterr().out
