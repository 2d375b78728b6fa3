"""What the commands of `minip2p` do. Each takes the parsed arguments, prints the names of the files that it wrote, and
raises ValueError or OSError with one clear line before anything is written."""

import os
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from minip2p.checkpoints.components import latent_size
from minip2p.cli.experiments import load_model, parse_lora
from minip2p.cli.options import (
    RUN_SUFFIX,
    edit_options,
    edit_settings,
    invert_options,
    looks_like_picture_file,
    run_file_path,
    run_options,
)
from minip2p.io import png, viz
from minip2p.io.images import composite, fit_image, read_image, to_pil
from minip2p.p2p.alignment import alignment_table, infer_kind, refine_alignment, swap_mapper
from minip2p.p2p.local_blend import LocalBlend
from minip2p.pipeline import Pipeline
from minip2p.sampling import metadata
from minip2p.sampling.trajectory import Trajectory


def generate(args: Namespace) -> None:
    model, path = load_model(args), output_path(output_stem(args, args.prompt))
    record = None if args.record is None else run_file_path(args.record)
    png.check_writable([path, *([record] if record else [])])
    refuse_overwrite(weight_paths(args), [record] if record else [])
    options = run_options(args)
    run = model.record(args.prompt, file=record, **options) if record else model.generate(args.prompt, **options)
    write_outputs([(path, run.image, metadata.parameters(run))], [str(record)] if record else [])


def edit(args: Namespace) -> None:
    """The targets, the source, and a strip with a row for each target."""
    model, options, changes = load_model(args), run_options(args), edit_options(args)
    is_run = args.prompt is None and args.source.lower().endswith(RUN_SUFFIX)
    filed = is_run or args.prompt is not None  # the source is a file, without a seed or with its own
    recorded = model.open(Path(args.source)) if is_run else None
    base = output_stem(args, args.targets[0], filed, None if recorded is None else recorded.seed)
    numbers = [f"-{n}" for n in range(1, len(args.targets) + 1)] if len(args.targets) > 1 else [""]
    paths = [output_path(base, end) for end in (*numbers, "-source", "-strip")]
    png.check_writable(paths)
    if args.paste and (args.prompt is None or (args.blend is None and args.mask is None)):
        raise ValueError("--paste is for a photograph, with --prompt, and needs --blend or --mask, which say where")
    refuse_overwrite([args.mask, args.within], paths)
    changes |= (own := read_masks(args, model, recorded))
    if args.prompt is not None:
        recorded, options = invert_photo(model, args, args.source, paths), {}
    elif recorded is None and looks_like_picture_file(args.source):
        raise ValueError(f"{args.source} names a file: say what the photograph shows, with --prompt")
    elif given := [name for name in invert_options(args) if name != "fit" or not (args.mask or args.within)]:
        raise ValueError(f"--{given[0]} is for a photograph: say what it shows, with --prompt")
    runs = model.edit(recorded or args.source, args.targets, **changes, **options)
    source = runs[0].source
    assert source is not None
    rows = [edit_row(without_p2p(model, source, run.prompt), run) for run in runs]
    strip = viz.grid([panel for row in rows for panel in row], columns=len(rows[0]))
    method = {} if args.prompt is None else {"Method": args.method or "direct"}
    texts = [metadata.parameters(run, **edit_settings(args), **method) for run in runs]
    mask = own["blend"].mask if args.mask else None
    images = [paste_over_photo(args, run, mask) if args.paste else run.image for run in runs]
    pictures = [*images, source.image, strip]
    tables = [
        f"{source.prompt} -> {new.prompt}\n{explain_alignment(model, source.prompt, new.prompt, args.kind)}\n"
        for new in runs
    ]
    write_outputs(
        list(zip(paths, pictures, [*texts, metadata.parameters(source), "\n\n".join(texts)], strict=True)), tables
    )


def invert(args: Namespace) -> None:
    """The run of a photograph, and what it shows."""
    model, file = load_model(args), run_file_path(args.out)
    path = file.with_suffix(".png")
    png.check_writable([file, path])
    run = invert_photo(model, args, args.picture, [file, path])
    image = run.image
    run.save(file)
    write_outputs(
        [(path, image, metadata.parameters(run, Method=args.method or "direct", **fit_setting(args)))], [str(file)]
    )


def instruct(args: Namespace) -> None:
    w = args.picture_guidance
    paint_picture(
        args, lambda model, how: model.instruct(args.picture, args.prompt, picture_guidance=w, **how), Guidance=w
    )


def inpaint(args: Namespace) -> None:
    paint_picture(args, lambda model, how: model.inpaint(args.picture, args.mask, args.prompt, **how), Mask=args.mask)


def paint_picture(args: Namespace, by: Callable[[Pipeline, dict[str, Any]], Trajectory], **said: Any) -> None:
    """The picture that a model makes of a picture; said: what it is told besides."""
    model, path = load_model(args), output_path(output_stem(args, args.prompt))
    record = [] if args.record is None else [run_file_path(args.record)]
    png.check_writable([path, *record])
    refuse_overwrite([args.picture, getattr(args, "mask", None), *weight_paths(args)], [path, *record])
    run = by(model, {"fit": args.fit or "crop", **run_options(args)})
    for file in record:
        run.save(file)
    more = {f"Picture {name.lower()}": value for name, value in said.items()} | fit_setting(args)
    write_outputs([(path, run.image, metadata.parameters(run, Picture=args.picture, **more))], list(map(str, record)))


def fit_setting(args: Namespace) -> dict[str, str]:
    """How a photograph got its size, for its PNG, where that was said."""
    return {} if args.fit is None else {"Fit": args.fit}


