"""The methods text: it says what the run did."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from pathlib import Path

import pytest

from bids_lacuna.citations import references
from bids_lacuna.derivatives.history import Run
from bids_lacuna.provenance import MappingOptions, Provenance
from bids_lacuna.report.methods import (
    combine,
    describe_atlases,
    describe_group_methods,
    describe_methods,
    write_citation,
)
from bids_lacuna.report.similarity import ShownSimilarity

RUN = Run(
    command="bids-lacuna /data /out participant --connectome /GSP",
    started="2026-11-25T12:00:00+0000",
    provenance=Provenance(
        connectome_name="GSP7",
        connectome_hash="ab" * 32,
        space="MNI152NLin6Asym",
        shape=(91, 109, 61),
        affine=(-2, 0, 0, 90, 0, 2, 0, -126, 0, 0, 3, -72, 0, 0, 0, 1),
        options=MappingOptions(t_thresholds=(5.0, 7.5)),
        software={"bids-lacuna": "1.2.3", "Python": "3.13.1", "numpy": "2.3.5"},
    ),
    n_connectome_subjects=997,
    n_timepoints=127,
    n_voxels=285903,
    n_lesions=11,
    batch_size=11,
    n_threads=2,
    planned_bytes=2**30,
    available_bytes=2**31,
    memory_limit="--mem",
    links={"source": "source"},
    reports=True,
)


def with_provenance(**changes: object) -> Run:
    """Change what the run's maps were made from."""
    return replace(RUN, provenance=replace(RUN.provenance, **changes))


def test_the_text_has_the_run_s_numbers() -> None:
    """The text has the connectome, its size and grid, degrees of freedom, thresholds and versions."""
    text = describe_methods(RUN, with_pictures=True)
    for words in (
        "GSP7 (997 subjects, 285903 voxels of 2 \N{MULTIPLICATION SIGN} 2 \N{MULTIPLICATION SIGN} 3 mm",
        "127 timepoints",
        "996 degrees",
        "|t| > 5 and 7.5",
    ):
        assert words in text
    for version in ("bids_lacuna 1.2.3", "Python 3.13.1", "numpy 2.3.5"):
        assert version in text
    assert "Binary lesion masks" in text
    without = describe_methods(replace(RUN, n_without_signal=11), with_pictures=True)
    assert "(986 subjects without 11 that have no signal, " in without
    assert "985 degrees" in without


CHANGED_WORDS = {
    "compute_t_map": (False, "The t-map is the one-sample t", "|t| > 5 and 7.5, where t is the one-sample t"),
    "t_thresholds": ((3.5,), "|t| > 5 and 7.5", "|t| > 3.5"),
    "weighting": ("binary", "weighted by the fraction of its volume", "to at least one half were given the weight 1"),
    "lesion_threshold": (0.3, "Binary lesion masks in", "space, without voxels below a probability of 0.3,"),
}
"""For each option: another value, the words that it removes, and the words that it adds."""


@pytest.mark.parametrize("option", [option.name for option in fields(MappingOptions)])
def test_each_option_changes_the_text(option: str) -> None:
    """The text says which value an option had: a new option needs words."""
    value, removed, added = CHANGED_WORDS[option]
    before = describe_methods(RUN, with_pictures=True)
    changed = with_provenance(options=replace(RUN.provenance.options, **{option: value}))
    after = describe_methods(changed, with_pictures=True)
    assert (removed in before, removed in after) == (True, False)
    assert (added in before, added in after) == (False, True)


def test_weights_of_probability_maps() -> None:
    """Probabilities are weights, or decide which voxels have the weight 1."""
    for weighting, words in (
        ("volume", "Each connectome voxel was weighted by its mean lesion probability."),
        ("binary", "voxels with a mean lesion probability of 0.5 or more were given the weight 1"),
    ):
        run = with_provenance(options=MappingOptions(weighting=weighting, lesion_threshold=0.3))
        text = describe_methods(run, with_pictures=True)
        assert words in text
        assert "covers" not in text


def test_without_t_the_text_has_no_t() -> None:
    """Without t-maps and thresholds, the text mentions neither t nor its degrees of freedom."""
    text = describe_methods(with_provenance(options=MappingOptions(compute_t_map=False)), with_pictures=True)
    assert not re.search(r"\bt\b|t-map|degrees|Binary maps", text)


