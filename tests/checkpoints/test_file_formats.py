"""Files that are something else than a model are named: one sentence for each kind, and nothing is unpickled."""

import pickle
import shutil

import pytest
import torch
from diffusers.loaders import single_file_utils
from families import copy_folder, update_json
from safetensors.torch import load_file, save_file

import minip2p
from minip2p.checkpoints.file_formats import KINDS, check_format, check_kind
from minip2p.io.tensors import read_tensors

FILES = {
    "git-lfs pointer": (
        "a.safetensors",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
        "is a git-lfs po",
    ),
    "HTML": ("a.safetensors", b"\n<!DOCTYPE html><html><body>Sign in", "is an HTML page, not the file itself"),
    "HTML without a doctype": ("a.safetensors", b"<HTML>", "is an HTML page"),
    "JSON": ("a.safetensors", b'{"error": "Unauthorized"}', "is JSON text, not the file itself"),
    "GGUF": ("a.safetensors", b"GGUF\x03\0\0\0", "is a GGUF file"),
    "GGUF by its suffix": ("a.gguf", b"", "is a GGUF file"),
    "ONNX": ("a.onnx", b"\x08\x08", "is an ONNX file"),
    "a pickle": ("a.safetensors", pickle.dumps({}), "is a pickle"),
    "torch's archive": ("a.safetensors", b"PK\x03\x04", "is a pickle"),
    "bin": ("a.bin", b"", "is a pickle, which can run any program"),
    "pt": ("a.pt", b"", "is a pickle, which can run any program"),
    "ckpt": ("a.ckpt", b"", "is a pickle, which can run any program"),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_of_another_format_is_named(family, tmp_path, kind):
    name, content, message = FILES[kind]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}: {message}") as error:
        minip2p.load(tmp_path / name, config=family("SD 1")[1])
    assert "\n" not in str(error.value)


def test_a_file_of_another_format_in_a_folder_is_named(family, tmp_path):
    folder = copy_folder(family("SD 1")[1], tmp_path / "model")
    file = folder / "unet/diffusion_pytorch_model.safetensors"
    file.write_bytes(FILES["git-lfs pointer"][1])
    with pytest.raises(ValueError, match="model.safetensors: is a git-lfs pointer, not the file itself: run git lfs"):
        minip2p.load(folder)


def test_safetensors_pass(family):
    check_format(family("SD 1")[2])
    check_kind(family("SD 1")[2], load_file(family("SD 1")[2]))


# A name for each of `KINDS`, in the same order.
NAMES = [
    ["scaled_fp8", "model.diffusion_model.input_blocks.1.1.proj_in.scale_weight", "a.input_scale", "a.comfy_quant"],
    ["model.diffusion_model.out.2.weight.absmax", "a.weight.quant_state.bitsandbytes__nf4"],
    ["lora_unet_mid_block.alpha", "unet.a.lora_A.weight", "a.hada_w1_a", "a.lokr_w1", "lora_te1_a.lora_up.weight"],
    ["edm_mean", "edm_std", "edm_vpred.sigma_max"],
    ["model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight", "joint_blocks.0.a"],
    ["model.diffusion_model.double_blocks.0.img_attn.norm.key_norm.scale"],
    ["control_model.time_embed.0.weight", "input_hint_block.0.weight", "controlnet_cond_embedding.conv_in.weight"],
    ["model.diffusion_model.input_blocks.1.1.time_stack.0.norm1.bias", "down_blocks.0.motion_modules.0.a"],
    ["cc_projection.weight"],
    ["noise_augmentor.data_mean", "low_scale_model.betas", "embedder.model.visual.proj"],
    ["down_blocks.1.0.channelwise.0.weight", "clip_txt_mapper.weight", "clip_mapper.bias"],
    ["taesd_decoder.1.weight"],
    ["emb_params", "clip_l", "clip_g", "string_to_param.*"],
]


@pytest.mark.parametrize("pattern, names", list(zip(KINDS, NAMES, strict=True)))
def test_every_kind_of_file_that_is_not_supported_is_named(family, tmp_path, pattern, names):
    for name in names:
        with pytest.raises(ValueError) as error:
            check_kind(tmp_path / "a.safetensors", [*load_file(family("SDXL")[2]), name])
        text = str(error.value)
        assert text.startswith(f"{tmp_path / 'a.safetensors'}: {KINDS[pattern]}") and text.endswith(f"(it has {name})")


