import os

import pytest
from samples import A100, LAPTOP

from rresnet import hardware

if not hardware.probe().gpu_count:
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported: its kernels then run on a processor


@pytest.fixture
def laptop():
    return LAPTOP


@pytest.fixture
def a100():
    return A100
