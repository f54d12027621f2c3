"""A backfill in this process: every kind of source, what rows say, what is recorded and what is refused."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from bulk.__main__ import main
from bulk.errors import PlanError, SourceError, TroubleError
from bulk.run import run_bulk
from moderation_client import AuthenticationError, ContractError
from moderation_client.testing import Break, Fail, FakeServer
from serve.server import TritonServer
from tests.bulk_sources import BROKEN, bulk_config, folder, pictures, rows_of, table, tar

NUM = 40


def test_folder_gives_one_row_an_input(server: FakeServer, tmp_path: Path) -> None:
    """Every file has its row under its path, with the whole verdict; broken ones say why; all requests are of low priority."""
    files = {**pictures(NUM), "notes.txt": b"no picture", ".hidden": b"not an input"}
    source = folder(tmp_path / "in", files)
    counts = run_bulk(bulk_config(source, tmp_path / "out", server.url))
    rows = rows_of(tmp_path / "out")
    assert sorted(row["id"] for row in rows) == sorted(set(files) - {".hidden"})
    assert counts.num_images == len(rows) == NUM + 1
    broken = {row["id"] for row in rows if row["error"]}
    assert broken == {name for name in files if files[name] in (BROKEN, b"no picture")}
    assert all(row["decision"] == "review" for row in rows if row["error"])
    [red] = [row for row in rows if row["id"] == "1/picture-025.png"]
    assert dict(red["scores"])["red"] == red["score"] == pytest.approx(25 / 255)
    record = json.loads(red["json"])
    assert record["id"] == red["id"]
    assert record["decision"] == red["decision"] == "allow"
    assert (red["model_version"], red["policy_version"]) == ("1", record["policy_version"])
    assert {request.parameters["priority"] for request in server.requests} == {2}
    assert {request.version for request in server.requests} == {"1"}


def test_tables_of_bytes_and_of_paths_agree(server: FakeServer, tmp_path: Path) -> None:
    """Bytes, paths (relative and absolute) and structs of both give the same decisions, in the table's order, under its ids."""
    files = pictures(NUM)
    root = folder(tmp_path / "tables", files)
    paths = [name if index % 2 else str(root / name) for index, name in enumerate(files)]
    structs = [{"bytes": content, "path": "elsewhere"} for content in files.values()]
    columns: dict[str, list[Any]] = {"bytes": list(files.values()), "path": paths, "image": structs}
    found = {}
    for name, values in columns.items():
        source = table(root / f"{name}.parquet", {"id": list(files), name: values}, row_group_size=5)
        run_bulk(bulk_config(source, tmp_path / name, server.url))
        found[name] = [(row["id"], row["decision"], row["score"]) for row in rows_of(tmp_path / name)]
    assert [each[0] for each in found["bytes"]] == list(files)
    assert found["bytes"] == found["path"] == found["image"]


def test_rows_without_a_picture_are_recorded(server: FakeServer, tmp_path: Path) -> None:
    """Null, a missing file, and an address in another store each cost their own row; nothing is fetched."""
    paths = [None, "gone.png", "http://127.0.0.1:9/secret.png", "there.png"]
    source = table(folder(tmp_path, {"there.png": encoded_red()}) / "t.parquet", {"path": paths})
    run_bulk(bulk_config(source, tmp_path / "out", server.url))
    assert [(row["id"], row["error"]) for row in rows_of(tmp_path / "out")] == [
        ("t.parquet:0", "empty"),
        ("t.parquet:1", "unreadable"),
        ("t.parquet:2", "unreadable"),
        ("t.parquet:3", None),
    ]


def encoded_red() -> bytes:
    """Give the file of one good picture."""
    return pictures(1)["0/picture-000.png"]


def test_archives_give_their_pictures(server: FakeServer, tmp_path: Path) -> None:
    """A tar's pictures are judged and its labels are not; one that breaks off gives what it has and one row that says so."""
    files = pictures(NUM)
    whole = tar(tmp_path / "in" / "a.tar", {**files, "0/picture-000.json": b"{}"})
    (tmp_path / "in" / "b.tar").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    run_bulk(bulk_config(tmp_path / "in", tmp_path / "out", server.url))
    rows = rows_of(tmp_path / "out")
    assert [row["id"] for row in rows if row["shard"] == 0] == [f"a.tar/{name}" for name in files]
    half = [row for row in rows if row["shard"] == 1]
    assert 5 < len(half) < NUM
    assert half[-1]["error"] == "unreadable"
    assert "breaks off" in half[-1]["error_message"]


