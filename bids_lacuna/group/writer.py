"""Files of the group level: maps, a similarity matrix and a table, each with a sidecar."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from bids_lacuna._version import __version__
from bids_lacuna.derivatives import FIGURES, GROUP_DICTIONARY, GROUP_PAGE, GROUP_TABLE, SEED, number_label
from bids_lacuna.files import read_json_object, read_table, renamed_when_whole, write_json, write_table
from bids_lacuna.group.cohort import IDENTITY_COLUMNS, MAPS_NEEDED, GroupLesion, LeftOut, describe_settings
from bids_lacuna.group.sums import CLUSTERING, OUTLIER_RULE, GroupSums
from bids_lacuna.images import open_image, save_gzipped
from bids_lacuna.lesion import ONE_SIDED
from bids_lacuna.provenance import Provenance
from bids_lacuna.quality import FAR_MM, LOW_COVERAGE, MANY_PIECES, MANY_SINGLE, VOLUMES_ML
from bids_lacuna.text import percent

Array = np.ndarray

INTERPRETATION = (
    "Descriptive: averages and overlaps of lesion network maps resemble a property of the connectome, whatever the "
    "symptom; only a contrast with other lesions allows an inference"
)
"""Note in every sidecar of a group; each picture has a short form."""

# fmt: off
COLUMNS: dict[str, dict[str, Any]] = {
    **IDENTITY_COLUMNS,
    "label": {"Description": "Label of the lesion's mask"},
    "volume": {"Description": "Lesion volume on the mask's own grid", "Units": "mm^3"},
    "coverage": {"Description": "Fraction of the lesion's volume that the connectome covers"},
    "side": {
        "Description": f"Hemisphere with at least {percent(ONE_SIDED)} of the lesion's volume, without voxels at x = "
        "0",
        "Levels": {"left": "x < 0", "right": "x > 0", "both": "Neither has that much"},
    },
    "look_at": {
        "Description": "What a person should look at in the lesion's mask, in words: less than "
        f"{percent(LOW_COVERAGE)} of it covered by the connectome; a volume below "
        f"{VOLUMES_ML[0]:g} or above {VOLUMES_ML[1]:g} mL; more than {MANY_PIECES} pieces; {MANY_SINGLE} or more "
        f"single voxels, or one more than {FAR_MM:g} mm from the rest; its centre of gravity outside the brain; the "
        "voxels of another participant's lesion, at the same place, mirrored or shifted. No lesion is left out for it"
    },
    "n_connectome_subjects": {"Description": "People of the connectome that the maps were made with"},
    "peak_r": {"Description": "Value of the r-map that is farthest from 0, inside or outside the lesion"},
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
"""Columns of the table with their entries in the data dictionary."""


@dataclass(frozen=True)
class GroupSummary:
    """Results of the group level. All of them are on disk: group_lesions.json lists the files and has the rest."""

    maps: dict[str, Path]
    """Paths by name: `lesions_n`, `lesions_share`; `mean_r`, `mean_z`, `mean_n`; `network_n`, and for each threshold
    `networkT7above_share` and `networkT7below_share`."""
    table: Path
    """group_lesions.tsv, with one row per lesion and its data dictionary in the same folder."""
    similarity: Path
    """Matrix of spatial correlations between r-maps, in the table's order."""
    order: tuple[str, ...]
    """Names of the lesions in the order of the clustering."""
    outliers: tuple[str, ...]
    """Names of the outliers by `OUTLIER_RULE`."""
    left_out: tuple[LeftOut, ...]
    """Lesions of the dataset that are not in the group."""
    warnings: tuple[str, ...]
    """Sentences for the user."""
    relations: Mapping[str, Mapping[str, Mapping[str, Any]]]
    """Relation of each lesion to target networks, by the names of lesions and targets, as in sidecars."""


