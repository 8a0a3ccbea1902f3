"""What a rank says when an error ends it, where whoever starts the run again will look."""

import traceback
from pathlib import Path

from lightning import Callback, Trainer

from data_prep.files import InputError
from pipeline import exit_codes, run_state
from pipeline.task import LanguageModelling


class LastWords(Callback):
    """Notes the error that ends training: its own sentence, or what Python calls it and where it was raised."""

    def on_exception(self, trainer: Trainer, pl_module: LanguageModelling, exception: BaseException) -> None:
        if not isinstance(exception, Exception) or trainer.state.fn != "fit":
            return  # Whoever asked for the end has said why.
        refused = isinstance(exception, InputError)
        if refused and not Path(trainer.default_root_dir).exists():
            return  # A run that is refused before it begins leaves no trace.
        code = exit_codes.REFUSED if refused else 1
        run_state.note_end(
            trainer.default_root_dir,
            code=code,
            reason=str(exception) if refused else in_a_line(exception),
            rank=trainer.global_rank,
        )


def in_a_line(exception: Exception) -> str:
    """An error with the place in our own code from which it came."""
    frames = traceback.extract_tb(exception.__traceback__)
    own = [frame for frame in frames if "/pipeline/" in frame.filename or "/data_prep/" in frame.filename] or frames
    where = f", at {own[-1].filename.rpartition('/')[2]}:{own[-1].lineno}" if own else ""
    [*_, line] = str(exception).strip().splitlines() or [""]
    return f"{type(exception).__name__}: {line}{where}"
