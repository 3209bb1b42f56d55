"""What a person should look at in the masks of a group."""

from __future__ import annotations

from collections.abc import Sequence

from bids_lacuna.derivatives import REMARKS
from bids_lacuna.group.cohort import GroupLesion
from bids_lacuna.quality import MaskFacts, find_repeats

NAMED = 2
"""Masks to look at that a warning names; the table has all."""


def list_remarks(lesions: Sequence[GroupLesion], facts: Sequence[MaskFacts | None]) -> list[list[str]]:
    """List what a person should look at in each lesion's mask, in a few words each; empty for seeds.

    Parameters
    ----------
    facts
        Facts about the masks in the space of the maps. A sidecar has remarks about the mask in its own space.
    """
    found: list[list[str]] = [[] for _ in lesions]
    known = [(index, each) for index, each in enumerate(facts) if each]
    repeats = find_repeats(
        [lesions[index].mask.entities["sub"] for index, _ in known],
        [lesions[index].name for index, _ in known],
        [each for _, each in known],
    )
    for (index, each), words in zip(known, repeats, strict=True):
        found[index] = [*lesions[index].sidecar.get(REMARKS, each.remarks), *words]
    return found


def describe_remarks(lesions: Sequence[GroupLesion], remarks: Sequence[Sequence[str]]) -> list[str]:
    """Describe in a sentence, if there is something to say, how many masks a person should look at."""
    marked = [f"{lesion.name} ({'; '.join(words)})" for lesion, words in zip(lesions, remarks, strict=True) if words]
    if not marked:
        return []
    more = f" and {len(marked) - NAMED} more" if len(marked) > NAMED else ""
    return [f"masks to look at, {len(marked)} of {len(lesions)}: {', '.join(marked[:NAMED])}{more}"]
