"""The options by which `generate` and `translate` choose tokens: those of sampling, or those of beam search."""

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from data_prep.files import InputError

if TYPE_CHECKING:
    from pipeline.generation.beam import Beam
    from pipeline.generation.sampling import Sampling

TEMPERATURE = 0.8
"""Where sampling is chosen and no temperature given."""


def add_decoding_arguments(parser: argparse.ArgumentParser, otherwise: str) -> None:
    """`otherwise` says what is done where none of the options is given."""
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default: 0)")
    sampling = parser.add_argument_group(
        "drawing tokens", f"Any of these draws tokens. Without any option: {otherwise}."
    )
    sampling.add_argument(
        "--temperature", type=float, metavar="T", help=f"0 takes the most probable token (default: {TEMPERATURE})"
    )
    sampling.add_argument("--top_k", type=int, metavar="K", help="draw from the k most probable tokens")
    sampling.add_argument("--top_p", type=float, metavar="P", help="draw from the most probable tokens that reach p")
    sampling.add_argument(
        "--min_p",
        type=float,
        metavar="P",
        help="draw from tokens at least p times as probable as the most probable one",
    )
    sampling.add_argument(
        "--repetition_penalty", type=float, metavar="X",
        help="divide positive and multiply negative logits of tokens that are there already, the prompt's too; 1: none",
    )  # fmt: skip
    beam = parser.add_argument_group("searching the most probable text", "Any of these makes a beam search.")
    beam.add_argument("--beam", type=int, metavar="WIDTH", help="texts that are followed at a time (default: 4)")
    beam.add_argument(
        "--length_penalty", type=float, metavar="ALPHA",
        help="divide log-probabilities by ((5 + length) / 6)^alpha; 0: not at all (default: 0.6)",
    )  # fmt: skip


def decoding_of(arguments: argparse.Namespace, otherwise: "Sampling | Beam") -> "Sampling | Beam":
    """How these arguments choose tokens.

    Raises:
        InputError: an option outside its range, or options of both ways.
    """
    from pipeline.generation.beam import Beam
    from pipeline.generation.sampling import Sampling

    names = ("repetition_penalty", "temperature", "top_k", "top_p", "min_p")
    sampling: dict[str, Any] = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    given = {"width": arguments.beam, "length_penalty": arguments.length_penalty}
    beam = {name: value for name, value in given.items() if value is not None}
    if sampling and beam:
        raise InputError(
            f"--{next(iter(sampling))} draws tokens, and --{'beam' if 'width' in beam else 'length_penalty'} searches the most "
            "probable text: give one or the other"
        )
    try:
        if sampling:
            sampling.setdefault("temperature", TEMPERATURE)
            return Sampling(**sampling)
        return Beam(**beam) if beam else otherwise
    except ValueError as error:
        raise InputError(str(error)) from error


def settings_of(how: "Sampling | Beam", arguments: argparse.Namespace) -> dict[str, Any]:
    """What was chosen, by the names of the options, for a record of the call."""
    chosen = {"beam" if name == "width" else name: value for name, value in asdict(how).items()}
    return {**chosen, "seed": arguments.seed, "max_new_tokens": arguments.max_new_tokens}
