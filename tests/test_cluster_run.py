"""Maps from a Dask cluster of real processes: the same with any number of workers, some lost, resumed or not."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from dask_cluster import DEADLINE_S, ROOT, Cluster, started, wait_until
from distributed import Client
from synthetic import (
    SPACE,
    box,
    make_mask,
    make_series,
    map_in_one_pass,
    write_connectome,
    write_connectome_folder,
    write_dataset,
    write_mask,
)

from bids_lacuna import FunctionalNetworkMapping, LesionData, batch_process
from bids_lacuna.cluster import ClusterPass, pool, reduction
from bids_lacuna.files import ChangedMeanwhile
from bids_lacuna.mapping.analysis import NoWorker
from bids_lacuna.runtime.plan import Resources

Array = np.ndarray

MASK = make_mask()
N_VOXELS = int(MASK.sum())
N_SUBJECTS = 83
NAME = "FunctionalNetworkMapping"
BOXES = [box((0, 0, 0)), box((1, 2, 3)), box((2, 4, 6), (3, 2, 2)), box((3, 5, 9), (2, 2, 1)), box((0, 5, 1))]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Start a Dask cluster for all tests; each test sets the number of workers."""
    with started(tmp_path_factory.mktemp("cluster"), "--host", "127.0.0.1") as one:
        yield one


@pytest.fixture(scope="module")
def connectome(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a connectome of eleven slices, the last one short; one subject has no signal in the first lesion."""
    series = make_series(N_VOXELS, [19] * N_SUBJECTS)
    series[21][:, BOXES[0][MASK] > 0] = 3
    return write_connectome_folder(tmp_path_factory.mktemp("connectome") / "study", series, MASK)


@pytest.fixture(scope="module")
def lesions(tmp_path_factory: pytest.TempPathFactory) -> list[LesionData]:
    """Write five masks."""
    folder = tmp_path_factory.mktemp("lesions")
    return [
        LesionData.from_nifti(write_mask(folder / f"{number}.nii.gz", voxels)) for number, voxels in enumerate(BOXES)
    ]


@pytest.fixture(scope="module")
def expected(connectome: Path, lesions: list[LesionData]) -> list[Array]:
    """Map without a cluster."""
    return numbers(batch_process(lesions, FunctionalNetworkMapping(connectome), n_threads=1, show_progress=False))


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster, connectome: Path, lesions: list[LesionData]) -> list[Array]:
    """Map on one worker."""
    return map_on(cluster.have(1), connectome, lesions)


def numbers(results: Sequence[LesionData]) -> list[Array]:
    """Return z, t and n of each lesion."""
    assert [lesion.error for lesion in results] == [None] * len(results)
    statistics = [lesion.results[NAME].statistics for lesion in results]
    return [array for each in statistics for array in (each.z, each.t, each.n)]


def same(ours: Sequence[Array], others: Sequence[Array]) -> bool:
    """Return whether arrays are bit-identical."""
    return all(np.array_equal(*pair, equal_nan=True) for pair in zip(ours, others, strict=True))


def map_on(
    client: Client, connectome: Path, lesions: Sequence[LesionData], on_subject: Callable[[], Any] = lambda: None
) -> list[Array]:
    """Map in one pass, and call a function after each connectome subject."""
    analysis = FunctionalNetworkMapping(connectome)
    pass_ = ClusterPass(analysis, client, Resources(2**40, 1))
    loaded = [analysis.load(lesion) for lesion in lesions]
    return numbers(map_in_one_pass(analysis, loaded, pass_=pass_, on_subject=on_subject))


def after(n_subjects: dict[int, Callable[[], Any]]) -> Callable[[], None]:
    """Return a callback that calls functions after some numbers of connectome subjects."""
    seen: list[None] = []

    def on_subject() -> None:
        seen.append(None)
        n_subjects.get(len(seen), lambda: None)()

    return on_subject


def test_any_number_of_workers_gives_the_same_bits(
    cluster: Cluster,
    connectome: Path,
    lesions: list[LesionData],
    undisturbed: list[Array],
    expected: list[Array],
) -> None:
    """One, two and three workers make bit-identical maps; without Dask, only rounding differs."""
    for n_workers in (2, 3):
        assert same(map_on(cluster.have(n_workers), connectome, lesions), undisturbed)
    for ours, without in zip(undisturbed, expected, strict=True):
        np.testing.assert_allclose(ours, without, rtol=1e-6)


def test_workers_killed_in_the_run_change_nothing(
    cluster: Cluster, connectome: Path, lesions: list[LesionData], undisturbed: list[Array]
) -> None:
    """When two of three workers are killed and a new one joins, each connectome subject still counts once."""
    client = cluster.have(3)
    counted: list[None] = []
    disturb = after({9: cluster.kill_one, 17: cluster.add_worker, 33: cluster.kill_one})
    assert same(map_on(client, connectome, lesions, lambda: (disturb(), counted.append(None))), undisturbed)
    assert len(counted) == N_SUBJECTS


def test_a_connectome_that_changes_on_the_workers(
    cluster: Cluster, connectome: Path, lesions: list[LesionData], tmp_path: Path
) -> None:
    """Workers notice that the connectome's file was replaced by another one of the same size: there is no map."""
    path = shutil.copytree(connectome, tmp_path / "study") / "part0.h5"
    other = tmp_path / "other.h5"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    other.write_bytes(content)
    os.utime(other, ns=(0, path.stat().st_mtime_ns))
    with pytest.raises(ChangedMeanwhile, match=rf"{path} has changed while it was in use \(it was replaced\)"):
        map_on(cluster.have(2), path.parent, lesions, after({9: lambda: other.replace(path)}))


def test_batches_with_a_callback(
    cluster: Cluster, connectome: Path, lesions: list[LesionData], expected: list[Array], tmp_path: Path
) -> None:
    """Several batches work, an unreadable mask affects no other lesion, and no checkpoint is left."""
    missing = LesionData.from_nifti(tmp_path / "missing.nii.gz")
    found: list[Array] = []
    results = batch_process(
        [lesions[0], missing, *lesions[1:]],
        FunctionalNetworkMapping(connectome),
        client=cluster.have(2),
        lesion_batch_size=2,
        batch_result_callback=lambda batch: found.extend(numbers(batch)),
        checkpoint_dir=tmp_path / "kept",
        checkpoint_minutes=0,
        show_progress=False,
    )
    assert [bool(lesion.error) for lesion in results] == [False, True, False, False, False, False]
    for ours, without in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, without, rtol=1e-5, atol=1e-6)
    assert not list((tmp_path / "kept").iterdir())


