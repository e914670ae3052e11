"""Which GPUs a process may use: NVML knows them all, CUDA_VISIBLE_DEVICES hides some."""

import os

import pynvml
import pytest

from rresnet import hardware

UUIDS = ["GPU-aa11", "GPU-ab22", "GPU-ac33"]


def test_variables_are_those_that_change_how_fast_libraries_run(monkeypatch):
    for name in list(os.environ):
        if hardware._OF_LIBRARIES.fullmatch(name):
            monkeypatch.delenv(name)
    assert hardware._variables() == "none"
    for name in ("OMP_NUM_THREADS", "CUDA_HOME", "CUDA_ROOT", "NCCL_VERSION", "CUDA_VISIBLE_DEVICES", "MKL_VERBOSE"):
        monkeypatch.setenv(name, "1")
    assert hardware._variables() == "none"
    monkeypatch.setenv("LD_PRELOAD", "libtcmalloc\udcff.so")  # not UTF-8
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    told = hardware._variables()
    assert told.startswith("LD_PRELOAD=libtcmalloc")
    assert told.endswith(".so TORCHDYNAMO_DISABLE=1")
    assert told.encode()


@pytest.fixture
def three(monkeypatch):
    """Three GPUs of their own kind each, the last one cut into parts."""

    def part_of(uuid):
        if uuid != "MIG-1":
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return uuid

    fakes = {
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetCount": lambda: 3,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetHandleByUUID": part_of,
        "nvmlDeviceGetDeviceHandleFromMigDeviceHandle": lambda part: 2,
        "nvmlDeviceGetUUID": UUIDS.__getitem__,
        "nvmlDeviceGetName": "ABC".__getitem__,
        "nvmlSystemGetDriverVersion": lambda: "570.1",
        "nvmlDeviceGetCudaComputeCapability": lambda handle: (8, handle),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(pynvml, name, fake)
    hardware.probe.cache_clear()
    yield
    hardware.probe.cache_clear()


@pytest.mark.parametrize(
    ("visible", "count", "first"),
    [
        (None, 3, "A"), ("", 0, None), ("-1", 0, None), ("1", 1, "B"), ("2, 0", 2, "C"), ("0,7,1", 1, "A"),
        ("GPU-ab", 1, "B"), ("GPU-zz", 0, None), ("MIG-1", 1, "C"), ("MIG-2", 0, None), ("NoDevFiles", 0, None),
    ],
)  # fmt: skip
def test_a_gpu_that_is_hidden_is_not_counted(three, monkeypatch, visible, count, first):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = hardware.probe()
    assert (found.gpu_count, found.gpu_name) == (count, first)
    assert hardware.probe(hidden=True).gpu_count == 3
    assert hardware.probe(hidden=True).gpu_name == "A"


def test_without_a_driver_there_is_no_gpu(three, monkeypatch):
    def none():
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", none)
    assert hardware.probe().gpu_count == 0
    assert hardware.probe().driver_version is None
