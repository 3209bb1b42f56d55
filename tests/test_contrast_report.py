"""The page of a test: what it says, that it is self-contained, and that it is made from disk."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import synthetic
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser

from bids_lacuna.group.contrast import contrast_maps
from bids_lacuna.group.contrast_files import ContrastWriter, TestInput, remove_test
from bids_lacuna.group.design import Question
from bids_lacuna.group.sensitivity import Sensitivity
from bids_lacuna.group.table import table_of
from bids_lacuna.provenance import PROGRAM, MappingOptions, Provenance
from bids_lacuna.report.contrast import link_tests, write_test_reports

Array = np.ndarray

N = 16

# The processes that draw give way to all others, so that a busy machine takes long.
pytestmark = pytest.mark.timeout(400)


class _Lesion:
    """What the files of a test need of a lesion."""

    def __init__(self, number: int) -> None:
        self.name = f"sub-{number:02}_label-lesion"
        self.maps = {"z": f"{number}.nii", "r": f"{number}.nii"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Test two groups that differ in a corner, by Welch's v, and a score that goes with nothing; write pages."""
    root = tmp_path_factory.mktemp("report")
    rng = np.random.default_rng(1)
    volumes = rng.standard_normal((N, *synthetic.SHAPE)).astype(np.float32)
    volumes[::2, 3:, :2, 5:8] += 6
    for number, volume in enumerate(volumes):
        nib.save(nib.Nifti1Image(volume, synthetic.RADIOLOGICAL), root / f"{number}.nii")
    columns = {
        "participant_id": [f"sub-{number:02}" for number in range(N)],
        "<b>aphasia": ["yes", "no"] * 8,
        "score": rng.permutation(N),
        "lesion_volume": rng.uniform(1, 9, N),
    }
    table = table_of(columns)
    provenance = Provenance(
        "GSP",
        "hash",
        synthetic.SPACE,
        synthetic.SHAPE,
        tuple(synthetic.RADIOLOGICAL.ravel()),
        MappingOptions(),
        {PROGRAM: "1"},
    )
    lesions = [_Lesion(number) for number in range(N)]
    for column, statistic in (("<b>aphasia", "welch"), ("score", "auto")):
        files = [root / lesion.maps["z"] for lesion in lesions]
        question = Question(column, statistic=statistic, n_permutations=199)
        similarity = np.where(np.arange(N) == 3, np.nan, np.arange(N) % 5)
        outcomes = {} if column == "score" else {("Papez", "r"): np.arange(N) % 7, ("Papez", "r_outside"): similarity}
        test = contrast_maps(list(table.rows), files, table, question, outcomes=outcomes)
        share = np.linspace(0, 0.4, len(test.result.statistic))
        found = [Sensitivity(7.0, 0.75, share, share, np.where(share > 0.3, share, 0))] if test.design.levels else []
        source = TestInput(root, root, "z", "participants.tsv")
        ContrastWriter(test, lesions, provenance, source).write(found, share)
    (root / "dataset_description.json").write_text("{}")
    write_regions(root, "Halves", connectome_hash="hash")
    write_regions(root, "Other", connectome_hash="another")
    assert write_test_reports(root) == []
    return root


def write_regions(root: Path, name: str, connectome_hash: str) -> None:
    """Write an atlas of two halves on the maps' grid, as the participant level does."""
    stem = root / f"tpl-{synthetic.SPACE}" / f"tpl-{synthetic.SPACE}_atlas-{name}_desc-GSP_dseg"
    halves = np.where(np.arange(synthetic.SHAPE[2]) < 4, 1, 2)
    synthetic.write_mask(
        stem.with_suffix(".nii.gz"),
        np.broadcast_to(halves, synthetic.SHAPE),
        sidecar={"Atlas": name, "ConnectomeHash": connectome_hash},
    )
    stem.with_suffix(".tsv").write_text("index\tname\n1\tlower\n2\tupper half\n")


