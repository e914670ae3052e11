"""What a person calls a setting: by what tells it from the others that are measured."""

from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

from rresnet.cell import AXES, CORES, share_cores
from rresnet.terminal import counted

_COUNTED = {"num_workers": "worker", "num_nodes": "machine", "cpu_threads": "thread"}  # axes -> what they count


def name(cell: Mapping[Any, Any], cells: Sequence[Mapping[Any, Any]], *, sized: bool = True) -> str:
    """What tells the cell from the others: device, recipe, batch size if `sized`, and each other axis that varies.

    An axis counts if it varies within the recipe on the device; the precision also if another device has another one,
    since fp32 on a CPU is not to stand beside TF32 on a GPU as if they were the same.
    """
    parts = [cell["device"], cell["recipe"], *([f"batch {cell['batch_size']}"] if sized else [])]
    of_recipe = [c for c in cells if c["recipe"] == cell["recipe"]]
    of_kind = [c for c in of_recipe if c["device"] == cell["device"]]
    axes = (*AXES, "model", "dataset", "image_size", "num_workers", "num_nodes", "cpu_threads", "epochs", "seed")
    among = {axis: of_recipe if axis == "precision" else of_kind for axis in axes}
    varied = [axis for axis in axes if len({"none" if _missing(c[axis]) else c[axis] for c in among[axis]}) > 1]
    if share_cores(itemgetter(*CORES)(c) for c in of_kind):
        varied = [axis for axis in varied if axis != "cpu_threads"]  # told by the workers
    if len({(c["execution"], c["kernels"]) for c in of_kind}) == len({c["execution"] for c in of_kind}):
        varied = [axis for axis in varied if axis != "kernels"]  # told by the execution
    parts += [_with_axis(axis, cell[axis]) for axis in varied]
    return " ".join([*parts, *(["again"] if cell.get("copy") else [])])


def _with_axis(axis: str, value: Any) -> str:
    """A value of an axis as part of a name."""
    if axis in _COUNTED:
        return counted(int(value), _COUNTED[axis])
    value = "none" if _missing(value) else int(value) if axis == "epochs" else value
    return str(value) if axis == "precision" else f"{axis.replace('_', ' ')} {value}"


def _missing(value: Any) -> bool:
    """Whether it is a missing value, which tables hold as None or NaN."""
    return bool(value is None or value != value)
