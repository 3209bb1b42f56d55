"""Symbolic links in datasets: each folder is searched once."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path


class FoldersReachedElsewhere:
    """Links to folders that are searched anyway, or that lead to a folder above: a pattern for pybids to ignore.

    pybids follows a link to a folder above again and again, up to 40 levels deep.
    """

    def __init__(self, root: Path, ignored: Sequence[re.Pattern[str]]) -> None:
        """Prepare the search of a dataset.

        Parameters
        ----------
        root
            The dataset's root.
        ignored
            Patterns of paths, relative to the root and beginning with "/", that are not searched.
        """
        self._root = root
        self._resolved = root.resolve()
        self._ignored = ignored

    def search(self, path: str) -> bool:
        """Return whether a path, relative to the root and beginning with "/", is such a link."""
        # With 10,000 folders, it took a third of a second to make a Path of each.
        if not os.path.islink(f"{self._root}{path}"):  # noqa: PTH114
            return False
        link = self._root / path.lstrip("/")
        if not link.is_dir():
            return False
        target = link.resolve()
        if link.parent.resolve().is_relative_to(target) or self._resolved.is_relative_to(target):
            return True
        return target.is_relative_to(self._resolved) and self._is_searched(target.relative_to(self._resolved))

    def _is_searched(self, folder: Path) -> bool:
        """Return whether a folder, relative to the root, is searched without any link."""
        above = ["/" + "/".join(folder.parts[: n + 1]) for n in range(len(folder.parts))]
        hidden = any(part.startswith(".") for part in folder.parts)
        return not hidden and not any(pattern.search(each) for pattern in self._ignored for each in above)
