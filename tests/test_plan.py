"""Memory limits read from made-up and real machines, and the arithmetic of batches."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from dataclasses import replace
from math import ceil
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from bids_lacuna.runtime.memory import find_resources, memory_budget, resident_bytes, room_for_files
from bids_lacuna.runtime.plan import Footprint, Resources, plan_batches
from bids_lacuna.text import format_bytes

MIB = 2**20

V1_MOUNT = "36 31 0:33 / /sys/fs/cgroup/memory rw,nosuid shared:9 - cgroup cgroup rw,memory\n"
V1_CPU_MOUNT = "35 31 0:32 / /sys/fs/cgroup/cpu rw,nosuid shared:8 - cgroup cgroup rw,cpu\n"
V2_MOUNT = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"


def write_file(root: Path, path: str, content: str | int) -> None:
    """Write a file under a made-up root of the file system."""
    file = root / path.lstrip("/")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(str(content))


def write_proc(root: Path, cgroup: str, mountinfo: str) -> None:
    """Write what the kernel tells a process about its cgroups and mounts."""
    write_file(root, "/proc/self/cgroup", cgroup)
    write_file(root, "/proc/self/mountinfo", mountinfo)


def write_cgroup(root: Path, folder: str, **files: str | int) -> None:
    """Write a cgroup's files, a line each; `memory_max=…` makes memory.max."""
    for name, content in files.items():
        write_file(root, f"{folder}/{name.replace('_', '.', 1)}", f"{content}\n")


def cgroup_limits(root: Path) -> dict[str, int]:
    """Read what each cgroup file leaves to this process, without what the process occupies already."""
    resident = resident_bytes()
    limits = memory_budget(root=root, environ={}).limits
    return {limit.source: limit.available_bytes - resident for limit in limits if "cgroup" in limit.source}


def free(n_bytes: int) -> object:
    """Nine tenths of what is free, give or take what the test itself allocates between two measurements."""
    return pytest.approx(n_bytes * 9 / 10, abs=8 * MIB)


def slurm_limit(**environ: str) -> int | None:
    """Read the one limit of SLURM, if any."""
    limits = memory_budget(root=Path("/nonexistent"), environ=environ).limits
    return next((limit.available_bytes for limit in limits if "SLURM" in limit.source), None)


def test_cpus_follow_affinity() -> None:
    """A process that is bound to one processor counts one."""
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
        "from bids_lacuna.runtime.memory import available_cpus; print(available_cpus())"
    )
    child = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert child.stdout.strip() == "1"


@pytest.mark.parametrize(("wanted", "found"), [(None, 3), (1, 1), (3, 3), (4, 3), (10**30, 3)])
def test_no_more_threads_than_processors(monkeypatch: pytest.MonkeyPatch, wanted: int | None, found: int) -> None:
    """A run uses all processors, or as many threads as the user wants, up to that."""
    monkeypatch.setattr("bids_lacuna.runtime.memory.available_cpus", lambda: 3)
    assert find_resources(n_threads=wanted).n_threads == found


def test_resident_bytes_grow_with_what_is_written() -> None:
    """Memory that is written to counts as occupied."""
    before = resident_bytes()
    written = bytearray(b"\1") * (97 * MIB)
    assert resident_bytes() - before > 0.9 * len(written)


def test_this_machine_has_a_budget() -> None:
    """On the machine at hand, the smallest limit wins, and leaves more than is occupied and less than all of it."""
    budget = memory_budget()
    smallest = min(budget.limits, key=lambda limit: limit.available_bytes)
    assert (budget.available_bytes, budget.source) == (smallest.available_bytes, smallest.source)
    assert resident_bytes() - 8 * MIB < budget.available_bytes < psutil.virtual_memory().total


def test_without_proc_the_machine_alone_sets_the_limit(tmp_path: Path) -> None:
    """A system without /proc gives a budget all the same: what is free, less a tenth, and what is occupied."""
    budget = memory_budget(root=tmp_path, environ={})
    machine = budget.limits[0]
    assert machine.source == "the memory free on this machine"
    assert not cgroup_limits(tmp_path)
    expected = psutil.virtual_memory().available * 9 / 10 + resident_bytes()
    assert machine.available_bytes == pytest.approx(expected, rel=0.1)


