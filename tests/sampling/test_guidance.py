"""Guidance: the rows of a step are those that are predicted, and their sum is the formula of the paper.

Axes: b batch, c h w latents, n tokens, d width of a text embedding.
"""

from types import SimpleNamespace

import pytest
import torch

from minip2p.attention.contract import Site, fused
from minip2p.checkpoints.components import RowCounter
from minip2p.checkpoints.origin import CheckpointOrigin
from minip2p.sampling.conditioning import Conditioning, ImageConditioning
from minip2p.sampling.guidance import (
    Branch,
    FiniteCheck,
    RunGuidance,
    guidance_branches,
    guided_noise,
    soft_threshold,
    split_attend,
    unet_noise,
    unet_rows,
)
from minip2p.text.encoder import TextEmbedding

SITE = Site("up", 0, True, 1)
SCALES = [0, 1, 4]
IMAGE_SCALES = {"no image": None, "inpainting": None, "w_I = 1.5": 1.5, "w_I = 1": 1.0, "w_I = 4": 4.0, "w_I = 0": 0.0}


class LinearUNet:
    """A UNet whose prediction is known: x · (1 + the mean of the attended tokens) + the mean of the image channels."""

    reads_guidance = False

    def __init__(self):
        self.image_rows = []  # of each call, the channels besides the latents

    def __call__(self, x, t, tokens, attend, added_cond, gradient_checkpointing, *, guidance_scale=None):
        latents, channels = x[:, :4], x[:, 4:]
        self.image_rows.append(channels)
        q = torch.zeros(len(x), 1, 1, 1)
        attended = attend(q, q, tokens.mean((1, 2))[:, None, None, None], SITE)
        image = channels.mean((1, 2, 3), keepdim=True) if channels.numel() else 0.0
        return latents * (1 + attended) + image


def stub_components():
    """What `guided_noise` needs of the components of a model."""
    return SimpleNamespace(unet=LinearUNet(), dtype=torch.float32, counter=RowCounter(), networks={})


def image_of(name):
    if name == "no image":
        return None
    return ImageConditioning(torch.full((1, 4, 2, 3), 0.5), IMAGE_SCALES[name])


def random_step(count, same_latents):
    """Latents b c h w, and an unconditional embedding of one row and a conditional one of `count` rows."""
    g = torch.Generator().manual_seed(count)
    x = torch.randn(count, 4, 2, 3, generator=g)
    if same_latents:
        x = x[:1].expand(count, -1, -1, -1)
    uncond, cond = torch.randn(1, 7, 5, generator=g), torch.randn(count, 7, 5, generator=g)
    return x, TextEmbedding(uncond), TextEmbedding(cond)


def expected_noise(x, uncond, cond, w, quantile, image):
    """Ho & Salimans (2022), eq. 6, or with an image Brooks et al. (2022), eq. 3, written out.

    Image guidance has no proximal version, so it ignores the quantile.
    """

    def eps(embedding, channels):
        return x * (1 + embedding.tokens.mean((1, 2)))[:, None, None, None] + channels

    if image is not None and image.image_guidance_scale is not None:
        w_image = image.image_guidance_scale
        nothing, only_image, everything = eps(uncond, 0), eps(uncond, 0.5), eps(cond, 0.5)
        return nothing + w_image * (only_image - nothing) + w * (everything - only_image)
    channels = 0.0 if image is None else 0.5
    eps_uncond, eps_cond = eps(uncond, channels), eps(cond, channels)
    return eps_uncond + w * soft_threshold(eps_cond - eps_uncond, quantile)


