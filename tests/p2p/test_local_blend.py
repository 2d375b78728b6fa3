"""Local blending by hand: its masks, how it mixes latents, its errors; and blended edits of the shipped model."""

import numpy as np
import pytest
import torch
from PIL import Image
from prompts import tokenize
from word_heat import RUN, SIZE, SOURCE, TARGET, finest_cross_store, stored_run, word_heat

from minip2p import LocalBlend, explicit
from minip2p.attention.contract import Site
from minip2p.attention.masks import heatmap_to_mask
from minip2p.errors import Notice
from minip2p.p2p.local_blend import LocalBlendState

SITES = tuple(Site("up", n, True, stride) for n, stride in enumerate((4, 2, 2, 1)))
HEAT = torch.tensor([[8.0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 3], [0, 0, 0, 0]])


def bits(*rows):
    """A bool mask from rows of text: "#" is True."""
    return torch.tensor([[c == "#" for c in row] for row in rows])


def blend_state(blend, source=HEAT, target=None, latent=(4, 4)):
    """A blend of "a cat dog" at 10 steps with this heat, y x; or 2 y x, the second of words that may not change."""
    p = tokenize("a cat dog")
    state = LocalBlendState.start(blend, p, p, steps=10, latent_size=latent, sites=SITES)
    for accumulator, heat in ((state.source, source), (state.target, target)):
        heat = torch.zeros(2, *source.shape[-2:]) if heat is None else heat
        accumulator.sums[1] = heat if heat.ndim == 3 else torch.stack([heat, torch.zeros_like(heat)])
    return state


def random_latents():
    return torch.randn(1, 4, 4, 4), torch.randn(1, 4, 4, 4)


# Masks


def test_the_mask_is_the_union_of_the_sources_and_the_targets():
    turned = HEAT.flip(0, 1)
    of_source, of_target = heatmap_to_mask(HEAT, (4, 4), 0.5), heatmap_to_mask(turned, (4, 4), 0.5)
    both = LocalBlend(("cat",), ("dog",), threshold=0.5)
    assert torch.equal(blend_state(both, HEAT, turned).mask(), of_source | of_target)
    assert not torch.equal(of_source, of_target)
    assert torch.equal(blend_state(LocalBlend(("cat",), threshold=0.5), HEAT, turned).mask(), of_source)
    assert torch.equal(blend_state(LocalBlend((), ("cat",), threshold=0.5), HEAT, turned).mask(), of_target)


@pytest.mark.parametrize("option", ["without_source", "without_target"])
def test_words_to_leave_out_are_subtracted_unpooled_at_their_own_threshold(option):
    subtracted = torch.zeros(4, 4)
    subtracted[0, 1], subtracted[1, 3] = 1.0, 0.6
    heat = torch.stack([HEAT, subtracted])
    blend = LocalBlend(("cat",), ("cat",), without_threshold=0.5, **{option: ("dog",)})
    assert torch.equal(blend_state(blend, heat, heat).mask(), bits("#...", "###.", "..##", "..##"))
    blend = LocalBlend(("cat",), ("cat",), without_threshold=0.7, **{option: ("dog",)})
    assert torch.equal(blend_state(blend, heat, heat).mask(), bits("#...", "####", "..##", "..##"))


def test_words_are_subtracted_from_a_custom_mask_too():
    subtracted = torch.zeros(4, 4)
    subtracted[0, 1], subtracted[1, 3] = 1.0, 0.6
    blend = LocalBlend(mask=torch.ones(8, 8), without_source=("dog",), without_threshold=0.5)
    mask = blend_state(blend, torch.stack([HEAT, subtracted])).mask()
    assert torch.equal(mask, bits("#.##", "###.", "####", "####"))


def test_a_custom_mask_is_resized_to_the_latent():
    custom = torch.zeros(32, 48, dtype=torch.bool)
    custom[:8, :16] = True
    custom[8:16, 16:23] = True  # 7 of the 12 columns of a cell: more than half of it
    mask = blend_state(LocalBlend(mask=custom), torch.zeros(4, 4)).mask()
    assert torch.equal(mask, bits("#...", ".#..", "....", "...."))
    mask = blend_state(LocalBlend(mask=torch.eye(2)), torch.zeros(4, 4)).mask()
    assert torch.equal(mask, bits("##..", "##..", "..##", "..##"))


