"""Names of template spaces."""

from __future__ import annotations

import pytest

from bids_lacuna.spaces import (
    DEFAULT_SPACE,
    TEMPLATES,
    check_template,
    describe_mismatch,
    is_own,
    nearest_template,
    nifti_code,
)


@pytest.mark.parametrize(
    ("space", "template"),
    [
        ("MNI152NLin6ASym", "MNI152NLin6Asym"),
        ("mni152nlin2009casym", "MNI152NLin2009cAsym"),
        ("MNI152NLin6Asy", "MNI152NLin6Asym"),
        ("MNI152NLin6Asym", None),
        ("MNI152NLin6Sym", None),
        ("MyTemplate", None),
        ("T1w", None),
    ],
)
def test_misspelt_templates_are_recognized(space: str, template: str | None) -> None:
    """The nearest template is found for a misspelt one, and none for a template or an unrelated name."""
    assert nearest_template(space) == template
    asked = f"if {template} is meant, name the mask space-{template}; else" in describe_mismatch(space, "MNI305")
    assert asked == (template is not None)


@pytest.mark.parametrize("space", ["T1w", "t1w", "orig", "native", "individual", "anat", "scanner", "T2w"])
def test_own_spaces_are_no_connectomes(space: str) -> None:
    """Many people have no common space of these names, in any spelling."""
    assert is_own(space)
    with pytest.raises(ValueError, match="a participant's own space"):
        check_template(space)
    assert f"the participant's own space {space}," in describe_mismatch(space, "MNI305")


@pytest.mark.parametrize("space", ["MNI", "MNI152", "mni152", "MNI152Lin"])
def test_ambiguous_names_are_refused_with_the_list(space: str) -> None:
    """A name that several templates share lists them, the usual two among them."""
    with pytest.raises(ValueError, match=r"MNI152NLin6Asym, .*MNI152NLin2009cAsym: name the template"):
        check_template(space)


@pytest.mark.parametrize("space", ["MNI152NLin6Asym", "MNI152NLin2009cAsym", "IXI549Space", "OurTemplate"])
def test_templates_are_accepted(space: str) -> None:
    """Templates are accepted, a laboratory's own as well."""
    assert not is_own(space)
    check_template(space)


def test_the_default_space_is_a_template() -> None:
    """The space assumed for HDF5 files is one that BIDS names."""
    assert DEFAULT_SPACE in TEMPLATES


@pytest.mark.parametrize(
    ("space", "code"), [("MNI152NLin2009cAsym", 4), ("MNI152Lin", 4), ("MNI305", 2), ("IXI549Space", 2)]
)
def test_the_nifti_code_of_a_space(space: str, code: int) -> None:
    """MNI152 templates have their own NIfTI code; the others share that of aligned coordinates."""
    assert nifti_code(space) == code
