"""The UNet: parity with diffusers, `attend` as the only access to its attention, and the timestep embedding by hand."""

import math

import pytest
import torch
from diffusers import UNet2DConditionModel
from parity import SD15_UNET, SD21_UNET, SDXL_UNET, check, norms, on_meta, share_weights
from torch.nn import functional as F

from minip2p.attention.contract import Site, explicit, fused
from minip2p.config import UNetConfig
from minip2p.io.files import shipped_weights
from minip2p.unet import UNet
from minip2p.unet.model import timestep_embedding

CROSS, PLAIN, UP_CROSS, UP_PLAIN = "CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"
TINY = dict(
    block_out_channels=(32, 64),
    layers_per_block=1,
    cross_attention_dim=24,
    attention_head_dim=4,
    norm_num_groups=8,
    down_block_types=(CROSS, CROSS),
    up_block_types=(UP_CROSS, UP_CROSS),
)
SMALL = {
    "as SD 1": TINY,
    "as SD 2, odd sizes": TINY
    | dict(
        block_out_channels=(16, 32, 64),
        attention_head_dim=(2, 4, 8),
        layers_per_block=2,
        use_linear_projection=True,
        down_block_types=(CROSS, CROSS, PLAIN),
        up_block_types=(UP_PLAIN, UP_CROSS, UP_CROSS),
    ),
    "as SDXL": TINY
    | dict(
        block_out_channels=(16, 32, 64),
        attention_head_dim=(1, 2, 4),
        use_linear_projection=True,
        layers_per_block=2,
        transformer_layers_per_block=(1, 2, 3),
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=12 + 6 * 8,
        down_block_types=(PLAIN, CROSS, CROSS),
        up_block_types=(UP_CROSS, UP_CROSS, UP_PLAIN),
    ),
    "attention in the middle only": TINY | dict(down_block_types=(PLAIN, PLAIN), up_block_types=(UP_PLAIN, UP_PLAIN)),
    "attention on one side": TINY | dict(up_block_types=(UP_PLAIN, UP_CROSS)),
    "one level": TINY | dict(block_out_channels=(32,), down_block_types=(CROSS,), up_block_types=(UP_CROSS,)),
    "inpainting, other constants": TINY | dict(in_channels=9, flip_sin_to_cos=False, freq_shift=1, norm_eps=1e-3),
}
SIZES = {"as SD 2, odd sizes": (13, 18), "attention on one side": (7, 5)}
# The published configurations, a tenth as wide. tests/test_full_size.py has them at full size.
NARROW = {
    "SD 1.5": SD15_UNET | dict(block_out_channels=[32, 64, 128, 128], cross_attention_dim=72),
    "SD 2.1": SD21_UNET
    | dict(block_out_channels=[32, 64, 128, 128], cross_attention_dim=104, attention_head_dim=[1, 2, 4, 4]),
    "SDXL": SDXL_UNET
    | dict(
        block_out_channels=[32, 64, 128],
        cross_attention_dim=208,
        attention_head_dim=[1, 2, 4],
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=128 + 6 * 32,
    ),
}


def pair_with_diffusers(config):
    """Our UNet and diffusers' with the same weights. Ours reads the configuration that diffusers reports."""
    theirs = on_meta(UNet2DConditionModel, **config)
    actual = on_meta(UNet, UNetConfig.from_dict(dict(theirs.config)))
    share_weights(actual, theirs)
    return actual, theirs


def small_unet(name="as SD 1"):
    unet = on_meta(UNet, UNetConfig.from_dict(SMALL[name]))
    share_weights(unet)
    return unet


def inputs(config, height, width, rows=2, words=7):
    """Random latents, timesteps, context, and added_cond if the configuration needs it."""
    g = torch.Generator().manual_seed(height * width)
    x = torch.randn(rows, config.in_channels, height, width, generator=g)
    context = torch.randn(rows, words, config.cross_attention_dim, generator=g)
    t = torch.randint(1000, (rows,), generator=g)
    added_cond = None
    if config.addition_embed_type:
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        added_cond = torch.randn(rows, pooled, generator=g), torch.randint(1024, (rows, 6), generator=g)
    return x, t, context, added_cond


