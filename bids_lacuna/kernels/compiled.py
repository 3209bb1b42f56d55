"""Compilation by numba, with a cache on disk that only saves time: no state of its files stops a program."""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import parent_process
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO

from numba import njit
from numba.core import config
from numba.core.caching import CompileResultCacheImpl, FunctionCache, IndexDataCacheFile

logger = logging.getLogger(__name__)

DIGEST_BYTES = hashlib.sha256().digest_size
"""Length of the SHA-256 at the end of each file."""


def cached_njit(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Decorate a function: numba compiles it, and its cache keeps the code, as with `njit(cache=True)`.

    Parameters
    ----------
    options
        Further options of `numba.njit`.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        dispatcher = njit(**options)(function)
        try:
            dispatcher._cache = _LenientCache(function)
        except (OSError, RuntimeError) as error:
            # numba has found no folder that it can write to, and keeps its cache that holds nothing.
            _warn_once(error)
        return dispatcher

    return decorate


class _DamagedError(OSError):
    """A file of the cache is not as it was written."""


class _Locations(CompileResultCacheImpl):
    """Compiled code in NUMBA_CACHE_DIR only; a program that imports numba first may have none, and numba chooses."""

    _locator_classes = CompileResultCacheImpl._locator_classes[: 1 if getattr(config, "CACHE_DIR", "") else None]


class _CheckedFiles(IndexDataCacheFile):
    """The files of one function; each ends with the SHA-256 of what comes before.

    numba executes what it reads: a byte that has changed could crash the program, or change its results.
    """

    @contextmanager
    def _open_for_write(self, filepath: str) -> Iterator[BinaryIO]:
        content = io.BytesIO()
        yield content
        with super()._open_for_write(filepath) as file:
            file.write(content.getvalue() + hashlib.sha256(content.getvalue()).digest())

    def _load_index(self) -> dict[Any, str]:
        try:
            _check(Path(self._index_path))
        except FileNotFoundError:
            return {}
        except _DamagedError as error:
            _warn_once(error)
            return {}
        return super()._load_index()

    def _load_data(self, name: str) -> Any:
        # numba compiles the function again after an OSError.
        try:
            _check(Path(self._data_path(name)))
        except _DamagedError as error:
            _warn_once(error)
            raise
        return super()._load_data(name)


class _LenientCache(FunctionCache):
    """numba's cache of one function, without which the program does as well."""

    _impl_class = _Locations

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        locator, name = self._impl.locator, f"{self._impl.filename_base}-sha256"
        self._cache_file = _CheckedFiles(self._cache_path, name, locator.get_source_stamp())

    # Unpickling what another environment has written may raise anything.
    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return compiled code, or None if there is none that can be used."""
        try:
            return super().load_overload(sig, target_context)
        except Exception as error:
            _warn_once(error)
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Save compiled code if possible."""
        try:
            super().save_overload(sig, data)
        except Exception as error:
            _warn_once(error)


def _check(path: Path) -> None:
    """Raise an error unless a file ends with the SHA-256 of its content."""
    content = path.read_bytes()
    if hashlib.sha256(content[:-DIGEST_BYTES]).digest() != content[-DIGEST_BYTES:]:
        raise _DamagedError(f"{path} is damaged")


_first = Lock()
"""Held from the first warning on."""


def _warn_once(error: Exception) -> None:
    """Warn of the first file that cannot be used; worker processes leave that to their parent."""
    if parent_process() is None and _first.acquire(blocking=False):
        logger.warning(
            "the cache of compiled kernels cannot be used (%s): kernels are compiled again, in up to half a minute",
            error,
        )
