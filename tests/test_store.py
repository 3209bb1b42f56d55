"""Stores read with NumPy alone, the precision of their numbers, and damaged stores."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import synthetic

from bids_lacuna import reference
from bids_lacuna.connectome.build import build_store
from bids_lacuna.connectome.connectome import Connectome
from bids_lacuna.connectome.importers import hdf5
from bids_lacuna.connectome.store import Store, StoreDtype, rename_space, write_subject
from bids_lacuna.grid import Grid
from bids_lacuna.kernels import cpu as kernels

Array = np.ndarray

MASK = synthetic.make_mask()
N_VOXELS = int(MASK.sum())
SERIES = synthetic.make_series(N_VOXELS)


def make_store(folder: Path, dtype: StoreDtype = "int16", affine: Array = synthetic.RADIOLOGICAL) -> Store:
    """Build a store of five subjects from HDF5."""
    source = synthetic.write_connectome_folder(folder / "hdf5", SERIES, MASK, affine)
    opened = hdf5.open_source(source)
    return build_store(opened, source, folder / "store", name="GSP5", space="MNI305", dtype=dtype)


@pytest.fixture(scope="module", params=["int16", "float32"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Build a store with an oblique grid that no test changes."""
    return make_store(tmp_path_factory.mktemp(request.param), request.param, synthetic.OBLIQUE)


@pytest.fixture
def own(store: Store, tmp_path: Path) -> Path:
    """Copy the store, to be damaged."""
    return shutil.copytree(store.path, tmp_path / "own")


def test_numpy_alone_reads_it(store: Store) -> None:
    """A row times its scale is the demeaned series with norm 1; times sd √n, it is the series in its own units."""
    description = json.loads((store.path / "connectome.json").read_text())
    mask = nib.load(store.path / "mask.nii.gz")
    np.testing.assert_array_equal(np.asarray(mask.dataobj), MASK)
    np.testing.assert_allclose(mask.affine, synthetic.OBLIQUE, atol=1e-5)
    np.testing.assert_array_equal(description["affine"], synthetic.OBLIQUE)
    assert (description["name"], description["space"]) == ("GSP5", "MNI305")
    assert [subject["name"] for subject in description["subjects"]] == ["0001", "0002", "0003", "0004", "0005"]
    tolerance = 1e-7 if store.series_dtype == "float32" else 1 / 32767
    for subject, stored in zip(description["subjects"], SERIES, strict=True):
        series = np.load(store.path / f"sub-{subject['name']}_timeseries.npy")
        scale, sd = np.load(store.path / f"sub-{subject['name']}_scale.npy")
        assert (series.dtype, scale.dtype) == (np.dtype(description["dtype"]), np.float32)
        assert series.shape == (N_VOXELS, subject["n_timepoints"])
        demeaned = stored.astype(float) - stored.mean(axis=0, dtype=float)
        unit = series.astype(float) * scale[:, np.newaxis]
        np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-6)
        np.testing.assert_allclose(
            unit * sd[:, np.newaxis] * np.sqrt(len(stored)), demeaned.T, atol=tolerance * np.abs(demeaned).max()
        )
        np.testing.assert_allclose(sd, stored.std(axis=0, dtype=float), rtol=1e-6)


def test_what_it_was_made_from(store: Store) -> None:
    """The description holds the source files with sizes, each subject's index in them, and SHA-256 checksums."""
    description = json.loads((store.path / "connectome.json").read_text())
    sources = {source["path"]: source["bytes"] for source in description["sources"]}
    folder = store.path.parent / "hdf5"
    assert sources == {path.name: path.stat().st_size for path in folder.iterdir()}
    assert description["subjects"][1]["runs"] == [{"source": "part0.h5[1]", "n_timepoints": 23}]
    for kind in ("timeseries", "scale"):
        content = (store.path / f"sub-0004_{kind}.npy").read_bytes()
        assert description["subjects"][3]["sha256"][kind] == hashlib.sha256(content).hexdigest()


