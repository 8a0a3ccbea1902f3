"""`python -m data_prep VERB`: prepare a corpus, look at it, check it. A mistake is one sentence and exit status 2."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

# What a verb does, and the last stage that it brings up to date. The rest are below, with options of their own.
STAGE_VERBS = {
    "run": ("all stages, from sources to token shards", "tokenize"),
    "collect": ("read the sources into Parquet documents", "collect"),
    "dedup": ("... and drop documents whose text, or pairs whose two sides, came before", "dedup"),
    "split": ("... and divide them into train, validation and test", "split"),
    "tokenizer": ("... and train the tokenizer on the train split", "tokenizer"),
    "tokenize": ("... and write the token shards (the same as run)", "tokenize"),
}
INSPECT = "show a prepared corpus: a table of counts, or one document or pair"
VERIFY = "check a prepared corpus: checksums, ids, ends of texts, text"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit status."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    from data_prep.files import InputError

    try:
        if arguments and arguments[0] in STAGE_VERBS:
            return prepare(arguments[0], arguments[1:])
        return look(arguments)
    except InputError as error:
        return fail(str(error))
    except OSError as error:
        place = f": {error.filename}" if error.filename else ""
        return fail(f"{error.strerror or error}{place}")
    except KeyboardInterrupt:
        return fail("stopped; finished stages stay, and the same command goes on from there", status=130)


def fail(sentence: str, status: int = 2) -> int:
    print(f"error: {sentence}", file=sys.stderr)
    return status


def prepare(verb: str, arguments: list[str]) -> int:
    """Bring the stages of a configuration up to date."""
    from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings

    from data_prep.files import InputError
    from data_prep.recipe import DataConfig, run
    from data_prep.sources import Source

    set_parsing_settings(subclasses_enabled=[Source], docstring_parse_attribute_docstrings=True)
    text, last = STAGE_VERBS[verb]
    parser = ArgumentParser(
        prog=f"python -m data_prep {verb}", description=f"{text}.".lstrip(". ").capitalize(), exit_on_error=False
    )
    parser.add_argument("--config", action="config", help="YAML file with the options below; later options override it")
    parser.add_class_arguments(DataConfig)
    try:
        config = parser.instantiate(parser.parse_args(arguments))
    except (ArgumentError, TypeError) as error:
        sentence = " ".join(str(error).split())
        raise InputError(f"{sentence} (see `python -m data_prep {verb} --help`)") from None
    from rich.console import Console

    fields = {name: config[name] for name in DataConfig.__dataclass_fields__}
    run(DataConfig(**fields), last, Console(soft_wrap=True))
    return 0


def look(arguments: list[str]) -> int:
    """The verbs that read a prepared corpus, and the help."""
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
    inspect.add_argument("--split", default="train", help="split of the document (default: train)")
    inspect.add_argument("--document", type=int, metavar="K", help="show document K of the split, counted from 0")
    options = parser.parse_args(arguments)

    from rich.console import Console

    from data_prep import inspection

    console = Console()
    if options.verb == "verify":
        inspection.verify(options.folder, console)
    elif options.document is not None:
        inspection.show(options.folder, options.split, options.document, console)
    else:
        inspection.table(options.folder, console)
    return 0
