"""How many cards a run takes, and which clusters can never have room for it."""

import pytest

from rlopt.cluster.placement import Demand, shortage


@pytest.mark.parametrize(
    ("demand", "cards"),
    [
        (Demand(2, 0.0, 4, 0.0), 0),
        (Demand(2, 4.0, 8, 1.0), 16),
        (Demand(2, 0.4, 2, 0.6), 2),  # an engine and a rank have a card between them
        (Demand(1, 0.4, 4, 0.6), 4),
        (Demand(1, 0.9, 1, 0.1), 1),
        (Demand(5, 0.4, 0, 0.0), 3),  # two engines a card
        (Demand(10, 0.1, 0, 0.0), 1),
        (Demand(2, 1.0, 3, 0.5), 4),
    ],
)
def test_cards_that_a_run_takes(demand: Demand, cards: int) -> None:
    assert demand.cards == cards


def test_a_card_is_reserved_for_every_pair_and_else_those_of_learner_ranks() -> None:
    assert Demand(1, 0.4, 2, 0.6).bundles == [{"GPU": 1.0}, {"GPU": 1.0}]
    assert Demand(4, 2.0, 2, 1.0).bundles == [{"GPU": 1.0}, {"GPU": 1.0}]
    assert Demand(4, 2.0, 0, 0.0).bundles == []
    assert Demand(4, 0.0, 2, 0.0).bundles == []


@pytest.mark.parametrize(
    ("demand", "nodes", "why"),
    [
        (Demand(1, 0.0, 1, 0.0), {"a": 0.0}, None),
        (Demand(4, 1.0, 4, 1.0), {"a": 8.0}, None),
        (Demand(2, 4.0, 8, 1.0), {"a": 8.0, "b": 8.0}, None),
        (Demand(0, 0.0, 1, 1.0), {"a": 0.0}, "1 learner rank(s) of 1 need 1 GPU(s), and the cluster has 0 (no GPU)"),
        (
            Demand(2, 4.0, 9, 1.0),
            {"b": 8.0, "a": 8.0, "head": 0.0},
            "2 engine(s) of 4 and 9 learner rank(s) of 1 need 17 GPU(s), and the cluster has 16 (a 8, b 8)",
        ),
        (
            Demand(2, 4.0, 0, 0.0),
            {"a": 6.0, "b": 3.0},
            "2 engine(s) of 4 GPUs, each on one node: there is room for 1 (a 6, b 3)",
        ),
        (Demand(0, 0.0, 2, 0.6), {"a": 1.0}, "2 learner rank(s) of 0.6 need 2 GPU(s), and the cluster has 1 (a 1)"),
    ],
)
def test_a_cluster_that_can_never_have_room_says_what_is_missing(
    demand: Demand, nodes: dict[str, float], why: str | None
) -> None:
    assert shortage(demand, nodes) == why
