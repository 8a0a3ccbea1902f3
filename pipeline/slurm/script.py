"""Job scripts: the templates of slurm/, with their #SBATCH lines and settings filled in. What is queued is what one would write by hand."""

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from data_prep.files import InputError

TEMPLATES = Path(__file__).parents[2] / "slurm"
BEGIN, END = "# ---- settings\n", "# ---- end of settings\n"

Value = str | int | float | Sequence[str]
"""Of a setting: a word, or the words of an array."""


def template(name: str) -> str:
    """The text of a template: train, data or evaluate."""
    path = TEMPLATES / f"{name}.sbatch"
    if not path.exists():
        raise InputError(f"{path} is missing: submit from a checkout of the project, whose slurm/ has the job scripts")
    return path.read_text()


def render(text: str, directives: Sequence[str], settings: Mapping[str, Value], commands: Mapping[str, str]) -> str:
    """A template with its directives replaced, its settings set and its functions filled.

    Args:
        text: The template.
        directives: Options of sbatch, each as --name=value; they take the place of all that the template has.
        settings: Values by the names of the shell variables between the marks of the template.
        commands: What the shell functions there do; empty: nothing.
    """
    first = text.index("#SBATCH")
    kept = [line for line in text.splitlines(keepends=True) if not line.startswith("#SBATCH")]
    before = text[:first]
    text = before + "".join(f"#SBATCH {line}\n" for line in directives) + "".join(kept)[len(before) :]
    head, rest = text.split(BEGIN)
    block, body = rest.split(END)
    for name, value in settings.items():
        block = replaced(block, rf"^{name}=.*$", f"{name}={shell(value)}")
    for name, lines in commands.items():
        inside = "\n".join(f"  {line}" for line in lines.strip().splitlines()) or "  :"
        block = replaced(block, rf"^{name}\(\) \{{\n(?:  .*\n)*\}}$", f"{name}() {{\n{inside}\n}}")
    return head + BEGIN + block + END + body


def replaced(text: str, pattern: str, by: str) -> str:
    text, count = re.subn(pattern, lambda _: by, text, flags=re.MULTILINE)
    assert count == 1, f"the template has {pattern} {count} times"
    return text


def shell(value: Value) -> str:
    """A value as the shell reads it; words of an array on lines of their own where there are many."""
    if isinstance(value, str | int | float):
        return shlex.quote(str(value)) if value != "" else '""'
    words = [shlex.quote(word) for word in value]
    if len(words) > 1 and sum(map(len, words)) > 100:
        return "(\n" + "".join(f"  {word}\n" for word in words) + ")"
    return f"({' '.join(words)})"
