"""Links in datasets: to folders above, to other participants, into hidden folders and out of the dataset."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import synthetic

from bids_lacuna.bids import find_bold_runs, find_lesion_masks
from bids_lacuna.connectome.importers.source import find_files

MASKS = [f"sub-{sub}/anat/sub-{sub}_space-{synthetic.SPACE}_label-lesion_mask.nii.gz" for sub in ("01", "02")]


@pytest.fixture
def bids(tmp_path: Path) -> Path:
    """Write a dataset with two masks."""
    return synthetic.write_images(tmp_path / "bids", *MASKS)


@pytest.mark.parametrize("database", [False, True])
def test_links_to_folders_above_are_not_followed(bids: Path, tmp_path: Path, database: bool) -> None:
    """Each mask is found once, by its own path, though two links in each of two folders lead to folders above."""
    for sub in ("01", "02"):
        (bids / f"sub-{sub}" / "up").symlink_to("..")
        (bids / f"sub-{sub}" / "anat" / "all").symlink_to(tmp_path)
        (bids / f"sub-{sub}" / "a").symlink_to(f"../sub-{3 - int(sub):02}")
    found = find_lesion_masks(bids, database_dir=tmp_path / "index" if database else None)
    assert [mask.path for mask in found] == [bids / mask for mask in MASKS]


def test_a_folder_that_is_only_reached_by_a_link_is_searched(bids: Path, tmp_path: Path) -> None:
    """Participants' folders may be links out of the dataset or into a hidden folder; a loop there ends."""
    (bids / ".pool").mkdir()
    (bids / "sub-01").rename(bids / ".pool" / "one")
    (bids / "sub-02").rename(tmp_path / "two")
    (bids / "sub-01").symlink_to(".pool/one")
    (bids / "sub-02").symlink_to(tmp_path / "two")
    for place in (bids / ".pool" / "one", tmp_path / "two"):
        (place / "loop").symlink_to(".")
        (place / "anat" / "again").symlink_to("../anat")
    assert [mask.path for mask in find_lesion_masks(bids)] == [bids / mask for mask in MASKS]


def test_a_mask_is_one_by_whatever_path(bids: Path, tmp_path: Path) -> None:
    """A dataset that is also given as an additional one, by a link, has each mask once."""
    (tmp_path / "alias").symlink_to(bids)
    found = find_lesion_masks(bids, {"again": bids, "alias": tmp_path / "alias"})
    assert [(mask.dataset, mask.path) for mask in found] == [("source", bids / mask) for mask in MASKS]


def test_links_to_one_file_are_several_masks(bids: Path) -> None:
    """Masks of equal content, which git-annex stores once and links twice, are masks of two participants."""
    (bids / ".git").mkdir()
    (bids / MASKS[0]).rename(bids / ".git" / "object")
    for mask in MASKS:
        (bids / mask).unlink(missing_ok=True)
        (bids / mask).symlink_to("../../.git/object")
    assert [mask.path for mask in find_lesion_masks(bids)] == [bids / mask for mask in MASKS]


def test_a_bold_run_is_one_by_whatever_path(tmp_path: Path) -> None:
    """A run in a linked folder joins its participant's series once."""
    run = f"sub-01/func/sub-01_task-rest_space-{synthetic.SPACE}_desc-preproc_bold.nii.gz"
    root = synthetic.write_images(tmp_path / "prep", run, description=synthetic.DERIVATIVE)
    (root / "sub-01" / "copy").symlink_to("func")
    assert [found.path for found in find_bold_runs(root, synthetic.SPACE)] == [root / run]


def test_series_of_a_source_are_found_once(tmp_path: Path) -> None:
    """A pattern that also matches links to folders gives each file once, by the path without links."""
    for sub in ("1", "2"):
        (tmp_path / f"sub-{sub}" / "func").mkdir(parents=True)
        np.save(tmp_path / f"sub-{sub}" / "func" / f"sub-{sub}.npy", np.ones(3))
        (tmp_path / f"sub-{sub}" / "a").symlink_to("func")
        (tmp_path / f"sub-{sub}" / "up").symlink_to("..")
    expected = [tmp_path / f"sub-{sub}" / "func" / f"sub-{sub}.npy" for sub in ("1", "2")]
    assert find_files(tmp_path, "*/*/*.npy") == expected
    assert sorted(path.name for path in find_files(tmp_path, "*/*/*/*/*.npy")) == ["sub-1.npy", "sub-2.npy"]
