"""`python -m pipeline checkpoint`: verify what a checkpoint holds, cut it for other ranks, or take the weights out of it as one file."""

import argparse
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.files import InputError, atomic_path

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.checkpoint import RunState
    from pipeline.state_files import Piece

RANGE = 1 << 22
"""Values of a tensor that are in memory at a time while a checkpoint is cut anew."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    verify_parser = actions.add_parser("verify", help="read every byte of it, and say what it holds")
    convert_parser = actions.add_parser(
        "convert", help="rewrite it as a folder of so many ranks' files; reads this project's older single files too"
    )
    consolidate_parser = actions.add_parser("consolidate", help="its weights alone, as one file")
    for action, function in ((verify_parser, verify), (convert_parser, convert), (consolidate_parser, consolidate)):
        action.set_defaults(function=function)
        action.add_argument("path", type=Path, metavar="PATH", help="a checkpoint, or a run's folder")
        action.add_argument(
            "--checkpoint", default="last", choices=("best", "last"), help="which, of a run's folder (default: last)"
        )
    convert_parser.add_argument("output", type=Path, metavar="OUT", help="the folder to write")
    convert_parser.add_argument("--ranks", type=int, required=True, metavar="N", help="files to cut it into")
    consolidate_parser.add_argument(
        "output", type=Path, metavar="OUT", help="the file to write: .safetensors, or .ckpt for torch.load"
    )
    consolidate_parser.add_argument("--ema", action="store_true", help="the moving average of the weights")
    consolidate_parser.add_argument("--dtype", choices=("fp32", "bf16"), help="number format (default: as stored)")
    for action in (convert_parser, consolidate_parser):
        action.add_argument("--force", action="store_true", help="replace what is there under the name OUT")


def run(arguments: argparse.Namespace) -> int:
    return arguments.function(arguments)


def chosen(arguments: argparse.Namespace) -> "RunState":
    """The checkpoint that the command line names."""
    from pipeline.checkpoint import find_checkpoint, open_state

    path: Path = arguments.path
    if (path / "checkpoints").is_dir():
        path = find_checkpoint(path, arguments.checkpoint)
    elif not os.path.lexists(path):
        raise InputError(f"There is no {path}: give a checkpoint, or the folder of a run")
    return open_state(path)


# -- verify


def verify(arguments: argparse.Namespace) -> int:
    """Print what a checkpoint holds when every byte of it has been read and is right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from pipeline.state_files import StateFolder

    state = chosen(arguments)
    console = Console(highlight=False, markup=False, soft_wrap=True)
    if isinstance(state, StateFolder):
        state.verify()
        files = len(state.manifest["files"])
        what = f"all {state.bytes:,} bytes in {files} files are as they were written"
    else:
        what = f"one file of {state.path.stat().st_size:,} bytes, read whole; it has no hashes to compare with"
    refuse_incomplete(state)
    ranks, strategy = state.written_by
    origin = (
        f"; written by {ranks} rank{'s' if ranks > 1 else ''} under {strategy}"
        if isinstance(state, StateFolder)
        else ""
    )
    record = state.record
    console.print(f"{state.path}: {what}", style="bold")
    console.print(
        f"step {record['step']:,}, {record['tokens_seen']:,} tokens, {record['model']['class_path'].rpartition('.')[2]}{origin}"
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("kind", "tensors", "values", "bytes", "format"):
        table.add_column(heading, justify="left" if heading in ("kind", "format") else "right")
    for kind in sorted(state.kinds, key=lambda kind: (kind != "weights", kind)):
        pieces = [piece for piece in whole_tensors(state) if piece.kind == kind]
        formats = sorted({str(piece.values.dtype).removeprefix("torch.") for piece in pieces})
        values = [piece.values for piece in pieces]
        table.add_row(
            kind, f"{len(pieces):,}", f"{sum(v.numel() for v in values):,}",
            f"{sum(v.numel() * v.element_size() for v in values):,}", ", ".join(formats),
        )  # fmt: skip
    console.print(table)
    return 0


def refuse_incomplete(state: "RunState") -> None:
    """Raise InputError where a weight of the model is not there, or has another shape."""
    shapes = {piece.name: piece.shape for piece in whole_tensors(state) if piece.kind == "weights"}
    for name, shape in model_shapes(state.record).items():
        if shapes.get(name) != shape:
            there = f"of shape {shapes[name]}" if name in shapes else "absent"
            raise InputError(f"{state.path} is not whole: {name} is {there}, its model has it as {shape}; use another")


def model_shapes(record: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The parameters of a checkpoint's model, each once, in the order in which an optimizer has them."""
    import torch

    from pipeline.checkpoint import build_model

    with torch.device("meta"):
        return {name: tuple(p.shape) for name, p in build_model(record["model"]).named_parameters()}


def whole_tensors(state: "RunState") -> Iterator["Piece"]:
    """Every tensor of a checkpoint, as a piece without its values where they lie on the disk."""
    import torch

    from pipeline.state_files import WEIGHTS, Piece, StateFolder

    if isinstance(state, StateFolder):
        for kind, name in state.index:
            shape = state.shape(kind, name)
            values = torch.empty(torch.Size(shape).numel(), dtype=state.dtype(kind, name), device="meta")
            yield Piece(kind, name, shape, 0, values)
    else:
        for name, values in state.tensors(WEIGHTS):
            yield Piece(WEIGHTS, name, tuple(values.shape), 0, values.reshape(-1))


# -- convert


def convert(arguments: argparse.Namespace) -> int:
    """Write a checkpoint anew as the files of so many ranks; `fit` goes on from either, bit for bit."""
    from rich.console import Console
    from rich.progress import Progress

    from pipeline.state_files import MANIFEST, FolderWriter, StateFolder

    ranks, output = arguments.ranks, arguments.output
    if ranks < 1:
        raise InputError(f"--ranks is {ranks}: it must be at least 1")
    if os.path.lexists(output):
        refuse_existing(output, arguments.force)
        if output.is_symlink() or not (output / MANIFEST).is_file():
            raise InputError(f"{output} is no checkpoint folder, so it is not replaced by one: give another name")
    state = chosen(arguments)
    state.check()
    refuse_incomplete(state)
    if isinstance(state, StateFolder):
        pieces, training = [*whole_tensors(state)], state.training()
        about = {name: value for name, value in state.manifest.items() if name not in ("format", "ranks", "files")}
        about["strategy"] = "convert"
    else:
        pieces, training, about = of_single_file(state.path, state.training())
    size = sum(piece.values.numel() * piece.values.element_size() for piece in pieces)
    refuse_without_room(output, size)

    writers = [FolderWriter(output, rank, ranks) for rank in range(ranks)]
    try:
        with Progress(console=Console(stderr=True), transient=True) as progress:
            bar = progress.add_task(f"writing {output}", total=size)

            def content(piece: "Piece") -> Iterator["Tensor"]:
                for values in ranges(state, piece):
                    yield values
                    progress.advance(bar, values.numel() * values.element_size())

            writers[0].begin()
            # The first rank is the last to write: it waits for the others' files and gives the folder its name.
            for rank in reversed(range(ranks)):
                first = rank == 0
                shares = [piece.share(rank, ranks) for piece in pieces]
                writers[rank].write(shares, training if first else None, about if first else None, content)
    except BaseException:
        shutil.rmtree(writers[0].partial, ignore_errors=True)
        raise
    print(
        f"{output} holds {state.path} as {ranks} rank{'s' if ranks > 1 else ''}; go on with `fit --ckpt_path {output}`"
    )
    return 0


def ranges(state: "RunState", piece: "Piece") -> Iterator["Tensor"]:
    """The values of a piece in parts that fit into memory."""
    if piece.values.device.type != "meta":
        yield piece.values
        return
    for start in range(piece.start, piece.stop, RANGE):
        yield state.read(piece.kind, piece.name, start, min(start + RANGE, piece.stop))


def of_single_file(path: Path, content: dict[str, Any]) -> tuple[list["Piece"], dict[str, Any], dict[str, Any]]:
    """Pieces, training state and manifest of a run that an older version saved as one file, on one rank or under DDP.

    Raises:
        InputError: it has weights alone, or its optimizer is none of those that wrote such files.
    """
    from pipeline.checkpoint import RECORD_KEY, SCALARS, build_config, describe_model
    from pipeline.state_files import WEIGHTS, Piece

    if not content.get("optimizer_states"):
        raise InputError(f"{path} has weights alone, so there is nothing to cut: `fit` begins with model.pretrained")
    record = content[RECORD_KEY]
    shapes = model_shapes(record)
    pieces = [
        Piece(WEIGHTS, name, shape, 0, content["state_dict"][f"model.{name}"].reshape(-1))
        for name, shape in shapes.items()
    ]
    optimizer = content["optimizer_states"][0]
    scalars: dict[str, dict[str, float]] = {}
    for number, name in enumerate(optimizer_order(path, shapes, [len(g["params"]) for g in optimizer["param_groups"]])):
        for kind, value in optimizer["state"].get(number, {}).items():
            if value is None:
                continue  # SGD without momentum keeps an empty place for it
            if value.dim() == 0:
                scalars.setdefault(name, {})[kind] = float(value)
            elif tuple(value.shape) == shapes[name]:
                pieces.append(Piece(kind, name, shapes[name], 0, value.reshape(-1)))
            else:
                raise InputError(
                    f"{path} has {kind} of another shape than {name}: only the version that wrote it reads it"
                )
    training = {key: value for key, value in content.items() if key not in ("state_dict", "optimizer_states")}
    # Settings that the model has gained since stand at their defaults.
    described = record | {"model": describe_model(build_config(record["model"]))}
    training |= {RECORD_KEY: described, SCALARS: scalars}
    about = {"strategy": "convert", **{k: v for k, v in described.items() if k not in ("carried", "format")}}
    return pieces, training, about


def optimizer_order(path: Path, shapes: dict[str, tuple[int, ...]], groups: list[int]) -> list[str]:
    """The names of an optimizer's parameters by their numbers: all in one group, or matrices and then vectors."""
    matrices = [name for name, shape in shapes.items() if len(shape) >= 2]
    vectors = [name for name in shapes if name not in matrices]
    if groups == [len(shapes)]:
        return [*shapes]
    if groups != [len(matrices), len(vectors)]:
        raise InputError(f"{path} has an optimizer with groups of {groups}: only the version that wrote it reads it")
    return matrices + vectors


# -- consolidate


def consolidate(arguments: argparse.Namespace) -> int:
    """Write the weights of a checkpoint as one file, which load_run, `generate` and the like read, and safetensors by themselves."""
    import torch
    from safetensors.torch import save_file

    from pipeline.checkpoint import RECORD_KEY, read_weights
    from pipeline.state_files import AVERAGE, WEIGHTS, write_file

    output = arguments.output
    if output.suffix not in (".safetensors", ".ckpt"):
        raise InputError(f"{output} says no format: end it in .safetensors or .ckpt")
    refuse_existing(output, arguments.force)
    if output.is_dir():
        raise InputError(f"{output} is a folder, so it is not replaced by a file: give another name")
    state = chosen(arguments)
    state.check()
    weights = read_weights(state, AVERAGE if arguments.ema else WEIGHTS)
    if arguments.dtype:
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[arguments.dtype]
        weights = {name: values.to(dtype) for name, values in weights.items()}
    size = sum(values.numel() * values.element_size() for values in weights.values())
    refuse_without_room(output, size)
    record = {"format": 1, **{name: state.record[name] for name in ("model", "data", "step", "tokens_seen")}}
    if output.suffix == ".ckpt":
        named = {f"model.{name}": values for name, values in weights.items()}
        write_file(output, {RECORD_KEY: record, "state_dict": named})
    else:
        with atomic_path(output) as temporary:
            about = {"format": "pt", RECORD_KEY: json.dumps(record)}
            save_file({name: values.contiguous().clone() for name, values in weights.items()}, temporary, about)
    what = "averaged weights" if arguments.ema else "weights"
    print(f"{output} holds the {what} of {state.path}: {len(weights):,} tensors, {size:,} bytes")
    return 0


# -- both


def refuse_existing(output: Path, force: bool) -> None:
    if os.path.lexists(output) and not force:
        raise InputError(f"{output} exists already and is not overwritten: give another name, or --force")


def refuse_without_room(output: Path, size: int) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(output.parent).free
    if size > free:
        raise InputError(f"{output} needs {size:,} bytes, the disk has {free:,} free: make room, or write elsewhere")