def test_v2_limit_counts_usage_without_inactive_page_cache(tmp_path: Path) -> None:
    """Of a version 2 cgroup, nine tenths of limit - (usage - inactive_file) are this process's to take."""
    write_proc(tmp_path, "0::/job_1\n", V2_MOUNT)
    stat = f"anon 1\ninactive_anon {3 * MIB}\nactive_file {5 * MIB}\ninactive_file {211 * MIB}\nslab 7\n"
    write_cgroup(tmp_path, "/sys/fs/cgroup/job_1", memory_max=997 * MIB, memory_current=613 * MIB, memory_stat=stat)
    assert cgroup_limits(tmp_path) == {"cgroup memory.max of /sys/fs/cgroup/job_1": free((997 - (613 - 211)) * MIB)}


def test_v2_high_is_a_limit_too(tmp_path: Path) -> None:
    """A process above memory.high is throttled to a standstill, so that is a limit like memory.max."""
    write_proc(tmp_path, "0::/job\n", V2_MOUNT)
    write_cgroup(
        tmp_path, "/sys/fs/cgroup/job", memory_max=907 * MIB, memory_high=701 * MIB, memory_current=101 * MIB
    )
    assert cgroup_limits(tmp_path) == {
        "cgroup memory.max of /sys/fs/cgroup/job": free((907 - 101) * MIB),
        "cgroup memory.high of /sys/fs/cgroup/job": free((701 - 101) * MIB),
    }


def test_v1_limit_counts_the_whole_subtree(tmp_path: Path) -> None:
    """Version 1 usage includes the cgroups inside this one, so it is their inactive page cache that comes off."""
    write_proc(tmp_path, "4:memory:/slurm/job_3\n3:cpu:/elsewhere\n0::/\n", V1_CPU_MOUNT + V1_MOUNT)
    write_cgroup(
        tmp_path,
        "/sys/fs/cgroup/memory/slurm/job_3",
        memory_limit_in_bytes=887 * MIB,
        memory_usage_in_bytes=503 * MIB,
        memory_stat=f"inactive_file {17 * MIB}\ntotal_inactive_file {151 * MIB}\n",
    )
    source = "cgroup memory.limit_in_bytes of /sys/fs/cgroup/memory/slurm/job_3"
    assert cgroup_limits(tmp_path) == {source: free((887 - (503 - 151)) * MIB)}


def test_v1_controllers_may_share_a_mount(tmp_path: Path) -> None:
    """The memory controller is found among several in one line and one mount."""
    mount = "36 31 0:33 / /cg rw - cgroup cgroup rw,cpu,cpuacct,memory\n"
    write_proc(tmp_path, "4:cpu,cpuacct,memory:/job\n", mount)
    write_cgroup(tmp_path, "/cg/job", memory_limit_in_bytes=887 * MIB, memory_usage_in_bytes=503 * MIB)
    assert cgroup_limits(tmp_path) == {"cgroup memory.limit_in_bytes of /cg/job": free((887 - 503) * MIB)}


def test_hybrid_machines_have_limits_of_both_versions(tmp_path: Path) -> None:
    """Where both versions are mounted, each is read at its own path."""
    v2_mount = V2_MOUNT.replace("/sys/fs/cgroup ", "/sys/fs/cgroup/unified ")
    write_proc(tmp_path, "4:memory:/old\n1:name=systemd:/x\n0::/new\n", V1_CPU_MOUNT + V1_MOUNT + v2_mount)
    write_cgroup(
        tmp_path,
        "/sys/fs/cgroup/memory/old",
        memory_limit_in_bytes=887 * MIB,
        memory_usage_in_bytes=503 * MIB,
    )
    write_cgroup(tmp_path, "/sys/fs/cgroup/unified/new", memory_max=997 * MIB, memory_current=613 * MIB)
    assert cgroup_limits(tmp_path) == {
        "cgroup memory.limit_in_bytes of /sys/fs/cgroup/memory/old": free((887 - 503) * MIB),
        "cgroup memory.max of /sys/fs/cgroup/unified/new": free((997 - 613) * MIB),
    }


