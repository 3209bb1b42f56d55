"""Names, sidecars and the dataset's description, apart from a whole run."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import synthetic
from bidsschematools.schema import load_schema

from bids_lacuna import FunctionalNetworkMapping, LesionData, batch_process, files
from bids_lacuna.bids import LesionMask, find_lesion_masks
from bids_lacuna.derivatives import writer as writer_module
from bids_lacuna.derivatives.dataset import clean_after, prepare_dataset
from bids_lacuna.derivatives.names import ENTITY_ORDER, expected_maps, map_path
from bids_lacuna.derivatives.records import LesionRecord, claim_lesions, decide, lesion_provenance
from bids_lacuna.derivatives.writer import DerivativesWriter
from bids_lacuna.files import write_json
from bids_lacuna.grid import Grid
from bids_lacuna.provenance import PROGRAM, MappingOptions, Provenance
from bids_lacuna.runtime.locks import Claim, claiming


def settings(voxel_size_mm: tuple[float, float, float] = (2, 2, 2)) -> Provenance:
    """Make settings of a connectome called GSP."""
    grid = Grid(np.ones(synthetic.SHAPE, bool), np.diag([*voxel_size_mm, 1.0]))
    return Provenance.on(
        grid,
        connectome_name="GSP",
        connectome_hash="0" * 64,
        space=synthetic.SPACE,
        options=MappingOptions(t_thresholds=(7.0, 5.25)),
        software={PROGRAM: "1"},
    )


def mask(name: str, root: Path = Path("/bids")) -> LesionMask:
    """Make a mask as it would be found."""
    entities = dict(pair.split("-", 1) for pair in name.split("_")[:-1])
    path = root / f"sub-{entities['sub']}" / "anat" / f"{name}.nii.gz"
    return LesionMask(path, entities, entities.get("space"), "source", root)


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("sub-01_space-A_label-lesion_mask", "sub-01/func/sub-01_space-S_label-lesion_stat-r_desc-GSP"),
        ("sub-01_ses-2_run-3_label-L_mask", "sub-01/ses-2/func/sub-01_ses-2_run-3_space-S_label-L_stat-r_desc-GSP"),
        ("sub-01_acq-x_space-A_res-1_desc-T1lesion_mask",
         "sub-01/func/sub-01_acq-x_space-S_res-2_label-lesion_stat-r_desc-T1lesionGSP"),
        ("sub-01_seg-a_den-32k_label-lesion_mask",
         "sub-01/func/sub-01_space-S_seg-a_den-32k_label-lesion_stat-r_desc-GSP"),
        ("sub-01_hemi-L_label-lesion_desc-a_mask", "sub-01/func/sub-01_hemi-L_space-S_label-lesion_stat-r_desc-aGSP"),
    ],
)  # fmt: skip
def test_names_keep_what_tells_lesions_apart(name: str, stem: str) -> None:
    """A map's name has the mask's own entities, and the connectome's space and name."""
    expected = stem.replace("space-S", f"space-{synthetic.SPACE}")
    assert str(map_path(mask(name), settings(), stat="r")) == f"{expected}_statmap.nii.gz"


def test_entities_have_the_order_of_the_schema() -> None:
    """The order of entities is that of the BIDS schema, to which `stat` is added."""
    schema = load_schema()
    names = [schema.objects.entities[entity].name for entity in schema.rules.entities]
    ours = [name for name in ENTITY_ORDER if name in names]
    assert [name for name in names if name in ours] == ours
    assert set(names) - set(ours) == set()


def test_thresholds_are_labels_of_letters_and_digits() -> None:
    """A threshold of 5.25 is T5p25 in a mask's name, and 7 is T7."""
    names = [path.name for path in expected_maps(mask("sub-01_label-lesion_mask"), settings())]
    assert [name.rsplit("desc-", 1)[1] for name in names] == [
        *["GSP_statmap.nii.gz"] * 3, "GSPT7_mask.nii.gz", "GSPT5p25_mask.nii.gz",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("sizes", "label"), [((2, 2, 2), "2"), ((2.5, 2.5, 2.5), "2p5"), ((1, 1, 3), "1x1x3"), ((1.9999, 2, 2), "2")]
)
def test_resolution_is_the_grids_voxel_size(sizes: tuple[float, float, float], label: str) -> None:
    """`res` is the voxel size in mm, whatever the mask's was."""
    assert f"_res-{label}_" in map_path(mask("sub-01_res-9_label-lesion_mask"), settings(sizes), stat="z").name


