"""How Sphinx builds the site: `sphinx-build -W --keep-going -b html docs docs/_build/html`. It needs no network.

The lessons run while it builds, for some minutes; results are cached in docs/_build until a lesson changes.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]  # the extensions below; the package, where it is not installed

import minip2p  # noqa: E402, it must be found first

project = "minip2p"
author = "the minip2p authors"
copyright = author
version = release = minip2p.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.viewcode",
    "docstrings",  # docstrings in Markdown become reStructuredText
    "generated_pages",  # the options of the command line, the list of modules
    "source_pages",  # links to files of the repository
    "mathml",  # formulas
]
source_suffix = {".md": "myst-nb"}
exclude_patterns = ["_build", "_ext", "_static", "*.py", "lessons/*.ipynb", "**/__pycache__"]

myst_heading_anchors = 3
smartquotes = False  # they would make a dash of --option
myst_enable_extensions = ["dollarmath"]
html_math_renderer = "mathml"

nb_custom_formats = {".py": ["jupytext.reads", {"fmt": "py:percent"}]}  # the lessons, by the link docs/lessons
nb_execution_mode = "cache"
nb_execution_timeout = 900  # seconds a cell
nb_execution_raise_on_error = True
nb_merge_streams = True
nb_output_stderr = "remove"  # progress bars and warnings with this machine's paths
nb_execution_excludepatterns = ["*.md"]

autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 88
add_module_names = False
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = "minip2p"
html_static_path = ["_static"]
html_css_files = ["minip2p.css"]
html_extra_path = ["_build/extra"] if (HERE / "_build/extra").is_dir() else []  # page/, which `make docs` exports
html_show_copyright = False
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#8a3b12", "color-brand-content": "#8a3b12"},
    "dark_css_variables": {"color-brand-primary": "#f0a878", "color-brand-content": "#f0a878"},
}
