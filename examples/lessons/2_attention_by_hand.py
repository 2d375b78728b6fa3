# %% [markdown]
# # 2. Attention by hand
#
# **How does a pixel know which word it belongs to?**
#
# In each of the UNet's cross-attention layers every place of the picture asks a question, the *query* $q$. Every word
# of the prompt offers a *key* $k$ and a *value* $v$. The place takes a mixture of the values, weighted by how well the
# keys answer its question:
#
# $$A = \operatorname{softmax}\!\left(\frac{q k^\top}{\sqrt d}\right), \qquad \text{out} = A v$$
#
# $A$ has a row for each place and a column for each word; its rows sum to 1. Prompt-to-Prompt edits pictures by editing
# this one matrix, so it pays to look at it first.

# %%
import matplotlib.pyplot as plt
import torch

import minip2p
from minip2p import fused

pipe = minip2p.load()
torch.set_grad_enabled(False)
prompt, seed, steps = "a cat on the beach", 1, 15
run = pipe.generate(prompt, seed=seed, steps=steps)
run.image

# %% [markdown]
# ## Attention is an argument
#
# The UNet does not compute attention by itself. It calls a function `attend(q, k, v, site)` that you may write.
# `site` says which layer is asking. Here is the whole of attention:


# %%
def by_hand(q, k, v, site):
    """q: batch heads places d. k, v: batch heads words d."""
    A = (q @ k.mT / q.shape[-1] ** 0.5).softmax(dim=-1)
    return A @ v


same_run = pipe.generate(prompt, seed=seed, steps=steps, attend=by_hand)
difference = (same_run.latents[-1] - run.latents[-1]).abs().max().item()
print(f"largest difference to the built-in kernel: {difference:.1e}")
assert difference < 1e-3

# %% [markdown]
# ## Where does a word look?
#
# An `attend` can also take notes. This one adds up the maps of all cross-attention layers at 16 × 16 places, mean over
# the heads, and then lets the built-in kernel do the work.

# %%
tokens = pipe.text.prompt(prompt).tokens
total, count = torch.zeros(16 * 16, 77), 0


def with_notes(q, k, v, site):
    global total, count
    if site.cross and site.stride == 1:
        A = (q @ k.mT / q.shape[-1] ** 0.5).softmax(dim=-1)
        total += A[0].mean(dim=0)
        count += 1
    return fused(q, k, v, site)


pipe.generate(prompt, seed=seed, steps=steps, attend=with_notes)
heat = (total / count).T.reshape(77, 16, 16)

shown = {tokens[j]: heat[j] for j in (0, 2, 4, 5)}
shown["all padding"] = heat[len(tokens) :].sum(0)

fig, axes = plt.subplots(1, 5, figsize=(9, 2.3), layout="constrained")
for ax, (name, map_) in zip(axes, shown.items(), strict=True):
    image = ax.imshow(map_, cmap="inferno", vmin=0, vmax=0.6)
    ax.set(xticks=[], yticks=[])
    ax.set_title(f"{name}\nmean {map_.mean():.1%}", fontsize=10)
fig.colorbar(image, ax=axes, label="share of attention")
plt.show()

# %% [markdown]
# The places of the cat look at "cat", all others at "beach"; nobody looks at "the". Half of the attention goes to the
# *padding* that fills each prompt up to 77 tokens. It names nothing in the picture, and all places look there alike.
#
# `run.maps` does this for any word, at the resolutions that locate it best, and enlarges the map to the size of the
# picture. It does not scale it: the numbers are still shares.

# %%
cat, beach = run.maps(["cat", "beach"])

fig, axes = plt.subplots(1, 3, figsize=(8, 2.6), layout="constrained")
axes[0].imshow(run.image)
for ax, map_, word in zip(axes[1:], (cat, beach), ("cat", "beach"), strict=True):
    ax.imshow(run.image)
    heat_image = ax.imshow(map_, cmap="inferno", alpha=0.7, vmin=0)
    fig.colorbar(heat_image, ax=ax, label="share of attention")
    ax.set_title(word)
for ax in axes:
    ax.set(xticks=[], yticks=[])
plt.show()

# %% [markdown]
# ## Exercise
#
# A place that belongs to the cat should give "cat" more attention than "beach". Count how many of the picture's pixels
# prefer "cat", and show them. Is it the cat?

# %% tags=["hide-cell"]
prefers_cat = cat > beach
print(f"{prefers_cat.float().mean():.0%} of the pixels give 'cat' more attention than 'beach'")
fig, axes = plt.subplots(1, 2, figsize=(5, 2.5))
axes[0].imshow(run.image)
axes[1].imshow(prefers_cat, cmap="gray")
for ax in axes:
    ax.set(xticks=[], yticks=[])
plt.show()
# It is the cat: a threshold of the map of "cat" alone (Otsu's) gives much the same mask.
mask = run.mask("cat")
overlap = (prefers_cat & mask).sum() / (prefers_cat | mask).sum()
print(f"intersection over union of both masks: {overlap:.0%}")
assert overlap > 0.6
