"""W&B and TensorBoard. They show what `metrics.jsonl` and `samples.jsonl` have."""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import rlopt
from rlopt.config.sections import TrackingConfig
from rlopt.core.errors import first_line

FIGURE = {
    "reward/mean": "Training Reward",
    "actor/kl_k2": "KL Divergence",
    "actor/entropy": "Entropy",
    "response_length/mean": "Response Length",
}
"""The panels of a run's page, with the titles of `rlopt.report`."""

TABLE_EVERY = 20
"""Steps between two tables of samples."""

Row = Mapping[str, object]


class Logger(Protocol):
    """A logger. Its methods may raise whatever the service raises: the journal continues without it."""

    name: str

    def step(self, metrics: Mapping[str, float], samples: Sequence[Row]) -> None:
        """Show a learner step: its metrics, and the samples that `samples.jsonl` has of it."""
        ...

    def reopen(self) -> None:
        """Open the logger again after a step that could not be shown, keeping what was shown before."""
        ...

    def close(self, exit_code: int) -> None: ...


class Wandb:
    """A W&B run; a resumed run goes on in the same. Tables of samples come every `TABLE_EVERY` steps."""

    name = "W&B"

    def __init__(self, config: TrackingConfig, run: Path, run_id: str, name: str, group: str, settings: dict[str, Any]) -> None:
        """`auto` is online with a key and offline without. The network has half a minute at the start, five at the end."""
        mode = config.wandb
        if mode == "auto":
            mode = "online" if os.environ.get("WANDB_API_KEY") else "offline"
        self._samples = list[Row]()
        self._asked: dict[str, Any] = {
            "project": config.project,
            "name": name,
            "group": config.group or group,
            "job_type": "train",
            "id": run_id,
            "resume": "allow" if mode == "online" else None,
            "dir": str(run),
            "config": settings,
            "mode": mode,
        }
        self._open()

    def _open(self) -> None:
        import wandb

        settings = wandb.Settings(silent=True, init_timeout=30, finish_timeout=300, console="off")
        self._run = wandb.init(**self._asked, settings=settings)
        self._table = wandb.Table
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        for metric in FIGURE:
            self._run.define_metric(metric, step_metric="step", summary="last")
        self._run.define_metric("reward/mean", step_metric="step", summary="max,last")
        self._run.log_code(str(Path(rlopt.__file__).parent), include_fn=lambda path: path.endswith((".py", ".yaml")))
        project = self._asked["project"]
        if self._asked["mode"] == "online" and not self._run.resumed:
            try:
                if len(wandb.Api().runs(f"{self._run.entity}/{project}", per_page=2)) <= 1:  # the project's first run
                    workspace(self._run.entity, project).save()
            except Exception as error:  # whatever the service answers; a run does not need the view
                self._run.config.update({"rlopt_view_not_saved": first_line(error)})

    @property
    def folder(self) -> Path:
        return Path(self._run.dir).parent

    def step(self, metrics: Mapping[str, float], samples: Sequence[Row]) -> None:
        rows, shown = [*self._samples, *samples], {}
        if rows and int(metrics["step"]) % TABLE_EVERY == 0:
            columns = ["step", "prompt", "completion", "answer", "reward", "version", "finish"]
            shown["samples"] = self._table(columns, [[row[column] for column in columns] for row in rows])
            rows = []
        self._run.log({**metrics, **shown})
        self._samples = rows  # only now: a step that could not be shown may come again

    def reopen(self) -> None:
        """W&B's own process may be gone, as when a cluster tells all processes of a job to end. The same run goes on with
        another: online in the same place, offline in a second folder, which `wandb sync` puts after the first."""
        import wandb

        with suppress(ConnectionError):  # the process is gone, so there is nothing to finish
            wandb.teardown()
        self._open()

    def close(self, exit_code: int) -> None:
        self._run.finish(exit_code=exit_code)


def workspace(entity: str, project: str) -> Any:
    """A view of the project that opens on reward, KL, entropy and length; to be saved where W&B is online."""
    from wandb_workspaces import workspaces
    from wandb_workspaces.reports import v2

    panels = [v2.LinePlot(title=title, x="step", y=[name]) for name, title in FIGURE.items()]
    section = workspaces.Section(name="rlopt", panels=panels, is_open=True)
    return workspaces.Workspace(entity=entity, project=project, name="rlopt", sections=[section])


class TensorBoard:
    """Event files in `tensorboard/`; a resumed run drops the steps that it makes again."""

    name = "TensorBoard"

    def __init__(self, run: Path, step: int) -> None:
        """`step` is the step that the run continues after."""
        self._folder, self._step = run / "tensorboard", step
        self._open()

    def _open(self) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self._folder), purge_step=self._step + 1)

    def step(self, metrics: Mapping[str, float], samples: Sequence[Row]) -> None:
        step = int(metrics["step"])
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        if step % TABLE_EVERY == 0:
            for number, row in enumerate(samples):
                text = f"{row['prompt']}\n\n{row['completion']}\n\nreward {row['reward']}"
                self._writer.add_text(f"samples/{number}", text, step)
        self._step = step

    def reopen(self) -> None:
        """Another file, after the steps that were shown."""
        self._open()

    def close(self, exit_code: int) -> None:
        self._writer.close()


def start_loggers(
    config: TrackingConfig, run: Path, step: int, run_id: str, name: str, group: str, settings: dict[str, Any]
) -> list[Logger]:
    """The loggers that the config asks for; W&B comes first."""
    loggers: list[Logger] = []
    if config.wandb != "disabled":
        loggers.append(Wandb(config, run, run_id, name, group, settings))
    if config.tensorboard:
        loggers.append(TensorBoard(run, step))
    return loggers
