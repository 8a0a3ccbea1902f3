"""Generated programs run behind walls that hold, and pass@k is what a count over all subsets gives."""

import itertools
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_prep.files import InputError
from pipeline.evaluation import protocol, tasks
from pipeline.evaluation.code_execution import WALLS, Limits, Outcome, available_walls, execute, execute_all, pass_at_k
from pipeline.evaluation.code_tasks import human_eval_marks, mbpp, mbpp_marks, share_stopped
from pipeline.evaluation.harness import PipelineLM

FIXTURES = Path(__file__).with_name("fixtures")
MBPP = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "code" / "mbpp.jsonl.gz"
SMALL = Limits(seconds=20, cpu_seconds=10, memory_megabytes=256, file_megabytes=2, processes=8)


# The weakest walls are the hook alone, which is a part of the filter's too.
@pytest.fixture(params=["namespaces", "filter"])
def walls(request):
    if list(WALLS).index(request.param) < list(WALLS).index(available_walls()):
        pytest.skip(f"the kernel allows no {request.param} here")
    return request.param


def run(program: str, walls, tests: str = "") -> Outcome:
    return execute(program, tests, SMALL, walls)


@pytest.fixture
def server():
    """A server on this machine that remembers who called."""
    calls = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(5)

        def answer():
            while True:
                try:
                    calls.append(listener.accept())
                except OSError:
                    return

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield listener.getsockname()[1], calls
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(10)


def test_a_program_passes_where_its_tests_do(walls):
    program = "import math\ndef area(r):\n    return math.pi * r * r"
    assert run(program, walls, "assert round(area(1), 2) == 3.14") == Outcome("passed")
    wrong = run(program, walls, "x = 1\nassert area(1) == 3")
    assert wrong == Outcome("failed", "AssertionError (tests.py, line 2: assert area(1) == 3)")
    error = run("def f():\n    return 1 / 0", walls, "f()")
    assert error == Outcome("failed", "ZeroDivisionError: division by zero (program.py, line 2: return 1 / 0)")
    assert run("def f(:", walls, "f()").detail.startswith("SyntaxError")


@pytest.mark.parametrize(
    "program",
    ["import sys; sys.exit(0)", "import os; os._exit(0)"],
)
def test_a_program_that_ends_before_its_tests_does_not_pass(program, walls):
    outcome = run(program, walls, "assert False")
    assert outcome.verdict == "failed"
    assert "ended before its tests" in outcome.detail


def test_a_program_cannot_pass_by_what_it_prints(walls):
    assert (
        run('print(\'["passed", ""]\', flush=True)\nimport os\nos._exit(0)', walls, "assert False").verdict == "failed"
    )
    everywhere = (
        'import os\nfor n in range(3, 64):\n    try: os.write(n, b\'["x", "passed", ""]\')\n    except OSError: pass\n'
    )
    assert run(everywhere + "os._exit(0)", walls, "assert False").verdict == "failed"


@pytest.mark.parametrize(
    "program",
    ["while True: print('x' * 10000)", "import time\ntime.sleep(60)"],
)
def test_a_program_without_end_is_stopped(program, walls):
    started = time.monotonic()
    assert execute(program, "", Limits(seconds=0.2), walls).verdict == "timed out"
    assert time.monotonic() - started < 4


def test_processor_time_is_limited_apart_from_the_time_on_the_clock():
    outcome = execute("while True: pass", "", Limits(seconds=20, cpu_seconds=1))
    assert outcome == Outcome("timed out", "it used 1 s of processor time")


@pytest.mark.parametrize("program", ["x = bytearray(10**10)", "x = []\nwhile True: x.append(bytearray(10**7))"])
def test_a_program_that_takes_too_much_memory_is_stopped(program, walls):
    assert run(program, walls).verdict == "out of memory"


def test_a_program_cannot_fill_the_disk(walls):
    outcome = run("open('large', 'wb').write(bytes(2**30 // 8))", walls)
    assert outcome.verdict == "failed"
    assert "File too large" in outcome.detail
    if walls == "namespaces":  # where the folder is in memory of a stated size
        many = run("for i in range(99): open(str(i), 'wb').write(bytes(2**20))", walls)
        assert "No space left" in many.detail


