"""How many requests may be in flight: found while the run goes. A pure state machine; `gate.py` waits with it.

Three things are told apart. A server that refuses (429, 503) is sent fewer. A server that takes everything and queues
it (an engine: vLLM never refuses) is sent more only as long as that gives more throughput. And a limit that the caller
doesn't use up says nothing, so it doesn't grow.

Throughput is measured by Little's law, mean requests in flight over their mean time here, in windows of answers. That
works for answers that come in bursts, too, where counting those of a time span doesn't. After a change of the limit the
answers of one round trip are passed over: those that were under way, and those that are early because they are short.
"""

from __future__ import annotations

from collections.abc import Callable

_SLOW_START = (1, 24)
_AFTERWARDS = (3, 48)
"""Answers that make a window, as a multiple of the limit and at least. Slow start looks for a doubling and can be
quick; later a difference of a fifth has to be told from chance: lengths of answers vary by as much as their mean."""
_USED = 0.7
"""Share of the limit that must have been in flight for a window to count."""
_WORTH = 0.1
"""More throughput than that share of the growth pays for it: twice as many in flight have to give 10 % more."""
_PLAIN = 0.5
"""The same, so plain that chance is no explanation: slow start needs no second, longer look."""
_CUT = 0.8
"""Multiplicative decrease. TCP's half would leave a quarter of the capacity idle; a refusal costs far less than a lost
packet, so it may happen more often."""
_STEP = 0.05
"""Additive increase per window, as a share of the limit that was last proved; one at least."""
_REACH = 1.25
"""Growth after which a step by step increase is judged: one step alone is lost in the noise."""
_DIP, _HALF = 0.8, 0.5
"""How far a try with less goes; half if not even the first doubling paid, since the start was too much then."""
_KEPT = 0.97
"""A try with less that keeps this share of the throughput stays: what was above it only queued."""
_PATIENCE = (4, 32)
"""Windows between two tries to do better: at first, and at most after tries in vain, each of which doubles it."""
_NEWS = 1.4
"""Throughput that changes by such a factor while the limit stays: the server isn't what it was, so no patience."""
_PAUSE_S = (0.5, 30.0)
"""Pause after refusals without `Retry-After` and without any success between: the first, and the longest."""


