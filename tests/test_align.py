"""Alignment of two prompts: p2p-spec "Replace", "Refine"; parity with the published code on 1,000 random pairs."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from minip2p.p2p.alignment import alignment_table, infer_kind, refine_alignment, swap_mapper
from minip2p.text.prompt import Prompt

ROOT, DATA = Path(__file__).parents[1], Path(__file__).parent / "data"
TOKENIZER = CLIPTokenizer.from_pretrained(ROOT / "weights" / "tiny" / "tokenizer")
WORDS = st.lists(
    st.sampled_from("a the cat dog red on grass xylophone cat, dog. zookeeper's black-and-white".split()),
    min_size=1,
    max_size=8,
)
LONG = st.lists(st.sampled_from(("cat", "xylophone")), min_size=30, max_size=80)
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")


def prompt(words):
    return Prompt.tokenize(words if isinstance(words, str) else " ".join(words), TOKENIZER)


def eye():
    return torch.eye(77)


def has_plain_words(prompt):
    """Whether our words are those that spaces part: no punctuation around them."""
    return [word.text for word in prompt.words] == prompt.text.lower().split(" ")


def is_binary(x):
    return ((x == 0) | (x == 1)).all()


def matrix(entries):
    """77 × 77 from {(i, j): value}."""
    M = torch.zeros(77, 77)
    for at, value in entries.items():
        M[at] = value
    return M


@pytest.fixture(scope="module")
def published():
    """The 500 swap pairs and their mappers; the 500 refine pairs, their mappers and alphas."""
    pairs = json.loads((DATA / "p2p_prompts.json").read_text(encoding="utf-8"))
    data = np.load(DATA / "p2p_mappers.npz")
    M = torch.zeros(500, 77, 77)
    M[tuple(torch.from_numpy(data["swap_at"]).long().T)] = torch.from_numpy(data["swap_value"])
    swaps, refines = ([tuple(map(prompt, pair)) for pair in pairs[kind]] for kind in ("swap", "refine"))
    return swaps, M, refines, torch.from_numpy(data["refine_from"]).long(), torch.from_numpy(data["refine_alpha"])


def test_replace_parity_on_500_pairs(published):
    swaps, original, *_ = published
    assert len(swaps) == len(original) == 500
    for (source, target), M in zip(swaps, original, strict=True):
        assert torch.equal(swap_mapper(source, target, parity=True), M)


def test_refine_parity_on_500_pairs(published):
    *_, refines, original_from, original_alpha = published
    assert len(refines) == len(original_from) == 500
    for (source, target), from_, alpha in zip(refines, original_from, original_alpha, strict=True):
        P, kept = refine_alignment(source, target, parity=True)
        assert torch.equal(torch.where(P.sum(0) > 0, P.argmax(0), -1), from_)
        assert torch.equal(P.sum(0), kept) and torch.equal(kept, alpha.float())


def test_replace_differs_from_the_published_code_by_the_tail_and_the_punctuation_alone(published):
    swaps, original, *_ = published
    same = tail = marks = 0
    for (source, target), M in zip(swaps, original, strict=True):
        ours = swap_mapper(source, target)
        if torch.equal(ours, M):
            same += 1
        elif has_plain_words(source) and has_plain_words(target):
            tail += 1
            last = max(
                new.span[1] for word, new in zip(source.words, target.words, strict=True) if word.text != new.text
            )
            assert torch.equal(ours[:, :last], M[:, :last])
            assert (M.sum(1)[: source.end + 1] != 1).any()
        else:
            marks += 1
    assert min(same, tail, marks) >= 50, (same, tail, marks)


def test_refine_differs_from_the_published_code_only_where_the_target_is_shorter(published):
    *_, refines, _, _ = published
    shorter = 0
    for source, target in refines:
        (P, kept), (P0, kept0) = refine_alignment(source, target), refine_alignment(source, target, parity=True)
        if target.end >= source.end:
            assert torch.equal(P, P0) and torch.equal(kept, kept0)
        else:
            shorter += 1
            assert torch.equal(P[:, : target.end + 1], P0[:, : target.end + 1]) and not torch.equal(P, P0)
            assert P0[: source.end + 1].sum(1).max() == 2 and P[: source.end + 1].sum(1).max() == 1
    assert 100 <= shorter <= 400


def test_swap_of_equal_lengths_is_the_identity():
    assert torch.equal(swap_mapper(prompt("a cat on grass"), prompt("a dog on grass")), eye())


def test_swap_shares_one_token_among_k():
    # start a cat on end | start a zoo ke ep er on end
    source, target = prompt("a cat on"), prompt("a zookeeper on")
    k = target.end - source.end + 1
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


def test_swap_sums_k_tokens_into_one():
    source, target = prompt("a zookeeper on"), prompt("a cat on")
    k = source.end - target.end + 1
    expected = matrix(
        {(0, 0): 1, (1, 1): 1, **{(2 + n, 2): 1 for n in range(k)}, **{(i, i - k + 1): 1 for i in range(2 + k, 77)}}
    )
    assert torch.equal(swap_mapper(source, target), expected)


def test_swap_of_k_into_m_gives_each_target_token_one_mth_of_each_source_token():
    source, target = prompt("giraffes"), prompt("zookeeper")
    k, m = source.end - 1, target.end - 1
    assert 1 < k != m > 1
    assert torch.equal(swap_mapper(source, target)[1 : 1 + k, 1 : 1 + m], torch.full((k, m), 1 / m))


def test_the_published_tail_is_misaligned_and_ours_is_not():
    source, target = prompt("a cat on grass"), prompt("a zookeeper on grass")
    k = target.end - source.end + 1
    ours, theirs = swap_mapper(source, target), swap_mapper(source, target, parity=True)
    assert ours[3, 2 + k] == ours[4, 3 + k] == ours[source.end, target.end] == 1
    assert theirs[3].sum() == theirs[4].sum() == 0 and theirs[2 + k, 2 + k] == 1


def test_marks_go_to_the_marks_that_stand_there_or_to_the_word_before():
    same = swap_mapper(prompt("a cat, on"), prompt("a zookeeper, on"))
    k = prompt("zookeeper").end - 1
    assert same[3, 2 + k] == 1 and same[2, 2 : 2 + k].sum() == 1
    less = swap_mapper(prompt("a cat, on"), prompt("a dog on"))
    assert less[2, 2] == less[3, 2] == less[4, 3] == 1
    more = swap_mapper(prompt("a cat on"), prompt("a dog, on"))
    assert more[2, 2] == more[3, 4] == 1 and more[:, 3].sum() == 0


@given(WORDS, st.data())
def test_rows_of_M_sum_to_one_except_padding_pushed_past_the_end(words, data):
    swapped = data.draw(st.permutations(words)) if data.draw(st.booleans()) else [*words[1:], "xylophone"]
    source, target = prompt(words), prompt(swapped)
    longer = max(target.end - source.end, 0)
    expected = torch.ones(77)
    expected[77 - longer :] = 0
    torch.testing.assert_close(swap_mapper(source, target).sum(1), expected)


@given(LONG, st.data())
def test_rows_of_M_sum_to_one_where_words_are_cut_off(words, data):
    target = prompt(
        data.draw(st.lists(st.sampled_from(("cat", "xylophone")), min_size=len(words), max_size=len(words)))
    )
    source = prompt(words)
    M = swap_mapper(source, target)
    torch.testing.assert_close(M.sum(1)[: source.end + 1], torch.ones(source.end + 1))
    assert is_binary(M.sum(1)[source.end + 1 :])


@given(WORDS | LONG)
def test_equal_prompts_align_as_the_identity(words):
    p = prompt(words)
    P, kept = refine_alignment(p, p)
    assert torch.equal(swap_mapper(p, p), eye()) and torch.equal(P, eye()) and torch.equal(kept, torch.ones(77))


@given(WORDS | LONG, WORDS | LONG)
def test_refine_keeps_equal_tokens_in_order_and_each_source_token_once(words, others):
    source, target = prompt(words), prompt(others)
    P, kept = refine_alignment(source, target)
    assert torch.equal(P.sum(0), kept) and is_binary(kept)
    assert P[: source.end + 1].sum() == P[: source.end + 1].sum(1).count_nonzero()  # at most once
    i, j = P[:, : target.end + 1].T.nonzero().T.flip(0)
    assert all(source.ids[a] == target.ids[b] for a, b in zip(i, j, strict=True))
    assert (i.diff() > 0).all()
    assert P[0, 0] == P[source.end, target.end] == 1
    assert P[: source.end + 1, target.end + 1 :].sum() == 0  # padding takes padding
    assert kept[target.end + 1 :].all() or source.end == 76


def test_refine_of_an_added_word():
    # start a cat end | start a red cat end; the padding stays at its position
    P, kept = refine_alignment(prompt("a cat"), prompt("a red cat"))
    assert torch.equal(P, matrix({(0, 0): 1, (1, 1): 1, (2, 3): 1, (3, 4): 1, **{(i, i): 1 for i in range(5, 77)}}))
    assert kept.tolist() == [1, 1, 0] + [1] * 74


def test_refine_of_a_word_left_out():
    # the target's padding at 4 takes the source's first, at 5: its own position holds the source's end
    P, kept = refine_alignment(prompt("a red cat"), prompt("a cat"))
    expected = {(0, 0): 1, (1, 1): 1, (3, 2): 1, (4, 3): 1, (5, 4): 1, **{(i, i): 1 for i in range(5, 77)}}
    assert torch.equal(P, matrix(expected)) and kept.all()
    theirs, _ = refine_alignment(prompt("a red cat"), prompt("a cat"), parity=True)
    assert torch.equal(theirs, matrix({**{at: v for at, v in expected.items() if at != (5, 4)}, (4, 4): 1}))


def test_ties_go_left_then_up_so_a_repeated_token_is_met_as_early_in_the_target_as_can_be():
    P, kept = refine_alignment(prompt("a cat"), prompt("a cat and a cat"))
    assert kept[:7].tolist() == [1, 1, 1, 0, 0, 0, 1] and P[2, 2] == 1
    P, kept = refine_alignment(prompt("cat dog"), prompt("dog cat"))
    assert kept[:4].tolist() == [1, 1, 0, 1] and P[2, 1] == 1


def test_prompts_that_cannot_be_swapped():
    with pytest.raises(ValueError, match="as many words in the target as in the source, which have 3 and 2"):
        swap_mapper(prompt("a cat"), prompt("a red cat"))
    with pytest.raises(ValueError, match="which have 3 and 2"):
        swap_mapper(prompt("a cat"), prompt("a cat ,"), parity=True)
    with pytest.raises(ValueError, match="published code cannot"):
        swap_mapper(prompt("a  cat"), prompt("a  dog"), parity=True)
    with pytest.raises(ValueError, match="published code cannot"):
        swap_mapper(prompt("cat " * 80 + "a"), prompt("cat " * 80 + "dog"), parity=True)


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
def test_the_kind_of_edit_is_told_from_the_prompts(source, target, kind):
    assert infer_kind(prompt(source), prompt(target)) == kind


def test_the_report_of_a_swap():
    source, target = prompt("a giraffes cat"), prompt("a zookeeper dog")
    assert alignment_table(source, target, swap_mapper(source, target)).splitlines() == [
        "source    share  target",
        "a          1.00  a",
        "giraffes   1.00  zookeeper",
        "cat        1.00  dog",
    ]


def test_the_report_of_a_refinement():
    source, target = prompt("a red cat"), prompt("a cat, running")
    assert alignment_table(source, target, *refine_alignment(source, target)).splitlines() == [
        "source     share  target",
        "a           1.00  a",
        "cat         1.00  cat",
        "(own map)   1.00  running",
        "red         0.00  (unused)",
    ]
