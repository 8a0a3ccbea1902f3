"""Weights in safetensors files, read into a model of ours and written from one, tensor by tensor.

Neither direction holds a second copy of the model: reading fills the model's own parameters, writing goes file by file.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from data_prep.files import InputError, read_json, write_json
from pipeline.interchange.architectures import Architecture, heads_of
from pipeline.models.transformer import Transformer, TransformerConfig

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
FILE_BYTES = 5 * 10**9
"""Larger models are written to several files; also the most that writing needs beside the model."""

BUFFERS = re.compile(r"\.(attn|attention)\.(bias|masked_bias)$|\.rotary_emb\.inv_freq$")
"""Causal masks and rotary frequencies, which earlier versions of `transformers` saved among the weights."""


class TensorFiles:
    """The tensors of a folder's safetensors files, by name; each is read when asked for."""

    def __init__(self, folder: Path, prefix: str):
        """`prefix` is put before names where no name in the files has it."""
        self._slices: dict[str, Any] = {}
        for path in files_of(folder):
            try:
                file = safe_open(path, framework="pt")
                self._slices |= {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  it is no dict
            except SafetensorError as error:
                raise InputError(f"{path} is damaged or no safetensors file ({error}): fetch it again") from None
        if not any(name.startswith(prefix) for name in self._slices):
            self._slices = {
                name if name.startswith("lm_head.") else prefix + name: found for name, found in self._slices.items()
            }

    @property
    def names(self) -> set[str]:
        return set(self._slices)

    def shape(self, name: str) -> list[int]:
        return self._slices[name].get_shape()

    def read(self, name: str) -> Tensor:
        tensor = self._slices[name][:]
        if not tensor.is_floating_point():
            raise InputError(f"Tensor {name} is of type {tensor.dtype}: import a model of floating-point weights")
        return tensor


def files_of(folder: Path) -> list[Path]:
    """The folder's files of weights, as its index names them."""
    if not (folder / INDEX).is_file():
        if (folder / SINGLE).is_file():
            return [folder / SINGLE]
        raise InputError(f"{folder} has no {SINGLE} (or {INDEX}): save the model in safetensors files")
    index = read_json(folder / INDEX)
    table = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(table, dict) or not table or not all(isinstance(name, str) for name in table.values()):
        raise InputError(f"{folder / INDEX} has no weight_map: fetch it again")
    paths = [folder / name for name in sorted(set(table.values()))]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise InputError(f"{folder} lacks {missing[0]}, which {INDEX} names: fetch it too")
    return paths


def read_weights(folder: Path, architecture: Architecture, config: TransformerConfig) -> Transformer:
    """A model of ours with the weights of a Hugging Face folder, fp32.

    Raises:
        InputError: a tensor is missing, of another shape, or unknown.
    """
    heads = heads_of(config)
    with torch.device("meta"):
        skeleton = config.build()
    files = TensorFiles(folder, architecture.prefix)
    unknown = {name for name in files.names if not BUFFERS.search(name)}
    for name, parameter in skeleton.named_parameters():
        theirs, layout = architecture.entry(name)
        for tensor, expected in zip(theirs, layout.to_theirs(parameter, heads), strict=True):
            if tensor not in files.names:
                raise InputError(f"{folder} has no tensor {tensor}, which its config.json implies: fetch it again")
            if files.shape(tensor) != list(expected.shape):
                raise InputError(
                    f"Tensor {tensor} of {folder} has shape {files.shape(tensor)}, its config.json implies "
                    f"{list(expected.shape)}: bring the two together"
                )
        unknown -= set(theirs)
    if config.tied:
        # Some files repeat the tied table under the head's name.
        unknown -= set(architecture.entry("head.weight")[0])
    if unknown:
        raise InputError(
            f"{folder} has a tensor {min(unknown)} ({len(unknown)} such in all), which our form of "
            f"{architecture.name} has no place for: it cannot be imported"
        )
    model = config.build()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            theirs, layout = architecture.entry(name)
            parameter.copy_(layout.to_ours([files.read(tensor) for tensor in theirs], heads))
    return model.eval()


def write_weights(folder: Path, model: Transformer, architecture: Architecture, file_bytes: int = FILE_BYTES) -> None:
    """Write a model's weights as the architecture's safetensors file, or as several with an index.

    Args:
        file_bytes: size above which there are several.
    """
    heads = heads_of(model.config)
    groups = grouped(model.named_parameters(), file_bytes)
    table: dict[str, str] = {}
    for number, parameters in enumerate(groups, 1):
        file = SINGLE if len(groups) == 1 else f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        tensors: dict[str, Tensor] = {}
        for name, parameter in parameters:
            theirs, layout = architecture.entry(name)
            parts = layout.to_theirs(parameter.detach(), heads)
            tensors |= {name: part.contiguous() for name, part in zip(theirs, parts, strict=True)}
        path = folder / file
        path.touch()
        mode = path.stat().st_mode
        try:
            save_file(tensors, path, metadata={"format": "pt"})
        except SafetensorError as error:
            raise OSError(f"{path} could not be written: {error}") from None
        path.chmod(mode)  # safetensors leaves a file that only its owner can read
        table |= dict.fromkeys(tensors, file)
    if len(groups) > 1:
        total = sum(parameter.nbytes for parameter in model.parameters())
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": table})


def grouped(parameters: Iterable[tuple[str, Tensor]], file_bytes: int) -> list[list[tuple[str, Tensor]]]:
    """Parameters in their order, in groups of at most so many bytes; a larger one has a group of its own."""
    groups: list[list[tuple[str, Tensor]]] = []
    size = file_bytes + 1
    for name, parameter in parameters:
        if size + parameter.nbytes > file_bytes:
            groups.append([])
            size = 0
        groups[-1].append((name, parameter))
        size += parameter.nbytes
    return groups
