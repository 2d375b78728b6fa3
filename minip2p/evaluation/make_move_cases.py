"""Makes the cases of `minip2p bench-moves`: held-out pictures of the tiny world before and after an object is moved.

    python -m minip2p.evaluation.make_move_cases [--sprites FOLDER] [--count N] [--seed N] [-o FOLDER]

Both pictures are rendered, so it is known what a perfect edit would show. Of each kind, every second case has two
objects. A removed object always leaves another behind, and one that is duplicated is alone, so that there is room.
Only cases that the judge can judge are taken: it finds the true result right, as it is rendered and as the VAE of the
model that ships reconstructs it.

Axes: SIZE SIZE pixels.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from PIL import Image

from minip2p.errors import run_guarded
from minip2p.evaluation.move_benchmark import measure_move, reconstruct_truth
from minip2p.evaluation.move_cases import MoveCase, read_move_case
from minip2p.evaluation.pie_bench import encode_runs
from minip2p.io.files import atomic_write, shipped_weights, write_text
from minip2p.pipeline import Pipeline, load
from minip2p.tiny.judge import Judge
from minip2p.tiny.render import render
from minip2p.tiny.scene_edits import with_full_caption
from minip2p.tiny.scenes import SIZE, Scene, Thing, sample_scene
from minip2p.tiny.sprites import Sprites, fetch_sprites

KINDS = ("horizontal", "diagonal", "depth", "enlarge", "shrink", "duplicate", "remove")
COUNT = 43  # of each kind: 301 cases
SEED = 7400  # used in no training, no report and no choice of settings

SHIFTS = (16, 56)  # of a horizontal move, in pixels
DIAGONAL_SHIFTS = (12, 40)  # in either direction
DEPTH_RATIOS = (0.6, 1.6)  # of the sizes after and before a move in depth
CHANGED_RATIOS = (0.85, 1.18)  # no move in depth lies between these
FACTORS = MappingProxyType({"enlarge": (1.25, 1.6), "shrink": (0.6, 0.8)})
SIZES = (36, 92)  # of an object after the edit
PAIR_SIZES = (40, 60)  # of an object that is duplicated
LARGEST_OVERLAP = 0.35  # of two objects' boxes, as a share of the smaller one


def centre_alone(scene: Scene, thing: Thing, sprites: Sprites) -> np.ndarray:
    """The mean (x, y) of the pixels of a thing of a scene that nothing hides."""
    mask = render(replace(scene, things=(thing,)), sprites).masks[thing.name]
    return np.argwhere(mask).mean(0)[::-1] + 0.5


def resized_about_centre(scene: Scene, thing: Thing, factor: float, sprites: Sprites) -> Thing:
    """The thing at another size, with its centre where it was."""
    centre_x, centre_y = centre_alone(scene, thing, sprites)
    x, foot = centre_x + (thing.x - centre_x) * factor, centre_y + (thing.foot - centre_y) * factor
    return replace(thing, x=float(x), foot=float(foot), size=thing.size * factor)


def change_thing(kind: str, scene: Scene, rng: np.random.Generator, sprites: Sprites) -> Thing:
    """The last thing of a scene after a random change of a kind, which may lead out of the picture."""
    thing = scene.things[-1]
    signs = rng.choice((-1, 1), 2)
    if kind in ("horizontal", "duplicate"):
        return replace(thing, x=thing.x + float(signs[0] * rng.integers(SHIFTS[0], SHIFTS[1] + 1)))
    if kind == "diagonal":
        shift = signs * rng.integers(DIAGONAL_SHIFTS[0], DIAGONAL_SHIFTS[1] + 1, 2)
        return replace(thing, x=thing.x + float(shift[0]), foot=thing.foot + float(shift[1]))
    if kind == "depth":  # on the ground plane, whose vanishing line is the horizon
        ratio = float(rng.uniform(*DEPTH_RATIOS))
        return replace(
            thing,
            x=SIZE / 2 + (thing.x - SIZE / 2) * ratio,
            foot=scene.horizon + (thing.foot - scene.horizon) * ratio,
            size=thing.size * ratio,
        )
    return resized_about_centre(scene, thing, float(rng.uniform(*FACTORS[kind])), sprites)


def box_of(thing: Thing, sprites: Sprites) -> tuple[float, float, float, float]:
    """The left, top, right and bottom of a thing."""
    width, height = sprites.image(thing).size
    return thing.x - width / 2, thing.foot - height, thing.x + width / 2, thing.foot


def overlap(a: Thing, b: Thing, sprites: Sprites) -> float:
    """The common area of two things' boxes, as a share of the smaller box."""
    boxes = np.array([box_of(a, sprites), box_of(b, sprites)])
    sides = np.clip(boxes[:, 2:].min(0) - boxes[:, :2].max(0), 0, None)
    return float(sides.prod() / (boxes[:, 2:] - boxes[:, :2]).prod(1).min())


