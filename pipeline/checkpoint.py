"""What a checkpoint holds beside the weights, which one may be continued, and how to load a model without a Trainer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data_prep.files import InputError, read_json
from data_prep.tokenizer import Tokenizer
from pipeline.models.base import LanguageModel, ModelConfig
from pipeline.state_files import AVERAGE, WEIGHTS, StateFile, StateFolder

RECORD_KEY = "pipeline"
"""Key of a checkpoint under which the run's own record lies: model, data identity, step, tokens seen."""

SCALARS = "optimizer_scalars"
"""Key of a checkpoint under which the optimizer's numbers (its step counts) stand by parameter and name."""

NAMES = ("best", "last")


def describe_model(config: ModelConfig) -> dict[str, Any]:
    """The configuration as plain values, from which `build_config` makes the same again; one inside another is described alike."""
    values = {field.name: getattr(config, field.name) for field in fields(config)}
    return {
        "class_path": f"{type(config).__module__}.{type(config).__qualname__}",
        "init_args": {k: describe_model(v) if isinstance(v, ModelConfig) else v for k, v in values.items()},
    }


def build_config(description: dict[str, Any]) -> ModelConfig:
    module, _, name = description["class_path"].rpartition(".")
    values = description["init_args"].items()
    nested = {k: build_config(v) if isinstance(v, dict) and "class_path" in v else v for k, v in values}
    return getattr(import_module(module), name)(**nested)


def build_model(description: dict[str, Any]) -> LanguageModel:
    return build_config(description).build()


def refuse_other_run(
    record: dict[str, Any] | None, *, model: dict, data: dict, training: bool, allowed: Sequence[str] = ()
) -> None:
    """Raise InputError, saying what differs, if this checkpoint cannot be continued (or scored) with these settings.

    Args:
        allowed: what of the data may differ.
    """
    if record is None:
        raise InputError("The checkpoint was not written by this project: it has no record of its model and data")
    # Another corpus may be scored with the same tokenizer; training goes on only over the very same order of samples.
    compared = data if training else {"tokenizer": data["tokenizer"]}
    differences = [
        f"{name} was {record['data'].get(name)}, is {value}"
        for name, value in compared.items()
        if record["data"].get(name) != value and name not in allowed
    ]
    saved, now = record["model"]["init_args"], model["init_args"]
    if record["model"]["class_path"] != model["class_path"]:
        differences.append(f"the model was {record['model']['class_path']}, is {model['class_path']}")
    else:
        differences += [f"{k} was {saved.get(k)}, is {v}" for k, v in now.items() if saved.get(k) != v]
    if differences:
        raise InputError(
            f"The checkpoint belongs to another run ({'; '.join(differences)}): "
            "restore those settings, allow what may change with --data.allow_changes, "
            "or start anew with another --trainer.default_root_dir"
        )


def find_checkpoint(run: str | Path, name: str = "best") -> Path:
    """A checkpoint, a folder or a consolidated file: `best` or `last` of a run directory, or a path.

    Raises:
        InputError: there is none.
    """
    folder = Path(run) / "checkpoints"
    path = folder / f"{name}.ckpt" if name in NAMES else Path(name)
    if path.is_file() or path.is_dir():
        return path
    if name not in NAMES:
        raise InputError(f"There is no checkpoint {name}: give best, last or the path of one")
    if not Path(run).is_dir():
        raise InputError(f"There is no run directory {run}: train one with `python -m pipeline fit`")
    there = ", ".join(sorted(p.stem for p in folder.glob("*.ckpt"))) or "none"
    raise InputError(f"{run} has no checkpoint {name!r} (there: {there}): train it with `python -m pipeline fit`")


RunState = StateFolder | StateFile


def open_state(path: Path) -> RunState:
    """A checkpoint, to be read range by range.

    Raises:
        InputError: it is damaged or from another program.
    """
    return StateFolder(path) if path.is_dir() else StateFile(path, RECORD_KEY)


