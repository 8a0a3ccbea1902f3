"""The loss: negative log-likelihood in nats, summed; whoever divides it, divides by the number of valid tokens of the global batch."""

from torch import Tensor
from torch.nn import functional as F

from pipeline.batch import IGNORED

# B batch, T time, V vocabulary


def token_nll(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """-log P(target) at each position, in nats and fp32; 0 where the target is ignored. Returns nll_BT."""
    nll = F.cross_entropy(
        logits_BTV.flatten(0, 1).float(), targets_BT.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return nll.view(targets_BT.shape)
