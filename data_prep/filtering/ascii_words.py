"""Words of English in ASCII, of many pieces at once in arrays: the same cuts as `english.split_piece` makes, where it is sure of them.

Code and its documentation have a new piece every few words, so that most of the time would go into cutting pieces one by one.
"""

import numpy as np

from data_prep.filtering.english import (
    CURRENCIES,
    LONGEST_ADDRESS,
    MARKS,
    PATTERNS,
    PREFIX,
    QUOTES,
    SINGLE,
    SPECIAL,
    UNITS,
)

LONGEST = 256
"""Bytes; longer pieces are left to `split_piece`. No address is longer than it would look at."""
LONGEST_LABEL = 63
"""Characters; what a host has between full stops is no longer."""
ROUNDS = 12
"""A piece with more marks at one of its ends is left to `split_piece`, and so are the last few pieces."""
FEW = 16
MULTIPLIER = np.uint64(0xD1342543DE82EF95)
assert LONGEST <= LONGEST_ADDRESS

# What a byte is.
LOWER, UPPER, DIGIT, QUOTE, HOST, PATH, OPENS, ENDS, JOINS = (np.uint16(1 << bit) for bit in range(9))
LETTER, ALPHANUMERIC = LOWER | UPPER, LOWER | UPPER | DIGIT


def kinds_of_bytes() -> np.ndarray:
    """The kinds of each byte, uint16; those of bytes outside ASCII do not count."""
    kinds = np.zeros(256, np.uint16)
    for code in range(128):
        character = chr(code)
        kinds[code] |= LOWER * character.islower() | UPPER * character.isupper() | DIGIT * character.isdigit()
        kinds[code] |= QUOTE * (character in QUOTES)
        # What a host of an address consists of.
        kinds[code] |= HOST * (character.isalnum() or character in "._-")
        kinds[code] |= PATH * (character in "/?#")
        # What is a prefix, whatever comes after it.
        kinds[code] |= OPENS * (PREFIX.fullmatch(character) is not None and character != "+")
        # What is a suffix, whatever comes before it.
        kinds[code] |= ENDS * (character in SINGLE)
        # What may be cut out inside.
        kinds[code] |= JOINS * (character in ".+-*^,~:<>=/")
    return kinds


KINDS = kinds_of_bytes()
BEFORE_STOP = np.zeros(256, bool)
"""After which bytes a full stop is a suffix."""
BEFORE_STOP[[ord(character) for character in MARKS + QUOTES + "%-+|" if character.isascii()]] = True
BEFORE_STOP |= (KINDS & (LOWER | DIGIT)) != 0


