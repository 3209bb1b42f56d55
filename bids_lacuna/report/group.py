"""A group's page, made from the files on disk: its table, maps and matrix, and the lesion masks."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from bids_lacuna.citations import references
from bids_lacuna.derivatives import (
    GROUP_DICTIONARY,
    GROUP_PAGE,
    GROUP_TABLE,
    OUTCOMES,
    Outcome,
    Run,
    group_folder,
    read_outcomes,
    sidecar_path,
)
from bids_lacuna.derivatives.names import PARCELS
from bids_lacuna.files import read_json_object, read_table
from bids_lacuna.report.contrast import link_tests, write_test_reports
from bids_lacuna.report.group_drawing import GroupDrawing, Row, describe_range
from bids_lacuna.report.maps_on_disk import MappedLesion, page_anchor, read_links, read_mapped_lesion, runs_of_maps
from bids_lacuna.report.methods import (
    combine,
    describe_chance_methods,
    describe_group_methods,
    describe_target_methods,
)
from bids_lacuna.report.nulls import find_chance_maps
from bids_lacuna.report.pages import write_page
from bids_lacuna.report.similarity import ShownSimilarity, read_similarity


def write_group_report(output_dir: Path, name: str | None = None) -> list[str]:
    """Write a group's page and those of its tests, with their pictures, from the files on disk.

    Parameters
    ----------
    output_dir
        Root of the dataset with the participants' maps.
    name
        Name of the group, whose folder has the page; None for the group without a name, in the root.

    Returns
    -------
    list of str
        A sentence for each picture that could not be drawn; the page has them, too.

    Raises
    ------
    OSError, ValueError, KeyError
        The group's table or its dictionary is missing or damaged.
    """
    folder = group_folder(output_dir, name)
    group = read_json_object(folder / GROUP_DICTIONARY)
    lesions = _find_lesions(output_dir, group)
    cells_of_rows = read_table(folder / GROUP_TABLE)
    rows = [
        _describe_row(output_dir, folder, cells, lesion) for cells, lesion in zip(cells_of_rows, lesions, strict=True)
    ]
    drawing = GroupDrawing(folder, group, rows)
    maps = drawing.draw_maps()
    similarity, distributions = drawing.draw_similarity(), drawing.draw_distributions()
    drawing.draw_tiles(lesions)
    runs = _find_runs(lesions, read_outcomes(output_dir))
    of_mean = _compare_mean(folder / group["Maps"]["mean_z"])
    targets = _describe_targets(group, cells_of_rows)
    methods = combine(runs.values())
    if methods:
        version = str(group["SoftwareVersion"])
        paragraphs = [
            methods.rstrip(),
            describe_group_methods(len(rows), drawing.thresholds, version, of_mean, drawing.kind),
        ]
        if targets:
            paragraphs.append(describe_target_methods({each["name"]: each["file"] for each in targets}, drawing.kind))
        if chance := find_chance_maps(folder, group):
            paragraphs.append(describe_chance_methods(read_json_object(sidecar_path(chance["effect"]))))
        methods = "\n\n".join(paragraphs)
    write_page(
        folder / GROUP_PAGE,
        "group.html.jinja",
        written=f"{datetime.now():%Y-%m-%d %H:%M}",
        group=group,
        kind=drawing.kind,
        n_participants=len({row.participant for row in rows}),
        rows=rows,
        sides=Counter(row.side for row in rows).most_common(),
        outliers=[row for row in rows if row.is_outlier],
        left_out=[
            (each, _link(output_dir / f"{each['Lesion'].partition('_')[0]}.html", folder))
            for each in group["LeftOut"]
        ],
        tests=link_tests(folder),
        maps=maps,
        similarity=similarity,
        of_mean=of_mean,
        targets=targets,
        distributions=distributions,
        problems=drawing.problems,
        facts=_describe_origin(group, rows, lesions, drawing.thresholds),
        files=[name for name in _list_files(folder, group) if (folder / name).is_file()],
        tables=[_link(log_dir / OUTCOMES, folder) for log_dir in runs],
        methods=methods.split("\n\n") if methods else [],
        references=references(methods, list(runs.values())[-1].provenance.version) if methods else "",
    )
    drawn = [part.picture.path for part in (*maps, similarity, distributions) if part.picture]
    drawing.pictures.remove_others({*drawn, *(row.tile.sheet for row in rows if row.tile)})
    return [*drawing.problems, *write_test_reports(folder)]


def _compare_mean(mean_z: Path) -> ShownSimilarity | None:
    """Return the similarity of the mean z-map to the connectome; None if its sidecar has none, or cannot be read."""
    with suppress(OSError, ValueError):
        return read_similarity(read_json_object(sidecar_path(mean_z)))
    return None


def _describe_targets(group: Mapping[str, Any], rows: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """Describe the columns of target networks, each by its lowest, median and highest value."""
    found: dict[str, dict[str, str]] = {}
    for column, entry in group.items():
        if isinstance(entry, Mapping) and "TargetNetwork" in entry:
            name, numbers = entry["TargetNetwork"], [_number(row[column]) for row in rows]
            known = [number for number in numbers if number == number]
            shown = found.setdefault(name, {"name": name, "file": str(entry.get("File", ""))})
            shown[column.removeprefix(f"target_{name}_")] = describe_range(known) if known else "\N{EN DASH}"
    return list(found.values())


def _find_lesions(output_dir: Path, group: Mapping[str, Any]) -> list[MappedLesion | None]:
    """Find the lesions' maps, in the order of the table; None where they are missing."""
    links = read_links(output_dir)
    sources = [str(uri).removeprefix("bids::") for uri in group["Sources"]]
    found: list[MappedLesion | None] = []
    for source in sources:
        if "_stat-r_" in source:
            try:
                found.append(read_mapped_lesion(output_dir, sidecar_path(output_dir / source), links))
            except (OSError, ValueError):
                found.append(None)
    return found


