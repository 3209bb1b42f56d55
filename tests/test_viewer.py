"""The viewer of a lesion's maps, in a browser."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Locator, Page

from bids_lacuna.report import figures
from bids_lacuna.report.figures import LesionShape, Volume

SHAPE = (61, 73, 59)

STRAIGHT = np.array([[-3.0, 0, 0, 90], [0, 3, 0, -126], [0, 0, 3, -72], [0, 0, 0, 1]])
"""Stored from right to left: code that ignores the affine shows the brain mirrored."""

OBLIQUE = np.array([[-2.9, 0.3, 0.1, 85], [0.2, 2.8, -0.4, -120], [0.1, 0.5, 3.1, -84], [0, 0, 0, 1]])

THRESHOLDS = {"r": 0.2, "z": 0.21, "t": 7.0}

DECIMALS = {"r": 3, "z": 3, "t": 1}
"""Those of three significant digits near the end of the colours: 0.4, 0.4, and 15."""

CENTRE_MM = (-42, -18, 24)

COUNT_PIXELS = """(canvas, sign) => {
  const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", { willReadFrequently: true });
  copy.drawImage(canvas, 0, 0);
  const { data } = copy.getImageData(0, 0, canvas.width, canvas.height);
  const columns = [];
  for (let at = 0; at < data.length; at += 4) {
    const [red, green, blue] = data.subarray(at, at + 3);
    const column = (at / 4) % canvas.width;
    if (sign * (red - blue) > 60 && green - Math.max(red, blue) < 60) columns.push(column / canvas.width);
  }
  return columns;
}"""
"""Positions of red (sign 1) or blue (-1) pixels, from 0, the left edge of a slice, to 1."""


def make_maps(affine: np.ndarray) -> dict[str, Volume]:
    """Make maps of random numbers in a ball, with an r near each end of its range."""
    rng = np.random.default_rng(7)
    points = nib.affines.apply_affine(affine, np.moveaxis(np.indices(SHAPE), 0, -1))
    outside = np.linalg.norm(points - (0, -20, 10), axis=-1) > 70
    z = rng.normal(0.02, 0.15, SHAPE).astype(np.float32)
    z[outside] = np.nan
    z[23, 29, 31], z[41, 37, 19] = 6.3, -7.1
    t = z * rng.uniform(20, 50, SHAPE).astype(np.float32)
    return {stat: Volume(values, affine) for stat, values in (("r", np.tanh(z)), ("z", z), ("t", t))}


def make_lesion(corner: tuple[int, int, int], shape: tuple[int, int, int], affine: np.ndarray) -> LesionShape:
    """Make a lesion that fills a box of voxels."""
    moved = affine @ nib.affines.from_matvec(np.eye(3), corner)
    ends = nib.affines.apply_affine(moved, [(0, 0, 0), np.subtract(shape, 1)])
    middle = nib.affines.apply_affine(moved, np.subtract(shape, 1) / 2)
    low, high, centre = (tuple(map(float, point)) for point in (ends.min(axis=0), ends.max(axis=0), middle))
    return LesionShape(Volume(np.ones(shape, bool), moved), centre, low, high, 1.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write viewers of a lesion on the left, and the NIfTI files of their maps."""
    folder = tmp_path_factory.mktemp("viewer")
    for name, affine in (("straight", STRAIGHT), ("oblique", OBLIQUE)):
        maps = make_maps(affine)
        for stat, volume in maps.items():
            nib.Nifti1Image(volume.values, affine).to_filename(folder / f"{name}-{stat}.nii")
        lesion = make_lesion((43, 35, 31), (3, 3, 3), affine)
        figures.write_viewer(folder / f"{name}.html", maps, THRESHOLDS, lesion, "A < B & C")
    return folder


@contextmanager
def watched(browser: Browser, **options: Any) -> Iterator[Page]:
    """Open a tab; on leaving, check that nothing was fetched and the console has no message."""
    context = browser.new_context(**options)
    page = context.new_page()
    messages: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    yield page
    context.close()
    assert messages == []
    assert all(url.startswith(("file:", "data:")) and url.split("#")[0].endswith((".html", ",")) for url in requests)


