"""The engine's thread: a loop, and another one in its place when it fails.

    running ──fails──> everyone under way ends with an error ──pause──> a new loop: running
       │                                    └──too often──> dead
       └──a step that does not end──> everyone ends ──> dead

A new loop has the old weights, and a fresh cache and prefix tree: whatever state the failure left is gone. A loop fails
when something in it raises, or when several forwards in a row do. More than `max_restarts` within ten minutes are no
accident any more, and a step that is stuck in a native call can be ended by nothing but the process's exit: then the
engine is dead, which is final. It refuses all requests and tells so; whoever runs it (`baltoro serve`) should leave.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable

from baltoro.engine.loop import Loop
from baltoro.engine.observe import Observer
from baltoro.engine.orders import Orders
from baltoro.engine.output import tell_at_once
from baltoro.engine.request import FinishReason, Step
from baltoro.errors import EngineError

_log = logging.getLogger(__name__)

WINDOW_S = 600.0  # in which restarts are counted
LEAVE_S = 5.0  # that the end of the interpreter waits for the end of a step


class Supervisor:
    """Every method may be called from any thread."""

    def __init__(
        self,
        make: Callable[[], Loop],
        orders: Orders,
        observer: Observer,
        *,
        max_restarts: int,
        restart_after_s: float,
        stuck_after_s: float,
        close: Callable[[], None],
    ) -> None:
        """close: called when the thread ends, for what every loop uses; not of a thread that is stuck."""
        self.dead = threading.Event()  # it has given up, and will never answer again
        self.stuck = False  # in a step; the thread does not end
        self.fault: str | None = None  # why it does not answer now
        self.num_restarts = 0
        self.retired: Counter[str] = Counter()  # what loops before the present one have counted
        self.loop: Loop | None = make()
        self._make = make
        self._orders = orders
        self._observer = observer
        self._max_restarts = max_restarts
        self._restart_after_s = restart_after_s
        self._stuck_after_s = stuck_after_s
        self._close = close
        self._restarts: deque[float] = deque()  # time.monotonic() of each within the window
        self._over = threading.Event()  # the thread has ended, or never will
        self.thread = threading.Thread(target=self._run, name="baltoro-engine", daemon=True)
        self.thread.start()
        threading.Thread(target=self._watch, name="baltoro-watchdog", daemon=True).start()
        weakref.finalize(self, _leave, orders, self._over)  # at the latest when the interpreter ends

    def join(self, timeout_s: float | None) -> bool:
        """Wait for the thread's end; False when the time was over before. One that is stuck is not waited for."""
        if not self._over.wait(timeout_s):
            return False
        if not self.stuck:
            self.thread.join()
        return True

    # ── the engine's thread ──────────────────────────────────────────────────────────────────────

    def _run(self) -> None:
        try:
            while not (whole := self._serve()) and self._pause():
                pass
            self._end_everyone("the engine has stopped" if self.fault is None else self.fault)
            self._retire(keep=whole)
            self._close()
        except Exception:  # the outermost loop of this thread: what fails at the end must not keep anyone waiting
            _log.critical("the engine did not end in order", exc_info=True)
        finally:
            if self.fault is not None:
                self.dead.set()
            self._over.set()

    def _serve(self) -> bool:
        """Steps until the orders are at an end; False when they failed."""
        try:
            self.loop = self.loop or self._make()
            self.fault = None
            self._orders.reopen()
            self.loop.run()
            return True
        except BaseException as error:  # the outermost loop: a bug of ours must not leave callers waiting
            if self.stuck:  # everyone has been told
                return True
            self.fault = f"the engine failed: {error!r}"
            _log.critical("the engine's loop failed", exc_info=True)
            return False

    def _pause(self) -> bool:
        """End everyone and clear up; False where there is to be no other loop."""
        now = time.monotonic()
        while self._restarts and self._restarts[0] < now - WINDOW_S:
            self._restarts.popleft()
        number = len(self._restarts)
        self._end_everyone(f"{self.fault}; it is started anew")
        self._retire(keep=False)
        if number >= self._max_restarts:
            self.fault = f"{self.fault}, after {number} restarts within {WINDOW_S:.0f} s: it is not started again"
            return False
        self._restarts.append(now)
        self.num_restarts += 1
        return not self._orders.wait_closed(self._restart_after_s * 2**number)

    def _end_everyone(self, reason: str) -> None:
        left = self._orders.end(reason)
        if self.loop is not None and not self.stuck:
            self.loop.scheduler.clear()  # first, so that who hears of the end finds its pages free
        for sequence in left:
            self._observer.ended(sequence, FinishReason.ERROR, time.monotonic())
            error = EngineError(reason, hint="send the request again")
            tell_at_once(sequence, Step(None, FinishReason.ERROR, error))

    def _retire(self, *, keep: bool) -> None:
        loop = self.loop
        if loop is None:
            return
        loop.close(keep=keep)
        if not keep:  # its cache must be free before the next one is made
            self.retired.update(loop.counts())
            self.loop = None

    # ── the watchdog's ───────────────────────────────────────────────────────────────────────────

    def _watch(self) -> None:
        while not self._over.wait(min(self._stuck_after_s / 4, 60.0)):
            began = self.loop.step_began if self.loop else None
            if began is None or (lasted := time.monotonic() - began) <= self._stuck_after_s:
                continue
            self.stuck = True
            self.fault = f"a step has lasted {lasted:.0f} s: it is stuck, and only the process's exit can end it"
            _log.critical("%s", self.fault)
            self._end_everyone(self.fault)
            self._orders.close(abandon=True)  # should it ever come back
            self.dead.set()
            self._over.set()


def _leave(orders: Orders, over: threading.Event) -> None:
    """A thread that is in a native call when the interpreter is gone takes the process down with SIGABRT."""
    orders.close(abandon=True)
    over.wait(LEAVE_S)
