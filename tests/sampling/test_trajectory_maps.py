"""Heat maps and masks of a run: `Trajectory.maps` and `Trajectory.mask`, against its stored attention."""

import pytest
import torch
import torch.nn.functional as F
from word_heat import SIZE, SOURCE, STEPS, TARGET, stored_run, word_heat

from minip2p import LocalBlend
from minip2p.attention.masks import heatmap_to_mask


@pytest.fixture(scope="module")
def source(model):
    """The source as a run, and its cross-attention maps at each step and site of stride 1."""
    return stored_run(model)


def test_a_runs_maps_are_the_mean_of_its_attention(model, source):
    run, store = source
    maps = run.maps(["cat", "grass"])
    assert maps.shape == (2, *SIZE) and (maps >= 0).all() and (maps <= 1).all()
    prompt = model.text.prompt(SOURCE)
    by_hand = torch.stack([word_heat(store, prompt, word) for word in ("cat", "grass")]) / (STEPS * len(store.maps))
    by_hand = F.interpolate(by_hand[:, None], SIZE, mode="bilinear")[:, 0]
    torch.testing.assert_close(maps, by_hand, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(run.maps("grass"), maps[1:], rtol=1e-4, atol=1e-6)


def test_a_runs_mask_is_its_heat_upsampled_smoothly_and_thresholded(model, source):
    run, _ = source
    cat = run.mask("cat")
    assert cat.shape == SIZE and cat.dtype == torch.bool and 0 < cat.sum() < cat.numel()
    heat = run.heatmaps(["cat"]).total[0]
    assert torch.equal(cat, heatmap_to_mask(heat, SIZE, "otsu", pool=False, smooth=True))
    spread = heatmap_to_mask(run.heatmaps(["cat"], hops=2).total[0], SIZE, 0.5, pool=False, smooth=True)
    assert torch.equal(run.mask("cat", threshold=0.5, self_attention_hops=2), spread)
    soft = run.mask(["cat", "house"], threshold=(0.2, 0.5))
    assert soft.dtype == torch.float32 and soft.min() >= 0 and soft.max() <= 1


def test_masks_of_a_run_can_be_combined_into_a_local_blend(model, source):
    run, _ = source
    mask = run.mask("cat") & ~run.mask("grass", threshold=0.5, self_attention_hops=0)
    assert model.edit(run, TARGET, local_blend=LocalBlend(mask=mask)).blend_mask is not None


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(threshold=2), "a mask's threshold must"),
        (dict(self_attention_hops=1.5), "self_attention_hops must be a whole number"),
        (dict(self_attention_hops=17), "self_attention_hops must be a whole number"),
        (dict(strides=2), "strides must be a list or a tuple"),
    ],
)
def test_options_of_a_mask_that_are_refused(source, options, message):
    with pytest.raises(ValueError, match=message):
        source[0].mask("cat", **options)


def test_a_pair_of_words_is_not_a_word(source):
    for read in (source[0].mask, source[0].maps):
        with pytest.raises(ValueError, match="a word is given as text"):
            read(("cat", "beach"))
