"""Words and tokens: p2p-spec "Words → tokens", "cross_replace_steps", "self_replace_steps", "Reweight"."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from minip2p.p2p.schedules import cross_replace_alpha, equalizer, step_range, step_weights
from minip2p.text.prompt import Prompt, Word, chunk_words

ROOT = Path(__file__).parents[1]
TOKENIZER = CLIPTokenizer.from_pretrained(ROOT / "weights" / "tiny" / "tokenizer")
ANY_TEXT = st.text(max_size=60) | st.text("ab1 ,.'’-#\"é🐱!ß<|>", max_size=60)
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")


def prompt(text):
    return Prompt.tokenize(text, TOKENIZER)


def says(prompt, positions):
    """The tokens at these positions."""
    return [prompt.tokens[j] for j in positions]


def test_a_prompt_has_the_ids_that_the_text_encoder_takes():
    p = prompt("A photo of a giraffe, running")
    assert list(p.ids) == TOKENIZER(p.text, padding="max_length", max_length=77, truncation=True).input_ids
    assert p.tokens == ("<|startoftext|>", "a", "photo", "of", "a", "giraffe", ",", "running", "<|endoftext|>")
    assert p.end == 8 and p.visible_words == p.words
    assert p.words[4:] == (Word("giraffe", (5, 6)), Word("running", (7, 8)))


@pytest.mark.parametrize(
    "text, words",
    [
        ("a cat, on (red) grass!", "a cat on red grass"),
        ("the cat's black-and-white hat", "the cat's black-and-white hat"),
        ("don’t 'small' \"it's\" -x-", "don’t small it's x"),
        ("  runs   of\tspaces\n", "runs of spaces"),
        ("3 cats in 1984, 50%", "3 cats in 1984 50"),
        ("Café ÀÉ Größe e\u0301", "café àé größe é"),
        ("a 🐱🐶 and 🐱!🐶", "a 🐱🐶 and 🐱 🐶"),
        ("हिन्दी 日本語, слон", "हिन्दी 日本語 слон"),
        ("fish &amp; chips", "fish amp chips"),
        ("... !?", ""),
        ("", ""),
    ],
)
def test_words_have_punctuation_apart(text, words):
    assert [word.text for word in prompt(text).words] == words.split()


@given(ANY_TEXT)
def test_each_token_belongs_to_one_word_at_most_and_says_that_word(text):
    p = prompt(text)
    ends = [position for word in p.words for position in word.span]
    assert ends == sorted(ends) and all(a < b for a, b in (word.span for word in p.words))
    for word in p.visible_words:
        said = "".join(TOKENIZER.convert_ids_to_tokens(list(p.ids[slice(*word.span)])))
        assert all(c in said for c in word.text if c.isascii() and c.isalnum())


@given(ANY_TEXT)
def test_a_word_is_found_at_its_own_index_and_among_the_places_of_its_text(text):
    p = prompt(text)
    for n, word in enumerate(p.visible_words):
        assert p.token_indices(n) == tuple(range(*word.span))
        assert set(p.token_indices(n)) <= set(p.token_indices((word.text, None)))


def test_find_takes_every_place_any_case_and_punctuation():
    p = prompt("A cat, a dog and a Cat.")
    assert says(p, p.token_indices("cat")) == ["cat", "cat"] and says(p, p.token_indices("A")) == ["a", "a", "a"]
    assert p.token_indices("CAT") == p.token_indices("cat,") == p.token_indices("cat") == (2, 8)
    assert prompt("it’s Größe").token_indices("IT'S") == (1, 2, 3, 4)  # it + two bytes of ’ + s
    assert prompt("it’s Größe").token_indices("GRÖSSE") == tuple(range(5, 11))


def test_a_token_that_joins_a_mark_and_a_letter_is_the_words():
    p = prompt("a 'small' cat")
    assert says(p, p.token_indices("small")) == ["'s", "m", "all"] and says(p, p.token_indices("cat")) == ["cat"]
    with pytest.raises(ValueError, match="the words of 'b,c' share a token"):
        chunk_words([b"b,c"], start=1)


def test_find_takes_the_nth_place_words_in_a_row_indices_and_spans():
    p = prompt("a red car, a red-hot xylophone and a red car")
    assert p.token_indices("car#2") == p.token_indices(("car", 2)) == p.token_indices(-1)
    assert says(p, p.token_indices("red car#1")) == ["red", "car"] and len(p.token_indices("red car")) == 4
    assert says(p, p.token_indices("xylophone")) == ["x", "y", "lo", "phone"]
    assert p.token_indices(1) == p.token_indices("red#1") == (2,)
    assert p.token_indices(range(1, 3)) == p.token_indices(slice(1, 3)) == p.token_indices("red car#1")
    assert says(p, p.token_indices("car, a")) == ["car", "a"]


@pytest.mark.parametrize(
    "word, says",
    [
        ("dog", "'dog' is not in the prompt 'a red cat'; its words are: a, red, cat"),
        ("a cat", "'a cat' is not in the prompt 'a red cat'; its words are: a, red, cat"),
        ("ca", "'ca' is not in the prompt"),
        (",", "',' is not in the prompt"),
        ("", "'' is not in the prompt"),
        ("cat#2", "'cat' number 2 is not in the prompt 'a red cat', which has 1 of it"),
        (("cat", 0), "number 0"),
        (3, "there is no word 3 in the prompt 'a red cat', which has 3 words"),
        (range(2, 5), "there is no word"),
        (slice(3, 5), "there is no word"),
    ],
)
def test_find_names_the_word_that_is_missing_and_those_there_are(word, says):
    with pytest.raises(ValueError) as error:
        prompt("a red cat").token_indices(word)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_find_says_that_a_word_lies_beyond_the_77th_token():
    p = prompt("cat " + "a " * 74 + "dog cat")
    assert len(p.ids) == 77 and p.end == 76 and p.ids[75] != p.ids[76]
    assert p.token_indices("cat") == (1,) and p.words[-1] == Word("cat", (77, 78))
    for word in ("dog", "cat#2", -1, "dog cat"):
        with pytest.raises(ValueError, match=f"{word!r} lies beyond the last of the 77 tokens"):
            p.token_indices(word)


def test_find_says_so_of_a_word_that_is_cut_in_the_middle():
    with pytest.raises(ValueError, match="'xylophone' lies beyond"):
        prompt("a " * 74 + "xylophone").token_indices("xylophone")


@pytest.mark.parametrize("share, rows", [(0.8, 40), (0.4, 20), (1.0, 50), (0, 0), (1, 50)])
def test_cross_replace_steps_of_50(share, rows):
    alpha = cross_replace_alpha(share, prompt("a cat"), 50)
    assert alpha.shape == (50, 77) and alpha.dtype == torch.float32
    assert torch.equal(alpha, (torch.arange(50) < rows).float()[:, None].expand(50, 77))


def test_cross_replace_steps_by_word():
    p = prompt("a cat, a giraffe")
    alpha = cross_replace_alpha({"cat": (0.2, 0.6), "default_": 0.8, "a#2": 0.0}, p, 50)
    assert alpha[:, 2].nonzero().flatten().tolist() == list(range(10, 30))  # int(.2 · 51), int(.6 · 51)
    assert alpha[:, 4].sum() == 0
    assert all(alpha[:, j].sum() == 40 for j in range(77) if j not in (2, 4))
    assert cross_replace_alpha({"cat": 0.5}, p, 50)[:, [0, 2]].sum(0).tolist() == [50, 25]  # default_ is 1.0


@given(st.integers(1, 200), st.floats(0, 1), st.floats(0, 1))
def test_schedules_are_contiguous_and_self_steps_are_int_of_steps_times_share(steps, a, b):
    start, end = sorted((a, b))
    column = cross_replace_alpha((start, end), prompt("a cat"), steps)[:, 0].tolist()
    first, stop = int(start * (steps + 1)), int(end * (steps + 1))
    assert column == [float(first <= t < stop) for t in range(steps)]
    assert step_range("self", (start, end), steps) == (int(steps * start), int(steps * end))
    assert step_range("self", end, steps) == (0, int(steps * end))
    inject = step_weights("self", (start, end), steps, steps).tolist()
    assert [n for n, alpha in enumerate(inject) if alpha] == list(range(int(steps * start), int(steps * end)))


def test_a_course_of_three_falls_evenly_after_its_end():
    """α is 1 on [start, end), and from there n steps of n + 1 parts: at 10 steps (.2, .5, .8) → 3/4, 2/4, 1/4, 0."""
    falling = [0, 0, 1, 1, 1, 0.75, 0.5, 0.25, 0, 0]
    assert step_weights("self", (0.2, 0.5, 0.8), 10, 10).tolist() == falling
    assert step_weights("self", (0.2, 0.5, 0.5), 10, 10).tolist() == step_weights("self", (0.2, 0.5), 10, 10).tolist()
    assert step_range("self", (0.2, 0.5, 0.8), 10) == (2, 8)
    alpha = cross_replace_alpha(
        {"cat": (0.0, 0.5, 0.9), "default_": 0.0}, prompt("a cat"), 9
    )  # rows are counted by steps + 1
    assert alpha[:, 2].tolist() == pytest.approx([1] * 5 + [0.8, 0.6, 0.4, 0.2]) and not alpha[:, :2].any()


@pytest.mark.parametrize(
    "share", [-0.1, 1.1, (0.6, 0.2), (0, 1.5), (0, 0.5, 0.4), (0, 0.5, 0.6, 0.7), (0.1,), float("nan"), {"cat": 2.0}]
)
def test_steps_outside_the_run_are_refused(share):
    with pytest.raises(ValueError, match="0 <= start <= end <= 1"):
        cross_replace_alpha(share, prompt("a cat"), 50)
    if not isinstance(share, dict):
        with pytest.raises(ValueError, match="0 <= start <= end <= 1"):
            step_range("self", share, 50)


def test_a_scheduled_word_that_is_missing_is_an_error_and_in_parity_ignored():
    p = prompt("a Cat, running")
    with pytest.raises(ValueError, match="'dog' is not in the prompt"):
        cross_replace_alpha({"dog": 0.5}, p, 50)
    assert torch.equal(cross_replace_alpha({"dog": 0.5, "cat": 0.5}, p, 50, parity=True), torch.ones(50, 77))
    assert cross_replace_alpha({"Cat,": 0.5}, p, 50, parity=True).sum(0)[:5].tolist() == [50, 50, 25, 25, 50]


def test_equalizer_weighs_each_token_of_a_word():
    p = prompt("a giraffe, a xylophone")
    c = equalizer({"xylophone": -2.5, "giraffe": 0}, p)
    expected = torch.ones(77)
    expected[list(p.token_indices("xylophone"))], expected[2] = -2.5, 0
    assert torch.equal(c, expected) and len(p.token_indices("xylophone")) > 1
    assert torch.equal(equalizer({"giraffe": 3}, p, parity=True), torch.ones(77))  # there it is "giraffe,"
    with pytest.raises(ValueError, match="'dog' is not in the prompt"):
        equalizer({"dog": 2}, p)
    with pytest.raises(ValueError, match="weight of 'giraffe' is nan"):
        equalizer({"giraffe": float("nan")}, p)


def test_parity_of_the_schedule_with_the_published_code():
    data = Path(__file__).parent / "data"
    pairs = json.loads((data / "p2p_prompts.json").read_text(encoding="utf-8"))["swap"]
    original = np.load(data / "p2p_mappers.npz")["alpha"]
    for (_, target), alpha in zip(pairs, original, strict=False):
        ours = cross_replace_alpha({"default_": 0.8, target.split(" ")[0]: (0.2, 0.6)}, prompt(target), 50, parity=True)
        assert torch.equal(ours, torch.from_numpy(alpha).float())
    assert len(original) == 100 and original.min() == 0 and original.max() == 1


def test_inputs_are_unchanged():
    given = {"cat": (0.2, 0.6)}
    cross_replace_alpha(given, prompt("a cat"), 10)
    assert given == {"cat": (0.2, 0.6)}


def test_tokens_that_a_space_does_not_part_are_refused():
    class Joined:
        model_max_length, eos_token = 77, "<|endoftext|>"

        def __call__(self, text, **_):
            return type("", (), {"input_ids": [0, *range(len(text)), 1]})

        def decode(self, ids):
            return str(ids)

    with pytest.raises(ValueError, match="cannot be told apart"):
        Prompt.tokenize("a cat", Joined())
