"""Images and manifests parse, use the lock files and the Makefile's own commands, and name only what is there."""

import io
import re
import shlex
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from dockerfile_parse import DockerfileParser

from rlopt.config.compose import algorithms, conf_dir

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"


def steps(name: str) -> list[dict[str, str]]:
    parser = DockerfileParser(fileobj=io.BytesIO((DOCKER / name).read_bytes()))
    return [step for step in parser.structure if step["instruction"] != "COMMENT"]


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_an_image_is_a_few_steps_that_set_up_from_its_lock_file_as_the_makefile_does(device: str) -> None:
    found = steps(f"Dockerfile.{device}")
    assert [step["instruction"] for step in found] == ["FROM", "RUN", "WORKDIR", "COPY", "RUN", "ENV", "ENTRYPOINT"]
    lock = f"requirements-{device}.txt"
    assert found[4]["value"] == f"make setup LOCK={lock}"
    assert "libnuma1" in found[1]["value"] or device == "gpu"  # which vLLM for CPUs loads
    assert (ROOT / lock).is_file()
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(r"^setup:", makefile, re.M)
    assert "LOCK ?=" in makefile
    assert yaml.safe_load(found[6]["value"]) == ["python", "-m", "rlopt.train"]


def test_what_is_not_for_an_image_stays_out_of_it() -> None:
    assert {".venv/", "runs/", ".git/"} <= set((ROOT / ".dockerignore").read_text().split())


def test_the_compose_file_has_a_head_a_worker_and_volumes_and_opens_loopback_alone() -> None:
    compose: Any = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    head, worker = compose["services"]["head"], compose["services"]["worker"]
    assert head["ports"] == ["127.0.0.1:8265:8265"]
    assert "ports" not in worker
    for service in (head, worker):
        assert {volume.split(":")[0] for volume in service["volumes"]} == set(compose["volumes"])
        assert (ROOT / "docker" / service["build"]["context"] / "docker/Dockerfile.cpu").resolve().is_file()
        assert service["environment"]["RAY_AUTH_MODE"] == "token"
    _parses_as_ray([*head["entrypoint"]])
    _parses_as_ray(["ray", "start", "--address=127.0.0.1:6379", *worker["entrypoint"][3:]])


def test_the_kuberay_job_runs_a_recipe_on_the_ray_that_is_locked_with_keys_from_a_secret() -> None:
    job: Any = yaml.safe_load((DOCKER / "rayjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["rayVersion"] == version("ray")
    words = shlex.split(job["spec"]["entrypoint"])
    assert words[:3] == ["python", "-m", "rlopt.train"]
    named = dict(word.split("=", 1) for word in words[3:])
    assert named["+algo"] in algorithms()
    assert (conf_dir() / "experiment" / f"{named['+experiment']}.yaml").is_file()
    (workers,) = cluster["workerGroupSpecs"]
    gpus = sum(int(group["resources"]["limits"]["nvidia.com/gpu"]) for group in workers["template"]["spec"]["containers"])
    assert workers["replicas"] * gpus == int(named["rollout.engines"]) + int(named["learner.workers"])
    for group in (cluster["headGroupSpec"], workers):
        spec = group["template"]["spec"]
        (container,) = spec["containers"]
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in spec["volumes"]}
        assert container["envFrom"][0]["secretRef"]["name"] == "rlopt-keys"
        assert not [item for item in container["env"] if re.search("KEY|TOKEN", item["name"])]


def _parses_as_ray(line: list[str]) -> None:
    """Ray's own command line takes these options."""
    from ray.scripts.scripts import start

    assert line[:2] == ["ray", "start"]
    start.make_context("start", line[2:], resilient_parsing=False)
