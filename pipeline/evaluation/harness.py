"""A language model as lm-evaluation-harness sees it: log-likelihoods and generations, in batches under a token budget.

It scores what the harness's own HFLM scores (lm_eval/models/huggingface.py), of decoder-only models and encoder-decoders: the
same boundary between context and continuation, the same truncation from the left, the same windows of long texts. So its
figures compare with others'.
"""

import functools
import itertools
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.defaults import DEFAULT_MAX_GEN_TOKS, DEFAULT_MAX_LENGTH
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from data_prep.files import InputError
from data_prep.tokenizer import Tokenizer
from pipeline.evaluation.contexts import Tokens, contexts_of
from pipeline.generation.beam import Beam
from pipeline.generation.decoding import decode
from pipeline.generation.rows import batches, padded
from pipeline.generation.sampling import Sampling
from pipeline.generation.stopping import StopStrings
from pipeline.models.base import LanguageModel

# B batch, T time, N scored tokens, V vocabulary


class PipelineLM(TemplateLM):
    """The harness's interface around a model and its tokenizer.

    Attributes:
        max_length: longest input in tokens; the harness's own default where the model has no limit.
        truncated: number of requests so far that lost tokens on their left because they were longer.
        backend: the harness's word for the model's family.
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
        self.contexts = contexts_of(model, tokenizer.end_of_text)
        self.backend = self.contexts.backend
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
        if self.model.reads_source:
            raise InputError(
                "A task scores running text by itself (loglikelihood_rolling), but this model predicts a target from a source: "
                "leave the task out"
            )
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
        shared: dict[Tokens, dict[Tokens, list[int]]] = defaultdict(lambda: defaultdict(list))
        targets: list[Tokens] = []
        for index, (_, context, continuation) in enumerate(requests):
            kept, target, lost = self.contexts.cut(context, continuation, self.max_length)
            self.truncated += lost > 0
            targets.append(target)
            shared[kept][target[:-1]].append(index)

        def longest(context: Tokens) -> int:
            return len(context) + max(map(len, shared[context]))

        results = [(0.0, True)] * len(requests)
        for batch in batches(list(shared), longest, self.batch_tokens):
            tails = [list(shared[context]) for context in batch]
            rounds = max(map(len, tails))
            state, heads = self.contexts.read(batch, rounds, max(map(longest, batch)))
            for turn in range(rounds):
                rows = [row for row, tail in enumerate(tails) if turn < len(tail)]
                # The state of the contexts that have another continuation; a copy, for reading changes it.
                own = None if state is None else self.model.select(state, torch.tensor(rows, device=self._device))
                # A causal model's logits at a position do not see the filling to its right.
                inputs_BT = padded([heads[row] + tails[row][turn] for row in rows], self.eot_token_id, self._device)
                logits_BTV, _ = self.model(inputs_BT, own)
                for row, logits_TV in zip(rows, logits_BTV, strict=True):
                    for index in shared[batch[row]][tails[row][turn]]:
                        results[index] = score(logits_TV, len(heads[row]) - 1, targets[index])
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
            until = StopStrings(filter(None, [until] if isinstance(until, str) else until), self.encoding.decode)
            room = self.contexts.room(int(settings.get("max_gen_toks", DEFAULT_MAX_GEN_TOKS)), self.max_length)
            prompts = {index: self.prompt(asked[index][0], room) for index in indices}
            how = decoding_of(settings)
            lengths = {index: how.width * (len(prompt) + room) for index, prompt in prompts.items()}
            for batch in batches(indices, lengths.__getitem__, self.batch_tokens):
                answers = decode(
                    self.model,
                    max_new_tokens=room,
                    how=how,
                    generator=self._generator,
                    stop=frozenset([self.eot_token_id]),
                    stop_when=until.reached,
                    **self.contexts.decoding([prompts[index] for index in batch]),
                )
                for index, [answer] in zip(batch, answers, strict=True):
                    text = self.encoding.decode(itertools.takewhile(lambda token: token != self.eot_token_id, answer))
                    results[index] = until.cut(text)
                self.on_progress(len(batch))
        return results

    def prompt(self, text: str, room: int) -> list[int]:
        """A prompt, cut where it leaves no room for its answer; an empty one is the start of a document."""
        tokens = self.tok_encode(text) or [self.prefix_token_id]
        kept, lost = self.contexts.prompt(tokens, room, self.max_length)
        self.truncated += lost > 0
        return kept


def decoding_of(settings: dict[str, Any]) -> Sampling | Beam:
    """How a task's `generation_kwargs`, named as in transformers, choose tokens; `num_beams` above 1 makes a beam search.

    Raises:
        InputError: an option is outside its range.
    """
    try:
        if settings.get("num_beams", 1) > 1:
            return Beam(width=settings["num_beams"], length_penalty=settings.get("length_penalty", Beam.length_penalty))
        sampled = settings.get("do_sample", settings.get("temperature", 0.0) > 0)
        return Sampling(
            temperature=float(settings.get("temperature", 1.0)) if sampled else 0.0,
            repetition_penalty=settings.get("repetition_penalty", 1.0),
            top_k=settings.get("top_k") or None,  # 0 is off there.
            top_p=settings.get("top_p"),
            min_p=settings.get("min_p") or None,
        )
    except ValueError as error:
        raise InputError(f"The generation_kwargs of a task cannot be used: {error}") from error


def score(logits_TV: torch.Tensor, start: int, targets: Sequence[int]) -> tuple[float, bool]:
    """The log-likelihood of `targets`, predicted from position `start` on, and whether greedy decoding writes them.

    No target at all (a continuation that merged into its context) has likelihood 1.
    """
    logits_NV = logits_TV[start : start + len(targets)].float()
    targets_N = torch.tensor(targets, dtype=torch.long, device=logits_TV.device)
    log_likelihood_N = logits_NV.log_softmax(-1).gather(-1, targets_N[:, None])
    return log_likelihood_N.sum().item(), bool((logits_NV.argmax(-1) == targets_N).all())
