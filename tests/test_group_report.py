"""The group's page: its contents, that it is self-contained, and how it behaves in a browser."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import nibabel as nib
import numpy as np
import pytest
import synthetic
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser
from program import read_tsv, run

from bids_lacuna.report.group import write_group_report
from bids_lacuna.report.group_drawing import OF_LESIONS, STAMP, whole_ticks

Array = np.ndarray

BOXES = {
    "sub-01_label-L": synthetic.box((3, 2, 3)),
    "sub-01_label-lesion": synthetic.box((0, 3, 5), (2, 3, 2)),
    "sub-02_ses-a_label-lesion": synthetic.box((3, 2, 4), (1, 2, 3)),
    "sub-03_label-lesion": synthetic.box((3, 0, 0), (2, 2, 2)),
    "sub-04_label-lesion": synthetic.box((0, 4, 8), (2, 1, 1)),
}
"""Boxes in arrays stored from right to left: low indices are on the right."""

OUTLIER = "sub-04_label-lesion"
"""Its maps have nothing in common with the others."""

LEFT_OUT = "sub-05_label-lesion"
"""It has no maps."""

# The processes that draw give way to all others, so that a busy machine takes long.
pytestmark = pytest.mark.timeout(400)


class Elements(HTMLParser):
    """The start tags of a page with their attributes, its text and its tables' rows."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.rows: list[list[str]] = []
        self.in_cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Record a tag."""
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self.in_cell = True

    def handle_endtag(self, tag: str) -> None:
        """Note the end of a cell."""
        if tag in ("td", "th"):
            self.in_cell = False

    def handle_data(self, data: str) -> None:
        """Record text, and a table's text by cell."""
        self.text += data
        if self.in_cell:
            self.rows[-1][-1] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """Return the attributes of each element with a tag."""
        return [attributes for name, attributes in self.tags if name == tag]


def path_of(name: str) -> str:
    """Return the path of a lesion's mask in its dataset, without the extension."""
    folders = [part for part in name.split("_") if part[:3] in ("sub", "ses")]
    before, label = name.rsplit("_", 1)
    return "/".join([*folders, "anat", f"{before}_space-{synthetic.SPACE}_{label}_mask"])