def open_viewer(page: Page, path: Path, fragment: str = "") -> None:
    """Open a viewer and wait until it shows its maps."""
    page.goto(path.as_uri() + fragment)
    page.locator("#viewer").wait_for()
    settle(page)


def settle(page: Page) -> None:
    """Wait until the viewer has drawn what was asked of it."""
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


@pytest.fixture(scope="module")
def tab(folder: Path, browser: Browser) -> Iterator[Page]:
    """Open the viewer of the straight maps."""
    with watched(browser, viewport={"width": 1280, "height": 900}) as page:
        open_viewer(page, folder / "straight.html")
        yield page


@pytest.fixture
def page(tab: Page) -> Page:
    """Reset this viewer, whatever other tests did to it."""
    tab.get_by_role("button", name="Reset").click()
    settle(tab)
    return tab


def position(page: Page | Locator) -> tuple[float, ...]:
    """Read the cursor's position in mm."""
    return tuple(float(page.locator(f"#{axis}").input_value()) for axis in "xyz")


def readings(page: Page) -> dict[str, str]:
    """Read the names and values under the cursor."""
    settle(page)
    names, values = (page.locator(f"#values {tag}").all_text_contents() for tag in ("dt", "dd"))
    return dict(zip(names, values, strict=True))


def slice_of(page: Page, name: str) -> Locator:
    """Return the canvas of a plane."""
    return page.locator(f"#{name} canvas")


def coloured(page: Page, name: str, sign: int) -> list[float]:
    """List the columns of the red (sign 1) or blue (-1) pixels of a plane, as fractions of its width."""
    settle(page)
    return slice_of(page, name).evaluate(COUNT_PIXELS, sign)


@pytest.mark.parametrize(("name", "affine"), [("straight", STRAIGHT), ("oblique", OBLIQUE)])
def test_values_are_those_of_the_file(folder: Path, browser: Browser, name: str, affine: np.ndarray) -> None:
    """The values of all maps at twelve voxels equal those of the NIfTI files, to the digits that are shown."""
    files = {stat: np.asarray(nib.load(folder / f"{name}-{stat}.nii").dataobj) for stat in DECIMALS}
    voxels = np.random.default_rng(3).permutation(np.argwhere(np.isfinite(files["r"])))[:9].tolist()
    undefined = np.rint(nib.affines.apply_affine(np.linalg.inv(affine), (72, -20, 10))).astype(int)
    voxels += [[23, 29, 31], [41, 37, 19], undefined.tolist()]
    with watched(browser) as page:
        open_viewer(page, folder / f"{name}.html")
        for voxel in voxels:
            mm = nib.affines.apply_affine(affine, voxel)
            page.evaluate("mm => { location.hash = `mm=${mm}`; }", ",".join(f"{part:.4f}" for part in mm))
            shown = readings(page)
            for stat, decimals in DECIMALS.items():
                value = float(files[stat][tuple(voxel)])
                expected = "undefined" if np.isnan(value) else f"{value:.{decimals}f}"
                assert shown[stat].replace("\N{MINUS SIGN}", "-") == expected
            assert shown["Voxel"] == ", ".join(map(str, voxel))
        # Between two voxels, the viewer chooses the one that the pictures choose.
        for voxel in ((44, 36, 32), (45, 37, 33)):
            mm = nib.affines.apply_affine(affine, np.subtract(voxel, 0.5))
            page.evaluate("mm => { location.hash = `mm=${mm}`; }", ",".join(f"{part:.9f}" for part in mm))
            value = Volume(files["r"], affine).at(mm)
            assert readings(page)["r"].replace("\N{MINUS SIGN}", "-") == f"{value:.{DECIMALS['r']}f}"


def test_it_opens_at_the_lesion(page: Page) -> None:
    """It opens with the r-map, at the lesion's centre, inside the lesion, on the left."""
    assert page.title() == "A < B & C"
    assert page.get_by_role("radio", name="r-map").is_checked()
    assert position(page) == CENTRE_MM
    shown = readings(page)
    assert (shown["Lesion"], shown["Side"]) == ("inside", "left")
    assert page.locator("#name").text_content() == "r: correlation with the lesion, no unit"


