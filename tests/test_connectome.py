"""Connectomes in HDF5, compared with NumPy on the series that were written; invalid files."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import h5py
import numpy as np
import pytest
from synthetic import (
    OBLIQUE,
    RADIOLOGICAL,
    SHAPE,
    as_nobody,
    make_mask,
    make_series,
    write_connectome,
    write_connectome_folder,
)

from bids_lacuna.connectome import Connectome, ConnectomeSubject
from bids_lacuna.connectome.build import build_store
from bids_lacuna.connectome.importers import hdf5
from bids_lacuna.files import ChangedMeanwhile

Array = np.ndarray

MASK = make_mask()
N_VOXELS = int(MASK.sum())
SERIES = make_series(N_VOXELS)
EQUAL = make_series(N_VOXELS, (13, 13, 13))
"""Three subjects that fit one file."""

LAST_VOXEL = np.array([[n - 1] for n in SHAPE])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Write a connectome of three subjects into one file."""
    return write_connectome(tmp_path / "study.h5", EQUAL, MASK)


def alter(path: Path, name: str, value: object) -> None:
    """Replace a dataset, or the attribute mask_shape, of a connectome's file; None removes it."""
    with h5py.File(path, "r+") as stored:
        items = stored.attrs if name == "mask_shape" else stored
        del items[name]
        if value is not None:
            items[name] = value


def check(subject: ConnectomeSubject, stored: Array, atol: float = 1e-6) -> None:
    """Compare one subject with the stored series (n_timepoints, n_voxels)."""
    stored = stored.astype(float)
    demeaned = stored - stored.mean(axis=0)
    np.testing.assert_allclose(
        subject.series * subject.scale[:, np.newaxis], (demeaned / np.linalg.norm(demeaned, axis=0)).T, atol=atol
    )
    np.testing.assert_allclose(subject.sd, stored.std(axis=0), rtol=1e-5)


def check_all(path: Path, series: Sequence[Array], **options: str) -> Connectome:
    """Open a connectome and compare its subjects with those that were stored."""
    connectome = Connectome.open(path, **options)
    for subject, stored in zip(connectome.subjects(), series, strict=True):
        check(subject, stored)
    assert connectome.n_subjects == len(series)
    assert connectome.n_timepoints == max(map(len, series))
    return connectome


def reader_threads() -> list[threading.Thread]:
    """Return the threads other than the one that runs the test."""
    return [thread for thread in threading.enumerate() if thread is not threading.main_thread()]


@pytest.mark.parametrize("kind", [str, Path])
@pytest.mark.parametrize("affine", [RADIOLOGICAL, OBLIQUE], ids=["radiological", "oblique"])
def test_one_file(tmp_path: Path, affine: Array, kind: type) -> None:
    """A file yields its grid and its subjects in order, numbered from 1."""
    path = write_connectome(tmp_path / "study.h5", EQUAL, MASK, affine)
    connectome = check_all(kind(path), EQUAL)
    np.testing.assert_array_equal(connectome.grid.mask, MASK)
    np.testing.assert_array_equal(connectome.grid.affine, affine)
    assert [subject.name for subject in connectome.subjects()] == ["0001", "0002", "0003"]


def test_folder(tmp_path: Path) -> None:
    """A folder's files are read in order of name, with different numbers of timepoints; other files are ignored."""
    folder = write_connectome_folder(tmp_path / "study", SERIES, MASK)
    (folder / "part1.h5").rename(folder / "part1.hdf5")
    (folder / "README.txt").write_text("not HDF5")
    (folder / "._part0.h5").write_text("what macOS leaves on other people's disks")
    assert len(list(folder.iterdir())) == 6
    connectome = check_all(folder, SERIES)
    assert {subject.series.shape[1] for subject in connectome.subjects()} == {23, 29, 31, 37}


def test_indices_one_row_a_voxel(file: Path) -> None:
    """Voxel indices may be in rows instead of columns."""
    alter(file, "mask_indices", np.argwhere(MASK))
    np.testing.assert_array_equal(check_all(file, EQUAL).grid.mask, MASK)


