"""Atlases by the names and paths that users give."""

from __future__ import annotations

import re
from pathlib import Path

from bids_lacuna.parcels.atlas import IMAGE_ENDINGS, AtlasFile, entities_of, stem_of
from bids_lacuna.transforms.templateflow import PAIRS, SOFTWARE, find_images

SUFFIXES = ("dseg", "probseg")
"""Suffixes of images of labels and of probabilities in BIDS."""

TEMPLATEFLOW_NAME = re.compile(r"(?P<atlas>[A-Za-z0-9]+)(:(?P<desc>[A-Za-z0-9]+))?")


def find_atlas(given: str, space: str, *, download: bool) -> AtlasFile:
    """Find an atlas.

    Parameters
    ----------
    given
        Path of an image or of a folder with one atlas, or a name in TemplateFlow with the `desc` after a colon.
    space
        Space of the connectome, preferred where there are images in several.
    download
        Whether TemplateFlow's client may download a file.

    Raises
    ------
    FileNotFoundError
        There is no such atlas.
    ValueError
        It is not clear which file is meant, or it is no atlas.
    """
    path = Path(given)
    if path.is_dir():
        return _in_folder(path, space)
    if (name := TEMPLATEFLOW_NAME.fullmatch(given)) and not path.exists():
        templates = [space, *(source for source, target in PAIRS if target == space)]
        images = find_images(name["atlas"], name["desc"], SUFFIXES, templates, download=download)
        return AtlasFile.of(_choose(images, space), SOFTWARE)
    return AtlasFile.of(path)


def _in_folder(folder: Path, space: str) -> AtlasFile:
    """Find the atlas in a folder, as XCP-D and AtlasPack arrange them: atlas-<label>, or one above."""
    images = [path for path in sorted(folder.glob("*.nii*")) if _is_atlas(path)]
    images = images or [path for path in sorted(folder.glob("*/*.nii*")) if _is_atlas(path)]
    if not images:
        raise FileNotFoundError(
            f"the folder {folder} holds no atlas: an image whose name ends in {' or '.join(SUFFIXES)}.nii.gz is "
            "needed; give its path, or that of its folder"
        )
    by_name: dict[str, list[Path]] = {}
    for path in images:
        by_name.setdefault(" ".join(AtlasFile.of(path).entities.values()), []).append(path)
    if len(by_name) > 1:
        there = ", ".join(str(paths[0]) for paths in by_name.values())
        raise ValueError(f"{folder} holds {len(by_name)} atlases: name the one that is meant, of {there}")
    return AtlasFile.of(_choose(images, space))


def _is_atlas(path: Path) -> bool:
    return path.name.lower().endswith(IMAGE_ENDINGS) and stem_of(path).rpartition("_")[2] in SUFFIXES


def _choose(images: list[Path], space: str) -> Path:
    """Choose the image in a space, and of several the finest by its `res`."""

    def order(path: Path) -> tuple[bool, str]:
        entities = entities_of(path.name)
        return entities.get("space", entities.get("tpl")) != space, entities.get("res", "")

    return min(images, key=order)
