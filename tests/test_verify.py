"""Verification of stores with known left and right: a made-up brain, also scrambled, shifted and flipped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import synthetic
from scipy.ndimage import gaussian_filter

from bids_lacuna.connectome.build import build_store
from bids_lacuna.connectome.importers import hdf5
from bids_lacuna.connectome.store import Store
from bids_lacuna.connectome.verify import MirrorPairs, verify_store
from bids_lacuna.grid import Grid

Array = np.ndarray

SHAPE = (23, 27, 21)

AFFINE = np.array([[-4.0, 0, 0, 44], [0, 4, 0, -60], [0, 0, 4, -40], [0, 0, 0, 1]])
"""4 mm, from right to left; x = 0 is at the centre of voxel 11."""

MASK = np.linalg.norm((np.indices(SHAPE).T - [11, 13, 10]) / [11, 13, 10], axis=-1).T <= 1
N_VOXELS = int(MASK.sum())


def symmetric_series(n_subjects: int = 3) -> list[Array]:
    """Make series of smooth sources that are symmetric between left and right, with noise."""
    rng = np.random.default_rng(5)
    sources = np.stack([gaussian_filter(rng.standard_normal(SHAPE), 1.5) for _ in range(40)])
    sources += sources[:, ::-1]
    weights = sources[:, MASK] / sources[:, MASK].std()
    return [
        (rng.standard_normal((41, 40)) @ weights + 3 * rng.standard_normal((41, N_VOXELS))).astype(np.float32)
        for _ in range(n_subjects)
    ]


def make_store(folder: Path, series: list[Array], affine: Array = AFFINE, dtype: str = "int16") -> Store:
    """Build a store of some subjects."""
    source = synthetic.write_connectome(folder / "source" / "brain.h5", series, MASK, affine)
    return build_store(
        hdf5.open_source(source), source.parent, folder / "store", name="x", space="MNI305", dtype=dtype
    )


@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_a_symmetric_brain_has_no_problem(tmp_path: Path, dtype: str) -> None:
    """If the hemispheres mirror each other in all subjects, no problem is found, and r equals NumPy's."""
    series = symmetric_series()
    series[1][:, [7, 11]] = 5
    series[2][:, 7] = 5
    store = make_store(tmp_path, series, dtype=dtype)
    read = []
    found = verify_store(store, lambda subject: read.append(subject.name))
    assert found.problems == ()
    assert (found.n_mirrored, found.n_mirrorable) == (3, 3)
    assert found.orientation == "LAS"
    assert found.n_constant[[7, 11, 12]].tolist() == [2, 1, 0]
    assert found.n_constant.sum() == 3
    assert read == ["0001", "0002", "0003"]
    pairs = MirrorPairs.of(store.grid)
    r = np.corrcoef(series[0].astype(float).T)[pairs.left, pairs.right]
    np.testing.assert_allclose(pairs.correlations(*store.read(store.subjects[0])[:2]), r.mean(axis=1), atol=1e-5)
    assert found.homotopic_r > found.displaced_r + 0.1


def test_pairs_are_mirror_images() -> None:
    """Pairs are at x and -x, the first on the left, and displaced voxels 16 mm away, on an oblique grid too."""
    tilted = nib.affines.from_matvec(
        nib.eulerangles.euler2mat(0.1, 0.2, 0.05) @ np.diag([3.0, 3, 3]), [-33, -40, -30]
    )
    for affine in (AFFINE, tilted):
        grid = Grid(MASK, affine)
        pairs = MirrorPairs.of(grid)
        world = nib.affines.apply_affine(affine, np.argwhere(MASK))
        left, right = world[pairs.left], world[pairs.right]
        assert len(left) > 100
        assert left[:, 0].max() < -8
        half_voxel = np.linalg.norm(affine[:3, :3], axis=0).max() * np.sqrt(3) / 2 + 1e-6
        assert np.linalg.norm(right[0] - left * (-1, 1, 1), axis=1).max() <= half_voxel
        away = np.linalg.norm(right[1:] - left * (-1, 1, 1), axis=2)
        assert (np.abs(away - 16) <= half_voxel).all()


