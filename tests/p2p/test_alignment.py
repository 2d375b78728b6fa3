"""The alignment of two prompts: mappers of swaps and refinements, their kinds, and the table that shows them."""

import published_data
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prompts import tokenize

from minip2p.p2p.alignment import align_sequences, alignment_table, infer_kind, refine_alignment, segments, swap_mapper

MANY, FEW = settings(deadline=None), settings(deadline=None, max_examples=40)
WORDS = st.lists(
    st.sampled_from("a the cat dog red on grass xylophone cat, dog. zookeeper's black-and-white".split()),
    min_size=1,
    max_size=8,
).map(" ".join)
TOO_LONG = st.lists(st.sampled_from(("cat", "xylophone")), min_size=30, max_size=80).map(" ".join)


def is_binary(x):
    return ((x == 0) | (x == 1)).all()


def matrix(entries):
    """77 × 77 from {(i, j): value}."""
    M = torch.zeros(77, 77)
    for position, value in entries.items():
        M[position] = value
    return M


# Swaps


def test_a_swap_of_words_with_equally_many_tokens_is_the_identity():
    assert torch.equal(swap_mapper(tokenize("a cat on grass"), tokenize("a dog on grass")), torch.eye(77))


def test_a_swap_of_1_token_for_k_divides_its_attention():
    """start a cat on end → start a zoo ke ep er on end."""
    source, target = tokenize("a cat on"), tokenize("a zookeeper on")
    k = target.eos - source.eos + 1
    assert k > 1
    expected = matrix(
        {
            (0, 0): 1,
            (1, 1): 1,
            **{(2, 2 + n): 1 / k for n in range(k)},
            **{(i, i + k - 1): 1 for i in range(3, 77 - k + 1)},
        }
    )
    assert torch.equal(swap_mapper(source, target), expected)


def test_a_swap_of_k_tokens_for_1_adds_their_attention():
    source, target = tokenize("a zookeeper on"), tokenize("a cat on")
    k = source.eos - target.eos + 1
    expected = matrix(
        {(0, 0): 1, (1, 1): 1, **{(2 + n, 2): 1 for n in range(k)}, **{(i, i - k + 1): 1 for i in range(2 + k, 77)}}
    )
    assert torch.equal(swap_mapper(source, target), expected)


def test_in_a_swap_of_k_tokens_for_m_each_target_token_takes_1_mth_of_each_source_token():
    source, target = tokenize("giraffes"), tokenize("zookeeper")
    k, m = source.eos - 1, target.eos - 1
    assert 1 < k != m > 1
    assert torch.equal(swap_mapper(source, target)[1 : 1 + k, 1 : 1 + m], torch.full((k, m), 1 / m))


def test_punctuation_goes_to_the_punctuation_at_its_place_or_to_the_word_before():
    same = swap_mapper(tokenize("a cat, on"), tokenize("a zookeeper, on"))
    k = tokenize("zookeeper").eos - 1
    assert same[3, 2 + k] == 1 and same[2, 2 : 2 + k].sum() == 1
    less = swap_mapper(tokenize("a cat, on"), tokenize("a dog on"))
    assert less[2, 2] == less[3, 2] == less[4, 3] == 1
    more = swap_mapper(tokenize("a cat on"), tokenize("a dog, on"))
    assert more[2, 2] == more[3, 4] == 1 and more[:, 3].sum() == 0


@given(WORDS, st.data())
@MANY
def test_rows_of_M_sum_to_1_except_for_padding_beyond_the_end(text, data):
    words = text.split(" ")
    swapped = data.draw(st.permutations(words)) if data.draw(st.booleans()) else [*words[1:], "xylophone"]
    source, target = tokenize(text), tokenize(" ".join(swapped))
    longer = max(target.eos - source.eos, 0)
    expected = torch.ones(77)
    expected[77 - longer :] = 0
    torch.testing.assert_close(swap_mapper(source, target).sum(1), expected)


@given(TOO_LONG, st.data())
@FEW
def test_rows_of_M_sum_to_1_where_words_are_cut_off(text, data):
    n = len(text.split(" "))
    source = tokenize(text)
    target = tokenize(" ".join(data.draw(st.lists(st.sampled_from(("cat", "xylophone")), min_size=n, max_size=n))))
    M = swap_mapper(source, target)
    torch.testing.assert_close(M.sum(1)[: source.eos + 1], torch.ones(source.eos + 1))
    assert is_binary(M.sum(1)[source.eos + 1 :])


def test_a_swap_needs_equally_many_words():
    with pytest.raises(ValueError, match="as many words in the target as in the source, which have 3 and 2"):
        swap_mapper(tokenize("a cat"), tokenize("a red cat"))


@given(WORDS | TOO_LONG)
@FEW
def test_segments_cover_all_tokens_in_order(text):
    prompt = tokenize(text)
    parts = segments(prompt)
    assert [j for part in parts for j in part] == list(range(77)) and len(parts) == 2 * len(prompt.words) + 3
    assert parts[0] == range(0, 1) and parts[-1] == range(prompt.eos, 77)


# Refinements


@given(WORDS | TOO_LONG)
@FEW
def test_equal_prompts_align_as_the_identity(text):
    prompt = tokenize(text)
    P, kappa = refine_alignment(prompt, prompt)
    assert torch.equal(swap_mapper(prompt, prompt), torch.eye(77))
    assert torch.equal(P, torch.eye(77)) and torch.equal(kappa, torch.ones(77))


