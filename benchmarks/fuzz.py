"""Hostile files: does every reader answer with the documented error, in bounded memory and time?

    python benchmarks/fuzz.py                   (10 minutes)
    python benchmarks/fuzz.py --minutes 0.35    a short form, with every reader's turn

Hypothesis changes real files of each kind (bits, cuts, repetitions, numbers), and makes files that are well formed but
hostile: images with any header, tables with columns of any type. A reader's process has a limit on its address space. A
file that kills it, takes longer than 20 s, uses up the memory or raises any other error is a finding, which Hypothesis
shrinks.
"""

import argparse
import contextlib
import faulthandler
import gzip
import io
import json
import resource
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import pyarrow as pa
import pyarrow.parquet as pq
from huggingface import write_parquet
from hypothesis import strategies as st
from PIL import Image

from rresnet.cell import UsageError
from rresnet.data import DataError, parquet
from rresnet.data import images as decoding
from rresnet.tables import reading, runs, store
from rresnet.tables.measurement import TRIALS
from rresnet.tables.place import StoreError

SPARE_BYTES = 2**30  # what a reader may take beside what its process had before
LIMIT_SECONDS = 20  # for one input
EXAMPLES = 50  # a round of Hypothesis
DOCUMENTED = (DataError, StoreError, UsageError)


@dataclass(frozen=True)
class Reader:
    """A reader, the file it reads, and what files to give it."""

    file: str  # from the folder it is given
    read: Callable[[Path], object]  # is given the folder
    inputs: st.SearchStrategy[bytes]


def changed(*real: bytes) -> st.SearchStrategy[bytes]:
    """Real files with a few changes at any place."""
    numbers = [0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF]
    pieces = st.one_of(
        st.binary(min_size=1, max_size=8),
        st.sampled_from(numbers).map(lambda n: n.to_bytes(4, "little")),
        st.sampled_from(numbers).map(lambda n: n.to_bytes(4, "big")),
    )
    place = st.floats(0, 1, exclude_max=True)
    change = st.tuples(st.sampled_from(["overwrite", "insert", "cut", "repeat", "end"]), place, place, pieces)

    def apply(content: bytes, changes: list[tuple[str, float, float, bytes]]) -> bytes:
        for kind, where, other, piece in changes:
            first, second = sorted((int(where * len(content)), int(other * len(content))))
            content = {
                "overwrite": content[:first] + piece + content[first + len(piece) :],
                "insert": content[:first] + piece + content[first:],
                "cut": content[:first] + content[second:],
                "repeat": content[:second] + content[first:],
                "end": content[: first + 1],
            }[kind]
        return content

    return st.builds(apply, st.sampled_from(real), st.lists(change, min_size=1, max_size=6))


def images() -> list[bytes]:
    found = []
    for kind, mode in (("PNG", "RGB"), ("PNG", "P"), ("JPEG", "L"), ("GIF", "P"), ("BMP", "RGB"), ("TIFF", "I;16"),
                       ("TIFF", "CMYK"), ("WEBP", "RGBA"), ("PPM", "RGB")):  # fmt: skip
        file = io.BytesIO()
        Image.new(mode, (40, 30)).save(file, kind)
        found.append(file.getvalue())
    return found


