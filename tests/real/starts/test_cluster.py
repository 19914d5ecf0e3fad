"""Ray alone: deadlines with names, and weights that travel between two nodes."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
import torch
from ray.cluster_utils import Cluster as Nodes
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rlopt.cluster.actors import Inbox, Lost, Pending, Stalled, Workers, own_node
from rlopt.cluster.placement import Demand
from rlopt.cluster.ray_cluster import Cluster
from rlopt.config.sections import ClusterConfig
from rlopt.core.errors import RloptError
from rlopt.weight_sync.engine_client import EngineClient
from rlopt.weight_sync.sender import ShmSender, digest, read_bucket, write_shared

PATHS = {"PYTHONPATH": os.pathsep.join(sys.path)}
"""So that Ray's workers find the classes of this file."""


def config(address: str) -> ClusterConfig:
    return ClusterConfig(address, 1, 0.0, 0.0, start_deadline_s=60.0, step_deadline_s=90.0)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 2, "include_dashboard": False})
    nodes.add_node(num_cpus=1, num_gpus=2)  # Ray counts GPUs, and does not look for them
    joined = Cluster(config(nodes.address))
    yield joined
    joined.close()
    nodes.shutdown()


class Patience:
    """A worker that takes the time it is told to."""

    def work(self, seconds: float) -> float:
        time.sleep(seconds)
        return seconds

    def refuse(self) -> None:
        raise RloptError("key=value: way out")

    def die(self) -> None:
        os._exit(1)

    def close(self) -> None:
        pass


class Engine:
    """Receives weights as a rollout worker does, without vLLM."""

    def __init__(self) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self.versions: list[str] = []
        self.remote_buckets = 0

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        pass

    def start_weight_update(self) -> None:
        pass

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self.tensors |= dict(read_bucket(**update_info))

    def received(self) -> dict[str, str]:
        return {name: digest(tensor) for name, tensor in self.tensors.items()}

    def update_weights_from(self, update_info: dict[str, Any], data: np.ndarray | None) -> None:
        if data is None:
            self.update_weights(update_info)
            return
        self.remote_buckets += 1
        path = write_shared(data.tobytes())
        self.update_weights({**update_info, "path": path})
        Path(path).unlink()

    def finish_weight_update(self, weight_version: str) -> None:
        self.versions.append(weight_version)

    def report(self) -> tuple[str, int, list[str], float]:
        node = ray.get_runtime_context().get_node_id()
        return node, self.remote_buckets, self.versions, float(sum(t.sum() for t in self.tensors.values()))

    def close(self) -> None:
        pass


class Card:
    """Says which card it was given."""

    def card(self) -> tuple[str, list[int]]:
        context = ray.get_runtime_context()
        return context.get_node_id(), context.get_accelerator_ids()["GPU"]

    def close(self) -> None:
        pass


class Weights:
    """Two tensors, one bucket each."""

    def metadata(self) -> list[Any]:
        return []

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield "a", torch.ones(10)
        yield "b", torch.full((5,), 2.0)


def test_a_wait_that_is_over_names_who_is_late_and_for_what(cluster: Cluster) -> None:
    workers = cluster.workers("learner", Patience, 0, PATHS, [], [])
    assert workers.start("work", [0.0], [0.0]).result("warming up") == [0.0, 0.0]
    with pytest.raises(Stalled, match=r"the driver waited 2 s for learner\[1\]: updating step 7"):
        workers.start("work", [0.0], [30.0], deadline_s=2.0).result("updating step 7")
    workers.close()


def test_a_worker_that_dies_and_one_that_refuses_are_distinguished(cluster: Cluster) -> None:
    workers = cluster.workers("engine", Patience, 0, PATHS, [])
    with pytest.raises(RloptError, match=r"^key=value: way out$"):
        workers.call("refuse")
    with pytest.raises(Stalled, match="engine died during: die"):
        workers.call("die")


def test_a_worker_of_another_node_that_is_stopped_is_noticed_long_before_the_deadline_and_can_be_killed(
    cluster: Cluster,
) -> None:
    (other,) = {node["NodeID"] for node in ray.nodes() if node["Alive"]} - {own_node()}
    there = NodeAffinitySchedulingStrategy(other, soft=False)
    options = {"num_cpus": 0, "scheduling_strategy": there, "runtime_env": {"env_vars": PATHS}}
    workers = Workers("learner", [ray.remote(Patience).options(**options).remote()], deadline_s=90.0)
    assert workers.nodes() == [other]
    (place,) = workers._known()
    process = psutil.Process(place.pid)
    process.suspend()
    started = time.monotonic()
    with pytest.raises(Lost, match=r"learner \(process \d+\) has been stopped for \d+ s"):
        workers.call("work", [60.0])
    assert time.monotonic() - started < 60
    workers.kill()
    process.wait(30)


