"""Words of English text as spaCy's rules cut them, which datatrove's filters count.

Text is cut at white space; from each piece come off marks at its front and its end, it is cut at marks inside, and some
pieces (`don't`, `U.S.`, `:)`) have words of their own. A piece is cut the same wherever it stands, so each is cut once.
"""

from collections.abc import Iterator, Sequence
from itertools import product

import regex

LONGEST_ADDRESS = 2083
"""Characters; a longer piece is not looked at as a URL."""
TAIL = 32
"""Characters; no suffix but a row of full stops is longer."""

# Character classes. Scripts without case count as both cases.
SCRIPTS = "Ethiopic Bengali Hebrew Arabic Sinhala Devanagari Kannada Tamil Telugu Hangul Hiragana Katakana Han"
UNCASED = "".join(rf"\p{{Script={name}}}" for name in SCRIPTS.split())
LETTER = rf"\p{{Lu}}\p{{Ll}}\p{{Lt}}{UNCASED}"
LOWER = rf"\p{{Ll}}{UNCASED}"
UPPER = rf"\p{{Lu}}{UNCASED}"
SYMBOL = r"\p{So}"
MARKS = "…,:;!?¿؟¡()[]{}<>_#*&。？！，、；：～·।،۔؛٪"
QUOTES = "'\"”“`‘´’‚,„»«「」『』（）〔〕【】《》〈〉〈〉⟦⟧"
CURRENCIES = ["US$", "C$", "A$", *"$£€¥฿₽﷼₴₠₡₢₣₤₥₦₧₨₩₪₫₭₮₯₰₱₲₳₵₶₷₸₹₺₻₼₾₿"]
LENGTHS = [
    unit + power for unit in ("km", "m", "dm", "cm", "mm", "км", "м", "дм", "см", "мм") for power in ("", "²", "³")
]
LATIN_UNITS = "ha µm nm yd in ft kg g mg µg t lb oz m/s km/h kmh mph hPa Pa mbar mb MB kb KB gb GB tb TB T G M K %"
CYRILLIC_UNITS = "нм кг г мг м/с км/ч кПа Па мбар Кб КБ кб Мб МБ мб Гб ГБ гб Тб ТБ"
UNITS = [*LENGTHS, *LATIN_UNITS.split(), *CYRILLIC_UNITS.split()]
SINGLE = frozenset(MARKS + QUOTES) - {"…"}
"""Marks with which no longer suffix ends."""
HYPHENS = ["-", "–", "—", "--", "---", "——", "~"]


def characters(text: str) -> str:
    """The inside of a character class that has these characters."""
    return "".join(regex.escape(character, special_only=False) for character in text)


def any_of(words: list[str]) -> str:
    """An alternative of these words, the longest first."""
    return "|".join(regex.escape(word) for word in sorted(words, key=len, reverse=True))


EITHER = [r"\.\.+", f"[{characters(MARKS + QUOTES)}{SYMBOL}]"]
PREFIX = regex.compile("|".join([r"[§%=—–]", r"\+(?![0-9])", any_of(CURRENCIES), *EITHER]))
SUFFIX = regex.compile(
    "(?:"
    + "|".join(
        [
            "……",
            *EITHER,
            "['’][sS]",
            "[—–]",
            r"(?<=[0-9])\+",
            r"(?<=°[FfCcKk])\.",
            rf"(?<=[0-9])(?:{any_of(CURRENCIES)}|{any_of(UNITS)})",
            rf"(?<=[0-9{LOWER}%²\-+|{characters(MARKS + QUOTES)}])\.",
            rf"(?<=[{UPPER}][{UPPER}])\.",
        ]
    )
    + r")\Z"
)
INFIX = regex.compile(
    "|".join(
        [
            r"\.\.+",
            "…",
            f"[{SYMBOL}]",
            r"(?<=[0-9])[+\-*^](?=[0-9-])",
            rf"(?<=[{LOWER}{characters(QUOTES)}])\.(?=[{UPPER}{characters(QUOTES)}])",
            rf"(?<=[{LETTER}]),(?=[{LETTER}])",
            rf"(?<=[{LETTER}0-9])(?:{'|'.join(HYPHENS)})(?=[{LETTER}])",
            rf"(?<=[{LETTER}0-9])[:<>=/](?=[{LETTER}])",
        ]
    )
)
# A host with a dot and a top level in lower case, or four numbers; before it a scheme and a user, after it a port and a path.
HOST_CHARACTER = r"[A-Za-z0-9\u00a1-\uffff]"
ADDRESS = regex.compile(
    r"(?:[\w+\-.]{2,}://)?(?:\S+(?::\S*)?@)?"
    r"(?:"
    r"(?!(?:10|127)(?:\.\d{1,3}){3})(?!(?:169\.254|192\.168)(?:\.\d{1,3}){2})(?!172\.(?:1[6-9]|2\d|3[0-1])(?:\.\d{1,3}){2})"
    r"(?:[1-9]\d?|1\d\d|2[01]\d|22[0-3])(?:\.(?:1?\d{1,2}|2[0-4]\d|25[0-5])){2}(?:\.(?:[1-9]\d?|1\d\d|2[0-4]\d|25[0-4]))"
    rf"|(?:(?:{HOST_CHARACTER}[A-Za-z0-9\u00a1-\uffff_-]{{0,62}})?{HOST_CHARACTER}\.)+[{LOWER}]{{2,63}}"
    r")"
    r"(?::\d{2,5})?(?:[/?#]\S*)?\Z"
)

