"""`python -m data_prep VERB`: prepare a corpus, look at it, check it. A mistake is one sentence and exit status 2."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

# What a verb does, and the last stage that it brings up to date. The rest are below, with options of their own.
STAGE_VERBS = {
    "run": ("all stages, from sources to token shards and their mixture", "mix"),
    "collect": ("read the sources into Parquet documents", "collect"),
    "filter": ("... and drop documents by the rules of Gopher, C4, FineWeb and others", "filter"),
    "dedup": ("... and drop documents whose text, or pairs whose two sides, came before, or nearly", "dedup"),
    "decontaminate": (
        "... and cut out what they share with test sets, where the configuration names some",
        "decontaminate",
    ),
    "split": ("... and divide them into train, validation and test", "split"),
    "tokenizer": ("... and train the tokenizer on the train split", "tokenizer"),
    "tokenize": ("... and write the token shards", "tokenize"),
    "mix": ("... and report how often training will read each source (the same as run)", "mix"),
}
INSPECT = "show a prepared corpus: counts, histograms, a document, where a text or an id is"
VERIFY = "check a prepared corpus: checksums, ids, ends of texts, text"
ADOPT = "make .bin/.idx files that Megatron-LM wrote a corpus that training reads"
BENCH = "measure how fast this machine prepares a corpus, beside what the field uses"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit status."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    from data_prep.files import InputError, sentence_of

    try:
        if arguments and arguments[0] in STAGE_VERBS:
            return prepare(arguments[0], arguments[1:])
        return look(arguments)
    except InputError as error:
        return fail(str(error))
    except OSError as error:
        return fail(sentence_of(error))
    except KeyboardInterrupt:
        return fail("stopped; finished stages stay, and the same command goes on from there", status=130)


def fail(sentence: str, status: int = 2) -> int:
    print(f"error: {sentence}", file=sys.stderr)
    return status


def prepare(verb: str, arguments: list[str]) -> int:
    """Bring the stages of a configuration up to date."""
    from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings

    from data_prep.configuration import DataConfig
    from data_prep.files import InputError
    from data_prep.run import run
    from data_prep.sources import Source

    set_parsing_settings(subclasses_enabled=[Source], docstring_parse_attribute_docstrings=True)
    text, last = STAGE_VERBS[verb]
    parser = ArgumentParser(
        prog=f"python -m data_prep {verb}", description=f"{text}.".lstrip(". ").capitalize(), exit_on_error=False
    )
    parser.add_argument("--config", action="config", help="YAML file with the options below; later options override it")
    parser.add_argument("--wait", action="store_true", help="with executor slurm: follow the jobs to their end")
    parser.add_class_arguments(DataConfig)
    try:
        config = parser.instantiate(parser.parse_args(arguments))
    except (ArgumentError, TypeError) as error:
        sentence = " ".join(str(error).split())
        raise InputError(f"{sentence} (see `python -m data_prep {verb} --help`)") from None
    from rich.console import Console

    fields = {name: config[name] for name in DataConfig.__dataclass_fields__}
    data = DataConfig(**fields)
    if verb == "mix" and not data.mix.wanted:
        raise InputError(
            "mix has nothing to report: give mix.total_tokens, with mix.weights or without, or mix.tokens."
        )
    console = Console(soft_wrap=True)
    if data.executor == "slurm":
        from data_prep.slurm.submission import submit

        submit(data, last, config.wait, console)
    else:
        from data_prep.slurm.record import refuse_beside_jobs

        refuse_beside_jobs(Path(data.output))
        run(data, last, console)
    return 0


def look(arguments: list[str]) -> int:
    """The verbs that read a prepared corpus or measure, and the help."""
    from data_prep.bench.options import add_options as add_bench_options
    from data_prep.bench.options import from_arguments

    parser = argparse.ArgumentParser(prog="python -m data_prep", description="Prepare a corpus for training.")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb, (text, _) in STAGE_VERBS.items():
        verbs.add_parser(verb, help=text, add_help=False)
    verify = verbs.add_parser("verify", help=VERIFY, description=VERIFY)
    inspect = verbs.add_parser("inspect", help=INSPECT, description=INSPECT)
    for each in (verify, inspect):
        each.add_argument(
            "folder", type=Path, help="the corpus: the `output` of its configuration, or its folder of tokens"
        )
    inspect.add_argument(
        "--split",
        help="split to look at (default: train, or all with --find, --id)",
    )
    view = inspect.add_mutually_exclusive_group()
    view.add_argument("--document", type=int, metavar="K", help="show document K of the split, counted from 0")
    view.add_argument("--id", help="say where the documents with this id are: split, number, shard and offset")
    view.add_argument(
        "--shard", metavar="FILE", help="with --offset: show the document that a token of this shard is of"
    )
    view.add_argument("--find", metavar="TEXT", help="say where this text stands: documents, ids, characters")
    view.add_argument(
        "--histograms", action="store_true", help="lengths of the documents by source, and the most frequent tokens"
    )
    view.add_argument("--html", type=Path, metavar="FILE", help="write counts and histograms as one page with plots")
    inspect.add_argument(
        "--offset", type=int, default=0, metavar="N", help="with --shard: the token, from 0 (default: 0)"
    )
    inspect.add_argument("--first", type=int, default=10, metavar="N", help="with --find: show so many (default: 10)")
    inspect.add_argument("--ignore-case", action="store_true", help="with --find")
    inspect.add_argument(
        "--tokenizer", type=Path, metavar="FILE", help="spells the ids of .bin/.idx files that have no manifest"
    )
    add_adopt_options(verbs.add_parser("adopt", help=ADOPT, description=ADOPT))
    add_bench_options(verbs.add_parser("bench", help=BENCH, description=BENCH))
    options = parser.parse_args(arguments)

    from rich.console import Console

    console = Console()
    if options.verb == "verify":
        from data_prep.verification import verify as check

        check(options.folder, console)
    elif options.verb == "adopt":
        adopt_files(options, console)
    elif options.verb == "bench":
        from data_prep.bench.command import bench

        bench(from_arguments(options), console)
    else:
        inspect_corpus(options, console)
    return 0


def add_adopt_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="with .bin and .idx files in it or below it, or one of these files")
    parser.add_argument(
        "--tokenizer", type=Path, required=True, metavar="FILE",
        help="the tokenizer.json (or GPT-2's encoder.json beside its vocab.bpe) that made the ids",
    )  # fmt: skip
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER",
        help="a folder for the corpus: the files are hard links there (copies on another disk), or written anew where they "
        "cannot be used as they stand (default: they stay, and the manifest is written beside them)",
    )  # fmt: skip
    parser.add_argument(
        "--end-of-text",
        metavar="TOKEN",
        help="what the tokenizer calls the token between documents (default: usual names)",
    )
    parser.add_argument("--source", metavar="NAME", help="one source for all files (default: from their names)")
    for split in ("train", "validation", "test"):
        parser.add_argument(
            f"--{split}", nargs="+", action="extend", default=[], metavar="PATTERN",
            help=f"names of the files for {split}, with wildcards" + "; without any, names and folders tell" * (split == "train"),
        )  # fmt: skip
    parser.add_argument("--pairs", action="store_true", help="documents of two sequences are a text and its target")
    parser.add_argument(
        "--append-end-of-text", action="store_true", help="write the end-of-text token after documents that lack it"
    )
    parser.add_argument(
        "--cut-at-end-of-text", action="store_true", help="cut documents that have end-of-text tokens inside them"
    )


def adopt_files(options: argparse.Namespace, console: "Console") -> None:
    """Files that others wrote as a corpus."""
    from data_prep.adoption import Adoption, adopt
    from data_prep.foreign_documents import Wishes

    patterns = {split: getattr(options, split) for split in ("train", "validation", "test")}
    wishes = Wishes(options.pairs, options.append_end_of_text, options.cut_at_end_of_text)
    of_files = (options.folder, options.tokenizer, options.output, options.end_of_text, options.source)
    adopt(Adoption(*of_files, patterns, wishes), console)


def inspect_corpus(options: argparse.Namespace, console: "Console") -> None:
    """The views of `inspect`."""
    from data_prep import inspection
    from data_prep.shards import SPLITS

    folder, split = options.folder, options.split or "train"
    splits = [options.split] if options.split else SPLITS
    if inspection.is_foreign(folder):
        inspection.foreign(folder, options.document, options.tokenizer, console)
    elif options.document is not None:
        inspection.show(folder, split, options.document, console)
    elif options.id is not None:
        inspection.identified(folder, splits, options.id, console)
    elif options.shard is not None:
        inspection.show_at(folder, options.shard, options.offset, console)
    elif options.find is not None:
        inspection.found(folder, splits, options.find, options.ignore_case, options.first, console)
    elif options.histograms:
        inspection.histograms(folder, split, console)
    elif options.html is not None:
        from data_prep.inspection_page import write_page

        write_page(folder, split, options.html)
        console.print(f"{options.html} written", highlight=False, soft_wrap=True)
    else:
        inspection.table(folder, console)
