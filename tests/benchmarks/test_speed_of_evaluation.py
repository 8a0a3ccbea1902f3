"""How fast our adapter scores few-shot multiple choice beside the harness's own HFLM, on the same weights and the same budget of tokens.

Both sides are measured by turns in one process; the figure is the ratio of their medians. Run it on an idle machine: `make bench`.
"""

import statistics
import time
from pydoc_data.topics import topics
from random import Random

import pytest
from evaluation.conftest import spread_out
from evaluation.twins import as_fast, as_gpt2, hflm
from lm_eval.api.instance import Instance

from data_prep.process_memory import keep_freed_memory
from data_prep.tokenizer import Tokenizer
from pipeline.evaluation.harness import PipelineLM
from pipeline.models.transformer import TransformerConfig

pytestmark = pytest.mark.benchmark

CONTEXT, BATCH_TOKENS, VOCABULARY = 512, 4096, 4096
SHOTS, CHOICES = 5, 4
SIZES = {"2x256": (2, 256, 4, 12, 5), "6x384": (6, 384, 6, 12, 5), "12x768": (12, 768, 12, 6, 3)}
"""Layers, width, heads; questions a round, rounds."""


def questions(count: int) -> list[tuple[str, str]]:
    """Five solved questions of about fifty words, one unsolved, and four answers of several words to each."""
    random, words = Random(0), " ".join(topics.values()).split()

    def some(least: int, most: int) -> str:
        return " ".join(random.choices(words, k=random.randint(least, most)))

    asked = []
    for _ in range(count):
        shown = "".join(f"Question: {some(20, 26)}\nAnswer: {some(3, 5)}\n\n" for _ in range(SHOTS))
        context = f"{shown}Question: {some(20, 26)}\nAnswer:"
        asked += [(context, f" {some(3, 5)}") for _ in range(CHOICES)]
    return asked


@pytest.mark.parametrize("size", SIZES)
def test_few_shot_choices_are_scored_at_least_twice_as_fast_as_by_hflm(size, capsys):
    keep_freed_memory()
    layers, width, heads, count, rounds = SIZES[size]
    tokenizer = Tokenizer.train(list(topics.values()), VOCABULARY)
    config = TransformerConfig(vocab_size=VOCABULARY, context=CONTEXT, layers=layers, width=width, heads=heads)
    gpt = spread_out(config.build())
    pairs = questions(count)
    longest = max(len(tokenizer.encode(context + choice)) for context, choice in pairs)
    assert 300 < longest < CONTEXT
    theirs = hflm(as_gpt2(gpt), as_fast(tokenizer), max_length=CONTEXT, batch_size=BATCH_TOKENS // longest)
    asked = [
        Instance("loglikelihood", doc={}, arguments=pair, idx=0, metadata=("t", i, 1)) for i, pair in enumerate(pairs)
    ]

    def ours() -> list:
        # A fresh one: what it remembers of texts is part of the work.
        return PipelineLM(gpt, tokenizer, batch_tokens=BATCH_TOKENS).loglikelihood(asked)

    def hugging() -> list:
        return theirs.loglikelihood(asked, disable_tqdm=True)

    seconds = {ours: [], hugging: []}
    for turn in range(rounds + 1):
        found = {}
        for side in (ours, hugging):
            began = time.perf_counter()
            found[side] = side()
            if turn:  # The first warms up.
                seconds[side].append(time.perf_counter() - began)
        assert [score for score, _ in found[ours]] == pytest.approx([score for score, _ in found[hugging]], abs=1e-2)
    mine, other = (statistics.median(seconds[side]) for side in (ours, hugging))
    with capsys.disabled():
        print(
            f"\n{size}, {len(pairs)} requests of up to {longest} tokens: {len(pairs) / mine:.1f} a second, HFLM {len(pairs) / other:.1f}: "
            f"{other / mine:.2f} times as fast"
        )
    assert other >= 2 * mine