@given(WORDS | TOO_LONG, WORDS | TOO_LONG)
@FEW
def test_a_refinement_pairs_equal_tokens_in_order_and_uses_each_source_token_once(text, other):
    source, target = tokenize(text), tokenize(other)
    P, kappa = refine_alignment(source, target)
    assert torch.equal(P.sum(0), kappa) and is_binary(kappa)
    assert P[: source.eos + 1].sum() == P[: source.eos + 1].sum(1).count_nonzero()  # at most once
    i, j = P[:, : target.eos + 1].T.nonzero().T.flip(0)
    assert all(source.ids[a] == target.ids[b] for a, b in zip(i, j, strict=True))
    assert (i.diff() > 0).all()
    assert P[0, 0] == P[source.eos, target.eos] == 1
    assert P[: source.eos + 1, target.eos + 1 :].sum() == 0  # padding takes padding
    assert kappa[target.eos + 1 :].all() or source.eos == 76


def test_a_refinement_that_adds_a_word():
    """start a cat end → start a red cat end; the padding stays at its position."""
    P, kappa = refine_alignment(tokenize("a cat"), tokenize("a red cat"))
    assert torch.equal(P, matrix({(0, 0): 1, (1, 1): 1, (2, 3): 1, (3, 4): 1, **{(i, i): 1 for i in range(5, 77)}}))
    assert kappa.tolist() == [1, 1, 0] + [1] * 74


def test_a_refinement_that_leaves_out_a_word():
    """The target's padding at 4 takes the source's first padding, at 5, since the source's end token is at 4.

    In the published code it takes the end token.
    """
    source, target = tokenize("a red cat"), tokenize("a cat")
    P, kappa = refine_alignment(source, target)
    expected = {(0, 0): 1, (1, 1): 1, (3, 2): 1, (4, 3): 1, (5, 4): 1, **{(i, i): 1 for i in range(5, 77)}}
    assert torch.equal(P, matrix(expected)) and kappa.all()
    published, _ = refine_alignment(source, target, parity=True)
    del expected[5, 4]
    assert torch.equal(published, matrix({**expected, (4, 4): 1}))


def test_ties_are_broken_so_that_a_repeated_token_is_matched_as_early_in_the_target_as_possible():
    P, kappa = refine_alignment(tokenize("a cat"), tokenize("a cat and a cat"))
    assert kappa[:7].tolist() == [1, 1, 1, 0, 0, 0, 1] and P[2, 2] == 1
    P, kappa = refine_alignment(tokenize("cat dog"), tokenize("dog cat"))
    assert kappa[:4].tolist() == [1, 1, 0, 1] and P[2, 1] == 1
    assert align_sequences("ab", "ba") == [(1, 0)] and align_sequences("", "ba") == []


@pytest.fixture(scope="module")
def published_refinements():
    """The 500 pairs of prompts with (P, κ) as the published code aligns them."""
    pairs = published_data.tokenized_pairs("refine")
    return [(source, target, *refine_alignment(source, target, parity=True)) for source, target in pairs]


def test_parity_of_refinements_with_the_published_code_on_500_pairs(published_refinements):
    sources, kappas = published_data.refine_mappers()
    assert len(published_refinements) == len(sources) == 500
    for (_, _, P, kappa), source_tokens, published_kappa in zip(published_refinements, sources, kappas, strict=True):
        assert torch.equal(torch.where(P.sum(0) > 0, P.argmax(0), -1), source_tokens)
        assert torch.equal(P.sum(0), kappa) and torch.equal(kappa, published_kappa)


def test_a_refinement_differs_from_the_published_code_only_where_the_target_is_shorter(published_refinements):
    shorter = 0
    for source, target, P0, kappa0 in published_refinements:
        P, kappa = refine_alignment(source, target)
        if target.eos >= source.eos:
            assert torch.equal(P, P0) and torch.equal(kappa, kappa0)
        else:
            shorter += 1
            assert torch.equal(P[:, : target.eos + 1], P0[:, : target.eos + 1]) and not torch.equal(P, P0)
            assert P0[: source.eos + 1].sum(1).max() == 2 and P[: source.eos + 1].sum(1).max() == 1
    assert 100 <= shorter <= 400


# The kind of edit, and the table


@pytest.mark.parametrize(
    "source, target, kind",
    [
        ("a cat on grass", "a dog on grass", "swap"),
        ("a cat, on grass.", "A dog on grass", "swap"),
        ("cat", "dog", "swap"),
        ("a red car and a blue house", "a blue car and a red house", "swap"),
        ("a photo of a cat", "a watercolor of a dog", "swap"),
        ("a cat", "a red cat", "refine"),
        ("a red cat", "a cat", "refine"),
        ("a cat", "a cat, watercolor", "refine"),
        ("a photo of a cat", "a cat on the beach", "refine"),
        ("a big red car", "a red car parked", "refine"),
        ("a cat", "a cat!", "refine"),
        ("a cat", "A Cat", "refine"),
        ("", "", "refine"),
    ],
)
def test_the_kind_of_edit_is_inferred_from_the_prompts(source, target, kind):
    assert infer_kind(tokenize(source), tokenize(target)) == kind


def test_the_table_of_a_swap():
    source, target = tokenize("a giraffes cat"), tokenize("a zookeeper dog")
    assert alignment_table(source, target, swap_mapper(source, target)).splitlines() == [
        "source    share  target",
        "a          1.00  a",
        "giraffes   1.00  zookeeper",
        "cat        1.00  dog",
    ]


def test_the_table_of_a_refinement():
    source, target = tokenize("a red cat"), tokenize("a cat, running")
    assert alignment_table(source, target, *refine_alignment(source, target)).splitlines() == [
        "source     share  target",
        "a           1.00  a",
        "cat         1.00  cat",
        "(own map)   1.00  running",
        "red         0.00  (unused)",
    ]