def test_the_right_space_is_chosen(tmp_path: Path) -> None:
    """Of one lesion in two spaces the connectome's is mapped; one in other spaces only fails, with both named."""
    found = [
        f"sub-01_space-{synthetic.SPACE}_label-lesion_mask",
        "sub-01_space-T1w_label-lesion_mask",
        "sub-02_space-T1w_label-lesion_mask",
        "sub-03_label-lesion_mask",
    ]
    records = decide([mask(name) for name in found], tmp_path, settings())
    assert [record.status for record in records] == ["pending", "skipped", "failed", "failed"]
    assert "T1w" in records[2].reason
    assert synthetic.SPACE in records[2].reason
    assert "its name has no space" in records[3].reason


def test_a_name_that_says_no_space_takes_the_sidecars(tmp_path: Path) -> None:
    """A mask whose space is only in its sidecar is mapped."""
    known = replace(mask("sub-03_label-lesion_mask"), space=synthetic.SPACE)
    assert [record.status for record in decide([known], tmp_path, settings())] == ["pending"]


def write_maps(record: LesionRecord, output_dir: Path) -> None:
    """Write what another run with the same settings leaves of a lesion that it has mapped."""
    for path in expected_maps(record.mask, settings()):
        write_json(
            output_dir / f"{str(path).removesuffix('.nii.gz')}.json", lesion_provenance(record.mask, settings())
        )
        (output_dir / path).touch()


def names(*records: LesionRecord) -> list[str]:
    """Return the names by which runs claim lesions."""
    return [str(map_path(record.mask, settings(), stat="r")) for record in records]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_lesion_that_another_run_has_just_finished_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool
) -> None:
    """Maps are looked for again after claiming: the run that held the lesion before may just have written them."""
    finished, missing = decide(
        [replace(mask(f"sub-0{n}_label-lesion_mask"), space=synthetic.SPACE) for n in (1, 2)], tmp_path, settings()
    )
    with claiming(tmp_path / "locks", "ours", lambda _: None) as ours:
        take = ours.take

        def take_a_moment_later(lesions: Collection[str]) -> dict[str, Claim]:
            write_maps(finished, tmp_path)
            return take(lesions)

        monkeypatch.setattr(ours, "take", take_a_moment_later)
        assert claim_lesions([finished, missing], ours, tmp_path, settings(), overwrite) == 0
    assert (finished.status, missing.status) == ("pending" if overwrite else "skipped", "pending")


def test_a_lesion_that_another_run_holds_fails_unless_it_is_finished(tmp_path: Path) -> None:
    """A finished lesion of a run that still maps others is skipped; the others fail, and name that run."""
    records = finished, held, free = decide(
        [replace(mask(f"sub-0{n}_label-lesion_mask"), space=synthetic.SPACE) for n in (1, 2, 3)], tmp_path, settings()
    )
    with (
        claiming(tmp_path / "locks", "theirs", lambda _: None) as theirs,
        claiming(tmp_path / "locks", "ours", lambda _: None) as ours,
    ):
        theirs.take(names(finished, held))
        write_maps(finished, tmp_path)
        assert claim_lesions(records, ours, tmp_path, settings()) == 2
    assert [record.status for record in records] == ["skipped", "failed", "pending"]
    assert "the run theirs" in held.reason
    assert free.reason == ""


def test_jobs_of_an_array_share_a_folder(tmp_path: Path) -> None:
    """Many jobs that prepare one folder at once leave one whole description, and no temporary file."""
    with ThreadPoolExecutor(8) as jobs:
        list(jobs.map(lambda _: prepare_dataset(tmp_path / "out", {"source": tmp_path / "bids"}), range(40)))
    description = json.loads((tmp_path / "out" / "dataset_description.json").read_text())
    assert description["DatasetLinks"] == {"source": "../bids"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"dataset_description.json", ".bidsignore"}


