"""`inspect` from the command line: what its pages hold, and what it says where there is nothing to show."""

import base64
import json
import re
import sys
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest
import torch
from reporting.page_reader import Page

from data_prep.shards import Manifest
from data_prep.tokenizer import Tokenizer
from pipeline import cli
from pipeline.checkpoint import load_run
from pipeline.generation.sampling import generate
from pipeline.inspection.samples import PARAGRAPH, samples
from pipeline.models.base import ModelConfig
from pipeline.models.recurrent import LSTMConfig, RNNConfig
from pipeline.models.seq2seq_recurrent import RecurrentSeq2SeqConfig
from pipeline.models.seq2seq_transformer import TransformerSeq2SeqConfig
from pipeline.models.transformer import TransformerConfig
from pipeline.reporting.quantities import digits

V = 512
SENTENCE = "The FBI is chasing a criminal on the run ."
GPT = TransformerConfig(vocab_size=V, context=64, layers=3, width=16, heads=2)
CONFIGS: dict[str, ModelConfig] = {
    "gpt": GPT,
    "lstm": LSTMConfig(vocab_size=V, layers=2, width=12),
    "irnn": RNNConfig(vocab_size=V, layers=1, width=12, activation="relu", identity=True),
    "seq2seq_recurrent": RecurrentSeq2SeqConfig(vocab_size=V, cell="gru", layers=1, width=12),
    "seq2seq_transformer": TransformerSeq2SeqConfig(
        vocab_size=V, context=64, encoder_layers=2, decoder_layers=1, width=16, heads=4
    ),
}


