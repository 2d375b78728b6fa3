# %% [markdown]
# # 5. The algebra of edits
#
# **What do swapping a word, adding a phrase and making a word stronger have in common?**
#
# The paper describes three edits with three formulas. They are one. Let $A_s$ be the source's map and $A_e$ the
# target's own (places × words). Every edit of Prompt-to-Prompt is a pair of matrices (words × words):
#
# $$\hat A = A_s R + A_e S$$
#
# In this lesson you build $R$ and $S$ for the three edits, and then use the formula for something that the paper does
# not do: the edit without ever forming a map.

# %%
import matplotlib.pyplot as plt
import torch

import minip2p
from minip2p import fused
from minip2p.p2p.algebra import refine_edit, swap_edit
from minip2p.p2p.alignment import refine_alignment, swap_mapper

pipe = minip2p.load()
torch.set_grad_enabled(False)
prompt = pipe.text.prompt

# %% [markdown]
# ## Swap
#
# "a **cat** on the beach" → "a **tiger** on the beach": column *tiger* of the target takes column *cat* of the source.
# The matrix $M$ says which source word feeds which target word. Here it is the identity, because the words stand at the
# same places; a word with two tokens would spread over two columns.

# %%
cat, tiger = prompt("a cat on the beach"), prompt("a tiger on the beach")
M = swap_mapper(cat, tiger)
swap = swap_edit(M)


def show(R, S, source, target):
    """Both matrices without the padding: which columns feed the columns of the edited map."""
    fig, axes = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
    for ax, name, matrix, rows in zip(axes, "RS", (R, S), (source.tokens, target.tokens), strict=True):
        image = ax.imshow(matrix[: len(rows), : len(target.tokens)], cmap="cividis", vmin=0, vmax=1)
        ax.set_xticks(range(len(target.tokens)), target.tokens, rotation=60, ha="right")
        ax.set_yticks(range(len(rows)), rows)
        ax.set(title=name, xlabel="token of the edited map")
    axes[0].set_ylabel("token of the source's map")
    axes[1].set_ylabel("token of the target's own map")
    fig.colorbar(image, ax=axes, label="weight", shrink=0.8)
    plt.show()


# %% [markdown]
# ## Refine
#
# "a cat on the beach" → "a cat on the beach **in the fog**": words that both prompts have take the source's map, and
# new words keep their own. $P$ aligns the shared words, and $\kappa$ is 1 for them and 0 for new ones:
# $R = P\,\mathrm{diag}(\kappa)$, $S = \mathrm{diag}(1 - \kappa)$.

# %%
fog = prompt("a cat on the beach in the fog")
P, kappa = refine_alignment(cat, fog)
refine = refine_edit(P, kappa)
show(refine.R, refine.S, cat, fog)

# %% [markdown]
# ## Re-weight
#
# Making word $j$ stronger multiplies its column by $c_j$:
# $(R\,\mathrm{diag}\,c,\ S\,\mathrm{diag}\,c)$. It composes with the other two, and so does a schedule that edits
# the share $\alpha_j$ of word $j$:
# $(R\,\mathrm{diag}\,\alpha,\ S\,\mathrm{diag}\,\alpha + \mathrm{diag}(1 - \alpha))$.

# %%
c = torch.ones(77)
c[tiger.token_indices("tiger")[0]] = 2.0
stronger = swap.reweighted(c)
alpha = torch.full((77,), 0.5)
half = swap.scheduled(alpha)
edits = {"swap": swap, "refine": refine, "stronger": stronger, "half": half}

# %% [markdown]
# ## No map is needed
#
# A layer returns $\hat A v$, and matrix products associate:
#
# $$\hat A v = (A_s R + A_e S)\,v = A_s (R v) + A_e (S v)$$
#
# $R v$ and $S v$ mix the *values* of 77 words, which is almost free. Then the fast kernel, which never forms a map, is
# called twice. Let us check this on random queries, keys and values of the size that Stable Diffusion 1 has.

# %%
g = torch.Generator().manual_seed(0)
heads, places, d = 8, 64 * 64, 40
q_s, q_e = (torch.randn(1, heads, places, d, generator=g) for _ in range(2))
k_s, k_e, v = (torch.randn(1, heads, 77, d, generator=g) for _ in range(3))
A_s, A_e = ((q @ k.mT / d**0.5).softmax(-1) for q, k in ((q_s, k_s), (q_e, k_e)))

for name, edit in edits.items():
    in_maps = edit.in_map_space(A_s, A_e) @ v
    in_values = edit.attend((q_s, k_s), (q_e, k_e), v, site=None)
    difference = (in_maps - in_values).abs().max().item()
    print(f"{name:8}  largest difference {difference:.1e}")
    assert difference < 1e-5
matrices = 2 * 77 * 77 + 2 * v.numel()  # R, S, R v, S v
print(
    f"a map takes {A_s.numel() * 4 / 1e6:.0f} MB here; R, S and their products with v take {matrices * 4 / 1e6:.1f} MB"
)

# %% [markdown]
# The same with what the model really asks. This attention writes down $q$, $k$ and $v$ of each layer, at the last step
# of a short run:


# %%
def queries_keys_values(text):
    notes = {}

    def attend(q, k, v, site):
        notes[site] = q, k, v
        return fused(q, k, v, site)

    pipe.generate(text, seed=1, steps=2, attend=attend)
    return notes


of_cat, of_fog = queries_keys_values(cat.text), queries_keys_values(fog.text)
for site in (site for site in of_cat if site.cross):
    (q_cat, k_cat, _), (q_fog, k_fog, v_fog) = of_cat[site], of_fog[site]
    maps = ((q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) for q, k in ((q_cat, k_cat), (q_fog, k_fog)))
    in_maps = refine.in_map_space(*maps) @ v_fog
    in_values = refine.attend((q_cat, k_cat), (q_fog, k_fog), v_fog, site)
    difference = (in_maps - in_values).abs().max() / in_maps.abs().max()
    print(f"{site.place:4} stride {site.stride}: largest difference {difference:.0e} of the largest value")
    assert difference < 1e-5

# %% [markdown]
# ## Exercise
#
# Attention is redistributed by a swap: a row of $\hat A$ still sums to 1. Is that so for a refinement? For a
# re-weighted swap? Compute the sums of the rows of $\hat A$ for all four edits. For which edits does a place get more
# or less than all of its attention?

# %% tags=["hide-cell"]
sums = {name: edit.in_map_space(A_s, A_e).sum(-1) for name, edit in edits.items()}
for name, sum_ in sums.items():
    print(f"{name:8}  rows sum to {sum_.min():.3f} … {sum_.max():.3f}")
# Rows of M sum to 1, so a swap keeps the sum, with any schedule that is the same for all words. A refinement mixes
# columns of two maps, so its rows need not sum to 1; neither do those of a re-weighted map.
for name, keeps in {"swap": True, "half": True, "refine": False, "stronger": False}.items():
    assert torch.allclose(sums[name], torch.ones(()), atol=1e-4) == keeps
