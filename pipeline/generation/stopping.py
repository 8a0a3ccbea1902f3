"""Stop strings: text at which a continuation ends, and before which it is cut."""

from collections.abc import Callable, Iterable


class StopStrings:
    """Finds strings in text that grows by tokens.

    Args:
        strings: none of them empty.
        decode: the text of tokens, of which each stands for a byte or more.
    """

    def __init__(self, strings: Iterable[str], decode: Callable[[list[int]], str]):
        self.strings = list(strings)
        if "" in self.strings:
            raise ValueError("a stop string is empty, and so stands everywhere: give a text")
        self.decode = decode
        # A token is at least a byte, so no string spans more tokens than it has bytes.
        self.reach = max((len(string.encode()) for string in self.strings), default=0)

    def reached(self, tokens: list[int]) -> bool:
        """Whether the newest token completes one of the strings."""
        return self.reach > 0 and self.holds(self.decode(tokens[-self.reach :]))

    def holds(self, text: str) -> bool:
        return any(string in text for string in self.strings)

    def cut(self, text: str) -> str:
        """The text before the first of the strings."""
        return text[: min((text.index(string) for string in self.strings if string in text), default=len(text))]

    def settled(self, text: str) -> str:
        """As `cut`, without an end that the next tokens may make a stop string of."""
        text = self.cut(text)
        lengths = range(min(self.reach, len(text)), 0, -1)
        begun = next((n for n in lengths if any(string.startswith(text[-n:]) for string in self.strings)), 0)
        return text[: len(text) - begun]
