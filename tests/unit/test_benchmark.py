"""What the speeds of a config's parts say, and what cannot be measured."""

from dataclasses import replace
from pathlib import Path

import pytest
from builders import compose
from rich.console import Console

from rlopt.bench import main, table
from rlopt.core.errors import RloptError
from rlopt.run.benchmark import Machine, Speeds, benchmark, window
from rlopt.run.peer import PeerSpeed, at_once, check_peer

SPEEDS = Speeds(
    machine=Machine(matrix=1e9, copy=1e9),
    parameters=1000,
    ranks=1,
    engines=1,
    samples=100,
    tokens=4000,
    sequence_tokens=5000,
    start_s=9.0,
    engine_s=2.0,
    reference_s=1.0,
    update_s=3.0,
    together_s=5.0,
    together_samples=100,
    together_tokens=4000,
    sync_s=0.1,
    sync_bytes=4000,
)


def test_limits_are_two_operations_a_parameter_and_token_to_sample_and_six_to_learn() -> None:
    assert SPEEDS.sampling_floor_s == 2 * 1000 * 5000 / 1e9
    assert SPEEDS.update_floor_s == 6 * 1000 * 5000 / 1e9


def test_a_ceiling_is_the_faster_of_two_measurements() -> None:
    assert Machine(matrix=1.0, copy=4.0).or_faster(Machine(matrix=3.0, copy=2.0)) == Machine(matrix=3.0, copy=4.0)


def test_together_is_compared_with_the_slower_of_engine_and_learner() -> None:
    assert SPEEDS.efficiency == pytest.approx(4.0 / 5.0)  # the learner takes 1 + 3 s for what both together do in 5
    assert SPEEDS.as_json()["efficiency"] == SPEEDS.efficiency


def test_cores_are_not_counted_for_engine_and_learner_both() -> None:
    shared = replace(SPEEDS, engine_cpu_s=2.5, learner_cpu_s=6.5, cores=2)  # 9 s of work: two cores need 4.5
    assert shared.efficiency == pytest.approx(4.0 / 5.0)
    assert shared.core_efficiency == pytest.approx(4.5 / 5.0)
    assert replace(shared, cores=16).core_efficiency == pytest.approx(4.0 / 5.0)
    assert SPEEDS.core_efficiency is None  # on a cluster, or on GPUs


@pytest.mark.parametrize(
    ("keys", "steps"),
    [
        (["sync.interval=4"], 4),
        (["sync.interval=4", "sync.max_lag=9"], 4),
        (["sync.mode=async", "sync.interval=1", "sync.max_lag=8"], 9),
        (["sync.mode=async", "sync.interval=4", "sync.max_lag=9"], 12),
    ],
)
def test_what_is_measured_is_a_window_or_enough_steps_for_every_lag(keys: list[str], steps: int) -> None:
    assert window(compose("+algo=grpo", *keys)) == steps


def test_what_cannot_be_measured_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(RloptError, match="algo.name=sft: samples nothing, so there is no engine to measure"):
        benchmark(compose("+algo=sft", "data.train=x", f"run.dir={tmp_path}"), Console(quiet=True))


def test_a_peer_is_a_row_of_the_table_and_is_compared_by_tokens(tmp_path: Path) -> None:
    peer = PeerSpeed(samples=50, tokens=1000, seconds=2.5)  # 400 tokens/s; together: 4,000 in 5 s, 800
    shown = table(replace(SPEEDS, peer=peer), compose("+algo=grpo", f"run.dir={tmp_path}"))
    assert [list(column.cells)[-1] for column in shown.columns] == ["TRL", "5.00", "20", "400", ""]
    assert str(shown.caption).endswith("They learn from 2.00 times as many tokens a second as TRL.")


@pytest.mark.parametrize(("samples", "most", "size"), [(128, 97, 64), (128, 200, 128), (12, 5, 4), (7, 3, 1), (8, 0, 1)])
def test_a_peers_micro_batches_divide_the_step_and_keep_to_the_budget(samples: int, most: int, size: int) -> None:
    assert at_once(samples, most) == size


def test_a_peer_is_refused_where_it_was_never_measured() -> None:
    with pytest.raises(RloptError, match="--peer=trl: is measured on CPUs alone so far; leave it out with GPUs"):
        check_peer(1.0)


def test_another_peer_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["bench", "+algo=grpo", "--peer", "verl"])
    with pytest.raises(SystemExit, match="error: --peer: knows one other framework; want --peer trl"):
        main()
