"""Masks: a word's heat as one more value column; p2p-spec "LocalBlend" by hand and on runs."""

from pathlib import Path

import numpy as np
import pytest
import torch
from parity import SD15_UNET, SDXL_UNET, on_meta
from PIL import Image
from transformers import CLIPTokenizer

from minip2p import AttentionStore, LocalBlend, explicit
from minip2p.attention.contract import Site, attention_map, fused
from minip2p.attention.heatmaps import HeatmapAccumulator, accumulate_heat, default_strides, map_size, word_heatmaps
from minip2p.attention.masks import heatmap_to_mask, otsu_threshold, threshold_mask
from minip2p.config import UNetConfig
from minip2p.p2p.local_blend import LocalBlendState
from minip2p.text.prompt import Prompt, token_indicator
from minip2p.unet import UNet

TOKENIZER = CLIPTokenizer.from_pretrained(Path(__file__).parents[1] / "weights" / "tiny" / "tokenizer")
SITES = tuple(Site("up", n, True, stride) for n, stride in enumerate((4, 2, 2, 1)))
STEPS, SEED = 5, 2
SOURCE, TARGET = "a cat and a house on grass", "a dog and a house on grass"


def prompt(text):
    return Prompt.tokenize(text, TOKENIZER)


def qk(queries, seed=0, keys=77):
    g = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(1, 3, queries, 8, generator=g), 2 * torch.randn(1, 3, keys, 8, generator=g)


# Heat


def test_a_column_is_one_at_the_words_tokens():
    p = prompt("a lighthouse, a cat")
    made = token_indicator(p, ["a", "lighthouse", "cat"])
    assert made.shape == (3, 77) and made.sum(1).tolist() == [2, len(p.token_indices("lighthouse")), 1]
    assert all(made[row, list(p.token_indices(word))].all() for row, word in enumerate(["a", "lighthouse", "cat"]))
    with pytest.raises(ValueError, match="'dog' is not in the prompt"):
        token_indicator(p, ["cat", "dog"])


@pytest.mark.parametrize("words", [1, 8, 9, 20])  # more words than the head is wide, too
def test_heat_is_A_1_word_summed_over_the_tokens_mean_over_the_heads(words):
    q, k = qk(12)
    chosen = (torch.rand(words, 77, generator=torch.Generator().manual_seed(1)) > 0.7).float()
    made = word_heatmaps(lambda v: fused(q, k, v), chosen, heads=3, width=8)
    literal = torch.stack([attention_map(q, k)[0, :, :, row.bool()].sum(-1).mean(0) for row in chosen])
    torch.testing.assert_close(made, literal, rtol=1e-5, atol=1e-6)


def test_a_heat_sum_adds_sites_and_steps_and_shares_lie_between_0_and_1():
    added = HeatmapAccumulator(torch.ones(1, 77).tril(9), (3, 5), (1, 2))
    maps = {}
    for n, (stride, size) in enumerate([(1, (3, 5)), (2, (2, 3)), (1, (3, 5))]):
        q, k = qk(size[0] * size[1], seed=n)
        site = Site("up", n, True, stride)
        assert added.wants(site)
        accumulate_heat([added], site, lambda v, q=q, k=k: fused(q, k, v), q)
        one = attention_map(q, k)[0, :, :, :10].sum(-1).mean(0).reshape(size)
        maps[stride] = maps.get(stride, 0) + one
    rows, cols = torch.tensor([0, 0, 1]), torch.tensor([0, 0, 1, 1, 2])  # nearest: floor(y · 2 / 3), floor(x · 3 / 5)
    literal = maps[1] + maps[2][rows][:, cols]
    torch.testing.assert_close(added.total[0], literal)
    torch.testing.assert_close(added.mean[0], literal / 3)
    assert not added.wants(Site("up", 9, False, 1)) and not added.wants(Site("up", 9, True, 4))
    assert not HeatmapAccumulator(torch.zeros(1, 77), (3, 5), (1,)).wants(SITES[3])


