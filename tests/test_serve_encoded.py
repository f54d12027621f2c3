"""`moderation_encoded`: a file in, the client's own verdict out; nothing that goes wrong reads as harmless."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from moderation_client import Decision
from moderation_client.contract import policy_parameter, spec_parameter
from moderation_client.images import decode
from moderation_client.policy import Policy, Threshold
from serve.admin import Admin
from serve.errors import ModelLoadError
from serve.server import TritonServer
from tests.conftest import StartServer
from tests.serving import eventually, judge, png
from tests.small_model import (
    LABELS,
    add_version,
    encoded_config,
    expected_scores,
    small_config,
    small_policy,
    small_spec,
    write_config,
)

MakeRepository = Callable[..., Path]
RED, BLACK, GLASS = (255, 0, 0), (0, 0, 0), (255, 0, 0, 100)


def test_verdicts_are_those_of_the_clients_decoder_and_policy(triton: TritonServer) -> None:
    """Every field that the file and the scores determine is what the client's own code makes of them."""
    files = [png(RED), png(BLACK), png((130, 120, 250)), png(GLASS, mode="RGBA"), png((90,), mode="L")]
    scores, verdicts = judge(triton.grpc_url, files)
    for file, row, verdict in zip(files, scores, verdicts, strict=True):
        image = decode(file, small_spec().image)
        views = expected_scores(image.pixels)
        assert row == pytest.approx(views.max(axis=0), abs=1e-5)
        outcome = max(
            (small_policy().decide(view) for view in views), key=lambda each: (each.decision, each.margin)
        )
        assert verdict["decision"] == str(outcome.decision)
        assert verdict["label"] == outcome.label
        assert verdict["score"] == pytest.approx(outcome.score, abs=1e-5)
        assert verdict["threshold"] == outcome.threshold
        assert verdict["views"]["looked_at"] == len(image.pixels)
        assert verdict["scores"] == pytest.approx(
            dict(zip(LABELS, views[verdict["views"]["worst"]], strict=True)), abs=1e-5
        )
        assert (verdict["model_name"], verdict["model_version"]) == ("moderation", "1")
        assert (verdict["policy_name"], verdict["policy_version"]) == ("small", small_policy().version)
        assert verdict["error"] is None


def test_broken_files_are_answers_between_their_neighbours(triton: TritonServer) -> None:
    """Empty, foreign and truncated files get a verdict with their error, never `allow`; the others are judged."""
    files = [png(BLACK), b"", b"GET / HTTP/1.1", png(RED)[:60], png(RED)]
    _, verdicts = judge(triton.grpc_url, files, request_id="upload-7")
    assert [each["decision"] for each in verdicts] == ["allow", "review", "review", "review", "block"]
    assert [each["id"] for each in verdicts] == [f"upload-7/{index}" for index in range(5)]
    codes = [each["error"] and each["error"]["code"] for each in verdicts]
    assert codes == [None, "empty", "unsupported_format", codes[3], None]
    assert codes[3] in {"truncated", "corrupt"}
    assert verdicts[1]["schema_version"] == 1


def test_scores_of_a_failed_image_exceed_every_threshold(triton: TritonServer) -> None:
    """Who looks at the scores alone flags an image that was not judged: they are at or above any threshold, and not NaN."""
    scores, _ = judge(triton.grpc_url, [b"not a picture"])
    assert (scores >= 1.0).all()
    assert np.isfinite(scores).all()


def test_single_request_keeps_its_id(triton: TritonServer) -> None:
    """The caller's request id is the verdict's id; without one it is the index."""
    assert judge(triton.grpc_url, [png(RED)], request_id="abc")[1][0]["id"] == "abc"
    assert [each["id"] for each in judge(triton.grpc_url, [png(RED), png(RED)])[1]] == [0, 1]


