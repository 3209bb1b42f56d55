"""Masks in other spaces: chains found for made-up datasets with fMRIPrep's names, and runs through them."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813  its own documentation's name
import synthetic
from program import map_lesions, run

from bids_lacuna.app.transforms import ChainFinder, GivenTransform
from bids_lacuna.bids import LesionMask, find_lesion_masks
from bids_lacuna.mapping import FunctionalNetworkMapping
from bids_lacuna.report.figures import read_lesion
from bids_lacuna.report.pages import position
from bids_lacuna.spaces import DEFAULT_SPACE
from bids_lacuna.transforms import templateflow

Array = np.ndarray

OTHER = "MNI152NLin2009cAsym"

MOVE = np.array([8.0, -4.0, 4.0])
"""How far images of the T1w lie from their place in the template, in mm of RAS: whole voxels of the connectome."""

DERIVED = {
    "Name": "fMRIPrep",
    "BIDSVersion": "1.4.0",
    "DatasetType": "derivative",
    "GeneratedBy": [{"Name": "fMRIPrep", "Version": "23.2.0"}],
}


def write_transform(path: Path, move: Array = MOVE) -> Path:
    """Write a transform that moves images by `move`: points of the template look as far the other way."""
    path.parent.mkdir(parents=True, exist_ok=True)
    transform = sitk.CompositeTransform(3)
    transform.AddTransform(sitk.TranslationTransform(3, (-move * [-1, -1, 1]).tolist()))
    sitk.WriteTransform(transform if path.suffix == ".h5" else transform.GetNthTransform(0), str(path))
    return path


def write_fmriprep(root: Path, *names: str) -> Path:
    """Write a dataset of fMRIPrep with transforms of these names, without `_mode-image_xfm`."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset_description.json").write_text(json.dumps(DERIVED))
    for name in names:
        folders = [part for part in name.split("_") if part[:4] in ("sub-", "ses-")]
        suffix = "txt" if "from-orig" in name else "h5"
        write_transform(root / "/".join(folders) / "anat" / f"{name}_mode-image_xfm.{suffix}")
    return root


def write_templateflow(root: Path, source: str = OTHER, target: str = DEFAULT_SPACE) -> Path:
    """Write a home of TemplateFlow with one transform."""
    write_transform(root / f"tpl-{target}" / f"tpl-{target}_from-{source}_mode-image_xfm.h5")
    return root


def find(root: Path, name: str, fmriprep: Path | None = None, **options: object) -> list[str]:
    """Return the names of the files in the chain of one mask in a raw dataset, or the reason why there is none."""
    chain = finder(fmriprep, root, **options)(only_mask(root, name))
    assert chain is not None
    assert chain.target == DEFAULT_SPACE
    return [file.path.name for file in chain.files]


def finder(fmriprep: Path | None, root: Path, **options: object) -> ChainFinder:
    """Return a finder that downloads nothing."""
    datasets = {"source": root} | ({"fmriprep": fmriprep} if fmriprep else {})
    return ChainFinder(DEFAULT_SPACE, datasets, download=False, **options)  # type: ignore[arg-type]


def only_mask(root: Path, name: str) -> LesionMask:
    """Write one mask into a raw dataset, and find it."""
    synthetic.write_images(root, f"{name}.nii.gz")
    (mask,) = [mask for mask in find_lesion_masks(root) if mask.path.name == f"{Path(name).name}.nii.gz"]
    return mask


T1W = "sub-01/anat/sub-01_space-T1w_label-lesion_mask"

RAW = "sub-01/anat/sub-01_label-lesion_mask"

TO_6 = f"sub-01_from-T1w_to-{DEFAULT_SPACE}"

