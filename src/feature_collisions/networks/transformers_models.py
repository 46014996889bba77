"""Hugging Face's image classifiers and encoders from a local folder; an optional library.

Nothing is downloaded, and no code in the folder is executed.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import SettingError, explained
from ..settings.train import ClassifierSettings
from .saved_folder import CONFIG, check_images, printable_names, read_object, saved_folder
from .torchvision_models import Classifier

_PROCESSORS = ("preprocessor_config.json", "processor_config.json")


class Pixels(NamedTuple):
    """Normalisation of an image processor.

    Attributes:
        size: (C, H, W) of its output.
        mean, std: of each output channel, on [0, 1] pixels.
        order: the image's channel for each output channel; BGR is [2, 1, 0].
    """

    size: tuple[int, int, int]
    mean: list[float]
    std: list[float]
    order: list[int]


class FromTransformers(Classifier):
    """Image processor's normalisation followed by a Hugging Face model; gives logits or features.

    Args:
        network: a `PreTrainedModel`.
        pixels: normalisation of its image processor.
        class_names: of the logits; () for an encoder.
        pooled: for an encoder, whether its `pooler_output` has trained weights.
    """

    def __init__(
        self, network: nn.Module, pixels: Pixels, class_names: tuple[str, ...], pooled: bool = True
    ) -> None:
        super().__init__(network, pixels.mean, pixels.std)
        self.order = None if pixels.order == sorted(pixels.order) else pixels.order
        self.class_names, self.pooled = class_names, pooled
        self.is_encoder = not class_names

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] to (B, classes) logits or (B, D) features."""
        pixels = images if self.order is None else images[:, self.order]
        pixels = (pixels - self.mean) / self.std
        if not self.is_encoder:
            output = self.network(pixel_values=pixels)  # PP-LCNet's has no entry called logits
            logits: Tensor = output.logits if "logits" in output else output.last_hidden_state
            return logits
        of_images: Any = getattr(self.network, "get_image_features", None)
        if of_images:  # the model takes images and text
            return _features(of_images(pixel_values=pixels), pooled=True)
        return _features(self.network(pixel_values=pixels), self.pooled)


def _features(output: Any, pooled: bool) -> Tensor:
    """Features (B, D) in the output of an encoder.

    They are the pooled output, otherwise the first (class) token or the mean of a feature map.
    """
    if isinstance(output, Tensor):
        return output.flatten(1)
    found: Tensor | None = getattr(output, "image_embeds", None)
    if found is None and pooled:
        found = getattr(output, "pooler_output", None)
    if found is not None:
        return found.flatten(1)
    last: Tensor = output.last_hidden_state
    return last.mean((2, 3)) if last.ndim == 4 else last[:, 0]


def load_transformers(settings: ClassifierSettings, size: Sequence[int]) -> FromTransformers:
    """Load the model in the folder `classifier.path`.

    It is an `AutoModelForImageClassification` if the config says so, otherwise an `AutoModel`,
    which returns features.

    Args:
        settings: `path`.
        size: (C, H, W) of the images.

    Raises:
        SettingError: if transformers is not installed, the folder lacks weights, needs code or has
            inconsistent files, or the model rejects the images.
    """
    transformers, folder = _transformers(), _folder(settings)
    source = f"classifier.path={folder}"
    if settings.weights:
        raise SettingError(
            "classifier.weights",
            settings.weights,
            "a folder already contains its weights",
            "leave classifier.weights out",
        )
    config = read_object(folder / CONFIG)
    named = [name for name in config.get("architectures") or [] if isinstance(name, str)]
    classifies = any("ForImageClassification" in name for name in named)
    kind = "AutoModelForImageClassification" if classifies else "AutoModel"
    load = getattr(transformers, kind).from_pretrained
    options = {"use_safetensors": True, "dtype": torch.float32, "output_loading_info": True}
    with _reading(source), _quiet():
        network, info = load(folder, **options, **_OFFLINE)
    missing = sorted([*info["missing_keys"], *map(str, info["mismatched_keys"])])
    pooled = not any(name.startswith("pooler.") for name in missing)
    if not classifies:
        missing = [name for name in missing if not name.startswith("pooler.")]
    if missing:
        raise SettingError(
            source,
            None,
            f"{len(missing)} of the model's weights are not in its safetensors, such as "
            f"{missing[0]}",
            "give a folder that has all of them",
        )
    own, pixels = network.config, _pixels(folder)
    labels = [own.id2label.get(k, f"class {k}") for k in range(own.num_labels if classifies else 0)]
    names = printable_names(labels)
    model = FromTransformers(network.eval(), pixels, names, pooled)
    check_images(source, model, size, pixels.size)
    return model


