"""The latents of the training scenes, encoded once and cached on disk.

Axes: b batch, c latent channels, s slots (see `minip2p.tiny.grounding`), h w height and width of a latent.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from minip2p.io.tensors import write_tensors
from minip2p.tiny.grounding import slot_regions
from minip2p.tiny.loop import half_precision
from minip2p.tiny.render import render, stack_pictures
from minip2p.tiny.scenes import dataset
from minip2p.tiny.sprites import Sprites
from minip2p.vae import VAE

CHUNK = 2048  # scenes per file
MAX_SCENES = 61440


class LatentCache:
    """The latents of a seed's scenes (the means, unscaled) and the regions that their slots cover.

    They are computed in chunks when first needed. Index with a tensor of scene numbers: b -> b c h w.
    """

    def __init__(self, folder: Path, vae: VAE, seed: int, sprites: Sprites):
        self.folder = folder
        self.vae = vae
        self.seed = seed
        self.sprites = sprites
        self.chunks: list[dict[str, Tensor]] = []

    @torch.no_grad()
    def load_chunk(self, number: int) -> dict[str, Tensor]:
        """A chunk's "latents", CHUNK c h w float16, and "regions", CHUNK s h w uint8. Computes it if it is missing."""
        path = self.folder / f"{number:04d}.safetensors"
        if not path.exists():
            latents, regions = [], []
            for start in range(number * CHUNK, (number + 1) * CHUNK, 32):
                scenes = list(dataset(self.seed, 32, start=start))
                renders = [render(scene, self.sprites) for scene in scenes]
                with half_precision(torch.device("cpu")):
                    latents.append(self.vae.encode(stack_pictures(renders))[0].half())
                regions += [torch.from_numpy(slot_regions(*pair)) for pair in zip(scenes, renders, strict=True)]
            write_tensors({"latents": torch.cat(latents), "regions": torch.stack(regions)}, path)
        return load_file(path)

    def gather(self, name: str, indices: Tensor) -> Tensor:
        while len(self.chunks) * CHUNK <= int(indices.max()):
            self.chunks.append(self.load_chunk(len(self.chunks)))
        return torch.stack([self.chunks[i // CHUNK][name][i % CHUNK] for i in indices.tolist()]).float()

    def __getitem__(self, indices: Tensor) -> Tensor:
        return self.gather("latents", indices)

    def regions(self, indices: Tensor) -> Tensor:
        """The share of each latent pixel that each slot of a scene covers: b s h w in [0, 1]."""
        return self.gather("regions", indices) / 255

    def scaling_factor(self) -> float:
        """One over the standard deviation of the latents: it scales them to about one, as the schedule expects."""
        return 1 / float(torch.cat([self[torch.arange(i, i + 256)] for i in range(0, CHUNK, 256)]).std())


def scenes_available(pictures: int, *, limit: int = MAX_SCENES, pictures_a_scene: int = 12) -> int:
    """The number of scenes to draw from after so many pictures of a training, at most `limit`.

    It grows by one for every `pictures_a_scene` pictures of the training, which can thus begin after three chunks have
    been encoded.
    """
    return min(limit, CHUNK * (3 + pictures // (pictures_a_scene * CHUNK)))
