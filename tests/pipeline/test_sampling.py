"""Decoding: equal to a plain loop, the same alone and in a batch, and true to its options."""

import pytest
import torch

from pipeline.generation.sampling import Sampling, choose, generate, warped
from pipeline.generation.stopping import StopStrings
from pipeline.models.base import NO_TOKEN
from pipeline.models.recurrent import LSTMConfig
from pipeline.models.seq2seq_recurrent import RecurrentSeq2SeqConfig
from pipeline.models.seq2seq_transformer import TransformerSeq2SeqConfig
from pipeline.models.transformer import TransformerConfig

NOTHING_SEEN = torch.zeros(1, 0, dtype=torch.long)
SEQ2SEQ = {
    "gru": RecurrentSeq2SeqConfig(vocab_size=40, cell="gru", layers=1, width=32, attention="dot"),
    "transformer": TransformerSeq2SeqConfig(
        vocab_size=40, context=16, encoder_layers=1, decoder_layers=2, width=32, heads=2, positions="learned"
    ),
}


@pytest.fixture(params=["transformer", "lstm"])
def model(request):
    torch.manual_seed(3)
    configs = {
        "transformer": TransformerConfig(vocab_size=40, context=16, layers=2, width=32, heads=2),
        "lstm": LSTMConfig(vocab_size=40, layers=2, width=32),
    }
    return spread_out(configs[request.param].build())


@pytest.fixture(params=SEQ2SEQ)
def translator(request):
    torch.manual_seed(3)
    return spread_out(SEQ2SEQ[request.param].build())


def spread_out(model):
    for parameter in model.parameters():
        parameter.data *= 6  # far from uniform, so that a wrong cache changes the answer
    return model.eval()


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
        generator = torch.Generator().manual_seed(seed)
        return generate(model, [[1, 2]], 30, Sampling(temperature=1.5), generator=generator)[0]

    assert draw(0) == draw(0)
    assert draw(0) != draw(1)


def test_a_prompt_is_read_once_for_its_samples(model):
    prompt, read = [5, 9, 30, 7], []
    handle = model.register_forward_pre_hook(lambda _, arguments: read.append(tuple(arguments[0].shape)))
    drawn = generate(model, [prompt], 5, Sampling(temperature=3.0), samples=3)
    handle.remove()
    assert read == [(1, 4), (3, 1), (3, 1), (3, 1), (3, 1)]
    assert len({tuple(row) for row in drawn}) == 3


def test_samples_of_a_prompt_stand_together_and_continue_it(model):
    prompts = [[5], [5, 9, 30], [1, 2, 3, 4]]
    together = generate(model, prompts, 7, samples=2)
    alone = [greedy(model, prompt, 7) for prompt in prompts]
    assert together == [row for row in alone for _ in range(2)]


def test_each_prompt_may_have_a_limit_of_its_own(model):
    prompts, limits = [[5], [5, 9, 30], [1, 2]], [4, 9, 0]
    assert generate(model, prompts, limits) == [
        greedy(model, prompt, limit) for prompt, limit in zip(prompts, limits, strict=True)
    ]


def test_targets_follow_their_sources_alone_and_in_a_batch(translator):
    sources = [[4, 8, 0], [9, 30, 31, 32, 6, 0], [12, 0]]
    together = generate(translator, [[0]] * 3, 8, sources=sources)
    for source, new in zip(sources, together, strict=True):
        assert generate(translator, [[0]], 8, sources=[source]) == [new]
        tokens = [0]
        with torch.inference_mode():
            while len(tokens) < 9:
                logits_BTV, _ = translator(torch.tensor([tokens]), translator.encode(torch.tensor([source])))
                tokens.append(int(logits_BTV[0, -1].argmax()))
        assert new == tokens[1:]
    assert len({tuple(new) for new in together}) > 1


def test_a_source_is_read_once_for_its_samples(translator, monkeypatch):
    read, encode = [], translator.encode
    monkeypatch.setattr(translator, "encode", lambda source_BS: read.append(source_BS.tolist()) or encode(source_BS))
    generate(translator, [[0]] * 2, 6, Sampling(temperature=1.0), samples=3, sources=[[4, 8, 0], [5, 0]])
    assert read == [[[4, 8, 0], [5, 0, NO_TOKEN]]]


