"""Compiled kernels are kept in a folder of the user, and those of a container image are copied there."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Lock

import pytest
import synthetic
from numba.core import config
from program import RUN, environ_without

from bids_lacuna.kernels import compiled
from bids_lacuna.runtime.numba_cache import CPU, CPU_FLAGS, choose_folder, keep_in

ROUND = """
import numpy as np
from bids_lacuna.kernels import cpu as kernels
kernels.quantize(np.eye(2, 3, dtype=np.float32))
print(sum(kernels.quantize.stats.cache_hits.values()), sum(kernels.quantize.stats.cache_misses.values()))
"""


@pytest.fixture
def cpuinfo(tmp_path: Path) -> Path:
    """Return Linux's description of a processor of the image's family."""
    path = tmp_path / "cpuinfo"
    path.write_text(f"processor\t: 0\nflags\t\t: fpu {' '.join(CPU_FLAGS)} sse\n\nprocessor\t: 1\nflags\t\t: none\n")
    return path


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder of compiled code under a link, as in an image."""
    image = tmp_path / "opt" / "5ba1"
    (image / "package").mkdir(parents=True)
    (image / "package" / "kernel.nbi").write_text("index")
    (tmp_path / "opt" / "current").symlink_to("5ba1")
    for name in ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES", "NUMBA_CACHE_DIR"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("BIDS_LACUNA_COMPILED", str(tmp_path / "opt" / "current"))
    return image


@pytest.mark.usefixtures("image")
def test_kernels_of_an_image_are_copied_once(tmp_path: Path, cpuinfo: Path) -> None:
    """Numba uses a copy, which later runs use and keep as it is."""
    for _ in range(2):
        keep_in(tmp_path, cpuinfo)
        assert os.environ["NUMBA_CACHE_DIR"] == str(tmp_path / "5ba1")
        assert (os.environ["NUMBA_CPU_NAME"], os.environ["NUMBA_CPU_FEATURES"]) == (CPU, "")
        with (tmp_path / "5ba1" / "package" / "kernel.nbi").open("a") as index:
            index.write("+")
    assert (tmp_path / "5ba1" / "package" / "kernel.nbi").read_text() == "index++"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["5ba1", "cpuinfo", "opt"]