class GroupWriter:
    """Writes a group's files, each with a sidecar, to a folder in the dataset of the participants' maps."""

    def __init__(
        self,
        provenance: Provenance,
        lesions: Sequence[GroupLesion],
        maps_dir: Path,
        folder: Path,
        links: Mapping[str, str],
    ) -> None:
        self.provenance = provenance
        self.lesions = lesions
        self.maps_dir = maps_dir
        self.folder = folder
        self.links = links
        self._earlier: tuple[list[dict[str, str]], dict[str, Any]] | None = None

    def remove_earlier(self) -> None:
        """Remove the files of an earlier group in the same connectome, so that no files of two groups are mixed.

        The page stays until the new table is known: if that is the same, the page is still right.
        """
        with suppress(OSError, ValueError):
            self._earlier = (
                read_table(self.folder / GROUP_TABLE),
                read_json_object(self.folder / GROUP_DICTIONARY),
            )
        for path in self.folder.glob("space-*_stat-*.json"):
            try:
                sidecar = read_json_object(path)
            except ValueError:
                continue
            is_of_group = sidecar.get("Descriptive") is True or "NumberOfNullSets" in sidecar
            if is_of_group and sidecar.get("ConnectomeName") == self.provenance.connectome_name:
                for ending in (".nii.gz", ".tsv", ".json"):
                    path.with_name(path.stem + ending).unlink(missing_ok=True)
        for name in (GROUP_TABLE, GROUP_DICTIONARY):
            (self.folder / name).unlink(missing_ok=True)

    def _remove_page(self) -> None:
        for path in (self.folder / GROUP_PAGE, *(self.folder / FIGURES).glob("group_*")):
            path.unlink(missing_ok=True)

    def write_maps(self, sums: GroupSums, of_mean: Mapping[str, Any]) -> dict[str, Path]:
        """Write all maps and return their paths as in `GroupSummary`.

        Parameters
        ----------
        of_mean
            More for the sidecar of the mean z-map.
        """
        n = len(self.lesions)
        masks = [
            f"bids:{self.links[lesion.mask.dataset]}:"
            f"{lesion.mask.path.relative_to(lesion.mask.dataset_path).as_posix()}"
            for lesion in self.lesions
        ]
        counted = (
            "each by the fraction of the voxel that it covers"
            if self.provenance.options.weighting == "volume"
            else "each where it covers at least half of the voxel"
        )
        paths = {
            "lesions_n": self._write_map("n", "lesions", sums.lesions, f"Number of lesions, {counted}", masks),
            "lesions_share": self._write_map(
                "share", "lesions", sums.lesions / n, f"Fraction of the group's lesions, {counted}", masks
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
                **(of_mean if stat == "z" else {}),
            )
        if self.provenance.options.t_thresholds:
            paths["network_n"] = self._write_map(
                "n", "network", sums.n_t, "Number of lesions whose t-maps are defined", self._uris("t")
            )
        for threshold in self.provenance.options.t_thresholds:
            for word, counts, sign in (("above", sums.above, ""), ("below", sums.below, "-")):
                with np.errstate(invalid="ignore"):
                    share = counts[threshold] / sums.n_t
                what = f"networkT{number_label(threshold)}{word}"
                paths[f"{what}_share"] = self._write_map(
                    "share",
                    what,
                    share,
                    f"Fraction of the lesions whose t is {word} {sign}{threshold:g}, of those where it is defined",
                    self._uris("t"),
                    Threshold=float(f"{sign}{threshold}"),
                )
        return paths

    def write_similarity(self, similarity: Array, n_voxels: int) -> Path:
        """Write the similarity matrix, with the lesions' names as header and first column."""
        path = self.folder / f"{self._stem('r', 'similarity')}_relmat.tsv"
        names = [lesion.name for lesion in self.lesions]
        rows = ([name, *(f"{r:.6f}" for r in row)] for name, row in zip(names, similarity, strict=True))
        write_table(path, ["lesion", *names], rows)
        description = "Spatial Pearson correlations of the lesions' r-maps, over the voxels that all of them have"
        self._write_sidecar(path, description, self._uris("r"), NumberOfVoxels=n_voxels)
        return path

    def write_table(
        self, rows: Sequence[Mapping[str, Any]], more: Mapping[str, Mapping[str, Any]], summary: GroupSummary
    ) -> None:
        """Write group_lesions.tsv, and then its data dictionary, which also lists the other files.

        Before that, the page of an earlier group is removed, unless its table and its dictionary were the same.

        Parameters
        ----------
        rows
            A row for each lesion.
        more
            Columns beside `COLUMNS`, with their entries in the data dictionary.
        """
        columns = {**COLUMNS, **more}
        cells = [{name: format_cell(row[name]) for name in columns} for row in rows]
        dictionary = self._describe_table(columns, summary)
        if self._earlier != (cells, json.loads(json.dumps(dictionary))):
            self._remove_page()
        write_table(summary.table, list(columns), (list(row.values()) for row in cells))
        write_json(self.folder / GROUP_DICTIONARY, dictionary)

    def _describe_table(self, columns: Mapping[str, Any], summary: GroupSummary) -> dict[str, Any]:
        return self._sidecar(
            "The lesions of the group, with what was found for each",
            self._uris(*MAPS_NEEDED),
            **columns,
            **({"Seeds": True} if all(SEED in lesion.sidecar for lesion in self.lesions) else {}),
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
        return f"space-{self.provenance.space}_stat-{stat}_desc-{self.provenance.connectome_name}{what}"

    def _uris(self, *stats: str) -> list[str]:
        return [f"bids::{lesion.maps[stat]}" for lesion in self.lesions for stat in stats]

    def _write_map(
        self, stat: str, what: str, values: Array, description: str, sources: Sequence[str], **more: Any
    ) -> Path:
        path = self.folder / f"{self._stem(stat, what)}_statmap.nii.gz"
        dtype = np.int32 if values.dtype.kind == "i" else np.float32
        save_like(self.maps_dir / self.lesions[0].maps["r"], values.astype(dtype), path)
        self._write_sidecar(path, description, sources, **more)
        return path

    def _write_sidecar(self, path: Path, description: str, sources: Sequence[str], **more: Any) -> None:
        content = self._sidecar(description, sources, **more)
        write_json(path.with_name(path.name.partition(".")[0] + ".json"), content)

    def _sidecar(self, description: str, sources: Sequence[str], **more: Any) -> dict[str, Any]:
        return {
            "Description": description,
            "Descriptive": True,
            "Interpretation": INTERPRETATION,
            "NumberOfLesions": len(self.lesions),
            **describe_settings(self.provenance),
            "SoftwareVersion": __version__,
            **more,
            "Sources": list(sources),
        }


def save_like(map_path: Path, values: Array, path: Path) -> None:
    """Save values as a map on the grid and in the space of another map.

    Parameters
    ----------
    map_path
        Path of the other map.
    values : shape (x, y, z)
        Values in the dtype of the file.
    path
        Path of the new map.
    """
    like = open_image(map_path, "map")
    # The header provides the codes of the space; its dtype is replaced, which nibabel would otherwise keep.
    image = nib.Nifti1Image(values, like.affine, like.header, dtype=values.dtype)
    with renamed_when_whole(path) as temporary:
        save_gzipped(image, temporary)


def format_cell(value: object) -> str:
    """Format a value as a cell of a BIDS table."""
    if isinstance(value, float):
        return f"{value:.6g}" if np.isfinite(value) else "n/a"
    return str(value)
