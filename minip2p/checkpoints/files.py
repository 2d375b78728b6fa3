"""Where a checkpoint's files are: the interface that folders and single files share."""

from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor


class CheckpointFiles(Protocol):
    """The files of a model. A component is named by its folder in diffusers' layout: "unet", "vae", "text_encoder", …

    location: the folder or file that errors name. root: the folder where the model's own minip2p.json would be.
    """

    location: Path
    root: Path

    def has(self, component: str) -> bool: ...
    def config_file(self, component: str) -> Path: ...
    def config(self, component: str) -> dict[str, Any]: ...
    def tokenizer(self, component: str) -> Path: ...
    def tensors(self, component: str, dtype: torch.dtype) -> tuple[dict[str, Tensor], Path]: ...
    def names(self) -> list[str]: ...  # of the model, as its files state them
