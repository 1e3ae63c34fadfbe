"""`pysubmod mixture`: from a matrix of similarities to shares and budgets."""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from ._cli_inputs import InputError, read_array
from ._cli_outputs import check_output, writing
from ._files import encode, write_atomic

if TYPE_CHECKING:
    from .mixture import Mixture

DESCRIPTION = """\
How much of each task to train on, from how alike the tasks are (TaskPGM, arXiv 2507.12612): the mixture of least
energy, exactly, and whole numbers of samples that sum to a total. Prints a table; on request writes JSON and pictures.

examples:
  shares
    pysubmod mixture sim.npy --beta 0.1 --lam 1
  names, 1,000 samples in all, no more of a task than there are
    pysubmod mixture sim.npy --beta 0.1 --lam 1 --labels math,code,chat --total 1000 --sizes "math=500,code=800,chat=90"
  the file holds Jensen-Shannon divergences; no task above a half, math at least a tenth; a picture
    pysubmod mixture jsd.npy --divergence --beta 0.1 --lam 1 --upper 0.5 --lower "0=0.1" --plot mixture.png
  the blend that another tool reads
    pysubmod mixture sim.npy --beta 0.1 --lam 1 --labels math,code,chat --export megatron --quiet
"""


def add_mixture_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("the problem").add_argument
    add("similarity", metavar="sim.npy", help="(n, n) symmetric, larger is more alike")
    add("--divergence", action="store_true", help="sim.npy holds divergences: smaller is more alike")
    add("--beta", type=float, required=True, metavar="X", help="worth of being like the other tasks, at least 0")
    add("--lam", type=float, required=True, metavar="X", help="charge for taking the same twice, at least 0")
    add("--unary", metavar="NPY", help="(n,) worth of each task (default: the sums of the similarity's rows)")
    add("--labels", metavar="A,B,...", help="names of the tasks, or a .txt file with one a line (default: 0, 1, ...)")
    add("--lower", metavar="B", help='smallest share of each task: 0.05, or "math=0.1,code=0.2"')
    add("--upper", metavar="B", help="largest share, in the same way")
    add("--on-indefinite", choices=["raise", "shift"], default="raise",
        help="where the similarity is not semidefinite: refuse (default), or add to its diagonal, aloud")  # fmt: skip

    add = parser.add_argument_group("budgets").add_argument
    add("--total", type=int, metavar="INT", help="samples in all")
    add("--sizes", metavar="B", help='samples that the tasks have: "math=500,code=800", or a .json file with a mapping')
    add("--method", choices=["largest-remainder", "webster", "partition-sel"], default="largest-remainder",
        help="how shares become whole numbers (default: largest-remainder)")  # fmt: skip

    add = parser.add_argument_group("the output").add_argument
    add("-o", "--output", metavar="JSON", help='shares, budgets and proof; "-" writes them to standard output')
    add("--export", choices=["huggingface", "trl", "mosaicml", "torchdata", "megatron"],
        help="print the shares (mosaicml: budgets, if any) in that tool's words, as JSON, after the table")  # fmt: skip
    add("--plot", metavar="FILE", help="similarities and shares: .png, .pdf or .svg")
    add("--path", metavar="FILE", help="how the shares change with beta / lam: .png, .pdf or .svg")
    add("--quiet", action="store_true", help="no table")


def run_mixture(args: argparse.Namespace) -> int:
    """`pysubmod mixture`."""
    files = {name: getattr(args, name) for name in ("similarity", "unary")}
    files = {name: path for name, path in files.items() if path is not None}
    for option, output in (("--output", args.output), ("--plot", args.plot), ("--path", args.path)):
        if output is not None:
            check_output(output, files, option)
    for option, output in (("--plot", args.plot), ("--path", args.path)):
        if output is not None:
            _check_plot(option, output)
    _check_apart((("--output", args.output), ("--plot", args.plot), ("--path", args.path)))
    if args.sizes is not None and args.total is None:
        raise InputError("--total: needed, as --sizes says how many samples there are to choose from")
    try:
        mixture, budgets, path = _solve(args)
        exported = _exported(args.export, mixture, budgets) if args.export else None
    except (ValueError, TypeError) as error:  # they name the argument, which has the option's name
        raise InputError(str(error)) from error
    _print(args, mixture, budgets, exported)
    _write(args, mixture, budgets, path)
    return 0


def _check_apart(outputs: tuple[tuple[str, str | None], ...]) -> None:
    """Refuse two outputs in one file, of which the second would take the place of the first."""
    seen: dict[str, str] = {}
    for option, output in outputs:
        if output is not None and output != "-":
            place = os.path.realpath(output)
            if place in seen:
                raise InputError(f"{option}: {output!r} is also {seen[place]}; give each a file of its own")
            seen[place] = option


def _exported(tool: str, mixture: Mixture, budgets: dict[Any, int] | None) -> str:
    """The shares in the words of a tool; of those that count samples, the budgets."""
    from .budgets import export

    return json.dumps(export(budgets if budgets is not None and tool == "mosaicml" else mixture.to_dict(), tool))


