"""The selection of a group's lesions: a table of what may be wrong with the maps on disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import synthetic

from bids_lacuna.bids import find_lesion_masks, find_stat_maps
from bids_lacuna.group import Group, NoMaps, UnfitLesions, choose_group, refuse

SUBJECTS = ("01", "02", "03", "04", "05")


def mask_of(root: Path, subject: str) -> Path:
    """Return the path of a participant's mask."""
    return root / "bids" / f"sub-{subject}/anat/sub-{subject}_space-{synthetic.SPACE}_label-lesion_mask.nii.gz"


def write_maps(root: Path, subject: str, **options: object) -> None:
    """Write a participant's maps, of random numbers."""
    rng = np.random.default_rng(int(subject))
    maps = {stat: rng.standard_normal(synthetic.SHAPE).astype(np.float32) for stat in "rzt"}
    synthetic.write_lesion_maps(root / "out", mask_of(root, subject), maps, **{"thresholds": (2, 3), **options})


def write_all(root: Path, subjects: Sequence[str]) -> Path:
    """Write masks and maps of some participants."""
    synthetic.write_dataset(root / "bids", {})
    for subject in subjects:
        number = int(subject)
        synthetic.write_mask(mask_of(root, subject), synthetic.box((number % 2, number % 5, number // 4)))
        write_maps(root, subject)
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Write masks and maps of five participants."""
    return write_all(tmp_path, SUBJECTS)


def choose(root: Path, *, participants: tuple[str, ...] = (), **options: object) -> Group:
    """Select the group as the command line does."""
    masks = find_lesion_masks(root / "bids", participant_labels=participants)
    return choose_group(masks, find_stat_maps(root / "out", participants), root / "out", **options)


def edit_sidecars(root: Path, pattern: str, **changes: object) -> None:
    """Change sidecars."""
    for path in (root / "out").rglob(pattern):
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def remove(root: Path, pattern: str) -> None:
    """Remove files of the output."""
    for path in [path for path in (root / "out").rglob(pattern) if path.is_file()]:
        path.unlink()


def spoil(root: Path, pattern: str, content: str = "{") -> None:
    """Overwrite a file of the output with other content."""
    next((root / "out").rglob(pattern)).write_text(content)


def redo(root: Path, subject: str, **options: object) -> None:
    """Replace a participant's maps by others."""
    remove(root, f"sub-{subject}_*")
    write_maps(root, subject, **options)


def edit_mask(root: Path, subject: str, voxels: np.ndarray | None) -> None:
    """Change a participant's mask, or replace it by a broken link."""
    path = mask_of(root, subject)
    path.unlink()
    if voxels is None:
        path.symlink_to("nowhere")
    else:
        synthetic.write_mask(path, voxels)


def test_whole_and_equal_maps_make_a_group(root: Path) -> None:
    """All lesions are in the group, in order, with the thresholds of their masks; none is left out."""
    group = choose(root)
    assert [lesion.name for lesion in group.lesions] == [f"sub-{subject}_label-lesion" for subject in SUBJECTS]
    assert group.left_out == group.not_asked == ()
    assert group.provenance.options.t_thresholds == (2, 3)
    refuse(group.left_out, len(group.lesions), ())


SHIFTED = synthetic.RADIOLOGICAL + np.array([[0, 0, 0, 4.0]] + [[0] * 4] * 3)

PROBLEMS: dict[str, tuple[Callable[[Path, str], object], str, str]] = {
    "no maps": (lambda root, sub: remove(root, f"sub-{sub}_*"), "missing", "has no maps"),
    "no t-map": (lambda root, sub: remove(root, f"sub-{sub}_*stat-t*_statmap.*"), "missing", "--no-t-map"),
    "no z-map": (lambda root, sub: remove(root, f"sub-{sub}_*stat-z*.nii.gz"), "missing", "no z-map"),
    "unfinished r-map": (lambda root, sub: remove(root, f"sub-{sub}_*stat-r*.json"), "missing", "has no maps"),
    "unfinished z-map": (lambda root, sub: remove(root, f"sub-{sub}_*stat-z*.json"), "missing", "no z-map"),
    "damaged r sidecar": (lambda root, sub: spoil(root, f"sub-{sub}_*stat-r*.json"), "missing", "not valid JSON"),
    "damaged z sidecar": (lambda root, sub: spoil(root, f"sub-{sub}_*stat-z*.json"), "missing", "not valid JSON"),
    "incomplete sidecar": (lambda root, sub: spoil(root, f"sub-{sub}_*stat-r*.json", "{}"), "missing", "has no 'Con"),
    **{
        f"{key} is {value}": (
            lambda root, sub, key=key, value=value: edit_sidecars(root, f"sub-{sub}_*stat-r*.json", **{key: value}),
            "missing", f"has no {key}")
        for key, value in (("LesionVolume", "n/a"), ("LesionCoverage", None), ("NumberOfConnectomeSubjects", []))
    },
    "another hash in t": (
        lambda root, sub: edit_sidecars(root, f"sub-{sub}_*stat-t*_statmap.json", LesionHash="f00d"),
        "mixed", "LesionHash"),
    "another weighting in t": (
        lambda root, sub: edit_sidecars(root, f"sub-{sub}_*stat-t*_statmap.json", LesionWeighting="binary"),
        "mixed", "LesionWeighting"),
    "another lesion threshold in z": (
        lambda root, sub: edit_sidecars(root, f"sub-{sub}_*stat-z*.json", LesionThreshold=0.5),
        "mixed", "LesionThreshold"),
    "no image": (lambda root, sub: spoil(root, f"sub-{sub}_*stat-r*.nii.gz"), "missing", "as NIfTI"),
    "mask that is gone": (lambda root, sub: edit_mask(root, sub, None), "missing", "cannot be read"),
    "another mask": (lambda root, sub: edit_mask(root, sub, synthetic.box((0, 0, 0))), "mixed", "has changed since"),
    "another connectome": (
        lambda root, sub: edit_sidecars(root, f"sub-{sub}_*.json", ConnectomeHash="f00dcafe00"), "mixed", "f00dcafe"),
    "another connectome's z": (
        lambda root, sub: edit_sidecars(root, f"sub-{sub}_*stat-z*.json", ConnectomeHash="f00d"), "mixed", "z-map"),
    "another name": (lambda root, sub: redo(root, sub, connectome="HCP"), "mixed", "HCP"),
    "another weighting": (lambda root, sub: redo(root, sub, LesionWeighting="binary"), "mixed", "binary weighting"),
    "another lesion threshold": (lambda root, sub: redo(root, sub, LesionThreshold=0.5), "mixed", "threshold 0.5"),
    "another grid": (lambda root, sub: redo(root, sub, affine=SHIFTED), "mixed", "from (12, -12, -20)"),
}  # fmt: skip

UNFIT = {problem: str(number) for number, problem in enumerate(PROBLEMS, start=11)}
"""Participants by problem."""


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Group:
    """Select from five intact lesions and one with each problem."""
    root = write_all(tmp_path_factory.mktemp("mixed"), (*SUBJECTS, *UNFIT.values()))
    for problem, (mischief, _, _) in PROBLEMS.items():
        mischief(root, UNFIT[problem])
    return choose(root)


@pytest.mark.parametrize(("problem", "kind", "words"), [(name, *rest) for name, (_, *rest) in PROBLEMS.items()])
def test_unfit_lesions_are_named_with_a_reason(mixed: Group, problem: str, kind: str, words: str) -> None:
    """A lesion that differs is listed with its kind and its reason."""
    (left_out,) = [lesion for lesion in mixed.left_out if lesion.name == f"sub-{UNFIT[problem]}_label-lesion"]
    assert left_out.kind == kind
    assert words in left_out.reason


def test_unfit_lesions_are_refused_or_left_out(mixed: Group) -> None:
    """Any unfit lesion is refused, unless the user ignores its kind; the others stay."""
    assert [lesion.mask.entities["sub"] for lesion in mixed.lesions] == list(SUBJECTS)
    assert len(mixed.left_out) == len(PROBLEMS)
    refuse(mixed.left_out, 5, ("missing", "mixed"))
    with pytest.raises(UnfitLesions, match="--ignore missing mixed") as all_of_them:
        refuse(mixed.left_out, 5, ())
    for ignored, named in (("missing", "mixed"), ("mixed", "missing")):
        with pytest.raises(UnfitLesions) as refused:
            refuse(mixed.left_out, 5, (ignored,))
        assert f": {named}: " in str(refused.value)
        assert f": {ignored}: " not in str(refused.value)
    assert all(f"sub-{sub}_label-lesion" in str(all_of_them.value) for sub in UNFIT.values())


@pytest.mark.parametrize(
    ("thresholds", "of_all", "others"),
    [((5,), (), (2, 3, 5)), ((3, 5, 7), (3,), (2, 5, 7)), ((), (), (2, 3)), ((2, 3, 9), (2, 3), (9,))],
)
def test_masks_of_other_thresholds_do_not_divide_a_group(
    root: Path, thresholds: tuple[float, ...], of_all: tuple[float, ...], others: tuple[float, ...]
) -> None:
    """r, z and t are the same whatever masks a lesion has: the group has the thresholds that all have masks for."""
    redo(root, "03", thresholds=thresholds)
    group = choose(root)
    assert len(group.lesions) == 5
    assert group.left_out == group.not_asked == ()
    assert (group.provenance.options.t_thresholds, group.other_thresholds) == (of_all, others)


def test_only_the_lesions_of_a_group_decide_its_thresholds(root: Path) -> None:
    """Masks of a lesion that was left out or not requested count for nothing."""
    redo(root, "03", thresholds=())
    redo(root, "04", thresholds=(9,), connectome="HCP")
    group = choose(root, participants=("01", "02", "04"))
    assert [lesion.kind for lesion in group.left_out] == ["mixed"]
    assert (group.provenance.options.t_thresholds, group.other_thresholds) == ((2, 3), ())


def test_thresholds_that_are_asked_for_need_no_masks(root: Path) -> None:
    """If thresholds are requested for the group, the thresholds of the lesions' masks do not matter."""
    redo(root, "03", thresholds=(5,))
    group = choose(root, t_thresholds=(7.0, 2.5))
    assert len(group.lesions) == 5
    assert group.provenance.options.t_thresholds == (2.5, 7)


def test_rounding_of_an_affine_does_not_divide_a_group(root: Path) -> None:
    """Maps whose affines differ by 1e-6 mm are on the same grid."""
    redo(root, "03", affine=synthetic.RADIOLOGICAL + np.array([[0, 0, 0, 1e-6]] + [[0] * 4] * 3))
    assert len(choose(root).lesions) == 5


def test_a_tie_is_not_decided(root: Path) -> None:
    """If equally many lesions have maps of two connectomes, both are listed, and --connectome-name selects one."""
    for subject in SUBJECTS:
        write_maps(root, subject, connectome="HCP")
    with pytest.raises(
        UnfitLesions, match=r"(?s)the most lesions, 5 each.*GSP \(GSPhash\).*HCP \(HCPhash\).*--connectome-name"
    ):
        choose(root)
    for name in ("GSP", "HCP"):
        group = choose(root, connectome_name=name)
        assert {lesion.sidecar["ConnectomeName"] for lesion in group.lesions} == {name}
        assert (len(group.lesions), group.left_out) == (5, ())


def test_the_connectome_may_be_the_one_of_few(root: Path) -> None:
    """A requested connectome is used even if most lesions have maps of another one."""
    write_maps(root, "02", connectome="HCP")
    group = choose(root, connectome_name="HCP")
    assert [lesion.name for lesion in group.lesions] == ["sub-02_label-lesion"]
    assert {lesion.kind for lesion in group.left_out} == {"mixed"}
    with pytest.raises(NoMaps, match="GSP, HCP"):
        choose(root, connectome_name="HCP", connectome_hash="another")


def test_nothing_at_all(root: Path) -> None:
    """Without any maps, the message says that the participant level comes first."""
    remove(root, "sub-*")
    with pytest.raises(NoMaps, match="participant level"):
        choose(root)


def test_no_lesion_left(root: Path) -> None:
    """An empty group is refused whatever is ignored."""
    remove(root, "*stat-z*")
    group = choose(root)
    with pytest.raises(UnfitLesions, match="no lesion is left"):
        refuse(group.left_out, len(group.lesions), ("missing", "mixed"))


def test_participants_limit_the_group(root: Path) -> None:
    """Participants who were not requested are neither in the group nor missing."""
    remove(root, "sub-01*")
    group = choose(root, participants=("sub-02", "04"))
    assert [lesion.mask.entities["sub"] for lesion in group.lesions] == ["02", "04"]
    assert group.left_out == group.not_asked == ()


def test_a_lesion_in_two_spaces_is_one(root: Path) -> None:
    """The mask from which the maps were made counts; its copy in another space is not missing."""
    synthetic.write_mask(
        root / "bids/sub-01/anat/sub-01_space-T1w_label-lesion_mask.nii.gz", synthetic.box((0, 0, 0))
    )
    group = choose(root)
    assert [lesion.mask.path for lesion in group.lesions] == [mask_of(root, subject) for subject in SUBJECTS]
    assert group.left_out == ()


def test_lesions_that_were_not_requested_are_listed(root: Path) -> None:
    """Maps whose mask is no longer in the dataset are listed and left out of the group."""
    mask_of(root, "05").unlink()
    group = choose(root)
    assert len(group.lesions) == 4
    assert [path.name.split("_")[0] for path in group.not_asked] == ["sub-05"]


def test_other_files_are_not_lesion_maps(root: Path) -> None:
    """Group maps, lesion masks and other images in the output are not mistaken for maps of lesions."""
    before = find_stat_maps(root / "out")
    for name in (
        "space-A_stat-r_desc-GSPmean_statmap",
        "sub-01/func/sub-01_label-lesion_mask",
        "sub-01/x_stat-r_bold",
    ):
        nib.save(nib.Nifti1Image(np.ones((1, 1, 1), np.uint8), np.eye(4)), root / "out" / f"{name}.nii.gz")
    assert find_stat_maps(root / "out") == before
    assert len(before) == 25


@pytest.mark.parametrize(
    ("statuses", "words"),
    [
        (["failed"], "; by lesions.tsv: failed: the mask is empty 0"),
        (["failed", "failed"], "; by lesions.tsv: failed: the mask is empty 1"),
        (["done", "not run"], "; by lesions.tsv: not run: the mask is empty 1"),
        (["failed", "done"], ": run the participant level"),
        ([], ": run the participant level"),
    ],
)
def test_reason_of_the_table_of_outcomes(root: Path, statuses: list[str], words: str) -> None:
    """A lesion without maps is left out with the reason that the newest lesions.tsv has for it."""
    remove(root, "sub-02_*")
    mask = mask_of(root, "02").relative_to(root / "bids")
    for number, status in enumerate(statuses):
        folder = root / "out" / "logs" / f"2026010{number}-000000_x"
        folder.mkdir(parents=True)
        table = f"dataset\tmask\tstatus\treason\nsource\t{mask}\t{status}\tthe mask is empty {number}\n"
        (folder / "lesions.tsv").write_text(table)
    (left_out,) = choose(root).left_out
    assert left_out.reason == f"{mask.name} has no maps{words}"
