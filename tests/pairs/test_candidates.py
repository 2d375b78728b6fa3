"""Candidates: their draws, their masks, and that an edit stays in its mask."""

import pytest
import torch
from prompts import tokenize

from minip2p.pairs.candidates import (
    attention_masks,
    bounding_box,
    changed_words,
    generator_for,
    grown,
    make_candidates,
)
from minip2p.pairs.prompts import Target, Unit
from minip2p.pairs.settings import PairSettings

SOURCE = "a cat on the beach"
TIGER = Target("a tiger on the beach", "turn the cat into a tiger", "object")
STYLE = Target("a cat on the beach, watercolor", "make it a watercolor", "style")
QUICK = PairSettings(samples=2, steps=1, noises=1)


@pytest.mark.parametrize(
    ("source", "target", "words"),
    [
        (SOURCE, TIGER.prompt, (["cat"], ["tiger"])),
        (SOURCE, STYLE.prompt, ([], ["watercolor"])),
        ("a cat and a dog", "a cat", (["dog"], [])),
        ("a cat on the beach", "an elephant at the beach", (["cat"], ["elephant"])),
        ("a cat on the beach", "a cat at the beach", (["on"], ["at"])),
    ],
)
def test_changed_words(source, target, words):
    assert changed_words(tokenize(source), tokenize(target)) == words


def test_draws_depend_on_the_prompts_and_the_sample_alone(small_model):
    """Not on the other targets, and another seed draws others."""
    both = list(make_candidates(small_model, Unit(SOURCE, (TIGER, STYLE)), QUICK, None))
    alone = list(make_candidates(small_model, Unit(SOURCE, (STYLE,)), QUICK, None))
    other = list(
        make_candidates(small_model, Unit(SOURCE, (STYLE,)), PairSettings(seed=1, samples=1, steps=1, noises=1), None)
    )

    def drawn(candidate):
        return candidate.source.seed, candidate.source.guidance_scale, candidate.cross_replace, candidate.sample

    assert [drawn(c) for c in both if c.target == STYLE] == [drawn(c) for c in alone]
    assert [c.target for c in both] == [TIGER, STYLE, TIGER, STYLE]
    assert drawn(other[0]) not in map(drawn, alone) and alone[0].source.seed != alone[1].source.seed
    for c in both:
        assert 0.1 <= c.cross_replace == c.self_replace <= 0.9 and 3 <= c.source.guidance_scale <= 6


def test_draws_are_uniform():
    values = [generator_for("test", n).random() for n in range(1000)]
    assert abs(sum(values) / 1000 - 0.5) < 0.03 and min(values) < 0.01 and max(values) > 0.99


def test_a_candidate_is_the_edit_of_its_settings(small_model):
    """By `Pipeline.edit` with the drawn seed, guidance and τ, to the bit."""
    candidate = next(iter(make_candidates(small_model, Unit(SOURCE, (TIGER,)), QUICK, None)))
    out = small_model.edit(
        SOURCE,
        TIGER.prompt,
        seed=candidate.source.seed,
        steps=1,
        guidance_scale=candidate.source.guidance_scale,
        cross_replace=candidate.cross_replace,
        self_replace=candidate.self_replace,
    )
    assert torch.equal(out.latents, candidate.edit.latents)
    assert torch.equal(out.source_run.finish().picture, candidate.before)


def test_masks_before_the_edit(small_model):
    """The tight one is the mask of the word that goes; an edit without such a word has none."""
    run = small_model.generate(SOURCE, seed=1, steps=2)
    words = [(["cat"], ["tiger"]), ([], ["watercolor"]), (["cat", "beach"], [])]
    settings = PairSettings(masks=("tight", "grown", "box"))
    first, second, third = attention_masks(run, words, [settings] * 3)
    tight = run.mask("cat", threshold="otsu")
    assert torch.equal(first["tight"], tight) and second == {}
    assert torch.equal(third["tight"], run.mask(["cat", "beach"], threshold="otsu"))
    for kind in ("grown", "box"):
        assert (first[kind] & tight).sum() == tight.sum() < first[kind].sum()
    assert attention_masks(run, words, [PairSettings(masks=("box",))] * 3)[0].keys() == {"box"}
    assert attention_masks(run, words[1:2], [settings]) == [{}]


def test_a_grown_mask_and_a_box_by_hand():
    mask = torch.zeros(9, 9, dtype=torch.bool)
    mask[3:5, 3:5] = True  # the root of its area is 2
    assert torch.equal(grown(mask, 0.0), mask)
    assert grown(mask, 0.5).nonzero().aminmax() == (2, 5) and grown(mask, 0.5).sum() == 16
    mask[6, 1] = True
    assert bounding_box(mask).sum() == 4 * 4 and bounding_box(mask)[6, 4]
    assert not bounding_box(torch.zeros(3, 3, dtype=torch.bool)).any()


def test_the_edit_stays_in_its_mask(small_model):
    """The latents outside are the source's to the bit. The style, for which no word goes, is edited without a mask."""
    settings = PairSettings(samples=1, steps=2, noises=1, masks=("tight", "box"))
    tight, box, style = make_candidates(small_model, Unit(SOURCE, (TIGER, STYLE)), settings, None)
    assert [c.mask_kind for c in (tight, box, style)] == ["tight", "box", "none"]
    for candidate in (tight, box):
        outside = candidate.edit.blend_mask == 0
        difference = (candidate.edit.latents[-1] - candidate.source.latents[-1]).abs().sum(0)
        assert outside.any() and not difference[outside].any() and difference[~outside].any()
        assert candidate.mask.shape == candidate.before.shape[1:]
    assert tight.scores["psnr"] > 15 and style.mask is not None