def test_a_store_from_before_there_was_a_rank(store: Store, own: Path) -> None:
    """A description without ranks is that of a full-rank store with the same hash."""
    path = own / "connectome.json"
    description = json.loads(path.read_text())
    assert (description.pop("rank"), description.pop("rank_tolerance")) == ("auto", 1e-5)
    for subject in description["subjects"]:
        assert subject.pop("n_components") == subject["n_timepoints"]
        assert subject.pop("r_error_bound") == 0
    path.write_text(json.dumps(description))
    old = Store.open(own)
    assert (old.rank, old.rank_tolerance, old.subjects) == ("full", None, store.subjects)
    assert old.content_hash == store.content_hash
    for ours, expected in zip(old.read(old.subjects[2]), store.read(store.subjects[2]), strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_opens_as_a_connectome(store: Store) -> None:
    """A store opens with its own name and space or given ones, and with its subjects in order."""
    connectome = Connectome.open(store.path)
    assert (connectome.name, connectome.space, connectome.n_subjects) == ("GSP5", "MNI305", 5)
    assert connectome.n_timepoints == 37
    assert connectome.content_hash == store.content_hash
    names = [subject.name for subject in connectome.subjects()]
    assert names == ["0001", "0002", "0003", "0004", "0005"]
    renamed = Connectome.open(store.path, name="other", space="MNI305")
    assert (renamed.name, renamed.space) == ("other", "MNI305")


def test_a_space_that_contradicts_the_record(store: Store) -> None:
    """Another space than the recorded one is refused with both names and the command that corrects the record."""
    with pytest.raises(ValueError, match=r"records the space MNI305, .* names MNI152NLin6Asym: .* rename-space"):
        Connectome.open(store.path, space="MNI152NLin6Asym")


def test_rename_space(store: Store, own: Path) -> None:
    """A corrected record keeps the series, the hash and the earlier names; an own space corrects nothing."""
    files = {path: path.read_bytes() for path in own.glob("*.n*")}
    rename_space(own, "MNI152NLin6Sym")
    renamed = rename_space(own, "MNI152NLin6Asym")
    again = Connectome.open(own)
    assert (again.space, again.content_hash) == ("MNI152NLin6Asym", store.content_hash)
    assert renamed.former_spaces == Store.open(own).former_spaces == ("MNI305", "MNI152NLin6Sym")
    assert rename_space(own, "MNI152NLin6Asym").former_spaces == renamed.former_spaces
    assert {path: path.read_bytes() for path in files} == files
    with pytest.raises(ValueError, match="a participant's own space"):
        rename_space(own, "T1w")
    path = own / "connectome.json"
    path.write_text(path.read_text().replace('"MNI152NLin6Asym"', '"MNI152"'))
    with pytest.raises(ValueError, match=r"is ambiguous.*rename-space"):
        Connectome.open(own)


def test_the_content_hash_depends_on_the_content(store: Store, own: Path) -> None:
    """The hash ignores names, and changes with the order of subjects, a mask voxel and a micrometre."""
    path = own / "connectome.json"
    description = json.loads(path.read_text())

    def hash_with(**changes: object) -> str:
        path.write_text(json.dumps(description | changes))
        return Store.open(own).content_hash

    assert hash_with(name="renamed", space="MNI152NLin6Asym") == store.content_hash
    moved = np.array(description["affine"]) + 1e-6 * np.eye(4, k=3)
    assert hash_with(affine=moved.tolist()) != store.content_hash
    subjects = description["subjects"]
    assert hash_with(subjects=[subjects[1], subjects[0], *subjects[2:]]) != store.content_hash
    mask = MASK.copy()
    there, missing = np.argwhere(MASK)[0], np.argwhere(~MASK)[0]
    mask[tuple(there)], mask[tuple(missing)] = False, True
    nib.save(nib.Nifti1Image(mask.astype(np.uint8), synthetic.OBLIQUE), own / "mask.nii.gz")
    assert hash_with() != store.content_hash


def test_the_content_hash_depends_on_every_part(store: Store) -> None:
    """A changed scale or series file of one subject, and the same bits of the mask in another shape, change it."""
    first, *others = store.subjects
    for kind in ("timeseries", "scale"):
        changed = replace(first, sha256={**first.sha256, kind: "0" * 64})
        assert replace(store, subjects=(changed, *others)).content_hash != store.content_hash
    reshaped = Grid(MASK.reshape(7, 5, 11), store.grid.affine)
    assert replace(store, grid=reshaped).content_hash != store.content_hash
    assert replace(store).content_hash == store.content_hash


def test_rounding_to_int16(tmp_path: Path) -> None:
    """In int16, r between two voxels of a subject has errors below 1e-4, and is exact for a voxel with itself."""
    rng = np.random.default_rng(11)
    timeseries = rng.standard_normal((120, 2000)).astype(np.float32)
    timeseries[60, :500] += 50  # a spike, as from movement, leaves the fewest steps for the rest
    standardized = kernels.standardize(timeseries, np.array([0, 120]))
    hashes = write_subject(tmp_path, "a", standardized, "int16")
    assert hashes.keys() == {"timeseries", "scale"}
    series, (scale, sd) = (np.load(tmp_path / f"sub-a_{kind}.npy") for kind in ("timeseries", "scale"))
    assert np.abs(series).max(axis=1).min() == 32767
    unit = series.astype(float) * scale[:, np.newaxis]
    r = unit @ unit.T
    assert np.abs(r - np.corrcoef(timeseries.astype(float).T)).max() < 1e-4
    np.testing.assert_allclose(np.diag(r), 1, atol=1e-6)
    np.testing.assert_allclose(sd, timeseries.std(axis=0, dtype=float), rtol=1e-6)


def test_rounding_over_a_hundred_subjects() -> None:
    """Over 100 subjects, int16 changes the mean z by less than 5e-6 for any lesion."""
    rng = np.random.default_rng(13)
    weights = np.zeros((3, 500))
    weights[0, 7], weights[1, 11:31], weights[2, 100:400] = 1, 1, rng.random(300)
    exact, rounded = np.zeros((2, 2, 3, 500))
    for _ in range(100):
        timeseries = (rng.standard_normal((120, 4)) @ rng.standard_normal((4, 500))) + rng.standard_normal((120, 500))
        series, scale, sd = reference.standardize(timeseries)
        reference.add_fisher_z([reference.seeds(weights, series, scale, sd)], [series], [scale], *exact)
        series, scale = kernels.quantize(series.astype(np.float32))
        series = series.astype(float)
        reference.add_fisher_z([reference.seeds(weights, series, scale, sd)], [series], [scale], *rounded)
    error = np.abs(rounded[0] - exact[0]) / 100
    itself = np.zeros((3, 500), bool)
    itself[0, 7] = True
    assert error[~itself].max() < 5e-6
    np.testing.assert_allclose(error[itself], 0, atol=1e-6)


DAMAGE = {
    "no description": "no connectome store",
    "description cut off": "does not describe a connectome store .*not valid JSON",
    "description of something else": "does not describe a connectome store",
    "another layout": "layout 2",
    "another dtype": "do not match",
    "no mask": "cannot be read",
    "mask cut off": "cannot be read",
    "mask overwritten": "cannot be read",
    "another mask": "do not match",
    "another affine": "have different affines",
    "another rank": "does not describe a connectome store .*the rank is 'half'",
    "more components than timepoints": "does not describe a connectome store .*24 components of 23 timepoints",
    "fewer components than there are": "sub-0001_timeseries.npy has .* bytes instead of",
    "no subjects": "do not match",
    "a subject elsewhere": r"a subject is called \.\./0001",
    "subject missing": "lacks .*sub-0002_timeseries.npy",
    "subject cut off": "sub-0002_timeseries.npy has 1000 bytes instead of",
    "scale cut off": "sub-0003_scale.npy has 0 bytes instead of",
}


def damage(folder: Path, kind: str) -> None:
    """Damage a store."""
    path = folder / "connectome.json"
    description = json.loads(path.read_text())
    match kind:
        case "no description":
            path.unlink()
        case "description cut off":
            path.write_text(path.read_text()[:200])
        case "description of something else":
            path.write_text('{"name": "GSP5"}')
        case "another layout":
            path.write_text(json.dumps(description | {"layout_version": 2}))
        case "another dtype":
            path.write_text(json.dumps(description | {"dtype": "int8"}))
        case "no mask":
            (folder / "mask.nii.gz").unlink()
        case "mask cut off":
            (folder / "mask.nii.gz").write_bytes((folder / "mask.nii.gz").read_bytes()[:-40])
        case "mask overwritten":
            content = (folder / "mask.nii.gz").read_bytes()
            (folder / "mask.nii.gz").write_bytes(content[:60] + bytes(40) + content[100:])
        case "another mask":
            nib.save(nib.Nifti1Image(np.ones(MASK.shape, np.uint8), synthetic.OBLIQUE), folder / "mask.nii.gz")
        case "another affine":
            nib.save(nib.Nifti1Image(MASK.astype(np.uint8), synthetic.RADIOLOGICAL), folder / "mask.nii.gz")
        case "another rank":
            path.write_text(json.dumps(description | {"rank": "half"}))
        case "more components than timepoints":
            subject = description["subjects"][0] | {"n_components": 24}
            path.write_text(json.dumps(description | {"subjects": [subject]}))
        case "fewer components than there are":
            subject = description["subjects"][0] | {"n_components": 22}
            path.write_text(json.dumps(description | {"subjects": [subject]}))
        case "no subjects":
            path.write_text(json.dumps(description | {"subjects": []}))
        case "a subject elsewhere":
            subject = description["subjects"][0] | {"name": "../0001"}
            path.write_text(json.dumps(description | {"subjects": [subject]}))
        case "subject missing":
            (folder / "sub-0002_timeseries.npy").unlink()
        case "subject cut off":
            series = folder / "sub-0002_timeseries.npy"
            series.write_bytes(series.read_bytes()[:1000])
        case "scale cut off":
            (folder / "sub-0003_scale.npy").write_bytes(b"")


@pytest.mark.parametrize(("kind", "words"), DAMAGE.items())
def test_a_damaged_store_is_refused_when_it_is_opened(own: Path, kind: str, words: str) -> None:
    """Missing, truncated or inconsistent files are named before anything is mapped."""
    damage(own, kind)
    error = FileNotFoundError if kind == "no description" else ValueError
    with pytest.raises(error, match=words):
        Store.open(own)


def test_a_subject_of_another_shape_is_named_when_it_is_read(own: Path) -> None:
    """A file of the right size with another shape in its header is refused when it is read."""
    store = Store.open(own)
    path = own / "sub-0002_timeseries.npy"
    np.save(path, np.load(path).reshape(23, N_VOXELS))
    with pytest.raises(OSError, match=r"sub-0002_timeseries\.npy holds"):
        list(Connectome.open(own).subjects())
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(OSError, match=r"sub-0002_timeseries\.npy cannot be read"):
        store.read(store.subjects[1])
