"""The language of a text, by a small model that comes with py3langid (97 and more languages, no network)."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_prep.files import InputError
from data_prep.filtering.rules import Verdict


@dataclass(frozen=True)
class Language:
    """Keep texts of some languages."""

    languages: tuple[str, ...] = ("en",)
    """Codes of ISO 639-1."""
    threshold: float = 0.65
    """A text is kept if the probability of one of the languages is above this."""
    characters: int = 1000
    """How much of the start of a text is looked at."""

    def __post_init__(self) -> None:
        if not self.languages:
            raise InputError(
                "filter.language.languages is empty: name at least one language, or leave filter.language out."
            )
        if not 0 <= self.threshold < 1:
            raise InputError(f"filter.language.threshold is {self.threshold}: a probability from 0 to below 1.")
        if self.characters < 1:
            raise InputError(f"filter.language.characters is {self.characters}: look at one character at least.")
        known = identifier().labels
        for language in self.languages:
            if language not in known:
                raise InputError(
                    f"filter.language.languages has {language!r}, which is none of the codes {', '.join(sorted(known))}."
                )

    def decide(self, column: pa.Array, verdict: Verdict) -> None:
        """Drop as `language_fr` what is French, say, and as `language_uncertain` what no language is probable enough for."""
        model = identifier()
        wanted = set(self.languages)
        found = []
        starts = pc.call_function("utf8_slice_codeunits", [column], pc.SliceOptions(0, self.characters))
        # A Python object each: the model walks over bytes one by one, so only the start of a text is given to it.
        for start in starts.to_pylist():
            ranks: list[tuple[str, float]] = model.rank(start)
            sure = any(score > self.threshold for language, score in ranks[: len(wanted) + 1] if language in wanted)
            best, score = ranks[0]
            found.append("" if sure else f"language_{best}" if score > self.threshold else "language_uncertain")
        for reason in sorted(set(found) - {""}):
            verdict.drop(reason, np.array([name == reason for name in found]))


@lru_cache(maxsize=1)
def identifier() -> Any:
    """py3langid's model with probabilities."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