def test_map_size_rounds_up():
    assert map_size((17, 20), 1) == (17, 20) and map_size((17, 20), 2) == (9, 10) and map_size((17, 20), 4) == (5, 5)


def test_masks_read_the_coarsest_maps_of_at_least_16_by_16():
    sd, xl = (on_meta(UNet, UNetConfig.from_dict(config)).sites for config in (SD15_UNET, SDXL_UNET))
    for latent, strides in {(64, 64): (4,), (96, 96): (4,), (32, 32): (2,), (8, 8): (1,)}.items():
        assert default_strides(sd, latent) == strides
    assert default_strides(xl, (128, 128)) == default_strides(xl, (64, 64)) == (4,)
    five = [(site.place, site.index) for site in sd if site.cross and site.stride == 4]  # the published code's
    assert five == [("down", 4), ("down", 5), ("up", 0), ("up", 1), ("up", 2)]


def test_the_tiny_models_masks_read_its_finest_maps(model):
    assert default_strides(model.unet.sites, (16, 16)) == (1,) and default_strides(model.unet.sites, (32, 32)) == (2,)


# From heat to mask

HEAT = torch.tensor([[8.0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 3], [0, 0, 0, 0]])


def bits(*rows):
    return torch.tensor([[c == "#" for c in row] for row in rows])


def test_mask_pooled_3_by_3_divided_by_the_maximum_above_the_threshold():
    expected = bits("##..", "####", "..##", "..##")
    assert torch.equal(heatmap_to_mask(HEAT, (4, 4), 0.3), expected)  # 3 / 8 > 0.3
    assert torch.equal(heatmap_to_mask(1000 * HEAT, (4, 4), 0.3), expected)
    assert torch.equal(heatmap_to_mask(HEAT, (4, 4), 0.375), bits("##..", "##..", "....", "...."))  # not 3 / 8 > 3 / 8
    assert torch.equal(heatmap_to_mask(HEAT, (4, 4), 0.3, pool=False), bits("#...", "....", "...#", "...."))


def test_mask_of_a_3_by_3_map():
    heat = torch.tensor([[0.0, 1, 2], [3, 4, 5], [6, 7, 10]])
    assert torch.equal(heatmap_to_mask(heat, (3, 3), 0.5, pool=False), bits("...", "...", "###"))
    assert torch.equal(heatmap_to_mask(heat, (3, 3), 0.5), bits("...", "###", "###"))  # 4 5 5, 7 10 10, 7 10 10


def test_mask_is_upsampled_to_the_nearest():
    heat = HEAT[:3]
    doubled = heatmap_to_mask(heat, (3, 4), 0.3).repeat_interleave(2, 0).repeat_interleave(2, 1)
    assert torch.equal(heatmap_to_mask(heat, (6, 8), 0.3), doubled)
    assert torch.equal(heatmap_to_mask(HEAT, (4, 6), 0.3, pool=False), bits("##....", "......", ".....#", "......"))


def test_mask_at_the_ends_of_the_threshold_and_of_no_heat():
    assert heatmap_to_mask(HEAT + 1, (4, 4), 0.0).all() and not heatmap_to_mask(HEAT, (4, 4), 1.0).any()
    assert not heatmap_to_mask(0 * HEAT, (4, 4), 0.3).any()


def blending(blend, source=HEAT, target=None, latent=(4, 4)):
    """A blending of "a cat dog" with given heat: rows: the words that may change, those that may not."""
    p = prompt("a cat dog")
    made = LocalBlendState.start(blend, p, p, 10, latent, SITES)
    for heat_sum, given in ((made.source, source), (made.target, target)):
        given = torch.zeros(2, *source.shape[-2:]) if given is None else given
        heat_sum.sums[1] = given if given.ndim == 3 else torch.stack([given, torch.zeros_like(given)])
    return made


