"""Whole volumes read from NIfTI files, with the checksum at the end."""

from __future__ import annotations

import gzip
import logging
import struct
from collections.abc import Callable
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np
import pytest
import synthetic
from nibabel import imageglobals

from bids_lacuna import images
from bids_lacuna.images import (
    has_usable_affine,
    open_image,
    read_brain_mask,
    read_volume,
    save_gzipped,
    unpacked_bytes,
)


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


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.uint8])
def test_a_saved_image_has_the_bytes_that_nibabel_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: type, order: Literal["C", "F"]
) -> None:
    """Uncompressed, a saved image is what nibabel writes to the byte, whether compressed at once or in pieces."""
    monkeypatch.setattr(images, "GZIPPED_AT_ONCE", 101)
    values = np.random.default_rng(3).integers(0, 200, synthetic.SHAPE).astype(dtype, order)
    if dtype is np.float32:
        values[1, 2] = np.nan
    image = nib.Nifti1Image(values, synthetic.OBLIQUE)
    image.set_sform(synthetic.OBLIQUE, "mni")
    image.header.set_xyzt_units("mm")
    nib.save(image, tmp_path / "nibabel.nii")
    save_gzipped(image, tmp_path / "ours.nii.gz")
    assert gzip.decompress((tmp_path / "ours.nii.gz").read_bytes()) == (tmp_path / "nibabel.nii").read_bytes()
    np.testing.assert_array_equal(nib.load(tmp_path / "ours.nii.gz").get_fdata(), values)


def test_saved_files_say_neither_when_nor_where_they_were_saved(tmp_path: Path) -> None:
    """A gzip file has neither a time nor a name in its header (RFC 1952), so that equal maps are equal files."""
    for name in ("a.nii.gz", "b.nii.gz"):
        save_gzipped(nib.Nifti1Image(np.ones(synthetic.SHAPE, np.float32), synthetic.OBLIQUE), tmp_path / name)
    content = (tmp_path / "a.nii.gz").read_bytes()
    assert content == (tmp_path / "b.nii.gz").read_bytes()
    assert content[:8] == b"\x1f\x8b\x08" + bytes(5)


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


def write_image(path: Path, image_type: type[nib.spatialimages.SpatialImage]) -> Path:
    """Write an image of another format than NIfTI; SPM's get no .mat file."""
    nib.save(image_type(np.ones(synthetic.SHAPE, np.int16), synthetic.RADIOLOGICAL), path)
    path.with_suffix(".mat").unlink(missing_ok=True)
    return path


@pytest.mark.parametrize("image_type", [nib.AnalyzeImage, nib.Spm99AnalyzeImage, nib.Spm2AnalyzeImage])
def test_analyze_images_state_no_positions(tmp_path: Path, image_type: type[nib.spatialimages.SpatialImage]) -> None:
    """An Analyze file has no usable affine: its header does not say which side is left. One in memory has its own."""
    assert not has_usable_affine(open_image(write_image(tmp_path / "a.img", image_type), "mask"))
    assert has_usable_affine(image_type(np.ones(synthetic.SHAPE, np.int16), synthetic.RADIOLOGICAL))


def test_analyze_image_with_a_mat_file(tmp_path: Path) -> None:
    """The .mat file that SPM writes beside an Analyze file has an affine."""
    nib.save(nib.Spm99AnalyzeImage(np.ones(synthetic.SHAPE, np.int16), synthetic.OBLIQUE), tmp_path / "a.img")
    image = open_image(tmp_path / "a.img", "mask")
    assert has_usable_affine(image)
    np.testing.assert_allclose(image.affine, synthetic.OBLIQUE, atol=1e-5)


# nibabel leaves files of this format open.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("good_ras", [0, 1])
def test_freesurfer_image_without_directions(tmp_path: Path, good_ras: int) -> None:
    """A FreeSurfer file whose flag says that it has no directions has no usable affine."""
    path = write_image(tmp_path / "a.mgh", nib.MGHImage)
    content = bytearray(path.read_bytes())
    content[28:30] = good_ras.to_bytes(2, "big")
    path.write_bytes(content)
    assert has_usable_affine(open_image(path, "mask")) == bool(good_ras)


