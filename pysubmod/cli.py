"""The command `pysubmod`: select, compare, mixture, demo, info."""

from __future__ import annotations

import argparse
import contextlib
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from . import _cli_compare, _cli_mixture
from ._cli_inputs import InputError, read_array, read_budgets, read_groups, read_rows
from ._cli_outputs import OutputError, check_output, silence_stdout, writing
from ._progress import ProgressBar

if TYPE_CHECKING:
    from .result import Selection

_LISTED = 6  # groups named in the note about a short selection
OK, BAD_INPUT, TOO_SHORT, NO_OUTPUT, INTERRUPTED = 0, 2, 3, 4, 130

_EXIT_CODES = """\
exit codes:
  0    done (a selection shorter than its budgets is reported, not a failure)
  1    an error inside pysubmod: please report it
  2    wrong usage or bad input; the message names the argument
  3    --require-full was given and the selection is shorter than its budgets (it is written all the same)
  4    the output cannot be written; this is checked before the work starts
  130  interrupted with Ctrl-C; no partial file is left behind
"""

_MAIN = """\
Choose training samples by gradient matching under budgets.

  pysubmod demo                 a minute on real gradients: a table and a picture
  pysubmod select --help        choose rows of your own gradients
  pysubmod compare --help       every method on the same problem, and how far from optimal the best one is
  pysubmod mixture --help       how much of each task, from how alike the tasks are; budgets
  pysubmod info                 version, devices and threads of this installation
"""

_SELECT = """\
Choose rows of G whose non-negative combination comes closest to a target gradient, at most so many rows from
each group. The picks, their weights and how they were found go to a JSON file; in Python,
`indices, weights = pysubmod.Selection.load("sel.json")`.

examples:
  one budget for all, no groups
    pysubmod select G.npy --target t.npy --budgets 64 -o sel.json
  eight from each of two domains; the labels are a column of a CSV file
    pysubmod select G.npy --target t.npy --groups labels.csv --group-column domain --budgets "math=8,code=8" -o sel.json
  eight from each group, none from "spam", a little ridge, only the rows that mask.npy allows
    pysubmod select G.npy --target t.npy --groups labels.txt --budgets "spam=0,*=8" --ridge 1e-3 \\
        --candidates mask.npy -o sel.json
  budgets from a file, the result into another program
    pysubmod select G.npy --target t.npy --groups labels.npy --budgets budgets.yaml -o - | jq .indices
"""

_DEMO = """\
Select from 240 real gradients of a small language model in 8 domains, against the mean validation gradient, and
compare with top-k, per-domain top-k and random draws. Prints a table and its explanation and writes a picture.
"""