def test_three_voxels(tmp_path: Path) -> None:
    """With three voxels, where both shapes fit, indices are read in columns."""
    mask = np.zeros(SHAPE, bool)
    mask[[0, 2, 4], [3, 1, 5], [9, 10, 2]] = True
    series = make_series(3, (13, 13))
    connectome = check_all(write_connectome(tmp_path / "three.h5", series, mask), series)
    np.testing.assert_array_equal(connectome.grid.mask, mask)


def test_scrambled_voxels(tmp_path: Path) -> None:
    """Voxels in any order are read in C order, also if the files of a folder have different orders."""
    rng = np.random.default_rng(7)
    for part, series in enumerate(EQUAL):
        write_connectome(tmp_path / "study" / f"{part}.h5", [series], MASK, order=rng.permutation(N_VOXELS))
    check_all(tmp_path / "study", EQUAL)


@pytest.mark.parametrize("dtype", ["<f2", ">f4", "<f8", ">f8", "<i2", ">i2", "<u2", "<i4"])
@pytest.mark.parametrize("scrambled", [False, True], ids=["in order", "scrambled"])
def test_stored_dtypes(tmp_path: Path, dtype: str, scrambled: bool) -> None:
    """Numbers of every width and byte order are read correctly."""
    order = np.random.default_rng(7).permutation(N_VOXELS) if scrambled else np.arange(N_VOXELS)
    path = write_connectome(tmp_path / "study.h5", EQUAL, MASK, order=order)
    stored = np.array(EQUAL).astype(dtype)
    alter(path, "timeseries", stored[:, :, order])
    with h5py.File(path) as connectome:
        assert connectome["timeseries"].dtype == np.dtype(dtype)
    check_all(path, stored)


def test_float64_keeps_its_digits(file: Path) -> None:
    """A small signal on a large mean survives in a float64 file; float32 would round it away."""
    stored = 1e7 + np.random.default_rng(8).standard_normal((2, 13, N_VOXELS))
    alter(file, "timeseries", stored)
    check_all(file, stored)


def test_undefined_voxels(file: Path) -> None:
    """A series that is constant or not finite has scale and sd 0, in its own subject only."""
    stored = np.array(EQUAL)
    stored[1, :, 11] = 1000.1
    stored[1, 5, 17] = np.nan
    stored[1, 7, 23] = -np.inf
    alter(file, "timeseries", stored)
    for number, subject in enumerate(Connectome.open(file).subjects()):
        undefined = [11, 17, 23] if number == 1 else []
        assert np.flatnonzero(subject.scale == 0).tolist() == np.flatnonzero(subject.sd == 0).tolist() == undefined
        assert np.isfinite(subject.series).all()


