"""The images of BIDS datasets: participants, filters, damaged files and the index on disk."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import synthetic
from synthetic import DERIVATIVE, RAW

from bids_lacuna.bids import (
    LesionMask,
    NoLesionMasks,
    UnknownParticipant,
    find_lesion_masks,
    find_participants_without_mask,
    read_filter_file,
)

LESION = "sub-01/anat/sub-01_label-lesion_mask.nii.gz"


def names(found: Sequence[LesionMask]) -> list[str]:
    """List the file names of masks."""
    return [file.path.name for file in found]


@pytest.mark.parametrize(
    "description",
    [RAW, DERIVATIVE, {**RAW, "DatasetType": "derivative"}, {**RAW, "PipelineDescription": {"Name": "old"}}],
)
@pytest.mark.parametrize("dataset_type", ["raw", "derivative"])
def test_kinds_of_dataset(tmp_path: Path, description: dict[str, Any], dataset_type: str) -> None:
    """Raw datasets and derivatives are read alike, whatever their descriptions say about their origin."""
    synthetic.write_images(tmp_path, LESION, description={**description, "DatasetType": dataset_type})
    assert names(find_lesion_masks(tmp_path)) == [Path(LESION).name]


def test_damaged_sidecar(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A damaged sidecar is ignored with a warning that names it; its mask is found."""
    synthetic.write_images(tmp_path, LESION)
    sidecar = tmp_path / LESION.replace(".nii.gz", ".json")
    sidecar.write_text("{")
    assert [mask.space for mask in find_lesion_masks(tmp_path)] == [None]
    assert str(sidecar) in caplog.text


@pytest.mark.parametrize("with_database", [False, True])
def test_broken_links(tmp_path: Path, with_database: bool) -> None:
    """In a DataLad clone without content, masks are listed with their BIDS names, and broken sidecars do no harm."""
    root = synthetic.write_images(tmp_path / "clone", description=DERIVATIVE)
    (root / "sub-01" / "anat").mkdir(parents=True)
    for name in (
        LESION,
        LESION.replace(".nii.gz", ".json"),
        "sub-01/anat/sub-01_desc-brain_mask.nii.gz",
        "task.json",
    ):
        (root / name).symlink_to("../../.git/annex/objects/MD5E-s7--1" + name[-7:])
    (mask,) = find_lesion_masks(root, database_dir=tmp_path / "database" if with_database else None)
    assert mask.path == root / LESION
    assert not mask.path.exists()


def test_links_stay(tmp_path: Path) -> None:
    """The path of a linked mask is that of the link, since the target has no BIDS name."""
    content = synthetic.write_images(tmp_path / "annex", "MD5E-s7--1.nii.gz") / "MD5E-s7--1.nii.gz"
    root = synthetic.write_images(tmp_path / "clone", "sub-02/anat/sub-02_T1w.nii.gz")
    link = root / "sub-02/anat/sub-02_label-lesion_mask.nii.gz"
    link.symlink_to(content)
    (mask,) = find_lesion_masks(root)
    assert mask.path == link


def test_junk(tmp_path: Path) -> None:
    """Hidden files and folders, nested datasets, empty and oddly named files are skipped."""
    synthetic.write_images(
        tmp_path,
        LESION,
        *(
            f"{folder}/{LESION}"
            for folder in (
                ".git/annex",
                ".datalad",
                "sourcedata",
                "code",
                "stimuli",
                "derivatives/masks",
                "sub-01/.x",
            )
        ),
    )
    for name in ("._sub-01_label-lesion_mask.nii.gz", "sub-01_label-lesion_mask.nii.gz.tmp", "lésion (1).nii.gz"):
        (tmp_path / "sub-01" / "anat" / name).touch()
    (tmp_path / "participants.tsv").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "sub-02.html").touch()
    assert [mask.path for mask in find_lesion_masks(tmp_path)] == [tmp_path / LESION]


