"""The algebra of edits, Â = A_s R + A_e S: every kind of edit, in map space and in value space."""

import pytest
import torch
from edit_table import (
    COMPOSED,
    CROSS,
    EYE,
    FEW,
    TABLE,
    assert_close,
    matrices,
    prompt_pairs,
    random_qkv,
    table_terms,
)
from hypothesis import given
from hypothesis import strategies as st
from prompts import tokenize
from torch import ones

from minip2p.attention.contract import attention_map, fused
from minip2p.p2p.algebra import (
    IDENTITY,
    INJECT,
    AttentionEdit,
    MaskedEdit,
    cache_key,
    matmul_left,
    matmul_right,
    refine_edit,
    simplify,
    swap_edit,
)
from minip2p.p2p.alignment import refine_alignment, swap_mapper
from minip2p.p2p.controller import controlled_attention
from minip2p.p2p.edit_plan import StepEdit

every_kind = pytest.mark.parametrize("kind", TABLE)


def in_map_space(edit, q_s, k_s, q, k, v):
    return edit.in_map_space(attention_map(q_s, k_s), attention_map(q, k)) @ v


def in_value_space(edit, q_s, k_s, q, k, v):
    return edit.attend((q_s, k_s), (q, k), v, CROSS)


# Every kind of edit


@every_kind
@given(table_terms())
@FEW
def test_the_scheduled_pair_equals_the_table(kind, terms):
    for actual, expected in zip(matrices(COMPOSED[kind](*terms)), TABLE[kind](*terms), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)


@every_kind
@given(table_terms(), st.integers(0, 99))
@FEW
def test_map_space_and_value_space_equal_A_s_R_plus_A_e_S(kind, terms, seed):
    edit, tensors = COMPOSED[kind](*terms), random_qkv(seed)
    R, S = TABLE[kind](*terms)
    expected = (attention_map(*tensors[:2]) @ R + attention_map(*tensors[2:4]) @ S) @ tensors[4]
    assert_close(in_map_space(edit, *tensors), expected, expected.std())
    assert_close(in_value_space(edit, *tensors), expected, expected.std())


@every_kind
@given(table_terms(), st.integers(0, 99))
@FEW
def test_inputs_stay_unchanged(kind, terms, seed):
    q_s, k_s, q, k, v = qkv = random_qkv(seed)
    maps = attention_map(q_s, k_s), attention_map(q, k)
    inputs = [*terms, *qkv, *maps]
    before = [x.clone() for x in inputs]
    edit = COMPOSED[kind](*terms)
    edit.in_map_space(*maps)
    for explicit in (True, False):
        controlled_attention({CROSS: (q_s, k_s)}, [StepEdit(edit, False, 0)], explicit=explicit)(q, k, v, CROSS)
    assert all(torch.equal(x, y) for x, y in zip(inputs, before, strict=True))


# Which of q_s k_s q_e k_e v c α the attention depends on.
READS = {
    "none": "q_e k_e v",
    "swap": "q_s k_s q_e k_e v α",
    "refine": "q_s k_s q_e k_e v α",
    "reweight": "q_s k_s q_e k_e v c α",
    "swap + reweight": "q_s k_s q_e k_e v c α",
    "refine + reweight": "q_s k_s q_e k_e v c α",
    "self injection": "q_s k_s v",
}


@every_kind
@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("source, target", [("a cat on grass", "a lighthouse on grass"), ("a cat", "a cat")])
def test_gradients_are_finite_and_equal_in_both_spaces_through_q_k_v_c_and_alpha(kind, alpha, source, target):
    source, target = tokenize(source), tokenize(target)
    mappers = swap_mapper(source, target), *refine_alignment(source, target)
    gradients = []
    for attend in (in_map_space, in_value_space):
        c, alphas = ones(77).requires_grad_(), torch.full((77,), alpha).requires_grad_()
        tensors = [x.requires_grad_() for x in random_qkv(0)]
        attend(COMPOSED[kind](*mappers, c, alphas), *tensors).square().sum().backward()
        names = "q_s k_s q_e k_e v c α".split()
        gradients.append({name: x.grad for name, x in zip(names, (*tensors, c, alphas), strict=True)})
    for name, in_maps in gradients[0].items():
        in_values = gradients[1][name]
        in_maps, in_values = (torch.zeros(()) if g is None else g for g in (in_maps, in_values))
        if name in READS[kind].split() and (alpha == 0.4 or name in ("v", "α")):
            assert in_maps.any() and in_values.any(), name
        assert torch.isfinite(in_maps).all() and torch.isfinite(in_values).all()
        torch.testing.assert_close(*torch.broadcast_tensors(in_maps, in_values), rtol=1e-3, atol=1e-4)


def test_c_has_a_gradient_even_where_it_is_still_1():
    c = ones(77).requires_grad_()
    in_value_space(INJECT.reweighted(c).scheduled(ones(77)), *random_qkv(0)).square().sum().backward()
    assert c.grad is not None and c.grad.any()


# What is conserved, and what is not


def test_the_identity_leaves_the_target_unchanged_to_the_bit():
    q_s, k_s, q, k, v = random_qkv(0)
    target_map = attention_map(q, k)
    assert torch.equal(IDENTITY.in_map_space(attention_map(q_s, k_s), target_map), target_map)
    assert torch.equal(in_value_space(IDENTITY, q_s, k_s, q, k, v), fused(q, k, v)) and not IDENTITY.changes
    for pair in (swap_edit(EYE.roll(1, 1)), refine_edit(EYE, ones(77)), INJECT.reweighted(3 * ones(77))):
        outside = pair.scheduled(torch.zeros(77))
        assert not outside.changes and not outside.reads and outside.R == 0 and outside.S == 1