def test_a_mask_that_is_black_or_nearly_black_is_named():
    with pytest.warns(Notice, match="the mask of a local blend is black, so it lets nothing change; white is"):
        blend_state(LocalBlend(mask=torch.zeros(8, 8)), torch.zeros(4, 4))
    with pytest.raises(
        ValueError, match=r"is nowhere white, so it would let nothing change: its maximum is 0.0039 \(white is"
    ):
        blend_state(LocalBlend(mask=torch.full((8, 8), 1 / 255)), torch.zeros(4, 4))


def test_a_custom_mask_that_covers_half_of_a_cell_covers_it():
    custom = torch.zeros(8, 8)
    custom[0:2, 0:1], custom[4:6, 4:5], custom[5, 5] = 1, 1, -0.01
    mask = blend_state(LocalBlend(mask=custom), torch.zeros(4, 4)).mask()
    assert torch.equal(mask, bits("#...", "....", "....", "...."))


def test_soft_masks_are_united_by_the_maximum_and_subtracted_by_the_product():
    turned, subtracted = HEAT.flip(0, 1), torch.zeros(4, 4)
    subtracted[0, 0] = 1
    mask = blend_state(LocalBlend(("cat",), ("cat",), threshold=(0.2, 0.6), pool=False), HEAT, turned).mask()
    of_source, of_target = (heatmap_to_mask(heat, (4, 4), (0.2, 0.6), pool=False) for heat in (HEAT, turned))
    assert torch.equal(mask, torch.maximum(of_source, of_target))
    blend = LocalBlend(("cat",), without_source=("dog",), threshold=(0.2, 0.6), pool=False)
    mask = blend_state(blend, torch.stack([HEAT, subtracted])).mask()
    assert mask[0, 0] == 0 and mask[2, 3] == of_source[2, 3] > 0


def test_a_word_that_is_named_twice_counts_once():
    p = tokenize("a red cat")
    once, twice = (
        LocalBlendState.start(LocalBlend(words), p, p, steps=5, latent_size=(4, 4), sites=SITES)
        for words in (("red cat",), ("red cat", "cat"))
    )
    assert torch.equal(once.source.indicators, twice.source.indicators)


# Blending


def test_blending_takes_the_source_outside_and_the_target_inside_from_its_first_step_on():
    state = blend_state(LocalBlend(("cat",), start=0.2))
    source, target = random_latents()
    m = state.mask()
    assert torch.equal(state(1, source, target), target)  # int(0.2 · 10) = 2
    out = state(2, source, target)
    assert torch.equal(out[..., m], target[..., m]) and torch.equal(out[..., ~m], source[..., ~m])
    torch.testing.assert_close(out, source + m * (target - source))


def test_the_first_step_of_a_blend_is_its_share_of_the_steps():
    """int(start · N), as in the published code; the schedules of attention count N + 1."""
    p = tokenize("a cat dog")
    for start, steps, first in ((0.5, 5, 2), (0.2, 50, 10), (0.4, 12, 4), (1.0, 7, 7)):
        blend = LocalBlend("cat", start=start)
        state = LocalBlendState.start(blend, p, p, steps=steps, latent_size=(4, 4), sites=SITES)
        assert state.first_step == first
        skipping = LocalBlendState.start(blend, p, p, steps=steps, skip_steps=2, latent_size=(4, 4), sites=SITES)
        assert skipping.first_step == first + 2 and skipping.full_step == state.full_step + 2


