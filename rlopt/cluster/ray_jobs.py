"""Runs as Ray jobs: what is packed, how keys travel, and what a cluster answers.

Ray writes the environment that a job is given into its logs and answers everybody with it who may ask about the job, so keys of
services do not travel in it. They belong on the cluster: in the environment of its nodes (a secret of Kubernetes), or in a file
that their user alone can read (`KEYS_FILE`). With `--send-keys` they travel masked in the environment, with the mask in the
package: that keeps them out of logs and pages, and not from those who may read both, as everybody may who can submit jobs.
"""

import json
import os
import re
import secrets
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import rlopt
from rlopt.core.atomic_write import at_home
from rlopt.core.errors import RloptError, first_line

KEYS = ("WANDB_API_KEY", "HF_TOKEN")
"""Environment variables that nobody else may read."""

INHERITED = ("WANDB_ENTITY", "WANDB_BASE_URL", "HF_ENDPOINT", "RLOPT_CACHE")
"""Environment variables that a job inherits."""

KEYS_FILE = "~/.config/rlopt/keys.env"
"""Lines `NAME=value` on the node that a job runs on, for `KEYS`; another path in `RLOPT_KEYS_FILE`."""

PAD_FILE, SEALED = ".pad", "RLOPT_SEALED_KEYS"

STOP_WAIT_S = 600
"""Seconds that a stopped job has to finish its step and to save a checkpoint. Ray's own would be three."""

LARGEST_MIB = 64
"""What may be packed: code and small files. Data and models belong on storage that the nodes see, or on the Hub."""


def seal(keys: Mapping[str, str]) -> tuple[bytes, str]:
    """A random mask, and the keys masked with it (by exclusive or) as hexadecimal digits."""
    text = json.dumps(dict(keys)).encode()
    pad = secrets.token_bytes(len(text))
    return pad, bytes(a ^ b for a, b in zip(text, pad, strict=True)).hex()


def pack(folder: Path, include: Sequence[Path], pad: bytes) -> None:
    """Fill `folder` with what a job needs: this rlopt, the files to `include` (beside one another), and the pad of its keys.

    Raises:
        RloptError: a file is not there, stands in the way of another, or all together are too large.
    """
    here = Path(rlopt.__file__).parent
    shutil.copytree(here, folder / "rlopt", ignore=shutil.ignore_patterns("__pycache__"))
    if not (here / "conf").is_dir():
        shutil.copytree(here.parent / "conf", folder / "rlopt" / "conf")
    for path in include:
        if not path.exists():
            raise RloptError(f"--include={path}: no such file or folder")
        size = sum(file.stat().st_size for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file()) / 2**20
        if size > LARGEST_MIB:
            raise RloptError(f"--include={path}: {size:.0f} MiB, {LARGEST_MIB} at most; put data where the nodes see it")
        target = folder / path.resolve().name
        if target.exists():
            raise RloptError(f"--include={path}: {target.name} is packed already; rename one")
        if path.is_dir():
            shutil.copytree(path, target, ignore=shutil.ignore_patterns("__pycache__", ".git", ".venv", "runs"))
        else:
            shutil.copy(path, target)
    (folder / PAD_FILE).write_bytes(pad)


def open_keys(folder: Path) -> None:
    """Put the keys of a job into this process's environment: those that were sent, and those of the node's file.

    Raises:
        RloptError: others can read that file, or a line of it is none.
    """
    sealed = bytes.fromhex(os.environ.pop(SEALED, ""))
    if sealed:
        pad = (folder / PAD_FILE).read_bytes()
        os.environ.update(json.loads(bytes(a ^ b for a, b in zip(sealed, pad, strict=True))))
    for name, value in _of_node(at_home(os.environ.get("RLOPT_KEYS_FILE", KEYS_FILE))).items():
        os.environ.setdefault(name, value)


def _of_node(file: Path) -> dict[str, str]:
    if not file.is_file():
        return {}
    mode = file.stat().st_mode & 0o777
    if mode & 0o077:
        raise RloptError(f"{file}: others can read it (mode {mode:o}); chmod 600 it")
    lines = [line.strip() for line in file.read_text().splitlines()]
    pairs = [line.partition("=") for line in lines if line and not line.startswith("#")]
    if wrong := [name for name, equals, _ in pairs if not equals or name not in KEYS]:
        raise RloptError(f"{file}: {wrong[0][:40]} is none of {', '.join(KEYS)}; want lines NAME=value")
    return {name: value for name, _, value in pairs}