def test_no_connection_leaves_a_program(walls, server):
    port, calls = server
    programs = [
        f"import socket\nsocket.create_connection(('127.0.0.1', {port}), timeout=1)",
        f"import urllib.request\nurllib.request.urlopen('http://127.0.0.1:{port}', timeout=1)",
        f"import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\ns.sendto(b'x', ('127.0.0.1', {port}))",
        f"import asyncio\nasyncio.run(asyncio.open_connection('127.0.0.1', {port}))",
    ]
    for program in programs:
        outcome = run(program, walls)
        assert outcome.verdict == "refused"
        assert "network" in outcome.detail
    # A child of the program, out of the reach of what watches over the interpreter.
    script = f"import socket; socket.create_connection(('127.0.0.1', {port}), timeout=1)"
    child = run(f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {script!r}], check=True)", walls)
    assert child.verdict in ("failed", "refused")
    assert calls == []
    # The server does hear who is not walled in.
    socket.create_connection(("127.0.0.1", port)).close()
    deadline = time.monotonic() + 5
    while not calls and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(calls) == 1


def test_the_filter_holds_where_the_interpreter_is_not_asked(server):
    if available_walls() == "audit":
        pytest.skip("the kernel allows no filter here")
    port, calls = server
    # subprocess tells the hooks itself, so it can be kept from it.
    program = f"""
import subprocess, sys
from unittest import mock
script = "import socket; socket.create_connection(('127.0.0.1', {port}), timeout=1)"
with mock.patch("sys.audit"):
    child = subprocess.Popen([sys.executable, "-c", script])
sys.exit("it started")
"""
    assert execute(program, "", SMALL, "filter").detail.startswith("PermissionError: [Errno 1] Operation not permitted")
    assert calls == []


def test_the_hook_alone_passes_and_refuses():
    assert run("x = 1", "audit", "assert x") == Outcome("passed")
    assert run("import socket; socket.create_connection(('127.0.0.1', 9))", "audit").verdict == "refused"


def test_a_program_that_multiplies_is_stopped_with_all_its_children(walls):
    assert run("import os\nwhile True: os.fork()", walls).verdict in ("failed", "refused")
    if walls == "namespaces":
        # Its first process ends; the ones that it started must not write on.
        program = (
            "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        time.sleep(345.5)"
        )
        assert run(program, walls).verdict == "passed"
        commands = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
        assert not any(b"evaluation.sandbox" in command for command in commands)


def test_a_forked_child_does_not_speak_for_the_program(walls):
    if walls != "namespaces":
        assert run("import os\nos.fork()", walls).verdict == "refused"
    else:
        program = "import os\nif os.fork():\n    os.wait()\n    raise ValueError('parent')"
        assert run(program, walls) == Outcome(
            "failed", "ValueError: parent (program.py, line 4: raise ValueError('parent'))"
        )


def test_a_program_sees_neither_environment_nor_files_of_its_parent(walls, monkeypatch, tmp_path):
    monkeypatch.setenv("SECRET_OF_THE_PARENT", "hidden")
    (tmp_path / "kept").write_text("kept")
    assert run("import os", walls, "assert 'SECRET_OF_THE_PARENT' not in os.environ") == Outcome("passed")
    assert run("import os, sys", walls, "assert sys.stdin.read() == '' and os.listdir() == []") == Outcome("passed")
    attempts = [
        *(f"open('/proc/{process}/environ', 'rb')" for process in (os.getpid(), "self", "1")),
        f"open({str(tmp_path / 'kept')!r}, 'w')",
        f"open({str(tmp_path / 'new')!r}, 'w')",
        f"os.remove({str(tmp_path / 'kept')!r})",
        f"shutil.rmtree({str(tmp_path)!r})",
        f"os.rename({str(tmp_path / 'kept')!r}, 'mine')",
        f"os.symlink({str(tmp_path)!r}, 'link') or open('link/new', 'w')",
    ]
    tests = f"""
import os, shutil
for attempt in {attempts!r}:
    try:
        eval(attempt)
    except OSError:
        continue
    raise ValueError(attempt)
"""
    assert run("", walls, tests) == Outcome("passed")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (tmp_path / "kept").read_text() == "kept"
    assert run("import tempfile", walls, "tempfile.NamedTemporaryFile().write(b'x')") == Outcome("passed")
    assert run("open('own', 'w').write('1')", walls, "assert open('own').read() == '1'") == Outcome("passed")


