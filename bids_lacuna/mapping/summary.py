"""A connectome as a whole: approximate maps of lesions, and maps' similarity to degree and principal components."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.spatialimages import SpatialImage

from bids_lacuna.connectome.connectome import Connectome
from bids_lacuna.connectome.summary import FOLDER, SummaryArrays, open_summary
from bids_lacuna.grid import Grid, is_same_place
from bids_lacuna.images import read_volume
from bids_lacuna.lesion import LesionData, load_lesion
from bids_lacuna.reference import fisher_z
from bids_lacuna.weights import LesionWeights

Array = np.ndarray

VOXELS_AT_ONCE = 2**15
"""Voxels of all maps that are compared in float64 at a time."""


@dataclass(frozen=True)
class Similarity:
    """Spatial Pearson correlations of a z-map with maps of the connectome as a whole; NaN where undefined."""

    degree: float
    """r with degree, the mean r of each voxel with all others."""
    absolute_degree: float
    """r with absolute degree, the mean |z| of each voxel with all cells."""
    pc1: float
    """r with the first principal component of the cells' r."""
    pc2: float
    pc3: float
    r_squared: float
    """Fraction of the z-map's variance that all five explain together, by least squares."""
    n_voxels: int
    """Number of voxels that are compared."""

    @property
    def correlations(self) -> dict[str, float]:
        """The five correlations by their names."""
        return {name: getattr(self, name) for name in SIMILARITY_KEYS if name != "r_squared"}


SIMILARITY_KEYS = {
    "degree": "Degree",
    "absolute_degree": "AbsoluteDegree",
    "pc1": "PC1",
    "pc2": "PC2",
    "pc3": "PC3",
    "r_squared": "RSquared",
}
"""Keys of the numbers in sidecars, by their names in `Similarity`."""


