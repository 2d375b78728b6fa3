"""Where a model's weights come from."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path


@dataclass(frozen=True)
class CheckpointOrigin:
    """Where a model's weights come from.

    files: the file of each network's weights, by the name of the network's folder in a checkpoint. labels: what the
    metadata of a generated picture state about the model ("Model", "VAE", "LoRA", "Embedding").
    """

    files: Mapping[str, Path] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)

    def with_label(self, name: str, value: str) -> "CheckpointOrigin":
        """The origin with one more label; a label that is there is continued after a comma."""
        earlier = self.labels.get(name)
        return replace(self, labels={**self.labels, name: f"{earlier}, {value}" if earlier else value})

    def refuse_overwrite(self, file: Path) -> None:
        """Raises ValueError if writing `file` would overwrite weights of the model, which are still memory-mapped."""
        for weights in self.files.values():
            is_index = weights.suffix == ".json"  # it names several files in its folder
            for source in weights.parent.glob("*.safetensors") if is_index else [weights]:
                if file.exists() and source.exists() and file.samefile(source):
                    raise ValueError(f"{file}: the model's weights are in it: choose another name")