@pytest.mark.parametrize("difference", ["affine", "mask", "shape"])
def test_different_grids(tmp_path: Path, difference: str) -> None:
    """Files of different grids in one folder are refused, naming two that differ and both grids."""
    shape = (7, 5, 11) if difference == "shape" else SHAPE
    mask = make_mask(seed=5 if difference == "mask" else 1, shape=shape)
    affine = RADIOLOGICAL + (0.5 * np.eye(4, k=3) if difference == "affine" else 0)
    write_connectome(tmp_path / "first.h5", EQUAL, MASK)
    write_connectome(tmp_path / "next.h5", make_series(int(mask.sum()), (13,)), mask, affine)
    with pytest.raises(ValueError, match=r"different grids: first\.h5 has .* mm .*, next\.h5 has .* mm"):
        Connectome.open(tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("timeseries", None, r"lacks timeseries; it holds mask_affine, mask_indices"),
        ("mask_indices", None, "lacks mask_indices"),
        ("mask_affine", None, "lacks mask_affine"),
        ("mask_shape", None, "lacks the attribute mask_shape"),
        ("timeseries", np.zeros((0, 13, N_VOXELS)), "none of them 0"),
        ("timeseries", np.zeros((2, 0, N_VOXELS)), "none of them 0"),
        ("timeseries", np.zeros((13, N_VOXELS)), rf"\(13, {N_VOXELS}\)"),
        ("timeseries", np.zeros((2, N_VOXELS, 13)), rf"\(2, {N_VOXELS}, 13\) and mask_indices \(3, {N_VOXELS}\)"),
        ("timeseries", np.zeros((2, 13, N_VOXELS), complex), "complex128"),
        ("mask_indices", np.zeros((3, N_VOXELS)), "float64"),
        ("mask_indices", np.zeros((2, N_VOXELS), int), rf"mask_indices \(2, {N_VOXELS}\)"),
        ("mask_indices", np.zeros((3, N_VOXELS), int), "twice"),
        ("mask_indices", np.argwhere(MASK).T - 1, "outside mask_shape"),
        ("mask_indices", np.argwhere(MASK).T + 1, "outside mask_shape"),
        ("mask_shape", (5, 7), "mask_shape"),
        ("mask_shape", (11, 7, 5), "outside mask_shape"),
        ("mask_affine", np.diag([4, 4, 0, 1]), "mask_affine"),
        ("mask_affine", np.full((4, 4), np.nan), "mask_affine"),
        ("mask_affine", np.eye(3), "mask_affine"),
    ],
)
def test_invalid_layout(file: Path, name: str, value: object, words: str) -> None:
    """A file with a missing or invalid part is refused, naming file and part."""
    alter(file, name, value)
    with pytest.raises(ValueError, match=rf"study\.h5(?s:.*){words}"):
        Connectome.open(file)


def test_shape_as_floats(file: Path) -> None:
    """A mask_shape stored as floats is accepted."""
    alter(file, "mask_shape", np.array(SHAPE, float))
    assert Connectome.open(file).grid.shape == SHAPE


