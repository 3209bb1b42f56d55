"""Grey and white matter on a connectome's grid."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import synthetic
from nilearn.datasets import load_mni152_gm_mask

from bids_lacuna.grid import Grid
from bids_lacuna.mapping.tissue import load_tissue

Array = np.ndarray

MNI = np.array([[-4.0, 0, 0, 90], [0, 4, 0, -126], [0, 0, 4, -72], [0, 0, 0, 1]])


def write_map(path: Path, values: Array, affine: Array = synthetic.RADIOLOGICAL) -> Path:
    """Write a map to a file."""
    nib.save(nib.Nifti1Image(values, affine), path)
    return path


def test_default_is_nilearn_masks() -> None:
    """Without maps of the user, each voxel has the fraction of its volume that nilearn's MNI152 masks cover."""
    tissue = load_tissue(Grid(np.ones((47, 56, 47), bool), MNI), "MNI152NLin6Asym")
    mask = load_mni152_gm_mask(resolution=1)
    grey = mask.get_fdata() > 0
    for voxel in ((10, 20, 30), (23, 30, 25), (30, 40, 20), (16, 28, 28), (0, 0, 0)):
        # Voxels of 4 mm hold whole voxels of the mask, and parts of those at their borders.
        centre = nib.affines.apply_affine(np.linalg.inv(mask.affine) @ MNI, voxel)
        sides = [np.clip(2.5 - np.abs(np.arange(n) - c), 0, 1) for n, c in zip(grey.shape, centre, strict=True)]
        assert tissue.grey[voxel] == pytest.approx(np.einsum("xyz,x,y,z", grey, *sides) / 64, abs=1e-6)
    # The white matter above the left ventricle, at (-26, -26, 28) mm.
    assert (tissue.white[29, 25, 25], tissue.grey[29, 25, 25]) == (1, 0)


def test_maps_of_the_user(tmp_path: Path) -> None:
    """A user's map may lie on any grid and have fractions; voxels outside it have none."""
    values = np.random.default_rng(1).uniform(0, 1, (4, 5, 6)).astype(np.float32)
    grey = write_map(tmp_path / "grey.nii.gz", values)
    white = write_map(tmp_path / "white.nii.gz", np.zeros((4, 5, 6), np.uint8))
    affine = synthetic.RADIOLOGICAL @ np.diag([2, 2, 2, 1.0])
    affine[:3, 3] = nib.affines.apply_affine(synthetic.RADIOLOGICAL, [0.5, 0.5, 0.5])
    tissue = load_tissue(Grid(np.ones((3, 2, 3), bool), affine), "Lund", (grey, white))
    blocks = values[:, :4].reshape(2, 2, 2, 2, 3, 2).mean(axis=(1, 3, 5))
    np.testing.assert_allclose(tissue.grey[:2], blocks, rtol=1e-4)
    assert not tissue.grey[2].any()
    assert not tissue.white.any()


def test_other_space_needs_maps() -> None:
    """A connectome in another space than MNI152 needs maps of the user."""
    with pytest.raises(ValueError, match=r"MNIColin27, but .* for MNI152 only: give maps .* --tissue-maps"):
        load_tissue(Grid(np.ones((2, 2, 2), bool), MNI), "MNIColin27")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.full((2, 2, 2), 55.0), "values from 55 to 55, but .* fractions from 0 to 1: divide percentages"),
        (np.full((2, 2, 2), np.nan), "values from nan to nan"),
        (np.zeros((2, 2, 2, 2)), "has 4 dimensions"),
    ],
)
def test_unusable_maps(values: Array, message: str, tmp_path: Path) -> None:
    """A map without fractions, or with more dimensions, is refused with its name."""
    bad = write_map(tmp_path / "bad.nii.gz", values)
    with pytest.raises(ValueError, match=f"bad.nii.gz.*{message}"):
        load_tissue(Grid(np.ones((2, 2, 2), bool), MNI), "MNI152NLin6Asym", (bad, bad))


@pytest.mark.parametrize(("shift", "is_elsewhere"), [(2, False), (3, True)])
def test_a_map_elsewhere(shift: int, is_elsewhere: bool, tmp_path: Path) -> None:
    """A map that covers less than half of the brain mask is in another space, and refused with its coverage."""
    affine = MNI @ nib.affines.from_matvec(np.eye(3), [shift, 0, 0])
    path = write_map(tmp_path / "moved.nii.gz", np.full((4, 4, 4), 0.5, np.float32), affine)
    grid = Grid(np.ones((4, 4, 4), bool), MNI)
    if not is_elsewhere:
        assert load_tissue(grid, "Lund", (path, path)).grey.sum() == pytest.approx(0.5 * 2 * 4 * 4)
        return
    with pytest.raises(ValueError, match=r"moved.nii.gz covers 25 % of the connectome's brain mask, .* its affine"):
        load_tissue(grid, "Lund", (path, path))
