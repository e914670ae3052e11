"""The training itself: cells kept ready, steps, clocks, the machine's limits. Runs in a trial process; needs torch."""