def test_the_smallest_limit_may_be_an_ancestors(tmp_path: Path) -> None:
    """All ancestors up to the mount are read, and a limit in their middle wins."""
    write_proc(tmp_path, "0::/slice/job/step/task\n", V2_MOUNT)
    top = "/sys/fs/cgroup"
    write_cgroup(tmp_path, top, memory_max=997 * MIB, memory_current=613 * MIB)
    write_cgroup(tmp_path, f"{top}/slice", memory_max=881 * MIB, memory_current=509 * MIB)
    write_cgroup(tmp_path, f"{top}/slice/job", memory_max=503 * MIB, memory_current=401 * MIB)
    write_cgroup(tmp_path, f"{top}/slice/job/step", memory_max="max", memory_current=307 * MIB)
    write_cgroup(tmp_path, f"{top}/slice/job/step/task", memory_max=809 * MIB, memory_current=211 * MIB)
    assert cgroup_limits(tmp_path) == {
        f"cgroup memory.max of {top}/slice/job/step/task": free((809 - 211) * MIB),
        f"cgroup memory.max of {top}/slice/job": free((503 - 401) * MIB),
        f"cgroup memory.max of {top}/slice": free((881 - 509) * MIB),
        f"cgroup memory.max of {top}": free((997 - 613) * MIB),
    }
    budget = memory_budget(root=tmp_path, environ={})
    assert budget.source == f"cgroup memory.max of {top}/slice/job"
    assert budget.available_bytes == min(limit.available_bytes for limit in budget.limits)


@pytest.mark.parametrize("n_bytes", ["max", "total", 9223372036854771712], ids=["max", "RAM", "v1 unlimited"])
def test_no_limit_is_not_a_limit(tmp_path: Path, n_bytes: str | int) -> None:
    """The word max, and numbers from the machine's memory upwards, limit nothing."""
    n_bytes = psutil.virtual_memory().total if n_bytes == "total" else n_bytes
    write_proc(tmp_path, "4:memory:/job\n0::/job\n", V1_MOUNT + V2_MOUNT)
    write_cgroup(tmp_path, "/sys/fs/cgroup/job", memory_max=n_bytes, memory_high=n_bytes, memory_current=1)
    write_cgroup(tmp_path, "/sys/fs/cgroup/memory/job", memory_limit_in_bytes=n_bytes, memory_usage_in_bytes=1)
    assert cgroup_limits(tmp_path) == {}


def test_a_full_cgroup_leaves_what_is_occupied(tmp_path: Path) -> None:
    """Usage above the limit leaves nothing more, and takes nothing back."""
    write_proc(tmp_path, "0::/job\n", V2_MOUNT)
    write_cgroup(tmp_path, "/sys/fs/cgroup/job", memory_high=401 * MIB, memory_current=599 * MIB)
    assert cgroup_limits(tmp_path) == {"cgroup memory.high of /sys/fs/cgroup/job": free(0)}


def test_page_cache_beyond_the_usage_frees_no_more_than_the_limit(tmp_path: Path) -> None:
    """The kernel counts usage and page cache at different moments; their difference is never below zero."""
    write_proc(tmp_path, "0::/job\n", V2_MOUNT)
    stat = f"inactive_file {307 * MIB}"
    write_cgroup(tmp_path, "/sys/fs/cgroup/job", memory_max=401 * MIB, memory_current=101 * MIB, memory_stat=stat)
    assert cgroup_limits(tmp_path) == {"cgroup memory.max of /sys/fs/cgroup/job": free(401 * MIB)}


def test_a_cgroup_without_usage_holds_this_process(tmp_path: Path) -> None:
    """Where only the limit can be read, what this process occupies counts as the usage."""
    write_proc(tmp_path, "0::/job\n", V2_MOUNT)
    write_cgroup(tmp_path, "/sys/fs/cgroup/job", memory_max=resident_bytes() + 613 * MIB)
    (tmp_path / "sys/fs/cgroup/job/memory.current").mkdir()
    assert cgroup_limits(tmp_path) == {"cgroup memory.max of /sys/fs/cgroup/job": free(613 * MIB)}


