"""A participant's page, made from the files on disk: maps, sidecars, lesion masks and the logs of runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from bids_lacuna.citations import references
from bids_lacuna.derivatives import OUTCOMES, Outcome, Run, read_outcomes
from bids_lacuna.report.failure import describe_failure
from bids_lacuna.report.maps_on_disk import MappedLesion, find_mapped_lesions, read_links, runs_of_maps
from bids_lacuna.report.methods import combine, describe_atlases, describe_comparisons
from bids_lacuna.report.pages import write_page
from bids_lacuna.report.section import Section, describe_lesion, pictures_of
from bids_lacuna.runtime.logs import LOG_FILE
from bids_lacuna.text import format_bytes


def write_participant_report(output_dir: Path, label: str) -> list[str]:
    """Write a participant's page and its pictures from the files on disk.

    Returns
    -------
    list of str
        A sentence for each picture that could not be drawn; the page has them, too.
    """
    outcomes = [outcome for outcome in read_outcomes(output_dir) if outcome.row.get("sub") == label]
    lesions = find_mapped_lesions(output_dir, label)
    sections = [describe_lesion(output_dir, label, lesion) for lesion in lesions]
    origins = [_origin(lesion, outcomes) for lesion in lesions]
    failures, links = _failures(outcomes), read_links(output_dir)
    not_mapped = [describe_failure(output_dir, label, outcome, links) for outcome in failures]
    runs = runs_of_maps(lesions, origins)
    atlases = [each.sidecar for section in sections for each in section.parcels] if runs else []
    of_lesions = any(section.kind == "lesion" for section in sections)
    by_region = describe_atlases(atlases, of_lesions=of_lesions)
    comparisons = _describe_comparisons(sections) if runs else ""
    methods = "\n\n".join(filter(None, [combine(runs.values()), comparisons, by_region]))
    write_page(
        output_dir / f"sub-{label}.html",
        "participant.html.jinja",
        label=label,
        written=f"{datetime.now():%Y-%m-%d %H:%M}",
        sections=sections,
        failures=not_mapped,
        runs=_describe_runs(output_dir, sections, origins, failures, runs),
        without_logs=[section.heading for section, origin in zip(sections, origins, strict=True) if origin is None],
        methods=methods.split("\n\n") if methods else [],
        why_no_methods=_explain_missing_methods(origins),
        references=references(methods, list(runs.values())[-1].provenance.version) if runs else "",
    )
    pictures = [picture for section in sections for picture in section.pictures]
    shown = {picture.path for picture in (*pictures, *(failure.picture for failure in not_mapped)) if picture}
    for lesion in lesions:
        pictures_of(output_dir, label, lesion).remove_others(shown)
    return [f"{section.heading}: {error}" for section in sections for error in section.errors]


def _describe_comparisons(sections: Sequence[Section]) -> str:
    """Describe what the maps on a page were compared with by the connectome's summary, each way once."""
    found = [
        describe_comparisons(
            section.kind,
            similarity=section.similarity is not None,
            nulls=section.nulls.sidecar if section.nulls else None,
        )
        for section in sections
    ]
    return "\n\n".join(dict.fromkeys(filter(None, found)))


def _origin(lesion: MappedLesion, outcomes: Sequence[Outcome]) -> Outcome | None:
    """Find the newest row about the mapping of a lesion."""
    name = lesion.sidecar.get("ConnectomeName")
    for outcome in reversed(outcomes):
        same_connectome = outcome.run is None or outcome.run.provenance.connectome_name == name
        if outcome.is_mapping and outcome.mask == lesion.source and same_connectome:
            return outcome
    return None


def _failures(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """List the masks that failed or were not run, and have not been mapped since."""
    newest = {}
    for outcome in outcomes:
        newest[outcome.mask, outcome.run.provenance.connectome_name if outcome.run else ""] = outcome
    return [outcome for outcome in newest.values() if outcome.status in ("failed", "not run")]


def _describe_runs(
    output_dir: Path,
    sections: Sequence[Section],
    origins: Sequence[Outcome | None],
    failures: Sequence[Outcome],
    runs: Mapping[Path, Run],
) -> list[dict[str, Any]]:
    """Describe each run, with the headings of the lesions that it mapped and the masks that it did not."""
    headings: dict[Path, list[str]] = {}
    found, originals = dict(runs), {origin.log_dir: origin.run for origin in origins if origin}
    for section, origin in zip(sections, origins, strict=True):
        if origin is not None:
            headings.setdefault(origin.log_dir, []).append(section.heading)
    for failure in failures:
        headings.setdefault(failure.log_dir, []).append(f"{Path(failure.mask[1]).name} (not mapped)")
        if failure.run is not None:
            found.setdefault(failure.log_dir, failure.run)
    return [
        {
            "headings": headings[log_dir],
            "rows": _run_rows(found[log_dir], originals.get(log_dir)) if log_dir in found else [],
            "command": found[log_dir].command if log_dir in found else "",
            "table": (log_dir / OUTCOMES).relative_to(output_dir).as_posix(),
            "log": log.relative_to(output_dir).as_posix() if (log := log_dir / LOG_FILE).is_file() else "",
        }
        for log_dir in headings
    ]


def _explain_missing_methods(origins: Sequence[Outcome | None]) -> str:
    if not origins:
        return "No lesion of this participant was mapped, so there are no methods to describe."
    if any(origins):
        return "The text is generated from run.json, which is missing, damaged, or of another version."
    return "The logs of the run, which the text is generated from, no longer exist."


def _run_rows(run: Run, original: Run | None = None) -> list[tuple[str, str]]:
    sizes = " \N{MULTIPLICATION SIGN} ".join(f"{size:g}" for size in run.provenance.voxel_sizes_mm)
    thresholds = _list_thresholds(run)
    if original and thresholds != (own := _list_thresholds(original)):
        thresholds = f"{own}; with masks of other runs: {thresholds}"
    so_far = "" if run.finished else ", up to this participant's batch"
    taken = "unknown" if run.seconds is None else f"{timedelta(seconds=round(run.seconds))} (h:mm:ss){so_far}"
    used = "unknown" if run.peak_bytes is None else f"{format_bytes(run.peak_bytes)}{so_far}"
    without_signal = f", without {run.n_without_signal} that have no signal" if run.n_without_signal else ""
    rows = [
        ("Connectome", f"{run.provenance.connectome_name}, in {run.provenance.space}"),
        ("Connectome subjects", str(run.n_mapped_subjects) + without_signal),
        ("Connectome grid", f"{run.n_voxels} voxels of {sizes} mm; up to {run.n_timepoints} timepoints"),
        ("Connectome hash", run.provenance.connectome_hash),
        ("Lesion weighting", run.provenance.options.weighting),
        ("Thresholds", thresholds),
        ("Started", run.started.replace("T", " ")),
        ("Run time", taken),
        ("Memory planned", f"{format_bytes(run.planned_bytes)} of {format_bytes(run.available_bytes)}"),
        ("Memory used", used),
        ("Batches", f"lesions: {run.n_lesions}; at most {run.batch_size} per pass; threads: {run.n_threads}"),
        ("bids-lacuna", run.provenance.version),
        ("Software", ", ".join(f"{name} {version}" for name, version in run.provenance.libraries.items())),
    ]
    if run.provenance.options.lesion_threshold is not None:
        rows.insert(5, ("Lesion threshold", f"{run.provenance.options.lesion_threshold:g}"))
    return rows


def _list_thresholds(run: Run) -> str:
    return ", ".join(f"|t| > {threshold:g}" for threshold in run.provenance.options.t_thresholds) or "none"
