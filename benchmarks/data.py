"""What is measured on: a made-up connectome and made-up lesions, the same at each run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np

from bids_lacuna.bids import LesionMask
from bids_lacuna.connectome.connectome import ConnectomeSubject
from bids_lacuna.connectome.store import Store, StoredRun, StoredSubject, array_path, this_software, write_subject
from bids_lacuna.files import write_json
from bids_lacuna.grid import Grid
from bids_lacuna.kernels import cpu as kernels

Array = np.ndarray
Rows = tuple[Array, Array, Array]

SPACE = "MNI152NLin6Asym"

SHAPE = (91, 109, 91)

AFFINE = np.array([[-2.0, 0, 0, 90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]])

BRAIN_CENTRE_MM, BRAIN_RADII_MM = (0.0, -18.0, 18.0), (73.0, 92.0, 81.4)
"""An ellipsoid of 286,000 voxels of 2 mm, about as many as a brain's."""

N_TIMEPOINTS = 120

N_SUBJECTS = 10
"""Different connectome subjects; a store of more holds links to the same files."""

N_HDF5_SUBJECTS = 12
"""Connectome subjects of the HDF5 file."""

N_HDF5_CHUNKS = 4
"""Different connectome subjects of the HDF5 file."""

LESION_RADII_MM = (8.0, 24.0)
"""2 to 58 cm³, 19 on average: 2,400 voxels of 2 mm."""

LARGE_RADII_MM = (21.0, 29.0)
"""67 cm³ on average: 8,400 voxels of 2 mm, so that 500 such lesions overlap everywhere."""


@dataclass(frozen=True, eq=False)
class Data:
    """Files in a folder, each made when it is first asked for."""

    folder: Path

    @cached_property
    def grid(self) -> Grid:
        """The grid of the connectome."""
        return Grid(in_brain(SHAPE, AFFINE), AFFINE)

    @cached_property
    def store_subjects(self) -> list[StoredSubject]:
        """The subjects that differ, their files written."""
        return [self._write_subject(number) for number in range(N_SUBJECTS)]

    def store(self, n_subjects: int = N_SUBJECTS) -> Path:
        """Give a store, in int16, of some number of subjects."""
        path = self.folder / f"store-{n_subjects}"
        if not path.exists():
            path.mkdir()
            subjects = []
            for number in range(n_subjects):
                subject = self.store_subjects[number % N_SUBJECTS]
                name = f"{number:03}"
                for kind in ("timeseries", "scale"):
                    os.link(array_path(self.folder, subject.name, kind), array_path(path, name, kind))
                runs, sha256 = subject.runs, subject.sha256
                subjects.append(StoredSubject(name, N_TIMEPOINTS, N_TIMEPOINTS, 0.0, runs, sha256))
            sources = ({"path": "made up", "bytes": 0},)
            Store(
                path, "bench", SPACE, self.grid, "int16", "full", None, tuple(subjects), sources, this_software()
            ).save()
        return path

    def read_subjects(self, n_subjects: int) -> list[ConnectomeSubject]:
        """Read the first subjects of the store."""
        store = Store.open(self.store())
        return [ConnectomeSubject(subject.name, *store.read(subject)) for subject in store.subjects[:n_subjects]]

    @cached_property
    def hdf5(self) -> Path:
        """The first subjects as Lacuna's converter writes them: float32, gzipped, a chunk for each."""
        path = self.folder / "connectome.h5"
        with h5py.File(path, "w") as file:
            file["mask_indices"] = np.array(np.nonzero(self.grid.mask))
            file["mask_affine"] = AFFINE
            file.attrs["mask_shape"] = SHAPE
            shape = (N_HDF5_SUBJECTS, N_TIMEPOINTS, self.grid.n_voxels)
            timeseries = file.create_dataset(
                "timeseries", shape, "f4", chunks=(1, *shape[1:]), compression="gzip", compression_opts=1
            )
            for number in range(N_HDF5_CHUNKS):
                timeseries[number] = self.timeseries(number)
            for number in range(N_HDF5_CHUNKS, N_HDF5_SUBJECTS):
                _, chunk = timeseries.id.read_direct_chunk((number % N_HDF5_CHUNKS, 0, 0))
                timeseries.id.write_direct_chunk((number, 0, 0), chunk)
        return path

    def timeseries(self, number: int) -> Array:
        """Make up a subject's BOLD signal, shape (n_timepoints, n_voxels): whole numbers, as scanners give them."""
        rng = np.random.default_rng(number)
        noise = rng.standard_normal((N_TIMEPOINTS, self.grid.n_voxels), dtype=np.float32)
        return np.rint(500 + 20 * noise)

    def masks(self, n_lesions: int, voxel_size_mm: float = 2.0) -> list[LesionMask]:
        """Give lesion masks in a BIDS dataset of their own; those of 2 mm lie on the connectome's grid."""
        dataset = self.folder / f"bids-{voxel_size_mm:g}mm-{n_lesions}"
        masks = []
        for number, (centre_mm, radius_mm) in enumerate(balls(n_lesions, LESION_RADII_MM)):
            entities = {"sub": f"{number:03}", "space": SPACE, "label": "lesion"}
            name = "_".join(f"{key}-{value}" for key, value in entities.items())
            path = dataset / f"sub-{number:03}" / "anat" / f"{name}_mask.nii.gz"
            masks.append(LesionMask(path, entities, SPACE, "source", dataset))
            if not path.exists():
                path.parent.mkdir(parents=True)
                nib.save(ball_image(centre_mm, radius_mm, voxel_size_mm), path)
        description = {"Name": "made-up lesions", "BIDSVersion": "1.10.0", "DatasetType": "raw"}
        write_json(dataset / "dataset_description.json", description)
        return masks

    def lesion_rows(self, n_lesions: int, radii_mm: tuple[float, float] = LESION_RADII_MM) -> Rows:
        """Lay lesions out as the kernels take them: see `kernels.seeds`."""
        centres_mm = nib.affines.apply_affine(AFFINE, np.argwhere(self.grid.mask)).astype(np.float32)
        voxels = [
            np.flatnonzero(((centres_mm - centre_mm.astype(np.float32)) ** 2).sum(axis=1) <= radius_mm**2)
            for centre_mm, radius_mm in balls(n_lesions, radii_mm)
        ]
        return rows(voxels)

    def _write_subject(self, number: int) -> StoredSubject:
        name = f"source{number}"
        standardized = kernels.standardize(self.timeseries(number), np.array([0, N_TIMEPOINTS]))
        sha256 = write_subject(self.folder, name, standardized, "int16")
        return StoredSubject(name, N_TIMEPOINTS, N_TIMEPOINTS, 0.0, (StoredRun("made up", N_TIMEPOINTS),), sha256)


