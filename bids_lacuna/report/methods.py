"""The methods section of a paper, generated from the records of runs, and the works that it cites."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bids_lacuna.citations import references
from bids_lacuna.derivatives import SPHERES, Run
from bids_lacuna.files import renamed_when_whole
from bids_lacuna.provenance import MappingOptions
from bids_lacuna.report.similarity import ShownSimilarity
from bids_lacuna.text import decimal, percent
from bids_lacuna.transforms import describe_steps

HASH_DIGITS = 12
"""Digits of a file's hash in a text."""

DRAWING_LIBRARIES = ("matplotlib", "nilearn")
"""Libraries that only pictures come from."""


def describe_methods(run: Run, *, with_pictures: bool) -> str:
    """Describe in Markdown how a run's maps were made, as in the methods section of a paper.

    Parameters
    ----------
    with_pictures
        Whether there are pictures of the maps.
    """
    provenance, n_subjects = run.provenance, run.n_mapped_subjects
    without_signal = f" without {run.n_without_signal} that have no signal" if run.n_without_signal else ""
    sizes = " \N{MULTIPLICATION SIGN} ".join(f"{size:g}" for size in provenance.voxel_sizes_mm)
    libraries = ", ".join(
        f"{name} {version}"
        for name, version in provenance.libraries.items()
        if (with_pictures or name not in DRAWING_LIBRARIES) and (run.transforms or name != "SimpleITK")
    )
    pictures = ", and pictures drawn on the MNI template of nilearn [@nilearn]" if with_pictures else ""
    kind = "seed" if run.seeds else "lesion"
    paragraphs = [
        f"{kind.capitalize()} network mapping [@boes2015] was performed with bids_lacuna {provenance.version} "
        f"[@bids_lacuna], a BIDS App [@gorgolewski2017]. {_lesions(run)} were transferred to the grid of the "
        f"normative functional connectome {provenance.connectome_name} "
        f"({_count(n_subjects, 'subject')}{without_signal}, {run.n_voxels} voxels of {sizes} mm, up to "
        f"{run.n_timepoints} timepoints "
        "of resting-state BOLD signal per subject; [cite its source here]) by their world coordinates. "
        f"{_weights(provenance.options, kind)}{_transforms(run)}",
        f"In each connectome subject, the weighted mean signal of the {kind}'s voxels was correlated (Pearson's r) "
        "with the signal of every voxel of the connectome; r was clipped to ±(1 \N{MINUS SIGN} 10⁻⁶) and transformed "
        "to Fisher z. Subjects whose signal was constant or not finite in a voxel were left out there. The z-map is "
        "the mean z over connectome subjects, and the r-map its hyperbolic tangent."
        f"{_t(provenance.options, n_subjects)}",
        f"Software: {libraries}. Arrays were computed with NumPy [@harris2020]{pictures}.",
    ]
    if _has_t(provenance.options) and n_subjects > 1:
        caution = (
            "t grows with the number of connectome subjects: it describes the connectome's sample, not the patients."
        )
        paragraphs.insert(2, caution)
    return "\n\n".join(paragraphs) + "\n"


def describe_group_methods(
    n_lesions: int,
    t_thresholds: Sequence[float],
    version: str,
    of_mean: ShownSimilarity | None = None,
    kind: str = "lesion",
) -> str:
    """Describe in Markdown how the maps of a group were summarized.

    Parameters
    ----------
    of_mean
        Similarity of the mean z-map to the connectome as a whole.
    kind
        What to call the lesions: lesion or seed.
    """
    above = [f"t > {threshold:g}" for threshold in t_thresholds]
    below = [f"t < \N{MINUS SIGN}{threshold:g}" for threshold in t_thresholds]
    fractions = (
        f", and the fraction of {kind}s with {_listing([*above, *below])}, of those with a t there"
        if t_thresholds
        else ""
    )
    return (
        f"The maps of {_count(n_lesions, kind)} were described as a group with bids_lacuna {version} "
        f"[@bids_lacuna]: the number of {kind}s at each voxel, the mean r and the mean Fisher z over the {kind}s "
        f"with a value there{fractions}. The r-maps were correlated with each other and with their mean "
        "(Pearson's r over the voxels that all of them have), and ordered by average linkage of the distances "
        f"1 \N{MINUS SIGN} r. {_similarity(of_mean)}These are descriptions: they allow no inference about a symptom."
    )


def _similarity(of_mean: ShownSimilarity | None) -> str:
    if of_mean is None:
        return ""
    with_r = [f"{name[0].lower()}{name[1:]} (r = {decimal(r)})" for name, r in of_mean.bars]
    together = ""
    if of_mean.explained is not None:
        together = f", which explain {percent(of_mean.explained)} of its variance together (linear least squares)"
    return (
        "The mean Fisher z was correlated over all voxels (Pearson's r) with maps of the connectome as a whole: "
        f"{_listing(with_r)}{together}. "
    )


