"""report.html: one self-contained page about a run, for the people who answer for its thresholds."""

from __future__ import annotations

import html
import json
from pathlib import Path


def write_report(run: Path) -> Path:
    """Write report.html from the run's own files and give its path."""
    results = json.loads((run / "metrics.json").read_text())
    page = run / "report.html"
    page.write_text(
        f"<!doctype html><title>{html.escape(run.name)}</title><pre>{html.escape(json.dumps(results, indent=1))}</pre>"
    )
    return page
