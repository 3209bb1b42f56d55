"""Small made-up connectomes and lesions on disk, with odd shapes, unequal counts and flips that reveal mistakes."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np

from bids_lacuna.batch import lesion_keys
from bids_lacuna.lesion import LesionData
from bids_lacuna.mapping.analysis import Pass
from bids_lacuna.mapping.functional import FunctionalNetworkMapping
from bids_lacuna.mapping.local import LocalPass
from bids_lacuna.runtime.plan import Resources
from bids_lacuna.weights import Rows

Array = np.ndarray

SHAPE = (5, 7, 11)
"""Different lengths of the axes, so that swapped axes fail."""

SPACE = "MNI152NLin6Asym"

RADIOLOGICAL = np.array([[-4.0, 0, 0, 8], [0, 4, 0, -12], [0, 0, 4, -20], [0, 0, 0, 1]])
"""4 mm, stored from right to left, centred on the origin."""

RAW = {"Name": "made up", "BIDSVersion": "1.10.0"}
DERIVATIVE = {**RAW, "DatasetType": "derivative", "GeneratedBy": [{"Name": "manual"}]}
"""Descriptions of datasets."""

NOBODY = 65534
"""Id of a user who owns nothing."""

OBLIQUE = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.3, 0.2, 0.1) @ np.diag([4.0, 4, 4]), [-11, -13, -17])


def make_mask(seed: int = 1, shape: tuple[int, int, int] = SHAPE) -> Array:
    """Make a brain mask with holes, about four fifths of the volume."""
    return np.random.default_rng(seed).random(shape) < 0.8


def make_series(n_voxels: int, n_timepoints: Sequence[int] = (23, 23, 29, 31, 37), seed: int = 2) -> list[Array]:
    """Make each subject's BOLD signal, (n_timepoints, n_voxels) float32: three common signals, noise around 1000."""
    rng = np.random.default_rng(seed)
    pattern = rng.standard_normal((3, n_voxels))
    return [
        (1000 + rng.standard_normal((n, 3)) @ pattern + 2 * rng.standard_normal((n, n_voxels))).astype(np.float32)
        for n in n_timepoints
    ]


def make_filtered_series(
    n_voxels: int, n_timepoints: Sequence[int] = (23, 23, 29, 31, 37), seed: int = 2, n_frequencies: int = 5
) -> list[Array]:
    """Make each subject's BOLD signal with the lowest frequencies only: 10 degrees of freedom and a mean."""
    filtered = []
    for series in make_series(n_voxels, n_timepoints, seed):
        spectrum = np.fft.rfft(series, axis=0)
        spectrum[n_frequencies + 1 :] = 0
        filtered.append(np.fft.irfft(spectrum, len(series), axis=0).astype(np.float32))
    return filtered


def write_connectome(
    path: Path, series: Sequence[Array], mask: Array, affine: Array = RADIOLOGICAL, order: Array | None = None
) -> Path:
    """Write one HDF5 file in Lacuna's layout.

    Parameters
    ----------
    series
        Each subject's BOLD signal in C order over the mask, (n_timepoints, n_voxels), of equal lengths.
    order
        Order of the voxels in the file; by default C order.
    """
    indices = np.array(np.nonzero(mask))
    order = np.arange(indices.shape[1]) if order is None else order
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        data = np.array(series)[:, :, order]
        file.create_dataset(
            "timeseries", data=data, chunks=(1, *data.shape[1:]), compression="gzip", compression_opts=1
        )
        file["mask_indices"] = indices[:, order]
        file["mask_affine"] = affine
        file.attrs["mask_shape"] = mask.shape
    return path


def write_connectome_folder(folder: Path, series: Sequence[Array], mask: Array, affine: Array = RADIOLOGICAL) -> Path:
    """Write one file per sequence of subjects with the same number of timepoints."""
    runs: list[list[Array]] = []
    for timeseries in series:
        if runs and len(runs[-1][0]) == len(timeseries):
            runs[-1].append(timeseries)
        else:
            runs.append([timeseries])
    for number, run in enumerate(runs):
        write_connectome(folder / f"part{number}.h5", run, mask, affine)
    return folder


