"""Template spaces: their names in BIDS, and their codes in NIfTI."""

from __future__ import annotations

from difflib import get_close_matches

# fmt: off
TEMPLATES = (
    "MNI152Lin", "MNI152NLin6Sym", "MNI152NLin6Asym", "MNI152NLin6AsymConte69", "MNI152NLin2009aSym",
    "MNI152NLin2009aAsym", "MNI152NLin2009bSym", "MNI152NLin2009bAsym", "MNI152NLin2009cSym", "MNI152NLin2009cAsym",
    "MNI305", "MNIColin27", "ICBM452AirSpace", "ICBM452Warp5Space", "IXI549Space", "OASIS30ANTs", "OASIS30Atropos",
)
# fmt: on
"""Volume templates with names in BIDS; others are allowed."""

DEFAULT_SPACE = "MNI152NLin6Asym"
"""The space of GSP1000, the connectome that most HDF5 files hold; their layout does not record a space."""

MNI_CODE = 4
"""NIfTI code of an affine into MNI152 space."""

ALIGNED_CODE = 2
"""NIfTI code of an affine into any other template space."""


def nearest_template(space: str) -> str | None:
    """Return the template with a name similar to that of a space; None for a template, or if none is similar."""
    if space in TEMPLATES:
        return None
    by_lower_case = {name.lower(): name for name in TEMPLATES}
    near = get_close_matches(space.lower(), by_lower_case, n=1, cutoff=0.8)
    return by_lower_case[near[0]] if near else None


def nifti_code(space: str) -> int:
    """Return the NIfTI code of an affine into a template space."""
    return MNI_CODE if space.startswith("MNI152") else ALIGNED_CODE


def describe_mismatch(lesion_space: str, connectome_space: str) -> str:
    """Describe a mismatch between the spaces of a lesion and of the connectome, and what to do about it."""
    return (
        f"the lesion is in space {lesion_space}, the connectome in {connectome_space}: transform the mask to "
        f"{connectome_space} (nearest-neighbour or GenericLabel interpolation), and name it "
        f"space-{connectome_space}; or, if the connectome is in another space, name that with --connectome-space"
    )
