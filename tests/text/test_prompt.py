"""Words and their tokens: what a `Prompt` reads, and the positions that a user's word selects."""

import pytest
import torch
from diffusers.loaders import TextualInversionLoaderMixin
from hypothesis import given, settings
from hypothesis import strategies as st
from prompts import TOKENIZER, tokenize
from transformers import CLIPTokenizer

from minip2p.io.files import shipped_weights
from minip2p.text.prompt import SPECIAL_TOKENS, Prompt, Word, chunk_words, token_indicator

ANY_TEXT = st.text(max_size=60) | st.text("ab1 ,.'’-#\"é🐱!ß<|>", max_size=60)


def tokens_at(prompt, positions):
    """The tokens at these positions, as text."""
    return [prompt.tokens[j] for j in positions]


def test_a_prompt_has_the_ids_that_the_text_encoder_takes():
    p = tokenize("A photo of a giraffe, running")
    assert list(p.ids) == TOKENIZER(p.text, padding="max_length", max_length=77, truncation=True).input_ids
    assert p.tokens == ("<|startoftext|>", "a", "photo", "of", "a", "giraffe", ",", "running", "<|endoftext|>")
    assert p.eos == 8 and p.visible_words == p.words
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
def test_words_are_split_from_punctuation(text, words):
    assert [word.text for word in tokenize(text).words] == words.split()


@settings(deadline=None)
@given(ANY_TEXT)
def test_each_token_belongs_to_at_most_one_word_and_spells_that_word(text):
    p = tokenize(text)
    ends = [position for word in p.words for position in word.span]
    assert ends == sorted(ends) and all(a < b for a, b in (word.span for word in p.words))
    for word in p.visible_words:
        spelled = "".join(TOKENIZER.convert_ids_to_tokens(list(p.ids[slice(*word.span)])))
        assert all(c in spelled for c in word.text if c.isascii() and c.isalnum())


@settings(deadline=None)
@given(ANY_TEXT)
def test_a_word_is_selected_by_its_index_and_among_the_occurrences_of_its_text(text):
    p = tokenize(text)
    for n, word in enumerate(p.visible_words):
        assert p.token_indices(n) == tuple(range(*word.span))
        assert set(p.token_indices(n)) <= set(p.token_indices((word.text, None)))


def test_text_selects_every_occurrence_in_any_case_with_or_without_punctuation():
    p = tokenize("A cat, a dog and a Cat.")
    assert tokens_at(p, p.token_indices("cat")) == ["cat", "cat"]
    assert tokens_at(p, p.token_indices("A")) == ["a", "a", "a"]
    assert p.token_indices("CAT") == p.token_indices("cat,") == p.token_indices("cat") == (2, 8)
    assert tokenize("it’s Größe").token_indices("IT'S") == (1, 2, 3, 4)  # it + two bytes of ’ + s
    assert tokenize("it’s Größe").token_indices("GRÖSSE") == tuple(range(5, 11))


def test_a_token_that_joins_punctuation_and_a_letter_belongs_to_the_word():
    p = tokenize("a 'small' cat")
    assert tokens_at(p, p.token_indices("small")) == ["'s", "m", "all"]
    assert tokens_at(p, p.token_indices("cat")) == ["cat"]
    with pytest.raises(ValueError, match="the words of 'b,c' share a token"):
        chunk_words([b"b,c"], start=1)


def test_the_nth_occurrence_words_in_a_row_indices_and_ranges():
    p = tokenize("a red car, a red-hot xylophone and a red car")
    assert p.token_indices("car#2") == p.token_indices(("car", 2)) == p.token_indices(-1)
    assert tokens_at(p, p.token_indices("red car#1")) == ["red", "car"] and len(p.token_indices("red car")) == 4
    assert tokens_at(p, p.token_indices("xylophone")) == ["x", "y", "lo", "phone"]
    assert p.token_indices(1) == p.token_indices("red#1") == (2,)
    assert p.token_indices(range(1, 3)) == p.token_indices(slice(1, 3)) == p.token_indices("red car#1")
    assert tokens_at(p, p.token_indices("car, a")) == ["car", "a"]


