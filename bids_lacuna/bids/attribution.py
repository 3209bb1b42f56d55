"""Whether an image's name and its folders say the same about whose image it is."""

from __future__ import annotations

from collections.abc import Sequence

from bids_lacuna.bids.index import Image

LEVELS = {"sub": "participant", "ses": "session"}
"""Entities that folders have, too, and what they stand for."""


def label_of_folder(name: str, level: str) -> str | None:
    """Return the participant's or session's label in a folder's name, None if it has none."""
    # Some datasets have one folder for both, such as sub-01_ses-1.
    parts = name.split("_")
    for part in parts if all("-" in part for part in parts) else [name]:
        if part.startswith(f"{level}-"):
            return part.partition("-")[2]
    return None


def folder_label(image: Image, level: str) -> str | None:
    """Return the label of the participant's or session's folder, None if the image is in no such folder."""
    for folder in image.path.parent.relative_to(image.root).parts:
        if (label := label_of_folder(folder, level)) is not None:
            return label
    return None


def describe_wrong_name(image: Image) -> str:
    """Describe why it is unclear whose image this is, and what to do about it; empty if it is clear."""
    parts = _parts(image)
    for level, noun in LEVELS.items():
        own = list(dict.fromkeys(part for part in parts if part.startswith(f"{level}-")))
        if not own:
            continue
        if len(own) > 1:
            return f"its name has several {noun} labels, {' and '.join(own)}: rename the file"
        label = folder_label(image, level)
        if label is not None and own[0] != f"{level}-{label}":
            return f"its name says {own[0]}, but its folder says {level}-{label}: rename or move the file"
        after = parts[parts.index(own[0]) + 1 :]
        if label is None and after and "-" not in after[0]:
            return (
                f"its name has {own[0]}_{after[0]}, but a label has no underscore, and no folder says whose it is: "
                "rename the file"
            )
    return ""


def describe_loose_name(image: Image) -> str:
    """Describe what is lost from a name although it is clear whose image this is; empty if nothing."""
    if ignored := [part for part in _parts(image) if "-" not in part]:
        return f"{', '.join(ignored)} in its name, which has no <entity>-<label>, is ignored"
    session = folder_label(image, "ses")
    if session is not None and "ses" not in image.name:
        return f"its name has no session, although its folder is ses-{session}"
    return ""


def _parts(image: Image) -> Sequence[str]:
    """Split a name without its extension and suffix at the underscores."""
    return image.path.name.removesuffix(image.name["extension"]).split("_")[:-1]
