"""The methods text: every number in it is of the run."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from bids_lacuna.citations import references
from bids_lacuna.derivatives.history import Run
from bids_lacuna.provenance import MappingOptions, Provenance
from bids_lacuna.report.methods import combine, describe_group_methods, describe_methods, write_citation

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
    """Connectome, its size and grid, degrees of freedom, thresholds and versions are told as they were."""
    text = describe_methods(RUN)
    for words in (
        "GSP7 (997 subjects, 285903 voxels of 2 \N{MULTIPLICATION SIGN} 2 \N{MULTIPLICATION SIGN} 3 mm",
        "127 timepoints",
        "996 degrees",
        "|t| > 5 and 7.5",
    ):
        assert words in text
    for version in ("bids_lacuna 1.2.3", "Python 3.13.1", "numpy 2.3.5"):
        assert version in text
    assert "by the share of its volume" in text
    assert "at least half" in describe_methods(with_provenance(options=MappingOptions(weighting="binary")))


def test_a_single_subject_has_no_t() -> None:
    """Of a connectome of one subject the text claims no t-map."""
    text = describe_methods(replace(RUN, n_connectome_subjects=1))
    assert "(1 subject," in text
    assert "there is no t" in text
    assert "degrees of freedom" not in text


def test_every_citation_has_its_reference(tmp_path: Path) -> None:
    """CITATION.bib has each key that CITATION.md cites, once, with braces that close."""
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


def test_runs_alike_are_told_once() -> None:
    """Two runs with the same settings give one text, two connectomes give two."""
    assert combine([RUN, replace(RUN, n_lesions=3)]) == describe_methods(RUN)
    assert combine([RUN, with_provenance(connectome_name="HCP")]).count("@boes2015") == 2


def test_a_group_is_described() -> None:
    """The text tells how many lesions there were, and the thresholds if there were any."""
    text = describe_group_methods(40, [5.0, 7.5], "1.2.3")
    assert "The maps of 40 lesions" in text
    assert "bids_lacuna 1.2.3 [@bids_lacuna]" in text
    minus = "\N{MINUS SIGN}"
    assert f"share of lesions with t > 5, t > 7.5, t < {minus}5 and t < {minus}7.5." in text
    alone = describe_group_methods(1, [], "1.2.3")
    assert "The maps of 1 lesion were" in alone
    assert "share" not in alone