def test_what_the_page_says(folder: Path) -> None:
    """Page, record and map agree on the number of significant voxels and on the strongest peak."""
    page = (folder / "group_contrast-bAphasia.html").read_text()
    record = json.loads((folder / "group_contrast-bAphasia_design.json").read_text())
    stem = f"space-{synthetic.SPACE}_contrast-bAphasia_stat"
    t = nib.load(folder / f"{stem}-z_desc-GSP_statmap.nii.gz").get_fdata()
    n = np.count_nonzero(np.abs(t) > record["Threshold"])
    assert n >= 10
    assert f"<strong>{n} voxels of {t.size} are significant</strong>" in page
    voxel = np.unravel_index(np.argmax(t), t.shape)
    x, y, z = nib.affines.apply_affine(synthetic.RADIOLOGICAL, voxel).round().astype(int).tolist()
    first_row = re.search(r'<tr><td data-value="[^"]*">([^<]*)</td>', page)[1]
    assert first_row.replace("\N{MINUS SIGN}", "-") == f"{x}, {y}, {z}"
    assert re.search(r"<th scope=\"col\">Halves</th></tr>.*?<td>upper half</td></tr>", page, re.DOTALL)
    assert "&lt;b&gt;aphasia: yes (n = 8) against no (n = 8)" in page
    assert "<b>aphasia" not in page
    assert "where at least 75 % of them have a t beyond 7" in page
    assert "the same with lesion volume" in page
    assert "<li>What is damaged or altered in the patients: it shows where their lesions are connected" in page
    assert "lesion volume alone" in page
    assert "p is coarse: with 199 permutations" in page
    assert "Outlined in green: at least 10 % of the patients are lesioned." in page
    assert "Threshold of |z|" in page
    assert f"|z| above {record['Threshold']:.3g} is significant" in page
    assert f"<dd>yes relative to no: {record['VarianceRatio']:.3g}</dd>" in page
    assert "target Papez: r_outside is not tested, for it is undefined in sub-03" in page
    assert '<th scope="row">Papez</th><td>spatial correlation</td><td class="number">' in page
    assert '<td>spatial correlation outside the lesion</td><td class="number">n/a</td>' in page
    assert "group_contrast-bAphasia_targets.tsv" in page
    assert "spatial correlation with Papez, and the mean" in page
    assert "[@freedman1983]" in page
    assert "@article{winkler2014," in page


def test_nothing_significant(folder: Path) -> None:
    """A page without significant voxels says so, in words and on its picture's caption."""
    page = (folder / "group_contrast-score.html").read_text()
    assert "<strong>No voxel of 385 is significant</strong>" in page
    assert "NO voxel is significant. The strongest tenth is shown" in page
    assert "Positive: none." in page
    assert "Sensitivity" not in page
    assert "Target networks" not in page


def test_pictures_and_links(folder: Path) -> None:
    """Each picture and file that a page links to is there; a removed test leaves nothing behind."""
    for label in ("bAphasia", "score"):
        page = (folder / f"group_contrast-{label}.html").read_text()
        linked = re.findall(r'(?:src|href)="\./([^"#]+)', page)
        assert len([link for link in linked if link.endswith(".png")]) >= 10
        assert all((folder / link).is_file() for link in linked)
        assert "http" not in re.sub(r"<pre.*?</pre>", "", page, flags=re.DOTALL)
    assert [(link.page, link.n_significant > 0) for link in link_tests(folder)] == [
        ("group_contrast-bAphasia.html", True),
        ("group_contrast-score.html", False),
    ]


def test_removed_with_its_page(folder: Path, tmp_path: Path) -> None:
    """Removing a test removes its page and pictures, and nothing of another test."""
    copy = shutil.copytree(folder, tmp_path / "copy")
    remove_test(copy, "score")
    assert not list(copy.rglob("*score*"))
    assert len(list(copy.rglob("*contrast-bAphasia*"))) == len(list(folder.rglob("*contrast-bAphasia*")))


def test_accessible(folder: Path, browser: Browser) -> None:
    """A page has no violations of axe's rules, in a wide and in a narrow window."""
    for width in (1280, 390):
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.goto((folder / "group_contrast-bAphasia.html").as_uri())
        assert Axe().run(page).violations_count == 0
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.close()
