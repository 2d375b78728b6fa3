"""Small models of every supported family with random weights, made by diffusers and transformers.

Loading and sampling are compared with the pipelines of diffusers that these models belong to.
"""

import json
import shutil

import diffusers
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from parity import SD15_VAE, SDXL_UNET, on_meta, share_weights
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from minip2p.checkpoints.key_maps import compvis_unet_key, compvis_vae_key, openclip_key
from minip2p.config import UNetConfig, VAEConfig
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
# Name -> the UNet's configuration, and what differs in the scheduler's.
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


# The families that read an image besides the latents.
IMAGE_FAMILIES = ("InstructPix2Pix", "inpainting")
TEXT_FAMILIES = tuple(name for name in FAMILIES if name not in IMAGE_FAMILIES)
# Family -> the official tensors in tests/data/official. Distilled models have those of the models they are made from.
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
PROMPT = "a cat on the beach"


def text_config(act, vocabulary, width=64):
    return CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=width // 64,
        max_position_embeddings=77,
        hidden_act=act,
        projection_dim=width,
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
    )


def make_components(family, seed=0):
    """The components of a small model, as objects of diffusers and transformers, by the names of their folders."""
    unet, scheduler = FAMILIES[family]
    is_xl = "addition_embed_type" in unet
    tokenizer = CLIPTokenizer.from_pretrained(TOKENIZER)
    vocabulary = len(tokenizer)
    components = {
        "unet": on_meta(UNet2DConditionModel, **unet),
        "vae": on_meta(AutoencoderKL, **SMALL_VAE, **({"scaling_factor": 0.13025} if is_xl else {})),
        "text_encoder": CLIPTextModel(text_config("gelu" if unet is SD2 else "quick_gelu", vocabulary)),
    }
    if is_xl:
        components["text_encoder_2"] = CLIPTextModelWithProjection(text_config("gelu", vocabulary, 128))
    for n, module in enumerate(components.values()):
        share_weights(module, seed=seed + n)
    components |= {"tokenizer": tokenizer, "scheduler": DDIMScheduler(**(SCHEDULER | scheduler))}
    if is_xl:
        components["tokenizer_2"] = CLIPTokenizer.from_pretrained(TOKENIZER, pad_token="!")  # as the official one pads
    return components


def pipeline_class(family):
    """The class of the family's pipeline in diffusers."""
    others = {
        "InstructPix2Pix": diffusers.StableDiffusionInstructPix2PixPipeline,
        "inpainting": diffusers.StableDiffusionInpaintPipeline,
    }
    is_xl = "addition_embed_type" in FAMILIES[family][0]
    text_to_image = diffusers.StableDiffusionXLPipeline if is_xl else diffusers.StableDiffusionPipeline
    return others.get(family, text_to_image)