def read_weights(state: RunState, kind: str = WEIGHTS) -> dict[str, Tensor]:
    """The weights whole, by their names in the model.

    Args:
        kind: WEIGHTS, or AVERAGE for their moving average.

    Raises:
        InputError: the run keeps no average.
    """
    weights = dict(state.tensors(kind))
    if not weights:
        raise InputError(
            f"{state.path} has no {kind} weights: only a run with model.ema_half_life_tokens has an average"
        )
    return weights


@dataclass(frozen=True)
class LoadedRun:
    """A trained model with all that is needed to use it."""

    model: LanguageModel
    tokenizer: Tokenizer
    context: int
    directory: Path
    checkpoint: Path
    step: int
    tokens: int
    record: dict[str, Any]


def load_run(directory: str | Path, checkpoint: str = "best", averaged: bool = False) -> LoadedRun:
    """Load a run's model (fp32, evaluation mode, CPU) and tokenizer, whatever ranks and strategy wrote it.

    Args:
        directory: the run directory.
        checkpoint: `best`, `last` or a path.
        averaged: take the moving average of the weights.

    Raises:
        InputError: no such run or checkpoint, or the tokenizer beside it is not the one it was trained with.
    """
    directory = Path(directory)
    path = find_checkpoint(directory, checkpoint)
    state = open_state(path)
    state.check()
    about = state.record
    tokenizer = Tokenizer.load(directory)
    if tokenizer.fingerprint != about["data"]["tokenizer"]:
        raise InputError(
            f"{path} was trained with tokenizer {about['data']['tokenizer'][:12]}, but {directory}/tokenizer.json is "
            f"{tokenizer.fingerprint[:12]}: put the run's own tokenizer back"
        )
    model = build_model(about["model"])
    set_weights(model, read_weights(state, AVERAGE if averaged else WEIGHTS), path)
    return LoadedRun(
        model.float().eval(), tokenizer, about["data"]["context"], directory, path, about["step"],
        about["tokens_seen"], read_json(directory / "run.json"),
    )  # fmt: skip


def load_pretrained(model: LanguageModel, directory: str, *, tokenizer: str) -> None:
    """Give a fresh model the weights of a run (its best checkpoint), or a classifier's body those of a language model.

    Args:
        tokenizer: fingerprint of the tokenizer that the model will train with; the run's must be the same.

    Raises:
        InputError: another tokenizer, or weights of another shape.
    """
    path = find_checkpoint(directory)
    state = open_state(path)
    theirs = state.record["data"]["tokenizer"]
    if theirs != tokenizer:
        raise InputError(
            f"{directory} was trained with tokenizer {theirs[:12]}, these shards have {tokenizer[:12]}: "
            "prepare them with `tokenizer.path` set to the run's tokenizer.json"
        )
    weights = read_weights(state)
    own = dict(model.named_parameters())
    body = {name.removeprefix("body."): tensor for name, tensor in own.items() if name.startswith("body.")}
    different = [
        name for name, tensor in (body or own).items() if name not in weights or weights[name].shape != tensor.shape
    ]
    if different:
        raise InputError(
            f"{path} has no weights of the right shape for {', '.join(different[:3])} ({len(different)} in all): "
            "model.architecture must describe the pretrained model, or contain it as a classifier's body"
        )
    with torch.no_grad():
        for name, tensor in (body or own).items():
            tensor.copy_(weights[name])


def set_weights(model: LanguageModel, weights: Mapping[str, Tensor], path: Path) -> None:
    """Give a model its weights; a matrix that is tied may stand under any of its names.

    Raises:
        InputError: they are of another model.
    """
    own = dict(model.named_parameters())
    strangers = sorted((set(own) - set(weights)) | (set(weights) - set(model.state_dict())))
    different = [name for name, tensor in own.items() if name in weights and weights[name].shape != tensor.shape]
    if strangers or different:
        raise InputError(
            f"{path} holds other weights than its model has now ({', '.join([*strangers, *different][:3])}), so another version "
            "of this project wrote it: use that version, or train the run again"
        )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(weights[name])
