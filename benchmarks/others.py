"""The same maps by other ways: einsum over lesions, connectome subjects and voxels; and nilearn's seed-to-voxel."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
from nilearn.maskers import NiftiLabelsMasker, NiftiMasker

from benchmarks.data import N_HDF5_SUBJECTS, Data, Rows
from benchmarks.job import job_seconds
from benchmarks.measure import N_THREADS, Figure, medians, seconds
from bids_lacuna.connectome.connectome import Connectome

Array = np.ndarray

N_LESIONS = 20

N_IN_MEMORY = 4
"""Connectome subjects whose series are in memory before einsum begins."""

SUBJECTS_AT_ONCE = 2
"""Lesions per call of einsum: with more, its memory grows without a gain."""

NILEARN_LESIONS = 3
"""Seeds that nilearn extracts; each takes as long as the next."""


def measure(data: Data) -> Iterator[Figure]:
    """Compare whole jobs of some lesions, without writing maps."""
    yield from from_memory(data)
    yield from_hdf5(data)
    yield reading(data)


def from_memory(data: Data) -> Iterator[Figure]:
    """Compare the job from the store with what has the series in memory already."""
    timeseries = np.stack([data.timeseries(number) for number in range(N_IN_MEMORY)])
    took = medians(
        {
            "job": partial(job_seconds, data.store(N_IN_MEMORY), data.masks(N_LESIONS)),
            "einsum": einsum(data, timeseries.__getitem__, N_IN_MEMORY),
        },
        rounds=2,
    )
    note = f"{N_LESIONS} lesions, {N_IN_MEMORY} connectome subjects"
    yield Figure("einsum_over_job", took["einsum"] / took["job"], note=note)
    nilearn = N_IN_MEMORY * nilearn_seconds(data, timeseries[0])
    note += f"; one subject and {NILEARN_LESIONS} seeds measured"
    yield Figure("nilearn_over_job", nilearn / took["job"], note=note)


def from_hdf5(data: Data) -> Figure:
    """Compare the job from gzipped HDF5 with einsum that reads the same file."""
    with h5py.File(data.hdf5) as file:
        took = medians(
            {
                "job": partial(job_seconds, data.hdf5, data.masks(N_LESIONS)),
                "einsum": einsum(data, file["timeseries"].__getitem__, N_HDF5_SUBJECTS),
            },
            rounds=2,
        )
    note = f"{N_LESIONS} lesions, {N_HDF5_SUBJECTS} connectome subjects"
    return Figure("hdf5_einsum_over_job", took["einsum"] / took["job"], at_least=3, note=note)


def reading(data: Data) -> Figure:
    """Compare a pass over gzipped HDF5 with one over the store, both read from the page cache as a job reads them."""

    def read(path: Path) -> None:
        for subject in Connectome.open(path).subjects():
            del subject

    paths = {"hdf5": data.hdf5, "store": data.store(N_HDF5_SUBJECTS)}
    took = medians({name: partial(seconds, partial(read, path)) for name, path in paths.items()}, rounds=2)
    return Figure("hdf5_reading_over_store", took["hdf5"] / took["store"], note="a pass that only reads")


def einsum(data: Data, read: Callable[[slice], Array], n_subjects: int) -> partial[float]:
    """Make a measurement of `map_by_einsum`."""
    rows = data.lesion_rows(N_LESIONS)
    return partial(seconds, partial(map_by_einsum, read, n_subjects, rows, data.grid.n_voxels), N_THREADS)


def map_by_einsum(read: Callable[[slice], Array], n_subjects: int, rows: Rows, n_voxels: int) -> tuple[Array, Array]:
    """Map lesions by the definition, all of some connectome subjects at once.

    Parameters
    ----------
    read
        Gives the series of some connectome subjects, shape (n, n_timepoints, n_voxels).

    Returns
    -------
    mean z, t : shape (n_lesions, n_voxels)
    """
    starts, voxels, _ = rows
    total, total_of_squares = np.zeros((2, len(starts) - 1, n_voxels))
    for first in range(0, n_subjects, SUBJECTS_AT_ONCE):
        series = read(slice(first, first + SUBJECTS_AT_ONCE))
        series = series - series.mean(axis=1, keepdims=True)
        lesions = [voxels[start:stop] for start, stop in pairwise(starts)]
        seeds = np.stack([series[:, :, lesion].mean(axis=2) for lesion in lesions])
        series /= np.linalg.norm(series, axis=1, keepdims=True)
        seeds /= np.linalg.norm(seeds, axis=2, keepdims=True)
        z = np.arctanh(np.clip(np.einsum("lst,stv->lsv", seeds, series), -1 + 1e-6, 1 - 1e-6))
        total += z.sum(axis=1)
        total_of_squares += (z**2).sum(axis=1)
    mean = total / n_subjects
    variance = (total_of_squares - total * mean) / (n_subjects - 1)
    return mean, mean / np.sqrt(variance / n_subjects)


def nilearn_seconds(data: Data, timeseries: Array) -> float:
    """Time one connectome subject's correlation maps by nilearn: the brain's series once, and each seed's."""
    grid = data.grid
    image = nib.Nifti1Image(np.stack([grid.volume(volume, outside=0) for volume in timeseries], axis=-1), grid.affine)
    brain_image = nib.Nifti1Image(grid.mask.astype(np.uint8), grid.affine)
    masks = data.masks(N_LESIONS)[:NILEARN_LESIONS]
    brain: list[Array] = []

    def read_brain() -> None:
        brain.append(NiftiMasker(brain_image, standardize="zscore_sample").fit_transform(image))

    def correlate() -> None:
        for mask in masks:
            seed = NiftiLabelsMasker(str(mask.path), standardize="zscore_sample").fit_transform(image)
            np.arctanh(np.dot(brain[0].T, seed) / (len(seed) - 1))

    return seconds(read_brain, N_THREADS) + N_LESIONS * seconds(correlate, N_THREADS) / NILEARN_LESIONS
