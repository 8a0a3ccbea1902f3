"""A Slurm cluster on this machine, thrown away after the tests: a controller and some nodes on loopback, with GPUs that are none.

The fixture `slurm` (conftest.py) hands it to a test, free of jobs and with every node up; the environment then makes `sbatch`, `squeue`
and `scontrol` talk to it, in the test's own process and in those that it starts:

    def test_a_job_runs(slurm, tmp_path):
        job = slurm.submit("-N2", "--gpus-per-node=2", "-o", tmp_path / "output", "--wrap", "srun hostname")
        assert slurm.wait(job) == "COMPLETED"

- Nodes are called node1, node2, ...; each has mount, process and host-name namespaces of its own, so `slurm.cut_power("node2")` ends its
  daemon and all its tasks at once. With `declare_down=True` the controller knows at once, otherwise after SlurmdTimeout (10 s here, and the
  controller's own checks: 40 s). `slurm.start_node("node2")` brings it back; the fixture does so after each test.
- `slurm.spoil("node2", "mount -t tmpfs none /some/folder")` boots a node anew with a fault of its own.
- `slurm.restart_controller()` ends slurmctld as an administrator would and starts it again.
- `slurm.job(job)` is what `scontrol show job` says (a dict); `slurm.jobs(job)` all records of an array; `slurm.wait(job, {"RUNNING"})`
  waits for states; `slurm.wait_until(condition, seconds, what)` for anything.
- `slurm.signal(job, "USR1")` reaches the tasks of all steps but not the batch shell, as `--signal=USR1@120` does.
- Partitions: main (the default; no limit of time), short (ten minutes), closed (down), urgent (preempts main, whose jobs are requeued).
- GPUs are of type h100, two a node, by CUDA_VISIBLE_DEVICES alone: /dev/null and its like. There is no CUDA.
- A requeued job starts again 5-8 s later (it is two minutes on a cluster with Slurm's defaults). KillWait is 5 s.
- A start of python with Lightning takes 5-7 s a rank on 2 cores: be frugal.
"""

import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "sinfo", "scancel", "setpriv", "unshare")
SEARCH_PATH = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
"""Debian keeps daemons where only root looks for them."""
FINAL = {
    "COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE", "PREEMPTED",
}  # fmt: skip
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/ptmx", "/dev/tty", "/dev/kmsg")
"""Device files that every Linux has; a GPU must have one, and without control groups nobody opens it."""
NAMESPACES = ("unshare", "--mount", "--pid", "--uts", "--fork", "--mount-proc", "--kill-child=SIGKILL")
GPU_TYPE = "h100"

CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/{auth}
CredType=cred/{auth}
# A requeued job waits until its credential has expired.
AuthInfo={auth_socket}cred_expire=5
StateSaveLocation={root}/saved
SlurmdSpoolDir={root}/spool/%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd-%n.pid
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdLogFile={root}/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,sched_interval=2,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
# More cores and memory than this machine has.
SlurmdParameters=config_overrides
GresTypes=gpu
JobRequeue=1
KillOnBadExit=1
KillWait=5
SlurmdTimeout=10
ReturnToService=2
DefMemPerCPU={memory_per_core}
MinJobAge=86400
# Lightning makes its port of a job's last four digits: two clusters at once must not hand out the same.
FirstJobId={first_job}
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=short Nodes=ALL MaxTime=10 State=UP PriorityTier=1
PartitionName=closed Nodes=ALL State=DOWN
PartitionName=urgent Nodes=ALL State=UP PriorityTier=10
"""


def missing() -> str | None:
    """What keeps a cluster from running here, in a few words; None where nothing does."""
    absent = [program for program in PROGRAMS if not shutil.which(program, path=SEARCH_PATH)]
    if absent:
        return f"no Slurm here: {', '.join(absent)} missing (Debian: apt-get install slurm-wlm munge)"
    if namespaces() is None:
        return "no namespaces here for Slurm's nodes: neither root's nor a user's own"
    return None


def namespaces() -> list[str] | None:
    """The command that gives a node namespaces of its own: as root, or within a user's own where the kernel lets us."""
    probe = ["sh", "-c", "hostname probe && mount --bind /etc/hosts /etc/hosts"]
    for more in ([], ["--user", "--map-current-user", "--keep-caps"]):
        if subprocess.run([*NAMESPACES, *more, *probe], capture_output=True).returncode == 0:
            return [*NAMESPACES, *more]
    return None


