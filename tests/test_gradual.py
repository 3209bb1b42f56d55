"""Stores of archives that come one after another: the same bytes as a build of the unpacked files."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import synthetic
import test_build
from dataverse import DOI, TOKEN, Dataverse, serving
from program import Ended, capture, last_line

from bids_lacuna import cli
from bids_lacuna.connectome import gradual
from bids_lacuna.connectome.fetch import client, download
from bids_lacuna.connectome.importers import archive, nifti

OPTIONS = ("--space", synthetic.SPACE, "--name", "five", "--nprocs", 1)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait between attempts."""
    monkeypatch.setattr(client, "FIRST_PAUSE_S", 0.001)


def pack(path: Path, folder: Path, top: str, *subjects: str) -> Path:
    """Pack subjects into an archive, in a folder of it, with what else such archives hold."""
    with tarfile.open(path, "w") as tar:
        for file in sorted(folder.rglob("*"), reverse=True):
            if file.parts[len(folder.parts)] in subjects:
                tar.add(file, f"{top}/{file.relative_to(folder).as_posix()}", recursive=False)
        tar.add(Path(__file__), f"{top}/README.txt")
    return path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write five subjects with up to two runs, their archives, and the store of the unpacked files."""
    place = tmp_path_factory.mktemp("built")
    test_build.write_nifti(place / "source", synthetic.RADIOLOGICAL)
    command = ["build", place / "source", place / "store", *OPTIONS, "--mask", place / "brain.nii.gz"]
    assert capture(cli.connectome_main, *command).returncode == 0
    pack(place / "1.tar", place / "source", ".", "sub-0005", "sub-0002")
    pack(place / "2.tar", place / "source", "GSP/1000", "sub-0001", "sub-0003", "sub-0004")
    return place


@pytest.fixture
def server(built: Path) -> Iterator[Dataverse]:
    """Serve the archives and the brain mask."""
    files = {"1.tar": built / "1.tar", "2.tar": built / "2.tar", "masks/brain.nii.gz": built / "brain.nii.gz"}
    with serving(files) as dataverse:
        yield dataverse


def fetch(server: Dataverse, place: Path, *options: object, mask: object = "brain.nii.gz") -> Ended:
    """Fetch the archives into a store."""
    (place / "token").write_text(TOKEN)
    command = ["fetch", DOI, place / "out", "--server", server.address, "--accept-terms", "--token-file"]
    command += [place / "token", "--build", place / "store", *OPTIONS, "--mask", mask, "--jobs", 1, *options]
    return capture(cli.connectome_main, *command)


def test_the_store_is_that_of_the_unpacked_files(server: Dataverse, built: Path, tmp_path: Path) -> None:
    """Two archives, whose files lie in different folders, give the store of a build, to the bit; only it stays."""
    ended = fetch(server, tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert test_build.contents(tmp_path / "store") == test_build.contents(built / "store")
    assert [path.name for path in (tmp_path / "out").rglob("*.*") if path.suffix in (".tar", ".part", ".gz")] == [
        "brain.nii.gz"
    ]
    # The mask decides the grid: it comes before the archives.
    order = [path.partition("?")[0] for host, path, _ in server.requests if host == "storage"]
    assert order == ["/bucket/9", "/bucket/7", "/bucket/8"]
    n_sent = server.n_sent
    ended = fetch(server, tmp_path)
    assert ended.returncode == 0
    assert "already finished: nothing to do" in ended.stderr
    assert server.n_sent == n_sent
    ended = fetch(server, tmp_path, "--dtype", "float32")
    assert ended.returncode == 73
    assert "holds a finished store" in last_line(ended.stderr)


def test_an_interrupted_build_resumes(
    server: Dataverse, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is in the store is not fetched again, nor are subjects of a half converted archive written again."""
    monkeypatch.setattr(download, "N_ATTEMPTS", 2)
    server.faults["2.tar"] = ["cut 100", "503", "503"]
    mask = built / "brain.nii.gz"
    ended = fetch(server, tmp_path, mask=mask)
    assert ended.returncode == 75
    assert not (tmp_path / "out" / "1.tar").exists()
    assert (tmp_path / "out" / "2.tar.part").exists()
    shutil.copy(built / "2.tar", tmp_path / "whole.tar")
    wanted = gradual.Wanted(
        tmp_path / "store", "five", synthetic.SPACE, nifti.read_grid(mask), "int16", "auto", 1e-5, nifti.PATTERN
    )
    with gradual.building(wanted) as build:
        build._convert(archive.open_archive(tmp_path / "whole.tar", nifti.PATTERN)[1:2], 1, 2**30)
    # As after a kill.
    (tmp_path / "store" / ".building" / "unpacked-x").mkdir()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "store").glob("sub-*.npy")}
    assert {path.name[:8] for path in before} == {"sub-0002", "sub-0003", "sub-0005"}
    ended = fetch(server, tmp_path, mask=mask)
    assert ended.returncode == 0, ended.stderr
    assert "1 of 2 archives are in the store" in ended.stderr
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert test_build.contents(tmp_path / "store") == test_build.contents(built / "store")
    # Up to a chunk is lost with the connection.
    assert server.n_sent <= sum((built / name).stat().st_size for name in ("1.tar", "2.tar")) + client.CHUNK_BYTES


