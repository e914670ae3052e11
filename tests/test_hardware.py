"""Which GPUs a process may use: NVML knows them all, CUDA_VISIBLE_DEVICES hides some."""

import importlib.util
import os
import subprocess
import sys
from dataclasses import replace

import pynvml
import pytest

from rresnet import hardware

UUIDS = ["GPU-aa11", "GPU-ab22", "GPU-ac33"]


def test_variables_are_those_that_change_how_fast_libraries_run(monkeypatch):
    for name in list(os.environ):
        if hardware._OF_LIBRARIES.fullmatch(name):
            monkeypatch.delenv(name)
    assert hardware._variables() == "none"
    for name in ("OMP_NUM_THREADS", "CUDA_HOME", "CUDA_ROOT", "NCCL_VERSION", "TORCH_CUDA_ARCH_LIST", "MKL_VERBOSE"):
        monkeypatch.setenv(name, "1")
    assert hardware._variables() == "none"
    monkeypatch.setenv("LD_PRELOAD", "libtcmalloc\udcff.so")  # not UTF-8
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    told = hardware._variables()
    assert told.startswith("LD_PRELOAD=libtcmalloc")
    assert told.endswith(".so TORCHDYNAMO_DISABLE=1")
    assert told.encode()


def test_triton_makes_kernels_for_a_gpu_that_it_knows_with_a_compiler(a100):
    assert a100.gpu_triton
    for lacks in ({"gpu_capability": (7, 5)}, {"gpu_capability": None}, {"compiler": False}, {"triton": False}):
        assert not replace(a100, **lacks).gpu_triton


@pytest.mark.parametrize(
    ("found", "variables", "there"),
    [
        ({"triton", "gcc"}, {}, True),
        ({"triton", "clang"}, {}, True),
        ({"triton", "my-cc"}, {"CC": "my-cc"}, True),
        ({"triton", "gcc"}, {"CC": "ccache gcc"}, False),  # which Triton takes for the name of a program
        ({"triton", "g++"}, {}, False),
        ({"gcc"}, {}, False),
    ],
)
def test_triton_is_looked_for_with_the_compiler_that_it_calls_and_not_imported(monkeypatch, found, variables, there):
    monkeypatch.delenv("CC", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name in found or None)
    monkeypatch.setattr(hardware.shutil, "which", lambda name: name if name in found else None)
    assert hardware.probe.__wrapped__().triton is there


def test_gcc_is_looked_for(monkeypatch):
    for found in ("/usr/bin/g++", None):
        monkeypatch.setattr(hardware.shutil, "which", lambda name, found=found: found if name == "g++" else None)
        assert hardware.probe.__wrapped__().gcc is bool(found)
    monkeypatch.setattr(sys, "platform", "darwin")  # where g++ is clang
    monkeypatch.setattr(hardware.shutil, "which", lambda name: "/usr/bin/g++")
    assert not hardware.probe.__wrapped__().gcc


def test_the_processors_are_those_of_the_affinity_mask():
    bound = max(os.sched_getaffinity(0))
    code = f"import os; os.sched_setaffinity(0, [{bound}]); from rresnet.hardware import cpus, probe; "
    code += "from rresnet.tables.environment import describe; "
    code += "print(*cpus(), probe().cpu_count, describe('cpu').cpu_affinity)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.split() == [str(bound), "1", str(bound)]


def test_the_affinity_mask_is_told_as_a_list_of_processors(monkeypatch):
    monkeypatch.setattr(hardware, "cpus", lambda: frozenset({11, 0, 1, 2, 8}))
    assert hardware.affinity() == "0-2,8,11"


