"""The methods section of a paper, told from what was really run, and the works that it cites."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from bids_lacuna.citations import references
from bids_lacuna.derivatives.history import Run
from bids_lacuna.files import renamed_when_whole


def describe_methods(run: Run) -> str:
    """Tell in Markdown how a run's maps were made, as a paper's methods section would."""
    sizes = " \N{MULTIPLICATION SIGN} ".join(f"{size:g}" for size in run.provenance.voxel_sizes_mm)
    shares = {
        "volume": "each connectome voxel counted by the share of its volume that the lesion covers",
        "binary": "each connectome voxel of which the lesion covers at least half counted fully, others not at all",
    }[run.provenance.options.weighting]
    libraries = ", ".join(f"{name} {version}" for name, version in run.provenance.libraries.items())
    n, made_from = run.n_connectome_subjects, run.provenance
    paragraphs = [
        f"Lesion network mapping [@boes2015] was done with bids_lacuna {made_from.version} [@bids_lacuna], a BIDS "
        f"App [@gorgolewski2017]. Binary lesion masks in {made_from.space} space were brought to the grid of the "
        f"normative functional connectome {made_from.connectome_name} ({_count(n, 'subject')}, {run.n_voxels} voxels "
        f"of {sizes} mm, up to {run.n_timepoints} timepoints of resting-state BOLD signal for each subject; [cite "
        f"its source here]) by their world coordinates; {shares}.",
        "In each connectome subject, the mean signal of the lesion's voxels, weighted in this way, was correlated "
        "(Pearson's r) with the signal of every voxel of the connectome; r, clipped to ±(1 \N{MINUS SIGN} 10⁻⁶), was "
        "transformed to Fisher z. A subject whose signal was constant or not finite in a voxel was left out there. "
        f"The r-map is the hyperbolic tangent of the mean z over connectome subjects{_t_map(run)}",
        "t grows with the number of connectome subjects: it describes the connectome's sample, not the patients.",
        f"Software: {libraries}. Arrays were computed with NumPy [@harris2020], and pictures drawn with nilearn "
        "[@nilearn].",
    ]
    return "\n\n".join(paragraphs) + "\n"


def describe_group_methods(n_lesions: int, t_thresholds: Sequence[float], version: str) -> str:
    """Tell in Markdown how maps were described as a group."""
    above = [f"t > {threshold:g}" for threshold in t_thresholds]
    below = [f"t < \N{MINUS SIGN}{threshold:g}" for threshold in t_thresholds]
    shares = f", and the share of lesions with {_listing([*above, *below])}" if t_thresholds else ""
    return (
        f"The maps of {_count(n_lesions, 'lesion')} were described together with bids_lacuna {version} "
        "[@bids_lacuna]: the number of lesions at each voxel, the mean r and the mean Fisher z over the lesions "
        f"with a value there{shares}. The r-maps were correlated with each other, and with their mean, "
        "over the voxels that all of them had (Pearson's r), and ordered by average linkage of the distances "
        "1 \N{MINUS SIGN} r. These are descriptions: they allow no inference about a symptom."
    )


def _t_map(run: Run) -> str:
    if run.n_connectome_subjects < 2:
        return "; of a single subject there is no t."
    text = f", the t-map the one-sample t of z against 0 (up to {run.n_connectome_subjects - 1} degrees of freedom)."
    if run.provenance.options.t_thresholds:
        levels = [f"{threshold:g}" for threshold in run.provenance.options.t_thresholds]
        text += f" Binary maps hold the voxels with |t| > {_listing(levels)}."
    return text


def _listing(words: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _count(n: int, word: str) -> str:
    return f"{n} {word}" + ("" if n == 1 else "s")


def combine(runs: Iterable[Run]) -> str:
    """Tell how maps of several runs were made: what they have in common is said once."""
    return "\n\n".join(dict.fromkeys(describe_methods(run) for run in runs))


def write_citation(output_dir: Path, run: Run, md_only: bool = False) -> None:
    """Write logs/CITATION.md of a run, and CITATION.bib beside it unless the text alone is wanted."""
    text = describe_methods(run)
    contents = {"CITATION.md": text} | ({} if md_only else {"CITATION.bib": references(text, run.provenance.version)})
    for name, content in contents.items():
        with renamed_when_whole(output_dir / "logs" / name) as temporary:
            temporary.write_text(content, encoding="utf-8")