def test_injection_is_the_sources_map_to_the_bit():
    q_s, k_s, q, k, v = random_qkv(0)
    source_map = attention_map(q_s, k_s)
    assert torch.equal(INJECT.in_map_space(source_map, attention_map(q, k)), source_map)
    assert torch.equal(in_value_space(INJECT, q_s, k_s, q, k, v), fused(q_s, k_s, v))
    for pair in (swap_edit(EYE), refine_edit(EYE, ones(77)), INJECT.reweighted(ones(77))):
        inside = pair.scheduled(ones(77))
        assert inside.R == 1 and inside.S == 0 and inside.changes and inside.reads


@given(prompt_pairs(), st.floats(0, 1), st.integers(0, 99))
@FEW
def test_a_swap_conserves_attention_except_for_padding_beyond_the_end(pair, alpha, seed):
    """Σ_j Â = α Σ_i A_s (row sum of M)_i + 1 − α, which is 1 where the target has no more tokens than the source.

    This holds for the same α for all words. With an α for each word, a map that takes some columns from A_s M and
    others from A_e sums to anything in (0, 2).
    """
    source, target = pair
    A_s, A_e = (attention_map(*random_qkv(seed)[n : n + 2]) for n in (0, 2))
    edited = swap_edit(swap_mapper(source, target)).scheduled(torch.full((77,), alpha)).in_map_space(A_s, A_e)
    lost = A_s[..., 77 - max(target.eos - source.eos, 0) :].sum(-1)
    assert_close(edited.sum(-1), 1 - alpha * lost)


@given(table_terms(), st.integers(0, 99))
@FEW
def test_each_column_lies_between_the_sources_and_the_targets(terms, seed):
    M, P, kappa, _, alpha = terms
    A_s, A_e = (attention_map(*random_qkv(seed)[n : n + 2]) for n in (0, 2))
    for edit, inner in ((swap_edit(M), A_s @ M), (refine_edit(P, kappa), A_s @ P * kappa + A_e * (1 - kappa))):
        edited = edit.scheduled(alpha).in_map_space(A_s, A_e)
        assert (edited >= torch.minimum(inner, A_e) - 1e-6).all()
        assert (edited <= torch.maximum(inner, A_e) + 1e-6).all()
        assert_close(edited, alpha * inner + (1 - alpha) * A_e)


def test_refining_and_reweighting_do_not_conserve_attention():
    P, kappa = refine_alignment(tokenize("a cat"), tokenize("a red cat"))
    A_s, A_e = torch.full((1, 1, 1, 77), 1 / 77), torch.zeros(1, 1, 1, 77)
    A_e[..., 2] = 1  # all of the target's attention is on the new word
    assert_close(refine_edit(P, kappa).in_map_space(A_s, A_e).sum(), torch.tensor(1 + 76 / 77))
    assert_close(INJECT.reweighted(2 * ones(77)).in_map_space(A_s, A_e).sum(), torch.tensor(2.0))


# Masked edits and matrices that are numbers


@pytest.mark.parametrize("mask, expected", [(1.0, "inside"), (0.0, "outside"), (0.25, "both")])
def test_a_masked_edit_is_the_edit_inside_and_the_source_outside_in_both_spaces(mask, expected):
    q_s, k_s, q, k, v = random_qkv(0)
    inside, outside = swap_edit(EYE.roll(1, 1)).scheduled(ones(77) / 2), AttentionEdit(EYE.roll(2, 1), 0.0)
    edit = MaskedEdit(inside, outside, torch.full((6, 1), mask))
    A_s, A_e = attention_map(q_s, k_s), attention_map(q, k)
    shares = {"inside": (1, 0), "outside": (0, 1), "both": (0.25, 0.75)}[expected]
    literal = shares[0] * (A_s.roll(1, -1) + A_e) / 2 + shares[1] * A_s.roll(2, -1)
    assert_close(edit.in_map_space(A_s, A_e), literal)
    assert_close(edit.attend((q_s, k_s), (q, k), v, CROSS), literal @ v)
    assert edit.changes and edit.reads


def test_simplify_recognizes_zero_and_the_identity_only_where_there_is_no_gradient():
    assert simplify(torch.zeros(3, 3)) == 0.0 and simplify(torch.eye(3)) == 1.0
    other = torch.eye(3).roll(1, 1)
    assert simplify(other) is other
    for matrix in (torch.zeros(3, 3), torch.eye(3)):
        assert simplify(matrix.requires_grad_()) is matrix
    not_square = torch.eye(4)[:3]
    assert simplify(not_square) is not_square


def test_equal_matrices_have_equal_keys_and_one_with_a_gradient_equals_no_other():
    assert cache_key(1.0) == cache_key(1.0) != cache_key(0.0)
    assert cache_key(torch.eye(3)) == cache_key(torch.eye(3)) != cache_key(torch.ones(3, 3))
    assert cache_key(torch.ones(2, 3)) != cache_key(torch.ones(3, 2))
    learned = torch.eye(3).requires_grad_()
    assert cache_key(learned) != cache_key(learned)


def test_products_with_a_number_are_products_with_that_multiple_of_the_identity():
    a, b = torch.randn(4, 3), torch.randn(3, 5)
    assert torch.equal(matmul_right(a, 2.0), 2 * a) and torch.equal(matmul_left(2.0, b), 2 * b)
    assert_close(matmul_right(a, torch.eye(3)), a)
    assert_close(matmul_left(torch.eye(3), b), b)
    assert matmul_right(a.half(), torch.eye(3)).dtype == torch.float16
