"""The proof of a conversion: our logits beside those of `transformers`, on text.

The only place of the package that imports `transformers`; converting needs none of it.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data_prep.files import InputError
from data_prep.tokenizer import Tokenizer
from pipeline.models.base import LanguageModel

# B batch, T time, V vocabulary

LONGEST = 256
"""Tokens that are compared at most."""

PARAGRAPH = """Once upon a time, a lighthouse keeper counted ships. On the first night there were 3, on the second 17,
and on the third, in fog, he heard more than he saw: "How many?" asked his daughter. "I can't tell," he said – "perhaps
1,024; perhaps none." She went home, lit the stove, and wrote a program:

    def ships(fog: float) -> int:
        return round(1024 * (1 - fog))

In the morning the sea was empty. What he had taken for horns was the café's old radio, left on beside the open window,
and the numbers that he had written down were the hours until the tide came back.
"""


def transformers() -> Any:
    """The library, quiet.

    Raises:
        InputError: it is not installed.
    """
    try:
        import transformers
    except ImportError:
        raise InputError(
            "The result cannot be compared with transformers, which is not installed: pip install transformers, "
            "or go on unproved with --no_check"
        ) from None
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


@torch.inference_mode()
def logits_of(model: LanguageModel, tokens: list[int]) -> Tensor:
    """Our logits_TV."""
    return model(torch.tensor([tokens]))[0][0].float()


@torch.inference_mode()
def reference_logits(folder: Path, tokens: list[int]) -> Tensor:
    """The logits_TV of the model that `transformers` loads from a folder, in fp32.

    Raises:
        InputError: it loads none.
    """
    library = transformers()
    try:
        model = library.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    except Exception as error:  # whatever it finds wrong with a folder, and there are many kinds
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"transformers {library.__version__} does not load {folder}: {reason}") from None
    return model.eval()(torch.tensor([tokens])).logits[0].float()


def difference(ours_TV: Tensor, theirs_TV: Tensor, tolerance: float, text: str) -> str:
    """The sentence that says how far apart two sets of logits are.

    Raises:
        InputError: further than the tolerance.
    """
    if ours_TV.shape != theirs_TV.shape:
        raise InputError(f"transformers gives {theirs_TV.shape[1]} logits a token, our model {ours_TV.shape[1]}")
    delta, largest = float((ours_TV - theirs_TV).abs().max()), float(theirs_TV.abs().max())
    measured = f"max |Δlogit| = {delta:.2e} against transformers {transformers().__version__} on {len(ours_TV)} tokens of {text}"
    if not delta <= tolerance:  # also where it is not a number
        raise InputError(
            f"{measured}, above the tolerance of {tolerance:g} (logits reach {largest:.3g}), so nothing was kept: raise "
            "--tolerance if that is rounding of large logits, else the two models are not the same"
        )
    return f"{measured} (tolerance {tolerance:g}; logits reach {largest:.3g})"


def same_tokens(folder: Path, tokenizer: Tokenizer, text: str) -> None:
    """Check that the tokenizer that `transformers` loads from a folder gives our ids.

    Raises:
        InputError: it does not.
    """
    library = transformers()
    theirs = library.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if theirs.encode(text, add_special_tokens=False) != tokenizer.encode(text):
        raise InputError(
            f"The tokenizer that transformers {library.__version__} loads gives other ids than the run's own, so nothing "
            "was kept: this tokenizer cannot be exported"
        )
