"""A whole run: done once, the same bytes however it was stopped, and its result is what was put in."""

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from rich.console import Console

from data_prep import corpus as corpus_files
from data_prep import document, tokenization, verification
from data_prep.cli import main
from data_prep.files import InputError
from data_prep.recipe import STAGES
from data_prep.shards import Manifest
from data_prep.sources import Text
from data_prep.split import SplitConfig
from data_prep.stages import exclusive
from data_prep.tokenization import TokenizerConfig
from data_prep.tokenizer import Tokenizer

FOLDERS = ["documents/text", "unique", "split", "tokenizer", "tokens"]


def content(output: Path) -> dict[str, bytes]:
    """Every file of a finished run but the lock, with nothing left out that a killed run could leave behind."""
    return {
        path.relative_to(output).as_posix(): path.read_bytes()
        for path in sorted(output.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def outcome(printed: str) -> dict[str, bool]:
    """Which stages did nothing, by name."""
    return {line.split()[0]: "unchanged" in line for line in printed.splitlines() if line.split()[0] in FOLDERS}


def write_yaml(tmp_path: Path, corpus: Path, output: Path, **parts) -> Path:
    file = tmp_path / "data.yaml"
    config = {
        "output": str(output),
        "sources": {"text": {"class_path": "Text", "init_args": {"files": [f"{corpus}/*.txt"]}}},
        "split": {"validation": 0.1, "test": 0.1},
        "tokenizer": {"vocab_size": 300},
        "shards": {"tokens": 2000},
    }
    file.write_text(yaml.safe_dump(config | parts))
    return file


def test_rerun_of_an_unchanged_config_does_nothing_and_says_so(corpus, config_for, prepare, tmp_path):
    config = config_for(corpus)
    assert outcome(prepare(config)) == dict.fromkeys(FOLDERS, False)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    assert outcome(prepare(replace(config, workers=2))) == dict.fromkeys(FOLDERS, True)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before


def test_another_vocabulary_is_made_from_the_tokenizer_on(corpus, config_for, prepare, tmp_path):
    prepare(config_for(corpus))
    again = prepare(config_for(corpus, tokenizer=TokenizerConfig(vocab_size=320)))
    assert outcome(again) == dict(zip(FOLDERS, [True, True, True, False, False], strict=True))
    assert Manifest.load(tmp_path / "out" / "tokens").vocab_size == 320


def test_a_changed_file_is_noticed_and_a_touched_one_ends_at_the_first_stage(corpus, config_for, prepare):
    config = config_for(corpus)
    prepare(config)
    os.utime(corpus / "005.txt", ns=(1, 1))
    assert outcome(prepare(config)) == dict(zip(FOLDERS, [False, True, True, True, True], strict=True))
    (corpus / "005.txt").write_text("another text\n")
    assert outcome(prepare(config))["tokens"] is False


def test_a_lost_or_cut_file_of_a_finished_stage_is_made_again(corpus, config_for, prepare, tmp_path):
    config = config_for(corpus)
    prepare(config)
    before = content(tmp_path / "out")
    shard = next((tmp_path / "out" / "tokens" / "train").glob("*.bin"))
    shard.write_bytes(shard.read_bytes()[:-1])
    (tmp_path / "out" / "unique" / "text-00000.parquet").unlink()
    assert outcome(prepare(config)) == dict(zip(FOLDERS, [True, False, True, True, False], strict=True))
    assert content(tmp_path / "out") == before


def test_tokens_of_every_split_decode_to_the_documents_put_in(corpus, config_for, prepare, tmp_path):
    prepare(config_for(corpus))
    manifest = Manifest.load(tmp_path / "out" / "tokens" / "manifest.json")
    tokenizer = Tokenizer.load(manifest.folder)
    assert manifest.tokenizer == tokenizer.fingerprint
    found = []
    for split in manifest.splits:
        reader = manifest.open(split)
        for k in range(reader.documents):
            ids = reader.document(k)
            assert np.flatnonzero(ids == tokenizer.end_of_text).tolist() == [len(ids) - 1]
            found.append(tokenizer.decode(ids[:-1]))
    assert sorted(found) == sorted(path.read_text() for path in corpus.iterdir())
    sizes = [shard.text_bytes for shards in manifest.splits.values() for shard in shards]
    assert sum(sizes) == sum(path.stat().st_size for path in corpus.iterdir())


def test_how_much_is_encoded_at_once_changes_no_token(corpus, config_for, prepare, tmp_path, monkeypatch):
    folders = []
    for size in (2**24, 3000, 1):
        monkeypatch.setattr(document, "ROW_GROUP_BYTES", 1000)
        monkeypatch.setattr(tokenization, "ENCODED_AT_ONCE", size)
        folders.append(tmp_path / f"out{size}")
        prepare(config_for(corpus, output=str(folders[-1])), "tokenize")
    whole, *others = (content(folder / "tokens") for folder in folders)
    assert all(other == whole for other in others)


def test_adding_documents_moves_none_between_splits(corpus, config_for, prepare, tmp_path):
    def places() -> dict[str, str]:
        return {
            id: split
            for split in ("train", "validation", "test")
            for batch in document.read(tmp_path / "out" / "split" / split, "text")
            for id in batch.column("id").to_pylist()
        }

    prepare(config_for(corpus), "split")
    before = places()
    for number in range(50):
        (corpus / f"000-{number}.txt").write_text(f"new text {number}\n")
    prepare(config_for(corpus), "split")
    after = places()
    assert len(after) == len(before) + 50
    assert {id: after[id] for id in before} == before


def test_of_equal_documents_the_one_of_the_earlier_source_is_kept(corpus, config_for, prepare, tmp_path):
    copies = tmp_path / "copies"
    shutil.copytree(corpus, copies)
    (copies / "new.txt").write_text("only here\n")
    sources = {"text": Text(files=[f"{corpus}/*.txt"]), "copies": Text(files=[f"{copies}/*.txt"], split="train")}
    printed = prepare(config_for(corpus, sources=sources))
    assert "120 duplicates" in printed
    counts = corpus_files.documents_by_source(Manifest.load(tmp_path / "out" / "tokens"), "train")
    assert counts["copies"] == 1


def test_a_source_can_name_its_split(corpus, config_for, prepare, tmp_path):
    (tmp_path / "held.txt").write_text("a|b|c|d")
    held = Text(files=[f"{tmp_path}/held.txt"], separator="|", split="validation")
    sources = {"text": Text(files=[f"{corpus}/*.txt"]), "held": held}
    prepare(config_for(corpus, sources=sources, split=SplitConfig(0, 0)), "tokenize")
    manifest = Manifest.load(tmp_path / "out" / "tokens")
    assert corpus_files.documents_by_source(manifest, "validation") == {"held": 4}
    assert corpus_files.documents_by_source(manifest, "train") == {"text": 120}
    assert manifest.splits["test"] == ()


def kill_after(process: subprocess.Popen, reached, delay: float) -> bool:
    """SIGKILL a run some time after it reached a point; whether it was still running."""
    while process.poll() is None and not reached():
        time.sleep(0.001)
    time.sleep(delay)
    running = process.poll() is None
    process.send_signal(signal.SIGKILL) if running else None
    process.wait()
    return running


@pytest.mark.parametrize("kind", ["Text", pytest.param("Pairs", marks=pytest.mark.slow)])
def test_a_run_killed_at_any_moment_and_started_again_ends_with_the_same_bytes(corpus, tmp_path, kind):
    output = tmp_path / "out"
    own = {"Text": {}, "Pairs": {"separator": " ", "columns": 2, "text_column": 1, "target_column": 0}}[kind]
    source = {"class_path": kind, "init_args": {"files": [f"{corpus}/*.txt"], **own}}
    config = write_yaml(tmp_path, corpus, output, sources={"text": source})
    command = [sys.executable, "-m", "data_prep", "run", "--config", str(config)]
    assert main(command[3:]) == 0
    expected = content(output)
    killed = 0
    moments = [(f"{Path(folder).parent}/.{Path(folder).name}.partial", 0.003) for folder in FOLDERS]
    moments += [(folder, 0.0) for folder in FOLDERS]
    for name, delay in moments:
        shutil.rmtree(output)
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            killed += kill_after(process, (output / name).exists, delay)
        assert main(command[3:]) == 0
        assert content(output) == expected, name
    assert killed >= 5, "the runs were over before they could be killed"


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_full_disk_is_one_sentence_and_leaves_nothing_half_written(corpus, tmp_path, monkeypatch, capsys, folder):
    output = tmp_path / "out"
    config = write_yaml(tmp_path, corpus, output)
    from data_prep import files

    sync = files.sync

    def full(path: Path) -> None:
        if f".{Path(folder).name}.partial" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        sync(path)

    monkeypatch.setattr(files, "sync", full)
    assert main(["run", "--config", str(config)]) == 2
    assert "error: No space left on device" in capsys.readouterr().err
    assert sorted(str(path.parent.relative_to(output)) for path in output.rglob("stage.json")) == sorted(
        FOLDERS[: FOLDERS.index(folder)]
    )
    assert not [path for path in output.rglob("*") if "partial" in path.name]
    monkeypatch.undo()
    assert main(["run", "--config", str(config)]) == 0


def test_a_write_that_the_system_refuses_ends_with_status_2(corpus, tmp_path):
    output = tmp_path / "out"
    command = [sys.executable, "-m", "data_prep", "run", "--config", str(write_yaml(tmp_path, corpus, output))]
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))  # noqa: E731
    result = subprocess.run(command, preexec_fn=limit, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.stderr
    assert not list(output.rglob("*partial*"))
    for parquet in output.rglob("*.parquet"):
        assert list(document.read(parquet.parent, "text"))


def test_two_runs_do_not_write_to_one_folder(corpus, config_for, prepare, tmp_path):
    with exclusive(tmp_path / "out"), pytest.raises(InputError, match="Another run is writing to"):
        prepare(config_for(corpus))


def test_verify_finds_what_checksums_cannot(corpus, config_for, prepare, tmp_path):
    prepare(config_for(corpus))
    console = Console(file=open(os.devnull, "w"))
    verification.verify(tmp_path / "out", console)
    shutil.copytree(tmp_path / "out" / "tokens", tmp_path / "alone")
    verification.verify(tmp_path / "alone", console)
    parquet = next((tmp_path / "out" / "split" / "test").glob("*.parquet"))
    shutil.copy(next((tmp_path / "out" / "split" / "validation").glob("*.parquet")), parquet)
    with pytest.raises(InputError, match="of split test .* does not decode to its text"):
        verification.verify(tmp_path / "out", console)
    manifest = Manifest.load(tmp_path / "alone")
    replace(manifest, vocab_size=270).save()
    with pytest.raises(InputError, match="the vocabulary has 270"):
        verification.verify(tmp_path / "alone", console)
    replace(manifest, end_of_text=5).save()
    with pytest.raises(InputError, match="of which end in end-of-text"):
        verification.verify(tmp_path / "alone", console)
    Tokenizer.train(["other text " * 100, *"abc"], 262).save(tmp_path / "alone")
    with pytest.raises(InputError, match="the shards were made with"):
        verification.verify(tmp_path / "alone", console)


def test_inspect_shows_counts_and_the_document_that_is_asked_for(corpus, tmp_path, capsys):
    assert main(["run", "--config", str(write_yaml(tmp_path, corpus, tmp_path / "out"))]) == 0
    assert main(["inspect", str(tmp_path / "out")]) == 0
    assert "validation" in capsys.readouterr().out
    row = document.read_one(tmp_path / "out" / "split" / "train", "text", 7)
    assert row is not None
    assert main(["inspect", str(tmp_path / "out"), "--document", "7"]) == 0
    printed = capsys.readouterr().out
    assert row["id"] in printed
    assert row["text"].strip() in printed
    assert main(["inspect", str(tmp_path / "out"), "--document", "5000"]) == 2
    assert "There is no document 5000" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--tokenizer.vocab_sise", "300"], "unrecognized arguments: --tokenizer.vocab_sise"),
        (["--sources.text.fils", "[x]"], "'fils' is not accepted"),
        (["--tokenizer.vocab_size", "many"], "tokenizer.vocab_size"),
        (["--tokenizer.vocab_size", "50000"], "merges for only"),
        (["--tokenizer.path", "none.json"], "There is no tokenizer at none.json"),
        (["--split.validation", "0.0001"], "documents fell to validation"),
        (["--shards.tokens", "0"], "shards.tokens is 0"),
        (["--sources.text.files", "[nowhere/*.txt]"], "No file matches 'nowhere/*.txt'"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_a_mistake_is_one_sentence_and_status_2(corpus, tmp_path, capsys, arguments, sentence):
    config = write_yaml(tmp_path, corpus, tmp_path / "out")
    assert main(["run", "--config", str(config), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert sentence in error


@pytest.mark.parametrize("key", ["colour", "tokenizer"])
def test_an_unknown_key_in_a_yaml_is_one_sentence_and_status_2(corpus, tmp_path, capsys, key):
    config = write_yaml(tmp_path, corpus, tmp_path / "out", **{key: {"colour": "red"}})
    assert main(["run", "--config", str(config)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "colour" in error
    assert " accept" in error


def test_help_is_instant_and_names_every_verb():
    started = time.perf_counter()
    result = subprocess.run([sys.executable, "-m", "data_prep", "--help"], capture_output=True, text=True, check=True)
    assert time.perf_counter() - started < 1
    assert all(verb in result.stdout for verb in ("run", "collect", "dedup", *STAGES, "verify", "inspect"))


SHIPPED = [
    *sorted((Path(__file__).resolve().parents[2] / "configs").glob("data/*.yaml")),
    Path(__file__).resolve().parents[2] / "configs" / "demo" / "data.yaml",
]


@pytest.mark.parametrize("config", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_config_is_understood(config, capsys):
    with pytest.raises(SystemExit) as finished:
        main(["run", "--config", str(config), "--print_config"])
    assert finished.value.code == 0
    assert yaml.safe_load(capsys.readouterr().out)["output"].startswith("data/")


def test_the_config_for_own_text_runs_beside_a_folder_of_text(tmp_path, monkeypatch):
    (tmp_path / "corpus").mkdir()
    words = np.random.default_rng(0).integers(0, 3000, 200_000)
    (tmp_path / "corpus" / "book.txt").write_text("\n".join(f"w{word} x" for word in words))
    monkeypatch.chdir(tmp_path)
    (config,) = [path for path in SHIPPED if path.stem == "text"]
    assert main(["run", "--config", str(config), "--tokenizer.vocab_size", "500"]) == 0
    assert Manifest.load("data/text/tokens").tokens("validation") > 0
