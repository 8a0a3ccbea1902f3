"""Finished tasks of a run's evaluation, so that one that was stopped goes on and a second one is at once.

What a score depends on is its key: the weights, the task's configuration and questions, the harness's version, and how it was asked. An
answer under another key is never taken.
"""

import json
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.api.task import Task

from data_prep.files import InputError, fingerprint, read_json, sha256_file, write_json
from pipeline.checkpoint import LoadedRun, open_state
from pipeline.state_files import StateFolder

VERSION = 1
"""Of how we ask and mark: a change of it makes every score anew."""


class ResultsCache:
    """The folder `evaluation/cache` of a run.

    Attributes:
        taken: number of scores that were found there.
    """

    def __init__(self, folder: Path, weights: str, fresh: bool = False):
        """`weights` names the weights, as `weights_of` does; `fresh` finds nothing and replaces what is there."""
        self.folder, self.weights, self.fresh, self.taken = folder, weights, fresh, 0
        self._tasks: dict[int, str] = {}

    def key(self, task: Task, **asked: Any) -> str:
        """The name of a score by all that it depends on; `asked` is how the task is asked, in JSON's types."""
        if id(task) not in self._tasks:
            self._tasks[id(task)] = fingerprint_of(task)
        known = [VERSION, lm_eval.__version__, self.weights, self._tasks[id(task)], asked]
        return fingerprint(known)[:16]

    def get(self, name: str, key: str) -> dict[str, Any] | None:
        """A finished task's output, or None; a damaged file counts as none."""
        path = self.path(name, key)
        if self.fresh or not path.is_file():
            return None
        try:
            output = read_json(path)
        except InputError:
            return None
        self.taken += 1
        return output

    def put(self, name: str, key: str, output: dict[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.path(name, key), output)

    def path(self, name: str, key: str) -> Path:
        return self.folder / f"{name.replace('/', '_')}-{key}.json"


def weights_of(run: LoadedRun, averaged: bool) -> str:
    """A name for the weights of a loaded run, from the hashes that its checkpoint keeps."""
    state = open_state(run.checkpoint)
    files = state.manifest["files"] if isinstance(state, StateFolder) else sha256_file(run.checkpoint)
    return fingerprint([files, averaged, run.tokenizer.fingerprint])


def fingerprint_of(task: Task) -> str:
    """A name for a task by its configuration and by every question and example that it has."""
    config = {key: value for key, value in task.dump_config().items() if key != "num_fewshot"}
    sampler = getattr(task, "sampler", None)
    # The documents whole: a file on disk, or on a hub, may change under one name.
    documents = [list(task.eval_docs), list(sampler.df) if sampler is not None else []]
    # Functions without a source have a name at least; their text would hold an address.
    known = json.dumps([config, documents], sort_keys=True, default=lambda obj: getattr(obj, "__qualname__", str(obj)))
    return fingerprint(json.loads(known))
