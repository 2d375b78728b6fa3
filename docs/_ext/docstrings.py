"""Sphinx extension: the package's docstrings are plain text with Markdown's marks; autodoc expects reStructuredText.

What is translated: `code` in backticks, tables with bars, lists, and indented formulas. Everything else is text: no
asterisk, bar or underscore in it has a meaning.
"""

import inspect
import re
from collections.abc import Iterator

from sphinx.application import Sphinx
from sphinx.util.inspect import object_description
from sphinx.util.typing import stringify_annotation

LIST_ITEM = re.compile(r"(?:[-*]|\d+\.) +")
TABLE_RULE = re.compile(r"\|[\s:|-]+\|?$")


def escape(text: str) -> str:
    """Plain text as reStructuredText that means itself; `code` becomes a literal."""
    pieces = re.split(r"(``.+?``|`[^`\n]+`)", text)
    return "".join(
        f"``{piece.strip('`')}``" if n % 2 else re.sub(r"([\\*|`_])", r"\\\1", piece) for n, piece in enumerate(pieces)
    )


def paragraphs(lines: list[str]) -> Iterator[list[str]]:
    """The blocks of a docstring between blank lines."""
    block: list[str] = []
    for line in [*lines, ""]:
        if line.strip():
            block.append(line.rstrip())
        elif block:
            yield block
            block = []


def table(block: list[str]) -> list[str]:
    """A Markdown table as a list-table."""
    rows = [
        [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]
        for line in block
        if not TABLE_RULE.match(line.strip())
    ]
    out = [".. list-table::", "   :header-rows: 1", ""]
    for row in rows:
        out += [f"   {'* -' if n == 0 else '  -'} {escape(cell)}" for n, cell in enumerate(row)]
    return out


def bullets(block: list[str]) -> list[str]:
    """A list; lines that go on an item are indented below it."""
    out = []
    for line in block:
        mark = LIST_ITEM.match(line.strip())
        out.append(f"- {escape(line.strip()[mark.end() :])}" if mark else f"  {escape(line.strip())}")
    return out


def described(block: list[str], names: set[str]) -> list[str]:
    """A paragraph. "x: what it is." becomes a list item if x is a parameter; what is raised becomes a paragraph."""
    text = " ".join(line.strip() for line in block)
    name = "|".join(sorted(map(re.escape, names), key=len, reverse=True)) or "(?!)"
    head, *items = re.split(rf"(?:^|(?<=[.:] ))((?:{name})(?:(?:, | and )(?:{name}))*): ", text)
    out = [escape(head.strip())] if head.strip() else []
    for which, what in zip(items[::2], items[1::2], strict=True):
        what, *raises = re.split(r"(?<=\. )(?=(?:Raises|Returns|The other) )", what, maxsplit=1)
        listed = re.sub(r"\w+", lambda word: f"``{word[0]}``" if word[0] in names else word[0], which)
        out += ["", f"- {listed}: {escape(what.strip())}", *(("", escape(raises[0].strip())) if raises else ())]
    return out


def to_rst(lines: list[str], names: set[str] = frozenset()) -> list[str]:
    """A whole docstring as reStructuredText. names: the parameters or fields of what it describes."""
    out: list[str] = []
    for block in paragraphs(lines):
        indented = all(line.startswith("    ") for line in block)
        if indented:  # a formula or a program: as it stands
            out += ["::", "", *block]
        elif block[0].lstrip().startswith("|"):
            out += table(block)
        elif LIST_ITEM.match(block[0].strip()):
            out += bullets(block)
        else:
            out += described(block, names)
        out.append("")
    return out


def parameters(obj: object) -> set[str]:
    try:
        return set(inspect.signature(obj).parameters)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return set()


def process_docstring(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    lines[:] = to_rst(lines, parameters(obj))


def type_names() -> dict[str, str]:
    """The written-out form of the package's type aliases -> their names."""
    from minip2p.attention.contract import Attend, MapFn

    return {stringify_annotation(alias, "smart"): name for name, alias in {"Attend": Attend, "MapFn": MapFn}.items()}


def default_names() -> dict[str, str]:
    """Defaults as Python prints them -> their names."""
    from minip2p.attention.contract import ALL_SITES, fused

    return {object_description(ALL_SITES): "ALL_SITES", object_description(fused): "fused"}


def process_signature(
    app: Sphinx, what: str, name: str, obj: object, options: object, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """Type aliases and defaults under their names, where Python only knows what they stand for."""
    for long, short in (*type_names().items(), *default_names().items()):
        signature = None if signature is None else signature.replace(long, short)
        returns = None if returns is None else returns.replace(long, short)
    return signature, returns


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", process_docstring)
    app.connect("autodoc-process-signature", process_signature)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
