"""Downloads: every byte once, whatever breaks, and the token with its server alone."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import random
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from dataverse import DOI, TOKEN, Dataverse, serving
from program import CONNECTOME_PROGRAM, Ended, capture, last_line, wait_until

from bids_lacuna import cli
from bids_lacuna.connectome import exclusive
from bids_lacuna.connectome.fetch import client, dataverse, download, folder, jobs
from bids_lacuna.runtime.progress import Progress

RNG = np.random.default_rng(5)

FILES = {name: RNG.bytes(size) for name, size in {"a/1.tar": 900_001, "a/2.tar": 700_003, "read me.txt": 17}.items()}


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait between attempts."""
    monkeypatch.setattr(client, "FIRST_PAUSE_S", 0.001)


@pytest.fixture
def server() -> Iterator[Dataverse]:
    """Serve three files."""
    with serving(FILES) as dataverse:
        yield dataverse


def fetch(server: Dataverse, out: Path, *options: object, doi: str = DOI, token: str | None = TOKEN) -> Ended:
    """Fetch from the server, with the token in a file beside the output, as an editor writes it."""
    command = ["fetch", doi, out, "--server", server.address, "--accept-terms"]
    if token is not None:
        file = out.with_name("token")
        file.write_text(f"{token}\n", encoding="utf-8")
        command += ["--token-file", file]
    return capture(cli.connectome_main, *command, *options)


def contents(out: Path) -> dict[str, bytes]:
    """Return the files of a download, without its records."""
    paths = (path for path in out.rglob("*") if path.is_file() and folder.RECORDS not in path.parts)
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in paths}


def test_every_byte_comes_once(server: Dataverse, tmp_path: Path) -> None:
    """The files arrive whole, and a second run asks for none of them."""
    out = tmp_path / "out"
    ended = fetch(server, out)
    assert ended.returncode == 0, ended.stderr
    assert contents(out) == FILES
    assert server.sent == {name: len(content) for name, content in FILES.items()}
    assert "Be kind & cite." in ended.stdout
    assert 'Please cite: Doe, J., 2026, "Made-up connectome", https://doi.org/10.5072, V1' in ended.stdout
    assert "fetching 0 of 3 files" in fetch(server, out).stderr
    assert sum(server.sent.values()) == sum(map(len, FILES.values()))


