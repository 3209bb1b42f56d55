"""Where numba keeps compiled kernels: a folder of this user's own, and at first what a container image brings."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

CPU = "x86-64-v3"
"""Processor that an image's kernels are compiled for: those of Intel since 2013 and of AMD since 2015.

On a Zen 3 they are as fast as those for that very processor; for Intel's with AVX-512, LLVM takes the same 256 bits.
"""

CPU_FLAGS = frozenset({"abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"})
"""What such a processor has, in the words of /proc/cpuinfo."""


def choose_folder() -> Path:
    """Choose a folder of this user that can be written to; the package's own may be read-only."""
    folders = [Path(tempfile.gettempdir()) / f"bids-lacuna-{os.getuid()}"]
    # In a container nothing is written but to the output, the work folder and /tmp: the home may be the host's.
    if "BIDS_LACUNA_CONTAINER_TYPE" not in os.environ:
        home = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))  # noqa: PTH111
        folders.insert(0, home / "bids-lacuna")
    # Of a user without a home, ~ stays as it is, and the path is not absolute.
    for folder in filter(Path.is_absolute, folders):
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError:
            continue
        # numba unpickles what it finds there: a folder that another user made first is none of ours.
        if folder.stat().st_uid == os.getuid() and os.access(folder, os.W_OK):
            return folder
    return Path(tempfile.mkdtemp(prefix="bids-lacuna-"))


def keep_in(folder: Path, cpuinfo: Path = Path("/proc/cpuinfo")) -> None:
    """Have numba, once it is imported, keep compiled kernels in a folder.

    A container's image may bring some (`BIDS_LACUNA_COMPILED`). They are copied there, for numba takes them from no
    folder that it cannot write to. On a processor that cannot run them, and where NUMBA_CPU_NAME names another, they
    are left alone: the kernels are then compiled at the first run, which takes 6 s.

    Parameters
    ----------
    folder
        It has to be there, and be this user's own.
    cpuinfo
        What Linux says of the processor.
    """
    image = os.environ.get("BIDS_LACUNA_COMPILED")
    chosen = os.environ.get("NUMBA_CPU_NAME", CPU) == CPU
    if image and Path(image).is_dir() and chosen and _cpu_flags(cpuinfo) >= CPU_FLAGS:
        os.environ |= {"NUMBA_CPU_NAME": CPU, "NUMBA_CPU_FEATURES": ""}
        folder = _copied(Path(image).resolve(), folder)
    os.environ["NUMBA_CACHE_DIR"] = str(folder)


def _cpu_flags(cpuinfo: Path) -> set[str]:
    with cpuinfo.open(encoding="utf-8") as lines:
        return next((set(line.split()) for line in lines if line.startswith("flags")), set())


def _copied(source: Path, folder: Path) -> Path:
    """Copy what an image brings into a folder of its own there, whole or not at all: other jobs may be as far."""
    target = folder / source.name
    if target.exists():
        return target
    temporary = Path(tempfile.mkdtemp(dir=folder))
    try:
        shutil.copytree(source, temporary, dirs_exist_ok=True)
        temporary.rename(target)
    except OSError:  # another job was faster, or there is no space
        shutil.rmtree(temporary, ignore_errors=True)
    return target if target.exists() else folder
