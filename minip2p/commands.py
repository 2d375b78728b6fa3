"""What the commands of `minip2p` do. Each takes the parsed arguments, prints the names of the files that it wrote, and
raises ValueError or OSError with one clear line before anything is written."""

import os
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from minip2p import png, viz
from minip2p.align import kind_of, refine_alignment, report, swap_mapper
from minip2p.blend import Blend
from minip2p.measure import bench_edits, lora, opened, sweep  # noqa: F401, commands as well
from minip2p.model import Model
from minip2p.options import RUN, edit_options, invert_options, names_a_file, run_file, run_options, settings
from minip2p.picture import fitted, pasted, read
from minip2p.start import latent_size
from minip2p.trajectory import Trajectory, as_image


def generate(args: Namespace) -> None:
    model, path = opened(args), named(stem(args, args.prompt))
    record = None if args.record is None else run_file(args.record)
    png.check_writable([path, *([record] if record else [])])
    check_kept(weights(args), [record] if record else [])
    options = run_options(args)
    run = model.record(args.prompt, file=record, **options) if record else model.generate(args.prompt, **options)
    finish([(path, run.image, png.parameters(run))], [str(record)] if record else [])


def edit(args: Namespace) -> None:
    """The targets, the source, and a strip with a row for each target."""
    model, options, changes = opened(args), run_options(args), edit_options(args)
    is_run = args.prompt is None and args.source.lower().endswith(RUN)
    filed = is_run or args.prompt is not None  # the source is a file, without a seed or with its own
    recorded = model.open(Path(args.source)) if is_run else None
    base = stem(args, args.targets[0], filed, None if recorded is None else recorded.seed)
    numbers = [f"-{n}" for n in range(1, len(args.targets) + 1)] if len(args.targets) > 1 else [""]
    paths = [named(base, end) for end in (*numbers, "-source", "-strip")]
    png.check_writable(paths)
    if args.paste and (args.prompt is None or (args.blend is None and args.mask is None)):
        raise ValueError("--paste is for a photograph, with --prompt, and needs --blend or --mask, which say where")
    check_kept([args.mask, args.within], paths)
    changes |= (own := masks(args, model, recorded))
    if args.prompt is not None:
        recorded, options = inverted(model, args, args.source, paths), {}
    elif recorded is None and names_a_file(args.source):
        raise ValueError(f"{args.source} names a file: say what the photograph shows, with --prompt")
    elif given := [name for name in invert_options(args) if name != "fit" or not (args.mask or args.within)]:
        raise ValueError(f"--{given[0]} is for a photograph: say what it shows, with --prompt")
    runs = model.edit(recorded or args.source, args.targets, **changes, **options)
    source = runs[0].source
    assert source is not None
    rows = [edit_row(plain(model, source, run.prompt), run) for run in runs]
    strip = viz.grid([panel for row in rows for panel in row], columns=len(rows[0]))
    method = {} if args.prompt is None else {"Method": args.method or "direct"}
    texts = [png.parameters(run, **settings(args), **method) for run in runs]
    mask = own["blend"].mask if args.mask else None
    images = [over_photograph(args, run, mask) if args.paste else run.image for run in runs]
    pictures = [*images, source.image, strip]
    tables = [
        f"{source.prompt} -> {new.prompt}\n{explained(model, source.prompt, new.prompt, args.kind)}\n" for new in runs
    ]
    finish(list(zip(paths, pictures, [*texts, png.parameters(source), "\n\n".join(texts)], strict=True)), tables)


def invert(args: Namespace) -> None:
    """The run of a photograph, and what it shows."""
    model, file = opened(args), run_file(args.out)
    path = file.with_suffix(".png")
    png.check_writable([file, path])
    run = inverted(model, args, args.picture, [file, path])
    image = run.image
    run.save(file)
    finish([(path, image, png.parameters(run, Method=args.method or "direct", **fit(args)))], [str(file)])


def instruct(args: Namespace) -> None:
    w = args.picture_guidance
    paint(args, lambda model, how: model.instruct(args.picture, args.prompt, picture_guidance=w, **how), Guidance=w)


def inpaint(args: Namespace) -> None:
    paint(args, lambda model, how: model.inpaint(args.picture, args.mask, args.prompt, **how), Mask=args.mask)


def paint(args: Namespace, by: Callable[[Model, dict[str, Any]], Trajectory], **said: Any) -> None:
    """The picture that a model makes of a picture; said: what it is told besides."""
    model, path = opened(args), named(stem(args, args.prompt))
    record = [] if args.record is None else [run_file(args.record)]
    png.check_writable([path, *record])
    check_kept([args.picture, getattr(args, "mask", None), *weights(args)], [path, *record])
    run = by(model, {"fit": args.fit or "crop", **run_options(args)})
    for file in record:
        run.save(file)
    more = {f"Picture {name.lower()}": value for name, value in said.items()} | fit(args)
    finish([(path, run.image, png.parameters(run, Picture=args.picture, **more))], list(map(str, record)))


