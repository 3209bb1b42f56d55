"""A synthetic BIDS dataset of lesion masks and a synthetic connectome, to try the program within a minute."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import nibabel as nib
import numpy as np
from scipy.ndimage import gaussian_filter, gaussian_filter1d, label

from bids_lacuna._version import __version__
from bids_lacuna.files import write_json, write_table
from bids_lacuna.runtime.streams import lenient_streams

Array = np.ndarray

logger = logging.getLogger(__name__)

SEED = 20_150_903
"""Seed of all random numbers: the same seed gives the same bytes."""

SPACE = "MNI152NLin6Asym"

NOTICE = "SYNTHETIC, not for science"

LESION_SHAPE = (91, 109, 91)

LESION_AFFINE = np.array([[2.0, 0, 0, -90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]])
"""Voxels of 2 mm, stored from left to right."""

CONNECTOME_SHAPE = (46, 55, 46)

CONNECTOME_AFFINE = np.array([[-4.0, 0, 0, 90], [0, 4, 0, -126], [0, 0, 4, -72], [0, 0, 0, 1]])
"""Voxels of 4 mm, stored from right to left as in GSP1000: matching voxels by index would mirror the maps."""

CONNECTOME_FILES = {"synthetic_part-1.h5": (8, 120), "synthetic_part-2.h5": (8, 100)}
"""Numbers of connectome subjects and timepoints by file."""

N_NETWORKS = 10

BRAIN = (
    ((-31, -17, 18), (36, 86, 56)),  # left hemisphere
    ((31, -17, 18), (36, 86, 56)),  # right hemisphere
    ((-45, -12, -20), (22, 42, 22)),  # left temporal lobe
    ((45, -12, -20), (22, 42, 22)),  # right temporal lobe
    ((0, -62, -36), (50, 32, 22)),  # cerebellum
    ((0, -26, -42), (10, 12, 26)),  # brainstem
)
"""Ellipsoids that together resemble a brain: centre and radii in mm."""

DROPOUT_CENTRE_MM = (24, 38, -12)
"""Centre of a region without signal in the last connectome subject, as above the sinuses of many real ones."""

DROPOUT_RADIUS_MM = 12


@dataclass(frozen=True)
class DemoLesion:
    """One synthetic lesion."""

    participant: str
    site: str
    """Location in words, for participants.tsv."""
    centre_mm: tuple[int, int, int]
    radius_mm: float
    """Radius of the sphere that is deformed into the lesion."""
    session: str | None = None
    label: str = "lesion"
    """The `label` entity of the mask's name."""

    @property
    def mask_path(self) -> Path:
        """Path of the mask in its dataset."""
        folder, name = Path(f"sub-{self.participant}"), f"sub-{self.participant}"
        if self.session:
            folder, name = folder / f"ses-{self.session}", f"{name}_ses-{self.session}"
        return folder / "anat" / f"{name}_space-{SPACE}_label-{self.label}_mask.nii.gz"


LESIONS = (
    DemoLesion("01", "left insula and operculum", (-40, 6, 6), 22),
    DemoLesion("02", "right thalamus", (13, -18, 8), 10, session="1"),
    DemoLesion("02", "right thalamus", (13, -18, 8), 7, session="2"),
    DemoLesion("03", "right parietal lobe", (38, -48, 40), 15),
    DemoLesion("03", "left cerebellum", (-24, -62, -36), 11, label="acuteinfarct"),
    DemoLesion("04", "left internal capsule", (-20, -4, 12), 2.5),
    DemoLesion("05", "right frontal lobe", (34, 36, 22), 19),
    DemoLesion("06", "left occipital lobe", (-14, -84, 8), 16),
)
"""Lesions; one participant has two sessions, one has two lesions in one session, and one has a lacune."""

README = f"""\
Demo lesions of bids-lacuna
===========================

{NOTICE}. No patient had these lesions: a program drew them, with
`python -m bids_lacuna.demo`, to show how bids-lacuna is used and to test it.

Six participants, eight masks in the space {SPACE}. sub-02 was "seen" twice,
sub-03 has two lesions at a time, told apart by their label, and sub-04 has a
lacune of a few voxels. participants.tsv says where each lesion lies.
"""
"""README of the dataset."""


