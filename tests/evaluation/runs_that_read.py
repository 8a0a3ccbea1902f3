"""Run folders without weights, on small corpora, and what they had read worked out a word at a time: for tests of contamination."""

import json
import re
import shutil
import string
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from pydoc_data.topics import topics
from random import Random
from typing import Any, cast

import numpy as np
import torch
import yaml
from jsonargparse import ArgumentParser

from data_prep.files import read_json, write_json
from data_prep.shards import Manifest, ShardWriter
from data_prep.tokenizer import Tokenizer
from pipeline.checkpoint import RECORD_KEY, LoadedRun
from pipeline.data import TokenDataModule
from pipeline.evaluation.contamination import Contamination, Mark
from pipeline.inspection.provenance import Provenance

N, BATCH = 8, 256
STEPS = 24
SENTENCE = "In the beginning, the Quick brown fox's friend jumped over a lazy dog - and slept until Tuesday."


def write_shards(folder: Path, sources: dict[str, list], train=Tokenizer.train, vocab_size: int = 600) -> Path:
    """Documents, or pairs, of several sources in shards of 1,500 tokens."""
    sides = [side for documents in sources.values() for document in documents for side in np.ravel(document).tolist()]
    tokenizer = train(sides, vocab_size)
    splits, each = {}, 1 if isinstance(next(iter(sources.values()))[0], str) else 2
    for split in ("train", "validation"):
        shards = []
        for source, documents in sources.items():
            rows = [
                np.append(ids, tokenizer.end_of_text) for ids in tokenizer.encode_batch(np.ravel(documents).tolist())
            ]
            with ShardWriter(folder, split, source, "uint16", 1500, each) as writer:
                writer.add(np.concatenate(rows), np.array([len(row) for row in rows]), np.full(len(documents), 9))
            shards += writer.shards
        splits[split] = tuple(shards)
    tokenizer.save(folder)
    about = [{"name": name, "kind": "test", "fingerprint": "0" * 64} for name in sources]
    Manifest(
        folder, "uint16", tokenizer.vocab_size, tokenizer.end_of_text, tokenizer.fingerprint, about, splits, each
    ).save()
    return folder


def texts(count: int, seed: int = 0, longest: int = 60) -> list[str]:
    """Some of them with a passage of another one, so that there is more than one step to have read it first."""
    random, found = Random(seed), []
    words = [*topics["assignment"].split(), "naïve,", "東京", "—", "...", "Über\u00a0uns", "x-y"]
    for _ in range(count):
        chosen = random.choices(words, k=random.randint(1, longest))
        if found and random.random() < 0.4:
            chosen[5:5] = random.choice(found).split()[3:20]
        found.append(random.choice([" ", " ", "\n"]).join(chosen))
    return found