def test_sources_are_asked_of_encoder_decoders_only(model, translator):
    with pytest.raises(ValueError, match="takes no sources"):
        generate(model, [[1]], 2, sources=[[3]])
    with pytest.raises(ValueError, match="the sources are none: .* takes one source for each prompt"):
        generate(translator, [[1]], 2)


def test_draws_follow_the_softmax_at_a_temperature():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]]).expand(20_000, 4)
    generator = torch.Generator().manual_seed(0)
    for temperature in (0.5, 1.0, 2.0):
        drawn = choose(logits, Sampling(temperature=temperature), NOTHING_SEEN, generator)
        frequency = torch.bincount(drawn, minlength=4) / len(drawn)
        torch.testing.assert_close(frequency, (logits[0] / temperature).softmax(-1), atol=0.012, rtol=0)


def test_top_k_and_top_p_keep_the_most_probable_tokens_only():
    probabilities = torch.tensor([0.4, 0.3, 0.2, 0.1])
    logits = probabilities.log().expand(5_000, 4)[:, [3, 1, 0, 2]]  # in another order than their probability
    generator = torch.Generator().manual_seed(0)
    kept = {
        name: set(choose(logits, Sampling(temperature=1.0, **options), NOTHING_SEEN, generator).tolist())
        for name, options in {
            "k": {"top_k": 2}, "p 0.69": {"top_p": 0.69}, "p 0.71": {"top_p": 0.71}, "p tiny": {"top_p": 1e-6},
            "min p 0.49": {"min_p": 0.49}, "min p 0.51": {"min_p": 0.51},
        }.items()
    }  # fmt: skip
    assert kept == {
        "k": {2, 1}, "p 0.69": {2, 1}, "p 0.71": {2, 1, 3}, "p tiny": {2}, "min p 0.49": {2, 1, 3}, "min p 0.51": {2, 1},
    }  # fmt: skip


def test_min_p_counts_probabilities_after_the_temperature():
    logits_BV = torch.tensor([[0.4, 0.1]]).log()
    at = {t: warped(logits_BV, Sampling(temperature=t, min_p=0.3), NOTHING_SEEN).isfinite().sum() for t in (1.0, 2.0)}
    assert at == {1.0: 1, 2.0: 2}  # shares of 1/4 and, flattened by the temperature, 1/2


def test_a_repetition_penalty_shrinks_what_the_row_holds_whatever_its_sign():
    logits_BV = torch.tensor([[2.0, -2.0, 2.0, -2.0], [2.0, -2.0, 2.0, -2.0]])
    penalised_BV = warped(logits_BV, Sampling(repetition_penalty=2.0), torch.tensor([[0, 1, 1], [3, 3, 3]]))
    assert penalised_BV.tolist() == [[1.0, -4.0, 2.0, -2.0], [2.0, -2.0, 2.0, -4.0]]


def test_a_high_repetition_penalty_never_repeats_a_token_of_the_row(model):
    prompt = [5, 9, 30]
    new = generate(model, [prompt], 12, Sampling(repetition_penalty=1e6))[0]
    assert len({*prompt, *new}) == 15
    assert len({*prompt, *greedy(model, prompt, 12)}) < 15


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.7},
        {"temperature": 1.3, "top_k": 7},
        {"temperature": 1.0, "top_p": 0.8},
        {"temperature": 1.5, "min_p": 0.05},
        {"temperature": 1.0, "repetition_penalty": 1.4},
        {"temperature": 0.0, "repetition_penalty": 0.8},
        {"temperature": 0.6, "repetition_penalty": 1.2, "top_k": 20, "top_p": 0.9, "min_p": 0.1},
    ],
    ids=lambda options: "-".join(options),
)
def test_the_options_change_logits_as_in_transformers(options):
    transformers = pytest.importorskip("transformers")
    generator = torch.Generator().manual_seed(0)
    logits_BV = 3 * torch.randn(6, 50, generator=generator)
    seen_BT = torch.randint(50, (6, 9), generator=generator)
    warpers = [
        ("repetition_penalty", transformers.RepetitionPenaltyLogitsProcessor),
        ("temperature", transformers.TemperatureLogitsWarper),
        ("top_k", transformers.TopKLogitsWarper),
        ("top_p", transformers.TopPLogitsWarper),
        ("min_p", transformers.MinPLogitsWarper),
    ]
    expected_BV = logits_BV.clone()
    for name, warper in warpers:
        if options.get(name):
            expected_BV = warper(options[name])(seen_BT, expected_BV)
    torch.testing.assert_close(warped(logits_BV, Sampling(**options), seen_BT), expected_BV)


