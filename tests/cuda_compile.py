"""Compile the kernels of a ResNet-50's captured step for a GPU that need not be here: `cuda_compile.py 90 bfloat16`.

Prints each kernel as a line of JSON: its name, and its registers and the bytes of its stack, of a thread each. What is
on the stack did not fit into the registers and goes through the memory.
"""

import json
import pathlib
import re
import subprocess
import sys
import tempfile
from unittest import mock

import torch
import torchvision
import triton
from small_nets import laid_out
from torch import nn
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from rresnet.training.captured import FusedLayers


class OfNoGPU:
    """In place of Triton's driver of a GPU: one that compiles and launches nothing."""

    def __init__(self, capability):
        self._capability = capability

    def get_current_target(self):
        return GPUTarget("cuda", self._capability, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


def compiled(capability, dtype, batch_size):
    """What one step of the model is made of, each kernel once, by its hash."""
    found = {}
    driver.set_active(OfNoGPU(capability))
    run = JITFunction.run

    def compile_alone(kernel, *args, warmup, **more):
        made = run(kernel, *args, warmup=True, **more)
        found[made.hash] = made

    with torch.device("meta"):  # shapes, and no numbers
        model = laid_out(torchvision.models.resnet50(num_classes=10), device="meta")
        images = torch.empty(batch_size, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    streams = mock.patch.multiple(torch.cuda, Stream=mock.MagicMock(), current_stream=mock.MagicMock())
    with mock.patch.object(JITFunction, "run", compile_alone), streams, mock.patch.object(torch.cuda, "stream"):
        layers = FusedLayers(model, dtype, torch.optim.Adam(model.parameters()))
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            loss = nn.functional.cross_entropy(layers.scores(layers.begin(), images), images[:, 0, 0, 0].long())
        torch.autograd.backward(loss)
        layers.finish()
    return found.values()


def resources(kernel):
    """Registers and bytes of the stack, as NVIDIA's tool tells them of the program."""
    tool = pathlib.Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        pathlib.Path(file.name).write_bytes(kernel.asm["cubin"])
        told = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", told).groups()
    return {"name": kernel.metadata.name, "registers": int(registers), "stack": int(stack)}


if __name__ == "__main__":
    _, capability, dtype = sys.argv
    narrow = None if dtype == "float32" else getattr(torch, dtype)
    for kernel in compiled(int(capability), narrow, batch_size=64):
        print(json.dumps(resources(kernel)))
