"""The peak memory of real runs, each a process of its own: it does not grow with the batches, and the plan holds."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest
from synthetic import box, make_mask, make_series, write_connectome, write_mask

from bids_lacuna import Connectome
from bids_lacuna.connectome.build import build_store
from bids_lacuna.connectome.importers import hdf5
from bids_lacuna.mapping import summarize
from bids_lacuna.report.maps_on_disk import count_voxels
from bids_lacuna.report.pool import worker_bytes
from bids_lacuna.runtime.plan import Resources

Array = np.ndarray

SHAPE = (39, 43, 37)
"""About 50,000 voxels within the mask: a batch's moments are megabytes, and the whole run takes seconds."""

RUN = """
import json, resource, sys
from pathlib import Path

import nibabel as nib

from bids_lacuna import FunctionalNetworkMapping, LesionData
from bids_lacuna.batch import batch_process
from bids_lacuna.mapping.local import LocalPass
from bids_lacuna.runtime.plan import Resources

connectome, mask, output, n_lesions, batch_size, callback = sys.argv[1:]
n_lesions, batch_size = int(n_lesions), json.loads(batch_size)


def peak_bytes():
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux starts a process's ru_maxrss at the peak of the process that started it, VmHWM at nothing.
    return 1024 * int(status.read_text().partition("VmHWM:")[2].split()[0])


def save(results):
    for result in results:
        maps = result.results["FunctionalNetworkMapping"]
        # All that there is of one lesion: the p-map takes the most memory, and too long for hundreds.
        for key in maps if result is results[0] else ("correlation_map", "t_map", "binary_map"):
            made = maps[key]
            if key.endswith("_map"):
                nib.save(made, Path(output) / f"{key}.nii")


analysis = FunctionalNetworkMapping(connectome, t_threshold=3)
lesions = [LesionData.from_nifti(mask) for _ in range(n_lesions)]
options = {"lesion_batch_size": batch_size, "available_bytes": 2**40, "n_threads": 2}
plan = LocalPass(analysis, Resources(2**40, 2)).plan(n_lesions, batch_size, keep_results=callback == "none")
results = batch_process(lesions, analysis, batch_result_callback=save if callback == "save" else None, **options)
print(json.dumps({
    "planned": plan.peak_bytes,
    "measured": peak_bytes(),
    "n_batches": results[-1].batch,
    "errors": [result.error for result in results if result.error],
}))
"""


def run(
    folder: Path,
    connectome: Path,
    n_lesions: int,
    batch_size: int | None,
    callback: str = "save",
    mask: Path | None = None,
) -> dict:
    """Map lesions in a process of its own, and tell its memory's peak and what was planned, in bytes."""
    mask = mask or write_mask(folder / "mask.nii.gz", box((5, 7, 11), (13, 14, 15), SHAPE))
    command = [sys.executable, "-c", RUN, connectome, mask, folder, str(n_lesions), json.dumps(batch_size), callback]
    process = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert process.returncode == 0, process.stderr
    outcome = json.loads(process.stdout)
    assert outcome["errors"] == []
    return outcome


def vary(
    source: Path,
    path: Path,
    dtype: type = np.float32,
    order: Array | slice = slice(None),
    chunks: tuple[int, ...] | bool | None = None,
    compression: str = "lzf",
) -> Path:
    """Copy a connectome with numbers of another kind, voxels in another order or chunks of another shape."""
    shutil.copy(source, path)
    with h5py.File(path, "r+") as file:
        data = file["timeseries"][:][:, :, order].astype(dtype)
        file["mask_indices"][:] = file["mask_indices"][:][:, order]
        del file["timeseries"]
        level = 1 if compression == "gzip" else None
        chunks = chunks or (1, *data.shape[1:])
        file.create_dataset("timeseries", data=data, chunks=chunks, compression=compression, compression_opts=level)
    return path


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write connectomes: each subject one compressed chunk, as Lacuna's own converter has them, and other ways."""
    folder = tmp_path_factory.mktemp("connectomes")
    mask = make_mask(shape=SHAPE)
    n_voxels = int(mask.sum())
    plain = write_connectome(folder / "plain.h5", make_series(n_voxels, [100] * 4), mask)
    scrambled = np.random.default_rng(4).permutation(n_voxels)
    return {
        "short": write_connectome(folder / "short.h5", make_series(n_voxels, [11] * 2), mask),
        "plain": plain,
        "float64": vary(plain, folder / "float64.h5", dtype=np.float64),
        "scrambled": vary(plain, folder / "scrambled.h5", order=scrambled),
        "small chunks": vary(plain, folder / "small.h5", chunks=True, compression="gzip"),
        "one chunk": vary(plain, folder / "one.h5", chunks=(3, 100, n_voxels), compression="gzip"),
        "store": build_store(
            hdf5.open_source(plain), folder, folder / "store", name="plain", space="MNI152NLin6Asym"
        ).path,
        "store of 11 components": build_store(
            hdf5.open_source(plain), folder, folder / "rotated", name="plain", space="MNI152NLin6Asym", rank=11
        ).path,
    }