def png(width: int, height: int, depth: int, colour: int, interlace: int, body: int, split: bool) -> bytes:
    """A PNG whose checksums are right, whatever its header says; `body` bytes of zeros are all its picture."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    packed = zlib.compress(bytes(body))
    parts = [packed[: len(packed) // 2], packed[len(packed) // 2 :]] if split else [packed]
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)
    middle = b"".join(chunk(b"IDAT", part) for part in parts)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + middle + chunk(b"IEND", b"")


def pngs() -> st.SearchStrategy[bytes]:
    sides = st.one_of(st.integers(0, 64), st.sampled_from([6_000, 7_000, 50_000, 2**31 - 1, 2**32 - 1]))
    return st.builds(
        png,
        sides,
        sides,
        st.sampled_from([1, 2, 4, 8, 16]),
        st.sampled_from([0, 2, 3, 4, 6]),
        st.integers(0, 1),
        st.sampled_from([0, 100, 10_000, 60_000_000]),
        st.booleans(),
    )


def tables() -> st.SearchStrategy[bytes]:
    """Parquet files in the data set's layout, but with columns of any type."""
    good = images()[0]
    columns = [
        pa.array([good] * 4),
        pa.array([good, b"", None, good]),
        pa.array([good] * 4).dictionary_encode(),
        pa.array([good] * 4, pa.large_binary()),
        pa.array([{"bytes": good, "path": None}] * 4),
        pa.array([{"bytes": "text"}] * 4),
        pa.array([{"path": "x"}] * 4),
        pa.array([[good], [], None, [good]]),
        pa.array([0, 1, 0, 1]),
        pa.array([0, 1, 0, 1], pa.uint8()),
        pa.array([2**64 - 1, 0, 1, 1], pa.uint64()),
        pa.array([-(2**63), 2**63 - 1, 0, 1]),
        pa.array([0.0, float("nan"), 1.0, 1e300]),
        pa.array([None] * 4),
        pa.array([True, False, True, False]),
        pa.array(["train", "test", "train", "test"]),
        pa.array(["test", None, "", "validation"]),
        pa.array([0, 1, 0, 1], pa.timestamp("us")),
        pa.array([0, 1, 0, 1]).dictionary_encode(),
        pa.array([[("a", 1)]] * 4, pa.map_(pa.string(), pa.int64())),
    ]
    names = st.lists(st.sampled_from(["image", "img", "label", "split", "other"]), min_size=2, max_size=4)
    kinds = st.sampled_from(range(len(columns)))
    metadata = st.sampled_from([b"", b"{", b'{"info": 3}', b'{"info": {"features": {"label": {"names": [[1], 2]}}}}'])

    def write(chosen: list[str], of_kinds: list[int], rows: int, said: bytes) -> bytes:
        file = io.BytesIO()
        arrays = [columns[kind].slice(0, rows) for kind, _ in zip(of_kinds, chosen, strict=False)]
        schema = pa.schema([pa.field(n, a.type) for n, a in zip(chosen, arrays, strict=True)])
        table = pa.Table.from_arrays(arrays, schema=schema.with_metadata({"huggingface": said}))
        pq.write_table(table, file)
        return file.getvalue()

    return st.builds(write, names, st.lists(kinds, min_size=4, max_size=4), st.integers(0, 4), metadata)


def idx(count: int) -> bytes:
    return struct.pack(">HBBIII", 0, 8, 3, count, 28, 28) + bytes(count * 28 * 28)


def archive() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for name in ("cifar-10-batches-py/data_batch_1", "../escaped", "/tmp/escaped"):
            member = tarfile.TarInfo(name)
            member.size = 3
            tar.addfile(member, io.BytesIO(b"abc"))
    return file.getvalue()


def results() -> tuple[bytes, bytes]:
    """A results file and a manifest."""
    run = runs.Run(run_id="r1", experiment="x", name="x", plan_id="p", planned=1, started_at="2026")
    with tempfile.TemporaryDirectory() as made, store.Writer(made, run) as writer:
        row = {**dict.fromkeys(TRIALS.names), "run_id": "r1", "trial_id": "t", "quality_flags": ["steal"]}
        writer.write("t", {"trials": [row]})
        writer.flush()
        return (Path(made) / "trials" / "r1.parquet").read_bytes(), (Path(made) / "runs" / "r1.json").read_bytes()


def _idx(file: str) -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        from rresnet.data import named  # imports torch: seconds, for these readers alone

        return named._read_idx(folder / file, (3, 28, 28))

    return read


def _cifar10(folder: Path) -> object:
    from rresnet.data import named

    return named.load("CIFAR10", folder)


