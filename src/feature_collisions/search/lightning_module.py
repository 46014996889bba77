"""The LightningModule: a frozen network, and corners as the trainable parameter (Eq. 3)."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from lightning.pytorch import LightningModule
from pydantic import JsonValue
from torch import Tensor, nn

from ..data.devices import out_of_memory
from ..data.memory import corners_that_fit
from ..errors import CollisionError, SettingError, first_line
from ..graph.logits import predict
from ..graph.target_layer import Observed, TargetLayer
from ..hull.outputs import Output
from ..settings.search import OptimizerSettings, StopSettings
from .checkpoints import BY_CORNER, map_rows
from .losses import CollisionLoss, settings_at
from .optimizers import make_optimizer, rate_at
from .parameterisations import PatchComposite, Pixels

_LOOKED_AT = 1000  # interior points that must be of the target's class before the search stops


@dataclass(frozen=True)
class Goal:
    """The limits that corners must reach.

    Args:
        stop: the limits.
        norm: ||f(t)||, the unit of `stop.positive_relative`.
        output: compares the network's outputs with the target's.
    """

    stop: StopSettings
    norm: float
    output: Output

    def unmatched(self, positive: Tensor) -> dict[str, Tensor]:
        """Corners whose L_pos exceeds a limit, by reason.

        Args:
            positive: (K,) L_pos, the norm.

        Returns:
            (K,) bool by reason; `{}` in a reason is a placeholder for the corners.
        """
        stop, reasons = self.stop, {}
        if stop.positive is not None:
            reason = f"L_pos of corners {{}} is not under stop.positive={stop.positive:g}"
            reasons[reason] = ~(positive < stop.positive)
        if stop.positive_relative is not None:
            limit = stop.positive_relative
            reason = f"L_pos of corners {{}} is not under stop.positive_relative={limit:g} ||f(t)||"
            reasons[reason] = ~(positive < limit * self.norm)
        return reasons

    @property
    def asks_classes(self) -> bool:
        """Whether it limits the network's outputs."""
        return self.stop.probability is not None and self.output.kind == "classes"

    def misclassified(self, outputs: Tensor) -> dict[str, Tensor]:
        """Corners whose output differs from the target's, by reason; outputs are (K, D)."""
        if self.stop.probability is None:
            return {}
        return self.output.unlike(outputs, self.stop.probability)


def unmet(reasons: dict[str, Tensor], corners: Sequence[int]) -> list[str]:
    """The reasons that apply to some corner, with these corners named."""
    return [
        reason.format([corner for corner, true in zip(corners, late.tolist(), strict=True) if true])
        for reason, late in reasons.items()
        if late.any()
    ]


def all_met(reasons: dict[str, Tensor]) -> bool:
    """Whether no reason applies to any corner."""
    return not reasons or not bool(torch.stack(list(reasons.values())).any())


class Found(NamedTuple):
    """The result of a search.

    Attributes:
        corners: (K, C, H, W) float32.
        variation: (K,) R(P) of composites, 0 for pixels.
        step: optimiser steps taken.
        seconds: time for these steps; `earlier`: all time before the checkpoint that was resumed.
    """

    corners: Tensor
    variation: Tensor
    step: int
    seconds: float
    earlier: float


