"""Growing batches and changing contexts: every closed form equals counting step by step, for any number of ranks."""

import numpy as np
import pytest
import torch
from counting_tokens import Counting

from pipeline.batch import MixedWindows, Windows
from pipeline.batch_schedule import BatchRamp, BatchSchedule
from pipeline.loader import TrainingLoader
from pipeline.mixture import Mixture

RAMP = BatchRamp(start_tokens=128, over_tokens=5000, multiple_tokens=128)
CONTEXTS = {0: 8, 3000: 32, 7000: 16}
SCHEDULES = {
    "constant": BatchSchedule(512, 32),
    "ramp": BatchSchedule(512, 32, ramp=RAMP),
    "contexts": BatchSchedule(512, 32, contexts=CONTEXTS),
    "both": BatchSchedule(512, 32, ramp=RAMP, contexts=CONTEXTS),
    "short ramp": BatchSchedule(512, 32, ramp=BatchRamp(start_tokens=128, over_tokens=140)),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_position_tokens_and_step_equal_counting_step_by_step(name):
    schedule = SCHEDULES[name]
    position = tokens = 0
    for step in range(60):
        assert (schedule.position_at(step), schedule.tokens_at(step)) == (position, tokens)
        # The rules as the options state them, without segments.
        batch, context = 512, 32
        if schedule.ramp and tokens < schedule.ramp.over_tokens:
            grown = (512 - schedule.ramp.start_tokens) * tokens / schedule.ramp.over_tokens
            batch = schedule.ramp.start_tokens + int(grown / schedule.unit) * schedule.unit
        if schedule.contexts == CONTEXTS:
            context = 8 if tokens < 3000 else 32 if tokens < 7000 else 16
        assert schedule.sequences_at(step) == batch // context
        for sample in (position, position + batch // context - 1):
            assert schedule.step_of(sample) == step
        position, tokens = position + batch // context, tokens + batch
    assert tokens > 8000


def test_gpt3s_ramp_is_found_without_counting():
    # 32k to 3.2M tokens over the first 4 billion (Brown et al. 2020, table 2.1 and appendix B), at the 10^9th step.
    schedule = BatchSchedule(3_276_800, 2048, ramp=BatchRamp(start_tokens=32_768, over_tokens=4 * 10**9))
    assert len(schedule.segments) == 100
    step = schedule.segments[-1].step
    assert 4 * 10**9 <= schedule.tokens_at(step) < 4 * 10**9 + 3_276_800
    assert schedule.tokens_at(10**9) == schedule.tokens_at(step) + (10**9 - step) * 3_276_800
    assert schedule.step_of(schedule.position_at(10**9)) == 10**9
    sizes = [segment.batch_tokens for segment in schedule.segments]
    assert sizes == [32_768 * level for level in range(1, 101)]


def samples(schedule: BatchSchedule) -> MixedWindows:
    return MixedWindows([(Counting(32 * 400 + 1), "corpus")], Mixture([1]), 0, schedule)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("ranks", "micro_batch"), [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_ranks_only_divide_batches_that_grow_and_change(name, ranks, micro_batch):
    schedule = SCHEDULES[name]
    loaders = [
        TrainingLoader(samples(schedule), steps=40, micro_batch=micro_batch, rank=rank, ranks=ranks)
        for rank in range(ranks)
    ]
    seen: list[list[list]] = []
    for loader in loaders:
        steps: list[list] = [[]]
        for batch in loader:
            assert batch.tokens_BT.numel() == 32 * micro_batch
            steps[-1].append(batch)
            if batch.ends_step:
                steps.append([])
        assert steps.pop() == []
        assert len(steps) == 40
        assert sum(map(len, steps)) == len(loader)
        seen.append(steps)
    for step in range(40):
        parts = [batch for steps in seen for batch in steps[step]]
        positions = torch.cat([batch.samples_B for batch in parts]).tolist()
        assert sorted(positions) == list(range(schedule.position_at(step), schedule.position_at(step + 1)))
        assert {batch.valid_tokens for batch in parts} == {sum(batch.targets_BT.numel() for batch in parts)}


def test_a_ramped_run_goes_on_at_its_position_with_other_ranks():
    schedule = SCHEDULES["both"]
    whole = [b.samples_B for b in TrainingLoader(samples(schedule), steps=40, micro_batch=1, rank=0, ranks=1)]
    rest = []
    for rank in range(2):
        loader = TrainingLoader(samples(schedule), steps=40, micro_batch=1, rank=rank, ranks=2)
        loader.load_state_dict({"consumed": schedule.position_at(17)})
        rest += [b.samples_B for b in loader]
    expected = torch.cat(whole).tolist()[schedule.position_at(17) :]
    assert sorted(torch.cat(rest).tolist()) == expected


def test_a_ramp_does_not_change_the_order_of_samples():
    plain = Windows(Counting(32 * 400 + 1), "corpus", 0, context=32, sequences=16)
    ramped = samples(SCHEDULES["ramp"])
    for position in (0, 1, 100, 399, 400, 1234):
        one, other = plain.batch(np.array([position])), ramped.batch(np.array([position]))
        assert torch.equal(one.tokens_BT, other.tokens_BT)


def test_each_context_reads_windows_of_its_own_without_replacement():
    schedule = BatchSchedule(512, 32, contexts={0: 8, 512 * 30: 32})
    ours = samples(schedule)
    first = [ours.batch(np.array([k])).tokens_BT for k in range(schedule.position_at(25))]
    assert sorted(int(tokens[0, 0]) for tokens in first) == list(range(0, 32 * 400, 8))
    start = schedule.position_at(30)
    second = [ours.batch(np.array([k])).tokens_BT for k in range(start, start + 400)]
    assert sorted(int(tokens[0, 0]) for tokens in second) == list(range(0, 32 * 400, 32))


def test_a_changed_schedule_keeps_what_is_behind_it():
    before = SCHEDULES["ramp"]
    after = BatchSchedule(256, 32, **before.history(20))
    for step in range(21):
        assert (after.position_at(step), after.tokens_at(step)) == (before.position_at(step), before.tokens_at(step))
    assert after.tokens_at(25) == before.tokens_at(20) + 5 * 256
    again = BatchSchedule(1024, 32, **after.history(30))
    assert again.tokens_at(31) - again.tokens_at(30) == 1024
    assert [again.tokens_at(s) for s in range(31)] == [after.tokens_at(s) for s in range(31)]
    assert BatchSchedule(1024, 32, **again.history()).segments == again.segments


def test_ranks_need_to_share_only_the_batches_that_are_still_to_come():
    schedule = SCHEDULES["ramp"]
    for step in (0, 5, 20, 59):
        sizes = [schedule.tokens_at(s + 1) - schedule.tokens_at(s) for s in range(step, 60)]
        assert schedule.divisor(step) == np.gcd.reduce(sizes)
    assert (schedule.divisor(0), schedule.divisor(59)) == (128, 512)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ramp": BatchRamp(start_tokens=1024, over_tokens=9999)}, "more than the data.batch_tokens 512"),
        ({"ramp": BatchRamp(start_tokens=48, over_tokens=9999)}, "steps of 16 with sequences of 32"),
        ({"ramp": BatchRamp(start_tokens=64, over_tokens=9999, multiple_tokens=96)}, "steps of 96"),
        ({"ramp": BatchRamp(start_tokens=64, over_tokens=63)}, "over_tokens 63 is less"),
        ({"contexts": {100: 32}}, "must begin at 0 tokens"),
        ({"contexts": {0: 8, 100: 16}}, "must be the longest in it"),
        ({"contexts": {0: 24, 100: 32}}, "does not divide data.context 32"),
    ],
)
def test_sizes_that_do_not_go_into_each_other_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        BatchSchedule(512, 32, **options)