@pytest.mark.parametrize("content", ["text", "nothing", "half"])
def test_not_hdf5(file: Path, content: str) -> None:
    """A file that is damaged or of another kind is refused by name."""
    whole = file.read_bytes()
    file.write_bytes({"text": b"timeseries\n" * 99, "nothing": b"", "half": whole[: len(whole) // 2]}[content])
    with pytest.raises(ValueError, match=r"study\.h5 cannot be read as HDF5"):
        Connectome.open(file)


def test_nothing_there(tmp_path: Path) -> None:
    """A missing path and a folder without HDF5 files have different errors."""
    with pytest.raises(FileNotFoundError, match=r"no connectome at .*nowhere"):
        Connectome.open(tmp_path / "nowhere")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(FileNotFoundError, match="holds no HDF5 file"):
        Connectome.open(tmp_path)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("GSP-1000_run1.h5", "GSP1000run1"),
        ("gsp.smooth6.hdf5", "gspsmooth6"),
        ("GSP_1000/part.h5", "GSP1000"),
        ("gsp.2mm/part.h5", "gsp2mm"),
        ("__.h5", "connectome"),
    ],
)
def test_default_name(tmp_path: Path, path: str, name: str) -> None:
    """The default name is the letters and digits of the file's or folder's name."""
    file = write_connectome(tmp_path / path, EQUAL, MASK)
    assert Connectome.open(file if file.parent == tmp_path else file.parent).name == name


def test_name_of_a_link(tmp_path: Path) -> None:
    """A link, such as every file of a DataLad clone, is named by itself, not by its target."""
    target = write_connectome(tmp_path / "annex" / "MD5E-s49585--0b5f.h5", EQUAL, MASK)
    (tmp_path / "GSP1000.h5").symlink_to(target)
    assert Connectome.open(tmp_path / "GSP1000.h5").name == "GSP1000"


def test_name(file: Path) -> None:
    """A name has letters and digits only, since it becomes part of file names."""
    assert Connectome.open(file, name="GSP1000").name == "GSP1000"
    for name in ("GSP-1000", "GSP 1000", "größe", "../x"):
        with pytest.raises(ValueError, match="letters and digits"):
            Connectome.open(file, name=name)


@pytest.mark.parametrize("recorded", [None, "MNI152NLin2009cAsym", b"MNI152NLin2009cAsym"])
def test_space(file: Path, recorded: str | bytes | None) -> None:
    """The space is the file's, or else the given one, or else that of GSP1000."""
    if recorded:
        with h5py.File(file, "r+") as stored:
            stored.attrs["space"] = recorded
    assert Connectome.open(file).space == ("MNI152NLin2009cAsym" if recorded else "MNI152NLin6Asym")
    given = "MNI152NLin2009cAsym" if recorded else "MNI305"
    assert Connectome.open(file, space=given).space == given


def test_content_hash(tmp_path: Path) -> None:
    """The hash does not depend on the folder; one changed byte or a missing file changes it."""
    folder = write_connectome_folder(tmp_path / "study", SERIES, MASK)
    copy = shutil.copytree(folder, tmp_path / "elsewhere" / "copy")
    expected = Connectome.open(folder).content_hash
    assert Connectome.open(copy).content_hash == expected
    (copy / "part3.h5").rename(tmp_path / "part3.h5")
    assert Connectome.open(copy).content_hash != expected
    with h5py.File(tmp_path / "part3.h5", "r+") as stored:
        stored["mask_affine"][0, 3] += 1e-6
    (tmp_path / "part3.h5").rename(copy / "part3.h5")
    assert Connectome.open(copy).content_hash != expected


def test_content_hash_of_a_large_file(tmp_path: Path) -> None:
    """In a file too large to be hashed completely, a change that spans a 64th of it changes the hash."""
    mask = np.ones((40, 50, 60), bool)
    series = [np.zeros((25, mask.size), np.float32)]
    path = write_connectome(tmp_path / "large.h5", series, mask)
    alter(path, "timeseries", np.array(series))
    assert path.stat().st_size > 12e6
    expected = Connectome.open(path).content_hash
    with h5py.File(path, "r+") as stored:
        stored["timeseries"][0, 11, : mask.size // 2] = 1
    assert Connectome.open(path).content_hash != expected


def test_reads_ahead_in_one_thread(file: Path) -> None:
    """One thread reads while subjects are used; it ends with the last subject."""
    others = reader_threads()
    for _ in Connectome.open(file).subjects():
        assert len(reader_threads()) == len(others) + 1
    assert reader_threads() == others


@pytest.mark.parametrize("n_used", [0, 1, 2])
def test_abandoned(file: Path, n_used: int) -> None:
    """Stopping early leaves no thread and no open file: the file can be written to again."""
    others = reader_threads()
    subjects = Connectome.open(file).subjects()
    for _ in range(n_used):
        next(subjects)
    subjects.close()
    assert reader_threads() == others
    with h5py.File(file, "r+") as stored:
        stored["timeseries"][:] = 0


def test_damaged_subject(tmp_path: Path) -> None:
    """The subjects before a damaged one are read; then the error names file and subject, and reading stops."""
    write_connectome(tmp_path / "a.h5", EQUAL, MASK)
    damaged = write_connectome(tmp_path / "b.h5", EQUAL, MASK)
    with h5py.File(damaged) as stored:
        chunk = stored["timeseries"].id.get_chunk_info_by_coord((2, 0, 0))
    with damaged.open("r+b") as raw:
        raw.seek(chunk.byte_offset)
        raw.write(bytes(chunk.size))
    others = reader_threads()
    subjects = Connectome.open(tmp_path).subjects()
    for stored in [*EQUAL, *EQUAL[:2]]:
        check(next(subjects), stored)
    with pytest.raises(OSError, match=r"subject 2 of .*b\.h5"):
        next(subjects)
    assert reader_threads() == others


@pytest.mark.parametrize("change", ["truncated", "removed"])
def test_file_that_changed_after_opening(file: Path, change: str) -> None:
    """A file that was truncated or removed since it was opened is named when it is read."""
    connectome = Connectome.open(file)
    if change == "removed":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(OSError, match=r"study\.h5"):
        next(connectome.subjects())


def rewrite(path: Path, content: bytes) -> None:
    """Replace a file at once by another one, of another time."""
    other = path.with_name("other")
    other.write_bytes(content)
    os.utime(other, ns=(0, path.stat().st_mtime_ns + 1))
    other.replace(path)


def as_store(tmp_path: Path) -> Path:
    """Build a store of the file's subjects."""
    source = write_connectome(tmp_path / "source" / "study.h5", EQUAL, MASK)
    build_store(hdf5.open_source(source), source.parent, tmp_path / "store", name="GSP", space="MNI152NLin6Asym")
    return tmp_path / "store"


@pytest.mark.parametrize("n_read", [0, 1, 3])
@pytest.mark.parametrize("kind", ["hdf5", "store"])
def test_a_file_with_other_content_while_it_is_in_use(tmp_path: Path, kind: str, n_read: int) -> None:
    """Other content of the same size is noticed when the next subject is read, or after the last one."""
    store = kind == "store"
    path = as_store(tmp_path) if store else write_connectome(tmp_path / "study.h5", EQUAL, MASK)
    changed = path / "sub-0003_scale.npy" if store else path
    subjects = Connectome.open(path).subjects()
    for _ in range(n_read):
        next(subjects)
    content = bytearray(changed.read_bytes())
    content[-1] ^= 1
    rewrite(changed, bytes(content))
    with pytest.raises(ChangedMeanwhile, match=rf"{changed} has changed while it was in use \(it was replaced\)"):
        list(subjects)


@pytest.mark.parametrize("kind", ["hdf5", "store"])
def test_a_file_with_the_same_content_while_it_is_in_use(tmp_path: Path, kind: str) -> None:
    """A file that is written anew with the same content, as a copy of a folder that is repeated, changes nothing."""
    store = kind == "store"
    path = as_store(tmp_path) if store else write_connectome(tmp_path / "study.h5", EQUAL, MASK)
    connectome = Connectome.open(path)
    subjects = connectome.subjects()
    next(subjects)
    for file in connectome.recordings.states:
        rewrite(file, file.read_bytes())
    assert [subject.name for subject in subjects] == ["0002", "0003"]
    assert len(list(connectome.subjects())) == 3


def test_a_folder_that_is_replaced_while_it_is_in_use(tmp_path: Path) -> None:
    """A store whose folder is renamed, or replaced by another store, is noticed."""
    store = as_store(tmp_path)
    connectome = Connectome.open(store)
    store.rename(tmp_path / "old")
    with pytest.raises(ChangedMeanwhile, match=r"sub-0001_timeseries\.npy .* \(it was deleted\)"):
        list(connectome.subjects())
    other = write_connectome(tmp_path / "other" / "study.h5", EQUAL[::-1], MASK)
    build_store(hdf5.open_source(other), other.parent, store, name="GSP", space="MNI152NLin6Asym")
    with pytest.raises(ChangedMeanwhile, match=r"sub-0001_timeseries\.npy has changed"):
        list(connectome.subjects())


def test_a_linked_file_that_changes_while_it_is_in_use(file: Path) -> None:
    """A file that holds the series of another one is watched as well."""
    linked = file.rename(file.with_name("linked.h5"))
    write_connectome(file, EQUAL, MASK)
    alter(file, "timeseries", h5py.ExternalLink("linked.h5", "/timeseries"))
    connectome = Connectome.open(file)
    rewrite(linked, linked.read_bytes()[:-1] + b"7")
    with pytest.raises(ChangedMeanwhile, match=rf"{linked} has changed"):
        next(connectome.subjects())


@pytest.mark.parametrize(("recorded", "space"), [("MNI152_2mm", "MNI152NLin6Asym"), ("MNI152NLin2009cAsym",) * 2])
def test_space_as_converters_write_it(file: Path, recorded: str, space: str) -> None:
    """Converters' names for the space of FSL's template are replaced by the BIDS name."""
    with h5py.File(file, "r+") as stored:
        stored.attrs["space"] = recorded
    assert Connectome.open(file).space == space


def test_invalid_space(file: Path) -> None:
    """A stored space that cannot be part of a file name is refused and can be overridden."""
    with h5py.File(file, "r+") as stored:
        stored.attrs["space"] = "MNI (FSL)"
    with pytest.raises(ValueError, match="--connectome-space"):
        Connectome.open(file)
    assert Connectome.open(file, space="MNI152NLin6Asym").space == "MNI152NLin6Asym"


def test_a_space_that_contradicts_the_record(file: Path) -> None:
    """A space other than the recorded template is refused; a record that names no single template is overridden."""
    with h5py.File(file, "r+") as stored:
        stored.attrs["space"] = "MNI152NLin2009cAsym"
    with pytest.raises(ValueError, match=r"records the space MNI152NLin2009cAsym, but .* build a store"):
        Connectome.open(file, space="MNI152NLin6Asym")
    with h5py.File(file, "r+") as stored:
        stored.attrs["space"] = "MNI152"
    with pytest.raises(ValueError, match=r"it may be MNI152NLin6Sym, .*--connectome-space"):
        Connectome.open(file)
    assert Connectome.open(file, space="MNI152NLin6Asym").space == "MNI152NLin6Asym"


def test_readers(file: Path) -> None:
    """Two threads read compressed chunks of one subject, one thread reads other files."""
    assert Connectome.open(file).n_readers == 2
    alter(file, "timeseries", np.array(EQUAL))
    assert Connectome.open(file).n_readers == 1


@pytest.mark.parametrize("dtype", ["<f4", "<f8"])
@pytest.mark.parametrize("scrambled", [False, True], ids=["in order", "scrambled"])
def test_reading_memory(tmp_path: Path, dtype: str, scrambled: bool) -> None:
    """Reading needs the stored numbers and the series, or twice the stored numbers where voxels are reordered."""
    order = np.arange(N_VOXELS)[:: -1 if scrambled else 1]
    path = write_connectome(tmp_path / "another.h5", EQUAL, MASK, order=order)
    alter(path, "timeseries", np.array(EQUAL)[:, :, order].astype(dtype))
    n_values, stored = 13 * N_VOXELS, np.dtype(dtype).itemsize
    values = 2 * stored if scrambled else stored + 4
    assert Connectome.open(path).recordings.reading_bytes == hdf5.HDF5_BYTES + n_values * values


@pytest.mark.parametrize("keep_cached", [False, True])
def test_files_leave_the_page_cache_unless_kept(
    file: Path, monkeypatch: pytest.MonkeyPatch, keep_cached: bool
) -> None:
    """Each subject's files leave the system's page cache after reading, unless the next pass needs them."""
    forgotten: list[list[Path]] = []
    monkeypatch.setattr("bids_lacuna.connectome.connectome.forget", forgotten.append)
    list(Connectome.open(file).subjects(keep_cached=keep_cached))
    assert forgotten == ([] if keep_cached else [[file]] * 3)


@pytest.mark.parametrize("name", ["store", "files", "files/above"])
def test_connectome_that_may_not_be_searched(name: str) -> None:
    """A connectome in a folder that may not be searched is an error that says so."""
    # Other users may not enter pytest's own folders.
    with TemporaryDirectory() as folder:
        place = Path(folder) / "connectome"
        place.mkdir()
        Path(folder).chmod(0o755)
        if name == "store":
            (place / "connectome.json").write_text("{}")
        else:
            (place / "a.h5").touch()
        place.chmod(0)
        path = place / "a.h5" if name == "files/above" else place
        with (
            as_nobody(),
            pytest.raises(PermissionError, match=f"connectome {path} may not be searched: check its permissions"),
        ):
            Connectome.open(path)
        place.chmod(0o755)
