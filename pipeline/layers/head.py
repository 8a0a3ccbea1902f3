"""The output head and the loss on what it says, in one: the logits of all tokens together are never held.

Logits are the largest tensor of a training step: at GPT-2's vocabulary those of one token are 65 times its vector of 768. So the
loss is taken chunk by chunk, and with it, while a chunk's probabilities are at hand, the gradients of its vectors and of the
head's weight; the backward pass only scales them.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

# B batch, T time, N tokens of all rows, C tokens of a chunk, D width, V vocabulary

CHUNK_TOKENS = {"cpu": 512}
"""The fewest tokens of a chunk, by device: enough to fill a matrix product, few enough that the probabilities stay in the cache."""
CHUNK_TOKENS_ELSEWHERE = 2048
CHUNK_LOGITS = 2**21
"""A chunk has more tokens than that where its logits are still no more than this."""


class Targets(NamedTuple):
    """What a loss is taken against."""

    targets_BT: Tensor
    """The class that is right at each position; below 0 where none is and nothing counts."""
    label_smoothing: float = 0.0
    """Share of the target that is spread evenly over the vocabulary (Szegedy et al. 2016, section 7)."""
    z_loss: float = 0.0
    """Coefficient of log(Z)^2, which keeps the softmax's normaliser Z near 1 (Chowdhery et al. 2022, section 5)."""


class Scores(NamedTuple):
    """What a head says of its targets."""

    loss: Tensor
    """Sum over the positions of what training lowers: smoothed negative log-likelihood and z-loss; fp32."""
    nll_BT: Tensor
    """-log P(target) in nats, fp32 and without a gradient; 0 where there is no target."""
    right_BT: Tensor | None
    """Whether the target is what the model holds likeliest; only where no gradient is asked for."""


class Head(nn.Linear):
    """A linear layer to logits, or to the loss of targets."""

    def forward(self, x_BTD: Tensor, targets: Targets | None = None) -> Any:
        """Return logits_BTV, or, given targets, their `Scores`."""
        return super().forward(x_BTD) if targets is None else self.scores(x_BTD, targets)  # pyright: ignore[reportCallIssue]

    def leave_uncompiled(self) -> None:
        """Keep torch.compile out of `scores`, in a model that is about to be compiled."""
        # The number of chunks goes with the batch's size, and each would be a program of its own to compile; there is nothing to
        # gain behind the last layer. Not a decorator: that loads the compiler, for a second, where nobody compiles.
        self.scores = torch.compiler.disable(self.scores)  # pyright: ignore[reportAttributeAccessIssue]

    def scores(self, x_BTD: Tensor, targets: Targets) -> Scores:
        targets_BT, *terms = targets
        parameters = (x_BTD.flatten(0, -2), self.weight, self.bias, targets_BT.flatten(), *terms)
        loss, nll_N, right_N = LinearCrossEntropy.apply(*parameters, torch.is_grad_enabled())
        return Scores(loss, nll_N.view_as(targets_BT), None if right_N is None else right_N.view_as(targets_BT))


class LinearCrossEntropy(torch.autograd.Function):
    """(x_ND, weight_VD, bias_V, targets_N, label_smoothing, z_loss, training) -> the three parts of `Scores`.

    Matrix products are of autocast's type, or of the weight's; softmax, loss, sums over chunks are fp32.
    """

    @staticmethod
    def forward(ctx, x_ND, weight_VD, bias_V, targets_N, label_smoothing, z_loss, training):
        device = x_ND.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight_VD.dtype
        ctx.dtypes = x_ND.dtype, weight_VD.dtype
        with torch.autocast(device, enabled=False):
            parameters = (x_ND.to(dtype), weight_VD.to(dtype), bias_V if bias_V is None else bias_V.to(dtype))
            size = chunk_tokens(device, weight_VD.shape[0])
            scores, gradients = in_chunks(*parameters, targets_N, label_smoothing, z_loss, training, size)
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(*(part for part in scores[1:] if part is not None))
        return scores

    @staticmethod
    def backward(ctx, gradient, *_):  # pyright: ignore[reportIncompatibleMethodOverride]
        of_input, of_weight = ctx.dtypes
        x_ND, weight_VD, bias_V = ctx.saved_tensors
        # The weight's is as large as the weight, so it is scaled where it lies; a second backward pass is an error.
        weight_VD = weight_VD.mul_(gradient).to(of_weight)
        bias_V = None if bias_V is None else (bias_V * gradient).to(of_weight)
        return (x_ND * gradient).to(of_input), weight_VD, bias_V, None, None, None, None


