"""The measurement of Gopher's filters beside datatrove's."""

import sys

import numpy as np
import pyarrow as pa

from data_prep.bench.gopher import measure, sample

TEXTS = pa.array(
    ["It was the age of wisdom and of a good book that people have with them. " * 3, "short", "", "a\n\na\n\na"]
)


def test_without_datatrove_only_our_own_time_is_given(monkeypatch):
    monkeypatch.setitem(sys.modules, "spacy", None)
    found = measure(TEXTS, ["a", "a", "b", "c"], repeats=1)
    assert found["peer"] is None
    assert found["documents"] == 4
    assert found["bytes"] == sum(len(text) for text in TEXTS.to_pylist())
    assert found["seconds"] > 0


def test_decisions_and_times_stand_beside_those_of_a_peer(monkeypatch):
    reasons = {"short": "gopher_short_doc", "": "empty", TEXTS[0].as_py(): "another reason"}
    monkeypatch.setattr("data_prep.bench.gopher.datatrove_filters", lambda: reasons.get)
    peer = measure(TEXTS, ["a", "a", "b", "c"], repeats=1)["peer"]
    assert peer["reasons"] == 0.5
    assert peer["decisions"] == 0.75
    assert peer["ratio"] > 0
    assert not peer["sampled"]


def test_a_sample_has_the_bytes_asked_for_and_each_document_once():
    lengths = np.full(1000, 10)
    drawn = sample(lengths, 3000)
    assert len(drawn) == len(np.unique(drawn)) == 300
    assert 400 < drawn.mean() < 600
    assert len(sample(lengths, 10**9)) == 1000
