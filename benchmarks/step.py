"""What a step of the MNIST search costs, against its floor: `python benchmarks/step.py`.

In one process, in turn, so that a change of the machine's speed falls on both sides:

- a step through LightningModule and Trainer, every callback at its default cadence, curves and
  pictures to a W&B offline run, against the same step in a bare PyTorch loop;
- five corners in one batch against five one after another.
"""

import argparse
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import torch
from lightning.pytorch import Callback
from torch import Tensor, nn

from feature_collisions.data.datasets import load_data
from feature_collisions.networks.classifiers import load_classifier
from feature_collisions.report.wandb_logs import wandb_logger
from feature_collisions.search.find_corners import Search
from feature_collisions.settings.search import LossSettings, OptimizerSettings, StopSettings
from feature_collisions.settings.train import ClassifierSettings, DataSettings, WandbSettings

LAYER, STEPS = "hidden1", 2000
PRECISION = {"precision": "64-true", "accelerator": "cpu"}


def bare(model: nn.Module, initial: Tensor, target: Tensor, corners: range) -> float:
    """Seconds of STEPS steps of the same arithmetic with nothing around it."""
    layer = model.hidden1
    weight, bias = layer.weight.double(), layer.bias.double()
    f0 = nn.functional.linear(target.double().flatten(), weight, bias)
    features, active, inactive = f0.relu(), (f0 >= 0).double(), (f0 < 0).double()
    units = (f0 < 0).nonzero().flatten()[list(corners)]
    pixels = nn.Parameter(initial.double().repeat(len(corners), 1, 1, 1))
    optimizer = torch.optim.Adam([pixels], lr=0.1, fused=True)
    group = optimizer.param_groups[0]
    started = time.perf_counter()
    for step in range(STEPS):
        group["lr"] = 0.1 * (1 - step / STEPS)
        f = nn.functional.linear(pixels.flatten(1), weight, bias)
        positive = torch.linalg.vector_norm(f * active - features, dim=1)
        unit = f.gather(1, units[:, None])[:, 0]
        negative = unit - unit.abs() + (f * inactive).abs().sum(1)
        loss = (1.0 * positive + 0.1 * negative).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            pixels.clamp_(0, 1)
    return time.perf_counter() - started


class Clock(Callback):
    """When the steps begin and end."""

    def on_train_start(self, *_: object) -> None:
        """Before the first step."""
        self.start = time.perf_counter()

    def on_train_end(self, *_: object) -> None:
        """After the last."""
        self.end = time.perf_counter()


def through_lightning(
    model: nn.Module, initial: Tensor, target: Tensor, corners: range, keep: bool = True
) -> float:
    """Seconds of STEPS steps through Trainer.fit, callbacks included, without its start."""
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) if keep else None
        search = Search(
            model, LAYER, initial, target, corners,
            loss=LossSettings.paper(), optimizer=OptimizerSettings(rate=0.1, square_average=0.999),
            stop=StopSettings(5.0, STEPS, STEPS, None, None),
            trainer=PRECISION, directory=directory,
        )  # fmt: skip
        clock = Clock()
        search.lightning.callbacks.append(clock)
        if keep:
            settings = WandbSettings("offline")
            with wandb_logger(settings, Path(folder), "step", "benchmark", {}) as logger:
                search.run(logger)
        else:
            search.run()
        return clock.end - clock.start


def compare(name: str, first: list[float], second: list[float], unit: float) -> None:
    """Print the medians and the median of the paired ratios."""
    ratios = sorted(a / b for a, b in zip(first, second, strict=True))
    print(
        f"{name}: {statistics.median(first) * unit:.3f} against "
        f"{statistics.median(second) * unit:.3f}, ratio {statistics.median(ratios):.2f} "
        f"({ratios[0]:.2f} to {ratios[-1]:.2f})"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    data = load_data(DataSettings("digits"))
    model = load_classifier(ClassifierSettings("mnist_mlp", None, LAYER), data)
    images = data.test.find("initial", 3).image, data.test.find("target", 7).image
    fit: list[float] = []
    plain: list[float] = []
    batch: list[float] = []
    one_by_one: list[float] = []
    for _ in range(arguments.rounds + 1):  # the first round warms up
        plain.append(bare(model, *images, range(5)))
        fit.append(through_lightning(model, *images, range(5)))
        batch.append(through_lightning(model, *images, range(5), keep=False))
        one_by_one.append(
            sum(through_lightning(model, *images, range(i, i + 1), keep=False) for i in range(5))
        )
    per_step = 1e3 / STEPS
    compare("ms a step, Trainer and callbacks against bare loop", fit[1:], plain[1:], per_step)
    compare("s, five corners one by one against a batch", one_by_one[1:], batch[1:], 1)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
