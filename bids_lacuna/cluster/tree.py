"""The tree in which the slices of a connectome are merged, and which part of it a worker takes next."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from bids_lacuna import kernels

Node = tuple[int, int]
"""Consecutive slices that are merged into one sum: the index of the first slice, and the one after the last."""

SLICES = 32
"""Slices of a connectome, within the bounds of `LEAST_SUBJECTS` and `MOST_SUBJECTS`."""

LEAST_SUBJECTS, MOST_SUBJECTS = 8, 128
"""Connectome subjects per slice. One merge costs as much as mapping one to five subjects."""


def divide(n_subjects: int) -> list[tuple[int, int]]:
    """Divide a connectome into slices.

    Returns
    -------
    list of (int, int)
        For each slice, the index of its first connectome subject and the one after its last.
    """
    size = min(max(-(-n_subjects // SLICES), LEAST_SUBJECTS), MOST_SUBJECTS)
    size += -size % kernels.GROUP
    return [(first, min(first + size, n_subjects)) for first in range(0, n_subjects, size)]


def subjects_of(node: Node, slices: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Return the index of a node's first connectome subject, and the one after its last."""
    return slices[node[0]][0], slices[node[1] - 1][1]


def halves(node: Node) -> tuple[Node, Node]:
    """Return the two nodes that a node is merged from; the first has a power of two of slices."""
    first, stop = node
    middle = first + (1 << ((stop - first - 1).bit_length() - 1))
    return (first, middle), (middle, stop)


def lineage(node: Node, root: Node) -> list[Node]:
    """List the nodes that contain a node, from its parent up to the root."""
    above = []
    while root != node:
        above.append(root)
        left, right = halves(root)
        root = left if node[1] <= left[1] else right
    return above[::-1]


def held_at_most(n_slices: int) -> int:
    """Count the accumulators that a worker may hold: one per level of the tree, the slice in work, and a merge's."""
    return (n_slices - 1).bit_length() + 2


def choose(near: Collection[Node], root: Node, taken: Collection[Node], saved: Collection[Node]) -> Node | None:
    """Choose the node that a worker maps or reads next.

    The smallest gap beside what the worker has is filled first, so that it can merge soon and never holds more than
    `held_at_most`. A worker that has nothing begins far from the nodes of the others.

    Parameters
    ----------
    near
        Nodes that this worker holds or merges; if none, the node that it made last.
    taken
        Nodes that are made or in work.
    saved
        Nodes that can be read from a checkpoint.

    Returns
    -------
    tuple of int or None
        A saved node or a single slice; None if nothing is left.
    """
    above = sorted(
        {each for node in near for each in lineage(node, root)}, key=lambda each: (each[1] - each[0], each)
    )
    for each in above or [root]:
        if node := largest_free(each, taken):
            while node not in saved and node[1] - node[0] > 1:
                node = halves(node)[0]
            return node
    return None


def largest_free(node: Node, taken: Collection[Node]) -> Node | None:
    """Find the largest part of a node that overlaps no taken node; the first of equals."""
    if any(first <= node[0] and node[1] <= stop for first, stop in taken):
        return None
    if not any(node[0] <= first and stop <= node[1] for first, stop in taken):
        return node
    free = [found for half in halves(node) if (found := largest_free(half, taken))]
    return max(free, key=lambda found: found[1] - found[0], default=None)
