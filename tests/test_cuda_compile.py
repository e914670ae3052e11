"""The kernels for a GPU are compiled for it, also where there is none: the other tests interpret them there."""

import json
import os
import pathlib
import platform
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="Triton comes with PyTorch's CUDA")
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction

from rresnet.training import kernels

SCRIPT = pathlib.Path(__file__).with_name("cuda_compile.py")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="Triton brings NVIDIA's tools for x86")
def test_every_kernel_of_a_step_is_compiled_for_a_gpu_and_fits_its_registers(tmp_path):
    apart = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    apart |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, SCRIPT, "80", "bfloat16"]  # an A100
    ended = subprocess.run(command, env=apart, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    made = [json.loads(line) for line in ended.stdout.splitlines()]
    ours = {n for n, of in vars(kernels).items() if isinstance(of, InterpretedFunction | JITFunction) and n[0] != "_"}
    assert {kernel["name"] for kernel in made} == ours
    assert len(ours) > 8
    assert max(kernel["stack"] for kernel in made) <= 64, made
