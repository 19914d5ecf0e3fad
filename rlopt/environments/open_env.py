"""An environment that OpenEnv serves: one WebSocket for each episode, JSON in and out. No import of it is needed.

https://github.com/meta-pytorch/OpenEnv. Its HTTP endpoints make a new environment for every request, and so cannot play an
episode; `/ws` keeps one. The action is `{"message": TEXT}` unless `env.options` names another key. The text of an observation
is looked for under `text`, or what `env.options` names; else the whole observation is shown as JSON.
"""

import json
from collections.abc import Mapping
from typing import Any

LARGEST = 2**24
"""Bytes of a message at most."""


class OpenEnv:
    """A server's address."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/").replace("http", "ws", 1) + "/ws"

    def session(
        self, action: str = "message", observation: str = "text", options: Mapping[str, Any] | None = None
    ) -> "Session":
        """One episode. `action` and `observation` are the keys of their texts; `options` goes into every reset."""
        return Session(self._url, action, observation, dict(options or {}))


class Session:
    """One episode on the server, as `environments.live` knows environments."""

    def __init__(self, url: str, action: str, observation: str, options: Mapping[str, Any]) -> None:
        self._url, self._action, self._observation, self._options = url, action, observation, options
        self._http: Any = None
        self._socket: Any = None

    async def reset(self, row: Mapping[str, Any], seed: int) -> str | None:
        import aiohttp

        self._http = aiohttp.ClientSession()
        self._socket = await self._http.ws_connect(self._url, max_msg_size=LARGEST)
        said = await self._ask("reset", {"seed": seed % 2**31, **self._options})
        return self._text(said["observation"])

    async def step(self, action: str) -> tuple[str | None, bool, float | None]:
        said = await self._ask("step", {self._action: action})
        return self._text(said["observation"]), bool(said.get("done")), said.get("reward")

    async def close(self) -> None:
        if self._socket is not None:
            await self._socket.close()
        if self._http is not None:
            await self._http.close()

    def _text(self, observation: Any) -> str | None:
        if isinstance(observation, Mapping):
            found = observation.get(self._observation)
            return found if isinstance(found, str) else json.dumps(observation)
        return None if observation is None else str(observation)

    async def _ask(self, what: str, data: Mapping[str, Any]) -> dict[str, Any]:
        """What the server answers.

        Raises:
            RuntimeError: it refuses, hangs up, or answers with something else than an observation.
        """
        await self._socket.send_json({"type": what, "data": data})
        message = await self._socket.receive()
        said = json.loads(message.data) if isinstance(message.data, str) else {}
        found = said.get("data") if isinstance(said, dict) else None
        if not isinstance(found, dict) or "observation" not in found:
            told = found.get("message") if isinstance(found, dict) else None
            raise RuntimeError(f"{self._url} answered {what} with {str(told or said or message.type)[:200]}")
        return found
