"""Whatever is wrong with a request or its files: exit code 2, one message that says what, and nothing written."""

import errno
import os
import pickle
import signal
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_files import png, write_folder, write_parquet
from samples import make_cell
from small_results import BLOG, row, written

from rresnet import cli, command, hardware

FLAGS = [
    (["--batch-size", "0"], "--batch-size must be at least 1, got 0"),
    (["--batch-size", "-8"], "--batch-size must be at least 1, got -8"),
    (["--batch-size", "x"], "--batch-size"),
    (["--batch-size", "1.5"], "--batch-size"),
    (["--batch-size", "32", "32"], "--batch-size names 32 twice"),
    (["--batch-size"], "--batch-size"),
    (["--batch-size", "10001"], "10001 images per step and worker are more than the 10000 training images"),
    (["--batchsize", "3"], "Perhaps you meant"),
    (["--device", "tpu"], "'cpu', 'gpu'"),
    (["--device", "cpu", "cpu"], "--device names cpu twice"),
    (["--recipe", "fast"], "'blog', 'tuned'"),
    (["--recipe", "blog", "blog"], "--recipe names blog twice"),
    (["--precision", "fp8"], "'fp32', 'tf32', 'bf16', 'fp16'"),
    (["--precision", "tf32", "--device", "cpu"], "a CPU has no tf32 training: use --precision fp32 or bf16"),
    (["--precision", "fp16", "--device", "cpu"], "a CPU has no fp16 training"),
    (["--input", "disk"], "'dataloader', 'resident'"),
    (["--num-workers", "0"], "--num-workers must be at least 1, got 0"),
    (["--cpu-threads", "0"], "--cpu-threads must be at least 1, got 0"),
    (["--cpu-threads", "9999"], "needs 9999 threads"),
    (["--cpu-threads", "many"], "--cpu-threads"),
    (["--model", "resnet51"], "did you mean resnet50"),
    (["--model", ""], "is not a torchvision classification model"),
    (["--image-size", "0"], "--image-size must be at least 1, got 0"),
    (["--image-size", "-3"], "--image-size must be at least 1, got -3"),
    (["--repeats", "0"], "--repeats must be at least 1, got 0"),
    (["--processes", "0"], "--processes must be at least 1, got 0"),
    (["--epochs", "0"], "--epochs must be at least 1, got 0"),
    (["--seconds", "0"], "--seconds must be a number of seconds above 0, got 0.0"),
    (["--seconds", "nan"], "--seconds must be a number of seconds above 0, got nan"),
    (["--seconds", "inf"], "--seconds must be a number of seconds above 0, got inf"),
    (["--timeout-seconds", "-1"], "--timeout-seconds must be a number of seconds above 0, got -1.0"),
    (["--target-interval", "2"], "--target-interval must be between 0 and 1 (0.02 is 2 %), got 2.0"),
    (["--max-minutes", "0"], "--max-minutes must be a number of minutes above 0, got 0.0"),
    (["--seed", "-1"], "--seed must be between 0 and 2**63 - 1, got -1"),
    (["--seed", str(2**63)], "--seed must be between 0 and 2**63 - 1"),
    (["--name", "../evil"], "--name takes only letters, digits and - _ ."),
    (["--name", ""], "--name takes only letters, digits and - _ ."),
    (["--name", ".hidden"], "--name takes only letters, digits and - _ ."),
    (["--retry", "some"], "invalid choice 'some' for argument '--retry'"),
    (["--retry", "failed", "--fresh"], "give only one of them"),
    (["--address", "nowhere"], "--address must be auto or host:port"),
    (["--address", "127.0.0.1:1"], "no Ray cluster answers at --address 127.0.0.1:1"),
    (["--address", "127.0.0.1:99999"], "no Ray cluster answers at --address 127.0.0.1:99999"),
    (["--address", ":6379"], "--address must be auto or host:port"),
    (["--address", "$(touch x):1"], "no Ray cluster answers"),
    (["--dataset", "fashion-mnist-12"], "did you mean fashion-mnist-12k?"),
    (["--dataset", ""], "--dataset must be a name, a folder or a .parquet file"),
    (["--dataset", "/dev/null"], "/dev/null"),
    (["--dataset", "cifar10", "--data-dir", "/dev/null"], "/dev/null"),
    (["surplus"], "surplus"),
]
# What is wrong, what is valid, and what to do: each error that flags can bring about says all three.
TOLD = [
    (["--bacth-size", "3"], "Unrecognized options: --bacth-size", "--batch-size INT ...|{auto}", "Perhaps you meant"),
    (["--recipe", "tunde"], "'tunde'", "'blog', 'tuned'", "Did you mean --recipe tuned?"),
    (["--precision", "fp32", "bf61"], "'bf61'", "'bf16'", "Did you mean --precision bf16?"),
    (["--input=residnet"], "'residnet'", "'dataloader', 'resident'", "Did you mean --input resident?"),
    (["--retry", "faild"], "'faild'", "'failed'", "Did you mean --retry failed?"),
    (["--batch-size", "atuo"], "'atuo'", "INT ...|{auto}", "Did you mean --batch-size auto?"),
    (["--batch-size", "16,32"], "['16,32']", "INT ...|{auto}", "Did you mean --batch-size 16 32?"),
    (["--recipe", "blog,tunde"], "'blog,tunde'", "'blog', 'tuned'", "Did you mean --recipe blog tuned?"),
    (["--seconds", "fast"], "'fast'", "--seconds FLOAT", "compare.py --help"),
    (["--batch-size", "0"], "got 0", "--batch-size must be at least 1", "must be"),
    (["--batch-size"], "--batch-size", "needs at least one value", "needs"),
    (["--batch-size", "32", "32"], "--batch-size names 32 twice", "each value once", "give"),
    (["--seed", "-1"], "got -1", "between 0 and 2**63 - 1", "must be"),
    (["--target-interval", "2"], "got 2.0", "between 0 and 1", "must be"),
    (["--name", "../evil"], "got '../evil'", "letters, digits and - _ .", "takes"),
    (["--fresh", "--retry", "all"], "--fresh starts a new run", "--retry goes on with one", "give only one of them"),
    (["--precision", "tf32", "--device", "cpu"], "a CPU has no tf32", "fp32 or bf16", "use --precision"),
    (["--execution", "graph", "--device", "cpu"], "a CPU has no CUDA graphs", "eager or compile", "use --execution"),
    (
        ["--execution", "compile", "--num-workers", "2", "--cpu-threads", "1", "--device", "cpu"],
        "a compile step",
        "takes a single worker",
        "use --num-workers 1, or --execution eager",
    ),
    (["--cpu-threads", "9999", "--device", "cpu"], "9999 threads", " processors for ", "lower --cpu-threads"),
    (
        ["--device", "gpu", "cpu", "--precision", "tf32"],
        "the setting needs a GPU",
        "and a CPU has no tf32 training",
        "use --precision fp32 or bf16",
    ),
    (["--num-nodes", "2"], "--num-nodes", "a multiple", "give"),
    (
        ["--num-nodes", "2", "--num-workers", "2"],
        "2 workers need the 2 machines asked for",
        "this run has 1",
        "with --address",
    ),
    (["--model", "resnet51"], "resnet51 is not", "torchvision classification model", "did you mean resnet50"),
    (["--model", "no_such:net"], "No module named 'no_such'", "package.module:function", "give"),
    (["--model", "samples:make_cel"], "samples has no function 'make_cel'", "make_cell", "did you mean"),
    (["--model", "nets.py:small"], "can't be imported", "no .py, so --model nets:small", "give package.module"),
    (["--model", "samples:Hardware"], "samples:Hardware can't be made", "the number of classes, 10", "called with"),
    (["--model", "builtins:str"], "returned str", "torch.nn.Module", "must return"),
    (["--model", "torch.nn:Flatten"], "can't take images [2, 3, 32, 32]", "IndexError", "change it"),
    (["--model", "torch.nn:Upsample"], "in training returned [2, 3, 10, 10]", "scores [2, 10]", "must return"),
    (["--model", "torch.nn:LazyLinear"], "can't be laid out", "LazyModule", "give its layers their sizes"),
    (["--dataset", "fashion-mnits"], "fashion-mnits is neither", "cifar10", "did you mean fashion-mnist?"),
    (["--dataset", "fashion-mnits", "--dry-run"], "fashion-mnits is neither", "cifar10", "did you mean fashion-mnist?"),
    (["--address", "nowhere"], "got nowhere", "auto or host:port", "must be"),
    (["--results-dir", "~nobody-here/x"], "~nobody-here/x", "a user that is not here", "name another folder"),
    (["--results-dir", "~nobody-here/x", "--dry-run"], "~nobody-here/x", "a user that is not here", "name another"),
    (["--address", "ray://127.0.0.1:10001"], "got ray://", "auto or host:port", "must be"),
    (["--model", "leaves:exits"], "leaves:exits can't be imported (SystemExit: 0)", "package.module:function", "give"),
    (["--model", "sys:exit"], "sys:exit can't be made (SystemExit: 10)", "the number of classes, 10", "called with"),
    (["--wait-seconds", "5"], "--wait-seconds is for the machines of a Ray cluster", "--address", "give"),
    (["--max-minutes", "5"], "--max-minutes is for a run that goes on", "--target-interval", "or leave it out"),
    (["--save-model"], "--save-model is for models trained for whole epochs", "--epochs", "or leave it out"),
    (["--save-model", "--batch-size", "auto"], "--save-model is for models trained", "--epochs", "or leave it out"),
    (["--fresh", "--mix-environments"], "--fresh starts a new run", "goes on with one", "give only one of them"),
    (["--results-dir", ""], "got ''", "s3://BUCKET/FOLDER", "must be a folder"),
]
# Of the `rresnet` command; R is a results folder. Prices stand in `test_decision.py`.
COMMANDS = [
    (["reprot", "R"], "Did you mean report?"),
    (["zzz"], "Available subcommands: doctor, report, diff, export"),
    (["report", "--prise", "cpu=1/h"], "--price"),
    (["doctor", "--seconds", "0"], "--seconds must be above 0, got 0.0"),
    (["doctor", "--seconds", "long"], "--seconds FLOAT"),
    (["export", "R", "--format", "cvs"], "Did you mean --format csv?"),
    (["export", "R", "--format=json", "--table", "widows"], "Did you mean --table windows?"),
    (["report", "nowhere"], "no results in nowhere"),
    (["diff", "R"], "required"),
    (["report", "R/trials"], "no results in R/trials (no folder R/trials/trials): give R"),
    (["diff", "R", "nowhere"], "no results in nowhere (no folder nowhere/trials): run python experiments/compare.py"),
    (["diff", "R", "empty"], "no results in empty (no folder empty/trials)"),
    (["diff", "file", "R"], "no results in file"),
    (["diff", "R@r9", "R"], "no run or commit in R begins with 'r9'; there are: r1 (commit abc); r2 (commit def)"),
    (
        ["diff", "R@", "R@r2"],
        "R@ holds runs with different git_commit, which can't be averaged: name one of them as R@RUN_ID",
    ),
    (["diff", "R@r1", "other"], "nothing was measured in both R@r1 and other: they differ in batch_size: 8 vs 16"),
    (["diff", "R@r1", "R@r2", "--fail-on-regression", "much"], "--fail-on-regression must be from 0% to under 100%"),
    (["diff", "R@r1", "R@r2", "--fail-on-regression", "-5%"], "for example 5% or 0.05, got '-5%'"),
    (["diff", "R@r1", "R@r2", "--fail-on-regression", "100%"], "got '100%'"),
    (["diff", "R@r1", "R@r2", "--fail-on-regression", "nan"], "got 'nan'"),
    (["diff", "R@r1", "R@r2", "--format", "html"], "'text', 'markdown', 'json'"),
    (["export", "nowhere", "--format", "csv"], "no results in nowhere"),
    (["export", "R"], "--format"),
    (["export", "R", "--format", "xlsx"], "'csv', 'json', 'tensorboard', 'mlflow'"),
    (["export", "R", "--format", "tensorboard", "--table", "losses"], "--table is for csv and json"),
    (["export", "R", "--format", "csv", "--table", "rows"], "'trials', 'windows', 'epochs', 'losses'"),
    (
        ["export", "R", "--format", "csv", "--out", "file/x.csv"],
        "can't write file/x.csv: Not a directory; choose another --out",
    ),
    (["export", "R", "--format", "csv", "--out", "empty"], "can't write empty: Is a directory; choose another --out"),
    (["export", "R", "--format", "tensorboard", "--out", "file"], "can't write to file: "),
    (["export", "R", "--format", "mlflow", "--out", "ftp://x"], "give --out a store's URI"),
]
KINDS = [
    "missing", "misspelt", "misspelt folder", "empty folder", "class without images", "one class", "one image each",
    "test has another class", "zero bytes", "text", "truncated", "several damaged", "many damaged",
    "huge", "not parquet", "truncated parquet",
    "wrong columns", "no rows", "image type", "label type", "null image", "null label", "negative label",
    "pickled object", "split without test", "split not text",
]  # fmt: skip


