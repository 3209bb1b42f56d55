"""The participants' pages: their contents, that they are self-contained, and how they behave in a browser."""

from __future__ import annotations

import csv
import html
import json
import logging
import re
import shutil
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

import nibabel as nib
import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, Page, expect
from program import run, run_as_user
from synthetic import write_mask

from bids_lacuna import demo
from bids_lacuna.bids import LesionMask
from bids_lacuna.derivatives.history import read_run
from bids_lacuna.derivatives.records import LesionRecord
from bids_lacuna.report.figures import mosaic
from bids_lacuna.report.maps_on_disk import find_mapped_lesions, find_participants, page_anchor
from bids_lacuna.report.participant import _run_rows, write_participant_report
from bids_lacuna.report.pool import (
    WORKER_BYTES,
    ReportPool,
    choose_n_workers,
    participants_with_news,
    worker_bytes,
)
from bids_lacuna.runtime import progress

# The processes that draw give way to all others, so that a busy machine takes long.
pytestmark = pytest.mark.timeout(400)


class Elements(HTMLParser):
    """The start tags of a page with their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Record a tag."""
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        """Record text."""
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """Return the attributes of each element with a tag."""
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Map lesions of two participants of the demo, one of whom also has an empty mask; return the output."""
    folder = tmp_path_factory.mktemp("finished")
    demo.main([str(folder)])
    empty = f"sub-04_space-{demo.SPACE}_label-stroke_mask.nii.gz"
    write_mask(folder / "bids" / "sub-04" / "anat" / empty, np.zeros(demo.LESION_SHAPE), demo.LESION_AFFINE)
    result = run_as_user(
        *(folder / "bids", folder / "out", "participant", "--connectome", folder / "connectome"),
        *("--participant-label", "02", "04", "--t-threshold", "7", "--lesion-batch-size", "1", "--nprocs", "2"),
    )
    assert result.returncode == 1, result.stderr
    assert "report" not in result.stderr
    return folder / "out"


@pytest.fixture(scope="module")
def pages(finished: Path) -> dict[str, Elements]:
    """Parse both pages."""
    return {label: Elements((finished / f"sub-{label}.html").read_text(encoding="utf-8")) for label in ("02", "04")}


def test_each_lesion_has_its_section(finished: Path, pages: dict[str, Elements]) -> None:
    """Sessions and labels are in the headings, and the table of contents links to each."""
    headings = {
        "02": ["Session 1: lesion, in connectome connectome", "Session 2: lesion, in connectome connectome"],
        "04": ["Lesion, in connectome connectome"],
    }
    for label, page in pages.items():
        assert all(heading in page.text for heading in headings[label])
        ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
        assert len(ids) == len(set(ids))
        assert {page_anchor(lesion) for lesion in find_mapped_lesions(finished, label)} <= set(ids)
        targets = [a["href"] for a in page.all("a") if str(a.get("href")).startswith("#")]
        assert {target.removeprefix("#") for target in targets} <= set(ids)
        assert len([section for section in page.all("section") if section.get("class") == "lesion"]) == len(
            headings[label]
        )


def test_pages_are_self_contained(finished: Path, pages: dict[str, Elements]) -> None:
    """Every link and picture is a file in the output, nothing comes from the web, and a page stays under 5 MB."""
    for page in pages.values():
        links = [a["href"] for a in page.all("a")] + [image["src"] for image in page.all("img")]
        links += [frame["data-src"] for frame in page.all("iframe")]
        files = {unquote(str(link).partition("#")[0]) for link in links if not str(link).startswith("#")}
        assert all((finished / link).is_file() and link.startswith("./") for link in files)
        size = sum((finished / link).stat().st_size for link in files if link.endswith(".png"))
        assert 50_000 < size < 5e6 / 2
        assert not [tag for tag, attributes in page.tags if tag != "a" and "http" in str(attributes)]


def test_pictures_are_described(finished: Path, pages: dict[str, Elements]) -> None:
    """Each picture has an alternative text and its true size."""
    for page in pages.values():
        images = page.all("img")
        assert len(images) in (4, 8)
        for image in images:
            assert len(str(image["alt"])) > 40
            with Image.open(finished / unquote(str(image["src"]))) as picture:
                assert picture.size == (int(str(image["width"])), int(str(image["height"])))
        assert any(re.search("(Left|Right) hemisphere", str(image["alt"])) for image in images)


def facts(page: str) -> list[dict[str, str]]:
    """Return the facts of each lesion."""
    lists = re.findall(r"<dl>(.*?)</dl>", page, re.DOTALL)
    return [
        {name: html.unescape(value) for name, value in re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", each)}
        for each in lists
    ]


def number(text: str) -> float:
    """Return a number as written on the page."""
    return float(text.replace("\N{MINUS SIGN}", "-").replace("\N{NARROW NO-BREAK SPACE}", ""))


def test_facts_match_the_files(finished: Path, pages: dict[str, Elements]) -> None:
    """Volume, coverage, side and centre match the sidecar and the mask; all maps are among the files."""
    sessions = facts((finished / "sub-02.html").read_text())
    summaries = re.findall(r"(\w+) hemisphere, (\S+) mL\.\s+(\S+) % of it inside", pages["02"].text)
    for told, session, (side, volume_ml, coverage) in zip(sessions, ("1", "2"), summaries, strict=True):
        (r_map,) = (finished / f"sub-02/ses-{session}/func").glob("*stat-r*.nii.gz")
        sidecar = json.loads(r_map.with_name(r_map.name.replace(".nii.gz", ".json")).read_text())
        assert number(volume_ml) == pytest.approx(sidecar["LesionVolume"] / 1000, rel=0.01)
        assert number(coverage) == pytest.approx(100 * sidecar["LesionCoverage"], rel=0.01)
        assert side == "Right"
        centre = [number(coordinate) for coordinate in told["Centre (mm)"].split(", ")]
        assert np.linalg.norm(np.array(centre) - (13, -18, 8)) < 6
        links = [unquote(str(a["href"])).removeprefix("./") for a in pages["02"].all("a")]
        for path in r_map.parent.glob("*.nii.gz"):
            assert path.relative_to(finished).as_posix() in links


def test_left_is_left_throughout_the_page(tmp_path: Path) -> None:
    """For a lesion of one voxel and a cluster on the left, the sentence, the table and the picture say left."""
    affine, shape = np.array([[-4.0, 0, 0, 90], [0, 4, 0, -126], [0, 0, 4, -72], [0, 0, 0, 1]]), (46, 55, 46)
    mask, values = np.zeros(shape), np.full(shape, 0.01, np.float32)
    mask[30, 25, 22] = 1
    values[30:33, 28, 22] = 0.7, 0.8, 0.7
    values[12:15, 28, 22] = -0.002
    folder = tmp_path / "out" / "sub-x" / "func"
    folder.mkdir(parents=True)
    write_mask(tmp_path / "mask.nii.gz", mask, affine)
    nib.save(nib.Nifti1Image(values, affine), folder / "sub-x_stat-r_desc-c_statmap.nii.gz")
    sidecar = {
        "Sources": ["bids:source:mask.nii.gz"],
        "ConnectomeName": "c",
        "LesionVolume": 64.0,
        "LesionCoverage": 1.0,
    }
    (folder / "sub-x_stat-r_desc-c_statmap.json").write_text(json.dumps(sidecar))
    (tmp_path / "out/dataset_description.json").write_text(json.dumps({"DatasetLinks": {"source": ".."}}))
    assert write_participant_report(tmp_path / "out", "x") == []
    page = Elements((tmp_path / "out/sub-x.html").read_text(encoding="utf-8"))
    assert "Left hemisphere, 0.064 mL." in page.text
    assert [a["data-mm"] for a in page.all("a") if "data-mm" in a] == ["-34.0,-14.0,16.0"]
    # Three adjacent voxels of a negligible r are no cluster.
    negative = "Negative: none with r < \N{MINUS SIGN}0.01; the strongest has its peak at r = \N{MINUS SIGN}0.002."
    assert negative in page.text
    lesion, r_map = (
        np.asarray(Image.open(tmp_path / "out" / str(image["src"])).convert("RGB"), int) for image in page.all("img")
    )
    assert "Highest r outside the lesion: r = 0.8, at \N{MINUS SIGN}34, \N{MINUS SIGN}14, 16 mm" in str(
        page.all("img")[1]["alt"]
    )
    red = (lesion == [215, 25, 28]).all(axis=-1).nonzero()[1] % mosaic.CELL_PIXELS
    assert red.size
    assert (red < mosaic.CELL_PIXELS / 2).all()
    # The coronal and the axial slices through the peak are the second and the third of three, 240 pixels wide.
    hot = (r_map == [128, 0, 38]).all(axis=-1)[:600].nonzero()[1] - (279 + mosaic.GAP_PIXELS)
    across = hot[hot >= 0] % (240 + mosaic.GAP_PIXELS)
    assert across.size
    assert (across < 120).all()
    # Without the mask, the peaks may lie in the lesion.
    assert page.text.count("outside the lesion") == 2
    (tmp_path / "mask.nii.gz").unlink()
    assert write_participant_report(tmp_path / "out", "x") == []
    page = Elements((tmp_path / "out/sub-x.html").read_text(encoding="utf-8"))
    assert "outside the lesion" not in page.text
    assert "Highest r: r = 0.8, at" in str(page.all("img")[0]["alt"])


def test_a_map_without_lesion_and_clusters_is_drawn(tmp_path: Path) -> None:
    """Without a mask and a peak, the slices of all maps pass through the template's origin."""
    affine, values = np.diag([20.0, 20, 20, 1]), np.full((5, 5, 5), 0.01, np.float32)
    affine[:3, 3] = -40
    folder = tmp_path / "sub-x" / "func"
    folder.mkdir(parents=True)
    (tmp_path / "dataset_description.json").write_text("{}")
    for stat, kind, own in (("r", "c_statmap", {}), ("t", "cT7_mask", {"Threshold": 7})):
        stem = folder / f"sub-x_stat-{stat}_desc-{kind}"
        nib.save(nib.Nifti1Image(values, affine), f"{stem}.nii.gz")
        Path(f"{stem}.json").write_text(json.dumps({"Sources": ["bids:x:y"], "ConnectomeName": "c"} | own))
    assert write_participant_report(tmp_path, "x") == []
    page = Elements((tmp_path / "sub-x.html").read_text(encoding="utf-8"))
    texts = [str(image["alt"]) for image in page.all("img")]
    assert len(texts) == 2
    assert all("Template's origin: " in text and "at 0, 0, 0 mm" in text for text in texts)


