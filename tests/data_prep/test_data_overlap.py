"""Reading ahead and writing behind: the same items and calls in the same order, and errors where they belong."""

import threading
import time

import pytest

from data_prep.overlap import Behind, ahead


def test_items_come_in_order_and_no_more_are_made_than_asked_for():
    made = []

    def items():
        for number in range(10):
            made.append(number)
            yield number

    taken = ahead(items(), 2)
    assert [next(taken), next(taken)] == [0, 1]
    time.sleep(0.3)
    assert len(made) <= 5
    assert list(taken) == [*range(2, 10)]


def test_an_error_comes_where_its_item_would_have():
    def items():
        yield 1
        raise ValueError("third")

    taken = ahead(items())
    assert next(taken) == 1
    with pytest.raises(ValueError, match="third"):
        next(taken)


def test_who_stops_taking_leaves_no_thread():
    before = threading.active_count()
    taken = ahead(iter(range(1000)))
    next(taken)
    taken.close()
    assert threading.active_count() == before


def test_calls_are_made_one_after_another_before_the_end():
    done = []
    with Behind() as behind:
        for number in range(20):
            behind.do(lambda number=number: (time.sleep(0.002), done.append(number)))
    assert done == [*range(20)]


def test_an_error_of_a_call_is_not_lost():
    def fails():
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"), Behind() as behind:
        behind.do(fails)
    done = []
    with pytest.raises(OSError, match="disk full"), Behind() as behind:
        for number in range(10):
            behind.do(fails if number == 2 else lambda: done.append(1))
            time.sleep(0.01)
    assert len(done) <= 5
