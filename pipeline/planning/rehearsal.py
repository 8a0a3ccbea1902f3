"""A training step on shapes without numbers: which bytes it holds at once, and which operations it is made of.

The model's own code runs forward and backward on the meta device, so what autograd keeps is what it keeps in training, whatever the family.
"""

import math
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from pipeline.layers.head import Head, Targets
from pipeline.models.base import EncoderDecoder, LanguageModel, ModelConfig
from pipeline.planning.kernels import Device, OnDevice, plain_checks, recomputing, rehearsed_loss, scoring
from pipeline.planning.ledger import META, Ledger
from pipeline.planning.shapes import LeaveUnfilled

AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
OF_WEIGHTS = {"bf16-true": torch.bfloat16, "16-true": torch.float16}


def compute_type(precision: str) -> torch.dtype:
    """What matrices are multiplied in."""
    return AUTOCAST.get(precision) or OF_WEIGHTS.get(precision, torch.float32)


def weight_type(precision: str) -> torch.dtype:
    return OF_WEIGHTS.get(precision, torch.float32)


@dataclass
class Rehearsal:
    """What a forward and a backward pass need; bytes of one rank."""

    saved: float = 0.0
    """Bytes that the backward pass waits for, at the end of the forward pass (activations), without those below."""
    copies: float = 0.0
    """The same of weights in the type of matrix products: autocast's, which the backward pass waits for as well."""
    saved_by_head: float = 0.0
    """The same of the head: gradients of its vectors and of its weight."""
    in_head: float = 0.0
    """The most that a chunk of logits and probabilities takes beside that."""
    # The most that is held at once in each phase: every phase grows evenly with depth and micro-batch, the most of all does not.
    forward: float = 0.0
    """Before the head."""
    head: float = 0.0
    turn: float = 0.0
    """In the first half of the backward pass, gradients of parameters included."""
    end: float = 0.0
    """In its second half, so too."""
    turn_without: float = 0.0
    """In the first half, without gradients of parameters."""
    end_without: float = 0.0
    gradients: float = 0.0
    """Bytes of the parameters' gradients."""
    operations: Counter = field(default_factory=Counter)
    """How often each Operation takes place."""

    @property
    def peak(self) -> float:
        """The most that is held at once, gradients included, where these are made anew in each step."""
        return max(self.forward, self.head, self.turn, self.end)

    @property
    def peak_without_gradients(self) -> float:
        """The most that is held at once beside the parameters' gradients."""
        return max(self.forward, self.head, self.turn_without, self.end_without)

    @property
    def passing(self) -> float:
        """What of that is neither kept for the backward pass nor of the head: temporary results."""
        return max(0.0, self.peak_without_gradients - self.saved - self.copies - self.saved_by_head)

    def __sub__(self, other: "Rehearsal") -> "Rehearsal":
        return self.combined(other, -1)

    def combined(self, other: "Rehearsal", times: float) -> "Rehearsal":
        """Each figure plus so many times the other's."""
        numbers = {name: getattr(self, name) + times * getattr(other, name) for name in self.numbers()}
        operations = Counter(self.operations)
        for operation, count in other.operations.items():
            operations[operation] += times * count  # pyright: ignore[reportArgumentType]
        return Rehearsal(**numbers, operations=operations)

    @staticmethod
    def numbers() -> list[str]:
        return [name for name in Rehearsal.__dataclass_fields__ if name != "operations"]