def write_corpus(name: str, folder: Path) -> Path:
    """One of several corpora for tests, of some thousands of tokens."""
    folder = folder / "tokens"
    if name == "pairs_of_words":
        sources = [text for text in texts(160, longest=12) if text.split()]
        return write_shards(folder, {"pairs": [(text, " ".join(text.split()[::-1])) for text in sources]})
    count = 20 if name == "small_library" else 70
    library = {"prose": texts(count), "verse": texts(count // 2, seed=1)}
    return write_shards(folder, library, Tokenizer.train_words if name == "library_by_words" else Tokenizer.train, 400)


def make_run(
    folder: Path, tokens: Path, steps: int, settings: dict | None = None, pretrained: Path | None = None
) -> Path:
    """A run as `fit` leaves it, without weights, which nobody needs here."""
    data = {"path": str(tokens), "context": 32, "batch_tokens": BATCH, "micro_batch": 2, "total_tokens": STEPS * BATCH}
    folder.mkdir(parents=True)
    config = {
        "data": {**data, **(settings or {})},
        "trainer": {"max_steps": -1},
        "model": {"pretrained": pretrained and str(pretrained)},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    Tokenizer.load(tokens).save(folder)
    identity = parsed(folder).identity()
    write_json(folder / "run.json", {"format": 1, "name": folder.name, "data": {"path": str(tokens), **identity}})
    save(folder, steps)
    return folder


def parsed(run: Path) -> TokenDataModule:
    """The data of config.yaml alone."""
    parser = ArgumentParser()
    parser.add_class_arguments(TokenDataModule, "data")
    content = yaml.safe_load((run / "config.yaml").read_text())
    return parser.instantiate_classes(parser.parse_object({"data": content["data"]}))["data"]


def save(run: Path, step: int, **more: Any) -> Path:
    """A checkpoint, which is the run's last one."""
    (run / "checkpoints").mkdir(exist_ok=True)
    path = run / "checkpoints" / f"step-{step:08d}.ckpt"
    data = json.loads(json.dumps(parsed(run).identity()))
    record = {"model": {}, "data": data, "step": step, "tokens_seen": step * BATCH, **more}
    torch.save({RECORD_KEY: record, "state_dict": {}}, path)
    shutil.copy(path, run / "checkpoints" / "last.ckpt")
    return path


def at(run: Path, step: int) -> LoadedRun:
    path = run / "checkpoints" / f"step-{step:08d}.ckpt"
    return LoadedRun(
        cast(Any, None), Tokenizer.load(run), 32, run, path, step, step * BATCH, read_json(run / "run.json")
    )


# -- the same by hand

PUNCTUATION = {chr(c) for c in range(0x10000) if unicodedata.category(chr(c))[0] == "P"} | {*string.punctuation}


def read_by_hand(run: Path, steps: int, left_out: Iterable[int] = ()) -> dict[tuple[int, int, int], int]:
    """The first step that read each token of each document: (part, document, token) -> step."""
    provenance, first = Provenance(run), {}
    for step in range(provenance.data.order_since + 1, steps + 1):
        if step not in left_out:
            for sample in provenance.batch(step):
                for passage in sample.passages:
                    document, begin = passage.document, passage.offset - passage.document.offset
                    for token in range(begin, begin + passage.tokens):
                        first.setdefault((document.part, document.number, token), step)
    return first


def ngrams_by_hand(run: Path, first: dict[tuple[int, int, int], int], n: int = N) -> dict[str, int | None]:
    """Every N-gram of the corpus with the step that completed it first; None where none did."""
    provenance, tokenizer = Provenance(run), Tokenizer.load(run)
    found: dict[str, int | None] = {}
    for part, reader in enumerate(provenance.data.parts):
        for number in range(reader.documents):
            words: list[tuple[str, float]] = []
            begin = 0
            for ids in reader.sequences(number):
                text = tokenizer.decode(ids[:-1])
                encoding = tokenizer._tokenizer.encode(text, add_special_tokens=False)
                assert encoding.ids == ids[:-1].tolist()
                for piece in re.finditer(r"\S+", text):
                    letters = [place for place in range(*piece.span()) if text[place] not in PUNCTUATION]
                    if letters:
                        tokens = [
                            token
                            for token, (start, end) in enumerate(encoding.offsets)
                            if start <= letters[-1] and end > letters[0]
                        ]
                        steps = [first.get((part, number, begin + token), np.inf) for token in tokens]
                        word = "".join(text[place] for place in letters).lower()
                        words.append((word, np.inf if piece[0] == "<unk>" else max(steps)))
                begin += len(ids)
            for start in range(len(words) - n + 1):
                gram = " ".join(word for word, _ in words[start : start + n])
                step = max(step for _, step in words[start : start + n])
                before = found.get(gram)
                found[gram] = before if step == np.inf else int(min(step, before or np.inf))
    return found


def compare(contamination: Contamination, expected: dict[str, int | None], step: int, n: int = N) -> list[Mark]:
    grams = Random(0).sample(sorted(expected), min(400, len(expected)))
    marks = contamination.marks(grams, n)
    for gram, mark in zip(grams, marks, strict=True):
        read = expected[gram]
        assert (mark.dirty, mark.step) == ((True, read) if read is not None and read <= step else (False, None)), gram
    return marks
