"""A language model as lm-evaluation-harness sees it: log-likelihoods and generations, in batches under a token budget.

It scores what the harness's own HFLM scores (lm_eval/models/huggingface.py), of decoder-only models and encoder-decoders: the
same boundary between context and continuation, the same truncation from the left, the same windows of long texts. So its
figures compare with others'.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import tokenizers
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.defaults import DEFAULT_MAX_GEN_TOKS, DEFAULT_MAX_LENGTH
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from data_prep.tokenizer import Tokenizer
from pipeline.evaluation import continuing, scoring
from pipeline.evaluation.contexts import Tokens, contexts_of
from pipeline.evaluation.continuing import Prompt, Settings, Writing, decoding_of
from pipeline.evaluation.ranks import ALONE, Ranks
from pipeline.evaluation.scoring import Likelihood, Question
from pipeline.models.base import LanguageModel

__all__ = ["PipelineLM", "decoding_of"]

CACHED_TEXTS = 20_000


class PipelineLM(TemplateLM):
    """The harness's interface around a model and its tokenizer.

    On several ranks the first alone is asked; the others are in `serve` meanwhile.

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
        ranks: Ranks = ALONE,
    ):
        """`batch_tokens` bounds a batch, padding included; `on_progress` hears how many requests are finished."""
        super().__init__()
        self.model = model
        self.encoding = tokenizer
        self.batch_tokens = batch_tokens
        self.seed = seed
        self.on_progress = on_progress
        self.ranks = ranks
        self.max_length = model.context or DEFAULT_MAX_LENGTH
        self.truncated = 0
        self.contexts = contexts_of(model, tokenizer.end_of_text)
        self.backend = self.contexts.backend
        self._device = next(model.parameters()).device
        self.begins_with = beginning_of(tokenizer) if self.backend == "causal" else []
        # The choices of one question share their context, and few-shot tasks score each of them.
        self._encoded: dict[str, list[int]] = {}

    @property
    def eot_token_id(self) -> int:
        return self.encoding.end_of_text

    @property
    def tokenizer_name(self) -> str:
        return self.encoding.fingerprint[:12]

    # -- text to tokens

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        if string not in self._encoded:
            self.encode_ahead([string])
        tokens = self._encoded[string]
        return tokens if add_special_tokens is False else [*self.begins_with, *tokens]

    def encode_ahead(self, texts: Sequence[str]) -> None:
        """Encode texts together, which is faster, for `tok_encode` to find."""
        new = [text for text in dict.fromkeys(texts) if text not in self._encoded]
        if len(self._encoded) + len(new) > CACHED_TEXTS:
            self._encoded = {text: self._encoded[text] for text in texts if text in self._encoded}
        for text, tokens in zip(new, self.encoding.encode_batch(new), strict=True):
            self._encoded[text] = tokens.tolist()

    # -- log-likelihoods

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[Likelihood]:
        pairs: list[Any] = [request.args for request in requests]
        contexts = [context.rstrip() for context, _ in pairs]
        self.encode_ahead([*contexts, *(context + continuation for context, continuation in pairs)])
        asked = []
        for context, continuation in pairs:
            # Blanks alone are the beginning of what is scored; the harness's own way would leave no context at all.
            parts = (
                self._encode_pair(context, continuation)
                if context.strip()
                else self.after_nothing(context + continuation)
            )
            asked.append(((context, continuation), *parts))
        return self._loglikelihood_tokens(asked)

    def after_nothing(self, continuation: str) -> tuple[list[int], list[int]]:
        """Context and continuation where the text begins with what is scored, after an end-of-text token of its own or ours."""
        tokens, prefix = self.tok_encode(continuation, add_special_tokens=False), self.prefix_token_id
        return (tokens[:1], tokens[1:]) if tokens[:1] == [prefix] else ([prefix], tokens)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        texts = [request.args[0] for request in requests]
        self.encode_ahead(texts)
        pairs, owners = [], []
        for owner, text in enumerate(texts):
            tokens = self.contexts.running(self.tok_encode(text))
            windows = get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, 1)
            for window in windows:
                pairs.append(self.contexts.window(*make_disjoint_window(window)))
                owners.append(owner)
        totals = [0.0] * len(requests)
        for owner, (log_likelihood, _) in zip(owners, self.likelihoods(pairs), strict=True):
            totals[owner] += log_likelihood
        for text, total in zip(texts, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
        return totals

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[Likelihood]:
        pairs = []
        for _, context, continuation in requests:
            kept, target, lost = self.contexts.cut(context, continuation, self.max_length)
            self.truncated += lost > 0
            pairs.append((kept, target))
        return self.likelihoods(pairs, [texts for texts, _, _ in requests])

    def likelihoods(
        self, pairs: Sequence[tuple[Tokens, Tokens]], texts: Sequence[tuple[str, str]] | None = None
    ) -> list[Likelihood]:
        """Of continuations after their contexts, which fit; `texts` are what both stand for."""
        # The choices of a question share its context, which is read once; one-token choices share all their input.
        grouped: dict[Tokens, dict[Tokens, dict[Tokens, list[int]]]] = defaultdict(lambda: defaultdict(dict))
        for number, (context, target) in enumerate(pairs):
            grouped[context][target[:-1]].setdefault(target, []).append(number)
        questions = [
            Question(context, {read: list(targets) for read, targets in of_context.items()})
            for context, of_context in grouped.items()
        ]
        work = list(scoring.in_batches(questions, self.batch_tokens, self.contexts.evenness))
        results: list[Likelihood] = [(0.0, True)] * len(pairs)
        for place, batch in self.ranks.compute(self.perform, work):
            done = 0
            for question, scores in zip(work[place], batch, strict=True):
                for target, score in scores.items():
                    owners = grouped[question.context][target[:-1]][target]
                    done += len(owners)
                    for number in owners:
                        results[number] = score
                        if texts is not None:
                            self.cache_hook.add_partial("loglikelihood", texts[number], score)
            self.on_progress(done)
        return results

    # -- text

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        asked: list[Any] = [request.args for request in requests]
        self.encode_ahead([text for text, _ in asked])
        # Only requests with the same settings can be decoded together.
        by_settings: dict[Settings, dict[Tokens, list[int]]] = defaultdict(lambda: defaultdict(list))
        for number, (text, chosen) in enumerate(asked):
            room = self.contexts.room(int(chosen.get("max_gen_toks", DEFAULT_MAX_GEN_TOKS)), self.max_length)
            by_settings[continuing.settings_of(chosen, room)][self.prompt(text, room)].append(number)
        work: list[Writing] = []
        for settings, owners in by_settings.items():
            prompts: list[Prompt] = continuing.prompts_of(settings, owners, self.seed, self.batch_tokens)
            work += continuing.in_batches(settings, prompts, self.batch_tokens)
        results = [""] * len(requests)
        for _, batch in self.ranks.compute(self.perform, work):
            for owners, texts in batch:
                for number, text in zip(owners, texts, strict=True):
                    results[number] = text
                    self.cache_hook.add_partial("generate_until", asked[number], text)
                self.on_progress(len(owners))
        return results

    def prompt(self, text: str, room: int) -> Tokens:
        """A prompt, cut where it leaves no room for its answer; an empty one is the start of a document."""
        tokens = self.tok_encode(text) or [self.prefix_token_id]
        kept, lost = self.contexts.prompt(tokens, room, self.max_length)
        self.truncated += lost > 0
        return tuple(kept)

    # -- on every rank

    def perform(self, work: list[Question] | Writing) -> Any:
        """One batch of work: log-likelihoods of questions, or continuations of prompts."""
        if isinstance(work, Writing):
            return continuing.continuations(self.model, self.contexts, self.encoding, work)
        return scoring.log_likelihoods(self.contexts, work, self.eot_token_id)

    def serve(self) -> int:
        """On a rank that is not the first: do its share of the work until the first has done; returns its exit status.

        Raises:
            SystemExit: the first rank failed, and has said why.
        """
        if status := self.ranks.serve(self.perform):
            raise SystemExit(status)
        return status


def beginning_of(tokenizer: Tokenizer) -> list[int]:
    """The special tokens that a tokenizer puts before a text, as LLaMA's does: models that were trained so are asked so."""
    own = tokenizers.Tokenizer.from_str(tokenizer.content)
    plain, whole = (own.encode("a", add_special_tokens=special).ids for special in (False, True))
    places = range(len(whole) - len(plain) + 1)
    return next((whole[:place] for place in places if whole[place : place + len(plain)] == plain), [])
