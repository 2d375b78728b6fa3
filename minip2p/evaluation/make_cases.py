"""The cases of `minip2p bench-edits`: held-out pictures of the tiny world, what each shall become, and where.

    python -m minip2p.evaluation.make_cases [--sprites FOLDER] [--count N] [-o FOLDER]

A case is a scene and what it becomes when one thing is changed. The source is rendered, so that it is a photograph to
the model, which did not make it; the true mask of what is changed comes with it. They are written in PIE-Bench's
layout (`minip2p/piebench.py`), with what the judge has to find beside it.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from minip2p.errors import run_guarded
from minip2p.evaluation.pie_bench import encode_runs
from minip2p.io.files import atomic_write, shipped_weights, write_text
from minip2p.tiny.draw import SIZE
from minip2p.tiny.scenes import (
    ANIMALS,
    BACKGROUNDS,
    COLOURS,
    STYLES,
    THINGS,
    Scene,
    Sprites,
    Thing,
    caption_for,
    fetch_sprites,
    render,
    sample_scene,
)

KINDS = ("object", "add", "remove", "colour", "background", "style", "two")  # "two": one object of two is exchanged


TYPES = dict(zip(KINDS, ("1", "2", "3", "6", "8", "9", "1"), strict=True)).items()  # of PIE-Bench


COUNT = 43  # of each kind: 301 cases


SEED = 7300  # of no training, no report and no choice of settings


FIXED: Sequence[tuple[str, Mapping[str, Any]]] = (
    ("object", {"objects": 1}),
    ("add", {"objects": 2}),
    ("remove", {"objects": 2}),
    ("colour", {"objects": 1}),
    ("background", {"objects": 1, "attribute": None}),
    ("style", {"objects": 1, "style": "photo"}),
    ("two", {"objects": 2}),
)


def choose_other(rng: np.random.Generator, among: Sequence[str], than: Sequence[str]) -> str:
    return str(rng.choice([one for one in among if one not in than]))


def change_scene(kind: str, scene: Scene, rng: np.random.Generator) -> tuple[Scene, Scene]:
    """The scene before and after."""
    first, last = scene.things[0], scene.things[-1]
    if kind in ("object", "two"):
        kin = ANIMALS if last.name in ANIMALS else THINGS
        new = replace(last, name=choose_other(rng, kin, [thing.name for thing in scene.things]))
        return scene, replace(scene, things=(*scene.things[:-1], new))
    if kind == "add":
        return replace(scene, things=(first,)), scene
    if kind == "remove":
        return scene, replace(scene, things=(first,))
    if kind == "colour":
        return scene, replace(scene, things=(replace(last, colour=choose_other(rng, COLOURS, [last.colour or ""])),))
    if kind == "background":
        return scene, replace(scene, background=choose_other(rng, BACKGROUNDS, [scene.background]))
    return scene, replace(scene, style=choose_other(rng, STYLES, ["photo"]))


def with_full_caption(scene: Scene, seed: int) -> Scene:
    """The scene with a caption that names its place and colours; of one seed, in the same words."""
    caption = caption_for(
        np.random.default_rng(seed),
        scene.things,
        scene.background,
        scene.style,
        scene.attribute,
        scene.strength,
        name_place=True,
        name_colour=True,
    )
    return replace(scene, caption=caption)


def scene_pair(kind: str, number: int, seed: int = SEED) -> tuple[Scene, Scene]:
    """The n-th case of a kind: the scene before and after. Scenes are of the split that was held out from training."""
    rng = np.random.default_rng((seed, KINDS.index(kind), number))
    while True:
        scene = sample_scene(rng, held_out=True, **dict(FIXED)[kind])
        if kind != "colour" or (scene.things[0].colour and scene.style != "sketch"):  # which shows colours hardly
            break
    words = int(rng.integers(2**31))
    before, after = change_scene(kind, scene, rng)
    return with_full_caption(before, words), with_full_caption(after, words)


def free_side(kept: Thing, new: Thing) -> np.ndarray:
    """Where a new thing may come, SIZE SIZE bool: its side of the middle between it and the one that is there."""
    left, right = sorted((kept, new), key=lambda thing: thing.x)
    middle = round((left.x + left.size / 2 + right.x - right.size / 2) / 2)
    columns = np.arange(SIZE) >= middle if new is right else np.arange(SIZE) < middle
    return np.broadcast_to(columns, (SIZE, SIZE))


def edit_areas(
    kind: str, before: Scene, after: Scene, masks: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """What may change, and the things that may not, SIZE SIZE bool each; masks: of the rendered source."""
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
    """The words by which a blend is told what may change, as `Blend` takes them; none where all of it may."""
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
    """What the judge has to find: these objects and none of those that went; and what else was changed."""
    names = [thing.name for thing in after.things]
    found: dict[str, Any] = {"objects": names, "gone": [t.name for t in before.things if t.name not in names]}
    if kind == "colour":
        found["colours"] = {thing.name: thing.colour for thing in after.things}
    return found | ({kind: getattr(after, kind)} if kind in ("background", "style") else {})


def make_case(kind: str, number: int, sprites: Sprites, seed: int = SEED) -> tuple[np.ndarray, dict[str, Any]]:
    """A case's picture, and what is said of it but for the picture's name."""
    before, after = scene_pair(kind, number, seed)
    drawn = render(before, sprites)
    may, may_not = edit_areas(kind, before, after, drawn.masks)
    words = blend_words(kind, before, after)
    single = " ".join([*words.get("source", []), *words.get("target", [])])
    return drawn.picture, {
        "original_prompt": before.caption,
        "editing_prompt": after.caption,
        "editing_type_id": dict(TYPES)[kind],
        "blended_word": single if kind in ("object", "two", "colour", "background") else "",
        "mask": encode_runs(may),
        "kind": kind,
        "kept": encode_runs(may_not),
        "blend": words,
        "expected": expected_objects(kind, before, after),
    }


def write_cases(folder: Path, sprites: Sprites, count: int, seed: int = SEED) -> None:
    """The cases' pictures and their mapping_file.json."""
    mapping = {}
    for number in range(count):
        for place, kind in enumerate(KINDS):
            name = f"{number * len(KINDS) + place:03}"
            picture, mapping[name] = make_case(kind, number, sprites, seed)
            mapping[name]["image_path"] = f"{name}.png"
            with atomic_write(folder / "annotation_images" / f"{name}.png") as partial:
                Image.fromarray(picture).save(partial, "PNG", optimize=True)
    lines = [f"{json.dumps(name)}: {json.dumps(one)}" for name, one in mapping.items()]
    write_text(folder / "mapping_file.json", "{\n" + ",\n".join(lines) + "\n}\n")


def main() -> int:
    parser = argparse.ArgumentParser(description="Makes the cases of the editing benchmark.")
    parser.add_argument("--sprites", type=Path, default=Path(".train/sprites"), help="where the objects are, or go")
    parser.add_argument("--count", type=int, default=COUNT, help=f"of each of the {len(KINDS)} kinds")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("-o", "--out", type=Path, default=shipped_weights("bench"))
    given = parser.parse_args()
    return run_guarded(
        lambda: write_cases(given.out, Sprites.load(fetch_sprites(given.sprites)), given.count, given.seed)
    )


if __name__ == "__main__":
    raise SystemExit(main())