TO_2009 = f"sub-01_from-T1w_to-{OTHER}"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give each test an empty home of TemplateFlow."""
    folder = tmp_path / "templateflow"
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(folder))
    return folder


def test_the_connectomes_template_is_preferred(tmp_path: Path, home: Path) -> None:
    """With transforms to two templates, fMRIPrep's to the connectome's own is used, not the longer way."""
    write_templateflow(home)
    fmriprep = write_fmriprep(tmp_path / "prep", TO_6, TO_2009, f"sub-01_from-{DEFAULT_SPACE}_to-T1w")
    assert find(tmp_path / "raw", T1W, fmriprep) == [f"{TO_6}_mode-image_xfm.h5"]


def test_another_template_is_chained(tmp_path: Path, home: Path) -> None:
    """Where fMRIPrep wrote another template, TemplateFlow's transform follows; software is that of the datasets."""
    write_templateflow(home)
    fmriprep = write_fmriprep(tmp_path / "prep", TO_2009)
    chain = finder(fmriprep, tmp_path / "raw")(only_mask(tmp_path / "raw", T1W))
    assert chain is not None
    assert [file.software for file in chain.files] == ["fMRIPrep 23.2.0", "TemplateFlow"]
    assert [file.source for file in chain.files] == ["T1w", OTHER]


