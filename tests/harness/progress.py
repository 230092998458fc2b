"""How far a script is, on stderr: a bar in a terminal, elsewhere a line now and then."""

import sys
import time

LINE_SECONDS = 10.0
BAR_SECONDS = 0.1
WIDTH = 30


class Progress:
    """``done`` of ``total`` steps of a thing, with the rate and the time left."""

    def __init__(self, label: str, total: int) -> None:
        self._label = label
        self._total = total
        self._started = time.monotonic()
        self._bar = sys.stderr.isatty()
        self._interval = BAR_SECONDS if self._bar else LINE_SECONDS
        self._shown = self._started
        # The clock is not asked a million times.
        self._look_every = min(max(total // 100, 1), 256)
        self.done = 0

    def step(self) -> None:
        self.done += 1
        if self.done % self._look_every == 0 and time.monotonic() - self._shown >= self._interval:
            self._show()

    def end(self) -> None:
        """The last state stays on the screen."""
        self._show()
        if self._bar:
            print(file=sys.stderr)

    def _show(self) -> None:
        self._shown = time.monotonic()
        rate = self.done / max(self._shown - self._started, 1e-9)
        left = f"{max(self._total - self.done, 0) / rate:.0f} s left" if rate else "-"
        text = f"{self.done:,} of {self._total:,}, {rate:,.0f}/s, {left}"
        if self._bar:
            filled = WIDTH * self.done // max(self._total, 1)
            bar = "#" * filled + "." * (WIDTH - filled)
            print(f"\r\x1b[K{self._label} [{bar}] {text}", end="", file=sys.stderr, flush=True)
        else:
            print(f"{self._label}: {text}", file=sys.stderr, flush=True)
