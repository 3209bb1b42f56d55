"""Downloads with TemplateFlow's own client, from a server of this machine that answers like TemplateFlow's."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from bids_lacuna.spaces import DEFAULT_SPACE
from bids_lacuna.transforms.templateflow import MissingTransform, find_between, find_images, folders

OTHER = "MNI152NLin2009cAsym"

NAME = f"tpl-{DEFAULT_SPACE}/tpl-{DEFAULT_SPACE}_from-{OTHER}_mode-image_xfm.h5"

CONTENT = b"transform" * 1000


class Answers(BaseHTTPRequestHandler):
    """Answers for one file, whole or cut off."""

    cut = False
    asked: ClassVar[list[str]]

    def do_GET(self) -> None:
        """Send the file, or the beginning of it."""
        self.asked.append(self.path)
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT[:4500] if self.cut else CONTENT)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[type[Answers]]:
    """Serve on this machine, to which the client turns; TemplateFlow's home is not empty."""
    home = tmp_path / "home"
    (home / "tpl-MNI305").mkdir(parents=True)
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(home))
    from templateflow import client

    class Ours(Answers):
        asked: ClassVar[list[str]] = []

    with ThreadingHTTPServer(("127.0.0.1", 0), Ours) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        root = f"http://127.0.0.1:{listening.server_port}"
        monkeypatch.setattr(client, "TemplateFlowClient", partial(client.TemplateFlowClient, s3_root=root))
        yield Ours
        listening.shutdown()
        thread.join()


def test_a_download(server: type[Answers]) -> None:
    """What is missing is downloaded once; a download that is cut off leaves nothing that is taken for the file."""
    (home,) = folders()
    server.cut = True
    with pytest.raises(MissingTransform, match=r"cannot be downloaded .*fetch it by"):
        find_between(OTHER, DEFAULT_SPACE, download=True)
    assert [path.name for path in home.rglob("*")] == ["tpl-MNI305"]
    server.cut = False
    for download in (True, False):
        found = find_between(OTHER, DEFAULT_SPACE, download=download)
        assert found.path == home / NAME
        assert found.path.read_bytes() == CONTENT
    assert server.asked == [f"/{NAME}"] * 2
    assert sorted(path.name for path in home.iterdir()) == [f"tpl-{DEFAULT_SPACE}", "tpl-MNI305"]


@pytest.mark.parametrize("given", ["TEMPLATEFLOW_HOME", "XDG_CACHE_HOME", "HOME"])
def test_folders(given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder is that of TemplateFlow's client."""
    from templateflow.conf.env import get_templateflow_home

    for name in ("TEMPLATEFLOW_HOME", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(given, str(tmp_path))
    assert get_templateflow_home() == folders()[0]


def test_an_atlas_is_downloaded(server: type[Answers]) -> None:
    """An atlas that is missing is downloaded with its table; afterwards it is found without a network."""
    (home,) = folders()
    for download in (True, False):
        (image,) = find_images("Schaefer2018", "400Parcels7Networks", ["dseg"], [DEFAULT_SPACE], download=download)
        stem = f"tpl-{DEFAULT_SPACE}/tpl-{DEFAULT_SPACE}{{}}_atlas-Schaefer2018_desc-400Parcels7Networks_dseg"
        assert image == home / f"{stem.format('_res-01')}.nii.gz"
        assert (home / f"{stem.format('')}.tsv").read_bytes() == image.read_bytes() == CONTENT
    assert len(server.asked) == 2
