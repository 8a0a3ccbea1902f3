"""The adapter gives the harness what the model says: checked by hand, and against the harness's own HFLM."""

import math

import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance

from pipeline.evaluation.harness import PipelineLM

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
    handle = model.register_forward_pre_hook(lambda _, arguments: read.append(arguments[0].numel()))
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


def test_scores_and_answers_equal_the_harness_hflm_on_the_same_weights(gpt, tokenizer):
    transformers = pytest.importorskip("transformers", reason="HFLM needs transformers, which is not installed")
    huggingface = pytest.importorskip("lm_eval.models.huggingface", reason="HFLM needs accelerate")
    import tokenizers

    reference = huggingface.HFLM(
        pretrained=as_gpt2(transformers, gpt),
        tokenizer=transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizers.Tokenizer.from_str(tokenizer.content), eos_token="<|endoftext|>"
        ),
        batch_size=4,
        max_length=gpt.context,
        device="cpu",
    )
    ours = PipelineLM(gpt, tokenizer)
    long = ("Return the number of items. " * 20, "The end")
    asked = requests("loglikelihood", *CASES, long)
    for (a, a_greedy), (b, b_greedy) in zip(ours.loglikelihood(asked), reference.loglikelihood(asked), strict=True):
        assert a == pytest.approx(b, abs=1e-4)
        assert a_greedy == b_greedy
    texts = requests("loglikelihood_rolling", ("Return",), (long[0],))
    assert ours.loglikelihood_rolling(texts) == pytest.approx(reference.loglikelihood_rolling(texts), abs=1e-3)
    settings = {"until": ["\n", "e"], "max_gen_toks": 8}
    prompts = requests("generate_until", *[(context, settings) for context, _ in [*CASES[:5], long]])
    assert ours.generate_until(prompts) == reference.generate_until(prompts)


def as_gpt2(transformers, gpt):
    """The same weights in transformers' GPT-2, whose linear layers are stored transposed."""
    config = gpt.config
    twin = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=config.vocab_size, n_positions=config.context, n_embd=config.width, n_layer=config.layers,
            n_head=config.heads, bos_token_id=0, eos_token_id=0,
        )
    )  # fmt: skip
    body = twin.transformer
    pairs = [
        (body.wte, gpt.token_embedding),
        (body.wpe, gpt.position_embedding),
        (body.ln_f, gpt.norm),
    ]
    for theirs, ours in zip(body.h, gpt.blocks, strict=True):
        pairs += [(theirs.ln_1, ours.attention_norm), (theirs.ln_2, ours.mlp_norm)]
        pairs += [(theirs.attn.c_attn, ours.attention.query_key_value), (theirs.attn.c_proj, ours.attention.output)]
        pairs += [(theirs.mlp.c_fc, ours.mlp.expand), (theirs.mlp.c_proj, ours.mlp.output)]
    with torch.no_grad():
        for theirs, ours in pairs:
            transposed = theirs.weight.shape != ours.weight.shape or type(theirs).__name__ == "Conv1D"
            theirs.weight.copy_(ours.weight.T if transposed else ours.weight)
            if getattr(ours, "bias", None) is not None:
                theirs.bias.copy_(ours.bias)
    return twin.eval()
