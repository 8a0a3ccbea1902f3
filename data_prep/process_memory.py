"""What this process takes of the machine's memory, and that it keeps what it has freed."""

import ctypes
import resource
from pathlib import Path

# Parameters of mallopt(3).
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Ask glibc to serve large blocks from its heap and not to shrink it. False where there is no glibc.

    Else it takes fresh pages from the kernel for each and hands them back when it is freed: a training step, or the encoding of a corpus,
    spends a third of its time in page faults. Kept pages are used again.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, 2**31 - 1))


def peak_resident_bytes() -> int:
    """The most memory of the machine that this process has held at once."""
    try:
        [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
        return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        # Counts a larger parent's memory too, which a process is born with before it begins anew.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
