"""The structure distance of Tumanyan et al. (2022, splicing ViT features), by a DINO (Caron et al. 2021) of the user's.

Axes: images are 3 H W in [-1, 1]; n patches, c channels.
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from minip2p.io.files import plain_text_folder
from minip2p.io.tensors import fingerprint
from minip2p.metrics.image import structure
from minip2p.metrics.pretrained import load_network, named_errors

SIDE, MAX_SIDE = 224, 480  # pixels: of the shorter side that DINO sees, and at most of the longer one
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of photographs, for channels in [0, 1]


class DinoStructure:
    """The structure distance of two images as PIE-Bench's published code measures it.

    Structure is the self-similarity of the keys of the last self-attention. The images are 224 pixels high or wide,
    scaled bilinearly without antialiasing. Their channels go from 0 to 255 where DINO's normalization expects 0 to 1:
    the published figures come from that.

    where: a folder with a ViTModel as transformers saves it, for PIE-Bench's figures DINO's ViT-B/8
    (facebook/dino-vitb8), or its name on the hub. Only safetensors are read.
    Raises FileNotFoundError or ValueError with one line that names the folder.
    """

    def __init__(self, where: str | Path):
        from transformers import ViTConfig, ViTModel

        folder = Path(where)
        is_local = folder.exists() or folder.parent.exists() or len(folder.parts) != 2
        if is_local and not (folder / "model.safetensors").is_file():
            raise FileNotFoundError(f"{where}: no DINO; its folder has model.safetensors and config.json")
        with named_errors(where, "a ViT"):
            if is_local:
                with plain_text_folder(folder, ["config.json"]) as texts:
                    config = ViTConfig.from_pretrained(texts)
            else:
                config = ViTConfig.from_pretrained(where)
        load: Any = ViTModel.from_pretrained
        options = dict(config=config, add_pooling_layer=False, local_files_only=is_local)
        self.model = load_network(where, "a ViT", load, **options)

    @property
    def name(self) -> str:
        """A name that tells this DINO from others, by a fingerprint of its weights."""
        return f"dino {fingerprint([self.model])}"

    def __call__(self, source: Tensor, edited: Tensor) -> float:
        """The structure distance of two images."""
        return structure(self.keys(source), self.keys(edited))

    @torch.no_grad()
    def keys(self, image: Tensor) -> Tensor:
        """The keys of the last self-attention, n+1 c with the class token first."""
        mean, deviation = (torch.tensor(values)[:, None, None] for values in (MEAN, DEVIATION))
        pixels = F.interpolate((image[None].float().cpu() + 1) * 127.5, resized(image.shape[1:]), mode="bilinear")
        inputs = (pixels - mean) / deviation
        hidden = self.model(inputs, output_hidden_states=True, interpolate_pos_encoding=True).hidden_states[-2]
        # transformers 5 has other names for the layers than the releases before it.
        layer = self.model.layers[-1] if hasattr(self.model, "layers") else self.model.encoder.layer[-1]
        key = layer.attention.k_proj if hasattr(layer.attention, "k_proj") else layer.attention.attention.key
        return key(layer.layernorm_before(hidden))[0]


def resized(size: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns as torchvision's Resize(SIDE, max_size=MAX_SIDE) makes them."""
    short, long = SIDE, int(SIDE * max(size) / min(size))
    if long > MAX_SIDE:
        short, long = int(MAX_SIDE * short / long), MAX_SIDE
    return (long, short) if size[0] > size[1] else (short, long)
