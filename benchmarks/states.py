"""Does a probe tell the machine's states apart, and does the ratio of unlike cells depend on them?

    python benchmarks/states.py         (a few seconds)

Prints, for the trace with probes, the two groups of rounds that each probe shows, and bf16 over fp32 in each. Then how
far apart two such groups come out if there is one state with normal noise, in standard deviations within the groups.
Target: over the limit in under 1 of 100 runs.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from common import arguments, verdict

from rresnet.quality.states import change_per_sd, two_groups


def main() -> int:
    options = arguments(__doc__, draws=5000)
    trace = pd.read_csv(Path(__file__).parent / "data" / "probe_trace.csv")
    each = trace.assign(each=np.log(trace["seconds"] / trace["images"]))
    times = each.pivot(index="round", columns="cell", values="each")
    ratio = times["fp32_b64"] - times["bf16_b64"]
    for probe in ("copy", "gemm16", "gemm32"):
        upper, gap, sds = two_groups(times[probe].to_numpy())
        slow, fast = (np.exp(ratio[which].mean()) for which in (upper, ~upper))
        told = f"{probe}: {upper.sum()} of {len(upper)} rounds slower by a factor of {np.exp(gap):.2f}, {sds:.1f} sds; "
        print(f"{told}bf16 over fp32 is {slow:.2f} in them, {fast:.2f} in the others")
    random, worst = np.random.default_rng(0), 0.0
    for count in (5, 6, 8, 12, 24, 48):
        apart = np.array([two_groups(random.standard_normal(count))[2] for _ in range(options.draws)])
        limit, high = change_per_sd(count), np.quantile(apart, 0.99)
        worst = max(worst, float((apart > limit).mean()))
        print(f"one state, {count} repeats of normal noise: 99 % under {high:.1f} sds; the limit is {limit:.1f}")
    return verdict(f"taken for two states: at most {worst:.2%} of the runs", worst < 0.01)


if __name__ == "__main__":
    sys.exit(main())