def test_temperature_0_takes_the_most_probable():
    assert choose(torch.tensor([[0.1, 3.0, 0.2]]), Sampling(), NOTHING_SEEN).tolist() == [1]


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1}, {"temperature": float("nan")}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.5}, {"min_p": 0.0},
        {"min_p": 2.0}, {"repetition_penalty": 0.0},
    ],
    ids=lambda options: "-".join(f"{name} {value}" for name, value in options.items()),
)  # fmt: skip
def test_an_option_outside_its_range_is_refused(options):
    with pytest.raises(ValueError, match="give"):
        Sampling(**options)


def spelled(tokens) -> str:
    """A tokenizer in which the token is the byte."""
    return bytes(tokens).decode(errors="replace")


def test_generation_ends_with_the_token_that_completes_a_stop_string(model):
    [free] = generate(model, [[5, 9, 30]], 12)
    stops = StopStrings([spelled(free[4:7]), "zzz"], spelled)
    [cut] = generate(model, [[5, 9, 30]], 12, stop_when=stops.reached)
    first = spelled(free).index(spelled(free[4:7]))
    assert cut == free[: first + 3]
    assert stops.cut(spelled(cut)) == spelled(free[:first])


@pytest.mark.parametrize("strings", [["é"], ["\n\n", "Q:"], ["aba", "b"], []], ids=repr)
def test_a_stop_string_is_found_at_the_token_that_completes_it(strings):
    text = "A: café\n\nabab Q: why?"
    tokens = list(text.encode())
    stops = StopStrings(strings, spelled)
    reached = [n for n in range(1, len(tokens) + 1) if stops.reached(tokens[:n])]
    ends = {len(text[:i].encode()) for s in strings for i in range(len(text) + 1) if text[:i].endswith(s)}
    assert min(reached, default=None) == min(ends, default=None)
    first = min((text.index(s) for s in strings if s in text), default=len(text))
    assert stops.cut(text) == text[:first]
    # What is shown of each beginning never has to be taken back.
    shown = [stops.settled(text[:i]) for i in range(len(text) + 1)]
    assert all(stops.cut(text).startswith(part) for part in shown)


def test_an_empty_stop_string_is_refused():
    with pytest.raises(ValueError, match="give a text"):
        StopStrings(["\n", ""], spelled)


def test_rows_with_seeds_of_their_own_are_drawn_by_probability():
    torch.manual_seed(0)
    logits_V = torch.randn(12) * 2
    rows, sampling = 20_000, Sampling(temperature=1.5, top_k=8)
    shares_B = torch.stack([torch.rand((), dtype=torch.float64, generator=seeded(i)) for i in range(rows)])
    seen_BT = torch.zeros(rows, 0, dtype=torch.long)
    drawn_B = choose(logits_V.expand(rows, -1), sampling, seen_BT, shares_B=shares_B)
    expected_V = warped(logits_V[None], sampling, NOTHING_SEEN).softmax(-1)[0]
    counts_V = torch.bincount(drawn_B, minlength=12)
    assert (counts_V[expected_V == 0] == 0).all()
    assert (counts_V / rows - expected_V).abs().max() < 4 * (0.25 / rows) ** 0.5


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_row_with_its_own_seed_is_the_same_whatever_stands_beside_it(model):
    prompts, sampling = [[1, 2, 3, 4, 5], [6], [7, 8]], Sampling(temperature=1.0)
    together = generate(model, prompts, 6, sampling, samples=2, seeds=range(6))
    for number, prompt in enumerate(prompts):
        for sample in range(2):
            row = 2 * number + sample
            assert generate(model, [prompt], 6, sampling, seeds=[row]) == [together[row]]
