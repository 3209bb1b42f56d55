"""Compiled kernels are kept in a folder of the user, and those of a container image are copied there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

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
    environ = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_")}
    building = environ | {"NUMBA_CACHE_DIR": str(image), "NUMBA_CPU_NAME": CPU, "NUMBA_CPU_FEATURES": ""}
    running = environ | {"BIDS_LACUNA_COMPILED": str(image), "XDG_CACHE_HOME": str(home)}
    for variables, counts in ((building, "0 1"), (running, "1 0")):
        done = subprocess.run(
            [sys.executable, "-c", ROUND], env=variables, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == counts
    assert {path.name for path in home.iterdir()} == {"bids-lacuna"}