def rehearse(
    config: ModelConfig, batch: int, context: int, precision: str, device: str, *, checkpoint_blocks: int = 0, carried: bool = False,
    label_smoothing: float = 0.0, z_loss: float = 0.0,
) -> Rehearsal:  # fmt: skip
    """One micro-batch through the model, forward and backward.

    Args:
        batch: sequences of the micro-batch.
        context: tokens of each; of pairs, of source and of target.
        precision: as trainer.precision.
        device: cpu or cuda.
        checkpoint_blocks: as model.checkpoint_blocks.
        carried: whether a recurrent state comes from the batch before.
    """
    about = Device(device, compute_type(precision), precision in AUTOCAST)
    with META, LeaveUnfilled():
        model = config.build().to(weight_type(precision)).train()
    ledger = Ledger()
    kernels = OnDevice(about, ledger, context)
    loss = rehearsed_loss(about, ledger)
    for module in model.modules():
        if isinstance(module, Head):
            module.scores = scoring(module, loss)
    if checkpoint_blocks:
        model.recompute_blocks(checkpoint_blocks)
        for part in (model, *model.modules()):
            if isinstance(part, LanguageModel) and part.checkpoint_blocks:
                part.run_block = recomputing(part, kernels)
    parameters = list(model.parameters())
    ledger.parameters = {parameter.untyped_storage()._cdata for parameter in parameters}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        number = ledger.number_of(tensor)
        if number is not None:
            kept[number] = tensor.untyped_storage().nbytes()
        return tensor

    with plain_checks(), torch.autocast("cpu", about.dtype, enabled=about.autocast), META, kernels, ledger:
        tokens_BT = torch.empty(batch, context, dtype=torch.int64)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            state = None
            if isinstance(model, EncoderDecoder):
                state = model.encode(torch.empty(batch, context, dtype=torch.int64))
            elif carried:
                state = model.init_state(batch, context)
            scores, state = model(tokens_BT, state, Targets(tokens_BT, label_smoothing, z_loss))
        ledger.in_head = False
        kernels.casts.clear()
        total = scores.loss / batch
        at_backward, ledger.backward = len(ledger.events), True
        del state
        total.backward()
    gradients = {ledger.number_of(p.grad) for p in parameters if p.grad is not None}
    return summary(ledger, kept, gradients, ledger.at_head, at_backward)


def summary(
    ledger: Ledger, kept: dict[int, int], gradients: set[int | None], at_head: int, at_backward: int
) -> Rehearsal:
    """What the events come to.

    Args:
        kept: bytes of what waits for the backward pass, by number of the storage.
        gradients: of the parameters, by number.
        at_head, at_backward: how many events there were before these.
    """
    result, of_head = Rehearsal(operations=ledger.operations), ledger.held
    # The head makes its gradients long before the others; they are its own.
    gradients = gradients - of_head
    result.copies = sum(size for number, size in kept.items() if number in ledger.copies)
    result.saved = sum(size for number, size in kept.items() if number not in of_head) - result.copies
    result.saved_by_head = sum(size for number, size in kept.items() if number in of_head)
    half = (at_backward + len(ledger.events)) // 2
    live = without = in_head = most_in_head = 0
    most = {"forward": 0, "head": 0, "turn": 0, "end": 0, "turn_without": 0, "end_without": 0}
    for place, (size, number) in enumerate(ledger.events):
        live += size
        if number not in gradients:
            without += size
        elif size > 0:
            result.gradients += size
        if number in of_head:
            in_head += size
            most_in_head = max(most_in_head, in_head)
        phase = "forward" if place < at_head else "head" if place < at_backward else "turn" if place < half else "end"
        most[phase] = max(most[phase], live)
        if place >= at_backward:
            most[f"{phase}_without"] = max(most[f"{phase}_without"], without)
    for phase, value in most.items():
        setattr(result, phase, float(value))
    result.in_head = float(most_in_head - result.saved_by_head)
    return result


def at_depth(config: ModelConfig, layers: int) -> ModelConfig:
    """The same model with so many layers in each stack."""
    body = getattr(config, "body", None)
    if body is not None:
        return replace(config, body=at_depth(body, layers))  # pyright: ignore[reportCallIssue]
    return replace(config, **{name: layers for name in depths(config)})


def depths(config: ModelConfig) -> list[str]:
    return [name for name in ("layers", "encoder_layers", "decoder_layers") if hasattr(config, name)]


def depth_of(config: ModelConfig) -> int:
    """Layers of a stack; 0 where two stacks differ."""
    body = getattr(config, "body", config)
    found = {getattr(body, name) for name in depths(body)}
    return found.pop() if len(found) == 1 else 0


def rehearse_any_depth(config: ModelConfig, *args: Any, **kwargs: Any) -> Rehearsal:
    """As `rehearse`; a deep model from two shallow ones, since each of its layers adds the same."""
    layers = depth_of(config)
    period = math.lcm(
        getattr(config, "band_every", 1) if getattr(config, "band", None) else 1, kwargs.get("checkpoint_blocks") or 1
    )
    low, high = 2 * period, 3 * period
    if layers <= high + period:
        return rehearse(config, *args, **kwargs)
    shallow, deeper = (rehearse(at_depth(config, depth), *args, **kwargs) for depth in (low, high))
    whole, rest = divmod(layers - low, period)
    if rest:
        shallow = rehearse(at_depth(config, low + rest), *args, **kwargs)
        deeper = rehearse(at_depth(config, high + rest), *args, **kwargs)
        whole = (layers - low - rest) // period
    return shallow.combined(deeper - shallow, whole)
