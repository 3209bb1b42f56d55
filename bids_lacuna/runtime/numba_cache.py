"""The cache of compiled kernels: a folder of the user, with the kernels of a container image copied into it."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

CPU = "x86-64-v3"
"""Processor family that an image's kernels are compiled for: Intel since 2013, AMD since 2015.

On a Zen 3, these kernels are as fast as those compiled for it; on Intel's processors with AVX-512, LLVM uses vectors
of 256 bits in both.
"""

CPU_FLAGS = frozenset({"abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"})
"""Flags of these processors in /proc/cpuinfo."""


def choose_folder() -> Path | None:
    """Choose a folder that belongs to this user and is writable, if there is one.

    The package's own folder may be read-only.
    """
    folders = []
    # A container writes only to the output folder, the work folder and /tmp: the home may be that of the host.
    if "BIDS_LACUNA_CONTAINER_TYPE" not in os.environ:
        home = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))  # noqa: PTH111
        folders.append(home / "bids-lacuna")
    # Each may be on a full disk, over quota, or read-only.
    with suppress(OSError):
        folders.append(Path(tempfile.gettempdir()) / f"bids-lacuna-{os.getuid()}")
    # For a user without a home, ~ is not expanded, and the path is not absolute.
    for folder in filter(Path.is_absolute, folders):
        with suppress(OSError):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            # numba unpickles files there: a folder that another user has created is not safe.
            if folder.stat().st_uid == os.getuid() and os.access(folder, os.W_OK, effective_ids=True):
                return folder
    with suppress(OSError):
        return Path(tempfile.mkdtemp(prefix="bids-lacuna-"))
    return None


def ensure_home() -> None:
    """Let a user without an entry in /etc/passwd and without HOME have a home, as in a container with another user.

    pybids and other libraries look for their settings there, and do without them, but not without a home.
    """
    if os.path.expanduser("~") == "~":  # noqa: PTH111
        os.environ["HOME"] = os.environ.get("NUMBA_CACHE_DIR") or str(choose_folder() or "/")


def keep_in(folder: Path | None, cpuinfo: Path = Path("/proc/cpuinfo")) -> None:
    """Set the folder in which numba, imported later, keeps compiled kernels.

    Kernels of a container image (`BIDS_LACUNA_COMPILED`) are copied there, since numba does not read a cache that it
    cannot write to. They are not used on a processor that cannot run them, nor if NUMBA_CPU_NAME names another one:
    the first run then compiles the kernels, which takes 6 s.

    Parameters
    ----------
    folder
        Existing folder that belongs to this user; None: kernels are compiled in each process.
    cpuinfo
        Linux's description of the processor.
    """
    if folder is None:
        return
    image = os.environ.get("BIDS_LACUNA_COMPILED")
    chosen = os.environ.get("NUMBA_CPU_NAME", CPU) == CPU
    if image and Path(image).is_dir() and chosen and _cpu_flags(cpuinfo) >= CPU_FLAGS:
        os.environ |= {"NUMBA_CPU_NAME": CPU, "NUMBA_CPU_FEATURES": ""}
        folder = _copy(Path(image).resolve(), folder)
    os.environ["NUMBA_CACHE_DIR"] = str(folder)


def _cpu_flags(cpuinfo: Path) -> set[str]:
    with suppress(OSError), cpuinfo.open(encoding="utf-8") as lines:
        return next((set(line.split()) for line in lines if line.startswith("flags")), set())
    return set()


def _copy(source: Path, folder: Path) -> Path:
    """Copy an image's kernels into a subfolder, atomically, since other jobs may do so, too; return the folder."""
    target = folder / source.name
    if target.exists():
        return target
    # Another job may be faster, and there may be no space.
    with suppress(OSError), tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as temporary:
        copy = Path(temporary, "copy")
        shutil.copytree(source, copy)
        copy.rename(target)
    return target if target.exists() else folder
