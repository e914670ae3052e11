"""The network and its optimizer."""

import contextlib
import functools
import importlib
from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Any

import torch
import torchvision
from torch import nn

from rresnet.cell import Cell, UsageError, nearest
from rresnet.training import convolution, fusion, moves, native, relu
from rresnet.training.inputs import memory_format

LEARNING_RATE = 1e-3  # the blog's
MODES = ("training", "evaluation")
AUXILIARY = ("googlenet", "inception_v3")  # in training these also return scores of auxiliary classifiers


def network(name: str, classes: int) -> nn.Module:
    """A new model, on the CPU.

    Args:
        name: a classification model of torchvision, or `package.module:function` for your own: a function that takes
            the number of classes and returns an `nn.Module`, from images float [N, 3, S, S] to scores [N, classes].
        classes: how many classes it tells apart.

    Raises:
        UsageError: there is no such model or function, or it fails.
    """
    if ":" in name:
        return _own(name, classes)
    _check_name(name)
    model: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=classes)
    return model


def _check_name(name: str) -> None:
    valid = torchvision.models.list_models(module=torchvision.models)
    if name not in valid:
        hint = nearest(name, valid) or "resnet18, resnet50 and vit_b_16 are some. "
        raise UsageError(
            f"--model {name} is not a torchvision classification model: {hint}For your own give package.module:function"
        )

    if name in AUXILIARY:
        raise UsageError(f"--model {name} has auxiliary classifiers, whose losses are not trained here: choose another")


def _own(name: str, classes: int) -> nn.Module:
    path, _, function = name.partition(":")
    advice = "give package.module:function, with the module installed or in this folder"
    if path.endswith(".py"):
        advice += f"; a module's name has no .py, so --model {path.removesuffix('.py').replace('/', '.')}:{function}"
    with _as_usage_error(f"--model {name} can't be imported", advice):
        module = importlib.import_module(path)
    functions = {name: value for name, value in vars(module).items() if callable(value)}
    if function not in functions:
        raise UsageError(
            f"--model {name}: {path} has no function {function!r}; {nearest(function, functions)}"
            "give package.module:function, a function of the number of classes that returns an nn.Module"
        )
    with _as_usage_error(f"--model {name} can't be made", f"it is called with the number of classes, {classes}"):
        model = functions[function](classes)
    if not isinstance(model, nn.Module):
        raise UsageError(f"--model {name} returned {type(model).__name__}: it must return a torch.nn.Module")
    return model


@contextlib.contextmanager
def _as_usage_error(what: str, valid: str) -> Iterator[None]:
    """Turn whatever the user's own code raises into a UsageError, even the wish to exit: a script has no main guard."""
    try:
        yield
    except (Exception, SystemExit) as error:
        raise UsageError(f"{what} ({type(error).__name__}: {error}): {valid}") from error


def check(name: str, image_size: int, classes: int = 10, cells: Collection[Cell] = ()) -> None:
    """Raise UsageError unless there is such a model and it takes images of that size; one's own is trained, too.

    Of `cells` each way to lay out and compute a model of one's own and its update is tried, on the CPU.
    """
    shape = (2, 3, image_size, image_size)
    what = f"--model {name} can't take images {list(shape)}"
    if ":" not in name:
        _check_name(name)
        with _as_usage_error(what, "give another --image-size"):
            _run_without_data(name, classes, shape)
        return
    model, images, valid = _own(name, classes), torch.zeros(shape), "change it, or give another --image-size"
    with _as_usage_error(f"--model {name} can't be laid out", "give its layers their sizes"):
        model.to(memory_format=torch.contiguous_format)  # as `build` does, at which lazy layers fail
    for how in MODES:
        with _as_usage_error(what, valid), torch.set_grad_enabled(how == "training"):
            scores = model.train(how == "training")(images)
        returned = list(scores.shape) if isinstance(scores, torch.Tensor) else type(scores).__name__
        if returned != [2, classes]:
            raise UsageError(
                f"--model {name} in {how} returned {returned} for 2 images and {classes} classes: "
                f"it must return scores [2, {classes}]"
            )
        if how == "training":
            with _as_usage_error(f"--model {name} can't be trained", "its scores must lead back to weights"):
                torch.optim.Adam(model.parameters())
                torch.autograd.backward(nn.functional.cross_entropy(scores, torch.tensor([0, 1])))
    plain: dict[str, Any] = {"device": "cpu", "precision": "fp32", "execution": "eager", "kernels": "pytorch"}
    alone: dict[str, Any] = {"batch_size": 2, "num_workers": 1, "num_nodes": 1, "cpu_threads": 1, "copy": 0}
    for cell in cells:
        _check_recipe(replace(cell, **plain, **alone), classes)


