"""The files of cluster/: valid by KubeRay's and Ray's own schemas, and in agreement with each other and with sdr1."""

from __future__ import annotations

import copy
import functools
import gzip
import os
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from sdr1.config.files import load

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
KINDS = {"RayCluster": "rayclusters", "RayJob": "rayjobs"}
CRDS = os.environ.get("KUBERAY_CRDS")
needs_crds = pytest.mark.skipif(
    not CRDS, reason="KUBERAY_CRDS names no folder with KubeRay's CRDs (*.yaml.gz)"
)


def read(name: str) -> Any:
    return yaml.safe_load((CLUSTER / name).read_text())


def cluster_spec(name: str) -> dict[str, Any]:
    spec = read(name)["spec"]
    return spec.get("rayClusterSpec", spec)


def set_at(document: Any, path: str, value: Any) -> Any:
    """A copy with `value` at the dotted path; None removes the key."""
    changed = copy.deepcopy(document)
    *parents, last = path.split(".")
    node = changed
    for key in parents:
        node = node[int(key) if isinstance(node, list) else key]
    if value is None:
        del node[last]
    else:
        node[last] = value
    return changed


def nodes(value: Any) -> Iterator[Any]:
    yield value
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for child in children:
        yield from nodes(child)


# KubeRay


@functools.cache
def crd_schema(kind: str) -> dict[str, Any]:
    """The CRD's schema of ray.io/v1, made strict: the API server would drop an unknown key without a word."""
    assert CRDS
    with gzip.open(Path(CRDS) / f"ray.io_{KINDS[kind]}.yaml.gz") as file:
        crd = yaml.load(file, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    schema = next(v["schema"]["openAPIV3Schema"] for v in crd["spec"]["versions"] if v["name"] == "v1")
    for node in nodes(schema):
        if (
            isinstance(node, dict)
            and isinstance(node.get("properties"), dict)
            and node.get("type") == "object"
            and not node.get("x-kubernetes-preserve-unknown-fields")
        ):
            node.setdefault("additionalProperties", False)
    return schema


def validate_kuberay(document: Any) -> None:
    jsonschema.Draft202012Validator(crd_schema(document["kind"])).validate(document)


MANIFESTS = ("raycluster.yaml", "rayjob.yaml")


@needs_crds
@pytest.mark.parametrize("name", MANIFESTS)
def test_manifest_is_valid_by_kuberays_schema(name: str) -> None:
    validate_kuberay(read(name))


@needs_crds
@pytest.mark.parametrize("name", MANIFESTS)
@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("enableInTreeAutoscalling", True),
        ("autoscalerOptions.version", "v3"),
        ("authOptions.mode", "tokens"),
        ("headGroupSpec.rayStartParams.num-cpus", 0),
        ("headGroupSpec.template.spec.containers.0.imagePolicy", "Always"),
        ("workerGroupSpecs.1.maxReplica", 3),
        ("workerGroupSpecs.1.maxReplicas", "3"),
        ("workerGroupSpecs.1.minReplicas", None),
        ("workerGroupSpecs.0.template.spec.securityContext.runAsNonroot", True),
        ("workerGroupSpecs.0.template.spec.containers.0.resources.limit", {"cpu": "1"}),
    ],
)
def test_mistake_in_a_cluster_is_caught(name: str, path: str, value: Any) -> None:
    prefix = "spec.rayClusterSpec." if name == "rayjob.yaml" else "spec."
    with pytest.raises(jsonschema.ValidationError):
        validate_kuberay(set_at(read(name), prefix + path, value))


@needs_crds
@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.entryPoint", "sdr1"),
        ("spec.backoffLimit", "2"),
        ("spec.shutdownAfterJobFinishes", "yes"),
        ("spec.submitterConfig.backOffLimit", 1),
        ("spec.runtimeEnvYAML", {"env_vars": {}}),
    ],
)
def test_mistake_in_a_job_is_caught(path: str, value: Any) -> None:
    with pytest.raises(jsonschema.ValidationError):
        validate_kuberay(set_at(read("rayjob.yaml"), path, value))


def test_job_and_standing_cluster_are_the_same_cluster() -> None:
    assert cluster_spec("rayjob.yaml") == cluster_spec("raycluster.yaml")


