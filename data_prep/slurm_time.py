"""Times as Slurm writes them."""

import re

from data_prep.files import InputError

CLOCK = re.compile(r"(?:(?P<days>\d+)-)?(?P<fields>\d+(?::\d+){0,2})")


def seconds_of(text: str) -> int:
    """A time limit as Slurm writes it, in seconds: minutes, MM:SS, HH:MM:SS, D-HH, D-HH:MM or D-HH:MM:SS.

    Raises:
        InputError: it is none of these.
    """
    found = CLOCK.fullmatch(text.strip())
    if not found:
        raise InputError(
            f"{text!r} is not a time limit: write hours:minutes:seconds, such as 04:00:00, or 2-00:00:00 for days"
        )
    fields = [int(number) for number in found["fields"].split(":")]
    if found["days"]:
        hours, minutes, seconds = [*fields, 0, 0][:3]
    elif len(fields) == 3:
        hours, minutes, seconds = fields
    else:
        hours, minutes, seconds = 0, *[*fields, 0][:2]
    return ((int(found["days"] or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def clock(seconds: float) -> str:
    """Seconds as Slurm writes a time: 04:00:00, or 2-00:00:00."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return (f"{days}-" if days else "") + f"{hours:02d}:{minutes:02d}:{rest:02d}"