def free_ports(count: int) -> list[int]:
    """Ports below those that Linux gives to clients (32768 on) and above those that Lightning makes of a job id (15000-24999).

    Each of the first seven test workers has a thousand of its own, so that two clusters that start at once take none twice.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 7
    ports: list[int] = []
    while len(ports) < count:
        port = random.randrange(25000 + 1000 * worker, 26000 + 1000 * worker)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in ports:
            ports.append(port)
    return ports


class Cluster:
    """A controller and its nodes, as a context.

    Args:
        root: an empty folder for all that the daemons write.
        nodes: how many.
        cores: of each node; they may be more than this machine has.
        gpus: of each node, up to 8.
    """

    def __init__(self, root: Path, nodes: int = 3, cores: int = 8, gpus: int = 2):
        self.root, self.cores, self.gpus = root.resolve(), cores, gpus
        self.nodes = [f"node{number + 1}" for number in range(nodes)]
        self.processes: dict[str, subprocess.Popen] = {}
        self.spoilt: set[str] = set()
        self.isolation = namespaces()
        # A folder of its own: every folder above munged's socket must be open to all, and pytest's are not.
        self.munge = Path(tempfile.mkdtemp(prefix="munge-")) if shutil.which("munged", path=SEARCH_PATH) else None
        self.environment = {"SLURM_CONF": str(self.root / "slurm.conf")}

    # -- daemons

    def __enter__(self) -> "Cluster":
        try:
            self.write_configuration()
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def write_configuration(self) -> None:
        for folder in ("saved", "log", "spool"):
            (self.root / folder).mkdir(parents=True)
        self.controller_port, *ports = free_ports(1 + len(self.nodes))
        host, memory = socket.gethostname().split(".")[0], 64000
        gres = f"Gres=gpu:{GPU_TYPE}:{self.gpus}" if self.gpus else ""
        lines = [
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={self.cores} RealMemory={memory} {gres}"
            for node, port in zip(self.nodes, ports, strict=True)
        ]
        text = CONFIGURATION.format(
            root=self.root, host=host, user=pwd.getpwuid(os.getuid()).pw_name, controller_port=self.controller_port,
            auth="munge" if self.munge else "none", auth_socket=f"socket={self.munge}/socket," if self.munge else "",
            memory_per_core=memory // self.cores, first_job=random.randrange(1, 90) * 1000 + 1, nodes="\n".join(lines),
        )  # fmt: skip
        (self.root / "slurm.conf").write_text(text)
        files = ",".join(DEVICES[: self.gpus])
        (self.root / "gres.conf").write_text(f"Name=gpu Type={GPU_TYPE} File={files}\n" if self.gpus else "")
        # Tasks find one another by the nodes' names.
        (self.root / "hosts").write_text(f"127.0.0.1 localhost {host} {' '.join(self.nodes)}\n")

    def start(self) -> None:
        if self.munge:
            folder = self.munge
            folder.chmod(0o711)
            (folder / "key").touch(0o600)
            (folder / "key").write_bytes(os.urandom(128))
            files = {"socket": "socket", "key-file": "key", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
            self.spawn("munged", ["munged", "--foreground", *(f"--{o}={folder / name}" for o, name in files.items())])
            self.wait_until((folder / "socket").exists, 10, "socket of munged")
        self.start_controller("-c")
        for node in self.nodes:
            self.start_node(node)
        self.wait_until(lambda: set(self.node_states().values()) == {"idle"}, 60, "idle nodes")

    def start_controller(self, *options: str) -> None:
        self.spawn("slurmctld", ["slurmctld", "-D", *options])
        self.wait_until(lambda: listens(self.controller_port), 60, "port of slurmctld")

    def restart_controller(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End the controller and start it from what it had saved; SIGKILL loses what happened in the last seconds, and with it jobs."""
        self.end("slurmctld", number)
        self.start_controller()
        self.wait_until(lambda: bool(self.node_states()), 60, "answer of slurmctld")

    def start_node(self, node: str, prepare: str = "true") -> None:
        """Boot a node.

        Args:
            prepare: Shell commands as root of the node, before its daemon starts: mounts there are seen on that node alone.
        """
        script = (
            f"mount --bind {self.root}/hosts /etc/hosts && hostname {node} && {prepare} && "
            f"{{ slurmd -D -N {node} & wait $!; }}"
        )
        assert self.isolation is not None
        self.spawn(node, [*self.isolation, "bash", "-c", script])

    def spoil(self, node: str, prepare: str) -> None:
        """Boot a node anew with something wrong, such as `mount -o bind,ro ...`; the fixture `slurm` mends it after the test."""
        self.end(node, signal.SIGKILL)
        self.spoilt.add(node)
        self.start_node(node, prepare)
        self.wait_until(lambda: self.node_states()[node] == "idle", 30, f"idle {node}")

    def cut_power(self, node: str, *, declare_down: bool = False) -> None:
        """End a node's daemon and all its tasks at once; with `declare_down` the controller need not find out by itself."""
        self.end(node, signal.SIGKILL)
        if declare_down:
            self.command("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=power")

    def spawn(self, name: str, command: Sequence[str]) -> None:
        """Start a daemon that dies with the thread that starts it, should this process be killed: call it from the main thread."""
        with open(self.root / "log" / f"{name}.out", "ab") as output:
            self.processes[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command],
                env={**os.environ, **self.environment, "PATH": SEARCH_PATH}, cwd=self.root, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            )  # fmt: skip

    def end(self, name: str, number: signal.Signals) -> None:
        process = self.processes.pop(name)
        process.send_signal(number)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def stop(self) -> None:
        # Nodes first, with all that runs there.
        for name in [
            *(n for n in self.nodes if n in self.processes),
            *({"slurmctld", "munged"} & self.processes.keys()),
        ]:
            self.end(name, signal.SIGKILL if name in self.nodes else signal.SIGTERM)
        if self.munge:
            shutil.rmtree(self.munge, ignore_errors=True)

    # -- for tests

    def command(self, *arguments: object, check: bool = True, **options) -> subprocess.CompletedProcess[str]:
        """Run a command on this cluster."""
        environment = {**os.environ, **self.environment}
        words = [str(argument) for argument in arguments]
        done = subprocess.run(words, env=environment, text=True, capture_output=True, timeout=60, **options)
        assert not check or done.returncode == 0, f"{words}: {done.stderr}"
        return done

    def submit(self, *arguments: object) -> int:
        """`sbatch` with these arguments; return the job's number."""
        return int(self.command("sbatch", "--parsable", *arguments).stdout.split(";")[0])

    def signal(self, job: int, name: str) -> None:
        self.command("scancel", f"--signal={name}", job)

    def node_states(self) -> dict[str, str]:
        """A word of Slurm's for each node: idle, mixed, down ..."""
        lines = self.command("sinfo", "-h", "-N", "-p", "main", "-o", "%N %t", check=False).stdout.splitlines()
        return dict(line.split() for line in lines)  # pyright: ignore[reportArgumentType]

    def jobs(self, job: int | str) -> list[dict[str, str]]:
        """What `scontrol show job` says, a dict a record: members of an array have their own."""
        lines = self.command("scontrol", "show", "job", "-o", job, check=False).stdout.splitlines()
        return [dict(word.split("=", 1) for word in line.split() if "=" in word) for line in lines if "JobId=" in line]

    def job(self, job: int | str) -> dict[str, str]:
        return self.jobs(job)[0]

    def wait(self, job: int | str, states: Collection[str] = FINAL, seconds: float = 60) -> str:
        """Wait until a job, or all members of an array, are in one of these states; return the states, joined by +."""

        def seen() -> set[str]:
            return {record["JobState"] for record in self.jobs(job)}

        try:
            self.wait_until(lambda: bool(seen()) and seen() <= set(states), seconds, f"{states} of {job}")
        except TimeoutError as error:
            raise TimeoutError(f"{error}: {[(r['JobState'], r.get('Reason')) for r in self.jobs(job)]}") from None
        return "+".join(sorted(seen()))

    def wait_until(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        """Look ten times a second until a condition holds.

        Raises:
            TimeoutError: it does not in so many seconds.
            RuntimeError: a daemon ended.
        """
        end = time.monotonic() + seconds
        while not condition():
            for name, process in self.processes.items():
                if process.poll() is not None:
                    said = (self.root / "log" / f"{name}.out").read_text()[-2000:]
                    raise RuntimeError(f"{name} ended with {process.returncode}: {said}")
            if time.monotonic() > end:
                raise TimeoutError(f"no {what} after {seconds} s (logs: {self.root / 'log'})")
            time.sleep(0.1)

    def clear(self) -> None:
        """End every job at once and bring every node back."""
        jobs = self.command("squeue", "-h", "-o", "%A").stdout.split()
        if jobs:
            # Killed first: a job that ignores SIGTERM would stay for KillWait.
            self.command("scancel", "--signal=KILL", "--full", *jobs, check=False)
            self.command("scancel", *jobs, check=False)
        if "slurmctld" not in self.processes:
            self.start_controller()
        for node in self.spoilt & self.processes.keys():
            self.end(node, signal.SIGKILL)
        self.spoilt.clear()
        for node in self.nodes:
            if node not in self.processes:
                self.start_node(node)
            if self.node_states().get(node, "").rstrip("*") in ("down", "drain", "drng"):
                self.command("scontrol", "update", f"NodeName={node}", "State=RESUME", check=False)
        self.wait_until(lambda: not self.command("squeue", "-h").stdout, 60, "end of all jobs")
        self.wait_until(lambda: set(self.node_states().values()) == {"idle"}, 60, "idle nodes")


def listens(port: int) -> bool:
    """Whether someone on loopback listens; asking by a connection would disturb the controller."""
    address = f"0100007F:{port:04X}"
    sockets = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
    return any(fields[1] == address and fields[3] == "0A" for fields in sockets)