def test_captions_count_the_voxels(finished: Path, pages: dict[str, Elements]) -> None:
    """The captions of r and of the binary map give the fractions of voxels above and below the thresholds."""
    (r_map, t_map) = (
        nib.load(next((finished / "sub-04/func").glob(f"*stat-{stat}_*statmap.nii.gz"))).get_fdata() for stat in "rt"
    )
    text = pages["04"].text
    (threshold,) = {number(each) for each in re.findall(r"Shown: \|r\| > (\S+),", text)}
    assert np.nanquantile(np.abs(r_map), 0.9) == pytest.approx(threshold, rel=0.05)
    for pattern, values, least in (
        (r": (\S+) % of the voxels have r > \S+, (\S+) % have r < ", r_map, threshold),
        (r": (\S+) % of the voxels have t > 7 \(orange\), (\S+) % have t < .7 \(blue\)", t_map, 7),
    ):
        above, below = re.findall(pattern, text)[0]
        n_defined = np.isfinite(values).sum()
        assert number(above) == pytest.approx(100 * (values > least).sum() / n_defined, abs=0.51)
        assert number(below) == pytest.approx(100 * (values < -least).sum() / n_defined, abs=0.51)
    is_most = (np.abs(t_map) > 7).sum() > np.isfinite(t_map).sum() / 2
    assert ("does not single out a network" in text) == is_most


