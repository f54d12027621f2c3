"""What a backfill promises, on a two-node Ray cluster of this machine: `python benchmarks/backfill.py`, about ten minutes on two cores.

30,000 images (a few hundred photographs, by reference) go through `python -m bulk --ray` against the real server, while a worker is killed
twice and the driver once. Asked: is every row there, once? How fast is it against one client that streams the same pictures
(server, decoding and Ray share this machine in both)? What does interactive traffic feel, whose p99 may grow by one bulk batch?
(Not named bulk.py: a script's own folder comes first on its path, and would hide the package.)
"""

from __future__ import annotations

import contextlib
import datetime
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

import tyro

from benchmarks.arrivals import OpenJob, OpenReport, run_open
from benchmarks.backfill_run import Backfill, Catalogue, stream_rate
from benchmarks.corpus import load_files
from benchmarks.counters import Statistics
from benchmarks.environment import capture_environment
from benchmarks.load import Schedule
from benchmarks.networks import NetworkConfig, ensure_network
from benchmarks.payloads import Payloads
from benchmarks.ray_cluster import ray_cluster
from benchmarks.report import BAR_HEADER, Page, bar_rows, environment_rows, text_table
from benchmarks.results import Bar, Point, Result, file_stem, make_result, write_result
from benchmarks.senders import Route
from benchmarks.serving import Settings, serving
from benchmarks.stats import percentile
from benchmarks.subject import Subject, end_cleanly_on_sigterm, inspect, print_bars
from benchmarks.target import Target
from benchmarks.worker import Worker

RESULTS = Path("runs/benchmarks")


@dataclass(frozen=True, kw_only=True)
class BackfillConfig:
    """Measure a backfill."""

    repository: Path | None = None
    """Published model; by default a network with random weights is exported."""
    backbone: str = "efficientnet_lite0"
    """Network of that repository."""
    max_batch: int = 8
    """Largest batch of server and backfill."""
    num_instances: int = 3
    """Of the model, with one thread each: one more than the backfill's two requests keep busy, so that one is free for whoever waits."""
    num_images: int = 30_000
    """Images of the backfill."""
    num_files: int = 200
    """Different pictures among them; one of them is broken."""
    shard_size: int = 100
    """Images a shard."""
    stream_s: float = 30.0
    """Length of each of the two measurements of the endpoint alone."""
    quiet_s: float = 60.0
    """Length of the window in which only the backfill runs."""
    interactive_s: float = 90.0
    """Length of each window with interactive traffic: without the backfill, and with it."""
    rate_per_s: float = 10.0
    """Interactive requests, Poisson, one image each."""
    out: Path | None = None
    """Where to write, without ending."""


@dataclass(kw_only=True)
class Measurement:
    """Everything that one run found."""

    streamed_per_s: list[float]
    bulk_per_s: float
    alone: Statistics
    """Server's counters while only the backfill ran."""
    without: OpenReport
    beside: OpenReport
    run: Backfill

    @property
    def batch_ms(self) -> float:
        """Mean time that one bulk request is computed."""
        return float(self.alone.mean_ms("compute_infer") or 0.0)


def interactive(config: BackfillConfig, subject: Subject, files: list[bytes], load: Worker) -> OpenReport:
    """Offer interactive traffic: prepared pixels, one image a request, at the default priority."""
    route = Route(via="wire", url=subject.address.url)
    payloads = Payloads(subject=subject, route=route, files=files, schedule=Schedule())
    messages = payloads.job("pixels", 1, 1).requests
    job = OpenJob(
        url=subject.address.url,
        messages=messages,
        rate_per_s=config.rate_per_s,
        duration_s=config.interactive_s,
        slo_ms=1000.0,
    )
    return load.call(run_open, job)


def measure(config: BackfillConfig, subject: Subject, folder: Path) -> Measurement:
    """Run every phase against a server that is there."""
    catalogue = Catalogue(
        folder=folder / "catalogue", num_images=config.num_images, num_files=config.num_files
    )
    catalogue.write()
    files = load_files(None, num_images=16)
    url = subject.address.url
    with Worker() as load:
        streamed = [load.call(stream_rate, url, catalogue.paths(), config.stream_s)]
        without = interactive(config, subject, files, load)
        with ray_cluster(2) as cluster:
            run = Backfill(
                catalogue=catalogue,
                url=url,
                cluster=cluster,
                out=folder / "verdicts",
                shard_size=config.shard_size,
                max_batch=config.max_batch,
            )
            with contextlib.closing(run):
                bulk_per_s, alone = backfill_alone(config, subject, run)
                beside = interactive(config, subject, files, load)
                run.survive()
        streamed.append(load.call(stream_rate, url, catalogue.paths(), config.stream_s))
    return Measurement(
        streamed_per_s=streamed, bulk_per_s=bulk_per_s, alone=alone, without=without, beside=beside, run=run
    )


