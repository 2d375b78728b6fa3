"""The UNet: its formulas by hand, diffusers' numbers, and that `attend` is the only door to its attention."""

import math

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from parity import SD15_UNET, SD21_UNET, SDXL_UNET, check, norms, on_meta, share_weights
from torch.nn import functional as F

from minip2p.attention.contract import Site, explicit, fused
from minip2p.config import UNetConfig
from minip2p.layers import ResnetBlock
from minip2p.unet import UNet
from minip2p.unet.attention import FeedForward
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


def pair(given, seed=0):
    """Our UNet and diffusers', of the same weights. Ours reads the configuration that diffusers says it has."""
    theirs = on_meta(UNet2DConditionModel, **given)
    ours = on_meta(UNet, UNetConfig.from_dict(dict(theirs.config)))
    share_weights(ours, theirs, seed=seed)
    return ours, theirs


def small(name="as SD 1"):
    unet = on_meta(UNet, UNetConfig.from_dict(SMALL[name]))
    share_weights(unet)
    return unet


def inputs(config, height, width, rows=2, words=7):
    """Random latents, time steps, context and what SDXL adds."""
    g = torch.Generator().manual_seed(height * width)
    x = torch.randn(rows, config.in_channels, height, width, generator=g)
    context = torch.randn(rows, words, config.cross_attention_dim, generator=g)
    t = torch.randint(1000, (rows,), generator=g)
    added = None
    if config.addition_embed_type:
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        added = torch.randn(rows, pooled, generator=g), torch.randint(1024, (rows, 6), generator=g)
    return x, t, context, added


@torch.no_grad()
def check_parity(what, ours, theirs, height, width, *, within, rows=2):
    x, t, context, added = inputs(ours.config, height, width, rows)
    given = None if added is None else {"text_embeds": added[0], "time_ids": added[1]}
    expected = theirs(x, t, context, added_cond_kwargs=given).sample
    check(f"UNet {what} at {height}x{width}", ours(x, t, context, added=added), expected, within)


# Parity with diffusers


@pytest.mark.parametrize("name", SMALL)
def test_small_unets_are_diffusers(name):
    ours, theirs = pair(SMALL[name])
    check_parity(name, ours, theirs, *SIZES.get(name, (16, 24)), within=1e-5)


def test_the_full_sd15_unet_is_diffusers():
    ours, theirs = pair(SD15_UNET)
    for height, width in ((16, 16), (16, 24)):
        check_parity("SD 1.5, full size", ours, theirs, height, width, within=1e-4, rows=1)


def test_the_embedded_unet_is_diffusers(model):
    theirs = UNet2DConditionModel.from_pretrained(model.text.folder / "unet")
    for height, width in ((16, 16), (16, 20), (11, 18)):
        check_parity("embedded", model.unet, theirs, height, width, within=1e-5)


@pytest.mark.parametrize(
    "given, parameters, sites",
    [
        (SD15_UNET, 859_520_964, 32),
        (SD21_UNET, 865_910_724, 32),
        (SDXL_UNET, 2_567_463_684, 140),
    ],
    ids=["SD 1.5", "SD 2.1", "SDXL"],
)
def test_published_configurations_have_the_published_tensors(given, parameters, sites):
    ours = on_meta(UNet, UNetConfig.from_dict({**given, "_class_name": "UNet2DConditionModel"}))
    theirs = on_meta(UNet2DConditionModel, **given)
    shapes = {name: p.shape for name, p in ours.state_dict().items()}
    assert shapes == {name: p.shape for name, p in theirs.state_dict().items()}
    assert sum(shape.numel() for shape in shapes.values()) == parameters
    assert norms(ours) == norms(theirs)
    assert len(ours.sites) == len(set(ours.sites)) == sites


def test_sd15_has_686_tensors_and_32_sites():
    unet = on_meta(UNet, UNetConfig.from_dict(SD15_UNET))
    assert len(unet.state_dict()) == 686
    for cross in (False, True):
        strides = [site.stride for site in unet.sites if site.cross == cross]
        assert {stride: strides.count(stride) for stride in strides} == {1: 5, 2: 5, 4: 5, 8: 1}
        places = [site.place for site in unet.sites if site.cross == cross]
        assert places == ["down"] * 6 + ["mid"] + ["up"] * 9


# The one door


