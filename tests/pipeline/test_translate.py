"""`translate` and `generate` from their arguments to their files: what is written, in which order, and what is refused."""

import argparse
import json
from pathlib import Path

import pytest
import torch

from data_prep.files import InputError, read_json, write_json
from data_prep.tokenizer import Tokenizer
from pipeline.checkpoint import RECORD_KEY, describe_model, load_run
from pipeline.commands import generate, translate
from pipeline.generation import sampling
from pipeline.generation.beam import Beam, beam_search
from pipeline.models.classifier import ClassifierConfig
from pipeline.models.recurrent import LSTMConfig
from pipeline.models.seq2seq_recurrent import RecurrentSeq2SeqConfig
from pipeline.models.seq2seq_transformer import TransformerSeq2SeqConfig
from pipeline.models.transformer import TransformerConfig

CONTEXT = 24
LINES = [
    "Return the number of items.",
    "",
    "An object",
    "  ",
    "é“: The value of an expression that was given",
    "An object",
]


@pytest.fixture(scope="session")
def tokenizer(tokens_folder) -> Tokenizer:
    return Tokenizer.load(tokens_folder)


@pytest.fixture
def make_run(tmp_path, tokenizer):
    """Writes the run directory of an untrained model."""

    def make(family: str) -> Path:
        torch.manual_seed(1)
        shape = {"vocab_size": tokenizer.vocab_size, "width": 16}
        lstm = LSTMConfig(layers=1, **shape)
        config = {
            "seq2seq_recurrent": RecurrentSeq2SeqConfig(cell="gru", layers=1, attention="dot", **shape),
            "seq2seq_transformer": TransformerSeq2SeqConfig(
                context=CONTEXT, encoder_layers=1, decoder_layers=1, heads=2, positions="learned", **shape
            ),
            "transformer": TransformerConfig(context=CONTEXT, layers=1, heads=2, **shape),
            "lstm": lstm,
            "classifier": ClassifierConfig(vocab_size=tokenizer.vocab_size, body=lstm, classes=2),
        }[family]
        model = config.build()
        for parameter in model.parameters():
            parameter.data *= 4
        folder = tmp_path / family
        (folder / "checkpoints").mkdir(parents=True)
        tokenizer.save(folder)
        write_json(folder / "run.json", {"format": 1, "name": family})
        data = {"tokenizer": tokenizer.fingerprint, "context": CONTEXT}
        record = {"model": describe_model(config), "data": data, "step": 7, "tokens_seen": 700}
        weights = {f"model.{name}": value for name, value in model.state_dict().items()}
        torch.save({RECORD_KEY: record, "state_dict": weights}, folder / "checkpoints" / "best.ckpt")
        return folder

    return make


def call(command, *arguments) -> None:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    assert command.run(parser.parse_args([str(argument) for argument in arguments])) == 0


@pytest.fixture
def source(tmp_path) -> Path:
    path = tmp_path / "source.txt"
    path.write_text("".join(f"{line}\n" for line in LINES), encoding="utf-8")
    return path


def samples_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()]


# translate


@pytest.mark.parametrize("family", ["seq2seq_recurrent", "seq2seq_transformer"])
@pytest.mark.parametrize("batch_tokens", [1, 4096])
def test_each_line_is_translated_in_its_place_whatever_the_batches(make_run, source, tmp_path, family, batch_tokens):
    run, output = make_run(family), tmp_path / "output.txt"
    call(
        translate,
        "--run",
        run,
        "--input",
        source,
        "--output",
        output,
        "--max_new_tokens",
        9,
        "--batch_tokens",
        batch_tokens,
    )
    loaded = load_run(run)
    end, expected = loaded.tokenizer.end_of_text, []
    for line in LINES:
        tokens = [*loaded.tokenizer.encode(line)[: CONTEXT - 1], end]
        [[best]] = beam_search(loaded.model, [[end]], 9, Beam(), sources=[tokens], stop=frozenset([end]))
        text = loaded.tokenizer.decode(token for token in best.tokens if token != end)
        expected.append(" ".join(text.splitlines()).strip() if line.strip() else "")
    assert output.read_text(encoding="utf-8") == "".join(f"{line}\n" for line in expected)
    assert len({*expected}) > 2


def test_without_an_output_the_terminal_has_the_translations_alone(make_run, source, tmp_path, capsys):
    run, output = make_run("seq2seq_recurrent"), tmp_path / "output.txt"
    options = ["--run", run, "--input", source, "--max_new_tokens", 5, "--beam", 2]
    call(translate, *options, "--output", output)
    capsys.readouterr()
    call(translate, *options, "--reference", source)
    printed = capsys.readouterr()
    assert printed.out == output.read_text(encoding="utf-8")
    assert "BLEU" in printed.err
    assert not list(tmp_path.glob("*.scores.json"))


