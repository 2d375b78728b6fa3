"""The commands of `minip2p` that make pictures.

Each takes the parsed arguments and prints the names of the files that it wrote. It is a generator that yields once: up
to there it checks the arguments and loads the model, and raises ValueError or OSError, with one line, for whatever is
wrong; after that it runs and writes.
"""

import os
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from minip2p.cli.estimate import announce_command
from minip2p.cli.options import (
    FAST_METHOD,
    INVERSION_OPTIONS,
    OBJECT_OPTIONS,
    RUN_OPTIONS,
    edit_options,
    edit_settings,
    inversion_settings,
    invert_options,
    load_model,
    method_of,
    method_parameters,
    parse_lora,
    run_file_path,
    run_options,
    seeds_to_run,
    without_none,
)
from minip2p.cli.paths import PICTURE_SUFFIX, RUN_SUFFIX, check_source
from minip2p.cli.planning import check_instruction, follow_instruction, write_arguments
from minip2p.errors import Notice
from minip2p.io import png, viz
from minip2p.io.images import composite, fit_image, read_image, read_mask_image, to_pil
from minip2p.p2p.alignment import alignment_table, infer_kind, refine_alignment, swap_mapper
from minip2p.p2p.local_blend import LocalBlend
from minip2p.p2p.options import EditOptions
from minip2p.p2p.places import latent_size_of
from minip2p.p2p.targets import make_targets
from minip2p.pipeline import Pipeline
from minip2p.sampling import metadata
from minip2p.sampling.conditioning import (
    ImageConditioning,
    inpainting_conditioning,
    instruct_pix2pix_conditioning,
    load_photo,
)
from minip2p.sampling.guidance import guidance_branches
from minip2p.sampling.settings import RunSettings, RunStart
from minip2p.sampling.trajectory import Trajectory
from minip2p.text.prompt import Prompt, normalize_text
from minip2p.validation import check_number

PROMPT_AS_NEGATIVE = ("negative-prompt", "proximal")  # methods of inversion without a negative prompt of their own
PictureJob = tuple[int | None, Path, list[Path]]  # a seed, the path of its picture, and of its run's file if recorded


def generate(args: Namespace) -> Iterator[None]:
    """Generates a picture for each seed. Writes it, and the run's file if --record asks for it."""
    jobs = plan_pictures(args, args.prompt, weight_paths(args))
    pipe = load_model_for(args, jobs)
    announce_prompts([args.prompt])
    announce_guidance(pipe, args, pipe.prepare(args.prompt, RunSettings(**run_options(args))))
    yield
    announce_command(pipe, args)
    for seed, path, records in jobs:
        options = seeded_options(args, seed)
        run = pipe.record(args.prompt, file=records[0], **options) if records else pipe.generate(args.prompt, **options)
        write_outputs([(path, run.image, metadata.parameters(run))], [str(file) for file in records])


def edit(args: Namespace) -> Iterator[None]:
    """Edits a picture. Writes a picture for each target, the source, and a strip with a row for each target."""
    check_source_options(args)
    check_instruction(args)
    check_paste(args)
    changes, seeds = edit_options(args), seeds_to_run(args)
    EditOptions(**changes)
    pipe = load_model(args)
    source = open_source(pipe, args)
    prompt = source.prompt if isinstance(source, Trajectory) else source if args.prompt is None else args.prompt
    plan = None if args.tell is None else follow_instruction(args, prompt)
    jobs = [(seed, edit_paths(args, seed_in_name(args, source, seed), len(seeds) > 1)) for seed in seeds]
    paths = [path for _, job_paths in jobs for path in job_paths]
    photo = [] if args.prompt is None else [args.source]
    check_outputs(args, paths, [args.mask, args.region, *photo, *weight_paths(args), *pipe_files(pipe)])
    start = source if isinstance(source, Trajectory) else prepare_source(pipe, args)
    announce_prompts(args.targets)
    if plan is not None:
        rows, columns = (pipe.vae.stride * side for side in latent_size_of(start))
        planned = plan.apply_to(EditOptions(explicit=args.explicit), (rows, columns))
        write_arguments(args, planned)
        changes |= {name: value for name, value in vars(planned).items() if value != getattr(EditOptions, name)}
    changes |= read_masks(args, pipe, start)
    check_words(pipe, changes, start.prompt, args.targets)
    without_objects = {name: value for name, value in changes.items() if name not in OBJECT_OPTIONS}
    make_targets(pipe.components, start, args.targets, EditOptions(**without_objects))
    yield
    if plan is not None:
        print(plan.to_json(), flush=True)
    announce_command(pipe, args)
    for seed, job_paths in jobs:
        edit_once(pipe, args, source, seeded_options(args, seed), job_paths, changes)