def test_a_soft_blend_mixes_and_keeps_both_ends_to_the_bit():
    state = blend_state(LocalBlend(("cat",), threshold=(0.2, 0.6), pool=False))
    m = state.mask()
    assert m.dtype == torch.float32 and m[0, 0] == 1 and m[1, 1] == 0 and m[2, 3] == pytest.approx((3 / 8 - 0.2) / 0.4)
    source, target = random_latents()
    out = state(5, source, target)
    torch.testing.assert_close(out, source + m * (target - source))
    assert torch.equal(out[..., m == 0], source[..., m == 0]) and torch.equal(out[..., m == 1], target[..., m == 1])


def test_a_blend_with_a_ramp_ends_as_the_binary_blend():
    """r = 1/4, 2/4, 3/4 and 1: outside of the mask x_s + (1 − r) (x − x_s); a ramp of no steps is the binary blend."""
    ramp, at_once = (blend_state(LocalBlend(("cat",), start=start)) for start in ((0.2, 0.5), 0.5))
    source, target = random_latents()
    m = ramp.mask()
    assert torch.equal(ramp(1, source, target), target)
    for step, r in ((2, 0.25), (3, 0.5), (4, 0.75)):
        out = ramp(step, source, target)
        torch.testing.assert_close(out, torch.where(m, target, source + (1 - r) * (target - source)))
        assert torch.equal(out[..., m], target[..., m])
    assert torch.equal(ramp(5, source, target), at_once(5, source, target))
    no_steps = blend_state(LocalBlend(("cat",), start=(0.2, 0.2)))
    binary = blend_state(LocalBlend(("cat",), start=0.2))
    assert torch.equal(no_steps(2, source, target), binary(2, source, target))
    assert len({ramp.cache_key(step) for step in (2, 3, 4, 5)}) == 4 and ramp.cache_key(5) == ramp.cache_key(9)


# Arguments


def test_what_edit_takes_as_a_local_blend():
    assert LocalBlend.from_argument(None) is None
    assert LocalBlend.from_argument("cat") == LocalBlend(("cat",), ("cat",))
    assert LocalBlend.from_argument(("cat", "dog")) == LocalBlend(("cat",), ("dog",))
    assert LocalBlend.from_argument(["cat", "dog"]) == LocalBlend(("cat",), ("dog",))
    blend = LocalBlend(("cat",))
    assert LocalBlend.from_argument(blend) is blend


def test_a_single_word_needs_no_tuple():
    blend = LocalBlend("cat", "dog", without_target="house")
    assert (blend.source, blend.target, blend.without_target) == (("cat",), ("dog",), ("house",))


