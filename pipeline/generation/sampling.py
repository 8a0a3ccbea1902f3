"""Decoding one token at a time, for every family of models, through `init_state` and `forward(tokens, state)`."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from pipeline.models.base import LanguageModel

# B batch, V vocabulary


def choose(
    logits_BV: Tensor, *, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:  # fmt: skip
    """Draw the next token of each row. Returns tokens_B.

    Args:
        temperature: divides the logits; 0 takes the most probable token.
        top_k: only the k most probable tokens can be drawn.
        top_p: only the smallest set of tokens whose probability reaches p can be drawn (Holtzman et al. 2020, section 3.1).
    """
    if temperature == 0:
        return logits_BV.argmax(-1)
    logits_BV = logits_BV.float() / temperature
    if top_k is not None and top_k < logits_BV.shape[-1]:
        kth_B1 = logits_BV.topk(top_k).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < kth_B1, -torch.inf)
    if top_p is not None and top_p < 1:
        sorted_BV, order_BV = logits_BV.sort(descending=True)
        probability_BV = sorted_BV.softmax(-1)
        # A token stays while those before it have not reached p yet; so the first always stays.
        cut_BV = probability_BV.cumsum(-1) - probability_BV >= top_p
        logits_BV = logits_BV.masked_fill(cut_BV.scatter(1, order_BV, cut_BV), -torch.inf)
    return torch.multinomial(logits_BV.softmax(-1), 1, generator=generator)[:, 0]


def check_options(temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Raise ValueError with a sentence for an option outside its range."""
    if temperature < 0:
        raise ValueError(f"temperature {temperature} is negative: give 0 (most probable token) or more")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k {top_k} leaves no token to draw: give 1 or more")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p {top_p} is not in (0, 1]: give a probability")


@torch.inference_mode()
def generate(
    model: LanguageModel,
    prompts: list[list[int]],
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
    stop: frozenset[int] = frozenset(),
    stop_when: Callable[[int, list[int]], bool] | None = None,
    on_token: Callable[[int, int], None] | None = None,
) -> list[list[int]]:
    """Continue each prompt; return the new tokens alone, a stop token included.

    Rows advance together from the shortest prompt's end; a longer prompt's own tokens take the place of drawn ones until it
    ends, so no row is padded. Where a model's context is full, its last part (half or more) is read again as the beginning.

    Args:
        prompts: token ids, at least one in each.
        stop: tokens that end a row.
        stop_when: called with (row, its new tokens) after each token; True ends the row.
        on_token: called with (row, token) as each is drawn.
    """
    check_options(temperature, top_k, top_p)
    if not prompts or max_new_tokens < 1:
        return [[] for _ in prompts]
    if any(not prompt for prompt in prompts):
        raise ValueError("a prompt has no token: begin with the end-of-text token")
    device = next(model.parameters()).device
    new: list[list[int]] = [[] for _ in prompts]
    open_rows = set(range(len(prompts)))
    for position, logits_BV in _step(model, prompts, new, max_new_tokens, device):
        drawn = choose(logits_BV, temperature=temperature, top_k=top_k, top_p=top_p, generator=generator).tolist()
        for row in sorted(open_rows):
            if position < len(prompts[row]):
                continue
            new[row].append(drawn[row])
            if on_token:
                on_token(row, drawn[row])
            ended = drawn[row] in stop or len(new[row]) == max_new_tokens
            if ended or (stop_when and stop_when(row, new[row])):
                open_rows.discard(row)
        if not open_rows:
            break
    return new


def _step(
    model: LanguageModel, prompts: list[list[int]], new: list[list[int]], max_new_tokens: int, device: torch.device
) -> Iterator[tuple[int, Tensor]]:
    """Yield (position of the next token, logits_BV for it), reading what the caller has put into `new` in between."""
    length = max(map(len, prompts)) + max_new_tokens
    limit = model.context or length
    position = min(map(len, prompts))
    state, read = None, 0
    while position < length:
        # Rows that ended early are fed any token: nothing reads their logits any more.
        rows = [(prompt + tokens + [0] * position)[:position] for prompt, tokens in zip(prompts, new, strict=True)]
        if state is None or position - read > limit:
            # What no longer fits is left out from the left, with room for what is still to come, half the context at most.
            window = position if position <= limit else limit - min(length - position, limit // 2)
            read, state = position - window, model.init_state(len(prompts), min(limit, length - read))
            logits_BTV, state = model(torch.tensor([row[read:] for row in rows], device=device), state)
        else:
            logits_BTV, state = model(torch.tensor([row[-1:] for row in rows], device=device), state)
        yield position, logits_BTV[:, -1]
        position += 1