@pytest.mark.parametrize("image_type", [nib.Nifti1Image, nib.Nifti1Pair, nib.Nifti2Image])
@pytest.mark.parametrize("codes", [(0, 0), (0, 1), (4, 0)])
def test_nifti_without_codes(tmp_path: Path, image_type: type[nib.Nifti1Pair], codes: tuple[int, int]) -> None:
    """A NIfTI file has a usable affine if its sform or qform has a code."""
    image = image_type(np.ones(synthetic.SHAPE, np.int16), synthetic.RADIOLOGICAL)
    image.set_sform(synthetic.RADIOLOGICAL, codes[0])
    image.set_qform(synthetic.RADIOLOGICAL, codes[1])
    path = tmp_path / ("a.img" if image_type is nib.Nifti1Pair else "a.nii")
    nib.save(image, path)
    assert has_usable_affine(open_image(path, "mask")) == any(codes)


def write_map(path: Path, change_header: Callable[[nib.Nifti1Header], object] = lambda _: None) -> np.ndarray:
    """Write a map of random numbers without an sform, and return its values."""
    values = np.random.default_rng(3).standard_normal(synthetic.SHAPE).astype(np.float32)
    image = nib.Nifti1Image(values, synthetic.RADIOLOGICAL)
    image.header.set_sform(None, 0)
    image.header.set_qform(synthetic.RADIOLOGICAL, 4)
    nib.save(image, path)
    header = nib.load(path).header
    change_header(header)
    plain = path.suffix == ".nii"
    content = path.read_bytes() if plain else gzip.decompress(path.read_bytes())
    content = header.binaryblock + content[len(header.binaryblock) :]
    path.write_bytes(content if plain else gzip.compress(content))
    return values


@pytest.mark.parametrize("name", ["map.nii", "map.nii.gz"])
def test_a_file_without_an_offset_begins_behind_its_header(tmp_path: Path, name: str) -> None:
    """The voxels of a single file with vox_offset 0 are taken from byte 352 on, as NIfTI's own library does."""
    values = write_map(tmp_path / name, lambda header: header.set_data_offset(0))
    image = open_image(tmp_path / name, "map")
    np.testing.assert_array_equal(read_volume(image, "map"), values)
    np.testing.assert_array_equal(image.affine, synthetic.RADIOLOGICAL)
    assert int(image.header["qform_code"]) == 4


@pytest.mark.parametrize("byte_order", ["<", ">"])
@pytest.mark.parametrize(
    ("image_type", "name"),
    [
        *((image_type, name) for image_type in (nib.Nifti1Image, nib.Nifti2Image) for name in ("m.nii", "M.NII.GZ")),
        (nib.Nifti1Pair, "m.img"),
        (nib.Nifti2Pair, "m.hdr"),
    ],
)
def test_an_image_has_the_format_of_its_content(
    tmp_path: Path, image_type: type[nib.Nifti1Pair], name: str, byte_order: str
) -> None:
    """Both versions of NIfTI are recognized in either byte order, in files with the same endings."""
    values = np.random.default_rng(3).integers(0, 999, synthetic.SHAPE).astype(np.int16)
    header = image_type.header_class(endianness=byte_order)
    nib.save(image_type(values, synthetic.OBLIQUE, header), tmp_path / name)
    image = open_image(tmp_path / name, "map")
    assert isinstance(image, image_type)
    assert image.header.sizeof_hdr == image_type.header_class.sizeof_hdr
    assert image.header.endianness == byte_order
    np.testing.assert_array_equal(read_volume(image, "map"), values)
    np.testing.assert_allclose(image.affine, synthetic.OBLIQUE, rtol=1e-5)


