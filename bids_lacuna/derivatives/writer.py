"""Callback that writes the maps of a batch, each with a sidecar."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path, PurePosixPath
from threading import BoundedSemaphore
from typing import TYPE_CHECKING, Any

import nibabel as nib

from bids_lacuna.derivatives.history import OUTCOMES
from bids_lacuna.derivatives.names import (
    WITHOUT_NULLS,
    expected_masks,
    lesion_path,
    map_path,
    null_map_path,
    sidecar_path,
)
from bids_lacuna.derivatives.parcels import differ, list_parcels, read_sidecar_of
from bids_lacuna.derivatives.records import (
    DECIDING,
    LesionRecord,
    Sidecars,
    describe_differences,
    read_threshold,
    write_outcomes,
)
from bids_lacuna.derivatives.sidecars import describe_maps, write_sidecars
from bids_lacuna.files import (
    ChangedMeanwhile,
    check_unchanged,
    read_json_object,
    renamed_when_whole,
    write_json,
)
from bids_lacuna.images import save_gzipped
from bids_lacuna.lesion import LesionData
from bids_lacuna.provenance import Provenance
from bids_lacuna.runtime.logs import log_failure
from bids_lacuna.runtime.plan import RESULTS_AT_ONCE

if TYPE_CHECKING:
    from bids_lacuna.bids import LesionMask, ParticipantWithoutMask

logger = logging.getLogger(__name__)

ANALYSIS = "FunctionalNetworkMapping"
"""Key of the maps in `LesionData.results`."""

STATISTICS = {
    # Written first: it exists only if n varies, so it would not be missed if a run ended before it was written.
    "n": ("n_map", "Number of connectome subjects with a defined correlation at each voxel"),
    "r": ("correlation_map", "Lesion network map: hyperbolic tangent of the mean Fisher z over connectome subjects"),
    "z": ("z_map", "Lesion network map: mean Fisher z over connectome subjects"),
    "t": ("t_map", "Lesion network map: one-sample t of Fisher z over connectome subjects"),
}
"""Key and description of each map, by its `stat` entity."""


NULL_DESCRIPTION = (
    "T among null lesions: the lesion's approximate mean Fisher z, minus that of the same lesion at other places of "
    "its hemisphere, in their standard deviations. A description of what is particular to this place, not a test"
)


WEIGHTS_DESCRIPTION = "The lesion after its transforms: its weight in each voxel, also outside the brain mask"


class DerivativesWriter:
    """Writes each batch's maps with sidecars, as a callback of `batch_process`, and keeps lesions.tsv up to date.

    Each file is written atomically: under a temporary name in the same folder, and then renamed. Several lesions are
    written at the same time, so that some are computed while others wait for the disk.
    """

    def __init__(
        self,
        output_dir: Path,
        provenance: Provenance,
        records: Sequence[LesionRecord],
        log_dir: Path,
        links: Mapping[str, str],
        without_mask: Sequence[ParticipantWithoutMask] = (),
        n_threads: int = 1,
    ) -> None:
        """Prepare to write.

        Parameters
        ----------
        output_dir
            Root of the derivative dataset.
        provenance
            Sources and settings of all maps.
        records
            Records of all masks found; the lesions come from `as_lesion` of the pending ones.
        log_dir
            Folder of lesions.tsv.
        links
            Name of each dataset in DatasetLinks, from `prepare_dataset`.
        without_mask
            Participants without a mask, who get a row in lesions.tsv.
        n_threads
            Largest number of maps that are computed at the same time.
        """
        self.output_dir = output_dir
        self.provenance = provenance
        self.records = records
        self._record_of = {record.mask.path: record for record in records if record.status == "pending"}
        self.log_dir = log_dir
        self.links = links
        self.without_mask = without_mask
        self._processors = BoundedSemaphore(n_threads)

    def __call__(self, results: Sequence[LesionData]) -> None:
        """Write one batch; if a lesion's maps cannot be written, set its `error` and write the others."""
        records = [self.record(lesion) for lesion in results]
        with ThreadPoolExecutor(RESULTS_AT_ONCE, thread_name_prefix="maps") as pool:
            writes = [
                pool.submit(self._write_lesion, record.mask, lesion)
                for record, lesion in zip(records, results, strict=True)
            ]
            try:
                for record, lesion, write in zip(records, results, writes, strict=True):
                    try:
                        write.result()
                    except (OSError, ValueError) as error:
                        changed = isinstance(error, ChangedMeanwhile)
                        lesion.error = str(error) if changed else f"its maps cannot be written: {error}"
                        log_failure(logger, [lesion.name], lesion.error)
                    record.close(lesion)
            finally:
                # After Ctrl-C, those that wait need not be written.
                pool.shutdown(cancel_futures=True)

    def missing_thresholds(self, record: LesionRecord) -> list[float]:
        """Return the thresholds whose masks of a lesion are missing or incomplete."""
        paths = {
            threshold: self.output_dir / path
            for threshold, path in expected_masks(record.mask, self.provenance).items()
        }
        return [each for each, path in paths.items() if not (path.exists() and sidecar_path(path).exists())]

    def thresholds(self, record: LesionRecord) -> set[float]:
        """Return the thresholds of a lesion's masks on disk."""
        sidecars = Sidecars(self.output_dir, self.provenance).of(record.mask)
        found = {read_threshold(sidecar) for path, sidecar in sidecars.items() if path.name.endswith("_mask.nii.gz")}
        return {threshold for threshold in found if threshold is not None}

    def add_masks(self, record: LesionRecord, images: Mapping[float, nib.Nifti1Image]) -> None:
        """Write masks made from a lesion's t-map on disk, whose sidecar they share, and record the lesion as done.

        Raises
        ------
        OSError, ValueError
            The t-map's sidecar cannot be read, or a mask cannot be written.
        """
        t_map = self.output_dir / map_path(record.mask, self.provenance, stat="t")
        sidecar = read_json_object(sidecar_path(t_map))
        sidecar.pop("Description", None)
        write_sidecars(self._write_masks(record.mask, images, sidecar))
        record.status, record.reason = "done", "only masks of |t| were missing: made from its t-map"
        record.volume_mm3, record.coverage = (
            float(value) if isinstance(value := sidecar.get(key), int | float) else None
            for key in ("LesionVolume", "LesionCoverage")
        )

    def write_null_map(self, record: LesionRecord, image: nib.Nifti1Image, own: Mapping[str, Any]) -> None:
        """Write a lesion's T among its null lesions, with what the sidecar of its z-map says.

        Raises
        ------
        OSError, ValueError
            A sidecar of its maps cannot be read, or a file cannot be written.
        """
        sidecar = read_json_object(sidecar_path(self.output_dir / map_path(record.mask, self.provenance, stat="z")))
        path = self._write_map(null_map_path(record.mask, self.provenance), lambda: image)
        write_sidecars({sidecar_path(path): {**sidecar, "Description": NULL_DESCRIPTION, **own}})
        _record_why_not(self.output_dir / map_path(record.mask, self.provenance, stat="r"), None)

    def remove_null_map(self, record: LesionRecord, why: Mapping[str, Any]) -> None:
        """Remove a lesion's T among its null lesions, and record in its r-map's sidecar why it has none.

        Raises
        ------
        OSError, ValueError
            The sidecar cannot be read or written.
        """
        _remove(self.output_dir / null_map_path(record.mask, self.provenance))
        _record_why_not(self.output_dir / map_path(record.mask, self.provenance, stat="r"), why)

    def record(self, lesion: LesionData) -> LesionRecord:
        """Return the record of a lesion."""
        if not isinstance(lesion.mask, Path):
            raise TypeError(f"{lesion.name} has no file: DerivativesWriter writes maps of masks in a BIDS dataset")
        return self._record_of[lesion.mask]

    def close(self, lesions: Sequence[LesionData]) -> None:
        """Record the outcomes of lesions, mapped or not, in lesions.tsv."""
        for lesion in lesions:
            self.record(lesion).close(lesion)
        try:
            self.write_table()
        except OSError as error:
            # The maps are complete; the table is written again at the end of the run.
            logger.warning("the table of outcomes could not be written: %s", error)

    def write_table(self) -> None:
        """Write lesions.tsv, with one row per mask found, and per participant without one."""
        write_outcomes(self.log_dir / OUTCOMES, self.records, self.without_mask)

    def _write_lesion(self, mask: LesionMask, lesion: LesionData) -> None:
        maps = lesion.results[ANALYSIS]
        with maps.computed_once() as statistics:
            sidecar = describe_maps(mask, lesion, self.provenance, self.links, statistics.n_subjects)
            # The sidecar has the hashes of the files as they are now.
            check_unchanged({**({mask.path: lesion.state} if lesion.state else {}), **lesion.transform_states})
            _remove_stale(mask, sidecar, self.output_dir, self.provenance)
            sidecars = self._write_weights(mask, lesion, sidecar)
            for stat, (key, description) in STATISTICS.items():
                if key in maps:
                    path = self._write_map(map_path(mask, self.provenance, stat=stat), partial(maps.__getitem__, key))
                    sidecars[sidecar_path(path)] = {"Description": description, **sidecar}
            sidecars |= self._write_masks(mask, maps.get("binary_maps", {}), sidecar)
        write_sidecars(sidecars)

    def _write_weights(
        self, mask: LesionMask, lesion: LesionData, sidecar: Mapping[str, Any]
    ) -> dict[Path, dict[str, Any]]:
        """Write a transformed lesion's weights, which pages and groups read; return the sidecar for them."""
        path = lesion_path(self.output_dir / map_path(mask, self.provenance, stat="r"))
        if not lesion.transform:
            # An earlier run may have mapped the lesion from another space.
            _remove(path)
            return {}
        image = lesion.results[ANALYSIS].weights_image(lesion)
        self._write_map(PurePosixPath(path.relative_to(self.output_dir)), lambda: image)
        return {sidecar_path(path): {"Description": WEIGHTS_DESCRIPTION, **sidecar}}

    def _write_masks(
        self, mask: LesionMask, images: Mapping[float, nib.Nifti1Image], sidecar: Mapping[str, Any]
    ) -> dict[Path, dict[str, Any]]:
        """Write masks of |t|, and return their sidecars, which are not written yet."""
        sidecars = {}
        for threshold in images:
            description = f"Voxels where the lesion network map's |t| is above {threshold:g}; 0 where t is undefined"
            relative_path = map_path(mask, self.provenance, stat="t", threshold=threshold)
            path = self._write_map(relative_path, partial(images.__getitem__, threshold))
            own = {"Description": description, "Type": "ROI", "Threshold": threshold}
            sidecars[sidecar_path(path)] = {**own, **sidecar}
        return sidecars

    def _write_map(self, relative_path: PurePosixPath, compute: Callable[[], nib.Nifti1Image]) -> Path:
        path = self.output_dir / relative_path
        # Other lesions are computed while this thread waits for the disk.
        with renamed_when_whole(path, sync=False) as temporary, self._processors:
            save_gzipped(compute(), temporary)
        return path


