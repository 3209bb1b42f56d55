"""bids-lacuna-connectome fetch: a connectome from a Dataverse server."""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from bids_lacuna.app.command import Exit, Stop, ending
from bids_lacuna.app.connectome import check_rank, check_space, conclude, rank_of
from bids_lacuna.app.connectome_options import KEY_VARIABLE, PROGRAM
from bids_lacuna.connectome.compression import TOLERANCE
from bids_lacuna.connectome.exclusive import NoPlace, NoRoom, locked
from bids_lacuna.connectome.fetch.client import Client, Missing, Refused, Server, Unexpected, Unreachable
from bids_lacuna.connectome.fetch.dataverse import Dataset, RemoteFile, read_dataset
from bids_lacuna.connectome.fetch.download import DamagedFile, received_bytes
from bids_lacuna.connectome.fetch.folder import RECORDS, Folder, OtherDataset, select_files
from bids_lacuna.connectome.fetch.jobs import fetch_files
from bids_lacuna.connectome.gradual import GradualBuild, Wanted, building
from bids_lacuna.connectome.importers.archive import COMPRESSED, SUFFIX
from bids_lacuna.connectome.importers.nifti import PATTERN, read_grid
from bids_lacuna.connectome.importers.source import NothingMatches
from bids_lacuna.connectome.records import hash_settings
from bids_lacuna.connectome.store import DESCRIPTION
from bids_lacuna.connectome.workers import DamagedSource
from bids_lacuna.files import decode_text
from bids_lacuna.runtime.memory import available_cpus, memory_budget
from bids_lacuna.runtime.progress import Progress, above_the_bar
from bids_lacuna.text import format_bytes, one_line

logger = logging.getLogger("bids_lacuna")

DATASETS = {"gsp1000": "doi:10.7910/DVN/ILXIKS"}
"""Names of datasets."""

KNOWN = {"gsp1000": {"space": "MNI152NLin6Asym", "name": "GSP1000"}}
"""Options of `build` for these datasets."""

NEEDED = ("space", "name", "mask")
"""Options that a store needs."""

BUILD_OPTIONS = (*NEEDED, "pattern", "rank", "rank_tolerance", "nprocs", "summarize")
"""Options that have no use without a store. As a default, --dtype cannot be told from what the user gave."""

LOCAL = ("localhost", "127.0.0.1", "::1")
"""Hosts that a token reaches without a network."""

MOST_NAMED = 5
"""Files that a message names."""


def run_fetch(arguments: argparse.Namespace) -> Exit:
    """Fetch files of a dataset, or complete an unfinished download."""
    _check_build(arguments)
    doi = _find_doi(arguments.dataset)
    with _reading_token(arguments.token_file) as token:
        server = Server(arguments.server.rstrip("/"), token)
        _check_address(server)
        with _ending_with_the_server(), closing(Client(server)) as client:
            dataset = read_dataset(client, doi)
        files = _select(dataset, arguments.files, server)
        folder = Folder(arguments.folder)
        with (
            ending(Exit.CANNOT_CREATE, FileExistsError, NoPlace, NoRoom),
            locked(folder.path, RECORDS, "the folder", "fetching into"),
        ):
            with _ending_with_the_disk(folder), ending(Exit.BAD_DATA, ValueError):
                if not folder.check_dataset(dataset):
                    _accept(dataset, arguments.accept_terms)
                    folder.accept(dataset)
            if arguments.build:
                _build(server, dataset, files, folder, arguments)
            else:
                _fetch(server, files, folder, arguments)
    return Exit.OK


def _find_doi(dataset: str) -> str:
    """Return a dataset's DOI, given its name, its DOI or the DOI's address."""
    if dataset.lower() in DATASETS:
        return DATASETS[dataset.lower()]
    found = re.fullmatch(r"(?:doi:|https?://(?:dx\.)?doi\.org/)?(10\.\d+/\S+)", dataset, re.IGNORECASE)
    if not found:
        raise Stop(
            Exit.USAGE, f"{dataset!r} is neither {' nor '.join(DATASETS)} nor a DOI, as in {DATASETS['gsp1000']}"
        )
    return f"doi:{found[1]}"


