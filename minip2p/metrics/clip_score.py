"""How well an image fits a prompt, by a CLIP (Radford et al. 2021) in a folder of the user's, run by transformers.

Axes: images are 3 H W in [-1, 1], masks H W bool; n patches, c channels.
"""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minip2p.io.files import TOKENIZER_FILES, plain_text_folder
from minip2p.io.images import to_pil
from minip2p.io.tensors import fingerprint
from minip2p.metrics.pretrained import load_network, named_errors

CONFIG_FILES = (
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
)  # of a CLIP, next to its tokenizer's


class ClipScore:
    """CLIP's similarity of an image and a prompt.

    folder: a CLIPModel and its processor, as transformers saves them.
    Raises FileNotFoundError or ValueError with one line that names the folder.
    """

    def __init__(self, folder: str | Path):
        if not (Path(folder) / "model.safetensors").is_file():
            raise FileNotFoundError(
                f"{folder}: no CLIP; its folder has model.safetensors, config.json, "
                "preprocessor_config.json and a tokenizer"
            )
        from transformers import CLIPConfig, CLIPModel, CLIPProcessor

        with plain_text_folder(Path(folder), (*TOKENIZER_FILES, *CONFIG_FILES)) as texts:
            with named_errors(folder, "a CLIP"):
                self.processor: Any = CLIPProcessor.from_pretrained(texts, local_files_only=True)
                config = CLIPConfig.from_pretrained(texts)
            load: Any = CLIPModel.from_pretrained
            self.model = load_network(folder, "a CLIP", load, config=config, local_files_only=True)

    @property
    def name(self) -> str:
        """A name that tells this CLIP from others, by a fingerprint of its weights."""
        return f"clip {fingerprint([self.model])}"

    @torch.no_grad()
    def __call__(self, image: Tensor, prompt: str) -> float:
        """CLIPScore 100 max(cos, 0) of the embeddings of image and prompt (Hessel et al. 2021, with w = 100)."""
        inputs = self.processor(
            text=[prompt], images=[to_pil(image)], return_tensors="pt", padding=True, truncation=True
        )
        out = self.model(**inputs)
        return 100 * max(0.0, float(torch.cosine_similarity(out.image_embeds, out.text_embeds)))

    @torch.no_grad()
    def features(self, image: Tensor) -> Tensor:
        """The features of an image's patches in the last layer, n c, without the class token."""
        inputs = self.processor(images=[to_pil(image)], return_tensors="pt")
        return self.model.vision_model(**inputs).last_hidden_state[0, 1:]

    def score(self, before: Tensor, after: Tensor, source: str, target: str, mask: Tensor | None) -> dict[str, float]:
        """CLIPScores with the target prompt, as a `Score` of `minip2p.sweeps.sweep`.

        "clip": of the edited image. "clip_inside": of the edited image with black outside of the mask, as in PIE-Bench;
        NaN without a mask. "clip_before": of the source image, for comparison.
        """
        inside = math.nan if mask is None else self(torch.where(mask, after, -1.0), target)
        return {"clip": self(after, target), "clip_inside": inside, "clip_before": self(before, target)}