@pytest.mark.parametrize("name", SMALL)
@torch.no_grad()
def test_attend_is_handed_each_site_once_and_its_pixels_as_queries(name):
    unet, (height, width), seen = small(name), SIZES.get(name, (16, 24)), []

    def watch(q, k, v, site):
        seen.append(site)
        pixels = math.ceil(height / site.stride) * math.ceil(width / site.stride)
        level = round(math.log2(site.stride))
        heads = unet.config.per_level(unet.config.attention_head_dim)[level]
        assert q.shape == (2, heads, pixels, unet.config.block_out_channels[level] // heads)
        assert k.shape == v.shape == (2, heads, 7 if site.cross else pixels, q.shape[-1])
        return fused(q, k, v)

    x, t, context, added = inputs(unet.config, height, width)
    out = unet(x, t, context, watch, added)
    assert tuple(seen) == unet.sites and len(set(seen)) == len(seen)
    assert torch.equal(out, unet(x, t, context, added_cond=added))


@pytest.mark.parametrize("name", SMALL)
@torch.no_grad()
def test_explicit_equals_fused_at_every_site(name):
    unet = small(name)
    x, t, context, added = inputs(unet.config, *SIZES.get(name, (16, 24)))

    def both(q, k, v, site):
        out = explicit()(q, k, v, site)
        check(site, out, fused(q, k, v), 1e-5)
        return out

    check("the whole UNet", unet(x, t, context, both, added), unet(x, t, context, added_cond=added), 1e-4)


@torch.no_grad()
def test_no_attention_happens_behind_attend(monkeypatch):
    unet = small()
    x, t, context, _ = inputs(unet.config, 8, 8)
    usual = unet(x, t, context)
    monkeypatch.delattr(F, "scaled_dot_product_attention")
    check("without any fused kernel", unet(x, t, context, explicit()), usual, 1e-4)


@torch.no_grad()
def test_a_site_names_its_own_module():
    """Silencing a site through the door does what it does to silence the module's values, and nothing else does."""
    unet = small()
    x, t, context, _ = inputs(unet.config, 8, 8)
    usual, outputs = unet(x, t, context), []
    for site, module in {
        Site("down", 0, False, 1): "down_blocks.0.attentions.0.transformer_blocks.0.attn1",
        Site("down", 1, True, 2): "down_blocks.1.attentions.0.transformer_blocks.0.attn2",
        Site("mid", 0, True, 2): "mid_block.attentions.0.transformer_blocks.0.attn2",
        Site("up", 1, False, 2): "up_blocks.0.attentions.1.transformer_blocks.0.attn1",
        Site("up", 3, True, 1): "up_blocks.1.attentions.1.transformer_blocks.0.attn2",
    }.items():
        outputs.append(unet(x, t, context, lambda q, k, v, at, off=site: fused(q, k, v) * (at != off)))
        weight = unet.get_submodule(module).to_v.weight
        kept = weight.clone()
        weight.zero_()
        check(f"{site} silent", outputs[-1], unet(x, t, context), 1e-5)
        weight.copy_(kept)
    outputs.append(usual)
    apart = [(a - b).abs().max() for n, a in enumerate(outputs) for b in outputs[:n]]
    assert min(apart) > 1e-3 * usual.std()


@torch.no_grad()
def test_what_attend_returns_is_what_the_unet_goes_on_with():
    unet = small()
    x, t, context, _ = inputs(unet.config, 8, 8)
    usual, other = unet(x, t, context), torch.randn_like(context)
    silent = unet(x, t, context, lambda q, k, v, site: torch.zeros_like(q))
    assert (silent - usual).std() > 0.01 * usual.std()
    # Without cross-attention the words are not heard at all.
    deaf = [unet(x, t, words, lambda q, k, v, site: fused(q, k, v) * (not site.cross)) for words in (context, other)]
    assert torch.equal(*deaf) and not torch.equal(usual, unet(x, t, other))


def test_the_unet_leaves_its_inputs_alone_and_its_gradients_are_finite():
    unet = small()
    x, t, context, _ = inputs(unet.config, 8, 8)
    x.requires_grad_(), context.requires_grad_()
    for attend in (fused, explicit()):
        before = x.detach().clone(), context.detach().clone()
        grads = torch.autograd.grad(unet(x, t, context, attend).square().sum(), (x, context))
        assert all(g.isfinite().all() and g.abs().max() > 0 for g in grads)
        assert torch.equal(x, before[0]) and torch.equal(context, before[1])


@torch.no_grad()
def test_one_time_step_serves_all_rows():
    unet = small()
    x, _, context, _ = inputs(unet.config, 8, 8)
    one = unet(x, 7, context)
    assert all(torch.equal(one, unet(x, torch.tensor(t), context)) for t in (7, [7], [7, 7]))
    two = unet(x, torch.tensor([7, 900]), context)
    assert torch.equal(one[0], two[0]) and not torch.equal(one[1], two[1])


def test_what_the_unet_cannot_do_is_one_clear_line():
    unet = small("as SDXL")
    x, t, context, _ = inputs(unet.config, 8, 8)
    with pytest.raises(ValueError, match="needs `added`"):
        unet(x, t, context)
    for wrong, says in (
        (dict(down_block_types=("AttnDownBlock2D", CROSS)), "'AttnDownBlock2D' is not supported"),
        (dict(block_out_channels=(32, 64, 64)), "down_block_types has 2 entries for 3 levels"),
        (dict(addition_embed_type="image"), "'image' is not supported"),
        (dict(addition_embed_type="text_time"), "text_time needs projection_class_embeddings_input_dim"),
    ):
        with pytest.raises(ValueError, match=says):
            on_meta(UNet, UNetConfig.from_dict(TINY | wrong))


# The formulas, by hand


@pytest.mark.parametrize("flip, shift", [(True, 0), (False, 1)])
def test_sinusoid_is_cos_and_sin_of_t_omega(flip, shift):
    for t in (0, 1, 981):
        angles = [t * 10000 ** (-i / (4 - shift)) for i in range(4)]
        cos, sin = [math.cos(a) for a in angles], [math.sin(a) for a in angles]
        expected = torch.tensor([cos + sin if flip else sin + cos])
        torch.testing.assert_close(timestep_embedding(torch.tensor([t]), 8, flip, shift), expected, rtol=0, atol=1e-4)


def test_feed_forward_is_ffn_geglu_shazeer_eq_6():
    """FFN(x) = (gelu(x W) ⊙ x V) W₂, gelu(a) = a Φ(a); the checkpoint stacks V upon W."""
    ff = FeedForward(2)
    with torch.no_grad():
        for n, p in enumerate(ff.parameters()):
            p.copy_(torch.sin(torch.arange(p.numel()) + 3.0 * n).reshape(p.shape))
    x, (stacked, bias, outer, last) = [0.5, -2.0], [p.tolist() for p in ff.parameters()]
    both = [sum(w * a for w, a in zip(row, x, strict=True)) + b for row, b in zip(stacked, bias, strict=True)]
    hidden = [v * a * (1 + math.erf(a / math.sqrt(2))) / 2 for v, a in zip(both[:8], both[8:], strict=True)]
    expected = [sum(w * a for w, a in zip(row, hidden, strict=True)) + b for row, b in zip(outer, last, strict=True)]
    torch.testing.assert_close(ff(torch.tensor([x])), torch.tensor([expected]))


@pytest.mark.parametrize("outer", [4, 6])
def test_residual_block_is_shortcut_plus_conv_silu_norm_twice(outer):
    """h = conv1(silu(norm1(x)));  h += W silu(emb);  h = conv2(silu(norm2(h)));  out = shortcut(x) + h."""
    block = on_meta(ResnetBlock, 4, outer, groups=2, eps=1e-2, emb_channels=3)
    share_weights(block)
    w = {name: p.double().numpy() for name, p in block.state_dict().items()}
    draw = np.random.default_rng(0)
    x, emb = draw.normal(size=(4, 3, 5)), draw.normal(size=3)

    def silu(a):
        return a / (1 + np.exp(-a))

    def norm(a, n):
        grouped = a.reshape(2, -1)
        grouped = (grouped - grouped.mean(1, keepdims=True)) / np.sqrt(grouped.var(1, keepdims=True) + 1e-2)
        return grouped.reshape(a.shape) * w[f"norm{n}.weight"][:, None, None] + w[f"norm{n}.bias"][:, None, None]

    def conv(a, name):
        kernel, bias = w[name + ".weight"], w[name + ".bias"]
        padded = np.pad(a, [(0, 0)] + [(kernel.shape[-1] // 2,) * 2] * 2)
        out = np.zeros((len(kernel), *a.shape[1:]))
        for row in range(a.shape[1]):
            for col in range(a.shape[2]):
                patch = padded[:, row : row + kernel.shape[2], col : col + kernel.shape[3]]
                out[:, row, col] = (kernel * patch).sum((1, 2, 3)) + bias
        return out

    h = conv(silu(norm(x, 1)), "conv1")
    h = h + (w["time_emb_proj.weight"] @ silu(emb) + w["time_emb_proj.bias"])[:, None, None]
    expected = conv(silu(norm(h, 2)), "conv2") + (x if outer == 4 else conv(x, "conv_shortcut"))
    ours = block(torch.from_numpy(x).float()[None], torch.from_numpy(emb).float()[None])[0]
    torch.testing.assert_close(ours, torch.from_numpy(expected).float(), rtol=1e-5, atol=1e-5)