def _fetch(server: Server, files: Sequence[RemoteFile], folder: Folder, arguments: argparse.Namespace) -> None:
    """Fetch the files that are missing."""
    with _ending_with_the_disk(folder):
        missing = [file for file in files if not folder.has(file)]
        n_bytes = sum(file.n_bytes for file in files)
        n_missing = sum(file.n_bytes - received_bytes(file, folder.path) for file in missing)
        folder.check_room(n_missing)
    logger.info(
        "fetching %d of %d files from %s, %s of %s",
        len(missing),
        len(files),
        server.host,
        format_bytes(n_missing),
        format_bytes(n_bytes),
    )
    with (
        above_the_bar(),
        _showing(n_bytes, n_missing, arguments) as progress,
        _ending_with_the_server(),
        _ending_with_the_disk(folder),
        closing(fetch_files(server, missing, folder, arguments.jobs, progress)) as fetched,
    ):
        for file in fetched:
            logger.debug("%s is whole", file.path)
    logger.info(
        "%s has all %d files: unpack its archives, and convert them with %s build %s STORE",
        folder.path,
        len(files),
        PROGRAM,
        folder.path,
    )


def _check_build(arguments: argparse.Namespace) -> None:
    """Complete the options of a store, and raise Stop where one is missing or has no use."""
    known = KNOWN.get(arguments.dataset.lower(), {}) if arguments.build else {}
    for option in BUILD_OPTIONS:
        if not arguments.build and getattr(arguments, option):
            raise Stop(Exit.USAGE, f"--{option.replace('_', '-')} is only for --build STORE")
    for option in NEEDED:
        value = getattr(arguments, option) or known.get(option)
        if arguments.build and not value:
            raise Stop(Exit.USAGE, f"--build needs --{option}")
        setattr(arguments, option, value)
    if arguments.build:
        check_rank(arguments)
        check_space(arguments.space)


def _build(
    server: Server, dataset: Dataset, files: Sequence[RemoteFile], folder: Folder, arguments: argparse.Namespace
) -> None:
    """Fetch archives, and build a store of each one as it comes."""
    archives = _select_archives(dataset, files)
    mask = _find_mask(server, dataset, folder, arguments)
    with ending(Exit.BAD_DATA, OSError, ValueError), ending(Exit.NO_INPUT, FileNotFoundError, PermissionError):
        grid, rank = read_grid(mask), arguments.rank or rank_of(arguments.build)
    wanted = Wanted(
        arguments.build,
        arguments.name,
        arguments.space,
        grid,
        arguments.dtype,
        rank,
        arguments.rank_tolerance or TOLERANCE,
        arguments.pattern or PATTERN,
    )
    description = {
        "store": str(arguments.build.resolve()),
        "wanted": [wanted.name, wanted.space, hash_settings(wanted.describe()), wanted.pattern],
        "archives": [file.checksum for file in archives],
    }
    if (arguments.build / DESCRIPTION).exists() and folder.has_built(description):
        logger.info("%s is already finished: nothing to do", arguments.build)
        return
    n_processes = min(arguments.nprocs or available_cpus(), available_cpus())
    available_bytes = memory_budget().available_bytes
    with _ending_with_the_store(arguments.build), building(wanted) as build:
        for file in _fetch_for(build, server, archives, folder, arguments):
            build.add(folder.path / file.path, file.checksum, n_processes, available_bytes)
            folder.drop(file)
        store = build.finish()
    folder.note_store(description)
    conclude(store, arguments)


