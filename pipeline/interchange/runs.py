"""A run directory for a model that was trained elsewhere: what `fit` would have left of it, as far as it is known."""

import importlib.metadata
import os
import platform
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from data_prep.files import fingerprint, sha256_file, write_json
from data_prep.tokenizer import Tokenizer
from pipeline.checkpoint import RECORD_KEY, describe_model
from pipeline.interchange.architectures import Architecture
from pipeline.interchange.weights import files_of
from pipeline.models.transformer import Transformer
from pipeline.state_files import write_file


def describe_source(folder: Path, architecture: Architecture) -> dict[str, Any]:
    """Where a model is from: the folder, its architecture and a checksum of each file that makes it."""
    files = {path.name: sha256_file(path) for path in (folder / "config.json", *files_of(folder))}
    return {
        "folder": str(folder.resolve()),
        "architecture": architecture.name,
        "files": files,
        "fingerprint": fingerprint(files),
    }


def save_run(folder: Path, name: str, model: Transformer, tokenizer: Tokenizer, source: dict[str, Any]) -> None:
    """Write checkpoints, tokenizer and run.json into a folder that is empty.

    Args:
        name: the run's, which the folder does not have yet.
        source: from `describe_source`; it stands where a run of ours names its corpus.
    """
    identity = {"fingerprint": source["fingerprint"], "tokenizer": tokenizer.fingerprint, "context": model.context}
    description = describe_model(model.config)
    checkpoint = {
        "state_dict": {f"model.{key}": value for key, value in model.state_dict().items()},
        RECORD_KEY: {"format": 1, "model": description, "data": identity, "step": 0, "tokens_seen": 0},
    }
    last = folder / "checkpoints" / "last.ckpt"
    write_file(last, checkpoint)
    best = last.with_name("best.ckpt")
    try:
        os.link(last, best)
    except OSError:
        shutil.copyfile(last, best)  # a file system without hard links
    tokenizer.save(folder / "tokenizer.json")
    origin = {"name": Path(source["folder"]).name, "kind": source["architecture"], "fingerprint": source["fingerprint"]}
    record = {
        "format": 1,
        "name": name,
        "family": model.config.family,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": description,
        "parameters": model.parameter_counts(),
        "flops_per_token": model.flops_per_token(model.context),
        "data": {"path": source["folder"], **identity, "vocab_size": tokenizer.vocab_size, "sources": [origin]},
        "imported": source,
        "total_tokens": 0,
        "environment": {"python": platform.python_version(), "torch": torch.__version__},
        "code": {"version": importlib.metadata.version("pretraining-pipeline")},
    }
    write_json(folder / "run.json", record)
