"""`python -m pipeline inspect`: what goes on inside a model, as pages, and which documents its training read, as tables."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.files import InputError
from pipeline.commands.checkpoint_choice import add_checkpoint_arguments

if TYPE_CHECKING:
    import numpy as np

    from pipeline.checkpoint import LoadedRun
    from pipeline.models.base import LanguageModel, ModelConfig
    from pipeline.reporting.figures.gradient import Curve, GradientFlow
    from pipeline.reporting.runs import Run

HEADLINE = 140
"""Characters of a text that a page's headline shows; the maps name every token."""

SEED = 0
"""Of the fresh weights that stand for a run before its training."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    view = parser.add_mutually_exclusive_group(required=True)
    view.add_argument(
        "--attention",
        nargs="?",
        const="",
        metavar="TEXT",
        help="attention maps of one run reading this text; of an encoder-decoder, the target of --source (without TEXT, it is "
        "decoded from it)",
    )
    view.add_argument(
        "--gradient-flow", action="store_true", help="norm of a loss's gradient against the distance it has come"
    )
    view.add_argument(
        "--loss-by-position",
        action="store_true",
        help="loss by position in the context, from each run's validation.json",
    )
    view.add_argument(
        "--step", type=int, metavar="N", help="samples, documents and text that the run's N-th step trained on"
    )
    view.add_argument(
        "--document",
        metavar="ID",
        help="steps that read this document of the train split, by its id or its number, so far and in the plan",
    )
    parser.add_argument("--json", action="store_true", help="with --step or --document: all of it as JSON")
    parser.add_argument("--full", action="store_true", help="with --step: texts whole instead of cut to the width")
    parser.add_argument("--run", type=Path, action="append", default=[], help="a run's folder; may be repeated")
    parser.add_argument("--runs", type=Path, metavar="FOLDER", help="a folder: all runs in it, at any depth")
    parser.add_argument("--source", metavar="TEXT", help="with --attention: what an encoder-decoder reads")
    add_checkpoint_arguments(parser)
    parser.add_argument(
        "--distance", type=int, default=64, help="with --gradient-flow: steps back at most (default: 64)"
    )
    parser.add_argument("--samples", type=int, default=16, help="with --gradient-flow: pieces of text (default: 16)")
    parser.add_argument(
        "--output", type=Path, help="the file to write (default: in the folder inspect/ of the first run or of --runs)"
    )


def run(arguments: argparse.Namespace) -> int:
    if bool(arguments.run) == bool(arguments.runs):
        raise InputError("Give either --run (once or several times) or --runs, the folder of several runs")
    if arguments.source is not None and arguments.attention is None:
        raise InputError("--source is what an encoder-decoder reads for --attention: give both or neither")
    provenance = arguments.step is not None or arguments.document is not None
    if (arguments.json and not provenance) or (arguments.full and arguments.step is None):
        raise InputError("--json goes with --step or --document, --full with --step: leave them out")
    if provenance:
        return inspect_provenance(arguments)
    if arguments.attention is not None:
        return inspect_attention(arguments)
    return inspect_gradient_flow(arguments) if arguments.gradient_flow else inspect_loss_by_position(arguments)


def inspect_provenance(arguments: argparse.Namespace) -> int:
    from pipeline.commands.provenance import show_document, show_step

    if len(arguments.run) != 1:
        raise InputError("--step and --document look at one run: give its folder as --run, once")
    [run] = arguments.run
    if arguments.step is None:
        return show_document(run, arguments.document, as_json=arguments.json)
    return show_step(run, arguments.step, as_json=arguments.json, full=arguments.full)


def inspect_attention(arguments: argparse.Namespace) -> int:
    from pipeline.checkpoint import load_run
    from pipeline.inspection.attention import attention, label, reading
    from pipeline.reporting.inspection_pages import AttentionKind, attention_page
    from pipeline.reporting.quantities import si

    if len(arguments.run) != 1:
        raise InputError("--attention looks at one run: give its folder as --run, once")
    loaded = load_run(arguments.run[0], arguments.checkpoint, averaged=arguments.ema)
    read = reading(loaded, arguments.attention, arguments.source)

    def labels(tokens: list[int]) -> list[str]:
        return [label(loaded.tokenizer, token) for token in tokens]

    own, source = labels(read.tokens), labels(read.source or [])
    sides = {"encoder": (source, source), "self": (own, own)}
    if read.source:
        sides["cross"] = (labels(read.predicted), source)
    kinds = [
        AttentionKind(kind, *sides[kind], weights.double().numpy()) for kind, weights in attention(loaded, read).items()
    ]
    decode = loaded.tokenizer.decode
    texts = [decode(read.source[:-1])] if read.source else []
    headline = " → ".join([*texts, decode(read.tokens[1:])])
    page = attention_page(
        run=loaded.directory.resolve().name,
        headline=headline if len(headline) <= HEADLINE else headline[:HEADLINE] + " …",
        summary=f"{loaded.model.config.family.replace('_', ' ').capitalize()}, checkpoint {loaded.checkpoint.stem}, trained on "
        f"{si(loaded.tokens)} tokens.",
        kinds=kinds,
    )
    return write(arguments, "attention.html", page)


def inspect_gradient_flow(arguments: argparse.Namespace) -> int:
    from pipeline.reporting.figures.gradient import columns, rows
    from pipeline.reporting.inspection_pages import gradient_page

    # A line needs two points beside the one at distance 0.
    for name, least in (("distance", 2), ("samples", 1)):
        if getattr(arguments, name) < least:
            raise InputError(f"--{name} is {getattr(arguments, name)}: it must be at least {least}")
    flows, texts, remarks, shown = [], {}, [], []
    for found in chosen_runs(arguments):
        try:
            measured, texts[found.name], loaded = gradient_flows(found, len(texts), arguments)
            flows += measured
            shown.append(loaded)
        except InputError as error:
            if not arguments.runs:
                raise
            remarks.append(f"Left out: {str(error).rstrip('.')}.")
    if not flows:
        raise InputError(f"{arguments.runs} holds no run whose gradient flow can be measured: {' '.join(remarks)}")
    fresh = fresh_flows(shown, arguments)
    flows += fresh
    if fresh:
        remarks.append(
            f"Beside the runs stand fresh weights of {', '.join(flow.run for flow in fresh)}, {shown[0].model.config.width} wide."
        )
    checkpoint = Path(arguments.checkpoint).stem
    summary = f"Trained weights (checkpoint {checkpoint}) beside fresh ones of the same configuration (seed {SEED})"
    if len(set(texts.values())) == 1:
        summary += f", on {next(iter(texts.values()))}"
    else:
        remarks = [f"{name} read {text}." for name, text in texts.items()] + remarks
    table = [["Run", *columns(arguments.distance)]]
    table += [[flow.run, *cells] for flow, cells in zip(flows, rows(flows), strict=True)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for cells in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip())
    for remark in remarks:
        print(remark)
    return write(arguments, "gradient-flow.html", gradient_page(flows, f"{summary}.", remarks))


def gradient_flows(
    found: "Run", position: int, arguments: argparse.Namespace
) -> tuple[list["GradientFlow"], str, "LoadedRun"]:
    """Measure one run with its trained and with fresh weights; and name the text.

    Raises:
        InputError: no checkpoint, no hidden state along one stream of tokens, or a context or text too short.
    """
    from pipeline.checkpoint import build_config, load_run
    from pipeline.inspection.gradient_flow import has_gradient_flow, require_distance
    from pipeline.inspection.samples import samples
    from pipeline.reporting.figures.gradient import GradientFlow

    loaded = load_run(found.directory, arguments.checkpoint, averaged=arguments.ema)
    if not has_gradient_flow(loaded.model):
        raise InputError(
            f"{found.name} ({found.get('family')}) does not carry one hidden state along one text: give recurrent language models "
            "or decoder-only transformers"
        )
    require_distance(loaded.model, found.name, arguments.distance)
    tokens, text = samples(loaded, arguments.distance + 2, arguments.samples)
    untrained = curves(fresh_model(build_config(loaded.record["model"])), tokens)
    trained = curves(loaded.model, tokens)
    flows = [
        GradientFlow(found.name, position, state, k == 0, untrained[state], trained[state])
        for k, state in enumerate(trained)
    ]
    return flows, f"{len(tokens)} pieces of {text}", loaded


def fresh_flows(shown: list["LoadedRun"], arguments: argparse.Namespace) -> list["GradientFlow"]:
    """The lectures' kinds of network that none of the runs is, at the first run's width and on its text, before any training."""
    from pipeline.inspection.gradient_flow import fresh_kinds, kind
    from pipeline.inspection.samples import samples
    from pipeline.reporting.figures.gradient import GradientFlow

    config = shown[0].model.config
    tokens, _ = samples(shown[0], arguments.distance + 2, arguments.samples)
    there = {kind(loaded.model.config) for loaded in shown}
    flows = []
    for name, other in fresh_kinds(config.vocab_size, config.width, arguments.distance + 1).items():  # pyright: ignore[reportAttributeAccessIssue]
        if name not in there:
            state, curve = next(iter(curves(fresh_model(other), tokens).items()))
            flows.append(GradientFlow(f"fresh {name}", len(shown) + len(flows), state, True, curve, None))
    return flows


def fresh_model(config: "ModelConfig") -> "LanguageModel":
    """A model before its training."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return config.build().eval()