def _fetch_for(
    build: GradualBuild, server: Server, archives: Sequence[RemoteFile], folder: Folder, arguments: argparse.Namespace
) -> Iterator[RemoteFile]:
    """Yield the archives that are not in the store yet: those that are here, then each one as it comes."""
    needed = [file for file in archives if not build.has(file.checksum)]
    for file in archives:
        if file not in needed:
            folder.drop(file)
    with _ending_with_the_disk(folder):
        here = [file for file in needed if folder.has(file)]
        missing = [file for file in needed if file not in here]
        left = {file: file.n_bytes - received_bytes(file, folder.path) for file in missing}
        folder.check_room(sum(sorted(left.values())[-arguments.jobs :]))
    n_bytes = sum(file.n_bytes for file in archives)
    logger.info(
        "%d of %d archives are in the store, %s are left to fetch",
        len(archives) - len(needed),
        len(archives),
        format_bytes(sum(left.values())),
    )
    with above_the_bar(), _showing(n_bytes, sum(left.values()), arguments) as progress:
        yield from here
        with (
            _ending_with_the_disk(folder),
            closing(fetch_files(server, missing, folder, arguments.jobs, progress)) as fetched,
        ):
            yield from fetched


def _select_archives(dataset: Dataset, files: Sequence[RemoteFile]) -> list[RemoteFile]:
    """Return the archives of a selection."""
    compressed = [file.path for file in files if file.path.endswith(COMPRESSED)]
    archives = [file for file in files if file.path.endswith(SUFFIX)]
    if compressed or not archives:
        found = f"{compressed[0]} is compressed" if compressed else f"{dataset.doi} has no archive among them"
        raise Stop(
            Exit.NO_FILES_SELECTED,
            f"--build takes subjects out of tar archives ({SUFFIX}), but {found}: name the archives with --files, or "
            f"fetch without --build, unpack what is packed, and use {PROGRAM} build",
        )
    return archives


def _find_mask(server: Server, dataset: Dataset, folder: Folder, arguments: argparse.Namespace) -> Path:
    """Return the brain mask: the user's file, or else the dataset's, which is fetched before all archives."""
    mask: Path = arguments.mask
    found = [] if mask.exists() else select_files(dataset.files, [mask.as_posix()])
    if not found:
        return mask
    with _ending_with_the_disk(folder):
        missing = [file for file in found[:1] if not folder.has(file)]
    n_bytes = sum(file.n_bytes for file in missing)
    with (
        _showing(n_bytes, n_bytes, arguments) as progress,
        _ending_with_the_server(),
        _ending_with_the_disk(folder),
        closing(fetch_files(server, missing, folder, 1, progress)) as fetched,
    ):
        for _ in fetched:
            pass
    return folder.path / found[0].path


def _showing(n_bytes: int, n_missing: int, arguments: argparse.Namespace) -> Progress:
    """Start a bar with bytes and remaining time."""
    return Progress(n_bytes, "fetching", "B", initial=n_bytes - n_missing, shown=not arguments.quiet, in_bytes=True)


@contextmanager
def _reading_token(file: Path | None) -> Iterator[str | None]:
    """Read the token from a file, or take it out of the environment, which worker processes inherit."""
    token = os.environ.pop(KEY_VARIABLE, None)
    try:
        yield _read_token(file) if file else _check_token(token, KEY_VARIABLE) if token else None
    finally:
        if token is not None:
            os.environ[KEY_VARIABLE] = token


def _read_token(file: Path) -> str:
    with (
        ending(Exit.NO_INPUT, OSError, saying=f"the token file {file} cannot be read: check its path"),
        ending(Exit.USAGE, ValueError, saying=f"the token file {file} is not text"),
    ):
        return _check_token(decode_text(file.read_bytes()), str(file))


def _check_token(text: str, origin: str) -> str:
    """Return a token without white space around it; messages never have the token itself."""
    token = text.strip()
    if not re.fullmatch(r"[!-~]+", token):
        raise Stop(Exit.USAGE, f"{origin} holds no token: one word is needed, as the server shows it under API Token")
    return token


