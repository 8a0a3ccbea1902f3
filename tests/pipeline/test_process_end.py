"""A process that has done its work ends with its status, whatever the engines' threads do then."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import atexit, os, sys, threading, time
from pipeline.process_end import END
END.prepare()
atexit.register(print, "registered later, called before")

class Aborts:
    def __del__(self, abort=os.abort):
        abort()

threading.Thread(target=lambda: (time.sleep(0.2), print("waited for"))).start()
held_until_the_interpreter_is_taken_apart = Aborts()
END.status = {status}
sys.exit({status})
"""


@pytest.mark.parametrize(("status", "ended"), [(0, 0), (75, 75), (None, -6)])
def test_the_status_is_kept_after_threads_and_exit_handlers(status, ended):
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", PROGRAM.format(status=status)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=60)
    assert result.returncode == ended, result.stderr
    if status is not None:
        assert result.stdout.splitlines() == ["waited for", "registered later, called before"]
