"""What to train ResNet-50 on: measured on your own machines, paired, with intervals.

`rresnet.read("results")` gives the tables as DataFrames, `rresnet.speedup(trials, over="device", reference="cpu")` the
speedups. Neither needs Ray or torch.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rresnet.analysis.comparison import speedup
    from rresnet.analysis.frames import Tables, read
    from rresnet.analysis.unpaired import speedup_across_machines
    from rresnet.tables.place import StoreError

__version__ = version("rresnet")
__all__ = ["StoreError", "Tables", "__version__", "read", "speedup", "speedup_across_machines"]

_HOME = {
    "Tables": "analysis.frames",
    "read": "analysis.frames",
    "speedup": "analysis.comparison",
    "speedup_across_machines": "analysis.unpaired",
    "StoreError": "tables.place",
}


def __getattr__(name: str) -> object:
    """Load a public name on first use, so that a trial process does not wait for pandas and scipy."""
    if name not in _HOME:
        raise AttributeError(f"module 'rresnet' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"rresnet.{_HOME[name]}"), name)
