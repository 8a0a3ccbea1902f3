"""Slurm's own commands, asked which jobs there are. What it says no to is one sentence."""

import re
import subprocess
from collections.abc import Mapping, Sequence

from data_prep.files import InputError

SECONDS_TO_ANSWER = 60
WAY_OUT = "call this on a machine from which jobs are submitted, or with --executor local"
OVER = {
    "COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE", "PREEMPTED",
}  # fmt: skip


def ask(*words: str) -> str:
    """What one of Slurm's commands prints. Raises InputError where it is not here, does not answer, or says no."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS_TO_ANSWER)
    except FileNotFoundError:
        raise InputError(f"{words[0]} is not on this machine: {WAY_OUT}.") from None
    except subprocess.TimeoutExpired:
        raise InputError(
            f"{words[0]} has had no answer for {SECONDS_TO_ANSWER} s: Slurm's controller may be down, so try again later."
        ) from None
    if done.returncode:
        raise InputError(f"{words[0]}: Slurm says: {reason_in(done.stderr or done.stdout)}")
    return done.stdout


def reason_in(text: str) -> str:
    """All that a command of Slurm complained of, without its own name before each line."""
    lines = [re.sub(r"^\w+: ((error|fatal): )?", "", line.strip()) for line in text.splitlines() if line.strip()]
    reason = "; ".join(dict.fromkeys(lines)) or "nothing"
    return f"{reason} ({WAY_OUT})" if "configuration source" in reason else reason


def states(jobs: Sequence[str], mark: str) -> dict[str, list[str]]:
    """The states of those jobs that Slurm still knows, by their number; of an array all there are.

    Args:
        mark: Their comment: numbers are given again in time, to jobs of others.
    """
    if not jobs:
        return {}
    try:
        text = ask("squeue", "-h", "--states=all", "-r", "-j", ",".join(jobs), "-o", "%A|%F|%T|%k")
    except InputError as error:
        if "Invalid job id" in str(error):
            return {}
        raise
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        _, number, state, comment = line.strip().split("|", 3)
        if comment == mark:
            found.setdefault(number, []).append(state)
    return found


def waiting(found: Mapping[str, Sequence[str]]) -> list[str]:
    """The numbers of jobs that are not over, from `states`."""
    return [number for number, each in found.items() if not set(each) <= OVER]


def cancel(jobs: Sequence[str]) -> None:
    if jobs:
        ask("scancel", *jobs)
