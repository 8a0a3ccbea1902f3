"""What this process takes of the machine."""

import resource
from pathlib import Path


def peak_resident_bytes() -> int:
    """The most memory of the machine that this process has held at once."""
    try:
        [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
        return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        # Counts a larger parent's memory too, which a process is born with before it begins anew.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
