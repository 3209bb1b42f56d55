"""A Dataverse server on the loopback, with the storage that it redirects to, and the faults of both."""

from __future__ import annotations

import hashlib
import json
import random
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

DOI = "doi:10.5072/FK2/LACUNA"

TOKEN = "0d1c2b3a-feed-4bad-babe-c0ffee15600d"

PAGE = b"<!DOCTYPE html><html><head><title>Guestbook</title></head><body>Your name?</body></html>"

SEND_BYTES = 64 * 1024


@dataclass
class Stored:
    """A file of the dataset."""

    id: int
    path: str
    content: bytes | Path
    listed: dict[str, Any] = field(default_factory=dict)
    """Changes of what the list says of it."""

    def read(self, start: int = 0) -> Iterator[bytes]:
        """Yield the content from a position."""
        if isinstance(self.content, bytes):
            for at in range(start, len(self.content), SEND_BYTES):
                yield self.content[at : at + SEND_BYTES]
            return
        with self.content.open("rb") as file:
            file.seek(start)
            while chunk := file.read(SEND_BYTES):
                yield chunk

    @property
    def n_bytes(self) -> int:
        """Size of the content."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size

    def describe(self) -> dict[str, Any]:
        """Return the entry in the list of files, as the native API has it."""
        folder, _, name = self.path.rpartition("/")
        digest = hashlib.md5()
        for chunk in self.read():
            digest.update(chunk)
        stored = {
            "id": self.id,
            "filename": name,
            "filesize": self.n_bytes,
            "checksum": {"type": "MD5", "value": digest.hexdigest()},
            **self.listed,
        }
        return {"label": name, "dataFile": stored} | ({"directoryLabel": folder} if folder else {})


class Dataverse:
    """A server with one dataset, on 127.0.0.1; its storage has another port."""

    def __init__(self, files: Mapping[str, bytes | Path], token: str | None = TOKEN) -> None:
        self.files = [Stored(number, path, content) for number, (path, content) in enumerate(files.items(), start=7)]
        self.token = token
        """The token that files need; None for public files."""
        self.version = {
            "versionNumber": 1,
            "versionMinorNumber": 0,
            "termsOfUse": "<p>Be <b>kind</b> &amp; cite.</p>",
        }
        self.restricted = False
        self.faults: dict[str, list[str]] = {}
        """For each path, the faults of the next requests of its content; "" for none."""
        self.api_faults: list[str] = []
        """Faults of the next requests of the API other than for content."""
        self.cut: Callable[[], int | None] = lambda: None
        """Returns after how many bytes of an answer the connection is cut."""
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        """Of each request: "api" or "storage", path and headers."""
        self.sent: Counter[str] = Counter()
        """Bytes of content that were written to connections."""
        self.addresses: dict[str, Stored] = {}
        """Signed addresses of the storage that have not been used yet."""
        self.n_active = 0
        """Answers of the storage that are being sent."""
        self.lock = threading.Lock()

    def start(self) -> None:
        """Serve, in threads."""
        self._servers = []
        for role in ("api", "storage"):
            handler = type(f"{role.title()}Handler", (Handler,), {"dataverse": self, "role": role})
            server = QuietServer(("127.0.0.1", 0), handler)
            self._servers.append(server)
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        self.address, self.storage = (f"http://127.0.0.1:{server.server_port}" for server in self._servers)

    def stop(self) -> None:
        """Stop serving."""
        for server in self._servers:
            server.shutdown()
            server.server_close()

    @property
    def n_sent(self) -> int:
        """Bytes of content that were written to connections."""
        return sum(self.sent.values())

    def requests_of(self, role: str, path: str = "") -> list[dict[str, str]]:
        """Return the headers of the requests to a host, for paths with these letters."""
        return [headers for host, asked, headers in self.requests if host == role and path in asked]


class QuietServer(ThreadingHTTPServer):
    """A server that does not report clients that were killed."""

    def handle_error(self, *_: object) -> None:
        """Keep quiet."""


class Handler(BaseHTTPRequestHandler):
    """Answers for the API or for the storage."""

    dataverse: Dataverse
    role: str
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Keep quiet."""

    def do_GET(self) -> None:
        """Answer."""
        with self.dataverse.lock:
            self.dataverse.requests.append((self.role, self.path, dict(self.headers)))
        try:
            self.answer_api() if self.role == "api" else self.send_content()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def send(self, status: int, body: bytes, **headers: str) -> None:
        """Send a whole answer."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def send_json(self, data: object, status: int = 200) -> None:
        """Send data, or a message with another status."""
        content = {"status": "OK", "data": data} if status == 200 else {"status": "ERROR", "message": data}
        self.send(status, json.dumps(content).encode(), Content_Type="application/json")

    def send_fault(self, fault: str) -> bool:
        """Send what a fault makes of the answer; False for no such fault."""
        if fault == "page":
            self.send(200, PAGE, Content_Type="text/html;charset=UTF-8")
        elif fault.isdecimal():
            self.send(int(fault), b"", Retry_After="0")
        elif fault == "empty":
            self.send_json({"": ""})
        elif fault == "chunk":
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"3\r\nabc\r\n")
            self.close_connection = True
        elif fault == "reset":
            self.reset()
        else:
            return False
        return True

    def reset(self) -> None:
        """Break the connection."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def answer_api(self) -> None:
        """Answer as the native API does."""
        dataverse, parts = self.dataverse, urlsplit(self.path)
        key = self.headers.get("X-Dataverse-key")
        if key is not None and key != dataverse.token:
            self.send_json(f"Bad API key {key}", 401)
            return
        if match := re.fullmatch(r"/api/access/datafile/(\d+)", parts.path):
            self.redirect(int(match[1]), key)
            return
        if dataverse.api_faults and self.send_fault(dataverse.api_faults.pop(0)):
            return
        if parse_qs(parts.query).get("persistentId") != [DOI]:
            self.send_json("Dataset with Persistent ID not found.", 404)
            return
        kind = parts.path.removeprefix("/api/datasets/:persistentId/versions/:latest-published")
        data: dict[str, object] = {
            "": dataverse.version,
            "/files": [{**file.describe(), "restricted": dataverse.restricted} for file in dataverse.files],
            "/citation": {
                "message": 'Doe, J., 2026, "Made-up connectome", <a href="x">https://doi.org/10.5072</a>, V1'
            },
        }
        self.send_json(data[kind])

    def redirect(self, number: int, key: str | None) -> None:
        """Redirect to an address of the storage that is valid once."""
        dataverse = self.dataverse
        if dataverse.token and key is None:
            self.send_json("You do not have permission to download this file.", 403)
            return
        file = next((file for file in dataverse.files if file.id == number), None)
        if file is None:
            self.send_json("not found", 404)
            return
        address = f"/bucket/{number}?X-Amz-Signature={random.getrandbits(64):x}"
        with dataverse.lock:
            dataverse.addresses[address] = file
        self.send(303, b"", Location=dataverse.storage + address)

    def send_content(self) -> None:
        """Answer as the storage does, and count it meanwhile."""
        with self.dataverse.lock:
            self.dataverse.n_active += 1
        try:
            self.answer_storage()
        finally:
            with self.dataverse.lock:
                self.dataverse.n_active -= 1

    def answer_storage(self) -> None:
        """Answer as the storage does, with the file's next fault."""
        dataverse = self.dataverse
        with dataverse.lock:
            file = dataverse.addresses.pop(self.path, None)
        if file is None:
            self.send(403, b"<Error><Code>AccessDenied</Code></Error>", Content_Type="application/xml")
            return
        faults = dataverse.faults.get(file.path, [])
        fault = faults.pop(0) if faults else ""
        if self.send_fault(fault):
            return
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "bytes=0-"))
        start = int(asked[1]) if asked and fault != "whole" else 0
        total = file.n_bytes + (1 if fault == "longer" else 0)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(total - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        self.end_headers()
        cut = int(fault.removeprefix("cut ")) if fault.startswith("cut ") else dataverse.cut()
        for chunk in file.read(start):
            content = chunk[::-1] if fault == "wrong" else chunk
            if cut is not None and cut < len(content):
                self.wfile.write(content[:cut])
                dataverse.sent[file.path] += cut
                self.reset() if fault == "" else self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
                return
            self.wfile.write(content)
            dataverse.sent[file.path] += len(content)
            cut = None if cut is None else cut - len(content)


@contextmanager
def serving(files: Mapping[str, bytes | Path], token: str | None = TOKEN) -> Iterator[Dataverse]:
    """Serve a dataset with these files until the block ends."""
    dataverse = Dataverse(files, token)
    dataverse.start()
    try:
        yield dataverse
    finally:
        dataverse.stop()
