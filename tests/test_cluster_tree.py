"""The tree of slices: it covers the connectome, and workers that climb it hold few nodes."""

from __future__ import annotations

import pytest

from bids_lacuna.cluster.tree import choose, divide, halves, held_at_most, lineage


@pytest.mark.parametrize(
    ("n_subjects", "n_slices", "largest"), [(5, 1, 5), (83, 11, 8), (1000, 32, 32), (50_000, 391, 128)]
)
def test_slices_cover_the_connectome(n_subjects: int, n_slices: int, largest: int) -> None:
    """Slices follow one another, of one size but for the last; halving them ends at each."""
    slices = divide(n_subjects)
    assert [first for first, _ in slices] == [0, *(stop for _, stop in slices[:-1])]
    assert (len(slices), slices[-1][1], max(stop - first for first, stop in slices)) == (
        n_slices,
        n_subjects,
        largest,
    )
    nodes = [(0, n_slices)]
    leaves = []
    while nodes:
        node = nodes.pop()
        if node[1] - node[0] == 1:
            leaves.append(node)
        else:
            nodes += halves(node)
    assert sorted(leaves) == [(number, number + 1) for number in range(n_slices)]


def test_a_lineage_leads_to_the_root() -> None:
    """Each node that contains a slice is listed from the smallest up; the root has nothing above it."""
    assert lineage((4, 5), (0, 11)) == [(4, 6), (4, 8), (0, 8), (0, 11)]
    assert lineage((10, 11), (0, 11)) == [(8, 11), (0, 11)]
    assert lineage((0, 11), (0, 11)) == []


def test_a_worker_continues_next_to_what_it_has() -> None:
    """A worker maps the neighbour of what it has, and a new one begins far from the others; saved nodes are read."""
    root = (0, 16)
    assert choose([], root, set(), set()) == (0, 1)
    assert choose([(0, 1)], root, {(0, 1)}, set()) == (1, 2)
    assert choose([(0, 1)], root, {(0, 2)}, set()) == (2, 3)
    assert choose([], root, {(0, 2)}, set()) == (8, 9)
    assert choose([], root, {(0, 2)}, {(8, 12), (3, 4)}) == (8, 12)
    assert choose([(15, 16)], root, {(0, 16)}, set()) is None


def test_the_smallest_gap_is_filled_first() -> None:
    """A worker with nodes in both halves, as after another was lost, completes the smaller of two gaps."""
    assert choose([(0, 4), (8, 10), (11, 12), (12, 16)], (0, 16), {(0, 4), (8, 10), (11, 16)}, set()) == (10, 11)


@pytest.mark.parametrize(("n_slices", "expected"), [(1, 2), (2, 3), (11, 6), (32, 7), (391, 11)])
def test_held_at_most(n_slices: int, expected: int) -> None:
    """A worker holds one accumulator for each level of the tree, and two more."""
    assert held_at_most(n_slices) == expected