def build_parser() -> argparse.ArgumentParser:
    """The argument parser of the command and its subcommands."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("pysubmod", description=_MAIN, epilog=_EXIT_CODES, formatter_class=raw)
    parser.add_argument("--version", action="store_true", help="print the version and stop")
    commands = parser.add_subparsers(dest="command", metavar="command")

    select = commands.add_parser(
        "select", help="choose rows of your own gradients", description=_SELECT, epilog=_EXIT_CODES, formatter_class=raw
    )
    _add_select_arguments(select)
    select.set_defaults(run=run_select)

    compare = commands.add_parser(
        "compare", help="every method on the same problem", description=_cli_compare.DESCRIPTION, epilog=_EXIT_CODES,
        formatter_class=raw,
    )  # fmt: skip
    _cli_compare.add_compare_arguments(compare)
    compare.set_defaults(run=_cli_compare.run_compare)

    mixture = commands.add_parser(
        "mixture", help="how much of each task, and budgets", description=_cli_mixture.DESCRIPTION, epilog=_EXIT_CODES,
        formatter_class=raw,
    )  # fmt: skip
    _cli_mixture.add_mixture_arguments(mixture)
    mixture.set_defaults(run=_cli_mixture.run_mixture)

    demo = commands.add_parser(
        "demo", help="a selection on real gradients", description=_DEMO, epilog=_EXIT_CODES, formatter_class=raw
    )
    demo.add_argument("-k", type=int, default=32, metavar="INT", help="picks, spread over 8 domains (default: 32)")
    demo.add_argument("-o", "--output", metavar="PNG", help="the picture (default: demo.png; .pdf and .svg work too)")
    demo.add_argument("--draws", type=int, default=1000, metavar="INT", help="random batches (default: 1000)")
    demo.add_argument("--seed", type=int, default=0, metavar="INT", help="of the random batches (default: 0)")
    demo.add_argument(
        "--rule", choices=["omp", "normalized"], default="omp",
        help="score by inner product (omp, the default) or by cosine (normalized), for every method alike",
    )  # fmt: skip
    demo.set_defaults(run=run_demo)

    info = commands.add_parser("info", help="version, devices and threads of this installation")
    info.set_defaults(run=run_info)
    return parser


def _add_select_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("the problem").add_argument
    add("gradients", metavar="G.npy", help="(n, d) float16, float32 or float64, a candidate a row; memory-mapped")
    add("--target", required=True, metavar="NPY", help="(d,), or (m, d) whose mean is taken")
    add("--budgets", required=True, metavar="B",
        help='an integer for all candidates together, "label=integer,..." ("*" is every label not named), or a'
             " .json, .yaml or .yml file with such a mapping")  # fmt: skip
    add("--groups", metavar="FILE", help="(n,) labels: .npy, a column of a .csv or .tsv, or a .txt with a line each")
    add("--group-column", metavar="NAME", help="column of --groups (default: domain, group or label; or the only one)")
    add("--candidates", metavar="NPY", help="(n,) boolean mask of the rows that may be picked")
    add("--initial", metavar="FILE", help="rows to start from: .npy, .csv, .txt, or an earlier selection (.json)")

    add = parser.add_argument_group("the method").add_argument
    add("--free", action="store_true", help="weights of either sign (default: w >= 0)")
    add("--rule", choices=["omp", "normalized", "greedy"], default="omp",
        help="score by inner product with the residual (omp, the default), by the same over the row's norm"
             " (normalized), or by the exact gain (greedy)")  # fmt: skip
    add("--ridge", type=float, default=0.0, metavar="X", help="penalty on the squared weights (default: 0)")
    add("--tilt", type=float, default=0.0, metavar="X", help="weight of the squared row norms (default: 0)")
    add("--pick", choices=["argmax", "random"], default="argmax",
        help="take the best candidate, or draw one of the best that fill the budgets (default: argmax)")  # fmt: skip
    add("--random-state", type=int, metavar="INT", help="seed of --pick random (default: a fresh one, which is saved)")
    add("--refine", choices=["swap", "best"], help="exchange picks until none improves; or the best of what is quick")
    add("--tol", type=float, default=0.0, metavar="X", help="stop at this residual, relative to the target's norm")
    add("--fill", action="store_true", help="use up the budgets with weight 0 when nothing improves the match")
    add("--release-zeros", action="store_true", help="a pick whose weight falls to 0 gives its budget back")

    add = parser.add_argument_group("the run").add_argument
    add("-o", "--output", required=True, metavar="JSON", help='where the selection goes; "-" is standard output')
    add("--require-full", action="store_true", help="exit with 3 when the selection is shorter than its budgets")
    add("--n-threads", type=int, metavar="INT", help="default: the CPUs this process may use")
    add("--route", choices=["auto", "plain", "columns", "draft"], default="auto",
        help="how G is read; the answer is the same on all routes (default: auto)")  # fmt: skip
    add("--quiet", action="store_true", help="no progress bar and no summary")


def main(argv: list[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's own) and return its exit code."""
    parser = build_parser()
    try:
        args = parser.parse_args(argv)
    except SystemExit as stop:  # --help, or wrong usage that argparse has already explained
        return int(stop.code or 0)
    try:
        with _plain_warnings():
            code = _dispatch(parser, args)
        sys.stdout.flush()  # here, where a reader that is gone (| head) can still be caught
        return code
    except InputError as error:
        return _fail(str(error), BAD_INPUT)
    except OutputError as error:
        return _fail(str(error), NO_OUTPUT)
    except BrokenPipeError:
        silence_stdout()
        return NO_OUTPUT
    except KeyboardInterrupt:
        return _fail("interrupted; no partial file is left behind", INTERRUPTED)