@pytest.fixture(scope="module")
def grouped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Describe five lesions with maps and leave out one without; three participants have pages."""
    root = tmp_path_factory.mktemp("grouped")
    bids, out = root / "bids", root / "out"
    masks = {path_of(name): box for name, box in {**BOXES, LEFT_OUT: synthetic.box((1, 1, 1))}.items()}
    synthetic.write_dataset(bids, masks)
    rng = np.random.default_rng(5)
    pattern = rng.standard_normal(synthetic.SHAPE)
    for name in BOXES:
        noise = rng.standard_normal(synthetic.SHAPE)
        z = (0.2 * (noise if name == OUTLIER else pattern + 0.3 * noise)).astype(np.float32)
        mask = bids / f"{path_of(name)}.nii.gz"
        sources = [f"bids:source:{mask.relative_to(bids).as_posix()}"]
        synthetic.write_lesion_maps(out, mask, {"r": np.tanh(z), "z": z, "t": 11 * z}, Sources=sources)
    for label in ("01", "02", "05"):
        (out / f"sub-{label}.html").write_text("<title>made up</title>")
    result = run(bids, out, "group", "--t-threshold", "2.5", "--ignore", "missing")
    assert result.returncode == 0, result.stderr
    assert "group.html" not in result.stderr
    return out


@pytest.fixture(scope="module")
def page(grouped: Path) -> Elements:
    """Parse the page."""
    return Elements((grouped / "group.html").read_text(encoding="utf-8"))


def table(out: Path) -> list[dict[str, str]]:
    """Read group_lesions.tsv."""
    return read_tsv(out / "group_lesions.tsv")


def number(text: str) -> float:
    """Return a number as written on the page."""
    return float(text.replace("\N{MINUS SIGN}", "-").replace("\N{NARROW NO-BREAK SPACE}", ""))


def linked_files(out: Path, page: Elements) -> list[str]:
    """Return the links to files, after checking that each file exists."""
    links = [str(a["href"]) for a in page.all("a")] + [str(image["src"]) for image in page.all("img")]
    files = [link for link in links if not link.startswith("#")]
    assert all(link.startswith("./") and (out / unquote(link.partition("#")[0])).is_file() for link in files)
    return files


def test_the_page_is_self_contained(grouped: Path, page: Elements) -> None:
    """Every link and picture is a file in the output or a section of the page; nothing comes from the web."""
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    places = {str(a["href"]).removeprefix("#") for a in page.all("a") if str(a["href"]).startswith("#")}
    assert len(places) == 10
    assert places <= set(ids)
    files = linked_files(grouped, page)
    assert not [tag for tag, attributes in page.tags if tag != "a" and "http" in str(attributes)]
    names = {path.name for path in grouped.glob("space-*") if path.suffix != ".json"}
    assert {"./group_lesions.tsv", "./group_lesions.json", *(f"./{name}" for name in names)} <= set(files)


def test_rows_match_the_table(grouped: Path, page: Elements) -> None:
    """Numbers, positions and outliers match group_lesions.tsv; a name is a link if there is a page."""
    rows = [row for row in page.rows if len(row) == 12][1:]
    assert [row[0] for row in rows] == list(BOXES)
    for row, cells in zip(rows, table(grouped), strict=True):
        assert number(row[1]) == pytest.approx(float(cells["volume"]) / 1000, rel=0.01)
        assert number(row[2]) == 75
        assert (row[3], row[5], row[11]) == (cells["side"], "5", cells["cluster_position"])
        for column, stat in ((6, "r"), (8, "t")):
            assert number(row[column]) == pytest.approx(float(cells[f"peak_{stat}"]), rel=0.01)
            mm = [float(cells[f"peak_{stat}_{axis}"]) for axis in "xyz"]
            assert [number(coordinate) for coordinate in row[column + 1].split(", ")] == mm
        assert number(row[10]) == pytest.approx(float(cells["r_with_group_mean"]), rel=0.01)
        assert row[4] == ("outlier" if cells["lesion"] == OUTLIER else "")
    linked = [str(a["href"]) for a in page.all("a") if str(a["href"]).startswith("./sub-")]
    place = f"lesion-sub-02-ses-a-space-{synthetic.SPACE}-label-lesion-desc-GSP"
    assert linked.count(f"./sub-02.html#{place}") == 2
    assert {link.partition("#")[0] for link in linked} == {"./sub-01.html", "./sub-02.html", "./sub-05.html"}


def test_the_page_describes_the_group(grouped: Path, page: Elements) -> None:
    """The page names outliers with the rule, lesions left out with the reason, warnings, and what was run."""
    description = json.loads((grouped / "group_lesions.json").read_text())
    assert description["Outliers"] == [OUTLIER]
    assert f"{OUTLIER}: r with the group mean" in page.text
    assert f"Look first at:\n\n{OUTLIER}: outlier" in page.text
    assert f"{sum(cells['side'] == 'left' for cells in table(grouped))} lesions on the left" in page.text
    (left_out,) = description["LeftOut"]
    assert [left_out["Lesion"], "missing", left_out["Reason"]] in page.rows
    assert description["Warnings"]
    for words in (
        *description["Warnings"],
        description["OutlierRule"],
        description["Interpretation"],
        "5 lesions of 4 participants, in connectome GSP; 1 lesion left out",
        "t grows with the number of connectome subjects",
        "GSPhash",
        "|t| > 2.5",
    ):
        assert words in page.text


def test_pictures_are_described_and_stamped(grouped: Path, page: Elements) -> None:
    """Each picture has its true size, an alternative text, and the stamp "Descriptive" on it and below it."""
    images = [image for image in page.all("img") if "tiles" not in str(image["src"])]
    shown = [re.sub(r".*/group_|\.png", "", str(image["src"])) for image in images]
    networks = ["networkT2p5above", "networkT2p5below"]
    assert shown == ["distributions", "lesions", "mean-r", *networks, "similarity"]
    for name, image in zip(shown, images, strict=True):
        stamp = OF_LESIONS if name in ("lesions", "distributions") else STAMP
        assert str(image["alt"]).endswith(stamp)
        with Image.open(grouped / unquote(str(image["src"]))) as picture:
            assert picture.size == (int(str(image["width"])), int(str(image["height"])))
            second_line = np.asarray(picture.convert("L"))[30:50, :300]
        assert (second_line < 100).mean() > 0.03
    assert page.text.count(STAMP) == 4
    assert f"would look the same: space-{synthetic.SPACE}_stat-z_desc-GSPmean_statmap.nii.gz" in page.text
    assert page.text.count(OF_LESIONS) == 2


def test_an_overlap_that_is_no_whole_number_is_explained(page: Elements) -> None:
    """Below the overlap of lesions, the page says how much a lesion counts in a voxel."""
    assert "a lesion counts as the fraction of the voxel that it covers, so the number need not be whole" in page.text


@pytest.mark.parametrize(
    ("maximum", "ticks"),
    [(0.25, [0, 1]), (2, [0, 1, 2]), (3, [0, 1, 2, 3]), (5.0000001, [0, 1, 2, 4, 5]), (26.5, [0, 7, 14, 20, 27])],
)
def test_the_colour_bar_has_no_more_lesions_than_the_group(maximum: float, ticks: list[int]) -> None:
    """The bar ends at the whole number above the largest overlap: 5 of 5 lesions, not 8."""
    assert whole_ticks(maximum) == ticks


def test_each_lesion_has_its_own_tile(grouped: Path, page: Elements) -> None:
    """The part of the sheet shown for a lesion has it in red, on its side of the axial slice."""
    tiles = [image for image in page.all("img") if "tiles" in str(image["src"])]
    assert len(tiles) == len(BOXES)
    for image, cells in zip(tiles, table(grouped), strict=True):
        top = int(re.fullmatch(r"object-position: 0 -(\d+)px", str(image["style"]))[1])
        width, height = int(str(image["width"])), int(str(image["height"]))
        with Image.open(grouped / unquote(str(image["src"]))) as sheet:
            tile = sheet.convert("RGB").crop((0, top, width, top + height))
        red, green, blue = np.moveaxis(np.asarray(tile, int), -1, 0)
        across = np.nonzero((red - green > 80) & (red - blue > 80))[1]
        axial = across[across >= 2 * width // 3] - 5 * width / 6
        assert {(axial < 0).all(), (axial > 0).all()} == {True, False}
        assert cells["side"] == ("left" if (axial < 0).all() else "right")


def test_the_output_is_a_valid_bids_derivative(grouped: Path, tmp_path: Path) -> None:
    """The BIDS validator finds no error in the group's page and pictures."""
    result = synthetic.validate(grouped, tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr


EVIL = """<script>alert("1")</script>'"""


def test_markup_stays_text_and_damage_is_reported(grouped: Path, tmp_path: Path) -> None:
    """Rewritten by --reports-only, the page has tags in names as text, and says what cannot be drawn."""
    shutil.copytree(grouped.parent, tmp_path, dirs_exist_ok=True)
    bids, out = tmp_path / "bids", tmp_path / "out"
    for name in ("group_lesions.tsv", "group_lesions.json"):
        (out / name).write_text((out / name).read_text().replace("sub-03_label-lesion\t", f"{EVIL}\t"))
    description = json.loads((out / "group_lesions.json").read_text())
    description |= {"Warnings": [EVIL], "ConnectomeHash": EVIL, "OutlierRule": EVIL}
    description["LeftOut"][0]["Reason"] = EVIL
    (out / "group_lesions.json").write_text(json.dumps(description))
    for name in description["Maps"].values():
        (out / name).unlink()
    synthetic.write_mask(bids / f"{path_of('sub-03_label-lesion')}.nii.gz", synthetic.box((0, 0, 0)))
    (out / "sub-02.html").unlink()
    result = run(bids, out, "group", "--reports-only")
    assert result.returncode == 0, result.stderr
    text = (out / "group.html").read_text()
    found = Elements(text)
    assert len(found.all("script")) == 1
    assert "alert" not in text.partition("<script>")[2]
    assert found.text.count(EVIL) == 8
    assert not [link for link in linked_files(out, found) if "sub-02.html" in link]
    for told in (found.text, result.stderr):
        assert "a picture could not be drawn: there is no map at" in told
        assert "1 of the 5 lesions could not be drawn" in told
        assert "its mask has changed since it was mapped" in told


def test_an_overlap_of_one_colour_is_a_sentence(grouped: Path, tmp_path: Path) -> None:
    """An overlap of all lesions in nearly every voxel, or of none in any, is told instead of drawn."""
    out = tmp_path / "out"
    shutil.copytree(grouped, out)
    maps = json.loads((out / "group_lesions.json").read_text())["Maps"]
    for key, value in (("networkT2p5above_share", 1), ("networkT2p5below_share", 0)):
        image = nib.load(out / maps[key])
        fractions = np.full(image.shape, value, np.float32)
        # One voxel of several hundred does not make a picture of the first; the second has voxels without a t.
        fractions[0, 0, 0] = 0.5 if value else np.nan
        nib.save(nib.Nifti1Image(fractions, image.affine), out / maps[key])
    assert not [problem for problem in write_group_report(out) if "picture" in problem]
    text = Elements((out / "group.html").read_text()).text
    assert re.search(r"Not drawn, since all 5 lesions have t > 2\.5 in 99\.\d % of the voxels\.", text)
    assert "Not drawn, since no lesion has t < \N{MINUS SIGN}2.5 in any voxel." in text
    assert "figures/group_networkT" not in (out / "group.html").read_text()
    # The pictures of the earlier page are gone.
    names = {path.name for path in (out / "figures").iterdir()}
    assert not {name for name in names if "network" in name}
    assert {"group_lesions.png", "group_mean-r.png", "group_similarity.png", "group_distributions.png"} <= names


def test_in_a_browser(grouped: Path, browser: Browser) -> None:
    """Light and dark, wide and narrow, sorting, filtering and links work; no error, web request or axe violation."""
    errors, requests = [], []
    for width, scheme in ((1280, "dark"), (390, "light")):
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.on("console", lambda message: errors.append(message.text))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto((grouped / "group.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        results = Axe().run(page).response
        assert [(violation["id"], violation["impact"]) for violation in results["violations"]] == []
        lesions = page.get_by_role("table", name="Lesions of the group")
        lesions.get_by_role("button", name="r with group mean").click()
        assert OUTLIER in lesions.locator("tbody tr").first.inner_text()
        words = page.get_by_role("searchbox", name="Show only lesions whose row contains")
        count = page.locator("output")
        assert count.inner_text() == "5 of 5"
        for typed, n in (("LESION right", 2), ("sub-02", 1), ("nothing", 0), ("", 5)):
            words.fill(typed)
            assert count.inner_text() == f"{n} of 5"
            assert lesions.locator("tbody tr:visible").count() == n
        lesions.get_by_role("link", name="sub-02_ses-a_label-lesion").click()
        assert page.title() == "made up"
        page.close()
    assert errors == []
    assert all(url.startswith(("file:", "data:")) for url in requests)
