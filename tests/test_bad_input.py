"""One table of what may be wrong with the input, the output and the options: the sentence, the exit status, no harm.

What a module makes of one bad thing is tested beside it; here, all of them go through the program.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import h5py
import nibabel as nib
import numpy as np
import psutil
import pytest
import synthetic
from program import PATIENCE_S, RUN, Ended, environ_without, last_line, read_table, run_as_user, status_of, wait_until
from synthetic import RADIOLOGICAL, SHAPE, SPACE

from bids_lacuna import cli, reference
from bids_lacuna.connectome.build import build_store
from bids_lacuna.connectome.importers import hdf5
from bids_lacuna.grid import Grid
from bids_lacuna.lesion import LesionData, load_lesion

Array = np.ndarray

BRAIN = synthetic.make_mask()
SERIES = synthetic.make_series(int(BRAIN.sum()))
EQUAL = synthetic.make_series(int(BRAIN.sum()), (23,) * 5)

LESION = synthetic.box((3, 2, 3))
GOOD = f"sub-01/anat/sub-01_space-{SPACE}_label-lesion_mask.nii.gz"

MIRROR = np.diag([-1.0, 1, 1, 1])
MIRROR[0, 3] = SHAPE[0] - 1
"""Voxel indices to those of the array turned round along its first axis."""


def run_here(*arguments: object) -> int:
    """Run the program within this process."""
    return status_of(cli.main, *arguments)


def map_here(bids: Path, out: Path, connectome: Path, *options: object) -> int:
    """Run the participant level within this process."""
    return run_here(bids, out, "participant", "--no-reports", "--connectome", connectome, "--nprocs", "1", *options)


def files_below(folder: Path) -> set[Path]:
    """List all that lies in a folder."""
    return {path.relative_to(folder) for path in folder.rglob("*")}


@pytest.fixture
def bids(tmp_path: Path) -> Path:
    """Write a dataset of one good mask."""
    return synthetic.write_dataset(tmp_path / "bids", {GOOD.removesuffix(".nii.gz"): LESION})


def write_image(path: Path, voxels: Array, affine: Array | None = RADIOLOGICAL) -> Path:
    """Write an image of any numbers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return path


def write_values(*values: float) -> Callable[[Path], object]:
    """Write a mask with these values side by side, 0 elsewhere."""
    voxels = np.zeros(SHAPE, np.float32)
    voxels[2, 3, 4 : 4 + len(values)] = values
    return lambda path: write_image(path, voxels)


def write_header(path: Path, shape: tuple[int, ...], voxels: bytes = b"") -> None:
    """Write a header with any shape, and some voxels."""
    header = nib.Nifti1Header()
    header.set_data_dtype(np.float32)
    header.set_data_shape(shape)
    header.set_sform(RADIOLOGICAL, 4)
    header["vox_offset"] = 352
    content = header.binaryblock + bytes(4) + voxels
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_wide(path: Path) -> None:
    """Write a mask of one slice, which is whole and takes no room on the disk."""
    plain = path.with_suffix("")
    write_header(plain, (30000, 30000, 1))
    os.truncate(plain, 352 + 4 * 30000**2)


def write_two_affines(path: Path) -> None:
    """Write a mask whose qform has left and right exchanged."""
    image = nib.Nifti1Image(LESION, RADIOLOGICAL)
    image.set_sform(RADIOLOGICAL, 4)
    image.set_qform(RADIOLOGICAL @ MIRROR, 1)
    nib.save(image, path)


def write_singular(path: Path) -> None:
    """Write a mask whose affine has an axis of length 0."""
    content = bytearray(gzip.decompress(write_image(path, LESION).read_bytes()))
    content[312:328] = bytes(16)  # the header's srow_z
    path.write_bytes(gzip.compress(content))


def write_offset(path: Path) -> None:
    """Write a mask whose voxels begin nowhere."""
    content = bytearray(gzip.decompress(write_image(path, LESION).read_bytes()))
    content[108:112] = np.float32(np.nan).tobytes()  # the header's vox_offset
    path.write_bytes(gzip.compress(content))


def cut(path: Path) -> None:
    """Write a mask whose gzip ends too early."""
    path.write_bytes(write_image(path, LESION).read_bytes()[:-30])