@pytest.mark.parametrize("codes", [(0, 0), (0, 1), (4, 0), (2, 1)])
@pytest.mark.parametrize("extension_bytes", [0, 40, 4000])
@pytest.mark.parametrize("name", ["map.nii", "map.nii.gz"])
def test_an_image_has_nibabel_s_header(
    tmp_path: Path, name: str, extension_bytes: int, codes: tuple[int, int]
) -> None:
    """Header, extensions, affine, scaling and voxels are those of nibabel's own reading."""
    values = np.random.default_rng(3).standard_normal(synthetic.SHAPE)
    image = nib.Nifti1Image(values, synthetic.RADIOLOGICAL)
    image.set_data_dtype(np.int16)
    image.set_sform(synthetic.OBLIQUE, codes[0])
    image.set_qform(synthetic.RADIOLOGICAL, codes[1])
    if extension_bytes:
        image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"x" * extension_bytes))
    nib.save(image, tmp_path / name)
    found, expected = open_image(tmp_path / name, "map"), nib.load(tmp_path / name)
    assert found.header == expected.header
    assert found.header.extensions == expected.header.extensions
    assert (found.dataobj.slope, found.dataobj.inter) == (expected.dataobj.slope, expected.dataobj.inter)
    np.testing.assert_array_equal(found.affine, expected.affine)
    np.testing.assert_array_equal(read_volume(found, "map"), expected.get_fdata())
    np.testing.assert_array_equal(found.get_fdata(), expected.get_fdata())


def test_the_size_of_a_file_without_its_compression(tmp_path: Path) -> None:
    """It is that of the file itself, or the one that the gzip stream ends with; an empty file has none."""
    for name in ("map.nii", "map.nii.gz"):
        write_map(tmp_path / name, lambda _: None)
        assert unpacked_bytes(tmp_path / name) == (tmp_path / "map.nii").stat().st_size
    (tmp_path / "empty.nii.gz").touch()
    for name in ("empty.nii.gz", "none.nii.gz"):
        with pytest.raises(OSError, match=name if name.startswith("none") else "Invalid argument"):
            unpacked_bytes(tmp_path / name)


def test_a_gzip_file_of_several_streams(tmp_path: Path) -> None:
    """Streams that follow each other are one file, as bgzip writes them; zeros that pad the last one are skipped."""
    path = tmp_path / "map.nii.gz"
    values = write_map(path, lambda _: None)
    content = gzip.decompress(path.read_bytes())
    cuts = [0, 100, 352, 400, len(content)]
    streams = [gzip.compress(content[start:stop]) for start, stop in pairwise(cuts)]
    path.write_bytes(b"".join(streams) + bytes(512))
    np.testing.assert_array_equal(read_volume(open_image(path, "map"), "map"), values)


@pytest.mark.parametrize("cut", [1, 8, 9, 40])
def test_a_gzip_stream_that_ends_too_early_is_an_error(tmp_path: Path, cut: int) -> None:
    """Without the end of its stream or its checksum, a file is not read."""
    path = tmp_path / "map.nii.gz"
    write_map(path, lambda _: None)
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(OSError, match=r"the map's voxels cannot be read .*copy it again"):
        read_volume(open_image(path, "map"), "map")


@pytest.mark.parametrize("seed", range(20))
def test_a_damaged_gzip_stream_is_an_error(tmp_path: Path, seed: int) -> None:
    """A damaged byte anywhere behind the header is found, by the decoder or by the checksum."""
    path, rng = tmp_path / "map.nii.gz", np.random.default_rng(seed)
    image = nib.Nifti1Image(rng.integers(0, 5, (20, 30, 40)).astype(np.uint8), synthetic.OBLIQUE)
    content = bytearray(gzip.compress(image.to_bytes()))
    content[rng.integers(600, len(content) - 4)] ^= rng.integers(1, 256)
    path.write_bytes(content)
    with pytest.raises(OSError, match="cannot be read"):
        read_volume(open_image(path, "map"), "map")