def edit_once(
    pipe: Pipeline,
    args: Namespace,
    source: Trajectory | str,
    options: dict[str, Any],
    paths: Sequence[Path],
    changes: dict[str, Any],
) -> None:
    """Edits the source of `edit` with the options of one run. paths: as of `edit_paths`. changes: those of the edit."""
    is_photo = args.prompt is not None
    inversion = inversion_settings(args, options.get("seed"))
    if is_photo:
        source, options = invert_photo(pipe, args, args.source, options), {}
    runs = pipe.edit(source, args.targets, **changes, **options)
    source = finished_source(runs[0])
    plain = [None if args.no_compare else without_p2p(pipe, source, run.prompt) for run in runs]
    rows = [edit_row(source, *pair) for pair in zip(plain, runs, strict=True)]
    columns = max(map(len, rows))
    strip = viz.grid([panel for row in rows for panel in row], columns=columns)
    texts = [metadata.parameters(run, **edit_settings(args), **inversion) for run in runs]
    mask = changes["local_blend"].mask if args.mask else None
    pictures = [paste_over_source(args, source, run, mask) if args.paste else run.image for run in runs]
    pictures += [source.image, strip]
    texts += [metadata.parameters(source, **(inversion if is_photo else {})), "\n\n".join(texts)]
    tables = [
        f"{source.prompt} -> {run.prompt}\n{explain_alignment(pipe, source.prompt, run.prompt, args.kind)}\n"
        for run in runs
    ]
    write_outputs(list(zip(paths, pictures, texts, strict=True)), tables)


def invert(args: Namespace) -> Iterator[None]:
    """Inverts a photograph. Writes the run's file and the run's picture."""
    check_inversion(args)
    file = run_file_path(args.out)
    path = file.with_suffix(PICTURE_SUFFIX)
    check_outputs(args, [file, path], [args.picture, *weight_paths(args)])
    RunSettings(**run_options(args, args.seed))
    pipe = load_model(args)
    refuse_inputs(pipe_files(pipe), [file, path])
    prepare_photo(pipe, args, args.picture)
    yield
    announce_command(pipe, args)
    run = invert_photo(pipe, args, args.picture, run_options(args, args.seed))
    image = run.image
    run.save(file)
    text = metadata.parameters(run, **inversion_settings(args, args.seed))
    write_outputs([(path, image, text)], [str(file)])


def instruct(args: Namespace) -> Iterator[None]:
    """Edits a picture by an instruction. Writes the new picture, and the run's file if --record asks for it."""
    jobs = plan_pictures(args, args.prompt, [args.picture, *weight_paths(args)])
    pipe = load_model_for(args, jobs)
    scale = {} if args.image_guidance_scale is None else {"image_guidance_scale": args.image_guidance_scale}
    prepare_photo(pipe, args, args.picture, lambda photo: instruct_pix2pix_conditioning(pipe.components, photo, 1.0))
    yield
    announce_command(pipe, args)
    for seed, path, records in jobs:
        run = pipe.instruct(args.picture, args.prompt, **scale, **fit_option(args), **seeded_options(args, seed))
        image = run.conditioning.image
        assert image is not None
        write_picture(args, run, path, records, {"Picture guidance": image.image_guidance_scale})


def inpaint(args: Namespace) -> Iterator[None]:
    """Regenerates a picture under a mask. Writes the new picture, and the run's file if --record asks for it."""
    jobs = plan_pictures(args, args.prompt, [args.picture, args.mask, *weight_paths(args)])
    pipe = load_model_for(args, jobs)
    fit = args.fit or "crop"
    prepare_photo(
        pipe, args, args.picture, lambda photo: inpainting_conditioning(pipe.components, photo, args.mask, fit)
    )
    yield
    announce_command(pipe, args)
    for seed, path, records in jobs:
        options = fit_option(args) | seeded_options(args, seed)
        run = pipe.inpaint(args.picture, args.mask, args.prompt, **options)
        write_picture(args, run, path, records, {"Picture mask": args.mask})


