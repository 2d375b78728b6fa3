"""The tensors of the official models, names and shapes, have their place here, and nothing else has.

They are in tests/data/official, written by independent code (its recipe is data/make_official_keys.py). All modules are
on the meta device, without weights.
"""

import gzip
import json
import re

import pytest
import torch
from official_models import tool_row, tools
from parity import OFFICIAL_UNETS, SD15_VAE, on_meta
from paths import DATA
from safetensors.torch import save_file

from minip2p.checkpoints import single_file
from minip2p.checkpoints.key_maps import (
    CLIP_PREFIXES,
    SCHEDULE_BUFFERS,
    UNET_PREFIX,
    UNREAD,
    VAE_ATTENTION,
    VAE_ATTENTION_ALTERNATIVES,
    VAE_PREFIXES,
    compvis_unet_key,
    compvis_vae_key,
    is_ignored,
    openclip_key,
    projection_shape,
    vae_attention_names,
)
from minip2p.checkpoints.single_file import SingleFile, is_last_layer
from minip2p.config import SchedulerConfig, UNetConfig, VAEConfig
from minip2p.sched import DDIMScheduler
from minip2p.unet import UNet
from minip2p.vae import VAE

SCHEDULER = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
V_PREDICTION = {"modelspec.prediction_type": "v"}


def official(family):
    return json.loads(gzip.decompress((DATA / "official" / f"{family}.json.gz").read_bytes()))


def shapes(module):
    return {name: list(tensor.shape) for name, tensor in module.state_dict().items()}


@pytest.fixture
def open_single_file(tmp_path, monkeypatch):
    """Opens a single file that has tensors of these shapes, but no numbers: they are on the meta device."""

    def open_file(tensor_shapes, metadata=None):
        file = tmp_path / "meta.safetensors"
        save_file({"empty": torch.zeros(1)}, file, metadata)
        tensors = {name: torch.empty(shape, device="meta") for name, shape in tensor_shapes.items()}
        schedule = DDIMScheduler(SchedulerConfig.from_dict(SCHEDULER)).alphas_cumprod  # which is compared, in numbers
        before = torch.cat([torch.ones(1), schedule[:-1]])
        for name, values in (("alphas_cumprod", schedule), ("betas", 1 - schedule / before)):
            if name in tensors:
                tensors[name] = values
        monkeypatch.setattr(single_file, "read_tensors", lambda path, *how: tensors)
        return SingleFile(file, None)

    return open_file


@pytest.mark.parametrize("family", OFFICIAL_UNETS)
def test_the_tensors_of_a_folder_are_the_official_ones(family):
    expected = official(family)["folder"]
    assert shapes(on_meta(UNet, UNetConfig.from_dict(OFFICIAL_UNETS[family]))) == expected["unet"]
    assert shapes(on_meta(VAE, VAEConfig.from_dict(SD15_VAE))) == expected["vae"]


@pytest.mark.parametrize("family", OFFICIAL_UNETS)
def test_the_tensors_of_a_single_file_are_the_official_ones(family, open_single_file):
    """The configuration is inferred from the file; it has every tensor of the folder, in the folder's shape; and every
    tensor that it has is used, except for those that may be ignored."""
    data = official(family)
    file = open_single_file(data["single"] | data["extras"], V_PREDICTION if family == "sd21" else None)
    official_unet = UNetConfig.from_dict(OFFICIAL_UNETS[family])
    unet = UNetConfig.from_dict(file.config("unet"))
    for name in UNetConfig.__dataclass_fields__.keys() - {"upcast_attention"}:  # which no tensor tells
        values = [getattr(config, name) for config in (unet, official_unet)]
        if name in ("attention_head_dim", "transformer_layers_per_block"):
            values = [unet.per_level(value) for value in values]
        assert values[0] == values[1], name
    vae = VAEConfig.from_dict(file.config("vae"))
    assert vae.block_out_channels == (128, 256, 512, 512) and vae.layers_per_block == 2
    used = set()
    for component, expected in data["folder"].items():
        tensors, location = file.tensors(component, torch.float32)
        tensor_shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
        assert tensor_shapes == {name.removeprefix("text_model."): shape for name, shape in expected.items()}, component
        assert location == file.location
        used |= set(file.original_names(component).values())
    unread = set(data["single"]) - used
    if family == "sd21":  # it does not read the text encoder's last layer and its projection
        assert {name.split(".")[4] for name in unread if "resblocks" in name} == {"23"}
        unread = {name for name in unread if "resblocks.23." not in name and not name.endswith("text_projection")}
    assert not unread and used <= set(data["single"])