def in_brain(shape: tuple[int, ...], affine: Array) -> Array:
    """Mark the voxels of a volume that lie in the brain."""
    centres_mm = nib.affines.apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1))
    return np.linalg.norm((centres_mm - BRAIN_CENTRE_MM) / BRAIN_RADII_MM, axis=-1) <= 1


def balls(n: int, radii_mm: tuple[float, float]) -> list[tuple[Array, float]]:
    """Draw centres in the inner half of the brain, and radii; the first of many are those of few."""
    rng = np.random.default_rng(1)
    drawn = []
    for _ in range(n):
        direction = rng.standard_normal(3)
        distance = 0.8 * rng.random() ** (1 / 3)
        centre_mm = BRAIN_CENTRE_MM + direction / np.linalg.norm(direction) * distance * np.array(BRAIN_RADII_MM)
        drawn.append((centre_mm, float(rng.uniform(*radii_mm))))
    return drawn


def ball_image(centre_mm: Array, radius_mm: float, voxel_size_mm: float) -> nib.Nifti1Image:
    """Draw a ball on a grid that covers the connectome's."""
    scale = 2.0 / voxel_size_mm
    shape = tuple(round(n * scale) for n in SHAPE)
    affine = AFFINE @ np.diag([1 / scale] * 3 + [1.0])
    mask = np.zeros(shape, np.uint8)
    centre = nib.affines.apply_affine(np.linalg.inv(affine), centre_mm)
    low = np.maximum(np.floor(centre - radius_mm / voxel_size_mm).astype(int), 0)
    high = np.minimum(np.ceil(centre + radius_mm / voxel_size_mm).astype(int) + 1, shape)
    box = tuple(slice(*edges) for edges in zip(low, high, strict=True))
    inside = np.moveaxis(np.indices(high - low), 0, -1) + low - centre
    mask[box] = np.linalg.norm(inside, axis=-1) * voxel_size_mm <= radius_mm
    return nib.Nifti1Image(mask, affine)


def rows(lesions: Sequence[Array]) -> Rows:
    """Lay the lesions' voxels one after another, each with its start and all with the weight 1."""
    starts = np.cumsum([0, *map(len, lesions)])
    voxels = np.concatenate(lesions).astype(np.int32)
    return starts, voxels, np.ones(len(voxels), np.float32)
