"""Memory and processors available to this process."""

from __future__ import annotations

import ctypes
import logging
import os
import re
import resource
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path, PurePosixPath

import joblib
import psutil

from bids_lacuna.runtime.plan import Resources
from bids_lacuna.text import format_bytes, parse_bytes

logger = logging.getLogger(__name__)

SPARED_FRACTION = Fraction(1, 10)
"""Fraction of free memory left to other processes, the page cache and the user's callback."""

IN_MEMORY = ("tmpfs", "ramfs")
"""Types of file systems that keep files in memory."""

ADDRESS_SPACE = "RLIMIT_AS (ulimit -v)"
"""Name of the limit on address space, of which a process may occupy little."""

M_MMAP_THRESHOLD = -3
"""glibc's number for the size above which arrays are returned to the system when they are freed."""

CGROUP = re.compile(r"^\d+:([^:\n]*):(/.*)$", re.MULTILINE)
"""Controllers and path in a line of /proc/self/cgroup; version 2 names no controllers."""

MOUNT = re.compile(r"^\S+ \S+ \S+ (\S+) (\S+) .* - (cgroup2?) \S* (\S+)$", re.MULTILINE)
"""Root, mount point, file system and options in a cgroup's line of /proc/self/mountinfo."""


def available_cpus() -> int:
    """Return the number of processors that this process may use, by its affinity and its cgroup's quota."""
    return int(joblib.cpu_count())


def resident_bytes() -> int:
    """Return the bytes of memory that this process occupies now."""
    return int(psutil.Process().memory_info().rss)


def peak_resident_bytes() -> int:
    """Return the most bytes of memory that this process has occupied so far."""
    with suppress(OSError, AttributeError):
        # Not ru_maxrss: Linux starts it at the parent's peak, and VmHWM at 0.
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return 1024 * int(re.search(r"VmHWM:\s*(\d+)", status)[1])  # type: ignore[index]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def give_back_freed_memory() -> None:
    """Make glibc return large arrays to the system when they are freed; does nothing with other C libraries.

    By default, glibc keeps freed arrays of up to 32 MiB for later use: 18 to 54 MiB in all kinds of runs.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 2**20)


def room_for_files(folder: Path, spare_bytes: int) -> int:
    """Return the bytes that may be written to a folder: the free space of its disk.

    Parameters
    ----------
    spare_bytes
        Memory that the run leaves free. If the folder lies in memory, as /tmp may, files may take half of it.
    """
    free_bytes = shutil.disk_usage(folder).free
    kinds = {disk.mountpoint: disk.fstype for disk in psutil.disk_partitions(all=True)}
    above = map(str, (folder.resolve(), *folder.resolve().parents))
    kind = next((kinds[path] for path in above if path in kinds), "")
    return min(free_bytes, spare_bytes // 2) if kind in IN_MEMORY else free_bytes


@dataclass(frozen=True)
class MemoryLimit:
    """A limit on the memory of this process."""

    source: str
    """Source of the limit in words: "cgroup memory.max of /sys/fs/cgroup/job_1"."""
    available_bytes: int
    """Memory that this process may occupy in total, including what it occupies now."""


@dataclass(frozen=True)
class MemoryBudget:
    """Memory that this process may occupy: the smallest of the limits."""

    available_bytes: int
    """Memory in total, including what the process occupies now."""
    source: str
    """Source of the smallest limit."""
    limits: tuple[MemoryLimit, ...]
    """All limits found."""


def memory_budget(
    mem_bytes: int | None = None, root: Path = Path("/"), environ: Mapping[str, str] = os.environ
) -> MemoryBudget:
    """Return the smallest limit on the memory of this process.

    Limits are the available memory by psutil, cgroups, SLURM, RLIMIT_AS and the user's own. A tenth of measured free
    memory is left unused; limits set by the user or the scheduler are used in full.

    Parameters
    ----------
    mem_bytes
        The user's limit, if any.
    root
        Folder of `proc` and the cgroup mounts. A missing or unreadable file sets no limit.
    environ
        Environment variables, including SLURM's.
    """
    limits = memory_limits(mem_bytes, root, environ)
    for limit in limits:
        logger.debug("%s: %s", limit.source, format_bytes(limit.available_bytes))
    smallest = min(limits, key=lambda limit: limit.available_bytes)
    logger.info("using at most %s of memory, by %s", format_bytes(smallest.available_bytes), smallest.source)
    return MemoryBudget(smallest.available_bytes, smallest.source, limits)


def find_resources(mem_bytes: int | None = None, n_threads: int | None = None) -> Resources:
    """Return the memory and processors that a run may use.

    Parameters
    ----------
    mem_bytes, n_threads
        The user's limits, if any; there are at most as many threads as processors.
    """
    budget = memory_budget(mem_bytes)
    n_cpus = available_cpus()
    return Resources(budget.available_bytes, min(n_threads or n_cpus, n_cpus), source=budget.source)


def memory_limits(
    mem_bytes: int | None = None, root: Path = Path("/"), environ: Mapping[str, str] = os.environ
) -> tuple[MemoryLimit, ...]:
    """Return all limits on the memory of this process, from which `memory_budget` chooses the smallest."""
    occupied = resident_bytes()
    return (
        MemoryLimit("the memory free on this machine", occupied + _usable(psutil.virtual_memory().available)),
        *_cgroup_limits(root, occupied),
        *_slurm_limits(environ),
        *_address_space_limits(occupied),
        *([] if mem_bytes is None else [MemoryLimit("--mem", mem_bytes)]),
    )


def _usable(free_bytes: int) -> int:
    return max(0, int(free_bytes * (1 - SPARED_FRACTION)))


def _cgroup_limits(root: Path, occupied: int) -> Iterator[MemoryLimit]:
    """Read the limits of both versions of cgroups, which have different file names."""
    installed = psutil.virtual_memory().total
    for folder in _cgroup_folders(root):
        current, in_bytes = (_number(root, folder / f"memory.{name}") for name in ("current", "usage_in_bytes"))
        # The kernel frees this page cache before it refuses memory. Version 1 counts it without (inactive_file) and
        # with (total_inactive_file) the cgroups inside this one, version 2 only with them (inactive_file).
        inactive = re.findall(r"^(?:total_)?inactive_file (\d+)$", _read(root, folder / "memory.stat"), re.MULTILINE)
        # A cgroup without a readable usage contains at least this process.
        used = max(0, (current or in_bytes or occupied) - max(map(int, inactive), default=0))
        for name in ("memory.max", "memory.high", "memory.limit_in_bytes"):
            limit = _number(root, folder / name)
            # Version 1 writes "no limit" as a number above the memory of any machine.
            if limit is not None and limit < installed:
                yield MemoryLimit(f"cgroup {name} of {folder}", occupied + _usable(limit - used))


def _cgroup_folders(root: Path) -> Iterator[PurePosixPath]:
    """Yield the folders of the process's cgroups and of their parents, up to the mount points."""
    mountinfo = MOUNT.findall(_read(root, PurePosixPath("/proc/self/mountinfo")))
    for controllers, cgroup in CGROUP.findall(_read(root, PurePosixPath("/proc/self/cgroup"))):
        if controllers and "memory" not in controllers.split(","):
            continue
        path = PurePosixPath(cgroup)
        mounts = [
            (_unescape(mount_root), _unescape(mount_point))
            for mount_root, mount_point, filesystem, options in mountinfo
            if (filesystem == "cgroup" and "memory" in options.split(",") if controllers else filesystem == "cgroup2")
        ]
        # A container may see only part of the tree (the mount's root), and its own path as seen from outside. The
        # kernel writes the path of a cgroup outside our namespace as /../..
        ours = [] if ".." in path.parts else [mount for mount in mounts if path.is_relative_to(mount[0])]
        for mount_root, mount_point in ours:
            below = path.relative_to(mount_root)
            yield from (mount_point / part for part in (below, *below.parents))
        if not ours:
            yield from (mount_point for _, mount_point in mounts[:1])