BAD_MASKS: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (write_values(), "is empty: all voxels are 0"),
    "volumes": (lambda path: write_image(path, np.ones((*SHAPE, 2), np.uint8)), r"4 dimensions \(5, 7, 11, 2\)"),
    "rgb": (
        lambda path: write_image(path, np.zeros(SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])),
        "not an image of real numbers",
    ),
    "labels": (write_values(1, 2), "contains 1, 2, .* save one file per lesion"),
    "probabilities": (write_values(0.25, 0.5, 1), r"contains 0\.25, 0\.5, 1, .* --lesion-threshold T"),
    "negative": (write_values(-1, -1), "not binary: besides 0 it contains -1"),
    "nan": (write_values(np.nan, 1), "contains NaN"),
    "infinite": (write_values(np.inf), "not binary: besides 0 it contains inf"),
    "huge": (lambda path: write_header(path, (1024, 1024, 1024)), "its header requires 4294967648 bytes"),
    "wide": (write_wide, "slices of 30000 x 30000 voxels"),
    "flat": (lambda path: write_header(path, (5, 7, 0)), r"its header has the shape \(5, 7, 0\)"),
    "offset": (write_offset, "cannot convert float NaN"),
    "cut": (cut, "cannot be read"),
    "magic": (lambda path: path.write_bytes(b"not an image\n" * 99), "cannot be read as NIfTI"),
    "nothing": (lambda path: path.touch(), "cannot be read as NIfTI"),
    "dangling": (lambda path: path.symlink_to("../annex/object"), "link to ../annex/object, .*`datalad get`"),
    "singular": (write_singular, "affine is missing or singular"),
    "nowhere": (lambda path: write_image(path, LESION, None), "affine is missing or singular"),
    "metres": (
        lambda path: write_image(path, LESION, np.diag([1e-3, 1e-3, 1e-3, 1]) @ RADIOLOGICAL),
        r"voxels of 0\.004 x 0\.004 x 0\.004 mm .* metres",
    ),
    "micrometres": (lambda path: write_image(path, LESION, np.diag([4e3, 4e3, 4e3, 1])), "4e.03 mm .* micrometres"),
    "outside": (
        lambda path: write_image(path, LESION, RADIOLOGICAL + 900 * np.eye(4, k=3)),
        "outside the connectome's brain mask: it spans",
    ),
}
"""Names of subjects, whose masks fail: how each is written, and the words of the reason."""

BAD_NAMES = {
    "sub-dots/anat/sub-dots_label-..lesion_mask.nii.gz": "rename the file",
    "sub-../anat/sub-.._label-lesion_mask.nii.gz": "rename the file",
    "sub-quote/anat/sub-quote_label-\"';--lesion_mask.nii.gz": "rename the file",
    "sub-html/anat/sub-html_label-<script>alert(1)<script>lesion_mask.nii.gz": "rename the file",
    "sub-line/anat/sub-line_label-a\n01\tdone\tlesion_mask.nii.gz": "rename the file",
    "sub-escape/anat/sub-escape_label-\x1b[2Jlesion_mask.nii.gz": "rename the file",
    "sub-umlaut/anat/sub-umlaut_label-läsionlesion_mask.nii.gz": "rename the file",
    "sub-key/anat/sub-key_..-x_label-lesion_mask.nii.gz": "rename the file",
    "sub-other/anat/sub-other_space-MNI152NLin2009aSym_label-lesion_mask.nii.gz": "in space MNI152NLin2009aSym",
    "sub-native/anat/sub-native_label-lesion_mask.nii.gz": "its name has no space",
    f"sub-twin/anat/sub-twin_space-{SPACE}_label-lesion_mask.nii.gz": "same names",
    f"sub-twin/anat/sub-twin_space-{SPACE}_label-lesion_mask.nii": "same names",
}
"""Masks with nothing wrong but their names, and the words of the reason."""

ODD_MASKS: dict[str, tuple[Callable[[Path], object], str]] = {
    "onevolume": (lambda path: write_image(path, LESION[..., np.newaxis]), ""),
    "white": (lambda path: write_image(path, 255 * LESION), ""),
    "lefthanded": (lambda path: write_image(path, LESION[::-1], RADIOLOGICAL @ MIRROR), ""),
    "turned": (lambda path: write_image(path, LESION.transpose(2, 0, 1), RADIOLOGICAL[:, [2, 0, 1, 3]]), ""),
    "twoaffines": (write_two_affines, "sform and qform place voxels up to 16 mm apart: the sform is used"),
    "sidecar": (
        lambda path: (write_image(path, LESION), path.with_name(path.name[:-7] + ".json").write_text("{")),
        "",
    ),
}
"""Masks of the same lesion as the good one's, which have the same maps, and the words of a warning."""


