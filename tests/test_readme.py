"""The README's snippets, run as a reader would run them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import synthetic

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


def test_the_options_that_it_names_exist() -> None:
    """Each option in the README is one of the program's."""
    options = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", README.read_text()))
    usage = "".join(
        subprocess.run([sys.executable, "-m", *command, "--help"], capture_output=True, text=True, check=True).stdout
        for command in (["bids_lacuna"], ["bids_lacuna.connectome_cli", "build"])
    )
    of_containers = {"--rm", "--user", "--containall", "--entrypoint"}
    assert options - of_containers <= set(re.findall(r"--[a-z-]+", usage))
