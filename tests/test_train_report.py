"""The page of a run: where the policy stands on the curve, which mistakes are shown, and pictures out of a table."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from moderation_client.policy import Policy, Threshold
from train.evaluate import Scored, _in_the_world, decide
from train.gallery import Mistake, gallery
from train.plots import cost_curve
from train.record import ScoredImages, file_sha256
from train.report import _mistakes, kept_bytes

POLICY = Policy(
    labels=("a", "b"),
    thresholds={"a": Threshold(review=0.3, block=0.9), "b": Threshold(review=0.6, block=None)},
)


def scored(num: int = 200) -> Scored:
    """Two labels, scores that tell a little."""
    rng = np.random.default_rng(0)
    truth = (rng.random((num, 2)) < 0.3).astype(np.float32)
    scores = np.clip(rng.normal(0.3 + 0.4 * truth, 0.2), 0.001, 0.999).astype(np.float32)
    groups = tuple(map(str, range(num)))
    return Scored(
        labels=("a", "b"), scores=scores, raw=scores, truth=truth, groups=groups, harmful=np.ones(2, bool)
    )


def test_policy_is_on_its_own_cost_curve() -> None:
    """At no step the curve gives what the policy really does; it falls as more is allowed."""
    data = scored()
    missed, reviews, own = cost_curve(data, POLICY, 0.01)
    decided, unsafe = decide(data.scores, POLICY), data.unsafe > 0.5
    rates = {
        f"{word}_{name}": {"value": float((decided[kind] == number).mean())}
        for word, kind in (("harmful", unsafe), ("harmless", ~unsafe))
        for number, name in enumerate(("allow", "review", "block"))
    }
    assert missed[own] == pytest.approx(rates["harmful_allow"]["value"])
    assert reviews[own] == pytest.approx(_in_the_world(rates, 0.01)["reviews_per_million"])
    assert (np.diff(missed) >= 0.0).all()
    assert (np.diff(reviews) <= 0.0).all()


def test_only_what_is_decided_wrongly_is_a_mistake() -> None:
    """Harmful and allowed, harmless and blocked; what goes to a person is none."""
    data = scored()
    names = tuple(Path(f"{index}.png") for index in range(len(data.truth)))
    shown = ("x",) * len(names)
    page = _mistakes("test", ScoredImages(scored=data, paths=names, shown=shown), POLICY, {})
    decided, unsafe = decide(data.scores, POLICY), data.unsafe > 0.5
    assert f"allowed, lowest scores first: {int((unsafe & (decided == 0)).sum())}<" in page
    assert f"blocked, highest scores first: {int((~unsafe & (decided == 2)).sum())}<" in page


def test_pictures_out_of_a_table_are_shown(tmp_path: Path) -> None:
    """A Parquet table's own bytes are used, as long as it is the table that was trained on."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (255, 0, 0)).save(file, "PNG")
    pq.write_table(pa.table({"bytes": [file.getvalue()], "labels": [""]}), tmp_path / "t.parquet")
    record = {
        "data": {"manifest": str(tmp_path / "t.parquet"), "sha256": file_sha256(tmp_path / "t.parquet")}
    }
    ((path, content),) = kept_bytes(record).items()
    assert "data:image/webp" in gallery([Mistake(path=path, caption="c", score=0.5, content=content)])
    assert "file is gone" in gallery([Mistake(path=path, caption="c", score=0.5)])
    record["data"]["sha256"] = "0" * 64
    assert kept_bytes(record) == {}