def curves(model: "LanguageModel", tokens_BT: "np.ndarray") -> dict[str, "Curve"]:
    """The mean logarithm of each state's gradient norms by distance."""
    import torch

    from pipeline.inspection.gradient_flow import gradient_norms, mean_log10

    # In single precision a gradient that vanishes would soon fall below the smallest number.
    norms = gradient_norms(model.double(), torch.from_numpy(tokens_BT))
    return {state: mean_log10(norms_BK) for state, norms_BK in norms.items()}


def inspect_loss_by_position(arguments: argparse.Namespace) -> int:
    from pipeline.reporting.figures.context import early_and_late, measured
    from pipeline.reporting.inspection_pages import context_page

    runs = chosen_runs(arguments)
    having = [run for run, _, _ in early_and_late(measured(runs))]
    lacking = [run.name for run in runs if run not in having]
    if not having:
        raise InputError(
            f"No loss by position in the validation.json of {', '.join(lacking)}: `python -m pipeline validate` measures it"
        )
    remarks = [f"{name} has no loss by position yet: python -m pipeline validate measures it." for name in lacking]
    title = folder_of(arguments).resolve().name
    return write(arguments, "loss-by-position.html", context_page(having, title, remarks))


def chosen_runs(arguments: argparse.Namespace) -> list["Run"]:
    """The runs of --runs by name, or those of each --run, named so that no two share a name."""
    from dataclasses import replace

    from pipeline.reporting.runs import Run, find_runs

    if arguments.runs:
        return find_runs(arguments.runs)[0]
    runs: dict[Path, Run] = {}
    for given in arguments.run:
        folder = given.resolve()
        found = find_runs(folder)[0] if (folder / "run.json").is_file() else []
        own = next((run for run in found if run.directory == folder), None)
        if own is None:
            raise InputError(
                f"{given} is not a run (a folder with a run.json): give one, or a folder of them as --runs"
            )
        runs[folder] = own
    common = os.path.commonpath([folder.parent for folder in runs])
    return [replace(run, name=os.path.relpath(folder, common)) for folder, run in runs.items()]


def folder_of(arguments: argparse.Namespace) -> Path:
    return arguments.runs or arguments.run[0]


def write(arguments: argparse.Namespace, name: str, page: str) -> int:
    from pipeline.reporting import document

    print(f"The page is {document.write(arguments.output or folder_of(arguments) / 'inspect' / name, page)}")
    return 0
