"""`python -m pipeline`."""

import signal
import sys

from pipeline import process_end, signals
from pipeline.cli import main

if __name__ == "__main__":
    process_end.END.prepare()
    training = sys.argv[1:2] == ["fit"]
    if training:
        # Before the seconds of imports: a job may be told to end at any moment.
        signals.HELD.hold(signals.WARNING, signal.SIGTERM)
    status = main()
    if training:
        signals.HELD.ignore()
    process_end.END.status = status
    sys.exit(status)