Finished = tuple[Path, Ended]
"""An output, in a folder of its own, and the program that wrote it."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, connectome: Path) -> Finished:
    """Map one dataset of all bad masks and a good one, as a user does."""
    folder = tmp_path_factory.mktemp("finished")
    bids = synthetic.write_dataset(folder / "bids", {GOOD.removesuffix(".nii.gz"): LESION})
    for kind, (write, _) in (BAD_MASKS | ODD_MASKS).items():
        path = bids / GOOD.replace("01", kind)
        path.parent.mkdir(parents=True)
        write(path)
    for name in BAD_NAMES:
        write_image(bids / name, LESION)
    write_image(bids / GOOD.replace("01", "ones"), np.ones(SHAPE, np.uint8))
    write_image(bids / "sub-nameless" / "anat" / "lesion_mask.nii.gz", LESION)
    Path(os.fsdecode(bytes(bids / "sub-01") + b"/anat/sub-01_label-\xfflesion_mask.nii.gz")).touch()
    (bids / "participants.tsv").write_text("participant_id\nsub-99\nsub-empty\n")
    (folder / "run").mkdir()
    out = folder / "run" / "out"
    return out, run_as_user(bids, out, "participant", "--no-reports", "--connectome", connectome)


def row_of(out: Path, subject: str) -> dict[str, str]:
    """Give the one row of a subject."""
    (row,) = [row for row in read_table(out) if row["sub"] == subject]
    return row


@pytest.mark.parametrize(("kind", "words"), [(kind, words) for kind, (_, words) in BAD_MASKS.items()])
def test_bad_masks_fail(finished: Finished, kind: str, words: str) -> None:
    """Each fails with its own reason, in the table and on stderr, and has no map."""
    out, result = finished
    row = row_of(out, kind)
    assert row["status"] == "failed"
    assert re.search(words, row["reason"])
    assert re.search(words, result.stderr)
    assert not (out / f"sub-{kind}").exists()


@pytest.mark.parametrize(("name", "words"), BAD_NAMES.items(), ids=[name.split("/")[0] for name in BAD_NAMES])
def test_bad_names_fail(finished: Finished, name: str, words: str) -> None:
    """A name that can become no name of a map fails, keeps its row, and is shown without what terminals obey."""
    out, result = finished
    subject = name.split("/")[0]
    rows = [row for row in read_table(out) if row["mask"].startswith(f"{subject}/")]
    assert len(rows) == sum(other.startswith(f"{subject}/") for other in BAD_NAMES)
    for row in rows:
        assert row["status"] == "failed"
        assert words in row["reason"]
    assert not (out / subject).exists()
    assert "\x1b" not in result.stderr


@pytest.mark.parametrize(("kind", "words"), [(kind, words) for kind, (_, words) in ODD_MASKS.items()])
def test_odd_masks_are_mapped(finished: Finished, kind: str, words: str) -> None:
    """The good lesion in another guise has the good lesion's maps, with a warning where one is due."""
    out, result = finished
    assert row_of(out, kind)["status"] == "done"
    assert re.search(words, result.stderr)
    for stat in "rzt":
        name = f"sub-01/func/sub-01_space-{SPACE}_label-lesion_stat-{stat}_desc-GSP5_statmap.nii.gz"
        expected, found = (nib.load(out / name.replace("01", subject)).get_fdata() for subject in ("01", kind))
        np.testing.assert_array_equal(found, expected)


def test_the_good_mask_is_mapped(finished: Finished) -> None:
    """Beside all of them, the good lesion's r-map is that of the definition."""
    out, _ = finished
    grid = Grid(BRAIN, RADIOLOGICAL)
    weights = LESION[BRAIN].astype(float)[np.newaxis]
    (path,) = (out / "sub-01").rglob("*stat-r*.nii.gz")
    expected = reference.map_lesions(weights, SERIES)["r"][0]
    np.testing.assert_allclose(grid.vector(nib.load(path).get_fdata()), expected, rtol=0, atol=1e-6)


def test_the_run_of_bad_masks_ends_well(finished: Finished) -> None:
    """The status is that of failed lesions, the last line counts them, and nothing is written anywhere else."""
    out, result = finished
    assert result.returncode == 1
    n_failed, n_masks = len(BAD_MASKS) + len(BAD_NAMES), len(BAD_MASKS) + len(BAD_NAMES) + len(ODD_MASKS) + 2
    assert f"{n_failed} of {n_masks} lesions failed, the first: " in last_line(result.stderr)
    rows = read_table(out)
    assert len([row for row in rows if row["mask"] != "n/a"]) == n_masks
    # Of the participants, sub-nameless has no mask with a name that the program knows.
    assert [row["sub"] for row in rows if row["mask"] == "n/a"] == ["nameless"]
    assert {path.name for path in out.parent.iterdir()} == {"out"}
    assert {path.name for path in out.glob("sub-*")} == {f"sub-{kind}" for kind in (*ODD_MASKS, "01", "ones")}
    assert not [path for path in out.rglob("*") if "<script" in path.name or ".." in path.name]