@pytest.fixture
def patients(tmp_path: Path) -> Path:
    """Write three participants with two sessions each, and a brain mask for each lesion."""
    return synthetic.write_images(
        tmp_path / "patients",
        *(
            f"sub-{sub}/ses-{ses}/anat/sub-{sub}_ses-{ses}_run-{run}_{kind}_mask.nii.gz"
            for sub in ("1", "01", "011")
            for ses, run in (("pre", "01"), ("post", "2"))
            for kind in ("label-lesion", "desc-brain", "label-tumour")
        ),
    )


@pytest.mark.parametrize("with_database", [False, True])
@pytest.mark.parametrize("labels", [["01"], ["sub-01"], ["sub-1", "011"], []])
def test_participants(patients: Path, tmp_path: Path, labels: list[str], with_database: bool) -> None:
    """Participants are selected with or without sub-, and never those with similar labels."""
    database = tmp_path / "database" if with_database else None
    found = find_lesion_masks(patients, participant_labels=labels, database_dir=database)
    expected = {label.removeprefix("sub-") for label in labels} or {"1", "01", "011"}
    assert {mask.entities["sub"] for mask in found} == expected
    assert len(found) == 2 * len(expected)


@pytest.mark.parametrize("label", ["post", "ses-post"])
def test_sessions(patients: Path, label: str) -> None:
    """Sessions are selected with or without ses-."""
    found = find_lesion_masks(patients, participant_labels=["01"], session_labels=[label])
    assert names(found) == ["sub-01_ses-post_run-2_label-lesion_mask.nii.gz"]


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, 6),
        ({"subject": "01"}, 2),
        ({"sub": ["sub-01", "1"]}, 4),
        ({"session": "ses-pre"}, 3),
        ({"ses": ["pre", "post"], "datatype": "anat"}, 6),
        ({"label": "tumour"}, 6),
        ({"label": "*"}, 12),
        ({"label": None}, 6),
        ({"label": [None, "tumour"]}, 12),
        ({"desc": "brain"}, 6),
        ({"suffix": "mask"}, 18),
        ({"acquisition": None}, 6),
        ({"run": 1}, 3),
        ({"run": "02"}, 3),
        ({"extension": "nii.gz"}, 6),
        ({"extension": ".nii.gz", "space": None, "stat": None}, 6),
    ],
)
def test_filters(patients: Path, filters: dict[str, Any], expected: int) -> None:
    """A filter is a label, labels, null for none or "*" for any; on label, desc or suffix it replaces the rule."""
    assert len(find_lesion_masks(patients, filters=filters)) == expected


@pytest.mark.parametrize(
    ("entity", "nearest"), [("labl", "label"), ("subjects", "subject"), ("scope", "space"), ("%", ".*")]
)
def test_unknown_entity(patients: Path, entity: str, nearest: str) -> None:
    """A filter on an unknown entity is an error that names the nearest known one."""
    with pytest.raises(ValueError, match=rf"'{entity}', which is not a BIDS entity: is '{nearest}' meant"):
        find_lesion_masks(patients, filters={entity: "x"})


def test_unknown_participant(patients: Path) -> None:
    """The error for unknown participants lists the existing ones."""
    with pytest.raises(UnknownParticipant, match=r"no participant 02, 03: there are 01, 011, 1$"):
        find_lesion_masks(patients, participant_labels=["01", "sub-02", "03"])


def test_participant_of_a_derivative(patients: Path, tmp_path: Path) -> None:
    """A participant may be in an additional dataset only."""
    other = synthetic.write_images(tmp_path / "other", LESION.replace("01", "02"))
    (mask,) = find_lesion_masks(patients, {"other": other}, participant_labels=["02"])
    assert mask.dataset == "other"


def test_many_participants(tmp_path: Path) -> None:
    """Twenty of many labels are listed and the rest is counted."""
    synthetic.write_images(tmp_path)
    for number in range(100, 123):
        (tmp_path / f"sub-{number}").mkdir()
    with pytest.raises(UnknownParticipant, match=r"there are 100, 101, .*, 119 and 3 more$"):
        find_lesion_masks(tmp_path, participant_labels=["x"])