def maps(args: Namespace) -> Iterator[None]:
    """Shows the heat map of each word of a run's prompt. Writes the picture, an overlay for each word, and a strip."""
    is_photo = args.prompt is not None
    check_source_options(args)
    seeds = seeds_to_run(args)
    pipe = load_model(args)
    source = open_source(pipe, args)
    prompt = source.prompt if isinstance(source, Trajectory) else args.prompt if is_photo else args.source
    words = list(dict.fromkeys(word.text for word in pipe.text.prompt(prompt).visible_words))
    if not words:
        raise ValueError(f"the prompt {prompt!r} has no words to show")
    endings = ["", *(f"-{number}-{png.slug(word)}" for number, word in enumerate(words, 1)), "-strip"]
    jobs = []
    for seed in seeds:
        picture = output_picture(args, prompt, seed_in_name(args, source, seed), len(seeds) > 1)
        jobs.append((seed, [with_ending(picture, ending) for ending in endings]))
    photo = [args.source] if is_photo else []
    check_outputs(args, [path for _, paths in jobs for path in paths], [*photo, *weight_paths(args), *pipe_files(pipe)])
    if not isinstance(source, Trajectory):
        prepare_source(pipe, args)
    yield
    announce_command(pipe, args)
    for seed, paths in jobs:
        if isinstance(source, Trajectory):
            run = source
        elif is_photo:
            run = invert_photo(pipe, args, args.source, seeded_options(args, seed))
        else:
            run = pipe.generate(source, **seeded_options(args, seed))
        panels = maps_row(run, words)
        pictures = [*(picture for picture, _ in panels), viz.grid(panels, columns=6)]
        text = metadata.parameters(run, **inversion_settings(args, seed))
        write_outputs([(path, picture, text) for path, picture in zip(paths, pictures, strict=True)])


# --- pictures as inputs


def open_source(pipe: Pipeline, args: Namespace) -> Trajectory | str:
    """The SOURCE of `edit` or `maps`: the run in a file, or what was given, a prompt or a photograph's file."""
    return pipe.open(Path(args.source)) if is_run_file(args) else args.source


def is_run_file(args: Namespace) -> bool:
    """Whether the SOURCE of `edit` or `maps` is the file of a run."""
    return args.prompt is None and os.path.isfile(args.source)  # `check_source` refuses other files


def prepare_source(pipe: Pipeline, args: Namespace) -> RunStart:
    """The start of a run from the prompt of `edit` or `maps`, or from its photograph. Raises ValueError."""
    if args.prompt is not None:
        return prepare_photo(pipe, args, args.source)
    announce_prompts([args.source])
    return announce_guidance(pipe, args, pipe.prepare(args.source, RunSettings(**run_options(args))))


def prepare_photo(
    pipe: Pipeline, args: Namespace, picture: str, condition: Callable[[Tensor], ImageConditioning] | None = None
) -> RunStart:
    """The start of a run of a picture's size, to check its options. Raises ValueError or OSError.

    condition: what a model of `instruct` or `inpaint` reads, from the picture.
    """
    options = run_options(args)
    photo = load_photo(pipe.components, picture, options.get("size"), args.fit or "crop")
    settings = RunSettings(**options | {"size": tuple(photo.shape[1:])})
    image = None if condition is None else condition(photo)
    return announce_guidance(pipe, args, pipe.prepare(args.prompt, settings, image))


def write_picture(
    args: Namespace, run: Trajectory, path: Path, records: Sequence[Path], settings: dict[str, Any]
) -> None:
    """Writes what `instruct` or `inpaint` made. settings: further settings for the PNG."""
    for file in records:
        run.save(file)
    text = metadata.parameters(run, Picture=args.picture, **settings, **without_none({"Fit": args.fit}))
    write_outputs([(path, run.image, text)], [str(file) for file in records])


def invert_photo(pipe: Pipeline, args: Namespace, photo: str, options: dict[str, Any]) -> Trajectory:
    """Inverts a photograph. options: those of the run."""
    return pipe.invert(photo, args.prompt, **invert_options(args), **options)


def read_masks(args: Namespace, pipe: Pipeline, start: Trajectory | RunStart) -> dict[str, Any]:
    """--mask and --within as keywords of `Pipeline.edit`, fitted to the size of the edit."""
    rows, columns = (pipe.vae.stride * side for side in latent_size_of(start))

    def whiteness(file: str) -> Tensor:
        return (fit_image(read_mask_image(file), (rows, columns), **fit_option(args)).mean(0) + 1) / 2

    masks: dict[str, Any] = {}
    if args.mask is not None:
        masks["local_blend"] = LocalBlend(mask=whiteness(args.mask))
    if args.region is not None:
        masks["region"] = whiteness(args.region)
    return masks