def check_cluster(spec: dict[str, Any]) -> None:
    """What the schema cannot say."""
    head, workers = spec["headGroupSpec"], spec["workerGroupSpecs"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert (head["serviceType"], head["enableIngress"]) == ("ClusterIP", False)
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["enableInTreeAutoscaling"] is True
    assert spec["autoscalerOptions"]["version"] == "v2"
    groups = {group["groupName"]: group for group in workers}
    assert list(groups) == ["learner", "rollout", "reward"]
    for group in workers:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"], group["groupName"]
    for pod in (group["template"]["spec"] for group in [head, *workers]):
        assert pod["restartPolicy"] == "Never"  # autoscaler v2
        assert pod["terminationGracePeriodSeconds"] >= 60
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] != 0
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert volumes["shm"]["emptyDir"]["medium"] == "Memory"
        claim = read("volume.yaml")["metadata"]["name"]
        assert volumes["outputs"]["persistentVolumeClaim"]["claimName"] == claim
        (container,) = pod["containers"]
        assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["resources"]["requests"].keys() == container["resources"]["limits"].keys()
    for name, gpus in (("learner", "1"), ("rollout", "1"), ("reward", None)):
        (container,) = groups[name]["template"]["spec"]["containers"]
        assert container["resources"]["limits"].get("nvidia.com/gpu") == gpus


@pytest.mark.parametrize("name", MANIFESTS)
def test_cluster_has_its_properties(name: str) -> None:
    check_cluster(cluster_spec(name))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("headGroupSpec.rayStartParams.num-cpus", "4"),
        ("headGroupSpec.serviceType", "LoadBalancer"),
        ("workerGroupSpecs.1.minReplicas", 9),
        ("workerGroupSpecs.1.template.spec.restartPolicy", "Always"),
        ("headGroupSpec.template.spec.securityContext.runAsUser", 0),
    ],
)
def test_lost_property_is_caught(path: str, value: Any) -> None:
    with pytest.raises(AssertionError):
        check_cluster(set_at(cluster_spec("raycluster.yaml"), path, value))


# ray up


def validate_ray_up(config: dict[str, Any]) -> dict[str, Any]:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


def test_ray_up_file_is_valid_and_keeps_its_properties() -> None:
    prepared = validate_ray_up(read("ray-up.yaml"))
    types = prepared["available_node_types"]
    head = types[prepared["head_node_type"]]
    assert head["resources"] == {"CPU": 0}
    assert "InstanceMarketOptions" not in head["node_config"], "the head is on demand"
    assert types["rollout"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    for node in types.values():
        assert node["min_workers"] <= node["max_workers"] <= prepared["max_workers"]
    starts = prepared["head_start_ray_commands"][-1], prepared["worker_start_ray_commands"][-1]
    assert all(command.startswith("RAY_AUTH_MODE=token ray start ") for command in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
    # Ray's default for AWS would install a nightly Ray into the image.
    commands = prepared["head_setup_commands"] + prepared["worker_setup_commands"]
    assert not any("ray" in command for command in commands)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("max_worker", 3),
        ("max_workers", 1),
        ("provider.type", "awz"),
        ("head_node_type", "heads"),
        ("available_node_types.rollout.max_worker", 3),
        ("available_node_types.rollout.node_config", None),
        ("docker.container_name", None),
        ("initialization_commands", "mount"),
    ],
)
def test_mistake_in_the_ray_up_file_is_caught(path: str, value: Any) -> None:
    with pytest.raises((jsonschema.ValidationError, ValueError, NotImplementedError, AssertionError)):
        validate_ray_up(set_at(read("ray-up.yaml"), path, value))


# All of them


