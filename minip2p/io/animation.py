"""Animated GIF and WebP files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from PIL import Image

from minip2p.io.files import atomic_write

# The options with which Pillow writes each format. WebP's are chosen for pictures: few artefacts, not lossless.
FORMATS: Mapping[str, tuple[str, dict[str, Any]]] = MappingProxyType(
    {".gif": ("GIF", {}), ".webp": ("WEBP", {"quality": 90})}
)


def check_animation_path(file: Path) -> None:
    """Raises ValueError for a file name that does not end as an animation does."""
    if file.suffix.lower() not in FORMATS:
        raise ValueError(f"{file}: an animation ends in {' or '.join(FORMATS)}")


def write_animation(file: Path, frames: Sequence[Image.Image], seconds: Sequence[float]) -> None:
    """Writes an animation that repeats without end, whole or not at all. seconds: how long each frame is shown."""
    check_animation_path(file)
    name, options = FORMATS[file.suffix.lower()]
    durations = [round(1000 * duration) for duration in seconds]
    with atomic_write(file) as partial:
        frames[0].save(partial, name, save_all=True, append_images=frames[1:], duration=durations, loop=0, **options)
