"""The few-shot part of the report: every score where its file has it, and sentences that say what the numbers say."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest
from reporting.few_shot_runs import WRITERS, evaluate
from reporting.page_reader import Page

from pipeline.reporting import few_shot, page
from pipeline.reporting.collisions import collisions, facts
from pipeline.reporting.figures.contamination import contamination, contamination_rows, read_contamination
from pipeline.reporting.figures.figure import colour
from pipeline.reporting.figures.in_training import in_training
from pipeline.reporting.figures.panels import Panels
from pipeline.reporting.figures.scores import few_shot as overview
from pipeline.reporting.figures.scores import read_scores
from pipeline.reporting.figures.shots import against_shots, place, tick_words
from pipeline.reporting.figures.sizes import against_parameters, round_sizes
from pipeline.reporting.runs import Run, find_runs, read_in_loop
from pipeline.reporting.scores import principal, score_rows, unit
from pipeline.reporting.tables import COLUMNS, score_summary, score_table
from pipeline.reporting.written import question_of, written

MakeRun = Callable[..., Path]


def scored(name: str, *scores: tuple[str, float, float | None, float | None]) -> Run:
    records: list[dict[str, Any]] = [
        {"task": task, "shots": 0, "metric": "acc", "score": score, "stderr": stderr, "chance": chance, "n": 100}
        for task, score, stderr, chance in scores
    ]
    return Run(Path(name), name, {}, evaluation={"pipeline": {"scores": records}})


def test_only_scores_two_standard_errors_above_chance_count_as_above() -> None:
    first = scored("a", ("near", 0.29, 0.02, 0.25), ("far", 0.31, 0.02, 0.25), ("unknown", 0.9, None, 0.25))
    rows = score_rows([first])
    assert [row.above_chance("a") for row in rows] == [False, True, False]
    assert read_scores([first], rows) == "a is more than two standard errors above chance in 1 of 3 scores."


def test_two_runs_are_told_apart_only_beyond_the_error_of_their_difference() -> None:
    # The difference has an error of 0.05 = hypot(0.03, 0.04): 0.09 is within two of them, 0.11 is beyond.
    first = scored("a", ("same", 0.59, 0.03, 0.25), ("apart", 0.61, 0.03, 0.25))
    second = scored("b", ("same", 0.50, 0.04, 0.25), ("apart", 0.50, 0.04, 0.25))
    assert "a leads b by more than two standard errors in 1 of 2" in read_scores(
        [first, second], score_rows([first, second])
    )
    twin = replace(first, name="twin")
    assert "differ by more than two standard errors in none" in read_scores([first, twin], score_rows([first, twin]))


def test_a_run_without_a_score_leaves_its_cell_empty() -> None:
    rows = score_rows([scored("a", ("one", 0.5, 0.1, 0.25)), scored("b", ("two", 0.5, 0.1, 0.25))])
    assert [list(row.cells) for row in rows] == [["a"], ["b"]]


def of_scores(
    name: str, *scores: dict[str, Any], parameters: float | None = None, directory: Path | None = None
) -> Run:
    """A run with these rows of results.json; what they leave out is as the simplest evaluation has it."""
    simplest = {"task": "copa", "shots": 0, "metric": "acc", "score": 0.6, "stderr": 0.02, "chance": 0.5, "n": 100}
    record = {"family": "transformer", "parameters": {"total": parameters}}
    evaluation = {"pipeline": {"scores": [simplest | score for score in scores]}}
    return Run(directory or Path(name), name, record, evaluation=evaluation)


def traces_of(panels: Panels | None, task: str) -> dict[str, dict[str, Any]]:
    """The traces of a task's panel by name."""
    assert panels is not None
    [panel] = [panel for panel in panels.panels if panel.title == task]
    return {trace["name"]: trace for trace in panel.figure.traces}


