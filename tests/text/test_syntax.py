"""Syntax of other tools in prompts."""

import warnings

import pytest

from minip2p.errors import Notice
from minip2p.text.syntax import foreign_syntax


@pytest.mark.parametrize(
    "text, syntax, advice",
    [
        ("a (cat:1.3) on grass", "'(cat:1.3)'", "--reweight"),
        ("a (red cat: .5)", "'(red cat: .5)'", "--reweight"),
        ("a ((cat))", "'((cat))'", "--reweight"),
        ("a cat <lora:x:.8>", "'<lora:x:.8>'", "--lora"),
        ("a cat <lyco:x>", "'<lyco:x>'", "--lora"),
        ("a cat BREAK on grass", "'BREAK'", "leave it out"),
        ("a cat AND a dog", "'AND'", "leave it out"),
        ("a [cat:dog:0.5]", "'[cat:dog:0.5]'", "leave it out"),
        ("a [cat|dog]", "'[cat|dog]'", "leave it out"),
    ],
)
def test_the_syntax_of_a1111_is_named_with_what_to_do_instead(text, syntax, advice):
    sentence = foreign_syntax(text)
    assert syntax in sentence and advice in sentence and "\n" not in sentence


@pytest.mark.parametrize(
    "text",
    ["a cat (on the beach)", "a cat, 4:3", "break and and", "A CAT AND A DOG", "a < b > c", "[cat]", "", "BREAKFAST"],
)
def test_plain_text_is_not_syntax(text):
    assert foreign_syntax(text) is None


def test_a_prompt_with_such_syntax_is_a_notice(model):
    with pytest.warns(Notice, match="A1111"):
        model.text.prompt("a (cat:1.3)")
    with pytest.warns(Notice, match="trained without the words 'two', 'cats'"):
        model.text.prompt("two cats on the beach, Two")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.text.prompt("A cat on the beach, watercolor!")
