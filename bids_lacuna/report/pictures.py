"""The pictures of a page and their files."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from glob import escape
from pathlib import Path

from PIL import Image


@dataclass(frozen=True)
class Picture:
    """A picture on a page."""

    name: str
    path: str
    """Relative to the output's root."""
    alt: str
    caption: str
    width: int
    """Pixels."""
    height: int


@dataclass(frozen=True)
class Part:
    """Pictures under one heading."""

    heading: str
    pictures: list[Picture]


class Pictures:
    """The picture files of one lesion or of a group."""

    def __init__(self, output_dir: Path, stem: Path) -> None:
        """Name the files.

        Parameters
        ----------
        output_dir
            Root of the dataset.
        stem
            Beginning of the paths of all files.
        """
        self._output_dir = output_dir
        self._stem = stem

    def path(self, kind: str) -> Path:
        """Return the path of a file."""
        return self._stem.with_name(f"{self._stem.name}_{kind}")

    def relative(self, path: Path) -> str:
        """Return a file's path relative to the output's root."""
        return path.relative_to(self._output_dir).as_posix()

    def add(self, name: str, path: Path, alt: str, caption: str) -> Picture:
        """Return the `Picture` for a file that has been drawn."""
        with Image.open(path) as image:
            width, height = image.size
        return Picture(name, self.relative(path), alt, caption, width, height)

    def add_slices(self, name: str, path: Path, what: str) -> Picture:
        """Return the `Picture` for slices of the template that have been drawn, with what they show as caption."""
        return self.add(name, path, f"Slices of the MNI template. {what}", what)

    def remove_others(self, shown: Collection[str]) -> None:
        """Remove the pictures of an earlier page that the new one does not show.

        Parameters
        ----------
        shown
            Paths of the new page's pictures, relative to the output's root.
        """
        for path in self._stem.parent.glob(f"{escape(self._stem.name)}_*.png"):
            if self.relative(path) not in shown:
                path.unlink(missing_ok=True)
