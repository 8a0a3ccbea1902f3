"""The page as a reader gets it: its numbers are the files' numbers, its text is inert, and it needs nothing else."""

import csv
import json
import re
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import plotly.graph_objects as go
import pytest
from reporting.page_reader import Page

from data_prep.files import InputError
from pipeline.commands import report
from pipeline.reporting import document
from pipeline.reporting import page as page_module
from pipeline.reporting.runs import find_runs

MakeRun = Callable[..., Path]


def write_report(folder: Path) -> Page:
    assert report.run(Namespace(folder=folder, output=None)) == 0
    return Page((folder / "report.html").read_text(encoding="utf-8"))


@pytest.fixture
def two_runs(make_run: MakeRun) -> Path:
    make_run("gpt")
    return make_run("lstm", family="lstm", floor=4.15).parent


def column(run: Path, name: str) -> list[float]:
    with (run / "metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row[name]]


def test_curves_hold_the_numbers_of_the_csv(two_runs: Path) -> None:
    figure = write_report(two_runs).figures["curves"]
    train, validation, *_ = figure["data"]
    assert train["y"] == column(two_runs / "gpt", "train/loss")
    assert validation["y"] == column(two_runs / "gpt", "val/loss")
    assert train["x"][-1] == 400 * 8192


def test_curves_can_be_read_against_tokens_time_and_flops(two_runs: Path) -> None:
    against = write_report(two_runs).figures["curves"]["choices"]["Against"]
    last = [choice["data"]["x"][1][-1] for choice in against]
    tokens = 400 * 8192
    assert last == pytest.approx([tokens, tokens / 16_500 / 60, tokens * 6 * 5_300_000], rel=1e-4)


def test_bits_per_byte_shows_only_curves_that_logged_it(two_runs: Path) -> None:
    bits = write_report(two_runs).figures["curves"]["choices"]["Measure"][1]["data"]
    assert bits["visible"] == [False, True, False, True]
    assert bits["y"][3] == column(two_runs / "lstm", "val/bits_per_byte")


def test_every_figure_is_valid_plotly_in_every_choice(two_runs: Path) -> None:
    figures = write_report(two_runs).figures
    single = [name for name in figures if "-" not in name]
    assert single == ["curves", "context", "scores", "throughput", "optimisation"]
    for figure in figures.values():
        # Plotly's Python classes know every property by name and refuse any other.
        go.Figure(data=figure["data"], layout=figure["layout"])
        for choice in (choice for group in figure["choices"].values() for choice in group):
            chosen = [{key: values[k] for key, values in choice["data"].items()} for k in range(len(figure["data"]))]
            traces = [trace | values for trace, values in zip(figure["data"], chosen, strict=True)]
            go.Figure(data=traces).update_layout(
                {key.replace(".", "_"): value for key, value in choice["layout"].items()}
            )


def test_every_thick_curve_answers_to_pointing(two_runs: Path) -> None:
    traces = [trace for figure in write_report(two_runs).figures.values() for trace in figure["data"]]
    # A trace that Plotly is told to skip shows nothing, even where it has a text to show.
    assert not [trace for trace in traces if trace.get("hoverinfo") == "skip" and "hovertemplate" in trace]
    assert not [trace for trace in traces if trace.get("line", {}).get("width") == 2.5 and "hovertemplate" not in trace]


def test_scores_carry_standard_errors_and_chance(two_runs: Path) -> None:
    *marks, chance = write_report(two_runs).figures["scores"]["data"]
    assert [trace["name"] for trace in marks] == ["gpt, 0-shot", "gpt, 5-shot", "lstm, 0-shot", "lstm, 5-shot"]
    results = json.loads((two_runs / "gpt/evaluation/results.json").read_text())["pipeline"]["scores"]
    expected = [score for score in results if score["shots"] == 5]
    assert marks[1]["x"] == pytest.approx([100 * score["score"] for score in expected])
    assert marks[1]["error_x"]["array"] == pytest.approx([100 * score["stderr"] for score in expected])
    assert set(chance["x"]) == {0, 25, None}


def test_a_perplexity_is_in_the_table_but_not_among_the_shares(two_runs: Path) -> None:
    page = write_report(two_runs)
    assert "92.4" in page.text
    assert all(x is None or x <= 100 for trace in page.figures["scores"]["data"] for x in trace["x"])


def test_a_run_has_one_colour_in_all_figures(two_runs: Path) -> None:
    figures = write_report(two_runs).figures.values()
    traces = [
        trace for figure in figures for trace in figure["data"] if "marker" not in trace and trace["name"] == "lstm"
    ]
    assert len(traces) > 5
    assert len({trace["line"]["color"] for trace in traces}) == 1


def test_headline_names_the_run_with_the_fewest_bits_per_byte(two_runs: Path) -> None:
    page = write_report(two_runs)
    bits = json.loads((two_runs / "gpt/validation.json").read_text())["bits_per_byte"]
    assert f"gpt reaches {bits:.2f} bits per byte" in page.text
    assert "5.30\u202fM parameters" in page.text


def test_samples_names_and_configuration_are_inert_text(make_run: MakeRun) -> None:
    name = "<img src=x onerror=alert(2)>"
    page = write_report(make_run(name).parent)
    assert "<script>alert(1)</script> tags that were found & closed." in page.text
    assert "naïve ☃ 日本語" in page.text
    assert "# <b>not bold</b>" in page.text
    assert name in page.text
    assert not [tag for tag, _ in page.tags if tag in {"img", "b"}]
    assert not any(script.startswith("alert") for script in page.scripts)
    # Plotly takes names as markup, so what reaches it is escaped once more.
    assert page.figures["curves"]["data"][0]["name"] == "&lt;img src=x onerror=alert(2)&gt;"


def test_prompt_is_marked_apart_from_the_completion(two_runs: Path) -> None:
    write_report(two_runs)
    page = (two_runs / "report.html").read_text(encoding="utf-8")
    assert "<pre><mark>Return the number of</mark> elements in the sequence" in page


def test_the_page_fetches_nothing(two_runs: Path) -> None:
    page = write_report(two_runs)
    for tag, attributes in page.tags:
        assert tag not in {"link", "iframe", "object", "embed"}
        assert "src" not in attributes
        assert str(attributes.get("href", "#")).startswith("#")
    policy = next(attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert str(policy).startswith("default-src 'none'")
    style = re.search(r"<style>(.*?)</style>", (two_runs / "report.html").read_text(encoding="utf-8"), re.S)
    assert style
    assert "url(" not in style[1]
    assert "@import" not in style[1]


def test_the_page_is_light(two_runs: Path) -> None:
    write_report(two_runs)
    assert (two_runs / "report.html").stat().st_size < 6_000_000


def test_same_folders_give_the_same_bytes(two_runs: Path) -> None:
    write_report(two_runs)
    first = (two_runs / "report.html").read_bytes()
    write_report(two_runs)
    assert (two_runs / "report.html").read_bytes() == first


def test_lineage_names_each_fingerprint_in_full(two_runs: Path) -> None:
    record = json.loads((two_runs / "gpt/run.json").read_text())["data"]
    titles = {attributes.get("title") for _, attributes in write_report(two_runs).tags}
    packages = [package["sha256"] for package in record["sources"][0]["packages"]]
    assert {record["fingerprint"], record["tokenizer"], record["sources"][0]["fingerprint"], *packages} <= titles


def test_the_command_says_where_the_page_lies_and_how_to_view_it(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "elsewhere" / "page.html"
    report.run(Namespace(folder=make_run("gpt"), output=output))
    assert output.is_file()
    printed = capsys.readouterr().out
    assert str(output) in printed
    assert output.as_uri() in printed


def test_a_run_that_just_began_is_a_page_of_sentences(make_run: MakeRun) -> None:
    run = make_run("gpt")
    for path in [*run.glob("*.*"), *run.glob("*/*")]:
        if path.name != "run.json":
            path.unlink()
    page = write_report(run)
    assert page.figures == {}
    assert "1 run, not validated yet" in page.text
    for sentence in ("No loss is logged yet", "No scores yet", "No samples yet", "no checkpoint on this disk"):
        assert sentence in page.text


def test_a_run_still_going_says_how_far_it_is(make_run: MakeRun) -> None:
    run = make_run("gpt", steps=100)
    (run / "validation.json").unlink()
    page = write_report(run)
    assert "25% of the planned tokens are trained" in page.text
    assert f"gpt reaches {column(run, 'val/bits_per_byte')[-1]:.2f} bits per byte" in page.text


def test_scores_of_other_data_are_called_out(make_run: MakeRun) -> None:
    run = make_run("gpt")
    results = run / "evaluation" / "results.json"
    results.write_text(
        results.read_text().replace(json.loads((run / "run.json").read_text())["data"]["fingerprint"], "0" * 64)
    )
    assert "its scores name another data fingerprint than the run was trained with" in write_report(run).text


@pytest.mark.parametrize("junk", [None, "text", -1, 1e308, [None, "x", {}], {"a": None}])
def test_a_file_of_another_shape_never_stops_the_report(
    make_run: MakeRun, junk: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each field of each file in turn is replaced by something that it should not be."""
    monkeypatch.setattr(document, "get_plotlyjs", lambda: "")  # four megabytes that every rendering would copy
    run = make_run("gpt", steps=50)
    for name in ("run.json", "validation.json", "evaluation/results.json", "samples.jsonl"):
        path = run / name
        whole = path.read_text()
        original = json.loads(whole.splitlines()[0])
        for place in paths(original):
            content = json.loads(json.dumps(original))
            parent = content
            for key in place[:-1]:
                parent = parent[key]
            parent[place[-1]] = junk
            path.write_text(json.dumps(content) + "\n")
            runs, remarks = find_runs(run)
            assert "Lineage" in page_module.render(runs, remarks, title="junk"), place
        path.write_text(whole)


def paths(value: object, below: tuple = ()) -> list[tuple]:
    """The path of every field of nested dicts, and of the first item of each list."""
    items = (
        list(value.items())
        if isinstance(value, dict)
        else list(enumerate(value))[:1]
        if isinstance(value, list)
        else []
    )
    return [path for key, child in items for path in [(*below, key), *paths(child, (*below, key))]]


@pytest.mark.parametrize("broken", ["", "{", "[1]", "\x00\xff", "null"])
def test_a_broken_file_becomes_a_sentence(make_run: MakeRun, broken: str) -> None:
    run = make_run("gpt", steps=50)
    (run / "validation.json").write_text(broken)
    (run / "evaluation" / "results.json").write_text(broken)
    (run / "samples.jsonl").write_text(broken)
    text = write_report(run).text
    assert "validation.json in gpt is not a JSON object, so the last logged validation stands in" in text
    assert "No scores yet" in text


def test_an_unreadable_run_beside_a_good_one_is_left_out_with_a_sentence(make_run: MakeRun) -> None:
    folder = make_run("gpt", steps=50).parent
    (folder / "torn").mkdir()
    (folder / "torn" / "run.json").write_text('{"name": ')
    assert "run.json in torn is not a JSON object, so this run is left out" in write_report(folder).text


def test_a_folder_without_runs_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no run .*run\.json.*pipeline fit"):
        report.run(Namespace(folder=tmp_path, output=None))
    with pytest.raises(InputError, match="is not a folder"):
        report.run(Namespace(folder=tmp_path / "absent", output=None))
    assert list(tmp_path.iterdir()) == []


def test_losses_of_different_text_are_not_compared(two_runs: Path) -> None:
    together = write_report(two_runs)
    assert "lstm reaches" in together.text or "gpt reaches" in together.text
    assert " is ahead of " in together.text
    for change in ({"fingerprint": "other"}, {"labels": ["good", "bad"]}):
        path = two_runs / "lstm" / "run.json"
        record = json.loads(path.read_text())
        path.write_text(json.dumps(record | {"data": record["data"] | change}))
        apart = write_report(two_runs)
        assert "2 runs on 2 kinds of text" in apart.text
        assert " is ahead of " not in apart.text
        assert apart.text.count("their losses do not compare") == 2
        path.write_text(json.dumps(record))


def test_a_classifier_is_judged_by_its_accuracy(make_run: MakeRun) -> None:
    run = make_run("sentiment", family="classifier")
    for name, change in (("run.json", {"data": {"labels": ["good", "bad"]}}), ("validation.json", {"accuracy": 0.741})):
        path = run / name
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert "sentiment names 74.1 % of the labels right" in write_report(run).text.replace("\u202f", " ")
