"""The CUDA card that a benchmark runs on: what it is, what it can do, and clocks for what runs on it.

`Card` needs torch with CUDA. `Rehearsal` has the same face on the CPU: a benchmark can be tried where there is no card,
and its times then mean nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

GIB = 2**30


@dataclass
class Times:
    """Milliseconds of every run, or why there are none."""

    runs: list[float]
    error: str | None = None

    @property
    def median(self):
        return statistics.median(self.runs) if self.runs else None


class Place:
    """Where tensors lie, and how a call is timed: what Card and Rehearsal share."""

    device: torch.device
    output: dict  # what makes a solver of pysubmod leave its results there, if it can
    is_rehearsal: bool

    def put(self, tensor):
        """What a tensor of `device` is handed to pysubmod as."""
        return tensor

    def once(self, call):
        """Milliseconds from an idle device to a result that is there, the host's part included; and the result."""
        raise NotImplementedError

    def measure(self, calls, repeats=20, seconds=2.0):
        """{name: Times} and {name: last result} of calls run in turn, `repeats` rounds of them.

        Who has taken `seconds` drops out after three rounds. Two runs before the first are not counted.
        """
        times, results = {name: Times([]) for name in calls}, {}
        for name, call in calls.items():
            try:
                first, results[name] = self.once(call)
                if first < 1e3 * seconds:
                    self.once(call)
            except (RuntimeError, ValueError, MemoryError, ImportError) as error:
                times[name].error = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        for count in range(repeats):
            for name, call in calls.items():
                known = times[name]
                if known.error is None and (count < 3 or sum(known.runs) < 1e3 * seconds):
                    taken, results[name] = self.once(call)
                    known.runs.append(taken)
        return times, results

    def median(self, call, repeats=20, seconds=1.0):
        """Milliseconds."""
        times, _ = self.measure({"it": call}, repeats, seconds)
        if times["it"].error:
            raise RuntimeError(times["it"].error)
        return times["it"].median

    def alone(self, call, repeats=20):
        """Milliseconds of the device alone, nothing of the host; None where that cannot be told."""

    def graphed(self, call):
        """A CUDA graph of the call, to be replayed; its arrays must stay where they are."""
        raise RuntimeError("CUDA graphs need a card")

    def parts(self, call):
        """{kernel: (launches, milliseconds)} of one call, by torch's profiler; empty where it cannot tell."""
        return {}


class Rehearsal(Place):
    device = torch.device("cpu")
    is_rehearsal = True

    def __init__(self, put=None):
        """`put` makes arrays that pysubmod takes for a device's, where there is such a thing; else it is the CPU."""
        self.output = {"output": "device"} if put else {}
        if put:
            self.put = put

    def facts(self):
        return {"name": "no card: a rehearsal on the CPU", "multiprocessors": 1, "L2_bytes": 2**20}

    def once(self, call):
        started = time.perf_counter()
        result = call()
        return 1e3 * (time.perf_counter() - started), result

    def free_bytes(self):
        return GIB


class Card(Place):
    output = {"output": "device"}  # noqa: RUF012 (nobody writes to it)
    is_rehearsal = False

    def __init__(self):
        self.device = torch.device("cuda", torch.cuda.current_device())
        self._begin, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def facts(self):
        properties = torch.cuda.get_device_properties(self.device)
        known = {"name": properties.name, "multiprocessors": properties.multi_processor_count}
        known["memory_bytes"] = properties.total_memory
        known["L2_bytes"] = getattr(properties, "L2_cache_size", None)  # not in every torch
        asked = {"driver": "driver_version", "most_MHz": "clocks.max.sm", "watts": "power.limit"}
        with contextlib.suppress(OSError, subprocess.SubprocessError, ValueError):
            command = ["nvidia-smi", f"--query-gpu={','.join(asked.values())}", "--format=csv,noheader,nounits"]
            lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.splitlines()
            known |= dict(zip(asked, lines[0].split(", "), strict=True))
        return known | {"torch": torch.__version__, "cuda": torch.version.cuda}

    def once(self, call):
        torch.cuda.synchronize()
        self._begin.record()
        result = call()
        self._end.record()
        self._end.synchronize()
        return self._begin.elapsed_time(self._end), result

    def free_bytes(self):
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(self.device)[0]

    def alone(self, call, repeats=20):
        # The device spins first, so that all of the call is queued before any of it runs. A call that waits for the
        # device cannot be queued: its host is then found to be late.
        started = time.perf_counter()
        call()
        host = time.perf_counter() - started
        cycles, runs, before = int(4e9 * (host + 1e-3)), [], torch.cuda.Event(enable_timing=True)
        for _ in range(repeats):
            torch.cuda.synchronize()
            before.record()
            torch.cuda._sleep(cycles)
            self._begin.record()
            started = time.perf_counter()
            call()
            self._end.record()
            queued = 1e3 * (time.perf_counter() - started)
            self._end.synchronize()
            if queued < 0.9 * before.elapsed_time(self._begin):
                runs.append(self._begin.elapsed_time(self._end))
        return statistics.median(runs) if 2 * len(runs) > repeats else None

    def graphed(self, call):
        side = torch.cuda.Stream()  # the way torch wants it: warm up on another stream, then capture
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = call()

        def replay():
            graph.replay()
            return result

        return replay

    def parts(self, call):
        from torch.profiler import ProfilerActivity, profile

        call()
        torch.cuda.synchronize()
        try:
            with profile(activities=[ProfilerActivity.CUDA]) as profiler:
                call()
                torch.cuda.synchronize()
            events = profiler.key_averages()
        except (AssertionError, RuntimeError):  # no library for it, no permission, or another profiler
            return {}
        found = {}
        for event in events:
            spent = getattr(event, "self_device_time_total", None)  # microseconds; its name before torch 2.4:
            spent = getattr(event, "self_cuda_time_total", 0.0) if spent is None else spent
            if spent > 0 and "CUDA" in str(getattr(event, "device_type", "CUDA")):
                count, before = found.get(kernel_name(event.key), (0, 0.0))
                found[kernel_name(event.key)] = count + event.count, before + spent / 1e3
        return dict(sorted(found.items(), key=lambda item: -item[1][1]))