def _dispatch(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    if args.version:
        from . import __version__

        print(f"pysubmod {__version__}")
        return OK
    if args.command is None:
        parser.print_help(sys.stderr)
        return BAD_INPUT
    return int(args.run(args))


def _fail(text: str, code: int) -> int:
    with contextlib.suppress(OSError):
        print(f"pysubmod: {'' if code == INTERRUPTED else 'error: '}{text}", file=sys.stderr)
    return code


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """Warnings as one line for the user, without the place in the source."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        print(f"pysubmod: warning: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show
        yield


def run_select(args: argparse.Namespace) -> int:
    """`pysubmod select`."""
    files = {name: getattr(args, name) for name in ("gradients", "target", "groups", "candidates", "initial")}
    files = {name: path for name, path in files.items() if path is not None}
    check_output(args.output, files)
    gradients = read_array("G", args.gradients, mapped=True)
    groups = None if args.groups is None else read_groups(args.groups, args.group_column)
    budgets = read_budgets(args.budgets, groups)
    selection = _solve(args, gradients, groups, budgets)
    selection = replace(selection, config={**selection.config, "files": files})

    with writing(args.output):
        if args.output == "-":
            sys.stdout.write(selection.to_json())
            sys.stdout.flush()
        else:
            selection.save(args.output)
    short = _shortfall(selection, budgets, groups)
    if not args.quiet:
        stream = sys.stderr if args.output == "-" else sys.stdout
        print(selection, file=stream)
        if short:
            print(f"  note       shorter than the budgets: {short}", file=stream)
        if args.output != "-":
            print(f"  saved as   {args.output}", file=stream)
    return TOO_SHORT if short and args.require_full else OK


def _solve(args: argparse.Namespace, gradients: Any, groups: Any, budgets: Any) -> Selection:
    from . import omp_partition

    target = read_array("--target", args.target)
    candidates = None if args.candidates is None else read_array("--candidates", args.candidates)
    initial = None if args.initial is None else read_rows("--initial", args.initial)
    with ProgressBar(enabled=not args.quiet and sys.stderr.isatty()) as bar:
        try:
            return omp_partition(
                gradients, target, budgets, groups=groups, ridge=args.ridge, nonneg=not args.free, rule=args.rule,
                pick=args.pick, refine=args.refine, random_state=args.random_state, tilt=args.tilt,
                fill=args.fill, release_zeros=args.release_zeros, tol=args.tol, candidates=candidates,
                initial=initial, route=args.route, n_threads=args.n_threads,
                callback=None if args.refine == "best" else bar.callback,
            )  # fmt: skip
        except (ValueError, TypeError) as error:  # they name the argument, which has the option's name
            raise InputError(str(error)) from error
        except MemoryError as error:
            raise InputError(f"not enough memory for this problem {error}".rstrip()) from None


def _shortfall(selection: Selection, budgets: Any, groups: Any) -> str:
    """Which budgets are not used up, in words; "" when all are."""
    if isinstance(budgets, int):
        return f"{len(selection)} of {budgets}" if len(selection) < budgets else ""
    if not isinstance(budgets, dict):
        budgets = dict(zip(sorted(set(groups.tolist())), budgets, strict=False))
    counts = selection.counts
    parts = [f"{label} {counts.get(label, 0)} of {b}" for label, b in budgets.items() if counts.get(label, 0) < b]
    if len(parts) > _LISTED:
        parts = [*parts[:_LISTED], f"and {len(parts) - _LISTED} more groups"]
    return ", ".join(parts)


def run_demo(args: argparse.Namespace) -> int:
    """`pysubmod demo`."""
    from . import plot
    from ._demo_text import explain, format_table
    from .demo import compare

    output = args.output or "demo.png"
    check_output(output, {})
    try:
        plot.require_matplotlib()
        drawable = True
    except ImportError as error:
        if args.output:
            raise InputError(f"--output: {error}") from None
        drawable = False
    try:
        comparison = compare(args.k, draws=args.draws, seed=args.seed, rule=args.rule)
    except ValueError as error:
        raise InputError(str(error)) from error
    print(format_table(comparison), explain(comparison), sep="\n\n")
    if not drawable:
        print("No picture: Matplotlib is not installed (pip install pysubmod[plot]).")
        return OK
    with writing(output):
        plot.save_figure(plot.demo_figure(comparison), output)
    print(f"The picture is in {output}")
    return OK


def run_info(_: argparse.Namespace) -> int:
    """`pysubmod info`."""
    from . import show_config

    show_config()
    return OK
