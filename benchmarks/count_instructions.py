"""How many instructions the core spends on fixed small problems: unlike seconds, the same on a busy machine.

    make test-cpp                             # builds build/release/small_cases
    python benchmarks/count_instructions.py [CASE ...] [--write]

Runs each case of tests/cpp/small_cases.cpp under ``valgrind --tool=callgrind``, counting inside `solve_cpu` alone, and
prints the counts beside those recorded in benchmarks/results/instructions.json; ``--write`` records them. They depend
on the compiler, the C library and the kernels (valgrind knows AVX2, not AVX-512), which are recorded too.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "benchmarks" / "results" / "instructions.json"


def run(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True)


def count(driver, case):
    """Instructions inside `solve_cpu`, and what the case printed: its answer and the kernels."""
    with tempfile.NamedTemporaryFile() as out:
        ran = run(
            "valgrind",
            "--tool=callgrind",
            f"--callgrind-out-file={out.name}",
            "--toggle-collect=pysubmod::solve_cpu*",
            driver,
            case,
        )
    found = re.search(r"Collected : (\d+)", ran.stderr)
    if not found or int(found[1]) == 0:
        sys.exit(f"{case}: nothing was counted; does {driver} have its symbols?\n{ran.stderr}")
    return int(found[1]), ran.stdout.strip()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help="default: all")
    parser.add_argument("--driver", default=str(ROOT / "build" / "release" / "small_cases"))
    parser.add_argument("--write", action="store_true", help=f"record the counts in {RECORD.relative_to(ROOT)}")
    args = parser.parse_args()
    if shutil.which("valgrind") is None:
        sys.exit("valgrind is not installed (Debian, Ubuntu: apt-get install valgrind)")
    if not Path(args.driver).exists():
        sys.exit(f"{args.driver} is not built; run `make test-cpp`, or name it with --driver")
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {"cases": {}}
    for case in args.cases or run(args.driver).stdout.split():
        instructions, answer = count(args.driver, case)
        before = record["cases"].get(case)
        text = f"{case:32} {instructions:12,}"
        if before:
            text += f"   {instructions / before['instructions']:6.3f} of what is recorded"
            if answer != before["answer"]:
                text += "   THE ANSWER IS ANOTHER"
        print(text, flush=True)
        record["cases"][case] = {"instructions": instructions, "answer": answer}
    if args.write:
        compiler, valgrind = run("g++", "--version").stdout.splitlines()[0], run("valgrind", "--version").stdout.strip()
        made = {
            "command": "python benchmarks/count_instructions.py --write",
            "compiler": compiler,
            "valgrind": valgrind,
        }
        RECORD.write_text(json.dumps(made | {"cases": record["cases"]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
