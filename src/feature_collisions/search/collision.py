"""The LightningModule: a frozen network, and corners as the trainable parameter (Eq. 3).

With the goal that ends a search.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from ..data.devices import out_of_memory
from ..data.memory import corners_that_fit
from ..errors import CollisionError, SettingError, first_line
from ..graph.logits import ask
from ..graph.target_layer import Observed, TargetLayer
from ..hull.outputs import Output
from ..settings.search import OptimizerSettings, StopSettings
from .checkpoints import BY_CORNER, map_rows
from .losses import CollisionLoss, settings_at
from .optimizers import make_optimizer, rate_at
from .parameterisations import PatchComposite, Pixels

_LOOKED_AT = 1000  # points between the corners that must be of the target's class before a stop


@dataclass(frozen=True)
class Goal:
    """What the corners must have reached, as `stop` says.

    Args:
        stop: the limits.
        norm: ||f(t)||, which `stop.positive_relative` is relative to.
        output: what the network's outputs are compared with.
    """

    stop: StopSettings
    norm: float
    output: Output

    def late(self, positive: Tensor) -> dict[str, Tensor]:
        """Which corners' features are too far off, by reason.

        Args:
            positive: (K,) L_pos, the norm.

        Returns:
            (K,) bool by reason; `{}` in a reason stands for the corners it is true of.
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
        """Whether it says something of the network's outputs."""
        return self.stop.probability is not None and self.output.kind == "classes"

    def misclassified(self, outputs: Tensor) -> dict[str, Tensor]:
        """Which corners the classifier tells from the target, by reason; outputs are (K, D)."""
        if self.stop.probability is None:
            return {}
        return self.output.unlike(outputs, self.stop.probability)


def unmet(reasons: dict[str, Tensor], corners: Sequence[int]) -> list[str]:
    """The reasons that are true of some corner, with those corners named."""
    return [
        reason.format([corner for corner, true in zip(corners, late.tolist(), strict=True) if true])
        for reason, late in reasons.items()
        if late.any()
    ]


def all_met(reasons: dict[str, Tensor]) -> bool:
    """Whether no reason is true of any corner."""
    return not reasons or not bool(torch.stack(list(reasons.values())).any())


class Found(NamedTuple):
    """What a search found.

    Attributes:
        corners: (K, C, H, W) float32.
        variation: (K,) R(P) of composites, 0 of pixels.
        step: optimiser steps taken.
        seconds: time spent in them; `earlier`: all time up to the checkpoint it went on from.
    """

    corners: Tensor
    variation: Tensor
    step: int
    seconds: float
    earlier: float


