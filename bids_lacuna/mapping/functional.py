"""Functional lesion network mapping: correlations of lesions with every voxel, over the connectome subjects."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Sequence
from functools import partial
from os import PathLike
from typing import Self

import numpy as np

from bids_lacuna import kernels
from bids_lacuna._version import __version__
from bids_lacuna.connectome.connectome import Connectome, ConnectomeSubject, opener_of
from bids_lacuna.lesion import LesionData, load_lesion
from bids_lacuna.mapping.analysis import NoResults
from bids_lacuna.mapping.maps import NetworkMaps
from bids_lacuna.mapping.moments import RunningMoments
from bids_lacuna.provenance import PROGRAM, MappingOptions, Provenance
from bids_lacuna.runtime.logs import versions_of
from bids_lacuna.runtime.plan import RESULTS_AT_ONCE, Footprint
from bids_lacuna.weights import LesionWeights, Rows, Weighting

logger = logging.getLogger(__name__)

Array = np.ndarray

LIBRARIES = ("numpy", "scipy", "numba", "nibabel", "SimpleITK", "nilearn", "matplotlib")
"""Libraries that produce numbers and pictures."""

MOMENT_BYTES = 16
"""Bytes per voxel and lesion: the sums of z and of z², float64."""

SEED_BYTES = 8
"""Bytes per timepoint and lesion: the seed is summed in float64 and then used as float32."""

WEIGHT_BYTES = 16
"""Bytes per voxel of a lesion: its index, int32, and its weight, float32, for the lesion and for its batch."""

VOXELS_PER_LESION_VOXEL = 10
"""Grid voxels for each voxel of a lesion: even a large lesion covers less than a tenth of the brain."""

LESION_BYTES = 4096
"""Bytes per lesion of Python objects: paths, entities, results."""

KEPT_BYTES = 12
"""Bytes per voxel and lesion where results outlive their batch: z, t and n, 4 bytes each."""

FEW_SUBJECTS = 0.5
"""Warn below this fraction of connectome subjects with a signal in a lesion."""

VECTOR_BYTES = 16
"""Bytes per voxel while one lesion's maps are made: z, t, n and r."""

MAP_BYTES = 4
"""Bytes per voxel of the volume of one map."""

INDEX_BYTES = 8
"""Bytes per voxel of the grid's indices, from which volumes are filled."""


