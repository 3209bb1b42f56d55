"""The synthetic dataset and connectome have the properties that the documentation promises."""

import json
import os
from contextlib import redirect_stdout

import h5py
import nibabel as nib
import numpy as np
import pytest
import synthetic
from scipy.ndimage import label

from bids_lacuna import demo
from bids_lacuna.connectome.connectome import Connectome


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Return a folder that `python -m bids_lacuna.demo` has written to, with nobody to read what it says."""
    directory = tmp_path_factory.mktemp("demo")
    reading, writing = os.pipe()
    os.close(reading)
    # Nothing is left that could not be written when the stream closes, as it does when the program exits.
    with os.fdopen(writing, "w") as nowhere, redirect_stdout(nowhere):
        assert demo.main([str(directory)]) == 0
    return directory


@pytest.fixture(scope="module")
def all_series(written):
    """Return the time series of the 16 connectome subjects, each of shape (n_timepoints, n_voxels)."""
    series = []
    for path in sorted((written / "connectome").iterdir()):
        with h5py.File(path) as file:
            series.extend(file["timeseries"])
    return series


def load_mask(written, lesion):
    """Return the voxels and the affine of a mask."""
    image = nib.load(written / "bids" / lesion.mask_path)
    return np.asarray(image.dataobj), image.affine


def contents(directory):
    """Return the bytes of all files below a folder, by relative path."""
    return {path.relative_to(directory): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_dataset_is_valid_bids(written, tmp_path):
    """The BIDS validator finds no error."""
    done = synthetic.validate(written / "bids", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_it_is_labelled_as_synthetic(written):
    """The dataset's name, its README and the sidecar of each mask say that the data are synthetic."""
    sidecars = sorted((written / "bids").rglob("*_mask.json"))
    assert len(sidecars) == len(demo.LESIONS)
    for path in (written / "bids" / "dataset_description.json", written / "bids" / "README", *sidecars):
        assert demo.NOTICE in path.read_text()
    for path in (written / "connectome").iterdir():
        with h5py.File(path) as file:
            assert demo.NOTICE in file.attrs["description"]


def test_same_seed_writes_the_same_bytes(written, tmp_path):
    """A second run changes nothing, so that finished maps remain valid."""
    assert demo.main([str(tmp_path)]) == 0
    assert contents(tmp_path) == contents(written)


def test_another_seed_draws_other_lesions(written, tmp_path):
    """The seed determines the outlines, not the names."""
    demo.write_demo_dataset(tmp_path, seed=7)
    ours, theirs = contents(tmp_path), contents(written / "bids")
    assert ours.keys() == theirs.keys()
    for lesion in demo.LESIONS:
        assert ours[lesion.mask_path] != theirs[lesion.mask_path]


@pytest.mark.parametrize("lesion", demo.LESIONS, ids=lambda lesion: lesion.mask_path.name)
def test_lesion_is_one_piece_at_its_site(written, lesion):
    """Each mask is one irregular, connected blob of zeros and ones, on the side that its site names."""
    mask, affine = load_mask(written, lesion)
    assert mask.dtype == np.uint8
    assert set(np.unique(mask)) == {0, 1}
    assert label(mask)[1] == 1
    centres_mm = nib.affines.apply_affine(affine, np.argwhere(mask))
    x, y, z = centres_mm.mean(axis=0)
    assert np.linalg.norm(np.array([x, y, z]) - lesion.centre_mm) < lesion.radius_mm
    assert (x < 0) == lesion.site.startswith("left")
    reach_mm = np.linalg.norm(centres_mm - lesion.centre_mm, axis=1).max()
    assert len(centres_mm) * 2**3 < 0.8 * 4 / 3 * np.pi * reach_mm**3


def test_sizes_span_a_lacune_to_a_large_infarct(written):
    """There is a lacune of a few voxels, a large infarct, and a lesion that shrinks between two sessions."""
    n_voxels = {lesion: np.count_nonzero(load_mask(written, lesion)[0]) for lesion in demo.LESIONS}
    first, second = (n for lesion, n in n_voxels.items() if lesion.session)
    assert 0 < min(n_voxels.values()) < 20
    assert max(n_voxels.values()) > 5000
    assert first > second


def test_participants_are_listed_with_their_lesions(written):
    """participants.tsv has a row for each folder, and participants.json describes its column."""
    header, *rows = (written / "bids" / "participants.tsv").read_text().splitlines()
    folders = sorted(path.name for path in (written / "bids").glob("sub-*"))
    assert [row.split("\t")[0] for row in rows] == folders
    assert "right parietal lobe, left cerebellum" in rows[2]
    columns = json.loads((written / "bids" / "participants.json").read_text())
    assert header.split("\t")[1:] == list(columns)


def test_connectome_opens(written):
    """The program reads both files as one connectome on a grid of 4 mm, stored from right to left."""
    connectome = Connectome.open(written / "connectome")
    assert (connectome.n_subjects, connectome.n_timepoints) == (16, 120)
    assert connectome.space == demo.SPACE
    assert 15_000 < connectome.grid.n_voxels < 30_000
    np.testing.assert_array_equal(np.diag(connectome.grid.affine), [-4, 4, 4, 1])


def test_connectome_has_lacunas_layout(written):
    """Datasets, chunks and attributes are as in Lacuna's own files, and the files together stay under 60 MB."""
    paths = sorted((written / "connectome").iterdir())
    assert sum(path.stat().st_size for path in paths) < 60e6
    for path, (n_subjects, n_timepoints) in zip(paths, demo.CONNECTOME_FILES.values(), strict=True):
        with h5py.File(path) as file:
            n_voxels = file["mask_indices"].shape[1]
            assert file["timeseries"].shape == (n_subjects, n_timepoints, n_voxels)
            assert file["timeseries"].chunks == (1, n_timepoints, n_voxels)
            assert file["timeseries"].dtype == np.float32
            assert file["timeseries"].compression == "gzip"
            assert file["mask_indices"].shape == (3, n_voxels)
            assert file["mask_affine"].shape == (4, 4)
            assert tuple(file.attrs["mask_shape"]) == demo.CONNECTOME_SHAPE
            counts = [file.attrs[name] for name in ("n_subjects", "n_timepoints", "n_voxels")]
            assert counts == [n_subjects, n_timepoints, n_voxels]


def test_last_connectome_subject_has_a_hole(all_series):
    """Only the last subject has no signal in a small region, where n of the maps is 15."""
    n_constant = [np.count_nonzero(np.ptp(series, axis=0) == 0) for series in all_series]
    assert n_constant[:-1] == [0] * 15
    assert 20 < n_constant[-1] < 200


def test_networks_are_bilateral(written, all_series):
    """The time series of a voxel resembles that of the mirrored voxel more than that of another voxel."""
    grid = Connectome.open(written / "connectome").grid
    mirrored = grid.vector(grid.volume(np.arange(grid.n_voxels), outside=-1)[::-1])
    elsewhere = np.random.default_rng(11).permutation(grid.n_voxels)
    series = all_series[0] - all_series[0].mean(axis=0)
    series /= np.linalg.norm(series, axis=0)
    assert mirrored.min() >= 0
    assert np.mean(np.sum(series * series[:, mirrored], axis=0)) > 0.1
    assert abs(np.mean(np.sum(series * series[:, elsewhere], axis=0))) < 0.01
