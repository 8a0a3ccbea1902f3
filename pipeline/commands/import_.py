"""`import`: a Hugging Face folder as a run directory, proved against `transformers` on text."""

import argparse
from pathlib import Path
from typing import Any

from data_prep.files import InputError, read_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--from", dest="folder", type=Path, required=True, help="Hugging Face folder: config.json and safetensors files"
    )
    parser.add_argument("--run", type=Path, required=True, help="run directory to make; must not exist")
    parser.add_argument(
        "--tokenizer", type=Path, metavar="FILE", help="a tokenizer.json, or a llama2.c .bin (default: the folder's)"
    )
    parser.add_argument(
        "--end_of_text",
        metavar="TOKEN",
        help="the token that begins a document (default: <|endoftext|>, else the bos token)",
    )
    parser.add_argument(
        "--tolerance", type=float, default=1e-4, help="largest difference of a logit to transformers' (default: 1e-4)"
    )
    parser.add_argument(
        "--check_text", type=Path, metavar="FILE", help="text to compare on (default: a built-in paragraph)"
    )
    parser.add_argument("--no_check", action="store_true", help="compare nothing")


def run(arguments: argparse.Namespace) -> int:
    from pipeline.interchange import comparison
    from pipeline.interchange.architectures import architecture_of, config_of
    from pipeline.interchange.folders import whole_folder
    from pipeline.interchange.runs import describe_source, save_run
    from pipeline.interchange.vocabulary import load_tokenizer
    from pipeline.interchange.weights import read_weights

    folder: Path = arguments.folder
    with whole_folder(arguments.run) as aside:
        theirs = read_config(folder)
        architecture, config = architecture_of(theirs), config_of(theirs)
        boundary = arguments.end_of_text or first(theirs.get("bos_token_id"), theirs.get("eos_token_id"))
        tokenizer = load_tokenizer(arguments.tokenizer or folder, boundary)
        if tokenizer.vocab_size > config.vocab_size:
            raise InputError(
                f"The tokenizer has {tokenizer.vocab_size} ids, the model {config.vocab_size}: give the model's own --tokenizer"
            )
        text, name = check_text(arguments.check_text)
        if not arguments.no_check:
            comparison.transformers()  # Where it is not installed, that is said before a large model is read.
        model = read_weights(folder, architecture, config)
        save_run(aside, arguments.run.name, model, tokenizer, describe_source(folder, architecture))
        parameters = model.parameter_counts()["total"]
        if arguments.no_check:
            proof = "NOT CHECKED: nothing was compared with transformers, so the weights may be read wrongly"
        else:
            tokens = [tokenizer.end_of_text, *tokenizer.encode(text)][: min(config.context, comparison.LONGEST)]
            ours_TV = comparison.logits_of(model, tokens)
            del model  # The other library's copy of a large model takes its room.
            theirs_TV = comparison.reference_logits(folder, tokens)
            proof = comparison.difference(ours_TV, theirs_TV, arguments.tolerance, name)
    print(f"{architecture.name} of {parameters:,} parameters and {tokenizer.vocab_size:,} token ids: {arguments.run}")
    print(proof)
    if tokenizer.decode(tokenizer.encode(text)) != text:
        print(f"The tokenizer does not give {name} back as it was: it normalises text")
    return 0


def read_config(folder: Path) -> dict[str, Any]:
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} has no config.json: give a folder as transformers saves one")
    theirs = read_json(folder / "config.json")
    if not isinstance(theirs, dict):
        raise InputError(f"{folder / 'config.json'} is no object: restore the file")
    return theirs


def first(*token_ids: Any) -> int | None:
    """The first id that a config.json names; a list of ids counts by its first."""
    for found in token_ids:
        found = found[0] if isinstance(found, list) and found else found
        if isinstance(found, int):
            return found
    return None


def check_text(file: Path | None) -> tuple[str, str]:
    """The text to compare on, and what to call it."""
    from pipeline.interchange.comparison import PARAGRAPH

    if file is None:
        return PARAGRAPH, "a built-in paragraph"
    try:
        return file.read_text(encoding="utf-8"), str(file)
    except UnicodeDecodeError:
        raise InputError(f"{file} is not UTF-8 text: give another --check_text") from None
