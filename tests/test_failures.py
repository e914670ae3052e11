"""What is told of a trial that raised, or whose process ended."""

import pytest
import torch
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayError

from rresnet import cell
from rresnet.runner import trial
from rresnet.runner.failures import death


def after(first, error):
    """An error that was raised while another was handled."""
    error.__context__ = first
    return error


def instead_of(first, error):
    """An error that is raised `from None` while another is handled; of none, one that is raised from itself."""
    error.__context__, error.__cause__ = first, None if first else error
    error.__suppress_context__ = True
    return error


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("x"), "error"),
        (MemoryError(), "out_of_memory"),
        (torch.OutOfMemoryError("CUDA out of memory"), "out_of_memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), "out_of_memory"),
        (RuntimeError("CUDA error: out of memory"), "out_of_memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "out_of_memory"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), "out_of_memory"),
        (after(torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("the capture was ended")), "out_of_memory"),
        (after(KeyError("shape"), RuntimeError("the capture was ended")), "error"),
        (instead_of(MemoryError(), KeyError("typo")), "error"),
        (instead_of(None, KeyError("typo")), "error"),
        (SystemExit(3), "error"),
    ],
)
def test_failures_are_told_apart(error, status):
    found = trial.failure(error)
    assert (found.status, found.error_type) == (status, type(error).__name__)
    assert found.error_message


@pytest.mark.parametrize(("free", "status"), [(0.05, "out_of_memory"), (0.5, "error")])
def test_a_kernel_that_cudnn_does_not_find_is_want_of_memory_where_little_is_free(monkeypatch, free, status):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free * 2**30, 2**30))
    for text in (
        "FIND was unable to find an engine to execute this computation",
        "Unable to find a valid cuDNN algorithm",
    ):
        assert trial.failure(RuntimeError(text)).status == status


def test_a_failure_in_a_worker_is_told_as_the_workers():
    class WorkerGroupError(Exception):
        worker_failures = {1: ValueError("inner")}  # noqa: RUF012

    found = trial.failure(WorkerGroupError("outer"))
    assert (found.error_type, found.error_message) == ("ValueError", "inner")


def of_a_worker_group(*failures):
    """As Ray Train tells what became of workers 0, 1, ..., of which None is well."""
    from ray.train import WorkerGroupError
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

    told = {
        rank: WorkerHealthCheckFailedError("A worker health check failed.", failure=one)
        if isinstance(one, RayError)
        else one
        for rank, one in enumerate(failures)
        if one
    }
    return WorkerGroupError("outer", told)


def died(account):
    """Ray's error of an actor, with what is known of its end."""
    error = ActorDiedError()
    error.error_msg += account
    return error


@pytest.mark.parametrize(
    ("error", "elapsed", "status"),
    [
        (died(""), 3.0, "killed"),
        (died("\nThe actor is dead because its node has died."), 3.0, "killed"),
        (died("\nThe actor is dead because its worker process has died."), 10.0, "timeout"),  # its watchdog's doing
        (OutOfMemoryError("the node runs low on memory"), 3.0, "out_of_memory"),
    ],
)
def test_a_worker_whose_process_ended_is_told_as_a_trial_process(error, elapsed, status):
    for failures in ((error,), (None, error), (RuntimeError("Connection closed by peer"), error)):
        found = trial.failure(of_a_worker_group(*failures), elapsed, 10.0)
        assert found.status == status
        assert str(error)[:30] in found.output_tail
    assert trial.failure(of_a_worker_group(RuntimeError("no peer")), elapsed, 10.0).status == "error"


@pytest.mark.parametrize(
    ("text", "elapsed", "status"),
    [
        ("The actor is dead because its worker process has died.", 3.0, "killed"),
        ("The actor is dead because its worker process has died.", 10.0, "timeout"),
        ("The actor b2 is unavailable: The actor is temporarily unavailable: Socket closed", 3.0, "killed"),
        ("Task was killed due to the node running low on memory. has died", 3.0, "out_of_memory"),
        ("RuntimeError: failed to import", 3.0, "error"),
    ],
)
def test_a_death_without_a_word_is_told_from_rays_account(text, elapsed, status):
    assert death(text, elapsed, 10.0).status == status


@pytest.mark.parametrize(
    ("error", "told"), [(ValueError("one\ntwo"), "one"), (RuntimeError(), "RuntimeError"), (OSError("\nx"), "OSError")]
)
def test_an_error_is_told_in_one_line_also_where_it_says_nothing(error, told):
    assert cell.first_line(error) == told


def test_the_first_line_of_a_process_end_says_what_was_raised():
    frames = "".join(f'  File "worker.py", line {n}, in run\n    call()\n' for n in range(100))
    chained = "\x1b[36mray::run()\x1b[39m (pid=7)\nKeyError: 'a'\n\nDuring handling of it, another occurred:\n\n"
    found = death(f"{chained}\x1b[36mray::run()\x1b[39m (pid=7)\n{frames}FileNotFoundError: os.getcwd()\n", 3.0, 10.0)
    assert found.error_message.splitlines()[0] == "FileNotFoundError: os.getcwd()"
    assert "worker.py" in found.error_message
    assert "\x1b" not in found.error_message
    of_two_lines = death("Traceback\n  File\nray.exceptions.RaySystemError: no\nfor: that", 3.0, 10.0)
    assert of_two_lines.error_message.startswith("ray.exceptions.RaySystemError: no\n")
    assert death("the trial process ended without a word", 3.0, 10.0).error_message.count("a word") == 1
    assert death("", 3.0, 10.0).error_message == ""
