"""What the lectures say of sequence models, on real data: attention, labels, words, all through the shipped configurations."""

import csv
import gzip
import io
import json
import zipfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from data_prep.cli import main as data_prep
from pipeline.cli import main as pipeline

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent
DATA = ROOT.parent / "shared" / "data"
QUIET = ["--wandb.mode", "disabled", "--trainer.enable_progress_bar", "false"]


def real(name: str) -> Path:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"the real data file {name} is not here")
    return path


@pytest.fixture(autouse=True)
def two_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


def fit(model: str, run: str, directory: Path, *options: str) -> dict[str, str]:
    """Train a preset in a run; return the last row of its metrics."""
    configs = ["--config", str(ROOT / f"configs/model/{model}.yaml"), "--config", str(ROOT / f"configs/run/{run}.yaml")]
    assert pipeline(["fit", *configs, "--trainer.default_root_dir", str(directory), *QUIET, *options]) == 0
    with (directory / "metrics.csv").open() as file:
        return list(csv.DictReader(file))[-1]


def prepare(config: str, *options: str) -> None:
    assert data_prep(["run", "--config", str(ROOT / f"configs/data/{config}.yaml"), *options]) == 0


VARIANTS = {
    "gru without attention": ("seq2seq_gru", ["attention", "none"]),
    "gru, dot": ("seq2seq_gru", ["attention", "dot"]),
    "gru, additive, two directions": ("seq2seq_gru", ["attention", "additive"]),
    "lstm, multiplicative": ("seq2seq_lstm", ["attention", "multiplicative"]),
    "lstm, predicted window": ("seq2seq_lstm", ["attention", "multiplicative", "window", "4", "alignment", "predictive"]),
    "lstm, monotonic window": ("seq2seq_lstm", ["attention", "dot", "window", "4", "alignment", "monotonic"]),
    "transformer": ("seq2seq_transformer_tiny", []),
}  # fmt: skip


def test_every_encoder_decoder_learns_to_pronounce_and_attention_makes_it_sooner(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prepare("phonemes", "--sources.words.files", f'["{real("seq2seq/cmudict.dict.gz")}"]')
    accuracies = {}
    for name, (preset, settings) in VARIANTS.items():
        width = [] if preset == "seq2seq_transformer_tiny" else ["width", "128"]
        changed = [*settings, *width, "vocab_size", "101"]
        options = [f"--model.architecture.{k}={v}" for k, v in zip(changed[::2], changed[1::2], strict=True)]
        options += ["--model.optimizer.learning_rate", "3e-3", "--data.total_epochs", "0.3"]
        accuracies[name] = float(fit(preset, "phonemes", tmp_path / name, *options)["val/accuracy"])
    print("phoneme accuracy:", {name: f"{value:.3f}" for name, value in accuracies.items()})
    assert min(accuracies.values()) > 0.55  # 0.14 for an end of text everywhere
    assert accuracies["gru, dot"] > accuracies["gru without attention"] + 0.08


def test_attention_translates_better_after_the_same_tokens(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pairs = ["--sources.pairs.files", f'["{real("translation/python-docs.en-fr.tsv.gz")}"]']
    pairs += ["--sources.pairs.text_column", "1", "--sources.pairs.target_column", "2"]
    prepare("translation", *pairs, "--tokenizer.vocab_size", "4096")
    rows = [
        row
        for file in sorted(Path("data/translation/split/test").glob("*.parquet"))
        for row in pq.read_table(file).to_pylist()
    ]
    rows = [row for row in rows if "\n" not in row["text"] + row["target"] and len(row["text"]) < 120][:100]
    for name in ("text", "target"):
        Path(f"{name}.txt").write_text("".join(row[name] + "\n" for row in rows))
    scores = {}
    for attention in ("none", "multiplicative"):
        options = {"vocab_size": 4096, "width": 256, "attention": attention}
        architecture = [f"--model.architecture.{k}={v}" for k, v in options.items()]
        size = ["--data.context", "48", "--data.batch_tokens", "3072", "--data.total_epochs", "1.5"]
        run = tmp_path / attention
        last = fit("seq2seq_gru", "translation", run, *architecture, *size, "--model.optimizer.learning_rate", "3e-3")
        files = ["--input", "text.txt", "--output", f"{attention}.txt", "--reference", "target.txt"]
        assert pipeline(["translate", "--run", str(run), *files]) == 0
        record = json.loads(Path(f"{attention}.txt.scores.json").read_text())
        scores[attention] = (int(last["tokens"]), record["bleu"]["score"])
    print("tokens and BLEU:", scores)
    assert scores["none"][0] == scores["multiplicative"][0]
    assert scores["multiplicative"][1] > scores["none"][1] + 3


def test_a_classifier_tells_praise_from_blame(tmp_path, monkeypatch):
    archive = zipfile.ZipFile(real("sentiment/sentence_polarity.zip"))
    monkeypatch.chdir(tmp_path)
    lines = []
    for suffix, label in ((".neg", "negative"), (".pos", "positive")):
        [name] = [name for name in archive.namelist() if name.endswith(suffix)]
        text = io.TextIOWrapper(archive.open(name), encoding="latin-1").read()
        lines += [f"{line.strip()}\t{label}" for line in text.splitlines() if line.strip()]
    with gzip.open("sentences.tsv.gz", "wt") as file:
        file.write("\n".join(lines) + "\n")
    prepare("sentiment", "--sources.sentences.files", '["sentences.tsv.gz"]')
    last = fit("classifier_transformer_tiny", "sentiment", tmp_path / "run", "--data.total_epochs", "4")
    print("sentiment accuracy:", last["val/accuracy"])
    assert float(last["val/accuracy"]) > 0.65


def test_zarembas_recipe_runs_on_any_text_of_words(tmp_path, monkeypatch):
    """A small part of WikiText-2 in place of Penn Treebank; perplexity falls and the rate is halved from the fifth epoch on."""
    tokens = gzip.decompress(real("lm/wikitext2.valid.tokens.gz").read_bytes()).decode().split(" \n")
    monkeypatch.chdir(tmp_path)
    raw = Path("data/ptb-raw")
    raw.mkdir(parents=True)
    tokens = tokens[: len(tokens) // 4]
    cut = len(tokens) * 8 // 10
    for name, part in (("train", tokens[:cut]), ("valid", tokens[cut:]), ("test", tokens[cut:][:50])):
        (raw / f"ptb.{name}.txt").write_text(" \n".join(part))
    prepare("ptb", "--tokenizer.vocab_size", "2000")
    config = ["--config", str(ROOT / "configs/run/ptb_small_lstm.yaml"), "--trainer.default_root_dir", "run"]
    sizes = ["--model.architecture.vocab_size", "2000", "--data.validate_every_tokens", "40000"]
    assert pipeline(["fit", *config, *sizes, *QUIET]) == 0
    with open("run/metrics.csv") as file:
        rows = list(csv.DictReader(file))
    rates = [float(row["train/learning_rate"]) for row in rows if row["train/learning_rate"]]
    assert rates[0] == 20
    assert rates[-1] == 20 / 2**9
    perplexities = [float(row["val/perplexity"]) for row in rows if row["val/perplexity"]]
    print("perplexity:", perplexities[0], min(perplexities), perplexities[-1])
    assert min(perplexities) < 0.7 * perplexities[0]