def _record_why_not(r_map: Path, why: Mapping[str, Any] | None) -> None:
    """Record in an r-map's sidecar why there are no null lesions, or that there are."""
    sidecar = sidecar_path(r_map)
    before = read_json_object(sidecar)
    after = {key: value for key, value in before.items() if key != WITHOUT_NULLS}
    if why is not None:
        after[WITHOUT_NULLS] = dict(why)
    if after != before:
        write_json(sidecar, after)


def _remove_stale(mask: LesionMask, sidecar: Mapping[str, Any], output_dir: Path, provenance: Provenance) -> None:
    """Remove a lesion's maps of other origin, so that a new map is not taken for one of theirs."""
    for path, old in Sidecars(output_dir, provenance).of(mask).items():
        if differences := describe_differences(old, sidecar):
            logger.info("removed %s, made with %s", path.name, differences)
            path.unlink(missing_ok=True)
            old.unlink()
    for table, _ in list_parcels(output_dir / map_path(mask, provenance, stat="r")):
        if differ(read_sidecar_of(table), sidecar, DECIDING):
            logger.info("removed %s, made from other maps", table.name)
            _remove(table)


def _remove(path: Path) -> None:
    """Remove an image or a table, its sidecar first, without which it counts as incomplete."""
    sidecar_path(path).unlink(missing_ok=True)
    path.unlink(missing_ok=True)
