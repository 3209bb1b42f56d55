"""The pictures of a page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image


@dataclass(frozen=True)
class Picture:
    """An image of a page."""

    name: str
    path: str
    """From the output's root."""
    alt: str
    caption: str
    width: int
    """Pixels."""
    height: int


@dataclass(frozen=True)
class Part:
    """Pictures below one heading."""

    heading: str
    pictures: list[Picture]


class Pictures:
    """The pictures of one lesion, or of a group: where they lie, and how large they are."""

    def __init__(self, output_dir: Path, stem: Path) -> None:
        """Begin.

        Parameters
        ----------
        output_dir
            Root of the dataset.
        stem
            What the paths of all the pictures begin with.
        """
        self._output_dir = output_dir
        self._stem = stem

    def path(self, kind: str) -> Path:
        """Name a file."""
        return self._stem.with_name(f"{self._stem.name}_{kind}")

    def relative(self, path: Path) -> str:
        """Tell where a file lies, from the output's root."""
        return path.relative_to(self._output_dir).as_posix()

    def add(self, name: str, path: Path, alt: str, caption: str) -> Picture:
        """Describe a picture that was drawn."""
        with Image.open(path) as image:
            width, height = image.size
        return Picture(name, self.relative(path), alt, caption, width, height)
