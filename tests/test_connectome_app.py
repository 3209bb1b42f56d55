"""bids-lacuna-connectome: its output, its exit statuses, and faulty sources."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import subprocess
import termios
from contextlib import suppress
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import h5py
import matlab
import nibabel as nib
import numpy as np
import pytest
import synthetic
from program import CONNECTOME_PROGRAM, Ended, capture, map_lesions, status_of

from bids_lacuna import FunctionalNetworkMapping, LesionData, __version__, batch_process, cli
from bids_lacuna.connectome.store import Store
from bids_lacuna.mapping.maps import NetworkMaps

Array = np.ndarray

MASK = synthetic.make_mask()
N_VOXELS = int(MASK.sum())
SERIES = synthetic.make_series(N_VOXELS)

LAYOUTS = ("hdf5", "nifti", "bids", "leaddbs", "npy")

FAULTS = [
    *product(LAYOUTS, ["truncated", "mislabelled", "of no subject"]),
    # NumPy's files have no checksum, and any bytes are numbers.
    *product(LAYOUTS[:-1], ["corrupted"]),
]

LESION = f"sub-01/anat/sub-01_space-{synthetic.SPACE}_label-lesion_mask"


def run(*arguments: object) -> Ended:
    """Run the program within this process."""
    return capture(cli.connectome_main, *arguments)


def build(source: Path, store: Path, *options: object) -> int:
    """Build a store from this process, with real worker processes."""
    arguments = ["build", source, store, "--space", synthetic.SPACE, "--name", "GSP5", "--nprocs", "1", *options]
    return status_of(cli.connectome_main, *arguments)


@pytest.fixture(scope="module")
def hdf5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a connectome of five subjects in HDF5."""
    return synthetic.write_connectome_folder(tmp_path_factory.mktemp("source") / "GSP 5", SERIES, MASK)


Built = tuple[Path, Ended]
"""A store, and the program that built it."""