def check_key(page: Page, key: str, axis: int, step: float) -> None:
    """Press a key: the cursor moves along an axis alone."""
    before = position(page)
    page.keyboard.press(key)
    settle(page)
    assert np.subtract(position(page), before).tolist() == [step * (axis == each) for each in range(3)]


def test_keys(page: Page) -> None:
    """Arrow keys move the cursor in the plane of a slice, other keys through the slices, and all planes follow."""
    for name, (across, up, through) in {"sagittal": (1, 2, 0), "coronal": (0, 2, 1), "axial": (0, 1, 2)}.items():
        slice_of(page, name).focus()
        for key, axis, step in (
            ("ArrowRight", across, 2),
            ("ArrowUp", up, 2),
            ("PageUp", through, 2),
            (",", through, -2),
        ):
            check_key(page, key, axis, step)
    for key, axis, step in (("ArrowLeft", 0, -2), ("Shift+ArrowDown", 1, -10), ("PageDown", 2, -2), (".", 2, 2)):
        check_key(page, key, axis, step)
    before = position(page)
    page.locator("#z").fill("40")
    page.locator("#z").press("Enter")
    slice_of(page, "axial").focus()
    settle(page)
    assert position(page) == (*before[:2], 40)
    page.keyboard.press("Home")
    settle(page)
    assert position(page) == CENTRE_MM


def test_mouse(page: Page) -> None:
    """A click moves the cursor, dragging moves it on, and a notch of the wheel changes the slice by 2 mm."""
    box = slice_of(page, "coronal").bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(*middle)
    page.mouse.wheel(0, -100)
    page.mouse.wheel(0, -100)
    page.mouse.wheel(0, 100)
    settle(page)
    assert position(page) == (CENTRE_MM[0], CENTRE_MM[1] + 2, CENTRE_MM[2])
    page.mouse.down()
    settle(page)
    assert position(page)[0] == pytest.approx(0, abs=2)
    page.mouse.move(middle[0] + box["width"] / 4, middle[1])
    page.mouse.up()
    settle(page)
    reached = position(page)
    assert 20 < reached[0] < 60
    assert reached[1] == CENTRE_MM[1] + 2
    page.mouse.move(*middle)
    settle(page)
    assert position(page) == reached


def test_touch(folder: Path, browser: Browser) -> None:
    """A finger moves the cursor, and drags it."""
    phone = {
        "viewport": {"width": 390, "height": 844},
        "has_touch": True,
        "device_scale_factor": 3,
        "is_mobile": True,
    }
    with watched(browser, **phone) as page:
        open_viewer(page, folder / "straight.html")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        box = slice_of(page, "axial").bounding_box()
        left, top = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        page.touchscreen.tap(left, top)
        settle(page)
        tapped = position(page)
        assert tapped[0] == pytest.approx(0, abs=3)
        device = page.context.new_cdp_session(page)
        for kind, x in (("touchStart", left), ("touchMove", left + 10), ("touchMove", left + 30), ("touchEnd", None)):
            points = [] if x is None else [{"x": x, "y": top}]
            device.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
        settle(page)
        assert position(page)[0] > tapped[0] + 10
        assert position(page)[2] == CENTRE_MM[2]


def test_threshold_and_signs(page: Page) -> None:
    """The slider hides weaker voxels of both signs, counts the others, and a sign can be hidden."""
    r = make_maps(STRAIGHT)["r"].values
    n = np.isfinite(r).sum()
    counts = [len(coloured(page, "axial", sign)) for sign in (1, -1)]
    assert min(counts) > 1000
    rounded = np.round(r.astype(float), 3)
    page.locator("#threshold").fill("0.3")
    fewer = [len(coloured(page, "axial", sign)) for sign in (1, -1)]
    assert 0 < fewer[0] < counts[0] / 2
    assert 0 < fewer[1] < counts[1] / 2
    above, below = (100 * (sign * rounded > 0.3).sum() / n for sign in (1, -1))
    assert page.locator("#counts").text_content() == (
        f"{above:.1f} % of the voxels have r > 0.300, {below:.1f} % have r < \N{MINUS SIGN}0.300."
    )
    assert page.locator("#threshold-exactly").input_value() == "0.300"
    assert page.locator("#ticks span").all_text_contents()[1:3] == ["\N{MINUS SIGN}0.300", "0.300"]
    page.get_by_label("Negative").uncheck()
    assert coloured(page, "axial", -1) == []
    assert coloured(page, "axial", 1)
    page.get_by_role("button", name="Reset").click()
    assert [len(coloured(page, "axial", sign)) for sign in (1, -1)] == counts