def describe_comparisons(kind: str, *, similarity: bool, nulls: Mapping[str, Any] | None) -> str:
    """Describe in Markdown what each map was compared with by the connectome's summary; "" for nothing.

    Parameters
    ----------
    kind
        What to call the lesions: lesion or seed.
    similarity
        Whether maps were compared with the connectome as a whole.
    nulls
        What decided the null lesions, as in the sidecar of T; None if there are none.
    """
    sentences = []
    if similarity:
        sentences.append(
            f"Each {kind}'s z-map was correlated (Pearson's r over the voxels outside the {kind}) with maps of the "
            "connectome as a whole: degree, absolute degree and three principal components."
        )
    if nulls:
        sentences.append(
            "Each lesion's map, approximated from the connectome's covariances with cubes of voxels, was compared "
            f"with up to {nulls['RequestedNullLesions']} null lesions (seed {nulls['RandomSeed']}): the lesion "
            "itself at other places of its hemisphere with a similar coverage and similar fractions of grey and "
            "white matter, if there were at least 100. Voxels near a lesion or null lesion were left out for it. T "
            "is the z minus the mean over the null lesions, divided by their standard deviation: a description, "
            "which has no p."
        )
    return " ".join(sentences)


def describe_chance_methods(record: Mapping[str, Any]) -> str:
    """Describe in Markdown how a group was compared with chance places, from the sidecar of the effect."""
    return (
        f"The mean z-map of {_count(record['NumberOfLesions'], 'lesion')}, approximated from the connectome's "
        f"covariances with cubes of voxels, was compared with {record['NumberOfNullSets']} sets of null lesions "
        f"(seed {record['RandomSeed']}): one for each lesion, which is the lesion itself at a random place of its "
        "hemisphere with a similar coverage and similar fractions of grey and white matter. Voxels near a lesion or "
        "null lesion were left out for it. The effect is the mean z minus that of the sets. Divided by the standard "
        "deviation over the sets, it was tested against lesions at chance places: two-sided p were corrected for "
        f"{record['NumberOfVoxels']} voxels by the largest absolute statistic of each set, p = (b + 1) / (n + 1) "
        f"[@phipson2010], and p up to {record['Alpha']:g} was significant."
    )


def describe_target_methods(files: Mapping[str, str], kind: str = "lesion") -> str:
    """Describe in Markdown how lesions were compared with target networks, given by name with their files."""
    names = _listing([f"{name} ({file})" for name, file in files.items()])
    score = ""
    if kind == "lesion":
        score = (
            ". The network damage score is the mean of the target over the lesion's voxels, with the weights of the "
            "mapping"
        )
    return (
        f"Each {kind}'s z-map was correlated (Pearson's r over the voxels that both have) with the target "
        f"network{'s' if len(files) > 1 else ''} {names}; [cite the source here], with "
        f"and without the {kind}'s voxels{score}."
    )


def describe_test_methods(record: Mapping[str, Any]) -> str:
    """Describe in Markdown how a column was tested with the maps, from the record of the test."""
    n, permutations = record["NumberOfPatients"], record["NumberOfPermutations"]
    drawn = (
        f"all {permutations} distinct permutations"
        if record["AllPermutations"]
        else f"{permutations} random permutations (seed {record['RandomSeed']})"
    )
    formula = "b / n" if record["AllPermutations"] else "(b + 1) / (n + 1) [@phipson2010]"
    variance = (
        "Student's t"
        if record["Statistic"].startswith("Student")
        else "Aspin and Welch's v, in which each group has its own variance [@winkler2014], turned into z by its "
        "degrees of freedom at each voxel"
    )
    prediction = record["LeaveOneOut"]
    measure = "the area under the ROC curve" if prediction["Measure"] == "AUC" else "Pearson's r with the score"
    return (
        f"Which connections go with {record['Column']} was tested in {n} patients with bids_lacuna "
        f"{record['SoftwareVersion']} [@bids_lacuna] on unthresholded {record['InputStatistic']}-maps: "
        f"{record['Model']} [@freedman1983]. The statistic was {variance}. Two-sided p were corrected for all "
        f"{record['NumberOfVoxels']} voxels that all maps have by the largest absolute statistic of each of {drawn}: "
        f"p = {formula}, where b of n permutations reach the observed value [@winkler2014]; p up to "
        f"{record['Alpha']:g} was significant. Prediction of the left-out patient was measured by {measure}, from "
        "the spatial correlation of the patient's map with the effect map fitted to all others, and compared with "
        f"{prediction['NumberOfPermutations']} permutations of the labels in which the whole loop was repeated."
        + _outcomes(record)
    )


def _outcomes(record: Mapping[str, Any]) -> str:
    """Describe the test of similarity with target networks, if there was one."""
    names = list(dict.fromkeys(each["target"] for each in record.get("Targets", ())))
    if not names:
        return ""
    return (
        f" The maps' spatial correlation with {_listing(names)}, and the mean of each of these target networks over "
        "the lesion, were tested with the same design and permutations, with p corrected for all of them."
    )