@pytest.mark.parametrize("tool", ["diffusers", "kohya", "OneTrainer", "ComfyUI"])
def test_every_tensor_of_a_tools_whole_checkpoints_is_read_or_passed_over(tool, open_single_file):
    """As the tools' own converters write them for the official sizes; docs/models.md has the counts."""
    counts = {"read": 0, "passed over": 0}
    for name, by_family in tools()["checkpoints"].items():
        if name.partition(",")[0] != tool:
            continue
        for family, difference in by_family.items():
            data = official(family)
            names = {n: s for n, s in data["single"].items() if n not in difference["less"]} | difference["more"]
            file = open_single_file(names, V_PREDICTION if family == "sd21" else None)
            used = set()
            for component, expected in data["folder"].items():
                tensors, _ = file.tensors(component, torch.float32)
                assert {n: list(t.shape) for n, t in tensors.items()} == {
                    n.removeprefix("text_model."): shape for n, shape in expected.items()
                }
                used |= set(file.original_names(component).values())
            others = names.keys() - used
            layers = file.text_layers("text_encoder")
            assert all(is_ignored(n) or is_last_layer(n, layers) for n in others)
            counts["read"] += len(used)
            counts["passed over"] += len(others)
    assert tool_row(tool)[3:] == [counts["read"], counts["passed over"]]


TEXT_CONFIGS = {
    "sd15": {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "hidden_act": "quick_gelu",
        "intermediate_size": 3072,
        "vocab_size": 49408,
        "eos_token_id": 49407,
        "bos_token_id": 49406,
    },
    "sd21": {
        "hidden_size": 1024,
        "num_hidden_layers": 23,
        "num_attention_heads": 16,
        "hidden_act": "gelu",
        "intermediate_size": 4096,
    },
    "sdxl": {
        "hidden_size": 1280,
        "num_hidden_layers": 32,
        "num_attention_heads": 20,
        "hidden_act": "gelu",
        "intermediate_size": 5120,
        "projection_dim": 1280,
    },
}


@pytest.mark.parametrize("family", TEXT_CONFIGS)
def test_the_text_encoder_of_a_single_file_is_the_official_one(family, open_single_file):
    """Of SDXL, the second one. Also the VAE's scaling factor and the size of pictures, which no shape tells."""
    file = open_single_file(official(family)["single"], V_PREDICTION)
    config = file.config("text_encoder_2" if family == "sdxl" else "text_encoder")
    assert {name: config[name] for name in TEXT_CONFIGS[family]} == TEXT_CONFIGS[family]
    assert file.has("text_encoder") and file.has("text_encoder_2") == (family == "sdxl")
    assert file.config("vae")["scaling_factor"] == (0.13025 if family == "sdxl" else 0.18215)
    assert file.config("unet")["sample_size"] == {"sd15": 64, "sd21": 96, "sdxl": 128}[family]


# Names that tools write besides those of the original code

# What is not read, by the groups of `UNREAD`: a name for each of its patterns, in the same order.
UNREAD_NAMES = [
    [f"model.{name}" for name in SCHEDULE_BUFFERS],
    ["logvar", "scale_factor", "global_step", "epoch", "denoiser.sigmas"],
    ["v_pred", "ztsnr"],
    ["model_ema.diffusion_modelinput_blocks00weight", "first_stage_model.model_ema.decay"],
    ["loss.perceptual_loss.net.slice1.0.weight", "first_stage_model.loss.discriminator.main.0.weight"],
    ["cond_stage_model.transformer.text_model.embeddings.position_ids"],
    ["conditioner.embedders.1.model.logit_scale", "logit_scale"],
    ["cond_stage_model.model.attn_mask"],
    [
        "cond_stage_model.model.visual.transformer.resblocks.0.ln_1.weight",
        "cond_stage_model.transformer.vision_model.encoder.layers.0.mlp.fc1.weight",
    ],
    ["conditioner.embedders.0.transformer.text_projection.weight", "cond_stage_model.model.text_projection"],
    ["safety_checker.vision_model.vision_model.embeddings.class_embedding"],
    ["embedding_manager.embedder.transformer.text_model.final_layer_norm.bias"],
]
READ_NAMES = [
    "model.diffusion_model.input_blocks.0.0.weight",
    "first_stage_model.encoder.conv_in.weight",
    "vae.decoder.conv_in.weight",
    "cond_stage_model.transformer.text_model.final_layer_norm.bias",
    "cond_stage_model.model.positional_embedding",
    "conditioner.embedders.1.model.text_projection",
    "conditioner.embedders.1.model.text_projection.weight",
    "conditioner.embedders.0.model.ln_final.weight",
]
FAMILIAR_STRANGERS = ["betas.weight", "model.diffusion_model.loss.weight", "lossy.weight", "xv_pred", "v_pred.weight"]