def test_a_working_folder_is_gone_afterwards(walls, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert run("open('x', 'w').write('x')", walls) == Outcome("passed")
    assert list(tmp_path.iterdir()) == []


def test_programs_run_at_once_and_keep_their_order():
    jobs = [(f"x = {number}", f"assert x in (0, 2, {number % 2 and -1})") for number in range(4)]
    assert [outcome.passed for outcome in execute_all(jobs)] == [True, False, True, False]
    assert execute_all([]) == []


def children_of(process: int) -> list[int]:
    threads = Path(f"/proc/{process}/task").glob("*/children")
    return [int(child) for thread in threads for child in thread.read_text().split()]


def eventually(holds: Callable[[], bool], seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.01)
    return holds()


def test_programs_end_with_the_process_that_started_them(walls, tmp_path):
    script = (
        "from pipeline.evaluation.code_execution import Limits, execute; print(flush=True); "
        f"execute('import time; time.sleep(60)', '', Limits(seconds=60), {walls!r})"
    )
    # What is killed cannot clear up behind it.
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment)
    assert parent.stdout is not None
    parent.stdout.readline()

    def family() -> list[int]:
        """The sandbox, and the program in it; before that its helper for the mapping of users."""
        outer = children_of(parent.pid)
        return [*outer, *(inner for process in outer for inner in children_of(process))]

    # Settled once the same two are there twice.
    assert eventually(lambda: len(family()) == 2)
    time.sleep(0.2)
    sandbox, program = family()
    parent.kill()
    parent.communicate()
    # A dead process that nobody waited for has no memory.
    assert eventually(lambda: not any(resident(process) for process in (sandbox, program)))


def resident(process: int) -> bool:
    try:
        return "VmRSS" in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False


def test_a_text_that_is_no_unicode_only_fails(walls):
    assert run("x = '\ud800'", walls).verdict == "failed"
    assert run("x = 1\0", walls).verdict == "failed"


def test_a_limit_below_one_is_refused():
    with pytest.raises(InputError, match="limit seconds of generated programs is 0"):
        Limits(seconds=0)


@pytest.mark.parametrize("n", range(1, 7))
def test_pass_at_k_is_the_share_of_subsets_with_a_program_that_passes(n):
    for passed, k in itertools.product(range(n + 1), range(1, n + 1)):
        subsets = list(itertools.combinations([True] * passed + [False] * (n - passed), k))
        assert pass_at_k(n, passed, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-12)


def test_pass_at_k_of_large_numbers_neither_overflows_nor_leaves_0_to_1():
    assert pass_at_k(10**6, 1, 10) == pytest.approx(1e-5)
    assert pass_at_k(200, 200, 100) == 1
    assert pass_at_k(200, 0, 100) == 0
    with pytest.raises(ValueError, match="needs at least 3 programs"):
        pass_at_k(2, 1, 3)


def mbpp_parts(path: Path, **options) -> dict[str, list[dict[str, Any]]]:
    return {part: rows.to_list() for part, rows in mbpp(name="mbpp", data={"mbpp": {"test": path}}, **options).items()}


def test_pass_at_k_counts_the_programs_that_pass():
    [problem] = [row for row in mbpp_parts(FIXTURES / "code_mbpp.jsonl", k=[1, 2])["test"] if "add" in row["text"]]
    right, wrong, endless = problem["code"], "def add(a, b):\n    return a", "while True: pass"
    problem["limits"] = {"seconds": 0.3}
    marks = mbpp_marks(problem, [[right, wrong, endless, right]])
    assert marks["pass@1"] == pytest.approx(2 / 4)
    assert marks["pass@2"] == pytest.approx(1 - 1 / 6)
    assert [outcome.split(":")[0] for outcome in marks["stopped"]] == ["passed", "failed", "timed out", "passed"]
    assert share_stopped([marks["stopped"], ["refused: network"]]) == pytest.approx(2 / 5)
    with pytest.raises(InputError, match="set `repeats` of the task's YAML"):
        mbpp_marks(problem, [[right]])


