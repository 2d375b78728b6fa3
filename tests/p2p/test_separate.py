"""Words that share attention: their overlap, and the map function by which they compete for each pixel."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prompts import tokenize

from minip2p import Site, explicit
from minip2p.p2p.separate import SeparateWords, overlap

CROSS, SELF = Site("up", 0, True, 1), Site("up", 0, False, 1)
TEXT = "a cat and a dog on grass"
PROMPT = tokenize(TEXT)


def random_maps(seed, words=77):
    return torch.randn(2, 4, 9, words, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).softmax(-1)


def test_overlap_is_the_shared_part_of_two_maps_that_sum_to_1():
    a, b = torch.tensor([[2.0, 0], [0, 0]]), torch.tensor([[1.0, 1], [1, 1]])
    assert overlap(a, b) == 0.25 and overlap(a, 7 * a) == 1 and overlap(a, a.flip(1)) == 0


def test_two_words_by_hand():
    """p = (.3, .1), γ = 2: r = (1, 1/3), p r = (9, 1)/30, scaled to their sum .4: (.36, .04)."""
    probs = torch.zeros(1, 1, 1, 77)
    probs[..., 2], probs[..., 5], probs[..., 0] = 0.3, 0.1, 0.6
    separated = SeparateWords(PROMPT, ["cat", "dog"], 2)(probs, CROSS)
    torch.testing.assert_close(separated[0, 0, 0, [0, 2, 5]], torch.tensor([0.6, 0.36, 0.04]))


def test_in_float16_no_share_underflows():
    """With even shares nothing changes. A share of the sum, 2^−(γ − 1), would be 0 in float16 from γ = 26 on."""
    probs = torch.zeros(1, 1, 1, 77, dtype=torch.float16)
    probs[..., 2], probs[..., 5], probs[..., 0] = 0.25, 0.25, 0.5
    assert torch.equal(SeparateWords(PROMPT, ["cat", "dog"], 60)(probs, CROSS), probs)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 999), st.floats(1, 20))
def test_attention_is_conserved_at_every_pixel_and_no_other_word_changes(seed, sharpness):
    probs = random_maps(seed)
    before = probs.clone()
    separated = SeparateWords(PROMPT, ["cat", "dog", "grass"], sharpness)(probs, CROSS)
    torch.testing.assert_close(separated.sum(-1), probs.sum(-1))
    others = [j for j in range(77) if j not in (2, 5, 7)]
    assert torch.equal(separated[..., others], probs[..., others]) and torch.equal(probs, before)
    assert (separated >= 0).all()


def test_sharpness_1_changes_nothing_and_a_large_one_gives_everything_to_the_strongest_word():
    probs = random_maps(1)
    torch.testing.assert_close(SeparateWords(PROMPT, ["cat", "dog"], 1)(probs, CROSS), probs)
    separated = SeparateWords(PROMPT, ["cat", "dog"], 100)(probs, CROSS)[..., [2, 5]]
    strongest = probs[..., [2, 5]].mean(1, keepdim=True).argmax(-1, keepdim=True).expand(-1, 4, -1, -1)
    is_clear = (probs[..., 2].mean(1) / probs[..., 5].mean(1)).log().abs() > 0.2
    share = separated.gather(-1, strongest)[..., 0] / separated.sum(-1)
    assert (share.transpose(0, 1)[:, is_clear] > 0.999).all() and is_clear.any()


def test_without_attention_there_is_no_error_and_self_attention_is_not_changed():
    probs = torch.zeros(1, 1, 4, 77)
    separate = SeparateWords(PROMPT, ["cat", "dog"])
    assert torch.equal(separate(probs, CROSS), probs) and separate(probs, SELF) is probs


def test_gradients_pass_through():
    logits = torch.randn(1, 2, 4, 77, requires_grad=True)
    SeparateWords(PROMPT, ["cat", "dog"])(logits.softmax(-1), CROSS)[..., 2].sum().backward()
    assert logits.grad is not None and logits.grad.isfinite().all() and logits.grad[..., 5].abs().max() > 0


def test_separation_lowers_the_overlap_of_a_picture(model):
    prompt = model.text.prompt(TEXT)
    plain = model.generate(TEXT, seed=3, steps=4)
    separated = model.generate(TEXT, seed=3, steps=4, attend=explicit(SeparateWords(prompt, ["cat", "dog"], 8)))
    before, after = (overlap(*run.maps(["cat", "dog"])) for run in (plain, separated))
    assert after < 0.9 * before


@pytest.mark.parametrize(
    "words, sharpness, message",
    [
        (["cat"], 2, "two words or more"),
        ("cat", 2, "two words or more"),
        (["cat", "cow"], 2, "'cow' is not in the"),
        (["cat", "a cat"], 2, "share a token"),
        (["cat", "dog"], 0.5, "sharpness lies between 1 and 100, not 0.5"),
        (["cat", "dog"], "2", "sharpness lies"),
    ],
)
def test_words_that_cannot_be_separated_are_refused_in_one_line(words, sharpness, message):
    with pytest.raises(ValueError, match=message) as error:
        SeparateWords(PROMPT, words, sharpness)
    assert "\n" not in str(error.value)
