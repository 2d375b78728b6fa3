"""Small models of each family with random weights, by diffusers and transformers: what our loading is held to."""

import json

import diffusers
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from parity import SD15_VAE, SDXL_UNET, on_meta, share_weights
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from minip2p.io.files import shipped_weights

TOKENIZER = shipped_weights("tiny") / "tokenizer"
SCHEDULER = dict(
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    steps_offset=1,
    clip_sample=False,
    set_alpha_to_one=False,
)
SMALL_VAE = SD15_VAE | dict(
    block_out_channels=[32, 64],
    down_block_types=["DownEncoderBlock2D"] * 2,
    sample_size=32,
    up_block_types=["UpDecoderBlock2D"] * 2,
)
SD1 = dict(
    sample_size=16,
    block_out_channels=[32, 64],
    layers_per_block=2,
    cross_attention_dim=64,
    attention_head_dim=8,
    down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"],
    up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"],
)
SD2 = SD1 | dict(block_out_channels=[64, 128], attention_head_dim=[1, 2], use_linear_projection=True)
XL = SD2 | dict(
    block_out_channels=[64, 64, 128],
    attention_head_dim=[1, 1, 2],
    cross_attention_dim=64 + 128,
    down_block_types=SDXL_UNET["down_block_types"],
    up_block_types=SDXL_UNET["up_block_types"],
    transformer_layers_per_block=[1, 2, 3],
    addition_embed_type="text_time",
    addition_time_embed_dim=8,
    projection_class_embeddings_input_dim=6 * 8 + 128,
)
FAMILIES = {
    "SD 1": (SD1, {}),
    "SD 2 base": (SD2, {}),
    "SD 2, v": (SD2, {"prediction_type": "v_prediction"}),
    "SDXL": (XL, {}),
    "InstructPix2Pix": (SD1 | {"in_channels": 8}, {}),
    "inpainting": (SD1 | {"in_channels": 9}, {}),
    "SD Turbo": (SD2, {"timestep_spacing": "trailing"}),
    "SDXL Turbo": (XL, {"timestep_spacing": "trailing"}),
}


def text_config(act, words, width=64):
    return CLIPTextConfig(
        vocab_size=words,
        hidden_size=width,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=width // 64,
        max_position_embeddings=77,
        hidden_act=act,
        projection_dim=width,
        bos_token_id=words - 2,
        eos_token_id=words - 1,
    )


def parts(family, seed=0):
    """The parts of a small model, as diffusers has them, by the names of its folders."""
    unet, scheduler = FAMILIES[family]
    xl = "addition_embed_type" in unet
    tokenizer = CLIPTokenizer.from_pretrained(TOKENIZER)
    words = len(tokenizer)
    found = {
        "unet": on_meta(UNet2DConditionModel, **unet),
        "vae": on_meta(AutoencoderKL, **SMALL_VAE, **({"scaling_factor": 0.13025} if xl else {})),
        "text_encoder": CLIPTextModel(text_config("gelu" if unet is SD2 else "quick_gelu", words)),
    }
    if xl:
        found["text_encoder_2"] = CLIPTextModelWithProjection(text_config("gelu", words, 128))
    for n, module in enumerate(found.values()):
        share_weights(module, seed=seed + n)
    found |= {"tokenizer": tokenizer, "scheduler": DDIMScheduler(**(SCHEDULER | scheduler))}
    second = CLIPTokenizer.from_pretrained(TOKENIZER, pad_token="!")  # as the official one fills up
    return found | ({"tokenizer_2": second} if xl else {})


def kind(family):
    """The class of the family's pipeline in diffusers."""
    others = {
        "InstructPix2Pix": diffusers.StableDiffusionInstructPix2PixPipeline,
        "inpainting": diffusers.StableDiffusionInpaintPipeline,
    }
    xl = "addition_embed_type" in FAMILIES[family][0]
    plain = diffusers.StableDiffusionXLPipeline if xl else diffusers.StableDiffusionPipeline
    return others.get(family, plain)