def test_clusters_match_the_map(finished: Path) -> None:
    """Each peak in the downloadable table has the r and the t of the maps at its position."""
    tables = sorted((finished / "sub-04/figures").glob("*_clusters.tsv"))
    assert len(tables) == 1
    for table in tables:
        stem = table.name.removesuffix("_clusters.tsv").replace("_desc-", "_stat-{}_desc-")
        r_map, t_map = (nib.load(finished / f"sub-04/func/{stem.format(stat)}_statmap.nii.gz") for stat in ("r", "t"))
        rows = list(csv.DictReader(table.read_text().splitlines(), delimiter="\t"))
        assert rows
        for row in rows:
            point = [float(row[f"{axis}_mm"]) for axis in "xyz"]
            voxel = tuple(np.rint(nib.affines.apply_affine(np.linalg.inv(r_map.affine), point)).astype(int))
            assert float(row["r"]) == pytest.approx(r_map.get_fdata()[voxel], rel=1e-4)
            assert float(row["t"]) == pytest.approx(t_map.get_fdata()[voxel], rel=1e-4)
            assert (float(row["r"]) > 0) == (row["sign"] == "positive")


def test_similarity_to_the_connectome(finished: Path, tmp_path: Path, browser: Browser) -> None:
    """Each correlation in a sidecar is a number and a bar, to the left of the middle where it is negative.

    Target networks have a row each. The chart is no wider than a phone.
    """
    out = shutil.copytree(finished, tmp_path / "out")
    assert "Similarity to the connectome" not in (out / "sub-04.html").read_text(encoding="utf-8")
    (path,) = out.glob("sub-04/func/*_stat-r_*.json")
    similarity = {"Degree": 0.75, "AbsoluteDegree": 0.5, "PC1": -0.25, "PC2": None, "PC3": 0, "RSquared": 0.625}
    nulls = {"RPercentile": 88.4, "DamageScorePercentile": 5}
    target = {"File": "t.nii", "R": -0.25, "ROutsideLesion": 0.125, "DamageScore": None, "NullLesions": nulls}
    more = {"ConnectomeSimilarity": similarity, "TargetNetworks": {"circuit": target}}
    path.write_text(json.dumps(json.loads(path.read_text()) | more))
    assert write_participant_report(out, "04") == []
    page = (out / "sub-04.html").read_text(encoding="utf-8")
    assert "explain 62.5 % of this map" in page.replace("\N{NO-BREAK SPACE}", " ").replace(
        "\N{NARROW NO-BREAK SPACE}", " "
    )
    (table,) = re.findall(r'<table class="bars">(.*?)</table>', page, re.DOTALL)
    bars = re.findall(
        r'<th scope="row">(.*?)</th>.*?<rect x="(.*?)" width="(.*?)".*?<td class="number">(.*?)</td>', table
    )
    assert [(name, float(x), float(width), number(r)) for name, x, width, r in bars] == [
        ("Degree", 0, 75, 0.75),
        ("Absolute degree", 0, 50, 0.5),
        ("Principal component 1", -25, 25, -0.25),
        ("Principal component 3", 0, 0, 0),
    ]
    (row,) = re.findall(r'<th scope="row">circuit</th>(.*)</tr>', page)
    assert re.findall(r"<td.*?>(.*?)</td>", row) == [
        "\N{MINUS SIGN}0.250", "0.125", "88", "\N{EN DASH}", "5", "t.nii",
    ]  # fmt: skip
    with closing(browser.new_page(viewport={"width": 390, "height": 844})) as phone:
        phone.goto((out / "sub-04.html").as_uri())
        assert phone.evaluate("document.documentElement.scrollWidth") <= 390


