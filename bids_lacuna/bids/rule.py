"""The rule by which a lesion mask is recognized."""

from __future__ import annotations

from collections.abc import Collection

from bids_lacuna.bids.index import Image
from bids_lacuna.bids.metadata import Metadata

MASK_SUFFIXES = ("mask", "roi")
"""Suffixes of masks: `mask` in BIDS, `roi` in older datasets, which fMRIPrep still reads."""

LESION_WORDS = ("lesion", "infarct", "stroke")
"""Words in a label or desc that mark a lesion, as in label-acuteinfarct or desc-T1lesion."""

LESION_RULE = (
    "suffix mask or roi; and label L, or lesion, infarct or stroke in the label or desc, "
    'or "Type": "Lesion" in a JSON file beside it or higher up'
)
"""Definition of a lesion mask without filters, in words."""


def is_lesion(image: Image, metadata: Metadata, filtered: Collection[str] = ()) -> bool:
    """Apply the rules for lesion masks that no filter replaces."""
    if "suffix" not in filtered and image.name["suffix"] not in MASK_SUFFIXES:
        return False
    if "stat" not in filtered and "stat" in image.name:
        return False
    if not {"label", "desc", "suffix"}.isdisjoint(filtered) or image.name.get("label") == "L":
        return True
    names = f"{image.name.get('label')} {image.name.get('desc')}".lower()
    return any(word in names for word in LESION_WORDS) or metadata.of(image).get("Type") == "Lesion"