@pytest.mark.parametrize(
    "word, message",
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
        (3.5, "a word is given as text, as (text, n), by index or by a range, not as 3.5"),
        (("cat", "dog"), "a word is given as text"),
    ],
)
def test_a_word_that_is_not_in_the_prompt_is_named_in_one_line(word, message):
    with pytest.raises(ValueError) as error:
        tokenize("a red cat").token_indices(word)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_word_after_the_77th_token_is_refused():
    p = tokenize("cat " + "a " * 74 + "dog cat")
    assert len(p.ids) == 77 and p.eos == 76 and p.ids[75] != p.ids[76]
    assert p.token_indices("cat") == (1,) and p.words[-1] == Word("cat", (77, 78))
    for word in ("dog", "cat#2", -1, "dog cat"):
        with pytest.raises(ValueError, match=f"{word!r} lies beyond the last of the 77 tokens"):
            p.token_indices(word)


def test_the_tokens_around_the_text_are_words_too():
    """With the words and the punctuation, they are all tokens, each once."""
    p = tokenize("a red cat, a car")
    assert (p.token_indices("<start>"), p.token_indices("<end>")) == ((0,), (7,))
    assert p.token_indices("<padding>") == tuple(range(8, 77))
    words = [j for n in range(len(p.words)) for j in p.token_indices(n)]
    special = [j for name in SPECIAL_TOKENS for j in p.token_indices(name)]
    assert sorted([*words, *special, 4]) == list(range(77)) and p.tokens[4] == ","
    assert token_indicator(p, ["<end>", "cat"]).sum(1).tolist() == [1, 1]


def test_a_prompt_that_contains_the_name_of_a_special_token_has_it_as_a_word():
    p = tokenize("a <END> of the road")
    assert tokens_at(p, p.token_indices("<end>")) == ["end"] and p.token_indices("<start>") == (0,)
    p = tokenize("the end of the road")
    assert p.token_indices("<end>") == (6,) and p.token_indices("end") == (2,)


def test_a_prompt_that_fills_all_tokens_has_no_padding():
    p = tokenize("a " * 80)
    assert p.token_indices("<end>") == (76,)
    with pytest.raises(ValueError, match="fills all of the 77 tokens: there is no padding"):
        p.token_indices("<padding>")


def test_a_word_that_is_truncated_in_the_middle_is_refused():
    with pytest.raises(ValueError, match="'xylophone' lies beyond"):
        tokenize("a " * 74 + "xylophone").token_indices("xylophone")


def test_tokens_that_span_a_space_are_refused():
    class SpanningTokenizer:
        model_max_length, eos_token = 77, "<|endoftext|>"

        def __call__(self, text, **_):
            return type("", (), {"input_ids": [0, *range(len(text)), 1]})

        def decode(self, ids):
            return str(ids)

    with pytest.raises(ValueError, match="cannot be told apart"):
        Prompt.tokenize("a cat", SpanningTokenizer())


def test_a_token_indicator_is_1_at_the_words_tokens():
    p = tokenize("a lighthouse, a cat")
    indicators = token_indicator(p, ["a", "lighthouse", "cat"])
    assert indicators.shape == (3, 77)
    assert indicators.sum(1).tolist() == [2, len(p.token_indices("lighthouse")), 1]
    for row, word in enumerate(["a", "lighthouse", "cat"]):
        assert torch.equal(indicators[row].nonzero().flatten(), torch.tensor(p.token_indices(word)))
    with pytest.raises(ValueError, match="'dog' is not in the prompt"):
        token_indicator(p, ["cat", "dog"])


# Added tokens: those of textual inversion and of fine-tuned models


