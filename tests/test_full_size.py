"""The official configurations at full size, with random weights, against diffusers and transformers: `make test-full`.

They take some 15 GB of memory and minutes, so that `make test` leaves them out; small models of each family, through
the whole pipeline, are in test_families.py.
"""

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from families import TOKENIZER
from parity import SD15_VAE, check, on_meta, share_weights
from test_official import UNETS
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from minip2p.checkpoints.diffusers_folder import DiffusersFolder
from minip2p.config import UNetConfig, VAEConfig
from minip2p.text.encoder import TextEncoder
from minip2p.unet import UNet
from minip2p.vae import VAE

pytestmark = pytest.mark.full
PROMPTS = ["a cat on the beach", "a photo of a red car in the fog"]
CLIP_L = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, projection_dim=768)
CLIP_H = dict(
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=23,
    num_attention_heads=16,
    hidden_act="gelu",
    projection_dim=512,
)
CLIP_G = dict(
    hidden_size=1280,
    intermediate_size=5120,
    num_hidden_layers=32,
    num_attention_heads=20,
    hidden_act="gelu",
    projection_dim=1280,
)


@pytest.mark.parametrize("family", UNETS)
@torch.no_grad()
def test_the_unet_at_full_size_is_diffusers(family):
    """One set of tensors, shared by both; within 1e-4 of the output's deviation, float32."""
    theirs = on_meta(UNet2DConditionModel, **UNETS[family])
    ours = on_meta(UNet, UNetConfig.from_dict(dict(theirs.config)))
    share_weights(ours, theirs)
    c, g = ours.config, torch.Generator().manual_seed(0)
    x = torch.randn(1, c.in_channels, 16, 24, generator=g)
    context = torch.randn(1, 77, c.cross_attention_dim, generator=g)
    added = given = None
    if c.addition_embed_type:
        added = torch.randn(1, 1280, generator=g), torch.tensor([[128, 192, 0, 0, 128, 192]])
        given = {"text_embeds": added[0], "time_ids": added[1]}
    expected = theirs(x, torch.tensor([500]), context, added_cond_kwargs=given).sample
    check(f"UNet {family}, full size, float32", ours(x, 500, context, added=added), expected, 1e-4)


@torch.no_grad()
def test_the_vae_at_full_size_is_diffusers():
    """That of all families."""
    theirs, ours = on_meta(AutoencoderKL, **SD15_VAE), on_meta(VAE, VAEConfig.from_dict(SD15_VAE))
    share_weights(ours, theirs)
    g = torch.Generator().manual_seed(0)
    picture, z = torch.rand(1, 3, 128, 192, generator=g) * 2 - 1, torch.randn(1, 4, 16, 24, generator=g)
    check("VAE, encoder, float32", ours.encode(picture)[0], theirs.encode(picture).latent_dist.mean, 1e-4)
    check("VAE, decoder, float32", ours.decode(z), theirs.decode(z).sample, 1e-4)


def encoder(kind, config, words, seed):
    made = kind(CLIPTextConfig(**config, vocab_size=words, bos_token_id=words - 2, eos_token_id=words - 1))
    share_weights(made, seed=seed)
    return made


@pytest.mark.parametrize(
    "family, first, second",
    [
        ("SD 1", CLIP_L, None),
        ("SD 2", CLIP_H, None),
        ("SDXL", CLIP_L, CLIP_G),
    ],
)
@torch.no_grad()
def test_the_text_embedding_at_full_size_is_the_pipelines(tmp_path, family, first, second):
    """From files that transformers wrote; of diffusers' encode_prompt. The vocabulary is the small model's."""
    tokenizer = CLIPTokenizer.from_pretrained(TOKENIZER)
    parts = {"tokenizer": tokenizer, "text_encoder": encoder(CLIPTextModel, first, len(tokenizer), 1)}
    if second:
        parts |= {"tokenizer_2": tokenizer}
        parts |= {"text_encoder_2": encoder(CLIPTextModelWithProjection, second, len(tokenizer), 2)}
    for name, part in parts.items():
        part.save_pretrained(tmp_path / name)
    text = TextEncoder(DiffusersFolder(tmp_path), dtype=torch.float32)
    words, pooled = text.split_pooled(text(PROMPTS))
    if second:
        pipe = StableDiffusionXLPipeline(**parts, unet=None, vae=None, scheduler=None, add_watermarker=False)
        expected, _, whole, _ = pipe.encode_prompt(PROMPTS, device="cpu", do_classifier_free_guidance=False)
        check(f"{family}, the prompts as a whole, float32", pooled, whole, 1e-4)
    else:
        pipe = StableDiffusionPipeline(
            **parts,
            unet=None,
            vae=None,
            scheduler=None,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        expected, _ = pipe.encode_prompt(PROMPTS, "cpu", 1, False)
    check(f"{family}, text, float32", words, expected, 1e-4)
