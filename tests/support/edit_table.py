"""The table of edits as pairs (R, S), random prompts and attention to test them with.

Axes: b batch, h heads, i queries, j words, d width of a head.
"""

import torch
from hypothesis import settings
from hypothesis import strategies as st
from prompts import tokenize
from torch import diag, ones

from minip2p.attention.contract import Site
from minip2p.p2p.algebra import IDENTITY, INJECT, dense, refine_edit, swap_edit
from minip2p.p2p.alignment import refine_alignment, swap_mapper

CROSS, SELF = Site("up", 0, True, 1), Site("up", 0, False, 1)
FEW = settings(max_examples=25, deadline=None)
WORDS = "a photo of the cat dog red giraffe xylophone lighthouse grass, beach night".split()
EYE = torch.eye(77)

# Kind of edit -> (R, S), written out, from M of a swap, (P, κ) of a refinement, weights c and the schedule α.
TABLE = {
    "none": lambda M, P, kappa, c, alpha: (0 * EYE, EYE),
    "swap": lambda M, P, kappa, c, alpha: (M @ diag(alpha), diag(1 - alpha)),
    "refine": lambda M, P, kappa, c, alpha: (P @ diag(kappa * alpha), diag(1 - kappa * alpha)),
    "reweight": lambda M, P, kappa, c, alpha: (diag(c * alpha), diag(1 - alpha)),
    "swap + reweight": lambda M, P, kappa, c, alpha: (M @ diag(c * alpha), diag(1 - alpha)),
    "refine + reweight": lambda M, P, kappa, c, alpha: (
        P @ diag(kappa * c * alpha),
        diag((1 - kappa) * c * alpha + 1 - alpha),
    ),
    "self injection": lambda M, P, kappa, c, alpha: (EYE, 0 * EYE),
}
# The same edits by composition: the inner pair, re-weighted, and scheduled last.
COMPOSED = {
    "none": lambda M, P, kappa, c, alpha: IDENTITY,
    "swap": lambda M, P, kappa, c, alpha: swap_edit(M).scheduled(alpha),
    "refine": lambda M, P, kappa, c, alpha: refine_edit(P, kappa).scheduled(alpha),
    "reweight": lambda M, P, kappa, c, alpha: INJECT.reweighted(c).scheduled(alpha),
    "swap + reweight": lambda M, P, kappa, c, alpha: swap_edit(M).reweighted(c).scheduled(alpha),
    "refine + reweight": lambda M, P, kappa, c, alpha: refine_edit(P, kappa).reweighted(c).scheduled(alpha),
    "self injection": lambda M, P, kappa, c, alpha: INJECT,
}


def matrices(edit):
    """(R, S) of an edit, dense."""
    return dense(edit.R, ones(77)), dense(edit.S, ones(77))


@st.composite
def prompt_pairs(draw):
    """Two prompts with equally many words, which can be swapped as well as refined."""
    words = draw(st.lists(st.sampled_from(WORDS), min_size=1, max_size=6))
    changed = [draw(st.sampled_from([word, *WORDS])) for word in words]
    return tokenize(" ".join(words)), tokenize(" ".join(changed))


@st.composite
def table_terms(draw):
    """M, P, κ, c and α of a random pair of prompts. α is 0 or 1, as in a schedule, or anything between."""
    source, target = draw(prompt_pairs())
    g = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    alpha = torch.rand(77, generator=g)
    return (
        swap_mapper(source, target),
        *refine_alignment(source, target),
        3 * torch.randn(77, generator=g),
        alpha.round() if draw(st.booleans()) else alpha,
    )


def random_qkv(seed, rows=1, keys=77, queries=6):
    """q_s, k_s of the source, and q, k, v of targets: sharp random attention with 2 heads of width 4."""
    g = torch.Generator().manual_seed(seed)
    shapes = [(1, queries), (1, keys), (rows, queries), (rows, keys), (rows, keys)]
    return [2 * torch.randn(b, 2, n, 4, generator=g) for b, n in shapes]


def assert_close(actual, expected, scale=1.0):
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5 * float(scale))