def test_the_page_describes_the_run(finished: Path, pages: dict[str, Elements]) -> None:
    """The page has the connectome, its hash and size, command, memory, the warning about t, failures and methods."""
    (log,) = finished.glob("logs/*/run.json")
    record = json.loads(log.read_text())
    assert record["finished"]
    assert record["n_connectome_subjects"] == 16
    assert 0 < record["peak_bytes"] < record["planned_bytes"]
    for page in pages.values():
        for words in (
            record["provenance"]["connectome_hash"],
            record["command"],
            "t grows with the number of connectome subjects",
        ):
            assert words in page.text
        assert "only 16 subjects" in page.text
        assert (finished / "logs/CITATION.md").read_text().split("\n\n")[0] in page.text
        assert "@article{boes2015" in page.text
    assert "label-stroke_mask.nii.gz was not mapped: the mask is empty" in pages["04"].text
    assert "was not mapped" not in pages["02"].text


def test_a_lesion_threshold_is_among_the_settings(finished: Path) -> None:
    """The page says how probability maps were thresholded, and nothing about it for binary masks."""
    (log,) = finished.glob("logs/*/run.json")
    run = read_run(log.parent)
    options = replace(run.provenance.options, lesion_threshold=0.3)
    assert "Lesion threshold" not in dict(_run_rows(run))
    rows = dict(_run_rows(replace(run, provenance=replace(run.provenance, options=options))))
    assert rows["Lesion threshold"] == "0.3"


def test_reports_only_rewrites_the_pages(finished: Path, pages: dict[str, Elements], tmp_path: Path) -> None:
    """--reports-only rewrites the same page and pictures from the files; an unknown participant is an error."""
    out = shutil.copytree(finished, tmp_path / "out")
    # The masks are where the dataset's description says, relative to the output.
    (tmp_path / "bids").symlink_to(finished.parent / "bids")
    for path in [*out.glob("*.html"), *out.glob("sub-*/figures")]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    result = run(tmp_path / "bids", out, "participant", "--reports-only", "--participant-label", "sub-04")
    assert result.returncode == 0, result.stderr
    assert [path.name for path in out.glob("*.html")] == ["sub-04.html"]
    again = Elements((out / "sub-04.html").read_text())
    assert [tag for tag, _ in again.tags] == [tag for tag, _ in pages["04"].tags]
    assert facts((out / "sub-04.html").read_text()) == facts((finished / "sub-04.html").read_text())
    for path in (finished / "sub-04/figures").iterdir():
        assert (out / "sub-04/figures" / path.name).exists()
    unknown = run(tmp_path / "bids", out, "participant", "--reports-only", "--participant-label", "99")
    assert unknown.returncode == 66
    assert "there are 02, 04" in unknown.stderr


