"""A group of five made-up lesions: masks and maps with known values."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath

import nibabel as nib
import numpy as np
import synthetic

from bids_lacuna.bids import LesionMask
from bids_lacuna.group.cohort import Group, GroupLesion
from bids_lacuna.group.writer import GroupSummary
from bids_lacuna.provenance import PROGRAM, MappingOptions, Provenance

Array = np.ndarray

NAMES = (
    "sub-01_label-lesion",
    "sub-02_ses-a_label-lesion",
    "sub-02_ses-b_label-L",
    "sub-04_desc-x",
    "sub-07_label-L",
)
"""The maps of lesions 0, 2 and 4 are alike, and so are those of 1 and 3."""

BOXES = (
    synthetic.box((3, 2, 3)),
    synthetic.box((0, 3, 5), (2, 3, 2)),
    synthetic.box((3, 2, 4), (1, 2, 3)),
    synthetic.box((1, 0, 0), (3, 2, 2)),
    synthetic.box((2, 4, 8), (1, 1, 1)),
)
SIDES = ("left", "right", "left", "both", "both")
"""Hemispheres of the boxes; the grid is stored from right to left: x is 8, 4, 0, -4, -8 mm."""


def make_maps() -> list[dict[str, Array]]:
    """Make r, z and t of each lesion, with voxels that are undefined in all lesions, in one, or in t alone."""
    rng = np.random.default_rng(5)
    patterns = rng.standard_normal((2, *synthetic.SHAPE))
    maps = []
    for number in range(len(NAMES)):
        z = 0.2 * (patterns[number % 2] + 0.3 * rng.standard_normal(synthetic.SHAPE))
        z[0, 0, :3] = np.nan
        z[4, number, 10] = np.nan
        t = 11 * z
        t[2, 6, number] = np.nan
        maps.append({"r": np.tanh(z), "z": z, "t": t})
    return [{stat: values.astype(np.float32) for stat, values in lesion.items()} for lesion in maps]


def write_group(root: Path, maps: list[dict[str, Array]], connectome_name: str = "GSP", **options: object) -> Group:
    """Write masks and maps, and return the group of all lesions."""
    lesions = []
    for name, voxels, values in zip(NAMES, BOXES, maps, strict=True):
        entities = dict(pair.split("-") for pair in name.split("_"))
        path = root / "bids" / f"sub-{entities['sub']}" / "anat" / f"{name}_mask.nii.gz"
        synthetic.write_mask(path, voxels)
        written = synthetic.write_lesion_maps(root / "out", path, values)
        relative = {
            stat: PurePosixPath(file.relative_to(root / "out")) for stat, file in zip("rzt", written, strict=True)
        }
        sidecar = json.loads(Path(str(written[0]).replace(".nii.gz", ".json")).read_text())
        mask = LesionMask(path, entities, synthetic.SPACE, "source", root / "bids")
        lesions.append(GroupLesion(name, mask, relative, sidecar))
    provenance = Provenance(
        connectome_name=connectome_name,
        connectome_hash="GSPhash",
        space=synthetic.SPACE,
        shape=synthetic.SHAPE,
        affine=tuple(synthetic.RADIOLOGICAL.ravel().tolist()),
        options=MappingOptions(**{"t_thresholds": (1.0, 2.5)} | options),
        software={PROGRAM: "1"},
    )
    return Group(provenance, tuple(lesions), (), ())


def common_vectors(maps: list[dict[str, Array]]) -> Array:
    """Return the values of voxels that are defined in all r-maps."""
    stack = np.stack([lesion["r"] for lesion in maps]).astype(float)
    return stack[:, np.isfinite(stack).all(axis=0)]


def read(summary: GroupSummary, key: str) -> Array:
    """Read a map of the group."""
    image = nib.load(summary.maps[key])
    np.testing.assert_allclose(image.affine, synthetic.RADIOLOGICAL)
    assert image.header["sform_code"] == 4
    return image.get_fdata()


def rows(summary: GroupSummary) -> list[dict[str, str]]:
    """Read the table."""
    header, *lines = [line.split("\t") for line in summary.table.read_text().splitlines()]
    return [dict(zip(header, line, strict=True)) for line in lines]