def main(argv: Sequence[str] | None = None) -> int:
    """Write the dataset to DIR/bids and the connectome to DIR/connectome.

    Parameters
    ----------
    argv
        Command-line arguments, by default those of this process.

    Returns
    -------
    int
        Exit status.
    """
    parser = argparse.ArgumentParser(prog="python -m bids_lacuna.demo", description=__doc__)
    parser.add_argument("directory", type=Path, metavar="DIR", help="parent of the new folders bids and connectome")
    with lenient_streams():
        directory = parser.parse_args(argv).directory
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
        write_demo_dataset(directory / "bids")
        write_demo_connectome(directory / "connectome")
    return 0


def write_demo_dataset(bids_dir: Path, seed: int = SEED) -> None:
    """Write a BIDS derivative dataset with lesion masks of six synthetic participants.

    The masks are irregular blobs on the 2 mm grid of MNI152NLin6Asym; `LESIONS` lists them.

    Parameters
    ----------
    bids_dir
        Folder of the dataset, created if needed; existing files of the same names are replaced.
    seed
        Seed of the outlines.
    """
    centres_mm = _voxel_centres(LESION_SHAPE, LESION_AFFINE)
    brain = _inside_brain(centres_mm)
    for lesion in LESIONS:
        path = bids_dir / lesion.mask_path
        path.parent.mkdir(parents=True, exist_ok=True)
        mask = _blob(lesion, centres_mm, brain, np.random.default_rng([seed, int(lesion.participant)]))
        image = nib.Nifti1Image(mask.astype(np.uint8), LESION_AFFINE)
        image.header.set_xyzt_units("mm")
        image.set_sform(LESION_AFFINE, "mni")
        image.set_qform(LESION_AFFINE, "mni")
        nib.save(image, path)
        write_json(path.with_name(path.name.replace(".nii.gz", ".json")), _mask_sidecar(lesion))
        logger.info("%s: %d voxels of 2 mm", path, np.count_nonzero(mask))
    _write_descriptions(bids_dir)
    logger.info("%s: %d lesion masks, %s", bids_dir, len(LESIONS), NOTICE)


def write_demo_connectome(connectome_dir: Path, seed: int = SEED) -> None:
    """Write a connectome of 16 synthetic connectome subjects as two HDF5 files in Lacuna's layout.

    The time series are low-frequency signals of ten smooth, bilateral networks, which are the same for all subjects,
    plus noise. The last subject has no signal in a small region.

    Parameters
    ----------
    connectome_dir
        Folder of the files, created if needed; existing files of the same names are replaced.
    seed
        Seed of networks, signals and noise.
    """
    connectome_dir.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    centres_mm = _voxel_centres(CONNECTOME_SHAPE, CONNECTOME_AFFINE)
    mask = _inside_brain(centres_mm)
    networks = _bilateral_networks(mask, rng)
    dropout = np.linalg.norm(centres_mm[mask] - DROPOUT_CENTRE_MM, axis=1) <= DROPOUT_RADIUS_MM
    last_file = list(CONNECTOME_FILES)[-1]
    for name, (n_subjects, n_timepoints) in CONNECTOME_FILES.items():
        path = connectome_dir / name
        with h5py.File(path, "w") as file:
            file.attrs["description"] = f"Made-up time series of bids-lacuna's demo: {NOTICE}"
            file.attrs["space"] = SPACE
            file.attrs["mask_shape"] = mask.shape
            file.attrs["n_subjects"] = n_subjects
            file.attrs["n_timepoints"] = n_timepoints
            file.attrs["n_voxels"] = networks.shape[1]
            file["mask_indices"] = np.array(np.nonzero(mask), dtype=np.int32)
            file["mask_affine"] = CONNECTOME_AFFINE
            timeseries = file.create_dataset(
                "timeseries",
                shape=(n_subjects, n_timepoints, networks.shape[1]),
                dtype=np.float32,
                chunks=(1, n_timepoints, networks.shape[1]),
                compression="gzip",
                compression_opts=1,
            )
            for subject in range(n_subjects):
                series = _series(networks, n_timepoints, rng)
                if name == last_file and subject == n_subjects - 1:
                    series[:, dropout] = 0
                timeseries[subject] = series
        logger.info("%s: %d connectome subjects of %d timepoints, %s", path, n_subjects, n_timepoints, NOTICE)