def fit(args: Namespace) -> dict[str, str]:
    """How a photograph got its size, for its PNG, where that was said."""
    return {} if args.fit is None else {"Fit": args.fit}


def check_kept(read: Sequence[str | None], written: Sequence[Path]) -> None:
    """Raises ValueError where a file that is read, or one in a folder that is, would be overwritten."""
    for path in filter(os.path.exists, written):
        for given in filter(os.path.exists, filter(None, read)):
            if os.path.samefile(path, given) or Path(given).resolve() in path.resolve().parents:
                raise ValueError(f"{path}: is read, and would be overwritten: choose another name for what is written")


def weights(args: Namespace) -> list[str | None]:
    """The files and folders that a command reads weights from."""
    return [args.model, args.vae, args.config, *(lora(given)[0] for given in args.lora)]


def inverted(model: Model, args: Namespace, picture: str, paths: Sequence[Path]) -> Trajectory:
    """A photograph as a run, as the options say. Raises ValueError where a path to write is the photograph."""
    check_kept([picture, *weights(args)], paths)
    return model.invert(picture, args.prompt, **invert_options(args), **run_options(args))


def masks(args: Namespace, model: Model, run: Trajectory | None) -> dict[str, Any]:
    """--mask and --within, in the edit's size, as `Model.edit` takes them: a run's own, or what the options say."""
    if args.mask is None and args.within is None:
        return {}
    size = tuple(run.latents.shape[-2:]) if run else latent_size(model, run_options(args).get("size"))
    rows, columns = (side * model.vae.stride for side in size)

    def white(file: str) -> Tensor:
        return (fitted(read(file, "black"), (rows, columns), args.fit or "crop").mean(0) + 1) / 2

    blend = {} if args.mask is None else {"blend": Blend(mask=white(args.mask))}
    return blend | ({} if args.within is None else {"within": white(args.within)})


def over_photograph(args: Namespace, run: Trajectory, own: Tensor | None) -> Image.Image:
    """An edit, and the photograph's own pixels where its mask is 0: one's own, H W in picture pixels, or the run's."""
    edited = run.picture
    photograph = fitted(read(args.source), (edited.shape[1], edited.shape[2]), args.fit or "crop")
    mask = run.mask if own is None else own >= 0.5
    assert mask is not None
    return as_image(pasted(edited, photograph, mask))


def plain(model: Model, source: Trajectory, prompt: str) -> Trajectory:
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
    if edited.mask is not None:
        row.append((viz.mask_picture(edited.mask, edited.image.size), "mask: white may change"))
    return row


def maps(args: Namespace) -> None:
    """The picture, an overlay for each of its words, and a strip of them all."""
    model, base = opened(args), stem(args, args.prompt)
    words = list(dict.fromkeys(word.text for word in model.text.prompt(args.prompt).seen))
    if not words:
        raise ValueError(f"the prompt {args.prompt!r} has no words to show")
    ends = [f"-{n}-{png.file_name(word)}" for n, word in enumerate(words, 1)]
    paths = [named(base, end) for end in ("", *ends, "-strip")]
    png.check_writable(paths)
    run = model.generate(args.prompt, **run_options(args))
    panels = maps_row(run, words)
    pictures = [*(picture for picture, _ in panels), viz.grid(panels, columns=6)]
    finish([(path, picture, png.parameters(run)) for path, picture in zip(paths, pictures, strict=True)])


def maps_row(run: Trajectory, words: Sequence[str]) -> list[viz.Panel]:
    """The picture, and for each word an overlay; its caption has the greatest share of attention in the picture."""
    picture, heats = run.image, run.maps(list(words))
    captions = [f"{word} (at most {float(heat.max()):.2f})" for word, heat in zip(words, heats, strict=True)]
    return [(picture, run.prompt), *((viz.overlay(picture, h), text) for h, text in zip(heats, captions, strict=True))]


def stem(args: Namespace, prompt: str, filed: bool = False, seed: int | None = None) -> Path:
    """What the names of all the files that a command writes begin with. filed: the run is of a file; seed: its own."""
    out, seed = Path(args.out), seed if filed else (args.seed or 0)
    name = png.file_name(prompt) + ("" if seed is None else f"-seed{seed}")
    return out.with_suffix("") if out.suffix.lower() == ".png" else out / name


def named(base: Path, end: str = "") -> Path:
    return base.with_name(f"{base.name}{end}.png")


def finish(files: Sequence[png.File], said: Sequence[str] = ()) -> None:
    """Writes the pictures, then prints what is to be said and their names: whoever reads the output may be gone."""
    png.write(files)
    print(*said, *(path for path, _, _ in files), sep="\n")


def explained(model: Model, source: str, target: str, kind: str) -> str:
    """Which word of the source feeds which of the target, as a table."""
    old, new = model.text.prompt(source), model.text.prompt(target)
    if (kind_of(old, new) if kind == "auto" else kind) == "swap":
        return report(old, new, swap_mapper(old, new))
    return report(old, new, *refine_alignment(old, new))
