"""The gradient noise scale on gradients whose signal and noise are known, and in training beside every gradient written out."""

import pytest
import torch
from torch import Tensor

from pipeline.noise_scale import NoiseScale, signal_and_noise

DIMENSIONS, SMALL, BIG = 50, 8, 64


def mean_gradients(steps: int, *, signal: float, noise: float) -> tuple[Tensor, Tensor]:
    """Squared norms of the mean gradients of the first 8 and of all 64 samples, whose squared norm and total variance are given."""
    generator = torch.Generator().manual_seed(0)
    true = torch.full((DIMENSIONS,), (signal / DIMENSIONS) ** 0.5, dtype=torch.float64)
    spread = torch.linspace(0.1, 1.9, DIMENSIONS, dtype=torch.float64)
    spread *= (noise / (spread**2).sum()) ** 0.5
    samples = true + spread * torch.randn(steps, BIG, DIMENSIONS, generator=generator, dtype=torch.float64)
    return tuple(samples[:, :size].mean(1).square().sum(-1) for size in (SMALL, BIG))  # pyright: ignore


@pytest.mark.parametrize(("signal", "noise"), [(1.0, 40.0), (0.5, 100.0), (3.0, 3.0)])
def test_the_estimates_of_signal_and_noise_are_unbiased(signal, noise):
    small, big = mean_gradients(2000, signal=signal, noise=noise)
    for estimates, true in zip(signal_and_noise(small, SMALL, big, BIG), (signal, noise), strict=True):
        standard_error = float(estimates.std()) / len(estimates) ** 0.5
        assert abs(float(estimates.mean()) - true) < 3 * standard_error
        assert standard_error < 0.1 * true


def test_the_smoothed_ratio_is_the_noise_scale():
    scale = NoiseScale(memory=1000)
    for small, big in zip(*mean_gradients(2000, signal=1.0, noise=40.0), strict=True):
        scale.update(small, SMALL, big, BIG)
    assert scale.averages is not None
    assert scale.ratio(scale.averages) == pytest.approx(40.0, rel=0.05)


def test_a_step_that_overflowed_is_passed_over():
    scale = NoiseScale(memory=2)
    scale.update(torch.tensor(6.0), SMALL, torch.tensor(2.0), BIG)
    assert scale.averages is not None
    before = scale.averages.clone()
    scale.update(torch.tensor(torch.inf), SMALL, torch.tensor(torch.nan), BIG)
    assert torch.equal(scale.averages, before)


def test_there_is_no_scale_where_noise_hides_the_gradient():
    assert NoiseScale.ratio(torch.tensor([-1.0, 5.0])) is None
    assert NoiseScale.ratio(torch.tensor([2.0, 5.0])) == 2.5