def test_warnings_of_the_run_of_bad_masks(finished: Finished) -> None:
    """A brain mask for a lesion, a mask without a name and one whose name is not UTF-8 are told of."""
    out, result = finished
    assert row_of(out, "ones")["status"] == "done"
    assert re.search("sub-ones.*: the lesion covers 100 % of the connectome's brain mask", result.stderr)
    assert re.search("no sub-<label>: 1, such as .*sub-nameless/anat/lesion_mask.nii.gz", result.stderr)
    assert re.search(r"not UTF-8, such as .*udcfflesion_mask\.nii\.gz", result.stderr)


def test_equal_reasons_are_told_once(
    bids: Path, connectome: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where all masks fail for one reason, as with a space's name mistyped, it is told once, with a hint."""
    for number in range(2, 40):
        shutil.copytree(bids / "sub-01", bids / f"sub-{number:02}")
        (path,) = (bids / f"sub-{number:02}").rglob("*.nii.gz")
        path.rename(path.with_name(path.name.replace("sub-01", f"sub-{number:02}")))
    assert map_here(bids, tmp_path / "out", connectome, "--connectome-space", "MNI152Nlin6Asym") == 1
    printed = capsys.readouterr().err
    assert "the space MNI152Nlin6Asym is not a template of BIDS: did you mean MNI152NLin6Asym?" in printed
    assert printed.count("failed: sub-") == 1
    assert "sub-03_space-MNI152NLin6Asym_label-lesion_mask.nii.gz and 36 more: the lesion is in space" in printed
    assert len(read_table(tmp_path / "out")) == 39


def test_probability_maps(bids: Path, connectome: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a threshold, voxels of at least that count as much as they say, which the sidecar tells; percents fail."""
    out = tmp_path / "out"
    probabilities = np.random.default_rng(6).random(SHAPE).astype(np.float32)
    write_image(bids / GOOD.replace("01", "02"), probabilities)
    write_image(bids / GOOD.replace("01", "03"), 100 * probabilities)
    assert map_here(bids, out, connectome, "--lesion-threshold", "0.4") == 1
    assert {row["sub"]: row["status"] for row in read_table(out)} == {"01": "done", "02": "done", "03": "failed"}
    assert "probabilities from 0 to 1: divide percentages by 100" in last_line(capsys.readouterr().err)
    weights = np.where(probabilities >= 0.4, probabilities, 0)
    (path,) = (out / "sub-02").rglob("*stat-r*.nii.gz")
    expected = reference.map_lesions(weights[BRAIN][np.newaxis].astype(float), SERIES)["r"][0]
    np.testing.assert_allclose(nib.load(path).get_fdata()[BRAIN], expected, rtol=0, atol=1e-6)
    sidecar = json.loads(path.with_name(path.name.replace(".nii.gz", ".json")).read_text())
    assert sidecar["LesionThreshold"] == 0.4
    assert sidecar["LesionVolume"] == pytest.approx(64 * weights.sum())
    assert sidecar["LesionCoverage"] == pytest.approx(weights[BRAIN].sum() / weights.sum())
    before = path.read_bytes()
    assert map_here(bids, out, connectome, "--lesion-threshold", "0.5", "--participant-label", "02") == 1
    assert "made with the lesion threshold 0.4" in last_line(capsys.readouterr().err)
    assert path.read_bytes() == before


def test_a_mask_that_may_not_be_read() -> None:
    """A mask without permission says so, and not that it is no NIfTI."""
    # Others may not enter pytest's own folders.
    with TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        path = write_image(Path(folder) / "mask.nii.gz", LESION)
        path.chmod(0)
        with (
            synthetic.as_nobody(),
            pytest.raises(PermissionError, match=r"mask\.nii\.gz cannot be read: check"),
        ):
            load_lesion(LesionData.from_nifti(path), Grid(BRAIN, RADIOLOGICAL))


def alter(path: Path, name: str, **dataset: object) -> None:
    """Replace a dataset of an HDF5 file by one that is described, and takes no room."""
    with h5py.File(path, "r+") as file:
        del file[name]
        file.create_dataset(name, **dataset)


def one_file(folder: Path) -> Path:
    """Write a connectome of one HDF5 file."""
    return synthetic.write_connectome(folder / "connectome.h5", EQUAL, BRAIN)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a store, which no test changes."""
    folder = tmp_path_factory.mktemp("whole")
    source = synthetic.write_connectome_folder(folder / "hdf5", SERIES, BRAIN)
    build_store(hdf5.open_source(source), source, folder / "store", name="GSP5", space=SPACE, dtype="int16")
    return folder / "store"


def describe(store: Path, **changes: object) -> None:
    """Change the description of a store."""
    path = store / "connectome.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


BAD_STORES = (
    "newer store",
    "store of infinity",
    "nested",
    "no scale",
    "another grid's subject",
    "a huge mask",
    "a mask of a huge file",
)


def bad_connectome(kind: str, folder: Path, whole: Path) -> Path:
    """Make a connectome that cannot be used."""
    folder.mkdir()
    store = folder / "store"
    if kind in BAD_STORES:
        shutil.copytree(whole, store)
    n_voxels = int(BRAIN.sum())
    match kind:
        case "missing":
            return folder / "nowhere"
        case "not HDF5":
            (folder / "a.h5").write_text("these are not the series you are looking for")
        case "truncated":
            path = one_file(folder)
            path.write_bytes(path.read_bytes()[:5000])
        case "no datasets":
            with h5py.File(folder / "a.h5", "w") as file:
                file["something"] = [1]
        case "two grids":
            synthetic.write_connectome(folder / "a.h5", EQUAL, BRAIN)
            synthetic.write_connectome(folder / "b.h5", EQUAL, BRAIN, synthetic.OBLIQUE)
        case "one timepoint":
            alter(one_file(folder), "timeseries", data=np.ones((5, 1, n_voxels), np.float32))
        case "subjects without number":
            shape = (2**40, 23, n_voxels)
            alter(one_file(folder), "timeseries", shape=shape, dtype="f4", chunks=(1, 23, n_voxels))
        case "voxels without number":
            alter(one_file(folder), "timeseries", shape=(5, 23, 2**40), dtype="f4", chunks=(1, 1, 64))
            alter(folder / "connectome.h5", "mask_indices", shape=(3, 2**40), dtype="i8", chunks=(3, 64))
        case "a huge volume":
            with h5py.File(one_file(folder), "r+") as file:
                file.attrs["mask_shape"] = (2**20, 2**20, 2**20)
        case "timepoints without number":
            shape = (5, 2**33, n_voxels)
            alter(one_file(folder), "timeseries", shape=shape, dtype="f4", chunks=(1, 23, n_voxels))
        case "newer store":
            describe(store, layout_version=2, subjects="elsewhere, as is the fashion of tomorrow")
        case "store of infinity":
            describe(store, n_voxels=float("inf"))
        case "nested":
            (store / "connectome.json").write_text('{"a":' * 100_000)
        case "no scale":
            (store / "sub-0003_scale.npy").unlink()
        case "another grid's subject":
            np.save(store / "sub-0002_timeseries.npy", np.ones((n_voxels + 7, 23), np.int16))
        case "a huge mask":
            write_header(store / "mask.nii.gz", (1024, 1024, 1024))
        case "a mask of a huge file":
            write_header(store / "mask.nii.gz", (600, 600, 600), os.urandom(10**6))
    return store if kind in BAD_STORES else folder


@pytest.mark.parametrize(
    ("kind", "status", "words"),
    [
        ("missing", 66, "no connectome at"),
        ("empty folder", 66, "holds no HDF5 file"),
        ("not HDF5", 65, "cannot be read as HDF5"),
        ("truncated", 65, "cannot be read as HDF5"),
        ("no datasets", 65, "lacks timeseries"),
        ("two grids", 65, "different grids"),
        ("one timepoint", 65, "at least two timepoints"),
        ("subjects without number", 65, "at most 1000000 subjects"),
        ("voxels without number", 65, "at most 67108864 voxels"),
        ("a huge volume", 65, "mask_shape is [1048576, 1048576, 1048576]"),
        ("timepoints without number", 1, "is available"),
        ("newer store", 65, "has layout 2, this program reads layout 1: use a newer version"),
        ("store of infinity", 65, "does not describe a connectome store"),
        ("nested", 65, "does not describe a connectome store"),
        ("no scale", 65, "lacks"),
        ("another grid's subject", 65, "bytes instead of"),
        ("a huge mask", 65, "its header requires 4294967648 bytes"),
        ("a mask of a huge file", 65, "the limit is 67108864"),
    ],
)
def test_an_unusable_connectome_is_a_sentence(
    bids: Path, tmp_path: Path, whole: Path, kind: str, status: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A connectome that cannot be used ends the run before anything is allocated or written, with its own status."""
    assert map_here(bids, tmp_path / "out", bad_connectome(kind, tmp_path / "bad", whole)) == status
    assert words in last_line(capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


class Pickled:
    """What leaves a trace when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str, int], object], tuple[str, int]]:
        """Make a folder."""
        return os.mkdir, (str(self.path), 0o755)