def test_many_views_are_split_into_the_models_batches(triton: TritonServer) -> None:
    """Eight pictures of two views each are sixteen views: more than one batch, and none is mixed up."""
    levels = [30 * index for index in range(8)]
    scores, verdicts = judge(triton.grpc_url, [png((level, 0, 0, 128), mode="RGBA") for level in levels])
    for level, row, verdict in zip(levels, scores, verdicts, strict=True):
        image = decode(png((level, 0, 0, 128), mode="RGBA"), small_spec().image)
        assert row == pytest.approx(expected_scores(image.pixels).max(axis=0), abs=1e-5)
        assert verdict["views"]["total"] == 2


def test_inner_model_that_takes_smaller_batches_is_asked_in_such(
    start_triton: StartServer, repository_factory: MakeRepository
) -> None:
    """A publisher that is killed between the two folders leaves the old batch size here and the new one there."""
    server = start_triton(repository_factory(config=small_config(max_batch_size=2)))
    _, verdicts = judge(server.grpc_url, [png(RED)] * 7)
    assert [each["decision"] for each in verdicts] == ["block"] * 7


def test_overflow_of_the_inner_queue_is_an_answer_and_passes(
    start_triton: StartServer, repository_factory: MakeRepository
) -> None:
    """When the inner model's queue is full the verdict says `overloaded` and is not `allow`; afterwards all is normal."""
    inner = small_config(max_queue_delay_us=200_000)
    inner.dynamic_batching.preferred_batch_size.append(8)
    inner.dynamic_batching.default_queue_policy.max_queue_size = 1
    server = start_triton(repository_factory(config=inner, encoded=encoded_config(num_instances=3)))
    file = png(BLACK)

    def ask(_: int) -> tuple[str, str | None]:
        verdict = judge(server.grpc_url, [file])[1][0]
        return verdict["decision"], verdict["error"] and verdict["error"]["code"]

    with ThreadPoolExecutor(6) as pool:
        seen = Counter(pool.map(ask, range(36)))
    assert set(seen) == {("review", "overloaded"), ("allow", None)}
    assert [ask(0) for _ in range(3)] == [("allow", None)] * 3


def test_inner_model_that_is_gone_is_an_answer(
    start_triton: StartServer, repository_factory: MakeRepository
) -> None:
    """Without a ready inner model the verdict is an error; when it is back, verdicts are too."""
    server = start_triton(repository_factory())
    assert judge(server.grpc_url, [png(RED)])[1][0]["decision"] == "block"
    admin = Admin(server.http_url, server.admin_headers)
    admin.unload("moderation")
    verdict = eventually(lambda: _error(server, "model_not_ready"), what="error verdict")
    assert verdict["decision"] == "review"
    admin.load("moderation")
    eventually(lambda: judge(server.grpc_url, [png(RED)])[1][0]["decision"] == "block", what="verdicts again")


def _error(server: TritonServer, code: str) -> dict[str, object] | None:
    scores, (verdict,) = judge(server.grpc_url, [png(RED)])
    assert (scores >= 0.9).all() or verdict["error"] is None
    return verdict if verdict["error"] and verdict["error"]["code"] == code else None


def test_labels_and_policy_follow_the_version_that_answers(
    start_triton: StartServer, repository_factory: MakeRepository
) -> None:
    """A new version of the inner model, with other labels, is judged by its own spec and policy, without a reload."""
    repository = repository_factory()
    server = start_triton(repository)
    assert set(judge(server.grpc_url, [png(RED)])[1][0]["scores"]) == set(LABELS)
    add_version(repository, 2)
    labels = ("first", "second", "third")
    path = write_config(repository, small_config(), versions=(1, 2))
    config = text_format.Parse(path.read_text(), pb.ModelConfig())
    spec = json.loads(config.parameters[spec_parameter(2)].string_value) | {"labels": labels}
    config.parameters[spec_parameter(2)].string_value = json.dumps(spec)
    policy = Policy(labels=labels, thresholds={"second": Threshold(review=0.5)}, name="second only")
    config.parameters[policy_parameter(2)].string_value = policy.to_json()
    path.write_text(text_format.MessageToString(config))
    Admin(server.http_url, server.admin_headers).load("moderation")
    verdict = eventually(lambda: _of_version(server, "2"), what="verdict of version 2")
    assert tuple(verdict["scores"]) == labels
    assert (verdict["decision"], verdict["policy_name"]) == ("allow", "second only")


