"""The clocks of one rank of each stage: a thread that issues, the GPU's compute lane, a lane for each communicator.

The thread takes a while for each kernel and goes on; a kernel starts when it was issued and the lane is free. A
collective starts when what it takes is computed and its lane is free, and the lane of the next kernel waits for it
where the program says so. Lanes do not slow each other down. A message leaves when it is computed; its receiver waits
for it.

A function that is called again with its clocks as far apart as before is not walked again: `calls.py` keeps what the
call did. So equal layers, and equal microbatches of a stage, are walked once or twice each.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence

from ...runtime.lanes.timeline import Task
from .calls import Clocks, Outcome, Spent, key_of, outcome_of
from .kernels import Kernel
from .layout import Layout
from .steps import Called, Receive, Send, Start, Step, Wait

Messages = dict[tuple[int, int], deque[float]]
"""By sending and receiving stage: when what was sent arrives."""
PIPELINE = "pipeline"
COMPUTE = "compute"
CALLS = "calls"
"""The lane of calls of functions, whose instructions run on the others: a layer, a segment of a pipeline."""


class Rank:
    """One rank's walk over its entry. `run` yields where it waits for a message that was not sent yet."""

    def __init__(
        self, functions: Mapping[str, list[Step]], arguments: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]],
        layout: Layout, stage: int, messages: Messages, issue_seconds: float, places: Sequence[str] | None = None,
    ) -> None:  # fmt: skip
        self._functions, self._arguments = functions, arguments
        self._layout, self.stage, self._messages = layout, stage, messages
        self._issue = issue_seconds
        self._thread = self._compute = 0.0
        self._lanes: defaultdict[str, float] = defaultdict(float)
        self._outcomes: dict[object, Outcome] = {}
        self._issued: dict[str, int | None] = {}
        self.walked = 0
        """The steps that were walked: those of calls whose outcome was known are not."""
        self._prices: dict[tuple[str, tuple[str, ...], int], float] = {}
        self.arrived = 0
        """The messages that came so far."""
        self._places = places
        self.tasks: list[Task] = []
        """What ran when, where `places` were given."""
        self.spent = Spent()

    def run(self, entry: str) -> Iterator[None]:
        """Walk the entry; afterwards `spent` says what it took."""
        yield from self._walk(entry, {})
        self.spent.end = self._compute

    def _walk(self, name: str, futures: dict[int, tuple[float, str]]) -> Iterator[None]:
        """`futures` has by slot when what it holds is there, and whose wait that is."""
        self.walked += len(self._functions[name])
        for step in self._functions[name]:
            match step:
                case Kernel():
                    self._kernel(step)
                case Start():
                    futures.update(dict.fromkeys(step.out, self._start(step)))
                case Wait(slot):
                    if slot in futures:
                        yield from self._wait(*futures[slot])
                case Send():
                    self._send(step)
                case Receive():
                    futures[step.out] = (-1.0 - step.peer, PIPELINE)
                case Called(callee, arguments, out):
                    begin = self._compute
                    taken, given = self._arguments[callee]
                    inner = {s: futures[a] for s, a in zip(taken, arguments, strict=False) if a in futures}
                    yield from self._call(callee, inner)
                    futures.update(
                        {o: inner[s] for s, o in zip(given, out, strict=False) if o is not None and s in inner}
                    )
                    self._note(CALLS, callee, None, begin, self._compute - begin)

    def _call(self, name: str, futures: dict[int, tuple[float, str]]) -> Iterator[None]:
        """Walk a function, or do again what it did when its clocks were as far apart."""
        issued = self._issues(name)
        if issued is None or any(ready < 0 for ready, _ in futures.values()):
            yield from self._walk(name, futures)
            return
        clocks = Clocks(self._thread, self._compute, dict(self._lanes))
        key = key_of(name, clocks, futures, issued * self._issue)
        known = self._outcomes.get(key)
        if known is None:
            whole, tasks = self.spent, self.tasks
            self.spent, self.tasks = Spent(), []
            yield from self._walk(name, futures)
            after = Clocks(self._thread, self._compute, dict(self._lanes))
            self._outcomes[key] = outcome_of(clocks, after, futures, self.spent, self.tasks)
            whole.add(self.spent)
            self.spent, self.tasks = whole, [*tasks, *self.tasks]
            return
        origin = self._compute
        self._thread += known.thread
        self._compute += known.compute
        self._lanes.update({lane: origin + end for lane, end in known.lanes.items()})
        futures.update({slot: (origin + ready, whose) for slot, (ready, whose) in known.futures.items()})
        self.spent.add(known.spent)
        self.tasks += [task.later(origin) for task in known.tasks]

    def _issues(self, name: str) -> int | None:
        """What the thread issues in a call of a function; None where it exchanges messages with other stages."""
        if name not in self._issued:
            issued: int | None = 0
            for step in self._functions[name]:
                each = self._issues(step.name) if isinstance(step, Called) else isinstance(step, Kernel | Start)
                issued = None if isinstance(step, Send | Receive) or each is None or issued is None else issued + each
            self._issued[name] = issued
        return self._issued[name]

    def _kernel(self, kernel: Kernel) -> None:
        self._thread += self._issue
        if self._thread > self._compute:
            self.spent.issuing += self._thread - self._compute
            self._compute = self._thread
        self._note(COMPUTE, str(kernel.kind), kernel.location, self._compute, kernel.seconds)
        self._compute += kernel.seconds
        self.spent.computed[kernel.kind] += kernel.seconds
        self.spent.at_peak += kernel.at_peak

    def _start(self, start: Start) -> tuple[float, str]:
        self._thread += self._issue
        key = (start.kind, start.axes, start.nbytes)
        if key not in self._prices:
            self._prices[key] = self._layout.collective_seconds(*key, start.shift)
        axes = ", ".join(start.axes)
        lane = start.lane or axes
        begin = max(self._compute, self._thread, self._lanes[lane])
        end = self._lanes[lane] = begin + self._prices[key]
        self._note(lane, f"{start.kind} over {axes}", start.location, begin, self._prices[key])
        self.spent.communicated[axes] += self._prices[key]
        return end, axes

    def _send(self, send: Send) -> None:
        across = self._layout.crosses_nodes(send.axis, self.stage, send.peer)
        lane = f"to {send.peer}"
        begin = max(self._compute, self._lanes[lane])
        arrival = begin + self._layout.message_seconds(send.nbytes, between_nodes=across)
        self._lanes[lane] = arrival
        self._note(lane, f"send over {send.axis}", None, begin, arrival - begin)
        self._messages.setdefault((self.stage, send.peer), deque()).append(arrival)

    def _wait(self, ready: float, whose: str) -> Iterator[None]:
        if ready < 0:  # a message, of the stage whose number this is
            queue = self._messages.setdefault((int(-1.0 - ready), self.stage), deque())
            while not queue:
                yield
            ready = queue.popleft()
            self.arrived += 1
        if ready > self._compute:
            self.spent.waited[whose] += ready - self._compute
            self._compute = ready

    def _note(self, lane: str, name: str, location: int | None, begin: float, seconds: float) -> None:
        """Keep a task, where somebody wants them."""
        if self._places is not None and seconds > 0:
            place = "" if location is None else self._places[location]
            self.tasks.append(Task(self.stage, lane, name, place, begin, begin + seconds))