def pipeline(family, seed=0):
    """The pipeline of diffusers with them."""
    found = parts(family, seed)
    if "text_encoder_2" in found:
        made = kind(family)(**found, add_watermarker=False)
    else:
        made = kind(family)(**found, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    made.set_progress_bar_config(disable=True)
    return made


def single(folder, file, extra=()):
    """The folder's weights in one file, in the names of the original codes: q, k and v of OpenCLIP joined, its last
    layer there, which Stable Diffusion 2 does not read. extra: of what else old files have."""
    from safetensors.torch import load_file, save_file

    from minip2p.checkpoints.key_maps import compvis_unet_key as of_unet
    from minip2p.checkpoints.key_maps import compvis_vae_key as of_vae
    from minip2p.checkpoints.key_maps import openclip_key as of_openclip
    from minip2p.config import UNetConfig, VAEConfig

    def own(part, stem="model"):
        return load_file(folder / part / f"{stem}.safetensors")

    unet, vae = (
        of.of(json.loads((folder / part / "config.json").read_text()))
        for part, of in (("unet", UNetConfig), ("vae", VAEConfig))
    )
    xl, open_clip = (folder / "text_encoder_2").exists(), unet.use_linear_projection
    found = {
        "model.diffusion_model." + of_unet(name, unet): t for name, t in own("unet", "diffusion_pytorch_model").items()
    }
    for name, t in own("vae", "diffusion_pytorch_model").items():
        matrix = "mid_block.attentions.0.to_" in name and name.endswith("weight")
        found["first_stage_model." + of_vae(name, vae)] = t[:, :, None, None].clone() if matrix else t
    first = "conditioner.embedders.0.transformer." if xl else "cond_stage_model.transformer."
    if not open_clip or xl:
        found |= {
            first + "text_model." + name.removeprefix("text_model."): t for name, t in own("text_encoder").items()
        }
    if open_clip:
        second = own("text_encoder_2" if xl else "text_encoder")
        second = {name.removeprefix("text_model."): t for name, t in second.items()}
        prefix = "conditioner.embedders.1.model." if xl else "cond_stage_model.model."
        joined = {}
        for name, t in second.items():
            joined.setdefault(prefix + of_openclip(name), []).append((name, t))
        for name, several in joined.items():
            by = dict(several)
            ordered = sorted(by, key=lambda ours: "qkv".index(ours.split("_proj")[0][-1])) if len(by) == 3 else list(by)
            found[name] = torch.cat([by[ours] for ours in ordered])
        projection = prefix + "text_projection"
        found[projection] = found[projection].T.contiguous() if projection in found else torch.zeros(64, 64)
        found[prefix + "logit_scale"] = torch.tensor(4.6)
        if not xl:  # the last layer, and its number is the next one's
            last = max(int(name.split(".")[4]) for name in found if ".resblocks." in name and name.startswith(prefix))
            found |= {
                name.replace(f"resblocks.{last}.", f"resblocks.{last + 1}."): t.clone()
                for name, t in found.items()
                if f"{prefix}transformer.resblocks.{last}." in name
            }
    save_file(found | dict(extra), file)


# Of each family, the official tensors in data/official; the distilled ones have those of what they were made of.
OFFICIAL = {
    "SD 1": "sd15",
    "SD 2 base": "sd21",
    "SD 2, v": "sd21",
    "SDXL": "sdxl",
    "InstructPix2Pix": "instruct",
    "inpainting": "inpaint",
    "SD Turbo": "sd21",
    "SDXL Turbo": "sdxl",
}


def table():
    """What loads, as the README has it: of each family that is tested, what it is tested against."""
    lines = [
        "| family | predicts | default guidance | 20 steps as diffusers' | official names, sizes and numbers |",
        "|---|---|---|---|---|",
    ]
    for name, (unet, scheduler) in FAMILIES.items():
        predicts = {"epsilon": "noise", "v_prediction": "v"}[scheduler.get("prediction_type", "epsilon")]
        guidance = 1 if scheduler.get("timestep_spacing") == "trailing" else 5 if "addition_embed_type" in unet else 7.5
        lines.append(f"| {name} | {predicts} | {guidance} | `{kind(name).__name__}` | {OFFICIAL[name]} |")
    return "\n".join(lines)