@pytest.mark.parametrize("kind", [*single_file_utils.CHECKPOINT_KEY_NAMES])
def test_no_model_that_diffusers_tells_apart_is_taken_for_a_unet(tmp_path, kind):
    """By the tensor that diffusers knows each kind by. Those of Stable Diffusion are not refused by it."""
    names = single_file_utils.CHECKPOINT_KEY_NAMES[kind]
    for name in [names] if isinstance(names, str) else names:
        try:
            check_kind(tmp_path / "a", [name, "cond_stage_model.x"])
        except ValueError as error:
            assert kind not in STABLE_DIFFUSION and ("not supported" in str(error) or kind in PARTS_OF_A_UNET), error


STABLE_DIFFUSION = ("v1", "v2", "xl_base", "inpainting", "instruct-pix2pix", "clip", "clip_sdxl", "open_clip")
# Of these diffusers looks at names that the UNet of Stable Diffusion XL has as well.
PARTS_OF_A_UNET = ("controlnet_xl_large", "controlnet_xl_mid")


@pytest.mark.parametrize("name", ["head.modulation", "patchify_proj.weight", "layers.0.adaLN_modulation.0.weight"])
def test_another_network_in_the_place_of_the_unet_is_named(tmp_path, name):
    message = f"its network is not the UNet of Stable Diffusion 1, 2 or XL, .* .it has model.diffusion_model.{name}"
    with pytest.raises(ValueError, match=message):
        check_kind(tmp_path / "a.safetensors", [f"model.diffusion_model.{name}"])


def test_a_unet_alone_is_named(family, tmp_path):
    for names in (
        [name for name in load_file(family("SD 1")[2]) if name.startswith("model.diffusion_model.")],
        ["input_blocks.0.0.weight", "out.2.weight"],
        ["conv_in.weight", "down_blocks.0.resnets.0.conv1.weight"],
    ):
        save_file({name: torch.ones(1) for name in names}, tmp_path / "unet.safetensors")
        with pytest.raises(ValueError, match="is a UNet alone: minip2p loads whole checkpoints"):
            minip2p.load(tmp_path / "unet.safetensors", config=family("SD 1")[1])


def test_the_refiner_is_named(family, tmp_path):
    """It has the second text encoder of Stable Diffusion XL in the place of the first."""
    renamed = {
        name.replace("conditioner.embedders.1.", "conditioner.embedders.0."): t
        for name, t in load_file(family("SDXL")[2]).items()
        if not name.startswith("conditioner.embedders.0.")
    }
    save_file(renamed, tmp_path / "refiner.safetensors")
    with pytest.raises(ValueError, match=r"refiner.safetensors: is the refiner of Stable Diffusion XL"):
        minip2p.load(tmp_path / "refiner.safetensors", config=family("SDXL")[1])


def test_the_refiners_folder_is_named(family, tmp_path):
    """Its UNet reads the second text encoder alone. A folder that merely lacks the first one is told so."""
    folder = copy_folder(family("SDXL")[1], tmp_path / "refiner")
    shutil.rmtree(folder / "text_encoder")
    with pytest.raises(FileNotFoundError, match="text_encoder/config.json"):
        minip2p.load(folder)
    shutil.rmtree(folder / "tokenizer")
    update_json(folder / "unet/config.json", cross_attention_dim=128)
    with pytest.raises(ValueError, match="refiner: is the refiner of Stable Diffusion XL, which only finishes"):
        minip2p.load(folder)


@pytest.mark.parametrize("name", ["nowhere.safetensors", "models/nowhere.safetensors", "nowhere.ckpt"])
def test_a_missing_file_is_a_missing_file(family, tmp_path, monkeypatch, name):
    """It is neither called a folder nor looked for on the hub."""
    monkeypatch.chdir(tmp_path)
    for options in ({}, {"config": family("SD 1")[1]}):
        with pytest.raises(FileNotFoundError, match=f"^{name}: no such file$"):
            minip2p.load(name, **options)
    with pytest.raises(FileNotFoundError, match=f"^{name}: no such file$"):
        minip2p.load(family("SD 1")[1], vae=name)


@pytest.mark.parametrize("suffix", [".ckpt", ".bin", ".pt", ".gguf"])
def test_safetensors_under_another_suffix_is_read(family, tmp_path, suffix):
    file = (tmp_path / "model").with_suffix(suffix)
    file.symlink_to(family("SD 1")[2])
    renamed, named = (minip2p.load(path, config=family("SD 1")[1]) for path in (file, family("SD 1")[2]))
    assert renamed.components.fingerprint == named.components.fingerprint


@pytest.mark.parametrize("length", [0x0280, 0x0380, 0x0480, 0x0580])
def test_a_header_whose_length_looks_like_the_start_of_a_pickle_is_no_pickle(tmp_path, length):
    header = b'{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'.ljust(length)
    (tmp_path / "a.safetensors").write_bytes(length.to_bytes(8, "little") + header)
    check_format(tmp_path / "a.safetensors")
    assert read_tensors(tmp_path / "a.safetensors")["a"].shape == (0,)
