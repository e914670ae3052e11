import os

import pytest
from samples import A100, LAPTOP

from rresnet import hardware

# The tests run side by side, with more threads than cores: those that spin while they wait take the others' time.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

if not hardware.probe().gpu_count:
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported: its kernels then run on a processor


@pytest.fixture
def laptop():
    return LAPTOP


@pytest.fixture
def a100():
    return A100
