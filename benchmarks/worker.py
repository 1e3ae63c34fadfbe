"""A process of its own for each competitor, told over a pipe what to load and when to run.

So one library's threads do not wait for another's, a crash takes nobody along, and the memory of a solve can be told.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import time
import traceback

import machine


class Failed(Exception):
    """A competitor that raised, died or took too long; the text says which."""


class Worker:
    """One process, which serves one competitor until `close`."""

    def __init__(self, name, threads):
        context = multiprocessing.get_context("spawn")
        machine.set_threads(threads)  # a spawned process inherits the environment, and loads its BLAS anew
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, name, threads), daemon=True)
        self._process.start()
        theirs.close()

    def ask(self, command, *arguments, seconds=300.0):
        """The answer to a command; raises `Failed`."""
        try:
            self._pipe.send((command, *arguments))
            if not self._pipe.poll(seconds):
                self.close()
                raise Failed(f"no answer within {seconds:g} s")
            answer = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join(5)
            raise Failed(f"its process died (exit code {self._process.exitcode})") from None
        if "error" in answer:
            raise Failed(answer["error"])
        return answer

    def close(self):
        self._process.kill()
        self._process.join()


def _serve(pipe, name, threads):
    """Answer commands until the pipe ends."""
    served = _Competitor(name, threads)
    with contextlib.suppress(EOFError, OSError):
        while True:
            command, *arguments = pipe.recv()
            try:
                pipe.send(getattr(served, command)(*arguments))
            except Exception as error:
                last = traceback.extract_tb(error.__traceback__)[-1]
                text = f"{type(error).__name__}: {str(error).strip() or 'no message'} ({last.name})"
                pipe.send({"error": text.replace("\n", " ")[:200]})


class _Competitor:
    """What a process can be asked: `load`, `run`, `drop`, `limits`."""

    def __init__(self, name, threads):
        from floors import FLOORS
        from peers import COMPETITORS

        self.prepare = COMPETITORS[name].prepare if name in COMPETITORS else FLOORS[name]
        self.threads, self.calls = threads, {}

    def load(self, path, storage, k, budgets, with_truth):
        """Read a problem that was saved by bench_peers, in the storage type asked for."""
        import numpy as np
        from peers import Problem

        G = np.load(path / "G.npy")
        target = np.load(path / "target.npy")
        if storage == "float64":
            G, target = G.astype(np.float64), target.astype(np.float64)
        elif storage == "float16":
            G = G.astype(np.float16)
        elif storage == "bfloat16":
            import torch

            G = torch.from_numpy(G).to(torch.bfloat16)
        groups = np.load(path / f"groups{len(budgets)}.npy") if budgets else None
        truth = np.load(path / "truth.npy") if with_truth else None
        self.calls[storage] = self.prepare(Problem(G, target, k, self.threads, groups, budgets, truth))
        return {}

    def run(self, storage, loops):
        """Call it `loops` times: seconds of one, its picks, what it added to memory, what it says of itself."""
        with machine.PeakMemory() as peak:
            started = time.perf_counter()
            for _ in range(loops):
                result = self.calls[storage]()
            seconds = (time.perf_counter() - started) / loops
        answer = {"seconds": seconds, "added_bytes": peak.added}
        if isinstance(result, dict):  # a floor: parts of a time
            return answer | result
        if hasattr(result, "indices"):
            stats = {name: result.stats.get(name) for name in ("route", "passes", "bytes_read")}
            answer |= {"stats": stats, "status": str(result.status), "residual": float(result.residual_norms[-1])}
            result = result.indices
        return answer | {"picks": [int(i) for i in result]}

    def drop(self):
        """Forget the problems."""
        self.calls.clear()
        return {}

    def limits(self):
        """What the machine can do with the threads of this process."""
        return machine.limits()