def test_moments_travel_in_blocks(
    cluster: Cluster,
    connectome: Path,
    lesions: list[LesionData],
    undisturbed: list[Array],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No message between workers is larger than a block, or one row; the block size changes no bit."""
    client = cluster.have(2)

    def largest(dask_worker: Any) -> int:
        return max((n for log in dask_worker.transfer_incoming_log for n in log["keys"].values()), default=0)

    def forget(dask_worker: Any) -> None:
        dask_worker.transfer_incoming_log.clear()

    client.run(forget)
    block_bytes = 3 * 16 * N_VOXELS
    monkeypatch.setattr(reduction, "BLOCK_BYTES", block_bytes)
    assert same(map_on(client, connectome, lesions), undisturbed)
    moved = max(client.run(largest).values())
    assert block_bytes / 2 <= moved <= block_bytes
    assert moved < 16 * N_VOXELS * len(BOXES)


def test_a_transfer_may_take_longer_than_a_poll(
    cluster: Cluster,
    connectome: Path,
    lesions: list[LesionData],
    undisturbed: list[Array],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Looking for workers meanwhile does not begin a slow transfer to the client anew."""
    client = cluster.have(1)
    monkeypatch.setattr(pool, "POLL_S", 1e-5)
    found: list[Array] = []
    thread = threading.Thread(target=lambda: found.extend(map_on(client, connectome, lesions)), daemon=True)
    thread.start()
    thread.join(DEADLINE_S)
    assert found
    assert same(found, undisturbed)


def test_a_worker_without_the_connectome_is_left_out(
    cluster: Cluster,
    connectome: Path,
    lesions: list[LesionData],
    undisturbed: list[Array],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A warning names each worker without the client's connectome, and it is left out; an error if all are."""
    # Each process has its own: those that run already have no connectome there.
    path = Path("/proc/self/cwd/study")
    monkeypatch.chdir(connectome.parent)
    (tmp_path / "study").mkdir()
    write_connectome(tmp_path / "study" / "part0.h5", make_series(N_VOXELS, [19] * 9, seed=9), MASK)
    cluster.have(1)
    cluster.add_worker(cwd=tmp_path)
    client = cluster.have(2)
    host = os.uname().nodename
    with pytest.raises(NoWorker, match=f"no Dask worker can map: .*{host}"):
        batch_process(lesions, FunctionalNetworkMapping(path), client=client, show_progress=False)
    cluster.add_worker(cwd=connectome.parent)
    client = cluster.have(3)
    caplog.clear()
    results = batch_process(lesions, FunctionalNetworkMapping(path), client=client, show_progress=False)
    assert f"{host} cannot open the connectome: {path} is another connectome than the client's" in caplog.text
    assert f"{host} cannot open the connectome" in caplog.text
    assert same(numbers(results), undisturbed)


def run_app(connectome: Path, folder: Path, *options: str) -> subprocess.Popen[str]:
    """Start the app on the five lesions."""
    names = [f"sub-{n:02}/anat/sub-{n:02}_space-{SPACE}_label-lesion_mask" for n in range(len(BOXES))]
    bids = write_dataset(folder / "bids", dict(zip(names, BOXES, strict=True)))
    # What is compiled is there, though it is looked for in the work folder.
    (folder / "work").mkdir(exist_ok=True)
    with suppress(FileExistsError):
        (folder / "work" / "numba").symlink_to(os.environ["NUMBA_CACHE_DIR"])
    command = [sys.executable, ROOT / "run.py", bids, folder / "out", "participant", "--connectome", connectome]
    command += ["--no-reports", "--checkpoint-minutes", "0.00001", "-w", folder / "work", *options]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def stop_workers(cluster: Cluster, folder: Path, running: subprocess.Popen[str]) -> None:
    """Stop the workers in the middle of a pass, once a new slice is saved."""
    before = set(folder.glob("work/checkpoints/*/*.slice"))

    def is_saved() -> bool:
        assert running.poll() is None, running.communicate()
        return bool(set(folder.glob("work/checkpoints/*/[!.]*.slice")) - before)

    wait_until(is_saved, every_s=0.002)
    for worker in cluster.workers:
        worker.send_signal(signal.SIGSTOP)


@pytest.mark.slow
def test_client_and_scheduler_may_go(
    cluster: Cluster, connectome: Path, undisturbed: list[Array], tmp_path: Path
) -> None:
    """A run resumes after its client and then its scheduler are killed, with bit-identical maps."""
    cluster.have(2)
    killed = run_app(connectome, tmp_path, "--dask-scheduler", str(cluster.file))
    stop_workers(cluster, tmp_path, killed)
    killed.kill()
    killed.communicate(timeout=DEADLINE_S)
    cluster.have(0)

    with started(tmp_path, "--host", "127.0.0.1") as other:
        other.have(1)
        alone = run_app(connectome, tmp_path, "--dask-scheduler", str(other.file))
        stop_workers(other, tmp_path, alone)
        other.scheduler.kill()
        _, said = alone.communicate(timeout=180)
    assert alone.returncode == 75, said
    assert said.splitlines()[-1] == (
        "bids-lacuna: error: the Dask cluster cannot be reached; rerun the same command to resume "
        "(the Dask scheduler is gone)"
    )
    assert "Traceback" not in said
    assert "resuming from" in said
    assert not list(tmp_path.glob("out/sub-*/func/*"))
    (table,) = [table for table in tmp_path.glob("out/logs/*/lesions.tsv") if "was interrupted" in table.read_text()]
    assert table.read_text().count("not run") == len(BOXES)

    local = run_app(connectome, tmp_path, "--dask-workers", "2", "--nprocs", "2")
    _, said = local.communicate(timeout=180)
    assert local.returncode == 0, said
    assert "resuming from" in said
    assert "Dask dashboard: http" in said
    assert not list(tmp_path.glob("work/checkpoints/*/*"))
    for number in range(len(BOXES)):
        for stat, values in zip("zt", undisturbed[3 * number :], strict=False):
            (path,) = tmp_path.glob(f"out/sub-{number:02}/func/*stat-{stat}_*statmap.nii.gz")
            np.testing.assert_array_equal(nib.load(path).get_fdata(dtype=np.float32)[MASK], values)


def test_without_the_options_nothing_of_dask_is_imported() -> None:
    """Mapping without a Dask cluster does not import Dask."""
    code = (
        "import sys, bids_lacuna.batch, bids_lacuna.cli, bids_lacuna.derivatives.writer\n"
        "sys.exit(', '.join({'dask', 'distributed'} & set(sys.modules)) or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@contextmanager
def second_namespace() -> Iterator[tuple[str, str, str]]:
    """Make a network namespace with a link to it; yield its name, the link's name and the address on this side."""
    name, link = f"lacuna{os.getpid()}", f"lac{os.getpid() % 100_000}"
    network = f"10.211.{os.getpid() % 250}"
    made = [
        f"ip netns add {name}",
        f"ip link add {link} type veth peer name inside netns {name}",
        f"ip addr add {network}.1/24 dev {link}",
        f"ip link set {link} up",
        f"ip -n {name} addr add {network}.2/24 dev inside",
        f"ip -n {name} link set inside up",
        f"ip -n {name} link set lo up",
    ]
    try:
        for command in made:
            if (
                shutil.which("ip") is None
                or subprocess.run(command.split(), capture_output=True, check=False).returncode
            ):
                pytest.skip("no network namespace can be made here: it takes root and ip")
        yield name, link, f"{network}.1"
    finally:
        for command in (f"ip link del {link}", f"ip netns del {name}"):
            with suppress(OSError):
                subprocess.run(command.split(), capture_output=True, check=False)


@pytest.mark.slow
def test_workers_over_a_network_that_fails(
    connectome: Path, lesions: list[LesionData], undisturbed: list[Array], tmp_path: Path
) -> None:
    """A network link that is cut for ten seconds changes no bit."""
    with second_namespace() as (name, link, address), started(tmp_path, "--host", address) as cluster:
        cluster.add_worker(prefix=("ip", "netns", "exec", name))
        client = cluster.have(2)
        assert sorted(worker.split("/")[2].split(":")[0] for worker in client.nthreads()) == [
            address,
            address[:-1] + "2",
        ]
        start = time.monotonic()

        def cut_the_link() -> None:
            subprocess.run(["ip", "link", "set", link, "down"], check=True)
            threading.Timer(10, subprocess.run, [["ip", "link", "set", link, "up"]]).start()

        disturbed = map_on(client, connectome, lesions, after({9: cut_the_link}))
        assert time.monotonic() - start > 10
    assert same(disturbed, undisturbed)
