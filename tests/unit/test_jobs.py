"""What is packed for a Ray job, what is refused, and how keys travel."""

import os
import sys
from pathlib import Path

import pytest

from rlopt import submit
from rlopt.cluster.ray_jobs import KEYS, PAD_FILE, SEALED, Jobs, command, open_keys, pack, refuse_secrets, seal, submit_run
from rlopt.core.errors import RloptError


def test_a_package_has_this_rlopt_its_configs_and_the_files_named(tmp_path: Path) -> None:
    (tmp_path / "my_rewards.py").write_text("def score(): ...\n")
    (tmp_path / "data" / ".git").mkdir(parents=True)
    (tmp_path / "data" / "rows.jsonl").write_text("{}\n")
    folder = tmp_path / "package"
    folder.mkdir()
    pack(folder, [tmp_path / "my_rewards.py", tmp_path / "data"], b"pad")
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {"rlopt/train.py", "rlopt/conf/config.yaml", "my_rewards.py", "data/rows.jsonl"} <= names
    assert not [name for name in names if "__pycache__" in name]
    assert (folder / PAD_FILE).read_bytes() == b"pad"


def test_keys_are_put_together_again_by_the_job_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    pad, sealed = seal({"HF_TOKEN": "hidden"})
    assert b"hidden" not in pad
    assert b"hidden" not in bytes.fromhex(sealed)
    assert seal({"HF_TOKEN": "hidden"})[0] != pad  # no two packages are alike, so Ray takes none for another
    (tmp_path / PAD_FILE).write_bytes(pad)
    monkeypatch.setenv(SEALED, sealed)
    open_keys(tmp_path)
    assert os.environ.pop("HF_TOKEN") == "hidden"
    assert SEALED not in os.environ
    open_keys(tmp_path)  # a job without keys


def test_what_cannot_be_packed_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in "12":
        folder = tmp_path / number
        folder.mkdir()
        (folder / "a.py").write_text("")
    for target, include, message in (
        ("p1", [tmp_path / "nowhere"], "--include=.*nowhere: no such file or folder"),
        ("p2", [tmp_path / "1" / "a.py", tmp_path / "2" / "a.py"], "a.py is packed already; rename one"),
    ):
        (tmp_path / target).mkdir()
        with pytest.raises(RloptError, match=message):
            pack(tmp_path / target, include, b"")
    monkeypatch.setattr("rlopt.cluster.ray_jobs.LARGEST_MIB", 0)
    (tmp_path / "p3").mkdir()
    (tmp_path / "large").write_text("x")
    with pytest.raises(RloptError, match="large: 0 MiB, 0 at most; put data where the nodes see it"):
        pack(tmp_path / "p3", [tmp_path / "large"], b"")


def test_a_job_joins_the_cluster_that_it_is_submitted_to_unless_another_is_named() -> None:
    assert command(["+algo=grpo", "data.template='{prompt} ='"]).endswith(
        "-m rlopt.submit --inside -- +algo=grpo 'data.template='\"'\"'{prompt} ='\"'\"'' cluster.address=auto"
    )
    assert command(["cluster.address=local"]).endswith(" -- cluster.address=local")


@pytest.mark.parametrize("override", [
    "+tracking.api_key=abc",
    "tracking.project=0123456789abcdef0123456789abcdef01234567",
    "model.path=hf_abcdefghijklmnopqrstuvwxyz",
    "+hf_token=x",
])  # fmt: skip
def test_what_looks_like_a_secret_is_refused_without_being_repeated(override: str) -> None:
    with pytest.raises(RloptError, match="looks like a secret") as refusal:
        refuse_secrets([override])
    assert override.partition("=")[2] not in str(refusal.value).replace("hf_token", "") or override.endswith("=x")


def test_what_is_not_a_secret_is_allowed() -> None:
    refuse_secrets(["+algo=grpo", "rollout.max_new_tokens=64", "learner.token_budget=8192", "model.path=Qwen/Qwen2.5-1.5B"])
    refuse_secrets([f"model.path=/hf/snapshots/{'0123456789' * 4}"])


def test_a_run_without_an_algorithm_and_an_address_without_a_cluster_are_refused() -> None:
    with pytest.raises(RloptError, match="algo: not given; what follows -- is a run's own command line"):
        submit_run("http://127.0.0.1:1", [], [])
    with pytest.raises(RloptError, match="--address=http://127.0.0.1:1: no cluster takes jobs there .* is it http://HEAD:8265"):
        Jobs("http://127.0.0.1:1")


def test_a_verb_needs_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["submit", "status"])
    with pytest.raises(SystemExit, match="error: status: of which job"):
        submit.main()


@pytest.fixture
def keys_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The keys of a node."""
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)
    file = tmp_path / "keys.env"
    monkeypatch.setenv("RLOPT_KEYS_FILE", str(file))
    file.write_text("# of this node\nHF_TOKEN=theirs=1\n\nWANDB_API_KEY=also\n")
    file.chmod(0o600)
    return file


def test_a_job_has_the_keys_of_its_node_unless_it_has_its_own(
    keys_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "mine")
    open_keys(tmp_path)
    assert (os.environ.pop("HF_TOKEN"), os.environ["WANDB_API_KEY"]) == ("theirs=1", "mine")


def test_keys_that_others_can_read_are_refused(keys_file: Path, tmp_path: Path) -> None:
    keys_file.chmod(0o640)
    with pytest.raises(RloptError, match=r"keys.env: others can read it \(mode 640\); chmod 600 it"):
        open_keys(tmp_path)


@pytest.mark.parametrize("line", ["PATH=/evil", "HF_TOKEN", "LD_PRELOAD=x"])
def test_a_file_of_keys_sets_nothing_but_keys(line: str, keys_file: Path, tmp_path: Path) -> None:
    keys_file.write_text(line + "\n")
    with pytest.raises(RloptError, match="is none of WANDB_API_KEY, HF_TOKEN; want lines NAME=value"):
        open_keys(tmp_path)