def _voxel_centres(shape: tuple[int, int, int], affine: Array) -> Array:
    """Return the world coordinates of a volume's voxels in mm: shape (x, y, z, 3)."""
    return nib.affines.apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1))


def _inside_brain(centres_mm: Array) -> Array:
    """Return whether each voxel lies in one of the brain's ellipsoids."""
    inside = np.zeros(centres_mm.shape[:-1], dtype=bool)
    for centre, radii in BRAIN:
        inside |= np.linalg.norm((centres_mm - centre) / radii, axis=-1) <= 1
    return inside


def _blob(lesion: DemoLesion, centres_mm: Array, brain: Array, rng: np.random.Generator) -> Array:
    """Deform a sphere with smooth noise, and keep the connected piece around its centre inside the brain."""
    distances = np.linalg.norm(centres_mm - lesion.centre_mm, axis=-1)
    noise = _smooth_noise(distances.shape, lesion.radius_mm / 4, rng)
    pieces, _ = label(brain & (distances * np.exp(noise / 3) <= lesion.radius_mm))
    return pieces == pieces.flat[distances.argmin()]


def _smooth_noise(shape: tuple[int, ...], width_voxels: float, rng: np.random.Generator) -> Array:
    """Make a smooth random field of standard deviation 1."""
    noise = gaussian_filter(rng.standard_normal(shape), width_voxels)
    return noise / noise.std()


def _bilateral_networks(mask: Array, rng: np.random.Generator) -> Array:
    """Make the weight of each voxel in each network, alike on both sides: shape (n_networks, n_voxels)."""
    fields = [_smooth_noise(mask.shape, 3, rng) for _ in range(N_NETWORKS)]
    # The grid's first axis runs from 90 to -90 mm: reversing it mirrors the brain.
    peaks = [np.maximum(field + field[::-1] - 1, 0) for field in fields]
    return np.stack([peak[mask] for peak in peaks]).astype(np.float32)


def _series(networks: Array, n_timepoints: int, rng: np.random.Generator) -> Array:
    """Make the time series of one connectome subject: shape (n_timepoints, n_voxels), float32."""
    courses = gaussian_filter1d(rng.standard_normal((n_timepoints, len(networks))), 1, axis=0)
    signal = (courses / courses.std(axis=0)).astype(np.float32) @ networks
    # Global signal regression, as in most published connectomes, creates anticorrelations.
    signal -= signal.mean(axis=1, keepdims=True)
    noise = rng.standard_normal(signal.shape, dtype=np.float32)
    # Integers, as from scanners, compress to a third of the size.
    return np.rint(500 + 2 * signal + 5 * noise)


def _mask_sidecar(lesion: DemoLesion) -> dict[str, Any]:
    return {
        "Description": f"{NOTICE}: a made-up lesion, {lesion.site}",
        "Type": "Lesion",
        "SpatialReference": SPACE,
        "Sources": [],
    }


def _write_descriptions(bids_dir: Path) -> None:
    """Write the files at the dataset's root."""
    write_json(
        bids_dir / "dataset_description.json",
        {
            "Name": f"Demo lesions of bids-lacuna ({NOTICE})",
            "BIDSVersion": "1.10.0",
            "DatasetType": "derivative",
            "License": "CC0",
            "Authors": ["bids_lacuna contributors"],
            "GeneratedBy": [{"Name": "bids-lacuna demo", "Version": __version__}],
        },
    )
    sites: dict[str, dict[str, None]] = {}
    for lesion in LESIONS:
        sites.setdefault(lesion.participant, {})[lesion.site] = None
    rows = [(f"sub-{participant}", ", ".join(names)) for participant, names in sites.items()]
    write_table(bids_dir / "participants.tsv", ["participant_id", "lesion_site"], rows)
    write_json(
        bids_dir / "participants.json",
        {"lesion_site": {"Description": f"Where the made-up lesions lie; {NOTICE}"}},
    )
    (bids_dir / "README").write_text(README)


if __name__ == "__main__":
    sys.exit(main())
