"""Names of spaces: templates, a participant's own spaces, ambiguous and misspelt names, and codes in NIfTI."""

from __future__ import annotations

from difflib import get_close_matches

# fmt: off
TEMPLATES = (
    "MNI152Lin", "MNI152NLin6Sym", "MNI152NLin6Asym", "MNI152NLin6AsymConte69", "MNI152NLin2009aSym",
    "MNI152NLin2009aAsym", "MNI152NLin2009bSym", "MNI152NLin2009bAsym", "MNI152NLin2009cSym", "MNI152NLin2009cAsym",
    "MNI305", "MNIColin27", "MNIInfant", "MNIPediatricAsym", "ICBM452AirSpace", "ICBM452Warp5Space", "IXI549Space",
    "NIHPD", "NKI", "OASIS30ANTs", "OASIS30AntsOASISAnts", "OASIS30Atropos", "PNC", "RESILIENT", "Talairach",
    "UNCInfant",
)
# fmt: on
"""Volume templates with names in BIDS or TemplateFlow; others are allowed."""

OWN_SPACES = ("T1w", "T2w", "orig", "native", "individual", "anat", "scanner")
"""Names of spaces that each participant has for itself; compared without regard to case."""

AMBIGUOUS = ("MNI", "MNI152", "MNI152Lin")
"""Names that stand for several templates, which lie up to 10 mm apart."""

DEFAULT_SPACE = "MNI152NLin6Asym"
"""The space of GSP1000, the connectome that most HDF5 files hold; their layout does not record a space."""

MNI_CODE = 4
"""NIfTI code of an affine into MNI152 space."""

ALIGNED_CODE = 2
"""NIfTI code of an affine into any other template space."""


def is_own(space: str) -> bool:
    """Return whether a name stands for the participant's own space, such as T1w, rather than a template."""
    return space.lower() in {name.lower() for name in OWN_SPACES}


def spell(space: str) -> str:
    """Return a name as BIDS, TemplateFlow and fMRIPrep spell it, whatever its case; another name as it is."""
    return {name.lower(): name for name in (*OWN_SPACES, *TEMPLATES)}.get(space.lower(), space)


def is_ambiguous(space: str) -> bool:
    """Return whether a name stands for several templates."""
    return space.lower() in {name.lower() for name in AMBIGUOUS}


def check_template(space: str) -> None:
    """Raise ValueError if a connectome cannot be in a space: the participant's own, or one of several templates."""
    if is_own(space):
        raise ValueError(
            f"{space} is the name of a participant's own space, but a connectome of many people needs that of a "
            f"template, such as {DEFAULT_SPACE} or MNI152NLin2009cAsym: name the template that its images were "
            "registered to"
        )
    if is_ambiguous(space):
        raise ValueError(f"{describe_ambiguity(space)}: name the template that its images were registered to")


def describe_ambiguity(space: str) -> str:
    """Describe that a name stands for several templates, and list them."""
    meant = [name for name in TEMPLATES if name.startswith("MNI152NLin")]
    return f"the space {space} is ambiguous: it may be {', '.join(meant[:-1])} or {meant[-1]}"


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
    whose = "the participant's own space" if is_own(lesion_space) else "space"
    near = None if is_own(lesion_space) else nearest_template(lesion_space)
    meant = f"if {near} is meant, name the mask space-{near}; else " if near else ""
    return (
        f"the lesion is in {whose} {lesion_space}, the connectome in {connectome_space}: {meant}transform the mask "
        f"to {connectome_space} (nearest-neighbour or GenericLabel interpolation), and name it "
        f"space-{connectome_space}; or give --transform {lesion_space}:{connectome_space}=FILE"
    )
