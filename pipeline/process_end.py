"""How a process of ours ends when its work is done."""

import atexit
import os
import sys
from contextlib import suppress


class ProcessEnd:
    """Leaves without taking the interpreter apart, once a status is known.

    The engines' threads race with that: one launch in some 200 on many ranks aborts there ("terminate called without an active
    exception"), after all its work, and a scheduler counts a finished run as a failed one.
    """

    def __init__(self) -> None:
        self.status: int | None = None

    def prepare(self) -> None:
        """To be called before other imports: what is registered first is called last, after all that others registered."""
        atexit.register(self.leave)

    def leave(self) -> None:
        if self.status is None:
            return
        for stream in (sys.stdout, sys.stderr):
            # Closed, or nobody reads it any more: as when an interpreter ends, but for its complaint.
            with suppress(OSError, ValueError, AttributeError):
                stream.flush()
        os._exit(self.status)


END = ProcessEnd()
