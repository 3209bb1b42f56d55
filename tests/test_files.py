"""Files under temporary names, and what is left of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bids_lacuna.files import remove_unfinished, renamed_when_whole, write_json


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    """When writing fails half-way, the old file stays whole and no temporary one remains."""
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    with pytest.raises(TypeError):
        write_json(path, {"new": object()})
    assert json.loads(path.read_text()) == {"old": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_program_left_is_removed(tmp_path: Path) -> None:
    """Only files under temporary names go; hidden files of others stay."""
    kept = [tmp_path / name for name in (".bidsignore", ".deadbeef.json", "whole.json")]
    for path in kept:
        path.touch()
    with renamed_when_whole(tmp_path / "sub-1_scale.npy") as temporary:
        left = temporary.with_name(temporary.name.replace("sub-1", "sub-2"))
        left.touch()
        temporary.touch()
    remove_unfinished(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([*kept, tmp_path / "sub-1_scale.npy"])


def test_only_what_is_named_is_removed(tmp_path: Path) -> None:
    """Files that somebody else may be writing stay: those that would have another name."""
    theirs, ours = (tmp_path / f".{'0' * 32}.{name}" for name in ("a.json", "b.json"))
    theirs.touch()
    ours.touch()
    remove_unfinished(tmp_path, of="b.json".__eq__)
    assert list(tmp_path.iterdir()) == [theirs]
    remove_unfinished(tmp_path / "nowhere")
