"""Callbacks between steps: curves, intermediate images, checkpoints, stopping, progress bar."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, WandbLogger
from tqdm import tqdm

from ..data.files import read_text, write_text
from ..data.images import save_png, to_uint8
from ..settings.search import LogSettings
from .lightning_module import Collision
from .parameterisations import PatchComposite

CURVES, STEPS = "metrics.csv", "images/steps"  # in a run directory


class CollisionCallback(Callback):
    """Calls `look` after every `training_step`, and `finish` once at the end of the search."""

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        """Pass the typed module on."""
        assert isinstance(module, Collision)
        self.look(trainer, module)

    def look(self, trainer: Trainer, module: Collision) -> None:
        """Act on the state after `module.step` steps."""


def due(module: Collision, every: int) -> bool:
    """Whether the last `training_step` reached or passed a multiple of `every`."""
    return module.step // every > module.step_before // every


class Stop(CollisionCallback):
    """Ends the search when it is finished, or when one of its processes was interrupted."""

    def look(self, trainer: Trainer, module: Collision) -> None:
        """Set `trainer.should_stop`."""
        trainer.should_stop = module.finished or module.interrupted


class Progress(CollisionCallback):
    """A progress bar over the steps, with the largest L_pos and finally the reason for stopping.

    Lightning's bar counts batches of an endless epoch; a batch is `log.every` steps here.
    """

    bar: Any = None

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Open the bar at the first step, also of a resumed search."""
        assert isinstance(module, Collision)
        total = module.stop.max_steps
        self.bar = tqdm(total=total, initial=module.step, desc="Finding corners", unit="step",
                        mininterval=0.5, disable=not trainer.is_global_zero)  # fmt: skip

    def look(self, trainer: Trainer, module: Collision) -> None:
        """Move the bar."""
        largest = module.curves["positive"].max()
        scale = f"largest L_pos {largest:.3g}, ||f(t)|| {module.goal.norm:.3g}"
        self.bar.set_postfix_str(scale, refresh=False)
        self.bar.update(module.step - self.bar.n)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Close the bar; fill it if the search needs no more steps."""
        assert isinstance(module, Collision)
        if module.finished:
            enough = module.step < module.stop.max_steps
            self.bar.total = module.step
            self.bar.set_description_str(
                "Every limit of stop is met" if enough else "All steps are taken", refresh=False
            )
        else:
            self.bar.set_description_str("Interrupted", refresh=False)
        self.bar.refresh()
        self.bar.close()

    def on_exception(self, trainer: Trainer, module: LightningModule, error: BaseException) -> None:
        """Close the bar before the error is shown; there may be no bar yet."""
        if self.bar is not None:
            self.bar.close()


class Curves(CollisionCallback):
    """Writes each term of each corner to `metrics.csv`, and to W&B where it is on.

    R is left out for pixels, which have none. Lightning's CSVLogger drops the rows of a search that
    is resumed.

    Args:
        path: the CSV file.
        corners: names of the K corners.
    """

    def __init__(self, path: Path, corners: Sequence[int]) -> None:
        self.path, self.corners = path, corners

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Drop rows after the step that is resumed, and a row that a kill cut off.

        They are written again.
        """
        assert isinstance(module, Collision)
        if not trainer.is_global_zero:
            return
        known = read_text(self.path, None).splitlines() if self.path.exists() else []
        whole = [line for line in known[1:] if line.count(",") == known[0].count(",")]
        kept = [line for line in whole if int(line.split(",")[0]) <= module.step]
        lines = [*known[:1], *kept] if module.step else []
        write_text(self.path, "".join(f"{line}\n" for line in lines))

    def look(self, trainer: Trainer, module: Collision) -> None:
        """Add a row; none without a step, or if a signal came between two rows."""
        between = module.step % module.every != 0 and not module.finished
        if between or module.step == module.step_before or not trainer.is_global_zero:
            return
        composites = isinstance(module.parameterisation, PatchComposite)
        named = {
            f"{term}/corner_{corner}": value
            for term, values in module.curves.items()
            if composites or term != "total_variation"
            for corner, value in zip(self.corners, values.tolist(), strict=True)
        }
        with self.path.open("a", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            if not file.tell():
                writer.writerow(["step", *named])
            writer.writerow([module.step, *named.values()])
        if trainer.logger:
            trainer.logger.log_metrics(named, step=module.step)


class IntermediateImages(CollisionCallback):
    """Saves the corners as they change (appendix C), and shows them in W&B.

    Args:
        folder: folder of `step_000250_corner_3.png`.
        corners: indices of the K corners.
        every: steps between pictures.
    """

    def __init__(self, folder: Path, corners: Sequence[int], every: int) -> None:
        self.folder, self.corners, self.every = folder, corners, every

    @torch.no_grad()
    def look(self, trainer: Trainer, module: Collision) -> None:
        """Save one picture per corner, when due and at the end."""
        if not (due(module, self.every) or module.finished):
            return
        images = module.of_all(module.parameterisation()).float()
        if not trainer.is_global_zero:
            return
        for corner, image in zip(self.corners, images, strict=True):
            save_png(self.folder / f"step_{module.step:06d}_corner_{corner}.png", image)
        if isinstance(trainer.logger, WandbLogger):
            import wandb

            pictures = {
                f"intermediate/corner_{corner}": wandb.Image(to_uint8(image))
                for corner, image in zip(self.corners, images, strict=True)
            }
            trainer.logger.log_metrics(pictures, step=module.step)  # type: ignore[arg-type]


class Checkpoints(CollisionCallback):
    """Keeps `last.ckpt`.

    Lightning's ModelCheckpoint counts batches (`log.every` steps each), and saves none at a signal.

    Args:
        folder: the checkpoints' folder.
        every: steps between checkpoints.
    """

    def __init__(self, folder: Path, every: int) -> None:
        self.folder, self.every = folder, every

    def look(self, trainer: Trainer, module: Collision) -> None:
        """Save when due, at the end, and after an interruption.

        Raises:
            OSError: if it cannot be written; the previous checkpoint is kept.
        """
        if due(module, self.every) or module.finished or module.interrupted:
            trainer.save_checkpoint(self.folder / "last.ckpt")


def callbacks_of(
    directory: Path | None, corners: Sequence[int], log: LogSettings
) -> list[Callback]:
    """All callbacks of a search.

    Args:
        directory: folder of curves, images and checkpoints; None for none.
        corners: indices of the K corners.
        log: steps between them.
    """
    callbacks: list[Callback] = [Progress()]
    if directory is not None:
        callbacks += [
            Curves(directory / CURVES, corners),
            IntermediateImages(directory / STEPS, corners, log.images_every),
            Checkpoints(directory / "checkpoints", log.checkpoint_every),
        ]
    return [*callbacks, Stop()]


def log_afterwards(directory: Path, logger: Logger) -> None:
    """Log the curves and, for W&B, the pictures of a search whose ranks had no logger."""
    steps: dict[int, dict[str, Any]] = {}
    for row in csv.DictReader((directory / CURVES).read_text().splitlines()):
        values = {name: float(value) for name, value in row.items() if name != "step"}
        steps[int(row["step"])] = values
    if isinstance(logger, WandbLogger):
        import wandb

        for path in sorted((directory / STEPS).glob("step_*_corner_*.png")):
            _, number, _, corner = path.stem.split("_")
            picture = {f"intermediate/corner_{corner}": wandb.Image(str(path))}
            steps.setdefault(int(number), {}).update(picture)
    for step in sorted(steps):
        logger.log_metrics(steps[step], step=step)