def test_a_p_value_decides_on_chance_where_there_is_one() -> None:
    # 0.55 is 2.5 standard errors above chance, but an exact test may see it otherwise; and below chance is not above.
    unlikely, likely = {"score": 0.55, "p_chance": 0.03}, {"score": 0.55, "p_chance": 0.2, "task": "b"}
    below = {"score": 0.4, "p_chance": 0.001, "task": "c"}
    run = of_scores("a", unlikely, likely, below)
    rows = score_rows([run])
    assert {row.task: row.above_chance("a") for row in rows} == {"copa": True, "b": False, "c": False}
    assert read_scores([run], rows) == "a is above chance (p < 0.05) in 1 of 3 scores."


def test_many_scores_come_with_the_number_that_luck_would_give() -> None:
    run = of_scores("a", *({"task": f"t{k}", "score": 0.5, "p_chance": 0.5} for k in range(120)))
    assert read_scores([run], score_rows([run])) == (
        "a is above chance (p < 0.05) in none of 120 scores. By luck alone about 3 would be."
    )


def test_measures_keep_their_scales() -> None:
    assert unit("acc", [0.2, 0.9], True) == "share"
    assert unit("bleu", [0.4], True) == "points"
    assert unit("exact", [31.0], True) == "points"
    assert unit("perplexity", [0.9], False) == ""
    assert unit("word_perplexity", [35.1], False) == ""
    assert unit("repetition_4", [0.3], False) == "share"


def test_the_sweep_over_examples_has_every_number_of_them_with_errors_chance_and_published_scores() -> None:
    published = [{"model": "GPT-3 Small", "score": 0.67, "shots": 32, "split": "validation", "n": 100, "full": True}]
    run = of_scores(
        "gpt",
        {"shots": 0, "score": 0.5},
        {
            "shots": 8,
            "score": 0.62,
            "published": published,
            "stderr": 0.03,
            "seed_scores": [0.6, 0.64],
            "spread": 0.028,
        },
        {"shots": 1, "score": 0.55},
    )
    panels = against_shots([run], score_rows([run]))
    traces = traces_of(panels, "copa")
    assert traces["gpt"]["x"] == [place(0), place(1), place(8)] == [0, 1, 4]
    assert traces["gpt"]["y"] == pytest.approx([50, 55, 62])
    assert traces["gpt"]["error_y"]["array"] == pytest.approx([2, 2, 3])
    assert traces["chance"]["y"] == [50, 50]
    assert (traces["GPT-3 Small"]["x"], traces["GPT-3 Small"]["y"]) == ([6], [67])
    assert "32-shot" in traces["GPT-3 Small"]["text"][0]
    assert "full set, as ours" in traces["GPT-3 Small"]["text"][0]
    assert traces["gpt, single seeds"]["y"] == pytest.approx([60, 64])
    assert panels is not None
    # 0.12 is more than 2 x hypot(0.02, 0.03) = 0.072.
    assert panels.reading == "The most examples help gpt by more than two standard errors in 1 of 1 task."


def test_a_falling_perplexity_counts_as_help_and_cut_examples_are_named() -> None:
    ppl = {"metric": "perplexity", "higher_is_better": False, "chance": None, "stderr": 1.0}
    run = of_scores("a", ppl | {"score": 40.0}, ppl | {"score": 30.0, "shots": 8, "shots_cut": 3, "shots_mean": 5.5})
    panels = against_shots([run], score_rows([run]))
    assert panels is not None
    assert panels.reading == (
        "The most examples help a by more than two standard errors in 1 of 1 task. "
        "In copa not all examples fitted the context, so there the axis names more than the model saw."
    )


def test_one_number_of_examples_is_no_sweep() -> None:
    run = of_scores("a", {"shots": 5})
    assert against_shots([run], score_rows([run])) is None


def test_ticks_leave_out_what_has_no_room_but_never_the_last() -> None:
    assert tick_words([0, 1, 2, 4]) == ["0", "1", "2", "4"]
    assert tick_words([0, 60, 64])[1:] == ["", "64"]