@pytest.mark.parametrize("name", ["mbpp", "humaneval"])
def test_reference_solutions_pass_their_own_tests(name):
    rows = [json.loads(line) for line in (FIXTURES / f"code_{name}.jsonl").read_text().splitlines()]
    loaded = load(name)["tasks"][name]
    judge = {"mbpp": mbpp_marks, "humaneval": human_eval_marks}[name]
    documents: list[Any] = [*loaded.dataset["test"], *loaded.dataset["fewshot"]]
    assert len(documents) == len(rows)
    assert judge(documents[0], [["    pass"]])["pass@1"] == 0.0
    for document in documents:
        assert judge(document, [[document.get("code") or document["solution"]]])["pass@1"] == 1.0


def load(name: str, file: str | None = None):
    path = FIXTURES / (file or f"code_{name.partition('_')[0]}.jsonl")
    manager, _ = tasks.find([name], None, {"data": {name: {"test": str(path)}}})
    return tasks.load(manager, name)


class Written(PipelineLM):
    """A model that writes the given text."""

    text = ""

    def generate_until(self, requests, disable_tqdm=True):
        return [self.text] * len(requests)


@pytest.mark.parametrize(("name", "n"), [("mbpp", 2), ("mbpp_samples", 1), ("humaneval", 2), ("humaneval_samples", 1)])
def test_a_model_is_scored_by_running_what_it_writes(name, n, gpt, tokenizer):
    lm, loaded = Written(gpt, tokenizer), load(name)
    problems = loaded["tasks"][name].dataset["test"].to_list()[:n]
    # What it writes solves the first problem alone.
    lm.text = problems[0].get("code") or problems[0]["solution"]
    output = protocol.score(lm, loaded, 0, seed=0, limit=n, allow_code=True)
    rows = {row["metric"]: row for row in protocol.rows_of(output, loaded)}
    samples = output["samples"][name]
    assert [set(sample["stopped"]) == {"passed"} for sample in samples] == [number == 0 for number in range(n)]
    assert {len(sample["stopped"]) for sample in samples} == {10 if name.endswith("samples") else 1}
    expected = {"pass@1", "pass@10", "stopped"} if name.endswith("samples") else {"pass@1", "stopped"}
    assert set(rows) == expected
    assert rows["pass@1"]["score"] == pytest.approx(1 / n)
    assert rows["pass@1"]["n"] == n
    assert rows["pass@1"]["chance"] == 0.0
    assert rows["stopped"]["score"] == 0.0


def test_programs_run_only_with_leave(gpt, tokenizer):
    with pytest.raises(InputError, match="allow-code-execution"):
        protocol.score(PipelineLM(gpt, tokenizer), load("mbpp"), 0, seed=0)


def test_a_problem_without_tests_is_named(tmp_path):
    row = {"text": "Write f.", "code": "def f(): pass", "test_list": "assert f() is None"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(InputError, match=r"rows\.jsonl line 1 has the test_list"):
        mbpp_parts(tmp_path / "rows.jsonl")
    with pytest.raises(InputError, match="they may be seconds, cpu_seconds"):
        mbpp_parts(FIXTURES / "code_mbpp.jsonl", limits={"minutes": 1})


def test_mbpp_is_split_as_in_its_paper():
    if not MBPP.exists():
        pytest.skip("shared/data/code/mbpp.jsonl.gz is not here")
    parts = mbpp_parts(MBPP)
    assert [row["task_id"] for row in parts["test"]] == list(map(str, range(11, 511)))
    assert [row["task_id"] for row in parts["fewshot"]] == list(map(str, range(1, 11)))
    sample = parts["test"][::100]
    assert all(mbpp_marks(row, [[row["code"]]])["pass@1"] == 1.0 for row in sample)


@pytest.mark.slow
def test_every_reference_solution_of_mbpp_passes():
    if not MBPP.exists():
        pytest.skip("shared/data/code/mbpp.jsonl.gz is not here")
    rows = mbpp_parts(MBPP)["test"]
    outcomes = execute_all([(row["code"], f"{row['setup']}\n{row['tests']}") for row in rows])
    assert all(outcome.passed for outcome in outcomes)
