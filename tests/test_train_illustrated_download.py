"""Artwork is fetched from a registry by the real npm; the registry in these tests is a local stand-in."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.test_train_illustrated import make_package
from train.illustrated_packages import Package, obtain


class Registry(BaseHTTPRequestHandler):
    """Answers for one package: its description, and its tarball."""

    def __init__(self, package: Package, tarball: bytes, *args: object) -> None:
        """Remember what to serve, then handle the request."""
        self.package, self.tarball = package, tarball
        super().__init__(*args)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        """Tarball for a path that ends so, else the description."""
        body = self.tarball if self.path.endswith(".tgz") else json.dumps(self._description()).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test's output clean."""

    def _description(self) -> dict[str, object]:
        assert isinstance(self.server, ThreadingHTTPServer)
        address = f"http://127.0.0.1:{self.server.server_port}/art.tgz"
        dist = {"tarball": address, "integrity": self.package.integrity}
        name, version = self.package.package, self.package.version
        return {
            "name": name,
            "dist-tags": {"latest": version},
            "versions": {version: {"name": name, "version": version, "dist": dist}},
        }


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Package]:
    """Pin of a package that the registry npm is pointed to has."""
    package = make_package(tmp_path / "elsewhere")
    tarball = (tmp_path / "elsewhere" / package.tarball).read_bytes()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Registry, package, tarball)) as server:
        monkeypatch.setenv("NPM_CONFIG_REGISTRY", f"http://127.0.0.1:{server.server_port}/")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield package
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("relative", [True, False])
def test_package_arrives_in_the_folder(
    package: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, relative: bool
) -> None:
    """Wherever the folder is named from, the tarball lands in it, and nothing else stays."""
    monkeypatch.chdir(tmp_path)
    folder = Path("data/packages") if relative else tmp_path / "data" / "packages"
    assert obtain(package, folder).read_bytes() == (tmp_path / "elsewhere" / package.tarball).read_bytes()
    assert [path.name for path in (tmp_path / "data" / "packages").iterdir()] == [package.tarball]