def _check_address(server: Server) -> None:
    """Raise Stop for an address that is none, or at which a network would see the token."""
    parts = urlsplit(server.address)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.username:
        raise Stop(Exit.USAGE, f"--server {server.address} is not an address as in https://dataverse.harvard.edu")
    if server.token and parts.scheme == "http" and parts.hostname not in LOCAL:
        raise Stop(Exit.USAGE, f"--server {server.address} would send the token unencrypted: use https://")


def _select(dataset: Dataset, patterns: Sequence[str], server: Server) -> list[RemoteFile]:
    """Return the files that the command line names, all by default."""
    files = select_files(dataset.files, patterns)
    if not files:
        names = [file.path for file in dataset.files]
        listed = ", ".join(names[:MOST_NAMED]) + (
            f" and {len(names) - MOST_NAMED} more" if names[MOST_NAMED:] else ""
        )
        raise Stop(
            Exit.NO_FILES_SELECTED,
            f"none of the {len(names)} files of {dataset.doi} matches {' or '.join(patterns) or 'anything'}: it has "
            f"{listed or 'no files'}",
        )
    if not server.token and any(file.is_restricted for file in files):
        raise Stop(
            Exit.NO_INPUT,
            f"the files of {dataset.doi} are restricted, which needs a token: request access on "
            f"https://doi.org/{dataset.doi.removeprefix('doi:')}, create a token there (API Token in the menu), and "
            f"name a file that holds it with --token-file, or set {KEY_VARIABLE}",
        )
    return files


def _accept(dataset: Dataset, accepted: bool) -> None:
    """Print what the dataset's owners ask for, and ask the user to accept it."""
    terms = dataset.terms or ("The dataset has no terms of use of its own.",)
    rows = [f"{dataset.doi}, version {dataset.version}, of {dataset.server}", "", *terms, ""]
    sys.stdout.write("\n".join(map(one_line, [*rows, f"Please cite: {dataset.citation}"])) + "\n")
    sys.stdout.flush()
    if accepted:
        return
    if not sys.stdin or not sys.stdin.isatty():
        raise Stop(Exit.USAGE, "the terms above must be accepted: rerun the command with --accept-terms")
    sys.stdout.write("Do you accept these terms? [yes/no] ")
    sys.stdout.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise Stop(Exit.USAGE, "the terms were not accepted: nothing was fetched")


@contextmanager
def _ending_with_the_server() -> Iterator[None]:
    """Turn errors of the server and of the network into exit statuses."""
    with (
        ending(Exit.TEMPORARY, Unreachable),
        ending(Exit.NO_INPUT, Refused, Missing),
        ending(Exit.BAD_DATA, Unexpected, DamagedFile),
    ):
        yield


@contextmanager
def _ending_with_the_disk(folder: Folder) -> Iterator[None]:
    """Turn errors of the disk into exit statuses."""
    try:
        yield
    except (OtherDataset, NoRoom, PermissionError):
        raise
    except OSError as error:
        raise Stop(
            Exit.INPUT_OUTPUT,
            f"the download cannot be written to {folder.path} ({error.strerror or error}): free some space, or check "
            "the disk, and rerun the same command to resume",
        ) from error


@contextmanager
def _ending_with_the_store(store: Path) -> Iterator[None]:
    """Turn errors of a store that is being built into exit statuses."""
    with (
        _ending_with_the_server(),
        ending(Exit.INPUT_OUTPUT, OSError, saying=f"the store {store} could not be written"),
        ending(Exit.NO_FILES_SELECTED, NothingMatches),
        ending(Exit.FAILED, MemoryError),
        ending(Exit.BAD_DATA, DamagedSource, ValueError),
        ending(Exit.CANNOT_CREATE, FileExistsError, NoPlace, NoRoom),
    ):
        yield