@pytest.mark.parametrize("path", ["/docker/abc", "/../../host/job", "/job (deleted)"])
def test_an_absent_path_means_the_mounts_root(tmp_path: Path, path: str) -> None:
    """A container that sees its cgroup under a path of the host finds its limit at the first mount's root."""
    second_mount = V2_MOUNT.replace(" / /sys/fs/cgroup ", " /docker/def /run/theirs ")
    write_proc(tmp_path, f"0::{path}\n", V2_MOUNT + second_mount)
    write_cgroup(tmp_path, "/run/theirs", memory_max=101 * MIB, memory_current=11 * MIB)
    write_cgroup(tmp_path, "/sys/fs/cgroup", memory_max=997 * MIB, memory_current=613 * MIB)
    write_cgroup(tmp_path, "/sys/host/job", memory_max=11 * MIB, memory_current=7 * MIB)
    assert cgroup_limits(tmp_path) == {"cgroup memory.max of /sys/fs/cgroup": free((997 - 613) * MIB)}


def test_a_mount_of_a_part_of_the_tree_is_read_from_there(tmp_path: Path) -> None:
    """The mount's root comes off the cgroup's path: /docker/abc/job lies at job where /docker/abc is mounted."""
    mount = V2_MOUNT.replace(" / ", " /docker/abc ")
    write_proc(tmp_path, "0::/docker/abc/job\n", mount)
    write_cgroup(tmp_path, "/sys/fs/cgroup/job", memory_max=997 * MIB, memory_current=613 * MIB)
    write_cgroup(tmp_path, "/sys/fs/cgroup", memory_max=881 * MIB, memory_current=419 * MIB)
    assert cgroup_limits(tmp_path) == {
        "cgroup memory.max of /sys/fs/cgroup/job": free((997 - 613) * MIB),
        "cgroup memory.max of /sys/fs/cgroup": free((881 - 419) * MIB),
    }


def test_another_containers_mount_sets_no_limit(tmp_path: Path) -> None:
    """Of several mounts, those that hold this process's cgroup count."""
    theirs = V2_MOUNT.replace(" / /sys/fs/cgroup ", " /docker/def /run/theirs ")
    write_proc(tmp_path, "0::/docker/abc\n", theirs + V2_MOUNT)
    write_cgroup(tmp_path, "/run/theirs", memory_max=101 * MIB, memory_current=11 * MIB)
    write_cgroup(tmp_path, "/sys/fs/cgroup/docker/abc", memory_max=997 * MIB, memory_current=613 * MIB)
    assert cgroup_limits(tmp_path) == {"cgroup memory.max of /sys/fs/cgroup/docker/abc": free((997 - 613) * MIB)}


def test_mount_paths_with_blanks_and_backslashes(tmp_path: Path) -> None:
    r"""The kernel's octal escapes (\040 for a blank, \134 for a backslash) are undone in both paths of a mount."""
    mount = V2_MOUNT.replace(" / /sys/fs/cgroup ", r" /a\040b /my\040cgroups\134x ")
    write_proc(tmp_path, "0::/a b/job\n", mount)
    write_cgroup(tmp_path, r"/my cgroups\x/job", memory_max=997 * MIB, memory_current=613 * MIB)
    assert cgroup_limits(tmp_path) == {r"cgroup memory.max of /my cgroups\x/job": free((997 - 613) * MIB)}


@pytest.mark.parametrize("cgroup", ["", "nonsense\n\n::\n", "0::relative\n", "4:memory:/job\n"])
def test_unreadable_cgroups_set_no_limit(tmp_path: Path, cgroup: str) -> None:
    """Lines that are no cgroup's, and controllers that are mounted nowhere, are passed over."""
    write_proc(tmp_path, cgroup, "garbage\n" + V2_MOUNT)
    write_cgroup(tmp_path, "/sys/fs/cgroup", memory_max=997 * MIB, memory_current=613 * MIB)
    assert cgroup_limits(tmp_path) == {}


def test_slurm_memory_per_node() -> None:
    """SLURM's memory per node is in MB, and all of it is the job's."""
    assert slurm_limit(SLURM_MEM_PER_NODE="7919") == 7919 * MIB


def test_slurm_memory_per_cpu() -> None:
    """SLURM's memory per processor counts once for each processor on this node."""
    assert slurm_limit(SLURM_MEM_PER_CPU="1013", SLURM_CPUS_ON_NODE="7") == 7 * 1013 * MIB


