"""Our runs as a model of lm-evaluation-harness: `lm_eval --model pipeline --model_args run=RUN,checkpoint=best`.

The harness finds models in a table of its own, to which no other package can add. So our distribution brings scripts of the names
that the harness's have, `lm_eval` and `lm-eval`, which enter `pipeline` there and hand over. In Python an import of this module does
the same; nothing heavy is loaded before the model is asked for.
"""

import contextlib
import os
import sys
from collections.abc import Iterator

from lm_eval.api.registry import model_registry

from data_prep.files import InputError

NAME = "pipeline"

model_registry.register(NAME, target="pipeline.evaluation.trained:TrainedRun")


def main() -> int:
    """The harness's own command line, which knows `--model pipeline`; returns the exit status."""
    from lm_eval.__main__ import cli_evaluate

    try:
        with all_ranks():
            cli_evaluate()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


@contextlib.contextmanager
def all_ranks() -> Iterator[None]:
    """A block in which the first of the processes of torchrun or srun evaluates, and the others compute for it."""
    asking = " ".join(sys.argv)
    started = "TORCHELASTIC_RUN_ID" in os.environ or "SLURM_STEP_NUM_TASKS" in os.environ
    # Other models divide the questions among their ranks themselves.
    if not started or not any(f"--model{sign}{NAME}" in asking for sign in " ="):
        yield
        return
    from pipeline.evaluation.ranks import joined
    from pipeline.evaluation.trained import TrainedRun

    with joined() as ranks:
        TrainedRun.together = ranks
        yield


if __name__ == "__main__":
    sys.exit(main())
