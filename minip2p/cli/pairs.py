"""The command `minip2p pairs`: pairs of pictures that train an editor by instructions."""

from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from minip2p.cli import estimate
from minip2p.cli.commands import refuse_file_name
from minip2p.cli.experiments import describe_shard, load_driver, make_ray_pool, read_shard
from minip2p.cli.options import parse_numbers, parse_size, parse_threshold, without_none
from minip2p.io import png
from minip2p.metrics.clip_score import ClipScore
from minip2p.pairs.prompts import read_prompts
from minip2p.pairs.settings import OF_A_KIND, PRESETS, SCORES, PairSettings
from minip2p.sampling.batches import MAX_BATCH
from minip2p.sampling.guidance import unet_rows
from minip2p.sampling.progress import progress_bar

RANGES = ("guidance", "cross_replace", "self_replace")
NUMBERS = ("seed", "samples", "steps", "self_max_queries", "grow", "keep", "noises")
NAMES_OF_A_KIND = ("cross-range", "self-range", *(name.replace("_", "-") for name in OF_A_KIND[2:-1]))


def pairs(args: Namespace) -> Iterator[None]:
    """Makes the pairs of a file of prompts. Prints how many there are, and the files."""
    refuse_file_name(Path(args.out))
    try:
        from minip2p.pairs import dataset, make
    except ImportError as error:
        raise ValueError(f"pairs need {error.name}: pip install 'minip2p[sweep]'") from None
    formats = args.formats.split(",")
    if unknown := [name for name in formats if name not in dataset.FORMATS]:
        raise ValueError(f"--format has no {unknown[0]!r}; the formats are {', '.join(dataset.FORMATS)}")
    shard, join = read_shard(args)
    settings, units, folder = read_settings(args), read_prompts(Path(args.prompts)), Path(args.out)
    check_kinds(args, {target.kind for unit in units for target in unit.targets})
    clip, pipe = load_clip(args), load_driver(args)
    make.check_units(pipe, units, settings, clip)
    png.check_writable([folder / "pairs.json", make.unit_file(folder, units[0])])
    yield
    if join is None and args.ray is None:
        missing = [unit for unit in shard.of(units) if not make.unit_file(folder, unit).exists()]
        row = unet_rows(1, settings.guidance[1], is_read=pipe.unet.reads_guidance)
        estimate.announce(
            pipe.components,
            make.predicted_rows(pipe, missing, settings, clip is not None),
            pipe.components.latent_size(settings.size),
            pictures=settings.samples * sum(1 + len(unit.targets) for unit in missing),
            batch=MAX_BATCH * row,
            advice="fewer --samples or --steps take less; an interrupted run continues",
        )
    make.make_pairs(
        pipe,
        units,
        settings,
        folder,
        clip=clip,
        shard=shard,
        join=join,
        make_pool=make_ray_pool(args, pipe, load_clip),
        progress=progress_bar,
    )
    if args.shard is not None:
        print(describe_shard(shard, len(shard.of(units)), len(units), "sources"))
        return
    files = make.write_dataset(folder, units, formats)
    print(make.summarize(folder, units), *files, sep="\n")


def check_kinds(args: Namespace, kinds: set[str]) -> None:
    """Raises ValueError where --for names a kind that no line of the file has. kinds: those of its lines."""
    if unknown := [kind for kind, _ in map(parse_kind, args.kinds) if kind not in kinds]:
        raise ValueError(
            f"--for {unknown[0]}: no line of {args.prompts} is of this kind; there are {', '.join(sorted(kinds))}"
        )


def load_clip(args: Namespace) -> ClipScore | None:
    """The CLIP that filters pairs, if --clip names one."""
    return None if args.clip is None else ClipScore(args.clip)


def read_settings(args: Namespace) -> PairSettings:
    """The settings that the options name. Raises ValueError."""
    settings = PairSettings() if args.preset is None else PRESETS[args.preset]
    values: dict[str, Any] = {name: getattr(args, name) for name in NUMBERS}
    values |= {name: parse_range(args.parser.flags[name], text) for name in RANGES if (text := getattr(args, name))}
    values["size"] = None if args.size is None else tuple(parse_size(args.size))
    values["masks"] = None if args.masks is None else tuple(args.masks.split(","))
    if args.mask_threshold is not None:
        try:
            values["mask_threshold"] = parse_threshold(args.mask_threshold)
        except ValueError as error:
            raise ValueError(str(error).replace("--threshold", "--mask-threshold")) from None
    values["least"] = {**settings.least, **parse_least(args.least)}
    kinds = {kind: dict(fields) for kind, fields in settings.kinds.items()}
    for text in args.kinds:
        kind, fields = parse_kind(text)
        of_kind = kinds.setdefault(kind, {})
        of_kind |= fields | {"least": {**of_kind.get("least", {}), **fields.get("least", {})}}
    return replace(settings, kinds=kinds, **without_none(values))


def parse_range(flag: str, text: str) -> tuple[float, float]:
    """'.1:.9' -> (0.1, 0.9), '.5' -> (0.5, 0.5). flag: of the option, for the message."""
    error = ValueError(f"{flag} is a range as .1:.9, not {text!r}")
    try:
        numbers = parse_numbers(text)
    except ValueError:
        raise error from None
    ends = numbers if isinstance(numbers, tuple) else (numbers, numbers)
    if len(ends) != 2:
        raise error
    return ends[0], ends[1]


def parse_least(texts: Sequence[str]) -> dict[str, float | None]:
    """['psnr=20', 'fits_source=none'] -> {'psnr': 20.0, 'fits_source': None}; ['none'] -> None for all."""
    least: dict[str, float | None] = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if text == "none":
            least |= dict.fromkeys(SCORES)
        elif not sign or name not in SCORES:
            raise ValueError(f"--least is none or SCORE=VALUE, with a score of {', '.join(SCORES)}, not {text!r}")
        else:
            least[name] = None if value == "none" else parse_score("--least", text, value)
    return least


def parse_score(flag: str, text: str, value: str) -> float:
    """A number. flag, text: of the option, for the message."""
    try:
        return float(value)
    except ValueError:
        raise ValueError(f"{flag} {text}: the value must be a number or none") from None


def parse_kind(text: str) -> tuple[str, dict[str, Any]]:
    """'style:grow=.5' -> ('style', {'grow': 0.5}); 'style:psnr=none' -> ('style', {'least': {'psnr': None}})."""
    kind, _, assignment = text.partition(":")
    name, _, value = assignment.partition("=")
    if not kind or not value or name not in (*NAMES_OF_A_KIND, *SCORES):
        names = ", ".join((*NAMES_OF_A_KIND, *SCORES))
        raise ValueError(f"--for is KIND:NAME=VALUE, as style:masks=none, with a name of {names}, not {text!r}")
    if name in SCORES:
        return kind, {"least": parse_least([assignment])}
    if name.endswith("range"):
        return kind, {f"{name.split('-')[0]}_replace": parse_range("--for", value)}
    if name == "masks":
        return kind, {"masks": tuple(value.split(","))}
    number = parse_score("--for", text, value)
    return kind, {name.replace("-", "_"): number if name == "grow" or number % 1 else int(number)}