def test_every_pattern_of_what_is_not_read_knows_its_name_and_no_weight():
    """In both directions: each pattern matches the name that a tool writes, and none matches a weight that is read."""
    for patterns, names in zip(UNREAD.values(), UNREAD_NAMES, strict=True):
        for pattern, name in zip(patterns, names, strict=True):
            assert re.fullmatch(pattern, name) and is_ignored(name), name
    assert not any(is_ignored(name) for name in READ_NAMES + FAMILIAR_STRANGERS)
    assert all(is_ignored(name) for name in SCHEDULE_BUFFERS)


@pytest.mark.parametrize("family", OFFICIAL_UNETS)
def test_no_official_weight_is_ignored(family):
    read = [n for n in official(family)["single"] if not n.endswith("model.text_projection")]
    assert not any(is_ignored(name) for name in read)


def test_the_vaes_attention_is_known_under_every_name():
    """The names of the original code, and all that kohya's converter and diffusers of both generations write."""
    assert set(VAE_ATTENTION_ALTERNATIVES) == set(VAE_ATTENTION.values())
    for original, others in VAE_ATTENTION_ALTERNATIVES.items():
        names = vae_attention_names(f"encoder.mid.attn_1.{original}.weight")
        assert names == tuple(f"encoder.mid.attn_1.{name}.weight" for name in (original, *others))
    assert vae_attention_names("encoder.mid.block_1.norm1.weight") == ("encoder.mid.block_1.norm1.weight",)


@pytest.mark.parametrize("is_linear", [True, False])
def test_a_projection_is_a_matrix_or_a_convolution_of_the_same_numbers(is_linear):
    matrix = torch.randn(3, 5)
    expected = matrix if is_linear else matrix[:, :, None, None]
    for stored in (matrix, matrix[:, :, None, None]):
        assert torch.equal(projection_shape(stored, is_linear), expected)
    odd = torch.randn(3, 5, 3, 3)  # not 1 x 1: left as it is, for the check of shapes to refuse
    assert projection_shape(odd, is_linear).shape == odd.shape


# Against diffusers' own converter


def test_every_name_of_diffusers_converter_is_ours():
    """The layers, the prefixes and the ignored names of its single_file_utils, as far as they concern these models."""
    from diffusers.loaders import single_file_utils as diffusers_names

    mapping = diffusers_names.DIFFUSERS_TO_LDM_MAPPING
    unet, vae = UNetConfig.from_dict(OFFICIAL_UNETS["sdxl"]), VAEConfig.from_dict(SD15_VAE)
    layers = mapping["unet"]["layers"] | mapping["unet"]["addition_embed_type"]
    assert {name: compvis_unet_key(name, unet) for name in layers} == layers
    assert {name: compvis_vae_key(name, vae) for name in mapping["vae"]} == mapping["vae"]
    openclip = mapping["openclip"]["layers"]
    assert {name: openclip_key(name.removeprefix("text_model.")) for name in openclip} == openclip
    assert set(diffusers_names.LDM_VAE_KEYS) == set(VAE_PREFIXES)
    assert diffusers_names.LDM_UNET_KEY == UNET_PREFIX
    assert set(diffusers_names.LDM_CLIP_PREFIX_TO_REMOVE) == set(CLIP_PREFIXES["text_encoder"])
    for name in diffusers_names.SD_2_TEXT_ENCODER_KEYS_TO_IGNORE:
        assert is_last_layer(name, 23) or is_ignored(name), name
    counts = [len(names) for names in (layers, mapping["vae"], openclip)]
    assert counts == [14, 16, 5] and len(diffusers_names.SD_2_TEXT_ENCODER_KEYS_TO_IGNORE) == 13