@pytest.mark.parametrize("count, same_latents", [(1, False), (1, True), (3, False), (3, True)])
@pytest.mark.parametrize("image", IMAGE_SCALES)
@pytest.mark.parametrize("quantile", [0.0, 0.7])
@pytest.mark.parametrize("w", SCALES)
def test_the_rows_that_run_are_the_predicted_ones_and_their_sum_is_the_formula(w, quantile, image, count, same_latents):
    components, conditioning = stub_components(), image_of(image)
    x, uncond, cond = random_step(count, same_latents)
    seen = []

    def attend(q, k, v, site):
        seen.append(len(q))
        return fused(q, k, v)

    options = dict(same_latents=same_latents, proximal_quantile=quantile, image=conditioning)
    eps = guided_noise(components, x, 10, uncond, cond, guidance_scale=w, attend=attend, **options)
    branches = guidance_branches(count, w, **options)
    rows = sum(branch.rows for branch in branches)
    assert components.counter.rows == rows == unet_rows(count, w, **options)
    torch.testing.assert_close(eps, expected_noise(x, uncond, cond, w, quantile, conditioning))
    # The custom attention sees the conditional rows and no others.
    assert sum(seen) == sum(branch.rows for branch in branches if branch.kind == "conditional")
    # Image guidance replaces the image of the unconditional rows by zeros.
    (channels,) = components.unet.image_rows
    expected_zeros = 0
    if conditioning is not None and conditioning.image_guidance_scale is not None:
        expected_zeros = sum(branch.rows for branch in branches if branch.kind == "unconditional")
    if conditioning is not None:
        assert (channels == 0).all((1, 2, 3)).tolist() == [n < expected_zeros for n in range(rows)]
    assert sum(branch.weight for branch in branches) == pytest.approx(1)
    assert all(branch.weight != 0 or quantile for branch in branches)  # proximal guidance needs ε(∅) where w = 1 too


@pytest.mark.parametrize(
    "w, options, expected",
    [
        (4, {}, [("unconditional", 2, -3), ("conditional", 2, 4)]),
        (4, {"same_latents": True}, [("unconditional", 1, -3), ("conditional", 2, 4)]),
        (1, {}, [("conditional", 2, 1)]),
        (1, {"proximal_quantile": 0.7}, [("unconditional", 2, 0), ("conditional", 2, 1)]),
        (0, {}, [("unconditional", 2, 1)]),
        (0, {"same_latents": True}, [("unconditional", 1, 1)]),
        (4, {"image": 1.5}, [("unconditional", 2, -0.5), ("image", 2, -2.5), ("conditional", 2, 4)]),
        (4, {"image": 1.0}, [("image", 2, -3), ("conditional", 2, 4)]),
        (1.5, {"image": 1.5}, [("unconditional", 2, -0.5), ("conditional", 2, 1.5)]),
        (0, {"image": 1.5}, [("unconditional", 2, -0.5), ("image", 2, 1.5)]),
        (0, {"image": 0.0, "same_latents": True}, [("unconditional", 1, 1)]),
    ],
)
def test_the_branches_of_two_latents_by_hand(w, options, expected):
    if "image" in options:
        options = options | {"image": ImageConditioning(torch.zeros(1, 4, 2, 3), options["image"])}
    assert guidance_branches(2, w, **options) == [Branch(*branch) for branch in expected]


def guidance_of(conditioning, uncond, steps):
    return RunGuidance(stub_components(), conditioning, steps=steps, guidance_scale=4.0, negative=uncond)


def test_a_run_without_approximations_is_guided_at_every_step_to_the_bit():
    x, uncond, cond = random_step(3, same_latents=False)
    guide = guidance_of(Conditioning(), uncond, 2)
    expected = guided_noise(stub_components(), x, 10, uncond, cond, guidance_scale=4.0)
    assert all(torch.equal(guide(i, 10, x, cond, [[0], [1], [2]], attend=fused), expected) for i in range(2))