def test_scores_against_parameters_need_two_sizes() -> None:
    small, large = of_scores("s", {"score": 0.52}, parameters=1e6), of_scores("l", {"score": 0.61}, parameters=1e7)
    same = of_scores("twin", {"score": 0.6}, parameters=1.1e6)
    assert against_parameters([small], score_rows([small])) is None
    assert against_parameters([small, same], score_rows([small, same])) is None
    runs = [large, small]
    panels = against_parameters(runs, score_rows(runs))
    line = traces_of(panels, "copa")["transformer, 0-shot"]
    assert (line["x"], line["y"]) == ([1e6, 1e7], [52, 61])
    # Each mark has its run's colour, though the line goes by size.
    assert line["marker"]["color"] == [colour(1), colour(0)]
    assert panels is not None
    assert panels.reading.startswith(
        "With its most examples the largest run is better than the smallest by more than two"
    )
    assert "in 1 of 1 task, and the best of all sizes in 1" in panels.reading


def test_published_models_stand_at_their_own_size() -> None:
    published = [
        {"model": "GPT-3 Small", "score": 0.66, "shots": 0},
        {"model": "GPT-2 117M", "score": 0.6, "shots": 0},
        {"model": "a model of unknown size", "score": 0.7, "shots": 0},
    ]
    runs = [of_scores("s", {"published": published}, parameters=1e6), of_scores("l", {}, parameters=1e7)]
    traces = traces_of(against_parameters(runs, score_rows(runs)), "copa")
    assert traces["GPT-3 Small"]["x"] == [125e6]
    assert traces["GPT-2 117M"]["x"] == [117e6]
    assert "a model of unknown size" not in traces
    assert round_sizes(1e6, 125e6) == [1e6, 1e7, 1e8]
    assert round_sizes(2e6, 5e6) == [2e6, 5e6]


def test_scores_during_training_go_by_tokens_and_a_resume_replaces_what_was_lost() -> None:
    def lines(*steps: int, score: float) -> str:
        rows = (
            {"task": "copa", "shots": 0, "metric": "acc", "score": score + step / 1e3, "stderr": 0.001}
            for step in steps
        )
        records = zip(steps, rows, strict=True)
        return "".join(
            json.dumps({"step": s, "tokens": 10 * s, "share": 0.02, "scores": [row]}) + "\n" for s, row in records
        )

    loop = read_in_loop(lines(10, 20, 30, score=0.5) + lines(20, 40, score=0.6) + '{"step": 50')
    run = Run(Path("a"), "a", {}, in_loop=loop)
    panels = in_training([run])
    [trace] = traces_of(panels, "copa, 0-shot").values()
    assert trace["x"] == [100, 200, 400]
    assert trace["y"] == pytest.approx([51, 62, 64])
    assert panels is not None
    assert panels.reading.replace("\u202f", " ") == (
        "From first to last evaluation a gains more than two standard errors in 1 of 1 score. "
        "The evaluations took 2.0 % of the time of a."
    )


PARTS = {"clean": {"score": 0.5, "stderr": 0.02, "n": 90}, "dirty": {"score": 0.9, "stderr": 0.09, "n": 10}}


def test_contamination_is_shown_beside_the_score_with_its_ngram_and_share() -> None:
    run = of_scores("a", PARTS | {"score": 0.54, "dirty_share": 0.1, "ngram": 8})
    rows = score_rows([run])
    [(of, cells, apart)] = contamination_rows([run], rows)
    shown = [cell.replace("\u202f", " ") for cell in cells]
    assert (of.name, apart) == ("a", True)
    assert shown == ["copa", "0", "acc", "8", "10.0 %", "54.0 % ± 2.0 % (100)", "50.0 % ± 2.0 % (90)", "90.0 % ± 9.0 % (10)", "+40.0 %"]  # fmt: skip
    figure = contamination([run], rows)
    assert figure is not None
    assert {trace["name"]: trace["x"] for trace in figure.traces} == {
        "a, all": [54],
        "a, clean": [50],
        "a, dirty": [90],
    }
    assert "most of all copa (10.0\u202f%); the dirty ones score otherwise than the clean" in figure.reading