WHOLE = r"""
' '' \") \t \n <space> C++ — 'd 'S 's ‘S ‘s and/or w/o 're 'Cause 'cause 'cos 'Cos 'coz 'Coz 'cuz 'Cuz 'bout ma'am Ma'am o'clock O'clock
lovin lovin' Lovin Lovin' havin havin' Havin Havin' doin doin' Doin Doin' goin goin' Goin Goin' nothin nothin' Nothin Nothin'
nuthin nuthin' Nuthin Nuthin' ol ol' Ol Ol' somethin somethin' Somethin Somethin' em 'em ll 'll nuff 'nuff
ä. ö. ü. a.m. p.m. e.g. E.g. E.G. i.e. I.e. I.E. vs. v.s. co. Co. Corp. Inc. Ltd. Bros. D.C. Ph.D. Adm. Dr. Gen. Gov. Jr. Md. Messrs.
Mo. Mont. Mr. Mrs. Ms. Mt. Prof. Rep. Rev. Sen. St.
Jan. Feb. Mar. Apr. Jun. Jul. Aug. Sep. Sept. Oct. Nov. Dec.
Ak. Ala. Ariz. Ark. Calif. Colo. Conn. Del. Fla. Ga. Ia. Id. Ill. Ind. Kan. Kans. Ky. La. Mass. Mich. Minn. Miss. N.C. N.D. N.H. N.J.
N.M. N.Y. Neb. Nebr. Nev. Okla. Ore. Pa. S.C. Tenn. Va. Wash. Wis.
:) :-) :)) :-)) :))) :-))) (: (-: =) (= :] :-] [: [-: [= =] :o) (o: :} :-} 8) 8-) (-8 ;) ;-) (; (-; :( :-( :(( :-(( :((( :-((( ): )-:
=( >:( :') :'-) :'( :'-( :/ :-/ =/ =| :| :-| ]= =[ :1 :P :-P :p :-p :O :-O :o :-o :0 :-0 :() :* :-* :3 :-3 =3 :> :-> :X :-X :x :-x
:D :-D ;D ;-D =D xD XD xDD XDD 8D 8-D ^_^ ^__^ ^___^ >.< >.> <.< ._. ;_; -_- -__- v.v V.V v_v V_V o_o o_O O_o O_O 0_o o_0 0_0 o.O O.o
O.O o.o 0.0 o.0 0.o @_@ <3 <33 <333 </3 (^_^) (-_-) (._.) (>_<) (*_*) (¬_¬) ಠ_ಠ ಠ︵ಠ (ಠ_ಠ) ¯\(ツ)/¯ (╯°□°）╯︵┻━┻ ><(((*>
>:o
"""
"""Pieces that stay whole, beside `a.` to `z.`"""
WORDS = "Ill ill Its its Hell hell Shell shell Shed shed were Were Well well Whore whore"
"""What would be contractions without their apostrophe, but are words."""


def parted() -> Iterator[Sequence[str]]:
    """The contractions, with and without their apostrophe, and the other pieces that have words of their own."""
    both = [("'", True), ("", False)]

    def forms(words: str, endings: list[list[str]]) -> Iterator[Sequence[str]]:
        for word, ending, (mark, _) in product(words.split(), endings, both):
            for case in (word, word.title()):
                yield [case, *(part.replace("'", mark) for part in ending)]

    yield from forms("i", [["'m"], ["'m", "a"]])
    yield from forms("i you he she it we they", [["'ll"], ["'ll", "'ve"], ["'d"], ["'d", "'ve"]])
    yield from forms("i you we they", [["'ve"]])
    yield from forms("you we they", [["'re"]])
    yield from forms("he she it", [["'s"]])
    questions = "who what when where why how there"
    yield from forms(f"{questions} that this", [["'s"]])
    yield from forms(f"{questions} that this these those", [["'ll"], ["'ll", "'ve"], ["'d"], ["'d", "'ve"]])
    yield from forms(f"{questions} these those", [["'re"], ["'ve"]])
    helping = "ca could do does did had may might must need ought sha should wo would"
    yield from forms(helping, [["n't"], ["n't", "'ve"]])
    yield from forms("could might must should would", [["'ve"]])
    yield from forms("ai are is was were have has dare", [["n't"]])
    for hour, period in product(range(1, 13), ("a.m.", "am", "p.m.", "pm")):
        yield [str(hour), period]
    for words in (
        "y' all",
        "y all",
        "not 've",
        "not ve",
        "can not",
        "gon na",
        "got ta",
        "let 's",
        "c'm on",
        "how 'd 'y",
    ):
        yield words.split()
        if not words.startswith("y"):
            yield (words[0].upper() + words[1:]).split()
    for letter in "cfkCFK":
        yield ["°", letter, "."]