class Collision(LightningModule):
    """Moves all corners at once until each collides with the target.

    One `training_step` takes up to `every` optimiser steps, because Lightning's loop costs several
    times as much as a step on MNIST. Its batch is ignored: there is no data to iterate over.

    With several ranks (`strategy`), each has every R-th corner and its share of the interior
    points. All ranks check, decide and write together, so none waits for another.

    Args:
        network: images to pre-activations, and to logits if the loss compares them.
        parameterisation: module whose forward returns the corners, (K, C, H, W).
        loss: loss of all corners' pre-activations and images.
        goal: the limits that every corner must reach, and the number of steps.
        optimizer: settings.
        every: steps between checks.
        classifier: images to logits, if the goal limits classes.
        per_batch: images in one forward pass, corners and interior points; None for as many as fit
            in memory.
        compiled: run the network through torch.compile.
        seed: of the interior points.
        problem: must agree with a checkpoint's to resume it.

    Attributes:
        step: optimiser steps taken; `step_before`: before the last `training_step`.
        seconds: time for these steps; `earlier`: all time before the checkpoint that was resumed.
        interrupted: whether a process of the search was interrupted before the last check.
        found: the result, after the search has ended.
        converged: whether every corner meets the goal after `step` and, with `loss.hull`, interior
            points meet its classes.
        curves: (K,) `positive` (the norm), `total` and `total_variation` (R) after `step`, and, if
            units are pushed, `negative` and `unit_preactivation`.
    """

    def __init__(
        self,
        network: TargetLayer | Observed,
        parameterisation: Pixels | PatchComposite,
        loss: CollisionLoss,
        goal: Goal,
        optimizer: OptimizerSettings,
        *,
        every: int,
        classifier: nn.Module | None = None,
        per_batch: int | None = None,
        compiled: bool = False,
        seed: int = 0,
        problem: Mapping[str, JsonValue] | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.strict_loading = False  # a checkpoint holds the parameterisation only
        self.network, self.parameterisation = network, parameterisation
        self.loss, self.loss_settings = loss, loss.settings
        self.goal, self.stop = goal, goal.stop
        self.optimizer_settings, self.every, self.per_batch = optimizer, every, per_batch
        self.classifier, self.compiled, self.seed = classifier, compiled, seed
        self.rank, self.ranks, self.count = 0, 1, len(loss.units)
        self.problem = problem or {}
        self.step = self.step_before = 0
        self.seconds = self.earlier = 0.0
        self.started = time.perf_counter()
        self.curves: dict[str, Tensor] = {}
        self.converged = self.resumed = self.interrupted = False
        self.found: Found | None = None
        self.is_interrupted: Callable[[], bool] = bool  # whether this process was interrupted

    def setup(self, stage: str) -> None:
        """Keep only this rank's corners."""
        self.rank, self.ranks = self.trainer.global_rank, self.trainer.world_size
        if self.ranks > 1:
            self.parameterisation.keep(self._own)
            self.loss.units = self.loss.units[self._own]
            if self.loss.along is not None:
                self.loss.along = self.loss.along[self._own]

    @property
    def _own(self) -> slice:
        """This rank's rows among those of all ranks."""
        return slice(self.rank, None, self.ranks)

    def of_all(self, own: Tensor) -> Tensor:
        """Gather one row per corner, (k, ...) of this rank to (K, ...) of all, with gradients.

        Every rank must call it.
        """
        if self.ranks == 1:
            return own
        most = -(-self.count // self.ranks)  # ranks with one corner less send a row of zeros
        rows = torch.cat([own, own.new_zeros(most - len(own), *own.shape[1:])])
        parts = self.all_gather(rows, sync_grads=own.requires_grad)
        assert isinstance(parts, Tensor)  # (ranks, most, ...)
        return parts.transpose(0, 1).flatten(0, 1)[: self.count]

    def _agreed(self, vote: bool, every: bool = True) -> bool:
        """Whether all ranks vote for it, or any; every rank must call it."""
        if self.ranks == 1:
            return vote
        return self.trainer.strategy.reduce_boolean_decision(vote, all=every)

    def on_fit_start(self) -> None:
        """Compile the network on its final device."""
        if self.compiled:
            self.network.compile()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimiser of the parameterisation."""
        return make_optimizer(self.optimizer_settings, self.parameterisation.parameters())

    def training_step(self, batch: Any, batch_index: int) -> None:
        """Take the steps up to the next multiple of `every`, then check the goal.

        Raises:
            SettingError: if the network cannot be compiled.
            CollisionError: if a loss or gradient is not finite (with the step), or memory runs out.
        """
        try:
            self._take_steps()
        except torch._dynamo.exc.TorchDynamoException as error:
            raise SettingError(
                "compile",
                "true",
                f"the network cannot be compiled here ({first_line(error)})",
                "leave compile out",
            ) from error
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            raise CollisionError(
                f"out of memory at step {self.step} with "
                f"corners_per_batch={self.per_batch or 'auto'}; lower it or data.size, or "
                "set trainer.precision=bf16-mixed. Saved checkpoints are kept: resume with "
                "ckpt_path=last"
            ) from error

    def _take_steps(self) -> None:
        start = time.perf_counter()
        if self.resumed:  # the checkpoint may be of a finished search
            self.resumed = False
            self._look([], [])
            if self.finished:
                return
        # Only the loss scaling of 16-mixed needs Lightning's wrapped optimiser and backward,
        # which cost a fifth of an MNIST step.
        scaled = self.trainer.precision == "16-mixed"
        optimizer = cast(torch.optim.Optimizer, self.optimizers(use_pl_optimizer=scaled))
        backward = self.manual_backward if scaled else Tensor.backward
        group = optimizer.param_groups[0]
        end = min(self.step + self.every - self.step % self.every, self.stop.max_steps)
        totals = []
        for step in range(self.step, end):
            group["lr"] = rate_at(self.optimizer_settings, step, self.stop.max_steps)
            self.loss.settings = settings_at(self.loss_settings, step)
            optimizer.zero_grad()
            totals.append(self._descend(step, backward))
            optimizer.step()
            self.parameterisation.project()
            # Several ranks end together, at the next check.
            if self.ranks == 1 and self.is_interrupted():
                end = step + 1
                break
        self._look(totals, _optimised(optimizer, not scaled))
        check_scale(getattr(self.trainer.precision_plugin, "scaler", None), end)
        self.step_before, self.step = self.step, end
        self.seconds += time.perf_counter() - start

    def _descend(self, step: int, backward: Callable[[Tensor], None]) -> Tensor:
        """Compute the gradients of the parameters; return the loss, summed over the corners."""
        images, variation = self.parameterisation.penalised()
        settings = self.loss.settings
        tied = settings.hull > 0 or self.loss.ties_corners
        every = self.of_all(images) if tied else images
        inside = self._points_inside(settings.hull, step, every, settings.hull_edges)
        own = self.loss.of_images(images, variation, every)
        own = [term for term in own if term.requires_grad]  # R of pixels is 0 and has none
        if self._at_once(images):
            together = torch.cat([images, inside]) if settings.hull else images
            total = sum(own, self._loss_of(together, slice(len(images))))
            backward(total)
            return total.detach()
        # In parts: first the gradients with respect to the images, then those of the parameters.
        totals: list[Tensor] = list(own)
        gradients: list[Any] = []
        for points, corners in ((images, True), (inside, False)):
            for rows in self._parts(points):
                part = points[rows].detach().requires_grad_()
                totals.append(self._loss_of(part, rows if corners else slice(0)))
                backward(totals[-1])
                gradients.append(part.grad)
        torch.cat([images, inside]).backward(torch.cat(gradients), retain_graph=bool(own))
        if own:
            backward(sum(own[1:], own[0]))
        return torch.stack(totals).detach().sum()

    def _loss_of(self, images: Tensor, rows: slice) -> Tensor:
        """Summed loss of the corners `rows` and of the interior points after them."""
        preactivation, logits = self._observe(images)
        count = len(self.loss.units[rows])
        total: Tensor = self.loss(preactivation[:count], rows).sum()
        weight = self.loss.settings.hull_weight
        if count < len(images):
            total = total + weight * self.loss.interior(preactivation[count:]).sum()
        if logits is not None:
            output = self.loss.output(logits)
            total = total + output[:count].sum() + weight * output[count:].sum()
        return total

    def _observe(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """f0 (B, N), and logits if the loss compares them, in the precision of the loss."""
        dtype = self.loss.features.dtype
        if isinstance(self.network, Observed):
            logits, preactivation = self.network(images)
            return preactivation.to(dtype), logits.to(dtype)
        return self.network(images).to(dtype), None

    def _points_inside(self, count: int, step: int, every: Tensor, halfway: int = 0) -> Tensor:
        """This rank's share of `count` random points of the hull of all corners (K, C, H, W).

        The first `halfway` points are midpoints of two corners.
        """
        if count == 0:
            return every[:0]
        # A generator uses 32 bits of its seed; the odd factor separates seeds and steps.
        drawn = (self.seed * 2_654_435_761 + step) % 2**32
        generator = torch.Generator().manual_seed(drawn)
        weights = torch.empty(count, len(every)).exponential_(generator=generator)
        if halfway:  # the two largest of each row; all pairs are equally likely
            ends = weights[:halfway].topk(min(2, len(every))).indices
            weights[:halfway] = torch.zeros_like(weights[:halfway]).scatter_(1, ends, 1.0)
        weights = (weights / weights.sum(1, keepdim=True)).to(every)
        # No matrix product: the rounding of its gradient depends on the number of threads.
        shares = weights[self._own].view(-1, len(every), *[1] * (every.dim() - 1))
        return (shares * every).sum(1)

    def _at_once(self, images: Tensor) -> bool:
        """Whether each rank runs its corners and points through the network in one batch."""
        rows = sum(-(-count // self.ranks) for count in (self.count, self.loss_settings.hull))
        return self._most(images) >= rows

    def _most(self, images: Tensor) -> int:
        """Batch size for `images` and interior points."""
        if self.per_batch is None:
            inside = -(-self.loss_settings.hull // self.ranks)
            beside = self.trainer.num_devices if self.ranks > 1 else 1
            most = corners_that_fit(self.network, images, inside, beside)
            fit = torch.tensor(most, device=self.device)
            if self.ranks > 1:
                fit = self.trainer.strategy.reduce(fit, reduce_op="min")
            self.per_batch = int(fit)
        return self.per_batch

    def _parts(self, images: Tensor) -> list[slice]:
        count, size = len(images), self._most(images)
        return [slice(start, start + size) for start in range(0, count, size)]

    @torch.no_grad()
    def _look(self, totals: list[Tensor], optimised: list[Tensor]) -> None:
        images, variation = self.parameterisation.penalised()
        parts = self._parts(images)
        preactivation = torch.cat([self._observe(images[rows])[0] for rows in parts])
        own = self.loss.curves(preactivation, variation)
        losses = torch.stack([*totals, own["total"].sum()]).isfinite()
        # A network can hide a NaN, and clipping hides an infinite step.
        rest = torch.stack([tensor.isfinite().all() for tensor in (images, variation, *optimised)])
        if not (losses.all() & rest.all()):
            step = self.step + (len(totals) if losses.all() else int(losses.int().argmin()))
            what = "gradient" if losses.all() else "loss"
            raise CollisionError(
                f"the {what} is not finite at step {step}; lower optimizer.rate, loss.alpha or "
                "loss.beta. Saved checkpoints are kept"
            )
        self.curves = dict(zip(own, self.of_all(torch.stack(list(own.values()), 1)).T, strict=True))
        every = self.of_all(images) if self.loss.settings.hull else images
        step = self.step + len(totals)
        self.converged = self._agreed(  # classes cost many steps: check them only if it matters
            self.stop.least <= step < self.stop.max_steps
            and all_met(self.goal.unmatched(own["positive"]))
            and self._classified_as_target(images, every)
        )
        self.interrupted = self._agreed(self.is_interrupted(), every=False)

    def _classified_as_target(self, images: Tensor, every: Tensor) -> bool:
        """Whether the goal is met at the corners and, with `loss.hull`, at interior points.

        Each batch costs as much as a step, so the check comes last and stops at the first failure.
        """
        if self.classifier is None:
            return True
        inside = self._points_inside(_LOOKED_AT if self.loss.settings.hull else 0, 0, every)
        for points in (images, inside):
            for rows in self._parts(points):
                outputs = predict(self.classifier, points[rows])
                if not all_met(self.goal.misclassified(outputs)):
                    return False
        return True

    @property
    def finished(self) -> bool:
        """Whether the search ends at this step."""
        looked_at = self.step % self.every == 0  # False after a signal
        enough = looked_at and self.step >= self.stop.least and self.converged
        return self.step >= self.stop.max_steps or enough

    def on_train_end(self) -> None:
        """Set `found` of all corners, on every rank."""
        corners = self.of_all(self.parameterisation().detach().float()).cpu()
        variation = self.curves["total_variation"].detach().cpu()
        self.found = Found(corners, variation, self.step, self.seconds, self.earlier)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the parameterisation and the counters, not the classifier."""
        kept = {k: v for k, v in checkpoint["state_dict"].items() if k.startswith("param")}
        checkpoint["state_dict"] = kept
        for name in BY_CORNER:
            checkpoint[name] = map_rows(checkpoint[name], self.of_all)
        checkpoint["collision"] = {
            "step": self.step,
            "seconds": self.seconds,
            "seconds_total": self.earlier + time.perf_counter() - self.started,
            "problem": self.problem,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the counters and this rank's rows, in the parameter's memory format.

        Fused Adam on a CPU assumes, without a check, that its averages have this format.
        """
        for name in BY_CORNER:
            checkpoint[name] = map_rows(
                checkpoint[name], lambda all_rows: self.parameterisation.laid(all_rows[self._own])
            )
        saved = checkpoint["collision"]
        self.step = self.step_before = saved["step"]
        self.seconds, self.resumed = saved["seconds"], True
        self.earlier = saved["seconds_total"]


def check_scale(scaler: Any, step: int) -> None:
    """Raise CollisionError if float16's gradients overflow at every scale, so no step is taken.

    Each overflow skips a step and halves the scale, which starts at 2^16. This is raised after 36.
    """
    if scaler is not None and scaler.get_scale() < 2**-20:
        raise CollisionError(
            f"trainer.precision=16-mixed: the gradient is not finite at any scale by step {step}, "
            "so steps are skipped; take bf16-mixed or 32-true. Saved checkpoints are kept"
        )


def _optimised(optimizer: torch.optim.Optimizer, gradients: bool) -> list[Tensor]:
    """The parameters, the optimiser's averages and, with `gradients`, the last gradients.

    16-mixed excludes them: its loss scaling skips steps that overflow.
    """
    found: list[Tensor] = []
    for parameter in (p for group in optimizer.param_groups for p in group["params"]):
        kept = [*optimizer.state.get(parameter, {}).values(), parameter.grad if gradients else None]
        found += [parameter, *(each for each in kept if isinstance(each, Tensor) and each.dim())]
    return found
