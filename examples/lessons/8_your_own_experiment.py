# %% [markdown]
# # 8. Your own experiment
#
# **How do you find out whether a setting really helps?**
#
# A single picture can always be chosen so that an idea looks good. An experiment needs three things more: several
# seeds, a number that measures what you want, and an interval that tells how sure you are. Here you measure what
# $\tau_\text{self}$ does to an edit: how well the background is preserved, and how much the object changes.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch

import minip2p
from minip2p.metrics.image import psnr

pipe = minip2p.load()
torch.set_grad_enabled(False)
source, target = "a cat on the beach", "a tiger on the beach"
taus, steps = (0.0, 0.5, 1.0), 10
seeds = range(6)

# %% [markdown]
# ## Run
#
# For each seed: a source, the mask of its cat, and an edit for each value of $\tau_\text{self}$. The results are plain
# numbers in arrays of seeds × settings. PSNR measures likeness in decibels: a higher one is more alike.

# %%
runs = [pipe.generate(source, seed=seed, steps=steps) for seed in seeds]
cats = [run.mask("cat") for run in runs]


def likeness(**options):
    """PSNR of edit and source, dB, a number for each seed: of the background, and of the place of the cat."""
    edits = [pipe.edit(run, target, **options).picture for run in runs]
    both = list(zip(edits, runs, cats, strict=True))
    return [psnr(edit, run.picture, ~cat) for edit, run, cat in both], [
        psnr(edit, run.picture, cat) for edit, run, cat in both
    ]


results = np.array([likeness(cross_replace=0.4, self_replace=tau) for tau in taus])  # settings, 2, seeds
background, cat_place = results.transpose(1, 2, 0)  # seeds × settings each

# %% [markdown]
# ## The mean, and how sure it is
#
# The *bootstrap* draws as many seeds as there are, with repetition, many times, and looks how much the mean moves. The
# middle 95 % of these means are a confidence interval.


# %%
def interval(values, draws=2000, seed=0):
    """The 95 % bootstrap interval of the mean over the first axis: low, high."""
    rng = np.random.default_rng(seed)
    means = [values[rng.integers(len(values), size=len(values))].mean(0) for _ in range(draws)]
    return np.percentile(means, [2.5, 97.5], axis=0)


def plot(ax, values, label):
    low, high = interval(values)
    ax.plot(taus, values.mean(0), "o-", color="tab:purple")
    ax.fill_between(taus, low, high, alpha=0.25, color="tab:purple", label=f"95 % interval, {len(values)} seeds")
    ax.set(xlabel="self-attention from the source, $\\tau$", ylabel=label)
    ax.legend()


fig, axes = plt.subplots(1, 2, figsize=(9, 3.2))
plot(axes[0], background, "PSNR of the background, dB")
plot(axes[1], cat_place, "PSNR where the cat was, dB")
fig.tight_layout()
plt.show()

# %% [markdown]
# ## Paired differences
#
# Seeds differ a lot from each other: some pictures are easy, some are not. The intervals above are therefore wide:
# those of τ = 0 and τ = 0.5 overlap almost entirely. To compare two settings, do not compare two intervals: subtract
# *within each seed* first, and look at the interval of the differences.


# %%
def paired(better, worse):
    """The mean of the differences, and its interval: all n seeds in both."""
    difference = np.subtract(better, worse)
    low, high = interval(difference)
    return f"{difference.mean():+.1f} dB (95 % interval {low:+.1f} to {high:+.1f})", low


text, low = paired(background[:, -1], background[:, 0])
print("background, τ = 1 against τ = 0:", text)
assert low > 0
print("where the cat was, the same:    ", paired(cat_place[:, -1], cat_place[:, 0])[0])

# %% [markdown]
# If an interval does not contain 0, the effect is more than the luck of these seeds. What it costs is in the other
# line: the place of the cat comes nearer to the cat as well. Whether this is good is for you to say; the numbers only
# tell how much you pay.
#
# On the command line, `minip2p sweep examples/grid.toml -o out/sweep` runs such a grid, shares the steps that cells
# have in common, draws the trade-off between two figures, and can be killed and continued.
#
# ## Exercise
#
# Does cross-attention preserve the background as well? Repeat the experiment with `self_replace=0.4` and
# `cross_replace` in {0, 1}, and give the paired difference with its interval. Is 0 inside of it?

# %% tags=["hide-cell"]
without, _ = likeness(cross_replace=0.0, self_replace=0.4)
with_cross, _ = likeness(cross_replace=1.0, self_replace=0.4)
text, low = paired(with_cross, without)
print("background, τ_cross = 1 against 0:", text)
# 0 is outside: where the source's words looked decides where the object is, and so what is background.
assert low > 0
