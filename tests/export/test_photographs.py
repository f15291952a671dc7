"""A few of many photographs."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgerpn.export.photographs import spread


def test_a_few_of_many_reach_from_the_first_to_the_last() -> None:
    assert spread(range(31), 16) == list(range(0, 31, 2))
    assert spread(range(199), 100) == list(range(0, 199, 2))
    assert spread("abcde", 1) == ["a"]
    assert spread("abcde", 2) == ["a", "e"]


@given(st.integers(0, 300), st.integers(1, 120))
def test_none_comes_twice_and_the_order_stays(count: int, most: int) -> None:
    found = spread(range(count), most)
    assert len(found) == min(count, most)
    assert found == sorted(set(found))
