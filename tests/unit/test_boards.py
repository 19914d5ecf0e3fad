"""W&B and TensorBoard, read back from the files that they write."""

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from google.protobuf.message import DecodeError

from rlopt.config.sections import TrackingConfig
from rlopt.diagnosis.curves import PANELS
from rlopt.tracking.loggers import FIGURE, TABLE_EVERY, TensorBoard, start_loggers, workspace

SAMPLE = {"step": 1, "prompt": "1+1=", "completion": "2", "answer": "2", "reward": 1.0, "version": 0, "finish": "stop"}
SETTINGS = {"learner": {"lr": 0.5}, "algo": {"name": "grpo"}}


def metrics(step: int, **more: float) -> dict[str, float]:
    return {"step": step, **dict.fromkeys(FIGURE, step / 10), **more}


def records(folder: Path) -> list[Any]:
    """Every record of the offline run in `folder`. The file is a LevelDB log: blocks of 32 KiB, in them chunks of records, each
    after 4 bytes of checksum, 2 of length and 1 that says whether it is a whole record, or a first, middle or last part."""
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    data, at, whole, found = file.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            record, whole = Record.FromString(whole), b""
            found.append(record)
    return found


@pytest.mark.filterwarnings("ignore")  # wandb's own, on closing
def test_an_offline_run_has_group_job_type_config_code_metrics_by_step_and_a_table_of_samples(tmp_path: Path) -> None:
    (logger,) = start_loggers(TrackingConfig("offline", False, "mine", None), tmp_path, 0, "id-1", "name-1", "grpo", SETTINGS)
    for step in range(1, TABLE_EVERY + 1):
        logger.step(metrics(step), [{**SAMPLE, "step": step}])
    logger.close(0)
    deadline, found = time.monotonic() + 20, list[Any]()
    while not found or found[-1].WhichOneof("record_type") != "exit":  # another process writes it
        assert time.monotonic() < deadline
        with suppress(DecodeError):  # a record that is half there
            found = records(tmp_path)
    (run,) = [record.run for record in found if record.WhichOneof("record_type") == "run"]
    assert (run.run_id, run.display_name, run.run_group, run.job_type, run.project) == (
        "id-1",
        "name-1",
        "grpo",
        "train",
        "mine",
    )
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert config["learner"] == {"lr": 0.5}
    history = [
        {".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in found
        if record.WhichOneof("record_type") == "history"
    ]
    assert [row["reward/mean"] for row in history] == [step / 10 for step in range(1, TABLE_EVERY + 1)]
    assert history[-1]["samples.nrows"] == TABLE_EVERY
    defined = [record.metric for record in found if record.WhichOneof("record_type") == "metric"]
    assert all(metric.step_metric == "step" for metric in defined if metric.name in FIGURE)
    artifacts = [record.artifact for record in found if record.WhichOneof("record_type") == "artifact"]
    code = {entry.path for artifact in artifacts if artifact.type == "code" for entry in artifact.manifest.contents}
    assert {"orchestrator/loop.py", "objectives/grpo.py"} <= code


@pytest.mark.filterwarnings("ignore")  # wandb's own, on closing
def test_a_run_continues_in_wandb_when_wandbs_own_process_is_gone(tmp_path: Path) -> None:
    (logger,) = start_loggers(TrackingConfig("offline", False, "mine", None), tmp_path, 0, "id-1", "name-1", "grpo", SETTINGS)
    logger.step(metrics(1), [])
    service = next(child for child in psutil.Process().children(recursive=True) if "wandb-core" in child.name())
    service.kill()
    service.wait(20)

    def show_until_it_fails() -> None:
        for _ in range(100):  # what is written while the socket closes is taken and lost
            logger.step(metrics(2), [SAMPLE])
            time.sleep(0.05)

    with pytest.raises(ConnectionError):
        show_until_it_fails()
    logger.reopen()
    logger.step(metrics(2), [SAMPLE])
    logger.close(0)
    assert len(list(tmp_path.glob("wandb/offline-run-*/run-id-1.wandb"))) == 2


@pytest.mark.filterwarnings("ignore")  # wandb-workspaces' own, on importing
def test_a_projects_page_opens_on_reward_kl_entropy_and_length() -> None:
    (section,) = workspace("someone", "rlopt").sections
    assert section.is_open
    assert [panel.title for panel in section.panels] == list(FIGURE.values())
    assert [panel.y for panel in section.panels] == [[name] for name in FIGURE]
    assert {name: title for name, (title, _) in PANELS.items()} == FIGURE  # as the report has them


@pytest.mark.filterwarnings("ignore")
def test_tensorboard_has_every_metric_by_step_and_a_resumed_run_takes_back_what_it_makes_again(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoard(tmp_path, 0)
    for step in range(1, TABLE_EVERY + 1):
        logger.step(metrics(step), [SAMPLE])
    logger.close(1)
    again = TensorBoard(tmp_path, 18)
    for step in (19, 20, 21):
        again.step(metrics(step, **{"actor/lr": 3.0}), [SAMPLE])
    again.close(0)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert set(FIGURE) <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("reward/mean")] == list(range(1, 22))
    assert [event.step for event in events.Scalars("actor/lr")] == [19, 20, 21]


def test_nothing_is_started_where_nothing_is_asked_for(tmp_path: Path) -> None:
    assert start_loggers(TrackingConfig("disabled", False, "p", None), tmp_path, 0, "i", "n", "g", {}) == []
    assert not list(tmp_path.iterdir())
