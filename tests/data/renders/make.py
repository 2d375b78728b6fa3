"""Writes the pictures of this folder: PYTHONPATH=. python tests/data/renders/make.py FOLDER_OF_SPRITES

They show twelve of the first 200 held-out scenes of seed 7002. Each is the scene with the most content that the earlier
ones lack, so that together they show every background, style and attribute.
"""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from minip2p.tiny.render import render
from minip2p.tiny.scenes import Scene, dataset
from minip2p.tiny.sprites import Sprites, fetch_sprites

HERE = Path(__file__).parent


def contents(scene: Scene) -> set:
    things = {t.name for t in scene.things} | {t.colour for t in scene.things if scene.style != "sketch"}
    return {scene.background, (scene.style, len(scene.things)), f"with {scene.attribute}"} | things


def main(folder: str) -> None:
    sprites = Sprites.load(fetch_sprites(folder))
    scenes, chosen, covered = list(dataset(7002, 200, held_out=True)), [], set()
    while len(chosen) < 12:
        chosen.append(max(scenes, key=lambda s: len(contents(s) - covered)))
        covered |= contents(chosen[-1])
    truth = []
    for i, scene in enumerate(chosen):
        drawn, labels = render(scene, sprites), np.zeros((128, 128), np.uint8)
        for place, thing in enumerate(scene.things, 1):
            labels[drawn.masks[thing.name]] = place
        picture, masks = f"{i:02}.png", f"{i:02}-masks.png"
        Image.fromarray(drawn.picture).save(HERE / picture, optimize=True)
        Image.fromarray(labels).save(HERE / masks, optimize=True)
        truth.append(
            {
                "picture": picture,
                "masks": masks,
                "caption": scene.caption,
                "background": scene.background,
                "style": scene.style,
                "attribute": scene.attribute,
                "strength": round(scene.strength, 4),
                "colours": {t.name: t.colour for t in scene.things},
            }
        )
    (HERE / "truth.json").write_text(json.dumps(truth, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