@pytest.mark.parametrize(
    ("text", "n_bytes"), [("13G", 13 * 2**30), ("997M", 997 * MIB), ("99991K", 99991 * 2**10), ("2T", 2**41)]
)
def test_slurm_suffixes(text: str, n_bytes: int) -> None:
    """SLURM may write a unit."""
    assert slurm_limit(SLURM_MEM_PER_NODE=text) == n_bytes
    assert slurm_limit(SLURM_MEM_PER_CPU=text, SLURM_CPUS_ON_NODE="3") == 3 * n_bytes


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"SLURM_MEM_PER_NODE": "0"},
        {"SLURM_MEM_PER_NODE": "lots"},
        {"SLURM_MEM_PER_NODE": ""},
        {"SLURM_MEM_PER_CPU": "1013"},
        {"SLURM_MEM_PER_CPU": "0", "SLURM_CPUS_ON_NODE": "7"},
        {"SLURM_MEM_PER_CPU": "1013", "SLURM_CPUS_ON_NODE": "many"},
        {"SLURM_MEM_PER_CPU": "1013", "SLURM_CPUS_ON_NODE": "0"},
    ],
)
def test_slurm_without_a_limit(environ: dict[str, str]) -> None:
    """Zero is SLURM's word for all of the node; what cannot be read is no limit either."""
    assert slurm_limit(**environ) is None


def test_slurm_zero_per_node_leaves_the_limit_per_cpu() -> None:
    """A memory per node of 0 does not hide a memory per processor."""
    environ = {"SLURM_MEM_PER_NODE": "0", "SLURM_MEM_PER_CPU": "1013", "SLURM_CPUS_ON_NODE": "7"}
    assert slurm_limit(**environ) == 7 * 1013 * MIB


def test_the_users_limit_wins_when_it_is_smallest(tmp_path: Path) -> None:
    """A small --mem is the budget, to the byte."""
    budget = memory_budget(104729, root=tmp_path, environ={"SLURM_MEM_PER_NODE": "1"})
    assert (budget.available_bytes, budget.source) == (104729, "--mem")


def test_the_users_limit_cannot_lift_others(tmp_path: Path) -> None:
    """A --mem beyond what the job has changes nothing."""
    budget = memory_budget(13 * MIB, root=tmp_path, environ={"SLURM_MEM_PER_NODE": "11"})
    assert (budget.available_bytes, budget.source) == (11 * MIB, "SLURM_MEM_PER_NODE")
    assert any(limit.source == "--mem" and limit.available_bytes == 13 * MIB for limit in budget.limits)