def test_pictures_of_earlier_pages_are_removed(finished: Path, tmp_path: Path) -> None:
    """A new page removes those pictures of its own lesions that it does not show, and no other file."""
    out = shutil.copytree(finished, tmp_path / "out")
    bids = shutil.copytree(finished.parent / "bids" / "sub-02", tmp_path / "bids" / "sub-02")
    folder = out / "sub-02" / "figures"
    before = {path.name for path in folder.iterdir()}
    stem = min(name for name in before if name.endswith("_lesion.png")).removesuffix("_lesion.png")
    # A mask that could not be mapped may have a name that begins as that of the lesion's files does.
    mask = min(bids.rglob("*_mask.nii.gz"))
    shutil.copy(mask, mask.with_name(f"{stem}_mask.nii.gz"))
    (dataset,) = json.loads((out / "dataset_description.json").read_text())["DatasetLinks"]
    log_dir = out / "logs" / "20260101"
    log_dir.mkdir()
    (log_dir / "lesions.tsv").write_text(
        "dataset\tmask\tsub\tspace\tstatus\treason\n"
        f"{dataset}\tsub-02/{mask.parent.relative_to(bids).as_posix()}/{stem}_mask.nii.gz\t02\t{demo.SPACE}\tfailed\tn/a\n"
    )
    earlier = {f"{stem}_r-mosaic.png", f"{stem}_r-glass.png", f"{stem}_t7p5-mask.png"}
    others = {f"{stem}2_r-map.png", f"{stem}_notes.txt", f"my_{stem}_r-map.png", "r-map.png"}
    for each in earlier | others:
        (folder / each).touch()
    write_participant_report(out, "02")
    assert {path.name for path in folder.iterdir()} == before | others | {f"{stem}_mask_lesion.png"}
    images = Elements((out / "sub-02.html").read_text()).all("img")
    pictures = {each for each in before if each.endswith(".png")}
    assert {Path(unquote(str(image["src"]))).name for image in images} == {*pictures, f"{stem}_mask_lesion.png"}


def test_a_dry_run_of_reports_only_writes_none(finished: Path, tmp_path: Path) -> None:
    """It says how many pages it would write, and what they cost; with too little memory, what to do."""
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    command = (tmp_path, finished, "participant", "--reports-only")
    result = run(*command, "--dry-run")
    assert result.returncode == 0, result.stderr
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before
    words = (
        r"reports +2, of 3 lesions\ndisk +about ([\d.]+) (KiB|MiB)\ntime +about \d+ s \([\d.]+ s per lesion, in \d"
    )
    found = re.match(words, result.stdout)
    assert found, result.stdout
    written = sum(path.stat().st_size for path in before if "figures" in path.parts or path.suffix == ".html")
    estimated = float(found[1]) * {"KiB": 2**10, "MiB": 2**20}[found[2]]
    assert estimated == pytest.approx(written, rel=0.1)
    result = run(*command, "--mem", "500")
    assert result.returncode == 1
    assert "500 MiB of memory are available, reports need 720 MiB: raise --mem" in result.stderr


EVIL = """<script>alert("1")</script>'"""


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """Write an output whose r-map has no image and a sidecar full of markup, and a row about a mask that failed."""
    folder = tmp_path / "sub-x" / "func"
    folder.mkdir(parents=True)
    (tmp_path / "dataset_description.json").write_text(json.dumps({"DatasetLinks": {"source": "../bids"}}))
    sidecar: dict[str, Any] = {
        "Sources": [f"bids:source:{EVIL}"],
        "ConnectomeName": EVIL,
        "SpatialReference": EVIL,
        "NumberOfConnectomeSubjects": 1,
        "LesionVolume": 11.0,
        "LesionCoverage": 0.29,
    }
    (folder / 'sub-x_label-<b>&"_stat-r_desc-x_statmap.json').write_text(json.dumps(sidecar))
    log_dir = tmp_path / "logs" / f"20260101_{EVIL.replace('/', '')}"
    log_dir.mkdir(parents=True)
    (log_dir / "lesions.tsv").write_text(
        f"dataset\tmask\tsub\tstatus\treason\nsource\t{EVIL}.nii.gz\tx\tfailed\t{EVIL}\n"
    )
    return tmp_path


def test_markup_in_names_stays_text(odd: Path) -> None:
    """Tags in names, sidecars and reasons add no element to the page and end no attribute."""
    write_participant_report(odd, "x")
    text = (odd / "sub-x.html").read_text()
    page = Elements(text)
    assert len(page.all("script")) == 1
    assert "alert" not in text.partition("<script>")[2]
    assert not page.all("b")
    assert EVIL in page.text
    names = {"href", "class", "download", "data-viewer", "data-mm"}
    assert all(set(attributes) <= names for attributes in page.all("a"))