@pytest.fixture(scope="module")
def built(hdf5: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Build a store of it, as a user does."""
    folder = tmp_path_factory.mktemp("built") / "store"
    command = [*CONNECTOME_PROGRAM, "build", hdf5, folder, "--space", synthetic.SPACE, "--name", "GSP5"]
    return folder, subprocess.run(list(map(str, command)), capture_output=True, text=True)


def test_build_logs_its_steps(built: Built) -> None:
    """The log has the source, the progress, the store and the commands that use it."""
    folder, result = built
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""
    assert "layout hdf5: subjects 5, runs 5" in result.stderr
    assert "5 of 5 subjects" in result.stderr
    assert f"--connectome {folder}" in result.stderr
    assert f"bids-lacuna-connectome verify {folder}" in result.stderr


def test_info(built: Built) -> None:
    """The contents of the store are described, one row each."""
    result = run("info", built[0])
    assert result.returncode == 0, result.stderr
    rows = dict(line.split("  ", 1) for line in result.stdout.splitlines())
    rows = {name: value.strip() for name, value in rows.items()}
    store = Store.open(built[0])
    assert rows["name"] == "GSP5"
    assert rows["space"] == synthetic.SPACE
    assert rows["grid"].startswith(f"{N_VOXELS} voxels in a volume (5, 7, 11) of 4 x 4 x 4 mm voxels from")
    assert (rows["subjects"], rows["runs"], rows["timepoints"]) == ("5", "5", "23 to 37 per subject")
    assert rows["dtype"] == "int16"
    assert rows["rank"] == "auto, tolerance 1e-05: all timepoints, since fewer components would not save 10 %"
    n_bytes = sum(path.stat().st_size for path in built[0].glob("*.npy"))
    assert float(rows["size"].removesuffix(" KiB")) == pytest.approx(n_bytes / 1024, rel=0.02)
    assert rows["sources"].startswith("4 files, ")
    assert rows["made by"] == f"bids-lacuna {__version__}"
    assert rows["content hash"] == store.content_hash


def test_maps_from_a_store(built: Built, hdf5: Path, tmp_path: Path) -> None:
    """Maps from a store are those from HDF5, for which a warning gives the command that builds the store."""
    bids = synthetic.write_dataset(tmp_path / "bids", {LESION: synthetic.box((3, 2, 3))})
    assert build(hdf5, tmp_path / "exact", "--dtype", "float32") == 0
    logs = {}
    for name, path in (("hdf5", hdf5), ("int16", built[0]), ("float32", tmp_path / "exact")):
        result = map_lesions(bids, tmp_path / name, path)
        assert result.returncode == 0, result.stderr
        logs[name] = result.stderr
    assert f"bids-lacuna-connectome build '{hdf5}' STORE --space {synthetic.SPACE} --name GSP5" in logs["hdf5"]
    assert "bids-lacuna-connectome build" not in logs["int16"]
    maps = sorted(path.relative_to(tmp_path / "hdf5") for path in (tmp_path / "hdf5").rglob("*_statmap.nii.gz"))
    assert len(maps) == 3
    # Rounding errors are seven times those over hundreds of subjects of hundreds of timepoints.
    for name, in_r, in_t in (("int16", 4e-5, 1e-3), ("float32", 1e-6, 1e-4)):
        for path in maps:
            expected, found = (nib.load(tmp_path / folder / path).get_fdata() for folder in ("hdf5", name))
            np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
            tolerance = in_t * np.fmax(1, np.abs(expected)) if "stat-t" in path.name else in_r
            assert np.nanmax(np.abs(found - expected) / tolerance) < 1
            sidecar = (tmp_path / name / path).with_name(path.name.replace(".nii.gz", ".json"))
            store = built[0] if name == "int16" else tmp_path / "exact"
            assert json.loads(sidecar.read_text())["ConnectomeHash"] == Store.open(store).content_hash
    mixed = map_lesions(bids, tmp_path / "hdf5", built[0])
    assert mixed.returncode == 1
    assert "another connectome" in mixed.stderr


def test_a_store_of_an_earlier_default_rank_is_opened(tmp_path: Path) -> None:
    """The command of a finished store changes nothing, also if all timepoints were the default when it was built."""
    series = synthetic.make_filtered_series(N_VOXELS, (97, 101))
    source = synthetic.write_connectome_folder(tmp_path / "source", series, MASK)
    assert build(source, tmp_path / "store", "--rank", "full") == 0
    assert build(source, tmp_path / "store") == 0
    assert Store.open(tmp_path / "store").rank == "full"
    assert build(source, tmp_path / "store", "--rank", "auto") == 73


def test_maps_from_fewer_components(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By default, maps from 10 numbers per voxel are those from 100, and the savings are reported."""
    filtered = synthetic.make_filtered_series(N_VOXELS, (97, 97, 101, 103, 107))
    for series in filtered:
        series[:, 30] = series[0, 30]
    source = synthetic.write_connectome_folder(tmp_path / "source", filtered, MASK)
    boxes = {"a": synthetic.box((3, 2, 3)), "b": synthetic.box((1, 1, 6))}
    masks = [synthetic.write_mask(tmp_path / f"{name}_mask.nii.gz", voxels) for name, voxels in boxes.items()]
    for dtype in ("int16", "float32"):
        full, auto = (tmp_path / f"{which}-{dtype}" for which in ("full", "auto"))
        for store in (full, auto):
            capsys.readouterr()
            assert build(source, store, "--dtype", dtype, *(["--rank", "full"] if store == full else [])) == 0
        found = r"auto, tolerance 1e-05: components 10 per subject; .* saved \(\d\d\.\d %\); .* r \d\S+e-\d\d"
        assert re.search(f"rank {found}\n", capsys.readouterr().err)
        assert cli.connectome_main(["info", str(auto)]) == 0
        info = capsys.readouterr().out
        assert re.search(f"^rank  +{found}$", info, re.MULTILINE)
        assert re.search(r"^timepoints  +97 to 107 per subject$", info, re.MULTILINE)
        assert cli.connectome_main(["verify", str(auto)]) == 0
        sizes = [sum(path.stat().st_size - 128 for path in store.glob("*_timeseries.npy")) for store in (full, auto)]
        assert sizes[0] * 50 == sizes[1] * (97 + 97 + 101 + 103 + 107)
        # Rounding errors, as for maps from other stores of five subjects.
        in_r, in_t = (4e-5, 1e-3) if dtype == "int16" else (1e-6, 1e-4)
        for expected, ours in zip(maps_from(full, masks), maps_from(auto, masks), strict=True):
            # One voxel is constant.
            assert "n_map" in expected
            for key in ("correlation_map", "z_map", "t_map", "n_map"):
                values, value = (maps[key].get_fdata() for maps in (expected, ours))
                np.testing.assert_array_equal(np.isnan(value), np.isnan(values))
                tolerance = in_t * np.fmax(1, np.abs(values)) if key == "t_map" else in_r
                assert np.nanmax(np.abs(value - values) / tolerance) < 1


def maps_from(store: Path, masks: list[Path]) -> list[NetworkMaps]:
    """Map lesions within this process."""
    lesions = [LesionData.from_nifti(mask) for mask in masks]
    mapped = batch_process(lesions, FunctionalNetworkMapping(store), show_progress=False)
    return [lesion.results["FunctionalNetworkMapping"] for lesion in mapped]


def test_the_bar_shows_bytes_and_time(hdf5: Path, tmp_path: Path) -> None:
    """On a terminal, a bar shows the bytes written, the total, and the remaining time."""
    main_end, program_end = os.openpty()
    termios.tcsetwinsize(program_end, (24, 120))
    command = [*CONNECTOME_PROGRAM, "build", hdf5, tmp_path / "store"]
    command += ["--space", synthetic.SPACE, "--name", "x"]
    process = subprocess.Popen(list(map(str, command)), stderr=program_end)
    os.close(program_end)
    shown = b""
    # Reading a terminal whose program has ended is an error on Linux.
    with suppress(OSError):
        while block := os.read(main_end, 4096):
            shown += block
    os.close(main_end)
    assert process.wait() == 0
    assert re.search(rb"building: +100%.*99\.\dk/99\.\dk \[\d\d:\d\d<\d\d:\d\d, .*B/s\]", shown)


def test_verify(built: Built) -> None:
    """A store of noise verifies, but its symmetry cannot be judged on a small grid."""
    result = run("verify", built[0])
    assert result.returncode == 0, result.stderr
    assert "no problem found" in result.stdout
    assert "LAS, stored from right to left (radiological)" in result.stdout
    assert "cannot be judged" in result.stdout


def test_verify_finds_problems(built: Built, tmp_path: Path) -> None:
    """A flipped bit and a scale that is not finite are problems, each with the file's name."""
    own = shutil.copytree(built[0], tmp_path / "own")
    path = own / "sub-0003_timeseries.npy"
    content = bytearray(path.read_bytes())
    content[-7] ^= 64
    path.write_bytes(content)
    scale = np.load(own / "sub-0005_scale.npy")
    scale[0, 3] = np.nan
    np.save(own / "sub-0005_scale.npy", scale)
    result = run("verify", own)
    assert result.returncode == 65
    assert "problems: 4" in result.stdout
    problems = result.stderr.splitlines()
    assert any("sub-0003_timeseries.npy has another checksum" in problem for problem in problems)
    assert any("sub-0003 has 1 voxels whose series and scales do not match" in problem for problem in problems)
    assert any("sub-0005_scale.npy has another checksum" in problem for problem in problems)
    assert any("sub-0005 has scales" in problem for problem in problems)


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["info", "nowhere"], 66, "no connectome store at nowhere"),
        (["verify", "nowhere"], 66, "no connectome store at nowhere"),
        (["build", "nowhere", "store", "--space", "MNI305", "--name", "x"], 66, "no connectome at nowhere"),
        (["build", ".", "store", "--space", "MNI305", "--name", "x"], 64, "inside one another"),
        (["build", "nowhere", "store", "--name", "x"], 64, "--space"),
        (["build", "nowhere", "store", "--space", "MNI305"], 64, "--name"),
        (["build", "nowhere", "store", "--space", "T1w", "--name", "x"], 64, "a participant's own space"),
        (["build", "nowhere", "store", "--space", "MNI152", "--name", "x"], 64, "it may be MNI152NLin6Sym,"),
        (["rename-space", "nowhere", "orig"], 64, "a participant's own space"),
        (["rename-space", "nowhere", "MNI305"], 66, "no connectome store at nowhere"),
        (["build", "nowhere", "store", "--space", "MNI 152", "--name", "x"], 64, "letters and digits"),
        (["build", "nowhere", "store", "--space", "MNI305", "--name", "a+b"], 64, "letters and digits"),
        (["build", "nowhere", "store", "--space", "MNI305", "--name", "x", "--mask-fraction", "2"], 64, "up to 1"),
        (
            ["build", "nowhere", "store", "--space", "NKI", "--name", "x", "--rank", "0"],
            64,
            "neither full nor auto",
        ),
        (["build", "nowhere", "store", "--space", "MNI305", "--name", "x", "--rank", "half"], 64, "neither full nor"),
        (
            ["build", ".", "x", "--space", "M", "--name", "x", "--rank", "full", "--rank-tolerance", "1e-5"],
            64,
            "only for --rank auto",
        ),
        (["build", ".", "x", "--space", "M", "--name", "x", "--rank-tolerance", "0"], 64, "not a difference in r"),
        (["build", ".", "x", "--space", "M", "--name", "x", "--rank-tolerance", "nan"], 64, "not a difference in r"),
        (["build", "nowhere", "store", "--space", "MNI305", "--name", "x", "--mem", "1"], 64, "arguments: --mem 1"),
        ([], 64, "required"),
    ],
)
def test_mistakes(
    arguments: list[str],
    status: int,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each mistake ends in one sentence and its exit status."""
    monkeypatch.chdir(tmp_path)
    assert status_of(cli.connectome_main, *arguments) == status
    assert words in capsys.readouterr().err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_option_shows_the_commands_usage(capsys: pytest.CaptureFixture[str]) -> None:
    """A mistyped option of build shows the usage of build."""
    with pytest.raises(SystemExit) as end:
        cli.connectome_main(
            ["build", "nowhere", "store", "--space", "MNI305", "--name", "x", "--dtyp", "int16", "--msk"]
        )
    assert end.value.code == 64
    assert "usage: bids-lacuna-connectome build" in capsys.readouterr().err


def test_a_space_that_is_mistyped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A space that is almost a template's name is questioned before it is stored."""
    arguments = ["build", str(tmp_path / "nowhere"), "store", "--name", "x", "--space"]
    for space, meant in {"MNI152Nlin6Asym": "MNI152NLin6Asym", "mni152nlin2009casym": "MNI152NLin2009cAsym"}.items():
        assert cli.connectome_main([*arguments, space]) == 66
        assert f"the space {space} is not a template of BIDS: did you mean {meant}?" in capsys.readouterr().err
    for space in ("MNI152NLin6Asym", "myStudy"):
        assert cli.connectome_main([*arguments, space]) == 66
        assert "did you mean" not in capsys.readouterr().err


def test_options_of_other_layouts(hdf5: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An option that the layout does not use is a mistake, and so is a missing mask."""
    assert build(hdf5, tmp_path / "store", "--pattern", "*.h5") == 64
    assert "--pattern is only for the layout nifti or npy" in capsys.readouterr().err
    np.save(tmp_path / "sub-1.npy", SERIES[0])
    (tmp_path / "npy").mkdir()
    shutil.move(tmp_path / "sub-1.npy", tmp_path / "npy")
    assert build(tmp_path / "npy", tmp_path / "store") == 64
    assert "--mask MASK.nii.gz" in capsys.readouterr().err
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("content", "status", "words"),
    [
        (None, 66, "no filter file"),
        ("{", 64, "not valid JSON"),
        ('{"lesion": {"space": "T1w"}}', 64, 'no filters under "bold"'),
        ('{"bold": {}}', 64, 'no filters under "bold"'),
        ('{"bold": {"tsk": "rest"}}', 64, "tsk"),
        ('{"bold": {"task": "movie"}}', 18, "movie"),
    ],
)
def test_filter_files(
    tmp_path: Path, content: str | None, status: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A filter file that is missing or mistaken, or that leaves no run, ends in a sentence with its status."""
    _, options = write_source(tmp_path / "source", "bids")
    path = tmp_path / "filter.json"
    if content is not None:
        path.write_text(content)
    assert build(tmp_path / "source", tmp_path / "store", *options, "--bids-filter-file", path) == status
    assert words in capsys.readouterr().err.split("bids-lacuna-connectome: error: ")[1]
    assert not (tmp_path / "store").exists()


def test_an_unfinished_store_is_refused(built: Built, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The remains of a killed build are reported as an unfinished store."""
    own = shutil.copytree(built[0], tmp_path / "own")
    (own / "connectome.json").unlink()
    (own / ".building").mkdir()
    assert cli.connectome_main(["info", str(own)]) == 66
    assert "is unfinished: rerun its `bids-lacuna-connectome build` command to resume" in capsys.readouterr().err


def write_source(folder: Path, layout: str) -> tuple[Path, list[str]]:
    """Write two subjects in a layout; return the file of the second one's series and the options that are needed."""
    folder.mkdir(parents=True)
    mask = folder.with_name("mask.nii.gz")
    synthetic.write_mask(mask, MASK)
    options = ["--mask", str(mask)]
    match layout:
        case "hdf5":
            for number in (1, 2):
                file = synthetic.write_connectome(folder / f"{number}.h5", [SERIES[number]], MASK)
            return file, []
        case "nifti":
            for number in (1, 2):
                name = f"sub-{number}_rest_skip4_finalmask.nii.gz"
                file = synthetic.write_series(folder / f"sub-{number}" / "func" / name, SERIES[number], MASK)
            return file, options
        case "bids":
            synthetic.write_dataset(folder, {})
            for number in (1, 2):
                name = f"sub-{number}_task-rest_space-{synthetic.SPACE}_desc-denoised_bold.nii.gz"
                file = synthetic.write_series(folder / f"sub-{number}" / "func" / name, SERIES[number], MASK)
            return file, options
        case "leaddbs":
            outidx = 1.0 + np.ravel_multi_index(np.nonzero(MASK), MASK.shape, order="F")
            sub_ids = [[f"sub-{number}", f"sub-{number}_run_1.mat"] for number in (1, 2)]
            space = {"dim": np.array(MASK.shape, float), "mat": synthetic.RADIOLOGICAL}
            vol = {"space": space, "outidx": outidx, "subIDs": sub_ids}
            matlab.write_mat(folder / "dataset_volsurf.mat", {"vol": vol}, "v7")
            for number in (1, 2):
                file = folder / "vol" / f"sub-{number}_run_1.mat"
                matlab.write_mat(file, {"gmtc": SERIES[number].T}, "v7")
            return file, []
    for number in (1, 2):
        np.save(folder / f"sub-{number}.npy", SERIES[number])
    return folder / "sub-2.npy", options


def spoil(source: Path, file: Path, fault: str) -> None:
    """Introduce a fault into a source."""
    content = file.read_bytes()
    match fault:
        case "truncated":
            file.write_bytes(content[: len(content) * 2 // 3])
        case "corrupted":
            middle = len(content) // 2
            file.write_bytes(content[:middle] + bytes(4096) + content[middle + 4096 :])
        case "mislabelled":
            file.write_bytes(b"these are not the series you are looking for\n" * 99)
        case "of no subject":
            for path in sorted(source.rglob("*"), reverse=True):
                if path.name.startswith(("sub-", "vol")) or path.suffix == ".h5":
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            if (source / "dataset_volsurf.mat").exists():
                vol = {"space": {"dim": np.ones(3), "mat": np.eye(4)}, "outidx": np.ones(1), "subIDs": []}
                matlab.write_mat(source / "dataset_volsurf.mat", {"vol": vol}, "v7")


@pytest.mark.parametrize(("layout", "fault"), FAULTS)
def test_faulty_sources_end_in_a_sentence(
    tmp_path: Path, layout: str, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every fault of a source is named, with the matching exit status, and leaves no finished store."""
    file, options = write_source(tmp_path / "source", layout)
    spoil(tmp_path / "source", file, fault)
    status = build(tmp_path / "source", tmp_path / "store", "--format", layout, *options)
    _, sentence = capsys.readouterr().err.split("bids-lacuna-connectome: error: ")
    if fault == "of no subject":
        assert status == {"hdf5": 66, "nifti": 18, "bids": 18, "leaddbs": 65, "npy": 66}[layout]
    else:
        assert status == 65
        assert file.name in sentence
    assert not (tmp_path / "store" / "connectome.json").exists()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_forbidden_sources(layout: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that may not be read is named, with the exit status of missing input."""
    # Other users may not enter pytest's own folders.
    with TemporaryDirectory() as folder:
        file, options = write_source(Path(folder) / "source", layout)
        for path in (Path(folder), *Path(folder).rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        file.chmod(0)
        with synthetic.as_nobody():
            status = build(Path(folder) / "source", Path(folder) / "store", "--format", layout, *options)
        assert status == 66
        sentence = capsys.readouterr().err.splitlines()[-1]
        assert file.name in sentence
        assert "permissions" in sentence
        assert not (Path(folder) / "store").exists()


@pytest.mark.parametrize("layout", ["nifti", "bids", "npy"])
def test_forbidden_folders(layout: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder that may not be searched is an error: its subjects are not silently left out."""
    with TemporaryDirectory() as folder:
        file, options = write_source(Path(folder) / "source", layout)
        for path in (Path(folder), *Path(folder).rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        file.parent.chmod(0)
        with synthetic.as_nobody():
            status = build(Path(folder) / "source", Path(folder) / "store", "--format", layout, *options)
        file.parent.chmod(0o755)
        assert status == 66
        assert "permissions" in capsys.readouterr().err.splitlines()[-1]
        assert not (Path(folder) / "store").exists()


def test_a_folder_that_may_not_be_written_to(hdf5: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A store where the user may not write ends with the exit status of output that cannot be created."""
    with TemporaryDirectory() as folder:
        source = shutil.copytree(hdf5, Path(folder) / "source")
        for path in (Path(folder), source, *source.iterdir()):
            path.chmod(0o755 if path.is_dir() else 0o644)
        with synthetic.as_nobody():
            assert build(source, Path(folder) / "store") == 73
        assert "cannot be created" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"affine": synthetic.OBLIQUE}, "another grid than the brain mask"),
        ({"mask": synthetic.make_mask(shape=(7, 5, 11))}, "another grid than the brain mask"),
    ],
)
def test_a_run_on_another_grid(
    tmp_path: Path, changes: dict[str, Array], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A NIfTI file on another grid than the mask is refused by name, with both grids."""
    file, options = write_source(tmp_path / "source", "nifti")
    brain = changes.get("mask", MASK)
    series = synthetic.make_series(int(brain.sum()))[0]
    synthetic.write_series(file, series, brain, changes.get("affine", synthetic.RADIOLOGICAL))
    assert build(tmp_path / "source", tmp_path / "store", *options) == 65
    sentence = capsys.readouterr().err.splitlines()[-1]
    assert file.name in sentence
    assert words in sentence
    assert str((5, 7, 11)) in sentence


def test_the_gzip_checksum_is_verified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A NIfTI file that decompresses to other numbers than were compressed is damaged."""
    file, options = write_source(tmp_path / "source", "nifti")
    content = bytearray(gzip.compress(gzip.decompress(file.read_bytes()), compresslevel=0))
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert build(tmp_path / "source", tmp_path / "store", *options) == 65
    assert file.name in capsys.readouterr().err.splitlines()[-1]


def test_a_space_that_the_source_contradicts(hdf5: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The user's space is used, with a warning if the files name another one."""
    source = shutil.copytree(hdf5, tmp_path / "source")
    with h5py.File(source / "part0.h5", "r+") as file:
        file.attrs["space"] = "MNI152NLin2009cAsym"
    assert build(source, tmp_path / "store") == 0
    assert "name the space MNI152NLin2009cAsym" in capsys.readouterr().err
    assert Store.open(tmp_path / "store").space == synthetic.SPACE