def test_unknown_session(patients: Path, tmp_path: Path) -> None:
    """The error for unknown sessions lists the existing ones, if any."""
    with pytest.raises(UnknownParticipant, match=r"no session mid: there are post, pre$"):
        find_lesion_masks(patients, session_labels=["mid", "pre"])
    with pytest.raises(UnknownParticipant, match=r"no session pre: there are no sub-\*/ses-\* folders$"):
        find_lesion_masks(synthetic.write_images(tmp_path / "other", LESION), session_labels=["pre"])


def test_lesions_that_filters_leave_out(patients: Path) -> None:
    """Lesion masks come first among near misses."""
    with pytest.raises(NoLesionMasks, match=r"\n  run: 01 \(9\), 2 \(9\)\nnear miss: .*_label-lesion_mask.nii.gz\n"):
        find_lesion_masks(patients, filters={"run": 7})


def test_database_is_kept(patients: Path, tmp_path: Path) -> None:
    """An index created for one participant covers all, misses later files, and the error says so."""
    database = tmp_path / "deep" / "database"
    first = find_lesion_masks(patients, participant_labels=["01"], database_dir=database)
    indices = sorted(database.iterdir())
    synthetic.write_images(patients, "sub-01/anat/sub-01_label-wound_mask.nii.gz")
    assert find_lesion_masks(patients, participant_labels=["01"], database_dir=database) == first
    assert find_lesion_masks(patients, database_dir=database) == find_lesion_masks(patients)
    assert sorted(database.iterdir()) == indices
    with pytest.raises(NoLesionMasks, match=f"the index in {database} may be older"):
        find_lesion_masks(patients, filters={"label": "wound"}, database_dir=database)


def test_databases_of_two_datasets(tmp_path: Path) -> None:
    """Datasets that share a database folder and the name `source` have separate indices."""
    for number in ("01", "02"):
        root = synthetic.write_images(tmp_path / number, LESION.replace("01", number))
        (mask,) = find_lesion_masks(root, database_dir=tmp_path / "database")
        assert mask.path == root / LESION.replace("01", number)


def test_no_dataset(tmp_path: Path) -> None:
    """A folder that is not the root of a BIDS dataset is an error that shows how to make it one."""
    (tmp_path / "sub-01").mkdir()
    with pytest.raises(
        FileNotFoundError, match=r'no dataset_description.json: .* \{"Name": "my data", "BIDSVersion"'
    ):
        find_lesion_masks(tmp_path)
    with pytest.raises(NotADirectoryError, match="there is no folder"):
        find_lesion_masks(synthetic.write_images(tmp_path, LESION), {"x": tmp_path / "nowhere"})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "contains a JSON list"),
        (json.dumps({**DERIVATIVE, "GeneratedBy": {"Name": "manual"}}), "GeneratedBy in .* is not a list of objects"),
    ],
)
def test_damaged_description(tmp_path: Path, content: str, message: str) -> None:
    """A damaged dataset_description.json is an error that names it."""
    synthetic.write_images(tmp_path, LESION)
    (tmp_path / "dataset_description.json").write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        find_lesion_masks(tmp_path)
    assert str(tmp_path / "dataset_description.json") in str(caught.value)


@pytest.mark.parametrize(
    ("content", "filters"),
    [
        ({"lesion": {"space": "T1w", "run": None}, "bold": {"task": "rest"}}, {"space": "T1w", "run": None}),
        ({"t1w": {"datatype": "anat"}}, {}),
        ({"lesion": None}, {}),
    ],
)
def test_filter_file(tmp_path: Path, content: Any, filters: dict[str, Any]) -> None:
    """Only the filters on lesions are read from a filter file."""
    path = tmp_path / "filters.json"
    path.write_text(json.dumps(content))
    assert read_filter_file(path) == filters