@pytest.mark.parametrize(("coverage", "is_low"), [(0.5, False), (np.nextafter(0.5, 0), True)])
def test_a_lesion_less_than_half_inside_has_a_warning(odd: Path, coverage: float, is_low: bool) -> None:
    """The page warns if less than half of a lesion lies inside the connectome's mask."""
    (sidecar,) = odd.glob("sub-x/func/*.json")
    sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | {"LesionCoverage": coverage}))
    write_participant_report(odd, "x")
    warned = "of the lesion lies inside the connectome" in Elements((odd / "sub-x.html").read_text()).text
    assert warned == is_low


def test_what_cannot_be_drawn_is_reported(odd: Path) -> None:
    """Without the map's image, the page is written and says what is missing; so does the return value."""
    (problem,) = write_participant_report(odd, "x")
    assert "pictures could not be drawn" in problem
    text = Elements((odd / "sub-x.html").read_text()).text
    for words in (
        "pictures could not be drawn",
        "its mask cannot be read",
        "only 29 % of the lesion lies inside",
        "the connectome has one subject: t is undefined",
        "was not mapped",
        "The logs of the run no longer exist",
    ):
        assert words in text
    assert find_participants(odd) == ["x"]


@pytest.fixture
def failed(tmp_path: Path) -> Path:
    """Map a participant whose only mask is empty."""
    demo.main([str(tmp_path)])
    for path in (tmp_path / "bids" / "sub-01").rglob("*_mask.nii.gz"):
        write_mask(path, np.zeros(demo.LESION_SHAPE), demo.LESION_AFFINE)
    options = ("--connectome", tmp_path / "connectome", "--participant-label", "01", "--t-threshold", "7")
    assert run(tmp_path / "bids", tmp_path / "out", "participant", *options).returncode == 1
    return tmp_path / "out"


def test_the_page_of_a_failed_lesion_describes_its_run(failed: Path) -> None:
    """The logs exist, and the page has them: the run, its table, and that there are no methods to describe."""
    page = Elements((failed / "sub-01.html").read_text())
    (log,) = failed.glob("logs/*/run.json")
    for words in (
        "was not mapped: the mask is empty",
        json.loads(log.read_text())["command"],
        "Connectome hash",
        "No lesion of this participant was mapped, so there are no methods to describe.",
    ):
        assert words in page.text
    assert "no longer exist" not in page.text
    assert "What the maps do not mean" not in page.text
    assert "The mask is not drawn: " in page.text
    log_link = f"./{log.parent.relative_to(failed)}/bids-lacuna.log"
    assert [a["href"] for a in page.all("a")].count(log_link) == 2
    assert f"./{log.parent.relative_to(failed)}/lesions.tsv" in [a["href"] for a in page.all("a")]
    # Without run.json, the table is still there.
    log.unlink()
    write_participant_report(failed, "01")
    page = Elements((failed / "sub-01.html").read_text())
    assert "run.json, beside the table, is missing, damaged, or of another version" in page.text
    assert "no longer exist" not in page.text
    # Without any log, nothing is known.
    shutil.rmtree(failed / "logs")
    write_participant_report(failed, "01")
    assert "no run has a record of one" in Elements((failed / "sub-01.html").read_text()).text


def test_a_mask_that_was_not_mapped_is_drawn(failed: Path) -> None:
    """If it can be read, the mask is on the page, on its side of the template, with its position in words."""
    (mask,) = (failed.parent / "bids" / "sub-01").rglob("*_mask.nii.gz")
    voxels = np.zeros(demo.LESION_SHAPE)
    voxels[20:25, 60:65, 40:45] = 1
    write_mask(mask, voxels, demo.LESION_AFFINE)
    write_participant_report(failed, "01")
    page = Elements((failed / "sub-01.html").read_text())
    (image,) = page.all("img")
    x, y, z = demo.LESION_AFFINE[:3, :3] @ [22, 62, 42] + demo.LESION_AFFINE[:3, 3]
    assert f"{x:.0f}, {y:.0f}, {z:.0f}".replace("-", "\N{MINUS SIGN}") in str(image["alt"])
    with Image.open(failed / unquote(str(image["src"]))) as picture:
        assert picture.size == (int(str(image["width"])), int(str(image["height"])))
    assert "The mask is not drawn" not in page.text
    # In its T1w, the mask may lie anywhere on the template.
    (table,) = failed.glob("logs/*/lesions.tsv")
    table.write_text(table.read_text().replace(f"\t{demo.SPACE}\t", "\tT1w\t"))
    write_participant_report(failed, "01")
    page = Elements((failed / "sub-01.html").read_text())
    assert "The mask is not drawn: it lies in the participant's own space T1w" in page.text
    assert not page.all("img")