class FunctionalNetworkMapping:
    """Correlate each lesion's mean resting-state signal with every voxel, over a normative connectome.

    Parameters
    ----------
    connectome
        An open connectome, or the path of one.
    compute_t_map
        Whether results have a `t_map`.
    t_threshold
        Results have a `binary_map` of |t| above it. Several thresholds give `binary_maps`.
    weighting
        How lesions are brought to the connectome's grid: see `load_lesion`.
    lesion_threshold
        None where masks are binary. Above 0 and up to 1 where they may be probability maps: see `load_lesion`.

    References
    ----------
    Boes et al. (2015), Brain 138:3061, doi:10.1093/brain/awv228.
    """

    name = "FunctionalNetworkMapping"
    """Key of these results in `LesionData.results`."""

    def __init__(
        self,
        connectome: str | PathLike[str] | Connectome,
        *,
        compute_t_map: bool = True,
        t_threshold: float | Sequence[float] | None = None,
        weighting: Weighting = "volume",
        lesion_threshold: float | None = None,
    ) -> None:
        thresholds = () if t_threshold is None else tuple(np.atleast_1d(np.asarray(t_threshold, float)).tolist())
        self.connectome = connectome if isinstance(connectome, Connectome) else Connectome.open(connectome)
        self.options = MappingOptions(compute_t_map, thresholds, weighting, lesion_threshold)
        self.n_without_signal: int | None = None
        """Number of connectome subjects without a signal in any voxel; None before the first pass."""

    @classmethod
    def of(cls, connectome: Connectome, options: MappingOptions) -> Self:
        """Return the analysis with existing options."""
        analysis = cls(connectome)
        analysis.options = options
        return analysis

    @property
    def n_subjects(self) -> int:
        """Number of connectome subjects."""
        return self.connectome.n_subjects

    @property
    def identity(self) -> dict[str, str]:
        """Everything but the lesions that decides the moments."""
        return {
            "software": __version__,
            "connectome": self.connectome.content_hash,
            **{name.replace("_", " "): str(value) for name, value in self.options.deciding.items()},
        }

    @property
    def provenance(self) -> Provenance:
        """Sources and settings of the maps."""
        connectome = self.connectome
        return Provenance.on(
            connectome.grid,
            connectome_name=connectome.name,
            connectome_hash=connectome.content_hash,
            space=connectome.space,
            options=self.options,
            software={PROGRAM: __version__, **versions_of(LIBRARIES)},
        )

    def footprint(self, n_rows: int) -> Footprint:  # noqa: ARG002  the moments of a row do not depend on their number
        """Return the memory that a run needs."""
        connectome = self.connectome
        n_voxels, volume = connectome.grid.n_voxels, connectome.grid.mask.size
        map_bytes = MAP_BYTES + len(self.options.t_thresholds)
        weight_bytes = WEIGHT_BYTES * n_voxels // VOXELS_PER_LESION_VOXEL
        return Footprint(
            accumulator_bytes=MOMENT_BYTES * n_voxels,
            row_bytes=SEED_BYTES * connectome.n_components + weight_bytes + LESION_BYTES,
            kept_bytes=KEPT_BYTES * n_voxels,
            result_bytes=RESULTS_AT_ONCE * (VECTOR_BYTES * n_voxels + map_bytes * volume) + INDEX_BYTES * n_voxels,
            subject_bytes=connectome.subject_bytes,
            reading_bytes=connectome.reading_bytes,
            n_readers=connectome.n_readers,
            group=kernels.GROUP,
            connectome_bytes=connectome.n_bytes,
        )

    def prepare(self, n_threads: int) -> None:
        """Compile the kernels, or load them from the cache, so that their memory can be measured."""
        logger.info("loading the kernels; the first run compiles them, in up to half a minute")
        kernels.compile_for(self.connectome.series_dtype, self.connectome.standardized_dtypes, n_threads)

    def opener(self) -> Callable[[], FunctionalNetworkMapping]:
        """Return a small function that opens the same analysis in another process, on any machine."""
        return partial(_open_same, opener_of(self.connectome), self.options)

    def subjects(
        self, first: int, n_ahead: int, keep_cached: bool = True
    ) -> Generator[ConnectomeSubject, None, None]:
        """Iterate over the connectome subjects in order, with some read ahead."""
        return self.connectome.subjects(n_ahead, keep_cached, first)

    def new_accumulator(self, rows: Rows) -> RunningMoments:
        """Return moments without connectome subjects."""
        return RunningMoments(len(rows), self.connectome.grid.n_voxels)

    def add(self, subjects: Sequence[ConnectomeSubject], rows: Rows, accumulator: RunningMoments) -> None:
        """Correlate up to `kernels.GROUP` connectome subjects with the lesions, and add them to the moments."""
        series, scale = [subject.series for subject in subjects], [subject.scale for subject in subjects]
        seeds = [
            kernels.seeds(rows.starts, rows.voxels, rows.weights, subject.series, subject.scale, subject.sd)
            for subject in subjects
        ]
        kernels.add_fisher_z(seeds, series, scale, accumulator.total, accumulator.total_of_squares)
        for subject_seeds, subject_scale in zip(seeds, scale, strict=True):
            accumulator.count_subject(np.any(subject_seeds, axis=1), subject_scale > 0)

    def load(self, lesion: LesionData) -> LesionData:
        """Read a lesion's mask and compute its weights on the connectome's grid; see `load_lesion` for errors."""
        connectome = self.connectome
        options, examined = self.options, not lesion.is_seed
        return load_lesion(
            lesion,
            connectome.grid,
            connectome.space,
            options.weighting,
            options.lesion_threshold,
            examined=examined,
        )

    def row(self, lesion: LesionData) -> LesionWeights:
        """Return the weights of a loaded lesion."""
        return lesion.loaded_weights

    def results(self, lesion: LesionData, accumulator: RunningMoments, row: int) -> NetworkMaps:
        """Return the maps of one lesion, each computed on access.

        Raises
        ------
        NoResults
            No connectome subject has a signal in the lesion.
        """
        self._count_without_signal(accumulator)
        n = accumulator.n(row)
        if not n.any():
            raise NoResults(
                "no connectome subject has a signal in this lesion: its voxels' series are constant or not finite"
            )
        if n.max() < FEW_SUBJECTS * self.n_subjects:
            logger.warning(
                "%s: only %d of %d connectome subjects have a signal in the lesion; its map describes those",
                lesion.name,
                n.max(),
                self.n_subjects,
            )
        connectome = self.connectome
        return NetworkMaps(
            partial(accumulator.statistics, row), connectome.grid, connectome.space, self.options, bool(np.ptp(n))
        )

    def _count_without_signal(self, accumulator: RunningMoments) -> None:
        """Count the connectome subjects that no map includes, and log a warning if there are some."""
        if self.n_without_signal is not None:
            return
        self.n_without_signal = accumulator.n_without_signal
        if self.n_without_signal:
            logger.warning(
                "%d of %d connectome subjects have no signal in any voxel, since each series is constant or has "
                "values that are not finite: no map includes them; check %s",
                self.n_without_signal,
                self.n_subjects,
                self.connectome.path,
            )


def _open_same(open_connectome: Callable[[], Connectome], options: MappingOptions) -> FunctionalNetworkMapping:
    return FunctionalNetworkMapping.of(open_connectome(), options)
