# %% [markdown]
# # 3. An ablation is a lambda
#
# **What does a picture lose when a part of its attention is taken away?**
#
# To find out what a part is for, researchers remove it and look at what breaks. That is an *ablation*. Since attention
# is an argument here, removing something takes one line. `explicit(f)` forms the map $A$ and applies `f(A, site)`
# instead.

# %%
import matplotlib.pyplot as plt
import torch

import minip2p
from minip2p import explicit

pipe = minip2p.load()
torch.set_grad_enabled(False)
prompt, seed, steps = "a red car on the street", 2, 12


def ablate(f):
    return pipe.generate(prompt, seed=seed, steps=steps, attend=explicit(f))


# %% [markdown]
# ## Five ablations
#
# * **nothing**: `f` returns the map as it is.
# * **no words**: every place gives all words the same attention.
# * **shifted words**: every word gets the attention of the one before it.
# * **no neighbours**: in self-attention a place looks only at itself.
# * **only the mean**: in self-attention a place looks at all places equally.

# %%
ablations = {
    "nothing": lambda A, site: A,
    "no words": lambda A, site: torch.full_like(A, 1 / A.shape[-1]) if site.cross else A,
    "shifted words": lambda A, site: A.roll(1, -1) if site.cross else A,
    "no neighbours": lambda A, site: A if site.cross else torch.eye(A.shape[-1]).expand_as(A),
    "only the mean": lambda A, site: A if site.cross else torch.full_like(A, 1 / A.shape[-1]),
}
runs = {name: ablate(f) for name, f in ablations.items()}


# %%
def show(runs):
    _, axes = plt.subplots(1, len(runs), figsize=(2 * len(runs), 2.4))
    for ax, (name, run) in zip(axes, runs.items(), strict=True):
        ax.imshow(run.image)
        ax.set(xticks=[], yticks=[])
        ax.set_title(name, fontsize=10)
    plt.show()


show(runs)

# %% [markdown]
# ## A number beside the picture
#
# One picture proves little. A number helps: how far do the latents move from those of the run that was left alone?


# %%
def distance(run):
    """Root mean square of the change of the latents, in standard deviations of the untouched ones."""
    base = runs["nothing"].latents[-1]
    return ((run.latents[-1] - base).square().mean().sqrt() / base.std()).item()


distances = {name: distance(run) for name, run in runs.items() if name != "nothing"}
fig, ax = plt.subplots(figsize=(5, 2.2))
ax.barh(list(distances), list(distances.values()), color="tab:purple")
ax.set(xlabel="change of the latents (standard deviations)", title="How much each ablation changes")
ax.invert_yaxis()
plt.show()

# %% [markdown]
# ## Where in the UNet, and when?
#
# `site` has `place` ("down", "mid", "up"), `index`, `stride` and `cross`. A function with a method `at(step)` can also
# depend on the step. This one takes the words away after a certain step only:


# %%
class NoWordsFrom:
    def __init__(self, first):
        self.first = first

    def at(self, step):
        return ablations["no words"] if step >= self.first else ablations["nothing"]

    def __call__(self, A, site):
        return A


late = {f"from step {first}": ablate(NoWordsFrom(first)) for first in (0, steps // 8, steps // 4, steps // 2)}
show(late)

# %% [markdown]
# The later the words are taken away, the more of the picture they described is there already: the car stands in the
# last one, although half of the steps had no words.
#
# ## Exercise
#
# Which part of the UNet places the object: the way down, the middle, or the way up? Take the words away at the
# cross-attention of one `site.place` at a time, and compare the distances.

# %% tags=["hide-cell"]
by_place = {
    place: ablate(
        lambda A, site, place=place: torch.full_like(A, 1 / A.shape[-1]) if site.cross and site.place == place else A
    )
    for place in ("down", "mid", "up")
}
show(by_place)
print({place: round(distance(run), 2) for place, run in by_place.items()})
# The way up has most of the cross-attention layers (4 of 7), and here most of the effect.
assert max(by_place, key=lambda place: distance(by_place[place])) == "up"