@dataclass(frozen=True, eq=False)
class Summary:
    """An open summary of a connectome, made by `bids-lacuna-connectome summarize`."""

    arrays: SummaryArrays
    grid: Grid
    """Grid of the connectome."""
    space: str
    """Template space of the connectome."""

    @classmethod
    def open(
        cls, connectome: str | PathLike[str] | Connectome, summary_dir: str | PathLike[str] | None = None
    ) -> Summary:
        """Open the summary of a connectome.

        Parameters
        ----------
        connectome
            An open connectome, or the path of one.
        summary_dir
            Folder of the summary; by default `summary` in the connectome's store.

        Raises
        ------
        FileNotFoundError
            There is no summary.
        ValueError
            It is of another connectome, or damaged.
        OSError
            A file cannot be read.
        """
        if not isinstance(connectome, Connectome):
            connectome = Connectome.open(connectome)
        folder = Path(summary_dir) if summary_dir is not None else connectome.path / FOLDER
        arrays = open_summary(folder, connectome.content_hash)
        return cls(arrays, connectome.grid, connectome.space)

    def cell_weights(self, weights: LesionWeights) -> Array:
        """Sum a lesion's weights in each cell.

        Returns
        -------
        shape (n_cells,), float64
        """
        cells = self.arrays.cells[weights.voxels]
        return np.bincount(cells, weights.weights, minlength=self.arrays.record.n_cells)

    def approximate(self, lesion: LesionData | LesionWeights) -> Array:
        """Approximate a lesion's z-map from the cells that it touches.

        Parameters
        ----------
        lesion
            A lesion, whose mask is read, or its weights on the connectome's grid.

        Returns
        -------
        shape (n_voxels,), float32
            Approximate mean Fisher z in the voxels of the connectome's mask; NaN where undefined.

        Raises
        ------
        ValueError, OSError
            The mask cannot be used: see `load_lesion`.
        """
        of_cells = self.cell_weights(self._weights(lesion))
        touched = np.flatnonzero(of_cells)
        weights = of_cells[touched]
        variance = weights @ self.arrays.covariance[np.ix_(touched, touched)] @ weights
        z = np.full(self.grid.n_voxels, np.nan, np.float32)
        if variance > 0:
            for voxels, block in self.arrays.operator.blocks():
                # Not by BLAS, whose sums may depend on the number of its threads.
                products = np.einsum("c,cv->v", weights, block[touched])
                z[voxels] = fisher_z(products / np.sqrt(variance))
        return z

    def similarity(self, z_map: Array | SpatialImage, without: Array | None = None) -> Similarity:
        """Compare a z-map with degree, absolute degree and the first principal components of its connectome.

        Parameters
        ----------
        z_map : shape (n_voxels,), or an image
            Mean Fisher z in the voxels of the connectome's mask; NaN where undefined. An image needs the connectome's
            grid.
        without : integer
            Voxels that are not compared: those of the lesion, with which its seed correlates wherever it lies.

        Raises
        ------
        ValueError
            The image has another grid.
        """
        maps = [self.arrays.degree, self.arrays.absolute_degree, *self.arrays.components]
        z = self._vector(z_map)
        # A component without variance is undefined everywhere.
        used = [number for number, values in enumerate(maps) if np.isfinite(values).any()]
        rows = [z, *(maps[number] for number in used)]
        compared = np.isfinite(z)
        for row in rows:
            compared &= np.isfinite(row)
        if without is not None:
            compared[without] = False
        correlations = np.full(len(maps), np.nan)
        n_voxels, r_squared = int(np.count_nonzero(compared)), float("nan")
        if n_voxels > 1 and np.ptp(z[compared]) > 0:
            r = _correlate(rows, np.flatnonzero(compared))
            correlations[used] = r[0, 1:]
            r_squared = float(r[0, 1:] @ np.linalg.pinv(r[1:, 1:], rcond=1e-10, hermitian=True) @ r[0, 1:])
        degree, absolute_degree, pc1, pc2, pc3 = correlations.tolist()
        return Similarity(degree, absolute_degree, pc1, pc2, pc3, r_squared, n_voxels)

    def describe(self, similarity: Similarity) -> dict[str, Any]:
        """Return a similarity as it stands in sidecars: undefined numbers are None."""
        numbers = {key: getattr(similarity, name) for name, key in SIMILARITY_KEYS.items()}
        record = self.arrays.record
        return {
            **{key: round(number, 6) if np.isfinite(number) else None for key, number in numbers.items()},
            "NumberOfVoxels": similarity.n_voxels,
            "CellSize": record.cell_size_mm,
            "CellSizeUnits": "mm",
            "SummaryHash": record.content_hash,
        }

    def _weights(self, lesion: LesionData | LesionWeights) -> LesionWeights:
        if isinstance(lesion, LesionWeights):
            return lesion
        return lesion.weights or load_lesion(lesion, self.grid, self.space).loaded_weights

    def _vector(self, z_map: Array | SpatialImage) -> Array:
        if not isinstance(z_map, SpatialImage):
            return np.asarray(z_map)
        if z_map.shape != self.grid.shape or not is_same_place(self.grid.affine, z_map.affine):
            raise ValueError(f"the z-map has another grid than the connectome ({self.grid.extent}): map it again")
        return self.grid.vector(read_volume(z_map, "map"))


def _correlate(rows: Sequence[Array], voxels: Array) -> Array:
    """Correlate rows over some voxels: shape (n, n). A constant row has r = 0 with all others."""
    blocks = [voxels[start : start + VOXELS_AT_ONCE] for start in range(0, len(voxels), VOXELS_AT_ONCE)]
    means = np.array([[sum(row[block].sum(dtype=float) for block in blocks) / len(voxels)] for row in rows])
    products = np.zeros((len(rows), len(rows)))
    for block in blocks:
        centred = np.array([row[block] for row in rows], float) - means
        # Not by BLAS, whose sums may depend on the number of its threads.
        products += np.einsum("iv,jv->ij", centred, centred)
    norms = np.sqrt(np.diag(products))
    norms[norms == 0] = np.inf
    return products / np.outer(norms, norms)
