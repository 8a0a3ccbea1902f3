"""A language model as lm-evaluation-harness sees it: log-likelihoods and generations, in batches under a token budget.

It scores what the harness's own HFLM scores (lm_eval/models/huggingface.py): the same boundary between context and
continuation, the same truncation from the left, the same windows of long texts. So its figures compare with others'.
"""

import copy
import functools
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.defaults import DEFAULT_MAX_GEN_TOKS, DEFAULT_MAX_LENGTH
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from data_prep.tokenizer import Tokenizer
from pipeline.generation.sampling import generate
from pipeline.models.base import LanguageModel

# B batch, T time, N scored tokens, V vocabulary

Item = TypeVar("Item")


class PipelineLM(TemplateLM):
    """The harness's interface around a model and its tokenizer.

    Attributes:
        max_length: longest input in tokens; the harness's own default where the model has no limit.
        truncated: number of requests so far that lost tokens on their left because they were longer.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        *,
        batch_tokens: int = 4096,
        seed: int = 0,
        on_progress: Callable[[int], None] = lambda requests: None,
    ):
        """`batch_tokens` bounds a batch, padding included; `on_progress` hears how many requests a batch finished."""
        super().__init__()
        self.model = model
        self.encoding = tokenizer
        self.batch_tokens = batch_tokens
        self.on_progress = on_progress
        self.max_length = model.context or DEFAULT_MAX_LENGTH
        self.truncated = 0
        self._device = next(model.parameters()).device
        self._generator = torch.Generator(self._device).manual_seed(seed)
        # The choices of one question share their context, and few-shot tasks score each of them.
        self._encode = functools.lru_cache(maxsize=4096)(tokenizer.encode)

    @property
    def eot_token_id(self) -> int:
        return self.encoding.end_of_text

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        return self._encode(string)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        return super().loglikelihood(requests, disable_tqdm=True)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        windows, owners = [], []
        for owner, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0])
            for window in get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, context_len=1):
                windows.append((("", ""), *make_disjoint_window(window)))
                owners.append(owner)
        totals = [0.0] * len(requests)
        for owner, (log_likelihood, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[owner] += log_likelihood
        return totals

    @torch.inference_mode()
    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        # The choices of a question share its context, which is read once; one-token choices share all their input.
        shared: dict[tuple[int, ...], dict[tuple[int, ...], list[int]]] = defaultdict(lambda: defaultdict(list))
        targets: list[list[int]] = []
        for index, (_, context, continuation) in enumerate(requests):
            tokens = [*context, *continuation][-(self.max_length + 1) :]
            self.truncated += len(tokens) < len(context) + len(continuation)
            boundary = max(1, len(tokens) - len(continuation))
            targets.append(tokens[boundary:])
            shared[tuple(tokens[:boundary])][tuple(tokens[boundary:-1])].append(index)

        def longest(context: tuple[int, ...]) -> int:
            return len(context) + max(map(len, shared[context]))

        results = [(0.0, True)] * len(requests)
        for batch in self.batches(list(shared), length=longest):
            tails = [list(shared[context]) for context in batch]
            rounds = max(map(len, tails))
            # The last token of each context is read with the continuation, for it predicts the first token of that.
            read = min(map(len, batch)) - 1 if rounds > 1 else 0
            state = None
            if read:
                state = self.model.init_state(len(batch), max(map(longest, batch)))
                _, state = self.model(self.right_padded([context[:read] for context in batch]), state)
            for turn in range(rounds):
                # A context with fewer continuations than others repeats its first one, and nobody asks for the answer.
                tail = [row[turn] if turn < len(row) else row[0] for row in tails]
                inputs = [context[read:] + more for context, more in zip(batch, tail, strict=True)]
                logits_BTV, _ = self.model(self.right_padded(inputs), copy.deepcopy(state))
                for row, context in enumerate(batch):
                    for index in shared[context][tail[row]] if turn < len(tails[row]) else ():
                        results[index] = score(logits_BTV[row], len(context) - read - 1, targets[index])
            self.on_progress(sum(len(indices) for context in batch for indices in shared[context].values()))
        return results

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        asked: list[Any] = [request.args for request in requests]
        # Only requests with the same settings can be decoded together.
        by_settings: dict[str, list[int]] = defaultdict(list)
        for index, (_, settings) in enumerate(asked):
            by_settings[repr(settings)].append(index)
        results = [""] * len(requests)
        for indices in by_settings.values():
            _, settings = asked[indices[0]]
            until = settings.get("until") or []
            until = [until] if isinstance(until, str) else list(until)
            room = int(settings.get("max_gen_toks", DEFAULT_MAX_GEN_TOKS))
            if room >= self.max_length:
                room = self.max_length // 2
            sampled = settings.get("do_sample", settings.get("temperature", 0.0) > 0)
            prompts = {index: self.prompt(asked[index][0], self.max_length - room) for index in indices}
            lengths = {index: len(prompt) + room for index, prompt in prompts.items()}
            for batch in self.batches(indices, length=lengths.__getitem__):
                answers = generate(
                    self.model,
                    [prompts[index] for index in batch],
                    room,
                    temperature=float(settings.get("temperature", 1.0)) if sampled else 0.0,
                    top_k=settings.get("top_k"),
                    top_p=settings.get("top_p"),
                    generator=self._generator,
                    stop=frozenset([self.eot_token_id]),
                    stop_when=self.ends_with_any(until),
                )
                for index, answer in zip(batch, answers, strict=True):
                    text = self.encoding.decode(itertools.takewhile(lambda token: token != self.eot_token_id, answer))
                    results[index] = functools.reduce(lambda left, stop: left.split(stop)[0], filter(None, until), text)
                self.on_progress(len(batch))
        return results

    def prompt(self, text: str, longest: int) -> list[int]:
        """The last `longest` tokens of a prompt; an empty prompt is the start of a document."""
        tokens = self.tok_encode(text) or [self.prefix_token_id]
        self.truncated += len(tokens) > longest
        return tokens[-longest:]

    def ends_with_any(self, until: list[str]) -> Callable[[int, list[int]], bool]:
        """A test whether the newest tokens of an answer hold a stop string."""
        # A token is at least a byte, so no stop string spans more tokens than it has bytes.
        longest = max((len(stop.encode()) for stop in until), default=0)
        return lambda _, tokens: longest > 0 and any(s in self.encoding.decode(tokens[-longest:]) for s in until if s)

    def batches(self, items: Sequence[Item], length: Callable[[Item], int]) -> Iterator[list[Item]]:
        """Items of similar length together, the longest first: a run that does not fit in memory fails at once."""
        batch: list[Item] = []
        for item in sorted(items, key=length, reverse=True):
            if batch and (len(batch) + 1) * length(batch[0]) > self.batch_tokens:
                yield batch
                batch = []
            batch.append(item)
        if batch:
            yield batch

    def right_padded(self, rows: Sequence[tuple[int, ...]]) -> torch.Tensor:
        """Rows of tokens as one tensor; a causal model's logits at a position do not see the padding to its right."""
        longest = max(map(len, rows))
        return torch.tensor([[*row, *[self.eot_token_id] * (longest - len(row))] for row in rows], device=self.device)


def score(logits_TV: torch.Tensor, start: int, targets: list[int]) -> tuple[float, bool]:
    """The log-likelihood of `targets`, predicted from position `start` on, and whether greedy decoding writes them.

    No target at all (a continuation that merged into its context) has likelihood 1.
    """
    logits_NV = logits_TV[start : start + len(targets)].float()
    targets_N = torch.tensor(targets, dtype=torch.long, device=logits_TV.device)
    log_likelihood_N = logits_NV.log_softmax(-1).gather(-1, targets_N[:, None])
    return log_likelihood_N.sum().item(), bool((logits_NV.argmax(-1) == targets_N).all())
