"""Keys and values of the tokens already seen, so that decoding a token costs one token's work.

Shapes are static and the fill level is a tensor: a compiled model decodes any number of tokens without compiling again.
"""

import copy

import torch
from torch import Tensor

# B batch, H heads, L cache length, S tokens read from it, T new tokens, K head width


class LayerCache:
    """One attention layer's keys and values, in tensors of a fixed size that are filled from the left.

    Attributes:
        filled: number of tokens stored, an int64 scalar tensor.
        empty: whether nothing is stored yet; the host knows this without asking the device.
    """

    def __init__(self, batch: int, heads: int, length: int, head_width: int, *, device, dtype):
        self.keys_BHLK = torch.zeros(batch, heads, length, head_width, device=device, dtype=dtype)
        self.values_BHLK = torch.zeros_like(self.keys_BHLK)
        self.filled = torch.zeros((), device=device, dtype=torch.int64)
        self.empty = True

    @property
    def level(self) -> int | None:
        """`filled` as a number where that costs nothing: a GPU would have to finish its work, compiled code would be bound to it."""
        if self.empty:
            return 0
        return int(self.filled) if self.filled.is_cpu and not torch.compiler.is_compiling() else None

    def next_positions(self, tokens: int) -> Tensor:
        """The positions_T of so many tokens to come.

        Raises:
            ValueError: more tokens than the cache was made for, as far as the level is known.
        """
        length = self.keys_BHLK.shape[2]
        if (level := self.level) is not None and level + tokens > length:
            raise ValueError(
                f"{level + tokens} tokens do not fit a cache of {length}: call init_state with a larger length, "
                "up to the model's context"
            )
        return self.filled + torch.arange(tokens, device=self.filled.device)

    def append(self, keys_BHTK: Tensor, values_BHTK: Tensor) -> Tensor:
        """Store the new tokens' keys and values; return their positions_T. Raises as `next_positions`."""
        T = keys_BHTK.shape[2]
        positions_T = self.next_positions(T)
        if self.empty:
            self.keys_BHLK[:, :, :T] = keys_BHTK
            self.values_BHLK[:, :, :T] = values_BHTK
        else:
            self.keys_BHLK.index_copy_(2, positions_T, keys_BHTK.to(self.keys_BHLK.dtype))
            self.values_BHLK.index_copy_(2, positions_T, values_BHTK.to(self.values_BHLK.dtype))
        self.filled += T
        self.empty = False
        return positions_T

    def read(self) -> tuple[Tensor, Tensor]:
        """keys_BHSK and values_BHSK: what is filled where the level is known, else the whole length."""
        reach = self.level
        return self.keys_BHLK[:, :, :reach], self.values_BHLK[:, :, :reach]

    def select(self, rows_B: Tensor) -> "LayerCache":
        """The cache of these rows of the batch, in tensors of its own."""
        chosen = copy.copy(self)
        chosen.keys_BHLK, chosen.values_BHLK = self.keys_BHLK[rows_B], self.values_BHLK[rows_B]
        chosen.filled = self.filled.clone()
        return chosen