class Collision(LightningModule):
    """Moves all corners at once until each collides with the target.

    One `training_step` takes up to `every` optimiser steps, for Lightning's own loop costs
    several times an MNIST step. Its batch is ignored: there is no data to iterate over.

    Where several ranks run it (`strategy`), each keeps every R-th corner and takes its share of the
    points between corners. All of them look, decide and write together, so no rank waits for
    one that has gone another way.

    Args:
        network: images to pre-activations, and to logits, too, where the loss compares them.
        parameterisation: module whose forward gives the corners, (K, C, H, W).
        loss: of all corners' pre-activations and images.
        goal: what every corner must reach, and how many steps it may take.
        optimizer: settings.
        every: steps between looks at the terms.
        classifier: images to logits, where the goal speaks of classes.
        per_batch: images in one forward pass, corners and points between them; None for as many
            as memory holds.
        compiled: run the network through torch.compile.
        seed: of the points between corners.
        problem: what a checkpoint must agree on to be continued from.

    Attributes:
        step: optimiser steps taken; `step_before`: before the last `training_step`.
        seconds: time spent in them; `earlier`: all time up to the checkpoint it went on from.
        told: whether a process of the search had been told to end, at the last look.
        found: what was found, once the search has ended.
        converged: whether `stop` lets the search end after `step`: every corner has reached the
            goal, and, with `loss.hull`, points between them its classes.
        curves: (K,) `positive` (the norm), `total` and `total_variation` (R) after `step`, and,
            where units are pushed, `negative` and `unit_preactivation`.
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
        problem: dict[str, Any] | None = None,
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
        self.converged = self.resumed = self.told = False
        self.found: Found | None = None
        self.ending: Callable[[], bool] = bool  # whether this process was told to end

    def setup(self, stage: str) -> None:
        """Keep this rank's corners, of several ranks."""
        self.rank, self.ranks = self.trainer.global_rank, self.trainer.world_size
        if self.ranks > 1:
            self.parameterisation.keep(self._own)
            self.loss.units = self.loss.units[self._own]
            if self.loss.along is not None:
                self.loss.along = self.loss.along[self._own]

    @property
    def _own(self) -> slice:
        """This rank's rows among those of all."""
        return slice(self.rank, None, self.ranks)

    def of_all(self, own: Tensor) -> Tensor:
        """A row of each of this rank's corners (k, ...) to those of all (K, ...), with gradients.

        Every rank must call it.
        """
        if self.ranks == 1:
            return own
        most = -(-self.count // self.ranks)  # ranks with a corner less send a row of zeros
        rows = torch.cat([own, own.new_zeros(most - len(own), *own.shape[1:])])
        parts = self.all_gather(rows, sync_grads=own.requires_grad)
        assert isinstance(parts, Tensor)  # (ranks, most, ...)
        return parts.transpose(0, 1).flatten(0, 1)[: self.count]

    def _agreed(self, vote: bool, every: bool = True) -> bool:
        """Whether every rank votes for it, or any does; every rank must call it."""
        if self.ranks == 1:
            return vote
        return self.trainer.strategy.reduce_boolean_decision(vote, all=every)

    def on_fit_start(self) -> None:
        """Compile the network where it is going to run."""
        if self.compiled:
            self.network.compile()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """The optimiser of the parameterisation."""
        return make_optimizer(self.optimizer_settings, self.parameterisation.parameters())

    def training_step(self, batch: Any, batch_index: int) -> None:
        """Take the steps up to the next multiple of `every`, then look at the terms.

        Raises:
            SettingError: for a network that does not compile.
            CollisionError: when a loss or a gradient is not finite, naming the step, or memory runs
                out.
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
                "set trainer.precision=bf16-mixed. Checkpoints written before are kept: go on with "
                "ckpt_path=last"
            ) from error

    def _take_steps(self) -> None:
        start = time.perf_counter()
        if self.resumed:  # the checkpoint may be that of the end
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
            if self.ranks == 1 and self.ending():  # several end at the next look, together
                end = step + 1
                break
        self._look(totals, _optimised(optimizer, not scaled))
        check_scale(getattr(self.trainer.precision_plugin, "scaler", None), end)
        self.step_before, self.step = self.step, end
        self.seconds += time.perf_counter() - start

    def _descend(self, step: int, backward: Callable[[Tensor], None]) -> Tensor:
        """Leave the loss's gradient in the parameters; the loss, summed over the corners."""
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
        # In parts: each part's gradient with respect to its images, then all through the images.
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
        """The loss, summed, of the corners `rows` and of points between corners after them."""
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
        """f0 (B, N), and logits where the loss compares them, in the loss's own precision."""
        dtype = self.loss.features.dtype
        if isinstance(self.network, Observed):
            logits, preactivation = self.network(images)
            return preactivation.to(dtype), logits.to(dtype)
        return self.network(images).to(dtype), None

    def _points_inside(self, count: int, step: int, every: Tensor, halfway: int = 0) -> Tensor:
        """This rank's share of `count` random points of the hull of all corners (K, C, H, W).

        The first `halfway` of them lie in the middle of two corners.
        """
        if count == 0:
            return every[:0]
        # A generator reads 32 bits of its seed; the odd factor keeps the seeds' steps apart.
        drawn = (self.seed * 2_654_435_761 + step) % 2**32
        generator = torch.Generator().manual_seed(drawn)
        weights = torch.empty(count, len(every)).exponential_(generator=generator)
        if halfway:  # of each row the two largest, which any two are as often
            ends = weights[:halfway].topk(min(2, len(every))).indices
            weights[:halfway] = torch.zeros_like(weights[:halfway]).scatter_(1, ends, 1.0)
        weights = (weights / weights.sum(1, keepdim=True)).to(every)
        # No matrix product: how its gradient rounds depends on the number of threads.
        shares = weights[self._own].view(-1, len(every), *[1] * (every.dim() - 1))
        return (shares * every).sum(1)

    def _at_once(self, images: Tensor) -> bool:
        """Whether a rank's corners and points go through the network together, in all ranks."""
        rows = sum(-(-count // self.ranks) for count in (self.count, self.loss_settings.hull))
        return self._most(images) >= rows

    def _most(self, images: Tensor) -> int:
        """How many of `images`, and of points between them, go through the network at once."""
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
        # A network can hide what is not a number, and clipping an infinite step does.
        rest = torch.stack([tensor.isfinite().all() for tensor in (images, variation, *optimised)])
        if not (losses.all() & rest.all()):
            step = self.step + (len(totals) if losses.all() else int(losses.int().argmin()))
            what = "gradient" if losses.all() else "loss"
            raise CollisionError(
                f"the {what} is not finite at step {step}; lower optimizer.rate, loss.alpha or "
                "loss.beta. Checkpoints written before are kept"
            )
        self.curves = dict(zip(own, self.of_all(torch.stack(list(own.values()), 1)).T, strict=True))
        every = self.of_all(images) if self.loss.settings.hull else images
        step = self.step + len(totals)
        self.converged = self._agreed(  # the classes cost many steps: not where nothing hangs on it
            self.stop.least <= step < self.stop.max_steps
            and all_met(self.goal.late(own["positive"]))
            and self._classified_as_target(images, every)
        )
        self.told = self._agreed(self.ending(), every=False)

    def _classified_as_target(self, images: Tensor, every: Tensor) -> bool:
        """Whether the goal is met at the corners and, with `loss.hull`, at points between all.

        These cost a step each, so they are looked at last, and to the first that fails.
        """
        if self.classifier is None:
            return True
        inside = self._points_inside(_LOOKED_AT if self.loss.settings.hull else 0, 0, every)
        for points in (images, inside):
            for rows in self._parts(points):
                outputs = ask(self.classifier, points[rows])
                if not all_met(self.goal.misclassified(outputs)):
                    return False
        return True

    @property
    def finished(self) -> bool:
        """Whether the search stops here."""
        looked_at = self.step % self.every == 0  # not so where a signal ended the steps
        enough = looked_at and self.step >= self.stop.least and self.converged
        return self.step >= self.stop.max_steps or enough

    def on_train_end(self) -> None:
        """Say what was found; on every rank, of all corners."""
        corners = self.of_all(self.parameterisation().detach().float()).cpu()
        variation = self.curves["total_variation"].detach().cpu()
        self.found = Found(corners, variation, self.step, self.seconds, self.earlier)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the parameterisation and the counters, nothing of the classifier."""
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
        """Take the counters up again, and of the rest this rank's rows, laid as it lays them.

        Fused Adam on a CPU takes its means to lie in memory as the parameter does, unasked.
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
    """Raise CollisionError where float16's gradients overflow at every scale, so no step is taken.

    Each overflow skips a step and halves the scale, which starts at 2^16; 36 of them get here.
    """
    if scaler is not None and scaler.get_scale() < 2**-20:
        raise CollisionError(
            f"trainer.precision=16-mixed: the gradient is not finite at any scale by step {step}, "
            "so steps are skipped; take bf16-mixed or 32-true. Checkpoints written before are kept"
        )


def _optimised(optimizer: torch.optim.Optimizer, gradients: bool) -> list[Tensor]:
    """The parameters, what the optimiser keeps of their earlier gradients, and the last ones.

    Without `gradients` for 16-mixed, whose loss scaling leaves steps out that overflow.
    """
    found: list[Tensor] = []
    for parameter in (p for group in optimizer.param_groups for p in group["params"]):
        kept = [*optimizer.state.get(parameter, {}).values(), parameter.grad if gradients else None]
        found += [parameter, *(each for each in kept if isinstance(each, Tensor) and each.dim())]
    return found
