"""Memory that training frees on the CPU stays with the process.

glibc gives every large tensor fresh pages from the kernel and hands them back when it is freed, so a step spends a third of its time
in page faults. Kept pages are used again by the next step.
"""

import ctypes

# Parameters of mallopt(3).
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Ask glibc to serve large tensors from its heap and not to shrink it. False where there is no glibc."""
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