def test_the_mask_is_the_union_of_the_sources_and_the_targets():
    turned = HEAT.flip(0, 1)
    one, other = heatmap_to_mask(HEAT, (4, 4), 0.5), heatmap_to_mask(turned, (4, 4), 0.5)
    both = LocalBlend(("cat",), ("dog",), threshold=0.5)
    assert torch.equal(blending(both, HEAT, turned).mask(), one | other) and not torch.equal(one, other)
    assert torch.equal(blending(LocalBlend(("cat",), threshold=0.5), HEAT, turned).mask(), one)
    assert torch.equal(blending(LocalBlend((), ("cat",), threshold=0.5), HEAT, turned).mask(), other)


def test_subtracted_words_are_cut_out_unpooled_at_their_own_threshold():
    kept, out = HEAT, torch.zeros(4, 4)
    out[0, 1], out[1, 3] = 1.0, 0.6
    pair = torch.stack([kept, out])
    for options in (dict(without_source=("dog",)), dict(without_target=("dog",))):
        blend = LocalBlend(("cat",), ("cat",), without_threshold=0.5, **options)
        assert torch.equal(blending(blend, pair, pair).mask(), bits("#...", "###.", "..##", "..##"))
        blend = LocalBlend(("cat",), ("cat",), without_threshold=0.7, **options)
        assert torch.equal(blending(blend, pair, pair).mask(), bits("#...", "####", "..##", "..##"))
    blend = LocalBlend(mask=torch.ones(8, 8), without_source=("dog",), without_threshold=0.5)
    assert torch.equal(blending(blend, pair).mask(), bits("#.##", "###.", "####", "####"))


def test_an_own_mask_is_resized_to_the_latent():
    own = torch.zeros(32, 48, dtype=torch.bool)
    own[:8, :16] = True
    own[8:16, 16:23] = True  # 7 of the 12 columns of a cell: more than half of it
    made = blending(LocalBlend(mask=own), torch.zeros(4, 4)).mask()
    assert torch.equal(made, bits("#...", ".#..", "....", "...."))
    made = blending(LocalBlend(mask=torch.eye(2)), torch.zeros(4, 4)).mask()
    assert torch.equal(made, bits("##..", "##..", "..##", "..##"))


def test_blending_is_the_sources_latents_outside_and_the_targets_inside_from_its_step_on():
    made = blending(LocalBlend(("cat",), start=0.2))
    source, target = torch.randn(1, 4, 4, 4), torch.randn(1, 4, 4, 4)
    m = made.mask()
    assert torch.equal(made(1, source, target), target)  # int(0.2 · 10) = 2
    out = made(2, source, target)
    assert torch.equal(out[..., m], target[..., m]) and torch.equal(out[..., ~m], source[..., ~m])
    torch.testing.assert_close(out, source + m * (target - source))


def test_what_a_blend_is_made_of():
    assert LocalBlend.from_argument(None) is None and LocalBlend.from_argument("cat") == LocalBlend(("cat",), ("cat",))
    assert (
        LocalBlend.from_argument(("cat", "dog"))
        == LocalBlend.from_argument(["cat", "dog"])
        == LocalBlend(("cat",), ("dog",))
    )
    assert LocalBlend.from_argument(own := LocalBlend(("cat",))) is own