def describe_atlases(sidecars: Iterable[Mapping[str, Any]], *, of_lesions: bool = True) -> str:
    """Describe in Markdown how maps were averaged over atlases, from sidecars of tables of parcels; "" if none.

    Parameters
    ----------
    of_lesions
        Whether some maps are of lesions, whose damage was counted.
    """
    atlases = dict.fromkeys(_describe_atlas(sidecar) for sidecar in sidecars)
    if not atlases:
        return ""
    damage = " The lesioned fraction of each region was counted between mask and atlas, at their own resolution."
    return (
        f"Maps were averaged over the regions of {_listing(list(atlases))}, each voxel of the connectome weighted by "
        "the volume of the region in it; the mean r of a region is the hyperbolic tangent of its mean z."
        f"{damage if of_lesions else ''}"
    )


def _describe_atlas(sidecar: Mapping[str, Any]) -> str:
    source = f", from {software} [@ciric2022]" if (software := sidecar.get("AtlasSoftware")) else ""
    transforms = sidecar.get("AtlasTransforms") or ()
    files = [(str(file.get("From")), str(file.get("To")), str(file.get("Software", ""))) for file in transforms]
    brought = f", brought {describe_steps(files)} [@lowekamp2013]" if files else ""
    image_hash = str(sidecar.get("AtlasHash", "")).partition(" ")[0]
    return (
        f"{sidecar.get('Atlas')} ({sidecar.get('AtlasFile')}, SHA-256 {image_hash[:HASH_DIGITS]}…{source}{brought}; "
        "[cite its source here])"
    )


def _lesions(run: Run) -> str:
    threshold = run.provenance.options.lesion_threshold
    where = "" if run.transforms else f" in {run.provenance.space} space"
    if run.seeds == SPHERES:
        return f"Spheres around coordinates{where}, one union of spheres for each seed,"
    if run.seeds and threshold is None:
        return f"Binary seed masks{where}"
    if run.seeds:
        return f"Seeds' weights of {threshold:g} and more{where}"
    if threshold is None:
        return f"Binary lesion masks{where}"
    return f"Lesion probability maps{where}, without voxels below a probability of {threshold:g},"


def _transforms(run: Run) -> str:
    if not run.transforms:
        return ""
    cited = {"fMRIPrep": "esteban2019", "TemplateFlow": "ciric2022"}
    works = ["@lowekamp2013", *(f"@{key}" for name, key in cited.items() if name in " ".join(run.transforms))]
    return (
        f" Masks in other spaces than {run.provenance.space} were brought there by ITK's nonlinear and affine "
        f"transforms, each mask in one resampling onto parts of the connectome's voxels: {'; '.join(run.transforms)} "
        f"[{'; '.join(works)}]."
    )


def _weights(options: MappingOptions, kind: str) -> str:
    is_binary = options.lesion_threshold is None
    mean = "mean lesion probability" if kind == "lesion" else "mean weight"
    if options.weighting == "volume":
        weight = f"the fraction of its volume that the {kind} covers" if is_binary else f"its {mean}"
        return f"Each connectome voxel was weighted by {weight}."
    included = f"covered by the {kind} to at least one half" if is_binary else f"with a {mean} of 0.5 or more"
    return f"Connectome voxels {included} were given the weight 1, all others 0."


def _has_t(options: MappingOptions) -> bool:
    return options.compute_t_map or bool(options.t_thresholds)


def _t(options: MappingOptions, n_subjects: int) -> str:
    if not _has_t(options):
        return ""
    if n_subjects < 2:
        return " With a single connectome subject, t is undefined."
    what = f"the one-sample t of z against 0 (up to {_count(n_subjects - 1, 'degree')} of freedom)"
    text = f" The t-map is {what}." if options.compute_t_map else ""
    if options.t_thresholds:
        levels = _listing([f"{threshold:g}" for threshold in options.t_thresholds])
        definition = "" if options.compute_t_map else f", where t is {what}"
        text += f" Binary maps contain the voxels with |t| > {levels}{definition}."
    return text


def _listing(words: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _count(n: int, word: str) -> str:
    return f"{n} {word}" + ("" if n == 1 else "s")


def combine(runs: Iterable[Run]) -> str:
    """Describe how the maps on a page were made, without repeating what several runs have in common."""
    return "\n\n".join(dict.fromkeys(describe_methods(run, with_pictures=True) for run in runs))


def write_citation(
    output_dir: Path,
    run: Run,
    md_only: bool = False,
    atlases: Sequence[Mapping[str, Any]] = (),
    comparisons: str = "",
) -> None:
    """Write a run's logs/CITATION.md, and unless `md_only`, CITATION.bib beside it.

    Parameters
    ----------
    atlases
        What sidecars say of the atlases by which the maps were averaged.
    comparisons
        From `describe_comparisons`.
    """
    text = describe_methods(run, with_pictures=run.reports)
    if comparisons:
        text += f"\n{comparisons}\n"
    if atlases:
        text += f"\n{describe_atlases(atlases, of_lesions=not run.seeds)}\n"
    contents = {"CITATION.md": text}
    if not md_only:
        contents["CITATION.bib"] = references(text, run.provenance.version)
    for name, content in contents.items():
        with renamed_when_whole(output_dir / "logs" / name) as temporary:
            temporary.write_text(content, encoding="utf-8")
