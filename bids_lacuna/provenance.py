"""What maps are made from, made once and passed whole: the options, the connectome, its grid, and the software."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import nibabel as nib
import numpy as np

from bids_lacuna.grid import Grid
from bids_lacuna.weights import Weighting

PROGRAM = "bids-lacuna"
"""The program's name among the software, and in dataset_description.json; BIDS requires it in the folder's name in
`derivatives/<folder>/`."""


def _option(words: str, key: str = "") -> dict[str, str]:
    """Describe an option.

    Parameters
    ----------
    words
        A phrase for people with `{value}`.
    key
        Its key in sidecars; "" for an option that only chooses maps to be made from the sums over connectome
        subjects: the files themselves tell its value.
    """
    return {"words": words, "key": key}


@dataclass(frozen=True)
class MappingOptions:
    """The options of an analysis. An option is a field here; what reads the options walks the fields.

    Raises
    ------
    ValueError
        A value is not one of those allowed.
    """

    compute_t_map: bool = field(default=True, metadata=_option("t-map {value}"))
    """Whether there is a t-map."""
    t_thresholds: tuple[float, ...] = field(default=(), metadata=_option("|t| > {value}"))
    """Thresholds of |t|; there is a binary map for each."""
    weighting: Weighting = field(default="volume", metadata=_option("{value} weighting", "LesionWeighting"))
    """How a lesion becomes weights on the connectome's grid: see `load_lesion`."""
    lesion_threshold: float | None = field(
        default=None, metadata=_option("the lesion threshold {value}", "LesionThreshold")
    )
    """Smallest probability that counts; None where masks are binary."""

    def __post_init__(self) -> None:
        """Check the values."""
        if self.weighting not in ("volume", "binary"):
            raise ValueError(f"weighting is {self.weighting!r}: it must be 'volume' or 'binary'")
        if not all(np.isfinite(t) and t > 0 for t in self.t_thresholds):
            raise ValueError(
                f"t_threshold is {self.t_thresholds!r}: |t| is compared with it, so it must be a finite number "
                "above 0"
            )
        if self.lesion_threshold is not None and not 0 < self.lesion_threshold <= 1:
            raise ValueError(
                f"lesion_threshold is {self.lesion_threshold!r}: it is compared with probabilities, so it must be "
                "above 0 and at most 1"
            )

    @property
    def deciding(self) -> dict[str, Any]:
        """The options that decide the sums over connectome subjects, by name."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.metadata["key"]}

    @property
    def sidecar(self) -> dict[str, Any]:
        """The same options by their keys in sidecars."""
        return {each.metadata["key"]: getattr(self, each.name) for each in fields(self) if each.metadata["key"]}

    @property
    def phrases(self) -> dict[str, str]:
        """A phrase for people about each option, by its name."""
        return {
            each.name: each.metadata["words"].format(value=_words(getattr(self, each.name))) for each in fields(self)
        }


def _words(value: object) -> str:
    return ", ".join(f"{each:g}" for each in value) or "no threshold" if isinstance(value, tuple) else str(value)


OPTION_WORDS = {
    each.metadata["key"]: each.metadata["words"] for each in fields(MappingOptions) if each.metadata["key"]
}
"""The phrases for people, by the options' keys in sidecars."""


@dataclass(frozen=True)
class Provenance:
    """What maps are made from, beside the lesions. Two are equal where their maps may be compared."""

    connectome_name: str
    """Letters and digits; part of the maps' names."""
    connectome_hash: str
    """SHA-256 that tells one connectome from another of the same name."""
    space: str
    """Template of the connectome, and of the maps."""
    shape: tuple[int, ...]
    """Voxels of the maps along each axis."""
    affine: tuple[float, ...]
    """Voxel indices to millimetres, row by row, rounded to 1e-4 mm."""
    options: MappingOptions
    software: Mapping[str, str] = field(compare=False)
    """Version of this program, of Python and of the libraries that numbers and pictures come from."""

    @classmethod
    def on(
        cls,
        grid: Grid,
        *,
        connectome_name: str,
        connectome_hash: str,
        space: str,
        options: MappingOptions,
        software: Mapping[str, str],
    ) -> Provenance:
        """Describe maps on a grid."""
        affine = round_affine(grid.affine)
        return cls(connectome_name, connectome_hash, space, grid.shape, affine, options, software)

    @property
    def grid(self) -> Grid:
        """Every voxel of the maps' volume, those outside the brain as well."""
        return Grid(np.ones(self.shape, dtype=bool), np.reshape(self.affine, (4, 4)))

    def describe(self, names: Collection[str] = ()) -> str:
        """Describe it for people: all of it, or the fields and options of these names."""
        options = self.options
        if not names:
            names = {each.name for each in fields(self)}
            names |= {name for name, value in vars(options).items() if value is not None and value is not True}
        phrases = {
            "connectome_name": f"connectome {self.connectome_name} ({self.connectome_hash[:8]})",
            "space": f"space {self.space}",
            "shape": self.grid.extent,
            **options.phrases,
        }
        same = {"connectome_hash": "connectome_name", "affine": "shape"}
        asked = {same.get(name, name) for name in names}
        return ", ".join(phrase for name, phrase in phrases.items() if name in asked)

    def differences(self, group: Provenance) -> str:
        """Describe how one lesion's maps differ from a group's."""
        ours, theirs = self._values(), group._values()
        names = [name for name, value in ours.items() if value != theirs[name]]
        return f"made with {self.describe(names)}, the group with {group.describe(names)}"

    def _values(self) -> dict[str, Any]:
        compared = {each.name: getattr(self, each.name) for each in fields(self) if each.compare}
        return {**compared, **vars(compared.pop("options"))}

    @property
    def version(self) -> str:
        """Version of this program."""
        return self.software[PROGRAM]

    @property
    def libraries(self) -> dict[str, str]:
        """Versions of Python and of the libraries."""
        return {name: version for name, version in self.software.items() if name != PROGRAM}

    @property
    def voxel_sizes_mm(self) -> tuple[float, ...]:
        """The edges of one voxel in mm, rounded to 1e-3."""
        return tuple(nib.affines.voxel_sizes(np.reshape(self.affine, (4, 4))).round(3).tolist())


def round_affine(affine: np.ndarray) -> tuple[float, ...]:
    """Round an affine to 1e-4 mm, so that affines of equal grids are equal."""
    return tuple((np.asarray(affine, float).round(4) + 0.0).ravel().tolist())