@torch.no_grad()
def check_parity(what, actual, theirs, height, width, *, tolerance, rows=2):
    x, t, context, added_cond = inputs(actual.config, height, width, rows)
    their_cond = None if added_cond is None else {"text_embeds": added_cond[0], "time_ids": added_cond[1]}
    expected = theirs(x, t, context, added_cond_kwargs=their_cond).sample
    check(f"UNet {what} at {height}x{width}", actual(x, t, context, added_cond=added_cond), expected, tolerance)


# Parity with diffusers


@pytest.mark.parametrize("name", SMALL)
def test_small_unets_match_diffusers(name):
    actual, theirs = pair_with_diffusers(SMALL[name])
    check_parity(name, actual, theirs, *SIZES.get(name, (16, 24)), tolerance=1e-5)


@pytest.mark.parametrize("name", NARROW)
def test_the_published_configurations_match_diffusers_at_a_tenth_of_their_width(name):
    actual, theirs = pair_with_diffusers(NARROW[name])
    for height, width in ((16, 16), (16, 24)):
        check_parity(f"{name}, narrow", actual, theirs, height, width, tolerance=1e-4, rows=1)


@pytest.mark.full
def test_the_full_sd15_unet_matches_diffusers():
    actual, theirs = pair_with_diffusers(SD15_UNET)
    for height, width in ((16, 16), (16, 24)):
        check_parity("SD 1.5, full size", actual, theirs, height, width, tolerance=1e-4, rows=1)


def test_the_shipped_unet_matches_diffusers(cpu_model):
    theirs = UNet2DConditionModel.from_pretrained(shipped_weights("tiny") / "unet")
    for height, width in ((16, 16), (16, 20), (11, 18)):
        check_parity("shipped", cpu_model.unet, theirs, height, width, tolerance=1e-5)


@pytest.mark.parametrize(
    "config, parameters, sites",
    [
        (SD15_UNET, 859_520_964, 32),
        (SD21_UNET, 865_910_724, 32),
        (SDXL_UNET, 2_567_463_684, 140),
    ],
    ids=["SD 1.5", "SD 2.1", "SDXL"],
)
def test_the_published_configurations_have_the_published_tensors(config, parameters, sites):
    actual = on_meta(UNet, UNetConfig.from_dict({**config, "_class_name": "UNet2DConditionModel"}))
    theirs = on_meta(UNet2DConditionModel, **config)
    shapes = {name: p.shape for name, p in actual.state_dict().items()}
    assert shapes == {name: p.shape for name, p in theirs.state_dict().items()}
    assert sum(shape.numel() for shape in shapes.values()) == parameters
    assert norms(actual) == norms(theirs)
    assert len(actual.sites) == len(set(actual.sites)) == sites


def test_sd15_has_686_tensors_and_32_sites():
    unet = on_meta(UNet, UNetConfig.from_dict(SD15_UNET))
    assert len(unet.state_dict()) == 686
    for cross in (False, True):
        strides = [site.stride for site in unet.sites if site.cross == cross]
        assert {stride: strides.count(stride) for stride in strides} == {1: 5, 2: 5, 4: 5, 8: 1}
        places = [site.place for site in unet.sites if site.cross == cross]
        assert places == ["down"] * 6 + ["mid"] + ["up"] * 9


# attend is the only access to attention


