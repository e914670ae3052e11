"""Do all recipes and modes learn the same? Gradients and losses of the same steps, and accuracy after the same epochs.

    python benchmarks/parity.py [--model resnet50] [--gradient-steps 100] [--exact-steps 10] [--steps 200]
                                [--epochs 3] [--seeds 1] [--modes "blog fp32 eager,tuned bf16 eager"]
                                [--device cpu]                                        (half an hour on two cores)

First, the gradient of one batch, at the start and after 100 steps, is compared with the same in float64: what rounding
does to it in each mode, beside what another batch does. `tuned` in bfloat16 is judged after the steps: with its matrix
products and fused kernels the error may be at most a tenth larger than with PyTorch's own convolutions and kernels.

Then steps of `tuned` are compared with those of `blog`: 10 in float64, which PyTorch computes slowly on a CPU, and 200
in fp32. Judged are the losses, to 1e-3 relative: in float64 that of each step, in fp32 their mean. Adam's first steps
amplify rounding a hundredfold each, until in fp32, and soon in float64, nothing is left to compare. What that alone
does is shown on a CPU by `blog` on one thread less, the same script adding up its sums in another order, and on a GPU
by `blog` once more.

Last, whole epochs of fashion-mnist-12k, from one seed or several: mean accuracies must be within 2 points of each
other, after the last step, as means over eight points of the last epoch (for the accuracy dips now and then, and is
back a few steps later), and with batch norm's statistics taken anew. With several seeds, intervals of their differences
are printed as well. A 0 leaves a part out.
"""

import itertools
import statistics
import sys

import torch
from common import arguments, axes_of, cell, verdict, workbench
from scipy import stats
from torch import nn

from rresnet.cell import Device
from rresnet.hardware import probe
from rresnet.training.train import evaluate
from rresnet.training.workbench import Workbench

SETTLING_BATCHES = 40  # over which batch norm's statistics are taken anew
LOOKS = 8  # at the test accuracy, in the last epoch
DURING = "as the mean during the last epoch"
DIP = 0.77  # a test accuracy under this is called a dip: most are around 0.82

MODES: dict[Device, tuple[str, ...]] = {  # recipe, precision and execution; the first is what others are judged by
    "cpu": ("blog fp32 eager", "tuned fp32 eager", "tuned fp32 compile", "tuned bf16 eager", "tuned bf16 compile"),
    "gpu": ("blog tf32 eager", "tuned fp32 graph", "tuned bf16 eager", "tuned bf16 graph", "tuned bf16 compile"),
}
PYTORCHS = {"pointwise": "conv", "small_maps": "conv", "kernels": "pytorch"}
BF16_ERROR_RATIO = 1.1


def mode(name: str, device: Device, **changes: object) -> dict[str, object]:
    """The axes of the mode of that name."""
    recipe, precision, execution = name.split()
    return axes_of(recipe, device, precision=precision, execution=execution, **changes)


def pair(device: Device) -> dict[str, dict[str, object]]:
    """Both recipes in fp32, eagerly."""
    return {recipe: mode(f"{recipe} fp32 eager", device) for recipe in ("blog", "tuned")}


def runs_here(name: str, device: Device) -> bool:
    """Whether this device has the precision of the mode of that name."""
    return "bf16" not in name or (probe().cpu_bf16 if device == "cpu" else probe().gpu_bf16)


def in_float64(bench: Workbench) -> Workbench:
    """The same workbench, whose network computes in float64."""
    bench.network.double().register_forward_pre_hook(lambda network, images: tuple(image.double() for image in images))
    return bench


def losses_of(benches: dict[str, Workbench], steps: int) -> dict[str, list[float]]:
    """The loss of each step, all taken in turns."""
    losses: dict[str, list[float]] = {name: [] for name in benches}
    for step in range(steps):
        for name, bench in benches.items():
            bench.apply_process_settings()
            losses[name].append(bench.take_step(next(bench.batches)).item())
        if step + 1 in (1, 2, 5, 10, 50, 100, steps):
            told = ", ".join(f"{name} {seen[-1]:.6g}" for name, seen in losses.items())
            print(f"step {step + 1}: {told}", flush=True)
    return losses


