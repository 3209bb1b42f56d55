"""Maps of a lesion, each computed on access."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from bids_lacuna.grid import Grid
from bids_lacuna.images import open_image, read_volume
from bids_lacuna.lesion import LesionData
from bids_lacuna.provenance import MappingOptions
from bids_lacuna.spaces import nifti_code
from bids_lacuna.statistics import LesionStatistics, fdr_threshold, minus_log10_p

Array = np.ndarray


class NetworkMaps(Mapping[str, Any]):
    """Maps of one lesion, each computed on access.

    Keys: `correlation_map` (tanh of the mean Fisher z), `z_map` (mean Fisher z), `t_map` if requested, `binary_map`
    (|t| above the first threshold; 0 where t is undefined) and `binary_maps` (one per threshold) if thresholds were
    given, `n_map` (number of connectome subjects at each voxel) if n varies, `minus_log10_p_map` (two-sided p of t; 0
    outside the connectome's mask), and `summary_statistics`, a dictionary. Maps are `nibabel.Nifti1Image` on the
    connectome's grid; undefined values are NaN.
    """

    def __init__(
        self,
        read_statistics: Callable[[], LesionStatistics],
        grid: Grid,
        space: str,
        options: MappingOptions,
        n_varies: bool,
    ) -> None:
        """Prepare the maps of one lesion.

        Parameters
        ----------
        read_statistics
            Returns the lesion's voxel vectors, computed at each call; used until `keep` or `release`.
        grid, space
            Grid and template space of the connectome.
        options
            Options that decide which maps exist.
        n_varies
            Whether there is an n-map.
        """
        self._read_statistics: Callable[[], LesionStatistics] | None = read_statistics
        self._kept: LesionStatistics | None = None
        self._grid = grid
        self._space = space
        self._t_thresholds = options.t_thresholds
        self._keys = (
            "correlation_map",
            "z_map",
            *(["t_map"] if options.compute_t_map else []),
            *(["binary_map", "binary_maps"] if options.t_thresholds else []),
            *(["n_map"] if n_varies else []),
            "minus_log10_p_map",
            "summary_statistics",
        )

    def __getitem__(self, key: str) -> Any:
        """Compute one map.

        Raises
        ------
        KeyError
            There is no such map; the message lists the available keys.
        RuntimeError
            The maps were released when the batch's callback returned.
        """
        if key not in self._keys:
            raise KeyError(f"there is no {key!r}: choose from {', '.join(self._keys)}")
        statistics = self.statistics
        match key:
            case "correlation_map":
                return self._image(statistics.r)
            case "z_map":
                return self._image(statistics.z)
            case "t_map":
                return self._image(statistics.t)
            case "binary_map":
                return self._binary(statistics, self._t_thresholds[0])
            case "binary_maps":
                return {threshold: self._binary(statistics, threshold) for threshold in self._t_thresholds}
            case "n_map":
                return self._image(statistics.n, outside=0)
            case "minus_log10_p_map":
                return self._image(minus_log10_p(statistics.t, statistics.n), outside=0)
        return self._summarize(statistics)

    def __contains__(self, key: object) -> bool:
        """Return whether there is such a map, without computing it."""
        return key in self._keys

    def __iter__(self) -> Iterator[str]:
        """Iterate over the keys."""
        return iter(self._keys)

    def __len__(self) -> int:
        """Return the number of keys."""
        return len(self._keys)

    @property
    def statistics(self) -> LesionStatistics:
        """Voxel vectors from which the maps are made."""
        if self._kept is not None:
            return self._kept
        if self._read_statistics is None:
            raise RuntimeError(
                "these maps were released when their batch's callback returned: save what you need in the callback, "
                "or run batch_process without one"
            )
        return self._read_statistics()

    @contextmanager
    def computed_once(self) -> Iterator[LesionStatistics]:
        """Compute the lesion's voxel vectors once for all maps that are read in the block, and yield them."""
        self._kept = self.statistics
        try:
            yield self._kept
        finally:
            if self._read_statistics is not None:
                self._kept = None

    def weights_image(self, lesion: LesionData) -> nib.Nifti1Image:
        """Return the weights of the lesion as an image, also outside the brain mask; 0 where it is not."""
        values = np.zeros(self._grid.n_voxels, np.float32)
        if lesion.weights:
            values[lesion.weights.voxels] = lesion.weights.weights
        image = self._image(values, outside=0)
        if lesion.outside:
            places = np.unravel_index(lesion.outside.voxels, self._grid.shape)
            np.asanyarray(image.dataobj)[places] = lesion.outside.weights
        return image

    def keep(self) -> None:
        """Keep a copy of the lesion's voxel vectors instead of a reference to the batch's moments."""
        self._kept = self.statistics
        self._read_statistics = None

    def release(self) -> None:
        """Release all data; no map can be computed afterwards."""
        self._kept = self._read_statistics = None

    def _binary(self, statistics: LesionStatistics, threshold: float) -> nib.Nifti1Image:
        return threshold_t(statistics.t, threshold, self._grid, self._space)

    def _image(self, values: Array, outside: float = np.nan) -> nib.Nifti1Image:
        return make_image(values, outside, self._grid, self._space)

    def _summarize(self, statistics: LesionStatistics) -> dict[str, Any]:
        r, t = statistics.r, statistics.t
        t_size = np.abs(t)
        return {
            "n_subjects": statistics.n_subjects,
            "degrees_of_freedom": statistics.n_subjects - 1,
            "n_voxels": int(np.isfinite(statistics.z).sum()),
            "r_min": _number(np.min, r),
            "r_max": _number(np.max, r),
            "r_mean": _number(np.mean, r),
            "t_min": _number(np.min, t),
            "t_max": _number(np.max, t),
            "t_fdr05": fdr_threshold(t, statistics.n),
            "n_voxels_above_threshold": {t: int((t_size > t).sum()) for t in self._t_thresholds},
        }


def read_t(path: Path, grid: Grid) -> Array:
    """Read a t-map that was written before.

    Parameters
    ----------
    grid
        Grid of the connectome.

    Returns
    -------
    shape (n_voxels,), float32
        t in the voxels of the connectome's mask, as in `LesionStatistics`.

    Raises
    ------
    OSError
        The file is missing or damaged.
    ValueError
        The map has another grid or another type of number.
    """
    image = open_image(path, "map")
    if image.shape != grid.shape or not np.allclose(image.affine, grid.affine, rtol=0, atol=1e-3):
        raise ValueError(f"{path.name} has another grid than the connectome ({grid.extent})")
    if image.get_data_dtype() != np.float32:
        raise ValueError(f"{path.name} contains {image.get_data_dtype()}, not float32")
    return read_volume(image, "map")[grid.mask].astype(np.float32, copy=False)


def threshold_t(t: Array, threshold: float, grid: Grid, space: str) -> nib.Nifti1Image:
    """Return the mask of |t| above a threshold; 0 where t is undefined.

    Parameters
    ----------
    t : shape (n_voxels,), float32
    grid, space
        Grid and template of the connectome.
    """
    return make_image((np.abs(t) > threshold).astype(np.uint8), 0, grid, space)


def make_image(values: Array, outside: float, grid: Grid, space: str) -> nib.Nifti1Image:
    """Return an image of a voxel vector, with a value for the voxels outside the mask."""
    return nib.Nifti1Image(grid.volume(values, outside), grid.affine, _make_header(grid, space, values.dtype))


@lru_cache(maxsize=4)
def _make_header(grid: Grid, space: str, dtype: np.dtype[Any]) -> nib.Nifti1Header:
    """Make a header that images copy: to make one takes longer than to fill the volume."""
    header, code = nib.Nifti1Header(), nifti_code(space)
    header.set_data_dtype(dtype)
    header.set_data_shape(grid.shape)
    header.set_xyzt_units("mm")
    header.set_sform(grid.affine, code)
    header.set_qform(grid.affine, code, strip_shears=True)
    return header


def _number(reduce: Callable[[Array], Any], values: Array) -> float:
    defined = values[np.isfinite(values)]
    return float(reduce(defined)) if len(defined) else float("nan")
