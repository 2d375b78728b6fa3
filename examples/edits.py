"""Four kinds of edit of one picture, in one strip: python examples/edits.py"""

from pathlib import Path

import minip2p
from minip2p.io import viz

out = Path("out")
out.mkdir(exist_ok=True)

pipe = minip2p.load()
run = pipe.generate("a pig on the grass", seed=1)
edits = {
    "swap a word": pipe.edit(run, "a sheep on the grass"),
    "add a phrase": pipe.edit(run, "a watercolor of a pig on the grass"),
    "make a word stronger": pipe.edit(run, run.prompt, reweight={"grass": 3}),
    "keep everything else": pipe.edit(run, "a sheep on the grass", local_blend=("pig", "sheep")),
}
panels = [(run.image, run.prompt), *((edit.image, caption) for caption, edit in edits.items())]
viz.grid(panels, columns=len(panels)).save(out / "edits.png")
print(out / "edits.png")