def test_stores_are_read_and_written(server: FakeServer, tmp_path: Path) -> None:
    """Source and result may be fsspec URLs of any store."""
    store = fsspec.filesystem("memory")
    for name, content in pictures(NUM).items():
        store.pipe_file(f"/catalogue/{name}", content)
    try:
        run_bulk(bulk_config("memory://catalogue", "memory://verdicts", server.url))
        store.get("/verdicts", str(tmp_path / "out"), recursive=True)
        assert len(rows_of(tmp_path / "out")) == NUM
    finally:
        store.rm("/catalogue", recursive=True)
        store.rm("/verdicts", recursive=True)


def test_another_backfill_is_refused(server: FakeServer, tmp_path: Path) -> None:
    """A result folder belongs to its source, shard size and version; asked for differently, nothing is touched."""
    source = folder(tmp_path / "in", pictures(10))
    run_bulk(bulk_config(source, tmp_path / "out", server.url))
    changes: list[dict[str, Any]] = [
        {"shard_size": 8},
        {"model_version": "2"},
        {"reading": {"pattern": "*.jpg"}},
    ]
    for changed in changes:
        with pytest.raises(PlanError, match="was begun with"):
            run_bulk(bulk_config(source, tmp_path / "out", server.url, **changed))
    with pytest.raises(PlanError, match="source"):
        run_bulk(bulk_config(tmp_path, tmp_path / "out", server.url))


def test_what_is_added_later_is_not_judged(server: FakeServer, tmp_path: Path) -> None:
    """The plan fixes what is judged: files that come later wait for the next backfill, files that went get their row."""
    source = folder(tmp_path / "in", pictures(20))
    config = bulk_config(source, tmp_path / "out", server.url)
    run_bulk(config)
    (tmp_path / "out" / "part-0000001.parquet").unlink()
    folder(source, {"0/added.png": encoded_red()})
    (source / "0" / "picture-018.png").unlink()
    run_bulk(config)
    rows = rows_of(tmp_path / "out")
    assert len(rows) == 20
    assert "0/added.png" not in {row["id"] for row in rows}


