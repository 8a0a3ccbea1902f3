"""Numbers as a reader wants them: sensible digits, SI suffixes, thin spaces, human units of time."""

SPACE = "\u202f"
"""A narrow space that does not break between a number and its unit."""
MINUS = "\u2212"
MISSING = "\u2013"
SUPERSCRIPTS = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


def digits(value: float | None, significant: int = 3) -> str:
    """A plain number with so many significant digits: 2.05, 41.3, 1 234."""
    if value is None:
        return MISSING
    if value == 0:
        return "0"
    # The exponent after rounding: 0.9999 has, to three digits, the one of 1.00.
    exponent = int(f"{value:.{significant - 1}e}".split("e")[1])
    decimals = max(0, significant - 1 - exponent)
    return f"{value:,.{decimals}f}".replace(",", SPACE).replace("-", MINUS)


def si(value: float | None, unit: str = "") -> str:
    """A count with a suffix: 940, 13.2 k, 3.10 M, 1.20 B, 2.50 T."""
    if value is None:
        return MISSING
    suffix = ""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        # A number is named by the suffix that it has after rounding: 999,999 is 1.00 M.
        if abs(value) >= 0.9995 * size:
            value, suffix = value / size, letter
            break
    whole = not suffix and float(value).is_integer()
    body = f"{value:.0f}" if whole else digits(value)
    return SPACE.join(filter(None, [body, suffix, unit]))


def power(value: float | None) -> str:
    """A large number as a power of ten: 1.23 × 10¹⁵."""
    if value is None or value <= 0:
        return MISSING
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa}{SPACE}×{SPACE}10{str(int(exponent)).translate(SUPERSCRIPTS)}"


def percent(share: float | None, decimals: int = 1) -> str:
    return MISSING if share is None else f"{100 * share:.{decimals}f}".replace("-", MINUS) + SPACE + "%"


def duration(seconds: float | None) -> str:
    """A time in its two largest units: 48 s, 4 min 02 s, 3 h 20 min, 2 d 5 h."""
    if seconds is None:
        return MISSING
    whole = round(seconds)
    if whole < 60:
        return digits(seconds, 2) + SPACE + "s"
    for size, unit, part, part_unit in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            return f"{whole // size}{SPACE}{unit} {whole % size // part:02d}{SPACE}{part_unit}"
    raise AssertionError(seconds)


def time_unit(seconds: float | None) -> tuple[str, float]:
    """The unit in which a run's time reads best, and its length in seconds."""
    if seconds is None or seconds < 180:
        return "seconds", 1.0
    return ("minutes", 60.0) if seconds < 3 * 3600 else ("hours", 3600.0)


def and_list(words: list[str]) -> str:
    """Words as a sentence joins them: a, b and c."""
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]
