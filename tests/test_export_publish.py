"""Versions appear whole, one at a time, and an older one is one command away."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton

from export import operations
from export.commit import open_staging
from export.config_pbtxt import read_config, to_text
from export.errors import LockedError, ProbeError, RepositoryError, TargetError
from export.golden import TOLERANCE, check_golden
from export.probe import private_server
from export.publish import publish
from export.repository import State, stage_model
from export.serving import Serving
from export.variants import VariantConfig
from export.version import Version, read_version, verify_version
from moderation_client.contract import ModelSpec, policy_parameter, spec_parameter
from tests.serving import eventually
from tests.small_export import quick_config, small_source


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Publish every variant, proved by a private server; read only."""
    folder = tmp_path_factory.mktemp("served")
    variants = VariantConfig(variants=("fp32", "fp16", "int8"), max_batch_size=4)
    serving = Serving(instances=2, threads=1, max_batch_size=4)
    config = quick_config(folder / "repository", variants=variants, serving=serving, probe="server")
    publish(small_source(folder / "source"), config)
    return folder / "repository"


def snapshot(repository: Path) -> dict[str, bytes]:
    """Every file with its content."""
    return {
        str(path.relative_to(repository)): path.read_bytes()
        for path in repository.rglob("*")
        if path.is_file()
    }


def test_version_holds_variants_spec_policy_golden_images_and_checksums(served: Path) -> None:
    """Everything that a version is, is in its folder and in its manifest."""
    version = read_version(served / "moderation" / "1")
    assert set(version.spec.files) == {"model.onnx", "model_fp16.onnx", "model_int8.onnx"}
    assert version.spec.version == 1
    assert version.policy is not None
    assert version.golden().dtype == np.uint8
    assert set(version.golden_scores) == set(version.spec.files)
    assert version.gpu_file == "model_fp16.onnx"
    assert verify_version(version.path) == []


def test_cpu_warms_up_with_fewer_images_than_a_gpu(tmp_path: Path) -> None:
    """A CPU compiles nothing for a batch size, and replicas that start take the time from their neighbours."""
    repository = tmp_path / "repository"
    publish(small_source(tmp_path / "s"), quick_config(repository))
    operations.configure(repository, Serving(max_batch_size=16))
    found = {
        name: [each.batch_size for each in read_config(repository / "moderation" / name).model_warmup]
        for name in ("config.pbtxt", "configs/cpu.pbtxt", "configs/gpu.pbtxt")
    }
    assert found == {"config.pbtxt": [1, 8], "configs/cpu.pbtxt": [1, 8], "configs/gpu.pbtxt": [1, 16]}


def test_config_says_everything_and_carries_spec_and_policy(served: Path) -> None:
    """Instances, threads, batching, queues, priorities, warm-up, version and the wire contract are explicit."""
    config = read_config(served / "moderation" / "config.pbtxt")
    assert (config.backend, config.max_batch_size) == ("onnxruntime", 4)
    assert config.instance_group[0].count == 2
    assert config.parameters["intra_op_thread_count"].string_value == "1"
    assert config.version_policy.specific.versions == [1]
    batching = config.dynamic_batching
    assert batching.default_priority_level == 1
    assert batching.priority_levels == 2
    assert batching.default_queue_policy.max_queue_size > 0
    assert batching.default_queue_policy.default_timeout_microseconds > 0
    assert batching.default_queue_policy.allow_timeout_override
    assert sorted(sample.batch_size for sample in config.model_warmup) == [1, 4]
    spec = ModelSpec.from_json(config.parameters[spec_parameter(1)].string_value)
    assert spec == read_version(served / "moderation" / "1").spec
    assert policy_parameter(1) in config.parameters
    gpu = read_config(served / "moderation" / "configs" / "gpu.pbtxt")
    accelerator = gpu.optimization.execution_accelerators.gpu_execution_accelerator[0]
    assert accelerator.parameters["trt_profile_max_shapes"] == "image:4x32x32x3"
    assert accelerator.parameters["precision_mode"] == "FP16"
    assert gpu.parameters["cudnn_conv_algo_search"].string_value == "1"


def test_real_server_gives_golden_scores_and_batches_under_load(served: Path) -> None:
    """Scores from the server equal the in-process ones, and one instance merges concurrent callers."""
    version = read_version(served / "moderation" / "1")
    golden = version.golden()
    with private_server(served, "moderation") as url:
        client = triton.InferenceServerClient(url)
        part = triton.InferInput("image", golden[:4].shape, "UINT8")
        part.set_data_from_numpy(golden[:4])
        scores = client.infer("moderation", [part]).as_numpy("scores")
        client.close()
    assert np.abs(scores - version.golden_scores[version.cpu_file][:4]).max() <= 1e-5


