"""How well a picture fits a prompt, by a CLIP (Radford et al. 2021) in a folder of the user's, run by transformers.

Pictures are 3 H W in [-1, 1], masks H W bool.
"""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minip2p.io.images import to_pil
from minip2p.io.tensors import fingerprint


class ClipScore:
    """CLIP's similarity of pictures and prompts. folder: as transformers saves a CLIPModel and its processor."""

    def __init__(self, folder: str | Path):
        """Raises FileNotFoundError or ValueError with one line that names the folder."""
        if not (Path(folder) / "model.safetensors").is_file():
            raise FileNotFoundError(
                f"{folder}: no CLIP; its folder has model.safetensors, config.json, "
                "preprocessor_config.json and a tokenizer"
            )
        from transformers import CLIPModel, CLIPProcessor

        try:
            self.processor: Any = CLIPProcessor.from_pretrained(folder, local_files_only=True)
            load: Any = CLIPModel.from_pretrained
            model, said = load(folder, local_files_only=True, use_safetensors=True, output_loading_info=True)
        except Exception as error:  # transformers' errors have no class in common, and may be pages
            raise ValueError(f"{folder}: cannot be read as a CLIP ({' '.join(str(error).split())[:200]})") from None
        if odd := sorted(map(str, {*said["missing_keys"], *said["mismatched_keys"]})):
            raise ValueError(f"{folder}: {odd[0]} is missing or of another shape; and {len(odd) - 1} more")
        self.model: Any = model.eval()

    @property
    def name(self) -> str:
        """Tells one CLIP from another."""
        return f"clip {fingerprint([self.model])}"

    @torch.no_grad()
    def __call__(self, picture: Tensor, prompt: str) -> float:
        """100 max(cos, 0) of the picture's and the prompt's embeddings (Hessel et al. 2021, w = 100)."""
        given = self.processor(
            text=[prompt], images=[to_pil(picture)], return_tensors="pt", padding=True, truncation=True
        )
        out = self.model(**given)
        return 100 * max(0.0, float(torch.cosine_similarity(out.image_embeds, out.text_embeds)))

    @torch.no_grad()
    def features(self, picture: Tensor) -> Tensor:
        """What it sees in each patch of a picture 3 H W: n c, the last layer's."""
        given = self.processor(images=[to_pil(picture)], return_tensors="pt")
        return self.model.vision_model(**given).last_hidden_state[0, 1:]

    def score(self, before: Tensor, after: Tensor, source: str, target: str, mask: Tensor | None) -> dict[str, float]:
        """The edited picture's similarity to the target, whole and inside of the mask (all else black, as PIE-Bench has
        it; NaN without a mask), and the source's, to compare with. A `Score` of `minip2p.sweeps.sweep`."""
        inside = math.nan if mask is None else self(torch.where(mask, after, -1.0), target)
        return {"clip": self(after, target), "clip_inside": inside, "clip_before": self(before, target)}
