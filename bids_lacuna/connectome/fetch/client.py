"""Requests to a Dataverse server, whose token no other host gets."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests
from urllib3.exceptions import InvalidHeader
from urllib3.util import Retry

from bids_lacuna._version import __version__
from bids_lacuna.text import format_seconds, one_line

logger = logging.getLogger(__name__)

FIRST_PAUSE_S = 1.0
"""Seconds before the second attempt; each further pause is twice as long."""

LONGEST_PAUSE_S = 60.0
"""Longest pause in seconds, unless the server asks for a longer one."""

LONGEST_ASKED_PAUSE_S = 3600.0
"""Longest pause in seconds that a server may ask for; it is asked again then."""

N_ATTEMPTS = 10
"""Attempts without a further byte before a download ends: some five minutes."""

N_FIRST_ATTEMPTS = 3
"""Attempts to reach the server for the first time."""

TIMEOUT_S = (30.0, 60.0)
"""Seconds to wait for a connection, and for the next bytes."""

MOST_REDIRECTS = 5

CHUNK_BYTES = 256 * 1024
"""Bytes read at a time; as many may be lost when a connection breaks."""

KINDS = {
    "IncompleteRead": "it ended early",
    "InvalidChunkLength": "it ended early",
    "ProtocolError": "it ended early",
    "TimeoutError": f"no answer within {TIMEOUT_S[1]:.0f} s",
}
"""Words for errors of connections that have none of their own, by their types."""

LONGEST_MESSAGE = 300
"""Characters of a server's message that are shown."""


class Unreachable(Exception):  # noqa: N818  a fact about the network, not a defect of the program
    """The server cannot be reached, or keeps failing; the same command resumes later."""


class Refused(Exception):  # noqa: N818  a fact about the user's rights, not a defect of the program
    """The server refuses access."""


class Missing(LookupError):  # noqa: N818  a fact about the server, not a defect of the program
    """The server has no such dataset or file."""


class Unexpected(ValueError):  # noqa: N818  a fact about the server, not a defect of the program
    """The server's answer is not one of Dataverse's."""


class Stopped(Exception):  # noqa: N818  no error
    """Another download has failed, or the program ends."""


