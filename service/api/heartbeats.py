"""A table in shared memory that says how each worker is; it does not know what workers do, nor ends one.

The supervisor makes it before it forks. Each cell is one machine word with one writer, so nothing is locked, and the
clock is the same in all processes. Two generations of workers fit, one beside the other.
"""

import mmap
import time
from enum import IntEnum

LOOP_LATE_S = 5.0
_HEAD, _CELLS, _WORD = 2, 4, 8
_PID, _STATE, _BEAT, _STALLED = range(_CELLS)


class State(IntEnum):
    """What a worker's slot holds."""

    EMPTY = 0
    STARTING = 1
    READY = 2
    DRAINING = 3


class Heartbeats:
    """How the workers of a server are.

    Args:
        workers: How many there are in a generation.
        stall_s: How long a computation may make no progress.
    """

    def __init__(self, workers: int, stall_s: float) -> None:
        self.workers, self.stall_s = workers, stall_s
        memory = memoryview(mmap.mmap(-1, _WORD * (_HEAD + 2 * workers * _CELLS)))
        self._whole, self._real = memory.cast("q"), memory.cast("d")

    @property
    def generation(self) -> int:
        """The generation that serves; the supervisor sets it."""
        return self._whole[0]

    @generation.setter
    def generation(self, number: int) -> None:
        self._whole[0] = number

    @property
    def told(self) -> bool:
        """Whether some process has said what is served."""
        return bool(self._whole[1])

    @told.setter
    def told(self, value: bool) -> None:
        self._whole[1] = value

    def slots(self, generation: int) -> range:
        """Return the slots of a generation's workers."""
        first = generation % 2 * self.workers
        return range(first, first + self.workers)

    def pulse(self, slot: int) -> "Pulse":
        """Return one worker's hand on its slot."""
        return Pulse(self, slot)

    def mark(self, slot: int, state: State) -> None:
        """Say what a slot holds; its clock starts anew."""
        self.beat(slot)
        self._whole[self._at(slot, _STATE)] = state

    def seat(self, slot: int, pid: int) -> None:
        """Say whose slot it is; only the supervisor does."""
        self._whole[self._at(slot, _PID)] = pid

    def beat(self, slot: int, stalled_s: float = 0.0) -> None:
        """Say that a worker's event loop turns, and since when its computation has made no progress."""
        self._real[self._at(slot, _STALLED)] = stalled_s
        self._real[self._at(slot, _BEAT)] = time.monotonic()

    def state(self, slot: int) -> State:
        """Return what a slot holds."""
        return State(self._whole[self._at(slot, _STATE)])

    def pid(self, slot: int) -> int:
        """Return the worker's process, 0 where there is none."""
        return self._whole[self._at(slot, _PID)]

    def silent_s(self, slot: int) -> float:
        """Return how long ago a worker's event loop last turned."""
        return time.monotonic() - self._real[self._at(slot, _BEAT)]

    def stalled_s(self, slot: int) -> float:
        """Return how long a worker's computation has made no progress while it had work."""
        stalled_s = self._real[self._at(slot, _STALLED)]
        return stalled_s + self.silent_s(slot) if stalled_s else 0.0

    def stuck(self, slot: int, limit_s: float) -> str | None:
        """Return what of a worker makes no progress for longer than a limit, None where all does."""
        for part, late_s in (("event loop", self.silent_s(slot)), ("computation", self.stalled_s(slot))):
            if late_s > limit_s:
                return f"its {part} has made no progress for {late_s:.1f} s"
        return None

    def workers_dead(self) -> list[str]:
        """Return what is wrong with the workers of the generation that serves, empty where all are well."""
        told = []
        for number, slot in enumerate(self.slots(self.generation), 1):
            fault = self._fault(slot)
            if fault is not None:
                told.append(f"worker {number}: {fault}")
        return told

    def _fault(self, slot: int) -> str | None:
        if self.state(slot) is State.EMPTY:
            return "it has ended and is being replaced"
        if self.state(slot) is State.STARTING:
            return "it is starting"
        if self.silent_s(slot) > LOOP_LATE_S:
            return self.stuck(slot, LOOP_LATE_S)
        return self.stuck(slot, self.stall_s / 2)

    def _at(self, slot: int, cell: int) -> int:
        return _HEAD + slot * _CELLS + cell


class Pulse:
    """One worker's hand on its slot.

    Attributes:
        table: How all workers are.
    """

    def __init__(self, table: Heartbeats, slot: int) -> None:
        self.table, self._slot = table, slot

    def mark(self, state: State) -> None:
        """Say what this worker does now."""
        self.table.mark(self._slot, state)

    def beat(self, stalled_s: float = 0.0) -> None:
        """Say that this worker's event loop turns."""
        self.table.beat(self._slot, stalled_s)