@pytest.mark.parametrize("kind", ["scrambled", "another voxel order", "shifted to the left", "shifted to the right"])
def test_voxels_in_wrong_places_are_noticed(tmp_path: Path, kind: str) -> None:
    """Voxels in another order than the mask's, or shifted sideways by 8 mm, are reported."""
    series, affine = symmetric_series(), AFFINE.copy()
    if kind == "scrambled":
        order = np.random.default_rng(7).permutation(N_VOXELS)
    elif kind == "another voxel order":
        order = np.argsort(np.ravel_multi_index(np.nonzero(MASK), SHAPE, order="F"))
    else:
        order = np.arange(N_VOXELS)
        affine[0, 3] += -8 if kind == "shifted to the left" else 8
    store = make_store(tmp_path, [timeseries[:, order] for timeseries in series], affine)
    (problem,) = verify_store(store).problems
    assert "3 of 3 subjects" in problem
    assert "scrambled or shifted" in problem


def test_one_bad_subject_is_counted_and_no_problem(tmp_path: Path) -> None:
    """One scrambled subject among three appears in the count."""
    series = symmetric_series()
    series[1] = series[1][:, np.random.default_rng(7).permutation(N_VOXELS)]
    found = verify_store(make_store(tmp_path, series))
    assert found.problems == ()
    assert (found.n_mirrored, found.n_mirrorable) == (2, 3)


def test_a_flipped_affine_shows_in_the_orientation(tmp_path: Path) -> None:
    """A left-right flip preserves symmetry, but shows in the orientation."""
    flipped = AFFINE * np.array([[-1], [1], [1], [1]])
    found = verify_store(make_store(tmp_path, symmetric_series(), flipped))
    assert found.problems == ()
    assert found.orientation == "RAS"


def test_too_few_pairs(tmp_path: Path) -> None:
    """A subject without signals in one hemisphere is not judged and is no problem."""
    series = symmetric_series()
    world = nib.affines.apply_affine(AFFINE, np.argwhere(MASK))
    for timeseries in series[1:]:
        timeseries[:, world[:, 0] > 0] = 1
    found = verify_store(make_store(tmp_path, series))
    assert (found.n_mirrored, found.n_mirrorable) == (1, 1)


def test_a_subject_without_signal_is_a_problem(tmp_path: Path) -> None:
    """A subject whose series are all constant is named."""
    series = symmetric_series()
    series[1][:] = 3
    assert verify_store(make_store(tmp_path, series)).problems == ("sub-0002 has no signal in any voxel",)


def test_missing_and_changed_files_are_problems(tmp_path: Path) -> None:
    """Files that are removed or changed while the store is open are named, and the others are checked."""
    store = make_store(tmp_path, symmetric_series())
    (store.path / "sub-0001_scale.npy").unlink()
    path = store.path / "sub-0003_scale.npy"
    np.save(path, 2 * np.load(path))
    problems = verify_store(store).problems
    assert sum("sub-0001_scale.npy" in problem for problem in problems) == 2
    assert any(
        f"sub-0003 has {N_VOXELS} voxels whose series and scales do not match" in problem for problem in problems
    )
    assert any("sub-0003_scale.npy has another checksum" in problem for problem in problems)
    assert len(problems) == 4
    assert replace(store, subjects=store.subjects[1:2]).n_bytes == store.bytes_of(store.subjects[1])


def test_a_standard_deviation_without_a_signal_is_a_problem(tmp_path: Path) -> None:
    """A voxel whose standard deviation is 0, though it has a series, is reported."""
    store = make_store(tmp_path, symmetric_series())
    path = store.path / "sub-0002_scale.npy"
    scale, sd = np.load(path)
    sd[17] = 0
    np.save(path, np.stack([scale, sd]))
    problems = verify_store(store).problems
    assert any("sub-0002 has 1 voxels whose series and scales do not match" in problem for problem in problems)


@pytest.mark.parametrize(("n_scrambled", "n_problems"), [(2, 0), (3, 1)])
def test_most_subjects_have_to_be_symmetric(tmp_path: Path, n_scrambled: int, n_problems: int) -> None:
    """Symmetry is a problem of the store if less than half of the subjects have it."""
    series = symmetric_series(4)
    for subject in range(n_scrambled):
        series[subject] = series[subject][:, np.random.default_rng(7).permutation(N_VOXELS)]
    assert len(verify_store(make_store(tmp_path, series)).problems) == n_problems
