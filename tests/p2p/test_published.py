"""The published code's words and its swap mapper: parity on 500 random pairs, its defects, and its limits."""

import published_data
import pytest
import torch
from prompts import tokenize

from minip2p.p2p.alignment import swap_mapper
from minip2p.p2p.published import published_swap_mapper, published_words, token_positions


def has_plain_words(prompt):
    """Whether our words are those that spaces separate: no punctuation around them."""
    return [word.text for word in prompt.words] == prompt.text.lower().split(" ")


def test_parity_of_swaps_with_the_published_code_on_500_pairs():
    pairs, mappers = published_data.tokenized_pairs("swap"), published_data.swap_mappers()
    assert len(pairs) == len(mappers) == 500
    for (source, target), M in zip(pairs, mappers, strict=True):
        assert torch.equal(published_swap_mapper(source, target), M)


def test_our_swap_differs_from_the_published_one_only_behind_the_last_changed_word_and_in_punctuation():
    same = behind = punctuation = 0
    pairs, mappers = published_data.tokenized_pairs("swap"), published_data.swap_mappers()
    for (source, target), M in zip(pairs, mappers, strict=True):
        actual = swap_mapper(source, target)
        if torch.equal(actual, M):
            same += 1
        elif has_plain_words(source) and has_plain_words(target):
            behind += 1
            last = max(
                new.span[1] for word, new in zip(source.words, target.words, strict=True) if word.text != new.text
            )
            assert torch.equal(actual[:, :last], M[:, :last])
            assert (M.sum(1)[: source.eos + 1] != 1).any()
        else:
            punctuation += 1
    assert min(same, behind, punctuation) >= 50, (same, behind, punctuation)


def test_behind_the_last_changed_word_the_published_mapper_is_misaligned_and_ours_is_not():
    source, target = tokenize("a cat on grass"), tokenize("a zookeeper on grass")
    k = target.eos - source.eos + 1
    actual, published = swap_mapper(source, target), published_swap_mapper(source, target)
    assert actual[3, 2 + k] == actual[4, 3 + k] == actual[source.eos, target.eos] == 1
    assert published[3].sum() == published[4].sum() == 0 and published[2 + k, 2 + k] == 1


@pytest.mark.parametrize(
    "source, target, message",
    [
        ("a cat", "a cat ,", "as many words in the target as in the source, which have 3 and 2"),
        ("a  cat", "a  dog", "published code cannot"),
        ("cat " * 80 + "a", "cat " * 80 + "dog", "published code cannot take prompts of more than 77 tokens"),
    ],
)
def test_prompts_that_the_published_code_cannot_swap_are_refused_in_one_line(source, target, message):
    with pytest.raises(ValueError, match=message) as error:
        published_swap_mapper(tokenize(source), tokenize(target))
    assert "\n" not in str(error.value)


def test_the_published_words_keep_case_and_punctuation():
    words = published_words(tokenize("a Cat, running"))
    assert [text for text, _ in words] == ["a", "Cat,", "running"]
    assert [positions for _, positions in words] == [[1], [2, 3], [4]]


def test_words_are_found_our_way_or_as_the_published_code_finds_them():
    """The published code does not find "cat" in "cat,", and takes an index in its own splitting."""
    prompt = tokenize("a cat, a cat")
    assert list(token_positions(prompt, "cat")) == [2, 5]
    assert token_positions(prompt, "cat", parity=True) == [5]
    assert token_positions(prompt, "cat,", parity=True) == token_positions(prompt, 1, parity=True) == [2, 3]
    assert token_positions(prompt, "dog", parity=True) == []
    with pytest.raises(ValueError, match="'dog' is not in the prompt"):
        token_positions(prompt, "dog")
    with pytest.raises(ValueError, match="a word or its index, not \\('cat', 1\\)"):
        token_positions(prompt, ("cat", 1), parity=True)
