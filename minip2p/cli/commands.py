"""The commands of `minip2p` that make pictures.

Each takes the parsed arguments and prints the names of the files that it wrote. Before it writes anything it raises
ValueError or OSError, with one line, for whatever is wrong.
"""

import os
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from minip2p.cli.options import (
    INVERSION_OPTIONS,
    RUN_SUFFIX,
    edit_options,
    edit_settings,
    invert_options,
    load_model,
    looks_like_picture_file,
    parse_lora,
    run_file_path,
    run_options,
)
from minip2p.io import png, viz
from minip2p.io.images import composite, fit_image, read_image, to_pil
from minip2p.p2p.alignment import alignment_table, infer_kind, refine_alignment, swap_mapper
from minip2p.p2p.local_blend import LocalBlend
from minip2p.pipeline import Pipeline
from minip2p.sampling import metadata
from minip2p.sampling.settings import RunSettings
from minip2p.sampling.trajectory import Trajectory

DEFAULT_METHOD = "direct"  # of inversion, as `Pipeline.invert` has it


def generate(args: Namespace) -> None:
    """Generates a picture. Writes it, and the run's file if --record asks for it."""
    pipe, path = load_model(args), output_path(output_stem(args, args.prompt, given_seed(args)))
    record = None if args.record is None else run_file_path(args.record)
    records = [] if record is None else [record]
    png.check_writable([path, *records])
    refuse_overwrite(weight_paths(args), records)
    options = run_options(args)
    run = pipe.generate(args.prompt, **options) if record is None else pipe.record(args.prompt, file=record, **options)
    write_outputs([(path, run.image, metadata.parameters(run))], [str(file) for file in records])


def edit(args: Namespace) -> None:
    """Edits a picture. Writes a picture for each target, the source, and a strip with a row for each target."""
    pipe, options, changes = load_model(args), run_options(args), edit_options(args)
    is_photo = args.prompt is not None
    source: Trajectory | str = args.source
    seed = None if is_photo else given_seed(args)
    if not is_photo and args.source.lower().endswith(RUN_SUFFIX):
        source = pipe.open(Path(args.source))
        seed = source.seed
    base = output_stem(args, args.targets[0], seed)
    numbers = [f"-{number}" for number in range(1, len(args.targets) + 1)] if len(args.targets) > 1 else [""]
    paths = [output_path(base, suffix) for suffix in (*numbers, "-source", "-strip")]
    png.check_writable(paths)
    check_paste(args)
    refuse_overwrite([args.mask, args.within], paths)
    masks = read_masks(args, pipe, source)
    if is_photo:
        source, options = invert_photo(pipe, args, args.source, paths), {}
    else:
        refuse_photo_options(args, source)
    runs = pipe.edit(source, args.targets, **changes, **masks, **options)
    source = finished_source(runs[0])
    rows = [edit_row(source, without_p2p(pipe, source, run.prompt), run) for run in runs]
    strip = viz.grid([panel for row in rows for panel in row], columns=len(rows[0]))
    method = {"Method": args.method or DEFAULT_METHOD} if is_photo else {}
    texts = [metadata.parameters(run, **edit_settings(args), **method) for run in runs]
    mask = masks["local_blend"].mask if args.mask else None
    pictures = [paste_over_photo(args, run, mask) if args.paste else run.image for run in runs]
    pictures += [source.image, strip]
    texts += [metadata.parameters(source), "\n\n".join(texts)]
    tables = [
        f"{source.prompt} -> {run.prompt}\n{explain_alignment(pipe, source.prompt, run.prompt, args.kind)}\n"
        for run in runs
    ]
    write_outputs(list(zip(paths, pictures, texts, strict=True)), tables)


def invert(args: Namespace) -> None:
    """Inverts a photograph. Writes the run's file and the run's picture."""
    pipe, file = load_model(args), run_file_path(args.out)
    path = file.with_suffix(".png")
    png.check_writable([file, path])
    run = invert_photo(pipe, args, args.picture, [file, path])
    image = run.image
    run.save(file)
    text = metadata.parameters(run, Method=args.method or DEFAULT_METHOD, **fit_setting(args))
    write_outputs([(path, image, text)], [str(file)])


def instruct(args: Namespace) -> None:
    """Edits a picture by an instruction. Writes the new picture, and the run's file if --record asks for it."""
    pipe, path, records = prepare_picture(args)
    scale = {} if args.picture_guidance is None else {"image_guidance_scale": args.picture_guidance}
    run = pipe.instruct(args.picture, args.prompt, **scale, **fit_option(args), **run_options(args))
    image = run.conditioning.image
    assert image is not None
    write_picture(args, run, path, records, {"Picture guidance": image.image_guidance_scale})