@functools.cache  # a command plans several times
def _run_without_data(name: str, classes: int, shape: tuple[int, ...]) -> None:
    """Run torchvision's model forward on PyTorch's meta device, which has shapes and no values."""
    try:
        with torch.device("meta"):
            model, images = network(name, classes), torch.empty(*shape)
    except NotImplementedError:  # RegNets ask for values while they are made; they take any size
        return
    for how in MODES:
        with torch.no_grad():
            model.train(how == "training")(images)


@functools.cache  # a command plans several times, and most cells differ in nothing that matters here
def _check_recipe(cell: Cell, classes: int) -> None:
    what = f"--model {cell.model} can't be trained as the recipe {cell.recipe} does"
    with _as_usage_error(what, "write x.flatten(1) for x.view(len(x), -1), if that is it, or give --recipe blog"):
        model, optimizer = build(cell, classes, torch.device("cpu"))
        images = torch.zeros(2, 3, cell.image_size, cell.image_size)
        scores = model(images.contiguous(memory_format=memory_format(cell)))
        torch.autograd.backward(nn.functional.cross_entropy(scores, torch.tensor([0, 1])))
        optimizer.step()


def of(cell: Cell, classes: int) -> nn.Module:
    """A new model whose layers are computed as the cell says."""
    model = network(cell.model, classes)
    convolution.as_products(model, pointwise=cell.pointwise == "linear", small_maps=cell.small_maps == "linear")
    if cell.execution == "compile" and cell.device == "cpu":
        relu.for_the_compiler(model)
    return model


def build(cell: Cell, classes: int, device: torch.device) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The cell's model, with weights drawn from its seed, and Adam over them, on `device`.

    The weights depend on the seed and the model alone, so that all recipes start from the same point.
    """
    torch.manual_seed(cell.seed)
    model = of(cell, classes)
    if cell.kernels == "fused" and cell.device == "cpu":  # on a GPU they are part of the captured step alone
        native.library()
        model = fusion.fused(model, native)
        moves.natively(model)
    model = model.to(device=device)
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.dim() == 4:
            tensor.data = tensor.data.to(memory_format=memory_format(cell))
    return model, optimizer_of(model, cell)


def optimizer_of(model: nn.Module, cell: Cell) -> torch.optim.Optimizer:
    """The blog's Adam, with its fused kernel if the cell says so, and capturable if a graph will capture it."""
    kind = FlatAdam if cell.fused_optimizer and cell.device == "cpu" else torch.optim.Adam
    return kind(
        model.parameters(),
        lr=LEARNING_RATE,
        fused=True if cell.fused_optimizer else None,
        capturable=cell.device == "gpu" and cell.execution != "eager",
    )


class FlatAdam(torch.optim.Adam):
    """Adam whose fused kernel is given channels-last weights as the contiguous tensors that they also are.

    On a CPU PyTorch's kernel copies each tensor that is not contiguous, and makes no use of the copy. The update works
    element by element, so their order does not matter.
    """

    def _init_group(self, group: dict[str, Any], *lists: list[torch.Tensor]) -> bool:
        """Fill the lists as PyTorch does; the first four are weights, gradients and both moments."""
        found: bool = super()._init_group(group, *lists)  # type: ignore[no-untyped-call]
        for tensors in lists[:4]:
            tensors[:] = [t.permute(0, 2, 3, 1) if t.dim() == 4 and not t.is_contiguous() else t for t in tensors]
        return found