def test_the_log_names_every_limit_and_the_smallest(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Each limit is logged for debugging, the one that counts for everybody."""
    with caplog.at_level(logging.DEBUG, logger="bids_lacuna.runtime.memory"):
        budget = memory_budget(13 * MIB, root=tmp_path, environ={"SLURM_MEM_PER_NODE": "11"})
    details = [record.getMessage() for record in caplog.records if record.levelno == logging.DEBUG]
    assert [text.split(": ")[0] for text in details] == [limit.source for limit in budget.limits]
    assert "--mem: 13 MiB" in details
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.INFO]
    assert told == ["using at most 11 MiB of memory, by SLURM_MEM_PER_NODE"]


@pytest.mark.parametrize(
    ("mounts", "room"),
    [
        ({"/": "ext4"}, "disk"),
        ({"/": "ext4", "{}": "tmpfs"}, "memory"),
        ({"/": "ext4", "{}": "ramfs"}, "memory"),
        ({"/": "tmpfs", "{}": "ext4"}, "disk"),
        ({"/": "ext4", "{}": "tmpfs", "{}/work": "ext4"}, "disk"),
        ({"/": "ext4", "{}/w": "tmpfs"}, "disk"),
        ({}, "disk"),
    ],
)
def test_files_in_memory_get_half_of_what_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mounts: dict[str, str], room: str
) -> None:
    """A folder on a disk may take what the disk has free, one in memory half of what the run leaves, at most."""
    disks = [SimpleNamespace(mountpoint=path.format(tmp_path), fstype=kind) for path, kind in mounts.items()]
    monkeypatch.setattr("psutil.disk_partitions", lambda *, all: disks if all else [])  # noqa: A006  its name
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1009))
    folder = tmp_path / "work"
    folder.mkdir()
    (tmp_path / "link").symlink_to(folder)
    for place in (folder, tmp_path / "link"):
        assert room_for_files(place, 2 * 997) == {"memory": 997, "disk": 1009}[room]
        assert room_for_files(place, 2 * 1013) == 1009


ADDRESS_SPACE_CHILD = """
import json, resource, sys
import psutil
from bids_lacuna.runtime.memory import memory_budget, resident_bytes
limit = psutil.Process().memory_info().vms + int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
budget = memory_budget(environ={})
free = budget.available_bytes - resident_bytes()
bytearray(int(0.9 * free))
try:
    bytearray(int(1.1 * free))
    allocated_more = True
except MemoryError:
    allocated_more = False
print(json.dumps([budget.source, free, allocated_more]))
"""


@pytest.mark.parametrize("free_mib", [307, 613])
def test_address_space_limits_are_real(free_mib: int) -> None:
    """Under a real RLIMIT_AS the budget is what can be allocated: nine tenths of it can, eleven tenths cannot."""
    command = [sys.executable, "-c", ADDRESS_SPACE_CHILD, str(free_mib * MIB)]
    child = subprocess.run(command, check=True, capture_output=True, text=True)
    source, free_bytes, allocated_more = json.loads(child.stdout)
    assert source == "RLIMIT_AS (ulimit -v)"
    assert free_bytes == pytest.approx(free_mib * MIB, abs=16 * MIB)
    assert not allocated_more


FOOTPRINT = Footprint(
    accumulator_bytes=16 * 1009,
    row_bytes=8 * 11 + 1614 + 4096,
    kept_bytes=12 * 1009,
    result_bytes=24 * 2003,
    subject_bytes=100_003,
    reading_bytes=200_003,
    n_readers=2,
    group=4,
    connectome_bytes=10**8,
)
"""Primes, so that each term shows in a sum."""

UNLIMITED = Resources(10**9, 3)


STREAMING_BYTES = 2 * 200_003 + 100_003
"""Three connectome subjects, two of which are being read."""


def test_every_term_of_the_plan() -> None:
    """The bytes of a plan are those of the process, subjects, tiles, one lesion's maps, reports, and each lesion."""
    resources = Resources(10**9, 3, reserved_bytes=10009)
    result = plan_batches(7, FOOTPRINT, resources, occupied_bytes=10007)
    assert result.fixed_bytes == 10007 + 10009 + STREAMING_BYTES + (8 + 3 * 5) * 2**20 + 24 * 2003
    assert result.bytes_per_row == 16 * 1009 + 8 * 11 + 16 * 1009 // 10 + 4096
    assert result.peak_bytes == result.fixed_bytes + 7 * result.bytes_per_row
    assert (result.n_rows, result.batch_size, result.n_batches) == (7, 7, 1)
    assert result.available_bytes == 10**9


@pytest.mark.parametrize(
    ("n_lesions", "n_ahead", "n_together"),
    [(7, 2, 1), (61, 2, 1), (62, 2, 2), (124, 2, 3), (186, 2, 4), (1000, 2, 4)],
)
def test_many_lesions_are_worth_more_subjects(n_lesions: int, n_ahead: int, n_together: int) -> None:
    """Subjects beyond the third take at most a tenth of the moments, 16 bytes a voxel and lesion: 62 lesions each."""
    result = plan_batches(n_lesions, FOOTPRINT, UNLIMITED)
    assert (result.n_ahead, result.n_together) == (n_ahead, n_together)
    more_bytes = (n_ahead + n_together - 3) * 100_003
    assert result.fixed_bytes == (8 + 3 * 5) * 2**20 + 24 * 2003 + STREAMING_BYTES + more_bytes


def test_a_third_of_the_subjects_is_read_ahead() -> None:
    """With one reader, one of three subjects is read ahead, and two of six; no more are added than go together."""
    one_reader = replace(FOOTPRINT, n_readers=1)
    few, many = (plan_batches(n, one_reader, UNLIMITED) for n in (1, 1000))
    assert (few.n_ahead, few.n_together) == (1, 2)
    assert (many.n_ahead, many.n_together) == (2, 4)
    narrow = plan_batches(1000, replace(one_reader, group=3), UNLIMITED)
    assert (narrow.n_ahead, narrow.n_together) == (2, 3)


def test_subjects_beyond_the_third_take_no_lesions_place() -> None:
    """Where memory holds just the batch, three have to do; a byte too few for a fifth leaves four."""
    roomy = plan_batches(500, FOOTPRINT, UNLIMITED)
    least = roomy.peak_bytes - 3 * 100_003
    for extra_bytes, in_memory in ((0, 3), (2 * 100_003 - 1, 4), (2 * 100_003, 5)):
        result = plan_batches(500, FOOTPRINT, Resources(least + extra_bytes, 3))
        assert (result.batch_size, result.n_ahead + result.n_together) == (500, in_memory)
        assert result.peak_bytes <= result.available_bytes


def test_a_connectome_stays_cached_where_it_fits() -> None:
    """The connectome stays in the page cache if the run leaves it as much memory, to the byte."""
    peak = plan_batches(7, FOOTPRINT, UNLIMITED).peak_bytes
    for spare_bytes, cached in ((10**8 - 1, False), (10**8, True)):
        assert plan_batches(7, FOOTPRINT, Resources(peak + spare_bytes, 3)).keep_cached == cached


def test_kept_results_add_to_the_plan() -> None:
    """Results that stay to the end take 12 bytes for each voxel and each lesion of the whole run.

    Those of the last batch, of 3 or of all 13 lesions, come when the connectome subjects are gone.
    """
    for batch_size, n_in_last_batch in ((5, 3), (13, 13)):
        lean = plan_batches(13, FOOTPRINT, UNLIMITED, batch_size=batch_size)
        keeping = plan_batches(13, FOOTPRINT, UNLIMITED, batch_size=batch_size, keep_results=True)
        in_place_of_subjects = min(FOOTPRINT.streaming_bytes, n_in_last_batch * 12 * 1009)
        assert keeping.fixed_bytes - lean.fixed_bytes == 13 * 12 * 1009 - in_place_of_subjects
        assert keeping.bytes_per_row == lean.bytes_per_row


def room_for(n_lesions: int) -> int:
    """Bytes in which that many lesions fit, and not one more."""
    one = plan_batches(1, FOOTPRINT, UNLIMITED)
    return one.fixed_bytes + (n_lesions + 1) * one.bytes_per_row - 1


def test_batches_are_of_equal_size() -> None:
    """1050 lesions where 1000 fit are two batches of 525."""
    result = plan_batches(1050, FOOTPRINT, Resources(room_for(1000), 3))
    assert (result.batch_size, result.n_batches) == (525, 2)


@pytest.mark.parametrize("n_lesions", [1, 2, 101, 102, 1009])
@pytest.mark.parametrize("fits", [1, 2, 97, 101, 5003])
def test_automatic_batches_fit_in_the_fewest_passes(n_lesions: int, fits: int) -> None:
    """Whatever the counts, batches fit, hold all lesions, and are as few as can be."""
    result = plan_batches(n_lesions, FOOTPRINT, Resources(room_for(fits), 3))
    assert result.n_batches == ceil(n_lesions / fits)
    assert (result.n_batches - 1) * result.batch_size < n_lesions <= result.n_batches * result.batch_size
    assert result.peak_bytes <= result.available_bytes


def test_memory_to_the_byte() -> None:
    """One byte less than a batch needs is one lesion less."""
    needed = plan_batches(7, FOOTPRINT, UNLIMITED).peak_bytes
    assert plan_batches(7, FOOTPRINT, Resources(needed, 3), batch_size=7).batch_size == 7
    assert plan_batches(7, FOOTPRINT, Resources(needed - 1, 3), batch_size=7).batch_size == 6


@pytest.mark.parametrize(
    ("lesion_batch_size", "batch_size", "n_batches"),
    [(1, 1, 13), (5, 5, 3), (13, 13, 1), (999, 13, 1), (None, 13, 1)],
)
def test_a_batch_size_that_fits_is_taken(
    lesion_batch_size: int | None, batch_size: int, n_batches: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The user's batch size is used, but for more lesions than there are, and None is all of them."""
    result = plan_batches(13, FOOTPRINT, Resources(room_for(13), 3), batch_size=lesion_batch_size)
    assert (result.batch_size, result.n_batches) == (batch_size, n_batches)
    assert not caplog.records


@pytest.mark.parametrize("lesion_batch_size", [11, None])
def test_a_batch_size_that_does_not_fit_is_lowered(
    lesion_batch_size: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    """Where memory holds fewer lesions than asked for, the batch is lowered, and a warning gives both numbers."""
    result = plan_batches(11, FOOTPRINT, Resources(room_for(7), 3), batch_size=lesion_batch_size)
    assert (result.batch_size, result.n_batches) == (7, 2)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    needed = result.fixed_bytes + 11 * result.bytes_per_row
    for words in ("11 lesions", "7 lesions", format_bytes(needed), format_bytes(room_for(7))):
        assert words in record.getMessage()


def test_automatic_batches_do_not_warn(caplog: pytest.LogCaptureFixture) -> None:
    """Several passes are no reason for a warning when nobody asked for one."""
    assert plan_batches(11, FOOTPRINT, Resources(room_for(7), 3)).n_batches == 2
    assert not caplog.records


@pytest.mark.parametrize("lesion_batch_size", ["auto", None, 5])
def test_no_lesions_are_no_batches(lesion_batch_size: int | None) -> None:
    """Nothing to map needs no pass, in however little memory."""
    result = plan_batches(0, FOOTPRINT, Resources(1, 3), batch_size=lesion_batch_size)
    assert (result.batch_size, result.n_batches, result.peak_bytes) == (0, 0, result.fixed_bytes)


@pytest.mark.parametrize("lesion_batch_size", [0, -3, True, False, 2.0, "7", "all", [5]])
@pytest.mark.parametrize("n_lesions", [0, 7])
def test_other_batch_sizes_are_errors(n_lesions: int, lesion_batch_size: object) -> None:
    """The error shows what was given and lists what may be."""
    with pytest.raises(ValueError, match=r"whole number from 1, 'auto' .* or None") as caught:
        plan_batches(n_lesions, FOOTPRINT, UNLIMITED, batch_size=lesion_batch_size)  # type: ignore[arg-type]
    assert repr(lesion_batch_size) in str(caught.value)


@pytest.mark.parametrize("keep_results", [False, True])
@pytest.mark.parametrize("lesion_batch_size", ["auto", None, 1])
def test_one_lesion_that_does_not_fit_is_an_error(keep_results: bool, lesion_batch_size: int | None) -> None:
    """Where one lesion is too much, the error says what it needs, what there is, and what can be done."""
    with pytest.raises(MemoryError, match="use a coarser connectome or raise --mem") as caught:
        plan_batches(7, FOOTPRINT, Resources(room_for(0), 3), batch_size=lesion_batch_size, keep_results=keep_results)
    needed = room_for(0) + 1 + (7 * 12 * 1009 if keep_results else 0)
    assert f"one lesion needs {format_bytes(needed)}, {format_bytes(room_for(0))} is available" in str(caught.value)


def test_results_that_do_not_fit_call_for_a_callback() -> None:
    """Where only keeping the results is too much, the error says so and names the callback."""
    with pytest.raises(MemoryError, match="batch_result_callback") as caught:
        plan_batches(1009, FOOTPRINT, Resources(room_for(1), 3), keep_results=True)
    assert f"{format_bytes(1009 * 12 * 1009)} of it would keep the results of all 1009 lesions" in str(caught.value)
    assert "--mem" not in str(caught.value)
    assert plan_batches(1009, FOOTPRINT, Resources(room_for(1), 3)).n_batches == 1009


def test_a_budget_leaves_room_for_a_plan() -> None:
    """What the process occupies now counts in the budget and in the plan's base alike."""
    budget = memory_budget()
    result = plan_batches(3, FOOTPRINT, Resources(budget.available_bytes, 1), occupied_bytes=resident_bytes())
    assert result.peak_bytes < budget.available_bytes