@pytest.mark.slow
def test_constant_memory(tmp_path: Path, written: dict[str, Path]) -> None:
    """Forty batches peak within a tenth of four: a batch leaves nothing behind once its callback has returned."""
    few, many = (run(tmp_path, written["short"], n_lesions=5 * n, batch_size=5) for n in (4, 40))
    assert (few["n_batches"], many["n_batches"]) == (4, 40)
    assert many["measured"] < 1.1 * few["measured"]


@pytest.mark.parametrize(
    ("kind", "n_lesions", "callback"),
    [
        ("plain", 1, "save"),
        ("plain", 20, "save"),
        ("plain", 200, "save"),
        ("plain", 200, "none"),
        ("small chunks", 20, "save"),
        ("one chunk", 20, "save"),
        ("scrambled", 20, "save"),
        ("float64", 20, "save"),
        ("store", 1, "save"),
        ("store", 20, "save"),
        ("store", 200, "save"),
        ("store of 11 components", 20, "save"),
    ],
)
def test_plan_holds(tmp_path: Path, written: dict[str, Path], kind: str, n_lesions: int, callback: str) -> None:
    """A run stays within its plan, and the plan wastes at most a quarter of what was needed."""
    outcome = run(tmp_path, written[kind], n_lesions, batch_size=None, callback=callback)
    assert outcome["n_batches"] == 1
    assert outcome["measured"] <= outcome["planned"] <= 1.25 * outcome["measured"]


SUMMARIZE = """
import json, sys
from pathlib import Path

from bids_lacuna import Connectome
from bids_lacuna.mapping import LocalPass, summarize
from bids_lacuna.mapping.cells import CellCovariances
from bids_lacuna.mapping.summarizing import plan_passes
from bids_lacuna.runtime.memory import peak_resident_bytes
from bids_lacuna.runtime.plan import Resources

store, folder, available = sys.argv[1:]
connectome, resources = Connectome.open(store), Resources(int(available), 2)
analysis = CellCovariances(connectome, 16)
plan = plan_passes(LocalPass(analysis, resources), analysis.n_cells)
summarize(connectome, Path(folder), resources, cell_size_mm=16, show_progress=False)
print(json.dumps({"planned": plan.peak_bytes, "measured": peak_resident_bytes(), "n_passes": plan.n_batches}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("available_mib", [2**20, 400])
def test_the_plan_of_a_summary_holds(tmp_path: Path, written: dict[str, Path], available_mib: int) -> None:
    """The peak of a summary in one pass, and in several, is below its plan, by at most a quarter."""
    command = [sys.executable, "-c", SUMMARIZE, written["store"], tmp_path / "summary", str(available_mib * 2**20)]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    outcome = json.loads(process.stdout)
    assert (outcome["n_passes"] > 1) == (available_mib < 2**20)
    assert outcome["measured"] <= outcome["planned"] <= 1.25 * outcome["measured"]


COMPARE = """
import json, sys

import numpy as np

from bids_lacuna import LesionData, Summary, kernels
from bids_lacuna.mapping.null_maps import map_nulls, read_shape
from bids_lacuna.mapping.nulls import Connectivity, make_nulls
from bids_lacuna.mapping.places import Tissue
from bids_lacuna.runtime.memory import peak_resident_bytes, resident_bytes

store, folder, mask, n_lesions, n_nulls = sys.argv[1:]
connectivity = Connectivity.of(Summary.open(store, folder))
half = np.full(connectivity.grid.shape, 0.5)
shape = read_shape(LesionData.from_nifti(mask), connectivity.grid)


def draw(n_lesions):
    return [make_nulls(shape, connectivity, Tissue(half, half), int(n_nulls)) for _ in range(n_lesions)]


with kernels.threads(2):
    # Libraries are loaded at their first use, and grow no more.
    map_nulls(draw(1), connectivity)
    before = resident_bytes()
    lesions = draw(int(n_lesions))
    map_nulls(lesions, connectivity)
