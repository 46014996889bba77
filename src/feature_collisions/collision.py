"""The LightningModule: a frozen network, and corners as the trainable parameter (Eq. 3)."""

import time
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from .config import LossSettings, OptimizerSettings, StopSettings
from .errors import CollisionError
from .features import TargetFeatures, TargetLayer
from .losses import CollisionLoss, positive
from .optimizers import make_optimizer, rate_at
from .parameterisations import Pixels


class Collision(LightningModule):
    """Moves all corners at once until each collides with the target.

    One `training_step` takes up to `every` optimiser steps, for Lightning's own loop costs
    several times an MNIST step. Its batch is ignored: there is no data to iterate over.

    Args:
        layer: images to pre-activations.
        target: the target's features at that layer.
        units: (K,) the unit each corner pushes down.
        parameterisation: module whose forward gives the corners, (K, C, H, W).
        loss, optimizer, stop: settings.
        every: steps between looks at the terms.
        problem: what a checkpoint must agree on to be continued from.

    Attributes:
        step: optimiser steps taken.
        seconds: time spent in them.
        curves: (K,) `positive` (the norm), `negative`, `unit_preactivation`, `total` after `step`.
    """

    def __init__(
        self,
        layer: TargetLayer,
        target: TargetFeatures,
        units: Tensor,
        parameterisation: Pixels,
        loss: LossSettings,
        optimizer: OptimizerSettings,
        stop: StopSettings,
        every: int,
        problem: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.strict_loading = False  # a checkpoint holds the parameterisation only
        self.layer = layer
        self.parameterisation = parameterisation
        self.loss = CollisionLoss(target, units, loss)
        self.optimizer_settings, self.stop = optimizer, stop
        self.every = every
        self.problem = problem or {}
        self.step = 0
        self.seconds = 0.0
        self.curves: dict[str, Tensor] = {}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimiser of the parameterisation."""
        return make_optimizer(self.optimizer_settings, self.parameterisation.parameters())

    def training_step(self, batch: Any, batch_index: int) -> None:
        """Take the steps up to the next multiple of `every`, then look at the terms.

        Raises:
            CollisionError: when a loss is not finite; it names the step.
        """
        start = time.perf_counter()
        # Only the loss scaling of 16-mixed needs Lightning's wrapped optimiser and backward,
        # which cost a fifth of an MNIST step.
        scaled = self.trainer.precision == "16-mixed"
        optimizer = cast(torch.optim.Optimizer, self.optimizers(use_pl_optimizer=scaled))
        group = optimizer.param_groups[0]
        end = min(self.step + self.every - self.step % self.every, self.stop.max_steps)
        totals = []
        for step in range(self.step, end):
            group["lr"] = rate_at(self.optimizer_settings, step, self.stop.max_steps)
            total = self.loss(self.layer(self.parameterisation())).total.sum()
            optimizer.zero_grad()
            if scaled:
                self.manual_backward(total)
            else:
                total.backward()
            optimizer.step()
            self.parameterisation.project()
            totals.append(total.detach())
        self._look(totals)
        self.step = end
        self.seconds += time.perf_counter() - start

    @torch.no_grad()
    def _look(self, totals: list[Tensor]) -> None:
        preactivation = self.layer(self.parameterisation())
        terms = self.loss(preactivation)
        finite = torch.stack([*totals, terms.total.sum()]).isfinite()
        if not finite.all():
            step = self.step + int(finite.int().argmin())
            raise CollisionError(
                f"the loss is not finite at step {step}; lower optimizer.rate, loss.alpha or "
                "loss.beta. Checkpoints written before are kept"
            )
        self.curves = {
            "positive": positive(preactivation, self.loss.features, self.loss.active),
            "negative": terms.negative,
            "unit_preactivation": preactivation.gather(1, self.loss.units[:, None])[:, 0],
            "total": terms.total,
        }

    @property
    def converged(self) -> bool:
        """Whether every corner's L_pos is under `stop.positive`."""
        return bool((self.curves["positive"] < self.stop.positive).all())

    @property
    def finished(self) -> bool:
        """Whether the search stops here."""
        enough = self.step >= self.stop.min_steps and self.converged
        return self.step >= self.stop.max_steps or enough

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the parameterisation and the counters, nothing of the classifier."""
        kept = {k: v for k, v in checkpoint["state_dict"].items() if k.startswith("param")}
        checkpoint["state_dict"] = kept
        checkpoint["collision"] = {
            "step": self.step,
            "seconds": self.seconds,
            "problem": self.problem,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the counters up again."""
        saved = checkpoint["collision"]
        self.step, self.seconds = saved["step"], saved["seconds"]