def paste_over_source(args: Namespace, source: Trajectory, run: Trajectory, mask: Tensor | None) -> Image.Image:
    """The edited picture with the source's pixels outside of a mask: the photograph's, or the generated picture's.

    mask: that of --mask, H W in picture pixels; None: the run's own.
    """
    edited = run.picture
    if args.prompt is None:
        original = source.picture
    else:
        original = fit_image(read_image(args.source), (edited.shape[1], edited.shape[2]), **fit_option(args))
    mask = run.blend_mask if mask is None else mask >= 0.5
    if mask is None:
        raise ValueError("--paste needs a mask: new words may change the picture anywhere, so give a word with --blend")
    return to_pil(composite(edited, original, mask))


def fit_option(args: Namespace) -> dict[str, Any]:
    """--fit as a keyword, if it was given."""
    return {} if args.fit is None else {"fit": args.fit}


# --- checks


def check_paste(args: Namespace) -> None:
    """Raises ValueError for --paste without a mask."""
    has_objects = bool(args.move or args.resize or args.duplicate or args.remove)
    if args.paste and args.local_blend is None and args.mask is None and not has_objects:
        raise ValueError("--paste needs a mask: give a word with --blend, or a picture with --mask, or move an object")


def check_source_options(args: Namespace) -> None:
    """Raises ValueError for a source of `edit` or `maps` that cannot be used, and for options that do not fit it."""
    check_source(args.source, args.prompt is not None)
    if args.prompt is None:
        fits_masks = getattr(args, "mask", None) or getattr(args, "region", None)
        names = ["fast", *(name for name in INVERSION_OPTIONS if name != "fit" or not fits_masks)]
        refuse_options(args, names, "the source is not a photograph, or --prompt, which describes it, is missing")
    check_inversion(args)
    if is_run_file(args):
        refuse_options(args, ("seed", "count", *RUN_OPTIONS), f"the run in {args.source} has its own settings")


def refuse_options(args: Namespace, names: Sequence[str], reason: str) -> None:
    """Raises ValueError for options that were given. names: of the options, which the command may lack."""
    if unused := [args.parser.flags[name] for name in names if getattr(args, name, None) is not None]:
        raise ValueError(f"{', '.join(unused)}: {reason}")


def check_inversion(args: Namespace) -> None:
    """Raises ValueError for a seed, a negative prompt, or first steps to skip, that the inversion of a photograph does
    not take."""
    if args.fast and args.method not in (None, FAST_METHOD):
        raise ValueError(f"--fast is --method {FAST_METHOD} in few steps: leave out --fast or --method {args.method}")
    if args.prompt is not None and "seed" not in method_parameters(args):
        reason = "this inversion of a photograph draws no noise; edit-friendly and virtual do"
        refuse_options(args, ("seed", "count"), reason)
    if args.method in PROMPT_AS_NEGATIVE and args.negative_prompt not in (None, "", args.prompt):
        raise ValueError(
            f"--negative: --method {args.method} makes the photograph's prompt the negative prompt, and takes no other"
        )
    if args.skip is not None:
        if "skip" not in method_parameters(args):
            raise ValueError(
                f"--skip: edits of {method_of(args)} inversion take every step; --method virtual can skip some"
            )
        check_number("skip", args.skip, 1)


def announce_prompts(prompts: Sequence[str]) -> None:
    """Warns, by a Notice, of an empty prompt, as of a shell's variable that is not set."""
    if not all(prompt.strip() for prompt in prompts):
        warnings.warn("a prompt is empty, so nothing says what its picture shows", Notice, stacklevel=2)


def announce_guidance(pipe: Pipeline, args: Namespace, start: RunStart) -> RunStart:
    """The start of a run, after a Notice where its guidance leaves the prompt or the negative prompt out."""
    scale = start.guidance_scale
    is_read, image = pipe.unet.reads_guidance, start.conditioning.image
    rows = {branch.kind for branch in guidance_branches(1, scale, image=image, is_read=is_read)}
    if args.negative_prompt and rows == {"conditional"}:
        message = f"--negative has no effect at guidance {scale:g}, which is without guidance: give another --guidance"
        if is_read:
            message = "--negative has no effect on this model, which reads the guidance scale"
        warnings.warn(message, Notice, stacklevel=2)
    if start.prompt and "conditional" not in rows:
        message = f"the prompt has no effect at guidance {scale:g}: 1 is without guidance, and more follows the prompt"
        warnings.warn(message, Notice, stacklevel=2)
    return start