of_lesions = sum(lesion.n_bytes + connectivity.bytes_per_lesion for lesion in lesions)
planned = connectivity.fixed_bytes(2) + of_lesions
print(json.dumps({"planned": planned, "measured": peak_resident_bytes() - before}))
"""


@pytest.mark.slow
def test_the_plan_of_null_lesions_holds(tmp_path: Path, written: dict[str, Path]) -> None:
    """Null lesions are drawn and mapped within the memory by which a run divides the lesions into batches."""
    summarize(
        Connectome.open(written["store"]),
        tmp_path / "summary",
        Resources(2**40, 2),
        cell_size_mm=16,
        show_progress=False,
    )
    mask = write_mask(tmp_path / "mask.nii.gz", box((3, 5, 7), (9, 20, 17), SHAPE))
    command = [sys.executable, "-c", COMPARE, written["store"], tmp_path / "summary", mask, "16", "300"]
    process = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    outcome = json.loads(process.stdout)
    assert outcome["measured"] <= outcome["planned"] <= 2 * outcome["measured"]


def test_a_fine_mask_is_not_held_whole(tmp_path: Path, written: dict[str, Path]) -> None:
    """A mask of 152 MB once decompressed, which is more than the plan has to spare, leaves the plan as it is."""
    voxels = np.zeros((300, 212, 300), np.float64)
    voxels[140:150, 100:110, 130:160] = 1
    half_mm = nib.affines.from_matvec(np.eye(3) / 2, [-140, 0, 0])
    nib.save(nib.Nifti1Image(voxels, half_mm), tmp_path / "fine.nii.gz")
    outcome = run(tmp_path, written["plain"], n_lesions=2, batch_size=None, mask=tmp_path / "fine.nii.gz")
    assert outcome["measured"] <= outcome["planned"]


WRITE_PAGES = """
import resource, sys
from pathlib import Path

from bids_lacuna.report.pool import ReportPool

labels = sys.argv[2:]
with ReportPool(Path(sys.argv[1]), 1) as reports:
    reports.submit(labels)
    assert reports.wait() == len(labels)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 1])
def test_the_plan_s_share_of_reports_holds(tmp_path: Path, size: int) -> None:
    """A process that writes the pages of three lesions with all maps stays below what the plan sets aside."""
    shape = (182 // size, 218 // size, 182 // size)
    affine = nib.affines.from_matvec(np.diag([-size, size, size]), [90, -126, -72])
    (tmp_path / "dataset_description.json").write_text('{"DatasetLinks": {"source": "."}}')
    write_mask(tmp_path / "mask.nii.gz", box(tuple(n // 2 for n in shape), (9, 11, 13), shape), affine)
    distances = [np.square(np.linspace(-1.2, 1.2, n)) for n in shape]
    brain = np.add.outer(np.add.outer(distances[0], distances[1]), distances[2]) < 1
    noise = np.random.default_rng(3).standard_normal(shape).astype(np.float32) / 9
    values = np.where(brain, noise, np.float32(np.nan))
    images = {"r": np.tanh(values), "z": values, "t": 50 * values}
    for label in "abc":
        stem = tmp_path / "sub-{0}" / "func" / "sub-{0}_stat-{1}_desc-made{2}"
        for stat, image in images.items():
            map_path = Path(str(stem).format(label, stat, "_statmap.nii.gz"))
            map_path.parent.mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(image, affine), map_path)
        write_mask(Path(str(stem).format(label, "t", "T7_mask.nii.gz")), np.abs(images["t"]) > 7, affine)
        sidecar = {"Sources": ["bids:source:mask.nii.gz"], "ConnectomeName": "made", "SpatialReference": "MNI152"}
        for stat, kind, own in (("r", "_statmap", {}), ("t", "T7_mask", {"Threshold": 7})):
            Path(str(stem).format(label, stat, f"{kind}.json")).write_text(json.dumps(sidecar | own))
    command = [sys.executable, "-c", WRITE_PAGES, tmp_path, *"abc"]
    process = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, timeout=300)
    assert process.returncode == 0, process.stderr
    assert "could not" not in process.stderr
    peak = int(process.stdout) * (1 if sys.platform == "darwin" else 1024)
    assert count_voxels(tmp_path, "abc") == pytest.approx(np.prod(shape), rel=1e-3)
    assert len(list(tmp_path.rglob("*_t7-mask.png"))) == 3
    planned = worker_bytes(values.size)
    assert 0.5 * planned < peak < planned
