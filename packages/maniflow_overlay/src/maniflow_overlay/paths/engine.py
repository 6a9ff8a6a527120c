"""Ask model servers for the path of every frame, and never ask for the same one twice.

All endpoints take frames from one queue, each as many at a time as it can bear. A frame ends with
exactly one terminal status in the journal: an answer that can be read, an answer that stayed
unreadable after the re-asks, or a failure that stayed after the retries. What is no fault of the
frame (nobody listens, the server is busy or refuses) is not charged to it: the frame goes back to
the queue and the endpoint rests. A stop signal lets calls under way finish; after `kill -9` they
are asked again, and the journal says which.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

from loom.errors import UserError

from maniflow_overlay.overlay.pictures import read_picture_bgr
from maniflow_overlay.paths.breaker import Breaker
from maniflow_overlay.paths.client import (
    CallError,
    Client,
    Endpoint,
    RefusedError,
    Reply,
    UnavailableError,
    request_body,
)
from maniflow_overlay.paths.frames import FrameFile
from maniflow_overlay.paths.grammar import Space, Status, parse_answer
from maniflow_overlay.paths.journal import FrameState, Journal
from maniflow_overlay.paths.prompts import Asking

POLL_S = 0.1
REASK_TEMPERATURE = 0.2
FINAL = (Status.OK, Status.REPAIRED)


@dataclass(frozen=True)
class Patience:
    """How long and how often.

    Attributes:
        timeout_s: Of one call.
        retries: Failed calls of one frame that are tried again.
        reasks: Unreadable answers of one frame after which it is asked again.
        failures: In a row, after which an endpoint rests.
        rest_s: The first rest; it doubles up to `longest_rest_s`.
        longest_rest_s: The longest rest.
        backoff_s: Before a retry, doubled for each, with jitter.
        give_up_s: All endpoints out of reach for this long ends the run.
    """

    timeout_s: float = 120.0
    retries: int = 3
    reasks: int = 2
    failures: int = 3
    rest_s: float = 2.0
    longest_rest_s: float = 60.0
    backoff_s: float = 0.5
    give_up_s: float = 300.0


@dataclass
class Lane:
    """An endpoint at work."""

    endpoint: Endpoint
    client: Client
    breaker: Breaker
    probe: asyncio.Lock = field(default_factory=asyncio.Lock)
    refusal: str = ""
    trouble: str = ""
    calls: int = 0
    answers: int = 0
    under_way: int = 0
    busy_s: float = 0.0


@dataclass(frozen=True)
class Job:
    """A frame that is ready to be asked."""

    frame: FrameFile
    jpeg: bytes
    size: tuple[int, int]
    question: str
    digest: str
    state: FrameState


@dataclass
class Outcome:
    """What a generation did.

    Attributes:
        asked: Frames that were not done before.
        done: Those of them that have a terminal status now.
        seconds: From the first call to the last.
        lanes: The endpoints with their counts.
        unreadable: Frames whose picture could not be read, with the reason.
    """

    asked: int
    done: int
    seconds: float
    lanes: list[Lane]
    unreadable: list[str]


class Generation:
    """One run over a list of frames.

    Args:
        journal: Open; takes every event.
        asking: How the model is asked.
        instructions: By task.
        endpoints: At least one.
        patience: Limits.
        space: What coordinates mean, if not the dialect's default.
        stopped: Tells that no new call shall begin.
        progress: Is told how many frames are done.
        say: Prints one line.
    """

    def __init__(
        self,
        journal: Journal,
        asking: Asking,
        instructions: dict[str, str],
        endpoints: Sequence[Endpoint],
        patience: Patience,
        *,
        space: Space | None = None,
        stopped: Callable[[], bool] = lambda: False,
        progress: Callable[[int], None] = lambda done: None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._journal, self._asking, self._space = journal, asking, space
        self._instructions, self._endpoints, self._patience = instructions, endpoints, patience
        self._stopped, self._progress, self._say = stopped, progress, say
        self._queue: asyncio.Queue[Job | None] = asyncio.Queue()
        self._ending = asyncio.Event()
        self._lanes: list[Lane] = []
        self._unreadable: list[str] = []
        self._left = 0
        self._done = 0
        self._reached = time.monotonic()

    def count_done(self, frames: Sequence[FrameFile]) -> int:
        """Count the frames that have a terminal status already."""
        return len(frames) - len(self._pending(frames))

    async def run(self, frames: Sequence[FrameFile]) -> Outcome:
        """Ask for every frame that has no terminal status yet.

        Raises:
            UserError: No endpoint can be reached, or all refuse.
        """
        pending = self._pending(frames)
        self._left = len(pending)
        workers = sum(endpoint.limit for endpoint in self._endpoints)
        self._ready = asyncio.Semaphore(2 * workers)
        self._lanes = [self._lane(endpoint) for endpoint in self._endpoints]
        begin = self._reached = time.monotonic()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._feed(pending))
                group.create_task(self._watch(workers))
                for lane in self._lanes:
                    for _ in range(lane.endpoint.limit):
                        group.create_task(self._work(lane))
        except ExceptionGroup as errors:
            raise _first(errors) from errors
        finally:
            for lane in self._lanes:
                await lane.client.close()
        seconds = time.monotonic() - begin
        return Outcome(len(pending), self._done, seconds, self._lanes, self._unreadable)

    def _lane(self, endpoint: Endpoint) -> Lane:
        patience = self._patience
        breaker = Breaker(
            patience.failures, patience.rest_s, patience.longest_rest_s, time.monotonic
        )
        return Lane(endpoint, Client(endpoint, patience.timeout_s), breaker)

    def _pending(self, frames: Sequence[FrameFile]) -> list[tuple[FrameFile, str, str]]:
        """Find the frames that are not done, and describe their questions in the journal."""
        asked = {}
        for task in dict.fromkeys(frame.key.task for frame in frames):
            text = self._asking.question(task, self._instructions)
            asked[task] = text, self._asking.digest(text)
            if not self._journal.knows(asked[task][1]):
                self._journal.append(
                    "question",
                    question=asked[task][1],
                    task=task,
                    dialect=self._asking.dialect,
                    model=self._asking.model,
                    square=self._asking.square,
                    space=self._space,
                    text=text,
                )
        return [
            (frame, *asked[frame.key.task])
            for frame in frames
            if self._journal.state(frame.key, asked[frame.key.task][1]).status is None
        ]

    async def _feed(self, pending: list[tuple[FrameFile, str, str]]) -> None:
        """Read and encode pictures a little ahead of the calls."""
        for frame, question, digest in pending:
            await self._ready.acquire()
            if self._ending.is_set():
                return
            try:
                jpeg, size = await asyncio.to_thread(self._encode, frame)
            except UserError as error:
                self._unreadable.append(error.message)
                self._finish()
                continue
            state = self._journal.state(frame.key, digest)
            self._queue.put_nowait(Job(frame, jpeg, size, question, digest, state))
        if not pending:
            self._ending.set()

    def _encode(self, frame: FrameFile) -> tuple[bytes, tuple[int, int]]:
        image = read_picture_bgr(frame.path)
        return self._asking.shown_jpeg(image), (image.shape[1], image.shape[0])

    def _finish(self) -> None:
        """Take note that a frame needs nothing more."""
        self._ready.release()
        self._left -= 1
        if self._left == 0:
            self._ending.set()

    async def _watch(self, workers: int) -> None:
        """End the run when it is done, stopped or without hope, and wake the workers then."""
        while not self._ending.is_set():
            hopeless = self._hopeless()
            if hopeless:
                raise hopeless
            if self._stopped():
                self._ending.set()
            await self._pause(POLL_S)
        for _ in range(workers):
            self._queue.put_nowait(None)
        self._ready.release()

    def _hopeless(self) -> UserError | None:
        if all(lane.refusal for lane in self._lanes):
            said = "; ".join(f"{lane.endpoint.url}: {lane.refusal}" for lane in self._lanes)
            return UserError(
                f"every endpoint refuses: {said}",
                hint="check --model, the kind of the endpoints (hamster or openai) and their URLs",
            )
        down = all(lane.refusal or lane.breaker.open for lane in self._lanes)
        if down and time.monotonic() - self._reached > self._patience.give_up_s:
            said = "; ".join(
                f"{lane.endpoint.url}: {lane.refusal or lane.trouble}" for lane in self._lanes
            )
            return UserError(
                f"no endpoint has answered for {self._patience.give_up_s:g} s: {said}",
                hint="start the servers; the same command goes on where it stopped",
            )
        return None

    async def _pause(self, seconds: float) -> None:
        """Sleep, but not longer than the run."""
        try:
            await asyncio.wait_for(self._ending.wait(), seconds)
        except TimeoutError:
            return

    async def _work(self, lane: Lane) -> None:
        """Take frames from the queue until the run ends or the endpoint refuses."""
        while not self._ending.is_set() and not lane.refusal:
            if lane.breaker.rest() > 0:
                await self._pause(lane.breaker.rest())
                continue
            async with lane.probe if lane.breaker.open else nullcontext():
                if lane.breaker.rest() > 0:  # somebody else's probe has failed meanwhile
                    continue
                job = await self._queue.get()
                if job is None or self._ending.is_set():
                    return
                if lane.refusal:
                    self._queue.put_nowait(job)
                    return
                await self._ask(lane, job)

    async def _ask(self, lane: Lane, job: Job) -> None:
        """Make one call; then the frame is finished or goes back to the queue."""
        attempt = job.state.answers
        tokens = self._asking.max_tokens * 2**job.state.truncations
        unread = attempt > job.state.truncations
        temperature = REASK_TEMPERATURE if unread else self._asking.temperature
        body = request_body(
            self._asking, job.question, job.jpeg, max_tokens=tokens, temperature=temperature
        )
        facts = {
            **job.frame.key._asdict(),
            "question": job.digest,
            "endpoint": lane.endpoint.url,
            "attempt": attempt,
        }
        self._journal.append("asked", **facts, max_tokens=tokens, temperature=temperature)
        lane.calls += 1
        lane.under_way += 1
        begin = time.monotonic()
        back_after = 0.0
        try:
            reply = await lane.client.call(json.dumps(body).encode())
        except (UnavailableError, RefusedError) as error:
            self._blame_endpoint(lane, error, facts)
        except CallError as error:
            back_after = self._charge(lane, job, error, facts)
        else:
            latency = round((time.monotonic() - begin) * 1000, 1)
            self._take(lane, job, reply, {**facts, "size": job.size, "latency_ms": latency})
        finally:
            lane.under_way -= 1
            lane.busy_s += time.monotonic() - begin
        if job.state.status is not None:
            self._done += 1
            self._progress(self._done)
            self._finish()
            return
        if back_after:
            await self._pause(back_after)
        self._queue.put_nowait(job)

    def _blame_endpoint(
        self, lane: Lane, error: UnavailableError | RefusedError, facts: dict
    ) -> None:
        """Take note of a failure that is not the frame's."""
        lane.trouble = str(error)
        if isinstance(error, RefusedError):
            lane.refusal = str(error)
            self._say(f"[endpoint] {lane.endpoint.url} refuses: {error}")
        elif not lane.breaker.open:
            self._say(f"[endpoint] {lane.endpoint.url} is out of reach: {error}")
        lane.breaker.fail()
        status = Status.HTTP_ERROR if isinstance(error, RefusedError) else Status.SERVER_ERROR
        self._journal.append("failed", **facts, status=status, message=str(error), charged=False)

    def _charge(self, lane: Lane, job: Job, error: CallError, facts: dict) -> float:
        """Take note of a failed call of this frame; return how long it shall wait."""
        lane.trouble = str(error)
        lane.breaker.fail()
        failures = job.state.failures + 1
        final = failures > self._patience.retries or error.status is Status.HTTP_ERROR
        self._journal.append(
            "failed",
            **facts,
            status=error.status,
            message=str(error),
            charged=True,
            terminal=final,
        )
        jitter = random.uniform(0.5, 1.5)  # noqa: S311 - spreads retries, nothing depends on it
        return 0.0 if final else self._patience.backoff_s * 2 ** (failures - 1) * jitter

    def _take(self, lane: Lane, job: Job, reply: Reply, facts: dict) -> None:
        """Read an answer and decide whether the frame is done."""
        lane.breaker.succeed()
        lane.answers += 1
        self._reached = time.monotonic()
        shown = self._asking.shown_size(*job.size)
        status = parse_answer(
            reply.text, self._asking.dialect, space=self._space, size=shown
        ).status
        if status not in FINAL and reply.finish_reason == "length":
            status = Status.TRUNCATED  # the tokens ran out before the list began
        final = status in FINAL or job.state.answers >= self._patience.reasks
        self._journal.append(
            "answered",
            **facts,
            status=status,
            terminal=final,
            finish_reason=reply.finish_reason,
            text=reply.text,
        )


def _first(errors: ExceptionGroup) -> Exception:
    """Return the first single exception of a group."""
    error = errors.exceptions[0]
    return _first(error) if isinstance(error, ExceptionGroup) else error