class Later(Exception):  # noqa: N818  no error yet
    """An attempt failed for now; the message says why."""

    def __init__(self, reason: str, retry_after_s: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


@dataclass(frozen=True)
class Server:
    """A Dataverse server, and the user's token for it."""

    address: str
    """Scheme and host, without a slash at the end."""
    token: str | None = field(default=None, repr=False)

    @property
    def host(self) -> str:
        """The host, for messages."""
        return urlsplit(self.address).netloc

    def is_at(self, address: str) -> bool:
        """Return whether an address belongs to this server: only there may the token go."""
        return _origin(address) == _origin(self.address)


@dataclass(frozen=True)
class Answer:
    """A server's answer, whose body has not been read yet."""

    response: requests.Response
    is_of_server: bool
    """Whether the server itself answered, rather than the storage that it redirected to."""

    @property
    def host(self) -> str:
        """The host that answered; never the whole address, since storage's is signed."""
        return urlsplit(self.response.url).netloc

    @property
    def is_page(self) -> bool:
        """Whether the answer is a web page."""
        return "html" in self.response.headers.get("Content-Type", "").lower()

    def check_available(self) -> None:
        """Raise Later if the host asks to come back, or fails for now."""
        status = self.response.status_code
        if status == HTTPStatus.TOO_MANY_REQUESTS or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            raise Later(f"{self.host} answers {status} {self.response.reason}", _retry_after_s(self.response))


class Patience:
    """Pauses between attempts that fail, up to a number of attempts without progress."""

    def __init__(self, n_attempts: int, stopped: threading.Event | None = None) -> None:
        self._n_attempts = n_attempts
        self._stopped = stopped or threading.Event()
        self._n_failed = 0

    def reset(self) -> None:
        """Begin to count anew, since there was progress."""
        self._n_failed = 0

    def wait(self, later: Later, what: str) -> None:
        """Wait before the next attempt.

        Raises
        ------
        Unreachable
            There were too many attempts.
        Stopped
            The program ends.
        """
        self._n_failed += 1
        if self._n_failed >= self._n_attempts:
            raise Unreachable(
                f"{what}: {later}, after {self._n_failed} attempts; check the network, and rerun the same command to "
                "resume"
            )
        pause_s = later.retry_after_s
        if pause_s is None:
            pause_s = min(FIRST_PAUSE_S * 2 ** (self._n_failed - 1), LONGEST_PAUSE_S)
        logger.info("%s: %s; next attempt in %s", what, later, format_seconds(pause_s))
        if self._stopped.wait(pause_s):
            raise Stopped


class Client:
    """One thread's connections to a server."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._session = requests.Session()
        self._session.headers["User-Agent"] = f"bids-lacuna/{__version__}"
        # Otherwise requests would send what ~/.netrc has for a host, which signed addresses do not admit.
        self._session.auth = _keep_as_is
        # At level DEBUG, it logs addresses, which may be signed.
        logging.getLogger("urllib3").setLevel(logging.ERROR)

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    @contextmanager
    def get(self, path: str, query: dict[str, str], start: int = 0) -> Iterator[Answer]:
        """Request a path of the server, and follow its redirects.

        Parameters
        ----------
        start
            Number of the first byte to send.

        Raises
        ------
        Later
            The connection failed, before or within the block.
        """
        address, host = self.server.address + path, self.server.host
        try:
            for _ in range(MOST_REDIRECTS + 1):
                host = urlsplit(address).netloc
                response = self._request(address, query, start)
                if not response.is_redirect:
                    break
                response.close()
                # A redirect has the query that it needs.
                address, query = urljoin(address, response.headers["Location"]), {}
            with response:
                yield Answer(response, self.server.is_at(address))
        except requests.RequestException as error:
            # Not chained: requests' message has the address, which may be signed.
            raise Later(f"the connection to {host} failed ({_describe(error)})") from None

    def _request(self, address: str, query: dict[str, str], start: int) -> requests.Response:
        # Compressed on the way, positions would not be those of the file.
        headers = {"Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
        proxies: dict[str, str | None] = {}
        # requests would keep this header on redirects to other hosts.
        if self.server.token and self.server.is_at(address):
            headers["X-Dataverse-key"] = self.server.token
            # A proxy of the environment can read what is not encrypted.
            proxies = {"http": None, "all": None} if urlsplit(address).scheme == "http" else {}
        return self._session.get(
            address,
            params=query,
            headers=headers,
            stream=True,
            allow_redirects=False,
            timeout=TIMEOUT_S,
            proxies=proxies,  # type: ignore[arg-type]  # None means no proxy
        )

    def read_json(self, path: str, query: dict[str, str], what: str) -> Any:
        """Return the data of an answer of the native API.

        Parameters
        ----------
        what
            What is asked for, for messages.

        Raises
        ------
        Unreachable
            The server cannot be reached.
        Refused, Missing
            The server refuses access, or does not know what is asked for.
        Unexpected
            The answer is no JSON, or an error.
        """
        patience = Patience(N_FIRST_ATTEMPTS)
        while True:
            try:
                with self.get(path, query) as answer:
                    answer.check_available()
                    return self._read_data(answer, what)
            except Later as later:
                patience.wait(later, f"{what} cannot be read")

    def _read_data(self, answer: Answer, what: str) -> Any:
        try:
            content = answer.response.json()
            data, is_ok = content.get("data"), content.get("status") == "OK"
        except (ValueError, AttributeError) as error:
            raise Unexpected(self.explain_page(answer, what)) from error
        self.check_access(answer, what)
        if answer.response.status_code == HTTPStatus.NOT_FOUND:
            raise Missing(
                f"{self.server.address} has no {what} ({self._message(answer)}): check its name and --server"
            )
        if not is_ok or data is None:
            raise Unexpected(f"{self.server.address} does not give {what}: {self._message(answer)}")
        return data

    def check_access(self, answer: Answer, what: str) -> None:
        """Raise Refused if the server refuses access."""
        status = answer.response.status_code
        if status not in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            return
        remedy = (
            "check that the token is this server's and has not expired, and open the dataset's page in a browser, "
            "where you may have to request access"
        )
        if not self.server.token:
            remedy = (
                "it needs a token, which the server gives to those with an account (API Token in its menu): name a "
                "file that holds it with --token-file, or set BIDS_LACUNA_DATAVERSE_TOKEN"
            )
        raise Refused(f"{self.server.address} refuses {what} ({status}, {self._message(answer)}): {remedy}")

    def explain_page(self, answer: Answer, what: str) -> str:
        """Explain an answer that is neither data nor an error of the API."""
        kind = "a web page" if answer.is_page else answer.response.headers.get("Content-Type", "nothing")
        status = f"{answer.response.status_code}"
        if answer.is_of_server and answer.response.status_code >= HTTPStatus.BAD_REQUEST:
            status += f", {self._message(answer)}"
        return (
            f"{answer.host} answers with {kind} in place of {what} ({status}), perhaps a login, a guestbook or a "
            "note on maintenance: open the dataset's page in a browser, answer what it asks, and rerun the same "
            "command; or check --server"
        )

    def _message(self, answer: Answer) -> str:
        """Return a server's own words, on one line and without the token."""
        try:
            words = str(answer.response.json()["message"])
        except (ValueError, KeyError, TypeError):
            words = answer.response.reason or "without a reason"
        if self.server.token:
            words = words.replace(self.server.token, "…")
        return one_line(words)[:LONGEST_MESSAGE]


def _keep_as_is(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


def _origin(address: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(address)
    return parts.scheme, parts.hostname, parts.port or {"https": 443, "http": 80}.get(parts.scheme)


def _retry_after_s(response: requests.Response) -> float | None:
    """Return how long a server asks to wait, in seconds."""
    try:
        asked_s = Retry().parse_retry_after(response.headers["Retry-After"])
    except (KeyError, InvalidHeader):
        return None
    return min(asked_s, LONGEST_ASKED_PAUSE_S)


def _describe(error: BaseException) -> str:
    """Describe why a connection failed, without its address."""
    while cause := error.__cause__ or (None if error.__suppress_context__ else error.__context__):
        error = cause
    kind = type(error).__name__
    # A proxy's refusal; the messages of other types may have the address.
    words = str(error) if type(error) is OSError and error.strerror is None else None
    return words or (error.strerror if isinstance(error, OSError) else None) or KINDS.get(kind, kind)
