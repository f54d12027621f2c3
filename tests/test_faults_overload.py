"""Three times what a server can do: refusals are typed and quick, accepted answers are right, interactive goes before backfill, and it ends."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import psutil
import pytest
from onnx import helper, numpy_helper

from benchmarks.fault_load import Load, throughput
from moderation_client import ModerationClient
from serve.server import TritonServer
from tests.conftest import StartServer
from tests.serving import eventually
from tests.small_model import build_repository, small_config
from tests.test_faults_replicas import known_images

QUEUE_SIZE, QUEUE_TIMEOUT_US = 8, 2_000_000
"""Refusals come from the size: a wait this long is a hang, however busy the machine is."""
INTERACTIVE, BACKFILL = 1, 2
MAX_RATE_PER_S = 400.0
"""Above a thousand refusals a second the gRPC front end of this old server crashes."""


def _slow_down(path: Path, *, num_layers: int = 40) -> None:
    """Give the small model convolutions whose result counts for nothing: the same scores, some ten milliseconds later."""
    model = onnx.load(path)
    rng = np.random.default_rng(0)
    last, weights, nodes = (
        "planes",
        [],
        [helper.make_node("Transpose", ["float"], ["planes"], perm=[0, 3, 1, 2])],
    )
    for index in range(num_layers):
        shape = (64, 3 if index == 0 else 64, 3, 3)
        weight = (rng.standard_normal(shape) * 1e-2).astype(np.float32)
        weights.append(numpy_helper.from_array(weight, f"slow{index}"))
        nodes.append(helper.make_node("Conv", [last, f"slow{index}"], [f"c{index}"], pads=[1, 1, 1, 1]))
        last = f"c{index}"
    weights.append(numpy_helper.from_array(np.array([1, 2, 3], np.int64), "all"))
    weights.append(numpy_helper.from_array(np.array(1e-30, np.float32), "nothing"))
    nodes += [
        helper.make_node("ReduceMean", [last, "all"], ["one"], keepdims=0),
        helper.make_node("Mul", ["one", "nothing"], ["naught"]),
        helper.make_node("Unsqueeze", ["naught", "one_axis"], ["column"]),
        helper.make_node("Add", ["logits", "column"], ["late"]),
        helper.make_node("Sigmoid", ["late"], ["scores"]),
    ]
    weights.append(numpy_helper.from_array(np.array([1], np.int64), "one_axis"))
    del model.graph.node[-1]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(weights)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _two_priorities(batching: Any) -> None:
    """A queue of its own for each priority, as the export configures them."""
    batching.priority_levels, batching.default_priority_level = 2, BACKFILL
    batching.priority_queue_policy[INTERACTIVE].CopyFrom(batching.default_queue_policy)
    batching.default_queue_policy.max_queue_size = QUEUE_SIZE
    batching.default_queue_policy.default_timeout_microseconds = QUEUE_TIMEOUT_US


@pytest.fixture
def slow(tmp_path: Path, start_triton: StartServer) -> TritonServer:
    """A server with a slow model; who names no priority waits in a short queue."""
    config = small_config(num_instances=2, max_batch_size=4)
    _two_priorities(config.dynamic_batching)
    repository = build_repository(tmp_path / "repository", config=config)
    version = repository / "moderation" / "1"
    _slow_down(version / "model.onnx")
    (version / "manifest.json").unlink()  # its hash is the quick model's
    return start_triton(repository, load_models=("moderation",))


def _memory(server: TritonServer) -> int:
    return sum(int(psutil.Process(pid).memory_info().rss) for pid in server.pids())


def _num_of_each(flood: Load) -> int:
    """How many were answered, or refused, whichever is less."""
    return min(flood.outcomes().get(name, 0) for name in ("ok", "overloaded"))


def test_overload_is_refused_and_leaves_nothing_behind(slow: TritonServer) -> None:
    """Three times the capacity: what is accepted is right, the rest is OverloadedError, and afterwards all is as before."""
    known = known_images()
    with ModerationClient(slow.grpc_url, max_in_flight=128) as client:
        with Load(client, known, num_callers=4) as load:
            load.wait(num_calls=100)
        capacity_per_s = throughput(load.calls, 0.2, load.calls[-1].done_s)
        assert load.outcomes() == {"ok": load.num_asked}
        before = _memory(slow)
        rate = min(3 * capacity_per_s, MAX_RATE_PER_S)
        with Load(client, known, num_callers=100, rate_per_s=rate) as flood:
            flood.wait(seconds=3.0)
            eventually(lambda: _num_of_each(flood) >= 20, what="both")
        outcomes = flood.outcomes()
        assert set(outcomes) == {"ok", "overloaded"}, outcomes
        with Load(client, known, num_callers=2) as load:
            load.wait(num_calls=20)
        assert load.outcomes() == {"ok": load.num_asked}
    assert _memory(slow) - before < 64 * 2**20


def test_interactive_goes_before_backfill(slow: TritonServer) -> None:
    """While a backfill at priority 2 takes more than there is, callers at priority 1 lose nothing."""
    known = known_images()
    with ExitStack() as stack:
        backfill = stack.enter_context(ModerationClient(slow.grpc_url, priority=BACKFILL, max_in_flight=128))
        interactive = stack.enter_context(ModerationClient(slow.grpc_url, priority=INTERACTIVE))
        with (
            Load(backfill, known, num_callers=100, rate_per_s=MAX_RATE_PER_S) as flood,
            Load(interactive, known, num_callers=2, rate_per_s=10.0) as load,
        ):
            load.wait(num_calls=30)
    assert load.outcomes() == {"ok": load.num_asked}
    assert flood.outcomes().get("overloaded", 0) > flood.num_asked // 10
