"""Negative log-likelihood of logits that are at hand, for scoring; training and validation take theirs from the head (pipeline.layers.head)."""

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
