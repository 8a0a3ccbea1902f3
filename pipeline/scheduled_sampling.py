"""Scheduled sampling: while training, some of a decoder's inputs are what it would have said itself (Bengio et al. 2015)."""

import torch
from torch import Tensor

from pipeline.models.base import EncoderDecoder

# B batch, T time, S source time


@torch.no_grad()
def mix_inputs(model: EncoderDecoder, tokens_BT: Tensor, source_BS: Tensor, probability: float) -> Tensor:
    """Replace each input but the first by a draw from the model with this probability. Returns inputs_BT.

    The draw at a position depends on the inputs before it, drawn ones included, so the sequence is walked through step by step
    (section 2.4 of the paper). One pass over the inputs returned then gives the logits that the walk had, with gradients.
    """
    B, T = tokens_BT.shape
    inputs_BT = tokens_BT.clone()
    own_BT = torch.rand(B, T, device=tokens_BT.device) < probability
    state = model.init_state(B, T, source_BS)
    for t in range(T - 1):
        logits_B1V, state = model(inputs_BT[:, t : t + 1], state)
        drawn_B = torch.multinomial(logits_B1V[:, 0].float().softmax(-1), 1)[:, 0]
        inputs_BT[:, t + 1] = torch.where(own_BT[:, t + 1], drawn_B, tokens_BT[:, t + 1])
    return inputs_BT