def _list_files(folder: Path, group: Mapping[str, Any]) -> list[str]:
    chance = [path.name for path in find_chance_maps(folder, group).values()]
    parcels = [path.name for path in sorted(folder.glob(f"group_atlas-*_{PARCELS}.tsv"))]
    return [GROUP_TABLE, GROUP_DICTIONARY, *parcels, *group["Maps"].values(), *chance, group["SimilarityMatrix"]]


def _link(path: Path, folder: Path) -> str:
    """Return a file's path relative to the folder of the group's page; "" if there is no such file."""
    return Path(os.path.relpath(path, folder)).as_posix() if path.is_file() else ""


def _describe_row(output_dir: Path, folder: Path, cells: Mapping[str, str], lesion: MappedLesion | None) -> Row:
    return Row(
        cells["lesion"],
        cells["participant_id"],
        _link(output_dir / f"{cells['participant_id']}.html", folder),
        page_anchor(lesion) if lesion else "",
        _number(cells["volume"]) / 1000,
        _number(cells["coverage"]),
        cells["side"],
        int(cells["n_connectome_subjects"]),
        {stat: _peak(cells, stat) for stat in "rt"},
        _number(cells["r_with_group_mean"]),
        int(cells["cluster_position"]),
        cells["outlier"] == "yes",
        _remarks(cells),
    )


def _remarks(cells: Mapping[str, str]) -> tuple[str, ...]:
    """Return what a person should look at; groups of earlier versions have no such column."""
    words = cells.get("look_at", "n/a")
    return () if words == "n/a" else tuple(words.split("; "))


def _peak(cells: Mapping[str, str], stat: str) -> tuple[float, tuple[float, float, float]]:
    x, y, z = (_number(cells[f"peak_{stat}_{axis}"]) for axis in "xyz")
    return _number(cells[f"peak_{stat}"]), (x, y, z)


def _number(cell: str) -> float:
    return float("nan") if cell == "n/a" else float(cell)


def _find_runs(lesions: Sequence[MappedLesion | None], outcomes: Sequence[Outcome]) -> dict[Path, Run]:
    """Find the runs that wrote the lesions' maps, by log folder."""
    newest = {
        (outcome.mask, outcome.run.provenance.connectome_name): outcome
        for outcome in outcomes
        if outcome.is_mapping and outcome.run
    }
    origins = [
        newest.get((lesion.source, str(lesion.sidecar.get("ConnectomeName")))) if lesion else None
        for lesion in lesions
    ]
    return dict(sorted(runs_of_maps(lesions, origins).items()))


def _describe_origin(
    group: Mapping[str, Any],
    rows: Sequence[Row],
    lesions: Sequence[MappedLesion | None],
    thresholds: Sequence[float],
) -> list[tuple[str, str]]:
    """List what the group's files were made from."""
    numbers = sorted({row.n_subjects for row in rows})
    versions = sorted({str(lesion.sidecar.get("SoftwareVersion")) for lesion in lesions if lesion})
    facts = [
        ("Lesions", str(len(rows))),
        ("Connectome", f"{group['ConnectomeName']}, in {group['SpatialReference']}"),
        ("Connectome subjects", " to ".join(map(str, dict.fromkeys((numbers[0], numbers[-1]))))),
        ("Connectome hash", str(group["ConnectomeHash"])),
        ("Thresholds", ", ".join(f"|t| > {threshold:g}" for threshold in thresholds) or "none"),
        ("Lesion weighting", str(group["LesionWeighting"])),
        ("Maps made by bids-lacuna", ", ".join(versions)),
        ("Described by bids-lacuna", str(group["SoftwareVersion"])),
    ]
    if group.get("LesionThreshold") is not None:
        facts.insert(6, ("Lesion threshold", f"{group['LesionThreshold']:g}"))
    return facts
