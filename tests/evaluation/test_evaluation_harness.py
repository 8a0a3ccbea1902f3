"""The adapter gives the harness what the model says: checked by hand, and against the harness's own HFLM."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from evaluation.conftest import CONTEXT, spread_out
from lm_eval.api.instance import Instance

from pipeline.evaluation.harness import PipelineLM
from pipeline.models.base import LanguageModel
from pipeline.models.transformer import TransformerConfig

CASES = [
    ("Return the number of", " items in the list"),
    ("Return the number of ", "items"),
    ("Return the number of", " lines"),
    ("class", "es are objects"),
    ("The value", "."),
    ("", "An expression statement"),
]


def requests(kind: str, *arguments: tuple) -> list[Instance]:
    return [Instance(kind, doc={}, arguments=a, idx=0, metadata=("test", i, 1)) for i, a in enumerate(arguments)]


def by_hand(model, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    """The sum of log(exp(logit) / sum of exp(logits)) over the continuation, one forward a token, without a batch."""
    total, greedy = 0.0, True
    for i, target in enumerate(continuation):
        logits, _ = model(torch.tensor([context + continuation[:i]]))
        logits = logits[0, -1].double().detach().numpy()
        total += logits[target] - math.log(np.exp(logits).sum())
        greedy = greedy and int(logits.argmax()) == target
    return total, greedy


def test_log_likelihoods_equal_a_hand_computation(model, tokenizer):
    scored = PipelineLM(model, tokenizer).loglikelihood(requests("loglikelihood", *CASES))
    for (context, continuation), (log_likelihood, greedy) in zip(CASES, scored, strict=True):
        whole, prefix = tokenizer.encode(context + continuation), tokenizer.encode(context.rstrip())
        expected = by_hand(model, prefix or [tokenizer.end_of_text], whole[len(prefix) :])
        assert log_likelihood == pytest.approx(expected[0], abs=1e-4)
        assert greedy == expected[1]


def test_the_greedy_continuation_is_recognised(model, tokenizer):
    [text] = PipelineLM(model, tokenizer).generate_until(
        requests("generate_until", ("Return the", {"until": [], "max_gen_toks": 3}))
    )
    lm = PipelineLM(model, tokenizer)
    tokens = tokenizer.encode("Return the" + text)[len(tokenizer.encode("Return the")) :]
    [(_, greedy), (_, other)] = lm.loglikelihood(
        requests("loglikelihood", ("Return the", text), ("Return the", text + " zebra"))
    )
    assert greedy == by_hand(model, tokenizer.encode("Return the"), tokens)[1]
    assert not other


def test_batching_changes_no_score_and_no_order(model, tokenizer):
    many = CASES * 3
    alone = PipelineLM(model, tokenizer, batch_tokens=1).loglikelihood(requests("loglikelihood", *many))
    batched = PipelineLM(model, tokenizer, batch_tokens=4096).loglikelihood(requests("loglikelihood", *many))
    assert [score for score, _ in batched] == pytest.approx([score for score, _ in alone], abs=1e-4)
    assert [greedy for _, greedy in batched] == [greedy for _, greedy in alone]


def test_choices_that_share_a_context_score_as_if_alone(model, tokenizer):
    questions = ["Return the number", "The value of an expression that", "If"]
    choices = [" of items", " of", ".", " that was given first"]
    asked = [(question, choice) for question in questions for choice in choices][:-2]
    together = PipelineLM(model, tokenizer).loglikelihood(requests("loglikelihood", *asked))
    alone = [PipelineLM(model, tokenizer).loglikelihood(requests("loglikelihood", pair))[0] for pair in asked]
    assert [score for score, _ in together] == pytest.approx([score for score, _ in alone], abs=1e-4)
    assert [greedy for _, greedy in together] == [greedy for _, greedy in alone]


def test_a_context_is_read_once_for_all_its_choices(model, tokenizer):
    read = []
    handle = model.token_embedding.register_forward_pre_hook(lambda _, arguments: read.append(arguments[0].numel()))
    context, choices = tuple(range(10, 30)), [[5, 6], [7, 8], [9, 10], [11, 12]]
    PipelineLM(model, tokenizer)._loglikelihood_tokens([(("", ""), list(context), choice) for choice in choices])
    handle.remove()
    # All of the context but its last token, and then that token and a choice's first, for each choice.
    assert read == [19, 2, 2, 2, 2]


def test_a_request_longer_than_the_context_loses_its_beginning_and_is_counted(gpt, tokenizer):
    context, continuation = "Return the number of items. " * 20, "The end"
    lm = PipelineLM(gpt, tokenizer)
    [(long, _), _] = lm.loglikelihood(requests("loglikelihood", (context, continuation), ("short", " one")))
    whole = tokenizer.encode(context + continuation)
    answer = len(whole) - len(tokenizer.encode(context.rstrip()))
    kept = whole[-(gpt.context + 1) :]
    assert long == pytest.approx(by_hand(gpt, kept[:-answer], kept[-answer:])[0], abs=1e-4)
    assert lm.truncated == 1


def test_rolling_windows_score_every_token_once(gpt, tokenizer):
    text = "A context manager is an object that defines the runtime context. " * 4
    tokens = tokenizer.encode(text)
    assert len(tokens) > 2 * gpt.context
    [total] = PipelineLM(gpt, tokenizer).loglikelihood_rolling(requests("loglikelihood_rolling", (text,)))
    # The first window starts from end-of-text; a later one ends with its predictions and repeats tokens on its left.
    expected = by_hand(gpt, [tokenizer.end_of_text], tokens[: gpt.context])[0]
    for start in range(gpt.context, len(tokens), gpt.context):
        end = min(start + gpt.context, len(tokens))
        expected += by_hand(gpt, tokens[end - gpt.context - 1 : start], tokens[start:end])[0]
    assert total == pytest.approx(expected, abs=1e-3)


def test_the_likelihood_of_nothing_is_one(gpt, tokenizer):
    lm = PipelineLM(gpt, tokenizer)
    assert lm.loglikelihood_rolling(requests("loglikelihood_rolling", ("",))) == [0.0]
    assert lm.loglikelihood(requests("loglikelihood", ("Return", ""))) == [(0.0, True)]


def test_greedy_generation_equals_repeated_full_forwards(model, tokenizer):
    prompts = ["Return the number", "", "If the", "A longer prompt than the others, of"]
    written = PipelineLM(model, tokenizer).generate_until(
        requests("generate_until", *[(prompt, {"until": [], "max_gen_toks": 6}) for prompt in prompts])
    )
    for prompt, text in zip(prompts, written, strict=True):
        tokens, new = tokenizer.encode(prompt) or [tokenizer.end_of_text], []
        while len(new) < 6 and tokenizer.end_of_text not in new:
            new.append(int(model(torch.tensor([tokens + new]))[0][0, -1].argmax()))
        assert text == tokenizer.decode(t for t in new if t != tokenizer.end_of_text)


def test_generation_ends_before_the_first_stop_string(gpt, tokenizer):
    settings = {"until": [], "max_gen_toks": 8}
    [whole] = PipelineLM(gpt, tokenizer).generate_until(requests("generate_until", ("Return", settings)))
    stop = whole[3:5]
    [cut] = PipelineLM(gpt, tokenizer).generate_until(
        requests("generate_until", ("Return", {**settings, "until": [stop]}))
    )
    assert cut == whole[: whole.index(stop)]


def test_sampled_generation_repeats_with_its_seed(gpt, tokenizer):
    settings = {"until": [], "max_gen_toks": 8, "do_sample": True, "temperature": 1.0}

    def sample(seed: int) -> list[str]:
        return PipelineLM(gpt, tokenizer, seed=seed).generate_until(requests("generate_until", ("Return", settings)))

    assert sample(1) == sample(1) != sample(2)


def test_a_prompt_leaves_room_for_its_answer(gpt, tokenizer):
    lm = PipelineLM(gpt, tokenizer)
    for longest in (8, 1000):
        lm.generate_until(requests("generate_until", ("Return the number of items. " * 20, {"max_gen_toks": longest})))
    assert lm.truncated == 2


@pytest.fixture(params=["gpt", "lstm", "documents"])
def reader(request, tokenizer) -> LanguageModel:
    """Both families, and a model that looks at no other document."""
    if request.param != "documents":
        return request.getfixturevalue(request.param)
    config = TransformerConfig(vocab_size=tokenizer.vocab_size, context=CONTEXT, layers=2, width=32, heads=4)
    return spread_out(dataclasses.replace(config, document_end=tokenizer.end_of_text).build())


@pytest.mark.parametrize("choices", [1, 3])
def test_what_all_contexts_of_a_batch_begin_with_is_read_once_and_changes_no_score(choices, reader, tokenizer):
    shown = [7, 3, tokenizer.end_of_text, *range(20, 40)]
    contexts = [[*shown, *own] for own in ([50], [51, 52, 53], [50, 54])]
    asked = [(("", ""), context, [60 + i, *range(70, 70 + i)][: 1 + i]) for context in contexts for i in range(choices)]
    alone = [PipelineLM(reader, tokenizer)._loglikelihood_tokens([each])[0] for each in asked]
    read = []
    handle = reader.token_embedding.register_forward_pre_hook(lambda _, inputs: read.append(tuple(inputs[0].shape)))
    together = PipelineLM(reader, tokenizer)._loglikelihood_tokens(asked)
    handle.remove()
    assert [score for score, _ in together] == pytest.approx([score for score, _ in alone], abs=1e-4)
    assert [greedy for _, greedy in together] == [greedy for _, greedy in alone]
    assert read[0] == (1, len(shown))
    assert all(rows > 1 and length < 8 for rows, length in read[1:])


def test_a_sampled_answer_is_the_same_in_any_batch_and_in_any_company(model, tokenizer):
    settings = {"until": [], "max_gen_toks": 6, "do_sample": True, "temperature": 1.0, "top_k": 50}
    prompts = ["Return the number", "If", "A longer prompt than the others, of", "If", "If"]
    asked = requests("generate_until", *[(prompt, settings) for prompt in prompts])

    def answers(order: list[int], batch_tokens: int) -> dict[int, str]:
        lm = PipelineLM(model, tokenizer, batch_tokens=batch_tokens)
        return dict(zip(order, lm.generate_until([asked[i] for i in order]), strict=True))

    whole = answers([0, 1, 2, 3, 4], 4096)
    assert answers([0, 1, 2, 3, 4], 1) == answers([0, 1, 2, 3, 4], 50) == whole
    assert answers([2, 1], 4096) == {2: whole[2], 1: whole[1]}
    assert len({whole[1], whole[3], whole[4]}) == 3, "each repetition is a draw of its own"


def test_the_same_prompt_is_continued_once_where_nothing_is_drawn(gpt, tokenizer):
    settings = {"until": [], "max_gen_toks": 4}
    lm, batches = PipelineLM(gpt, tokenizer), []
    perform = lm.perform
    lm.perform = lambda work: batches.append(len(work.prompts)) or perform(work)
    texts = lm.generate_until(requests("generate_until", *[("Return", settings)] * 5, ("If", settings)))
    assert batches == [2]
    assert len({*texts[:5]}) == 1
    assert texts[5] != texts[0]