def check_words(pipe: Pipeline, changes: dict[str, Any], source: str, targets: Sequence[str]) -> None:
    """Raises ValueError for words of an edit that are not in their prompt. changes: the keywords of the edit."""
    blend, cross = changes.get("local_blend"), changes.get("cross_replace")
    old = pipe.text.prompt(source)
    for new in map(pipe.text.prompt, targets):
        words = [("--blend", old, word) for word in (blend.source if blend else ())]
        words += [("--blend", new, word) for word in (blend.target if blend else ())]
        words += [
            ("--cross", new, word) for word in (cross if isinstance(cross, Mapping) else ()) if word != "default_"
        ]
        words += [("--reweight", new, word) for word in changes["reweight"]]
        words += [(f"--{name}", old, word) for name in OBJECT_OPTIONS for word in changes.get(name, ())]
        for flag, prompt, word in words:
            try:
                prompt.token_indices(word)
            except ValueError as error:
                other = counterpart(old, new, word) if prompt is new else None
                hint = f"; did you mean {f'{word}:{other}' if flag == '--blend' else other}?" if other else ""
                raise ValueError(f"{flag} {word}: {error}{hint}") from None


def check_outputs(args: Namespace, outputs: Sequence[Path], inputs: Sequence[str | Path | None] = ()) -> None:
    """Raises ValueError or OSError if an output cannot be written, is an input, or exists without --overwrite."""
    png.check_writable(outputs)
    refuse_inputs(inputs, outputs)
    for path in () if args.overwrite else outputs:
        if path.exists():
            raise ValueError(f"{path}: exists already: choose another name, or replace it with --overwrite")


def refuse_inputs(inputs: Sequence[str | Path | None], outputs: Sequence[Path]) -> None:
    """Raises ValueError if an output is an input or lies in a folder that is an input."""
    existing = [path for path in inputs if path and os.path.exists(path)]
    for output in filter(os.path.exists, outputs):
        for path in existing:
            if os.path.samefile(output, path) or Path(path).resolve() in output.resolve().parents:
                raise ValueError(f"{output}: is an input and would be overwritten: choose another name for the output")


def weight_paths(args: Namespace) -> list[str | None]:
    """The files and folders that a command reads weights from."""
    return [args.model, args.vae, args.config, *(parse_lora(text)[0] for text in args.lora), *args.embedding]


def pipe_files(pipe: Pipeline) -> list[Path]:
    """The files of the model's weights, also where the model was named by its name on the hub."""
    return list(pipe.origin.files.values())


# --- pictures to look at


def finished_source(edited: Trajectory) -> Trajectory:
    """The source of an edit, run to its end."""
    assert edited.source_run is not None
    return edited.source_run.finish()


def without_p2p(pipe: Pipeline, source: Trajectory, prompt: str) -> Trajectory:
    """The run of a prompt from the source's noise, with the source's conditioning and without Prompt-to-Prompt."""
    return pipe.edit(source, prompt, cross_replace=0, self_replace=0)


def counterpart(old: Prompt, new: Prompt, word: str) -> str | None:
    """The words that stand in a new prompt in the place of a word of the old one: "cat" -> "tiger"; None if there are
    none."""
    before, after = ([normalize_text(word.text) for word in prompt.words] for prompt in (old, new))
    for operation, i, stop, j, end in SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if operation == "replace" and normalize_text(word) in before[i:stop]:
            n = before.index(normalize_text(word), i) - i + j
            return after[n] if stop - i == end - j else " ".join(after[j:end])
    return None


def edit_row(source: Trajectory, plain: Trajectory | None, edited: Trajectory) -> list[viz.Panel]:
    """Panels of the source, the target without Prompt-to-Prompt, the target with it, and the mask if there is one.

    plain: the target without Prompt-to-Prompt; None leaves its panel out.
    """
    row = [(source.image, f"source: {source.prompt}")]
    if plain is not None:
        row.append((plain.image, f"same noise, without P2P: {plain.prompt}"))
    row.append((edited.image, f"with P2P: {edited.prompt}"))
    if edited.blend_mask is not None:
        row.append((viz.mask_image(edited.blend_mask, edited.image.size), "mask: white may change"))
    return row


