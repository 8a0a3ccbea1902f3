"""`make demo` runs exactly the commands that the README shows, and every file and verb that the README names is there."""

import re
from pathlib import Path

from pipeline.cli import COMMANDS, TRAINING

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def demo_commands() -> list[str]:
    """The commands of the README's step-by-step list."""
    section = README.partition("## The same, step by step")[2].partition("\n## ")[0]
    return re.findall(r"^    python -m (.+)$", section, flags=re.MULTILINE)


def test_make_demo_runs_the_commands_of_the_readme():
    recipe = (ROOT / "Makefile").read_text().partition("\ndemo: install\n")[2].partition("\n\n")[0]
    assert [line.strip().removeprefix("$(RUN) ") for line in recipe.splitlines()] == demo_commands()
    assert len(demo_commands()) == 10


def test_every_file_that_the_docs_link_to_is_there():
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"
    for config in re.findall(r"configs/\S+?\.yaml", README):
        assert (ROOT / config).exists(), config


def test_every_verb_stands_in_the_readme():
    for verb in TRAINING | COMMANDS:
        assert f"`python -m pipeline {verb}`" in README or f", `{verb}`" in README, verb
