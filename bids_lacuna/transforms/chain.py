"""Files of transforms, chained from a mask's space to the connectome's.

A file `from-A_to-B` resamples images of A onto grids of B. To do so, it maps points of B to points of A: for each
voxel of the new image it says where to look in the old one. The names here are those of images: `source` is A, and
`target` is B.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import nibabel as nib

from bids_lacuna.files import FileState, hash_file
from bids_lacuna.images import open_image

ITK_SUFFIXES = (".h5", ".txt", ".mat", ".tfm", ".nii", ".nii.gz")
"""Ends of the names of files that ITK writes transforms to."""

FREESURFER_SUFFIXES = (".lta", ".m3z", ".mgz", ".xfm", ".dat", ".reg")

FSL_INTENTS = range(2001, 2020)
"""NIfTI codes with which FSL marks FNIRT's fields and coefficients."""

ASK_FOR_ITK = "an ITK transform (.h5, .txt, .mat, or a displacement field .nii.gz) is needed"


@dataclass(frozen=True)
class TransformFile:
    """One file with an ITK transform."""

    path: Path
    source: str
    """Space of the images that it resamples."""
    target: str
    """Space onto whose grids it resamples them."""
    software: str = ""
    """Where it comes from, for the methods text, as in "fMRIPrep 23.2.0"; empty for a file that the user named."""


@dataclass(frozen=True)
class TransformChain:
    """Transforms that bring a mask from its space to the connectome's, in the order that the mask passes them.

    Raises
    ------
    ValueError
        There is none, or one begins in another space than the one before it ends in.
    """

    files: tuple[TransformFile, ...]

    def __post_init__(self) -> None:
        """Check that each file begins where the one before it ends."""
        if not self.files:
            raise ValueError("a chain needs at least one transform")
        for before, after in pairwise(self.files):
            if before.target != after.source:
                raise ValueError(
                    f"{before.path.name} ends in space {before.target}, but {after.path.name} begins in "
                    f"{after.source}: give transforms that follow one another"
                )

    @property
    def source(self) -> str:
        """Space of the mask."""
        return self.files[0].source

    @property
    def target(self) -> str:
        """Space of the connectome."""
        return self.files[-1].target

    @property
    def words(self) -> str:
        """Describe the chain for people, as in "from T1w to MNI152NLin6Asym by fMRIPrep 23.2.0"."""
        return describe_steps([(file.source, file.target, file.software) for file in self.files])

    def describe(self) -> list[dict[str, str]]:
        """Describe the files for a sidecar, in order; raises OSError if one cannot be read."""
        return [
            {
                "File": file.path.name,
                "From": file.source,
                "To": file.target,
                "SHA256": _hash(file.path, FileState.of(file.path)),
                **({"Software": file.software} if file.software else {}),
            }
            for file in self.files
        ]


def describe_steps(steps: Sequence[tuple[str, str, str]]) -> str:
    """Describe transforms for people, each by source, target and software (empty for a given file)."""
    first, *others = [f"{target} by {software or 'a given transform'}" for _, target, software in steps]
    return ", then ".join([f"from {steps[0][0]} to {first}", *(f"to {each}" for each in others)])


@lru_cache(maxsize=1024)
def _hash(path: Path, _state: FileState) -> str:
    """Return the SHA-256 of a file in a state; a template's transform has 100 MB and serves every lesion."""
    return hash_file(path)


def check_format(path: Path) -> None:
    """Raise an error unless a file may hold an ITK transform, by its name and header.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        It is a transform of SPM, FSL or FreeSurfer, or no transform; the message says how to convert it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no transform {path}: check the path")
    name = path.name.lower()
    if name.endswith(FREESURFER_SUFFIXES):
        raise ValueError(
            f"{path} is a transform of FreeSurfer, but {ASK_FOR_ITK}: convert a linear one by "
            f"`lta_convert --inlta {path.name} --outitk FILE.txt`"
        )
    if not name.endswith(ITK_SUFFIXES):
        raise ValueError(f"{path} is no file of transforms by its name, but {ASK_FOR_ITK}")
    if name.endswith((".nii", ".nii.gz")):
        _check_field(path)
    elif name.endswith((".mat", ".txt")) and _is_plain_matrix(path):
        raise ValueError(
            f"{path} is a matrix of FSL's FLIRT, but {ASK_FOR_ITK}: convert it by `c3d_affine_tool -ref "
            f"TARGET.nii.gz -src SOURCE.nii.gz {path.name} -fsl2ras -oitk FILE.txt`"
        )


def _check_field(path: Path) -> None:
    """Raise ValueError unless a NIfTI file has the header of an ITK displacement field."""
    try:
        header = open_image(path, "transform").header
    except OSError as error:
        raise ValueError(str(error)) from error
    if not isinstance(header, nib.Nifti1Header):
        raise ValueError(f"{path} is no NIfTI file, but {ASK_FOR_ITK}")  # noqa: TRY004  a wrong file
    shape: Sequence[int] = header.get_data_shape()
    if path.name.startswith(("y_", "iy_")) or bytes(header["intent_name"]).rstrip(b"\0") == b"Mapping":
        raise ValueError(
            f"{path} is a deformation of SPM, but {ASK_FOR_ITK}: apply it in SPM (Normalise: Write, or "
            "Deformations), with nearest-neighbour interpolation, and give the mask the name of the template, as in "
            "space-MNI152NLin2009cAsym"
        )
    if int(header["intent_code"]) in FSL_INTENTS or len(shape) == 4:
        raise ValueError(
            f"{path} is a field of FSL's FNIRT, but {ASK_FOR_ITK}: convert it by `wb_command -convert-warpfield "
            f"-from-fnirt {path.name} SOURCE.nii.gz -to-itk FILE.nii.gz`, coefficients first by fnirtfileutils"
        )
    if len(shape) != 5 or shape[3:] != (1, 3):
        raise ValueError(f"{path} has the shape {tuple(shape)}, but a displacement field has (x, y, z, 1, 3)")


def _is_plain_matrix(path: Path) -> bool:
    """Return whether a file holds nothing but 16 numbers, as FLIRT writes them."""
    if path.stat().st_size > 4096:
        return False
    try:
        numbers = [float(word) for word in path.read_text(encoding="ascii").split()]
    except ValueError:
        return False
    return len(numbers) == 16
