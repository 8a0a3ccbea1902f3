"""Continue a prompt with a run's model, streamed to the terminal, and keep what it said in the run's samples.jsonl."""

import argparse
import json
import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from data_prep.files import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", required=True, help="run directory")
    parser.add_argument("--prompt", required=True, help="text to continue; may be empty for a new document")
    parser.add_argument("--checkpoint", default="best", help="best, last or a path (default: best)")
    parser.add_argument("--max_new_tokens", type=int, default=120, help="tokens to add at most (default: 120)")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 takes the most probable token (default: 0.8)")
    parser.add_argument("--top_k", type=int, default=None, help="draw from the k most probable tokens")
    parser.add_argument("--top_p", type=float, default=None, help="draw from the most probable tokens that reach p")
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default: 0)")
    parser.add_argument("--tries", type=int, default=1, help="continuations of the one prompt (default: 1)")


def run(arguments: argparse.Namespace) -> int:
    for name in ("max_new_tokens", "tries"):
        if getattr(arguments, name) < 1:
            raise InputError(f"--{name} is {getattr(arguments, name)}: it must be at least 1")
    import torch

    from pipeline.allocator import keep_freed_memory
    from pipeline.checkpoint import load_run
    from pipeline.generation.sampling import check_options, generate

    try:
        check_options(arguments.temperature, arguments.top_k, arguments.top_p)
    except ValueError as error:
        raise InputError(str(error)) from error
    keep_freed_memory()
    loaded = load_run(arguments.run, arguments.checkpoint)
    end = loaded.tokenizer.end_of_text
    prompt = loaded.tokenizer.encode(arguments.prompt) or [end]
    generator = torch.Generator().manual_seed(arguments.seed)
    completions = []
    for number in range(arguments.tries):
        if arguments.tries > 1:
            print(f"--- {number + 1} of {arguments.tries}")
        stream = TextStream(loaded.tokenizer.decode, end)
        sys.stdout.write(arguments.prompt)
        [tokens] = generate(
            loaded.model, [prompt], arguments.max_new_tokens, temperature=arguments.temperature, top_k=arguments.top_k,
            top_p=arguments.top_p, generator=generator, stop=frozenset([end]),
            on_token=stream.add,
        )  # fmt: skip
        stream.finish()
        completions.append(loaded.tokenizer.decode([token for token in tokens if token != end]))
    keep(loaded.directory / "samples.jsonl", loaded, arguments, completions)
    return 0


class TextStream:
    """Prints tokens as text as they come; bytes of an unfinished character wait for the rest of it."""

    def __init__(self, decode: Callable[[list[int]], str], end: int):
        self.decode, self.end = decode, end
        self.tokens: list[int] = []
        self.shown = 0

    def add(self, row: int, token: int) -> None:
        if token == self.end:
            return
        self.tokens.append(token)
        text = self.decode(self.tokens)
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):
            self.show(text)

    def show(self, text: str) -> None:
        sys.stdout.write(text[self.shown :])
        sys.stdout.flush()
        self.shown = len(text)

    def finish(self) -> None:
        self.show(self.decode(self.tokens))
        sys.stdout.write("\n")


def keep(path: Path, loaded: Any, arguments: argparse.Namespace, completions: list[str]) -> None:
    """Append one line on this call to samples.jsonl."""
    settings = {name: getattr(arguments, name) for name in ("temperature", "top_k", "top_p", "seed", "max_new_tokens")}
    line = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "checkpoint": str(loaded.checkpoint),
        "tokens_seen": loaded.tokens,
        "prompt": arguments.prompt,
        "settings": settings,
        "completions": completions,
    }
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
