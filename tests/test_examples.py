"""The cluster examples run: Apptainer is a shell function that calls run.py with the folders that it was to bind."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

APPTAINER = f"""() {{
  local words=() bound=()
  [ "$1 $2" = 'run --containall' ] || return 64
  shift 2
  while [ "$1" = --bind ]; do bound+=("$2"); shift 2; done
  [ -e "$1" ] || return 66
  shift
  for word in "$@"; do
    for bind in "${{bound[@]}}"; do
      IFS=: read -r host inside _ <<< "$bind"
      if [ "$word" = "$inside" ]; then word=$host; fi
    done
    words+=("$word")
  done
  {sys.executable} {ROOT / "run.py"} "${{words[@]}}" --dry-run
}}"""


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the folder of the demo's lesions and connectome, and of a file in the image's place."""
    folder = tmp_path_factory.mktemp("demo")
    subprocess.run([sys.executable, "-m", "bids_lacuna.demo", folder], check=True, capture_output=True)
    (folder / "image.sif").touch()
    return folder


def run_task(demo: Path, task: int, n_tasks: int) -> str:
    """Run one task of the SLURM array, counted from 3, and give what it prints."""
    environ = os.environ | {
        "BASH_FUNC_apptainer%%": APPTAINER,
        "SLURM_ARRAY_TASK_COUNT": str(n_tasks),
        "SLURM_ARRAY_TASK_MIN": "3",
        "SLURM_ARRAY_TASK_ID": str(3 + task),
        "SLURM_CPUS_PER_TASK": "2",
        "SLURM_MEM_PER_NODE": "900",
    }
    script = [ROOT / "examples" / "slurm_array.sh", "image.sif", "bids", "out", "connectome"]
    done = subprocess.run(script, cwd=demo, env=environ, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def test_slurm_tasks_share_the_participants(demo: Path) -> None:
    """Each participant's lesions are in one of the tasks, and the job's memory is what the plan may use."""
    participants = {folder.name for folder in (demo / "bids").glob("sub-*")}
    found = []
    for task in range(2):
        printed = run_task(demo, task, 2)
        found += {line.split()[1].split("_")[0] for line in printed.splitlines() if line.startswith("  map ")}
        assert "900 MiB" in printed
    assert sorted(found) == sorted(participants)


def test_slurm_task_without_participants_ends_well(demo: Path) -> None:
    """More tasks than participants are no failure."""
    assert "no participants are left" in run_task(demo, 98, 99)