def size_of_transformers(settings: ClassifierSettings) -> tuple[int, int]:
    """(H, W) of the folder's image processor.

    Raises:
        SettingError: as for `load_transformers`.
    """
    return _pixels(_folder(settings)).size[1:]


_OFFLINE: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


def _transformers() -> Any:
    os.environ["HF_HUB_OFFLINE"] = "1"  # a config may name parts on the hub
    try:
        import transformers
    except ImportError:
        raise SettingError(
            "classifier.library",
            "transformers",
            "transformers is not installed",
            "pip install 'feature_collisions[transformers]'",
        ) from None
    return transformers


def _folder(settings: ClassifierSettings) -> Path:
    """Check the folder of the model.

    Raises:
        SettingError: if it is not one, or its model needs code from the folder.
    """
    folder = saved_folder(settings.path)
    for name in (CONFIG, *_PROCESSORS):
        path = folder / name
        if path.is_file() and "auto_map" in read_object(path):
            raise SettingError(
                "classifier.path",
                folder,
                f"{name} names Python code (auto_map), and code in a folder is never executed",
                "if you trust it, load the model in a module of your own and give "
                "classifier=file classifier.path=MODULE:NAME",
            )
    return folder


def _pixels(folder: Path) -> Pixels:
    """Measure the normalisation of the folder's image processor on plain images."""
    source = f"classifier.path={folder}"
    if not any((folder / name).is_file() for name in _PROCESSORS):
        raise SettingError(
            source,
            None,
            f"has no {_PROCESSORS[0]}, with the image size, mean and deviation",
            "also save the image processor there",
        )
    transformers = _transformers()
    with _reading(source), _quiet():
        processor = transformers.AutoImageProcessor.from_pretrained(folder, **_OFFLINE)
        given = processor(images=_COLOURS, return_tensors="pt")["pixel_values"]
    rule = "must give one image (3, H, W) whose channels are scaled and shifted"
    if not (isinstance(given, Tensor) and given.ndim == 4 and given.shape[1] == 3):
        shape = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
        raise SettingError(source, None, f"its image processor {rule}, and gives {shape}")
    middle = given[:, :, given.shape[2] // 2, given.shape[3] // 2].double()
    black, white, grey, colours = middle[0], middle[1], middle[2], middle[3:]
    steps = colours - black  # (colour, channel)
    order = steps.abs().argmax(0).tolist()
    expected = torch.zeros_like(steps)
    expected[order, range(3)] = white - black
    affine = torch.allclose(steps, expected, atol=1e-5) and torch.allclose(
        grey, black + (white - black) * _GREY / 255, atol=1e-5
    )
    if not affine or sorted(order) != [0, 1, 2] or not (white > black).all():
        raise SettingError(source, None, f"its image processor {rule}, and does something else")
    std = 1 / (white - black)
    size = (3, given.shape[2], given.shape[3])
    return Pixels(size, (-black * std).tolist(), std.tolist(), order)


_GREY = 51
_COLOURS = [
    np.full((256, 256, 3), colour, np.uint8)
    for colour in [(0, 0, 0), (255, 255, 255), (_GREY,) * 3, (255, 0, 0), (0, 255, 0), (0, 0, 255)]
]
"""Plain images: black, white, grey, red, green and blue."""


def _reading(source: str) -> AbstractContextManager[None]:
    """Explain any error of a damaged folder."""
    remedy = "give a folder that save_pretrained wrote"
    return explained(source, None, "cannot be read by transformers", remedy)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers' progress and warnings; this module checks the same."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    from transformers.utils import logging as reports

    bars = reports.is_progress_bar_enabled()
    reports.disable_progress_bar()
    try:
        yield
    finally:
        logger.setLevel(level)
        if bars:
            reports.enable_progress_bar()