def test_scores_are_those_of_sacrebleu_with_its_signatures(make_run, source, tmp_path, monkeypatch, capsys):
    from sacrebleu import corpus_bleu, corpus_chrf

    said = [
        "Return a number of the items.",
        "",
        "The object",
        "",
        "The value of an expression which was given",
        "An object",
    ]
    monkeypatch.setattr(translate, "translate", lambda *arguments: (said, 0))
    output = tmp_path / "output.txt"
    call(
        translate, "--run", make_run("seq2seq_recurrent"), "--input", source, "--output", output, "--reference", source
    )
    scores = read_json(tmp_path / "output.txt.scores.json")
    assert scores["bleu"]["score"] == pytest.approx(corpus_bleu(said, [LINES]).score)
    assert scores["chrf"]["score"] == pytest.approx(corpus_chrf(said, [LINES]).score)
    assert 0 < scores["bleu"]["score"] < 100
    assert "tok:13a" in scores["bleu"]["signature"]
    assert "nc:6" in scores["chrf"]["signature"]
    assert (scores["lines"], scores["settings"]["beam"], scores["tokens_seen"]) == (6, 4, 700)
    printed = capsys.readouterr().out
    assert f"BLEU {scores['bleu']['score']:.2f} ({scores['bleu']['signature']})" in printed


def test_a_source_beyond_the_context_loses_its_end_and_is_counted(make_run, tmp_path, capsys, tokenizer):
    run, short, long = make_run("seq2seq_transformer"), tmp_path / "short.txt", tmp_path / "long.txt"
    fits = tokenizer.decode(tokenizer.encode("the " * 100)[: CONTEXT - 1])
    assert len(tokenizer.encode(fits)) == CONTEXT - 1
    short.write_text(f"{fits}\nAn object\n")
    long.write_text(f"{fits}{fits} and more\nAn object\n")
    for path in (short, long):
        call(translate, "--run", run, "--input", path, "--output", path.with_suffix(".out"), "--max_new_tokens", 100)
    assert short.with_suffix(".out").read_text() == long.with_suffix(".out").read_text()
    printed = capsys.readouterr().out
    assert printed.count("lost their end") == 1
    assert f"1 of 2 sources were longer than the model's context of {CONTEXT} tokens" in printed


def test_sampled_translations_repeat_with_their_seed(make_run, source, capsys):
    run = make_run("seq2seq_recurrent")

    def drawn(seed: int) -> str:
        call(translate, "--run", run, "--input", source, "--temperature", 1.0, "--seed", seed, "--max_new_tokens", 6)
        return capsys.readouterr().out

    assert drawn(0) == drawn(0) != drawn(1)


def test_an_empty_file_has_an_empty_translation(make_run, tmp_path):
    (tmp_path / "empty.txt").write_text("")
    output = tmp_path / "output.txt"
    call(translate, "--run", make_run("seq2seq_recurrent"), "--input", tmp_path / "empty.txt", "--output", output)
    assert output.read_bytes() == b""


def test_files_of_different_length_are_refused_with_both_counts(source, tmp_path):
    (tmp_path / "reference.txt").write_text("one\ntwo\n")
    with pytest.raises(InputError, match=r"source.txt has 6 lines and .*reference.txt 2"):
        call(translate, "--run", tmp_path, "--input", source, "--reference", tmp_path / "reference.txt")


def test_what_cannot_be_translated_is_refused(make_run, source, tmp_path):
    with pytest.raises(InputError, match="holds no encoder-decoder.*pipeline generate"):
        call(translate, "--run", make_run("lstm"), "--input", source)
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    with pytest.raises(InputError, match="latin.txt is not UTF-8 at byte 3"):
        call(translate, "--run", tmp_path, "--input", tmp_path / "latin.txt")
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(InputError, match="nothing can be scored"):
        call(translate, "--run", tmp_path, "--input", tmp_path / "empty.txt", "--reference", tmp_path / "empty.txt")


@pytest.mark.parametrize(
    "options",
    [["--beam", "0"], ["--length_penalty", "-1"], ["--batch_tokens", "0"], ["--max_new_tokens", "0"], ["--min_p", "2"]],
    ids=" ".join,
)
def test_an_option_outside_its_range_is_refused(source, tmp_path, options):
    with pytest.raises(InputError):
        call(translate, "--run", tmp_path, "--input", source, *options)


# generate


def test_a_prompt_begins_a_document_unless_it_is_said_not_to(make_run, capsys, tokenizer):
    run = make_run("lstm")
    model, greedy = load_run(run).model, ["--temperature", 0, "--max_new_tokens", 8]
    prompt = tokenizer.encode("An object")
    for options, tokens in ([], [tokenizer.end_of_text, *prompt]), (["--mid_document"], prompt):
        call(generate, "--run", run, "--prompt", "An object", *greedy, *options)
        [new] = sampling.generate(model, [tokens], 8, stop=frozenset([tokenizer.end_of_text]))
        assert capsys.readouterr().out == "An object" + tokenizer.decode(new).removesuffix("<|endoftext|>") + "\n"
    first, second = samples_of(run)
    assert first["completions"] != second["completions"]
    assert (first["settings"]["mid_document"], second["settings"]["mid_document"]) == (None, True)


