"""Each option is seen by everything that reads the options: a new field that somebody forgets fails here."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import synthetic

from bids_lacuna import __version__
from bids_lacuna.app.options import build_parser
from bids_lacuna.app.participant import read_options
from bids_lacuna.bids import LesionMask
from bids_lacuna.derivatives.history import Run, read_run
from bids_lacuna.derivatives.names import expected_maps
from bids_lacuna.derivatives.records import decide, lesion_provenance
from bids_lacuna.files import write_json
from bids_lacuna.grid import Grid
from bids_lacuna.mapping import FunctionalNetworkMapping
from bids_lacuna.provenance import MappingOptions, Provenance

CHANGED = {
    "compute_t_map": (False, ["--no-t-map"]),
    "t_thresholds": ((7.0,), ["--t-threshold", "7"]),
    "weighting": ("binary", ["--lesion-weighting", "binary"]),
    "lesion_threshold": (0.3, ["--lesion-threshold", "0.3"]),
}
"""Another value of each option than its default, and the command line that gives it."""

OF_THE_SUMS = {"weighting", "lesion_threshold"}
"""Options that decide the sums over connectome subjects; the others choose maps to be made from them."""

DEFAULTS = MappingOptions()


every_option = pytest.mark.parametrize("name", [field.name for field in fields(MappingOptions)])


def changed(name: str) -> MappingOptions:
    """Change one option."""
    return replace(DEFAULTS, **{name: CHANGED[name][0]})


def made_from(options: MappingOptions) -> Provenance:
    """Describe maps that were made with some options."""
    return Provenance(
        "GSP", "ab" * 32, synthetic.SPACE, (5, 7, 11), (*np.eye(4).ravel(),), options, {"bids-lacuna": "1"}
    )


@pytest.fixture
def mask(tmp_path: Path) -> LesionMask:
    """Write one mask."""
    name = f"sub-01_space-{synthetic.SPACE}_label-lesion"
    path = synthetic.write_mask(tmp_path / "bids" / f"{name}_mask.nii.gz", synthetic.box((1, 2, 3)))
    entities = {"sub": "01", "space": synthetic.SPACE, "label": "lesion"}
    return LesionMask(path, entities, synthetic.SPACE, "source", tmp_path / "bids")


@every_option
def test_the_command_line_gives_each_option(name: str) -> None:
    """Each option has a flag of the command line, which changes it and no other."""
    arguments = build_parser().parse_args(["bids", "out", "participant", *CHANGED[name][1]])
    assert read_options(arguments) == changed(name)


@every_option
def test_a_checkpoint_of_other_sums_is_not_used(name: str, tmp_path: Path) -> None:
    """The identity that checkpoints compare differs for each option that decides the sums, and for no other."""
    mask = synthetic.make_mask()
    series = synthetic.make_series(int(mask.sum()), [19] * 2)
    connectome = FunctionalNetworkMapping(synthetic.write_connectome(tmp_path / "two.h5", series, mask)).connectome
    default, other = (FunctionalNetworkMapping.of(connectome, each) for each in (DEFAULTS, changed(name)))
    assert (default.identity != other.identity) == (name in OF_THE_SUMS)
    assert default.identity["connectome"] == connectome.content_hash


@every_option
def test_maps_of_another_option_are_not_taken_for_these(name: str, mask: LesionMask, tmp_path: Path) -> None:
    """An option of the sums stands in each sidecar, and its maps are refused; others change which maps there are.

    Without --overwrite, a lesion whose maps were made with another option is thus never skipped by mistake.
    """
    default, other = made_from(DEFAULTS), made_from(changed(name))
    for path in expected_maps(mask, default):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"")
        write_json(tmp_path / path.with_name(path.name.replace(".nii.gz", ".json")), lesion_provenance(mask, default))
    (same,) = decide([mask], tmp_path, default)
    assert same.status == "skipped"
    (record,) = decide([mask], tmp_path, other)
    if name in OF_THE_SUMS:
        assert lesion_provenance(mask, default) != lesion_provenance(mask, other)
        assert record.status == "failed"
        assert "exists, made with" in record.reason
    else:
        assert expected_maps(mask, default) != expected_maps(mask, other)


@every_option
def test_a_group_tells_each_option_apart(name: str) -> None:
    """Lesions that differ in one option are of two groups, and the difference has words."""
    default, other = made_from(DEFAULTS), made_from(changed(name))
    assert default != other
    words = other.differences(default)
    ours, theirs = words.removeprefix("made with ").split(", the group with ")
    assert ours
    assert theirs
    assert ours != theirs


@every_option
def test_the_record_of_a_run_has_each_option(name: str, tmp_path: Path) -> None:
    """run.json gives each option back."""
    run = Run("", "", made_from(changed(name)), 1, 1, 1, 1, 1, 1, 1, 1, "", {}, reports=True)
    run.write(tmp_path)
    again = read_run(tmp_path)
    assert again is not None
    assert again.provenance == run.provenance
    assert again.provenance != made_from(DEFAULTS)


def test_grids_are_equal_but_for_rounding() -> None:
    """Affines that differ by less than what NIfTI's float32 keeps are one grid, others are not."""
    mask = synthetic.make_mask()
    grids = [synthetic.RADIOLOGICAL + shift * np.eye(4) for shift in (0, 1e-6, 1e-2)]
    same, rounded, other = (
        Provenance.on(
            Grid(mask, affine),
            connectome_name="GSP",
            connectome_hash="",
            space=synthetic.SPACE,
            options=DEFAULTS,
            software={},
        )
        for affine in grids
    )
    assert same == rounded
    assert same != other
    assert same.voxel_sizes_mm == (4, 4, 4)


def test_versions_are_those_installed(tmp_path: Path) -> None:
    """The versions among the provenance are what the modules themselves say; they do not tell maps apart."""
    mask = synthetic.make_mask()
    series = synthetic.make_series(int(mask.sum()), [19] * 2)
    made = FunctionalNetworkMapping(synthetic.write_connectome(tmp_path / "two.h5", series, mask)).provenance
    assert made.version == __version__
    assert made.libraries["numpy"] == np.__version__
    assert made.libraries["nibabel"] == nibabel.__version__
    assert made == replace(made, software={})