def refuse_overwrite(read: Sequence[str | None], written: Sequence[Path]) -> None:
    """Raises ValueError where a file that is read, or one in a folder that is, would be overwritten."""
    for path in filter(os.path.exists, written):
        for given in filter(os.path.exists, filter(None, read)):
            if os.path.samefile(path, given) or Path(given).resolve() in path.resolve().parents:
                raise ValueError(f"{path}: is read, and would be overwritten: choose another name for what is written")


def weight_paths(args: Namespace) -> list[str | None]:
    """The files and folders that a command reads weights from."""
    return [args.model, args.vae, args.config, *(parse_lora(given)[0] for given in args.lora)]


def invert_photo(model: Pipeline, args: Namespace, picture: str, paths: Sequence[Path]) -> Trajectory:
    """A photograph as a run, as the options say. Raises ValueError where a path to write is the photograph."""
    refuse_overwrite([picture, *weight_paths(args)], paths)
    return model.invert(picture, args.prompt, **invert_options(args), **run_options(args))


def read_masks(args: Namespace, model: Pipeline, run: Trajectory | None) -> dict[str, Any]:
    """--mask and --within, in the edit's size, as `Model.edit` takes them: a run's own, or what the options say."""
    if args.mask is None and args.within is None:
        return {}
    size = tuple(run.latents.shape[-2:]) if run else latent_size(model, run_options(args).get("size"))
    rows, columns = (side * model.vae.stride for side in size)

    def white(file: str) -> Tensor:
        return (fit_image(read_image(file, "black"), (rows, columns), args.fit or "crop").mean(0) + 1) / 2

    blend = {} if args.mask is None else {"blend": LocalBlend(mask=white(args.mask))}
    return blend | ({} if args.within is None else {"within": white(args.within)})


def paste_over_photo(args: Namespace, run: Trajectory, own: Tensor | None) -> Image.Image:
    """An edit, and the photograph's own pixels where its mask is 0: one's own, H W in picture pixels, or the run's."""
    edited = run.picture
    photograph = fit_image(read_image(args.source), (edited.shape[1], edited.shape[2]), args.fit or "crop")
    mask = run.blend_mask if own is None else own >= 0.5
    assert mask is not None
    return to_pil(composite(edited, photograph, mask))


def without_p2p(model: Pipeline, source: Trajectory, prompt: str) -> Trajectory:
    """What the prompt gives from the source's noise, by its way, without Prompt-to-Prompt."""
    return model.edit(source, prompt, cross=0, self_=0)


def edit_row(plain: Trajectory, edited: Trajectory) -> list[viz.Panel]:
    """Source, target without Prompt-to-Prompt, target with it, and the mask if there is one."""
    source = edited.source
    assert source is not None
    row = [
        (source.image, f"source: {source.prompt}"),
        (plain.image, f"same noise, without P2P: {plain.prompt}"),
        (edited.image, f"with P2P: {edited.prompt}"),
    ]
    if edited.blend_mask is not None:
        row.append((viz.mask_picture(edited.blend_mask, edited.image.size), "mask: white may change"))
    return row


def maps(args: Namespace) -> None:
    """The picture, an overlay for each of its words, and a strip of them all."""
    model, base = load_model(args), output_stem(args, args.prompt)
    words = list(dict.fromkeys(word.text for word in model.text.prompt(args.prompt).visible_words))
    if not words:
        raise ValueError(f"the prompt {args.prompt!r} has no words to show")
    ends = [f"-{n}-{png.slug(word)}" for n, word in enumerate(words, 1)]
    paths = [output_path(base, end) for end in ("", *ends, "-strip")]
    png.check_writable(paths)
    run = model.generate(args.prompt, **run_options(args))
    panels = maps_row(run, words)
    pictures = [*(picture for picture, _ in panels), viz.grid(panels, columns=6)]
    write_outputs([(path, picture, metadata.parameters(run)) for path, picture in zip(paths, pictures, strict=True)])


def maps_row(run: Trajectory, words: Sequence[str]) -> list[viz.Panel]:
    """The picture, and for each word an overlay; its caption has the greatest share of attention in the picture."""
    picture, heats = run.image, run.maps(list(words))
    captions = [f"{word} (at most {float(heat.max()):.2f})" for word, heat in zip(words, heats, strict=True)]
    return [(picture, run.prompt), *((viz.overlay(picture, h), text) for h, text in zip(heats, captions, strict=True))]


def output_stem(args: Namespace, prompt: str, filed: bool = False, seed: int | None = None) -> Path:
    """What the names of all the files that a command writes begin with. filed: the run is of a file; seed: its own."""
    out, seed = Path(args.out), seed if filed else (args.seed or 0)
    name = png.slug(prompt) + ("" if seed is None else f"-seed{seed}")
    return out.with_suffix("") if out.suffix.lower() == ".png" else out / name


def output_path(base: Path, end: str = "") -> Path:
    return base.with_name(f"{base.name}{end}.png")


def write_outputs(files: Sequence[png.PngFile], said: Sequence[str] = ()) -> None:
    """Writes the pictures, then prints what is to be said and their names: whoever reads the output may be gone."""
    png.write_pngs(files)
    print(*said, *(path for path, _, _ in files), sep="\n")


def explain_alignment(model: Pipeline, source: str, target: str, kind: str) -> str:
    """Which word of the source feeds which of the target, as a table."""
    old, new = model.text.prompt(source), model.text.prompt(target)
    if (infer_kind(old, new) if kind == "auto" else kind) == "swap":
        return alignment_table(old, new, swap_mapper(old, new))
    return alignment_table(old, new, *refine_alignment(old, new))
