"""TODO: describe."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class CheckpointOrigin:
    """Where a model is from. files: of each network's weights, by its folder's name. said: what its pictures say of it
    ("Model", "VAE", "LoRA")."""

    files: Mapping[str, Path] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)

    def refuse_overwrite(self, file: Path) -> None:
        """Raises ValueError where a file that is to be written is one that the weights are in."""
        for own in self.files.values():
            for one in own.parent.glob("*.safetensors") if own.suffix == ".json" else [own]:  # an index names several
                if file.exists() and one.exists() and file.samefile(one):
                    raise ValueError(f"{file}: the model's weights are in it: choose another name")
