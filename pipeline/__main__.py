"""`python -m pipeline`."""

import signal
import sys

from pipeline import signals
from pipeline.cli import main

if __name__ == "__main__":
    training = sys.argv[1:2] == ["fit"]
    if training:
        # Before the seconds of imports: a job may be told to end at any moment.
        signals.HELD.hold(signals.WARNING, signal.SIGTERM)
    status = main()
    if training:
        signals.HELD.ignore()
    sys.exit(status)
