"""Which groups may replace each other in a folder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from grouped import make_maps, write_group

from bids_lacuna.derivatives import GROUP_DICTIONARY
from bids_lacuna.group.cohort import Group, LeftOut
from bids_lacuna.group.earlier import describe_replaced
from bids_lacuna.group.summary import summarize_group


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Group]:
    """Describe a group: the folder, and the group."""
    root = tmp_path_factory.mktemp("earlier")
    group = write_group(root, make_maps())
    summarize_group(group, root / "out", {"source": "masks"})
    return root / "out", group


def test_the_same_lesions_and_connectome_are_the_same_group(described: tuple[Path, Group]) -> None:
    """Other thresholds do not make another group, and a lesion that was left out was asked for, too."""
    out, group = described
    others = replace(group.provenance, options=replace(group.provenance.options, t_thresholds=(9.0,)))
    damaged = LeftOut(group.lesions[1].name, "missing", "its map is truncated")
    for same in (
        group,
        replace(group, provenance=others),
        replace(group, lesions=(group.lesions[0], *group.lesions[2:]), left_out=(damaged,)),
    ):
        assert describe_replaced(out, same) == ""


def test_a_lesion_that_was_left_out_may_come_back(described: tuple[Path, Group], tmp_path: Path) -> None:
    """After it has been mapped again, the same request gives the same group."""
    out, group = described
    earlier = json.loads((out / GROUP_DICTIONARY).read_text())
    name = earlier["ClusteringOrder"].pop()
    earlier["LeftOut"] = [{"Lesion": name, "Kind": "missing", "Reason": "its map is truncated"}]
    (tmp_path / GROUP_DICTIONARY).write_text(json.dumps(earlier))
    assert describe_replaced(tmp_path, group) == ""


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"connectome_name": "HCP"}, "(its ConnectomeName is GSP)"),
        ({"connectome_hash": "f00d"}, "(its ConnectomeHash is GSPhash)"),
        ({"connectome_name": "HCP", "space": "MNI152NLin2009cAsym"}, "(its ConnectomeName is GSP; its SpatialRef"),
    ],
)
def test_another_connectome_is_another_group(
    described: tuple[Path, Group], changes: dict[str, str], words: str
) -> None:
    """The difference is named."""
    out, group = described
    assert words in describe_replaced(out, replace(group, provenance=replace(group.provenance, **changes)))


def test_another_weighting_is_another_group(described: tuple[Path, Group]) -> None:
    """Options that decide the maps are compared."""
    out, group = described
    options = replace(group.provenance.options, weighting="binary")
    found = describe_replaced(out, replace(group, provenance=replace(group.provenance, options=options)))
    assert found == "another group of 5 lesions (its LesionWeighting is volume)"


def test_other_lesions_are_another_group(described: tuple[Path, Group]) -> None:
    """One that is gone and one that is new are named."""
    out, group = described
    renamed = replace(group.lesions[0], name="sub-09_label-lesion")
    assert describe_replaced(out, replace(group, lesions=(renamed, *group.lesions[1:]))) == (
        "another group of 5 lesions (1 of them is not in this one, such as sub-01_label-lesion; it lacks 1, such as "
        "sub-09_label-lesion)"
    )


@pytest.mark.parametrize("content", [None, "{"])
def test_an_incomplete_group_is_replaced(described: tuple[Path, Group], tmp_path: Path, content: str | None) -> None:
    """Without a readable dictionary, which is written last, there is no group."""
    if content:
        (tmp_path / GROUP_DICTIONARY).write_text(content)
    assert describe_replaced(tmp_path, described[1]) == ""
