"""Transforms between templates, from TemplateFlow: looked up in its folder, downloaded where they are missing."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from pathlib import Path

from bids_lacuna.transforms.chain import TransformFile

logger = logging.getLogger(__name__)

PAIRS = (("MNI152NLin6Asym", "MNI152NLin2009cAsym"), ("MNI152NLin2009cAsym", "MNI152NLin6Asym"))
"""Source and target of the transforms of images that TemplateFlow has."""

SOFTWARE = "TemplateFlow"


class MissingTransform(LookupError):  # noqa: N818  a fact about the machine, not a defect of the program
    """TemplateFlow has a transform, but it is not here; the message says what fetches it."""


def folders() -> list[Path]:
    """Return the folders in which TemplateFlow's files may lie: its home, or that of its client by default."""
    if given := os.environ.get("TEMPLATEFLOW_HOME"):
        return [Path(given)]
    if caches := os.environ.get("XDG_CACHE_HOME"):
        return [Path(caches) / "templateflow"]
    try:
        home = Path.home()
    # Containers may have a user without a home.
    except RuntimeError:
        return []
    # Older clients use ~/.cache on every system.
    libraries = [home / "Library" / "Caches"] if sys.platform == "darwin" else []
    return [caches / "templateflow" for caches in (*libraries, home / ".cache")]


def find_between(source: str, target: str, *, download: bool) -> TransformFile:
    """Find the transform of images between two templates of `PAIRS`.

    Raises
    ------
    MissingTransform
        The file is nowhere, and cannot or must not be downloaded.
    """
    name = f"tpl-{target}_from-{source}_mode-image_xfm.h5"
    for folder in folders():
        path = folder / f"tpl-{target}" / name
        # TemplateFlow's skeleton has empty files for what was not downloaded yet.
        if path.is_file() and path.stat().st_size:
            return TransformFile(path, source, target, SOFTWARE)
    why = "--no-download was given"
    if download:
        try:
            return TransformFile(_download(source, target, name), source, target, SOFTWARE)
        # Whatever fails in another program's download, the sentence below helps.
        except Exception as error:
            logger.debug("traceback of the failure below", exc_info=True)
            why = f"it cannot be downloaded ({type(error).__name__}: {str(error).strip()[:200]})"
    looked = ", ".join(str(folder / f"tpl-{target}") for folder in folders()) or "no folder, since there is no home"
    query = f"api.get('{target}', **{{'from': '{source}'}}, mode='image', suffix='xfm', extension='.h5')"
    how = f'pip install --upgrade templateflow; python -c "from templateflow import api; {query}"'
    raise MissingTransform(
        f"TemplateFlow's {name} is needed to bring masks from {source} to {target}; it is not in {looked}, and "
        f"{why}: where there is a network, fetch it by `{how}`, and set TEMPLATEFLOW_HOME to the folder above "
        f"tpl-{target}"
    )


def _download(source: str, target: str, name: str) -> Path:
    """Download a transform with TemplateFlow's client, which is an optional dependency."""
    home = next(iter(folders()), None)
    if home is None:
        raise FileNotFoundError("there is no home folder for it")
    logger.info("downloading %s with TemplateFlow's client", name)
    # Fills an empty home with the names of all files.
    from templateflow.client import TemplateFlowClient

    # The client writes into the file itself: what an interrupted download leaves would be taken for the transform.
    with tempfile.TemporaryDirectory(prefix=".bids-lacuna-", dir=home) as temporary:
        # The client downloads the files of its folder that are empty.
        empty = Path(temporary) / f"tpl-{target}" / name
        empty.parent.mkdir()
        empty.touch()
        query = {"from": source, "mode": "image", "suffix": "xfm", "extension": ".h5"}
        TemplateFlowClient(temporary).get(target, raise_empty=True, **query)
        if not empty.stat().st_size:
            raise FileNotFoundError(f"{name} is empty")
        path = home / empty.relative_to(temporary)
        path.parent.mkdir(exist_ok=True)
        return empty.replace(path)
