"""The loss: negative log-likelihood in nats, summed; whoever divides it, divides by the number of valid tokens of the global batch."""

from torch import Tensor
from torch.nn import functional as F

from pipeline.models.base import NO_TOKEN

# B batch, T time, V vocabulary


def token_nll(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """-log P(target) at each position, in nats and fp32; 0 where there is no target. Returns nll_BT."""
    nll = F.cross_entropy(
        logits_BTV.flatten(0, 1).float(), targets_BT.flatten(), ignore_index=NO_TOKEN, reduction="none"
    )
    return nll.view(targets_BT.shape)


def smoothed(nll_BT: Tensor, logits_BTV: Tensor, targets_BT: Tensor, smoothing: float) -> Tensor:
    """The loss against targets of which a share is spread evenly over the vocabulary (Szegedy et al. 2016, section 7).

    Args:
        nll_BT: what `token_nll` gave.
        smoothing: the share; Vaswani et al. 2017, section 5.4, have 0.1.
    """
    if smoothing == 0:
        return nll_BT
    uniform_BT = -logits_BTV.float().log_softmax(-1).mean(-1).masked_fill(targets_BT == NO_TOKEN, 0.0)
    return (1 - smoothing) * nll_BT + smoothing * uniform_BT