def test_outside_of_the_interval_there_is_no_guidance():
    x, uncond, cond = random_step(3, same_latents=False)
    guide = guidance_of(Conditioning(guidance_interval=(0.25, 0.75)), uncond, 4)
    for i, w in enumerate((1.0, 4.0, 4.0, 1.0)):
        eps = guide(i, 10, x, cond, [[0], [1], [2]], attend=fused)
        assert torch.equal(eps, guided_noise(stub_components(), x, 10, uncond, cond, guidance_scale=w))
    assert guide.components.counter.rows == 3 + 6 + 6 + 3


def test_a_step_without_unconditional_rows_takes_over_the_difference_of_the_last():
    """ε(c) + (w − 1) (ε'(c) − ε'(∅)), where ε' is of the last step with unconditional rows, and of the same target."""
    x, uncond, cond = random_step(2, same_latents=False)
    later = torch.randn(3, *x.shape[1:])
    guide = guidance_of(Conditioning(uncond_every=2), uncond, 4)
    eps = {n: x[n : n + 1] * (1 + cond.tokens[n].mean()) for n in range(2)}
    difference = [eps[n] - x[n : n + 1] * (1 + uncond.tokens.mean()) for n in range(2)]
    guide(0, 10, x, cond, [[0, 2], [1]], attend=fused)  # the first row stands for the targets 0 and 2
    assert guide.components.counter.rows == 4
    words = TextEmbedding(cond.tokens[[1, 0, 0]])
    taken_over = guide(1, 10, later, words, [[1], [0], [2]], attend=fused)
    assert guide.components.counter.rows == 4 + 3
    for row, n, word in ((0, 1, 1), (1, 0, 0), (2, 0, 0)):
        expected = later[row] * (1 + cond.tokens[word].mean()) + 3.0 * difference[n][0]
        torch.testing.assert_close(taken_over[row], expected)
    assert guide(2, 10, later, words, [[1], [0], [2]], attend=fused).shape == later.shape
    assert guide.components.counter.rows == 4 + 3 + 6


def test_a_prediction_that_is_not_used_takes_no_difference_over():
    x, uncond, cond = random_step(1, same_latents=False)
    guide = guidance_of(Conditioning(uncond_every=2), uncond, 4)
    eps = guide(1, 10, x, cond, [], attend=fused)
    assert torch.equal(eps, guided_noise(stub_components(), x, 10, uncond, cond, guidance_scale=1.0))
    guide(2, 10, x, cond, [], attend=fused)
    assert not guide.differences and guide.components.counter.rows == 1 + 2


def test_one_unconditional_row_serves_all_latents_only_where_they_are_equal():
    x, uncond, cond = random_step(3, same_latents=True)
    shared, separate = (
        guided_noise(stub_components(), x, 10, uncond, cond, guidance_scale=4, same_latents=same)
        for same in (True, False)
    )
    torch.testing.assert_close(shared, separate)


def test_the_unconditional_embedding_is_one_row_or_a_row_for_each_latent():
    x, uncond, cond = random_step(3, same_latents=False)
    repeated = TextEmbedding(uncond.tokens.expand(3, -1, -1))
    options = dict(guidance_scale=4)
    torch.testing.assert_close(
        guided_noise(stub_components(), x, 10, uncond, cond, **options),
        guided_noise(stub_components(), x, 10, repeated, cond, **options),
    )


def test_a_call_of_the_unet_is_counted_only_where_there_is_a_counter():
    components = stub_components()
    x, _, cond = random_step(3, same_latents=False)
    unet_noise(components, x, 10, cond)
    assert components.counter.rows == 3
    components.counter = None
    unet_noise(components, x, 10, cond)


def test_xl_models_are_told_the_size_of_the_picture_and_that_it_is_not_cropped():
    calls = []

    def unet(x, t, tokens, attend, added_cond, gradient_checkpointing, *, guidance_scale):
        calls.append(added_cond)
        return x

    components = SimpleNamespace(unet=unet, dtype=torch.float32, counter=None, vae=SimpleNamespace(stride=8))
    pooled = torch.ones(2, 6)
    unet_noise(components, torch.zeros(2, 4, 2, 3), 10, TextEmbedding(torch.zeros(2, 7, 5), pooled))
    ((vector, sizes),) = calls
    assert vector is pooled and sizes.tolist() == [[16, 24, 0, 0, 16, 24]] * 2


