"""The tensors of the official models, names and shapes, as kept in data/official by independent code (its recipe is
data/make_official_keys.py): every one has its place here, and nothing else has. On the meta device, without weights."""

import gzip
import json
import struct
from pathlib import Path

import pytest
import torch
from parity import SD15_UNET, SD15_VAE, SD21_UNET, SDXL_UNET, on_meta

from minip2p.checkpoints.single_file import SingleFile
from minip2p.config import UNetConfig, VAEConfig
from minip2p.unet import UNet
from minip2p.vae import VAE

DATA = Path(__file__).parent / "data" / "official"
UNETS = {
    "sd15": SD15_UNET,
    "sd21": SD21_UNET,
    "sdxl": SDXL_UNET,
    "instruct": SD15_UNET | {"in_channels": 8},
    "inpaint": SD15_UNET | {"in_channels": 9},
}
V = {"modelspec.prediction_type": "v"}


def official(family):
    return json.loads(gzip.decompress((DATA / f"{family}.json.gz").read_bytes()))


def shapes(module):
    return {name: list(tensor.shape) for name, tensor in module.state_dict().items()}


@pytest.fixture
def hollow(tmp_path):
    """Shapes -> a safetensors file of them in float16, all zeros, of which the disk has but the header."""

    def write(of, said=None):
        header, end = {"__metadata__": said or {}}, 0
        for name, shape in of.items():
            begin, end = end, end + 2 * torch.Size(shape).numel()
            header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [begin, end]}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with open(tmp_path / "hollow.safetensors", "wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(8 + len(text) + end)
        return tmp_path / "hollow.safetensors"

    return write


@pytest.mark.parametrize("family", UNETS)
def test_a_folders_tensors_are_the_official_ones(family):
    want = official(family)["folder"]
    assert shapes(on_meta(UNet, UNetConfig.from_dict(UNETS[family]))) == want["unet"]
    assert shapes(on_meta(VAE, VAEConfig.from_dict(SD15_VAE))) == want["vae"]


@pytest.mark.parametrize("family", UNETS)
def test_a_single_files_tensors_are_the_official_ones(family, hollow):
    """What the file is, is read off it; every tensor of the folder is found in it, in the folder's shape; and each of
    its own is used, but for what may be ignored."""
    data = official(family)
    file = hollow(data["single"] | data["extras"], V if family == "sd21" else None)
    found = SingleFile(file, None)
    unet = UNetConfig.from_dict(UNETS[family])
    ours = UNetConfig.from_dict(found.config("unet"))
    for name in UNetConfig.__dataclass_fields__.keys() - {"upcast_attention"}:  # which no key tells
        a, b = (
            one.per_level(getattr(one, name))
            if name in ("attention_head_dim", "transformer_layers_per_block")
            else getattr(one, name)
            for one in (ours, unet)
        )
        assert a == b, name
    vae = VAEConfig.from_dict(found.config("vae"))
    assert vae.block_out_channels == (128, 256, 512, 512) and vae.layers_per_block == 2
    used = set()
    for part, want in data["folder"].items():
        tensors, where = found.tensors(part)
        shape = {name: list(tensor.shape) for name, tensor in tensors.items()}
        assert shape == {name.removeprefix("text_model."): size for name, size in want.items()}, part
        assert where == file
        used |= set(found.names(part).values())
    unread = set(data["single"]) - used
    if family == "sd21":  # the last layer of the text encoder, its projection
        assert {name.split(".")[4] for name in unread if "resblocks" in name} == {"23"}
        unread = {name for name in unread if "resblocks.23." not in name and not name.endswith("text_projection")}
    assert not unread and used <= set(data["single"])


@pytest.mark.parametrize(
    "family, text",
    [
        (
            "sd15",
            {
                "hidden_size": 768,
                "num_hidden_layers": 12,
                "num_attention_heads": 12,
                "hidden_act": "quick_gelu",
                "intermediate_size": 3072,
                "vocab_size": 49408,
                "eos_token_id": 49407,
                "bos_token_id": 49406,
            },
        ),
        (
            "sd21",
            {
                "hidden_size": 1024,
                "num_hidden_layers": 23,
                "num_attention_heads": 16,
                "hidden_act": "gelu",
                "intermediate_size": 4096,
            },
        ),
        (
            "sdxl",
            {
                "hidden_size": 1280,
                "num_hidden_layers": 32,
                "num_attention_heads": 20,
                "hidden_act": "gelu",
                "intermediate_size": 5120,
                "projection_dim": 1280,
            },
        ),
    ],
)
def test_a_single_files_text_encoder_is_the_official_one(family, text, hollow):
    data = official(family)
    found = SingleFile(hollow(data["single"], V), None)
    config = found.config("text_encoder_2" if family == "sdxl" else "text_encoder")
    assert {name: config[name] for name in text} == text
    assert found.has("text_encoder") and found.has("text_encoder_2") == (family == "sdxl")
    assert found.config("vae")["scaling_factor"] == (0.13025 if family == "sdxl" else 0.18215)
    assert found.config("unet")["sample_size"] == {"sd15": 64, "sd21": 96, "sdxl": 128}[family]
