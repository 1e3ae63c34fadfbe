"""A progress bar for the command line: tqdm's where it is installed."""

from __future__ import annotations

import shutil
import sys
import time
from typing import Any

_AFTER = 1.0  # seconds; shorter work needs none


class ProgressBar:
    """A progress bar on a terminal's standard error, once the work has taken `after` seconds."""

    def __init__(self, *, enabled: bool, unit: str = " picks", title: str = "selecting", after: float = _AFTER) -> None:
        self.callback = self._update if enabled else None
        self.show = self._show if enabled else None
        self._unit, self._title, self._after = unit, title, after
        self._start = time.monotonic()
        self._bar: Any = None

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def _update(self, progress: Any) -> None:
        self._show(progress.n_selected, progress.rank)

    def _show(self, done: int, total: int, what: str = "") -> None:
        """So much of the total is done, and `what` comes next."""
        if self._bar is None:
            if time.monotonic() - self._start < self._after:
                return
            self._bar = _make_bar(total, self._unit, self._title)
        if what:
            self._bar.set_postfix_str(what, refresh=True)
        self._bar.update(done - self._bar.n)


def _make_bar(total: int, unit: str, title: str) -> Any:
    try:
        from tqdm import tqdm
    except ImportError:
        return _PlainBar(total, unit, title)
    # A terminal that does not know its size (0 x 0) would get no bar at all: 80 x 24 then.
    size = shutil.get_terminal_size()
    shape = {"ncols": min(size.columns, 100), "nrows": max(size.lines, 2)}
    return tqdm(total=total, unit=unit, desc=title, file=sys.stderr, leave=False, **shape)


class _PlainBar:
    """What is used of tqdm, where it is not installed."""

    def __init__(self, total: int, unit: str, title: str) -> None:
        self.total, self.n, self._unit, self._title, self._what = total, 0, unit, title, ""

    def set_postfix_str(self, what: str, refresh: bool) -> None:
        self._what = f": {what}"

    def update(self, step: int) -> None:
        self.n += step
        line = f"{self._title}: {self.n} of {self.total}{self._unit}{self._what}"
        print(f"\r{line:<70}", end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        print("\r" + " " * 70 + "\r", end="", file=sys.stderr, flush=True)
