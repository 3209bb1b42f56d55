"""Standard streams that cannot stop the program: closed ones, full ones, and pipes that nobody reads."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any, TextIO

STANDARD_DESCRIPTORS = (0, 1, 2)
"""File descriptors of stdin, stdout and stderr."""


class _Nowhere(io.TextIOBase):
    """The stream of a closed file descriptor, for which Python has None."""

    def write(self, text: str) -> int:
        """Drop a text."""
        return len(text)


class LenientStream:
    """A text stream that notes its first failure instead of raising it; all else is as in the stream itself."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream: Any = _Nowhere() if stream is None else stream
        self.failure: OSError | ValueError | None = None

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the stream."""
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write a text if possible, with escapes for characters that the stream's encoding lacks."""
        with self._noting_failures():
            try:
                self._stream.write(text)
            except UnicodeEncodeError as error:
                self._stream.write(text.encode(error.encoding, "backslashreplace").decode(error.encoding))
        return len(text)

    def flush(self) -> None:
        """Flush the stream if possible."""
        with self._noting_failures():
            self._stream.flush()

    def finish(self) -> None:
        """Flush the stream; after a failure, drop what it holds, so that Python does not fail when it exits."""
        self.flush()
        if self.failure:
            with suppress(OSError, ValueError):
                self._drop_buffer()

    @contextmanager
    def _noting_failures(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            self.failure = self.failure or error

    def _drop_buffer(self) -> None:
        """Flush the stream into /dev/null; the caller of the program may still use its file descriptor."""
        descriptor = self._stream.fileno()
        before, null = os.dup(descriptor), os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(null, descriptor)
            self._stream.flush()
        finally:
            os.dup2(before, descriptor)
            os.close(before)
            os.close(null)


@contextmanager
def lenient_streams() -> Iterator[LenientStream]:
    """Make stdout and stderr lenient until the block ends.

    Yields
    ------
    LenientStream
        The stream of stdout.
    """
    _open_descriptors()
    output, errors = LenientStream(sys.stdout), LenientStream(sys.stderr)
    with redirect_stdout(output), redirect_stderr(errors):
        try:
            yield output
        finally:
            output.finish()
            errors.finish()


def _open_descriptors() -> None:
    """Open closed standard file descriptors: a data file would get one, and with it the messages of libraries."""
    for descriptor in STANDARD_DESCRIPTORS:
        try:
            os.fstat(descriptor)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, descriptor)
            # Worker processes inherit it.
            os.set_inheritable(descriptor, True)
            if null != descriptor:
                os.close(null)