def test_the_token_goes_to_the_server_alone(server: Dataverse, tmp_path: Path) -> None:
    """The storage never gets the token; no file, no log and no message has it, nor has a child's environment."""
    server.faults["a/1.tar"] = ["cut 300000", "503", "wrong"]
    ended = fetch(server, tmp_path / "out", "-vv")
    assert ended.returncode == 0
    assert all(headers["X-Dataverse-key"] == TOKEN for headers in server.requests_of("api"))
    stored = server.requests_of("storage")
    assert len(stored) >= 5
    assert not any("X-Dataverse-key" in headers or "Authorization" in headers for headers in stored)
    written = [path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(written) > 6
    assert not any(TOKEN.encode() in content for content in written)
    assert TOKEN not in ended.stdout + ended.stderr
    assert "Signature" not in ended.stderr


def test_no_proxy_reads_the_token(server: Dataverse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unencrypted token goes to this machine's server directly; the storage is asked through the proxy."""
    monkeypatch.setattr(download, "N_ATTEMPTS", 1)
    for variable in ("http_proxy", "all_proxy"):
        monkeypatch.setenv(variable, server.storage)
    for variable in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    assert fetch(server, tmp_path / "out").returncode == 75
    assert len(server.requests_of("api")) >= 4
    proxied = server.requests_of("storage", "http://")
    assert proxied
    assert not any("X-Dataverse-key" in headers for headers in proxied)


def test_the_refusal_of_a_proxy(server: Dataverse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The words of a proxy that refuses to connect are shown."""
    monkeypatch.setenv("https_proxy", server.storage)
    for variable in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    ended = fetch(server, tmp_path / "out", "--server", "https://dataverse.invalid")
    assert ended.returncode == 75
    assert "dataverse.invalid failed (Tunnel connection failed: 501 Unsupported" in last_line(ended.stderr)


def test_the_token_in_the_environment(
    server: Dataverse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The variable is taken; processes that are started meanwhile do not inherit it, and logs leave it out."""
    from bids_lacuna.app import fetch as app
    from bids_lacuna.runtime import logs

    seen = []
    read = app.read_dataset
    monkeypatch.setattr(app, "read_dataset", lambda *given: seen.append(dict(os.environ)) or read(*given))
    monkeypatch.setenv("BIDS_LACUNA_DATAVERSE_TOKEN", TOKEN)
    assert fetch(server, tmp_path / "out", token=None).returncode == 0
    assert "BIDS_LACUNA_DATAVERSE_TOKEN" not in seen[0]
    assert os.environ["BIDS_LACUNA_DATAVERSE_TOKEN"] == TOKEN
    monkeypatch.setenv("BIDS_LACUNA_CONTAINER_TYPE", "docker")
    with caplog.at_level(logging.DEBUG, "bids_lacuna"), logs.kept_in(tmp_path / "logs"):
        pass
    log = (tmp_path / "logs" / logs.LOG_FILE).read_text()
    assert "BIDS_LACUNA_CONTAINER_TYPE=docker" in log
    assert TOKEN not in log + caplog.text


@pytest.mark.parametrize(
    ("faults", "n_storage", "n_sent"),
    [
        (["cut 600000"], 2, 900_001),
        (["reset", "cut 1", "", ""], 3, 900_001),
        (["503", "429", "500", "403"], 5, 900_001),
        (["cut 600000", "whole"], 2, 600_000 + 900_001),
        (["wrong"], 2, 2 * 900_001),
        (["cut 600000", "cut 250000", "403", "cut 4"], 5, 900_001),
    ],
)
def test_what_breaks_is_resumed(
    server: Dataverse, tmp_path: Path, faults: list[str], n_storage: int, n_sent: int
) -> None:
    """A broken download resumes where it was, by a new address from the server; damage is fetched once more."""
    server.faults["a/1.tar"] = list(faults)
    ended = fetch(server, tmp_path / "out", "--files", "a/*", "--jobs", 1)
    assert ended.returncode == 0, ended.stderr
    assert contents(tmp_path / "out") == {name: FILES[name] for name in ("a/1.tar", "a/2.tar")}
    # Up to a chunk is lost with a connection.
    lost = client.CHUNK_BYTES * sum(fault.startswith("cut") for fault in faults)
    assert n_sent <= server.sent["a/1.tar"] <= n_sent + lost
    assert len(server.requests_of("storage", "/7?")) == n_storage
    assert len(server.requests_of("api", "/datafile/7")) == n_storage


def test_a_part_is_resumed_by_the_next_run(server: Dataverse, tmp_path: Path) -> None:
    """The next run reads the part on the disk, and asks for the rest; a damaged part is found and replaced."""
    out = tmp_path / "out"
    (out / "a").mkdir(parents=True)
    (out / "a" / "1.tar.part").write_bytes(FILES["a/1.tar"][:800_000])
    (out / "a" / "2.tar.part").write_bytes(FILES["a/2.tar"][:500_000][::-1])
    (out / "read me.txt.part").write_bytes(bytes(18))
    assert fetch(server, out).returncode == 0
    assert contents(out) == FILES
    assert server.sent == {"a/1.tar": 100_001, "a/2.tar": 200_003 + 700_003, "read me.txt": 17}
    assert [headers.get("Range") for headers in server.requests_of("storage", "/7?")] == ["bytes=800000-"]


def test_pauses_are_as_long_as_the_server_asks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Retry-After decides over the program's own pauses, which double."""
    pauses: list[float] = []

    class Stopped:
        def wait(self, pause_s: float) -> bool:
            pauses.append(pause_s)
            return False

    monkeypatch.setattr(client, "FIRST_PAUSE_S", 1.0)
    patience = client.Patience(10, Stopped())  # type: ignore[arg-type]
    for asked in (None, None, 7.0, None):
        patience.wait(client.Later("no", asked), "it")
    patience.reset()
    patience.wait(client.Later("no"), "it")
    assert pauses == [1, 2, 7, 8, 1]
    patience.reset()
    for _ in range(9):
        patience.wait(client.Later("no"), "it")
    with pytest.raises(client.Unreachable, match="no, after 10 attempts"):
        patience.wait(client.Later("no"), "it")
    assert pauses[5:] == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_the_next_file_waits_for_the_use_of_the_last(server: Dataverse, tmp_path: Path) -> None:
    """With one job, the next file is not asked for while the last one is in use."""
    access = client.Server(server.address, TOKEN)
    with closing(client.Client(access)) as each:
        files = dataverse.read_dataset(each, DOI).files
    with Progress(sum(file.n_bytes for file in files), "fetching", "B", shown=False) as progress:
        fetched = jobs.fetch_files(access, files, folder.Folder(tmp_path), 1, progress)
        for n, file in enumerate(fetched, start=1):
            assert (tmp_path / file.path).read_bytes() == FILES[file.path]
            assert len(server.requests_of("storage")) == n
        assert progress.n == progress.total


def test_the_original_of_a_tabular_file(server: Dataverse, tmp_path: Path) -> None:
    """Of a file that the server has converted, the original is fetched, by its own name, size and checksum."""
    server.files[2].path = "subjects.tab"
    server.files[2].listed = {
        "originalFileFormat": "text/csv",
        "originalFileName": "subjects.csv",
        "originalFileSize": 17,
        "filesize": 23,
    }
    assert fetch(server, tmp_path / "out", "--files", "*.csv").returncode == 0
    assert contents(tmp_path / "out") == {"subjects.csv": FILES["read me.txt"]}
    assert [path for _, path, _ in server.requests if "/datafile/9" in path] == [
        "/api/access/datafile/9?format=original"
    ]


def test_files_that_are_there(server: Dataverse, tmp_path: Path) -> None:
    """A file that was downloaded otherwise is verified and kept; one with other bytes is left alone."""
    out = tmp_path / "out"
    (out / "a").mkdir(parents=True)
    for name in ("a/1.tar", "a/2.tar"):
        (out / name).write_bytes(FILES[name])
    assert fetch(server, out).returncode == 0
    assert server.sent == {"read me.txt": 17}
    for name, other in (("a/2.tar", FILES["a/2.tar"][::-1]), ("read me.txt", b"mine")):
        (out / name).write_bytes(other)
        ended = fetch(server, out, "--files", name)
        assert ended.returncode == 73
        assert f"{name} is not the dataset's file of that name" in last_line(ended.stderr)
        assert (out / name).read_bytes() == other


def test_another_version(server: Dataverse, tmp_path: Path) -> None:
    """A download of a version that has been replaced, or of another dataset, is not mixed with this one."""
    out = tmp_path / "out"
    assert fetch(server, out, "--files", "read*").returncode == 0
    server.version["versionMinorNumber"] = 1
    ended = fetch(server, out)
    assert ended.returncode == 73
    assert "was begun with version 1.0" in last_line(ended.stderr)
    assert "has version 1.1 now" in last_line(ended.stderr)
    with serving(FILES) as other:
        ended = fetch(other, out)
    assert ended.returncode == 73
    assert f"holds {DOI} of {server.address}, not" in last_line(ended.stderr)
    assert server.sent == {"read me.txt": 17}


def test_one_bad_file_does_not_stop_the_others(server: Dataverse, tmp_path: Path) -> None:
    """A file that is wrong twice fails with both checksums; the others arrive, and nothing of it stays."""
    server.faults["a/1.tar"] = ["wrong", "wrong"]
    ended = fetch(server, tmp_path / "out", "--jobs", 1)
    assert ended.returncode == 65
    assert "1 of 3 files could not be fetched, the first: a/1.tar was received twice" in last_line(ended.stderr)
    assert hashlib.md5(FILES["a/1.tar"]).hexdigest() in last_line(ended.stderr)
    assert contents(tmp_path / "out") == {name: FILES[name] for name in ("a/2.tar", "read me.txt")}


@pytest.mark.parametrize(
    ("faults", "status", "words"),
    [
        (["page"], 65, "answers with a web page in place of a/1.tar (200), perhaps a login, a guestbook"),
        (["longer"], 65, "the server sends 900002 bytes of a/1.tar, its list has 900001"),
        (["cut 5", "longer"], 65, "its list has 900001"),
        (["404"], 65, "does not have a/1.tar as listed (404)"),
        (["503"] * 3, 75, "answers 503 Service Unavailable, after 3 attempts; check the network"),
        (["reset"] * 3, 75, "failed (Connection reset by peer), after 3 attempts"),
        (["cut 0"] * 3, 75, "failed (it ended early), after 3 attempts"),
        (["chunk"] * 3, 75, "failed (it ended early), after 3 attempts"),
    ],
)
def test_answers_that_are_no_file(
    server: Dataverse,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    faults: list[str],
    status: int,
    words: str,
) -> None:
    """Whatever else the storage answers ends in a sentence and its exit status, and is not taken for the file."""
    monkeypatch.setattr(download, "N_ATTEMPTS", 3)
    server.faults["a/1.tar"] = faults
    ended = fetch(server, tmp_path / "out", "--files", "1.tar")
    assert ended.returncode == status
    assert words in last_line(ended.stderr)
    assert "a/1.tar" not in contents(tmp_path / "out")


@pytest.mark.parametrize(
    ("faults", "status", "words"),
    [
        (["page"], 65, f"answers with a web page in place of dataset {DOI} (200)"),
        (["", "page"], 65, f"in place of list of files of {DOI}"),
        (["503", "reset", "503"], 75, "after 3 attempts"),
        (["400"], 65, "in place of dataset doi:10.5072/FK2/LACUNA (400, Bad Request), perhaps"),
        (["", "empty"], 65, "in a way that is not understood"),
        (["", "", "empty"], 65, "in a way that is not understood (KeyError('message'))"),
    ],
)
def test_answers_that_are_no_dataset(
    server: Dataverse, tmp_path: Path, faults: list[str], status: int, words: str
) -> None:
    """A page where JSON is needed, or a server that is down, ends in a sentence, and leaves no folder."""
    server.api_faults = faults
    ended = fetch(server, tmp_path / "out")
    assert ended.returncode == status
    assert words in last_line(ended.stderr)
    assert not (tmp_path / "out").exists()


def test_access(server: Dataverse, tmp_path: Path) -> None:
    """Without a token, with a wrong one, and with a file that holds none, the message says how to get one."""
    out = tmp_path / "out"
    ended = fetch(server, out, "--files", "1.tar", token=None)
    assert ended.returncode == 66
    assert "refuses a/1.tar (403, You do not have permission" in last_line(ended.stderr)
    assert "it needs a token" in last_line(ended.stderr)
    for token, status, words in (
        ("f00d-of-another-server", 66, "(401, Bad API key …): check that the token"),
        ("", 64, "holds no token"),
        ("two words", 64, "holds no token"),
        ("töken", 64, "holds no token"),
    ):
        ended = fetch(server, out, token=token)
        assert ended.returncode == status
        assert words in last_line(ended.stderr)
        assert not token or token not in ended.stderr
    ended = fetch(server, out, "--token-file", tmp_path / "nowhere")
    assert ended.returncode == 66
    assert f"the token file {tmp_path / 'nowhere'} cannot be read" in last_line(ended.stderr)
    server.restricted = True
    n_before = len(server.requests_of("api", "datafile"))
    ended = fetch(server, out, token=None)
    assert ended.returncode == 66
    assert "are restricted, which needs a token" in last_line(ended.stderr)
    assert len(server.requests_of("api", "datafile")) == n_before


def test_a_public_dataset_needs_no_token(tmp_path: Path) -> None:
    """Public files are fetched without a token."""
    with serving({"mask.nii.gz": b"public"}, token=None) as server:
        assert fetch(server, tmp_path / "out", token=None).returncode == 0
    assert contents(tmp_path / "out") == {"mask.nii.gz": b"public"}


def test_mistakes(server: Dataverse, tmp_path: Path) -> None:
    """Each mistake of the command line ends in one sentence and its exit status, and leaves no folder."""
    out = tmp_path / "out"
    for ended, status, words in (
        (
            fetch(server, out, doi="doi:10.5072/FK2/NOWHERE"),
            66,
            "has no dataset doi:10.5072/FK2/NOWHERE (Dataset with",
        ),
        (
            fetch(server, out, doi="https://doi.org/10.5072/FK2/ELSEWHERE"),
            66,
            "has no dataset doi:10.5072/FK2/ELSEWHERE (",
        ),
        (fetch(server, out, doi="gsp2000"), 64, "'gsp2000' is neither gsp1000 nor a DOI"),
        (fetch(server, out, "--server", "http://127.0.0.1:1"), 75, "127.0.0.1:1 failed (Connection refused)"),
        (fetch(server, out, "--server", "http://nowhere.invalid", doi="gsp1000"), 64, "send the token unencrypted"),
        (fetch(server, out, "--server", "dataverse.harvard.edu"), 64, "is not an address as in https://"),
        (
            fetch(server, out, "--files", "*.zip", "b/*"),
            18,
            "none of the 3 files of doi:10.5072/FK2/LACUNA matches *.zip",
        ),
    ):
        assert ended.returncode == status, ended.stderr
        assert words in last_line(ended.stderr)
        assert not out.exists()
    for path, words in (
        ("../elsewhere/1.tar", "'../elsewhere/1.tar', which would be written elsewhere"),
        (".", "'.', which would be written elsewhere"),
        ("a/2.tar.part", "a/2.tar.part of doi:10.5072/FK2/LACUNA would be written where a/2.tar must be"),
        ("read me.txt/1.tar", "would be written where read me.txt must be"),
        (".fetch/dataset.json", "would be written where the records of the download must be"),
    ):
        server.files[0].path = path
        ended = fetch(server, out)
        assert ended.returncode == 65
        assert words in last_line(ended.stderr)
        assert not out.exists()
    (tmp_path / "file").write_text("no folder")
    server.files[0].path = "1.tar"
    ended = fetch(server, tmp_path / "file")
    assert ended.returncode == 73
    assert f"the folder {tmp_path / 'file'} cannot be created (Not a directory)" in last_line(ended.stderr)


def test_terms_must_be_accepted(server: Dataverse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is fetched before the terms are accepted, once for a folder: by an option, or on the terminal."""
    (tmp_path / "token").write_text(TOKEN)
    out = tmp_path / "out"
    command = [cli.connectome_main, "fetch", DOI, out, "--server", server.address, "--files", "read*"]
    command += ["--token-file", tmp_path / "token"]

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for stdin, words in ((io.StringIO("yes\n"), "with --accept-terms"), (Terminal("no\n"), "were not accepted")):
        monkeypatch.setattr(sys, "stdin", stdin)
        ended = capture(*command)
        assert ended.returncode == 64
        assert words in last_line(ended.stderr)
        assert "Terms of use: Be kind & cite." in ended.stdout
        assert not out.exists()
    assert not server.sent
    monkeypatch.setattr(sys, "stdin", Terminal("yes\n"))
    ended = capture(*command)
    assert ended.returncode == 0
    assert ended.stdout.endswith("Do you accept these terms? [yes/no] ")
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert capture(*command).returncode == 0


def test_disks_that_are_too_small(server: Dataverse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Space is checked before the download, less what has been received; a disk that fills meanwhile is named."""
    out = tmp_path / "out"
    (out / "a").mkdir(parents=True)
    (out / "a" / "1.tar.part").write_bytes(FILES["a/1.tar"][:800_000])
    needed = sum(map(len, FILES.values())) - 800_000
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed - 1))
    ended = fetch(server, out)
    assert ended.returncode == 73
    assert f"the download needs {needed} B more" in last_line(ended.stderr)
    assert not server.sent
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (850_000, limits[1]))
    try:
        ended = fetch(server, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert ended.returncode == 74
    assert f"cannot be written to {out} (File too large): free some space" in last_line(ended.stderr)
    assert (out / "a" / "1.tar.part").read_bytes() == FILES["a/1.tar"][:850_000]
    assert fetch(server, out).returncode == 0
    assert contents(out) == FILES


def test_one_download_at_a_time(server: Dataverse, tmp_path: Path) -> None:
    """A folder that another process fetches into is left to it."""
    with exclusive.locked(tmp_path / "out", folder.RECORDS, "the folder", "fetching into"):
        ended = fetch(server, tmp_path / "out")
        assert ended.returncode == 73
        assert "another process is fetching into the folder" in last_line(ended.stderr)


def size_on_disk(out: Path) -> int:
    """Return the bytes of all files and parts of a download."""
    paths = (path for path in out.rglob("*") if folder.RECORDS not in path.parts and path.is_file())
    return sum(path.stat().st_size for path in paths)


def kill_and_resume(tmp_path: Path, server: Dataverse, n_kills: int, n_cuts: int) -> dict[str, int]:
    """Kill a download at random moments, cut connections, then let it end; check that no byte is fetched again.

    Returns
    -------
    dict
        Bytes: of all files, sent in all, and lost on their way to a killed program and on broken connections.
    """
    moments, out = random.Random(31), tmp_path / "out"
    (tmp_path / "token").write_text(TOKEN)
    command = ["fetch", DOI, out, "--server", server.address, "--accept-terms", "--token-file", tmp_path / "token"]
    total = sum(file.n_bytes for file in server.files)
    cuts = [moments.randrange(server.files[0].n_bytes) for _ in range(n_cuts)]
    server.cut = lambda: cuts.pop() if cuts and moments.random() < 0.2 else None
    sent, held = [0], [0]
    for threshold in sorted(moments.uniform(0.1, 0.9) * total for _ in range(n_kills)):
        with subprocess.Popen(
            [*CONNECTOME_PROGRAM, *command], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
        ) as run:
            wait_until(lambda least=threshold: server.n_sent >= least)
            listed = subprocess.run(["ps", "-ww", "-o", "args=", "-p", str(run.pid)], capture_output=True, text=True)
            run.kill()
        assert "--token-file" in listed.stdout
        assert TOKEN not in listed.stdout
        wait_until(lambda: not server.n_active)
        sent.append(server.n_sent)
        held.append(size_on_disk(out))
    ended = capture(cli.connectome_main, *command)
    assert ended.returncode == 0, ended.stderr
    assert not cuts
    for file in server.files:
        digest = hashlib.md5((out / file.path).read_bytes())
        assert digest.hexdigest() == file.describe()["dataFile"]["checksum"]["value"]
    assert not any(TOKEN.encode() in path.read_bytes() for path in (out / folder.RECORDS).iterdir())
    # The last run got what the disk did not hold, and what a broken connection lost.
    lost_in_kills = sum(s1 - s0 - (h1 - h0) for s0, s1, h0, h1 in zip(sent, sent[1:], held, held[1:], strict=False))
    return {"total": total, "sent": server.n_sent, "lost": server.n_sent - total, "before": lost_in_kills}


def test_a_killed_download_resumes(tmp_path: Path) -> None:
    """A download that is killed resumes with the bytes that it had."""
    with serving({f"{n}.tar": RNG.bytes(8_000_000) for n in range(6)}) as server:
        moved = kill_and_resume(tmp_path, server, 1, 0)
    # What the next run asked for is what the disk did not hold.
    assert moved["lost"] == moved["before"]


@pytest.mark.slow
def test_a_download_that_is_killed_often(tmp_path: Path) -> None:
    """After five kills and two broken connections files are right, and only what was on its way is lost."""
    with serving({f"{n}.tar": RNG.bytes(5_000_000) for n in range(40)}) as server:
        moved = kill_and_resume(tmp_path, server, 5, 2)
    # The system's buffers of a connection have up to 6 MiB on each side.
    assert moved["lost"] <= 0.05 * moved["total"] + moved["before"] + 2 * 12 * 2**20
