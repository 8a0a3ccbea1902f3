"""Files are whole or absent."""

import errno
import json

import pytest

from data_prep.files import InputError, atomic_path, fingerprint, read_json, write_bytes, write_json


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    write_bytes(tmp_path / "x", b"old")
    with pytest.raises(OSError, match="No space"), atomic_path(tmp_path / "x") as temporary:
        temporary.write_bytes(b"half of the n")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_bytes() == b"old"


def test_fingerprint_does_not_depend_on_the_order_of_keys():
    assert fingerprint({"a": 1, "b": [2, "é"]}) == fingerprint(json.loads('{"b": [2, "é"], "a": 1}'))
    assert fingerprint({"a": 1}) != fingerprint({"a": "1"})


def test_broken_json_is_an_input_error_that_names_the_file(tmp_path):
    write_json(tmp_path / "good.json", {"a": "ü"})
    assert read_json(tmp_path / "good.json") == {"a": "ü"}
    (tmp_path / "bad.json").write_text('{"a": ')
    with pytest.raises(InputError, match="bad.json is not valid JSON"):
        read_json(tmp_path / "bad.json")