def test_a_plane_in_full_width(page: Page) -> None:
    """A button makes a slice larger, and small again."""
    button = page.get_by_role("button", name="Coronal slice in full width")
    widths = []
    for _ in range(3):
        widths.append(slice_of(page, "coronal").bounding_box()["width"])
        button.click()
        settle(page)
    assert widths[1] > 1.3 * widths[0]
    assert widths[2] == widths[0]
    button.click()


def test_other_maps(page: Page) -> None:
    """Each map has its threshold, its colour bar and its title."""
    page.get_by_text("t-map", exact=True).click()
    settle(page)
    assert page.locator("#threshold-exactly").input_value() == "7.0"
    assert page.locator("#name").text_content().startswith("t: one-sample t")
    assert page.locator("#bar").get_attribute("aria-label").startswith("Colours of t: ")
    assert " t > 7.0" in page.locator("#counts").text_content()
    page.get_by_text("z-map", exact=True).click()
    settle(page)
    assert page.locator("#threshold-exactly").input_value() == "0.210"


def test_strongest_voxels(page: Page) -> None:
    """Buttons lead to the strongest voxel of each sign outside the lesion, and back."""
    for button, voxel in (("highest outside lesion", (23, 29, 31)), ("lowest outside lesion", (41, 37, 19))):
        page.get_by_role("button", name=button).click()
        settle(page)
        assert position(page) == tuple(nib.affines.apply_affine(STRAIGHT, voxel))
    page.get_by_role("button", name="lesion", exact=True).click()
    settle(page)
    assert position(page) == CENTRE_MM


def test_the_strongest_voxels_are_outside_the_lesion(tmp_path: Path, browser: Browser) -> None:
    """A lesion's own voxels, whose r is near 1, are not the strongest ones that the buttons lead to."""
    lesion = make_lesion((23, 29, 31), (1, 1, 1), STRAIGHT)
    maps = {"r": make_maps(STRAIGHT)["r"]}
    figures.write_viewer(tmp_path / "viewer.html", maps, THRESHOLDS, lesion, "title")
    others = np.nan_to_num(maps["r"].values, copy=True)
    others[23, 29, 31] = 0
    expected = nib.affines.apply_affine(STRAIGHT, np.unravel_index(others.argmax(), SHAPE))
    with watched(browser) as page:
        open_viewer(page, tmp_path / "viewer.html")
        page.get_by_role("button", name="highest outside lesion").click()
        settle(page)
        assert position(page) == tuple(expected)


def test_left_is_labelled_l(tmp_path: Path, browser: Browser) -> None:
    """A lesion of one voxel on the left, and the map's only voxel beyond the threshold, are on the side of the L."""
    values = np.zeros(SHAPE, np.float32)
    values[43, 35, 31] = 0.9
    lesion = make_lesion((43, 35, 31), (1, 1, 1), STRAIGHT)
    assert lesion.centre_mm[0] < 0
    figures.write_viewer(tmp_path / "viewer.html", {"r": Volume(values, STRAIGHT)}, {"r": 0.5}, lesion, "title")
    with watched(browser, viewport={"width": 1280, "height": 900}) as page:
        open_viewer(page, tmp_path / "viewer.html")
        for name in ("coronal", "axial"):
            box = slice_of(page, name).bounding_box()
            letters = [
                page.locator(f"#{name} .letters").get_by_text(side, exact=True).bounding_box() for side in "LR"
            ]
            left, right = ((each["x"] + each["width"] / 2 - box["x"]) / box["width"] for each in letters)
            columns = np.array(coloured(page, name, 1))
            assert columns.size
            assert (np.abs(columns - left) < np.abs(columns - right)).all()
        assert page.locator("#hemisphere").text_content() == "left"


