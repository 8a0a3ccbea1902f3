"""Where a run's attention looks while it reads a text: which tokens the model is given, and how they are named."""

from dataclasses import dataclass

import torch
from torch import Tensor

from data_prep.files import InputError
from data_prep.tokenizer import Tokenizer
from pipeline.checkpoint import LoadedRun
from pipeline.generation.sampling import generate

# L layers, H heads, T time, S positions looked at

LONGEST = 128
"""The most tokens of one text: more could not be told apart in a picture."""


@dataclass(frozen=True)
class Reading:
    """What a model is given to read, beginning as it does in training: `tokens`, and for an encoder-decoder `source`."""

    tokens: list[int]
    source: list[int] | None = None
    end: int | None = None
    """The token that follows the last one, where it is known: a target's end."""

    @property
    def predicted(self) -> list[int]:
        """The token that follows each one of an encoder-decoder's target."""
        assert self.end is not None
        return [*self.tokens[1:], self.end]


def reading(loaded: LoadedRun, text: str, source: str | None) -> Reading:
    """Turn texts into what the run's model reads; an empty target is first decoded greedily from its source.

    Raises:
        InputError: texts that the model has no use for, or too short or too long ones.
    """
    end, limit, name = loaded.tokenizer.end_of_text, loaded.model.context, loaded.directory.name
    if not loaded.model.reads_source:
        if source is not None:
            raise InputError(f"{name} has no encoder to read --source: give its text as --attention")
        return Reading([end, *encoded(loaded.tokenizer, text, "--attention", limit, least=2)])
    if source is None:
        raise InputError(
            f"{name} is an encoder-decoder: give the text that it reads as --source, and its target as --attention "
            "(without text, the target is decoded)"
        )
    read = [*encoded(loaded.tokenizer, source, "--source", limit, least=2), end]
    if text:
        target = encoded(loaded.tokenizer, text, "--attention", limit, least=1)
    else:
        room = min(limit or LONGEST, LONGEST) - 1
        [decoded] = generate(loaded.model, [[end]], room, sources=[read], stop=frozenset([end]))
        target = [token for token in decoded if token != end]
    return Reading([end, *target], read, end)


def encoded(tokenizer: Tokenizer, text: str, option: str, context: int | None, least: int) -> list[int]:
    """The tokens of a text that, with the end-of-text token before or after it, fits the model and the picture."""
    tokens = tokenizer.encode(text)
    if len(tokens) < least:
        raise InputError(
            f"The text of {option} is {len(tokens)} token{'s' * (len(tokens) != 1)} long: a map needs {least} or more"
        )
    if len(tokens) + 1 > (limit := min(context or LONGEST, LONGEST)):
        owner = "the model's context" if limit == context else "the room in a picture"
        raise InputError(
            f"The text of {option} and the end-of-text token are {len(tokens) + 1} tokens, {owner} is {limit}: shorten it"
        )
    return tokens


@torch.inference_mode()
def attention(loaded: LoadedRun, read: Reading) -> dict[str, Tensor]:
    """Attention weights weights_LHTS by kind: "encoder", "self", "cross".

    Raises:
        InputError: the model has no attention.
    """
    source_1S = None if read.source is None else torch.tensor([read.source])
    maps = loaded.model.attention_maps(torch.tensor([read.tokens]), source_1S)
    if not maps:
        raise InputError(
            f"{loaded.directory.name} ({loaded.model.config.family}) has no attention to show: --gradient-flow shows how far back a "
            "model without it reaches"
        )
    return {kind: torch.stack([layer_1HTS[0] for layer_1HTS in layers]) for kind, layers in maps.items()}


def label(tokenizer: Tokenizer, token: int) -> str:
    """A token's text with its white space made visible."""
    text = tokenizer.decode([token])
    for character, sign in ((" ", "␣"), ("\n", "↵"), ("\t", "⇥"), ("\r", "␍")):
        text = text.replace(character, sign)
    return text