def test_what_was_met_in_training_is_shown_and_what_is_not_known_is_said(make_run: MakeRun) -> None:
    folder = evaluate(make_run("gpt"))
    [run] = find_runs(folder)[0]
    met = collisions([run])
    assert len(met) == 3
    assert (met[0].task, met[0].words, met[0].place) == (
        "webquestions",
        "capital of peru",
        "step 12, document en/geo:4",
    )
    assert [(name, value.replace("\u202f", " ")) for name, value in facts(run)] == [
        ("trained on", f"3.28 M tokens up to step 400 of {folder}"),
        ("index of 8-grams", "3.10 M in 25.0 MB"),
    ]
    about = run.evaluation["pipeline"]["contamination"] | {"unknown": "The shards of its first half are gone"}
    part = replace(run, evaluation={"pipeline": run.evaluation["pipeline"] | {"contamination": about}})
    text = Page(page.render([part], [], title="part")).text
    assert "gpt: The shards of its first half are gone." in text
    assert "capital of peru" in text


def test_a_clean_evaluation_says_so_and_one_that_looked_nothing_up_says_nothing() -> None:
    clean = of_scores("a", {"clean": PARTS["clean"], "dirty": None, "dirty_share": 0.0, "ngram": 13})
    rows = score_rows([clean])
    assert read_contamination([clean], rows) == "None of the questions of 1 task overlap with what a was trained on."
    assert contamination([clean], rows) is None
    assert few_shot.of_runs([clean]).contamination is not None
    assert few_shot.of_runs([of_scores("b", {})]).contamination is None


def test_the_table_tells_what_is_known_of_a_score() -> None:
    run = of_scores(
        "a",
        {
            "p_chance": 0.0004, "seed_scores": [0.58, 0.62], "spread": 0.0283, "shots_cut": 2, "shots_mean": 5.25, "truncated": 1,
            "against": {"run": "lstm", "difference": -0.031, "low": -0.06, "high": 0.002, "p": 0.07}, "shots": 8,
            "published": [{"model": "GPT-3 Small", "score": 0.67, "shots": 32, "split": "validation", "n": 100, "full": False}],
        },
    )  # fmt: skip
    [row] = few_shot.of_runs([run]).table["Other tasks"]
    [cell] = row.cells
    assert cell is not None
    assert (cell.score, cell.error, cell.leading) == ("60.0\u202f%", "± 2.0\u202f%", True)
    assert [note.replace("\u202f", " ") for note in cell.notes] == [
        "chance: p < 0.001",
        "2 seeds: ± 2.8 %",
        "−3.1 % to lstm [−6.0, +0.2], p = 0.070",
        "fewer shots in 2, mean 5.2",
        "1 cut on the left",
    ]
    assert row.published == [("GPT-3 Small 67.0\u202f%", "32-shot, validation (100), full set, not as ours")]


def test_the_harness_and_the_paper_are_told_apart() -> None:
    run = of_scores("a", {"metric": "em", "scoring": "harness"}, {"metric": "em", "scoring": "paper", "score": 0.7})
    rows = score_rows([run])
    assert [(row.measure, row.cells["a"].score) for row in rows] == [("em", 0.6), ("em (paper)", 0.7)]


def test_one_measure_stands_for_a_task_and_one_with_published_figures_first() -> None:
    published = [{"model": "GPT-3 Small", "score": 0.66, "shots": 0}]
    run = of_scores(
        "a", {"metric": "perplexity", "higher_is_better": False}, {}, {"metric": "acc_norm", "published": published}
    )
    assert principal(score_rows([run])) == {"copa": ("copa", "acc_norm", "harness")}


def test_kinds_are_titled_and_can_be_chosen_where_tasks_are_many(make_run: MakeRun) -> None:
    runs, _ = find_runs(evaluate(make_run("gpt")))
    figure = overview(runs, score_rows(runs))
    assert figure is not None
    titles = [note["text"] for note in figure.layout["annotations"]]
    assert titles[:3] == ["<b>Dialogue</b>", "<b>Translation</b>", "<b>Reading comprehension</b>"]
    places = figure.layout["yaxis"]["tickvals"]
    assert len(places) == len(set(places)) == 13
    kinds = {choice.label: choice.layout["yaxis.range"] for choice in figure.choices["Kind"]}
    low, high = kinds["Commonsense"]
    inside = [task for task, y in zip(figure.layout["yaxis"]["ticktext"], places, strict=True) if low < y < high]
    assert inside == ["copa", "piqa"]


