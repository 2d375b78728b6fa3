"""Sphinx extension: text that is made from the code when the site is built.

A page has the line `<!-- generated: NAME -->` where the text of a function below is to stand.
"""

import argparse
import pkgutil
import re
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the tests import this file without Sphinx
    from sphinx.application import Sphinx

MARK = re.compile(r"<!-- generated: ([\w-]+) -->")
NOT_IN_THE_REFERENCE = ("minip2p.cli", "minip2p.tiny", "minip2p.web", "minip2p.__main__")  # programs


def build_parser() -> argparse.ArgumentParser:
    from minip2p.cli.main import parser

    return parser()


def subcommands(parser: argparse.ArgumentParser) -> Mapping[str, argparse.ArgumentParser]:
    """The commands of a parser by their names."""
    (choices,) = (a.choices for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return choices


def option_names(action: argparse.Action) -> str:
    """`-o`, `--out FOLDER`, as a user writes it."""
    if not action.option_strings:
        return f"`{action.metavar or action.dest}`"
    value = "" if action.nargs == 0 else " " + value_name(action)
    return ", ".join(f"`{name}{value if name == action.option_strings[-1] else ''}`" for name in action.option_strings)


def value_name(action: argparse.Action) -> str:
    if action.metavar is not None:
        return str(action.metavar)
    return "{" + ",".join(map(str, action.choices)) + "}" if action.choices else action.dest.upper()


def help_text(action: argparse.Action) -> str:
    """The help of an option, where Markdown's marks are escaped."""
    text = " ".join((action.help or "").split()) % {"default": action.default, "prog": "minip2p"}
    return re.sub(r"([*_`|<\\\[\]])", r"\\\1", text)


def usage(name: str, actions: list[argparse.Action]) -> str:
    """One line: what a command needs, and [OPTION ...] for all else."""
    words = [name, "[OPTION ...]"]
    words += [f"{a.option_strings[-1]} {value_name(a)}" for a in actions if a.option_strings and a.required]
    for action in actions:
        if not action.option_strings:
            word = str(action.metavar or action.dest)
            words.append(f"{word} [{word} ...]" if action.nargs == "+" else word)
    return " ".join(words)


def command_line() -> str:
    """Every command of `minip2p` with all its options, as Markdown, read off the parser."""
    out = []
    for name, command in subcommands(build_parser()).items():
        out += [f"### minip2p {name}", "", (command.description or "").strip().capitalize() + ".", ""]
        actions = [a for a in command._actions if not isinstance(a, argparse._HelpAction)]
        out += ["```text", usage(command.prog, actions), "```", "", "| option | meaning |", "|---|---|"]
        out += [f"| {option_names(action)} | {help_text(action)} |" for action in actions]
        out.append("")
    return "\n".join(out)


def module_names() -> list[str]:
    """Every module of the package that has something to say to a reader of the reference."""
    package = import_module("minip2p")
    found = (module.name for module in pkgutil.walk_packages(package.__path__, "minip2p."))
    return sorted(name for name in found if not name.startswith(NOT_IN_THE_REFERENCE))


def is_documented(name: str) -> bool:
    """Whether a module can be imported here (some need an extra) and holds more than a docstring."""
    try:
        module = import_module(name)
    except ImportError:
        return False
    return any(getattr(value, "__module__", None) == name for value in vars(module).values())


def modules() -> str:
    """All modules, as Markdown with a heading for each folder and file."""
    out, folder = [], None
    for name in filter(is_documented, module_names()):
        parent = name.split(".")[1]
        if parent != folder:
            folder = parent
            is_package = hasattr(import_module(f"minip2p.{folder}"), "__path__")
            out += [f"## {folder}{'/' if is_package else ''}", ""]
        heading = [f"### {name.removeprefix('minip2p.')}", ""] if name.count(".") > 1 else []
        out += [*heading, "```{eval-rst}", f".. automodule:: {name}", "   :members:", "```", ""]
    return "\n".join(out)


GENERATORS: Mapping[str, Callable[[], str]] = {"command-line": command_line, "modules": modules}


def insert_generated(app: "Sphinx", docname: str, source: list[str]) -> None:
    source[0] = MARK.sub(lambda match: GENERATORS[match[1]](), source[0])


def setup(app: "Sphinx") -> dict[str, bool]:
    app.connect("source-read", insert_generated)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