class Table:
    """A set of short strings of ASCII, looked up at many places of a text at once."""

    def __init__(self, strings: list[str]):
        encoded = [string.encode() for string in strings]
        self.longest = max(map(len, encoded))
        assert self.longest <= 16
        content = np.frombuffer(b"".join(encoded) + bytes(16), np.uint8)
        ends = np.cumsum([len(string) for string in encoded])
        keys = self.keys(Eights(content), np.append(0, ends[:-1]), ends)
        self.known = np.unique(keys)
        self.buckets = np.zeros(2**16, bool)
        self.buckets[keys >> np.uint64(48)] = True

    @staticmethod
    def keys(eights: "Eights", starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """A uint64 for each string, the same for equal ones; different ones have the same only by chance."""
        sizes = np.minimum(ends - starts, 16)
        keys = (eights.at[starts] & MASKS[np.minimum(sizes, 8)]) * MULTIPLIER + SIZES[sizes]
        long = np.flatnonzero(sizes > 8)
        keys[long] ^= eights.at[starts[long] + 8] & MASKS[sizes[long] - 8]
        keys ^= keys >> np.uint64(31)
        return keys * MULTIPLIER

    def has(self, eights: "Eights", starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Where the table has the string from start to end; hardly ever where it has not."""
        short = np.flatnonzero(ends - starts <= self.longest)
        keys = self.keys(eights, starts[short], ends[short])
        maybe = np.flatnonzero(self.buckets[keys >> np.uint64(48)])
        found = np.zeros(len(starts), bool)
        place = np.minimum(np.searchsorted(self.known, keys[maybe]), len(self.known) - 1)
        found[short[maybe]] = self.known[place] == keys[maybe]
        return found


class Eights:
    """The eight bytes from each place of a text on as one uint64. The text has 16 bytes more than what is looked at."""

    def __init__(self, content: np.ndarray):
        self.at = np.ndarray(len(content) - 8, "<u8", content, 0, (1,))


MASKS = np.array([(1 << 8 * size) - 1 for size in range(9)], np.uint64)
"""The first so many of eight bytes."""
SIZES = np.arange(17, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
WHOLE = Table([piece for piece in SPECIAL if piece.isascii()])
MEASURES = Table([unit for unit in [*UNITS, *CURRENCIES] if unit.isascii()])
MEASURE_ENDS = np.zeros(256, bool)
MEASURE_ENDS[[ord(unit[-1]) for unit in [*UNITS, *CURRENCIES] if unit.isascii()]] = True
PAIRS = Table(
    [pair for words in PATTERNS if PATTERNS[words] == [pair := "".join(words)] and len(pair) == len(words) == 2]
)
LONGEST_RUN = max(len(words) for words in PATTERNS if "".join(words).isascii())


def cut_pieces(pieces: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where words begin in the bytes of pieces that stand in a row, and of which pieces that is known.

    `offsets` are where pieces begin, and the end. Two boolean arrays: one a byte, and one a piece. What a piece's bytes say
    counts only where it is known; the others are for `english.split_piece`.
    """
    sizes = np.diff(offsets)
    short = sizes <= LONGEST
    if not short.all():
        # What is not cut here takes no memory either.
        inside, opening, known = np.repeat(short, sizes), np.zeros(offsets[-1], bool), np.zeros(len(short), bool)
        if short.any():
            bounds = np.append(0, np.cumsum(sizes[short]))
            opening[inside], known[short] = cut_pieces(pieces[inside], bounds)
        return opening, known
    content = np.concatenate([pieces[: offsets[-1]], np.zeros(24, np.uint8)])
    cut = Cut(content, offsets)
    cut.take_off_affixes()
    cut.cut_inside()
    cut.check_rejoined()
    return cut.opening[: offsets[-1]], cut.known


class Cut:
    """The state of cutting: what of each piece is left between its prefixes and suffixes."""

    def __init__(self, content: np.ndarray, offsets: np.ndarray):
        self.content, self.eights, self.kinds = content, Eights(content), KINDS[content]
        self.offsets, self.first, self.last = offsets, offsets[:-1].copy(), offsets[1:].copy()
        self.known = np.bitwise_or.reduceat(content, self.first) < 0x80
        self.opening = np.zeros(len(content), bool)
        self.opening[self.first] = True

    def give_up(self, pieces: np.ndarray) -> None:
        self.known[pieces] = False

    def take_off_affixes(self) -> None:
        """Take one prefix and one suffix off each piece until none has any. A special piece, once found, is given up."""
        left = np.flatnonzero(self.known)
        for _ in range(ROUNDS):
            start, end = self.first[left], self.last[left]
            after, doubt = self.prefixes(start, end)
            before, also = self.suffixes(after, end)
            doubt |= also | WHOLE.has(self.eights, start, end)
            fronted, ended = np.flatnonzero(after > start), np.flatnonzero(before < end)
            doubt[fronted] |= WHOLE.has(self.eights, after[fronted], end[fronted])
            doubt[ended] |= WHOLE.has(self.eights, start[ended], before[ended])
            self.give_up(left[doubt])
            changed = np.union1d(fronted, ended)
            changed = changed[~doubt[changed]]
            left, after, before = left[changed], after[changed], before[changed]
            self.opening[after] = self.opening[before] = True
            self.first[left], self.last[left] = after, before
            more = after < before
            left = left[more]
            if len(left) <= FEW:
                break
        self.give_up(left)

    def prefixes(self, start: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where the prefixes of what is left end, and where that is in doubt."""
        content = self.content
        sign, then = content[start], content[start + 1]
        more = end - start > 1
        plus = (sign == ord("+")) & ~(more & ((KINDS[then] & DIGIT) != 0))
        after = start + (((KINDS[sign] & OPENS) != 0) | plus)
        # Rows of full stops, and US$, C$ and A$.
        rare = (sign == ord(".")) & (then == ord("."))
        rare |= ((sign == ord("C")) | (sign == ord("A"))) & (then == ord("$"))
        rare |= (sign == ord("U")) & (then == ord("S"))
        return after, rare & more

    def suffixes(self, start: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where the suffixes of what is left begin, and where that is in doubt."""
        content, kinds = self.content, self.kinds
        some = end > start
        sign = content[np.maximum(end - 1, 0)]
        before = end - (some & ((KINDS[sign] & ENDS) != 0))
        doubt = np.zeros(len(end), bool)

        stops = np.flatnonzero((sign == ord(".")) & (end - start > 1))
        at = end[stops]
        doubt[stops] = content[at - 2] == ord(".")
        upper = ((kinds[at - 2] & kinds[at - 3] & UPPER) != 0) & (at - start[stops] > 2)
        before[stops] -= BEFORE_STOP[content[at - 2]] | upper

        owning = np.flatnonzero(((sign == ord("s")) | (sign == ord("S"))) & (end - start > 1))
        before[owning] -= 2 * (content[end[owning] - 2] == ord("'"))

        plus = np.flatnonzero((sign == ord("+")) & (end - start > 1))
        before[plus] -= (kinds[end[plus] - 2] & DIGIT) != 0

        # A unit or a currency comes after a digit.
        maybe = np.flatnonzero(MEASURE_ENDS[sign] & (end - start > 1) & (before == end))
        for size in range(1, MEASURES.longest + 1):
            measured = maybe[end[maybe] - start[maybe] > size]
            measured = measured[(kinds[end[measured] - size - 1] & DIGIT) != 0]
            at = end[measured]
            before[measured] -= size * MEASURES.has(self.eights, at - size, at)
        return before, doubt

    def cut_inside(self) -> None:
        """Cut what is left in the middle at the marks inside it; what may be an address is given up."""
        content, kinds = self.content, self.kinds
        chosen = self.known & (self.last > self.first)
        first, last = self.first[chosen], self.last[chosen]
        inside = np.zeros(len(content) + 1, np.int8)
        # Not the first and the last byte: each mark has something before and after it.
        long = last - first > 2
        inside[first[long] + 1] = 1
        inside[last[long] - 1] -= 1
        inside = np.cumsum(inside[:-1], dtype=np.int8).view(bool)
        at = np.flatnonzero(inside & ((kinds & JOINS) != 0))
        sign, previous, following = content[at], kinds[at - 1], kinds[at + 1]
        letter = (following & LETTER) != 0
        word = (previous & ALPHANUMERIC) != 0
        dash = sign == ord("-")
        number = ((previous & DIGIT) != 0) & (((following & DIGIT) != 0) | (content[at + 1] == ord("-")))
        single = number & (dash | (sign == ord("+")) | (sign == ord("*")) | (sign == ord("^")))
        stop = sign == ord(".")
        single |= stop & ((previous & (LOWER | QUOTE)) != 0) & ((kinds[at + 1] & (UPPER | QUOTE)) != 0)
        single |= (sign == ord(",")) & ((previous & LETTER) != 0) & letter
        hyphen = word & letter & (dash | (sign == ord("~")))
        single |= hyphen
        joint = (sign == ord(":")) | (sign == ord("<")) | (sign == ord(">")) | (sign == ord("=")) | (sign == ord("/"))
        single |= word & letter & joint
        self.open_around(at[single], 1)
        rows = np.flatnonzero(dash & word & ~single & (content[at + 1] == ord("-")))
        for size in (2, 3):
            here = at[rows]
            # The mark and the letter after it are inside.
            ends = (inside[here + size - 1]) & ((kinds[here + size] & LETTER) != 0)
            self.open_around(here[ends], size)
            rows = rows[~ends]
            rows = rows[content[at[rows] + 2] == ord("-")]
        # Rows of full stops.
        stops = at[stop]
        self.opening[stops[(content[stops - 1] != ord(".")) & (content[stops + 1] == ord("."))]] = True
        ends = stops[(content[stops - 1] == ord(".")) & (content[stops + 1] != ord("."))] + 1
        self.opening[ends] = True
        self.mend_addresses(first, last, np.flatnonzero(chosen))

    def open_around(self, places: np.ndarray, size: int) -> None:
        self.opening[places] = self.opening[places + size] = True

    def mend_addresses(self, first: np.ndarray, last: np.ndarray, piece: np.ndarray) -> None:
        """An address is not cut inside: hosts, alone or with a path, are made whole, and what else may be one is given up."""
        counts = np.append(0, np.cumsum(self.opening, dtype=np.int32))
        cut = np.flatnonzero(counts[last] - counts[first + 1] > 0)
        content, kinds, first, last, piece = self.content, self.kinds, first[cut], last[cut], piece[cut]
        stop, colon, slash = content == ord("."), content == ord(":"), content == ord("/")
        schemes = np.flatnonzero(colon[:-2] & slash[1:-1] & slash[2:])
        stops = np.flatnonzero(stop)
        some = lambda marks, start, end: np.searchsorted(marks, end) > np.searchsorted(marks, start)  # noqa: E731
        # Without a user it has perhaps a scheme, then the host, and then a port, a path or nothing.
        other = np.append(np.flatnonzero((kinds & HOST) == 0), len(content))
        end = np.minimum(other[np.searchsorted(other, first)], last)
        doubt = some(np.flatnonzero(content == ord("@")), first, last)
        doubt |= (end < last) & (content[end] == ord("+")) & some(schemes, end, last)
        begin = np.where((end - first > 1) & some(schemes, end, np.minimum(end + 1, last)), end + 3, first)
        end = np.minimum(other[np.searchsorted(other, begin)], last)
        path = (end < last) & ((kinds[end] & PATH) != 0)
        port = (end < last) & (content[end] == ord(":"))
        lower = np.append(0, np.cumsum((kinds & LOWER) != 0, dtype=np.int32))
        letters = np.append(0, np.cumsum((kinds & LETTER) != 0, dtype=np.int32))
        # It has a top level in lower case, and next to its full stops a letter or a digit; or it is four numbers.
        bare = (content == ord("-")) | (content == ord("_")) | stop
        bare = np.flatnonzero((bare[:-1] & stop[1:]) | (stop[:-1] & bare[1:]))
        top = np.append(stops, 0)[np.searchsorted(stops, end) - 1] + 1
        dotted = some(stops, begin, end)
        host = dotted & ((kinds[begin] & ALPHANUMERIC) != 0) & ~some(bare, begin, end)
        host &= (end - top >= 2) & (lower[end] - lower[np.minimum(top, end)] == end - top)
        numbers = dotted & (letters[end] == letters[begin])
        fits = end - begin <= LONGEST_LABEL
        doubt |= (host & (port | (~fits & (path | (end == last))))) | numbers
        self.give_up(piece[some(stops, first, last) & doubt])
        whole = host & fits & (path | (end == last))
        inside = np.zeros(len(content) + 1, np.int8)
        inside[first[whole] + 1] = 1
        inside[last[whole]] -= 1
        self.opening &= np.cumsum(inside[:-1], dtype=np.int8) == 0

    def check_rejoined(self) -> None:
        """Some words are together a special piece again, such as `):`; where it is not one of two marks, give up."""
        starts = np.flatnonzero(self.opening[: self.offsets[-1]])
        bounds = np.searchsorted(starts, self.offsets)
        piece = np.repeat(np.arange(len(self.known)), np.diff(bounds))
        ends = np.append(starts[1:], self.offsets[-1])
        words, found = np.flatnonzero(self.known[piece]), []
        for more in range(1, LONGEST_RUN):
            words = words[words + more < len(ends)]
            words = words[piece[words] == piece[words + more]]
            words = words[ends[words + more] - starts[words] <= WHOLE.longest]
            found.append(words[WHOLE.has(self.eights, starts[words], ends[words + more])])
        pairs = found[0]
        pairs = pairs[ends[pairs + 1] - starts[pairs] == 2]
        pairs = pairs[PAIRS.has(self.eights, starts[pairs], ends[pairs + 1])]
        times = np.bincount(piece[np.concatenate(found)], minlength=len(self.known))
        pairs = pairs[times[piece[pairs]] == 1]
        self.opening[starts[pairs + 1]] = False
        times[piece[pairs]] = 0
        self.give_up(np.flatnonzero(times))