def kernel_name(symbol):
    """A kernel of ours by its body, another by what stands before its arguments."""
    ours = re.search(r"run_body<(?:\w+::)*(\w+(?:<[^<>]*>)?)", symbol)
    if ours:
        return re.sub(r"\([^()]*\)", "", ours.group(1)).strip()
    return re.sub(r"[<(].*", "", symbol.removeprefix("void ")).strip()[:48]


def find():
    """The card, or None; and why there is none."""
    if not torch.cuda.is_available():
        reason = "this torch was built without it" if torch.version.cuda is None else "no driver, or no device"
        return None, f"torch sees no CUDA device ({reason})"
    return Card(), ""


def from_command_line(description):
    """The card, or a rehearsal where --rehearse asks for one; ends the program, well, where there is no card."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rehearse", action="store_true", help="tiny problems on the CPU, to try the script")
    if parser.parse_args().rehearse:
        return Rehearsal()
    place, reason = find()
    if place is None:
        say(f"not run: {reason}")
        sys.exit(0)
    say(f"{place.facts()} at commit {commit()}")
    return place


def table(head, rows):
    """Markdown, to go into kernels/README.md."""
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in rows:
        cells = ("-" if cell is None else f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def commit():
    """What is checked out, with a + where files differ from it."""
    git = ["git", "-C", str(Path(__file__).resolve().parent)]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        name = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD"], check=False).returncode
        return name.strip() + "+" * (changed != 0)
    return "unknown"


def host_bytes():
    """Free memory of the host."""
    with contextlib.suppress(OSError, StopIteration), open("/proc/meminfo", encoding="ascii") as file:
        return 1024 * int(next(line for line in file if line.startswith("MemAvailable")).split()[1])
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def limits(place, seconds=1.0):
    """What the card can do now: rates of memory and arithmetic in GB/s and TFLOP/s, launches in microseconds.

    Tensors are sized for a card; a rehearsal takes tiny ones.
    """
    shrink = 256 if place.is_rehearsal else 1
    found = _memory_limits(place, min(2**29, place.free_bytes() // 16) // shrink, seconds)
    for name in ("bfloat16", "float32", "float64"):
        x = torch.randn(8192 // shrink, 8192 // shrink, device=place.device).to(getattr(torch, name))
        found[f"{name}_TFLOP_per_s"] = 2e-9 * len(x) ** 3 / place.median(lambda x=x: x @ x.T, seconds=seconds)
    one = torch.zeros(1, device=place.device)
    # Of torch calls one after another, and of one that is waited for.
    found["launch_us"] = place.median(lambda: [one.add_(1) for _ in range(1000)], seconds=seconds)
    found["wait_us"] = 1e3 * place.median(lambda: float(one.add_(1)), seconds=seconds)
    return found


def _memory_limits(place, count, seconds):
    large, other = torch.zeros(count, device=place.device), torch.zeros(count, device=place.device)
    found = {"copy_GB_per_s": 8e-6 * count / place.median(lambda: other.copy_(large), seconds=seconds)}
    found["read_GB_per_s"] = 4e-6 * count / place.median(large.sum, seconds=seconds)
    # A third of the second-level cache, again and again; what lies between two kernels is in the time.
    inside = large[: (place.facts()["L2_bytes"] or 2**25) // 12]

    def sums():
        return [inside.sum() for _ in range(50)]

    replay = sums if place.is_rehearsal else place.graphed(sums)
    found["L2_read_GB_per_s"] = 50 * 4e-6 * len(inside) / place.median(replay, seconds=seconds)
    return found


def say(text=""):
    print(text, flush=True)


def main():
    card, reason = find()
    if card is None:
        sys.exit(reason)
    for name, value in (card.facts() | limits(card)).items():
        say(f"{name:24} {value}")


if __name__ == "__main__":
    main()
