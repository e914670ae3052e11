"""Does a probe tell the machine's states apart, and does the ratio of unlike cells depend on them?

    python benchmarks/states.py         (a few seconds)

On the trace with probes: the two groups of rounds that each probe shows, and bf16 over fp32 in each. And how far apart,
in sds within, the groups of one state with normal noise come out.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from common import arguments

from rresnet.quality.states import CHANGE_PER_SD, two_groups


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
    random = np.random.default_rng(0)
    for count in (12, 24):
        apart = [two_groups(random.standard_normal(count))[2] for _ in range(options.draws)]
        high = np.quantile(apart, 0.99)
        print(f"one state, {count} repeats of normal noise: 99 % under {high:.1f} sds; the limit is {CHANGE_PER_SD:g}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
