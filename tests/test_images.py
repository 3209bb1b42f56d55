"""Whole volumes read from NIfTI files, with the checksum at the end."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import synthetic

from bids_lacuna import images
from bids_lacuna.images import open_image, read_brain_mask, read_volume


@pytest.mark.parametrize("slab_bytes", [1, 5 * 7 * 4 * 2, 2**18])
@pytest.mark.parametrize("name", ["map.nii", "map.nii.gz"])
def test_a_volume_is_read_as_nibabel_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, slab_bytes: int
) -> None:
    """A volume has nibabel's values, axes and dtype, however many slices are read at a time."""
    monkeypatch.setattr(images, "SLAB_BYTES", slab_bytes)
    values = np.random.default_rng(3).standard_normal((*synthetic.SHAPE, 1)).astype(np.float32)
    nib.save(nib.Nifti1Image(values, synthetic.OBLIQUE), tmp_path / name)
    volume = read_volume(open_image(tmp_path / name, "map"), "map")
    assert volume.dtype == np.float32
    np.testing.assert_array_equal(volume, values[..., 0])


def test_slabs_are_converted_as_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A conversion gets a few slices at a time and decides the dtype of the volume."""
    monkeypatch.setattr(images, "SLAB_BYTES", 3 * 5 * 7)
    values = np.random.default_rng(3).integers(0, 3, synthetic.SHAPE).astype(np.uint8)
    nib.save(nib.Nifti1Image(values, synthetic.OBLIQUE), tmp_path / "map.nii.gz")
    shapes = []

    def convert(slab: np.ndarray) -> np.ndarray:
        shapes.append(slab.shape)
        return slab > 1

    volume = read_volume(open_image(tmp_path / "map.nii.gz", "map"), "map", convert)
    np.testing.assert_array_equal(volume, values > 1)
    assert shapes == [(3, 7, 5)] * 3 + [(2, 7, 5)]


def test_a_wrong_checksum_is_an_error(tmp_path: Path) -> None:
    """A file whose voxels are all there, but whose checksum at the end of gzip is wrong, is not read."""
    path = tmp_path / "map.nii.gz"
    nib.save(nib.Nifti1Image(np.ones(synthetic.SHAPE, np.float32), synthetic.OBLIQUE), path)
    content = bytearray(path.read_bytes())
    content[-6] ^= 1
    path.write_bytes(content)
    with pytest.raises(OSError, match=r"the map's voxels cannot be read .*copy it again"):
        read_volume(open_image(path, "map"), "map")


def test_a_brain_mask_is_where_values_are_not_0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative values are inside the mask, 0 and NaN outside; an image as large as the limit is read."""
    values = np.random.default_rng(3).choice([0, -1, 2, np.nan], (*synthetic.SHAPE, 1)).astype(np.float32)
    path = tmp_path / "mask.nii.gz"
    nib.save(nib.Nifti1Image(values, synthetic.OBLIQUE), path)
    monkeypatch.setattr(images, "LARGEST_VOLUME", values.size)
    np.testing.assert_array_equal(read_brain_mask(open_image(path, "mask"), path), np.isin(values[..., 0], (-1, 2)))
    monkeypatch.setattr(images, "LARGEST_VOLUME", values.size - 1)
    with pytest.raises(ValueError, match=f"{path} has 385 voxels, the limit is 384"):
        read_brain_mask(open_image(path, "mask"), path)


def test_a_brain_mask_has_three_axes(tmp_path: Path) -> None:
    """An image of two volumes is not a brain mask."""
    path = tmp_path / "mask.nii.gz"
    nib.save(nib.Nifti1Image(np.ones((*synthetic.SHAPE, 2), np.float32), synthetic.OBLIQUE), path)
    with pytest.raises(ValueError, match="a 3D image is needed"):
        read_brain_mask(open_image(path, "mask"), path)