def test_trouble_of_the_service_is_waited_for(server: FakeServer, tmp_path: Path) -> None:
    """Failures in the middle lose and double nothing, and no trouble is written down as a verdict."""
    source = folder(tmp_path / "in", pictures(NUM))
    server.script(*[Fail("INTERNAL", "trouble"), Fail("UNAVAILABLE", "Exceeds maximum queue size")] * 3)
    run_bulk(bulk_config(source, tmp_path / "out", server.url, workers=1))
    rows = rows_of(tmp_path / "out")
    assert [(row["shard"], row["row"]) for row in rows] == [(index // 7, index % 7) for index in range(NUM)]
    assert {row["error"] for row in rows} <= {None, "truncated"}


def test_a_service_that_stays_away_stops_the_run(server: FakeServer, tmp_path: Path) -> None:
    """After the patience the run ends with what to do, and goes on from there when the service is back."""
    source = folder(tmp_path / "in", pictures(NUM))
    config = bulk_config(source, tmp_path / "out", server.url, service={"patience_s": 0.2, "timeout_s": 1.0})
    server.always(Fail("INTERNAL", "trouble"))
    with pytest.raises(TroubleError, match="same command again"):
        run_bulk(config)
    server.always(None)
    assert run_bulk(config).num_images == NUM


def test_what_waiting_cannot_mend_stops_at_once(server: FakeServer, tmp_path: Path) -> None:
    """Answers that break the contract and refused tokens are not waited for."""
    source = folder(tmp_path / "in", pictures(NUM))
    server.always(Break("wrong shape"))
    with pytest.raises(ContractError):
        run_bulk(bulk_config(source, tmp_path / "out", server.url))
    with FakeServer(token="secret") as closed, pytest.raises(AuthenticationError):
        run_bulk(bulk_config(source, tmp_path / "other", closed.url, model_version="1"))


@pytest.mark.parametrize("kind", ["nothing", "no column", "no table"])
def test_sources_that_cannot_be_used_are_named(server: FakeServer, tmp_path: Path, kind: str) -> None:
    """The message names the place and what is there."""
    source, word = tmp_path / "gone", "no such file"
    if kind == "no column":
        source, word = table(tmp_path / "t.parquet", {"name": ["a"]}), "--column"
    elif kind == "no table":
        source, word = tmp_path / "t.parquet", "Parquet"
        source.write_bytes(b"nonsense")
    with pytest.raises(SourceError, match=word):
        run_bulk(bulk_config(source, tmp_path / "out", server.url))
    assert not (tmp_path / "out" / "_plan" / "plan.json").exists()


@pytest.fixture
def interruptible() -> Iterator[None]:
    """What a shell starts in the background ignores SIGINT, and its children inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_interrupt_ends_quickly_and_keeps_what_is_done(server: FakeServer, tmp_path: Path) -> None:
    """Ctrl-C stops within an image's time; what is committed stays and the same command goes on."""
    source = folder(tmp_path / "in", pictures(NUM))
    words = [
        str(source),
        "--out",
        str(tmp_path / "out"),
        "--url",
        server.url,
        "--shard-size",
        "5",
        "--nice",
        "0",
    ]
    server.model.latency_s = 2.0  # nothing may be done before the signal comes
    timer = threading.Timer(0.5, lambda: signal.raise_signal(signal.SIGINT))
    timer.start()
    assert main([*words, "--workers", "1"]) == 130
    timer.join()
    server.model.latency_s = 0.0
    assert main(words) == 0
    assert len(rows_of(tmp_path / "out")) == NUM


def test_real_server_judges_a_backfill(
    triton: TritonServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command line against the real server: complete, with a summary that says what it cost."""
    source = folder(tmp_path / "in", pictures(NUM))
    words = [str(source), "--out", str(tmp_path / "out"), "--url", triton.grpc_url, "--nice", "0"]
    assert main([*words, "--cost-per-hour", "1.5"]) == 0
    told = capsys.readouterr().out
    assert f"images     {NUM} (" in told
    assert "for a million images" in told
    assert len(rows_of(tmp_path / "out")) == NUM


def test_every_thread_steps_back() -> None:
    """Also those that were there before: what decodes must not run at the priority of what serves."""
    code = (
        "import os, threading\n"
        "from bulk.work import step_back\n"
        "asked, answer = threading.Event(), []\n"
        "def early(): asked.wait(); answer.append(os.getpriority(os.PRIO_PROCESS, 0))\n"
        "thread = threading.Thread(target=early); thread.start()\n"
        "before = os.getpriority(os.PRIO_PROCESS, 0); step_back(before + 3); step_back(0)\n"
        "asked.set(); thread.join(); print(min(before + 3, 19), answer[0], os.getpriority(os.PRIO_PROCESS, 0))\n"
    )
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert len(set(said.split())) == 1


CONTAINED = ["unshare", "--pid", "--fork", "--mount-proc"]
"""As in a container whose session began outside."""


@pytest.mark.skipif(not Path("/proc/self/autogroup").exists(), reason="needs a kernel with autogroups")
@pytest.mark.parametrize("command", [[], CONTAINED], ids=["plain", "contained"])
@pytest.mark.parametrize("leads", [False, True])  # its group of processes, as Ray's workers do
def test_worker_apart_has_a_session_of_its_own(command: list[str], *, leads: bool) -> None:
    """Its value counts against other sessions; a program in a terminal stays where Ctrl-C reaches it."""
    if command and subprocess.run([*command, "true"], check=False, capture_output=True).returncode:
        pytest.skip("needs root and unshare")
    code = (
        "import os, pathlib; from bulk.work import step_back\n"
        f"if {leads}: os.setpgid(0, 0)\n"
        "group = pathlib.Path('/proc/self/autogroup'); sessions = [os.getsid(0)]\n"
        "step_back(5); sessions.append(os.getsid(0)); step_back(5, apart=True); sessions.append(os.getsid(0))\n"
        "print(sessions[0] == sessions[1], sessions[1] == sessions[2], group.read_text().split()[-1])\n"
    )
    said = subprocess.run(
        [*command, sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout
    assert said.split() == ["True", "False", "5"]


@pytest.mark.skipif(not Path("/proc/self/autogroup").exists(), reason="needs a kernel with autogroups")
def test_service_steps_back_with_the_session_it_has() -> None:
    """Nobody else is in it."""
    code = "import pathlib; from bulk.work import step_back; step_back(6); print(pathlib.Path('/proc/self/autogroup').read_text())"
    said = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, start_new_session=True
    ).stdout
    assert said.split()[-1] == "6"
