"""A model's layers with batch norms that add and rectify: traced, and written anew."""

import copy
import operator
from collections import Counter
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from rresnet.training.norm import BatchNormReLU

_RELUS = (functional.relu, torch.relu)
_ADDITIONS = (operator.add, operator.iadd, torch.add)


def fused(model: nn.Module, kernels: Any) -> fx.GraphModule:
    """What computes the same as the model but for rounding, its batch norms with `kernels`.

    The model is traced and stays what it is: the other shares its parameters and buffers, by the same names.
    """
    traced = fx.GraphModule(model, _Layers().trace(model))
    traced._version = model._version  # of its state_dict
    _fuse_batch_norms(traced, kernels)
    _add_gradients(traced)
    traced.recompile()
    return traced


class _Layers(fx.Tracer):
    """Traces a model down to its layers."""

    proxy_buffer_attributes = True  # else what is made of a buffer becomes a buffer in its place, by another name

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return super().is_leaf_module(m, module_qualified_name) or not any(m.children())


def as_kind(kind: type[nn.Module], module: nn.Module, **more: Any) -> nn.Module:
    """The module as one of another kind, which shares its parameters and buffers."""
    other = copy.copy(module)
    other.__class__ = kind
    vars(other).update(more)
    return other


def called_once(traced: fx.GraphModule) -> list[str]:
    """Names of the modules that the graph calls exactly once, in its order."""
    calls = Counter(str(node.target) for node in traced.graph.nodes if node.op == "call_module")
    return [name for name, count in calls.items() if count == 1]


def _fuse_batch_norms(traced: fx.GraphModule, kernels: Any) -> None:
    """Replace each batch norm, and the addition and the ReLU after it where there are such, by one module."""
    modules: dict[str, Any] = dict(traced.named_modules())
    once = set(called_once(traced))
    for node in [node for node in traced.graph.nodes if node.op == "call_module" and node.target in once]:
        norm = modules[node.target]
        usual = type(norm) is nn.BatchNorm2d and norm.affine and norm.track_running_stats and norm.momentum is not None
        if not usual:
            continue
        replaced, inputs = [node], [node.args[0]]
        if beside := _added_to(node):
            replaced.append(_only_user(node))
            inputs.append(beside)
        after = _only_user(replaced[-1])
        relu = after is not None and (type(modules.get(str(after.target))) is nn.ReLU or after.target in _RELUS)
        if relu:
            replaced.append(after)
        traced.set_submodule(node.target, as_kind(BatchNormReLU, norm, kernels=kernels, relu=relu))
        with traced.graph.inserting_after(replaced[-1]):
            replaced[-1].replace_all_uses_with(traced.graph.call_module(node.target, tuple(inputs)))
        for old in reversed(replaced):
            traced.graph.erase_node(old)


def _only_user(node: fx.Node) -> Any:
    """The node that alone uses this one's result, or None."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def _added_to(node: fx.Node) -> fx.Node | None:
    """What this node's result is added to, if nothing else uses it."""
    user = _only_user(node)
    if user is None or user.target not in _ADDITIONS or user.kwargs or len(user.args) != 2:
        return None
    first, second = user.args
    if first is not node and user.target is operator.iadd:
        return None  # the sum is written over something that others may use
    other = second if first is node else first
    return other if isinstance(other, fx.Node) and other is not node else None


def _add_gradients(traced: fx.GraphModule) -> None:
    """Have a batch norm whose result goes on, and is added again further down, add up the gradients of the two."""
    modules: dict[str, Any] = dict(traced.named_modules())
    for node in list(traced.graph.nodes):
        users = list(node.users)
        again = [node in user.args[1:] and type(modules.get(str(user.target))) is BatchNormReLU for user in users]
        adds = type(modules.get(str(node.target))) is BatchNormReLU and len(node.args) == 2
        if adds and len(users) == 2 and sum(again) == 1:
            modules[node.target].twice = True
            for index, user in enumerate(users):
                with traced.graph.inserting_before(user):
                    user.replace_input_with(node, traced.graph.call_function(operator.getitem, (node, index)))