def maps_row(run: Trajectory, words: Sequence[str]) -> list[viz.Panel]:
    """Panels of the picture and of each word's heat map over it, captioned with the map's maximum.

    All maps have one scale, whose brightest colour is the largest value of any word.
    """
    picture, heats = run.image, run.maps(list(words))
    top = float(heats.max())
    captions = [f"{word} (at most {float(heat.max()):.2f})" for word, heat in zip(words, heats, strict=True)]
    overlays = [viz.overlay(picture, heat, maximum=top) for heat in heats]
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


def plan_pictures(args: Namespace, prompt: str, inputs: Sequence[str | Path | None]) -> list[PictureJob]:
    """For each seed: the seed, the path of its picture, and of the run's file if --record asks for it. All are checked.

    inputs: the files that the command reads.
    """
    seeds = seeds_to_run(args)
    jobs = []
    for seed in seeds:
        picture = output_picture(args, prompt, RunSettings.seed if seed is None else seed, len(seeds) > 1)
        records = [] if args.record is None else [run_file_path(args.record)]
        if len(seeds) > 1:
            records = [file.with_name(f"{file.stem}-seed{seed}{file.suffix}") for file in records]
        jobs.append((seed, picture, records))
    check_outputs(args, [file for _, path, records in jobs for file in (path, *records)], inputs)
    return jobs


def load_model_for(args: Namespace, jobs: Sequence[PictureJob]) -> Pipeline:
    """Loads the model. Raises ValueError for options of a run that no model takes, and if an output of the jobs is one
    of the model's files, wherever they are."""
    RunSettings(**run_options(args))
    pipe = load_model(args)
    refuse_inputs(pipe_files(pipe), [file for _, path, records in jobs for file in (path, *records)])
    return pipe


def seed_in_name(args: Namespace, source: Trajectory | str, seed: int | None) -> int | None:
    """The seed in the names of the files of `edit` and `maps`: the run's; None for a photograph without --seed."""
    if isinstance(source, Trajectory):
        return source.seed
    return RunSettings.seed if seed is None and args.prompt is None else seed


def edit_paths(args: Namespace, seed: int | None, several: bool) -> list[Path]:
    """The paths of what `edit` writes for a seed: a picture for each target, the source, and the strip.

    In a folder each target's picture has the name of its own prompt; the source and the strip, of the first.
    """
    pictures = [output_picture(args, target, seed, several) for target in args.targets]
    names = [picture.name.casefold() for picture in pictures]
    numbers = [f"-{number}" if names.count(name) > 1 else "" for number, name in enumerate(names, 1)]
    paths = [with_ending(picture, number) for picture, number in zip(pictures, numbers, strict=True)]
    return [*paths, *(with_ending(pictures[0], ending) for ending in ("-source", "-strip"))]


def seeded_options(args: Namespace, seed: int | None) -> dict[str, Any]:
    """`run_options`, after a line that says which seed --seed random has drawn."""
    if args.seed == "random":
        print(f"seed {seed}", flush=True)
    return run_options(args, seed)


def output_picture(args: Namespace, prompt: str, seed: int | None, several: bool = False) -> Path:
    """The picture that a command writes for a seed. The names of further files start with its name.

    seed: None for a photograph, which has none. several: whether the command runs several seeds.
    """
    out = Path(args.out)
    number = "" if seed is None else f"-seed{seed}"
    if out.suffix.lower() == PICTURE_SUFFIX:
        return with_ending(out, number if several else "")
    refuse_file_name(out)
    return out / f"{png.slug(prompt)}{number}{PICTURE_SUFFIX}"


def refuse_file_name(out: Path) -> None:
    """Raises ValueError for an output folder that does not exist yet and has the name of a file."""
    suffix = (out.suffix or out.name).lower()  # .png is the name of a file as well
    if not out.is_dir() and (suffix == RUN_SUFFIX or suffix in Image.registered_extensions()):
        advice = (
            "give a folder" if suffix == PICTURE_SUFFIX else f"give a folder, or a name that ends in {PICTURE_SUFFIX}"
        )
        raise ValueError(f"{out}: the output is {'a folder' if suffix == PICTURE_SUFFIX else 'PNG files'}: {advice}")


def with_ending(picture: Path, ending: str) -> Path:
    """x.png -> x-strip.png."""
    return picture.with_name(f"{picture.stem}{ending}{picture.suffix}")


def write_outputs(files: Sequence[png.PngFile], lines: Sequence[str] = ()) -> None:
    """Writes the pictures, then prints the lines and the names of the pictures.

    The pictures come first because the reader of the output may have gone, which ends the command.
    """
    png.write_pngs(files)
    print(*lines, *(path for path, _, _ in files), sep="\n")