def test_golden_scores_are_those_of_the_file_that_the_server_runs(served: Path, tmp_path: Path) -> None:
    """A GPU configuration names another variant, whose scores are others."""
    copy = Path(shutil.copytree(served, tmp_path / "repository"))
    version = read_version(copy / "moderation" / "1")
    other = min({"model.onnx", "model_int8.onnx"} - {version.cpu_file})
    for path in (copy / "moderation").glob("configs/*.pbtxt"):
        config = read_config(path)
        config.default_model_filename = other
        path.write_text(to_text(config))
    with private_server(copy, "moderation") as url:
        assert check_golden(url, version) <= TOLERANCE
    scores = version.golden_scores
    assert np.abs(scores[other] - scores[version.cpu_file]).max() > TOLERANCE


def test_private_server_ends_with_a_publisher_that_is_killed(served: Path) -> None:
    """SIGKILL leaves nobody to stop it: the kernel does."""
    program = (
        "import sys, psutil, time; from pathlib import Path; from export.probe import private_server\n"
        "with private_server(Path(sys.argv[1]), 'moderation'):\n"
        "    print(*(each.pid for each in psutil.Process().children(recursive=True)), flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", program, str(served)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as publisher:
        assert publisher.stdout is not None
        numbers = [int(word) for word in publisher.stdout.readline().split()]
        publisher.kill()
    assert len(numbers) >= 2
    eventually(lambda: not any(psutil.pid_exists(number) for number in numbers), what="end of the servers")


def test_version_that_the_server_does_not_reproduce_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Golden scores that another run does not give stop the publisher, and nothing changes."""
    repository = tmp_path / "repository"
    publish(small_source(tmp_path / "s"), quick_config(repository))
    before = snapshot(repository)
    monkeypatch.setattr(
        "export.publish._score", lambda built, golden, config: np.zeros((len(golden), 2), np.float32)
    )
    with pytest.raises(ProbeError, match="golden scores differ"):
        publish(small_source(tmp_path / "s", seed=1), quick_config(repository))
    assert snapshot(repository) == before
    assert list((tmp_path / ".repository.staging").iterdir()) == [tmp_path / ".repository.staging" / "lock"]


def test_model_that_the_server_cannot_load_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The private server's own words are in the error."""
    repository = tmp_path / "repository"
    publish(small_source(tmp_path / "s"), quick_config(repository))
    before = snapshot(repository)

    def spoil(target: Path, versions: Mapping[int, Version], state: State) -> None:
        stage_model(target, versions, state)
        text = (target / "configs" / "cpu.pbtxt").read_text()
        (target / "configs" / "cpu.pbtxt").write_text(
            text.replace('string_value: "1"', 'string_value: "one"')
        )

    monkeypatch.setattr("export.operations.stage_model", spoil)
    with pytest.raises(ProbeError, match="did not load"):
        publish(small_source(tmp_path / "s", seed=1), quick_config(repository, probe="server"))
    assert snapshot(repository) == before


def test_second_publisher_is_refused_while_the_first_is_at_work(tmp_path: Path) -> None:
    """The lock names the repository."""
    with open_staging(tmp_path / "repository"), pytest.raises(LockedError, match="repository"):
        operations.prune(tmp_path / "repository")


def test_repository_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    """A model folder without our state file is not overwritten."""
    (tmp_path / "repository" / "moderation" / "1").mkdir(parents=True)
    with pytest.raises(RepositoryError, match="not written by this program"):
        publish(small_source(tmp_path / "s"), quick_config(tmp_path / "repository"))


def test_histogram_buckets_come_with_a_target_that_knows_them(tmp_path: Path) -> None:
    """24.10 gets none, 24.12 does."""
    publish(small_source(tmp_path / "s"), quick_config(tmp_path / "old"))
    publish(small_source(tmp_path / "s"), quick_config(tmp_path / "new", target_triton="24.12"))
    assert not read_config(tmp_path / "old" / "moderation" / "config.pbtxt").HasField("model_metrics")
    assert read_config(tmp_path / "new" / "moderation" / "config.pbtxt").HasField("model_metrics")
    with pytest.raises(TargetError, match=r"22\.01"):
        publish(small_source(tmp_path / "s"), quick_config(tmp_path / "ancient", target_triton="22.01"))


def test_owner_can_keep_policy_and_images_out_of_the_repository(tmp_path: Path) -> None:
    """Without the policy no caller reads it, and synthetic golden images hold nobody's picture."""
    source = small_source(tmp_path / "s")
    published = publish(source, quick_config(tmp_path / "r", carry_policy=False, golden="synthetic"))
    config = read_config(tmp_path / "r" / "moderation" / "config.pbtxt")
    assert policy_parameter(1) not in config.parameters
    real = {image.tobytes() for image in source.images.test.pixels}
    assert real.isdisjoint(image.tobytes() for image in published.version.golden())