def _solve(args: argparse.Namespace) -> tuple[Mixture, dict[Any, int] | None, Any]:
    from .mixture import mixture_path, task_mixture
    from .similarity import to_similarity

    similarity = read_array("similarity", args.similarity)
    if args.divergence:
        similarity = to_similarity(similarity)
    labels = None if args.labels is None else _read_labels(args.labels)
    known = list(range(len(similarity))) if labels is None and similarity.ndim else labels or []
    options: dict[str, Any] = {
        "unary": None if args.unary is None else read_array("--unary", args.unary),
        "lower": None if args.lower is None else _read_numbers("--lower", args.lower, known, float),
        "upper": None if args.upper is None else _read_numbers("--upper", args.upper, known, float),
        "labels": labels,
        "on_indefinite": args.on_indefinite,
    }
    mixture = task_mixture(similarity, beta=args.beta, lam=args.lam, **options)
    budgets = None
    if args.total is not None:
        sizes = None if args.sizes is None else _read_numbers("--sizes", args.sizes, known, int)
        budgets = mixture.budgets(args.total, sizes, method=args.method)
    return mixture, budgets, mixture_path(similarity, **options) if args.path else None


def _read_labels(text: str) -> list[str]:
    if not text.lower().endswith(".txt"):
        names = [label.strip() for label in text.split(",")]
        if not all(names):
            raise InputError(f"--labels: a name is empty in {text!r}")
        return names
    try:
        with open(text, encoding="utf-8-sig") as file:
            return [line.strip() for line in file if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--labels: cannot read {text!r}: {getattr(error, 'strerror', None) or error}") from None


def _read_numbers(option: str, text: str, labels: list[Any], kind: type) -> Any:
    """One number for all, "task=number,...", or a JSON file with such a mapping; keys in the type of the labels."""
    if text.lower().endswith(".json"):
        try:
            with open(text, encoding="utf-8") as file:
                pairs = json.load(file)
        except (OSError, ValueError) as error:
            raise InputError(f"{option}: cannot read {text!r}: {getattr(error, 'strerror', None) or error}") from None
        if not isinstance(pairs, dict):
            raise InputError(f"{option}: expected a mapping from task to number in {text!r}")
    elif "=" in text:
        parts = [part.rpartition("=") for part in text.split(",") if part.strip()]
        pairs = {name.strip(): _number(option, number, kind) for name, _, number in parts}
        if len(pairs) < len(parts):
            raise InputError(f"{option}: a task is named twice in {text!r}")
    elif kind is float:
        return _number(option, text, kind)
    else:
        raise InputError(f'{option}: expected "task=integer,..." or a .json file, got {text!r}')
    by_text = {str(label): label for label in labels}
    return {by_text.get(name, name): value for name, value in pairs.items()}


def _number(option: str, text: str, kind: type) -> Any:
    try:
        return kind(text.strip())
    except ValueError:
        what = "an integer" if kind is int else "a number"
        raise InputError(f"{option}: expected {what}, got {text.strip()!r}") from None


def _check_plot(option: str, path: str) -> None:
    from .plot import require_matplotlib

    if os.path.splitext(path)[1].lower() not in (".png", ".pdf", ".svg"):
        raise InputError(f"{option}: expected a name that ends in .png, .pdf or .svg, got {path!r}")
    try:
        require_matplotlib()
    except ImportError as error:
        raise InputError(f"{option}: {error}") from None


def _print(args: argparse.Namespace, mixture: Mixture, budgets: dict[Any, int] | None, exported: str | None) -> None:
    stream = sys.stderr if args.output == "-" else sys.stdout
    if not args.quiet:
        print(mixture, file=stream)
        if budgets is not None:
            print(f"\nBudgets ({sum(budgets.values())} in all): " + _listed(budgets), file=stream)
    if exported is not None:
        print(exported, file=stream)


def _listed(budgets: dict[Any, int], limit: int = 60) -> str:
    parts = [f"{label}={count}" for label, count in budgets.items()]
    return ",".join(parts) if len(parts) <= limit else ",".join(parts[:limit]) + f", ... ({len(parts)} tasks)"


def _write(args: argparse.Namespace, mixture: Mixture, budgets: dict[Any, int] | None, path: Any) -> None:
    say = print if not args.quiet and args.output != "-" else lambda _: None
    if args.output is not None:
        text = json.dumps(_as_json(mixture, budgets), indent=2) + "\n"
        with writing(args.output):
            if args.output == "-":
                sys.stdout.write(text)
                sys.stdout.flush()
            else:
                write_atomic(args.output, text.encode())
                say(f"Saved as {args.output}")
    from .plot import save_figure

    for option, output, drawn in (("--plot", args.plot, mixture), ("--path", args.path, path)):
        if output is not None:
            with writing(output, option):
                save_figure(drawn.plot(), output)
            say(f"The picture is in {output}")


def _as_json(mixture: Mixture, budgets: dict[Any, int] | None) -> dict[str, Any]:
    """What a reader in any language can use: names as text, numbers as numbers."""
    names = [str(label) for label in mixture.labels]
    return {
        "format": "pysubmod.Mixture",
        "probabilities": dict(zip(names, mixture.probabilities.tolist(), strict=True)),
        "budgets": None if budgets is None else dict(zip(names, map(int, budgets.values()), strict=True)),
        "at_bound": dict(zip(names, np.asarray(mixture.active).tolist(), strict=True)),
        **{name: encode(getattr(mixture, name)) for name in ("beta", "lam", "energy", "gap", "scale", "shift")},
        "status": mixture.status,
        "unique": mixture.unique,
        "closed_form": mixture.closed_form is not None,
    }