def test_a_link_on_a_page_moves_the_viewer(folder: Path, browser: Browser) -> None:
    """A link opens the page's viewer at a peak, another one moves it; the frame is as high as the viewer."""
    program = resources.files("bids_lacuna.report").joinpath("templates/page.js").read_text()
    links = "".join(
        f'<a data-viewer="viewer-1" data-mm="{mm}" href="straight.html#mm={mm}">{mm}</a> '
        for mm in ("-45,-18,24", "30,-45,51.5")
    )
    (folder / "page.html").write_text(
        f'{links}<details class="viewer" id="viewer-1"><summary>Viewer</summary><iframe data-src="straight.html" '
        f'style="width: 100%"></iframe></details><script>{program}</script>'
    )
    with watched(browser, viewport={"width": 1280, "height": 900}) as page:
        page.goto((folder / "page.html").as_uri())
        frame = page.frame_locator("iframe")
        for name, expected in (("-45,-18,24", "45"), ("30,-45,51.5", "30"), ("-45,-18,24", "45")):
            page.get_by_role("link", name=name).click()
            frame.locator("#viewer").wait_for()
            frame.locator("#spoken").get_by_text(f"{expected}, y").wait_for(state="attached")
            assert ",".join(f"{part:g}" for part in position(frame)) == name
        height = frame.locator("body").evaluate("body => body.scrollHeight")
        assert page.locator("iframe").bounding_box()["height"] == pytest.approx(height, abs=8)


def test_it_opens_at_the_position_of_its_address(folder: Path, browser: Browser) -> None:
    """A viewer on a page of its own opens at the position in its address, reads it aloud, and has the keyboard."""
    with watched(browser) as page:
        open_viewer(page, folder / "straight.html", "#mm=30,-45,51")
        assert position(page) == (30, -45, 51)
        page.get_by_role("status").get_by_text("x 30, y \N{MINUS SIGN}45, z 51 mm: r ").wait_for(state="attached")
        page.keyboard.press("PageDown")
        settle(page)
        assert position(page) == (30, -45, 50)


def test_damaged_data(folder: Path, tmp_path: Path, browser: Browser) -> None:
    """A damaged file says so, instead of showing an empty page."""
    page = browser.new_page()
    text = (folder / "straight.html").read_text()
    at = text.index('"steps": "') + 500
    (tmp_path / "viewer.html").write_text(text[:at] + text[at + 400 :])
    page.goto((tmp_path / "viewer.html").as_uri())
    page.get_by_text("The reason: ").wait_for()
    assert not page.locator("#viewer").is_visible()
    page.close()


def test_without_a_lesion(tmp_path: Path, browser: Browser) -> None:
    """Without a mask, there is nothing about a lesion; a map without a defined voxel is left out."""
    maps = make_maps(STRAIGHT)
    maps["t"] = Volume(np.full(SHAPE, np.nan, np.float32), STRAIGHT)
    figures.write_viewer(tmp_path / "viewer.html", maps, {**THRESHOLDS, "t": float("nan")}, None, "title")
    with watched(browser) as page:
        open_viewer(page, tmp_path / "viewer.html")
        assert "Lesion" not in readings(page)
        assert page.get_by_role("radio").count() == 2
        assert page.get_by_role("button", name="lesion", exact=True).count() == 0
        page.get_by_role("button", name="highest", exact=True).click()
        settle(page)
        assert position(page) == (21, -39, 21)


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_accessible(folder: Path, browser: Browser, width: int, scheme: str) -> None:
    """axe-core finds no violation, and the page is not wider than the screen."""
    with watched(browser, viewport={"width": width, "height": 900}, color_scheme=scheme) as page:
        open_viewer(page, folder / "straight.html")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        results = Axe().run(page).response
        assert [(violation["id"], violation["impact"]) for violation in results["violations"]] == []
