"""An environment that OpenEnv serves by HTTP: `POST /reset` and `POST /step`, JSON in and out. No import of it is needed.

https://github.com/meta-pytorch/OpenEnv. The action is `{"message": TEXT}` unless `env.options` names another key; the text of
an observation is looked for under `observation`, or the whole observation is shown as JSON.
"""

import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any


class OpenEnv:
    """A server's address."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")

    def session(
        self, action: str = "message", observation: str = "text", options: Mapping[str, Any] | None = None
    ) -> "Session":
        """One episode. `action` and `observation` are the keys of their texts; `options` goes into every reset."""
        return Session(self._url, action, observation, dict(options or {}))


class Session:
    """One episode on the server, as `environments.live` knows environments."""

    def __init__(self, url: str, action: str, observation: str, options: Mapping[str, Any]) -> None:
        self._url, self._action, self._observation, self._options = url, action, observation, options
        self._episode: str | None = None

    def reset(self, row: Mapping[str, Any], seed: int) -> str | None:
        said = self._post("reset", {"seed": seed % 2**31, **self._options})
        self._episode = said.get("episode_id")
        return self._text(said["observation"])

    def step(self, action: str) -> tuple[str | None, bool, float | None]:
        episode = {"episode_id": self._episode} if self._episode else {}
        said = self._post("step", {"action": {self._action: action}, **episode})
        return self._text(said["observation"]), bool(said.get("done")), said.get("reward")

    def _text(self, observation: Any) -> str | None:
        if isinstance(observation, Mapping):
            found = observation.get(self._observation)
            return found if isinstance(found, str) else json.dumps(observation)
        return None if observation is None else str(observation)

    def _post(self, what: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """What the server answers.

        Raises:
            RuntimeError: it refuses, or answers with something else than an observation.
        """
        request = urllib.request.Request(  # noqa: S310 - the address is http or https: `load.maker` looks
            f"{self._url}/{what}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request) as answer:  # noqa: S310 - as above; the caller has a deadline
                said = json.load(answer)
        except urllib.error.HTTPError as error:
            raise RuntimeError(
                f"{self._url}/{what} answered {error.code}: {error.read(200).decode(errors='replace')}"
            ) from None
        if not isinstance(said, dict) or "observation" not in said:
            raise RuntimeError(f"{self._url}/{what} answered without an observation: {str(said)[:200]}")
        return said
