"""Text files that hold one item a line: prompts, sentences to translate, references."""

from pathlib import Path

from data_prep.files import InputError


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file without their ends.

    Raises:
        InputError: it is not UTF-8.
    """
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 at byte {error.start}: save it as UTF-8") from error
    # Only a newline ends a line here, as for wc: str.splitlines would see more of them.
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")] if text else []