@pytest.mark.parametrize(
    ("siblings", "may_use", "cores"),
    [
        (
            {0: "0,16", 1: "1,17", 16: "0,16", 17: "1,17", 2: "2,18"},
            {0, 16, 1, 17},
            2,
        ),  # two cores with two threads each
        ({0: "0,16", 1: "1,17"}, {0, 1}, 2),
        ({}, {0, 1, 2}, 3),  # not told: as many as the machine has, at most one for each processor
    ],
)
def test_cores_are_counted_among_the_processors_that_may_be_used(tmp_path, monkeypatch, siblings, may_use, cores):
    for number, listed in siblings.items():
        (tmp_path / f"cpu{number}" / "topology").mkdir(parents=True)
        (tmp_path / f"cpu{number}" / "topology" / "thread_siblings_list").write_text(listed)
    monkeypatch.setattr(hardware, "_PROCESSORS", tmp_path)
    monkeypatch.setattr(hardware, "cpus", lambda: frozenset(may_use))
    monkeypatch.setattr(hardware.psutil, "cpu_count", lambda logical: 16)
    assert hardware._usable_cores(len(may_use)) == cores
    assert hardware._usable_cores(1) == 1  # under a quota


CPUINFO = """processor	: {0}
model name	: AMD EPYC 7B13
cpu family	: 25
model		: 1
flags		: avx2 fma{1}
"""


@pytest.mark.parametrize(
    ("text", "name", "flags"),
    [
        (CPUINFO.format(0, "") + CPUINFO.format(1, " other"), "AMD EPYC 7B13", ("avx2", "fma")),
        (CPUINFO.format(0, " hypervisor"), "AMD EPYC 7B13 (cpu family 25, model 1)", ("avx2", "fma", "hypervisor")),
        ("Features	: bf16\nCPU implementer	: 0x41\nCPU part	: 0xd40\n", None, ("bf16",)),
        ("", None, ()),
    ],
)
def test_a_processor_is_told_by_its_numbers_where_its_name_may_be_hidden(tmp_path, monkeypatch, text, name, flags):
    monkeypatch.setattr(hardware, "_CPUINFO", tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(hardware.platform, "processor", lambda: "")
    monkeypatch.setattr(hardware.platform, "machine", lambda: "aarch64")
    arm = "aarch64 (CPU implementer 0x41, CPU part 0xd40)" if text else "aarch64"
    assert hardware.processor.__wrapped__() == (name or arm, flags)


@pytest.fixture
def three(monkeypatch):
    """Three GPUs of their own kind each, the last one cut into parts."""

    def only(known, found):
        def answer(*asked):
            if asked != known:
                raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
            return found

        return answer

    names = {0: "A", 1: "B", 2: "C", "MIG-1": "C 1g.10gb"}
    fakes = {
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetCount": lambda: 3,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetHandleByUUID": only(("MIG-1",), "MIG-1"),
        "nvmlDeviceGetDeviceHandleFromMigDeviceHandle": only(("MIG-1",), 2),
        "nvmlDeviceGetMigDeviceHandleByIndex": only((2, 0), "MIG-1"),
        "nvmlDeviceGetUUID": UUIDS.__getitem__,
        "nvmlDeviceGetName": names.__getitem__,
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
        (None, 3, "A"), ("", 0, None), ("-1", 0, None), ("1", 1, "B"), ("2, 0", 2, "A"), ("0,7,1", 1, "A"),
        ("2,7,0", 1, "C 1g.10gb"),
        ("GPU-ab", 1, "B"), ("GPU-zz", 0, None), ("MIG-1", 1, "C 1g.10gb"), ("MIG-2", 0, None), ("NoDevFiles", 0, None),
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


def test_a_part_of_a_gpu_has_the_capability_of_the_whole(three, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1")
    assert hardware.probe().gpu_capability == (8, 2)


def test_a_gpu_that_does_not_answer_is_none(three, monkeypatch):
    def lost(index):
        if index == 0:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        return index

    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", lost)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert (hardware.probe().gpu_count, hardware.probe().gpu_name) == (2, "B")
    hardware.probe.cache_clear()
    monkeypatch.setattr(pynvml, "nvmlDeviceGetName", lambda handle: lost(0))
    assert (hardware.probe().gpu_count, hardware.probe().gpu_name) == (0, None)