def test_filter_file_without_the_kind(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Filters on BOLD runs have a key of their own; a missing key gives a warning."""
    path = tmp_path / "filters.json"
    path.write_text('{"bold": {"task": "movie"}}')
    assert read_filter_file(path, "bold") == {"task": "movie"}
    assert not caplog.records
    assert read_filter_file(path) == {}
    assert 'no filters under "lesion" (it has bold)' in caplog.text


@pytest.mark.parametrize("content", ["{", "[]", '{"lesion": "01"}'])
def test_damaged_filter_file(tmp_path: Path, content: str) -> None:
    """A filter file that is not JSON, or not an object of objects, is an error that names it."""
    path = tmp_path / "filters.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"filters\.json"):
        read_filter_file(path)


def damage(index: Path, how: str) -> None:
    """Damage the file of an index."""
    content = index.read_bytes()
    match how:
        case "empty":
            index.write_bytes(b"")
        case "garbage":
            index.write_bytes(np.random.default_rng(3).bytes(3000))
        case "cut":
            index.write_bytes(content[: len(content) // 2])
        case "another table":
            index.unlink()
            with closing(sqlite3.connect(index)) as connection:
                connection.execute("CREATE TABLE dogs (name)")
        case "a file":
            shutil.rmtree(index.parent)
            index.parent.write_text("a file")
        case "a folder":
            index.unlink()
            index.mkdir()
        case "another label":
            # The structure of the database is whole.
            assert b"label-lesion_mask" in content
            index.write_bytes(content.replace(b"label-lesion_mask", b"label-legion_mask"))


@pytest.mark.parametrize("how", ["empty", "garbage", "cut", "another table", "a file", "a folder", "another label"])
def test_damaged_index_is_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str) -> None:
    """All masks are found, one warning names the index, and the next run reads the new one."""
    root = synthetic.write_images(tmp_path / "bids", LESION, LESION.replace("01", "02"))
    expected = find_lesion_masks(root)
    assert find_lesion_masks(root, database_dir=tmp_path / "database") == expected
    (index,) = (tmp_path / "database").rglob("*.sqlite")
    damage(index, how)
    caplog.clear()
    assert find_lesion_masks(root, database_dir=tmp_path / "database") == expected
    (warning,) = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert str(index.parent) in warning
    caplog.clear()
    assert find_lesion_masks(root, database_dir=tmp_path / "database") == expected
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [path.name for path in (tmp_path / "database").iterdir()] == [index.parent.name]


def test_index_of_an_earlier_version_is_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An index without a checksum is used."""
    root = synthetic.write_images(tmp_path / "bids", LESION)
    expected = find_lesion_masks(root, database_dir=tmp_path / "database")
    (index,) = (tmp_path / "database").rglob("*.sqlite")
    with closing(sqlite3.connect(index)) as connection:
        ((checksum,),) = connection.execute("PRAGMA user_version")
        assert checksum
        connection.execute("PRAGMA user_version = 0")
    caplog.set_level(logging.INFO)
    assert find_lesion_masks(root, database_dir=tmp_path / "database") == expected
    assert f"using the index {index.parent}" in caplog.text


UNPRIVILEGED = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.getuid() == 0 else []
"""Start of a command without root's permission to read and write everything."""

FIND = """
import logging, sys
from pathlib import Path
logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stdout)
from bids_lacuna.bids import find_lesion_masks
logging.getLogger("bids_lacuna.bids.lesions").setLevel(logging.ERROR)
print(*[mask.path.name for mask in find_lesion_masks(Path(sys.argv[1]), database_dir=Path(sys.argv[2]))])
"""


def find_unprivileged(root: Path, database: Path) -> list[str]:
    """Find masks as a user without root's permissions; return the lines of the log, and the masks last."""
    command = [*UNPRIVILEGED, sys.executable, "-c", FIND, str(root), str(database)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    return result.stdout.splitlines()


def test_index_without_permissions(tmp_path: Path) -> None:
    """A read-only index is used without a warning; without permission to read or write, one warning says so."""
    root, database = synthetic.write_images(tmp_path / "bids", LESION), tmp_path / "database"
    find_lesion_masks(root, database_dir=database)
    (index,) = database.rglob("*.sqlite")
    expected = Path(LESION).name
    folders = (database, index.parent)
    try:
        index.chmod(0o444)
        for folder in folders:
            folder.chmod(0o555)
        using, found = find_unprivileged(root, database)
        assert (using.partition(":")[0], found) == (f"INFO using the index {index.parent}", expected)
        index.chmod(0)
        warning, found = find_unprivileged(root, database)
        assert (warning.startswith("WARNING"), found) == (True, expected)
        assert "Permission denied" in warning
        database.chmod(0)
        warning, found = find_unprivileged(root, database)
        assert (warning.startswith("WARNING"), found) == (True, expected)
        assert "Permission denied" in warning
        warning, found = find_unprivileged(root, database / "deeper")
        assert (warning.startswith("WARNING"), found) == (True, expected)
    finally:
        for folder in folders:
            folder.chmod(0o755)


def test_index_on_a_full_disk(tmp_path: Path) -> None:
    """Where files may have no content, the dataset is searched, with one warning."""
    root = synthetic.write_images(tmp_path / "bids", LESION)
    # The limit on file size is like a quota.
    limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))" + FIND
    command = [sys.executable, "-c", limited, str(root), str(tmp_path / "database")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    warning, found = result.stdout.splitlines()
    assert warning.startswith(f"WARNING no index is used in {tmp_path / 'database'}")
    assert found == Path(LESION).name
    assert not list((tmp_path / "database").iterdir())


@pytest.fixture
def shared() -> Iterator[Path]:
    """Make a folder that other users may enter, unlike pytest's own."""
    with TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        yield Path(folder)


@pytest.mark.parametrize("mode", [0o000, 0o444, 0o111])
@pytest.mark.parametrize("place", ["sub-02", "sub-02/anat"])
@pytest.mark.parametrize("with_database", [False, True])
def test_unsearchable_folder(
    shared: Path, caplog: pytest.LogCaptureFixture, mode: int, place: str, with_database: bool
) -> None:
    """A folder that may not be searched is left out with a warning; the masks of other participants are found."""
    root = synthetic.write_images(shared / "bids", LESION, LESION.replace("01", "02"))
    (root / place).chmod(mode)
    try:
        with synthetic.as_nobody():
            found = find_lesion_masks(root, database_dir=shared / "database" if with_database else None)
            lost = find_participants_without_mask(found, root)
    finally:
        (root / place).chmod(0o755)
    assert names(found) == [Path(LESION).name]
    assert [(participant.label, participant.path) for participant in lost] == [("02", root / place)]
    assert str(root / place) in caplog.text
    assert "no index is used" not in caplog.text
    if mode != 0o111:
        assert len(find_lesion_masks(root, database_dir=shared / "database")) == 2


def test_further_unsearchable_folder(shared: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A session that may not be searched is named although its participant has a mask."""
    root = synthetic.write_images(shared / "bids", LESION, "sub-01/ses-2/anat/sub-01_ses-2_label-lesion_mask.nii.gz")
    (root / "sub-01/ses-2").chmod(0)
    try:
        with synthetic.as_nobody():
            found = find_lesion_masks(root)
            assert find_participants_without_mask(found, root) == []
    finally:
        (root / "sub-01/ses-2").chmod(0o755)
    assert f"such as {root / 'sub-01/ses-2'}: a folder cannot be read: check its permissions" in caplog.text


def test_unsearchable_dataset(shared: Path) -> None:
    """A dataset that may not be searched is an error."""
    root = synthetic.write_images(shared / "bids", LESION)
    root.chmod(0)
    try:
        with synthetic.as_nobody(), pytest.raises(PermissionError):
            find_lesion_masks(root)
    finally:
        root.chmod(0o755)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (["001,002"], "separate labels by spaces, as in 001 002"),
        (["sub-001;sub-002"], "separate labels by spaces, as in 001 sub-002"),
        (["1"], "did you mean 001?"),
        (["sub-1", "2"], "did you mean 001 002?"),
        (["P01"], "did you mean p1?"),
        (["Sub-001"], "did you mean 001?"),
    ],
)
def test_suggested_participants(tmp_path: Path, asked: list[str], words: str) -> None:
    """A label that means the same as an existing one is recognized, and so are several that are one word."""
    synthetic.write_images(tmp_path, *(f"sub-{label}/anat/sub-{label}_T1w.nii.gz" for label in ("001", "002", "p1")))
    with pytest.raises(UnknownParticipant) as caught:
        find_lesion_masks(tmp_path, participant_labels=asked)
    assert words in str(caught.value)
