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
        ("a cat (on the beach)", "A1111's web UI, '(on the beach)'", "--reweight"),
        ("a [cat]", "A1111's web UI, '[cat]'", "--reweight"),
        ("a cat <hypernet:x:1>", "A1111's web UI, '<hypernet:x:1>'", "leave the hypernetwork out"),
        (r"a cat \(animal\)", r"A1111's web UI, '\\('", "leave the backslash out"),
        ("a cat, embedding:foo", "ComfyUI, 'embedding:foo'", "--embedding"),
        ("a cat, (embedding:foo.pt:1.2)", "ComfyUI, 'embedding:foo.pt'", "--embedding"),
        ("a cat++ on grass", "compel, 'cat++'", "--reweight"),
        ("a cat-- on grass", "compel, 'cat--'", "--reweight"),
        ("a (cat)1.3", "compel, '(cat)1.3'", "--reweight"),
        ("a (red cat)++", "compel, '(red cat)++'", "--reweight"),
        ("a cat.swap(dog)", "compel, '.swap('", "leave it out"),
        ("a {cat|dog}", "dynamic prompts, '{cat|dog}'", "write one of them"),
        ("a __animal__ on grass", "dynamic prompts, '__animal__'", "write one of them"),
        ("a {cat}", "NovelAI, '{cat}'", "--reweight"),
        ("a 1.5::cat::", "NovelAI, '1.5::cat::'", "--reweight"),
        ("a cat --ar 16:9", "Midjourney, '--ar'", "outside of the prompt"),
        ("a cat::2 dog", "Midjourney, '::'", "outside of the prompt"),
    ],
)
def test_the_syntax_of_other_tools_is_named_with_what_to_do_instead(text, syntax, advice):
    sentence = foreign_syntax(text)
    assert syntax in sentence and advice in sentence.split("instead: ")[1] and "\n" not in sentence
    assert (" and of " in sentence) == ("'(…:1.2)'" in sentence)  # two kinds of syntax in the same words


def test_several_kinds_of_syntax_are_one_sentence():
    assert foreign_syntax("a (cat:1.3) and (dog:1.3) <lora:x:1> cat++ BREAK AND") == (
        "a prompt has syntax of A1111's web UI, '<lora:x:1>', '(cat:1.3)', 'BREAK', and of compel, 'cat++', which is "
        "read as plain words here; instead: merge LoRAs into the model (--lora, merged()), re-weight words in an edit "
        "(--reweight, reweight=), leave it out"
    )


@pytest.mark.parametrize(
    "text",
    ["a cat, 4:3", "break and and", "A CAT AND A DOG", "a < b > c", "", "BREAKFAST", "a cat -- asleep", "a cat - a dog"]
    + [
        "a cat--asleep",
        "cat () [] {}",
        "a+b",
        "snake_case",
        ":) a cat",
        "a well-known cat",
        "embedding: a cat",
        "(",
        "1:2",
    ],
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
