"""Masking of e-mail and IP addresses, with datatrove's patterns and replacements."""

import ipaddress
import re
from dataclasses import dataclass
from itertools import cycle

import pyarrow as pa

from data_prep.files import InputError
from data_prep.filtering.columns import matches, rewrite

LONGEST_LOCAL_PART = 320
"""Characters before the @ that are looked at, so that a page of base64 costs no more than another."""
ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
OCTET = r"(?:25[0-5]|2[0-4][0-9]|[01]?[0-9][0-9]?)"
LOCAL_PART = re.compile(rf"\b{ATOM}(?:\.{ATOM})*\Z")
DOMAIN = re.compile(rf"(?:{LABEL}\.)+{LABEL}|\[(?:{OCTET}\.){{3}}(?:{OCTET}|[A-Za-z0-9-]*[A-Za-z0-9]:)\]")
EMAIL_SIGN, IP_SIGN = "@", r"[0-9]\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]"
"""What a text with an address has."""
ADDRESS = re.compile(rf"(?:{OCTET}\.){{3}}{OCTET}")


@dataclass(frozen=True)
class Masking:
    """What stands for addresses of persons. Several replacements take turns, in each document from the first."""

    emails: bool = True
    """Replace e-mail addresses."""
    ips: bool = True
    """Replace IP addresses (version 4)."""
    public_ips_only: bool = True
    """Leave addresses of private networks as they are."""
    email_replacements: tuple[str, ...] = ("email@example.com", "firstname.lastname@example.org")
    """What e-mail addresses become; these hosts are kept free for examples."""
    ip_replacements: tuple[str, ...] = (
        "22.214.171.124",
        "126.96.36.199",
        "188.8.131.52",
        "184.108.40.206",
        "220.127.116.11",
        "18.104.22.168",
    )
    """What IP addresses become."""

    def __post_init__(self) -> None:
        for name in ("email_replacements", "ip_replacements"):
            if not getattr(self, name):
                raise InputError(f"filter.masking.{name} is empty: give at least one text to put for an address.")

    def mask(self, column: pa.Array) -> tuple[pa.Array, int]:
        """A string column with addresses replaced, and how many texts changed."""
        signs = [pattern for pattern, wanted in ((EMAIL_SIGN, self.emails), (IP_SIGN, self.ips)) if wanted]
        return rewrite(column, matches(column, "|".join(signs)), self.masked) if signs else (column, 0)

    def masked(self, text: str) -> str:
        """A text with addresses replaced."""
        if self.emails and "@" in text:
            text = self.without_emails(text)
        if self.ips:
            replacements = cycle(self.ip_replacements)
            text = ADDRESS.sub(lambda match: next(replacements) if self.is_masked(match[0]) else match[0], text)
        return text

    def is_masked(self, address: str) -> bool:
        try:
            return not self.public_ips_only or ipaddress.ip_address(address).is_global
        except ValueError:  # Such as 01.2.3.4.
            return False

    def without_emails(self, text: str) -> str:
        replacements = cycle(self.email_replacements)
        parts, done, sign = [], 0, text.find("@")
        while sign >= 0:
            local = LOCAL_PART.search(text, max(done, sign - LONGEST_LOCAL_PART), sign)
            domain = DOMAIN.match(text, sign + 1) if local else None
            if local and domain:
                parts += [text[done : local.start()], next(replacements)]
                done = domain.end()
            sign = text.find("@", max(done, sign + 1))
        return "".join([*parts, text[done:]])