def gradients(axes: dict[str, object], device: Device, steps: int) -> int:
    """What each mode's rounding does to the gradient of one batch, at the start and after `steps` of `tuned`."""
    # A captured step leaves its gradients where only its graph finds them.
    modes = {name: mode(name, device) for name in MODES[device] if device == "cpu" or name.endswith("eager")}
    modes["tuned bf16 eager, PyTorch's kernels"] = mode("tuned bf16 eager", device, **PYTORCHS)
    fp32 = mode("tuned fp32 eager", device)
    trained = workbench(cell(**axes, **fp32))
    for after in (0, steps):
        trained.apply_process_settings()
        for batch in itertools.islice(trained.batches, after):
            trained.take_step(batch)
        weights = {name: tensor.clone() for name, tensor in trained.network.state_dict().items()}
        exact = gradient(in_float64(workbench(cell(**axes, **fp32))), weights, batch=after)
        others = {"another batch": gradient(workbench(cell(**axes, **fp32)), weights, batch=after + 1)}
        for name, changes in modes.items():
            if runs_here(name, device):
                others[name] = gradient(workbench(cell(**axes, **changes)), weights, batch=after)
        errors = {name: float((other - exact).norm() / exact.norm()) for name, other in others.items()}
        for name, other in others.items():
            cosine = float(nn.functional.cosine_similarity(other, exact, dim=0))
            print(f"gradient after {after} steps, {name}: error {errors[name]:.3f}, cosine {cosine:.4f}", flush=True)
    if not runs_here("bf16", device):
        return 0
    ratio = errors["tuned bf16 eager"] / errors["tuned bf16 eager, PyTorch's kernels"]
    told = (
        f"after {steps} steps the error of tuned in bf16 is {ratio:.2f} of that with PyTorch's convolutions and kernels"
    )
    return verdict(told, ratio <= BF16_ERROR_RATIO)


def gradient(bench: Workbench, weights: dict[str, torch.Tensor], *, batch: int) -> torch.Tensor:
    """The gradient of batch number `batch` at these weights, as one float64 vector."""
    bench.network.load_state_dict(weights)
    bench.apply_process_settings()
    bench.take_step(next(itertools.islice(bench.batches, batch, None)))
    return torch.cat([p.grad.double().flatten() for p in bench.network.parameters() if p.grad is not None])


def steps_in_float64(axes: dict[str, object], device: Device, steps: int) -> int:
    benches = {name: in_float64(workbench(cell(**axes, **changes))) for name, changes in pair(device).items()}
    exactly = losses_of(benches, steps)
    worst = max(abs(tuned / blog - 1) for blog, tuned in zip(exactly["blog"], exactly["tuned"], strict=True))
    return verdict(f"{steps} steps in float64: no loss of tuned lies over {worst:.1e} from blog's", worst <= 1e-3)


def steps_in_fp32(axes: dict[str, object], device: Device, steps: int) -> int:
    recipes = pair(device)
    if device == "gpu":  # which adds up in another order each time
        itself, how = "blog once more", {}
    else:
        itself, how = "blog on one thread less", {"cpu_threads": max(1, probe().cpu_cores - 1)}
    recipes[itself] = {**recipes["blog"], **how}
    benches = {name: workbench(cell(**axes, **changes)) for name, changes in recipes.items()}
    means = {name: statistics.fmean(seen) for name, seen in losses_of(benches, steps).items()}
    apart = {name: abs(mean / means["blog"] - 1) for name, mean in means.items()}
    told = f"mean loss of {steps} steps in fp32: tuned {apart['tuned']:.1e} from blog, where "
    told += f"{itself} is {apart[itself]:.1e} from itself"
    return verdict(told, apart["tuned"] <= 1e-3)


def settled_accuracy(bench: Workbench) -> float:
    """Test accuracy with batch norm's running statistics taken anew, as plain means over many batches.

    As trained they are those of the latest ten or so batches, of weights that still change fast: they make the accuracy
    jump by points from step to step, up and down, whatever was learnt. The network is left with the new ones.
    """
    norms = [module for module in bench.network.modules() if isinstance(module, nn.BatchNorm2d)]
    with torch.no_grad():
        for count, raw in enumerate(itertools.islice(bench.inputs.epoch(), SETTLING_BATCHES), 1):
            for norm in norms:
                norm.momentum = 1 / count  # which makes a mean of them; the first batch replaces what there was
            bench.train_step.forward(*raw)
    return evaluate(bench)[1]