def command(overrides: Sequence[str]) -> str:
    """What the cluster runs. A run joins the cluster that it is submitted to."""
    joins = [] if any(override.startswith("cluster.address=") for override in overrides) else ["cluster.address=auto"]
    return shlex.join(["python", "-m", "rlopt.submit", "--inside", "--", *overrides, *joins])


def refuse_secrets(overrides: Sequence[str]) -> None:
    """Refuse what looks like a key in an override: it would be written to config.yaml, W&B and logs."""
    for override in overrides:
        name, _, value = override.partition("=")
        named = re.search(r"(api_?key|token$|secret|password)", name, re.I)
        if (named and value not in ("", "null")) or re.fullmatch(
            r"(hf_[A-Za-z0-9]{20,}|[0-9a-f]{40}|sk-[A-Za-z0-9_-]{20,})", value
        ):
            raise RloptError(
                f"{name}=...: looks like a secret, and configs are written to files and logs; "
                f"set {' or '.join(KEYS)} on the cluster, or export it and give --send-keys"
            )


class Jobs:
    """The jobs of a cluster."""

    def __init__(self, address: str) -> None:
        """`address` is that of the dashboard, `http://HOST:8265`. Raises RloptError when nobody answers there."""
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # Ray's clusters ask for a token unless told otherwise
        from ray.job_submission import JobSubmissionClient

        self._address = address
        try:
            self._client = JobSubmissionClient(address)
        except Exception as error:  # connection, authentication and version errors have different types
            raise RloptError(
                f"--address={address}: no cluster takes jobs there ({first_line(error)}); is it http://HEAD:8265?"
            ) from error

    def submit(self, folder: Path, sealed: str, overrides: Sequence[str]) -> str:
        """Submit a packed folder, with its sealed keys; the job's id."""
        environment = {
            "working_dir": str(folder),
            "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S), "PYTHONUNBUFFERED": "1", SEALED: sealed}
            | {name: os.environ[name] for name in INHERITED if name in os.environ},
        }
        try:
            return str(self._client.submit_job(entrypoint=command(overrides), runtime_env=environment))
        except Exception as error:  # whatever the cluster answers
            raise RloptError(f"--address={self._address}: the job was not taken ({first_line(error)})") from error

    def status(self, job: str) -> str:
        """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED; of a failed one also why."""
        info = self._ask(job, self._client.get_job_info)
        status = str(getattr(info.status, "value", info.status))
        return f"{status}: {first_line(info.message)}" if status == "FAILED" and info.message else status

    def logs(self, job: str) -> str:
        return str(self._ask(job, self._client.get_job_logs))

    def follow(self, job: str) -> Iterator[str]:
        """The log as it comes, until the job ends."""
        import asyncio

        async def lines() -> Any:
            async for text in self._client.tail_job_logs(job):
                yield text

        stream, loop = lines(), asyncio.new_event_loop()
        try:
            while True:
                yield str(self._ask(job, lambda _: loop.run_until_complete(anext(stream))))
        except StopAsyncIteration:
            return
        finally:
            loop.close()

    def stop(self, job: str) -> bool:
        """Ask a job to stop; whether it was running."""
        return bool(self._ask(job, self._client.stop_job))

    def _ask(self, job: str, question: Any) -> Any:
        try:
            return question(job)
        except StopAsyncIteration:
            raise
        except Exception as error:  # Ray answers an unknown id with a RuntimeError that holds a page
            raise RloptError(
                f"{job}: {self._address} does not know this job, or does not answer ({first_line(error)})"
            ) from error


def submit_run(address: str, include: Sequence[Path], overrides: Sequence[str], send_keys: bool = False) -> tuple[Jobs, str]:
    """Pack and submit a run; the cluster, and the job's id."""
    refuse_secrets(overrides)
    if not any(override.startswith("+algo=") for override in overrides):
        raise RloptError("algo: not given; what follows -- is a run's own command line, as in -- +algo=grpo")
    jobs = Jobs(address)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "package"
        folder.mkdir()
        pad, sealed = seal({key: os.environ[key] for key in KEYS if send_keys and key in os.environ})
        pack(folder, include, pad)
        return jobs, jobs.submit(folder, sealed, overrides)
