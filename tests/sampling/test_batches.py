"""Rows in batches: few, and of even size."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from minip2p.sampling.batches import even_chunks


def test_without_rows_there_are_no_batches():
    assert even_chunks([], 8) == []


@given(st.integers(1, 40), st.integers(1, 9))
def test_batches_are_few_and_of_even_size(count, most):
    chunks = even_chunks(list(range(count)), most)
    assert list(itertools.chain(*chunks)) == list(range(count)) and len(chunks) == -(-count // most)
    sizes = [len(chunk) for chunk in chunks]
    assert max(sizes) <= most and max(sizes) - min(sizes) <= 1