def test_bytes_after_the_gzip_stream_are_ignored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An image with other bytes behind it is read with a warning; without its checksum, it is damaged."""
    path = tmp_path / "map.nii.gz"
    values = write_map(path)
    whole = path.read_bytes()
    path.write_bytes(whole + b"trailing bytes")
    np.testing.assert_array_equal(read_volume(open_image(path, "map"), "map"), values)
    assert f"{path}: the bytes after the end of its gzip stream are ignored" in caplog.text
    path.write_bytes(whole[:-8] + b"trailing bytes")
    with pytest.raises(OSError, match=r"CRC check failed.*copy it again"):
        read_volume(open_image(path, "map"), "map")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("map.nii", "gzipped", "it is gzipped: rename it to map.nii.gz"),
        ("map.nii.gz", "plain", "it is not compressed: rename it to map.nii"),
        ("map.nii.gz", b"/annex/objects/MD5E-s7--0.nii.gz\n", "git-annex's pointer to a file: `datalad get` it"),
        ("map.nii", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS's pointer to a file: `git lfs pull`"),
        ("map.nii.gz", b"\n<!doctype HTML><title>Log in</title>", "a web page, perhaps that of a login"),
        ("map.nii.gz", b"PK\x03\x04" + bytes(500), "a zip archive: unpack it"),
        ("map.nii", b"BZh9" + bytes(500), "compressed by bzip2: decompress it"),
    ],
    ids=["gzipped", "plain", "annex", "lfs", "page", "zip", "bzip2"],
)
def test_what_a_file_is_instead(tmp_path: Path, name: str, content: bytes | str, words: str) -> None:
    """A file of another kind is named by its first bytes, with what helps; copying it does not."""
    path = tmp_path / name
    if isinstance(content, str):
        write_map(tmp_path / ("a.nii.gz" if content == "gzipped" else "a.nii"))
        content = (tmp_path / ("a.nii.gz" if content == "gzipped" else "a.nii")).read_bytes()
    path.write_bytes(content)
    with pytest.raises(OSError, match=f"cannot be read as NIfTI: it is .*{words[6:]}") as caught:
        open_image(path, "map")
    assert "copy it again" not in str(caught.value)


def test_a_quaternion_that_is_longer_than_1_by_rounding(tmp_path: Path) -> None:
    """A rotation by 180° whose quaternion was rounded up is that rotation; a longer one is an error."""

    def lengthen(header: nib.Nifti1Header) -> None:
        header["quatern_c"] = 1.000003

    values = write_map(tmp_path / "map.nii.gz", lengthen)
    image = open_image(tmp_path / "map.nii.gz", "map")
    np.testing.assert_allclose(image.affine, synthetic.RADIOLOGICAL, atol=1e-6)
    np.testing.assert_array_equal(read_volume(image, "map"), values)
    write_map(tmp_path / "long.nii", lambda header: header.structarr.__setitem__("quatern_c", 1.01))
    with pytest.raises(OSError, match="w2 should be positive"):
        open_image(tmp_path / "long.nii", "map")


@pytest.mark.parametrize(
    ("offset", "kind", "value", "message"),
    [(80, "<f", 0.0, "pixdim[1,2,3] should be non-zero"), (254, "<h", 77, "sform_code 77 not valid")],
)
def test_messages_about_a_header_have_the_file_s_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, offset: int, kind: str, value: float, message: str
) -> None:
    """Nibabel does not say which of many files it means, and prints what is also logged."""
    affine = np.diag([2.0, 2, 2, 1])
    content = bytearray(nib.Nifti1Image(np.ones((3, 4, 5), np.uint8), affine).to_bytes())
    struct.pack_into(kind, content, offset, value)
    paths = [tmp_path / "mask.nii", tmp_path / "same_header.nii"]
    printed = StringIO()
    (handler,) = (each for each in imageglobals.logger.handlers if isinstance(each, logging.StreamHandler))
    before = handler.setStream(printed)
    try:
        for path in paths:
            path.write_bytes(content)
            open_image(path, "mask")
        assert printed.getvalue() == ""
        assert [record.name for record in caplog.records] == ["bids_lacuna.images"] * 2
        for path, record in zip(paths, caplog.records, strict=True):
            assert record.getMessage().startswith(f"{path}: {message}")
        nib.load(paths[0])
        assert printed.getvalue().startswith(message)
    finally:
        handler.setStream(before)