@pytest.mark.parametrize(
    "make, says",
    [
        (lambda: LocalBlend(), "a blend needs a word or a mask"),
        (lambda: LocalBlend(without_source=("cat",)), "a blend needs a word or a mask"),
        (lambda: LocalBlend(("cat",), threshold=1.1), "a blend's threshold must lie between 0 and 1, not 1.1"),
        (lambda: LocalBlend(("cat",), threshold=float("nan")), "a blend's threshold must lie between 0 and 1, not nan"),
        (lambda: LocalBlend(("cat",), without_threshold=-0.1), "a blend's without_threshold must lie between 0 and 1"),
        (lambda: LocalBlend(("cat",), start=2), "a blend's start must lie between 0 and 1, not 2"),
        (
            lambda: LocalBlend(mask=torch.full((4, 4), float("nan"))),
            "own mask must be rows × columns of finite numbers",
        ),
        (
            lambda: LocalBlend(mask=torch.ones(1, 4, 4)),
            "own mask must be rows × columns of finite numbers, not (1, 4, 4)",
        ),
        (
            lambda: LocalBlend.from_argument(("cat",)),
            "a blend is a word, a (source word, target word) or a Blend, not ('cat',)",
        ),
        (
            lambda: LocalBlend.from_argument(("cat", "dog", "hat")),
            "a blend is a word, a (source word, target word) or a Blend",
        ),
        (lambda: blending(LocalBlend(("cow",))), "'cow' is not in the prompt 'a cat dog'"),
        (lambda: blending(LocalBlend(("cat",), ("cow",))), "'cow' is not in the prompt"),
        (lambda: blending(LocalBlend(("cat",), without_target=("cow",))), "'cow' is not in the prompt"),
        (
            lambda: blending(LocalBlend(("cat",), strides=(8, 1))),
            "no cross-attention has stride 8; this model's strides: [1, 2",
        ),
    ],
)
def test_bad_blends_are_named_in_one_line(make, says):
    with pytest.raises(ValueError) as error:
        make()
    assert says in str(error.value) and "\n" not in str(error.value)


# On runs


@pytest.fixture(scope="module")
def seen(model):
    """The source as a run, and its cross-attention maps at each step and site of stride 1."""
    store = AttentionStore(sites=lambda site: site.cross and site.stride == 1, each=True)
    model.generate(SOURCE, seed=SEED, steps=STEPS, attend=explicit(store))
    return model.generate(SOURCE, seed=SEED, steps=STEPS), store


def word_heat(store, prompt, word):
    """By hand: summed over the word's tokens and the steps and sites, mean over the heads."""
    at = list(prompt.token_indices(word))
    return sum(m[:, 0][..., at].sum((0, -1)).mean(0) for m in store.maps.values()).reshape(16, 16)


def middle(heat):
    """A threshold that splits the map, whatever the weights have learnt: midway between two of its values."""
    shares = (heat / heat.max()).flatten().sort().values
    return float(shares[200:202].mean())


