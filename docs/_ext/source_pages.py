"""Sphinx extension: links from pages to files of the repository, which open with numbered lines, and to the reference.

In Markdown the link is relative, `[algebra](../minip2p/p2p/algebra.py)`, so it works wherever the page is read.
"""

import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import TextLexer, get_lexer_for_filename
from pygments.util import ClassNotFound
from sphinx import addnodes
from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[2]
LESSONS = ROOT / "examples/lessons"


def is_link_to_page(node: nodes.Node) -> bool:
    """Whether it is a link to a Markdown or Python file, which MyST takes for a page of this site."""
    return isinstance(node, addnodes.pending_xref) and node.get("refdomain") == "doc"


def link_to_pages(app: Sphinx, doctree: nodes.document) -> None:
    """Turns MyST's downloads of linked files into references, and `minip2p.some.name` into one to the API reference."""
    linked: dict[str, set[str]] = app.env.__dict__.setdefault("linked_files", {})
    page = app.env.docname
    linked[page] = set()
    for node in [*doctree.findall(addnodes.download_reference), *doctree.findall(is_link_to_page)]:
        file = Path(app.srcdir) / Path(page).parent / node["reftarget"]
        if isinstance(node, addnodes.pending_xref):  # MyST has taken the suffix off
            file = next((f for f in (Path(f"{file}.md"), Path(f"{file}.py")) if f.exists()), Path(f"{file}.md"))
        file = file.resolve()
        if not file.is_relative_to(ROOT) or (file.is_relative_to(app.srcdir) and file.suffix == ".md"):
            continue
        name = file.relative_to(ROOT).as_posix()
        if file.parent == LESSONS:  # a page of this site, by the link docs/lessons
            uri = f"lessons/{file.stem}.html"
        else:
            uri = f"source/{name}.html"
            linked[page].add(name)
        reference = nodes.reference("", "", refuri=uri, internal=True)
        reference += node.children
        node.replace_self(reference)
    for literal in list(doctree.findall(nodes.literal)):
        name = literal.astext().removesuffix("()")
        if re.fullmatch(r"minip2p(\.\w+)+", name) and not isinstance(literal.parent, nodes.reference):
            xref = addnodes.pending_xref("", refdomain="py", reftype="obj", reftarget=name, refdoc=page)
            literal.replace_self(xref)
            xref += literal


def purge(app: Sphinx, env: Any, docname: str) -> None:
    env.__dict__.setdefault("linked_files", {}).pop(docname, None)


def merge(app: Sphinx, env: Any, docnames: list[str], other: Any) -> None:
    env.__dict__.setdefault("linked_files", {}).update(getattr(other, "linked_files", {}))


def collect_pages(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """A page for each file that is linked to."""
    files = sorted({name for names in getattr(app.env, "linked_files", {}).values() for name in names})
    formatter = HtmlFormatter(linenos="inline", lineanchors="line", anchorlinenos=True, cssclass="highlight")
    for name in files:
        text = (ROOT / name).read_text(encoding="utf-8")
        try:
            lexer = get_lexer_for_filename(name)
        except ClassNotFound:
            lexer = TextLexer()
        title = html.escape(name)
        body = f"<h1>{title}</h1>{highlight(text, lexer, formatter)}"
        yield f"source/{name}", {"title": title, "body": body, "parents": []}, "page.html"


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("doctree-read", link_to_pages)
    app.connect("env-purge-doc", purge)
    app.connect("env-merge-info", merge)
    app.connect("html-collect-pages", collect_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