def _unescape(path: str) -> PurePosixPath:
    """Undo mountinfo's octal escapes of blanks and backslashes."""
    return PurePosixPath(re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), path))


def _read(root: Path, path: PurePosixPath) -> str:
    try:
        return (root / path.relative_to("/")).read_text(encoding="utf-8", errors="surrogateescape")
    # ValueError: a damaged path, relative or with a null byte.
    except (OSError, ValueError):
        return ""


def _number(root: Path, path: PurePosixPath) -> int | None:
    text = _read(root, path).strip()
    return int(text) if text.isdecimal() else None


def _slurm_limits(environ: Mapping[str, str]) -> list[MemoryLimit]:
    """Read the memory that SLURM assigns to the job on this node; 0 means no limit."""
    with suppress(ValueError):
        return [MemoryLimit("SLURM_MEM_PER_NODE", parse_bytes(environ.get("SLURM_MEM_PER_NODE", "")))]
    with suppress(ValueError):
        n_cpus = int(environ.get("SLURM_CPUS_ON_NODE", ""))
        per_cpu = parse_bytes(environ.get("SLURM_MEM_PER_CPU", ""))
        return [MemoryLimit("SLURM_MEM_PER_CPU times SLURM_CPUS_ON_NODE", per_cpu * n_cpus)] if n_cpus > 0 else []
    return []


def _address_space_limits(occupied: int) -> list[MemoryLimit]:
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return []
    # Address space includes libraries that are mapped but never read, and so occupy no memory.
    free = limit - int(psutil.Process().memory_info().vms)
    return [MemoryLimit(ADDRESS_SPACE, occupied + max(0, free))]
