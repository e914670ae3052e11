import os

import pyarrow.fs as pa_fs
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


@pytest.fixture(scope="module")
def object_storage():
    moto = pytest.importorskip("moto.server")
    running = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    yield "http://{}:{}".format(*running.get_host_and_port())
    running.stop()


@pytest.fixture
def url(object_storage, monkeypatch, request):
    """A folder of a bucket of the test's own."""
    for name, value in {
        "AWS_ENDPOINT_URL": object_storage,
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    bucket = f"bucket-{abs(hash(request.node.name))}"
    system, path = pa_fs.FileSystem.from_uri(f"s3://{bucket}?allow_bucket_creation=true")
    system.create_dir(path)
    return f"s3://{bucket}/results"
