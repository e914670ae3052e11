"""Which workers the cells of a run take: one group for each kind of device, of which a cell may use a part."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rresnet.cell import Cell, Device

SLIVER = 0.01  # share of its GPU that a worker leaves to the trial process


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The workers of a group."""

    device: Device
    nodes: tuple[str, ...]  # the node of each worker
    cores: int  # CPU cores that Ray sets aside for each

    @property
    def each(self) -> dict[str, float]:
        """What Ray sets aside for each worker."""
        return {"CPU": float(self.cores), **({"GPU": 1 - SLIVER} if self.device == "gpu" else {})}


def layouts(cells: Iterable[Cell], nodes: Sequence[str]) -> Mapping[Device, Layout]:
    """The groups that train all cells of several workers on `nodes`, which are filled in order.

    A group holds as many workers on a node as any one of its cells takes there. All groups are up at once, so cores are
    set aside for only one of them: that of the CPU, if there is one.
    """
    several = [cell for cell in cells if cell.num_workers > 1]
    kinds = sorted({cell.device for cell in several})  # the CPU first
    return {kind: _layout([cell for cell in several if cell.device == kind], nodes, kind == kinds[0]) for kind in kinds}


def _layout(cells: Sequence[Cell], nodes: Sequence[str], cores: bool) -> Layout:
    most: Counter[str] = Counter()
    for cell in cells:
        most |= Counter(placement(cell, nodes))  # the larger of the two, node by node
    dense = max(cell.workers_per_node for cell in cells)
    threads = max(cell.cpu_threads for cell in cells if cell.workers_per_node == dense)
    workers = tuple(node for node in nodes for _ in range(most[node]))
    return Layout(device=cells[0].device, nodes=workers, cores=threads if cores else 0)


def placement(cell: Cell, nodes: Sequence[str]) -> tuple[str, ...]:
    """The node of each of a cell's workers: the first nodes, each with the same number of workers."""
    return tuple(nodes[worker // cell.workers_per_node] for worker in range(cell.num_workers))


def trains_all(cell: Cell, those: Layout) -> bool:
    """Whether the cell takes every worker of the group."""
    return cell.device == those.device and cell.num_workers == len(those.nodes)


def members(nodes: Iterable[str], of_workers: Sequence[str]) -> list[int]:
    """The ranks that a cell's workers on `nodes` have in a group whose workers are on `of_workers`, ascending."""
    left = {node: iter([rank for rank, there in enumerate(of_workers) if there == node]) for node in set(of_workers)}
    return sorted(next(left[node]) for node in nodes)
