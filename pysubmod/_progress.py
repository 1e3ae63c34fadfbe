"""A progress bar for the command line: tqdm's where it is installed."""

from __future__ import annotations

import shutil
import sys
import time
from typing import Any

_AFTER = 1.0  # seconds; shorter work needs no progress bar


class ProgressBar:
    """A progress bar on a terminal's standard error, once the work has taken more than a second."""

    def __init__(self, *, enabled: bool) -> None:
        self.callback = self._update if enabled else None
        self._start = time.monotonic()
        self._bar: Any = None

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def _update(self, progress: Any) -> None:
        if self._bar is None:
            if time.monotonic() - self._start < _AFTER:
                return
            self._bar = _make_bar(progress.rank)
        self._bar.update(progress.n_selected - self._bar.n)


def _make_bar(total: int) -> Any:
    try:
        from tqdm import tqdm
    except ImportError:
        return _PlainBar(total)
    # A terminal that does not know its size (0 x 0) would get no bar at all: 80 x 24 then.
    size = shutil.get_terminal_size()
    shape = {"ncols": min(size.columns, 100), "nrows": max(size.lines, 2)}
    return tqdm(total=total, unit=" picks", desc="selecting", file=sys.stderr, leave=False, **shape)


class _PlainBar:
    """What is used of tqdm, where it is not installed."""

    def __init__(self, total: int) -> None:
        self.total, self.n = total, 0

    def update(self, step: int) -> None:
        self.n += step
        print(f"\rselecting: {self.n} of {self.total} picks", end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        print("\r" + " " * 50 + "\r", end="", file=sys.stderr, flush=True)