def write_mask(
    path: Path, voxels: Array, affine: Array = RADIOLOGICAL, sidecar: dict[str, object] | None = None
) -> Path:
    """Write a NIfTI mask, with a JSON sidecar if one is given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.asarray(voxels).astype(np.uint8), affine), path)
    if sidecar is not None:
        path.with_name(path.name.removesuffix(".nii.gz") + ".json").write_text(json.dumps(sidecar))
    return path


def box(
    corner: tuple[int, int, int], size: tuple[int, int, int] = (2, 2, 2), shape: tuple[int, int, int] = SHAPE
) -> Array:
    """Make a lesion: a box of voxels."""
    volume = np.zeros(shape, np.uint8)
    volume[tuple(slice(start, start + length) for start, length in zip(corner, size, strict=True))] = 1
    return volume


def write_dataset(root: Path, masks: dict[str, Array], affine: Array = RADIOLOGICAL) -> Path:
    """Write a BIDS derivative dataset with lesion masks.

    Parameters
    ----------
    masks
        Path relative to the root without extension ("sub-01/anat/sub-01_space-…_label-lesion_mask") to voxels.
    """
    root.mkdir(parents=True, exist_ok=True)
    description = {
        "Name": "made up",
        "BIDSVersion": "1.10.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "manual"}],
    }
    (root / "dataset_description.json").write_text(json.dumps(description))
    for name, voxels in masks.items():
        write_mask(
            root / f"{name}.nii.gz", voxels, affine, {"Type": "Lesion", "Sources": [], "SpatialReference": SPACE}
        )
    return root


def write_images(root: Path, *images: str, description: Mapping[str, object] = RAW) -> Path:
    """Write a BIDS dataset with NIfTI files of one voxel at these paths."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset_description.json").write_text(json.dumps(description))
    for image in images:
        write_mask(root / image, np.ones((1, 1, 1)), np.eye(4))
    return root


def make_runs(
    n_voxels: int, n_timepoints: Sequence[Sequence[int]] = ((23,), (23,), (29, 13), (31,), (37,)), seed: int = 3
) -> list[list[Array]]:
    """Make each subject's BOLD runs, (n_timepoints, n_voxels) float32: three common signals and noise.

    All numbers are whole, and the mean of each series is exactly 1000: demeaning before or after writing gives the
    same result in float16 and float64. The third to last voxel of the fourth subject is constant, and the tenth voxel
    of the third subject is constant in the first run only.
    """
    subjects = []
    for number, lengths in enumerate(n_timepoints):
        runs = [np.rint(8 * run) for run in make_series(n_voxels, lengths, seed=seed + number)]
        for run in runs:
            run += 1000 - 8000
            run[0] += 1000 * len(run) - run.sum(axis=0)
        subjects.append(runs)
    subjects[3][0][:, -3] = 1000
    subjects[2][0][:, 9] = 1000
    return subjects


def join(runs: Sequence[Array]) -> Array:
    """Demean and join BOLD runs, for files that have no runs."""
    return np.concatenate([run - run.mean(axis=0, dtype=float) for run in runs]).astype(np.float32)


def write_series(path: Path, series: Array, mask: Array, affine: Array = RADIOLOGICAL) -> Path:
    """Write a BOLD run (n_timepoints, n_voxels) as a 4D NIfTI file with 7 outside the mask."""
    path.parent.mkdir(parents=True, exist_ok=True)
    volumes = np.full((*mask.shape, len(series)), 7, np.float32)
    volumes[mask] = series.T
    image = nib.Nifti1Image(volumes, affine)
    image.set_sform(affine, 4)
    nib.save(image, path)
    return path