@pytest.mark.parametrize("case", ["empty", "skeleton", "no home", "read-only"])
def test_templateflow_offline(tmp_path: Path, home: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing file is named, with the folder and the command; a read-only home does for one that is there."""
    name = f"tpl-{DEFAULT_SPACE}_from-{OTHER}_mode-image_xfm.h5"
    mask = f"sub-01/anat/sub-01_space-{OTHER}_label-lesion_mask"
    if case == "read-only":
        write_templateflow(home)
        home.chmod(0o555)
        assert find(tmp_path / "raw", mask) == [name]
        return
    if case == "skeleton":
        (home / f"tpl-{DEFAULT_SPACE}").mkdir(parents=True)
        (home / f"tpl-{DEFAULT_SPACE}" / name).touch()
    if case == "no home":
        monkeypatch.delenv("TEMPLATEFLOW_HOME")
        monkeypatch.setenv("HOME", str(tmp_path / "nobody"))
    where = str(tmp_path / "nobody" / ".cache") if case == "no home" else str(home)
    with pytest.raises(
        ValueError, match=rf"{name}.* not in {re.escape(where)}.*--no-download.*api\.get\('{DEFAULT_SPACE}'"
    ):
        find(tmp_path / "raw", mask)


def test_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the client says, the sentence has the file and the command."""

    def fail(*_: object) -> Path:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(templateflow, "_download", fail)
    with pytest.raises(templateflow.MissingTransform, match=r"cannot be downloaded \(ConnectionError: no route"):
        templateflow.find_between(OTHER, DEFAULT_SPACE, download=True)


def test_sessions(tmp_path: Path) -> None:
    """A mask of a session takes its session's transform, or the one for all sessions."""
    names = [f"sub-01_ses-{ses}_from-T1w_to-{DEFAULT_SPACE}" for ses in "ab"]
    fmriprep = write_fmriprep(tmp_path / "prep", *names, f"sub-02_from-T1w_to-{DEFAULT_SPACE}")
    mask = "sub-01/ses-b/anat/sub-01_ses-b_space-T1w_label-lesion_mask"
    assert find(tmp_path / "raw", mask, fmriprep) == [f"{names[1]}_mode-image_xfm.h5"]
    mask = "sub-02/ses-b/anat/sub-02_ses-b_space-T1w_label-lesion_mask"
    assert find(tmp_path / "raw", mask, fmriprep) == [f"sub-02_from-T1w_to-{DEFAULT_SPACE}_mode-image_xfm.h5"]
    with pytest.raises(ValueError, match=r"2 transforms fit.*ses-a_from-T1w.* and .*ses-b_from-T1w"):
        find(tmp_path / "raw", T1W, fmriprep)


def test_the_raw_t1w(tmp_path: Path) -> None:
    """A mask without a space passes from-orig_to-T1w; without it, it needs the grid of its session's only T1w."""
    fmriprep = write_fmriprep(tmp_path / "prep", TO_6)
    with pytest.raises(ValueError, match=r"has no space in its name.*from-orig_to-T1w.*there are 0 T1w images"):
        find(tmp_path / "raw", RAW, fmriprep)
    synthetic.write_images(tmp_path / "raw", "sub-01/anat/sub-01_T1w.nii.gz")
    assert find(tmp_path / "raw", RAW, fmriprep) == [f"{TO_6}_mode-image_xfm.h5"]
    synthetic.write_mask(tmp_path / "raw/sub-01/anat/sub-01_T1w.nii.gz", np.ones((1, 1, 1)), np.diag([2, 1, 1, 1]))
    with pytest.raises(ValueError, match=r"its grid is not that of sub-01_T1w\.nii\.gz"):
        find(tmp_path / "raw", RAW, fmriprep)
    synthetic.write_images(tmp_path / "raw", "sub-01/anat/sub-01_run-2_T1w.nii.gz")
    with pytest.raises(ValueError, match="there are 2 T1w images"):
        find(tmp_path / "raw", RAW, fmriprep)
    write_fmriprep(tmp_path / "prep", "sub-01_run-1_from-orig_to-T1w", "sub-01_run-2_from-orig_to-T1w")
    with pytest.raises(ValueError, match="2 transforms fit"):
        find(tmp_path / "raw", RAW, fmriprep)
    name = "sub-01/anat/sub-01_run-2_label-lesion_mask"
    files = ["sub-01_run-2_from-orig_to-T1w_mode-image_xfm.txt", f"{TO_6}_mode-image_xfm.h5"]
    assert find(tmp_path / "raw", name, fmriprep) == files


def test_the_raw_t1w_of_joined_sessions(tmp_path: Path) -> None:
    """Where one transform is of the T1w images of several sessions, a mask on one of them needs from-orig_to-T1w."""
    synthetic.write_images(tmp_path / "raw", *(f"sub-01/ses-{ses}/anat/sub-01_ses-{ses}_T1w.nii.gz" for ses in "ab"))
    mask = "sub-01/ses-a/anat/sub-01_ses-a_label-lesion_mask"
    alone = write_fmriprep(tmp_path / "alone", f"sub-01_ses-a_from-T1w_to-{DEFAULT_SPACE}")
    assert len(find(tmp_path / "raw", mask, alone)) == 1
    fmriprep = write_fmriprep(tmp_path / "prep", TO_6)
    with pytest.raises(ValueError, match=f"{TO_6}_mode-image_xfm.h5 is of T1w images of 2 sessions together"):
        find(tmp_path / "raw", mask, fmriprep)
    write_fmriprep(tmp_path / "prep", "sub-01_ses-a_from-orig_to-T1w", "sub-01_ses-b_from-orig_to-T1w")
    files = ["sub-01_ses-a_from-orig_to-T1w_mode-image_xfm.txt", f"{TO_6}_mode-image_xfm.h5"]
    assert find(tmp_path / "raw", mask, fmriprep) == files


def test_a_reference_that_is_no_name(tmp_path: Path) -> None:
    """A SpatialReference with the address of an image is refused with the names that may stand there."""
    mask = only_mask(tmp_path / "raw", RAW)
    sidecar = mask.path.with_name(mask.path.name.replace(".nii.gz", ".json"))
    sidecar.write_text('{"SpatialReference": "bids::sub-01/anat/sub-01_T1w.nii.gz"}')
    with pytest.raises(ValueError, match=r"its space is bids::.*set SpatialReference in its sidecar to T1w"):
        find(tmp_path / "raw", RAW)


@pytest.mark.parametrize("participants", [(), ("01", "sub-02")])
def test_the_raw_t1w_of_each(participants: tuple[str, ...], tmp_path: Path) -> None:
    """Each mask on the raw T1w is compared with the T1w of its own participant and session."""
    fmriprep = write_fmriprep(tmp_path / "prep", TO_6, TO_6.replace("01", "02"))
    images = ["sub-01/anat/sub-01_T1w.nii.gz", "sub-02/ses-a/anat/sub-02_ses-a_T1w.nii.gz"]
    synthetic.write_images(tmp_path / "raw", *images)
    chain_of = finder(fmriprep, tmp_path / "raw", participants=participants)
    for name in (RAW, "sub-02/ses-a/anat/sub-02_ses-a_label-lesion_mask"):
        assert chain_of(only_mask(tmp_path / "raw", name)) is not None
    mask = only_mask(tmp_path / "raw", "sub-02/ses-b/anat/sub-02_ses-b_label-lesion_mask")
    with pytest.raises(ValueError, match="there are 0 T1w images"):
        chain_of(mask)


def test_nothing_fits(tmp_path: Path) -> None:
    """The sentence says what was looked for, what was there instead, and both remedies."""
    both_ways = [
        f"sub-01_from-{a}_to-{b}" for a, b in (("T1w", "MNIInfant"), ("MNIInfant", "T1w"), ("fsnative", "T1w"))
    ]
    fmriprep = write_fmriprep(tmp_path / "prep", *both_ways, f"sub-02_from-T1w_to-{OTHER}")
    looked, found = (
        rf"looked for sub-01_\*from-T1w_to-{DEFAULT_SPACE}",
        "found sub-01_from-MNIInfant_to-T1w.*sub-01_from-T1w_to-MNIInfant",
    )
    words = rf"{looked}.*{found}.*-d fmriprep.*--transform"
    with pytest.raises(ValueError, match=words):
        find(tmp_path / "raw", T1W, fmriprep)
    infant = only_mask(tmp_path / "raw", "sub-01/anat/sub-01_space-MNIInfant_label-lesion_mask")
    assert finder(fmriprep, tmp_path / "raw")(infant) is None
    ambiguous = only_mask(tmp_path / "raw", "sub-01/anat/sub-01_space-MNI152_label-lesion_mask")
    with pytest.raises(ValueError, match="it may be MNI152NLin6Sym"):
        finder(fmriprep, tmp_path / "raw")(ambiguous)


def test_given_transforms(tmp_path: Path, home: Path) -> None:
    """Given transforms are chained with others, and replace fMRIPrep's from the same space; {sub} is the label's."""
    write_templateflow(home)
    fmriprep = write_fmriprep(tmp_path / "prep", TO_6)
    path = write_transform(tmp_path / "sub-01_xfm.h5")
    given = [GivenTransform("T1w", OTHER, str(tmp_path / "sub-{sub}_xfm.h5"))]
    files = find(tmp_path / "raw", T1W, fmriprep, given=given)
    assert files == [path.name, f"tpl-{DEFAULT_SPACE}_from-{OTHER}_mode-image_xfm.h5"]
    several = [*given, GivenTransform("T1w", "A", str(path)), GivenTransform("A", DEFAULT_SPACE, str(path))]
    with pytest.raises(ValueError, match=rf"several ways from T1w to {DEFAULT_SPACE}: T1w to .* and T1w to"):
        find(tmp_path / "raw", T1W, fmriprep, given=several)
    with pytest.raises(FileNotFoundError, match=r"sub-02_xfm\.h5"):
        find(tmp_path / "raw", "sub-02/anat/sub-02_space-T1w_label-lesion_mask", fmriprep, given=given)


@pytest.fixture(scope="module")
def connectome(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a connectome."""
    mask = synthetic.make_mask()
    folder = tmp_path_factory.mktemp("source") / "GSP"
    return synthetic.write_connectome_folder(folder, synthetic.make_series(int(mask.sum())), mask)


MASK = synthetic.box((2, 3, 4), (2, 3, 3))


def write_t1w_masks(root: Path, *participants: str) -> Path:
    """Write masks that lie in their T1w where the transforms take them from."""
    affine = nib.affines.from_matvec(np.eye(3), -MOVE) @ synthetic.RADIOLOGICAL
    synthetic.write_images(root)
    for sub in participants:
        synthetic.write_mask(root / f"sub-{sub}/anat/sub-{sub}_space-T1w_label-lesion_mask.nii.gz", MASK, affine)
    return root


def r_map(out: Path, sub: str = "01") -> Path:
    """Return the path of a participant's r-map."""
    (path,) = out.glob(f"sub-{sub}/func/*_stat-r_*_statmap.nii.gz")
    return path


def test_maps_through_a_chain(connectome: Path, tmp_path: Path) -> None:
    """A mask in T1w gives the map of the same lesion in the template; changed transforms are never mixed in."""
    direct = synthetic.write_dataset(
        tmp_path / "direct", {f"sub-01/anat/sub-01_space-{synthetic.SPACE}_label-lesion_mask": MASK}
    )
    assert map_lesions(direct, tmp_path / "expected", connectome).returncode == 0
    raw, out = write_t1w_masks(tmp_path / "raw", "01"), tmp_path / "out"
    fmriprep = write_fmriprep(tmp_path / "prep", TO_6)
    ended = map_lesions(raw, out, connectome, "-d", f"fmriprep={fmriprep}")
    assert ended.returncode == 0, ended.stderr
    expected = nib.load(r_map(tmp_path / "expected")).get_fdata()
    np.testing.assert_array_equal(nib.load(r_map(out)).get_fdata(), expected)

    sidecar = json.loads(Path(str(r_map(out)).replace(".nii.gz", ".json")).read_text())
    transform = fmriprep / "sub-01" / "anat" / f"{TO_6}_mode-image_xfm.h5"
    assert sidecar["LesionTransforms"] == [
        {
            "File": transform.name,
            "From": "T1w",
            "To": DEFAULT_SPACE,
            "SHA256": hashlib.sha256(transform.read_bytes()).hexdigest(),
            "Software": "fMRIPrep 23.2.0",
        }
    ]
    n_mm3 = MASK.sum() * 4.0**3
    assert (sidecar["LesionVolume"], sidecar["LesionVolumeInTemplate"]) == pytest.approx((n_mm3, n_mm3))
    assert sidecar["LesionVolumeRatio"] == pytest.approx(1)
    (weights,) = out.glob("sub-01/func/*_probseg.nii.gz")
    # Voxels outside the brain mask are part of the lesion, though not of its coverage.
    np.testing.assert_array_equal(nib.load(weights).get_fdata(), MASK)
    inside = MASK * synthetic.make_mask()
    assert inside.sum() < MASK.sum()
    assert sidecar["LesionCoverage"] == pytest.approx(inside.sum() / MASK.sum())
    text = (out / "logs" / "CITATION.md").read_text()
    assert f"from T1w to {DEFAULT_SPACE} by fMRIPrep 23.2.0 [@lowekamp2013; @esteban2019]" in text
    assert f"SimpleITK {sitk.__version__}" in text
    assert "SimpleITK" not in (tmp_path / "expected" / "logs" / "CITATION.md").read_text()

    again = map_lesions(raw, out, connectome, "-d", f"fmriprep={fmriprep}")
    assert again.returncode == 0
    assert sum("all its maps exist" in path.read_text() for path in out.glob("logs/*/lesions.tsv")) == 1
    write_transform(transform, MOVE + 4)
    changed = map_lesions(raw, out, connectome, "-d", f"fmriprep={fmriprep}")
    assert changed.returncode == 1
    assert "made with other transforms of the mask: replace it with --overwrite" in changed.stderr
    assert map_lesions(raw, out, connectome, "-d", f"fmriprep={fmriprep}", "--overwrite").returncode == 0
    assert not np.array_equal(nib.load(r_map(out)).get_fdata(), expected)


def test_pages_and_groups_show_the_lesion_in_the_template(connectome: Path, tmp_path: Path) -> None:
    """The group's overlap and the page's lesion are those of the template, not of the T1w."""
    raw, out = write_t1w_masks(tmp_path / "raw", "01", "02"), tmp_path / "out"
    pattern = f"T1w:{DEFAULT_SPACE}={tmp_path}/sub-{{sub}}.h5"
    for sub in ("01", "02"):
        write_transform(tmp_path / f"sub-{sub}.h5")
    one = f"T1w:{DEFAULT_SPACE}={tmp_path}/sub-01.h5"
    refused = map_lesions(raw, tmp_path / "refused", connectome, "--transform", one)
    assert refused.returncode == 1
    assert "names one file for several: write {sub} in its path" in refused.stderr
    ended = run(raw, out, "participant", "--connectome", connectome, "--transform", pattern, "--t-threshold", 1)
    assert ended.returncode == 0, ended.stderr
    page = (out / "sub-01.html").read_text()
    assert f"Brought from T1w to {DEFAULT_SPACE} by a given transform (sub-01.h5)" in page
    mask = raw / "sub-01/anat/sub-01_space-T1w_label-lesion_mask.nii.gz"
    (weights,) = out.glob("sub-01/func/*_probseg.nii.gz")
    assert position(read_lesion(weights, 0.5).centre_mm) in page
    assert position(read_lesion(mask).centre_mm) not in page
    (options,) = out.glob("logs/*/config.toml")
    again = run(raw, out, "participant", "--config-file", options)
    assert again.returncode == 0, again.stderr
    group = run(raw, out, "group", "--no-reports")
    assert group.returncode == 0, group.stderr
    overlap = out / f"space-{DEFAULT_SPACE}_stat-n_desc-GSPlesions_statmap.nii.gz"
    np.testing.assert_array_equal(nib.load(overlap).get_fdata(), 2 * MASK)


def test_mistaken_transforms(connectome: Path, tmp_path: Path) -> None:
    """A transform that is no file, or of another program, ends the run with what to do."""
    raw = write_t1w_masks(tmp_path / "raw", "01")
    (tmp_path / "a.lta").write_text("")
    path = write_transform(tmp_path / "b.h5")
    for arguments, status, words in (
        (["T1w"], 64, "is not A:B=FILE"),
        (["T1w:MNI305=nowhere.h5"], 66, "there is no transform nowhere.h5"),
        ([f"T1w:MNI305={tmp_path / 'a.lta'}"], 64, "lta_convert"),
        (
            ["T1w:MNI305={sub}.h5", "t1w:MNI305=other.h5"],
            64,
            "has {sub}.h5 and other.h5 from T1w to MNI305: name one",
        ),
        ([f"T1w:T1w={path}"], 64, "leads nowhere"),
        (["T1w:MNI305={run}.h5"], 64, "has {run}: only {sub} and {ses} can be filled in"),
    ):
        ended = map_lesions(raw, tmp_path / "out", connectome, "--transform", *arguments)
        assert (ended.returncode, words in ended.stderr) == (status, True), ended.stderr
    assert not os.path.lexists(tmp_path / "out")


def test_a_transform_that_changes_meanwhile(
    connectome: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transform that is replaced after it was read fails its lesion: the sidecar would have another's hash."""
    raw, path = write_t1w_masks(tmp_path / "raw", "01"), write_transform(tmp_path / "01.h5")
    add = FunctionalNetworkMapping.add

    def replace_and_add(*arguments: object) -> None:
        path.unlink()
        write_transform(path, MOVE + 4)
        add(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(FunctionalNetworkMapping, "add", replace_and_add)
    ended = map_lesions(raw, tmp_path / "out", connectome, "--transform", f"T1w:{DEFAULT_SPACE}={path}")
    assert ended.returncode == 1
    assert f"{path} has changed while it was in use" in ended.stderr
    assert not list(tmp_path.glob("out/sub-*/func/*"))


def test_given_names_of_spaces(connectome: Path, tmp_path: Path) -> None:
    """The case of names does not matter; transforms that no mask passes, and a session that lacks, are named."""
    raw = write_t1w_masks(tmp_path / "raw", "01")
    path = write_transform(tmp_path / "01.h5")
    ended = map_lesions(
        raw,
        tmp_path / "out",
        connectome,
        "--dry-run",
        "--nprocs",
        1,
        "--transform",
        f"t1W:{DEFAULT_SPACE.lower()}={path}",
    )
    assert ended.returncode == 0, ended.stderr
    assert "no mask or atlas passes" not in ended.stderr
    assert sitk.ProcessObject.GetGlobalDefaultNumberOfThreads() == 1
    ended = map_lesions(raw, tmp_path / "out", connectome, "--dry-run", "--transform", f"T1w:MNI152NLin6={path}")
    assert "no mask or atlas passes --transform T1w:MNI152NLin6: check the names of its spaces" in ended.stderr
    assert "found --transform T1w:MNI152NLin6" in ended.stderr
    pattern = f"T1w:{DEFAULT_SPACE}={tmp_path}/{{sub}}{{ses}}.h5"
    ended = map_lesions(raw, tmp_path / "out", connectome, "--dry-run", "--transform", pattern)
    assert "has {ses}, but the mask's name has no session" in ended.stderr
