"""A/A: identical cells against each other, whose true ratio is 1. How often does the interval hold it?

Each run is compare.py --aa with one cell and its copy, in a process of its own. Exits 1 when fewer than 9 of 10 hold 1.

Use: python benchmarks/aa.py [--runs 10]       (about a minute a run on 2 cores)
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import rresnet

FLAGS = ["--aa", "--recipe", "blog", "--batch-size", "16", "--repeats", "12", "--processes", "1", "--seconds", "0.3"]


def main() -> int:
    """Measure and judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10)
    runs, held = parser.parse_args().runs, 0
    compare = Path(__file__).parent.parent / "experiments" / "compare.py"
    for number in range(runs):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, str(compare), *FLAGS, "--seed", str(number), "--results-dir", folder]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            row = rresnet.speedup(rresnet.read(folder).trials, over="copy", reference=0).iloc[0]
        held += row["low"] <= 1 <= row["high"]
        print(f"run {number + 1}: ratio {row['speedup']:.4f} ({row['low']:.4f} - {row['high']:.4f})", flush=True)
    print(f"the interval held 1 in {held} of {runs} runs")
    return 0 if held >= 0.9 * runs else 1


if __name__ == "__main__":
    sys.exit(main())
