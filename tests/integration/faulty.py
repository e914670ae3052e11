"""Trainables for tests: real trial processes in which chosen cells really come to grief."""

import os
import re
import signal

from rresnet.config import Trial

BREAKS, KILLED, HANGS, TOO_LARGE = 2, 3, 4, 5  # batch sizes that choose the fate


def trial(config, how, data):
    """`rresnet.runner.trial.run`, with a training loop that does to the trial what its batch size says."""
    if Trial.from_json(config["trial"]).cell.batch_size == KILLED:
        os.kill(os.getpid(), signal.SIGKILL)
    import torch

    from rresnet.runner import trial
    from rresnet.training import train

    def visit(bench, **arguments):
        fate = bench.cell.batch_size
        if fate == BREAKS:
            raise ValueError("the loop broke")
        if fate == HANGS:
            re.match("(a+)+$", "a" * 60 + "b")  # for ages, without letting any other thread have its turn
        if fate == TOO_LARGE:
            torch.empty(2**55)  # the real allocator, and a real refusal
        return real(bench, **arguments)

    real, train.visit = getattr(train, "real_visit", train.visit), visit
    train.real_visit = real
    trial.run(config, how, data)