@pytest.mark.parametrize("name", SMALL)
@torch.no_grad()
def test_attend_is_called_once_per_site_with_its_pixels_as_queries(name):
    unet, (height, width), called = small_unet(name), SIZES.get(name, (16, 24)), []

    def recording(q, k, v, site):
        called.append(site)
        pixels = math.ceil(height / site.stride) * math.ceil(width / site.stride)
        level = round(math.log2(site.stride))
        heads = unet.config.per_level(unet.config.attention_head_dim)[level]
        assert q.shape == (2, heads, pixels, unet.config.block_out_channels[level] // heads)
        assert k.shape == v.shape == (2, heads, 7 if site.cross else pixels, q.shape[-1])
        return fused(q, k, v)

    x, t, context, added_cond = inputs(unet.config, height, width)
    out = unet(x, t, context, recording, added_cond)
    assert tuple(called) == unet.sites and len(set(called)) == len(called)
    assert torch.equal(out, unet(x, t, context, added_cond=added_cond))


@pytest.mark.parametrize("name", SMALL)
@torch.no_grad()
def test_the_prediction_is_read_from_the_last_level_of_the_decoder(name):
    """And the first levels run without those after them."""
    unet, called = small_unet(name), []
    x, t, context, added_cond = inputs(unet.config, *SIZES.get(name, (16, 24)))

    def recording(q, k, v, site):
        called.append(site)
        return fused(q, k, v)

    *first, last = unet.decoder_levels(x, t, context, fused, added_cond)
    out = unet.conv_out(torch.nn.functional.silu(unet.conv_norm_out(last)))
    assert torch.equal(out, unet(x, t, context, added_cond=added_cond))
    fewer = unet.decoder_levels(x, t, context, recording, added_cond, count=len(first))
    assert all(torch.equal(a, b) for a, b in zip(first, fewer, strict=True))
    assert set(unet.sites) - set(called) == {a.site for a in unet.up_blocks[-1].modules() if hasattr(a, "site")}


@pytest.mark.parametrize("name", SMALL)
@torch.no_grad()
def test_explicit_equals_fused_at_every_site(name):
    unet = small_unet(name)
    x, t, context, added_cond = inputs(unet.config, *SIZES.get(name, (16, 24)))

    def both(q, k, v, site):
        out = explicit()(q, k, v, site)
        check(site, out, fused(q, k, v), 1e-5)
        return out

    check("the whole UNet", unet(x, t, context, both, added_cond), unet(x, t, context, added_cond=added_cond), 1e-4)


@torch.no_grad()
def test_no_attention_is_computed_outside_attend(monkeypatch):
    unet = small_unet()
    x, t, context, _ = inputs(unet.config, 8, 8)
    expected = unet(x, t, context)
    monkeypatch.delattr(F, "scaled_dot_product_attention")
    check("without any fused kernel", unet(x, t, context, explicit()), expected, 1e-4)


@torch.no_grad()
def test_a_site_names_its_own_module():
    """Zeroing a site's output in `attend` equals zeroing its module's values, and every site has another effect."""
    unet = small_unet()
    x, t, context, _ = inputs(unet.config, 8, 8)
    unchanged, outputs = unet(x, t, context), []
    for site, module in {
        Site("down", 0, False, 1): "down_blocks.0.attentions.0.transformer_blocks.0.attn1",
        Site("down", 1, True, 2): "down_blocks.1.attentions.0.transformer_blocks.0.attn2",
        Site("mid", 0, True, 2): "mid_block.attentions.0.transformer_blocks.0.attn2",
        Site("up", 1, False, 2): "up_blocks.0.attentions.1.transformer_blocks.0.attn1",
        Site("up", 3, True, 1): "up_blocks.1.attentions.1.transformer_blocks.0.attn2",
    }.items():
        outputs.append(unet(x, t, context, lambda q, k, v, at, zeroed=site: fused(q, k, v) * (at != zeroed)))
        weight = unet.get_submodule(module).to_v.weight
        original = weight.clone()
        weight.zero_()
        check(f"{site} zeroed", outputs[-1], unet(x, t, context), 1e-5)
        weight.copy_(original)
    outputs.append(unchanged)
    distances = [(a - b).abs().max() for n, a in enumerate(outputs) for b in outputs[:n]]
    assert min(distances) > 1e-3 * unchanged.std()


@torch.no_grad()
def test_the_unet_uses_what_attend_returns():
    unet = small_unet()
    x, t, context, _ = inputs(unet.config, 8, 8)
    unchanged, other = unet(x, t, context), torch.randn_like(context)
    zeroed = unet(x, t, context, lambda q, k, v, site: torch.zeros_like(q))
    assert (zeroed - unchanged).std() > 0.01 * unchanged.std()
    # Without cross-attention the context has no effect.
    without_cross = [unet(x, t, c, lambda q, k, v, site: fused(q, k, v) * (not site.cross)) for c in (context, other)]
    assert torch.equal(*without_cross) and not torch.equal(unchanged, unet(x, t, other))


def test_the_unet_does_not_modify_its_inputs_and_its_gradients_are_finite():
    unet = small_unet()
    x, t, context, _ = inputs(unet.config, 8, 8)
    x.requires_grad_()
    context.requires_grad_()
    for attend in (fused, explicit()):
        before = x.detach().clone(), context.detach().clone()
        grads = torch.autograd.grad(unet(x, t, context, attend).square().sum(), (x, context))
        assert all(g.isfinite().all() and g.abs().max() > 0 for g in grads)
        assert torch.equal(x, before[0]) and torch.equal(context, before[1])


@torch.no_grad()
def test_a_timestep_may_be_shared_by_all_rows_or_given_per_row():
    unet = small_unet()
    x, _, context, _ = inputs(unet.config, 8, 8)
    shared = unet(x, 7, context)
    assert all(torch.equal(shared, unet(x, torch.tensor(t), context)) for t in (7, [7], [7, 7]))
    per_row = unet(x, torch.tensor([7, 900]), context)
    assert torch.equal(shared[0], per_row[0]) and not torch.equal(shared[1], per_row[1])


def test_gradient_checkpointing_gives_the_same_output_and_gradient():
    unet = small_unet()
    x, t, context, _ = inputs(unet.config, 8, 8)
    context.requires_grad_()
    outputs = [unet(x, t, context, gradient_checkpointing=checkpointing) for checkpointing in (False, True)]
    gradients = [torch.autograd.grad(out.square().sum(), context)[0] for out in outputs]
    assert torch.equal(*outputs) and torch.equal(*gradients)


def test_unsupported_configurations_and_missing_inputs_are_one_clear_line():
    unet = small_unet("as SDXL")
    x, t, context, _ = inputs(unet.config, 8, 8)
    with pytest.raises(ValueError, match="needs `added_cond`"):
        unet(x, t, context)
    for wrong, message in (
        (dict(down_block_types=("AttnDownBlock2D", CROSS)), "'AttnDownBlock2D' is not supported"),
        (dict(block_out_channels=(32, 64, 64)), "down_block_types has 2 entries for 3 levels"),
        (dict(addition_embed_type="image"), "'image' is not supported"),
        (dict(addition_embed_type="text_time"), "text_time needs projection_class_embeddings_input_dim"),
    ):
        with pytest.raises(ValueError, match=message):
            on_meta(UNet, UNetConfig.from_dict(TINY | wrong))


# The timestep embedding, by hand


@pytest.mark.parametrize("flip, shift", [(True, 0), (False, 1)])
def test_the_timestep_embedding_is_cos_and_sin_of_t_omega(flip, shift):
    for t in (0, 1, 981):
        angles = [t * 10000 ** (-i / (4 - shift)) for i in range(4)]
        cos, sin = [math.cos(a) for a in angles], [math.sin(a) for a in angles]
        expected = torch.tensor([cos + sin if flip else sin + cos])
        torch.testing.assert_close(timestep_embedding(torch.tensor([t]), 8, flip, shift), expected, rtol=0, atol=1e-4)
