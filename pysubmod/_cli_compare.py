"""`pysubmod compare`: every method on the same problem."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ._cli_inputs import InputError, read_array, read_budgets, read_groups
from ._cli_outputs import check_output, writing
from ._progress import ProgressBar
from ._validation import as_mask, as_scalar

if TYPE_CHECKING:
    from .compare import Comparison
    from .matroid import PartitionMatroid
    from .problem import GradientMatching

DESCRIPTION = """\
Run every method on the same problem, under the same budgets, and prove with one certificate how far from optimal the
best of them is. Prints a table; on request writes it as CSV, and a picture of quality against time.

examples:
  the real gradients that come with pysubmod, eight domains, four picks each
    pysubmod compare --demo --plot compare.png
  your own, under the budgets that you train with
    pysubmod compare G.npy --target t.npy --groups labels.csv --budgets "*=8" --csv compare.csv
  three methods, a ridge of a hundredth of the mean squared row norm, a minute for the proof
    pysubmod compare G.npy --target t.npy --budgets 64 --ridge-relative 0.01 --methods omp,greedy,random --time-limit 60
"""
DEMO_BUDGETS, DEMO_RIDGE = "*=4", 1e-2


def add_compare_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("the problem").add_argument
    add("gradients", nargs="?", metavar="G.npy", help="(n, d) float16, float32 or float64, a candidate a row")
    add("--demo", action="store_true",
        help="compare on the real gradients that come with pysubmod, instead of G.npy, --target and --groups"
             f' (default --budgets "{DEMO_BUDGETS}", --ridge-relative {DEMO_RIDGE:g})')  # fmt: skip
    add("--target", metavar="NPY", help="(d,), or (m, d) whose mean is taken")
    add("--budgets", metavar="B", help='as in `pysubmod select`: 64, "math=8,code=8", "*=8", or a .json or .yaml file')
    add("--groups", metavar="FILE", help="(n,) labels: .npy, a column of a .csv or .tsv, or a .txt with a line each")
    add("--group-column", metavar="NAME", help="column of --groups (default: domain, group or label; or the only one)")
    add("--candidates", metavar="NPY", help="(n,) boolean mask of the rows that may be picked")
    add("--free", action="store_true", help="weights of either sign (default: w >= 0)")
    ridge = parser.add_mutually_exclusive_group().add_argument
    ridge("--ridge", type=float, metavar="X", help="penalty on the squared weights (default: 0)")
    ridge("--ridge-relative", type=float, metavar="X", help="the same, over the mean squared norm of the rows")

    add = parser.add_argument_group("the comparison").add_argument
    add("--methods", metavar="A,B,...", help="default: all; `pysubmod compare --methods help` lists them")
    add("--seeds", type=int, default=5, metavar="INT", help="runs of each random method (default: 5)")
    add("--gap", type=float, default=0.01, metavar="X", help="enough is proved within this share (default: 0.01)")
    add("--time-limit", type=float, default=10.0, metavar="S",
        help="seconds for the proof, and for each method that takes a limit (default: 10)")  # fmt: skip
    add("--n-threads", type=int, metavar="INT", help="default: the CPUs this process may use")

    add = parser.add_argument_group("the output").add_argument
    add("--csv", metavar="FILE", help='the table; "-" writes it to standard output, in place of the text')
    add("--plot", metavar="FILE", help="quality against time: .png, .pdf or .svg")
    add("--quiet", action="store_true", help="no progress bar and no table")


def run_compare(args: argparse.Namespace) -> int:
    """`pysubmod compare`."""
    if args.methods == "help":
        _list_methods()
        return 0
    files = {name: getattr(args, name) for name in ("gradients", "target", "groups", "candidates")}
    files = {name: path for name, path in files.items() if path is not None}
    for option, output in (("--csv", args.csv), ("--plot", args.plot)):
        if output is not None:
            check_output(output, files, option)
    if args.plot:
        _check_plot(args.plot)
    try:
        comparison = _compare(args)
    except (ValueError, TypeError) as error:  # they name the argument, which has the option's name
        raise InputError(str(error)) from error
    except MemoryError as error:
        raise InputError(f"not enough memory for this problem {error}".rstrip()) from None
    if not args.quiet and args.csv != "-":
        print(comparison)
    _write(args, comparison)
    return 0


def _list_methods() -> None:
    from .solvers import METHODS

    for name, method in METHODS.items():
        print(f"{name:<18} {method.summary}" + (f" ({method.source})" if method.source else ""))


def _check_plot(path: str) -> None:
    from .plot import require_matplotlib

    if not path.lower().endswith((".png", ".pdf", ".svg")):
        raise InputError(f"--plot: expected a name that ends in .png, .pdf or .svg, got {path!r}")
    try:
        require_matplotlib()
    except ImportError as error:
        raise InputError(f"--plot: {error}") from None


def _compare(args: argparse.Namespace) -> Comparison:
    from .compare import compare

    problem, matroid, mask = _problem(args)
    methods = None if args.methods is None else [name.strip() for name in args.methods.split(",") if name.strip()]
    shown = not args.quiet and sys.stderr.isatty()
    with ProgressBar(enabled=shown, unit=" methods", title="comparing", after=0.0) as bar:
        return compare(
            problem, matroid, methods, seeds=args.seeds, gap=args.gap, time_limit=args.time_limit,
            candidates=mask, n_threads=args.n_threads, progress=bar.show,
        )  # fmt: skip


def _problem(args: argparse.Namespace) -> tuple[GradientMatching, PartitionMatroid, npt.NDArray[np.bool_] | None]:
    from .omp import _matroid
    from .problem import GradientMatching

    gradients, target, groups = _demo(args) if args.demo else _own(args)
    budgets = read_budgets(args.budgets or DEMO_BUDGETS, groups)
    ridge, relative = args.ridge or 0.0, args.ridge_relative
    if args.demo and args.ridge is None and relative is None:
        relative = DEMO_RIDGE
    problem = GradientMatching(gradients, target, ridge=ridge, nonneg=not args.free)
    mask = as_mask(None if args.candidates is None else read_array("--candidates", args.candidates), problem.n)
    if relative is not None:
        ridge = as_scalar("ridge_relative", relative, minimum=0.0) * _mean_square(problem, mask)
        problem = GradientMatching(gradients, target, ridge=ridge, nonneg=not args.free)
    return problem, _matroid(gradients, problem, budgets, groups, mask), mask


def _own(args: argparse.Namespace) -> tuple[Any, Any, Any]:
    missing = [name for name in ("gradients", "target", "budgets") if getattr(args, name) is None]
    if missing:
        name = "G.npy" if missing[0] == "gradients" else f"--{missing[0]}"
        raise InputError(f"{name}: needed, unless --demo is given")
    gradients = read_array("G", args.gradients, mapped=True)
    groups = None if args.groups is None else read_groups(args.groups, args.group_column)
    return gradients, read_array("--target", args.target), groups


def _demo(args: argparse.Namespace) -> tuple[Any, Any, Any]:
    given = [name for name in ("gradients", "target", "groups", "candidates") if getattr(args, name) is not None]
    if given:
        name = "G.npy" if given[0] == "gradients" else f"--{given[0]}"
        raise InputError(f"--demo: brings its own problem; leave {name} out")
    from .datasets import load_demo

    data = load_demo()
    return data.gradients, data.target, data.groups


def _mean_square(problem: GradientMatching, mask: npt.NDArray[np.bool_] | None) -> float:
    """Of the norms of the rows that may be picked."""
    from ._quadratic import Quadratic

    rows = np.arange(problem.n) if mask is None else np.flatnonzero(mask)
    squares = Quadratic(problem._restricted(rows), rows).squares
    return float(squares.mean()) if len(squares) else 0.0


def _write(args: argparse.Namespace, comparison: Comparison) -> None:
    from .plot import save_figure

    if args.csv == "-":
        with writing("-", "--csv"):
            sys.stdout.write(comparison.csv())
            sys.stdout.flush()
    elif args.csv:
        with writing(args.csv, "--csv"):
            comparison.to_csv(args.csv)
    if args.plot:
        with writing(args.plot, "--plot"):
            save_figure(comparison.plot(), args.plot)
    if not args.quiet and args.csv != "-":
        for what, path in (("table", args.csv), ("picture", args.plot)):
            if path:
                print(f"The {what} is in {path}")