def test_archives_that_cannot_be_used(server: Dataverse, tmp_path: Path) -> None:
    """Mistakes and archives that hold something else end in a sentence and its exit status, without a store."""
    for options, status, words in (
        (["--mask", "nowhere.nii.gz"], 66, "there is no brain mask at nowhere.nii.gz"),
        (["--files", "masks/*"], 18, "has no archive among them"),
        (["--pattern", "sub-*/anat/*"], 18, "1.tar matches sub-*/anat/*: name the series with --pattern"),
        (["--rank", "full", "--rank-tolerance", "1e-4"], 64, "--rank-tolerance is only for"),
        (["--space", "T1w"], 64, "a participant's own space"),
    ):
        ended = fetch(server, tmp_path, *options)
        assert ended.returncode == status, ended.stderr
        assert words in last_line(ended.stderr)
        shutil.rmtree(tmp_path / "store", ignore_errors=True)
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
    server.files[0].path = "1.tar.gz"
    ended = fetch(server, tmp_path)
    assert ended.returncode == 18
    assert "1.tar.gz is compressed" in last_line(ended.stderr)
    shutil.rmtree(tmp_path / "out")
    server.files[0].path = "1.tar"
    server.files[0].content = b"not a tar archive" * 99
    ended = fetch(server, tmp_path)
    assert ended.returncode == 65
    assert "1.tar cannot be read as a tar archive" in last_line(ended.stderr)
    assert not (tmp_path / "store" / "connectome.json").exists()


def test_options_without_a_store(capsys: pytest.CaptureFixture[str]) -> None:
    """Options of the store need --build, which needs them; those of GSP1000 are known."""
    for options, words in (
        (["doi:10.5072/X", "out", "--mask", "m.nii.gz"], "--mask is only for --build STORE"),
        (["gsp1000", "out", "--pattern", "*.nii"], "--pattern is only for --build STORE"),
        (["gsp1000", "out", "--rank-tolerance", "1e-4"], "--rank-tolerance is only for --build STORE"),
        (["gsp1000", "out", "--summarize"], "--summarize is only for --build STORE"),
        (["doi:10.5072/X", "out", "--build", "store", "--name", "x"], "--build needs --space"),
        (["gsp1000", "out", "--build", "store"], "--build needs --mask"),
    ):
        assert cli.connectome_main(["fetch", *options]) == 64
        assert words in last_line(capsys.readouterr().err)


