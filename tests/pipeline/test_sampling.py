"""Decoding: equal to a plain loop, the same alone and in a batch, and true to its options."""

import pytest
import torch

from pipeline.generation.sampling import choose, generate
from pipeline.models.recurrent import LSTMConfig
from pipeline.models.transformer import TransformerConfig


@pytest.fixture(params=["transformer", "lstm"])
def model(request):
    torch.manual_seed(3)
    configs = {
        "transformer": TransformerConfig(vocab_size=40, context=16, layers=2, width=32, heads=2),
        "lstm": LSTMConfig(vocab_size=40, layers=2, width=32),
    }
    model = configs[request.param].build().eval()
    for parameter in model.parameters():
        parameter.data *= 6  # far from uniform, so that a wrong cache changes the answer
    return model


@torch.inference_mode()
def greedy(model, prompt: list[int], count: int) -> list[int]:
    """Without any cache; where the context is full, its last part is read again, as `generate` promises."""
    tokens, start = list(prompt), 0
    for left in range(count, 0, -1):
        if model.context and len(tokens) - start > model.context:
            start = len(tokens) - model.context + min(left, model.context // 2)
        tokens.append(int(model(torch.tensor([tokens[start:]]))[0][0, -1].argmax()))
    return tokens[len(prompt) :]


def test_generation_equals_a_loop_without_a_cache_beyond_the_context_too(model):
    prompt = [5, 9, 30]
    assert generate(model, [prompt], 40)[0] == greedy(model, prompt, 40)


def test_a_prompt_longer_than_the_context_is_cut_from_the_left(model):
    prompt = [k % 40 for k in range(21)]
    kept = prompt[-15:] if model.context else prompt
    assert generate(model, [prompt], 1)[0] == greedy(model, kept, 1)


def test_prompts_of_different_lengths_in_one_batch_continue_as_alone(model):
    prompts = [[5], [5, 9, 30], [1, 2, 3, 4, 5, 6], [7, 7]]
    together = generate(model, prompts, 8)
    assert together == [generate(model, [prompt], 8)[0] for prompt in prompts]


def test_a_stop_token_ends_its_row_alone(model):
    prompts = [[5, 9, 30], [1, 2, 3]]
    free = generate(model, prompts, 10)
    stop = free[0][3]
    first = generate(model, prompts, 10, stop=frozenset([stop]))
    assert first[0] == free[0][: free[0].index(stop) + 1]
    cut = free[1].index(stop) + 1 if stop in free[1] else 10
    assert first[1] == free[1][:cut]


def test_the_same_seed_draws_the_same_tokens(model):
    def draw(seed: int) -> list[int]:
        return generate(model, [[1, 2]], 30, temperature=1.5, generator=torch.Generator().manual_seed(seed))[0]

    assert draw(0) == draw(0)
    assert draw(0) != draw(1)


def test_draws_follow_the_softmax_at_a_temperature():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]]).expand(20_000, 4)
    generator = torch.Generator().manual_seed(0)
    for temperature in (0.5, 1.0, 2.0):
        drawn = choose(logits, temperature=temperature, generator=generator)
        frequency = torch.bincount(drawn, minlength=4) / len(drawn)
        torch.testing.assert_close(frequency, (logits[0] / temperature).softmax(-1), atol=0.012, rtol=0)


def test_top_k_and_top_p_keep_the_most_probable_tokens_only():
    probabilities = torch.tensor([0.4, 0.3, 0.2, 0.1])
    logits = probabilities.log().expand(5_000, 4)[:, [3, 1, 0, 2]]  # in another order than their probability
    generator = torch.Generator().manual_seed(0)
    kept = {
        "k": set(choose(logits, top_k=2, generator=generator).tolist()),
        "p 0.69": set(choose(logits, top_p=0.69, generator=generator).tolist()),
        "p 0.71": set(choose(logits, top_p=0.71, generator=generator).tolist()),
        "p tiny": set(choose(logits, top_p=1e-6, generator=generator).tolist()),
    }
    assert kept == {"k": {2, 1}, "p 0.69": {2, 1}, "p 0.71": {2, 1, 3}, "p tiny": {2}}


def test_temperature_0_takes_the_most_probable():
    assert choose(torch.tensor([[0.1, 3.0, 0.2]]), temperature=0).tolist() == [1]


@pytest.mark.parametrize("options", [{"temperature": -1}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.5}])
def test_an_option_outside_its_range_is_refused(model, options):
    with pytest.raises(ValueError, match="give"):
        generate(model, [[1]], 1, **options)
