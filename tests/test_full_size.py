"""The official configurations at full size, with random weights, against diffusers and transformers: `make test-full`.

They take some 15 GB of memory and minutes, so `make test` leaves them out; small models of every family, through the
whole pipeline, are in checkpoints/test_families.py.
"""

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from families import TOKENIZER
from parity import OFFICIAL_UNETS, SD15_VAE, check, on_meta, share_weights
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from minip2p.checkpoints.diffusers_folder import DiffusersFolder
from minip2p.checkpoints.text_encoders import load_text
from minip2p.config import UNetConfig, VAEConfig
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


@pytest.mark.parametrize("family", OFFICIAL_UNETS)
@torch.no_grad()
def test_the_unet_at_full_size_is_diffusers(family):
    """With the same tensors; within 1e-4 standard deviations of the output, float32."""
    expected_unet = on_meta(UNet2DConditionModel, **OFFICIAL_UNETS[family])
    unet = on_meta(UNet, UNetConfig.from_dict(dict(expected_unet.config)))
    share_weights(unet, expected_unet)
    c, g = unet.config, torch.Generator().manual_seed(0)
    x = torch.randn(1, c.in_channels, 16, 24, generator=g)
    context = torch.randn(1, 77, c.cross_attention_dim, generator=g)
    added_cond = added_cond_kwargs = None
    if c.addition_embed_type:
        added_cond = torch.randn(1, 1280, generator=g), torch.tensor([[128, 192, 0, 0, 128, 192]])
        added_cond_kwargs = {"text_embeds": added_cond[0], "time_ids": added_cond[1]}
    expected = expected_unet(x, torch.tensor([500]), context, added_cond_kwargs=added_cond_kwargs).sample
    output = unet(x, 500, context, added_cond=added_cond)
    check(f"UNet {family}, full size, float32", output, expected, 1e-4)


@torch.no_grad()
def test_the_vae_at_full_size_is_diffusers():
    """That of all families."""
    expected, vae = on_meta(AutoencoderKL, **SD15_VAE), on_meta(VAE, VAEConfig.from_dict(SD15_VAE))
    share_weights(vae, expected)
    g = torch.Generator().manual_seed(0)
    picture, z = torch.rand(1, 3, 128, 192, generator=g) * 2 - 1, torch.randn(1, 4, 16, 24, generator=g)
    check("VAE, encoder, float32", vae.encode(picture)[0], expected.encode(picture).latent_dist.mean, 1e-4)
    check("VAE, decoder, float32", vae.decode(z), expected.decode(z).sample, 1e-4)


def random_encoder(network_class, config, vocabulary, seed):
    bos, eos = vocabulary - 2, vocabulary - 1
    network = network_class(CLIPTextConfig(**config, vocab_size=vocabulary, bos_token_id=bos, eos_token_id=eos))
    share_weights(network, seed=seed)
    return network


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
    """From files that transformers wrote, against diffusers' encode_prompt. The vocabulary is the small model's."""
    tokenizer = CLIPTokenizer.from_pretrained(TOKENIZER)
    components = {"tokenizer": tokenizer, "text_encoder": random_encoder(CLIPTextModel, first, len(tokenizer), 1)}
    if second:
        network = random_encoder(CLIPTextModelWithProjection, second, len(tokenizer), 2)
        components |= {"tokenizer_2": tokenizer, "text_encoder_2": network}
    for name, component in components.items():
        component.save_pretrained(tmp_path / name)
    text, _ = load_text(DiffusersFolder(tmp_path), dtype=torch.float32)
    embedding = text(PROMPTS)
    absent = dict(unet=None, vae=None, scheduler=None)
    if second:
        pipe = StableDiffusionXLPipeline(**components, **absent, add_watermarker=False)
        expected, _, pooled, _ = pipe.encode_prompt(PROMPTS, device="cpu", do_classifier_free_guidance=False)
        check(f"{family}, pooled embedding, float32", embedding.pooled, pooled, 1e-4)
    else:
        absent |= dict(safety_checker=None, feature_extractor=None, requires_safety_checker=False)
        pipe = StableDiffusionPipeline(**components, **absent)
        expected, _ = pipe.encode_prompt(PROMPTS, "cpu", 1, False)
    check(f"{family}, text, float32", embedding.tokens, expected, 1e-4)
