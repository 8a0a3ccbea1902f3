"""`verify-resume` passes on the shipped configurations, under every strategy and for every family, and fails where something is amiss."""

import re
from pathlib import Path

import pytest

from pipeline.cli import main

ROOT = Path(__file__).parents[2]
STRATEGIES = "ddp,zero1,zero2,zero3"

# Shipped configurations on the small corpora of the tests: files, corpus, what else the command says.
CASES = {
    "gpt": (["demo/gpt"], "tokens_folder", ["--data.batch_tokens=1024", "--data.context=128"]),
    "lstm with carried state": (
        ["demo/lstm"], "tokens_folder", ["--data.batch_tokens=1024", "--data.context=64", "--data.order=stream"],
    ),
    "seq2seq": (
        ["model/seq2seq_transformer_tiny", "run/translation"], "pairs_folder",
        ["--data.batch_tokens=1024", "--data.context=64", "--data.micro_batch=8", "--model.architecture.dropout=0"],
    ),
}  # fmt: skip
MORE = {
    "classifier": (
        ["model/classifier_transformer_tiny", "run/sentiment"], "labelled_folder",
        ["--model.architecture.body.vocab_size=512", "--data.labels=[with, without]", "--data.batch_tokens=1024",
         "--data.context=64", "--data.micro_batch=8", "--model.architecture.dropout=0", "--model.architecture.body.dropout=0"],
    ),
    "lecture's gru in bf16": (
        ["lectures/run", "lectures/gru"], "tokens_folder", ["--trainer.precision=bf16-mixed", "--data.batch_tokens=1024"],
    ),
    "gpt whose dropout differs by rank": (
        ["demo/gpt"], "tokens_folder",
        ["--data.batch_tokens=1024", "--data.context=128", "--model.architecture.dropout=0.1"],
    ),
}  # fmt: skip


def options(case: tuple[list[str], str, list[str]], request: pytest.FixtureRequest) -> list[str]:
    files, corpus, more = case
    configs = [part for file in files for part in ("--config", str(ROOT / f"configs/{file}.yaml"))]
    precision = [] if any("precision" in option for option in more) else ["--trainer.precision=32-true"]
    data = [f"--data.path={request.getfixturevalue(corpus)}", "--data.total_tokens=20000", "--data.total_epochs=null"]
    return [*configs, "--model.architecture.vocab_size=512", *precision, *data, *more]


def rows(printed: str) -> list[str]:
    """The rows of the table, one for each way of resuming."""
    return re.findall(r"^ .*→.*(?:pass|FAIL)", printed, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_killed_run_goes_on_exactly_under_every_strategy(case, request, capsys):
    status = main(["verify-resume", "--steps", "9", "--strategy", STRATEGIES, *options(CASES[case], request)])
    printed = capsys.readouterr()
    assert status == 0, printed.out + printed.err
    found = rows(printed.out)
    assert len(found) == 5
    assert found[0].count("equal") == 6  # at its own layout, bit for bit
    for name, row in zip(STRATEGIES.split(","), found[1:], strict=True):
        assert f"1 x single → 2 x {name} → 1 x single" in row


@pytest.mark.slow
@pytest.mark.parametrize("case", MORE)
def test_a_killed_run_goes_on_exactly_on_one_rank_and_on_two(case, request, capsys):
    status = main(["verify-resume", "--steps", "6", *options(MORE[case], request)])
    printed = capsys.readouterr()
    assert status == 0, printed.out + printed.err
    assert ("not compared" in rows(printed.out)[1]) == ("dropout" in case)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "ranks", "failing"),
    [("ForgetsMoments", "1,2", [0, 1]), ("SkipsSamples", "1", [0]), ("NudgesWeights", "1", [0])],
)
def test_a_run_that_resumes_wrongly_is_found_out(fault, ranks, failing, request, capsys):
    spoiled = [f"--trainer.callbacks+=distributed.faults.{fault}"]
    status = main(["verify-resume", "--steps", "6", "--ranks", ranks, *options(CASES["gpt"], request), *spoiled])
    found = rows(capsys.readouterr().out)
    assert status == 1
    assert [number for number, row in enumerate(found) if row.endswith("FAIL")] == failing
    assert ("differ at 3" in found[0]) == (fault == "SkipsSamples")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "what"),
    [
        (["--ranks", "1,3"], "A batch of 8 sequences .* cannot be shared by 3 ranks: give --ranks divisors of 8"),
        (["--data.contxt=3"], "near it: data.context"),
        (["--data.total_tokens=3072"], "run has 3 steps, this needs 6"),
        (["--data.path=nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_run_is_refused_with_one_sentence(given, what, request, capsys):
    assert main(["verify-resume", *options(CASES["gpt"], request), *given]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert re.search(what, errors[0])


def test_options_without_a_meaning_are_refused_before_anything_starts(tmp_path, capsys):
    (tmp_path / "file").touch()
    for given, what in (
        (["--ranks", "1,x"], "--ranks is 1,x"), (["--steps", "5"], "--steps is 5"), (["--keep", str(tmp_path)], "is there already"),
    ):  # fmt: skip
        assert main(["verify-resume", "--config", "none.yaml", *given]) == 2
        assert what in capsys.readouterr().err