def test_an_inbox_hands_over_each_answer_once_when_it_has_come_whether_good_or_bad(cluster: Cluster) -> None:
    workers = [cluster.workers("engine", Patience, 0, PATHS, ()) for _ in range(3)]
    inbox = Inbox()
    calls = [
        workers[0].start("work", (0.01,)),
        workers[1].start("refuse"),
        workers[2].start("die"),
    ]
    for call in calls:
        inbox.watch(call)
    arrived: list[Pending] = []
    while len(arrived) < 3:
        came = inbox.take(60.0)
        assert came
        arrived += came
    assert set(arrived) == set(calls)
    assert inbox.take() == []
    assert calls[0].result("working") == [0.01]
    with pytest.raises(RloptError, match="^key=value: way out$"):
        calls[1].result("refusing")
    with pytest.raises(Lost, match="engine died during: dying"):
        calls[2].result("dying")


def test_weights_reach_engines_on_both_nodes(cluster: Cluster) -> None:
    workers = cluster.workers("engine", Engine, 0, PATHS, [], [], [], [])
    client = EngineClient(dict(enumerate(workers.handles)), ranks_per_engine=1, deadline_s=90.0, stall_s=90.0)
    client.begin(7, None)
    ShmSender(Weights(), client, is_sender=True, bucket_bytes=40, verify=True).send_weights()
    reports = workers.call("report")
    assert len({node for node, *_ in reports}) == 2
    assert {buckets for _, buckets, _, _ in reports} == {0, 2}  # the other node gets its bytes through Ray
    assert all((versions, total) == (["7"], 20.0) for _, _, versions, total in reports)
    assert client.faults == {}
    workers.close()


def test_an_engine_that_is_dead_gets_no_further_verb_and_the_others_get_theirs(cluster: Cluster) -> None:
    workers = cluster.workers("engine", Engine, 0, PATHS, [], [])
    client = EngineClient(dict(zip((4, 6), workers.handles, strict=True)), ranks_per_engine=1, deadline_s=90.0, stall_s=90.0)
    sender = ShmSender(Weights(), client, is_sender=True, bucket_bytes=40, verify=True)
    ray.kill(workers.handles[0])
    with suppress(ray.exceptions.RayActorError):  # until it is, it may take a verb or two
        while ray.get(workers.handles[0].report.remote(), timeout=30):
            pass
    client.begin(7, None)
    sender.send_weights()
    assert client.faults == {4: "the engine died during start_weight_update"}
    assert ray.get(workers.handles[1].report.remote())[2] == ["7"]
    client.begin(8, [6])
    sender.send_weights()
    assert (client.faults, ray.get(workers.handles[1].report.remote())[2]) == ({}, ["7", "8"])
    workers.close()


def test_engines_and_learner_ranks_that_share_cards_are_paired_and_a_later_engine_has_the_card_of_one_that_is_gone(
    cluster: Cluster,
) -> None:
    cluster.reserve(Demand(engines=2, gpus_per_engine=0.4, learners=2, gpus_per_learner=0.6))
    engines = [cluster.engines(f"engine {number}", Card, PATHS, []) for number in range(2)]  # first, as in a run
    learners = cluster.learners(Card, PATHS, [], [])
    cards = learners.call("card")
    assert len({str(card) for card in cards}) == 2
    assert [engine.call("card")[0] for engine in engines] == cards
    engines[1].close()
    later = cluster.engines("engine 2", Card, PATHS, [])
    assert later.call("card") == [cards[1]]
    for workers in (engines[0], later, learners):
        workers.close()
    ray.util.remove_placement_group(cluster._reserved)


def test_learner_ranks_are_on_as_few_nodes_as_possible_and_engines_whole_on_another(cluster: Cluster) -> None:
    cluster.reserve(Demand(engines=1, gpus_per_engine=2.0, learners=2, gpus_per_learner=1.0))
    engine, learners = cluster.engines("engine 0", Card, PATHS, []), cluster.learners(Card, PATHS, [], [])
    ((home, cards),) = engine.call("card")
    assert len(cards) == 2
    ranks = learners.call("card")
    assert len({node for node, _ in ranks} | {home}) == 2
    assert sorted(card for _, [card] in ranks) == ["0", "1"]
    engine.close()
    learners.close()
    ray.util.remove_placement_group(cluster._reserved)


def test_what_a_cluster_can_never_place_is_refused_with_what_it_has(cluster: Cluster) -> None:
    why = r"4 engine\(s\) of 1 and 1 learner rank\(s\) of 1 need 5 GPU\(s\), and the cluster has 4 \("
    with pytest.raises(RloptError, match=why):
        cluster.reserve(Demand(engines=4, gpus_per_engine=1.0, learners=1, gpus_per_learner=1.0))


def test_gpus_that_others_use_are_waited_for_until_the_deadline(cluster: Cluster) -> None:
    other = ray.util.placement_group([{"GPU": 1.0}] * 3)
    assert other.wait(60)
    cluster._config = replace(cluster._config, start_deadline_s=1.0)
    with pytest.raises(Stalled, match=r"start_deadline_s=1: 2 GPU\(s\) for learner ranks were not free in time, 1 are"):
        cluster.reserve(Demand(engines=0, gpus_per_engine=0.0, learners=2, gpus_per_learner=1.0))
    ray.util.remove_placement_group(other)
    ray.util.remove_placement_group(cluster._reserved)


def test_an_address_where_no_cluster_answers_is_refused() -> None:
    if ray.is_initialized():
        ray.shutdown()
    with pytest.raises(RloptError, match="cluster.address=127.0.0.1:1: no Ray cluster answers"):
        Cluster(config("127.0.0.1:1"))
