"""The README's snippets, run as a reader would run them."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import synthetic
import test_build

from bids_lacuna.store import Store

README = Path(__file__).parents[1] / "README.md"


def test_the_python_example_runs(tmp_path: Path) -> None:
    """The Python example saves three maps for each mask, and names the one that failed."""
    brain = synthetic.make_mask()
    synthetic.write_connectome_folder(tmp_path / "connectome", synthetic.make_series(int(brain.sum())), brain)
    for subject, voxels in {"01": synthetic.box((1, 2, 3)), "02": 0 * synthetic.box((0, 0, 0))}.items():
        synthetic.write_mask(tmp_path / "masks" / f"sub-{subject}_lesion.nii.gz", voxels)
    (snippet,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    result = subprocess.run([sys.executable, "-c", snippet], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert {path.name for path in (tmp_path / "maps").iterdir()} == {
        f"sub-01_{kind}.nii.gz" for kind in ("rmap", "tmap", "binary")
    }
    assert result.stdout.startswith("sub-02_lesion.nii.gz failed: the mask is empty")


def test_every_layouts_command_makes_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row of the table of layouts makes a store of five subjects, from where its relative paths begin."""
    monkeypatch.chdir(tmp_path)
    rows = re.findall(r"^\| (.*) \| `(.* STORE .*)` \|$", README.read_text(), re.MULTILINE)
    writers = (
        test_build.write_hdf5,
        test_build.write_nifti,
        test_build.write_nifti,
        test_build.write_bids,
        test_build.write_bids,
        test_build.write_leaddbs,
        test_build.write_npy,
    )
    synthetic.write_mask(tmp_path / "brain_mask.nii.gz", test_build.MASK)
    for number, ((_, command), write) in enumerate(zip(rows, writers, strict=True)):
        source, store, *options = shlex.split(
            command.replace("2009cAsym", "6Asym").replace("sub-*/*_bold", "*/*/*_rest_*")
        )
        Path(source).parent.mkdir(exist_ok=True)
        write(Path(source), synthetic.RADIOLOGICAL)
        store = f"{store}{number}"
        program = [
            sys.executable,
            "-m",
            "bids_lacuna.connectome_cli",
            "build",
            source,
            store,
            *options,
            "--nprocs",
            "1",
        ]
        result = subprocess.run(program, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        assert len(Store.open(Path(store)).subjects) == 5


def test_the_options_that_it_names_exist() -> None:
    """Each option in the README is one of the program's."""
    options = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", README.read_text()))
    usage = "".join(
        subprocess.run([sys.executable, "-m", *command, "--help"], capture_output=True, text=True, check=True).stdout
        for command in (["bids_lacuna"], ["bids_lacuna.connectome_cli", "build"])
    )
    of_containers = {"--rm", "--user", "--containall", "--entrypoint", "--read-only", "--tmpfs"}
    assert options - of_containers <= set(re.findall(r"--[a-z-]+", usage))