def damaged(tmp_path, kind):
    """A wrong input of a kind, and what the message must hold."""
    path = tmp_path / "x.parquet"
    good = png(np.zeros((8, 8), np.uint8))
    if kind == "missing":
        return tmp_path / "nothing", ["nothing is neither a file nor a folder nor a known name", "Known names are"]
    if kind == "misspelt folder":
        write_folder(tmp_path / "shapes")
        return tmp_path / "shapez", [f"did you mean {tmp_path / 'shapes'}?"]
    if kind == "misspelt":
        return "fashion-mnst", ["did you mean fashion-mnist?"]
    if kind == "empty folder":
        return tmp_path, ["has no class folders", "one folder per class"]
    if kind == "class without images":
        write_folder(tmp_path)
        (tmp_path / "fox").mkdir()
        return tmp_path, ["fox has no images", "remove the folder or fill it"]
    if kind == "one class":
        return write_folder(tmp_path, classes=("cat",)), ["has 1 class (cat)", "at least 2"]
    if kind == "one image each":
        return write_folder(tmp_path, count=1), ["2 training and 0 test images"]
    if kind == "test has another class":
        write_folder(tmp_path / "train")
        write_folder(tmp_path / "test", classes=("cat", "fox"))
        return tmp_path, ["has the class 'fox'"]
    if kind == "several damaged":
        write_folder(tmp_path)
        for name in ("cat/0.png", "dog/1.png"):
            (tmp_path / name).write_bytes(b"hello")
        return tmp_path, ["cat/0.png is not a readable image", "; ", "dog/1.png is not a readable image"]
    if kind == "many damaged":
        write_folder(tmp_path, count=20)
        for path in (tmp_path / "cat").iterdir():
            path.write_bytes(b"hello")
        return tmp_path, ["is not a readable image", "repair or remove it; there may be more"]
    if kind in ("zero bytes", "text", "truncated"):
        write_folder(tmp_path)
        content = {"zero bytes": b"", "text": b"hello", "truncated": good[: len(good) // 2]}[kind]
        (tmp_path / "cat" / "0.png").write_bytes(content)
        return tmp_path, ["0.png is not a readable image", "repair or remove it"]
    if kind == "huge":
        header = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBBBBB", 13, b"IHDR", 60_000, 60_000, 8, 0, 0, 0, 0)
        write_folder(tmp_path)
        (tmp_path / "cat" / "0.png").write_bytes(header + b"\0" * 200)
        return tmp_path, ["0.png is"]
    if kind == "not parquet":
        path.write_text("label,image")
        return path, ["x.parquet is not a readable Parquet file"]
    if kind == "truncated parquet":
        path.write_bytes(write_parquet(path).read_bytes()[:-20])
        return path, ["x.parquet is not a readable Parquet file"]
    if kind == "wrong columns":
        pq.write_table(pa.table({"a": [1]}), path)
        return path, ["has the columns a", "expected image (or img)"]
    if kind == "no rows":
        return write_parquet(path, pa.array([], pa.binary()), pa.array([], pa.int64())), ["has no rows"]
    if kind == "image type":
        return write_parquet(path, pa.array([1] * 6)), ["image column has type int64"]
    if kind == "label type":
        return write_parquet(path, labels=["a", "b"] * 3), ["label column has type", "expected integers"]
    if kind == "null image":
        return write_parquet(path, pa.array([good] * 5 + [None])), ["image 5 is missing"]
    if kind == "null label":
        return write_parquet(path, labels=[0, 1, 0, 1, 0, None]), ["label 5 is missing"]
    if kind == "negative label":
        return write_parquet(path, labels=[0, -1] * 3), ["label -1 is negative"]
    if kind == "pickled object":
        return write_parquet(path, pa.array([pickle.dumps([1])] * 6)), ["image 0 is not a readable image"]
    if kind == "split not text":
        no_utf8 = pa.Array.from_buffers(pa.string(), 6, pa.array([b"\x80"] * 6).buffers())
        return write_parquet(path, split=no_utf8), ["is not a readable Parquet file", "Invalid UTF8"]
    assert kind == "split without test"
    return write_parquet(path, split=["train"] * 6), ["must name both train and test"]


@pytest.fixture(autouse=True)
def _signals():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def refused(flags, tmp_path, monkeypatch, capsys):
    """What the command says on stderr when it refuses `flags`, as it must."""
    out = tmp_path / "out"
    monkeypatch.setattr(
        "sys.argv", ["compare.py", *flags, *([] if "--results-dir" in flags else ["--results-dir", str(out)])]
    )
    try:
        code = cli.main("compare", "the experiment")
    except SystemExit as stopped:
        code = stopped.code
    said = capsys.readouterr().err
    assert code == 2, said
    assert "Traceback" not in said
    assert not out.exists()
    return " ".join(said.replace("│", " ").split())


@pytest.mark.parametrize(("flags", "message"), FLAGS, ids=[" ".join(flags) for flags, _ in FLAGS])
def test_wrong_flags(flags, message, tmp_path, monkeypatch, capsys):
    if "cpu" in flags and hardware.probe().gpu_count:
        pytest.skip("the message is that of a machine without a GPU")
    assert message in refused(flags, tmp_path, monkeypatch, capsys)


@pytest.mark.parametrize(("flags", "wrong", "valid", "to_do"), TOLD, ids=[" ".join(told[0]) for told in TOLD])
def test_an_error_says_what_is_wrong_what_is_valid_and_what_to_do(
    flags, wrong, valid, to_do, tmp_path, monkeypatch, capsys
):
    if hardware.probe().gpu_count:
        pytest.skip("the messages are those of a machine without a GPU")
    if "--num-workers" in flags and hardware.probe().cpu_cores < 2:
        pytest.skip("there is no room for two workers")
    said = refused(flags, tmp_path, monkeypatch, capsys)
    missing = [fragment for fragment in (wrong, valid, to_do) if fragment not in said]
    assert not missing, said


@pytest.mark.filterwarnings("ignore")  # mlflow's own
@pytest.mark.parametrize(("arguments", "message"), COMMANDS, ids=[" ".join(a) for a, _ in COMMANDS])
def test_wrong_commands(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("in the way")
    rows = [
        row(BLOG, r, 100.0, run_id=run, git_commit=commit)
        for run, commit in (("r1", "abc"), ("r2", "def"))
        for r in range(3)
    ]
    written(tmp_path / "R", rows)
    written(tmp_path / "other", [row(make_cell(batch_size=16), r, 100.0, run_id="r3") for r in range(3)])
    try:
        code = command.main(arguments)
    except SystemExit as stopped:
        code = stopped.code
    said = capsys.readouterr().err
    assert code == 2, said
    assert "Traceback" not in said
    assert message in " ".join(said.replace("│", " ").split())


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_data(kind, tmp_path, monkeypatch, capsys):
    (tmp_path / "data").mkdir()
    dataset, fragments = damaged(tmp_path / "data", kind)
    # So that a slow machine reads it before Ray starts, too.
    monkeypatch.setattr("rresnet.experiments.experiment.EARLY_SECONDS", 60.0)
    said = refused(["--dataset", str(dataset)], tmp_path, monkeypatch, capsys)
    assert all(fragment in said for fragment in fragments), said


def test_results_that_are_a_file(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("in the way")
    said = refused(["--results-dir", str(tmp_path / "file")], tmp_path, monkeypatch, capsys)
    assert "file is not a folder; choose another --results-dir" in said
    said = refused(["--results-dir", str(tmp_path / "file" / "deeper")], tmp_path, monkeypatch, capsys)
    assert "file is not a folder; choose another --results-dir" in said


def test_results_where_one_may_not_write(tmp_path, monkeypatch, capsys):
    (tmp_path / "closed").mkdir()
    monkeypatch.setattr("rresnet.tables.place.os.access", lambda path, mode: False)  # root may write everywhere
    said = refused(["--results-dir", str(tmp_path / "closed" / "out")], tmp_path, monkeypatch, capsys)
    assert "no permission to write" in said


def test_results_and_data_where_one_may_not_look(tmp_path, monkeypatch, capsys):
    closed = tmp_path / "closed"
    allowed = Path.stat

    def stat(path, **options):  # root may look everywhere
        if closed in path.parents:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return allowed(path, **options)

    monkeypatch.setattr(Path, "stat", stat)
    said = refused(["--results-dir", str(closed / "out")], tmp_path, monkeypatch, capsys)
    assert f"can't write to {closed}/out: Permission denied; choose another --results-dir" in said
    said = refused(["--dataset", str(closed / "photos")], tmp_path, monkeypatch, capsys)
    assert f"can't read {closed}/photos: Permission denied; get permission to, or name other data" in said
    assert command.main(["report", str(closed / "out")]) == 2
    assert f"can't read {closed}/out/trials: Permission denied" in capsys.readouterr().err


def test_names_that_no_file_can_have(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("rresnet.experiments.experiment.EARLY_SECONDS", 60.0)
    long = "a" * 300
    for flags, message in [
        (["--results-dir", long], "a: File name too long; choose another --results-dir"),
        (["--dataset", long], "a: File name too long; get permission to, or name other data"),
        (["--dataset", "cifar10", "--data-dir", long], "File name too long"),
        (["--dataset", os.fsdecode(b"caf\xe9")], "a .parquet file, in UTF-8, got 'caf\\udce9'"),
    ]:
        assert message in refused(flags, tmp_path, monkeypatch, capsys)
    written(tmp_path / "R", [row(BLOG, 0, 100.0)])
    for line in (["report", long], ["diff", str(tmp_path / "R"), long], ["export", long, "--format", "csv"]):
        assert command.main(line) == 2
        assert "a/trials: File name too long" in capsys.readouterr().err


@pytest.mark.parametrize("line", [["report"], ["export", "--format", "csv"]])
def test_an_empty_name_of_what_to_write_is_refused(line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "R", [row(BLOG, 0, 100.0)])
    assert command.main([*line[:1], "R", *line[1:], "--out", ""]) == 2
    assert "--out names nothing: give a name, or leave it out" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["R"]


def test_tables_that_one_may_not_list_are_not_told_as_none(tmp_path, monkeypatch, capsys):
    written(tmp_path / "R", [row(BLOG, 0, 100.0)])

    def scandir(path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr("rresnet.tables.place.os.scandir", scandir)
    assert command.main(["report", str(tmp_path / "R")]) == 2
    assert f"can't read {tmp_path}/R/trials: Permission denied" in capsys.readouterr().err.replace("\n", "")


def test_a_parquet_file_of_nested_nonsense(tmp_path, monkeypatch, capsys):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"image": [[{"bytes": b"x"}]] * 3, "label": [0, 1, 0]}), path)
    assert "image column has type" in refused(["--dataset", str(path)], tmp_path, monkeypatch, capsys)