def test_what_was_written_is_shown_without_the_solved_examples_news_first(make_run: MakeRun) -> None:
    runs, _ = find_runs(evaluate(make_run("gpt")))
    tasks = written(runs)
    assert [task.task for task in tasks] == ["news_articles", "dialogue_replies", "translation_en_fr", "webquestions"]
    assert {task.shots for task in tasks} == {8}
    assert all(len(task.questions) == 3 for task in tasks)
    question = tasks[2].questions[1]
    assert question.text == WRITERS["translation_en_fr"][0].replace(":", " 1:", 1)
    assert (question.target, question.answers[0].text) == ("La mer est calme.", "La mer est calme. 1.0")
    assert question.answers[0].contaminated
    assert question.answers[0].marks == [("exact_match", "0"), ("f1", "0.50")]
    assert (question.answers[1].way, question.answers[1].text) == ("as the paper decodes", "")
    assert question.answers[1].marks == [("exact_match", "1")]
    article = tasks[0].questions[0].answers[0]
    assert len(article.text) == 3000
    assert article.cut == len(WRITERS["news_articles"][2] + " 1.0") - 3000


def test_answers_of_an_evaluation_before_the_last_are_not_shown_as_its_own(make_run: MakeRun) -> None:
    folder = evaluate(make_run("gpt"), shots=(0, 1, 8))
    results = folder / "evaluation" / "results.json"
    content = json.loads(results.read_text())
    kept = [row for row in content["pipeline"]["scores"] if row["shots"] < 8 and row["task"] != "webquestions"]
    results.write_text(json.dumps(content | {"pipeline": {"scores": kept}}))
    shown = {task.task: task.shots for task in written(find_runs(folder)[0])}
    assert shown == {"news_articles": 1, "dialogue_replies": 1, "translation_en_fr": 1}
    # Where the results are gone, what was written is all there is.
    results.unlink()
    assert "webquestions" in {task.task for task in written(find_runs(folder)[0])}


def test_a_question_is_found_by_its_form_without_examples_else_by_the_delimiter() -> None:
    prompt = "Passage one.\n\nQ: a?\nA: b\n\nPassage two.\n\nQ: c?\nA:"
    assert question_of(prompt, 1, {"Passage two.\n\nQ: c?\nA:"}, "\n\n") == "Passage two.\n\nQ: c?\nA:"
    assert question_of(prompt, 1, set(), None) == "Q: c?\nA:"
    assert question_of("a###b", 1, set(), "###") == "b"
    assert question_of("a\n\nb", 0, set(), "\n\n") == "a\n\nb"


def test_two_runs_answers_to_a_question_stand_below_it_and_are_inert(make_run: MakeRun) -> None:
    evaluate(make_run("gpt"))
    folder = evaluate(make_run("lstm", family="lstm"), strength=0.5).parent
    runs, remarks = find_runs(folder)
    [question, *_] = written(runs)[0].questions
    assert [answer.run.name for answer in question.answers if not answer.way] == ["gpt", "lstm"]
    text = page.render(runs, remarks, title="two")
    shown = Page(text)
    assert "and it <b>met</b> again." in shown.text
    assert not [tag for tag, _ in shown.tags if tag == "b"]
    assert "characters more]" in shown.text
    assert "It wrote nothing." in shown.text
    for figure in shown.figures.values():
        go.Figure(data=figure["data"], layout=figure["layout"])


def test_every_plot_of_the_page_has_a_place_and_data_of_its_own(make_run: MakeRun) -> None:
    folder = evaluate(make_run("gpt")).parent
    evaluate(make_run("large"), strength=1.2)
    path = folder / "large" / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"parameters": {"total": 50_000_000}}))
    shown = Page(page.render(*find_runs(folder), title="all"))
    places = [attrs["id"] for tag, attrs in shown.tags if tag == "div" and attrs.get("class") == "plot"]
    assert len(places) == len(set(places))
    assert {place.removeprefix("plot-") for place in places if place} == set(shown.figures)
    assert {name.rstrip("0123456789") for name in shown.figures} >= {"shots-", "sizes-", "training-", "contamination"}


