"""What the exit status of `fit` means, to a shell and to what starts it again."""

DONE = 0
REFUSED = 2
"""The input was wrong: starting again changes nothing."""
OUT_OF_TIME = 75
"""The wall time was about to end; everything is saved, and the same command goes on (sysexits.h calls it a temporary failure)."""
HUNG = 76
"""A rank stood still and the watchdog ended the process; the run goes on from its last checkpoint."""
SPIKE_STOPPED = 77
"""The loss or the gradient left its usual range, and the configuration says to stop: a person must look."""


BAD_NODE = 78
"""The preflight found a node that does not work; its name stands in the run directory."""


def of_signal(number: int) -> int:
    """Stopped by a signal, everything saved, as shells count it."""
    return 128 + number
