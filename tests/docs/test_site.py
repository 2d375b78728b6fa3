"""The documentation's links, generated pages and tables agree with the repository."""

import argparse
import pkgutil
import re
import sys
from dataclasses import fields
from inspect import signature

import pytest
from paths import ROOT

from minip2p import AttentionStore, Site
from minip2p.evaluation.edit_benchmark import METHODS as BENCHMARK_METHODS
from minip2p.inversion.methods import METHODS
from minip2p.p2p.local_blend import LocalBlend
from minip2p.sampling.run_file import FORMAT
from minip2p.sweeps.grid import AXES, RUN_OPTIONS

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md")) + sorted((ROOT / "examples").glob("*.md"))
MARKDOWN = [ROOT / "README.md", *PAGES]
LINK = re.compile(r"\]\(([^)\s]+)\)")
TEST_NAME = re.compile(r"\b(tests/[\w/]+\.py)(?:::(\w+))?")


def page_id(path):
    return path.relative_to(ROOT).as_posix()


def text_of(name):
    return (DOCS / name).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def generated():
    """The extension that makes pages from the code."""
    sys.path.insert(0, str(DOCS / "_ext"))
    try:
        import generated_pages
    finally:
        sys.path.remove(str(DOCS / "_ext"))
    return generated_pages


def anchors(page):
    """The headings of a page as MyST and other readers of Markdown name them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", MARKDOWN, ids=page_id)
def test_links_to_files_and_headings_exist(page):
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page if not path else (page.parent / path).resolve()
        assert target.exists(), f"{link}: no such file"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{link}: no such heading"


@pytest.mark.parametrize("page", MARKDOWN, ids=page_id)
def test_tests_and_files_that_pages_name_exist(page):
    text = page.read_text(encoding="utf-8")
    for file, name in TEST_NAME.findall(text):
        assert (ROOT / file).is_file(), f"{file}: no such file"
        assert not name or f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), f"{file}::{name}: no such test"
    for file in re.findall(r"`(minip2p/[\w/]+(?:\.py|/))`", text):
        assert (ROOT / file).exists(), f"{file}: no such file"


@pytest.mark.parametrize("page", MARKDOWN, ids=page_id)
def test_names_of_the_package_that_pages_name_exist(page):
    for name in re.findall(r"`(minip2p(?:\.\w+)+)(?:\(\))?`", page.read_text(encoding="utf-8")):
        pkgutil.resolve_name(name)


def test_every_page_is_in_the_table_of_contents():
    listed = set(re.findall(r"^([\w-]+)$", text_of("index.md"), flags=re.MULTILINE))
    assert {page.stem for page in DOCS.glob("*.md")} - {"index"} <= listed


def test_every_option_of_the_command_line_is_on_its_page(generated):
    assert "<!-- generated: command-line -->" in text_of("command-line.md")
    sections = re.split(r"^### minip2p ", generated.command_line(), flags=re.MULTILINE)[1:]
    by_command = {section.split("\n", 1)[0]: section for section in sections}
    commands = generated.subcommands(generated.build_parser())
    assert set(by_command) == set(commands)
    for name, command in commands.items():
        for action in command._actions:
            if isinstance(action, argparse._HelpAction):
                continue
            for option in action.option_strings:
                assert f"`{option}" in by_command[name], f"{name} {option}"
            for choice in action.choices or ():
                assert str(choice) in by_command[name], f"{name} {choice}"


def test_every_module_is_in_the_reference(generated):
    assert "<!-- generated: modules -->" in text_of("modules.md")
    text = generated.modules()
    folders = {path.parent.name for path in (ROOT / "minip2p").glob("*/__init__.py")} - {"cli", "tiny", "web"}
    for folder in folders:
        assert f".. automodule:: minip2p.{folder}." in text, folder


def test_tables_name_what_there_is():
    """Tables that list names of the code list them all."""
    inversion = text_of("inversion.md").replace("1e-5", "1e-05").replace("2e-5", "2e-05")
    for name in METHODS:
        assert f"| `{name}`" in inversion, name
    for name in (*AXES, *RUN_OPTIONS):
        assert f"`{name}`" in text_of("sweeps.md"), name
    for method in METHODS.values():
        for option, parameter in signature(method).parameters.items():
            if parameter.kind is parameter.KEYWORD_ONLY:
                default = parameter.default
                shown = f"`{default}`" if default is None or default is False else f"{default:g}"
                assert f"| `{option}` | {shown} |" in inversion, option
    for cls, page in ((LocalBlend, "editing.md"), (AttentionStore, "ablations.md"), (Site, "ablations.md")):
        for field in fields(cls):
            assert not field.init or f"`{field.name}`" in text_of(page), field.name
    for name in BENCHMARK_METHODS:
        assert f"| {name} |" in text_of("results.md") or name == "null-text", name
    assert f"`{FORMAT}`" in text_of("architecture.md")


def test_tables_that_the_readme_has_too_agree():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    families = re.findall(r"^\| .* \| `StableDiffusion\w+` \| .*$", readme, flags=re.MULTILINE)
    assert families and all(row in text_of("models.md") for row in families)
    order = re.findall(r"^\d+\. `(minip2p/\S+\.py)`", readme, flags=re.MULTILINE)
    listed = re.findall(r"^\| \d+ \| \[(minip2p/\S+\.py)\]", text_of("architecture.md"), flags=re.MULTILINE)
    assert order == listed


def test_pictures_are_small():
    assert sum(file.stat().st_size for file in (DOCS / "_static").iterdir()) <= 1_000_000
