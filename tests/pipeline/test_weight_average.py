"""The moving average of the weights beside the formula written out, and over saving and loading."""

import pytest
import torch
from torch import Tensor, nn

from pipeline.averaging import AVERAGE, AveragedWeights, share_of_step
from pipeline.state_files import WEIGHTS, FolderWriter, Piece, StateFolder

HALF_LIFE = 1000


class Pieces:
    """A model's weights as a strategy would have them: whole, or the second half of each flattened tensor; and Adam's moments."""

    def __init__(self, model: nn.Module, *, cut: bool):
        self.model, self.cut = model, cut

    def local_state(self):
        for name, parameter in self.model.named_parameters():
            start = parameter.numel() // 2 if self.cut else 0
            for kind in (WEIGHTS, "exp_avg"):
                yield Piece(kind, name, tuple(parameter.shape), start, parameter.data.view(-1)[start:])


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 3))


def move(model: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))


def values(average: AveragedWeights) -> list[Tensor]:
    return [piece.values.clone() for piece in average.pieces()]


@pytest.mark.parametrize("cut", [False, True], ids=["whole", "partitioned"])
def test_the_average_is_the_formula_of_a_plain_loop(cut):
    trained = model()
    pieces = Pieces(trained, cut=cut)
    average, plain = AveragedWeights(pieces.local_state), {}
    for step in range(20):
        move(trained, step)
        share = share_of_step(100 * step, 100 * (step + 1), HALF_LIFE)
        average.update(share)
        for name, parameter in trained.named_parameters():
            now = parameter.detach().double()
            plain[name] = now if step == 0 else (1 - share) * plain[name] + share * now
    for piece in average.pieces():
        assert piece.kind == AVERAGE
        expected = plain[piece.name].flatten()[piece.start :]
        assert piece.values.dtype == torch.float32
        assert torch.allclose(piece.values.double(), expected, rtol=1e-5, atol=1e-6)


def test_in_the_beginning_it_is_the_plain_mean_over_the_tokens_without_the_first_weights():
    seen, ends = [], [100, 150, 400]
    mean, before = 0.0, 0
    for value, after in zip((3.0, 5.0, 11.0), ends, strict=True):
        share = share_of_step(before, after, half_life=10**6)
        mean += share * (value - mean)
        seen.append(value * (after - before))
        before = after
    assert mean == pytest.approx(sum(seen) / ends[-1])


def test_later_half_is_forgotten_in_a_half_life_whatever_the_batch():
    for batch in (1, 10, 250):
        left = 1.0
        for start in range(10**6, 10**6 + HALF_LIFE, batch):
            left *= 1 - share_of_step(start, start + batch, HALF_LIFE)
        assert left == pytest.approx(0.5)


def test_an_average_saved_and_loaded_goes_on_bit_for_bit(tmp_path):
    trained = model()
    average = AveragedWeights(Pieces(trained, cut=True).local_state)
    for step in range(4):
        move(trained, step)
        average.update(0.3)
    writer = FolderWriter(tmp_path / "step", 0, 1)
    writer.begin()
    writer.write(average.pieces(), {}, {"strategy": "none"})

    loaded = AveragedWeights(Pieces(trained, cut=True).local_state)
    source = StateFolder(tmp_path / "step")
    for piece in loaded.pieces():
        piece.write(source.read(piece.kind, piece.name, piece.start, piece.stop))
    for step in range(4, 8):
        move(trained, step)
        average.update(0.3)
        loaded.update(0.3)
    assert all(torch.equal(a, b) for a, b in zip(values(average), values(loaded), strict=True))


def test_an_average_that_begins_in_the_middle_of_a_run_begins_with_the_weights():
    trained = model()
    average = AveragedWeights(Pieces(trained, cut=False).local_state)
    average.update(share_of_step(10**6, 10**6 + 100, HALF_LIFE))
    assert all(torch.equal(a, p.flatten()) for a, p in zip(values(average), trained.parameters(), strict=True))
