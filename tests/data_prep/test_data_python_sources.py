"""The documentation that is read from source files is the documentation that Python itself shows."""

import importlib
import inspect
import sys

import pytest

from data_prep.docstrings import documentation
from data_prep.files import InputError
from data_prep.python_sources import PythonDocs, PythonSource

EXAMPLE = '''
"""About this module."""

import torch

common = parse_kwargs("""
    input (Tensor): the input.
    out (Tensor): the output.
""")
notes = {"note": "Read with care."}

def reads(path: str, /, *names: str, sep: str = ", ", **options: int) -> list[str]:
    """Read names.

    Example::
        Indented more.
    """
    def inner():
        """Not documentation of this module."""

def _private():
    """Left out."""

def bare(x): return x

if True:
    class Reader(list):
        """Reads."""
        def __init__(self, path: str = "x"):
            """Open it."""
        @property
        def size(self):
            """Its size."""
        @staticmethod
        def of(path):
            """One for a path."""

add_docstr(torch.abs, r"""
abs(input, *, out=None) -> Tensor

Absolute value. {note}

Args:
    {input}
    {out}
""".format(**merge_dicts(common, notes)))
add_docstr(torch._C._linalg.linalg_cross, "Cross " + "product.")
conv = _add_docstr(torch.conv, "conv(x) -> Tensor\\nA convolution.")
add_docstr_all("view", "view(*shape) -> Tensor\\nAnother shape.")
add_newdoc("numpy._core", "ndarray", ("T", "The transpose."))
'''

EXPECTED = {
    "m": "About this module.",
    "m.reads(path, /, *names, sep=', ', **options)": "Read names.\n\nExample::\n    Indented more.",
    "class m.Reader(path='x')": "Reads.",
    "m.Reader.__init__(path='x')": "Open it.",
    "m.Reader.size": "Its size.",
    "m.Reader.of(path)": "One for a path.",
    "torch.abs(input, *, out=None) -> Tensor": (
        "Absolute value. Read with care.\n\nArgs:\n    input (Tensor): the input.\n    out (Tensor): the output."
    ),
    "torch.linalg_cross": "Cross product.",
    "m.conv(x) -> Tensor": "A convolution.",
    "torch.Tensor.view(*shape) -> Tensor": "Another shape.",
    "numpy._core.ndarray.T": "The transpose.",
}


def test_a_module_becomes_headings_and_cleaned_docstrings():
    assert dict(documentation("m", EXAMPLE)) == EXPECTED


@pytest.mark.parametrize("module", ["json.decoder", "textwrap", "shlex"])
def test_docstrings_equal_those_that_inspect_finds_by_importing(module):
    source = inspect.getsource(importlib.import_module(module))
    found = {heading.partition("(")[0]: text for heading, text in documentation(module, source)}
    members = inspect.getmembers(
        sys.modules[module], lambda member: inspect.isfunction(member) or inspect.isclass(member)
    )
    checked = 0
    for name, member in members:
        if member.__module__ == module and not name.startswith("_") and member.__doc__:
            heading = f"{'class ' if inspect.isclass(member) else ''}{module}.{name}"
            assert " ".join(found[heading].split()) == " ".join((inspect.getdoc(member) or "").split())
            checked += 1
    assert checked > 0


def test_docs_are_the_same_for_any_number_of_workers_and_name_what_they_read():
    origins: list[dict] = [{}, {}]
    one, two = (list(PythonDocs(packages=("networkx",)).documents(n, origins[n - 1])) for n in (1, 2))
    assert one == two
    assert origins[0] == origins[1]
    (package,) = origins[0]["packages"]
    import networkx

    assert (package["name"], package["version"]) == ("networkx", networkx.__version__)
    assert package["files"] > len(one) > 50
    assert not [id for id, _ in one if ".tests" in id]
    assert "networkx.algorithms.dag" in dict(one)


def test_no_docstring_appears_twice(tmp_path, monkeypatch):
    package = tmp_path / "twice"
    package.mkdir()
    for name in ("__init__", "a", "b", "broken"):
        (package / f"{name}.py").write_text(f'"""Module {name}."""\ndef f():\n    """Said before."""\n')
    (package / "broken.py").write_text("def f(:\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    origin: dict = {}
    found = dict(PythonDocs(packages=("twice",)).documents(1, origin))
    assert sorted(found) == ["twice", "twice.a", "twice.b"]
    assert sum(text.count("Said before.") for text in found.values()) == 1
    assert origin["duplicate_docstrings"] == 2
    assert origin["packages"][0]["skipped"] == 1


def test_a_changed_file_of_a_package_is_noticed_without_reading(tmp_path, monkeypatch):
    (tmp_path / "noticed").mkdir()
    file = tmp_path / "noticed" / "__init__.py"
    file.write_text('"""One."""')
    monkeypatch.syspath_prepend(str(tmp_path))
    source = PythonDocs(packages=("noticed",))
    before = source.inputs()
    assert source.inputs() == before
    file.write_text('"""Two!"""\n')
    assert source.inputs() != before


def test_python_source_is_the_standard_library_without_tests():
    origin: dict = {}
    found = dict(PythonSource().documents(1, origin))
    assert found["json.decoder"] == inspect.getsource(importlib.import_module("json.decoder"))
    assert not [id for id in found if {"test", "tests", "idle_test"} & set(id.split("."))]
    assert 8e6 < sum(map(len, found.values())) < 20e6


def test_a_package_that_is_not_installed_is_an_input_error():
    with pytest.raises(InputError, match="'no_such_package' is not installed"):
        PythonDocs(packages=("no_such_package",)).inputs()