@pytest.mark.parametrize("junk", [None, "text", -1, 1e308, [None, "x", {}], {"a": None}])
def test_a_field_of_another_shape_never_stops_the_few_shot_part(tmp_path: Path, junk: object) -> None:
    full = {
        "kind": "commonsense", "scoring": "paper", "seed_scores": [0.5, 0.7], "spread": 0.1, "p_chance": 0.2, "shots_cut": 1,
        "shots_mean": 3.0, "truncated": 1, "published": [{"model": "GPT-3 Small", "score": 0.6, "shots": 32, "n": 100}],
        "against": {"run": "b", "difference": 0.1, "low": 0.0, "high": 0.2, "p": 0.1}, **PARTS, "dirty_share": 0.1, "ngram": 8,
    }  # fmt: skip
    base = [full | {"shots": shots} for shots in (0, 8)]
    sample = {"prompt": "Q", "asked": [{}], "target": "t", "answers": [["x"]], "f1": 0.5, "contaminated": True}
    folder = tmp_path / "evaluation" / "samples"
    folder.mkdir(parents=True)
    large = of_scores("large", *base, parameters=1e8)
    for key in ["task", "shots", "metric", "score", "stderr", "chance", "n", "higher_is_better", *full]:
        inner = full.get(key)
        nested = [{key: inner | {name: junk}} for name in inner] if isinstance(inner, dict) else []
        for change in [{key: junk}, *nested, {"published": [{"model": junk, "score": 0.5, "shots": junk, "n": junk}]}]:
            runs = [of_scores("small", *(row | change for row in base), parameters=1e6, directory=tmp_path), large]
            runs[0] = replace(runs[0], evaluation={"pipeline": {"scores": runs[0].scores}, "configs": junk})
            assert few_shot.of_runs(runs).table
            few_shot.overview(runs)
    for name in sample:
        (folder / "copa@0.jsonl").write_text(json.dumps(sample | {name: junk}) + "\n[1]\n{")
        written([of_scores("a", {}, directory=tmp_path)])
    met = {"question": "q", "ngram": "w", "step": 1, "document": "d", "run": "r"}
    about = {"tasks": {"copa": {"examples": [met]}}, "read": [{"run": "r", "step": 1, "tokens": 9}], "unknown": "u"}
    about |= {"indices": {"8": {"ngrams": 9, "bytes": 9}}}
    for change in (
        *({name: junk} for name in about),
        *({"tasks": {"copa": {"examples": [met | {name: junk}]}}} for name in met),
        *({"read": [{name: junk}]} for name in ("run", "step", "tokens")),
        {"tasks": {"copa": junk}, "indices": {"8": junk}},
    ):
        run = Run(tmp_path, "a", {}, evaluation={"pipeline": {"contamination": about | change, "scores": large.scores}})
        assert few_shot.of_runs([run]).contamination
        facts(run)
    for field in ("step", "tokens", "share", "scores"):
        record = {"step": 1, "tokens": 10, "share": 0.1, "scores": [{"task": "copa", "score": 0.5}]} | {field: junk}
        in_training([Run(tmp_path, "a", {}, in_loop=read_in_loop(json.dumps(record) + "\n"))])


def test_the_flat_table_and_the_summary_hold_the_scores() -> None:
    score = {"task": "copa", "shots": 8, "metric": "em", "scoring": "paper", "score": 0.6, "stderr": math.nan, "n": 100}
    score |= PARTS | {"published": [{"model": "GPT-3 Small", "score": 0.67, "shots": 32}]}
    columns, [row] = score_table([score])
    assert columns == [*COLUMNS]
    found = dict(zip(columns, row, strict=True))
    assert (found["score"], found["stderr"], found["clean"], found["dirty"]) == (0.6, None, 0.5, 0.9)
    assert found["published"] == "GPT-3 Small 0.67 (32-shot)"
    assert score_summary([score]) == {"evaluation/copa/paper/em@8": 0.6}
