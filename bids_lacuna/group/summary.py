"""The group level: what participants' maps have in common, read from disk one lesion after another.

Everything here describes. An average of lesion network maps resembles the connectome itself, whatever the lesions'
symptoms; each sidecar says so.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform
from threadpoolctl import threadpool_limits

from bids_lacuna._version import __version__
from bids_lacuna.derivatives.names import number_label
from bids_lacuna.files import read_json_object, renamed_when_whole, write_json, write_table
from bids_lacuna.grid import Grid
from bids_lacuna.group.cohort import STATISTICS, Group, GroupLesion, LeftOut, Origin, UnfitLesions, refuse
from bids_lacuna.images import open_image, read_volume
from bids_lacuna.lesion import LOW_COVERAGE, ONE_SIDED, LesionData, load_lesion, name_side
from bids_lacuna.runtime.progress import Progress
from bids_lacuna.weights import LesionWeights

logger = logging.getLogger(__name__)

Array = np.ndarray

INTERPRETATION = (
    "Descriptive: averages and overlaps of lesion network maps resemble a property of the connectome, whatever the "
    "symptom; only a contrast with other lesions allows an inference"
)
"""What every sidecar says of a group's maps; every picture says so in short."""

OUTLIER_RULE = (
    "The Fisher z of the r-map's spatial correlation with the group mean is below Q1 - 1.5 x IQR of the group's "
    "(Tukey's lower fence)"
)
"""In words, what an outlier is."""

CLUSTERING = "Average linkage of the distances 1 - r"
"""In words, what orders the lesions in the similarity matrix."""

IN_COMMON = 0.9
"""Below this share of the voxels that any map has, a warning tells how many all maps have."""

BLOCK_BYTES = 2**30
"""Of r-maps that are held in memory at a time while all are correlated with each other."""

PASSING = 16
"""Maps that pass by a block together: one at a time would read the whole block for each."""

TABLE = "group_lesions.tsv"

DICTIONARY = "group_lesions.json"
"""Of the table; it also names what else there is."""

PAGE = "group.html"

PICTURES = "figures"
"""The folder of the page's pictures; their names begin with group_."""

# fmt: off
COLUMNS: dict[str, dict[str, Any]] = {
    "lesion": {"Description": "Entities of the lesion's mask, without space and resolution"},
    "participant_id": {"Description": "Participant"},
    "session_id": {"Description": "Session; n/a where the dataset has none"},
    "label": {"Description": "Label of the lesion's mask"},
    "volume": {"Description": "Lesion volume on the mask's own grid", "Units": "mm^3"},
    "coverage": {"Description": "Share of the lesion's volume that the connectome covers"},
    "side": {
        "Description": f"Hemisphere with at least {ONE_SIDED:.0%} of the lesion's volume, without voxels at x = 0",
        "Levels": {"left": "x < 0", "right": "x > 0", "both": "Neither has that much"},
    },
    "n_connectome_subjects": {"Description": "People of the connectome that the maps were made with"},
    "peak_r": {"Description": "Value of the r-map that is farthest from 0; as a rule within the lesion"},
    **{f"peak_r_{axis}": {"Description": f"{axis} of that voxel's centre", "Units": "mm"} for axis in "xyz"},
    "peak_t": {"Description": "Value of the t-map that is farthest from 0; it grows with the connectome's size"},
    **{f"peak_t_{axis}": {"Description": f"{axis} of that voxel's centre", "Units": "mm"} for axis in "xyz"},
    "r_with_group_mean": {
        "Description": "Spatial correlation of the r-map with the mean of all r-maps, this one included, over the "
        "voxels that all of them have"
    },
    "cluster_position": {"Description": f"Place in the clustering's order, from 1. {CLUSTERING}"},
    "outlier": {"Description": OUTLIER_RULE, "Levels": {"yes": "Outlier", "no": "No outlier"}},
}
# fmt: on
"""The table's columns, and its data dictionary."""


