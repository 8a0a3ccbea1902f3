"""Keys and values of the tokens already seen, so that decoding a token costs one token's work."""

import torch
from torch import Tensor

# B batch, H heads, L cache length, T new tokens, K head width


class LayerCache:
    """One attention layer's keys and values, in tensors of a fixed size that are filled from the left."""

    def __init__(self, batch: int, heads: int, length: int, head_width: int, *, device, dtype):
        self.keys_BHLK = torch.zeros(batch, heads, length, head_width, device=device, dtype=dtype)
        self.values_BHLK = torch.zeros_like(self.keys_BHLK)
        self.filled = 0

    def append(self, keys_BHTK: Tensor, values_BHTK: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new tokens' keys and values; return those of all tokens so far.

        Raises:
            ValueError: more tokens than the cache was made for.
        """
        end = self.filled + keys_BHTK.shape[2]
        if end > self.keys_BHLK.shape[2]:
            raise ValueError(
                f"{end} tokens do not fit a cache of {self.keys_BHLK.shape[2]}: call init_state with a larger length"
            )
        self.keys_BHLK[:, :, self.filled : end] = keys_BHTK
        self.values_BHLK[:, :, self.filled : end] = values_BHTK
        self.filled = end
        return self.keys_BHLK[:, :, :end], self.values_BHLK[:, :, :end]
