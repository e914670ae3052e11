"""Does every machine of a large cluster always measure? Trials that don't train, on simulated nodes of one Ray.

    python benchmarks/slots.py [--nodes 20] [--trials 1000] [--seconds 5]         (about 6 minutes on two cores)

The nodes are simulated by Ray on this machine, each with a CPU in name only. A slot is busy while a trial runs on it.
Prints the share of the time from a node's first trial to its last in which the slots were busy. Target: over 95 %. The
start of the trial process on each node, which is paid once, is not in it.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from common import arguments, verdict

import rresnet

STUB = Path(__file__).with_name("stub_run.py")
CELLS = 10


def main() -> int:
    options = arguments(__doc__, nodes=20, trials=1000, seconds=5.0)
    os.environ |= {"RAY_AUTH_MODE": "token", "STUB_NODES": "1"}  # Ray reads the mode when it is imported
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    with tempfile.TemporaryDirectory() as results:
        try:
            for _ in range(options.nodes):
                cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)
            repeats = options.trials // CELLS
            flags = ["--address", cluster.address, "--repeats", str(repeats), "--processes", "1"]
            flags += ["--seconds", str(options.seconds), "--results-dir", results]
            environment = {**os.environ, "STUB_CELLS": str(CELLS)}
            subprocess.run([sys.executable, str(STUB), *flags], env=environment, stdout=subprocess.DEVNULL, check=True)
        finally:
            cluster.shutdown()
        rows = rresnet.read(results).trials
    # A node's slot is there from its first trial on: nodes start one after another, as their processes do.
    spans, worked = [], 0.0
    for _, of_node in rows.groupby("hostname"):
        spans.append((of_node["started_at"].min(), of_node["finished_at"].max()))
        worked += (of_node["finished_at"] - of_node["started_at"]).dt.total_seconds().sum()
    busy = worked / sum((end - start).total_seconds() for start, end in spans)
    starts, ends = zip(*spans, strict=True)
    print(f"{len(rows)} trials on {len(spans)} nodes, {rows['repeat'].nunique()} repeats of {CELLS} cells")
    print(f"first trials within {(max(starts) - min(starts)).total_seconds():.0f} s of each other")
    print(f"last trials within {(max(ends) - min(ends)).total_seconds():.0f} s")
    return verdict(f"slots busy {busy:.1%} of the time", len(spans) == options.nodes and busy > 0.95)


if __name__ == "__main__":
    sys.exit(main())
