"""All engines, as the loop sees them: requests go out, groups come back, engines are added, lost and replaced.

An engine that dies, or has work and computes nothing for `rollout.stall_s` seconds, is replaced. Its requests go to the
others, which draw the same tokens (a sample's seed does not depend on who draws it); its replacement joins when the weights are
next synchronized.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from rlopt.cluster.actors import ClusterLost, Inbox, Lost, Pending, Stalled, Workers, close_all, finished
from rlopt.core.errors import Interrupted, NoEngine, RloptError, first_line
from rlopt.core.requests import EngineLogprobs, SampleRequest
from rlopt.core.samples import Group, Key
from rlopt.core.supervisor import Loss, Report, Supervisor
from rlopt.rollout.engine import Engine


class EnginePool:
    """The engines. Numbers are never reused, so a number in `events.jsonl` is one engine."""

    def __init__(
        self,
        spawn: Callable[[str, int], Workers],
        count: int,
        start_deadline_s: float,
        stall_s: float,
        supervisor: Supervisor | None = None,
    ) -> None:
        """`spawn(name, 1)` makes an actor. All begin to load at once; `join` waits for them."""
        self._spawn, self._start_deadline_s, self._stall_s = spawn, start_deadline_s, stall_s
        self._supervisor = supervisor or Supervisor(count)
        self.asked_to_stop: Callable[[], bool] = lambda: False
        self._made, self._count = 0, count
        self._starting: list[tuple[Engine, Pending]] = []
        self._up: list[Engine] = []
        self._orphaned: dict[Key, SampleRequest] = {}
        self._done: dict[Key, Group] = {}
        self._inbox = Inbox()
        for _ in range(count):
            self._make()

    def ask(self, key: Key, request: SampleRequest) -> None:
        """Have the least busy engine sample the group of `request`; returns at once."""
        if not self._up:
            self._orphaned[key] = request
            return
        engine = min(self._up, key=lambda engine: len(engine.calls))
        call = engine.workers.start("sample", (request,))
        engine.calls[call] = (key, request)
        self._inbox.watch(call)

    @property
    def report(self) -> Report:
        """Where events are written: the supervisor's."""
        return self._supervisor.report

    @report.setter
    def report(self, write: Report) -> None:
        self._supervisor.report = write

    @property
    def asked(self) -> list[Key]:
        """The keys of all requests that were not taken or cancelled, in order."""
        return sorted([*self._done, *self._orphaned, *(key for engine in self._up for key, _ in engine.calls.values())])

    @property
    def in_flight(self) -> int:
        """How many requests have not come back."""
        return sum(len(engine.calls) for engine in self._up) + len(self._orphaned)

    @property
    def done(self) -> Mapping[Key, Group]:
        """Finished groups, as of the last `poll` or `wait`, that were not taken."""
        return self._done

    def poll(self, timeout_s: float = 0.0) -> None:
        """Collect finished groups; waits up to `timeout_s` seconds for a first one."""
        lost = dict[int, str]()
        for call in self._inbox.take(timeout_s):
            engine = next((engine for engine in self._up if call in engine.calls), None)
            if not engine:  # cancelled, or asked of another
                continue
            key, _ = engine.calls[call]
            try:
                (group,) = call.result(f"sampling group {key}")
            except Lost as error:
                lost.setdefault(engine.number, str(error))
                continue
            del engine.calls[call]
            self._done[key] = group
            engine.alive()
            self._supervisor.sampled()
        for number, why in lost.items():  # only now: groups that an engine finished before it died are not requested again
            self.lose(number, why)

    def wait(self, deadline_s: float) -> None:
        """Wait until at least one more group has come back than `done` shows.

        Raises:
            Stalled: none came in `deadline_s` seconds.
            NoEngine: no engine is left.
            Interrupted: the run was asked to end.
        """
        before, ends = len(self._done), time.monotonic() + deadline_s
        self.poll()
        while len(self._done) == before:
            if not any(engine.calls for engine in self._up):
                raise NoEngine
            left = ends - time.monotonic()
            if left <= 0:
                waiting = {f"engine {e.number}": min(key for key, _ in e.calls.values()) for e in self._up if e.calls}
                raise Stalled(f"the driver waited {deadline_s:.0f} s for groups of {waiting} (cluster.step_deadline_s)")
            if self.asked_to_stop():
                raise Interrupted
            self.poll(min(left, 1.0))
            self.look_after()

    def look_after(self) -> None:
        """Replace the engines that were stopped, or that have work and do none of it.

        Raises:
            ClusterLost: Ray itself is gone.
        """
        for engine in list(self._up):
            if why := engine.trouble(self._stall_s):
                self.lose(engine.number, why)

    def end_silent(self) -> None:
        """End the engines that were stopped or do not answer while they receive weights: the sender then waits no longer."""
        for engine in self._up:
            if not engine.given_up and (why := engine.trouble(self._stall_s, receives=True)):
                engine.given_up = why
                engine.workers.kill()

    def wait_idle(self, seconds: float) -> None:
        """Wait until all requests have come back, or `seconds` have passed; also where the run is to end."""
        ends = time.monotonic() + seconds
        while any(engine.calls for engine in self._up) and (left := ends - time.monotonic()) > 0:
            self.poll(left)

    def take(self, key: Key) -> Group:
        """Remove and return a group that came back."""
        return self._done.pop(key)

    def cancel(self, key: Key) -> None:
        """Drop a request; an engine that samples it stops."""
        self._done.pop(key, None)
        self._orphaned.pop(key, None)
        for engine in self._up:
            for call in [call for call, (asked, _) in engine.calls.items() if asked == key]:
                del engine.calls[call]
                call.cancel()

    def put_back(self, groups: Mapping[Key, Group]) -> None:
        """Add groups that were sampled before a resume and not learned from."""
        self._done |= groups

    def join_all(self) -> bool:
        """Wait for all engines that are loading, and take them in; whether there were any.

        They have no weights to sample with yet. One that cannot load is reported and given up, while there are others.

        Raises:
            Exception: what the first of them raised, when none could load and no other is there.
        """
        return self._join(list(self._starting))

    def join_loaded(self) -> bool:
        """As `join_all`, but only those that have loaded by now; waits for none."""
        loaded = finished([pending for _, pending in self._starting])
        return self._join([(engine, pending) for engine, pending in self._starting if pending in loaded])

    def _join(self, ready: list[tuple[Engine, Pending]]) -> bool:
        failed: list[Exception] = []
        for engine, pending in ready:
            try:
                pending.result("starting up")
            except ClusterLost:
                raise
            except Exception as error:  # whatever loading a model may raise
                self._starting.remove((engine, pending))
                engine.workers.close()
                self.report("engine_failed", engine=engine.number, why=first_line(error))
                failed.append(error)
                continue
            self._starting.remove((engine, pending))
            self._up.append(engine)
        if failed and not self._up and not self._starting:
            raise failed[0]
        return bool(ready)

    def resize(self, count: int) -> None:
        """Have `count` engines: start more, or close the newest and assign their requests to others."""
        self._count = count
        while len(self._up) + len(self._starting) < count:
            self._make()
            self.report("engine_added", engine=self._starting[-1][0].number)
        while len(self._up) + len(self._starting) > max(1, count):
            engine = self._starting.pop()[0] if self._starting else self._up.pop()
            engine.workers.close()
            self.report("engine_removed", engine=engine.number, asked_again=len(engine.calls))
            self._reassign(engine.calls.values())

    def assign_orphaned(self) -> None:
        """Assign requests that no engine samples to the engines that are up; called when these have weights."""
        orphaned, self._orphaned = self._orphaned, {}
        self._reassign(orphaned.items())

    @property
    def handles(self) -> dict[int, Any]:
        """Actor handles of the engines that are up, by number."""
        return {engine.number: engine.workers.handles[0] for engine in self._up}

    @property
    def nodes(self) -> dict[int, str]:
        """The Ray nodes of the engines that are up, by number."""
        return {engine.number: engine.workers.nodes()[0] for engine in self._up}

    def canary(self, texts: list[tuple[int, ...]], numbers: list[int]) -> Callable[[], dict[int, list[EngineLogprobs]]]:
        """Have the engines `numbers` score the same texts; the function returned waits for the scores, by number."""
        pending = [(e, e.workers.start("canary", (texts,), deadline_s=self._stall_s)) for e in self._up if e.number in numbers]

        def collect() -> dict[int, list[EngineLogprobs]]:
            answers = {}
            for engine, one in pending:
                try:
                    answers[engine.number] = one.result("answering the canary prompts")[0]
                except Stalled as lost:
                    self.lose(engine.number, str(lost))
            return answers

        return collect

    def idle_frac(self) -> float:
        """Share of the time since the last call in which engines had no request; mean over engines."""
        shares = []
        for engine, pending in [(e, e.workers.start("busy_s", deadline_s=self._stall_s)) for e in self._up]:
            try:
                shares += engine.idle_share(pending)
            except Stalled as lost:
                self.lose(engine.number, str(lost))
        return sum(shares) / len(shares) if shares else 0.0

    @property
    def asleep(self) -> bool:
        """Whether there are engines that sleep."""
        return any(engine.asleep for engine in self._up)

    def sleep(self) -> None:
        """Make all engines free their GPU memory; there must be no open request, and none until `wake`."""
        self._tell("sleep")

    def wake(self) -> None:
        """Wake the engines that sleep."""
        self._tell("wake")

    def _tell(self, verb: Literal["sleep", "wake"]) -> None:
        told = [engine for engine in self._up if engine.asleep != (verb == "sleep")]
        for engine, pending in [(engine, engine.workers.start(verb)) for engine in told]:
            try:
                engine.told(verb, pending)
            except Stalled as lost:
                self.lose(engine.number, str(lost))

    def lose(self, number: int, why: str) -> None:
        """Give an engine up: end it, assign its requests to others, and start another in its place.

        Raises:
            RloptError: engines die, and nothing comes back.
        """
        engine = next(engine for engine in self._up if engine.number == number)
        self._up.remove(engine)
        engine.workers.kill()
        why = engine.given_up or why
        loss = Loss("engine", f"engine {number}", why, engine.silent_s)
        if self._supervisor.lost(loss, engine=number, asked_again=len(engine.calls)) != "replace":
            raise RloptError(
                f"engines are lost one after another and no group comes back, the last one, engine {number}: {why}"
            )
        self._make()
        self._reassign(engine.calls.values())

    @property
    def workers(self) -> list[Workers]:
        """The workers of all engines, also of those that are loading."""
        return [engine.workers for engine in [*self._up, *(engine for engine, _ in self._starting)]]

    def close(self) -> None:
        close_all(self.workers)

    def _reassign(self, requests: Iterable[tuple[Key, SampleRequest]]) -> None:
        for key, request in requests:
            self.ask(key, request)

    def _make(self) -> None:
        engine = Engine(self._made, self._spawn(f"engine {self._made}", 1))
        self._made += 1
        self._starting.append((engine, engine.workers.start("start", deadline_s=self._start_deadline_s)))