def chunk_tokens(device: str, vocab_size: int) -> int:
    """Tokens whose logits a device of this kind holds at once."""
    return max(CHUNK_TOKENS.get(device, CHUNK_TOKENS_ELSEWHERE), CHUNK_LOGITS // vocab_size)


def in_chunks(
    x_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, targets_N: Tensor, label_smoothing: float, z_loss: float,
    training: bool, size: int,
) -> tuple[tuple[Tensor, Tensor, Tensor | None], tuple[Tensor | None, ...]]:  # fmt: skip
    """The scores, and, for training, the gradients of their loss by x, weight and bias (the latter two in fp32).

    Args:
        size: tokens of a chunk.
    """
    vocab_size = weight_VD.shape[0]
    losses, nlls, rights, of_x = [], [], [], []
    of_weight_VD = of_bias_V = None
    # All chunks use the same memory, which is then at hand: fresh pages cost more than what is written to them.
    rows = min(size, len(x_ND))
    logits_buffer = x_ND.new_empty(rows, vocab_size)
    shares_buffer = x_ND.new_empty(rows, vocab_size, dtype=torch.float32)
    for x_CD, targets_C in zip(x_ND.split(size), targets_N.split(size), strict=True):
        valid_C, targets_C1 = targets_C >= 0, targets_C.clamp(min=0)[:, None]
        logits_CV = logits_buffer[: len(x_CD)]
        if bias_V is None:
            torch.mm(x_CD, weight_VD.mT, out=logits_CV)
        else:
            torch.addmm(bias_V, x_CD, weight_VD.mT, out=logits_CV)
        shares_CV = torch.softmax(logits_CV, -1, dtype=torch.float32, out=shares_buffer[: len(x_CD)])
        # log Z from the likeliest class, whose share cannot underflow: one exponential for each logit does for all.
        highest_C = logits_CV.amax(-1).float()
        log_z_C = highest_C - shares_CV.amax(-1).log()
        chosen_C = logits_CV.gather(1, targets_C1)[:, 0].float()
        nll_C = (log_z_C - chosen_C) * valid_C
        nlls.append(nll_C)
        loss_C = nll_C
        if label_smoothing:
            uniform_C = log_z_C - logits_CV.mean(-1, dtype=torch.float32)
            loss_C = (1 - label_smoothing) * nll_C + label_smoothing * uniform_C * valid_C
        if z_loss:
            loss_C = loss_C + z_loss * log_z_C.square() * valid_C
        losses.append(loss_C.sum())
        if not training:
            rights.append(logits_CV.argmax(-1) == targets_C)
            continue
        if z_loss:
            shares_CV.mul_((1 + 2 * z_loss * log_z_C)[:, None])
        if label_smoothing:
            shares_CV.sub_(label_smoothing / vocab_size)
        shares_CV.scatter_add_(1, targets_C1, shares_CV.new_full((1, 1), label_smoothing - 1).expand_as(targets_C1))
        of_logits_CV = logits_CV.copy_(shares_CV)
        # Rows without a target are left out of both products, which costs less than to clear their logits' gradients.
        valid_C1 = valid_C[:, None]
        of_x.append(of_logits_CV @ weight_VD * valid_C1)
        of_chunk_VD = of_logits_CV.mT @ (x_CD * valid_C1)
        of_weight_VD = of_chunk_VD.float() if of_weight_VD is None else of_weight_VD.add_(of_chunk_VD)
        if bias_V is not None:
            of_chunk_V = valid_C.float() @ shares_CV
            of_bias_V = of_chunk_V if of_bias_V is None else of_bias_V + of_chunk_V
    scores = torch.stack(losses).sum(), torch.cat(nlls), None if training else torch.cat(rights)
    return scores, (torch.cat(of_x), of_weight_VD, of_bias_V) if training else ()