# The pieces


def test_the_soft_threshold_moves_numbers_towards_0_by_a_quantile_of_each_row():
    x = torch.tensor([1.0, -1, 2, -3, 4]).reshape(1, 1, 1, 5)
    assert soft_threshold(x, 0.5).flatten().tolist() == [0, 0, 0, -1, 2]
    both = torch.cat([x, 10 * x])
    assert soft_threshold(both, 0.5)[1].flatten().tolist() == [0, 0, 0, -10, 20]
    assert soft_threshold(x, 0.0) is x


def test_the_first_rows_and_all_others_have_attentions_of_their_own():
    q, k, v = (torch.randn(3, 2, 5, 4, generator=torch.Generator().manual_seed(n)) for n in range(3))
    out = split_attend(2, fused, lambda q, k, v, site: torch.full_like(q, 7.0))(q, k, v, SITE)
    assert torch.equal(out[:2], fused(q[:2], k[:2], v[:2])) and (out[2:] == 7).all() and len(out) == 3


@pytest.mark.parametrize("w", SCALES)
@pytest.mark.parametrize("image", IMAGE_SCALES)
def test_the_unconditional_attention_sees_all_rows_that_are_not_conditional(w, image):
    x, uncond, cond = random_step(3, same_latents=False)
    seen = []

    def attend(q, k, v, site):
        seen.append(len(q))
        return fused(q, k, v)

    guided_noise(
        stub_components(), x, 10, uncond, cond, guidance_scale=w, unconditional_attend=attend, image=image_of(image)
    )
    branches = guidance_branches(3, w, image=image_of(image))
    assert sum(seen) == sum(branch.rows for branch in branches if branch.kind != "conditional")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_latents_that_are_not_finite_are_one_clear_line(bad):
    check, x = FiniteCheck(SimpleNamespace(networks={}, origin=CheckpointOrigin())), torch.zeros(1, 4, 2, 2)
    assert check(x, 1) is x
    x[0, 0, 0, 0] = bad
    with pytest.raises(ValueError, match="the latents are not finite after step 3") as error:
        check(x, 2)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("w", [0.0, 0.5, 1.0, 4.0])
@pytest.mark.parametrize("quantile", [0.0, 0.8])
def test_guidance_of_the_shipped_model_is_the_formula_of_its_own_predictions(model, w, quantile):
    """ε_u + w prox(ε_c − ε_u), where attention without effect changes ε_c alone. Float32, 1e-4."""

    def zeros(q, k, v, site):
        assert len(q) == 1
        return torch.zeros_like(q)

    x = torch.randn(1, 4, 8, 9, generator=torch.Generator().manual_seed(0)).to(model.device)
    uncond, cond = model.text("night"), model.text("a cat on the beach")
    options = dict(guidance_scale=w, proximal_quantile=quantile)
    for attend in (fused, zeros):
        eps_uncond, eps_cond = model.unet(x, 500, uncond.tokens), model.unet(x, 500, cond.tokens, attend)
        expected = eps_uncond + w * soft_threshold(eps_cond - eps_uncond, quantile)
        for same_latents in (False, True):
            eps = guided_noise(
                model.components, x, 500, uncond, cond, attend=attend, same_latents=same_latents, **options
            )
            torch.testing.assert_close(eps, expected, rtol=0, atol=1e-4)


def test_equal_latents_share_the_image_row_too():
    image = ImageConditioning(torch.zeros(1, 4, 2, 3), 1.5)
    branches = guidance_branches(3, 4.0, same_latents=True, image=image)
    assert [(branch.kind, branch.rows) for branch in branches] == [
        ("unconditional", 1),
        ("image", 1),
        ("conditional", 3),
    ]