def test_nothing_is_unpickled(bids: Path, tmp_path: Path, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A NumPy file with a pickled object, of the right size, is damaged, and the object does nothing."""
    path = shutil.copytree(whole, tmp_path / "store") / "sub-0001_scale.npy"
    size = path.stat().st_size
    np.save(path, np.array([Pickled(tmp_path / "unpickled")], object), allow_pickle=True)
    path.write_bytes(path.read_bytes().ljust(size, b"\0"))
    assert path.stat().st_size == size
    assert map_here(bids, tmp_path / "out", path.parent) == 1
    assert "sub-0001_scale.npy cannot be read" in last_line(capsys.readouterr().err)
    assert not (tmp_path / "unpickled").exists()


@pytest.mark.parametrize("kind", ["chunk", "header", "another shape"])
def test_damage_that_shows_while_mapping(
    bids: Path, tmp_path: Path, whole: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Flipped bits that only reading shows fail the lesions with the file's name, and leave no map."""
    if kind == "chunk":
        path = one_file(tmp_path / "bad")
        with h5py.File(path) as file:
            place = file["timeseries"].id.get_chunk_info_by_coord((2, 0, 0)).byte_offset + 50
        connectome = path
    else:
        connectome = shutil.copytree(whole, tmp_path / "store")
        path = connectome / "sub-0002_timeseries.npy"
        place = path.read_bytes().index(b"False" if kind == "header" else b"23)")
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    assert map_here(bids, tmp_path / "out", connectome) == 1
    assert path.name in last_line(capsys.readouterr().err)
    assert [row["status"] for row in read_table(tmp_path / "out")] == ["failed"]
    assert not list((tmp_path / "out").rglob("*.nii.gz"))


@pytest.mark.parametrize("value", [7, np.nan], ids=["constant", "nan"])
@pytest.mark.parametrize("n_silent", [1, 3])
def test_subjects_without_a_signal_count_nowhere(
    bids: Path, tmp_path: Path, value: float, n_silent: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """A subject that is constant or NaN throughout changes nothing; where most are, a warning says so."""
    silent = [np.full_like(series, value) if number < n_silent else series for number, series in enumerate(EQUAL)]
    maps = {}
    for name, series in (("silent", silent), ("rest", EQUAL[n_silent:])):
        connectome = synthetic.write_connectome(tmp_path / name / "GSP5.h5", series, BRAIN)
        assert map_here(bids, tmp_path / f"{name}-out", connectome) == 0
        maps[name] = {path.name: nib.load(path).get_fdata() for path in (tmp_path / f"{name}-out").rglob("*.nii.gz")}
    assert maps["silent"].keys() == maps["rest"].keys()
    for name in maps["rest"]:
        np.testing.assert_allclose(maps["silent"][name], maps["rest"][name], rtol=1e-6)
    err = capsys.readouterr().err
    assert ("only 2 of 5 connectome subjects have a signal in the lesion" in err) == (n_silent == 3)
    assert err.count(f"{n_silent} of 5 connectome subjects have no signal in any voxel") == 1
    words = f"({5 - n_silent} subjects without {n_silent} that have no signal, "
    assert words in (tmp_path / "silent-out" / "logs" / "CITATION.md").read_text()
    assert f"({5 - n_silent} subjects, " in (tmp_path / "rest-out" / "logs" / "CITATION.md").read_text()


def test_one_subject_has_no_t(bids: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A connectome of one subject is mapped, with a warning that there is no t."""
    connectome = synthetic.write_connectome(tmp_path / "one.h5", EQUAL[:1], BRAIN)
    assert map_here(bids, tmp_path / "out", connectome) == 0
    assert "has one subject, but t needs at least two" in capsys.readouterr().err
    (r_map,), (t_map,) = ((tmp_path / "out").rglob(f"*stat-{stat}*.nii.gz") for stat in "rt")
    assert np.isfinite(nib.load(r_map).get_fdata()[BRAIN]).all()
    assert np.isnan(nib.load(t_map).get_fdata()).all()


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        (["--participant-label", "09"], 66, "01"),
        (["--participant-label", "../.."], 66, "there are 01"),
        (["--session-label", "z"], 66, "no session z"),
        (["--t-threshold", "-1"], 64, "a positive number"),
        (["--t-threshold", "0"], 64, "a positive number"),
        (["--t-threshold", "nan"], 64, "a positive number"),
        (["--t-threshold", "1e300"], 64, "a positive number"),
        (["--t-threshold", "1e-300"], 64, "a positive number"),
        (["--lesion-threshold", "0"], 64, "above 0 and up to 1"),
        (["--lesion-threshold", "-0.5"], 64, "above 0 and up to 1"),
        (["--lesion-threshold", "50"], 64, "above 0 and up to 1"),
        (["--lesion-threshold", "nan"], 64, "above 0 and up to 1"),
        (["--lesion-weighting", "heavy"], 64, "volume"),
        (["--lesion-batch-size", "0"], 64, "a positive integer"),
        (["--lesion-batch-size", "-3"], 64, "a positive integer"),
        (["--lesion-batch-size", "many"], 64, "a positive integer"),
        (["--mem", "plenty"], 64, "plenty"),
        (["--mem", "0"], 64, "less than one byte"),
        (["--mem=-8G"], 64, "not an amount of memory"),
        (["--mem", "10M"], 1, "10 MiB is available"),
        (["--nprocs", "0"], 64, "a positive integer"),
        (["--nprocs", "-2"], 64, "a positive integer"),
        (["--connectome-name", "a/b"], 64, "letters and digits"),
        (["--connectome-name", "a+b"], 64, "letters and digits"),
        (["--connectome-space", "../MNI"], 64, "letters and digits"),
        (["--connectome-space", "T1w"], 64, "a participant's own space"),
        (["--connectome-space", "MNI152"], 64, "it may be MNI152NLin6Sym,"),
        (["-d", "nowhere"], 66, "no folder nowhere"),
        (["-d", "some/where"], 66, "no folder some/where"),
        (["-d", "source=."], 64, "already used"),
        (["-w", "/proc/none"], 73, "cannot be created"),
        (["--bids-database-dir", "/proc/none"], 73, "cannot be created"),
        (["--bids-filter-file", "nowhere.json"], 66, "nowhere.json"),
        (["--no-such-option"], 64, "no-such-option"),
    ],
)
def test_mistaken_options(
    bids: Path,
    connectome: Path,
    tmp_path: Path,
    options: list[str],
    status: int,
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each mistake ends the run before anything is written, with a sentence and the status of BIDS Apps."""
    assert map_here(bids, tmp_path / "out", connectome, *options) == status
    assert words in last_line(capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_absurd_options_that_mean_something(bids: Path, connectome: Path, tmp_path: Path) -> None:
    """More threads, memory and lesions at a time than there are change nothing, nor do masks without t-maps."""
    options = ["--lesion-batch-size", 10**30, "--mem", "999999T", "--no-t-map", "--t-threshold", "2", "2"]
    arguments = [
        bids,
        tmp_path / "out",
        "participant",
        "--no-reports",
        "--connectome",
        connectome,
        "--nprocs",
        10**30,
        *options,
    ]
    assert run_here(*arguments) == 0
    assert len(list((tmp_path / "out").rglob("*.nii.gz"))) == 3


@pytest.mark.parametrize(
    ("content", "status", "words"),
    [
        (None, 16, "has no dataset_description.json"),
        ("{", 16, "not valid JSON"),
        ("[" * 100_000, 16, "not valid JSON"),
        ('{"Name": "x", "GeneratedBy": "me"}', 16, "not a list of objects"),
    ],
    ids=["none", "cut", "nested", "damaged"],
)
def test_a_folder_that_is_no_dataset(
    bids: Path,
    connectome: Path,
    tmp_path: Path,
    content: str | None,
    status: int,
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A folder without a usable dataset_description.json is no BIDS dataset."""
    path = bids / "dataset_description.json"
    path.unlink() if content is None else path.write_text(content)
    assert map_here(bids, tmp_path / "out", connectome) == status
    assert words in last_line(capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_a_dataset_that_is_not_there(connectome: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A missing dataset is missing input."""
    assert map_here(tmp_path / "nowhere", tmp_path / "out", connectome) == 66
    assert "there is no folder" in last_line(capsys.readouterr().err)


@pytest.mark.parametrize("kind", ["a file", "read-only", "a link to nowhere"])
def test_a_place_that_is_no_output_folder(
    bids: Path, connectome: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """An output folder that cannot be made or written to ends the run before anything is mapped."""
    out = tmp_path / "out"
    match kind:
        case "a file":
            out.write_text("")
        case "read-only":
            out = Path("/proc")  # to root, too
        case "a link to nowhere":
            out.symlink_to(tmp_path / "nowhere" / "at" / "all")
    before = files_below(tmp_path)
    assert map_here(bids, out, connectome) == 73
    assert str(out) in last_line(capsys.readouterr().err)
    assert files_below(tmp_path) == before


def test_maps_that_cannot_be_written_fail_their_lesion_alone(
    bids: Path, connectome: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where one participant's folder is taken by a file, that participant fails and the other is mapped."""
    write_image(bids / GOOD.replace("01", "02"), LESION)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sub-01").write_text("")
    assert map_here(bids, tmp_path / "out", connectome) == 1
    assert "cannot be written" in last_line(capsys.readouterr().err)
    assert {(row["sub"], row["status"]) for row in read_table(tmp_path / "out")} == {("01", "failed"), ("02", "done")}


def test_a_full_disk(
    bids: Path,
    tmp_path: Path,
    finished: Finished,  # noqa: ARG001  compiled code must be in its cache: that does not fit either
) -> None:
    """Where the disk takes small files only, the lesion fails with the system's words, and no half map stays."""
    brain = np.ones((20, 20, 20), bool)
    connectome = synthetic.write_connectome(tmp_path / "c.h5", synthetic.make_series(8000, (7, 7)), brain)
    out = tmp_path / "out"
    command = [sys.executable, RUN, bids, out, "participant", "--no-reports", "--connectome", connectome]
    result = subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        env=environ_without(),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192)),
    )
    assert result.returncode == 1
    assert "its maps cannot be written: [Errno 27] File too large" in last_line(result.stderr)
    assert [row["status"] for row in read_table(out)] == ["failed"]
    assert not [path for path in out.rglob("*") if ".nii" in path.name or path.name.startswith(".s")]


def is_mapping(pid: int, connectome: Path, out: Path) -> bool:
    """Return whether a process has opened its output, and reads the connectome."""
    return (out / "logs" / "CITATION.bib").exists() and any(
        file.path == str(connectome) for file in psutil.Process(pid).open_files()
    )


def test_an_output_folder_that_vanishes(bids: Path, tmp_path: Path) -> None:
    """Where the output's place is taken by a file in the middle of a run, that is told; the file stays as it is."""
    series = [np.random.default_rng(4).random((5, int(BRAIN.sum())), np.float32)] * 2000
    connectome = synthetic.write_connectome(tmp_path / "c.h5", series, BRAIN)
    out = tmp_path / "out"
    command = [
        sys.executable,
        RUN,
        bids,
        out,
        "participant",
        "--no-reports",
        "--connectome",
        connectome,
        "--nprocs",
        "1",
    ]
    process = subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True)
    wait_until(lambda: is_mapping(process.pid, connectome, out) or process.poll() is not None)
    out.rename(tmp_path / "away")
    out.write_text("in the way")
    _, printed = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 74
    assert "the table of outcomes could not be written" in last_line(printed)
    assert "its maps cannot be written" in printed
    assert out.read_text() == "in the way"


@pytest.mark.parametrize("closed", ["bids", "other", "output", "filters"])
def test_folders_that_may_not_be_searched(closed: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder that may not be searched ends the program with a sentence that names the path and what to do."""
    # Other users may not enter pytest's own folders.
    with TemporaryDirectory() as folder:
        root = Path(folder)
        root.chmod(0o755)
        (root / "closed").mkdir()
        places = {
            name: root / ("closed" if name == closed else "open") / name for name in ("bids", "other", "output")
        }
        for name in ("bids", "other"):
            synthetic.write_images(places[name], "sub-01/anat/sub-01_label-lesion_mask.nii.gz")
        filters = root / ("closed" if closed == "filters" else "open") / "filters.json"
        filters.write_text('{"lesion": {}}')
        (root / "closed").chmod(0)
        arguments = [places["bids"], places["output"], "group", "-d", places["other"], "--bids-filter-file", filters]
        with synthetic.as_nobody():
            status = status_of(cli.main, *arguments, "--dry-run")
        (root / "closed").chmod(0o755)
    error = last_line(capsys.readouterr().err)
    assert status == 66
    assert "may not be opened: check its permissions, and those of the folders above it" in error
    assert f"{root}/closed/" in error