@dataclass(frozen=True)
class GroupSummary:
    """What the group level wrote. All of it is on disk: group_lesions.json names the files and has the rest."""

    maps: dict[str, Path]
    """`lesions_n`, `lesions_share`; `mean_r`, `mean_z`, `mean_n`; `network_n`, and for each threshold
    `networkT7above_share` and `networkT7below_share`."""
    table: Path
    """group_lesions.tsv, with its data dictionary beside it: a row for each lesion."""
    similarity: Path
    """Spatial correlations of the r-maps, lesion by lesion, in the table's order."""
    order: tuple[str, ...]
    """The lesions' names in the order of the clustering."""
    outliers: tuple[str, ...]
    """The names of those that `OUTLIER_RULE` finds."""
    left_out: tuple[LeftOut, ...]
    """Lesions of the dataset that are not in the group."""
    warnings: tuple[str, ...]
    """Sentences for the user."""


def summarize_group(
    group: Group,
    maps_dir: Path,
    links: Mapping[str, str],
    *,
    ignored: Collection[str] = (),
    block_bytes: int = BLOCK_BYTES,
    n_threads: int = 1,
    show_progress: bool = True,
) -> GroupSummary:
    """Describe a group of lesions, and write the result beside the participants' maps.

    The maps are read one lesion after another; then the r-maps again, in blocks, to correlate all with each other.

    Parameters
    ----------
    group
        As from `choose_group`.
    maps_dir
        Root of the dataset with the participants' maps.
    links
        The name in DatasetLinks of each dataset: as from `prepare_dataset`.
    ignored
        Kinds of reasons why a lesion is left out, and not the group refused.
    block_bytes
        Of r-maps in memory at a time.
    n_threads
        Threads of the correlations.
    show_progress
        Whether there is a bar where stderr is a terminal.

    Raises
    ------
    UnfitLesions
        A map cannot be used, and that is not ignored; or the maps have no voxels in common.
    OSError
        The output cannot be written.
    """
    sums = _Sums(group.origin)
    lesions: list[GroupLesion] = []
    rows: list[dict[str, Any]] = []
    damaged: list[LeftOut] = []
    with Progress(len(group.lesions), "reading maps", "lesion", shown=show_progress) as progress:
        for lesion in group.lesions:
            try:
                rows.append(sums.add(lesion, maps_dir))
                lesions.append(lesion)
            except (OSError, ValueError) as error:
                damaged.append(LeftOut(lesion.name, "missing", str(error)))
            progress.update()
    left_out = (*group.left_out, *damaged)
    refuse(left_out, len(lesions), ignored)

    common = sums.mean["r"].n == len(lesions)
    with threadpool_limits(n_threads, user_api="blas"):
        similarity, with_mean = correlate_maps(
            [maps_dir / lesion.maps["r"] for lesion in lesions], common, block_bytes, show_progress
        )
    order = cluster(similarity)
    outliers = find_outliers(with_mean)
    for number, row in enumerate(rows):
        row |= {
            "r_with_group_mean": with_mean[number],
            "cluster_position": 1 + int(np.flatnonzero(order == number)[0]),
            "outlier": "yes" if outliers[number] else "no",
        }
    warnings = _warn(group, lesions, common, sums.mean["r"].n > 0)
    writer = _GroupWriter(group.origin, lesions, maps_dir, links)
    writer.remove_earlier()
    maps = writer.write_maps(sums)
    names = [lesion.name for lesion in lesions]
    ordered = tuple(names[number] for number in order)
    outlying = tuple(name for name, outlier in zip(names, outliers, strict=True) if outlier)
    matrix = writer.write_similarity(similarity, int(common.sum()))
    table = maps_dir / TABLE
    summary = GroupSummary(maps, table, matrix, ordered, outlying, left_out, warnings)
    writer.write_table(rows, summary)
    return summary


@dataclass
class _Mean:
    """The mean over lesions of maps with undefined voxels."""

    total: Array
    n: Array

    def add(self, values: Array) -> None:
        defined = np.isfinite(values)
        self.total += np.where(defined, values, 0)
        self.n += defined

    @property
    def values(self) -> Array:
        with np.errstate(invalid="ignore"):
            return (self.total / self.n).astype(np.float32)


