"""The split is a function of the id."""

import pytest

from data_prep.files import InputError
from data_prep.split import SplitConfig


def test_shares_are_kept():
    config = SplitConfig(validation=0.1, test=0.2)
    places = [config.of(f"document {number}") for number in range(20_000)]
    assert places.count("validation") == pytest.approx(2000, abs=150)
    assert places.count("test") == pytest.approx(4000, abs=200)


def test_raising_one_share_only_moves_documents_out_of_train():
    ids = [f"module.{number}" for number in range(5000)]
    small, large = SplitConfig(validation=0.02, test=0.02), SplitConfig(validation=0.10, test=0.02)
    moved = {(small.of(id), large.of(id)) for id in ids if small.of(id) != large.of(id)}
    assert moved == {("train", "validation")}


def test_the_places_of_known_ids_never_change():
    # By sha256sum, the last two start with 00 and ff.
    config = SplitConfig(validation=0.02, test=0.02)
    assert [config.of(id) for id in ("json.decoder", "id 29", "id 53")] == ["train", "validation", "test"]


@pytest.mark.parametrize("shares", [(-0.1, 0.1), (0.5, 0.5)])
def test_shares_that_leave_no_train_are_an_input_error(shares):
    with pytest.raises(InputError, match="leave a rest for train"):
        SplitConfig(*shares)
