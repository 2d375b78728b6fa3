"""Makes the cases of `minip2p bench-edits`: held-out pictures of the tiny world, each with one thing to change.

    python -m minip2p.evaluation.make_cases [--sprites FOLDER] [--count N] [-o FOLDER]

The source is rendered, so it is a photograph to the model, which did not make it, and the true mask of what changes is
known. The cases are written in PIE-Bench's layout (`minip2p.evaluation.pie_bench`), with what the judge has to find.

Axes: SIZE SIZE pixels.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from PIL import Image

from minip2p.errors import run_guarded
from minip2p.evaluation.pie_bench import encode_runs
from minip2p.io.files import atomic_write, shipped_weights, write_text
from minip2p.tiny.render import render
from minip2p.tiny.scene_edits import KINDS, SCENE_OPTIONS, change_scene, with_full_caption
from minip2p.tiny.scenes import SIZE, Scene, Thing, sample_scene
from minip2p.tiny.sprites import Sprites, fetch_sprites

TYPES = MappingProxyType(
    dict(zip(KINDS, ("1", "2", "3", "6", "8", "9", "1"), strict=True))
)  # editing types of PIE-Bench

COUNT = 43  # of each kind: 301 cases
SEED = 7300  # used in no training, no report and no choice of settings


def scene_pair(kind: str, number: int, seed: int = SEED) -> tuple[Scene, Scene]:
    """The scene before and after, of the case with this number of a kind. The scenes were held out from training."""
    rng = np.random.default_rng((seed, KINDS.index(kind), number))
    while True:
        scene = sample_scene(rng, held_out=True, **SCENE_OPTIONS[kind])
        if kind != "colour" or (scene.things[0].colour and scene.style != "sketch"):  # sketches hardly show colours
            break
    caption_seed = int(rng.integers(2**31))
    before, after = change_scene(kind, scene, rng)
    return with_full_caption(before, caption_seed), with_full_caption(after, caption_seed)


def free_side(present: Thing, new: Thing) -> np.ndarray:
    """Where a new thing may appear, SIZE SIZE bool: on its side of the middle between it and the present thing."""
    left, right = sorted((present, new), key=lambda thing: thing.x)
    middle = round((left.x + left.size / 2 + right.x - right.size / 2) / 2)
    columns = np.arange(SIZE) >= middle if new is right else np.arange(SIZE) < middle
    return np.broadcast_to(columns, (SIZE, SIZE))


def edit_areas(
    kind: str, before: Scene, after: Scene, masks: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """What may change, and the things that must not, SIZE SIZE bool each. masks: of the things of the source."""
    things = np.any([masks[thing.name] for thing in before.things], axis=0)
    if kind == "background":
        return ~things, things
    if kind == "style":
        return np.ones_like(things), np.zeros_like(things)
    if kind == "add":
        return free_side(before.things[0], after.things[1]) & ~things, things
    edited = masks[before.things[-1].name]
    return edited, things & ~edited


def blend_words(kind: str, before: Scene, after: Scene) -> dict[str, list[str]]:
    """The words of a local blend by field of `LocalBlend`; none where everything may change."""
    old, new = before.things[-1].name, after.things[-1].name
    if kind == "style":
        return {}
    if kind == "background":
        return {
            "source": [before.background],
            "target": [after.background],
            "without_source": [old],
            "without_target": [new],
        }
    return {"source": [] if kind == "add" else [old], "target": [] if kind == "remove" else [new]}


def expected_objects(kind: str, before: Scene, after: Scene) -> dict[str, Any]:
    """What the judge has to find: the objects of the target, none of those that were removed, and what else changed."""
    objects = [thing.name for thing in after.things]
    removed = [thing.name for thing in before.things if thing.name not in objects]
    expected: dict[str, Any] = {"objects": objects, "gone": removed}
    if kind == "colour":
        expected["colours"] = {thing.name: thing.colour for thing in after.things}
    if kind in ("background", "style"):
        expected[kind] = getattr(after, kind)
    return expected


def make_case(kind: str, number: int, sprites: Sprites, seed: int = SEED) -> tuple[np.ndarray, dict[str, Any]]:
    """The picture of a case, and its fields in the mapping file except the name of its picture."""
    before, after = scene_pair(kind, number, seed)
    rendered = render(before, sprites)
    editable, fixed = edit_areas(kind, before, after, rendered.masks)
    words = blend_words(kind, before, after)
    blended_word = " ".join([*words.get("source", []), *words.get("target", [])])
    return rendered.picture, {
        "original_prompt": before.caption,
        "editing_prompt": after.caption,
        "editing_type_id": TYPES[kind],
        "blended_word": blended_word if kind in ("object", "two", "colour", "background") else "",
        "mask": encode_runs(editable),
        "kind": kind,
        "kept": encode_runs(fixed),
        "blend": words,
        "expected": expected_objects(kind, before, after),
    }


def write_cases(folder: Path, sprites: Sprites, count: int, seed: int = SEED) -> None:
    """Writes `count` cases of each kind: their pictures and mapping_file.json."""
    mapping = {}
    for number in range(count):
        for index, kind in enumerate(KINDS):
            name = f"{number * len(KINDS) + index:03}"
            picture, mapping[name] = make_case(kind, number, sprites, seed)
            mapping[name]["image_path"] = f"{name}.png"
            with atomic_write(folder / "annotation_images" / f"{name}.png") as partial:
                Image.fromarray(picture).save(partial, "PNG", optimize=True)
    lines = [f"{json.dumps(name)}: {json.dumps(fields)}" for name, fields in mapping.items()]
    write_text(folder / "mapping_file.json", "{\n" + ",\n".join(lines) + "\n}\n")


def main() -> int:
    """Writes the cases from the command line and returns the exit status."""
    parser = argparse.ArgumentParser(description="Makes the cases of the editing benchmark.")
    parser.add_argument(
        "--sprites", type=Path, default=Path(".train/sprites"), help="the folder of the objects' pictures"
    )
    parser.add_argument("--count", type=int, default=COUNT, help=f"cases of each of the {len(KINDS)} kinds")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("-o", "--out", type=Path, default=shipped_weights("bench"))
    args = parser.parse_args()
    return run_guarded(lambda: write_cases(args.out, Sprites.load(fetch_sprites(args.sprites)), args.count, args.seed))


if __name__ == "__main__":
    raise SystemExit(main())