def inpaint(args: Namespace) -> None:
    """Regenerates a picture under a mask. Writes the new picture, and the run's file if --record asks for it."""
    pipe, path, records = prepare_picture(args)
    run = pipe.inpaint(args.picture, args.mask, args.prompt, **fit_option(args), **run_options(args))
    write_picture(args, run, path, records, {"Picture mask": args.mask})


def maps(args: Namespace) -> None:
    """Generates a picture. Writes it, an overlay of the heat map of each of its words, and a strip of them all."""
    pipe, base = load_model(args), output_stem(args, args.prompt, given_seed(args))
    words = list(dict.fromkeys(word.text for word in pipe.text.prompt(args.prompt).visible_words))
    if not words:
        raise ValueError(f"the prompt {args.prompt!r} has no words to show")
    suffixes = [f"-{number}-{png.slug(word)}" for number, word in enumerate(words, 1)]
    paths = [output_path(base, suffix) for suffix in ("", *suffixes, "-strip")]
    png.check_writable(paths)
    run = pipe.generate(args.prompt, **run_options(args))
    panels = maps_row(run, words)
    pictures = [*(picture for picture, _ in panels), viz.grid(panels, columns=6)]
    write_outputs([(path, picture, metadata.parameters(run)) for path, picture in zip(paths, pictures, strict=True)])


# --- pictures as inputs


def prepare_picture(args: Namespace) -> tuple[Pipeline, Path, list[Path]]:
    """The pipeline, the path of the new picture and the files of --record for `instruct` and `inpaint`, checked."""
    pipe, path = load_model(args), output_path(output_stem(args, args.prompt, given_seed(args)))
    records = [] if args.record is None else [run_file_path(args.record)]
    png.check_writable([path, *records])
    refuse_overwrite([args.picture, getattr(args, "mask", None), *weight_paths(args)], [path, *records])
    return pipe, path, records


def write_picture(
    args: Namespace, run: Trajectory, path: Path, records: Sequence[Path], settings: dict[str, Any]
) -> None:
    """Writes what `instruct` or `inpaint` made. settings: further settings for the PNG."""
    for file in records:
        run.save(file)
    text = metadata.parameters(run, Picture=args.picture, **settings, **fit_setting(args))
    write_outputs([(path, run.image, text)], [str(file) for file in records])


def invert_photo(pipe: Pipeline, args: Namespace, photo: str, paths: Sequence[Path]) -> Trajectory:
    """Inverts a photograph. Raises ValueError if one of the paths to write is an input."""
    refuse_overwrite([photo, *weight_paths(args)], paths)
    options = {"method": DEFAULT_METHOD, **invert_options(args), **run_options(args)}
    return pipe.invert(photo, args.prompt, **options)


def read_masks(args: Namespace, pipe: Pipeline, source: Trajectory | str) -> dict[str, Any]:
    """--mask and --within as keywords of `Pipeline.edit`, fitted to the size of the edit."""
    if args.mask is None and args.within is None:
        return {}
    if isinstance(source, Trajectory):
        rows, columns = source.picture_size
    else:
        rows, columns = (pipe.vae.stride * side for side in pipe.components.latent_size(run_options(args).get("size")))

    def whiteness(file: str) -> Tensor:
        return (fit_image(read_image(file, "black"), (rows, columns), **fit_option(args)).mean(0) + 1) / 2

    masks: dict[str, Any] = {}
    if args.mask is not None:
        masks["local_blend"] = LocalBlend(mask=whiteness(args.mask))
    if args.within is not None:
        masks["region"] = whiteness(args.within)
    return masks


def paste_over_photo(args: Namespace, run: Trajectory, mask: Tensor | None) -> Image.Image:
    """The edited picture with the photograph's pixels outside of a mask.

    mask: that of --mask, H W in picture pixels; None: the run's own.
    """
    edited = run.picture
    photo = fit_image(read_image(args.source), (edited.shape[1], edited.shape[2]), **fit_option(args))
    mask = run.blend_mask if mask is None else mask >= 0.5
    assert mask is not None
    return to_pil(composite(edited, photo, mask))


def fit_option(args: Namespace) -> dict[str, Any]:
    """--fit as a keyword, if it was given."""
    return {} if args.fit is None else {"fit": args.fit}


def fit_setting(args: Namespace) -> dict[str, str]:
    """--fit as a setting for the PNG, if it was given."""
    return {} if args.fit is None else {"Fit": args.fit}