def inspect(*arguments: object) -> int:
    return cli.main(["inspect", *map(str, arguments)])


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one sentence that the command says on stderr."""
    assert inspect(*arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0]


def maps_of(path: Path) -> dict[str, dict]:
    """The data of a page of attention maps by kind, its weights decoded."""
    page = Page(path.read_text(encoding="utf-8"))
    kinds = [attributes["data-kind"] for _, attributes in page.tags if "data-kind" in attributes]
    scripts = [attributes.get("class") for tag, attributes in page.tags if tag == "script"]
    data = [json.loads(text) for text, name in zip(page.scripts, scripts, strict=True) if name == "maps"]
    for one in data:
        shape = (len(one["layers"]), len(one["layers"][0]), len(one["rows"]), len(one["columns"]))
        content = b"".join(base64.b64decode(head["weights"]) for heads in one["layers"] for head in heads)
        one["weights"] = np.frombuffer(content, "<u2").reshape(shape) / 65535
    return {str(kind): one for kind, one in zip(kinds, data, strict=True)}


def test_the_page_holds_the_attention_of_every_layer_and_head_with_its_tokens(make_run) -> None:
    run = make_run("gpt", GPT)
    assert inspect("--run", run, "--attention", SENTENCE) == 0
    maps = maps_of(run / "inspect/attention.html")
    loaded = load_run(run)
    tokens = [loaded.tokenizer.end_of_text, *loaded.tokenizer.encode(SENTENCE)]
    expected = torch.stack(loaded.model.attention_maps(torch.tensor([tokens]))["self"])[:, 0]
    assert list(maps) == ["self"]
    assert maps["self"]["weights"].shape == (3, 2, len(tokens), len(tokens))
    np.testing.assert_allclose(maps["self"]["weights"], expected.detach().numpy(), atol=1e-5)
    assert maps["self"]["rows"] == maps["self"]["columns"]
    assert maps["self"]["rows"][0] == "<|endoftext|>"
    assert "".join(maps["self"]["rows"][1:]).replace("␣", " ") == SENTENCE


def test_an_encoder_decoder_shows_three_kinds_and_names_cross_rows_by_what_they_predict(make_run) -> None:
    run = make_run("nmt", CONFIGS["seq2seq_transformer"])
    assert inspect("--run", run, "--source", SENTENCE, "--attention", "Le FBI") == 0
    maps = maps_of(run / "inspect/attention.html")
    tokenizer = Tokenizer.load(run)
    source, target = len(tokenizer.encode(SENTENCE)) + 1, len(tokenizer.encode("Le FBI")) + 1
    shapes = {kind: one["weights"].shape for kind, one in maps.items()}
    assert shapes == {
        "encoder": (2, 4, source, source),
        "self": (1, 4, target, target),
        "cross": (1, 4, target, source),
    }
    assert maps["cross"]["columns"] == maps["encoder"]["rows"]
    assert maps["cross"]["rows"] == [*maps["self"]["rows"][1:], "<|endoftext|>"]


def test_a_target_that_is_not_given_is_decoded_greedily(make_run) -> None:
    run = make_run("alignment", CONFIGS["seq2seq_recurrent"])
    assert inspect("--run", run, "--source", SENTENCE, "--attention") == 0
    maps = maps_of(run / "inspect/attention.html")
    loaded = load_run(run)
    end = loaded.tokenizer.end_of_text
    source = [*loaded.tokenizer.encode(SENTENCE), end]
    rows = len(maps["cross"]["rows"])
    [decoded] = generate(loaded.model, [[end]], rows, sources=[source], stop=frozenset([end]))
    labels = [loaded.tokenizer.decode([token]) for token in decoded]
    shown = [label.replace("␣", " ").replace("↵", "\n") for label in maps["cross"]["rows"]]
    assert list(maps) == ["cross"]
    assert shown[:-1] == labels[: rows - 1]


def test_the_text_is_inert_and_the_page_fetches_nothing(make_run) -> None:
    run = make_run("gpt", GPT)
    assert inspect("--run", run, "--attention", "<script>alert(1)</script> & <b>") == 0
    page = Page((run / "inspect/attention.html").read_text(encoding="utf-8"))
    assert "<script>alert(1)</script> & <b>" in page.text
    assert "b" not in {tag for tag, _ in page.tags}
    assert not any("src" in attributes or tag == "link" for tag, attributes in page.tags)
    assert all(str(attributes.get("href", "#")).startswith("#") for _, attributes in page.tags)


def test_a_map_of_144_heads_and_64_tokens_is_a_light_page(make_run) -> None:
    config = TransformerConfig(vocab_size=V, context=64, layers=12, width=24, heads=12)
    run = make_run("large", config)
    tokenizer = Tokenizer.load(run)
    text = tokenizer.decode(tokenizer.encode(PARAGRAPH)[:63])
    assert inspect("--run", run, "--attention", text) == 0
    assert (run / "inspect/attention.html").stat().st_size < 2_000_000


def test_gradient_flow_compares_trained_with_fresh_weights_of_all_runs_and_the_other_kinds(
    make_run, tokens_folder, capsys
) -> None:
    for name in ("gpt", "lstm", "irnn"):
        folder = make_run(name, CONFIGS[name]).parent
    assert inspect("--gradient-flow", "--runs", folder, "--distance", 20, "--samples", 4) == 0
    page = Page((folder / "inspect/gradient-flow.html").read_text(encoding="utf-8"))
    figure = page.figures["gradient-flow"]
    go.Figure(data=figure["data"], layout=figure["layout"])
    names = ["gpt", "irnn", "lstm", "lstm, h alone"]
    fresh = ["fresh rnn", "fresh gru"]  # of the lectures' five kinds those that no run is
    assert [trace["name"] for trace in figure["data"]] == [*names, *fresh, *names]
    relative, measured = (choice["data"]["y"] for choice in figure["choices"]["Scale"])
    assert relative == [trace["y"] for trace in figure["data"]]
    for shown, absolute in zip(relative, measured, strict=True):
        assert len(shown) == 21
        assert shown[0] == 1
        np.testing.assert_allclose(np.divide(absolute, absolute[0]), shown, rtol=1e-9)
    # The weights of these runs are of another seed than the fresh ones, so the panels differ.
    untrained, trained = measured[:4], measured[6:]
    assert untrained[0] != trained[0]
    printed = capsys.readouterr().out
    assert "4 pieces of validation text" in page.text
    fitted = [10 ** np.polyfit(range(1, 21), np.log10(absolute[1:]), 1)[0] for absolute in measured]
    for name, before, after in zip(("gpt", "irnn", "lstm", "lstm"), fitted[:4], fitted[6:], strict=True):
        assert re.search(rf"{name} .* {digits(before)} .* {digits(after)} ", printed)
    assert re.search(rf"fresh rnn +h +{digits(fitted[4])} +vanishing .* – +–", printed)
    assert re.search(r"lstm +h and c +0\.\d+ +vanishing", printed)


def test_gradient_flow_leaves_out_what_has_none_and_refuses_it_by_name(make_run, capsys) -> None:
    make_run("gpt", GPT)
    other = make_run("nmt", CONFIGS["seq2seq_recurrent"])
    assert inspect("--gradient-flow", "--runs", other.parent, "--distance", 5) == 0
    assert "Left out: nmt (seq2seq_recurrent) does not carry" in capsys.readouterr().out
    assert "nmt (seq2seq_recurrent) does not carry" in refused(capsys, "--gradient-flow", "--run", other)


def test_pieces_of_text_lie_within_documents(make_run, tokens_folder) -> None:
    loaded = load_run(make_run("lstm", CONFIGS["lstm"]))
    tokens, words = samples(loaded, 40, 8)
    stream = Manifest.load(tokens_folder).open("validation").read(0, Manifest.load(tokens_folder).tokens("validation"))
    windows = np.lib.stride_tricks.sliding_window_view(stream, 40)
    assert words == "validation text"
    assert tokens.shape == (8, 40)
    assert not (tokens == loaded.tokenizer.end_of_text).any()
    assert all((windows == row).all(axis=1).any() for row in tokens)


def test_without_its_shards_a_run_reads_the_paragraph(make_run, tmp_path, capsys) -> None:
    run = make_run("lstm", CONFIGS["lstm"], data=tmp_path / "gone")
    loaded = load_run(run)
    tokens, words = samples(loaded, 30, 4)
    whole = [loaded.tokenizer.end_of_text, *loaded.tokenizer.encode(PARAGRAPH)]
    assert words == "the built-in paragraph"
    assert tokens[0].tolist() == whole[:30]
    assert tokens[-1].tolist() == whole[-30:]
    message = refused(capsys, "--gradient-flow", "--run", run, "--distance", 5000)
    assert f"the built-in paragraph has {len(whole)}: give --distance {len(whole) - 2} or less" in message


def test_loss_by_position_shows_the_runs_that_have_it_and_names_the_others(make_run) -> None:
    losses = [5 - 0.01 * position for position in range(64)]
    folder = make_run("gpt", GPT, loss_by_position=losses).parent
    make_run("lstm", CONFIGS["lstm"])
    make_run("diverged", GPT, loss_by_position=[float("nan")] * 64)
    assert inspect("--loss-by-position", "--runs", folder) == 0
    page = Page((folder / "inspect/loss-by-position.html").read_text(encoding="utf-8"))
    assert page.figures["context"]["data"][0]["y"] == losses
    assert {trace["name"] for trace in page.figures["context"]["data"]} == {"gpt"}
    assert "lstm has no loss by position yet" in page.text
    assert "diverged has no loss by position yet" in page.text


def test_runs_of_the_same_name_are_told_apart(make_run, tmp_path) -> None:
    runs = [make_run(f"{folder}/gpt", GPT, loss_by_position=[3.0, 2.0, 1.0]) for folder in ("one", "two")]
    output = tmp_path / "page.html"
    assert inspect("--loss-by-position", "--run", runs[0], "--run", runs[1], "--output", output) == 0
    traces = Page(output.read_text(encoding="utf-8")).figures["context"]["data"]
    assert {trace["name"] for trace in traces} == {"one/gpt", "two/gpt"}


@pytest.mark.parametrize(
    ("name", "arguments", "sentence"),
    [
        ("lstm", ["--attention", SENTENCE], "lstm (lstm) has no attention to show: --gradient-flow shows"),
        ("gpt", ["--attention", "a"], "The text of --attention is 1 token long: a map needs 2 or more"),
        ("gpt", ["--attention"], "The text of --attention is 0 tokens long"),
        ("gpt", ["--attention", "a b " * 50], "are 102 tokens, the model's context is 64: shorten it"),
        ("lstm", ["--attention", "a b " * 100], "are 202 tokens, the room in a picture is 128: shorten it"),
        ("gpt", ["--attention", SENTENCE, "--source", "x y"], "gpt has no encoder to read --source"),
        ("seq2seq_recurrent", ["--attention", SENTENCE], "is an encoder-decoder: give the text that it reads as --source"),
        ("gpt", ["--attention", SENTENCE, "--checkpoint", "last"], "has no checkpoint 'last' (there: best)"),
        ("gpt", ["--gradient-flow"], "A distance of 64 takes 65 tokens, but the context of gpt is 64"),
        ("gpt", ["--gradient-flow", "--distance", 1], "--distance is 1: it must be at least 2"),
        ("gpt", ["--gradient-flow", "--samples", 0], "--samples is 0: it must be at least 1"),
        ("gpt", ["--gradient-flow", "--source", "x"], "--source is what an encoder-decoder reads for --attention"),
        ("gpt", ["--loss-by-position"], "No loss by position in the validation.json of gpt: `python -m pipeline validate`"),
    ],
)  # fmt: skip
def test_what_cannot_be_shown_is_refused_in_one_sentence(make_run, capsys, name, arguments, sentence) -> None:
    run = make_run(name, CONFIGS[name])
    assert sentence in refused(capsys, "--run", run, *arguments)
    assert not (run / "inspect").exists()


def test_runs_that_are_not_there_are_refused(make_run, tmp_path, capsys) -> None:
    run, absent = make_run("gpt", GPT), tmp_path / "absent"
    assert "There is no run directory" in refused(capsys, "--run", absent, "--attention", SENTENCE)
    assert "absent is not a run (a folder with a run.json)" in refused(capsys, "--run", absent, "--gradient-flow")
    assert "absent is not a folder" in refused(capsys, "--runs", absent, "--loss-by-position")
    assert "Give either --run" in refused(capsys, "--loss-by-position")
    assert "Give either --run" in refused(capsys, "--loss-by-position", "--run", run, "--runs", run)
    assert "--attention looks at one run" in refused(capsys, "--attention", SENTENCE, "--run", run, "--run", run)


def test_exactly_one_view_is_asked_for(capsys) -> None:
    for views in ([], ["--gradient-flow", "--loss-by-position"]):
        with pytest.raises(SystemExit) as stopped:
            inspect("--run", "x", *views)
        assert stopped.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_help_needs_nothing_heavy(capsys) -> None:
    """The module imports nothing of torch or plotly before a view is known."""
    source = Path(sys.modules["pipeline.commands.inspect"].__file__ or "").read_text()
    top_level = [line for line in source.splitlines() if re.match(r"(from|import) ", line)]
    assert not any("torch" in line or "plotly" in line for line in top_level)