class AdaptiveLimit:
    """The limit: slow start, then additive increase and multiplicative decrease, with a gate against saturation.

    - *Slow start*: the limit doubles with each window until twice as many give no 10 % more throughput (back to the
      last limit that paid) or the server refuses.
    - *Refusal*: the limit is cut to 80 % (of what was in flight, if that is less), once per round trip: refusals of
      requests that were sent before the last cut don't count. Nothing is admitted until `Retry-After` is over.
    - *Then* it grows step by step and is judged after each 25 %. If that paid in full and no refusal lies ahead, it
      doubles again; if it didn't pay, it stays at the last limit that did. From there it tries a little less and a
      little more in turn, more and more seldom if that is in vain.

    With `minimum == maximum` it is a fixed number, and only pauses. Times are seconds of one clock, passed in.

    Args:
        start: The first limit; brought between the two others.
        minimum: Never less; at least 1.
        maximum: Never more.

    Attributes:
        in_flight: Requests that are out.
        paused_until: Nothing is admitted before.
    """

    def __init__(self, *, start: int = 32, minimum: int = 1, maximum: int = 1024) -> None:
        if not 1 <= minimum <= maximum:
            raise ValueError(f"1 <= minimum={minimum} <= maximum={maximum} doesn't hold")
        self.in_flight = 0
        self.paused_until = 0.0
        self._minimum, self._maximum = minimum, maximum
        self._limit = float(min(max(start, minimum), maximum))
        self._whole = int(self._limit)
        self._judge: Callable[[float], None] = self._slow_start
        self._window = _SLOW_START
        # The last limit that paid, its throughput, and whether it was reached by a doubling that paid.
        self._proved = self._proved_rate = 0.0
        self._doubled = False
        # Windows to stay, of how many at a time; then which way the next try goes, and how far down.
        self._quiet = self._patience = _PATIENCE[0]
        self._dip_next = True
        self._down = _DIP
        # Cuts without a success between, the time of the last one and the limit that was refused.
        self._cuts = 0
        self._cut_at = float("-inf")
        self._refused_at = float("inf")
        # Of the window: when it began, and the seconds of all requests in flight since then.
        self._window_from = self._changed_at = self._busy_s = 0.0
        self._skip = self._whole
        self._restart_window()

    @property
    def limit(self) -> int:
        """Requests that may be in flight now."""
        return self._whole

    def admits(self, now: float) -> bool:
        """Whether one more may start."""
        return self.in_flight < self._whole and now >= self.paused_until

    def started(self, now: float) -> None:
        """One started."""
        self._change(now, +1)

    def succeeded(self, now: float, started_at: float) -> None:
        """One was answered."""
        self._change(now, -1)
        self._cuts = 0
        if self._minimum == self._maximum:
            return
        if self._skip:
            self._skip -= 1
            return
        if not self._count:
            self._window_from = now
            self._busy_s = 0.0
        self._count += 1
        self._latency_s += now - started_at
        if self._count >= self._whole * self._window[0] and self._count >= self._window[1]:
            span_s = now - self._window_from
            load = self._busy_s / span_s if span_s > 0 else self.in_flight + 1
            rate = load * self._count / max(self._latency_s, 1e-9)
            before = self._whole
            self._restart_window()
            if load >= _USED * self._limit:
                self._judge(rate)
                if self._whole != before:
                    # Answers of one more round trip belong to the limit before, or are the quick ones of this.
                    self._skip = max(self._whole, before)

    def refused(self, now: float, started_at: float, retry_after_s: float = 0.0) -> None:
        """One was refused because there are too many (429, 503).

        Args:
            now: The time.
            started_at: When it started.
            retry_after_s: What the server asks to wait; nothing is admitted before.
        """
        in_flight = self.in_flight
        self._change(now, -1)
        self.paused_until = max(self.paused_until, now + retry_after_s)
        if started_at <= self._cut_at:
            return
        self._cut_at = now
        if self._cuts and not retry_after_s:
            first_s, longest_s = _PAUSE_S
            self.paused_until = max(self.paused_until, now + min(first_s * 2.0 ** (self._cuts - 1), longest_s))
        self._cuts = min(self._cuts + 1, 20)
        self.disturbed()
        self._refused_at = min(self._limit, in_flight)
        self._set(self._refused_at * _CUT)
        self._patience = _PATIENCE[0]
        self._proved = 0.0
        self._judge = self._grow
        self._window = _AFTERWARDS

    def dropped(self, now: float) -> None:
        """One ended in another way, which says nothing about the load: it failed, or nobody wants it any more."""
        self._change(now, -1)

    def disturbed(self) -> None:
        """Forget what was measured since the last decision: something else than the load made requests take long."""
        self._restart_window()
        self._skip = self._whole

    def _start_slowly(self) -> None:
        self._judge = self._slow_start
        self._window = _SLOW_START
        self._set(self._limit * 2)

    def _slow_start(self, rate: float) -> None:
        worth = _PLAIN if self._window is _SLOW_START else _WORTH
        if self._limit > self._proved and self._pays(rate, worth):
            self._doubled = bool(self._proved)
            self._prove(rate)
            self._start_slowly()
            return
        if self._window is _SLOW_START:
            # Look again, and longer: to end here by chance would take long to make good.
            self._window = _AFTERWARDS
            return
        self._settle()
        if not self._doubled and self._limit < self._maximum:
            self._go_down(_HALF)

    def _grow(self, rate: float) -> None:
        if not self._proved:
            self._prove(rate)
        elif self._limit >= self._proved * _REACH or self._whole == self._maximum:
            if self._limit <= self._proved or not self._pays(rate):
                self._be_patient()
                self._settle()
                return
            plain = self._pays(rate, _PLAIN)
            self._prove(rate)
            self._patience = _PATIENCE[0]
            if self._limit > self._refused_at:
                self._refused_at = float("inf")
            if plain and self._limit * 2 <= self._refused_at:
                self._start_slowly()
                return
        self._set(self._limit + max(1.0, self._proved * _STEP))

    def _stay(self, rate: float) -> None:
        change = rate / self._proved_rate
        self._proved_rate += 0.3 * (rate - self._proved_rate)
        self._quiet -= 1
        if not 1 / _NEWS < change < _NEWS:
            self._proved_rate = rate
            self._patience = _PATIENCE[0]
            self._dip_next = change < 1
        elif self._quiet > 0:
            return
        if self._dip_next:
            self._go_down(_DIP)
        else:
            self._judge = self._grow
            self._set(self._limit + max(1.0, self._proved * _STEP))
        self._dip_next = not self._dip_next

    def _dipped(self, rate: float) -> None:
        if rate < _KEPT * self._proved_rate:
            self._settle()
            return
        self._prove(rate)
        self._patience = _PATIENCE[0]
        self._settle()
        self._go_down(self._down)

    def _go_down(self, share: float) -> None:
        if self._whole > self._minimum:
            self._down = share
            self._judge = self._dipped
            self._set(min(self._limit * share, self._limit - 1))

    def _pays(self, rate: float, worth: float = _WORTH) -> bool:
        """Whether what is in flight more than was proved gives enough more throughput."""
        return not self._proved or rate >= self._proved_rate * (1 + worth * (self._limit / self._proved - 1))

    def _prove(self, rate: float) -> None:
        self._proved, self._proved_rate = self._limit, rate

    def _settle(self) -> None:
        """Back to the last limit that paid, and stay there for a while."""
        self._set(self._proved)
        self._quiet = self._patience
        self._judge = self._stay

    def _be_patient(self) -> None:
        self._patience = min(self._patience * 2, _PATIENCE[1])

    def _set(self, limit: float) -> None:
        self._limit = min(max(limit, self._minimum), self._maximum)
        self._whole = int(self._limit)

    def _restart_window(self) -> None:
        self._count = 0
        self._latency_s = 0.0

    def _change(self, now: float, by: int) -> None:
        self._busy_s += self.in_flight * (now - self._changed_at)
        self._changed_at = now
        self.in_flight += by