def backfill_alone(config: BackfillConfig, subject: Subject, run: Backfill) -> tuple[float, Statistics]:
    """Images a second while nothing else happens, and what the server did for them."""
    with Target(subject.address) as target:
        run.start()
        run.wait_for_parts(2)
        before = target.statistics()
        return run.rate_during(config.quiet_s), target.statistics() - before


def bars(found: Measurement) -> list[Bar]:
    """Give what must hold."""
    p99_without, p99_beside = (percentile(each.latency_ms, 99) for each in (found.without, found.beside))
    ids, num_errors = found.run.rows()
    catalogue = found.run.catalogue
    exactly = {
        "inputs without a row": len(set(catalogue.ids()) - set(ids)),
        "inputs with more than one row": len(ids) - len(set(ids)),
        "broken inputs not recorded, or good ones recorded as broken": abs(num_errors - catalogue.num_broken),
        "interactive errors beside the backfill": sum(found.beside.errors.values()),
    }
    words = f"without: {p99_without:.1f}, one bulk batch: {found.batch_ms:.1f}"
    return [
        *(Bar(name=name, measured=number, limit=0, sense="at_most") for name, number in exactly.items()),
        Bar(
            name="backfill ÷ one client's stream, images/s",
            measured=found.bulk_per_s / statistics.mean(found.streamed_per_s),
            limit=0.9,
            sense="at_least",
        ),
        Bar(
            name=f"interactive p99 beside the backfill, ms ({words})",
            measured=p99_beside,
            limit=round(p99_without + found.batch_ms, 1),
            sense="at_most",
        ),
    ]


def points(found: Measurement, num_images: int) -> list[Point]:
    """Raw figures."""
    backfill = {
        "images_per_s": found.bulk_per_s,
        "batch_ms": found.batch_ms,
        "mean_batch": found.alone.mean_batch,
        "total_s": found.run.total_s,
        "images_per_s_with_kills": num_images / found.run.total_s,
        **{f"num_{name}_kills": number for name, number in found.run.num_kills.items()},
    }
    return [
        *(
            Point(settings={"phase": "stream"}, values={"images_per_s": each})
            for each in found.streamed_per_s
        ),
        Point(settings={"phase": "backfill"}, values=backfill),
        found.without.point({"phase": "interactive without backfill"}),
        found.beside.point({"phase": "interactive beside backfill"}),
    ]


def run_all(config: BackfillConfig) -> Result:
    """Start the server, measure, judge."""
    started_at = datetime.datetime.now(datetime.timezone.utc)
    repository = config.repository or ensure_network(NetworkConfig(backbone=config.backbone))
    settings = Settings(
        max_batch_size=config.max_batch,
        num_instances=config.num_instances,
        num_threads=1,
        max_queue_delay_us=0,
    )
    with serving(repository, settings) as running, tempfile.TemporaryDirectory(prefix="backfill-") as folder:
        subject = inspect(running.address, running.pids, "started here")
        found = measure(config, subject, Path(folder))
        return make_result(
            "backfill",
            config,
            points(found, config.num_images),
            bars=bars(found),
            environment=capture_environment(server=subject.server, model=subject.model),
            started_at=started_at,
        )


def rows(result: Result) -> list[list[str]]:
    """Lines of the table."""
    return [
        [str(point.settings["phase"]), name, f"{value:,.1f}" if isinstance(value, float) else str(value)]
        for point in result.points
        for name, value in point.values.items()
        if value is not None
    ]


def page(result: Result) -> Page:
    """One page with what was found."""
    found = Page(
        "A backfill on two Ray nodes",
        "Tens of thousands of images through python -m bulk --ray, with kills, beside interactive traffic.",
    )
    found.heading("Bars")
    found.table(BAR_HEADER, bar_rows(result.bars))
    found.heading("Figures")
    found.table(("phase", "what", "measured"), rows(result), text_columns=(1,))
    found.heading("Measured on")
    found.table(("", ""), environment_rows(result), text_columns=(1,))
    return found


def main(config: BackfillConfig) -> int:
    """Measure, print, write; 1 when a bar is missed."""
    result = run_all(config)
    print(text_table(("phase", "what", "measured"), rows(result)))
    print_bars(result.bars)
    stem = config.out or RESULTS / file_stem(result)
    data = write_result(result, stem.parent, name=f"{stem.name}.json")
    print(f"\n{data}\n{page(result).write(stem.parent / f'{stem.name}.html')}")
    return 1 if result.missed else 0


if __name__ == "__main__":
    end_cleanly_on_sigterm()
    raise SystemExit(main(tyro.cli(BackfillConfig)))