def test_pictures_are_mentioned_if_there_are_any(tmp_path: Path) -> None:
    """CITATION.md cites nilearn, and lists the libraries that draw, only if pages are written."""
    software = {**RUN.provenance.software, "nilearn": "0.12", "matplotlib": "3.10"}
    for reports in (True, False):
        write_citation(tmp_path, replace(with_provenance(software=software), reports=reports))
        text = "".join((tmp_path / "logs" / f"CITATION.{kind}").read_text() for kind in ("md", "bib"))
        for words in (
            "pictures drawn on the MNI template of nilearn [@nilearn]",
            "nilearn 0.12",
            "matplotlib 3.10",
            "@software{nilearn",
        ):
            assert (words in text) == reports
        assert "numpy 2.3.5" in text


def test_a_single_subject_has_no_t() -> None:
    """With a connectome of one subject, the text says that t is undefined, and claims no t-map."""
    text = describe_methods(replace(RUN, n_connectome_subjects=1), with_pictures=True)
    assert "(1 subject," in text
    assert "t is undefined" in text
    assert "t-map" not in text
    assert "degrees of freedom" not in text


def test_every_citation_has_its_reference(tmp_path: Path) -> None:
    """CITATION.bib has each key that CITATION.md cites, once, with balanced braces."""
    write_citation(tmp_path, RUN)
    text, bib = ((tmp_path / "logs" / f"CITATION.{kind}").read_text() for kind in ("md", "bib"))
    cited = set(re.findall(r"@(\w+)", text))
    defined = re.findall(r"^@\w+\{(\w+),", bib, re.MULTILINE)
    assert cited == set(defined)
    assert len(defined) == len(set(defined)) >= 4
    assert bib.count("{") == bib.count("}")
    assert "version = {1.2.3}" in bib
    assert references("nothing is cited", "1") == ""
    write_citation(tmp_path / "text", RUN, md_only=True)
    assert [path.name for path in (tmp_path / "text" / "logs").iterdir()] == ["CITATION.md"]


def test_equal_runs_are_described_once() -> None:
    """Two runs with equal settings give one text, two connectomes give two."""
    assert combine([RUN, replace(RUN, n_lesions=3)]) == describe_methods(RUN, with_pictures=True)
    assert combine([RUN, with_provenance(connectome_name="HCP")]).count("@boes2015") == 2


def test_a_group_is_described() -> None:
    """The text has the number of lesions, and the thresholds if there are any."""
    text = describe_group_methods(40, [5.0, 7.5], "1.2.3")
    assert "The maps of 40 lesions" in text
    assert "bids_lacuna 1.2.3 [@bids_lacuna]" in text
    minus = "\N{MINUS SIGN}"
    assert (
        f"fraction of lesions with t > 5, t > 7.5, t < {minus}5 and t < {minus}7.5, of those with a t there." in text
    )
    similarity = ShownSimilarity((("Degree", 0.75), ("Principal component 1", -0.25)), 0.625)
    compared = describe_group_methods(40, [], "1.2.3", similarity)
    assert f"degree (r = 0.75) and principal component 1 (r = {minus}0.25), which explain 62.5" in compared
    assert "connectome as a whole" not in text
    alone = describe_group_methods(1, [], "1.2.3")
    assert "The maps of 1 lesion were" in alone
    assert "fraction" not in alone


def test_atlases_are_named(tmp_path: Path) -> None:
    """The text names each atlas' file, its source and how it was brought here; of seeds, no damage is said."""
    given = {
        "Atlas": "Schaefer2018 7Networks 400",
        "AtlasFile": "a_dseg.nii.gz",
        "AtlasHash": "0123456789abcdef 42",
        "AtlasSoftware": "TemplateFlow",
        "AtlasTransforms": [{"From": "MNI152NLin2009cAsym", "To": "MNI152NLin6Asym", "Software": "TemplateFlow"}],
    }
    write_citation(tmp_path, RUN, atlases=[given, {"Atlas": "Mine", "AtlasFile": "b.nii", "AtlasHash": "ab"}])
    text = (tmp_path / "logs" / "CITATION.md").read_text()
    assert text.startswith(describe_methods(RUN, with_pictures=True))
    assert (
        "Schaefer2018 7Networks 400 (a_dseg.nii.gz, SHA-256 0123456789ab…, from TemplateFlow [@ciric2022], brought "
        "from MNI152NLin2009cAsym to MNI152NLin6Asym by TemplateFlow [@lowekamp2013]; [cite its source here]) and "
        "Mine (b.nii"
    ) in text
    assert "lesioned fraction" in text
    references_of = (tmp_path / "logs" / "CITATION.bib").read_text()
    assert "@article{ciric2022," in references_of
    assert "@article{lowekamp2013," in references_of
    assert "lesioned" not in describe_atlases([given], of_lesions=False)
    assert describe_atlases([]) == ""