def test_a_runs_maps_are_the_mean_of_its_attention(model, seen):
    run, store = seen
    made = run.maps(["cat", "grass"])
    assert made.shape == (2, 128, 128) and (made >= 0).all() and (made <= 1).all()
    p = model.text.prompt(SOURCE)
    literal = torch.stack([word_heat(store, p, word) for word in ("cat", "grass")]) / (STEPS * len(store.maps))
    literal = torch.nn.functional.interpolate(literal[:, None], (128, 128), mode="bilinear")[:, 0]
    torch.testing.assert_close(made, literal, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(run.maps("grass"), made[1:], rtol=1e-4, atol=1e-6)


def test_the_mask_of_an_edit_is_the_sum_over_the_steps_so_far_after_the_edit(model, seen):
    run, before = seen
    p, new = model.text.prompt(SOURCE), model.text.prompt(TARGET)
    threshold, without = (middle(word_heat(before, p, word)) for word in ("cat", "house"))
    after = AttentionStore(sites=lambda site: site.cross and site.stride == 1, each=True)
    blend = LocalBlend(("cat",), ("dog",), without_target=("house",), threshold=threshold, without_threshold=without)
    out = model.edit(run, TARGET, local_blend=blend, reweight={"dog": 2}, attend=explicit(after))
    cat, dog, house = (word_heat(*given) for given in ((before, p, "cat"), (after, new, "dog"), (after, new, "house")))
    size = (16, 16)
    literal = heatmap_to_mask(cat, size, threshold) | heatmap_to_mask(dog, size, threshold)
    literal = literal & ~heatmap_to_mask(house, size, without, pool=False)
    assert torch.equal(out.mask, literal) and 0 < out.mask.sum() < 256


def test_outside_the_mask_every_latent_is_the_sources_to_the_bit(model, seen):
    run, _ = seen
    own = torch.zeros(128, 128)
    own[:64, 32:] = 1
    plain = model.edit(run, TARGET)
    out = model.edit(run, TARGET, local_blend=LocalBlend(mask=own, start=0.4))
    m = torch.zeros(16, 16, dtype=torch.bool)
    m[:8, 4:] = True
    assert torch.equal(out.mask, m)
    assert torch.equal(out.latents[:3], plain.latents[:3]) and not torch.equal(out.latents[3:], plain.latents[3:])
    assert torch.equal(out.latents[3:, :, ~m], run.latents[3:, :, ~m])
    assert (out.latents[3:, :, m] != run.latents[3:, :, m]).any((1, 2)).all()


def test_the_last_mask_of_words_holds_the_source_outside(model, seen):
    run, store = seen
    threshold = middle(word_heat(store, model.text.prompt(SOURCE), "cat"))
    blend = LocalBlend(("cat",), ("dog",), threshold=threshold)
    for out in model.edit(run, [TARGET, "a dog and a house on grass at night"], local_blend=blend):
        m = out.mask
        assert 0 < m.sum() < 256 and torch.equal(out.latents[-1][:, ~m], run.latents[-1][:, ~m])
        assert not torch.equal(out.latents[-1][:, m], run.latents[-1][:, m])


def test_at_the_ends_of_the_threshold_the_edit_is_all_there_or_not_at_all(model, seen):
    run, _ = seen
    everywhere = model.edit(run, TARGET, local_blend=LocalBlend(("cat",), ("dog",), threshold=0.0))
    nowhere = model.edit(run, TARGET, local_blend=LocalBlend(("cat",), ("dog",), threshold=1.0, start=0.0))
    assert everywhere.mask.all() and torch.equal(everywhere.latents, model.edit(run, TARGET).latents)
    assert not nowhere.mask.any() and torch.equal(nowhere.latents, run.latents)


@pytest.mark.parametrize(
    "blend, says",
    [
        ("cat", f"'cat' is not in the prompt '{TARGET}'"),
        (("dog", "dog"), f"'dog' is not in the prompt '{SOURCE}'"),
        (("cat", "cow"), "'cow' is not in the prompt"),
        ("", "'' is not in the prompt"),
        (LocalBlend(("cat",), strides=(8,)), "no cross-attention has stride 8; this model's strides: [1, 2, 4]"),
    ],
)
def test_words_to_blend_that_are_not_there(model, seen, blend, says):
    with pytest.raises(ValueError) as error:
        model.edit(seen[0], TARGET, local_blend=blend)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_negative_heat_is_nowhere():
    """A negative weight makes a word's heat negative: its mask is empty, not full."""
    assert not heatmap_to_mask(torch.tensor([[-4.0, -1.0], [-2.0, -3.0]]), (2, 2), 0.3).any()


def test_an_own_mask_is_a_tensor_an_array_or_a_picture():
    wanted = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    picture = Image.fromarray((wanted.numpy() * 255).astype(np.uint8))
    for given in (wanted, wanted.numpy(), wanted.bool(), picture, picture.convert("RGB")):
        assert torch.equal(LocalBlend(mask=given).mask, wanted)


def test_one_word_may_stand_alone_in_a_blend():
    blend = LocalBlend("cat", "dog", without_target="house")
    assert (blend.source, blend.target, blend.without_target) == (("cat",), ("dog",), ("house",))


def test_the_first_step_of_a_blend_is_its_share_of_the_steps():
    """int(start · N), as the published code has it: not of N + 1, as the schedules of attention are."""
    p = prompt("a cat dog")
    for start, steps, first in ((0.5, 5, 2), (0.2, 50, 10), (0.4, 12, 4), (1.0, 7, 7)):
        assert LocalBlendState.start(LocalBlend("cat", start=start), p, p, steps, (4, 4), SITES).first_step == first


def test_a_word_that_is_named_twice_counts_once():
    p = prompt("a red cat")
    once, twice = (
        LocalBlendState.start(LocalBlend(words), p, p, 5, (4, 4), SITES) for words in (("red cat",), ("red cat", "cat"))
    )
    assert torch.equal(once.source.columns, twice.source.columns)


def test_an_own_mask_that_covers_half_of_a_cell_covers_it():
    own = torch.zeros(8, 8)
    own[0:2, 0:1], own[4:6, 4:5], own[5, 5] = 1, 1, -0.01
    assert torch.equal(blending(LocalBlend(mask=own), torch.zeros(4, 4)).mask(), bits("#...", "....", "....", "...."))


@pytest.mark.parametrize(
    "make, says",
    [
        (lambda: LocalBlend("cat", mask=torch.ones(2, 2)), "a blend needs a word or a mask, and not both"),
        (lambda: LocalBlend("cat", threshold="x"), "a blend's threshold must lie between 0 and 1"),
        (lambda: LocalBlend("cat", strides=4), "a blend's strides are several"),
        (lambda: LocalBlend(mask=np.full((4, 4), 255, np.uint8)), "lies between 0 and 1, and has 255 in it"),
        (lambda: LocalBlend(mask="mask.png"), "is an image, an array or a tensor, not str"),
        (lambda: LocalBlend(mask=torch.ones(0, 0)), "own mask must be rows × columns"),
        (lambda: blending(LocalBlend((3.5,))), "a word is given as text"),
    ],
)
def test_blends_of_the_wrong_kind_are_named_in_one_line(make, says):
    with pytest.raises(ValueError) as error:
        make()
    assert says in str(error.value)


# Sharper


def test_spread_heat_is_the_self_attention_applied_to_it():
    """A^n M, A the last step's self-attention, mean over its sites and heads; M brought to its size by the nearest."""
    words = torch.ones(2, 77).tril(5)
    words[1] = 1
    added = HeatmapAccumulator(words, (4, 6), (2,), 2, 1)
    q, k = qk(6)
    accumulate_heat([added], Site("up", 0, True, 2), lambda v: fused(q, k, v), q)
    fine = {n: qk(24, seed=n, keys=24) for n in (1, 2, 3)}
    for n in (1, 2, 3, 1):  # the first of its site is a former step's
        own_q, own_k = fine[n]
        site = Site("up", 1 if n == 3 else n, False, 1)
        assert added.wants(site)
        accumulate_heat([added], site, lambda v, q=own_q, k=own_k: fused(q, k, v), own_q)
    coarse = torch.stack([attention_map(q, k)[0, :, :, row.bool()].sum(-1).mean(0).reshape(2, 3) for row in words])
    M = coarse.repeat_interleave(2, 1).repeat_interleave(2, 2).flatten(1)
    A = torch.stack([attention_map(*fine[n])[0].mean(0) for n in (1, 2)]).mean(0)
    torch.testing.assert_close(added.total, (A @ A @ M.T).T.reshape(2, 4, 6), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(added.total[1], torch.ones(4, 6))  # a share of 1 stays one
    assert not HeatmapAccumulator(words, (4, 6), (2,)).wants(Site("up", 0, False, 1))
    assert not HeatmapAccumulator(words, (4, 6), (2,), 2, 1).wants(Site("up", 0, False, 2))


def test_otsu_parts_two_heaps_where_the_variance_between_them_is_greatest():
    """By trying every threshold: n_0 n_1 (μ_0 − μ_1)²."""
    x = torch.tensor([[0.1, 0.15, 0.2, 0.22], [0.7, 0.8, 0.75, 0.3]])

    def between(t):
        low, high = x[x <= t], x[x > t]
        return len(low) * len(high) * (low.mean() - high.mean()) ** 2

    best = max(x.flatten().tolist(), key=lambda t: float(between(t)) if (x > t).any() else 0.0)
    assert otsu_threshold(x) == best == pytest.approx(0.3)
    assert torch.equal(threshold_mask(x, "otsu"), x > 0.5)


def test_thresholds_by_number_by_share_of_the_pixels_and_soft():
    x = torch.arange(10.0).reshape(2, 5) / 9
    assert (
        threshold_mask(x, 0.5).sum() == 5 and threshold_mask(x, "80%").sum() == 2 and threshold_mask(x, "0%").sum() == 9
    )
    soft = threshold_mask(x, (0.25, 0.75))
    torch.testing.assert_close(soft, ((x - 0.25) / 0.5).clamp(0, 1))
    for threshold in (0.3, "otsu", "50%", (0.2, 0.4)):
        assert not heatmap_to_mask(torch.zeros(3, 3), (3, 3), threshold).any()


def test_otsu_does_not_ask_where_the_heat_lies():
    x = torch.rand(4, 4, requires_grad=True)
    assert otsu_threshold(x) == otsu_threshold(x.detach()) and isinstance(otsu_threshold(x.half()), float)


def test_a_soft_blend_mixes_and_keeps_both_ends_to_the_bit():
    made = blending(LocalBlend(("cat",), threshold=(0.2, 0.6), pool=False))
    m = made.mask()
    assert m.dtype == torch.float32 and m[0, 0] == 1 and m[1, 1] == 0 and m[2, 3] == pytest.approx((3 / 8 - 0.2) / 0.4)
    source, target = torch.randn(1, 4, 4, 4), torch.randn(1, 4, 4, 4)
    out = made(5, source, target)
    torch.testing.assert_close(out, source + m * (target - source))
    assert torch.equal(out[..., m == 0], source[..., m == 0]) and torch.equal(out[..., m == 1], target[..., m == 1])


def test_soft_masks_join_as_the_greater_and_are_cut_out_by_the_product():
    turned, out = HEAT.flip(0, 1), torch.zeros(4, 4)
    out[0, 0] = 1
    pair = torch.stack([HEAT, out])
    made = blending(LocalBlend(("cat",), ("cat",), threshold=(0.2, 0.6), pool=False), HEAT, turned).mask()
    one, other = (heatmap_to_mask(heat, (4, 4), (0.2, 0.6), pool=False) for heat in (HEAT, turned))
    assert torch.equal(made, torch.maximum(one, other))
    made = blending(LocalBlend(("cat",), without_source=("dog",), threshold=(0.2, 0.6), pool=False), pair).mask()
    assert made[0, 0] == 0 and made[2, 3] == one[2, 3] > 0


def test_a_blend_that_sets_in_gradually_ends_as_the_binary_one():
    """r = 1/4, 2/4, 3/4 and 1: outside of the mask x_s + (1 − r) (x − x_s); a constant ramp is the binary blend."""
    ramp, at_once = (blending(LocalBlend(("cat",), start=start)) for start in ((0.2, 0.5), 0.5))
    source, target = torch.randn(1, 4, 4, 4), torch.randn(1, 4, 4, 4)
    m = ramp.mask()
    assert torch.equal(ramp(1, source, target), target)
    for step, r in ((2, 0.25), (3, 0.5), (4, 0.75)):
        out = ramp(step, source, target)
        torch.testing.assert_close(out, torch.where(m, target, source + (1 - r) * (target - source)))
        assert torch.equal(out[..., m], target[..., m])
    assert torch.equal(ramp(5, source, target), at_once(5, source, target))
    same = blending(LocalBlend(("cat",), start=(0.2, 0.2)))
    assert torch.equal(same(2, source, target), blending(LocalBlend(("cat",), start=0.2))(2, source, target))
    assert len({ramp.key(step) for step in (2, 3, 4, 5)}) == 4 and ramp.key(5) == ramp.key(9)


@pytest.mark.parametrize(
    "make, says",
    [
        (lambda: LocalBlend("cat", threshold="most"), "a blend's threshold must lie between 0 and 1"),
        (lambda: LocalBlend("cat", threshold="100%"), "a blend's threshold must"),
        (lambda: LocalBlend("cat", threshold="-5%"), "must"),
        (lambda: LocalBlend("cat", threshold=(0.5, 0.5)), "soft pair"),
        (lambda: LocalBlend("cat", threshold=(0, 2)), "soft pair"),
        (lambda: LocalBlend("cat", threshold=(0.1, float("nan"))), "soft pair"),
        (lambda: LocalBlend("cat", self_attention_hops=-1), "spread is a"),
        (lambda: LocalBlend("cat", self_attention_hops=1.5), "spread is a whole number"),
        (lambda: LocalBlend("cat", start=(0.5, 0.2)), "start must"),
        (lambda: LocalBlend("cat", start=(0.5, 1.2)), "start must"),
        (lambda: LocalBlend("cat", start="now"), "start must"),
    ],
)
def test_what_sharper_blends_cannot_be(make, says):
    with pytest.raises(ValueError, match=says) as error:
        make()
    assert "\n" not in str(error.value)


def test_a_spread_blend_is_the_same_streamed_recorded_and_explicit(model):
    blend = LocalBlend("cat", "dog", self_attention_hops=2, threshold="otsu", pool=False)
    streamed = model.edit(SOURCE, TARGET, seed=SEED, steps=STEPS, local_blend=blend)
    kept = model.record(SOURCE, seed=SEED, steps=STEPS, self_replace=1.0)
    assert torch.equal(model.edit(kept, TARGET, local_blend=blend).latents, streamed.latents)
    assert 0 < streamed.mask.sum() < 256
    maps = model.edit(SOURCE, TARGET, seed=SEED, steps=STEPS, local_blend=blend, explicit=True)
    assert (maps.mask != streamed.mask).sum() <= 2
    plain = model.edit(
        SOURCE, TARGET, seed=SEED, steps=STEPS, local_blend=LocalBlend("cat", "dog", threshold="otsu", pool=False)
    )
    assert not torch.equal(plain.mask, streamed.mask)


def test_where_a_word_is_in_picture_pixels(model, seen):
    run, _ = seen
    cat, grass = run.where("cat"), run.where("grass", threshold=0.5, self_attention_hops=0)
    assert cat.shape == (128, 128) and cat.dtype == torch.bool and 0 < cat.sum() < cat.numel()
    heat = run.heatmaps(["cat"]).total[0]
    assert torch.equal(cat, heatmap_to_mask(heat, (128, 128), "otsu", pool=False, smooth=True))
    spread = heatmap_to_mask(run.heatmaps(["cat"], spread=2).total[0], (128, 128), 0.5, pool=False, smooth=True)
    assert torch.equal(run.where("cat", threshold=0.5, self_attention_hops=2), spread)
    soft = run.where(["cat", "house"], threshold=(0.2, 0.5))
    assert soft.dtype == torch.float32 and soft.min() >= 0 and soft.max() <= 1
    out = model.edit(run, TARGET, local_blend=LocalBlend(mask=cat & ~grass))
    assert out.mask is not None
    for options, says in (
        (dict(threshold=2), "a mask's threshold must"),
        (dict(self_attention_hops=1.5), "spread is a whole"),
        (dict(self_attention_hops=17), "spread is a whole"),
        (dict(strides=2), "strides are several"),
    ):
        with pytest.raises(ValueError, match=says):
            run.where("cat", **options)
    for asked in (run.where, run.maps):
        with pytest.raises(ValueError, match="a word is given as text"):
            asked(("cat", "beach"))
