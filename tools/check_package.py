"""Check what `make package` built in dist/: what is in it, and that the wheel works where the checkout is not.

The wheel is installed into an environment of its own, which borrows its dependencies from .venv.
"""

import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
DIST = ROOT / "dist"

USE = """
import sys, rresnet
from rresnet import data
assert rresnet.__file__.startswith(sys.prefix), f"{rresnet.__file__} is not the wheel's"
tables = rresnet.read(sys.argv[1])
speedups = rresnet.speedup(tables.trials, over="recipe", reference="blog")
images = data.load("fashion-mnist-12k", image_size=32).train.images
print(f"{len(tables.trials)} rows, {len(speedups)} speedups, {len(images)} images")
"""


def main() -> None:
    """Fail with a message if something is missing, not wanted or doesn't work."""
    tracked = set(run("git", "-C", str(ROOT), "ls-files").splitlines())
    with tarfile.open(one("*.tar.gz")) as archive:
        in_sdist = {name.partition("/")[2] for name in archive.getnames()}
    compare("the sdist", in_sdist - {"PKG-INFO"}, tracked)
    with zipfile.ZipFile(one("*.whl")) as archive:
        in_wheel = {name for name in archive.namelist() if ".dist-info/" not in name}
    compare("the wheel", in_wheel, {name for name in tracked if name.startswith("rresnet/")})
    with tempfile.TemporaryDirectory() as folder:
        use(Path(folder))


def compare(what: str, found: set[str], wanted: set[str]) -> None:
    """Fail unless an archive holds what git tracks, no more and no less."""
    if found != wanted:
        sys.exit(f"{what} lacks {sorted(wanted - found)} and has {sorted(found - wanted)}, which git does not track")
    print(f"{what} holds the {len(found)} files that it should")


def use(folder: Path) -> None:
    """Install the wheel in `folder`, and use it there."""
    uv, python = str(Path(sys.executable).with_name("uv")), str(folder / "venv" / "bin" / "python")
    run(uv, "venv", "--quiet", "--python", sys.executable, str(folder / "venv"))
    run(uv, "pip", "install", "--quiet", "--no-deps", "--python", python, str(one("*.whl")))
    purelib = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    Path(purelib, "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    shutil.copytree(ROOT / "results" / "reference", folder / "rows")
    command = str(folder / "venv" / "bin" / "rresnet")
    run(command, "--help", cwd=folder)
    print(run(python, "-c", USE, "rows", cwd=folder), end="")
    print(run(command, "report", "rows", cwd=folder), end="")


def one(pattern: str) -> Path:
    """The only file in dist/ of that kind."""
    (found,) = DIST.glob(pattern)
    return found


def run(*command: str, cwd: Path = ROOT) -> str:
    """Run a command and return what it prints. Raises CalledProcessError if the command fails."""
    return subprocess.run(command, cwd=cwd, check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    main()