def looked_at(bench: Workbench, epochs: int) -> list[float]:
    """Train from the cell's seed; return the test accuracy at `LOOKS` points of the last epoch, the last at its end."""
    bench.apply_process_settings()
    for epoch in range(epochs):
        batches = list(bench.inputs.epoch())
        looks = {len(batches) * look // LOOKS for look in range(1, LOOKS + 1)} if epoch == epochs - 1 else {}
        seen = []
        for step, batch in enumerate(batches, 1):
            bench.take_step(batch)
            if step in looks:
                seen.append(evaluate(bench)[1])
    return seen


def accuracies(axes: dict[str, object], device: Device, modes: list[str], epochs: int, seeds: range) -> int:
    found: dict[str, dict[str, list[float]]] = {f"after {epochs} epochs": {}, DURING: {}, "with settled statistics": {}}
    dips: dict[str, int] = {}
    for seed, name in itertools.product(seeds, modes):
        if not runs_here(name, device):
            print(f"{name}: not measured, the {device} has no bfloat16")
            continue
        bench = workbench(cell(**axes, **mode(name, device), seed=seed))
        looks = looked_at(bench, epochs)
        dips[name] = dips.get(name, 0) + sum(look < DIP for look in looks)
        three = looks[-1], statistics.fmean(looks), settled_accuracy(bench)
        for by_mode, accuracy in zip(found.values(), three, strict=True):
            by_mode.setdefault(name, []).append(accuracy)
        told = ", ".join(f"{look:.4f}" for look in looks) + f"; with settled statistics {three[2]:.4f}"
        print(f"{name}, seed {seed}: test accuracy during the last epoch {told}", flush=True)
    for name, count in dips.items():
        print(f"{name}: {count} of {LOOKS * len(seeds)} accuracies are under {DIP}")
    return max(told_apart(what, by_mode) for what, by_mode in found.items())


def told_apart(what: str, found: dict[str, list[float]]) -> int:
    """Print the mean of each, and judge how far apart they are."""
    if not found:
        return 1
    means = {name: statistics.fmean(seen) for name, seen in found.items()}
    for name, seen in found.items():
        scatter = f", standard deviation {statistics.stdev(seen):.4f}" if len(seen) > 1 else ""
        print(f"{name}: accuracy {what}, mean of {len(seen)} seeds {means[name]:.4f}{scatter}")
    reference = next(iter(found))
    for name, seen in list(found.items())[1:]:
        points = [100 * (one - other) for one, other in zip(seen, found[reference], strict=True)]
        if len(points) > 1:
            half = stats.t.ppf(0.975, len(points) - 1) * statistics.stdev(points) / len(points) ** 0.5
            mean = statistics.fmean(points)
            print(f"{name} - {reference}: {mean:+.1f} points ({mean - half:+.1f} to {mean + half:+.1f}, 95 %)")
    spread = 100 * (max(means.values()) - min(means.values()))
    return verdict(f"mean accuracies {what} lie {spread:.2f} points apart", spread <= 2)


def main() -> int:
    options = arguments(
        __doc__,
        model="resnet50",
        batch_size=64,
        gradient_steps=100,
        exact_steps=10,
        steps=200,
        epochs=3,
        seeds=1,
        first_seed=42,
        modes="",
        device="cpu",
    )
    device, valid = options.device, MODES[options.device]
    modes = list(dict.fromkeys(options.modes.split(","))) if options.modes else list(valid)
    if unknown := [name for name in modes if name not in valid]:
        sys.exit(f"no mode is called {unknown[0]!r}: {', '.join(valid)} are, separated by commas")
    axes: dict[str, object] = {"model": options.model, "batch_size": options.batch_size}
    missed = 0
    if options.gradient_steps:
        missed |= gradients(axes, device, options.gradient_steps)
    if options.exact_steps:
        missed |= steps_in_float64(axes, device, options.exact_steps)
    if options.steps:
        missed |= steps_in_fp32(axes, device, options.steps)
    if options.epochs:
        missed |= accuracies(
            axes, device, modes, options.epochs, range(options.first_seed, options.first_seed + options.seeds)
        )
    return missed


if __name__ == "__main__":
    sys.exit(main())
