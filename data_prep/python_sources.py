"""The corpus that every machine already has: documentation and source code of the running Python and its packages.

Modules are read as files and parsed with `ast`, never imported. Tests are left out.
"""

import hashlib
import importlib.metadata
import importlib.util
import io
import multiprocessing
import os
import platform
import signal
import sysconfig
import tokenize
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.docstrings import documentation
from data_prep.files import InputError, fingerprint
from data_prep.sources import Documents, Source, listing

STANDARD_LIBRARY = "python"
NOT_DOCUMENTED = {"test", "tests", "testing", "idle_test", "site-packages", "dist-packages", "__pycache__"}
MODULES_PER_TASK = 16


@dataclass(frozen=True)
class Package:
    """A package as found in the running interpreter."""

    name: str
    version: str
    root: Path
    """Folder whose files are top-level modules: the standard library's, or the parent of the package's own."""
    folder: Path

    @classmethod
    def find(cls, name: str) -> "Package":
        if name == STANDARD_LIBRARY:
            folder = Path(sysconfig.get_path("stdlib"))
            return cls(name, platform.python_version(), folder, folder)
        spec = importlib.util.find_spec(name) if name.isidentifier() else None
        if spec is None or not spec.submodule_search_locations:
            raise InputError(f"Package {name!r} is not installed here: install it or leave it out of `packages`.")
        folder = Path(next(iter(spec.submodule_search_locations)))
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            version = "unknown"
        return cls(name, version, folder.parent, folder)

    def modules(self) -> list[tuple[str, Path]]:
        """Names and files of all modules outside of tests, sorted by name."""
        found = []
        for folder, folders, files in os.walk(self.folder):
            folders[:] = [name for name in folders if name not in NOT_DOCUMENTED]
            for file in files:
                if file.endswith(".py"):
                    path = Path(folder, file)
                    parts = path.relative_to(self.root).with_suffix("").parts
                    name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
                    if not (parts[-1].startswith("test_") or name.startswith("config-")):
                        found.append((name, path))
        return sorted(found)


@dataclass(frozen=True)
class Module:
    """What a worker brings back from one file; `entries` is None where the file is not valid Python."""

    name: str
    sha256: str
    bytes: int
    entries: list[tuple[str, str]] | None


@dataclass(frozen=True)
class PythonSource(Source):
    """The source code of the standard library, one document a module."""

    packages: tuple[str, ...] = (STANDARD_LIBRARY,)
    """Packages to read; "python" is the standard library."""

    def inputs(self) -> Any:
        packages = [Package.find(name) for name in self.packages]
        if not packages:
            raise InputError("`packages` is empty: name at least one package.")
        return {
            package.name: [package.version, fingerprint([listing(path) for _, path in package.modules()])]
            for package in packages
        }

    def documents(self, workers: int, origin: dict[str, Any]) -> Documents:
        for module in self._modules(read_source, workers, origin):
            for _, text in module.entries or ():
                yield module.name, text

    def _modules(
        self, reader: Callable[[tuple[str, Path]], Module], workers: int, origin: dict[str, Any]
    ) -> Iterator[Module]:
        """Read all modules in worker processes, in order, and tell in `origin` what was read of each package."""
        origin["packages"] = []
        quiet = (signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent to answer.
        # Spawned, not forked: the parent has threads of Arrow and of the tokenizers, which do not survive a fork.
        with multiprocessing.get_context("spawn").Pool(workers, signal.signal, quiet) as pool:
            for package in map(Package.find, self.packages):
                digests, size, skipped = [], 0, 0
                for module in pool.imap(reader, package.modules(), chunksize=MODULES_PER_TASK):
                    digests.append([module.name, module.sha256])
                    size += module.bytes
                    skipped += module.entries is None
                    yield module
                facts = {"files": len(digests), "bytes": size, "skipped": skipped, "sha256": fingerprint(digests)}
                origin["packages"].append({"name": package.name, "version": package.version, **facts})


@dataclass(frozen=True)
class PythonDocs(PythonSource):
    """The documentation inside the standard library and packages: one document a module or a topic of `help()`."""

    packages: tuple[str, ...] = (STANDARD_LIBRARY, "torch", "numpy", "sympy", "networkx")
    """Packages to read; "python" is the standard library."""

    def documents(self, workers: int, origin: dict[str, Any]) -> Documents:
        seen: set[bytes] = set()
        origin["duplicate_docstrings"] = 0
        for module in self._modules(read_documentation, workers, origin):
            entries = []
            for heading, text in module.entries or ():
                digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
                if digest in seen:
                    origin["duplicate_docstrings"] += 1
                else:
                    seen.add(digest)
                    entries.append((heading, text))
            if module.name == "pydoc_data.topics":
                yield from ((f"{module.name}.{heading}", text) for heading, text in entries)
            elif entries:
                yield module.name, "\n\n".join(f"{heading}\n\n{text}" for heading, text in entries) + "\n"


def read_module(module: tuple[str, Path], entries_of: Callable[[str, str], list[tuple[str, str]]]) -> Module:
    name, path = module
    content = path.read_bytes()
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
        text = io.TextIOWrapper(io.BytesIO(content), encoding).read()
        entries = entries_of(name, text)
    except (SyntaxError, ValueError, RecursionError):
        entries = None
    return Module(name, hashlib.sha256(content).hexdigest(), len(content), entries)


def read_source(module: tuple[str, Path]) -> Module:
    return read_module(module, lambda name, text: [("", text)])


def read_documentation(module: tuple[str, Path]) -> Module:
    return read_module(module, documentation)