def pipeline(family, seed=0):
    """diffusers' pipeline of a small model."""
    components = make_components(family, seed)
    if "text_encoder_2" in components:
        options = {"add_watermarker": False}
    else:
        options = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    pipe = pipeline_class(family)(**components, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def write_single_file(folder, file):
    """Writes the weights of a model's folder as one file, with the names of the original codebases.

    q, k and v of OpenCLIP are joined, and there is one more layer of it than Stable Diffusion 2 reads.
    """

    def component(name, stem="model"):
        return load_file(folder / name / f"{stem}.safetensors")

    unet, vae = (
        config_class.from_dict(json.loads((folder / name / "config.json").read_text()))
        for name, config_class in (("unet", UNetConfig), ("vae", VAEConfig))
    )
    is_xl, has_openclip = (folder / "text_encoder_2").exists(), unet.use_linear_projection
    tensors = {
        "model.diffusion_model." + compvis_unet_key(name, unet): t
        for name, t in component("unet", "diffusion_pytorch_model").items()
    }
    for name, t in component("vae", "diffusion_pytorch_model").items():
        is_matrix = "mid_block.attentions.0.to_" in name and name.endswith("weight")
        tensors["first_stage_model." + compvis_vae_key(name, vae)] = t[:, :, None, None].clone() if is_matrix else t
    clip_prefix = "conditioner.embedders.0.transformer." if is_xl else "cond_stage_model.transformer."
    if not has_openclip or is_xl:
        for name, t in component("text_encoder").items():
            tensors[clip_prefix + "text_model." + name.removeprefix("text_model.")] = t
    if has_openclip:
        prefix = "conditioner.embedders.1.model." if is_xl else "cond_stage_model.model."
        tensors |= openclip_tensors(component("text_encoder_2" if is_xl else "text_encoder"), prefix)
        if not is_xl:
            tensors |= repeat_last_layer(tensors, prefix + "transformer.resblocks.")
    save_file(tensors, file)


def openclip_tensors(transformers_tensors, prefix):
    """The tensors of a text encoder with the names and shapes of OpenCLIP."""
    joined = {}
    for name, t in transformers_tensors.items():
        name = name.removeprefix("text_model.")
        joined.setdefault(prefix + openclip_key(name), {})[name] = t
    tensors = {}
    for original, by_name in joined.items():
        in_order = (
            sorted(by_name, key=lambda name: "qkv".index(name.split("_proj")[0][-1])) if len(by_name) == 3 else by_name
        )
        tensors[original] = torch.cat([by_name[name] for name in in_order])
    projection = prefix + "text_projection"
    tensors[projection] = tensors[projection].T.contiguous() if projection in tensors else torch.zeros(64, 64)
    tensors[prefix + "logit_scale"] = torch.tensor(4.6)
    return tensors


def repeat_last_layer(tensors, layers_prefix):
    """The tensors of the last layer as those of one more layer."""
    last = max(
        int(name.removeprefix(layers_prefix).split(".")[0]) for name in tensors if name.startswith(layers_prefix)
    )
    old, new = f"{layers_prefix}{last}.", f"{layers_prefix}{last + 1}."
    return {name.replace(old, new): t.clone() for name, t in tensors.items() if name.startswith(old)}


def readme_table():
    """The README's table of the supported families, made from what the tests test."""
    lines = [
        "| family | predicts | default guidance | equals, after 20 steps | official sizes and names |",
        "|---|---|---|---|---|",
    ]
    for name, (unet, scheduler) in FAMILIES.items():
        predicts = {"epsilon": "noise", "v_prediction": "v"}[scheduler.get("prediction_type", "epsilon")]
        guidance = 1 if scheduler.get("timestep_spacing") == "trailing" else 5 if "addition_embed_type" in unet else 7.5
        lines.append(f"| {name} | {predicts} | {guidance} | `{pipeline_class(name).__name__}` | {OFFICIAL[name]} |")
    return "\n".join(lines)


def copy_folder(folder, target):
    shutil.copytree(folder, target)
    return target


REMOVED = object()


def update_json(file, **fields):
    """Changes fields of a JSON file; `REMOVED` as the value removes a field. A link is replaced by a file."""
    content = json.loads(file.read_text()) | fields
    if file.is_symlink():
        file.unlink()
    file.write_text(json.dumps({name: value for name, value in content.items() if value is not REMOVED}))


def same_tensors(a, b, may_lack=()):
    """Whether two modules have equal tensors. may_lack: suffixes of names in b that a need not have."""
    a, b = ({name.removeprefix("text_model."): t for name, t in m.state_dict().items()} for m in (a, b))
    b = {name: t for name, t in b.items() if not name.endswith(tuple(may_lack) or "\0")}
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def same_models(a, b):
    """Whether two of our models have equal tensors in all of their networks."""
    encoders, others = a.text.encoders, b.text.encoders
    return (
        same_tensors(a.unet, b.unet)
        and same_tensors(a.vae, b.vae)
        and encoders.keys() == others.keys()
        and all(same_tensors(encoders[name], others[name]) for name in encoders)
    )


def smooth_picture(seed=0):
    """A random picture without sharp edges, 3 32 32 in [-1, 1]."""
    g = torch.Generator().manual_seed(seed)
    return F.interpolate(torch.rand(1, 3, 4, 4, generator=g) * 2 - 1, (32, 32), mode="bilinear")[0]