@pytest.mark.parametrize("options", [["--temperature", "0"], ["--beam", "3"]], ids=" ".join)
def test_prompts_together_are_continued_as_alone(make_run, tmp_path, capsys, options):
    run, prompts = make_run("transformer"), ["An object", "", "Return the number of"]
    (tmp_path / "prompts.txt").write_text("\n".join(prompts))
    options = ["--run", run, "--max_new_tokens", 9, *options]
    for prompt in prompts:
        call(generate, *options, "--prompt", prompt)
    call(generate, *options, *[part for prompt in prompts for part in ("--prompt", prompt)])
    call(generate, *options, "--prompts", tmp_path / "prompts.txt")
    texts = [(sample["prompt"], sample["completions"]) for sample in samples_of(run)]
    assert texts[:3] == texts[3:6] == texts[6:]
    assert "--- prompt 2 of 3\n" in capsys.readouterr().out


def test_samples_of_a_prompt_are_kept_on_one_line(make_run, capsys):
    run = make_run("transformer")
    call(generate, "--run", run, "--prompt", "An", "--samples", 3, "--max_new_tokens", 6, "--min_p", 0.01, "--seed", 4)
    [sample] = samples_of(run)
    assert len({*sample["completions"]}) == 3
    assert {*sample} == {"time", "checkpoint", "tokens_seen", "prompt", "settings", "completions"}
    assert sample["settings"]["temperature"] == 0.8
    assert (sample["settings"]["min_p"], sample["settings"]["seed"], sample["settings"]["max_new_tokens"]) == (
        0.01,
        4,
        6,
    )
    printed = capsys.readouterr().out
    for number, completion in enumerate(sample["completions"], 1):
        assert f"--- sample {number} of 3\nAn{completion}\n" in printed


def test_the_best_of_a_beam_are_its_samples(make_run, tokenizer):
    run = make_run("lstm")
    call(generate, "--run", run, "--prompt", "An", "--beam", 5, "--samples", 2, "--max_new_tokens", 6)
    [sample] = samples_of(run)
    end = tokenizer.end_of_text
    prompt = [end, *tokenizer.encode("An")]
    [best] = beam_search(load_run(run).model, [prompt], 6, Beam(width=5), best=2, stop=frozenset([end]))
    assert sample["completions"] == [tokenizer.decode(t for t in one.tokens if t != end) for one in best]
    assert sample["settings"] | {"beam": 5, "length_penalty": 0.6} == sample["settings"]
    with pytest.raises(InputError, match="--samples is 6, but a beam of 5"):
        call(generate, "--run", run, "--prompt", "An", "--beam", 5, "--samples", 6)


@pytest.mark.parametrize("samples", [1, 2], ids=["streamed", "in a batch"])
def test_a_text_ends_before_its_stop_string(make_run, capsys, samples):
    run = make_run("lstm")
    options = ["--run", run, "--prompt", "An", "--temperature", 0, "--max_new_tokens", 20, "--samples", samples]
    call(generate, *options)
    whole = samples_of(run)[0]["completions"][0]
    stop = next(whole[i : i + 3] for i in range(3, len(whole)) if whole[i : i + 3].isascii())
    capsys.readouterr()
    call(generate, *options, "--stop", stop, "--stop", "never said")
    sample = samples_of(run)[1]
    assert sample["completions"] == [whole[: whole.index(stop)]] * samples
    assert sample["settings"]["stop"] == [stop, "never said"]
    assert capsys.readouterr().out.endswith(f"An{whole[: whole.index(stop)]}\n")


def test_a_stream_shows_no_half_characters_and_nothing_twice(capsys):
    from pipeline.generation.stopping import StopStrings

    def spelled(tokens) -> str:
        return bytes(tokens).decode(errors="replace")

    stream = generate.TextStream(spelled, 0, StopStrings(["END"], spelled))
    shown = []
    for byte in "a é E b“ENDx".encode():
        stream.add(0, byte)
        shown.append(capsys.readouterr().out)
    assert "".join(shown) == "a é E b“"
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(shown)
    assert stream.finish() == "a é E b“"
    assert capsys.readouterr().out == "\n"


def test_runs_that_continue_no_text_are_refused(make_run):
    with pytest.raises(InputError, match="pipeline translate --run .*seq2seq_recurrent --input FILE"):
        call(generate, "--run", make_run("seq2seq_recurrent"), "--prompt", "x")
    with pytest.raises(InputError, match="holds a classifier, which writes no text"):
        call(generate, "--run", make_run("classifier"), "--prompt", "x")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--beam", "2", "--top_k", "3"], "--top_k draws tokens, and --beam searches"),
        (["--stop", ""], "a stop string is empty"),
        (["--samples", "0"], "--samples is 0"),
        (["--repetition_penalty", "0"], "repetition_penalty 0.0 is not positive"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_that_contradict_are_refused(make_run, options, sentence):
    with pytest.raises(InputError, match=sentence):
        call(generate, "--run", make_run("lstm"), "--prompt", "x", *options)


def test_a_file_without_prompts_is_refused(tmp_path):
    (tmp_path / "prompts.txt").write_text("")
    with pytest.raises(InputError, match="prompts.txt has no line"):
        call(generate, "--run", tmp_path, "--prompts", tmp_path / "prompts.txt")
