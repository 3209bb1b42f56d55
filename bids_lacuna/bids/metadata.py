"""Metadata of images: JSON files beside them and higher up in the dataset, by the inheritance principle of BIDS."""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from bids_lacuna.bids.index import Image
from bids_lacuna.files import read_json_object

logger = logging.getLogger(__name__)

KEYS = ("SpatialReference", "Type")
"""Keys that are kept: sidecars of a converted scan may have a megabyte each."""


class _JsonFiles:
    """Names of a folder's JSON files, arranged so that those of one image are found without comparing all names."""

    def __init__(self, folder: Path) -> None:
        self.names: set[str] = set()
        self._by_entities: dict[str, dict[tuple[str, ...], dict[tuple[str, ...], str]]] = defaultdict(dict)
        # An unreadable folder has been reported by whoever lists its images.
        with suppress(OSError):
            names = (path.name for path in folder.iterdir())
            self.names = {name for name in names if name.endswith(".json") and not name.startswith(".")}
        for name in self.names:
            *pairs, suffix = name.removesuffix(".json").split("_")
            if all("-" in pair for pair in pairs):
                entities = dict(pair.split("-", 1) for pair in sorted(pairs))
                self._by_entities[suffix].setdefault(tuple(entities), {})[tuple(entities.values())] = name

    def fitting(self, image: Image) -> Iterator[str]:
        """List the files whose suffix and entities the image has, those with the fewest entities first."""
        by_entities = self._by_entities.get(image.name["suffix"], {})
        for entities in sorted(by_entities, key=len):
            name = by_entities[entities].get(tuple(image.name.get(entity, "") for entity in entities))
            if name is not None:
                yield name


class Metadata:
    """Reads the metadata of many images; each folder is listed once, and each JSON file is read once."""

    def __init__(self) -> None:
        self._folders: dict[Path, _JsonFiles] = {}
        self._contents: dict[Path, dict[str, Any]] = {}

    def of(self, image: Image) -> dict[str, Any]:
        """Read what applies to an image.

        A JSON file applies if it lies in the image's folder or above it in the dataset, has the image's suffix, and
        no entity that the image lacks. A file closer to the image takes precedence.
        """
        merged: dict[str, Any] = {}
        folder = image.root
        for part in ("", *image.path.parent.relative_to(image.root).parts):
            folder = folder / part
            if folder not in self._folders:
                self._folders[folder] = _JsonFiles(folder)
            for name in self._folders[folder].fitting(image):
                merged |= self._read(folder / name)
        beside = image.path.name.removesuffix(image.name["extension"]) + ".json"
        if beside in self._folders[folder].names:
            merged |= self._read(folder / beside)
        return merged

    def space(self, image: Image) -> str | None:
        """Return the space of an image: the one in its name, or else its SpatialReference, or else None."""
        space = image.name.get("space") or self.of(image).get("SpatialReference")
        return space if space and isinstance(space, str) else None

    def _read(self, path: Path) -> dict[str, Any]:
        if path not in self._contents:
            self._contents[path] = _read_keys(path)
        return self._contents[path]


def read_space(path: Path) -> str | None:
    """Return the space of an image that need not lie in a dataset, such as a map or an atlas from elsewhere.

    It is the one in the image's name (`space`, or TemplateFlow's `tpl`), or else the SpatialReference in the JSON
    file beside it, or else None.
    """
    stem = re.sub(r"\.nii(\.gz)?$", "", path.name, flags=re.IGNORECASE)
    entities = dict(part.split("-", 1) for part in stem.split("_") if "-" in part)
    named = entities.get("space") or entities.get("tpl") or _read_keys(path.with_name(f"{stem}.json")).get(KEYS[0])
    return named if named and isinstance(named, str) else None


def _read_keys(path: Path) -> dict[str, Any]:
    """Read `KEYS` from a JSON file; {} if it cannot be read."""
    try:
        # No warning about a broken link: a DataLad clone has thousands before `datalad get`.
        if not path.exists():
            return {}
        content = read_json_object(path)
    except (OSError, ValueError) as error:
        logger.warning("a sidecar was ignored: %s", error)
        return {}
    reference = content.get("SpatialReference")
    if reference is not None and not isinstance(reference, str):
        logger.warning(
            "SpatialReference in %s is %s: the name of a template is needed, as in "
            '"SpatialReference": "MNI152NLin6Asym"; it was ignored',
            path,
            "an object" if isinstance(reference, dict) else f"a {type(reference).__name__}",
        )
    return {key: content[key] for key in KEYS if key in content}