def test_a_custom_mask_is_a_tensor_an_array_or_an_image():
    expected = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    image = Image.fromarray((expected.numpy() * 255).astype(np.uint8))
    for mask in (expected, expected.numpy(), expected.bool(), image, image.convert("RGB")):
        assert torch.equal(LocalBlend(mask=mask).mask, expected)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: LocalBlend(), "a local blend needs words or a mask"),
        (lambda: LocalBlend(without_source=("cat",)), "a local blend needs words or a mask"),
        (lambda: LocalBlend("cat", mask=torch.ones(2, 2)), "a local blend needs words or a mask, and not both"),
        (lambda: LocalBlend(("cat",), threshold=1.1), "a local blend's threshold must lie between 0 and 1, not 1.1"),
        (
            lambda: LocalBlend(("cat",), threshold=float("nan")),
            "a local blend's threshold must lie between 0 and 1, not nan",
        ),
        (
            lambda: LocalBlend(("cat",), without_threshold=-0.1),
            "a local blend's without_threshold must lie between 0 and 1",
        ),
        (lambda: LocalBlend("cat", threshold="x"), "a local blend's threshold must lie between 0 and 1"),
        (lambda: LocalBlend("cat", threshold="most"), "a local blend's threshold must lie between 0 and 1"),
        (lambda: LocalBlend("cat", threshold="100%"), "a local blend's threshold must"),
        (lambda: LocalBlend("cat", threshold="-5%"), "a local blend's threshold must"),
        (lambda: LocalBlend("cat", threshold=(0.5, 0.5)), "soft pair"),
        (lambda: LocalBlend("cat", threshold=(0, 2)), "soft pair"),
        (lambda: LocalBlend("cat", threshold=(0.1, float("nan"))), "soft pair"),
        (lambda: LocalBlend("cat", self_attention_hops=-1), "self_attention_hops must be a whole number"),
        (lambda: LocalBlend("cat", self_attention_hops=1.5), "self_attention_hops must be a whole number"),
        (lambda: LocalBlend(("cat",), start=2), "a local blend's start must lie between 0 and 1, not 2"),
        (lambda: LocalBlend("cat", start=(0.5, 0.2)), "a local blend's start must"),
        (lambda: LocalBlend("cat", start=(0.5, 1.2)), "a local blend's start must"),
        (lambda: LocalBlend("cat", start="now"), "a local blend's start must"),
        (lambda: LocalBlend("cat", strides=4), "a local blend's strides are a list or tuple"),
        (lambda: LocalBlend(mask=torch.full((4, 4), torch.nan)), "values are NaN or infinite"),
        (lambda: LocalBlend(mask=torch.ones(1, 4, 4)), "rows × columns of numbers, not of shape (1, 4, 4)"),
        (lambda: LocalBlend(mask=torch.ones(0, 0)), "a mask must be rows × columns"),
        (lambda: LocalBlend(mask=np.full((4, 4), 255, np.uint8)), "lies between 0 and 1, but its maximum is 255"),
        (lambda: LocalBlend(mask="mask.png"), "a mask is an image, an array or a tensor, not str"),
        (lambda: LocalBlend.from_argument(("cat",)), "local_blend is a word, a (source word, target word) or a"),
        (
            lambda: LocalBlend.from_argument(("cat", "dog", "hat")),
            "local_blend is a word, a (source word, target word)",
        ),
        (lambda: blend_state(LocalBlend((3.5,))), "a word is given as text"),
        (lambda: blend_state(LocalBlend(("cow",))), "'cow' is not in the prompt 'a cat dog'"),
        (lambda: blend_state(LocalBlend(("cat",), ("cow",))), "'cow' is not in the prompt"),
        (lambda: blend_state(LocalBlend(("cat",), without_target=("cow",))), "'cow' is not in the prompt"),
        (lambda: blend_state(LocalBlend("cat", strides=(8, 1))), "no cross-attention has stride 8; this model's"),
    ],
)
def test_invalid_blends_are_named_in_one_line(make, message):
    with pytest.raises(ValueError) as error:
        make()
    assert message in str(error.value) and "\n" not in str(error.value)


# Edits


@pytest.fixture(scope="module")
def source(model):
    """The source as a run, and its cross-attention maps at each step and site of stride 1."""
    return stored_run(model)


def splitting_threshold(heat):
    """A threshold that splits a map whatever the weights are: midway between two of its values."""
    shares = (heat / heat.max()).flatten().sort().values
    return float(shares[49:51].mean())


def test_the_mask_of_an_edit_is_the_sum_over_the_steps_so_far_after_the_edit(model, source):
    run, before = source
    old, new = model.text.prompt(SOURCE), model.text.prompt(TARGET)
    threshold, without = (splitting_threshold(word_heat(before, old, word)) for word in ("cat", "house"))
    after = finest_cross_store()
    blend = LocalBlend(("cat",), ("dog",), without_target=("house",), threshold=threshold, without_threshold=without)
    out = model.edit(run, TARGET, local_blend=blend, reweight={"dog": 2}, attend=explicit(after))
    size = (8, 8)
    by_hand = heatmap_to_mask(word_heat(before, old, "cat"), size, threshold)
    by_hand = by_hand | heatmap_to_mask(word_heat(after, new, "dog"), size, threshold)
    by_hand = by_hand & ~heatmap_to_mask(word_heat(after, new, "house"), size, without, pool=False)
    assert torch.equal(out.blend_mask, by_hand) and 0 < out.blend_mask.sum() < 64