@pytest.mark.usefixtures("image")
@pytest.mark.parametrize("case", ["an older processor", "another architecture", "another processor by name"])
def test_kernels_that_cannot_run_here_are_not_copied(
    tmp_path: Path, cpuinfo: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without AVX2, or if the user names a processor, numba compiles the kernels."""
    if case == "an older processor":
        cpuinfo.write_text(cpuinfo.read_text().replace("avx2", ""))
    elif case == "another architecture":
        cpuinfo.write_text("processor\t: 0\nFeatures\t: fp asimd\n")
    else:
        monkeypatch.setenv("NUMBA_CPU_NAME", "znver4")
    keep_in(tmp_path, cpuinfo)
    assert os.environ["NUMBA_CACHE_DIR"] == str(tmp_path)
    assert os.environ.get("NUMBA_CPU_NAME") != CPU
    assert not (tmp_path / "5ba1").exists()


@pytest.mark.usefixtures("image")
def test_full_disk_loses_the_copy_only(tmp_path: Path, cpuinfo: Path) -> None:
    """An incomplete copy is removed, and the run continues without it."""
    (tmp_path / "opt" / "5ba1" / "package" / "gone.nbc").symlink_to("nowhere")
    keep_in(tmp_path, cpuinfo)
    assert os.environ["NUMBA_CACHE_DIR"] == str(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cpuinfo", "opt"]


def test_a_container_writes_nothing_to_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container the folder is in the temporary one, elsewhere in the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert choose_folder() == tmp_path / "cache" / "bids-lacuna"
    monkeypatch.setenv("BIDS_LACUNA_CONTAINER_TYPE", "docker")
    assert not choose_folder().is_relative_to(tmp_path / "cache")


def test_numba_finds_the_kernels_of_an_image(tmp_path: Path) -> None:
    """A process compiles nothing if its copy has kernels that were compiled for the processor family."""
    image, home = tmp_path / "image", tmp_path / "home"
    environ = environ_without("NUMBA_")
    building = environ | {"NUMBA_CACHE_DIR": str(image), "NUMBA_CPU_NAME": CPU, "NUMBA_CPU_FEATURES": ""}
    running = environ | {"BIDS_LACUNA_COMPILED": str(image), "XDG_CACHE_HOME": str(home)}
    for variables, counts in ((building, "0 1"), (running, "1 0")):
        done = subprocess.run(
            [sys.executable, "-c", ROUND], env=variables, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == counts
    assert {path.name for path in home.iterdir()} == {"bids-lacuna"}


MAP = """
import logging, sys
import numpy as np
logging.basicConfig(level=logging.WARNING, format="%(message)s")
import bids_lacuna.bids
from bids_lacuna.kernels import cpu as kernels
rounded, scale = kernels.quantize(np.eye(2, 3, dtype=np.float32))
assert rounded.tolist() == [[32767, 0, 0], [0, 32767, 0]]
assert scale.tolist() == [np.float32(1 / 32767)] * 2
print(sum(kernels.quantize.stats.cache_hits.values()))
"""

UNPRIVILEGED = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.getuid() == 0 else []
"""Start of a command without root's permission to read and write everything."""

NOBODY = ["setpriv", "--reuid=12345", "--regid=12345", "--clear-groups", "--inh-caps=-all,+dac_read_search"]
NOBODY = [*NOBODY, "--ambient-caps=-all,+dac_read_search"] if os.getuid() == 0 else []
"""Start of a command as a user without an entry in /etc/passwd, who may read everything."""


def quantize(folder: Path | None, *command: str, **variables: str | None) -> tuple[int, list[str]]:
    """Run a kernel in a new process; return how often its code was in the cache, and the lines on stderr."""
    environ: dict[str, str | None] = {**environ_without("NUMBA_")}
    environ |= variables | ({"NUMBA_CACHE_DIR": str(folder)} if folder else {})
    result = subprocess.run(
        [*command, sys.executable, "-c", MAP],
        env={name: value for name, value in environ.items() if value is not None},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return int(result.stdout), result.stderr.splitlines()


def file_of(folder: Path, kind: str) -> Path:
    """Return the file of the only kernel's index (nbi) or code (nbc)."""
    (path,) = folder.rglob(f"*.{kind}")
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fill a cache with one kernel."""
    folder = tmp_path_factory.mktemp("cache")
    assert quantize(folder) == (0, [])
    assert quantize(folder) == (1, [])
    return folder


def flip(content: bytes, place: int) -> bytes:
    """Change a bit of a file."""
    return content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :]


def twice(number: float) -> float:
    """Double a number: a kernel that is compiled in no time."""
    return 2 * number


def use_cache(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> tuple[int, list[str]]:
    """Compile or load a kernel as a new process does; return how often the cache had its code, and the warnings."""
    monkeypatch.setattr(config, "CACHE_DIR", str(folder))
    monkeypatch.setattr(compiled, "_first", Lock())
    caplog.clear()
    kernel = compiled.cached_njit()(twice)
    assert kernel(2.5) == 5
    return sum(kernel.stats.cache_hits.values()), caplog.messages


@pytest.mark.parametrize("kind", ["nbi", "nbc"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda _: b"",
        lambda content: content[: len(content) // 2],
        lambda content: content[:-1],
        lambda content: bytes(len(content)),
        # In the compiled code, nothing else would notice it.
        lambda content: flip(content, len(content) // 2),
    ],
    ids=["empty", "half", "last byte", "zeros", "one bit"],
)
def test_damaged_cache_is_compiled_again(
    tmp_path: Path,
    kind: str,
    damage: Callable[[bytes], bytes],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One warning names the file, the kernel's result is right, and the next process uses the new code."""
    assert [use_cache(tmp_path, monkeypatch, caplog) for _ in range(2)] == [(0, []), (1, [])]
    path = file_of(tmp_path, kind)
    path.write_bytes(damage(path.read_bytes()))
    hits, (warning,) = use_cache(tmp_path, monkeypatch, caplog)
    assert hits == 0
    assert str(path) in warning
    assert use_cache(tmp_path, monkeypatch, caplog) == (1, [])


@pytest.mark.parametrize("kind", ["nbi", "nbc"])
def test_the_program_compiles_a_damaged_kernel_again(whole: Path, tmp_path: Path, kind: str) -> None:
    """In processes of their own, too, one warning names the file, and the next process uses the new code."""
    folder = tmp_path / "cache"
    shutil.copytree(whole, folder)
    path = file_of(folder, kind)
    path.write_bytes(flip(path.read_bytes(), path.stat().st_size // 2))
    hits, (warning,) = quantize(folder)
    assert hits == 0
    assert str(path) in warning
    assert quantize(folder) == (1, [])


@pytest.mark.parametrize("kind", ["nbi", "nbc"])
def test_unreadable_cache(whole: Path, tmp_path: Path, kind: str) -> None:
    """Files of a colleague that may not be read: the kernel is compiled, with one warning at most."""
    folder = tmp_path / "cache"
    shutil.copytree(whole, folder)
    file_of(folder, kind).chmod(0)
    hits, lines = quantize(folder, *UNPRIVILEGED)
    assert (hits, [line for line in lines if "cache of compiled kernels" not in line]) == (0, [])
    assert len(lines) <= 1


def test_unwritable_cache(whole: Path, tmp_path: Path) -> None:
    """A folder that may only be read: the kernel is compiled, with one warning."""
    folder = tmp_path / "cache"
    shutil.copytree(whole, folder)
    for each in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        each.chmod(0o555)
    hits, (warning,) = quantize(folder, *UNPRIVILEGED)
    assert hits == 0
    assert "cache of compiled kernels" in warning


LIMITED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
os.execvp(sys.argv[1], sys.argv[1:])
"""


def test_cache_on_a_full_disk(tmp_path: Path) -> None:
    """Where files may have no content, the kernel is compiled, with one warning, and no files remain."""
    hits, (warning,) = quantize(tmp_path, sys.executable, "-c", LIMITED)
    assert hits == 0
    assert "File too large" in warning
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_no_home_and_no_name(tmp_path: Path) -> None:
    """A user without HOME and without an entry in /etc/passwd has a cache, and pybids can be imported."""
    tmp_path.chmod(0o777)
    variables: dict[str, str | None] = {"HOME": None, "XDG_CACHE_HOME": None, "TMPDIR": str(tmp_path)}
    assert quantize(None, *NOBODY, **variables) == (0, [])
    assert quantize(None, *NOBODY, **variables) == (1, [])
    assert [path.name for path in tmp_path.iterdir()] == [f"bids-lacuna-{12345 if NOBODY else os.getuid()}"]


def test_numba_that_is_imported_first_chooses_a_place() -> None:
    """A program that imports numba before bids_lacuna has no warning."""
    environ = environ_without("NUMBA_")
    command = [sys.executable, "-c", f"import numba{MAP}"]
    result = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    assert result.stderr == ""


def test_a_folder_that_cannot_exist() -> None:
    """Where the user's folder cannot be created, the kernel is compiled, with one warning."""
    hits, (warning,) = quantize(Path("/proc/none"))
    assert hits == 0
    assert "cache of compiled kernels cannot be used" in warning


CHOOSE = """
import os, resource
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
import bids_lacuna
print(os.environ.get("NUMBA_CACHE_DIR"))
"""


def test_no_place_for_a_cache(tmp_path: Path) -> None:
    """Without a home and a temporary folder that can be written to, numba is left to choose."""
    (tmp_path / "home").write_text("not a folder")
    environ = environ_without("NUMBA_")
    environ |= dict.fromkeys(("HOME", "XDG_CACHE_HOME"), str(tmp_path / "home"))
    command = [sys.executable, "-c", CHOOSE]
    result = subprocess.run(command, env=environ, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert (result.stdout, result.stderr) == ("None\n", "")
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


def test_work_folder_that_is_read_only(tmp_path: Path, connectome: Path) -> None:
    """Neither kernels nor checkpoints are kept there, and the lesion is mapped."""
    name = f"sub-01/anat/sub-01_space-{synthetic.SPACE}_label-lesion_mask"
    bids = synthetic.write_dataset(tmp_path / "bids", {name: synthetic.box((3, 2, 3))})
    (tmp_path / "work").mkdir(mode=0o555)
    words = [RUN, bids, tmp_path / "out", "participant", "--connectome", connectome, "--no-reports", "-q"]
    command = [*UNPRIVILEGED, sys.executable, *words, "-w", tmp_path / "work"]
    result = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert f"compiled kernels are not kept in {tmp_path / 'work' / 'numba'}" in result.stderr
    assert "no checkpoints are kept" in result.stderr
    assert list(tmp_path.glob("out/sub-01/**/*stat-r*_statmap.nii.gz"))
