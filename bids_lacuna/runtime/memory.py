"""How much memory and how many processors this process may use."""

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

SPARED_SHARE = Fraction(1, 10)
"""Of measured free memory, left to other processes, the page cache and the user's callback."""

IN_MEMORY = ("tmpfs", "ramfs")
"""File systems whose files take memory."""

ADDRESS_SPACE = "RLIMIT_AS (ulimit -v)"
"""The limit on what a process reserves, of which it may occupy little."""

M_MMAP_THRESHOLD = -3
"""glibc's number of the size from which memory is taken from the system, and given back to it."""

CGROUP = re.compile(r"^\d+:([^:\n]*):(/.*)$", re.MULTILINE)
"""Controllers and path in a line of /proc/self/cgroup; version 2 names no controllers."""

MOUNT = re.compile(r"^\S+ \S+ \S+ (\S+) (\S+) .* - (cgroup2?) \S* (\S+)$", re.MULTILINE)
"""Root, mount point, file system and options in a cgroup's line of /proc/self/mountinfo."""


def available_cpus() -> int:
    """Count the processors that this process may use, by its affinity and its cgroup's quota."""
    return int(joblib.cpu_count())


def resident_bytes() -> int:
    """Measure the memory that this process occupies now."""
    return int(psutil.Process().memory_info().rss)


def peak_resident_bytes() -> int:
    """Measure the most memory that this process has occupied so far."""
    with suppress(OSError, AttributeError):
        # Linux starts ru_maxrss at the peak of the process that started this one, VmHWM at nothing.
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return 1024 * int(re.search(r"VmHWM:\s*(\d+)", status)[1])  # type: ignore[index]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def give_back_freed_memory() -> None:
    """Have the C library return each large array to the system when it is freed, where it is glibc.

    By itself glibc keeps freed arrays of up to 32 MiB for later: 18 to 54 MiB in runs of all kinds.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 2**20)


def room_for_files(folder: Path, spare_bytes: int) -> int:
    """Measure how much may be written to a folder: what its disk has free.

    Parameters
    ----------
    spare_bytes
        Memory that the run leaves: of a folder that lies in memory, as /tmp may, half of it at most.
    """
    free_bytes = shutil.disk_usage(folder).free
    kinds = {disk.mountpoint: disk.fstype for disk in psutil.disk_partitions(all=True)}
    above = map(str, (folder.resolve(), *folder.resolve().parents))
    kind = next((kinds[path] for path in above if path in kinds), "")
    return min(free_bytes, spare_bytes // 2) if kind in IN_MEMORY else free_bytes


@dataclass(frozen=True)
class MemoryLimit:
    """One bound on the memory of this process."""

    source: str
    """Where the bound comes from, for people: "cgroup memory.max of /sys/fs/cgroup/job_1"."""
    available_bytes: int
    """What this process may occupy in all, including what it occupies already."""


@dataclass(frozen=True)
class MemoryBudget:
    """What this process may occupy: the smallest of the limits."""

    available_bytes: int
    """Including what the process occupies already."""
    source: str
    """Of the smallest limit."""
    limits: tuple[MemoryLimit, ...]
    """All that were found."""


def memory_budget(
    mem_bytes: int | None = None, root: Path = Path("/"), environ: Mapping[str, str] = os.environ
) -> MemoryBudget:
    """Find the smallest limit on the memory of this process.

    Limits are what psutil finds available, the cgroups, SLURM, RLIMIT_AS and the user's own. Of what is measured
    to be free, a tenth is left alone; limits that the user or the scheduler gives are taken as they are.

    Parameters
    ----------
    mem_bytes
        The user's limit, if any.
    root
        Folder that holds `proc` and the cgroup mounts. A file that is absent or unreadable sets no limit.
    environ
        Environment variables, for SLURM's.
    """
    limits = memory_limits(mem_bytes, root, environ)
    for limit in limits:
        logger.debug("%s: %s", limit.source, format_bytes(limit.available_bytes))
    smallest = min(limits, key=lambda limit: limit.available_bytes)
    logger.info("using at most %s of memory, by %s", format_bytes(smallest.available_bytes), smallest.source)
    return MemoryBudget(smallest.available_bytes, smallest.source, limits)


def find_resources(mem_bytes: int | None = None, n_threads: int | None = None) -> Resources:
    """Find the memory and the processors that a run may use.

    Parameters
    ----------
    mem_bytes, n_threads
        The user's limits, if any; no more threads are used than there are processors.
    """
    budget = memory_budget(mem_bytes)
    n_cpus = available_cpus()
    return Resources(budget.available_bytes, min(n_threads or n_cpus, n_cpus), source=budget.source)


def memory_limits(
    mem_bytes: int | None = None, root: Path = Path("/"), environ: Mapping[str, str] = os.environ
) -> tuple[MemoryLimit, ...]:
    """Measure all limits on the memory of this process, as `memory_budget` does before it chooses the smallest."""
    occupied = resident_bytes()
    return (
        MemoryLimit("the memory free on this machine", occupied + _usable(psutil.virtual_memory().available)),
        *_cgroup_limits(root, occupied),
        *_slurm_limits(environ),
        *_address_space_limits(occupied),
        *([] if mem_bytes is None else [MemoryLimit("--mem", mem_bytes)]),
    )


def _usable(free_bytes: int) -> int:
    return max(0, int(free_bytes * (1 - SPARED_SHARE)))


def _cgroup_limits(root: Path, occupied: int) -> Iterator[MemoryLimit]:
    """Read the limits of either version of cgroups; each version has its own file names."""
    installed = psutil.virtual_memory().total
    for folder in _cgroup_folders(root):
        current, in_bytes = (_number(root, folder / f"memory.{name}") for name in ("current", "usage_in_bytes"))
        # Page cache that the kernel gives up before it refuses memory. Version 1 counts it without (inactive_file)
        # and with (total_inactive_file) the cgroups inside this one, version 2 only with (inactive_file).
        inactive = re.findall(r"^(?:total_)?inactive_file (\d+)$", _read(root, folder / "memory.stat"), re.MULTILINE)
        # A cgroup that hides its usage holds at least this process.
        used = max(0, (current or in_bytes or occupied) - max(map(int, inactive), default=0))
        for name in ("memory.max", "memory.high", "memory.limit_in_bytes"):
            limit = _number(root, folder / name)
            # Version 1 writes "no limit" as a number beyond any machine.
            if limit is not None and limit < installed:
                yield MemoryLimit(f"cgroup {name} of {folder}", occupied + _usable(limit - used))


def _cgroup_folders(root: Path) -> Iterator[PurePosixPath]:
    """Find the folders of the process's cgroups and of all that contain them, up to where they are mounted."""
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
        # A container may see only a part of the tree (the mount's root), and its own path as from outside. The
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
    except OSError:
        return ""


def _number(root: Path, path: PurePosixPath) -> int | None:
    text = _read(root, path).strip()
    return int(text) if text.isdecimal() else None


def _slurm_limits(environ: Mapping[str, str]) -> list[MemoryLimit]:
    """Read what SLURM gives the job on this node; its 0 means no limit."""
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
    # Address space counts libraries that are mapped and never read, which occupy nothing.
    free = limit - int(psutil.Process().memory_info().vms)
    return [MemoryLimit(ADDRESS_SPACE, occupied + max(0, free))]