def _tables_of(folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", reading.DamagedFileWarning)  # documented, and told
        reading.read_tables(folder)


def readers() -> dict[str, Reader]:
    """Every reader of files that others have made."""

    def pictures(folder: Path) -> object:
        return decoding.decode([("x", folder / "x")], 32, lambda: False)

    def table(folder: Path) -> object:
        return parquet.load(folder / "x.parquet", 32, 42, lambda: False)

    listed = io.BytesIO()
    pairs = [(images()[0], n % 2, "train" if n else "test") for n in range(4)]
    write_parquet(listed, pairs, ["a", "b"])
    rows, manifest = results()
    deep = b"[" * 50_000 + b"]" * 50_000
    values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner)
    )
    manifests = st.dictionaries(st.sampled_from(list(json.loads(manifest))), values).map(
        lambda said: json.dumps({**json.loads(manifest), **said}).encode()
    )
    return {
        "image": Reader("x", pictures, changed(*images())),
        "image, any header": Reader("x", pictures, pngs()),
        "data set, Parquet": Reader("x.parquet", table, changed(listed.getvalue())),
        "data set, any column": Reader("x.parquet", table, tables()),
        "idx": Reader("x", _idx("x"), changed(idx(3))),
        "idx, gzip": Reader("x.gz", _idx("x.gz"), changed(gzip.compress(idx(3)))),
        "CIFAR-10 archive": Reader("cifar-10-python.tar.gz", _cifar10, changed(archive())),
        "results": Reader("trials/r1.parquet", _tables_of, changed(rows)),
        "manifest": Reader("runs/r1.json", runs.read_runs, changed(manifest, deep) | manifests),
    }


def fuzz(name: str, seconds: float, seed: int, folder: Path) -> None:
    """Try inputs on one reader for so long, in this process; print how many, and what Hypothesis found."""
    reader, tried = readers()[name], 0
    file, last = folder / reader.file, folder / "last"
    with contextlib.suppress(*DOCUMENTED):
        reader.read(folder)  # there is no file: for what it imports
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + 2 * SPARE_BYTES, taken + 2 * SPARE_BYTES))

    def attempt(content: bytes) -> None:
        nonlocal tried
        tried += 1
        shutil.rmtree(file.parent, ignore_errors=True) if "/" in reader.file else file.unlink(missing_ok=True)
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(content)
        last.write_bytes(content)
        faulthandler.dump_traceback_later(LIMIT_SECONDS, exit=True)
        told: Exception | None = None
        try:
            reader.read(folder)
        except DOCUMENTED as error:
            told = error
        finally:
            faulthandler.cancel_dump_traceback_later()
        assert told is None or not isinstance(told.__cause__, MemoryError), "out of memory"
        assert told is None or len(str(told).splitlines()) == 1, f"not one line: {told}"
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        assert peak < used + SPARE_BYTES, f"{(peak - used) / 2**20:.0f} MiB"

    end, number = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        trying: Any = hypothesis.given(reader.inputs)(attempt)
        trying = hypothesis.settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            suppress_health_check=list(hypothesis.HealthCheck),
            report_multiple_bugs=False,
        )(trying)
        number += 1
        hypothesis.seed(f"{name}/{seed}/{number}")(trying)()
        (folder / "tried").write_text(str(tried))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        fuzz(options.only, options.minutes * 60, options.seed, Path.cwd())
        return 0
    findings, names = 0, list(readers())
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            line = [sys.executable, str(Path(__file__).resolve()), "--only", name, "--seed", str(options.seed)]
            done = subprocess.run(
                [*line, "--minutes", str(options.minutes / len(names))], cwd=folder, capture_output=True, text=True
            )
            tried = 0
            with contextlib.suppress(OSError):
                tried = int((Path(folder) / "tried").read_text())
            fine = done.returncode == 0
            findings += not fine
            print(
                f"{name}: {tried} inputs, {'no finding' if fine else f'FOUND (exit code {done.returncode})'}",
                flush=True,
            )
            if not fine:
                print(done.stderr[-3000:], flush=True)
                if (last := Path(folder) / "last").exists():
                    kept = shutil.copy(last, tempfile.mkdtemp(prefix="fuzz-"))
                    print(f"input: {kept}", flush=True)
    print(f"{'met' if not findings else 'MISSED'}: {len(names)} readers, {findings} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
