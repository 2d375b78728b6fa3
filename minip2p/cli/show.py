"""The commands of `minip2p` that only read: `show` prints the settings of a picture or a run, `words` those that the
model that ships knows."""

from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path

from PIL import ExifTags, Image
from safetensors import SafetensorError, safe_open

from minip2p.io.contents import broken_safetensors, first_bytes, is_picture, is_run, not_a_run
from minip2p.io.png import read_parameters
from minip2p.tiny import scenes


def show(args: Namespace) -> Iterator[None]:
    """Prints the settings in PNGs and files of runs. Raises FileNotFoundError or ValueError for a file without them."""
    texts = [read_settings(Path(file)) for file in args.file]
    if len(texts) > 1:
        texts = [f"{file}\n{text}\n" for file, text in zip(args.file, texts, strict=True)]
    yield
    print(*texts, sep="\n")


def read_settings(file: Path) -> str:
    """The settings in a picture, as its metadata have them, or in the file of a run, in the same form."""
    if not file.is_file():
        raise FileNotFoundError(f"{file}: {'a folder, not a file' if file.is_dir() else 'no such file'}")
    start = first_bytes(file)
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return read_parameters(file)
    return exif_settings(file) if is_picture(start) else run_settings(file)


def exif_settings(file: Path) -> str:
    """The settings in the EXIF comment of a JPEG or WebP, where A1111's web UI writes them. ValueError without them."""
    try:
        with Image.open(file) as image:
            comment = image.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment, b"")
    except (OSError, ValueError, SyntaxError) as error:
        raise ValueError(f"{file}: cannot be read ({' '.join(str(error).split())})") from None
    code = b"UNICODE\0"
    if not isinstance(comment, bytes) or not comment.startswith(code):
        raise ValueError(f"{file}: has no settings: minip2p writes them into PNGs, A1111 into a JPEG's EXIF comment")
    return comment.removeprefix(code).decode("utf-16-be", "replace")


def run_settings(file: Path) -> str:
    """The settings in the file of a run, in the form of a PNG's, with the size of the latents.

    Raises ValueError for any other file.
    """
    if not is_run(file):
        raise ValueError(f"{file}: {not_a_run(file)}")
    try:
        with safe_open(file, "np") as tensors:
            metadata = dict(tensors.metadata() or {})
            names = set(tensors.keys())
            shape = tensors.get_slice("latents").get_shape() if "latents" in names else []
    except (SafetensorError, OSError) as error:
        raise broken_safetensors(file, error) from None
    if len(shape) != 4:
        raise ValueError(f"{file}: not a whole run (it has no latents)")
    steps, _, rows, columns = shape
    settings = {
        "Steps": steps - 1,
        "Sampler": sampler(metadata),
        "CFG scale": metadata.get("guidance_scale"),
        "Seed": metadata.get("seed"),
        "Clip skip": without(metadata.get("clip_skip"), "1"),
        "Guidance interval": metadata.get("guidance_interval", "").replace(" ", "-"),
        "Unconditional every": without(metadata.get("uncond_every"), "1"),
        "Latents": f"{columns}x{rows}",
        "Model": metadata.get("model_name"),
        "Method": metadata.get("inversion"),
        "Picture guidance": metadata.get("image_guidance_scale"),
        "Skipped steps": without(metadata.get("skip_steps"), "0"),
        "Eta": metadata.get("eta"),
        "Source CFG scale": metadata.get("source_guidance_scale"),
        "Conditioned on": metadata.get("conditioning"),
        "Recorded attention": "yes" if len(names) > 1 + len(metadata.get("conditioning", "").split()) else "",
    }
    negative = [f"Negative prompt: {metadata['negative_prompt']}"] if metadata.get("negative_prompt") else []
    last = ", ".join(f"{name}: {value}" for name, value in settings.items() if value)
    return "\n".join([metadata.get("prompt", ""), *negative, last])


def sampler(metadata: Mapping[str, str]) -> str:
    """The name of the steps of a run, as `Conditioning.sampler`."""
    if "variance_noise" not in metadata.get("conditioning", ""):
        return "DDIM"
    if not metadata.get("eta"):
        return "DDPM"
    return "DDCM" if metadata.get("source_guidance_scale") else "LCM"


def without(value: str | None, default: str) -> str | None:
    """A setting; None where it is the default."""
    return None if value == default else value


def words(args: Namespace) -> Iterator[None]:
    """Prints the words that the model that ships was trained with, by what they name."""
    yield
    print("The model that ships was trained with these words and knows no others:\n")
    for title, phrases in scenes.phrase_groups().items():
        print(f"{title + ':':<9} {', '.join(phrases)}")
    print(
        "\nA picture shows one object or two: an animal, or a thing with or without a colour. Examples:\n"
        '"a cat on the beach", "a red car and a dog in a meadow", "a pencil sketch of a blue house in the fog"'
    )
