"""The cluster examples run, with a shell function for Apptainer that runs the command in the bound folders."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from program import CONNECTOME_PROGRAM

import bids_lacuna.demo
from bids_lacuna.app.options import build_parser

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


APPTAINER_EXEC = f"""() {{
  local words=() bound=()
  [ "$1 $2" = 'exec --containall' ] || return 64
  shift 2
  while [ "$1" = --bind ]; do bound+=("$2"); shift 2; done
  [ -e "$1" ] || return 66
  shift
  for word in "$@"; do
    for bind in "${{bound[@]}}"; do
      IFS=: read -r host inside _ <<< "$bind"
      case $word in "$inside" | "$inside"/*) word=$host${{word#"$inside"}} ;; esac
    done
    case $word in
      python) word={sys.executable} ;;
      /opt/bids-lacuna/run.py) word={ROOT / "run.py"} ;;
    esac
    words+=("$word")
  done
  exec "${{words[@]}}"
}}"""

SRUN = """() {
  while [ "${1#--}" != "$1" ]; do shift; done
  "$@"
}"""


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the demo's lesions and connectome, and an empty file as the image."""
    folder = tmp_path_factory.mktemp("demo")
    bids_lacuna.demo.main([str(folder)])
    (folder / "image.sif").touch()
    return folder


def run_task(demo: Path, task: int, n_tasks: int) -> str:
    """Run one task of a SLURM array that starts at 3, and return its output."""
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
    """Each participant is in exactly one task, and the plan uses the memory of the job."""
    participants = {folder.name for folder in (demo / "bids").glob("sub-*")}
    found = []
    for task in range(2):
        printed = run_task(demo, task, 2)
        found += set(re.findall(r"^(sub-\w+?)_.* map$", printed, re.MULTILINE))
        assert "900 MiB" in printed
    assert sorted(found) == sorted(participants)


def test_slurm_task_without_participants_ends_well(demo: Path) -> None:
    """A task without participants succeeds."""
    assert "no participants are left" in run_task(demo, 98, 99)


def test_babs_gives_the_program_options_that_it_takes() -> None:
    """The program accepts the options of BABS's configuration, and the connectome is mounted."""
    text = (ROOT / "examples" / "babs.yaml").read_text()
    given = re.search(r"^bids_app_args:\n((?:  .*\n)+)", text, re.MULTILINE)
    assert given
    pairs = [line.strip().partition(": ") for line in given[1].splitlines()]
    arguments = ["inputs/data/BIDS", "outputs", "participant"]
    for name, _, value in pairs:
        is_selection = name == "$SUBJECT_SELECTION_FLAG"
        arguments += [value.strip('"'), "sub-01"] if is_selection else [name, *shlex.split(value.strip('"'))]
    parsed = build_parser().parse_args(arguments)
    assert parsed.participant_label == ["sub-01"]
    assert f":{parsed.connectome}:ro" in text


def test_datalad_gives_the_program_options_that_it_takes() -> None:
    """The command reads the inputs that DataLad gets, and writes the output that DataLad saves."""
    text = (ROOT / "examples" / "datalad_containers.sh").read_text()
    (command,) = re.findall(r"^datalad (?:.*\\\n)*.*", text, re.MULTILINE)
    words = shlex.split(command)
    parsed = build_parser().parse_args(shlex.split(words[-1]))
    inputs = {words[place + 1] for place, word in enumerate(words) if word == "--input"}
    assert {str(parsed.bids_dir), str(parsed.connectome)} == inputs
    assert str(parsed.output_dir) == words[words.index("--output") + 1]


@pytest.mark.slow
def test_slurm_job_with_a_dask_cluster(demo: Path) -> None:
    """The job's scheduler and worker connect, the client maps on them, and no process is left running."""
    environ = os.environ | {
        "BASH_FUNC_apptainer%%": APPTAINER_EXEC,
        "BASH_FUNC_srun%%": SRUN,
        "SLURM_JOB_ID": "7",
        "SLURM_CPUS_PER_TASK": "2",
    }
    store = demo / "store"
    build = [*CONNECTOME_PROGRAM, "build", demo / "connectome", store]
    subprocess.run([*build, "--space", "MNI152NLin6Asym", "--name", "demo"], check=True, capture_output=True)
    (demo / "work").mkdir()
    # The program looks for compiled code in the work folder.
    (demo / "work" / "numba").symlink_to(os.environ["NUMBA_CACHE_DIR"])
    script = [ROOT / "examples" / "slurm_dask.sh", "image.sif", "bids", "out", "store", "work", "--no-reports"]
    done = subprocess.run(script, cwd=demo, env=environ, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    assert "Dask workers: 1 on 1 hosts, 2 threads in all" in done.stderr
    assert " 8 done, 0 skipped, 0 failed" in done.stderr
    assert not list(demo.glob("work/scheduler-*"))