def fits(scene: Scene, thing: Thing, sprites: Sprites) -> bool:
    """Whether a thing is inside of the picture, on the ground, of a usual size, and hides little of the others."""
    left, top, right, bottom = box_of(thing, sprites)
    inside = min(left, top) >= 1 and right <= SIZE - 1 and scene.horizon + 6 <= bottom <= SIZE - 3
    others = (overlap(thing, other, sprites) for other in scene.things[:-1])
    return inside and SIZES[0] <= thing.size <= SIZES[1] and all(share <= LARGEST_OVERLAP for share in others)


def scene_pair(kind: str, number: int, rng: np.random.Generator, sprites: Sprites) -> tuple[Scene, Scene]:
    """A scene before and after, for the case with this number of a kind. The scenes were held out from training."""
    objects = {"duplicate": 1, "remove": 2}.get(kind, 1 + number % 2)
    while True:
        scene = sample_scene(rng, held_out=True, objects=objects)
        *others, thing = scene.things
        if kind == "duplicate":
            thing = replace(thing, size=float(rng.uniform(*PAIR_SIZES)))
        scene = with_full_caption(replace(scene, things=(*others, thing)), int(rng.integers(2**31)))
        if kind == "remove":
            return scene, replace(scene, things=tuple(others))
        after = change_thing(kind, scene, rng, sprites)
        ratio = after.size / thing.size
        if not fits(scene, after, sprites) or (kind == "depth" and CHANGED_RATIOS[0] < ratio < CHANGED_RATIOS[1]):
            continue
        if kind != "duplicate":
            return scene, replace(scene, things=(*others, after))
        if overlap(thing, after, sprites) == 0:
            return scene, replace(scene, things=(thing, after))


def describe_case(kind: str, before: Scene, after: Scene, sprites: Sprites) -> tuple[np.ndarray, dict[str, Any]]:
    """The pictures of a case before and after, side by side, and its fields in cases.json."""
    thing, changed = before.things[-1], after.things[-1]
    source = render(before, sprites)
    move: dict[str, Any] = {}
    new_place = np.zeros((SIZE, SIZE), bool)
    if kind != "remove":
        shift = centre_alone(after, changed, sprites) - centre_alone(before, thing, sprites)
        move = {"by": shift.round().astype(int).tolist(), "scale": round(changed.size / thing.size, 3)}
        new_place = render(replace(after, things=(changed,)), sprites).masks[thing.name]
        for other in after.things[:-1]:
            if other.foot > changed.foot:
                new_place &= ~render(replace(after, things=(other,)), sprites).masks[other.name]
    by_name = {thing.name: thing for thing in (*before.things[:-1], changed if kind != "remove" else thing)}
    return np.concatenate([source.picture, render(after, sprites).picture], 1), {
        "kind": kind,
        "prompt": before.caption,
        "prompt_after": after.caption if kind == "remove" else before.caption,
        "word": thing.name,
        **move,
        "objects": sorted(by_name, key=lambda name: by_name[name].foot),  # from back to front
        "old_place": encode_runs(source.masks[thing.name]),
        "new_place": encode_runs(new_place),
    }


def can_be_judged(case: MoveCase, pipe: Pipeline, judge: Judge) -> bool:
    """Whether the judge finds the true result right, as it is and as the VAE reconstructs it."""
    truth = case.pictures[1]
    pictures = truth, reconstruct_truth(pipe, case)
    return all(measure_move(case, picture, judge(picture[None]))["success"] for picture in pictures)


def write_cases(folder: Path, sprites: Sprites, count: int, seed: int = SEED) -> None:
    """Writes `count` cases of each kind: their pictures and cases.json. Prints how many scenes were drawn."""
    pipe, judge = load(), Judge.load()
    cases: dict[str, dict[str, Any]] = {}
    drawn = dict.fromkeys(KINDS, 0)
    for number in range(count):
        for index, kind in enumerate(KINDS):
            name = f"{number * len(KINDS) + index:03}"
            rng = np.random.default_rng((seed, index, number))
            while True:
                drawn[kind] += 1
                pictures, fields = describe_case(kind, *scene_pair(kind, number, rng, sprites), sprites)
                with atomic_write(folder / "pictures" / f"{name}.png") as partial:
                    Image.fromarray(pictures).save(partial, "PNG", optimize=True)
                if can_be_judged(read_move_case(folder, name, fields), pipe, judge):
                    break
            cases[name] = fields
    lines = [f"{json.dumps(name)}: {json.dumps(fields)}" for name, fields in cases.items()]
    write_text(folder / "cases.json", "{\n" + ",\n".join(lines) + "\n}\n")
    print(*(f"{kind}: {count} of {number} scenes" for kind, number in drawn.items()), sep="\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the cases from the command line and returns the exit status."""
    parser = argparse.ArgumentParser(description="Makes the cases of the benchmark of moves.")
    parser.add_argument(
        "--sprites", type=Path, default=Path(".train/sprites"), help="the folder of the objects' pictures"
    )
    parser.add_argument("--count", type=int, default=COUNT, help=f"cases of each of the {len(KINDS)} kinds")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("-o", "--out", type=Path, default=shipped_weights("bench-moves"))
    args = parser.parse_args(argv)
    return run_guarded(lambda: write_cases(args.out, Sprites.load(fetch_sprites(args.sprites)), args.count, args.seed))


if __name__ == "__main__":
    raise SystemExit(main())
