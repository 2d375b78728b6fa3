"""Writes the notebooks of the lessons from their Python files: python docs/make_notebooks.py

examples/lessons/*.py, in jupytext's percent format, become .ipynb files without outputs. Each gets a cell that installs
minip2p where it is missing, as on Colab.
"""

from pathlib import Path

import jupytext
import nbformat

LESSONS = Path(__file__).resolve().parents[1] / "examples/lessons"
INSTALL = """\
# Installs minip2p where it is missing, as on Colab.
import importlib.util

if importlib.util.find_spec("minip2p") is None:
    %pip install --quiet "minip2p[lessons] @ git+https://github.com/minip2p/minip2p"
"""


def notebook(lesson: Path) -> str:
    """The notebook of a lesson as JSON. It depends on nothing but the lesson."""
    book = jupytext.read(lesson, fmt="py:percent")
    first_code = [cell.cell_type for cell in book.cells].index("code")
    book.cells.insert(first_code, nbformat.v4.new_code_cell(INSTALL.rstrip(), metadata={"tags": ["remove-cell"]}))
    for n, cell in enumerate(book.cells):
        cell["id"] = f"cell-{n}"  # instead of random ones
    book["metadata"] = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    book["nbformat"], book["nbformat_minor"] = 4, 5
    nbformat.validate(book)
    return nbformat.writes(book) + "\n"


if __name__ == "__main__":
    for path in sorted(LESSONS.glob("*.py")):
        path.with_suffix(".ipynb").write_text(notebook(path), encoding="utf-8")