def test_later_jobs_keep_the_links_of_earlier_ones(tmp_path: Path) -> None:
    """A run with another dataset adds its link, so that all sidecars' URIs stay resolvable."""
    prepare_dataset(tmp_path / "out", {"source": tmp_path / "bids", "old": tmp_path / "old"})
    prepare_dataset(tmp_path / "out", {"source": tmp_path / "bids", "new": tmp_path / "new"})
    description = json.loads((tmp_path / "out" / "dataset_description.json").read_text())
    assert set(description["DatasetLinks"]) == {"source", "old", "new"}


@pytest.mark.parametrize(
    ("environ", "container"),
    [
        ({}, None),
        (
            {"BIDS_LACUNA_CONTAINER_TYPE": "docker", "BIDS_LACUNA_CONTAINER_TAG": "a:1"},
            {"Type": "docker", "Tag": "a:1"},
        ),
        (
            {"BIDS_LACUNA_CONTAINER_TYPE": "docker", "APPTAINER_CONTAINER": "/x.sif"},
            {"Type": "singularity", "URI": "/x.sif"},
        ),
    ],
)
def test_the_container_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], container: dict[str, str] | None
) -> None:
    """GeneratedBy names the container that the program runs in, if any."""
    for name in ("TYPE", "TAG", "URI"):
        monkeypatch.delenv(f"BIDS_LACUNA_CONTAINER_{name}", raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    prepare_dataset(tmp_path, {})
    generator = json.loads((tmp_path / "dataset_description.json").read_text())["GeneratedBy"][0]
    assert generator.get("Container") == container


def test_one_name_never_means_two_folders(tmp_path: Path) -> None:
    """A second dataset of the same name gets another one in URIs, so that earlier sidecars stay right."""
    out = tmp_path / "out"
    assert prepare_dataset(out, {"source": tmp_path / "a"})["source"] == "source"
    assert prepare_dataset(out, {"source": tmp_path / "b"})["source"] == "source2"
    assert prepare_dataset(out, {"source": tmp_path / "a"})["source"] == "source"
    assert prepare_dataset(out, {"source": tmp_path / "b"})["source"] == "source2"
    links = json.loads((out / "dataset_description.json").read_text())["DatasetLinks"]
    assert links == {"source": "../a", "source2": "../b"}


def test_links_hold_from_behind_a_symbolic_link(tmp_path: Path) -> None:
    """Links are relative to where the output folder really is."""
    (tmp_path / "a" / "far" / "away").mkdir(parents=True)
    (tmp_path / "bids").mkdir()
    (tmp_path / "near").symlink_to(tmp_path / "a" / "far" / "away")
    prepare_dataset(tmp_path / "near" / "out", {"source": tmp_path / "bids"})
    link = json.loads((tmp_path / "near" / "out" / "dataset_description.json").read_text())["DatasetLinks"]["source"]
    assert (tmp_path / "near" / "out" / link).resolve() == tmp_path / "bids"


@pytest.mark.parametrize(
    "content",
    ['{"GeneratedBy": [{"Name": "fMRIPrep"}]}', "{}", "[1]", '{"GeneratedBy": ["x"]}', '{"GeneratedBy": null}', "{"],
)
def test_another_programs_description_is_left_alone(tmp_path: Path, content: str) -> None:
    """A folder whose description is not this program's is refused, whatever it holds."""
    path = tmp_path / "dataset_description.json"
    path.write_text(content)
    with pytest.raises((FileExistsError, ValueError), match=tmp_path.name):
        prepare_dataset(tmp_path, {})
    assert path.read_text() == content


@pytest.mark.parametrize("change", ["replaced", "deleted"])
def test_a_mask_that_changes_while_it_is_mapped_has_no_maps(tmp_path: Path, change: str) -> None:
    """A mask that is another one by the time its maps are written fails: its hash would be that of the other."""
    series = synthetic.make_series(int(synthetic.make_mask().sum()), (13, 13, 13))
    connectome = synthetic.write_connectome(tmp_path / "GSP.h5", series, synthetic.make_mask())
    names = [f"sub-{sub}/anat/sub-{sub}_space-{synthetic.SPACE}_label-lesion_mask" for sub in ("1", "2")]
    bids = synthetic.write_dataset(tmp_path / "bids", {name: synthetic.box((1, 2, 3)) for name in names})
    analysis = FunctionalNetworkMapping(connectome)
    records = decide(find_lesion_masks(bids), tmp_path / "out", analysis.provenance)
    writer = DerivativesWriter(
        tmp_path / "out", analysis.provenance, records, tmp_path / "logs", {"source": "source"}
    )

    def save(results: list[LesionData]) -> None:
        path = bids / f"{names[0]}.nii.gz"
        path.unlink()
        if change == "replaced":
            synthetic.write_mask(path, synthetic.box((2, 3, 4)))
        writer(results)

    lesions = [record.as_lesion() for record in records]
    changed, other = batch_process(lesions, analysis, batch_result_callback=save, show_progress=False)
    assert "sub-1" in changed.error
    assert "has changed while it was in use" in changed.error
    assert other.error is None
    assert {path.name[:5] for path in (tmp_path / "out").rglob("*.nii.gz")} == {"sub-2"}


def test_a_lesion_without_all_maps_has_no_sidecar(tmp_path: Path) -> None:
    """Sidecars follow the last map, since a map with a sidecar counts as complete; other lesions are written."""
    series = synthetic.make_series(int(synthetic.make_mask().sum()), (13, 13, 13))
    connectome = synthetic.write_connectome(tmp_path / "GSP.h5", series, synthetic.make_mask())
    names = [f"sub-{sub}/anat/sub-{sub}_space-{synthetic.SPACE}_label-lesion_mask" for sub in ("1", "2")]
    bids = synthetic.write_dataset(tmp_path / "bids", {name: synthetic.box((1, 2, 3)) for name in names})
    analysis, out = FunctionalNetworkMapping(connectome), tmp_path / "out"
    records = decide(find_lesion_masks(bids), out, analysis.provenance)
    # A folder in the place of the t-map, which is written last.
    (out / map_path(records[0].mask, analysis.provenance, stat="t")).mkdir(parents=True)
    writer = DerivativesWriter(out, analysis.provenance, records, tmp_path / "logs", {"source": "source"})
    lesions = [record.as_lesion() for record in records]
    failed, other = batch_process(lesions, analysis, batch_result_callback=writer, show_progress=False)
    assert "its maps cannot be written" in failed.error
    assert other.error is None
    assert {path.name[:5] for path in out.rglob("*.json")} == {"sub-2"}
    assert not list(out.rglob(".*"))


@pytest.fixture
def mapped(tmp_path: Path) -> tuple[FunctionalNetworkMapping, list[LesionRecord]]:
    """Return an analysis, and the records of nine lesions to be mapped in its connectome."""
    series = synthetic.make_series(int(synthetic.make_mask().sum()), (13, 13, 13))
    connectome = synthetic.write_connectome(tmp_path / "GSP.h5", series, synthetic.make_mask())
    names = [f"sub-{n}/anat/sub-{n}_space-{synthetic.SPACE}_label-lesion_mask" for n in range(9)]
    bids = synthetic.write_dataset(
        tmp_path / "bids", {name: synthetic.box((1, 2, n)) for n, name in enumerate(names)}
    )
    analysis = FunctionalNetworkMapping(connectome, t_threshold=2)
    return analysis, decide(find_lesion_masks(bids), tmp_path / "out", analysis.provenance)


def write(
    mapped: tuple[FunctionalNetworkMapping, list[LesionRecord]], out: Path, n_threads: int = 2
) -> list[LesionData]:
    """Map the lesions, and write their maps."""
    analysis, records = mapped
    own = [replace(record) for record in records]
    writer = DerivativesWriter(out, analysis.provenance, own, out / "logs", {"source": "source"}, n_threads=n_threads)
    return batch_process(
        [record.as_lesion() for record in own], analysis, batch_result_callback=writer, show_progress=False
    )


def test_files_do_not_depend_on_the_number_of_threads(
    tmp_path: Path, mapped: tuple[FunctionalNetworkMapping, list[LesionRecord]]
) -> None:
    """One thread and many write the same maps and sidecars to the byte, and no other files."""
    contents = []
    for n_threads in (1, 3):
        out = tmp_path / f"out{n_threads}"
        assert {lesion.error for lesion in write(mapped, out, n_threads)} == {None}
        contents.append({path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()})
    assert contents[0] == contents[1]
    assert len(contents[0]) == 9 * 2 * 4


@pytest.mark.parametrize("number", [0, 4, 8])
def test_a_failure_of_writing_is_that_of_its_lesion(
    tmp_path: Path, mapped: tuple[FunctionalNetworkMapping, list[LesionRecord]], number: int
) -> None:
    """Of lesions that are written at the same time, the one whose folder cannot be made fails, and no other."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / f"sub-{number}").write_text("a file in the place of the folder")
    errors = [lesion.error for lesion in write(mapped, tmp_path / "out")]
    assert "its maps cannot be written" in errors.pop(number)
    assert errors == [None] * 8
    assert len(list((tmp_path / "out").rglob("*.json"))) == 8 * 4


def test_a_full_disk_fails_the_lesions_that_it_lacks_room_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mapped: tuple[FunctionalNetworkMapping, list[LesionRecord]]
) -> None:
    """ENOSPC is a failure of the lesion, leaves no file of it, and the others are written."""
    sync = files._sync

    def fill_up(path: Path) -> None:
        if "sub-5" in path.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(path)

    monkeypatch.setattr(files, "_sync", fill_up)
    errors = [lesion.error for lesion in write(mapped, tmp_path / "out")]
    assert "No space left on device" in errors.pop(5)
    assert errors == [None] * 8
    assert [path.name for path in (tmp_path / "out" / "sub-5").rglob("*") if path.is_file()] == []


def test_an_error_that_is_no_lesions_own_fails_the_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mapped: tuple[FunctionalNetworkMapping, list[LesionRecord]]
) -> None:
    """A defect of the program fails all lesions of the batch with its type, and leaves no half file."""
    monkeypatch.setattr(writer_module, "save_gzipped", lambda *_: 1 / 0)
    assert {lesion.error for lesion in write(mapped, tmp_path / "out")} == {"ZeroDivisionError: division by zero"}
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []


def test_maps_are_computed_on_as_many_threads_as_are_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mapped: tuple[FunctionalNetworkMapping, list[LesionRecord]]
) -> None:
    """While one lesion waits for the disk, another is computed, but never more at once than there are threads."""
    save, busy, most = writer_module.save_gzipped, [], []

    def watch(image: nib.Nifti1Image, path: Path) -> None:
        busy.append(path)
        most.append(len(busy))
        time.sleep(0.001)
        save(image, path)
        busy.remove(path)

    monkeypatch.setattr(writer_module, "save_gzipped", watch)
    for n_threads in (1, 2):
        most.clear()
        write(mapped, tmp_path / f"out{n_threads}", n_threads)
        assert max(most) == n_threads


@pytest.mark.parametrize(
    ("name", "of_lesion"),
    [
        ("sub-01_label-lesion_desc-GSP_probseg.nii.gz", True),
        ("sub-01_label-lesion_desc-GSP_probseg.json", True),
        ("sub-01_label-lesion_stat-zscore_desc-GSPnull_statmap.nii.gz", True),
        ("sub-01_atlas-A_seg-7_label-lesion_stat-mean_desc-GSP_parcels.tsv", True),
        ("sub-01_atlas-A_seg-7_label-lesion_stat-mean_desc-GSP_parcels.json", True),
        ("sub-01_atlas-A_label-lesion_stat-mean_desc-Other_parcels.tsv", False),
        ("sub-01_hemi-L_atlas-A_label-lesion_stat-mean_desc-GSP_parcels.tsv", False),
        ("sub-01_hemi-L_label-lesion_desc-GSP_probseg.nii.gz", False),
    ],
)
def test_remains_of_a_killed_run(tmp_path: Path, name: str, of_lesion: bool) -> None:
    """Unfinished files of each kind are removed, those of lesions that the run did not hold are not."""
    unfinished = tmp_path / "sub-01" / "func" / f".{'0' * 32}.{name}"
    unfinished.parent.mkdir(parents=True)
    unfinished.touch()
    r_map = "sub-01/func/sub-01_label-lesion_stat-r_desc-GSP_statmap.nii.gz"
    clean_after(tmp_path, Claim("killed", "host", 1, 0, "", (r_map,)))
    assert unfinished.exists() != of_lesion
