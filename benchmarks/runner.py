"""What the runner itself costs: command to first training step, and from one trial to the next.

Runs compare.py with 24 short trials in one process and reads its rows. Prints the figures; exits 1 when the median from
trial to trial is over 0.05 s. The time between two trials is whatever is not start-up (data, model), warm-up, training
or the other clocks.

Use: python benchmarks/runner.py       (about 2 minutes on 2 cores)
"""

import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import rresnet

LIMIT_SECONDS = 0.05


def main() -> int:
    """Measure and judge."""
    compare = Path(__file__).parent.parent / "experiments" / "compare.py"
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--batch-size", "16", "--repeats", "12", "--processes", "1", "--seconds", "0.2"]
        began = datetime.now(UTC)
        subprocess.run(
            [sys.executable, str(compare), *flags, "--results-dir", folder], check=True, stdout=subprocess.DEVNULL
        )
        ended = datetime.now(UTC)
        tables = rresnet.read(folder)
    trials = tables.trials.sort_values("started_at").reset_index(drop=True)
    parts = ["startup_seconds", "warmup_seconds", "measured_seconds", "clocks_seconds"]
    own = trials[parts].sum(axis=1)
    spacing = (trials["started_at"].shift(-1) - trials["started_at"]).dt.total_seconds()
    gaps = (spacing - own).dropna()
    first = (trials["started_at"].iloc[0] - began).total_seconds() + trials["startup_seconds"].iloc[0]
    print(f"{len(trials)} trials")
    print(f"command to first training step: {first:.1f} s")
    print(f"trial to trial: median {gaps.median():.4f} s, 90 %: {gaps.quantile(0.9):.4f} s, most {gaps.max():.3f} s")
    print(f"last trial to the command's end: {(ended - trials['finished_at'].iloc[-1]).total_seconds():.1f} s")
    return 0 if gaps.median() <= LIMIT_SECONDS else 1


if __name__ == "__main__":
    sys.exit(main())
