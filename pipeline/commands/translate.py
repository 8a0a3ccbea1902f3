"""Write a target for each line of a file with an encoder-decoder, and score the whole against references."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.files import InputError, write_json, write_text
from pipeline.commands.checkpoint_choice import add_checkpoint_arguments
from pipeline.commands.decoding_options import add_decoding_arguments, decoding_of, settings_of
from pipeline.commands.lines import read_lines

if TYPE_CHECKING:
    from pipeline.checkpoint import LoadedRun
    from pipeline.generation.beam import Beam
    from pipeline.generation.sampling import Sampling

EXTRA_TOKENS = 50
"""By how much a translation may be longer than its source where no limit is given (Vaswani et al. 2017, section 6.1)."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", required=True, help="run directory of an encoder-decoder")
    parser.add_argument("--input", type=Path, required=True, metavar="FILE", help="one source a line")
    parser.add_argument("--output", type=Path, metavar="FILE", help="one translation a line (default: the terminal)")
    parser.add_argument(
        "--reference", type=Path, metavar="FILE",
        help="one right translation a line: prints BLEU and chrF, and writes them to OUTPUT.scores.json",
    )  # fmt: skip
    add_checkpoint_arguments(parser)
    parser.add_argument(
        "--max_new_tokens", type=int, metavar="N",
        help=f"longest translation in tokens (default: {EXTRA_TOKENS} more than its source has)",
    )  # fmt: skip
    parser.add_argument(
        "--batch_tokens", type=int, default=4096, metavar="N",
        help="source tokens in a batch, times the beam's width (default: 4096)",
    )  # fmt: skip
    add_decoding_arguments(parser, otherwise="beam search")


def run(arguments: argparse.Namespace) -> int:
    for name in ("max_new_tokens", "batch_tokens"):
        if getattr(arguments, name) is not None and getattr(arguments, name) < 1:
            raise InputError(f"--{name} is {getattr(arguments, name)}: it must be at least 1")
    lines = read_lines(arguments.input)
    references = read_lines(arguments.reference) if arguments.reference else None
    if references is not None and len(references) != len(lines):
        raise InputError(
            f"{arguments.input} has {len(lines)} lines and {arguments.reference} {len(references)}: "
            "each line needs the reference on the same line of the other file"
        )
    if references == []:
        raise InputError(f"{arguments.input} has no line, so nothing can be scored: leave --reference out")

    from rich.console import Console

    from data_prep.process_memory import keep_freed_memory
    from pipeline.checkpoint import load_run
    from pipeline.generation.beam import Beam

    how = decoding_of(arguments, otherwise=Beam())
    keep_freed_memory()
    loaded = load_run(arguments.run, arguments.checkpoint, averaged=arguments.ema)
    if not loaded.model.reads_source:
        raise InputError(
            f"{loaded.directory} holds no encoder-decoder, so it has nothing to read a source with: "
            f"use `python -m pipeline generate --run {loaded.directory} --prompt TEXT`"
        )
    # Where the translations go to the terminal, what is said about them must not stand among them.
    console = Console(stderr=arguments.output is None, soft_wrap=True, highlight=False)
    translations, cut = translate(loaded, lines, how, arguments)
    text = "".join(f"{line}\n" for line in translations)
    if arguments.output:
        write_text(arguments.output, text)
    else:
        sys.stdout.write(text)
    if cut:
        console.print(f"{cut} of {len(lines)} sources were longer than the model's context of {loaded.model.context} tokens "
                      "and lost their end.", style="yellow")  # fmt: skip
    if references is not None:
        scores = score(translations, references)
        for metric in scores.values():
            console.print(f"{metric['name']} {metric['score']:.2f} ({metric['signature']})")
        if arguments.output:
            about = {
                "run": loaded.record["name"],
                "checkpoint": str(loaded.checkpoint),
                "tokens_seen": loaded.tokens,
                "input": str(arguments.input),
                "reference": str(arguments.reference),
                "lines": len(lines),
                "cut": cut,
                "settings": settings_of(how, arguments),
            }
            path = arguments.output.with_name(f"{arguments.output.name}.scores.json")
            write_json(path, about | scores)
            console.print(f"Scores: {path}")
    return 0


def translate(
    loaded: "LoadedRun", lines: list[str], how: "Sampling | Beam", arguments: argparse.Namespace
) -> tuple[list[str], int]:
    """A translation of each line, empty for an empty one, and the number of sources that lost their end."""
    import torch
    from rich.console import Console
    from rich.progress import Progress

    from pipeline.generation.decoding import decode
    from pipeline.generation.rows import batches

    end, context = loaded.tokenizer.end_of_text, loaded.model.context
    encoded = {i: loaded.tokenizer.encode(line) for i, line in enumerate(lines) if line.strip()}
    # A source ends in end-of-text, as the pairs of training do; room for it is kept where a source is cut.
    sources = {i: [*tokens[: context and context - 1], end] for i, tokens in encoded.items()}
    generator = torch.Generator().manual_seed(arguments.seed)
    translations = [""] * len(lines)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("translating", total=len(sources))
        for batch in batches(list(sources), lambda i: how.width * len(sources[i]), arguments.batch_tokens):
            limits = [arguments.max_new_tokens or len(sources[i]) + EXTRA_TOKENS for i in batch]
            found = decode(
                loaded.model, [[end]] * len(batch), [min(limit, context or limit) for limit in limits], how,
                sources=[sources[i] for i in batch], generator=generator, stop=frozenset([end]),
            )  # fmt: skip
            for i, [tokens] in zip(batch, found, strict=True):
                text = loaded.tokenizer.decode(token for token in tokens if token != end)
                # A translation stays on its line, whatever the model writes.
                translations[i] = " ".join(text.splitlines()).strip()
            progress.advance(bar, len(batch))
    return translations, sum(len(sources[i]) <= len(tokens) for i, tokens in encoded.items())


def score(translations: list[str], references: list[str]) -> dict[str, dict[str, Any]]:
    """BLEU (Papineni et al. 2002) and chrF (Popović 2015) of the whole, with all that another needs to compute the same."""
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    scores = {}
    for key, metric in (("bleu", BLEU()), ("chrf", CHRF())):
        result = metric.corpus_score(translations, [references])
        scores[key] = {"name": result.name, "score": result.score, "signature": str(metric.get_signature())}
    return scores
