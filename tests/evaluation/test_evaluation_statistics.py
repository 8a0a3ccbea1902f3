"""What is said beside a score agrees with textbook formulas, with scipy, and with brute force."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from data_prep.files import InputError
from pipeline.evaluation import statistics


def test_marks_with_one_chance_get_the_exact_binomial_test():
    # Two-sided: all outcomes that are no more probable than 9 of 10 right answers at chance 1/4.
    probability = [math.comb(10, k) * 0.25**k * 0.75 ** (10 - k) for k in range(11)]
    expected = sum(p for p in probability if p <= probability[9] * (1 + 1e-9))
    assert statistics.p_of_chance([1] * 9 + [0], [0.25] * 10) == pytest.approx(expected)
    assert statistics.p_of_chance([1, 0, 0, 0], [0.25] * 4) == pytest.approx(1.0)


def test_questions_with_chances_of_their_own_are_compared_with_the_sum():
    values, chances = [1.0] * 60 + [0.0] * 40, [0.5] * 50 + [0.25] * 50
    z = (60 - 37.5) / math.sqrt(50 * 0.25 + 50 * 0.1875)
    assert statistics.p_of_chance(values, chances) == pytest.approx(2 * stats.norm.sf(z))


def test_marks_between_0_and_1_get_a_t_test():
    values = [0.2, 0.4, 0.9, 0.5, 0.3]
    expected = stats.ttest_1samp(values, 0.1).pvalue
    assert statistics.p_of_chance(values, [0.1] * 5) == pytest.approx(expected)


def test_one_question_says_nothing_of_chance():
    assert statistics.p_of_chance([1.0], [0.5]) is None
    assert statistics.p_of_chance([0.3, 0.3], [0.1, 0.1]) is None


def test_nothing_right_where_chance_is_nothing_is_no_surprise():
    assert statistics.p_of_chance([0, 0, 0], [0.0] * 3) == 1.0
    assert statistics.p_of_chance([0, 1, 0], [0.0] * 3) == 0.0


def test_the_standard_error_of_a_mean_is_the_harnesses():
    from lm_eval.api.metrics import mean_stderr

    values = [1, 0, 0, 1, 1, 0, 1]
    assert statistics.mean_stderr(values) == pytest.approx(mean_stderr(values))
    assert statistics.mean_stderr([1]) is None


def test_a_bootstrapped_error_of_a_mean_is_near_its_formula():
    values = list(np.random.default_rng(0).random(200))
    error = statistics.bootstrap_stderr(values, lambda drawn: sum(drawn) / len(drawn), draws=2000)
    assert error == pytest.approx(statistics.mean_stderr(values), rel=0.1)


def test_a_paired_bootstrap_agrees_with_all_resamples_by_brute_force():
    ours, theirs = [1, 1, 0, 1, 1], [0, 1, 0, 0, 1]
    gaps = [a - b for a, b in zip(ours, theirs, strict=True)]
    every = [sum(gaps[i] for i in rows) / 5 for rows in itertools.product(range(5), repeat=5)]
    found = statistics.paired_bootstrap(ours, theirs)
    assert found.difference == pytest.approx(0.4)
    assert (found.low, found.high) == (
        pytest.approx(np.quantile(every, 0.025)),
        pytest.approx(np.quantile(every, 0.975)),
    )
    assert found.p == pytest.approx(2 * np.mean(np.array(every) <= 0), abs=0.02)


def test_a_pairing_sees_what_two_separate_errors_hide():
    generator = np.random.default_rng(1)
    difficulty = generator.random(400)
    theirs = (difficulty > 0.5).astype(float)
    ours = (difficulty > 0.45).astype(float)
    found = statistics.paired_bootstrap(ours.tolist(), theirs.tolist())
    apart = math.hypot(statistics.mean_stderr(ours), statistics.mean_stderr(theirs))
    assert found.p < 0.01
    assert found.difference < 2 * apart


def test_scores_of_whole_sets_are_resampled_as_wholes():
    pairs = [(["a b c d e"], "a b c d e"), (["f g h i"], "f g x i")] * 4
    worse = [(references, "z") for references, _ in pairs]

    def hits(items):
        return sum(text in references for references, text in items) / len(items)

    found = statistics.paired_bootstrap(pairs, worse, hits)
    assert found.difference == 0.5
    assert 0 < found.low < 0.5 < found.high


def test_equal_runs_do_not_differ():
    found = statistics.paired_bootstrap([1, 0, 1], [1, 0, 1])
    assert (found.difference, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_runs_on_different_questions_are_not_paired():
    with pytest.raises(InputError, match="evaluate both runs on the same ones"):
        statistics.paired_bootstrap([1, 0], [1])