@contextmanager
def as_nobody() -> Iterator[None]:
    """Drop root's permission to read everything within the block."""
    is_root = os.geteuid() == 0
    try:
        if is_root:
            os.seteuid(NOBODY)
        yield
    finally:
        if is_root:
            os.seteuid(0)


def write_lesion_maps(
    out: Path,
    mask: Path,
    maps: dict[str, Array],
    *,
    affine: Array = RADIOLOGICAL,
    connectome: str = "GSP",
    thresholds: Sequence[float] = (),
    **changes: object,
) -> list[Path]:
    """Write a lesion's maps as the participant level does, each with a sidecar.

    Parameters
    ----------
    out
        Root folder of the maps' dataset.
    mask
        The lesion's mask, `sub-01_space-…_label-lesion_mask.nii.gz`.
    maps
        Maps of r, z and t.
    thresholds
        Thresholds of |t|, whole numbers; a mask is written for each.
    changes
        Changes to the sidecars.
    """
    write_dataset(out, {})
    (out / "dataset_description.json").write_text(
        json.dumps({"Name": "maps", "BIDSVersion": "1.10.0", "GeneratedBy": [{"Name": "bids-lacuna"}]})
    )
    stem = mask.name.removesuffix("_mask.nii.gz")
    folder = out / "/".join(part for part in stem.split("_") if part[:3] in ("sub", "ses")) / "func"
    sidecar = {
        "SpatialReference": SPACE,
        "NumberOfConnectomeSubjects": 5,
        "LesionVolume": float(np.count_nonzero(nib.load(mask).get_fdata())),
        "LesionCoverage": 0.75,
        "ConnectomeName": connectome,
        "ConnectomeHash": f"{connectome}hash",
        "LesionHash": hashlib.sha256(mask.read_bytes()).hexdigest(),
        "LesionWeighting": "volume",
        "SoftwareVersion": "1",
        **changes,
    }
    images = {f"stat-{stat}_desc-{connectome}_statmap": values for stat, values in maps.items()}
    more = {name: {} for name in images}
    for threshold in thresholds:
        name = f"stat-t_desc-{connectome}T{threshold:g}_mask"
        images[name] = (np.abs(maps["t"]) > threshold).astype(np.uint8)
        more[name] = {"Threshold": threshold}
    written = []
    for name, values in images.items():
        path = folder / f"{stem}_{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = nib.Nifti1Image(values, affine)
        image.set_sform(affine, 4)
        nib.save(image, path)
        path.with_name(f"{stem}_{name}.json").write_text(json.dumps(sidecar | more[name]))
        written.append(path)
    return written


def validate(dataset: Path, cache_dir: Path) -> subprocess.CompletedProcess[str]:
    """Run the BIDS validator with a cache folder."""
    return subprocess.run(
        [Path(sys.executable).with_name("bids-validator-deno"), dataset, "--format", "json"],
        capture_output=True,
        text=True,
        env={**os.environ, "DENO_DIR": str(cache_dir)},
    )


def map_in_one_pass(
    analysis: FunctionalNetworkMapping,
    lesions: Sequence[LesionData],
    n_threads: int = 2,
    pass_: Pass | None = None,
    change_plan: Mapping[str, object] = {},
    **options: object,
) -> list[LesionData]:
    """Map loaded lesions in one pass over the connectome, as a batch of `batch_process`; nothing is released.

    Parameters
    ----------
    pass_
        By default a `LocalPass` with all the memory there may be.
    change_plan
        Fields of the pass's plan.
    options
        To the pass.
    """
    pass_ = pass_ or LocalPass(analysis, Resources(2**40, n_threads))
    plan = replace(pass_.plan(len(lesions), None), **change_plan)
    rows = Rows.of({key: analysis.row(lesion) for key, lesion in zip(lesion_keys(lesions), lesions, strict=True)})
    accumulator = pass_.run(rows, plan, **options)
    return [
        replace(lesion, weights=None, results={analysis.name: analysis.results(lesion, accumulator, row)})
        for row, lesion in enumerate(lesions)
    ]
