"""TemplateFlow's transforms and atlases: looked up in its folder, downloaded where they are missing."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from itertools import product
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
            asked = {"from": source, "mode": "image", "suffix": "xfm", "extension": ".h5"}
            (path,) = _download(target, [name], asked)
            return TransformFile(path, source, target, SOFTWARE)
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


def find_images(
    atlas: str, desc: str | None, suffixes: Sequence[str], templates: Sequence[str], *, download: bool
) -> list[Path]:
    """Find the images of an atlas, in the first of some templates that has it.

    Raises
    ------
    FileNotFoundError
        They are nowhere, and cannot or must not be downloaded.
    """
    for template in templates:
        if found := _images_of(atlas, desc, suffixes, template):
            return found
    why = "--no-download was given"
    for template, suffix in product(templates, suffixes) if download else ():
        try:
            return _download_atlas(atlas, desc, suffix, template)
        # Whatever fails in another program's download, the sentence below helps.
        except Exception as error:
            logger.debug("traceback of the failure below", exc_info=True)
            why = f"it cannot be downloaded ({type(error).__name__}: {str(error).strip()[:200]})"
    looked = ", ".join(str(folder / f"tpl-{each}") for folder in folders() for each in templates) or "no folder"
    of_desc = f", desc='{desc}'" if desc else ""
    query = f"api.get('{templates[0]}', atlas='{atlas}'{of_desc})"
    raise FileNotFoundError(
        f"TemplateFlow's atlas {atlas}{f' with desc-{desc}' if desc else ''} is not in {looked}, and {why}: give the "
        "path of an image, or fetch it where there is a network, `pip install --upgrade templateflow; python -c "
        f'"from templateflow import api; {query}"`, and set TEMPLATEFLOW_HOME to the folder above tpl-{templates[0]}'
    )


def _images_of(atlas: str, desc: str | None, suffixes: Sequence[str], template: str) -> list[Path]:
    """List the images of an atlas in a template's folder, without those that were not downloaded yet."""
    wanted = {f"atlas-{atlas}", *([f"desc-{desc}"] if desc else [])}
    return [
        path
        for folder in folders()
        for suffix in suffixes
        for path in sorted((folder / f"tpl-{template}").glob(f"tpl-{template}_*_{suffix}.nii.gz"))
        if wanted <= set(path.name.split("_"))
        and (desc or "_desc-" not in path.name)
        and path.is_file()
        and path.stat().st_size
    ]


def _download_atlas(atlas: str, desc: str | None, suffix: str, template: str) -> list[Path]:
    """Download an atlas, the finest image and the table of its regions, and return the image's path."""
    name = f"atlas-{atlas}_desc-{desc}_{suffix}" if desc else f"atlas-{atlas}_{suffix}"
    image = f"tpl-{template}_res-01_{name}.nii.gz"
    query = {"atlas": atlas, "suffix": suffix, **({"desc": desc} if desc else {})}
    return _download(template, [image, f"tpl-{template}_{name}.tsv"], query)[:1]


def _download(template: str, names: Sequence[str], query: Mapping[str, str]) -> list[Path]:
    """Download files of a template with TemplateFlow's client, which is an optional dependency.

    Parameters
    ----------
    query
        The client's own words for these files.
    """
    home = next(iter(folders()), None)
    if home is None:
        raise FileNotFoundError("there is no home folder for it")
    logger.info("downloading %s with TemplateFlow's client", " and ".join(names))
    # Fills an empty home with the names of all files.
    from templateflow.client import TemplateFlowClient

    # The client writes into the file itself: what an interrupted download leaves would be taken for the transform.
    with tempfile.TemporaryDirectory(prefix=".bids-lacuna-", dir=home) as temporary:
        # The client downloads the files of its folder that are empty.
        files = [Path(temporary) / f"tpl-{template}" / name for name in names]
        files[0].parent.mkdir()
        for file in files:
            file.touch()
        TemplateFlowClient(temporary).get(template, raise_empty=True, **query)
        for file in files:
            if not file.stat().st_size:
                raise FileNotFoundError(f"{file.name} is empty")
        (home / f"tpl-{template}").mkdir(exist_ok=True)
        return [file.replace(home / file.relative_to(temporary)) for file in files]