def special_pieces() -> dict[str, list[str]]:
    """Pieces that have words of their own, with a straight and with a curled apostrophe."""
    pieces = {piece: [piece] for piece in WHOLE.split()}
    pieces |= {f"{letter}.": [f"{letter}."] for letter in "abcdefghijklmnopqrstuvwxyz"}
    words_too = WORDS.split()
    pieces |= {piece: list(words) for words in parted() if (piece := "".join(words)) not in words_too}
    curled = {piece.replace("'", "’"): [word.replace("'", "’") for word in words] for piece, words in pieces.items()}
    return curled | pieces


SPECIAL = special_pieces()
LONGEST_SPECIAL = max(map(len, SPECIAL))


def split_piece(piece: str) -> list[str]:
    """The words of what stands between white space; together they are its characters."""
    if piece in SPECIAL:
        return SPECIAL[piece]
    if piece.isalpha():
        return [piece]
    if piece[-1] in ",;:!?" and piece[:-1].isalpha():
        return [*SPECIAL.get(piece[:-1], [piece[:-1]]), piece[-1]]
    words = cut(piece, SPECIAL)
    return rejoined(words) if any(word in FIRST_WORDS for word in words) else words


def cut(piece: str, special: dict[str, list[str]]) -> list[str]:
    """The words of a piece by its prefixes, suffixes and infixes."""
    front, back = [], []
    start, end = 0, len(piece)

    def lookup(begin: int, finish: int) -> list[str] | None:
        return special.get(piece[begin:finish]) if begin < finish <= begin + LONGEST_SPECIAL else None

    while start < end and lookup(start, end) is None:
        # Letters and digits begin none, but for those of US$.
        prefix = None if piece[start].isalnum() and piece[start] not in "UCA" else PREFIX.match(piece, start, end)
        after = prefix.end() if prefix else start
        if prefix and lookup(after, end) is not None:
            front.append(piece[start:after])
            start = after
            break
        before = suffix_start(piece, after, end)
        if before < end and lookup(start, before) is not None:
            back.append(piece[before:end])
            end = before
            break
        if (after, before) == (start, end):
            break
        if prefix:
            front.append(piece[start:after])
        if before < end:
            back.append(piece[before:end])
        start, end = after, before
    if start < end:
        front += lookup(start, end) or middle(piece[start:end])
    return front + back[::-1]


def suffix_start(piece: str, start: int, end: int) -> int:
    """Where the suffix of piece[start:end] begins; `end` where it has none."""
    last = piece[end - 1 : end]
    if end == start or last in "0123456789" or piece[max(start, end - TAIL) : end].isalpha():
        return end
    if last in SINGLE:
        return end - 1
    tail = max(start, end - TAIL)
    match = SUFFIX.search(piece[tail:end])
    if not match:
        return end
    begin = tail + match.start()
    if begin == tail > start and match[0].startswith(".."):
        begin = start + len(piece[start:end].rstrip("."))
    return begin


def middle(text: str) -> list[str]:
    """What is left between prefixes and suffixes, cut at marks inside it unless it is an address."""
    if text.isalnum():
        return [text]
    if "." in text and len(text) <= LONGEST_ADDRESS and ADDRESS.match(text):
        return [text]
    words, start = [], 0
    for match in INFIX.finditer(text):
        if match.start() == 0:
            continue
        if match.start() > start:
            words.append(text[start : match.start()])
        words.append(match[0])
        start = match.end()
    return [*words, text[start:]] if start < len(text) else words


def patterns() -> dict[tuple[str, ...], list[str]]:
    """The special pieces that the rules alone would cut, by what they would be cut into."""
    affixed = [
        piece
        for piece in SPECIAL
        if PREFIX.match(piece) or INFIX.search(piece) or suffix_start(piece, 0, len(piece)) < len(piece)
    ]
    return {tuple(cut(piece, {})): SPECIAL[piece] for piece in affixed}


def rejoined(words: list[str]) -> list[str]:
    """Words in which what makes a special piece, `:` and `)`, is that piece again; longer ones first, then earlier ones."""
    spans = [
        (start - end, start, end)
        for start in range(len(words))
        if words[start] in FIRST_WORDS
        for end in range(start + 1, min(len(words), start + LONGEST_PATTERN) + 1)
        if tuple(words[start:end]) in PATTERNS
    ]
    if not spans:
        return words
    taken: set[int] = set()
    chosen = {}
    for _, start, end in sorted(spans):
        if start not in taken and end - 1 not in taken:
            chosen[start] = end
        taken.update(range(start, end))
    result, place = [], 0
    while place < len(words):
        end = chosen.get(place)
        result += PATTERNS[tuple(words[place:end])] if end else [words[place]]
        place = end or place + 1
    return result


PATTERNS = patterns()
FIRST_WORDS = {words[0] for words in PATTERNS}
LONGEST_PATTERN = max(map(len, PATTERNS))
