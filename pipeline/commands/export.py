"""`export`: a run's model as a Hugging Face folder, proved against `transformers` on text."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.files import InputError, write_json
from pipeline.commands.checkpoint_choice import add_checkpoint_arguments

if TYPE_CHECKING:
    from pipeline.checkpoint import LoadedRun


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", type=Path, required=True, help="run directory")
    parser.add_argument("--to", dest="folder", type=Path, required=True, help="folder to make; must not exist")
    add_checkpoint_arguments(parser)
    parser.add_argument(
        "--tolerance", type=float, default=1e-4, help="largest difference of a logit to transformers' (default: 1e-4)"
    )
    parser.add_argument("--no_check", action="store_true", help="compare nothing")


def run(arguments: argparse.Namespace) -> int:
    from pipeline.checkpoint import load_run
    from pipeline.interchange import comparison
    from pipeline.interchange.architectures import architecture_for, resolved
    from pipeline.interchange.folders import whole_folder
    from pipeline.interchange.weights import write_weights
    from pipeline.models.transformer import Transformer

    with whole_folder(arguments.folder) as aside:
        if not arguments.no_check:
            comparison.transformers()  # Where it is not installed, that is said before a large model is read.
        loaded = load_run(arguments.run, arguments.checkpoint, averaged=arguments.ema)
        model, tokenizer = loaded.model, loaded.tokenizer
        if not isinstance(model, Transformer):
            raise InputError(
                f"{arguments.run} is of the family {model.config.family}: only decoder-only transformers can be exported"
            )
        architecture = architecture_for(model.config)
        boundary = {"bos_token_id": tokenizer.end_of_text, "eos_token_id": tokenizer.end_of_text}
        write_json(aside / "config.json", architecture.write(resolved(model.config)) | boundary)
        write_json(aside / "generation_config.json", boundary)
        tokenizer.save(aside / "tokenizer.json")
        write_json(aside / "tokenizer_config.json", tokenizer_config(loaded))
        write_weights(aside, model, architecture)
        proof = "NOT CHECKED: nothing was compared with transformers, so the weights may be written wrongly"
        if not arguments.no_check:
            tokens, name = sample(loaded, min(model.context, comparison.LONGEST))
            comparison.same_tokens(aside, tokenizer, comparison.PARAGRAPH)
            ours_TV = comparison.logits_of(model, tokens)
            del model, loaded  # The other library's copy of a large model takes its room.
            theirs_TV = comparison.reference_logits(aside, tokens)
            proof = comparison.difference(ours_TV, theirs_TV, arguments.tolerance, name)
    print(f"{architecture.name}, to be loaded by AutoModelForCausalLM.from_pretrained: {arguments.folder}")
    print(proof)
    return 0


def tokenizer_config(loaded: "LoadedRun") -> dict:
    """What `AutoTokenizer` needs beside tokenizer.json, which it then takes as it is."""
    from data_prep.tokenizer import END_OF_TEXT

    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "model_max_length": loaded.model.context,
        "clean_up_tokenization_spaces": False,
    }


def sample(loaded: "LoadedRun", length: int) -> tuple[list[int], str]:
    """Tokens to compare on, at most `length`, and where they are from: the run's validation split if it is at hand."""
    from data_prep.shards import Manifest
    from pipeline.interchange.comparison import PARAGRAPH

    try:
        manifest = Manifest.load(loaded.record["data"]["path"])
        if manifest.tokenizer == loaded.tokenizer.fingerprint:
            reader = manifest.open("validation")
            return reader.read(0, min(length, len(reader))).tolist(), "the run's validation split"
    except InputError:
        pass  # The corpus has gone or lies elsewhere.
    tokens = [loaded.tokenizer.end_of_text, *loaded.tokenizer.encode(PARAGRAPH)]
    return tokens[:length], "a built-in paragraph"
