"""Are rows measured on a noisy machine flagged, and those on a quiet one not?

    python benchmarks/quiet_and_noisy.py        (a minute on two cores)

Repeats take turns: one with a busy process on each core, one without. Targets: every row under load carries a load
flag, and none of the others. If other programs really are busy meanwhile, the quiet rows are flagged too.
"""

import os
import sys

from common import arguments, busy_process, cell, run, verdict, workbenches

from rresnet.quality.flags import LOAD_FLAGS


def main() -> int:
    options = arguments(__doc__, repeats=20, seconds=0.5)
    benches = workbenches([cell(recipe="blog"), cell(recipe="tuned", precision="bf16")])
    flagged = {True: 0, False: 0}
    counted = {True: 0, False: 0}
    for repeat in range(options.repeats):
        noisy = repeat % 2 == 1
        load = [busy_process() for _ in range(os.cpu_count() or 1)] if noisy else []
        try:
            trials = run(benches, repeats=1, seconds=options.seconds, name=str(repeat))
        finally:
            for process in load:
                process.kill()
                process.wait()
        for flags in trials["quality_flags"]:
            flagged[noisy] += bool(LOAD_FLAGS & set(flags))
            counted[noisy] += 1
        print(f"{'noisy' if noisy else 'quiet'}: {[list(flags) for flags in trials['quality_flags']]}", flush=True)
    told = (
        f"{flagged[True]} of {counted[True]} rows under load are flagged, {flagged[False]} of {counted[False]} others"
    )
    return verdict(told, flagged[True] == counted[True] and flagged[False] == 0)


if __name__ == "__main__":
    sys.exit(main())
