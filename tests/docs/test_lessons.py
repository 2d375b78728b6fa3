"""The lessons in examples/lessons: each runs to its end with the solution of its exercise, and equals its notebook."""

import ast
import re
import runpy

import jupytext
import matplotlib.pyplot as plt
import pytest
import torch
from latex2mathml.converter import convert
from paths import ROOT

import minip2p

LESSONS = sorted((ROOT / "examples/lessons").glob("*.py"))
# The settings of a lesson, and those that the test puts in their place to take seconds. All assertions must hold.
FASTER = {
    1: {"steps = 20": "steps = 4"},
    2: {'"a cat on the beach", 1, 15': '"a cat on the beach", 1, 4'},
    3: {"2, 12": "2, 6"},
    4: {"seed, steps = 3, 15": "seed, steps = 3, 5"},
    5: {},
    6: {"steps = 12": "steps = 8"},
    7: {"steps = 12": "steps = 3"},
    8: {"steps = (0.0, 0.5, 1.0), 10": "steps = (0.0, 1.0), 5", "range(6)": "range(3)"},
}


def number(lesson):
    return int(lesson.stem.split("_")[0])


def code_of(lesson):
    return [cell.source for cell in jupytext.read(lesson, fmt="py:percent").cells if cell.cell_type == "code"]


@pytest.fixture
def classroom(cpu_model, tmp_path, monkeypatch):
    """`minip2p.load` gives the session's model; figures are drawn as they are shown, then closed."""
    drawn = []

    def show():
        for figure in map(plt.figure, plt.get_fignums()):
            figure.canvas.draw()
            drawn.append(figure)
        plt.close("all")

    plt.switch_backend("Agg")
    monkeypatch.setattr(plt, "show", show)
    monkeypatch.setattr(minip2p, "load", lambda: cpu_model, raising=False)
    monkeypatch.chdir(tmp_path)
    with torch.enable_grad():  # the lessons switch gradients off; afterwards they are as they were
        yield drawn


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.stem)
def test_lesson_runs_with_its_solution(lesson, classroom):
    source = lesson.read_text(encoding="utf-8")
    for setting, faster in FASTER[number(lesson)].items():
        assert source.count(setting) == 1, setting
        source = source.replace(setting, faster)
    exec(compile(source, str(lesson), "exec"), {"__name__": "__main__"})
    assert classroom, "it drew nothing"
    for figure in classroom:
        for axes in figure.axes:
            shows_only_pictures = axes.images and not len(axes.get_xticks())
            assert shows_only_pictures or axes.get_xlabel() or axes.get_ylabel(), "axes without a label"


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.stem)
def test_lesson_asks_first_and_has_a_tested_solution(lesson):
    cells = jupytext.read(lesson, fmt="py:percent").cells
    title, _, question = cells[0].source.split("\n")[:3]
    assert title.startswith(f"# {number(lesson)}. ") and re.fullmatch(r"\*\*.*\?\*\*", question)
    assert "## Exercise" in cells[-2].source and cells[-1].metadata["tags"] == ["hide-cell"]
    assert any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(cells[-1].source)))


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.stem)
def test_notebook_equals_its_lesson(lesson):
    write = runpy.run_path(str(ROOT / "docs/make_notebooks.py"))["notebook"]
    assert lesson.with_suffix(".ipynb").read_text(encoding="utf-8") == write(lesson), "run make lessons"


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.stem)
def test_formulas_become_mathml_without_remains(lesson):
    """A command that the site's converter does not know would stay in the formula with its backslash."""
    cells = jupytext.read(lesson, fmt="py:percent").cells
    text = re.sub("`[^`]*`", "", "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown"))
    formulas = re.findall(r"\$\$(.+?)\$\$", text, re.DOTALL) + re.findall(r"(?<!\$)\$([^$]+)\$(?!\$)", text)
    for formula in formulas:
        mathml = convert(formula)
        assert mathml.startswith("<math") and "\\" not in mathml, formula


def test_there_are_eight_and_every_list_has_them():
    assert [number(lesson) for lesson in LESSONS] == list(range(1, 9))
    for page in ("docs/lessons.md", "docs/index.md", "examples/README.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        assert all(f"lessons/{lesson.stem}" in text for lesson in LESSONS), page
    colab = "https://colab.research.google.com/github/minip2p/minip2p/blob/main/examples/lessons/"
    text = (ROOT / "docs/lessons.md").read_text(encoding="utf-8")
    assert all(f"{colab}{lesson.stem}.ipynb" in text for lesson in LESSONS)


def test_prompt_to_prompt_has_as_few_lines_as_its_title_promises():
    (method,) = [cell for cell in code_of(LESSONS[3]) if "class Source" in cell]
    lines = [line for line in method.splitlines() if line.strip()]
    assert len(lines) <= 25