def test_damaged_and_divided_subjects(server: Dataverse, built: Path, tmp_path: Path) -> None:
    """A series that cannot be read is named by its path; without its archive, the store has the others' subjects.

    A subject of two archives is named, too.
    """
    source = shutil.copytree(built / "source", tmp_path / "source")
    damaged = source / "sub-0005" / "func" / "sub-0005_bld2_rest_skip4_finalmask.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:-900])
    server.files[0].content = pack(tmp_path / "1.tar", source, "top", "sub-0002", "sub-0005")
    ended = fetch(server, tmp_path)
    assert ended.returncode == 65
    assert f"{tmp_path / 'out' / '1.tar'}/sub-0005/func/{damaged.name} cannot be read" in last_line(ended.stderr)
    assert "unpacked-" not in last_line(ended.stderr)
    assert (tmp_path / "store" / "sub-0002_timeseries.npy").exists()
    ended = fetch(server, tmp_path, "--files", "2.tar")
    assert ended.returncode == 0, ended.stderr
    assert "the store has 3 subjects" in ended.stderr
    subjects = {path.name[:8] for path in (tmp_path / "store").glob("sub-*.npy")}
    assert subjects == {"sub-0001", "sub-0003", "sub-0004"}
    (tmp_path / "again").mkdir()
    second = source / "sub-0002" / "func" / "sub-0002_bld10_rest_skip4_finalmask.nii.gz"
    shutil.copy(source / "sub-0001" / "func" / "sub-0001_bld2_rest_skip4_finalmask.nii.gz", second)
    server.files[0].content = built / "1.tar"
    server.files[1].content = pack(tmp_path / "2.tar", source, ".", "sub-0001", "sub-0002")
    ended = fetch(server, tmp_path / "again")
    assert ended.returncode == 65
    assert "sub-0002 is in" in last_line(ended.stderr)
    assert "2.tar and in another archive" in last_line(ended.stderr)


@pytest.mark.parametrize(
    "pattern",
    ["*.nii", "sub-*/*.nii", "**/*.nii", "sub-1/**/a*", "s?b-[12]/func/*", "sub-*/func/.*", "*/func/**/*.nii"],
)
def test_patterns_are_those_of_the_file_system(tmp_path: Path, pattern: str) -> None:
    """A pattern takes the files of an archive that `build` would find after unpacking it."""
    paths = ["a.nii", "sub-1/a.nii", "sub-1/func/a.nii", "sub-2/func/b.nii", "sub-2/func/.c.nii", "sub-3/x/y/z.nii"]
    for path in paths:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    expected = [path for path in paths if tmp_path / path in nifti.find_files(tmp_path, pattern)]
    wanted = pattern.split("/")
    assert [path for path in paths if archive._matches(path.split("/"), wanted)] == expected


def test_what_archives_must_not_hold(tmp_path: Path) -> None:
    """Links, and paths that lead out of the folder, are refused; the last of two files of one path counts."""
    (tmp_path / "series.nii").write_bytes(b"series")
    for name, kind in (("sub-1/../../x.nii", tarfile.REGTYPE), ("sub-1/x.nii", tarfile.SYMTYPE)):
        with tarfile.open(tmp_path / "bad.tar", "w") as tar:
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, "/etc/passwd"
            tar.addfile(entry)
        with pytest.raises(ValueError, match=r"x\.nii.* is not a plain file"):
            archive.open_archive(tmp_path / "bad.tar", "**/x.nii")
    with tarfile.open(tmp_path / "twice.tar", "w") as tar:
        tar.add(Path(__file__), "sub-1.nii")
        tar.add(tmp_path / "series.nii", "sub-1.nii")
    (packed,) = archive.open_archive(tmp_path / "twice.tar", "*.nii")
    with packed.unpacked(tmp_path) as folder:
        assert (folder / "sub-1.nii").read_bytes() == b"series"
        assert (folder / "sub-1.nii").stat().st_mtime_ns // 10**9 == int((tmp_path / "series.nii").stat().st_mtime)
    assert not folder.exists()
