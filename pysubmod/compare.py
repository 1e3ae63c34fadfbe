"""Every method on the same problem: what each reaches, which share of the optimum that is at least, and the time."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ._comparison import NO_ANGLE, cosines
from ._files import PathLike, write_atomic
from ._quadratic import Quadratic
from ._validation import as_mask, as_scalar, is_integer, shown
from .certificate import Certificate, certify
from .matroid import PartitionMatroid, checked_matroid
from .problem import GradientMatching
from .result import Selection
from .solvers import METHODS, available_methods, solve

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Comparison", "Row", "compare"]

FAST = 0.1  # seconds: what is faster is timed REPEATS times
REPEATS = 5
# What a method may say of a problem that it cannot solve; anything else is a fault and is raised.
REFUSALS = (ValueError, MemoryError)


@dataclass(frozen=True)
class Row:
    """One method. Of a random one all numbers are means over its seeds.

    Attributes
    ----------
    method : str
    objective : float
        f of its selections. NaN, like all other numbers, where the method cannot run on this problem.
    objectives : tuple of float
        One for every seed; one alone if nothing is random.
    share : float
        ``objective`` over the certified upper bound: at least this share of the optimum (proved). NaN without a bound.
    of_best : float
        ``objective`` over the best one that any method found.
    residual : float or None
        ``||t - G_S' w|| / ||t||``; None where the target is not known.
    conflicts : float
        Pairs of picks with a negative cosine.
    picks : float
    seconds : float
        Median over runs (several if it is fast), the refit that judges the picks included.
    problem : str
        Why the method cannot run on this problem; "" where it can.
    """

    method: str
    objective: float
    objectives: tuple[float, ...]
    share: float
    of_best: float
    residual: float | None
    conflicts: float
    picks: float
    seconds: float
    problem: str = ""

    @property
    def random(self) -> bool:
        return len(self.objectives) > 1

    @property
    def spread(self) -> float:
        """Standard deviation of the objective over the seeds, 0 if nothing is random."""
        return float(np.std(self.objectives, ddof=1)) if self.random else 0.0


@dataclass(frozen=True, eq=False)
class Comparison:
    """What `compare` found. ``print(comparison)`` is a table.

    Attributes
    ----------
    rows : tuple of Row
        The largest objective first; methods that cannot run on this problem at the end.
    certificate : Certificate
        Of `best`; its upper bound holds for every feasible selection.
    best : Selection
        The selection with the largest objective (of a random method that of one seed).
    problem : str
        What was compared on, in words.
    seconds : float
        For all of it.
    """

    rows: tuple[Row, ...]
    certificate: Certificate
    best: Selection
    problem: str
    seconds: float

    def __str__(self) -> str:
        from ._compare_text import table

        return table(self)

    def to_csv(self, path: PathLike) -> None:
        """Write the table as CSV, a row a method, whole or not at all.

        Raises
        ------
        OSError
            The file cannot be written.
        """
        write_atomic(path, self.csv().encode())

    def csv(self) -> str:
        """The text that `to_csv` writes."""
        import csv
        import io

        text = io.StringIO()
        out = csv.writer(text, lineterminator="\n")
        out.writerow(COLUMNS)
        for row in self.rows:
            values = (row.objective, row.spread, row.share, row.of_best, row.residual, row.conflicts, row.picks)
            runs = len(row.objectives)
            out.writerow(
                [row.method, *map(_cell, values), _cell(row.seconds), runs, self.certificate.upper, row.problem]
            )
        return text.getvalue()

    def plot(self) -> Figure:
        """Draw quality against time: the proved share of the optimum over the seconds, a marker a method.

        Returns
        -------
        matplotlib Figure
            Save it with ``savefig``.

        Raises
        ------
        ImportError
            Matplotlib is not installed; the message says how to get it.
        """
        from ._compare_plot import compare_figure

        return compare_figure(self)


COLUMNS = ("method", "objective", "objective_std", "certified_share", "share_of_best", "relative_residual",
           "conflicting_pairs", "picks", "seconds", "runs", "certified_upper_bound", "why_not")  # fmt: skip


def _cell(value: float | None) -> Any:
    return "" if value is None or math.isnan(value) else value


def compare(
    problem: GradientMatching,
    matroid: PartitionMatroid | int,
    methods: Iterable[str] | None = None,
    *,
    seeds: int = 5,
    gap: float = 0.01,
    time_limit: float = 10.0,
    candidates: Any = None,
    n_threads: int | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Comparison:
    """Run every method on the same problem and prove how far from optimal the best one is.

    Parameters
    ----------
    problem : GradientMatching
    matroid : PartitionMatroid or int
        Budgets by group; an int is a plain cardinality.
    methods : iterable of str, optional
        Names from `available_methods`; all of them by default.
    seeds : int, default 5
        Runs of every method that draws at random, with seeds 0, 1, ...
    gap, time_limit : float
        Of the certificate, as in `certify`; `time_limit` (seconds) is also that of every method that takes one.
    candidates : (n,) bool array, optional
        The rows that may be picked.
    n_threads : int, optional
        Default: the CPUs this process may use.
    progress : callable, optional
        Called as ``progress(done, total, name of what comes next)``.

    Returns
    -------
    Comparison

    Raises
    ------
    TypeError, ValueError
        Naming the argument; a problem that no method can solve raises what the first one says. A method that alone
        cannot run on this problem is a row that says why.

    Examples
    --------
    >>> import numpy as np, pysubmod
    >>> problem = pysubmod.GradientMatching(np.eye(4), target=[4.0, 3.0, 2.0, 1.0])
    >>> [row.method for row in pysubmod.compare(problem, 2, ["random", "omp"]).rows]
    ['omp', 'random']
    """
    started = time.perf_counter()
    matroid = checked_matroid(problem, matroid)
    names = _checked_names(methods)
    if not is_integer(seeds) or isinstance(seeds, bool) or seeds < 1:
        raise ValueError(f"seeds: expected an integer of at least 1, got {shown(seeds)}")
    gap, limit = as_scalar("gap", gap, minimum=0.0), as_scalar("time_limit", time_limit, minimum=0.0)
    as_mask(candidates, problem.n)
    options = {"candidates": candidates, "n_threads": n_threads}
    tell = progress or (lambda *_: None)
    trials: dict[str, _Trials | Exception] = {}
    for done, name in enumerate(names):
        tell(done, len(names) + 1, name)
        try:
            trials[name] = _run(problem, matroid, name, int(seeds), limit, options)
        except REFUSALS as error:
            trials[name] = error
    ran = {name: found for name, found in trials.items() if isinstance(found, _Trials)}
    if not ran:
        raise next(error for error in trials.values() if isinstance(error, Exception))
    best = max((s for found in ran.values() for s in found.selections), key=lambda s: s.objective)
    tell(len(names), len(names) + 1, "the certificate")
    certificate = certify(problem, matroid, best, gap=gap, time_limit=limit, candidates=candidates)
    conflicts = _Conflicts(problem, [s for found in ran.values() for s in found.selections])
    rows = [_row(name, found, best.objective, certificate.upper, conflicts) for name, found in trials.items()]
    rows.sort(key=lambda row: math.inf if row.problem else -row.objective)
    tell(len(names) + 1, len(names) + 1, "")
    return Comparison(tuple(rows), certificate, best, _words(problem, matroid), time.perf_counter() - started)


def _checked_names(methods: Iterable[str] | None) -> tuple[str, ...]:
    if methods is None:
        return available_methods()
    if isinstance(methods, str):
        raise TypeError(f"methods: expected a sequence of names, got the text {methods!r}; pass [{methods!r}]")
    names = tuple(dict.fromkeys(methods))
    unknown = [name for name in names if name not in METHODS]
    if unknown:
        raise ValueError(f"methods: unknown {shown(unknown[0])}; there are {', '.join(available_methods())}")
    if not names:
        raise ValueError("methods: expected at least one name")
    return names


@dataclass(frozen=True)
class _Trials:
    """The selections of one method, one a seed, and the seconds of all its runs."""

    selections: list[Selection]
    seconds: list[float]


def _run(
    problem: GradientMatching, matroid: PartitionMatroid, name: str, seeds: int, limit: float, options: dict[str, Any]
) -> _Trials:
    if "time_limit" in inspect.signature(METHODS[name].solver).parameters:
        options = options | {"time_limit": limit}

    def once(seed: int) -> Selection:
        before = time.perf_counter()
        selection = solve(problem, matroid, name, random_state=seed, **options)
        seconds.append(time.perf_counter() - before)
        return selection

    seconds: list[float] = []
    selections = [once(0)]
    if selections[0].config.get("random_state") is not None:  # recorded where something was drawn
        selections += [once(seed) for seed in range(1, seeds)]
    while len(seconds) < REPEATS and seconds[0] < FAST:
        once(0)
    return _Trials(selections, seconds)


class _Conflicts:
    """Counts pairs of picks with a negative cosine; only rows that somebody picked are read."""

    def __init__(self, problem: GradientMatching, selections: list[Selection]) -> None:
        self._rows = np.unique(np.concatenate([s.indices for s in selections]))
        self._quadratic = Quadratic(problem._restricted(self._rows)) if len(self._rows) else None

    def __call__(self, indices: npt.NDArray[np.int64]) -> int:
        if self._quadratic is None or len(indices) < 2:
            return 0
        places = np.searchsorted(self._rows, indices)
        K = self._quadratic.block(places)
        K[np.diag_indices(len(K))] = self._quadratic.squares[places]
        return int((cosines(K)[np.triu_indices(len(K), 1)] < -NO_ANGLE).sum())


def _row(name: str, found: _Trials | Exception, best: float, upper: float, conflicts: _Conflicts) -> Row:
    if isinstance(found, Exception):
        nan = math.nan
        return Row(name, nan, (), nan, nan, None, nan, nan, nan, " ".join(str(found).split()) or type(found).__name__)
    objectives = tuple(s.objective for s in found.selections)
    objective = float(np.mean(objectives))
    residuals = [_residual(s) for s in found.selections]
    known = [r for r in residuals if r is not None]
    return Row(
        method=name,
        objective=objective,
        objectives=objectives,
        share=_share(objective, upper),
        of_best=_share(objective, best),
        residual=float(np.mean(known)) if known else None,
        conflicts=float(np.mean([conflicts(s.indices) for s in found.selections])),
        picks=float(np.mean([len(s) for s in found.selections])),
        seconds=float(np.median(found.seconds)),
    )


def _share(objective: float, whole: float) -> float:
    if math.isinf(whole):
        return math.nan
    return 1.0 if whole <= 0.0 else min(1.0, objective / whole)


def _residual(selection: Selection) -> float | None:
    relative = selection.relative_residuals
    if relative is None:
        return None
    return float(relative[-1]) if len(relative) else 1.0


def _words(problem: GradientMatching, matroid: PartitionMatroid) -> str:
    groups = int((np.minimum(matroid.budgets, matroid.sizes) > 0).sum())
    text = f"choose {matroid.rank} of {problem.n} candidates"
    text += f", {groups} groups" if len(matroid.labels) > 1 else ""
    text += f", d = {problem.d}" if problem.d is not None else ", from a Gram matrix"
    text += f", ridge {problem.ridge:.3g}" + (f", tilt {problem.tilt:.3g}" if problem.tilt else "")
    return text + (", weights >= 0" if problem.nonneg else ", weights of either sign")