def test_every_file_is_one_plain_document_without_repeated_keys() -> None:
    class Strict(yaml.SafeLoader):
        """PyYAML keeps the last of two equal keys; Kubernetes refuses them."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            keys = [key.value for key, _ in node.value]
            assert len(keys) == len(set(keys)), f"{node.start_mark}: a key twice in {keys}"
            return super().construct_mapping(node, deep)

    for path in sorted(CLUSTER.glob("*.yaml")):
        (document,) = yaml.load_all(path.read_text(), Loader=Strict)
        if path.name != "ray-up.yaml":
            assert {"apiVersion", "kind", "metadata", "spec"} == document.keys(), path.name


SECRET = re.compile(
    r"AKIA[0-9A-Z]{16}|-----BEGIN|://[^/\s:]+:[^/\s@]+@|(?i:(password|token|secret|key)\w*\s*[:=]\s*['\"]?[\w+/=-]{12,})"
)


def check_no_secret(text: str) -> None:
    assert not SECRET.search(text)
    for node in nodes(yaml.safe_load(text)):
        if isinstance(node, dict):
            assert node.get("kind") != "Secret"
            literal = "value" in node and re.search(
                r"(?i)password|token|secret|key|uri", str(node.get("name"))
            )
            assert not literal, node


@pytest.mark.parametrize("path", sorted(CLUSTER.glob("*.yaml")), ids=lambda path: path.name)
def test_no_secret_is_written_down(path: Path) -> None:
    check_no_secret(path.read_text())


@pytest.mark.parametrize(
    "text",
    [
        "kind: Secret",
        "env: [{name: MLFLOW_TRACKING_URI, value: http://a}]",
        "env: [{name: RAY_AUTH_TOKEN, value: abc}]",
        "auth_token: 0123456789abcdef",
        "uri: https://user:pass@mlflow",
    ],
)
def test_a_written_secret_is_caught(text: str) -> None:
    with pytest.raises(AssertionError):
        check_no_secret(text)


def pinned(package: str) -> str:
    (version,) = re.findall(rf"^{package}==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    return version


def test_versions_agree() -> None:
    for name in MANIFESTS:
        assert cluster_spec(name)["rayVersion"] == pinned("ray")
    assert f"Ray {pinned('ray')}:" in (CLUSTER / "README.md").read_text()
    dockerfile = (CLUSTER / "Dockerfile").read_text()
    python = re.search(r"^ARG BASE_IMAGE=python:([\d.]+)-", dockerfile, re.MULTILINE)
    assert python
    assert f"Python {python[1]}," in (ROOT / "constraints.txt").read_text().splitlines()[0]
    assert "pip install -c constraints.txt '.[all]'" in dockerfile
    assert "+cpu" not in pinned("torch"), "the CUDA image takes its torch from the same constraints"


def test_image_is_not_root_and_agrees_with_the_manifests() -> None:
    dockerfile = (CLUSTER / "Dockerfile").read_text()
    users = re.findall(r"^USER (\S+)$", dockerfile, re.MULTILINE)
    assert users == ["1000"]
    pod = cluster_spec("raycluster.yaml")["headGroupSpec"]["template"]["spec"]
    assert pod["securityContext"]["runAsUser"] == int(users[0])
    sources = re.findall(r"^COPY (.+) \S+$", dockerfile, re.MULTILINE)
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for source in " ".join(sources).split():
        assert (ROOT / source).exists(), source
        assert f"!{source.split('/')[0]}" in ignored, source
    # The first build of the wheel stops without a file that it is told to hold.
    held, ahead = (
        tomllib.loads((ROOT / "pyproject.toml").read_text()),
        dockerfile.partition("RUN pip install")[0],
    )
    assert held["project"]["readme"] in ahead
    for source in held["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]:
        assert re.search(rf"^COPY {source}[ /]", ahead, re.MULTILINE), source
    images = {
        node["image"]
        for name in MANIFESTS
        for node in nodes(read(name))
        if isinstance(node, dict) and "image" in node
    }
    assert images == {read("ray-up.yaml")["docker"]["image"]}


def check_train(command: str) -> None:
    """The config and overrides of `sdr1 train ...`, read as sdr1 reads them."""
    words = shlex.split(command)
    assert words[:2] == ["sdr1", "train"], command
    assert words[words.index("--ray-address") + 1] == "auto"
    arguments = [word for word in words[2:] if word not in ("--ray-address", "auto")]
    config = load(ROOT / arguments[0].removeprefix("/opt/sdr1/"), arguments[1:])
    assert config.run.directory.is_relative_to("/outputs"), "on the volume"


def documented() -> list[str]:
    text = (CLUSTER / "README.md").read_text().replace("\\\n", " ")
    return re.findall(r"^    .*?(sdr1 train configs.*)$", text, re.MULTILINE)


def test_train_commands_are_accepted() -> None:
    commands = [read("rayjob.yaml")["spec"]["entrypoint"], *documented()]
    assert len(commands) == 3
    for command in commands:
        check_train(command)


@pytest.mark.parametrize("wrong", ["rollout.worker=2", "learner.device=gpu"])
def test_wrong_override_in_the_entrypoint_is_caught(wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong.partition("=")[0]):
        check_train(f"{read('rayjob.yaml')['spec']['entrypoint']} {wrong}")


def test_entrypoint_is_one_line_for_the_image() -> None:
    entrypoint = read("rayjob.yaml")["spec"]["entrypoint"]
    assert "\n" not in entrypoint
    assert "WORKDIR /opt/sdr1" in (CLUSTER / "Dockerfile").read_text()


def test_files_named_in_the_readme_exist() -> None:
    named = set(re.findall(r"(?:cluster|configs)/[\w./-]+\w", (CLUSTER / "README.md").read_text()))
    assert {f"cluster/{path.name}" for path in CLUSTER.glob("*.yaml")} <= named
    for name in named:
        assert (ROOT / name).is_file(), name