@pytest.fixture(scope="module")
def extended():
    """A tokenizer with added tokens, some of characters outside CLIP's byte alphabet, and one of three vectors."""
    tokenizer = CLIPTokenizer.from_pretrained(shipped_weights("tiny") / "tokenizer")
    for token in ("‹猫>", "sks™", "<my toy>", "EasyNegative", "***", "<v>", "<v>_1", "<v>_2"):
        tokenizer.add_tokens(token)
    return tokenizer


@pytest.mark.parametrize(
    "text, words",
    [
        ("a ‹猫> on", [("a", 1), ("猫", 2), ("on", 3)]),
        ("sks™, a cat", [("sks™", 1), ("a", 3), ("cat", 4)]),
        ("the <my toy>'s hat", [("the", 1), ("my toy", 2), ("s", 3), ("hat", 4)]),
        ("a<My  toy>b", [("a", 1), ("my toy", 2), ("b", 3)]),
        ("easynegative EasyNegative", [("easynegative", 1), ("easynegative", 2)]),
        ("a *** b", [("a", 1), ("***", 2), ("b", 3)]),
        ("a <|endoftext|> b", [("a", 1), ("endoftext", 2), ("b", 3)]),
    ],
)
def test_an_added_token_is_one_word_whatever_it_contains(extended, text, words):
    p = Prompt.tokenize(text, extended)
    assert [(word.text, word.span[0]) for word in p.words] == words
    assert all(word.span[1] == word.span[0] + 1 for word in p.words)
    assert list(p.ids) == extended(text, padding="max_length", max_length=77, truncation=True).input_ids


def test_the_longest_of_several_added_tokens_is_the_word():
    """As in the tokenizer, in either order of their addition."""
    for tokens in (("<toy", "<toy-cat>"), ("<toy-cat>", "<toy")):
        tokenizer = CLIPTokenizer.from_pretrained(shipped_weights("tiny") / "tokenizer")
        for token in tokens:
            tokenizer.add_tokens(token)
        p = Prompt.tokenize("a <toy-cat> and a <toy", tokenizer)
        assert [(word.text, word.span) for word in p.words[1::3]] == [("toy-cat", (2, 3)), ("toy", (5, 6))]


@pytest.mark.parametrize(
    "word, positions",
    [
        ("猫", (1,)),
        ("‹猫>", (1,)),
        ("sks™", (2,)),
        ("<my toy>", (3,)),
        ("my toy", (3,)),
        ("toy", (4,)),
        ("<my toy> toy", (3, 4)),
        ("EASYNEGATIVE", (5,)),
        ("***", (6,)),
    ],
)
def test_an_added_token_is_selected_by_its_name_with_or_without_punctuation(extended, word, positions):
    assert Prompt.tokenize("‹猫> sks™ <my toy> toy EasyNegative ***", extended).token_indices(word) == positions


def test_a_word_inside_of_an_added_token_is_not_a_word(extended):
    with pytest.raises(ValueError, match="'my' is not in the prompt"):
        Prompt.tokenize("<my toy>", extended).token_indices("my")


def test_a_word_of_several_vectors_has_all_of_their_tokens_as_in_diffusers(extended):
    for text in ("a <v> cat, <v>", "<v>", "<v> " * 24 + "cat <v> cat", "<v> " * 40):
        p = Prompt.tokenize(text, extended)
        longer = TextualInversionLoaderMixin().maybe_convert_prompt(text, extended)
        assert list(p.ids) == extended(longer, padding="max_length", max_length=77, truncation=True).input_ids
    p = Prompt.tokenize("a <v> cat, <v>", extended)
    assert p.token_indices("v") == (2, 3, 4, 7, 8, 9) and p.token_indices("cat") == (5,) and p.eos == 10
    p = Prompt.tokenize("<v> " * 40, extended)
    assert len(p.ids) == 77 and p.ids[-1] == extended.eos_token_id and p.token_indices("v") == tuple(range(1, 76))
