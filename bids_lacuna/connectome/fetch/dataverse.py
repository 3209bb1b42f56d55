"""Datasets of Dataverse servers: their files with sizes and checksums, their terms of use and their citation."""

from __future__ import annotations

import hashlib
import html
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from bids_lacuna.connectome.fetch.client import Client, Missing, Unexpected

VERSION = "/api/datasets/:persistentId/versions/:latest-published"

TERMS = {
    "termsOfUse": "Terms of use",
    "confidentialityDeclaration": "Confidentiality",
    "specialPermissions": "Special permissions",
    "restrictions": "Restrictions",
    "citationRequirements": "Citation requirements",
    "depositorRequirements": "Depositor requirements",
    "conditions": "Conditions",
    "disclaimer": "Disclaimer",
    "termsOfAccess": "Terms of access",
}
"""Keys of the terms of a dataset's version, and their titles on its page."""


@dataclass(frozen=True)
class RemoteFile:
    """A file of a dataset."""

    id: int
    path: str
    """Relative to the dataset, with slashes."""
    n_bytes: int
    algorithm: str
    """hashlib's name of the checksum's algorithm."""
    checksum: str
    """In lower-case hexadecimal digits."""
    is_tabular: bool
    """Whether the server converts the file unless its original is asked for."""
    is_restricted: bool


@dataclass(frozen=True)
class Dataset:
    """The latest published version of a dataset."""

    server: str
    """Address of the server."""
    doi: str
    """As in doi:10.7910/DVN/ILXIKS."""
    version: str
    """As in 1.0."""
    citation: str
    terms: tuple[str, ...]
    """The licence and the terms of use, one for each paragraph."""
    files: tuple[RemoteFile, ...]


def read_dataset(client: Client, doi: str) -> Dataset:
    """Read what a server says of a dataset.

    Raises
    ------
    Unreachable, Refused, Missing, Unexpected
        See `Client.read_json`.
    """
    query = {"persistentId": doi}
    version = client.read_json(VERSION, {**query, "excludeFiles": "true"}, f"dataset {doi}")
    listed = client.read_json(f"{VERSION}/files", query, f"list of files of {doi}")
    cited = {"message": f"https://doi.org/{doi.removeprefix('doi:')}"}
    # Older servers do not have this.
    with suppress(Missing):
        cited = client.read_json(f"{VERSION}/citation", query, f"citation of {doi}")
    try:
        citation = _plain(cited["message"])
        number = f"{version['versionNumber']}.{version['versionMinorNumber']}"
        files = tuple(sorted((_read_file(entry) for entry in listed), key=lambda file: file.path))
        terms = tuple(_read_terms(version))
    except Unexpected:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Unexpected(
            f"{client.server.address} describes {doi} in a way that is not understood ({error!r}): check --server"
        ) from error
    if len({file.path for file in files}) < len(files):
        raise Unexpected(f"{client.server.address} lists several files of {doi} with the same name")
    return Dataset(client.server.address, doi, number, citation, terms, files)


def _read_file(entry: Mapping[str, Any]) -> RemoteFile:
    """Read a file's entry in the list; of a tabular file, the original is meant, as in its checksum."""
    stored = entry["dataFile"]
    is_tabular = "originalFileFormat" in stored
    name = stored.get("originalFileName", entry["label"]) if is_tabular else entry["label"]
    path = PurePosixPath(entry.get("directoryLabel") or ".", name)
    if (
        not name
        or not path.name
        or path.is_absolute()
        or ".." in path.parts
        or not str(path).isprintable()
        or "\\" in str(path)
    ):
        raise Unexpected(f"the dataset has a file named {str(path)!r}, which would be written elsewhere")
    algorithm = stored["checksum"]["type"].replace("-", "").lower()
    if algorithm not in hashlib.algorithms_guaranteed:
        raise Unexpected(
            f"the checksum of {path} is a {stored['checksum']['type']}, which this program does not know"
        )
    return RemoteFile(
        int(stored["id"]),
        str(path),
        int(stored["originalFileSize"] if is_tabular else stored["filesize"]),
        algorithm,
        stored["checksum"]["value"].lower(),
        is_tabular,
        bool(entry.get("restricted", False)),
    )


def _read_terms(version: Mapping[str, Any]) -> list[str]:
    """Read the licence and the terms of a version."""
    terms = [f"{title}: {_plain(version[key])}" for key, title in TERMS.items() if version.get(key)]
    licence = version.get("license")
    if isinstance(licence, dict):
        terms.insert(0, f"Licence: {licence.get('name', '')} {licence.get('uri', '')}".strip())
    elif licence and licence != "NONE":
        terms.insert(0, f"Licence: {licence}")
    return terms


def _plain(text: str) -> str:
    """Return the words of a text that may have tags of HTML, with single spaces."""
    spaced = re.sub(r"</?(br|div|li|p)\b[^<>]*>", " ", text)
    return " ".join(html.unescape(re.sub(r"</?[A-Za-z][^<>]*>", "", spaced)).split())