def test_outside_of_the_mask_every_latent_equals_the_sources_to_the_bit(model, source):
    run, _ = source
    custom = torch.zeros(SIZE)
    custom[:32, 16:] = 1
    unblended = model.edit(run, TARGET)
    out = model.edit(run, TARGET, local_blend=LocalBlend(mask=custom, start=0.4))
    m = torch.zeros(8, 8, dtype=torch.bool)
    m[:4, 2:] = True
    assert torch.equal(out.blend_mask, m)
    assert torch.equal(out.latents[:3], unblended.latents[:3])
    assert not torch.equal(out.latents[3:], unblended.latents[3:])
    assert torch.equal(out.latents[3:, :, ~m], run.latents[3:, :, ~m])
    assert (out.latents[3:, :, m] != run.latents[3:, :, m]).any((1, 2)).all()


def test_outside_of_the_last_mask_of_words_the_last_latent_equals_the_sources(model, source):
    run, store = source
    threshold = splitting_threshold(word_heat(store, model.text.prompt(SOURCE), "cat"))
    blend = LocalBlend(("cat",), ("dog",), threshold=threshold)
    for out in model.edit(run, [TARGET, "a dog and a house on grass at night"], local_blend=blend):
        m = out.blend_mask
        assert 0 < m.sum() < 64 and torch.equal(out.latents[-1][:, ~m], run.latents[-1][:, ~m])
        assert not torch.equal(out.latents[-1][:, m], run.latents[-1][:, m])


def test_at_threshold_0_the_edit_is_complete_and_at_threshold_1_it_is_the_source(model, source):
    run, _ = source
    everywhere = model.edit(run, TARGET, local_blend=LocalBlend(("cat",), ("dog",), threshold=0.0))
    nowhere = model.edit(run, TARGET, local_blend=LocalBlend(("cat",), ("dog",), threshold=1.0, start=0.0))
    assert everywhere.blend_mask.all() and torch.equal(everywhere.latents, model.edit(run, TARGET).latents)
    assert not nowhere.blend_mask.any() and torch.equal(nowhere.latents, run.latents)


@pytest.mark.parametrize(
    "blend, message",
    [
        ("cat", f"'cat' is not in the prompt '{TARGET}'"),
        (("dog", "dog"), f"'dog' is not in the prompt '{SOURCE}'"),
        (("cat", "cow"), "'cow' is not in the prompt"),
        ("", "'' is not in the prompt"),
        (LocalBlend(("cat",), strides=(8,)), "no cross-attention has stride 8; this model's strides: [1, 2, 4]"),
    ],
)
def test_words_of_a_blend_that_are_not_in_the_prompts_are_refused(model, source, blend, message):
    with pytest.raises(ValueError) as error:
        model.edit(source[0], TARGET, local_blend=blend)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_blend_with_hops_is_the_same_streamed_recorded_and_explicit(model):
    blend = LocalBlend("cat", "dog", self_attention_hops=2, threshold="otsu", pool=False)
    streamed = model.edit(SOURCE, TARGET, local_blend=blend, **RUN)
    recorded = model.record(SOURCE, self_replace=1.0, **RUN)
    assert torch.equal(model.edit(recorded, TARGET, local_blend=blend).latents, streamed.latents)
    assert 0 < streamed.blend_mask.sum() < 64
    in_maps = model.edit(SOURCE, TARGET, local_blend=blend, explicit=True, **RUN)
    assert (in_maps.blend_mask != streamed.blend_mask).sum() <= 2
    without_hops = LocalBlend("cat", "dog", threshold="otsu", pool=False)
    out = model.edit(SOURCE, TARGET, local_blend=without_hops, **RUN)
    assert not torch.equal(out.blend_mask, streamed.blend_mask)


@pytest.mark.parametrize("make", [LocalBlend.from_argument, lambda words: LocalBlend(source=words)])
def test_a_pair_of_a_word_and_a_number_is_ambiguous(make):
    """("cat", 2) is the second "cat" wherever one word is meant, and two words wherever several are."""
    with pytest.raises(ValueError, match=r"may be occurrence 2 of 'cat', or .* index 2: write 'cat#2' or \['cat', 2\]"):
        make(("cat", 2))
    make(["cat", 2])
    make("cat#2")
    LocalBlend.from_argument((("cat", 2), "tiger"))
