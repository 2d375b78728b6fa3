"""The structure distance by DINO against the published formula written out, and folders that are something else."""

import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import ViTConfig, ViTModel

from minip2p.metrics.dino import DinoStructure, resized

WIDTH, HEADS, LAYERS, PATCH = 24, 3, 2, 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a small ViT of random weights that sees 224 × 224 pixels, as DINO's do."""
    path = tmp_path_factory.mktemp("dino")
    config = ViTConfig(
        hidden_size=WIDTH,
        num_attention_heads=HEADS,
        num_hidden_layers=LAYERS,
        intermediate_size=48,
        patch_size=PATCH,
        image_size=224,
        initializer_range=0.2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ViTModel(config, add_pooling_layer=False).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def images():
    g = torch.Generator().manual_seed(1)
    a, b = torch.randint(0, 256, (2, 3, 300, 300), generator=g)
    return a / 127.5 - 1, (a + (b - a) * (torch.arange(300) > 100)) / 127.5 - 1


def literal_resize(x):
    """Bilinear, without antialiasing, to 224 × 224: pixel centres at (i + 1/2) · scale − 1/2. H W 3 float64."""
    for axis in (0, 1):
        size = x.shape[axis]
        at = np.clip((np.arange(224) + 0.5) * size / 224 - 0.5, 0, size - 1)
        low = np.floor(at).astype(int)
        weight = (at - low).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        x = np.take(x, low, axis) * (1 - weight) + np.take(x, np.minimum(low + 1, size - 1), axis) * weight
    return x


def literal_keys(image, w):
    """The keys of the last layer as the published code takes them from q, k and v of one matrix, h n d, in float64."""
    pixels = literal_resize(((image + 1) * 127.5).permute(1, 2, 0).double().numpy())
    x = torch.from_numpy((pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]).permute(2, 0, 1)[None]
    x = F.conv2d(x, *pair(w, "embeddings.patch_embeddings.projection"), stride=PATCH).flatten(2).mT
    x = torch.cat([w["embeddings.cls_token"], x], 1) + w["embeddings.position_embeddings"]
    tokens = x.shape[1]
    for n in range(LAYERS):
        layer = f"encoder.layer.{n}"
        normed = F.layer_norm(x, (WIDTH,), *pair(w, f"{layer}.layernorm_before"), eps=1e-12)
        parts = [pair(w, f"{layer}.attention.attention.{name}") for name in ("query", "key", "value")]
        qkv = F.linear(normed, *(torch.cat(group) for group in zip(*parts, strict=True)))
        q, k, v = qkv.reshape(tokens, 3, HEADS, WIDTH // HEADS).permute(1, 2, 0, 3)
        mixed = ((q @ k.mT / (WIDTH // HEADS) ** 0.5).softmax(-1) @ v).permute(1, 0, 2).reshape(1, tokens, WIDTH)
        x = x + F.linear(mixed, *pair(w, f"{layer}.attention.output.dense"))
        normed = F.layer_norm(x, (WIDTH,), *pair(w, f"{layer}.layernorm_after"), eps=1e-12)
        hidden = F.gelu(F.linear(normed, *pair(w, f"{layer}.intermediate.dense")))
        x = x + F.linear(hidden, *pair(w, f"{layer}.output.dense"))
    return k


def pair(w, name):
    return w[f"{name}.weight"], w[f"{name}.bias"]


def literal_similarity(keys):
    """The self-similarity of the heads' keys side by side, cosines with a floor of 1e-8 below them."""
    x = keys.transpose(0, 1).reshape(keys.shape[1], -1)
    norm = x.norm(dim=1, keepdim=True)
    return x @ x.T / (norm @ norm.T).clamp(min=1e-8)


def test_the_structure_distance_is_the_published_formula(folder, images):
    """Float32 against float64: 1e-4 relative."""
    weights = {name: tensor.double() for name, tensor in load_file(folder / "model.safetensors").items()}
    a, b = (literal_similarity(literal_keys(image, weights)) for image in images)
    expected = ((a - b) ** 2).mean().item()
    dino = DinoStructure(folder)
    assert dino(*images) == pytest.approx(expected, rel=1e-4) and expected > 1e-4
    assert dino(images[0], images[0]) == 0


@pytest.mark.parametrize(
    "size, expected",
    [
        ((512, 512), (224, 224)),
        ((300, 200), (336, 224)),
        ((640, 200), (480, 150)),
        ((200, 640), (150, 480)),
    ],
)
def test_sizes_are_those_of_torchvisions_resize(size, expected):
    """Measured with torchvision 0.29: Resize(224, max_size=480)."""
    assert resized(size) == expected


def test_other_sizes_than_square_ones_have_a_distance_too(folder, images):
    assert DinoStructure(folder)(*(image[:, :200] for image in images)) > 0


def test_a_folder_without_a_vit_is_refused_in_one_line(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="no DINO; its folder has model.safetensors and config.json"):
        DinoStructure(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="cannot be read as a ViT") as error:
        DinoStructure(tmp_path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def test_missing_weights_are_refused_and_other_weights_have_another_name(folder, tmp_path):
    """transformers alone would initialize missing weights at random. A pooler, which is not needed, may be there."""
    shutil.copytree(folder, tmp_path / "other")
    weights = load_file(folder / "model.safetensors")
    weights["embeddings.cls_token"] += 1
    weights["pooler.dense.weight"] = torch.zeros(WIDTH, WIDTH)
    save_file(weights, tmp_path / "other" / "model.safetensors", {"format": "pt"})
    assert DinoStructure(tmp_path / "other").name != DinoStructure(folder).name == DinoStructure(folder).name
    del weights["encoder.layer.1.attention.attention.key.bias"]
    save_file(weights, tmp_path / "other" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="is missing or has another shape"):
        DinoStructure(tmp_path / "other")