# --- checks


def check_paste(args: Namespace) -> None:
    """Raises ValueError for --paste without a photograph or without a mask."""
    if args.paste and (args.prompt is None or (args.blend is None and args.mask is None)):
        raise ValueError("--paste needs a photograph, with --prompt, and a mask, with --blend or --mask")


def refuse_photo_options(args: Namespace, source: Trajectory | str) -> None:
    """Raises ValueError for an edit without --prompt whose source or options need a photograph."""
    if isinstance(source, str) and looks_like_picture_file(source):
        raise ValueError(f"{source} is a file: describe the photograph with --prompt")
    for name, _ in INVERSION_OPTIONS:
        fits_masks = name == "fit" and (args.mask or args.within)
        if getattr(args, name) is not None and not fits_masks:
            raise ValueError(f"--{name} needs a photograph as the source: describe it with --prompt")


def refuse_overwrite(inputs: Sequence[str | None], outputs: Sequence[Path]) -> None:
    """Raises ValueError if an output is an input or lies in a folder that is an input."""
    for output in filter(os.path.exists, outputs):
        for path in filter(os.path.exists, filter(None, inputs)):
            if os.path.samefile(output, path) or Path(path).resolve() in output.resolve().parents:
                raise ValueError(f"{output}: is an input and would be overwritten: choose another name for the output")


def weight_paths(args: Namespace) -> list[str | None]:
    """The files and folders that a command reads weights from."""
    return [args.model, args.vae, args.config, *(parse_lora(text)[0] for text in args.lora)]


# --- pictures to look at


def finished_source(edited: Trajectory) -> Trajectory:
    """The source of an edit, run to its end."""
    assert edited.source_run is not None
    return edited.source_run.finish()


def without_p2p(pipe: Pipeline, source: Trajectory, prompt: str) -> Trajectory:
    """The run of a prompt from the source's noise, with the source's conditioning and without Prompt-to-Prompt."""
    return pipe.edit(source, prompt, cross_replace=0, self_replace=0)


def edit_row(source: Trajectory, plain: Trajectory, edited: Trajectory) -> list[viz.Panel]:
    """Panels of the source, the target without Prompt-to-Prompt, the target with it, and the mask if there is one."""
    row = [
        (source.image, f"source: {source.prompt}"),
        (plain.image, f"same noise, without P2P: {plain.prompt}"),
        (edited.image, f"with P2P: {edited.prompt}"),
    ]
    if edited.blend_mask is not None:
        row.append((viz.mask_image(edited.blend_mask, edited.image.size), "mask: white may change"))
    return row


def maps_row(run: Trajectory, words: Sequence[str]) -> list[viz.Panel]:
    """Panels of the picture and of each word's heat map over it, captioned with the map's maximum."""
    picture, heats = run.image, run.maps(list(words))
    captions = [f"{word} (at most {float(heat.max()):.2f})" for word, heat in zip(words, heats, strict=True)]
    overlays = [viz.overlay(picture, heat) for heat in heats]
    return [(picture, run.prompt), *zip(overlays, captions, strict=True)]


def explain_alignment(pipe: Pipeline, source: str, target: str, kind: str | None) -> str:
    """A table of which word of the source feeds which word of the target. kind: None or "auto" is inferred."""
    old, new = pipe.text.prompt(source), pipe.text.prompt(target)
    if kind is None or kind == "auto":
        kind = infer_kind(old, new)
    if kind == "swap":
        return alignment_table(old, new, swap_mapper(old, new))
    return alignment_table(old, new, *refine_alignment(old, new))


# --- output files


def given_seed(args: Namespace) -> int:
    """--seed, or the default seed of a run."""
    return RunSettings.seed if args.seed is None else args.seed


def output_stem(args: Namespace, prompt: str, seed: int | None) -> Path:
    """The start of the names of all files that a command writes. seed: None for a photograph, which has none."""
    out = Path(args.out)
    if out.suffix.lower() == ".png":
        return out.with_suffix("")
    return out / (png.slug(prompt) + ("" if seed is None else f"-seed{seed}"))


def output_path(stem: Path, suffix: str = "") -> Path:
    return stem.with_name(f"{stem.name}{suffix}.png")


def write_outputs(files: Sequence[png.PngFile], lines: Sequence[str] = ()) -> None:
    """Writes the pictures, then prints the lines and the names of the pictures.

    The pictures come first because the reader of the output may have gone, which ends the command.
    """
    png.write_pngs(files)
    print(*lines, *(path for path, _, _ in files), sep="\n")
