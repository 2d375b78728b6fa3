"""A short run of the shipped model with its maps stored, and heat maps summed from them by hand."""

from minip2p import AttentionStore, explicit

STEPS = 5
SIZE = (64, 64)  # of the image: latents of 8 × 8
RUN = dict(seed=2, steps=STEPS, size=SIZE)
SOURCE, TARGET = "a cat and a house on grass", "a dog and a house on grass"


def finest_cross_store():
    """A store of every step of the cross-attention at stride 1, which the tiny model's masks read."""
    return AttentionStore(sites=lambda site: site.cross and site.stride == 1, each_step=True)


def stored_run(model):
    """The source as a run, and its maps."""
    store = finest_cross_store()
    model.generate(SOURCE, attend=explicit(store), **RUN)
    return model.generate(SOURCE, **RUN), store


def word_heat(store, prompt, word):
    """A word's heat, y x: summed over its tokens, the steps and the sites, mean over the heads."""
    tokens = list(prompt.token_indices(word))
    return sum(maps[:, 0][..., tokens].sum((0, -1)).mean(0) for maps in store.maps.values()).reshape(8, 8)