def _of_version(server: TritonServer, version: str) -> dict[str, dict[str, float]] | None:
    verdict = judge(server.grpc_url, [png(RED)])[1][0]
    return verdict if verdict["model_version"] == version else None


def test_policy_file_is_read_again_and_a_broken_one_is_not_obeyed(
    start_triton: StartServer, repository_factory: MakeRepository
) -> None:
    """A platform's own policy beside the model wins, a change takes effect without a reload, a broken one changes nothing."""
    # One instance: each has what it read itself, and we ask one question after the other.
    encoded = encoded_config(num_instances=1)
    encoded.parameters["policy_file"].string_value = "policy.json"
    encoded.parameters["on_error"].string_value = "block"
    encoded.parameters["limit.max_bytes"].string_value = "5000"
    repository = repository_factory(encoded=encoded)
    file = repository / "moderation_encoded" / "policy.json"
    file.write_text(_policy(review=0.99).to_json())
    server = start_triton(repository)

    def decision(picture: bytes = png(RED)) -> str:
        return str(judge(server.grpc_url, [picture])[1][0]["decision"])

    assert decision() == "allow"
    assert decision(b"x") == "block"
    assert decision(png(BLACK) + bytes(6000)) == "block"
    file.write_text(_policy(review=0.5).to_json())
    eventually(lambda: decision() == "review", what="new policy")
    file.write_text("{")

    def warned() -> bool:
        assert decision() == "review"
        return any("stays in force" in line for line in server.log_lines())

    eventually(warned, what="warning")
    assert decision() == "review"


def _policy(*, review: float) -> Policy:
    return Policy(
        labels=LABELS, thresholds={label: Threshold(review=review) for label in LABELS}, name="house"
    )


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("on_error", "allow", "on_error must be review or block"),
        ("limit.max_bites", "1", "limit.max_bites is not a limit"),
        ("policy_file", "../../secret.json", "leads out of the model's folder"),
        ("model", "nobody", r"hold a spec.<version>"),
    ],
)
def test_configuration_mistakes_keep_it_from_loading(
    start_triton: StartServer, repository_factory: MakeRepository, key: str, value: str, words: str
) -> None:
    """A setting that cannot be obeyed is the reason why the model does not load."""
    encoded = encoded_config()
    encoded.parameters[key].string_value = value
    repository = repository_factory(encoded=encoded)
    path = repository / "moderation_encoded" / "config.pbtxt"
    if key == "model":
        encoded = encoded_config()
        encoded.parameters[key].string_value = value
        path.write_text(text_format.MessageToString(encoded))
    with pytest.raises(ModelLoadError, match=words):
        start_triton(repository, load_models=("moderation_encoded",))


def test_documented_curl_command_gives_a_verdict(triton: TritonServer, tmp_path: Path) -> None:
    """The command line of the repository's README, run as it stands there but for the address, prints a verdict."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    text = (Path(__file__).parent.parent / "model_repository" / "README.md").read_text(encoding="utf-8")
    script = text.split("```bash\n# one file, one verdict\n")[1].split("```")[0]
    (tmp_path / "upload.png").write_bytes(png(RED))
    script = script.replace("localhost:8000", triton.http_url)
    done = subprocess.run(
        ["bash", "-euc", script], check=False, cwd=tmp_path, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert json.loads(answer["outputs"][0]["data"][0])["decision"] == str(Decision.BLOCK)
