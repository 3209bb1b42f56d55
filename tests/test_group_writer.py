"""The files of a group: their sidecars, and the replacement of an earlier group."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from grouped import make_maps, rows, write_group

from bids_lacuna.group.summary import summarize_group
from bids_lacuna.group.writer import GroupSummary, format_cell

Array = np.ndarray


@pytest.fixture(scope="module")
def maps() -> list[dict[str, Array]]:
    """Return the values of the maps."""
    return make_maps()


@pytest.fixture(scope="module")
def summarized(tmp_path_factory: pytest.TempPathFactory, maps: list[dict[str, Array]]) -> tuple[Path, GroupSummary]:
    """Describe the group once: the root of the output, and the summary."""
    root = tmp_path_factory.mktemp("group")
    return root / "out", summarize_group(write_group(root, maps), root / "out", {"source": "masks"})


def test_every_file_is_stamped_and_leads_to_its_sources(summarized: tuple[Path, GroupSummary]) -> None:
    """Each file at the root has a sidecar that says descriptive and lists the lesions' files as sources."""
    out, summary = summarized
    written = {path for path in out.iterdir() if path.is_file() and path.name != "dataset_description.json"}
    sidecars = {path for path in written if path.suffix == ".json"}
    files = {*summary.maps.values(), summary.table, summary.similarity}
    assert written - sidecars == files
    assert {path.name.partition(".")[0] for path in files} == {path.stem for path in sidecars}
    for path in sidecars:
        sidecar = json.loads(path.read_text())
        assert sidecar["Descriptive"] is True
        assert "inference" in sidecar["Interpretation"]
        assert sidecar["NumberOfLesions"] == 5
        assert sidecar["ConnectomeHash"] == "GSPhash"
        roots = {"bids::": out, "bids:masks:": out.parent / "bids"}
        for uri in sidecar["Sources"]:
            prefix = uri[: uri.rindex(":") + 1]
            assert (roots[prefix] / uri.removeprefix(prefix)).is_file()
            assert ("lesions_statmap" in path.name) == (prefix == "bids:masks:")
    for key, path in summary.maps.items():
        assert nib.load(path).get_data_dtype() == (np.int32 if key in ("mean_n", "network_n") else np.float32)
    below = json.loads(summary.maps["networkT2p5below_share"].with_suffix("").with_suffix(".json").read_text())
    assert below["Threshold"] == -2.5


def test_the_dictionary_has_all_that_a_page_needs(summarized: tuple[Path, GroupSummary]) -> None:
    """group_lesions.json describes each column and lists the group's files, order and outliers."""
    out, summary = summarized
    dictionary = json.loads((out / "group_lesions.json").read_text())
    assert all(dictionary[column]["Description"] for column in rows(summary)[0])
    assert {key: out / name for key, name in dictionary["Maps"].items()} == summary.maps
    assert out / dictionary["SimilarityMatrix"] == summary.similarity
    assert tuple(dictionary["ClusteringOrder"]) == summary.order
    assert tuple(dictionary["Outliers"]) == summary.outliers
    assert "Tukey" in dictionary["OutlierRule"]
    assert tuple(dictionary["Warnings"]) == summary.warnings
    assert any("sub-02" in warning for warning in summary.warnings)


def test_a_new_group_replaces_the_earlier_one(tmp_path: Path, maps: list[dict[str, Array]]) -> None:
    """A group replaces an earlier one with other thresholds in the same connectome, not one in another connectome."""
    other = write_group(tmp_path, maps, connectome_name="HCP")
    kept = summarize_group(other, tmp_path / "out", {"source": "masks"})
    earlier = summarize_group(write_group(tmp_path, maps), tmp_path / "out", {"source": "masks"})
    lesions = sorted((tmp_path / "out").glob("sub-*/**/*.nii.gz"))
    later = summarize_group(write_group(tmp_path, maps, t_thresholds=(3.0,)), tmp_path / "out", {"source": "masks"})
    gone = {path for key, path in earlier.maps.items() if "T1" in key or "T2p5" in key}
    assert len(gone) == 4
    assert not any(path.exists() or Path(str(path).replace(".nii.gz", ".json")).exists() for path in gone)
    assert all(path.exists() for path in (*later.maps.values(), *kept.maps.values(), *lesions))


@pytest.mark.parametrize(
    ("value", "cell"), [(np.nan, "n/a"), (np.inf, "n/a"), (1 / 3, "0.333333"), (41, "41"), ("left", "left")]
)
def test_cells_of_the_table(value: object, cell: str) -> None:
    """Undefined numbers are n/a, and numbers have six significant digits."""
    assert format_cell(value) == cell


def test_files_of_others_stay(tmp_path: Path, maps: list[dict[str, Array]]) -> None:
    """Maps in the same folder that are not from a group stay, even if their sidecars name the connectome."""
    group = write_group(tmp_path, maps)
    other = tmp_path / "out" / "space-x_stat-r_desc-other_statmap"
    damaged = tmp_path / "out" / "space-x_stat-r_desc-damaged_statmap.json"
    damaged.write_text("{")
    for ending, text in ((".json", '{"ConnectomeName": "GSP"}'), (".nii.gz", "")):
        Path(f"{other}{ending}").write_text(text)
    summarize_group(group, tmp_path / "out", {"source": "masks"})
    assert damaged.exists()
    assert Path(f"{other}.json").exists()
    assert Path(f"{other}.nii.gz").exists()