def test_a_page_that_fails_stops_nothing(
    odd: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page that cannot be written is a warning with the reason; the others are written; both are counted."""
    (odd / "sub-y.html").mkdir()
    (odd / "sub-y").mkdir()
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0)
    with caplog.at_level(logging.INFO, logger="bids_lacuna"), ReportPool(odd, 1) as reports:
        reports.submit(["y", "x"])
        reports.submit(["x"])
        assert reports.wait() == 1
    assert "sub-y.html could not be written (IsADirectoryError" in caplog.text
    assert "sub-x.html: Lesion" in caplog.text
    counted = [record.message.partition(",")[0] for record in caplog.records if record.message.startswith("pages: ")]
    assert counted == ["pages: 0 of 2", "pages: 1 of 2", "pages: 2 of 2"]
    assert (odd / "sub-x.html").is_file()


@pytest.mark.parametrize(
    ("modules", "unwanted"),
    [
        ("bids_lacuna.report.methods, bids_lacuna.report.pool", {"nilearn", "matplotlib", "PIL", "jinja2"}),
        ("bids_lacuna.report.participant", {"bids", "nilearn", "matplotlib", "pandas"}),
        ("bids_lacuna.report.group", {"bids", "nilearn", "pandas"}),
    ],
    ids=["mapping", "participant", "group"],
)
def test_a_process_loads_only_what_it_uses(modules: str, unwanted: set[str]) -> None:
    """Mapping loads nothing that draws, and drawing loads no pybids; matplotlib is for the group's page alone."""
    code = f"import sys, {modules}; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not unwanted & set(result.stdout.split())


def test_when_a_page_is_due(tmp_path: Path) -> None:
    """A page is due once no lesion is pending, if any was not skipped or there is no page yet."""
    masks = {label: LesionMask(tmp_path / "m.nii.gz", {"sub": label}, None, "source", tmp_path) for label in "abcde"}
    statuses = [("a", "done"), ("a", "pending"), ("b", "done"), ("b", "failed"), ("c", "skipped"), ("d", "skipped")]
    records = [LesionRecord(masks[label], status) for label, status in statuses]
    (tmp_path / "sub-c.html").touch()
    (tmp_path / "sub-b.html").touch()
    assert participants_with_news(tmp_path, records) == ["b", "d"]


@pytest.mark.parametrize(
    ("mib", "n_threads", "expected"),
    [(719, 8, 0), (720, 8, 1), (3839, 8, 1), (3840, 8, 2), (2**20, 8, 4), (2**20, 3, 3)],
)
def test_workers_follow_memory_and_processors(mib: int, n_threads: int, expected: int) -> None:
    """Below 720 MiB none; otherwise one to four, within an eighth of the memory: two of 240 MiB in 3.75 GiB."""
    assert WORKER_BYTES == 240 * 2**20
    assert choose_n_workers(mib * 2**20, n_threads) == expected


def test_pages_of_fine_maps_take_more_memory() -> None:
    """Maps at 2 mm fit into 240 MiB; at 1 mm, a process takes 28 bytes more for each further voxel."""
    assert worker_bytes(91 * 109 * 91) == WORKER_BYTES
    fine = worker_bytes(182 * 218 * 182)
    assert fine == WORKER_BYTES + 28 * (182 * 218 * 182 - 2**20)
    assert [choose_n_workers(available, 8, fine) for available in (3 * fine - 1, 3 * fine, 16 * fine)] == [0, 1, 2]


@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)], ids=["desktop", "phone"])
def test_in_a_browser(finished: Path, browser: Browser, width: int, height: int) -> None:
    """Links work, tables sort and the viewer opens, without an error or a request to the web."""
    page = browser.new_page(viewport={"width": width, "height": height})
    errors, requests = [], []
    page.on("console", lambda message: errors.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto((finished / "sub-02.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for link in page.locator("nav a").all():
        link.click()
        target = page.locator("#" + str(link.get_attribute("href")).removeprefix("#"))
        page.wait_for_function(
            "element => Math.abs(element.getBoundingClientRect().top) < innerHeight", arg=target.element_handle()
        )
    check_sorting(page)
    assert not [url for url in requests if "viewer" in url]
    check_switch(page)
    check_viewer(page)
    check_peak(page)
    page.get_by_role("button", name="Copy the text").click()
    page.get_by_text(re.compile("Copied|Selected")).wait_for()
    assert errors == []
    assert all(url.startswith(("file:", "data:")) for url in requests)
    page.close()


def check_sorting(page: Page) -> None:
    """Sort the table of lesions by volume, ascending and descending."""
    table = page.get_by_role("table", name="Lesions of this participant")
    button = table.get_by_role("button", name="Volume (mL)")
    orders = []
    for _ in range(2):
        button.click()
        orders.append(
            [float(cell.get_attribute("data-value")) for cell in table.locator("tbody td:nth-child(2)").all()]
        )
    assert orders[0] == sorted(orders[0])
    assert orders[1] == orders[0][::-1]
    assert len(set(orders[0])) == 2


def check_viewer(page: Page) -> None:
    """Open the first viewer: it shows slices and starts at the lesion's centre."""
    page.locator("details.viewer summary").first.click()
    # Chromium draws nothing in a frame from disk that is out of sight.
    page.locator("iframe").first.scroll_into_view_if_needed()
    frame = page.frame_locator("iframe").first
    frame.locator("#axial canvas").wait_for()
    assert str(frame.locator("h1").text_content()).startswith("Maps of sub-02: Session 1: ")
    centre = [number(part) for part in facts(page.content())[0]["Centre (mm)"].split(", ")]
    expect(frame.locator("#z")).not_to_have_value("")
    reached = [float(frame.locator(f"#{axis}").input_value()) for axis in "xyz"]
    np.testing.assert_allclose(reached, centre, atol=0.5)
    colours = "canvas => new Set(canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data).size"
    page.wait_for_timeout(500)
    assert frame.locator("#axial canvas").evaluate(colours) > 50


def check_switch(page: Page) -> None:
    """By keyboard, the switch shows the next map instead of r; on paper, there is r and no switch."""
    maps = page.locator(".maps").first
    switch, pictures = maps.get_by_role("radio"), maps.locator("figure")

    def shown() -> list[bool]:
        return [picture.is_visible() for picture in pictures.all()]

    assert shown() == [True, False, False]
    switch.first.focus()
    page.keyboard.press("ArrowRight")
    assert switch.nth(1).is_checked()
    assert shown() == [False, True, False]
    assert "t-map" in str(maps.locator("img").nth(1).get_attribute("alt"))
    page.emulate_media(media="print")
    assert shown() == [True, False, False]
    assert not switch.first.is_visible()
    page.emulate_media(media="screen")


def check_peak(page: Page) -> None:
    """Follow the link of a peak: it moves the viewer there."""
    peak = page.locator("section.lesion").first.locator("a[data-mm]").last
    peak.click()
    wanted = [float(part) for part in str(peak.get_attribute("data-mm")).split(",")]
    axes = [page.frame_locator("iframe").first.locator(f"#{axis}") for axis in "xyz"]
    for axis, coordinate in zip(axes, wanted, strict=True):
        expect(axis).to_have_value(f"{coordinate:g}")
    # Its slices are in the window, however small that is.
    page.wait_for_function("Math.abs(document.querySelector('details.viewer').getBoundingClientRect().top) < 2")


BACKGROUND = "element => getComputedStyle(element).backgroundColor"

WHITE = "rgb(255, 255, 255)"


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "light"), (1280, "dark")])
def test_accessible(finished: Path, browser: Browser, width: int, scheme: Literal["light", "dark"]) -> None:
    """axe-core finds no violation on either page, and in the dark the page is dark while pictures stay on white."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    for path in finished.glob("sub-*.html"):
        page.goto(path.as_uri())
        results = Axe().run(page).response
        assert [(violation["id"], violation["impact"]) for violation in results["violations"]] == []
        assert (page.locator("body").evaluate(BACKGROUND) == WHITE) == (scheme == "light")
        assert page.locator("figure img").first.evaluate(BACKGROUND) == WHITE
    page.close()


def test_a_printed_page_keeps_headings_with_what_follows(finished: Path, browser: Browser) -> None:
    """On paper, the page is light, the viewer is left out, and no heading ends a sheet."""
    page = browser.new_page(color_scheme="dark")
    page.goto((finished / "sub-02.html").as_uri())
    page.emulate_media(media="print")
    assert (
        page.locator("body").evaluate("element => getComputedStyle(element).backgroundColor") == "rgb(255, 255, 255)"
    )
    assert not page.locator("details.viewer:visible, nav:visible").count()
    breaks = page.locator("h1, h2, h3, caption").evaluate_all(
        "elements => elements.map(element => getComputedStyle(element).breakAfter)"
    )
    assert set(breaks) == {"avoid"}
    # Chromium avoids no break between a heading and a flexible box.
    displays = page.locator("h3 + div").evaluate_all("all => all.map(each => getComputedStyle(each).display)")
    assert set(displays) == {"block"}
    page.close()