class _Sums:
    """What is added up over the lesions: a few volumes, however many lesions there are."""

    def __init__(self, origin: Origin) -> None:
        self.origin = origin
        self.grid = origin.grid
        self.lesions = np.zeros(origin.shape)
        # As files have it, x runs fastest.
        self.mean = {
            stat: _Mean(np.zeros(origin.shape, order="F"), np.zeros(origin.shape, np.int32, order="F"))
            for stat in ("r", "z")
        }
        self.n_t = np.zeros(origin.shape, np.int32, order="F")
        self.above, self.below = (
            {threshold: np.zeros(origin.shape, np.int32, order="F") for threshold in origin.thresholds}
            for _ in range(2)
        )

    def add(self, lesion: GroupLesion, maps_dir: Path) -> dict[str, Any]:
        """Add one lesion, and describe it in a row of the table; nothing is added where a file is damaged."""
        mask = LesionData.from_nifti(lesion.mask.path)
        weights = load_lesion(
            mask, self.grid, weighting=self.origin.weighting, threshold=self.origin.lesion_threshold
        ).weights
        assert weights is not None  # noqa: S101  for the type checker: a loaded lesion has them
        volumes = {stat: read_map(maps_dir / path, self.grid) for stat, path in lesion.maps.items()}
        if not np.nanmin(volumes["r"], initial=np.inf) < np.nanmax(volumes["r"], initial=-np.inf):
            raise ValueError(
                f"{lesion.maps['r'].name} has no two voxels that differ: map the lesion again (--overwrite)"
            )

        # A lesion's voxels are all different ones.
        self.lesions.reshape(-1)[weights.voxels] += weights.shares
        for stat, mean in self.mean.items():
            mean.add(volumes[stat])
        self.n_t += np.isfinite(volumes["t"])
        for threshold in self.origin.thresholds:
            self.above[threshold] += volumes["t"] > threshold
            self.below[threshold] += volumes["t"] < -threshold
        return {
            "lesion": lesion.name,
            "participant_id": f"sub-{lesion.mask.entities['sub']}",
            "session_id": f"ses-{lesion.mask.entities['ses']}" if "ses" in lesion.mask.entities else "n/a",
            "label": lesion.mask.entities.get("label", "n/a"),
            "volume": float(lesion.sidecar["LesionVolume"]),
            "coverage": float(lesion.sidecar["LesionCoverage"]),
            "side": side(weights, self.grid),
            "n_connectome_subjects": lesion.sidecar["NumberOfConnectomeSubjects"],
            **_peak("r", volumes["r"], self.grid),
            **_peak("t", volumes["t"], self.grid),
        }


def read_map(path: Path, grid: Grid) -> Array:
    """Read one map, and its file to the end, where gzip has its checksum.

    Returns
    -------
    shape (x, y, z), float32
        NaN where it is undefined.

    Raises
    ------
    OSError
        The file is missing or damaged.
    ValueError
        It lies on another grid.
    """
    image = open_image(path, "map")
    if image.shape != grid.shape or not np.allclose(image.affine, grid.affine, rtol=0, atol=1e-3):
        raise ValueError(f"{path.name} lies on another grid than the group's, {grid.place}")
    return read_volume(image, "map").astype(np.float32, copy=False)


def side(weights: LesionWeights, grid: Grid) -> str:
    """Tell the hemisphere that a lesion is in: left, right or both, by world coordinates."""
    voxels = np.stack(np.unravel_index(weights.voxels, grid.shape), axis=1)
    x = nib.affines.apply_affine(grid.affine, voxels)[:, 0].round(3)
    return name_side(weights.shares[x < 0].sum(), weights.shares[x > 0].sum())


