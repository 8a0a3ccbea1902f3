"""The check of a job's nodes before training: who arrives, what each node has, whether all can add up a number together.

One process, the judge, sits in the batch shell. It starts a rank wherever training will have one; each connects to it and answers what
it is asked, a line of JSON a message, so that a rank that hangs or a node that is cut off is missed by name, whatever torch would
have said of it. The judge needs the standard library alone: with a container it runs outside, where Slurm's commands are.
"""

import json
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.files import InputError, write_json, write_text
from pipeline import exit_codes
from pipeline.run_state import note_end, state_folder
from pipeline.slurm.cluster import BAD_NODES, hosts

ROOM_FOR_TEMPORARY_FILES = 100e6
FAILED = 1
"""Something is wrong that starting again may mend."""
MARGIN_SECONDS = 10.0
"""For those that wait for another in the sum to give up and say so."""
PEER_SECONDS = 5.0
"""A neighbour in the network that has not answered after so long is cut off."""


# -- what the judge knows


@dataclass
class Rank:
    """A rank as the judge sees it."""

    number: int
    node: str
    connection: socket.socket | None = None
    unread: bytes = b""
    said: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Its answers by what was asked; `hello` comes first, unasked."""


@dataclass(frozen=True)
class Limits:
    """How long the judge waits, and what it puts up with."""

    arrival_seconds: float = 120.0
    """For each rank to connect, and again for what it looks at by itself."""
    collective_seconds: float = 60.0
    """For a sum over all ranks."""
    skew_seconds: float = 10.0
    """By how much a node's clock may differ from the first node's."""


def expected_ranks(environment: Mapping[str, str]) -> list[Rank]:
    """The ranks that a job step has, with their nodes; this machine's one outside a job."""
    if "SLURM_JOB_NODELIST" not in environment:
        return [Rank(0, socket.gethostname())]
    nodes = hosts(environment["SLURM_JOB_NODELIST"])
    each = int(environment.get("SLURM_NTASKS_PER_NODE", 1))
    return [Rank(number, nodes[number // each]) for number in range(each * len(nodes))]


class Judge:
    """Asks the ranks, and finds the nodes that are bad.

    Args:
        ranks: those that should come.
        run: the run directory, which all should see.
    """

    def __init__(self, ranks: Sequence[Rank], run: Path, limits: Limits):
        self.ranks, self.run, self.limits = {rank.number: rank for rank in ranks}, run, limits
        self.token = uuid.uuid4().hex
        self.listener = socket.create_server(("", 0), backlog=len(ranks) + 8)
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.listener, selectors.EVENT_READ)
        self.problems: dict[str, list[str]] = {rank.node: [] for rank in ranks}
        """What is wrong with each node."""
        self.shared: list[str] = []
        """What is wrong, and cannot be put down to a node."""
        self.process: subprocess.Popen | None = None

    @property
    def address(self) -> str:
        host = os.environ.get("SLURMD_NODENAME") or ("127.0.0.1" if len(self.ranks) == 1 else socket.gethostname())
        return f"{host}:{self.listener.getsockname()[1]}"

    def examine(self, launcher: Sequence[str], gpus: int) -> None:
        """Start the ranks and ask them everything; what is wrong stands in `problems` and `shared` then."""
        write_text(self.token_file, self.token)
        command = [*launcher, "-m", "pipeline", "preflight", "--run", str(self.run), "--report-to", self.address]
        try:
            self.process = subprocess.Popen(command)
        except OSError as error:
            raise InputError(f"{launcher[0]} cannot be started: {error.strerror}") from None
        try:
            self.ask_all(gpus)
        finally:
            self.end_ranks()
            self.token_file.unlink(missing_ok=True)

    @property
    def token_file(self) -> Path:
        return state_folder(self.run) / "preflight-token"

    def ask_all(self, gpus: int) -> None:
        if not self.listen("hello", self.limits.arrival_seconds):
            return
        self.measure_clocks()
        self.ask("look", token=self.token, gpus=gpus)
        if not self.listen("look", self.limits.arrival_seconds):
            return
        for rank in self.ranks.values():
            self.problems[rank.node] += [
                problem for problem in rank.said["look"]["problems"] if problem not in self.problems[rank.node]
            ]
        if any(self.problems.values()):
            return
        first = self.ranks[0]
        self.ask(
            "sum",
            master=first.said["look"]["host"],
            port=first.said["look"]["port"],
            seconds=self.limits.collective_seconds,
        )
        self.listen("sum", self.limits.collective_seconds + MARGIN_SECONDS)
        if not any(self.problems.values()) and any(rank.said["sum"]["problem"] for rank in self.ranks.values()):
            self.look_for_a_cut()
        self.ask("bye")

    # -- messages

    def ask(self, what: str, **more: Any) -> None:
        for rank in self.ranks.values():
            self.send(rank, {"ask": what, **more})

    def send(self, rank: Rank, message: dict[str, Any]) -> None:
        try:
            if rank.connection:
                rank.connection.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            self.lose(rank)

    def listen(self, what: str, seconds: float) -> bool:
        """Wait until every rank has said something; those that have not in time are a problem of their nodes."""
        end = time.monotonic() + seconds
        while missing := [rank for rank in self.ranks.values() if what not in rank.said]:
            left = end - time.monotonic()
            ended = self.process is not None and self.process.poll() is not None
            if (
                left <= 0
                or (ended and not self.pending())
                or all(rank.connection is None and "hello" in rank.said for rank in missing)
            ):
                self.blame(missing, what, seconds if left <= 0 else None)
                return False
            for key, _ in self.selector.select(min(left, 0.2)):
                self.receive(key)
        return True

    def pending(self) -> bool:
        return bool(self.selector.select(0))

    def receive(self, key: selectors.SelectorKey) -> None:
        if key.fileobj is self.listener:
            connection, _ = self.listener.accept()
            self.selector.register(connection, selectors.EVENT_READ, data=Rank(-1, ""))
            return
        rank, connection = key.data, key.fileobj
        assert isinstance(connection, socket.socket)
        try:
            received = connection.recv(1 << 16)
        except OSError:
            received = b""
        if not received:
            self.selector.unregister(connection)
            rank.connection = None
            return
        *lines, rank.unread = (rank.unread + received).split(b"\n")
        for message in map(json.loads, lines):
            if message["answer"] == "hello":
                known = self.ranks[message["rank"]]
                known.connection, known.node, known.unread = connection, message["node"], rank.unread
                self.problems.setdefault(known.node, [])
                self.selector.modify(connection, selectors.EVENT_READ, data=known)
                rank = known
            rank.said[message["answer"]] = message | {"received": time.time()}

    def lose(self, rank: Rank) -> None:
        if rank.connection:
            self.selector.unregister(rank.connection)
            rank.connection = None

    def blame(self, missing: Iterable[Rank], what: str, seconds: float | None) -> None:
        silent = {
            "hello": "never arrived",
            "look": "looked at its node and did not come back",
            "sum": "did not finish the sum over all ranks",
        }
        missing = [*missing]
        if len(missing) == len(self.ranks) and seconds is None and what == "hello":
            self.shared.append(
                f"no rank could be started on any node, see above (launcher's exit status: {self.process and self.process.poll()})"
            )
            return
        for rank in missing:
            after = f" within {seconds:g} s" if seconds is not None else ", it ended"
            self.problems[rank.node].append(f"rank {rank.number} {silent[what]}{after}")

    def measure_clocks(self) -> None:
        """The difference of each clock from this one's, by the way of a message there and back."""
        self.skews: dict[int, float] = {}
        for rank in self.ranks.values():
            sent = time.time()
            rank.said.pop("clock", None)
            self.send(rank, {"ask": "clock"})
            end = time.monotonic() + PEER_SECONDS
            while "clock" not in rank.said and time.monotonic() < end and rank.connection:
                for key, _ in self.selector.select(0.05):
                    self.receive(key)
            if "clock" in rank.said:
                answer = rank.said["clock"]
                skew = self.skews[rank.number] = answer["time"] - (sent + answer["received"]) / 2
                if abs(skew) > self.limits.skew_seconds:
                    self.problems[rank.node].append(f"its clock is off by {skew:+.1f} s")

    def look_for_a_cut(self) -> None:
        """After a sum that failed on all: which node the others cannot reach."""
        peers = {
            rank.node: [rank.said["look"]["host"], rank.said["look"]["peer_port"]] for rank in self.ranks.values() if rank.said["look"].get("peer_port")
        }  # fmt: skip
        self.ask("reach", peers=peers)
        self.listen("reach", PEER_SECONDS * (len(peers) + 2))
        cut = {
            (rank.node, other)
            for rank in self.ranks.values()
            for other in rank.said.get("reach", {}).get("unreachable", [])
        }
        for node, others in blamed(cut, [*peers], self.ranks[0].node).items():
            self.problems[node].append(f"cannot be reached from, or cannot reach, {', '.join(others)}")
        if not any(self.problems.values()):
            said = next(rank.said["sum"]["problem"] for rank in self.ranks.values() if rank.said["sum"]["problem"])
            self.shared.append(f"the sum over all ranks failed, and every node reaches every other one: {said}")

    def end_ranks(self) -> None:
        if self.process is None:
            return
        for rank in self.ranks.values():
            self.lose(rank)
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            # Twice at once: srun takes the first as a question.
            for _ in range(2):
                self.process.send_signal(signal.SIGINT)
                time.sleep(0.2)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()

    # -- the verdict

    @property
    def bad(self) -> list[str]:
        """Nodes with a problem of their own."""
        return sorted(node for node, problems in self.problems.items() if problems)

    def verdict(self) -> tuple[int, str]:
        """The exit status, and why."""
        nodes = {rank.node for rank in self.ranks.values()}
        if not self.bad:
            return (exit_codes.DONE, "") if not self.shared else (FAILED, "; ".join(self.shared))
        told = "; ".join(f"{node}: {', '.join(self.problems[node])}" for node in self.bad)
        if len(nodes) > 1 and len(self.bad) == len(nodes):
            return exit_codes.REFUSED, f"every node fails, so it is not the nodes: {told}"
        return exit_codes.BAD_NODE, told

    def report(self) -> dict[str, Any]:
        """All that was found, by node."""
        nodes: dict[str, Any] = {}
        for rank in self.ranks.values():
            look = rank.said.get("look", {})
            entry = nodes.setdefault(rank.node, {"ranks": [], "problems": self.problems[rank.node]})
            entry["ranks"].append(rank.number)
            entry |= {name: look[name] for name in ("gpus", "temporary_bytes", "run_bytes") if name in look}
            if rank.number in getattr(self, "skews", {}):
                entry["skew_seconds"] = round(self.skews[rank.number], 4)
        sums = [
            rank.said["sum"]["seconds"]
            for rank in self.ranks.values()
            if rank.said.get("sum", {}).get("seconds") is not None
        ]
        return {
            "time": time.time(),
            "nodes": nodes,
            "problems": self.shared,
            "sum_seconds": max(sums, default=None),
            "bad": self.bad,
        }


def blamed(cut: set[tuple[str, str]], nodes: Sequence[str], home: str) -> dict[str, list[str]]:
    """Whom to blame for connections that fail: the nodes with most of them, if that is half of what they could have.

    Args:
        cut: Pairs of nodes of which one cannot reach the other.
        home: The node that is believed where two accuse each other.
    """
    lost: dict[str, set[str]] = {node: set() for node in nodes}
    for one, other in cut:
        lost[one].add(other)
        lost[other].add(one)
    most = max(map(len, lost.values()), default=0)
    if not most or 2 * most < len(nodes) - 1:
        return {}
    guilty = [node for node in nodes if len(lost[node]) == most]
    if len(nodes) == 2:
        guilty = [node for node in guilty if node != home]
    return {node: sorted(lost[node]) for node in guilty}


def preflight(run: Path, launcher: Sequence[str], limits: Limits, gpus: int) -> tuple[int, dict[str, Any], str]:
    """Examine the nodes of this job; return the exit status, what was found, and why it is not 0.

    Writes RUN/state/preflight.json, and the names of bad nodes to RUN/state/bad_nodes.
    """
    judge = Judge(expected_ranks(os.environ), run, limits)
    home = room(run, checkpoint_bytes(run))
    if home:
        judge.shared.append(home)
    judge.examine(launcher or [sys.executable], gpus)
    code, why = judge.verdict()
    found = judge.report() | {"code": code, "job": os.environ.get("SLURM_JOB_ID")}
    write_json(state_folder(run) / "preflight.json", found)
    bad = state_folder(run) / BAD_NODES
    if code == exit_codes.BAD_NODE:
        write_text(bad, "".join(f"{node}\n" for node in judge.bad))
    else:
        bad.unlink(missing_ok=True)
    if code:
        note_end(run, code=code, reason=f"preflight: {why}")
    return code, found, why


def checkpoint_bytes(run: Path) -> int:
    """Size of the newest checkpoint; 0 where there is none."""
    found = sorted((run / "checkpoints").glob("step-*"))
    return sum(path.stat().st_size for path in found[-1].rglob("*") if path.is_file()) if found else 0


def room(run: Path, needed: int) -> str | None:
    """What to say where a run directory has no room for the next checkpoint."""
    free = shutil.disk_usage(run).free
    if free > needed:
        return None
    return f"{run} has {free / 1e9:.1f} GB free, the next checkpoint needs {needed / 1e9:.1f} GB: free some"


# -- a rank


def answer(address: str, run: Path, environment: Mapping[str, str]) -> int:
    """Be a rank: connect to the judge and answer until it says goodbye."""
    number, local = int(environment.get("SLURM_PROCID", 0)), int(environment.get("SLURM_LOCALID", 0))
    host, port = address.rsplit(":", 1)
    node = environment.get("SLURMD_NODENAME") or socket.gethostname()
    # Neighbours are reached at it, to see whether they can be.
    door = socket.create_server(("", 0)) if local == 0 else None
    with socket.create_connection((host, int(port)), timeout=PEER_SECONDS) as connection:
        connection.settimeout(None)

        def say(what: str, **more: Any) -> None:
            connection.sendall(json.dumps({"answer": what, **more}).encode() + b"\n")

        say("hello", rank=number, node=node)
        store: Any = None
        for line in connection.makefile():
            question = json.loads(line)
            if question["ask"] == "clock":
                say("clock", time=time.time())
            elif question["ask"] == "look":
                found = look(run, question["token"], question["gpus"], local)
                if number == 0:
                    store = open_store()
                    found["port"] = store.port
                peer = door.getsockname()[1] if door else None
                say("look", host=node if "SLURM_JOB_ID" in environment else "127.0.0.1", peer_port=peer, **found)
            elif question["ask"] == "sum":
                ranks = int(environment.get("SLURM_NTASKS", 1))
                say(
                    "sum",
                    **add_up(store, question["master"], question["port"], number, ranks, local, question["seconds"]),
                )
            elif question["ask"] == "reach":
                say("reach", unreachable=unreachable(question["peers"], node) if local == 0 else [])
            else:
                break
    # Without torch's farewell to peers that may be gone.
    os._exit(0)


def look(run: Path, token: str, gpus: int, local: int) -> dict[str, Any]:
    """What one rank sees of its node: problems in words, GPUs, room."""
    problems = []
    path = state_folder(run) / "preflight-token"
    try:
        seen = path.read_text()
    except OSError as error:
        seen, reason = "", error.strerror
        problems.append(f"{run} is not the folder that the first node sees ({reason}: {path.name})")
    if seen and seen != token:
        problems.append(f"{run} is not the folder that the first node sees")
    for folder in (run, Path(tempfile.gettempdir())):
        try:
            with tempfile.NamedTemporaryFile(dir=folder, prefix=".preflight-") as file:
                file.write(b"preflight")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            problems.append(f"{folder} cannot be written to ({error.strerror})")
    temporary = shutil.disk_usage(tempfile.gettempdir()).free
    if temporary < ROOM_FOR_TEMPORARY_FILES:
        problems.append(f"{tempfile.gettempdir()} has {temporary / 1e6:.0f} MB free")
    seen_gpus, of_gpus = look_at_gpus(gpus, local)
    return {
        "problems": problems + of_gpus, "gpus": seen_gpus, "temporary_bytes": temporary,
        "run_bytes": shutil.disk_usage(run).free if run.exists() else 0,
    }  # fmt: skip


def look_at_gpus(wanted: int, local: int) -> tuple[int, list[str]]:
    """How many GPUs this rank sees, and what is wrong with them: too few, or its own one that multiplies wrongly."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not wanted:
        return count, []
    if count < wanted:
        return count, [f"{count} GPUs are visible, {wanted} were asked for"]
    try:
        # Whole numbers: the result is exact, in whatever order it is summed.
        values = torch.arange(256 * 256, dtype=torch.float32).remainder(7).reshape(256, 256)
        product = (values.cuda(local) @ values.cuda(local).T).cpu()
    except RuntimeError as error:
        return count, [f"GPU {local} does not work ({str(error).splitlines()[0]})"]
    return count, [] if torch.equal(product, values @ values.T) else [f"GPU {local} multiplies wrongly"]


def open_store() -> Any:
    from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

    return TCPStore("0.0.0.0", 0, is_master=True, wait_for_workers=False)


def add_up(store: Any, host: str, port: int, number: int, ranks: int, local: int, seconds: float) -> dict[str, Any]:
    """The sum of all ranks' numbers over the network that training will use."""
    from datetime import timedelta

    import torch
    from torch import distributed
    from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

    limit, began = timedelta(seconds=seconds), time.monotonic()
    cuda = torch.cuda.is_available()
    try:
        if store is None:
            store = TCPStore(host, port, is_master=False, timeout=limit)
        distributed.init_process_group(
            "nccl" if cuda else "gloo", store=store, rank=number, world_size=ranks, timeout=limit
        )
        value = torch.full((1024,), float(number), device=f"cuda:{local}" if cuda else "cpu")
        distributed.all_reduce(value)
        right = bool((value == ranks * (ranks - 1) / 2).all())
    except RuntimeError as error:
        return {"problem": str(error).splitlines()[0], "seconds": None}
    return {"problem": None if right else "the sum is wrong", "seconds": time.monotonic() - began}


def unreachable(peers: Mapping[str, Sequence[Any]], here: str) -> list[str]:
    """Nodes that do not answer."""
    found = []
    for node, (host, port) in peers.items():
        if node == here:
            continue
        try:
            socket.create_connection((host, port), timeout=PEER_SECONDS).close()
        except OSError:
            found.append(node)
    return found
