"""Attention of a recurrent decoder: how well a place of the source fits, where it may look, what it makes of it.

`attention(query_BTD, attention.read(memory_BSE, mask_BS), start)`; the source is read once and then asked for one
decoder state or for all at once, since no state depends on what an earlier one attended to (Luong et al. 2015, without
input feeding).
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

# B batch, T target time, S source time, D width, E width of the encoder's outputs


class Memory(NamedTuple):
    """What a decoder attends to."""

    keys_BSD: Tensor
    values_BSD: Tensor
    mask_BS: Tensor
    """False where the source has ended."""

    def select(self, rows_B: Tensor) -> "Memory":
        return Memory(*(part[rows_B] for part in self))


class DotScore(nn.Module):
    """s·h (Luong et al. 2015, equation 8), of the decoder's states s and `key` of the encoder's h."""

    def __init__(self, width: int):
        super().__init__()
        self.key: nn.Module = nn.Identity()

    def forward(self, query_BTD: Tensor, keys_BSD: Tensor) -> Tensor:
        return query_BTD @ keys_BSD.transpose(1, 2)  # scores_BTS


class MultiplicativeScore(DotScore):
    """s·Wh ("general" in Luong et al. 2015, equation 8)."""

    def __init__(self, width: int):
        super().__init__(width)
        self.key = nn.Linear(width, width, bias=False)


class AdditiveScore(nn.Module):
    """v·tanh(W1 h + W2 s) (Bahdanau et al. 2015, appendix A.1.2), with a vector of D for each pair of places."""

    def __init__(self, width: int):
        super().__init__()
        self.key = nn.Linear(width, width, bias=False)
        self.query = nn.Linear(width, width, bias=False)
        self.energy = nn.Linear(width, 1, bias=False)

    def forward(self, query_BTD: Tensor, keys_BSD: Tensor) -> Tensor:
        sums_BTSD = self.query(query_BTD)[:, :, None] + keys_BSD[:, None]
        return self.energy(torch.tanh(sums_BTSD)).squeeze(3)


class GlobalFocus(nn.Module):
    """Every place of the source is seen. A focus gives the factor of each attention weight, 0 where nothing is seen."""

    def forward(self, query_BTD: Tensor, mask_BS: Tensor, start: int) -> Tensor:
        return mask_BS[:, None].to(query_BTD.dtype)  # focus_B1S


class MonotonicFocus(nn.Module):
    """Target position t sees the places from t - window to t + window (local-m, Luong et al. 2015, section 3.2).

    A target that runs on past source and window sees nothing, and its context is zero.
    """

    def __init__(self, window: int):
        super().__init__()
        self.window = window

    def forward(self, query_BTD: Tensor, mask_BS: Tensor, start: int) -> Tensor:
        positions_T1 = torch.arange(start, start + query_BTD.shape[1], device=mask_BS.device)[:, None]
        places_S = torch.arange(mask_BS.shape[1], device=mask_BS.device)
        near_TS = (places_S - positions_T1).abs() <= self.window
        return (near_TS & mask_BS[:, None]).to(query_BTD.dtype)


class PredictiveFocus(nn.Module):
    """Each decoder state predicts its centre p = S sigmoid(v·tanh(W s)) in a source of S tokens, and sees p - window to
    p + window under a Gaussian of deviation window / 2 (local-p, Luong et al. 2015, equations 9 and 10; places are
    counted from 0).

    As in the paper the Gaussian comes after the softmax, so weights add up to less than 1.
    """

    def __init__(self, width: int, window: int):
        super().__init__()
        self.window = window
        self.inner = nn.Linear(width, width, bias=False)
        self.outer = nn.Linear(width, 1, bias=False)

    def forward(self, query_BTD: Tensor, mask_BS: Tensor, start: int) -> Tensor:
        share_BT1 = torch.sigmoid(self.outer(torch.tanh(self.inner(query_BTD))).float())
        centre_BT1 = mask_BS.sum(1)[:, None, None] * share_BT1
        distance_BTS = torch.arange(mask_BS.shape[1], device=mask_BS.device) - centre_BT1
        gaussian_BTS = torch.exp(-(distance_BTS**2) / (2 * (self.window / 2) ** 2))
        seen_BTS = (distance_BTS.abs() <= self.window) & mask_BS[:, None]
        return (gaussian_BTS * seen_BTS).to(query_BTD.dtype)


class Attention(nn.Module):
    """From decoder states to attentional states tanh(W [context; s]) (Luong et al. 2015, equation 5).

    Args:
        width: D, of the decoder's states.
        memory_width: E; outputs of another width than the decoder's are projected to it first.
        score: one of the scores above; with the focus it makes the weights, softmax(score) x focus.
        focus: where it looks.
    """

    def __init__(self, width: int, memory_width: int, score: DotScore | AdditiveScore, focus: nn.Module):
        super().__init__()
        self.project = nn.Identity() if memory_width == width else nn.Linear(memory_width, width, bias=False)
        self.score = score
        self.focus = focus
        self.combine = nn.Linear(2 * width, width, bias=False)

    def read(self, memory_BSE: Tensor, mask_BS: Tensor) -> Memory:
        values_BSD = self.project(memory_BSE)
        return Memory(self.score.key(values_BSD), values_BSD, mask_BS)

    def forward(self, query_BTD: Tensor, memory: Memory, start: int) -> tuple[Tensor, Tensor]:
        """Return the attentional states, shaped as the query, and weights_BTS.

        Args:
            start: target position of the first query.
        """
        focus_BTS = self.focus(query_BTD, memory.mask_BS, start)
        scores_BTS = self.score(query_BTD, memory.keys_BSD)
        # The least finite score, not -inf: where nothing at all is seen, softmax must not be nan. The focus makes it 0.
        scores_BTS = scores_BTS.masked_fill(focus_BTS == 0, torch.finfo(scores_BTS.dtype).min)
        weights_BTS = scores_BTS.softmax(2) * focus_BTS
        context_BTD = weights_BTS @ memory.values_BSD
        return torch.tanh(self.combine(torch.cat([context_BTD, query_BTD], 2))), weights_BTS


class NoAttention(nn.Module):
    """The decoder states as they are: the source came through the first of them (Sutskever et al. 2014)."""

    def read(self, memory_BSE: Tensor, mask_BS: Tensor) -> None:
        return None

    def forward(self, query_BTD: Tensor, memory: None, start: int) -> tuple[Tensor, None]:
        return query_BTD, None
