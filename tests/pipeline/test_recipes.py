"""What stands around a model: optimizers, schedules, scheduled sampling, carried state."""

import pytest
import torch

from pipeline.carried_state import CarriedState
from pipeline.models.recurrent import LSTMConfig
from pipeline.models.seq2seq_recurrent import RecurrentSeq2SeqConfig
from pipeline.optim import SGD
from pipeline.schedule import (
    ConstantSchedule,
    CosineSchedule,
    InverseSquareRootSchedule,
    LinearSchedule,
    StepSchedule,
    WSDSchedule,
)
from pipeline.scheduled_sampling import mix_inputs


def test_the_rate_of_zaremba_is_halved_at_the_start_of_each_epoch_after_the_fourth():
    schedule, per_epoch = StepSchedule(periods=13, hold=4, factor=0.5), 2323
    total = 13 * per_epoch * 400
    rates = [schedule.multiplier((step + 1) * 400, total) for step in range(13 * per_epoch)]
    # As his code has it: lr_decay ** max(epoch + 1 - max_epoch, 0), epochs counted from 0, max_epoch 4.
    assert rates == [0.5 ** max(step // per_epoch + 1 - 4, 0) for step in range(13 * per_epoch)]


@pytest.mark.parametrize(
    ("schedule", "points"),
    [
        (ConstantSchedule(warmup_tokens=100), {50: 0.5, 100: 1, 1000: 1}),
        (InverseSquareRootSchedule(warmup_tokens=100), {25: 0.25, 100: 1, 400: 0.5, 10_000: 0.1}),
        (LinearSchedule(warmup_tokens=100, final_fraction=0.2), {50: 0.5, 100: 1, 550: 0.6, 1000: 0.2, 2000: 0.2}),
        (WSDSchedule(final_fraction=0, cooldown_fraction=0.25), {1: 1, 750: 1, 875: 0.5, 1000: 0}),
        (
            WSDSchedule(warmup_tokens=200, decay_tokens=600, cooldown_fraction=0.5),
            {100: 0.5, 400: 1, 500: 0.55, 600: 0.1},
        ),
        (CosineSchedule(warmup_tokens=100, decay_tokens=500), {50: 0.5, 300: 0.55, 500: 0.1, 900: 0.1}),
    ],
)
def test_a_schedule_goes_through_the_points_of_its_definition(schedule, points):
    assert {tokens: schedule.multiplier(tokens, 1000) for tokens in points} == pytest.approx(points)


def test_the_inverse_square_root_is_vaswanis():
    # Equation 3: d^-0.5 min(s^-0.5, s w^-1.5), for the base model at steps of 25,000 target tokens.
    width, warmup, batch = 512, 4000, 25_000
    peak, schedule = (width * warmup) ** -0.5, InverseSquareRootSchedule(warmup_tokens=warmup * batch)
    for step in (1, 2000, 4000, 4001, 100_000):
        rate = peak * schedule.multiplier(step * batch, 10**12)
        assert rate == pytest.approx(width**-0.5 * min(step**-0.5, step * warmup**-1.5))


@pytest.mark.parametrize(
    ("schedule", "settings", "words"),
    [
        (ConstantSchedule, {"warmup_tokens": -1}, "warmup_tokens is -1"),
        (InverseSquareRootSchedule, {}, "warmup_tokens is 0"),
        (LinearSchedule, {"final_fraction": 1.5}, "final_fraction is 1.5"),
        (CosineSchedule, {"warmup_tokens": 10, "decay_tokens": 5}, "decay_tokens is 5"),
        (WSDSchedule, {"cooldown_fraction": 0.0}, "cooldown_fraction is 0"),
    ],
)
def test_an_impossible_schedule_is_refused_with_the_value(schedule, settings, words):
    with pytest.raises(ValueError, match=words):
        schedule(**settings)


def test_a_clipped_step_on_the_mean_equals_zarembas_on_the_sum():
    # He divides the loss by 20 rows, clips at 5 and has a rate of 1; we divide by 20 x 20 tokens, clip at 0.25, rate 20.
    for scale in (0.01, 100.0):
        gradient = scale * torch.randn(50, generator=torch.Generator().manual_seed(0))
        steps = []
        for divisor, clip, rate in ((20, 5.0, 1.0), (400, 0.25, 20.0)):
            weight = torch.nn.Parameter(torch.zeros(50))
            weight.grad = gradient / divisor
            torch.nn.utils.clip_grad_norm_([weight], clip)
            SGD(learning_rate=rate).build(torch.nn.ParameterList([weight])).step()
            steps.append(weight.detach())
        torch.testing.assert_close(steps[0], steps[1])


@pytest.mark.parametrize("settings", [{"hold": 0}, {"hold": 14}, {"factor": 0.0}, {"factor": 1.5}])
def test_an_impossible_step_schedule_is_refused(settings):
    with pytest.raises(ValueError, match="must lie"):
        StepSchedule(**{"periods": 13, "hold": 4} | settings)


@pytest.fixture
def translator():
    torch.manual_seed(0)
    model = RecurrentSeq2SeqConfig(vocab_size=30, layers=1, width=16, cell="gru", attention="dot").build().eval()
    for parameter in model.parameters():
        parameter.data *= 8  # sure of its words, so that draws are far from uniform
    return model


def test_scheduled_sampling_replaces_the_share_that_was_asked_for_and_never_the_first(translator):
    tokens, source = torch.full((200, 12), 29), torch.randint(1, 29, (200, 6))
    assert torch.equal(mix_inputs(translator, tokens, source, 0.0), tokens)
    torch.manual_seed(1)
    mixed = mix_inputs(translator, tokens, source, 0.25)
    assert (mixed[:, 0] == 29).all()
    drawn_29 = mix_inputs(translator, tokens, source, 0.999)[:, 1:].eq(29).float().mean().item()
    assert (mixed[:, 1:] != 29).float().mean().item() == pytest.approx(0.25 * (1 - drawn_29), abs=0.03)


def test_a_sampled_input_is_drawn_from_what_the_model_says_after_the_mixed_inputs_before_it(translator):
    torch.manual_seed(2)
    tokens, source = torch.randint(0, 30, (1, 8)).expand(4000, 8), torch.randint(1, 30, (1, 5)).expand(4000, 5)
    mixed = mix_inputs(translator, tokens, source, 0.999)
    logits, _ = translator(mixed, translator.encode(source))
    for t in (0, 3, 6):
        # Rows that share their first inputs share the distribution of the next one: take the most frequent beginning.
        beginnings, counts = mixed[:, : t + 1].unique(dim=0, return_counts=True)
        rows = (mixed[:, : t + 1] == beginnings[counts.argmax()]).all(1)
        expected = logits[rows][0, t].softmax(-1)
        frequency = torch.bincount(mixed[rows, t + 1], minlength=30) / rows.sum()
        assert (frequency - expected).abs().max() < 4 / rows.sum().sqrt()


def test_carried_rows_come_back_whatever_rank_held_them():
    model = LSTMConfig(vocab_size=10, layers=2, width=4).build()
    whole = tuple(torch.randn(2, 6, 4) for _ in range(2))
    ranks = [CarriedState(model, 6) for _ in range(2)]
    for rank, rows in ((0, torch.tensor([0, 1, 4])), (1, torch.tensor([2, 3, 5]))):
        ranks[rank].write(rows, tuple(part[:, rows] for part in whole))

    of_the_other = iter(ranks[1].gather(lambda part: part))
    saved = ranks[0].gather(lambda part: part + next(of_the_other))
    fresh = CarriedState(model, 6)
    fresh.load(saved)
    for part, expected in zip(fresh.read(torch.arange(6)), whole, strict=True):
        assert torch.equal(part, expected)