def _peak(stat: str, values: Array, grid: Grid) -> dict[str, float]:
    """Find the value that is farthest from 0, and where it is; NaN where none is defined."""
    names = [f"peak_{stat}", *(f"peak_{stat}_{axis}" for axis in "xyz")]
    if not np.isfinite(values).any():
        return dict.fromkeys(names, np.nan)
    voxel = np.unravel_index(np.nanargmax(np.abs(values)), values.shape)
    place = nib.affines.apply_affine(grid.affine, voxel)
    return dict(zip(names, [float(values[voxel]), *place.tolist()], strict=True))


def correlate_maps(
    paths: Sequence[Path], common: Array, block_bytes: int = BLOCK_BYTES, show_progress: bool = True
) -> tuple[Array, Array]:
    """Correlate maps with each other, and with their mean, over the voxels that all of them have.

    A block of maps is held in memory, and all later ones pass by; each block reads the maps after it once.

    Parameters
    ----------
    paths
        Of n maps.
    common : shape (x, y, z), boolean
        The voxels.
    block_bytes
        Size of a block.
    show_progress
        As for `summarize_group`.

    Returns
    -------
    similarity : shape (n, n), float64
        Pearson r; exactly 1 on the diagonal.
    with_mean : shape (n,)
        Pearson r with the mean of all maps.

    Raises
    ------
    UnfitLesions
        There are not two voxels, or a map does not vary over them.
    """
    n = len(paths)
    similarity, norms = np.ones((n, n)), np.ones(n)
    blocks = list(_slices(0, n, max(1, block_bytes // (4 * max(1, int(common.sum()))))))
    n_reads = sum(n - block.start for block in blocks)
    with Progress(n_reads, "correlating maps", "map", shown=show_progress) as progress:
        for block in blocks:
            maps, norms[block] = _standardize(paths[block], common, progress)
            similarity[block, block] = maps @ maps.T
            for later in _slices(block.stop, n, PASSING):
                similarity[block, later] = maps @ _standardize(paths[later], common, progress)[0].T
                similarity[later, block] = similarity[block, later].T
            # Before the next block is in memory.
            del maps
    np.fill_diagonal(similarity, 1)
    np.clip(similarity, -1, 1, out=similarity)
    # Of standardized maps u with norms s, the mean is Σ s u / n, so that u·mean needs no map but the u·u.
    with_mean = similarity @ norms / np.sqrt(norms @ similarity @ norms)
    return similarity, np.clip(with_mean, -1, 1)


def _slices(start: int, stop: int, size: int) -> Iterator[slice]:
    for first in range(start, stop, size):
        yield slice(first, min(first + size, stop))


def _standardize(paths: Sequence[Path], common: Array, progress: Progress) -> tuple[Array, Array]:
    """Read maps, (n, n_voxels) float32, each with mean 0 and norm 1, and the norms that they had."""
    maps = np.empty((len(paths), int(common.sum())), np.float32)
    norms = np.empty(len(paths))
    for row, path in enumerate(paths):
        values = read_volume(open_image(path, "map"), "map")[common].astype(float)
        values -= values.mean() if len(values) else 0
        norms[row] = np.linalg.norm(values)
        if not norms[row]:
            raise UnfitLesions(
                f"all maps together have {len(values)} voxels in common, over which {path.name} does not vary: "
                "leave out the lesion with the fewest voxels (--participant-label)"
            )
        maps[row] = values / norms[row]
        progress.update()
    return maps, norms


def cluster(similarity: Array) -> Array:
    """Order lesions so that similar ones are neighbours: shape (n,), the numbers of rows of the matrix."""
    if len(similarity) == 1:
        return np.zeros(1, dtype=int)
    return leaves_list(linkage(squareform(1 - similarity, checks=False), "average"))


def find_outliers(with_mean: Array) -> Array:
    """Apply `OUTLIER_RULE`: shape (n,), boolean."""
    fisher_z = np.arctanh(np.minimum(with_mean, 1 - 1e-6))
    first, third = np.percentile(fisher_z, [25, 75])
    return fisher_z < first - 1.5 * (third - first)


def _warn(group: Group, lesions: Sequence[GroupLesion], common: Array, any_map: Array) -> tuple[str, ...]:
    """Say what the user should know about the group, and log it."""
    warnings = []
    low = [lesion.name for lesion in lesions if lesion.sidecar["LesionCoverage"] < LOW_COVERAGE]
    if low:
        warnings.append(
            f"lesions of which the connectome covers less than {LOW_COVERAGE:.0%}, so that their maps describe that "
            f"part only: {', '.join(low)}"
        )
    several = [sub for sub, n in Counter(lesion.mask.entities["sub"] for lesion in lesions).items() if n > 1]
    if several:
        warnings.append(
            "participants with several lesions, each of which counts as one: "
            f"{', '.join(f'sub-{sub}' for sub in several)}"
        )
    if common.sum() < IN_COMMON * any_map.sum():
        warnings.append(
            f"correlations between maps are over {common.sum()} voxels, of {any_map.sum()} that any map has: some "
            "map is undefined elsewhere"
        )
    versions = sorted({str(lesion.sidecar.get("SoftwareVersion")) for lesion in lesions})
    if len(versions) > 1:
        warnings.append(f"the maps were made by several versions of the program: {', '.join(versions)}")
    if group.not_asked:
        warnings.append(
            f"{len(group.not_asked)} lesions with maps, such as {group.not_asked[0].name}, are not in the group: "
            "their masks are not among those asked for"
        )
    for warning in warnings:
        logger.warning("%s", warning)
    return tuple(warnings)


class _GroupWriter:
    """Writes a group's files at the root of the participants' maps, each with a sidecar."""

    def __init__(
        self, origin: Origin, lesions: Sequence[GroupLesion], maps_dir: Path, links: Mapping[str, str]
    ) -> None:
        self.origin = origin
        self.lesions = lesions
        self.maps_dir = maps_dir
        self.links = links

    def remove_earlier(self) -> None:
        """Remove what an earlier run said of another group in the same connectome, so that nothing is mixed."""
        for path in self.maps_dir.glob("space-*_stat-*.json"):
            try:
                sidecar = read_json_object(path)
            except ValueError:
                continue
            if sidecar.get("Descriptive") is True and sidecar.get("ConnectomeName") == self.origin.connectome_name:
                for ending in (".nii.gz", ".tsv", ".json"):
                    path.with_name(path.stem + ending).unlink(missing_ok=True)
        pictures = (self.maps_dir / PICTURES).glob("group_*")
        for path in (*(self.maps_dir / name for name in (TABLE, DICTIONARY, PAGE)), *pictures):
            path.unlink(missing_ok=True)

    def write_maps(self, sums: _Sums) -> dict[str, Path]:
        """Write all maps, and tell their paths as `GroupSummary.maps` has them."""
        n = len(self.lesions)
        masks = [
            f"bids:{self.links[lesion.mask.dataset]}:"
            f"{lesion.mask.path.relative_to(lesion.mask.dataset_path).as_posix()}"
            for lesion in self.lesions
        ]
        counted = (
            "each by the share of the voxel that it covers"
            if self.origin.weighting == "volume"
            else "each where it covers at least half of the voxel"
        )
        paths = {
            "lesions_n": self._write_map("n", "lesions", sums.lesions, f"Number of lesions, {counted}", masks),
            "lesions_share": self._write_map(
                "share", "lesions", sums.lesions / n, f"Share of the group's lesions, {counted}", masks
            ),
            "mean_n": self._write_map(
                "n",
                "mean",
                sums.mean["r"].n,
                "Number of lesions whose r- and z-maps are defined",
                self._uris("r", "z"),
            ),
        }
        for stat, name in {"r": "r", "z": "Fisher z"}.items():
            paths[f"mean_{stat}"] = self._write_map(
                stat,
                "mean",
                sums.mean[stat].values,
                f"Mean of the lesion network maps' {name} over the lesions where it is defined",
                self._uris(stat),
            )
        if self.origin.thresholds:
            paths["network_n"] = self._write_map(
                "n", "network", sums.n_t, "Number of lesions whose t-maps are defined", self._uris("t")
            )
        for threshold in self.origin.thresholds:
            for word, counts, sign in (("above", sums.above, ""), ("below", sums.below, "-")):
                with np.errstate(invalid="ignore"):
                    share = counts[threshold] / sums.n_t
                what = f"networkT{number_label(threshold)}{word}"
                paths[f"{what}_share"] = self._write_map(
                    "share",
                    what,
                    share,
                    f"Share of the lesions whose t is {word} {sign}{threshold:g}, of those where it is defined",
                    self._uris("t"),
                    Threshold=float(f"{sign}{threshold}"),
                )
        return paths

    def write_similarity(self, similarity: Array, n_voxels: int) -> Path:
        """Write the matrix with the lesions' names at both edges."""
        path = self.maps_dir / f"{self._stem('r', 'similarity')}_relmat.tsv"
        names = [lesion.name for lesion in self.lesions]
        rows = ([name, *(f"{r:.6f}" for r in row)] for name, row in zip(names, similarity, strict=True))
        write_table(path, ["lesion", *names], rows)
        description = "Spatial Pearson correlations of the lesions' r-maps, over the voxels that all of them have"
        self._write_sidecar(path, description, self._uris("r"), NumberOfVoxels=n_voxels)
        return path

    def write_table(self, rows: Sequence[Mapping[str, Any]], summary: GroupSummary) -> None:
        """Write group_lesions.tsv, and then its data dictionary, which also says what else there is."""
        write_table(summary.table, list(COLUMNS), ([_cell(row[name]) for name in COLUMNS] for row in rows))
        self._write_sidecar(
            summary.table,
            "The lesions of the group, with what was found for each",
            self._uris(*STATISTICS),
            **COLUMNS,
            Maps={key: path.name for key, path in summary.maps.items()},
            SimilarityMatrix=summary.similarity.name,
            Clustering=CLUSTERING,
            ClusteringOrder=list(summary.order),
            OutlierRule=OUTLIER_RULE,
            Outliers=list(summary.outliers),
            LeftOut=[
                {"Lesion": lesion.name, "Kind": lesion.kind, "Reason": lesion.reason} for lesion in summary.left_out
            ],
            Warnings=list(summary.warnings),
        )

    def _stem(self, stat: str, what: str) -> str:
        return f"space-{self.origin.space}_stat-{stat}_desc-{self.origin.connectome_name}{what}"

    def _uris(self, *stats: str) -> list[str]:
        return [f"bids::{lesion.maps[stat]}" for lesion in self.lesions for stat in stats]

    def _write_map(
        self, stat: str, what: str, values: Array, description: str, sources: Sequence[str], **more: Any
    ) -> Path:
        path = self.maps_dir / f"{self._stem(stat, what)}_statmap.nii.gz"
        like = open_image(self.maps_dir / self.lesions[0].maps["r"], "map")
        # The header has the codes of the space; not the type, which nibabel keeps unless it is told.
        dtype = np.int32 if values.dtype.kind == "i" else np.float32
        image = nib.Nifti1Image(values.astype(dtype), like.affine, like.header, dtype=dtype)
        with renamed_when_whole(path) as temporary:
            nib.save(image, temporary)
        self._write_sidecar(path, description, sources, **more)
        return path

    def _write_sidecar(self, path: Path, description: str, sources: Sequence[str], **more: Any) -> None:
        content = {
            "Description": description,
            "Descriptive": True,
            "Interpretation": INTERPRETATION,
            "NumberOfLesions": len(self.lesions),
            "SpatialReference": self.origin.space,
            "ConnectomeName": self.origin.connectome_name,
            "ConnectomeHash": self.origin.connectome_hash,
            "LesionWeighting": self.origin.weighting,
            "LesionThreshold": self.origin.lesion_threshold,
            "SoftwareVersion": __version__,
            **more,
            "Sources": list(sources),
        }
        write_json(path.with_name(path.name.partition(".")[0] + ".json"), content)


def _cell(value: object) -> str:
    """Write a value as BIDS wants it in a table."""
    if isinstance(value, float):
        return f"{value:.6g}" if np.isfinite(value) else "n/a"
    return str(value)
