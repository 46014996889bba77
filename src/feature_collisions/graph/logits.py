"""Extract logits (B, classes) from the output of a classifier."""

from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import SettingError


def predict(model: nn.Module, images: Tensor) -> Tensor:
    """Logits of `model(images)`; its hooks run.

    Args:
        model: the classifier.
        images: (B, C, H, W); moved to the device and dtype of its weights.

    Returns:
        (B, classes) logits in the model's dtype, on the images' device.

    Raises:
        SettingError: if the model returns no logits.
    """
    return logits_in(model(like_weights(model, images)), len(images)).to(images.device)


def like_weights(model: nn.Module, images: Tensor) -> Tensor:
    """The images on the device and in the dtype of the model's first weight."""
    weight = first_weight(model)
    return images if weight is None else images.to(weight)


def device_of(model: nn.Module) -> torch.device:
    """Device of a model's first weight; the CPU if it has none."""
    weight = first_weight(model)
    return torch.device("cpu") if weight is None else weight.device


def first_weight(model: nn.Module) -> Tensor | None:
    """First floating-point parameter, otherwise buffer."""
    tensors = chain(model.parameters(), model.buffers())
    return next((tensor for tensor in tensors if tensor.is_floating_point()), None)


def logits_in(output: Any, count: int) -> Tensor:
    """Find the logits in the output of a classifier for `count` images.

    They are the returned tensor, the entry `logits`, or the only floating-point tensor
    (B, classes).

    Raises:
        SettingError: if there is no such tensor, or more than one.

    Example:
        >>> logits_in({"embedding": torch.zeros(2, 7, 4, 4), "classes": torch.ones(2, 3)}, 2)
        tensor([[1., 1., 1.],
                [1., 1., 1.]])
    """
    return rows_in(output, count, "logits (B, classes), of at least two classes")


def rows_in(output: Any, count: int, rule: str) -> Tensor:
    """Find the only tensor (B, D), D >= 2, in the output of a network for `count` images.

    Args:
        output: the output.
        count: B.
        rule: the requirement, for the message.

    Raises:
        SettingError: if there is no such tensor, or more than one.
    """
    if isinstance(output, Tensor):
        found = [output]
    elif isinstance(output, dict):
        found = [output["logits"]] if "logits" in output else list(output.values())
    elif hasattr(output, "logits"):
        found = [output.logits]
    else:
        found = list(output) if isinstance(output, tuple | list) else []
    logits = [each for each in found if _are_logits(each, count)]
    if len(logits) != 1:
        raise SettingError(
            "model",
            None,
            f"must return {rule}",
            f"for {count} images it returns {_described(output)}; {_cure(output, count, rule)}",
        )
    return logits[0]


def _are_logits(output: Any, count: int) -> bool:
    return (
        isinstance(output, Tensor)
        and output.is_floating_point()
        and output.ndim == 2
        and output.shape[0] == count
        and output.shape[1] > 1
    )


def _cure(output: Any, count: int, rule: str) -> str:
    if rule.startswith("features"):
        return "wrap it in a module that returns only the features, averaged over positions"
    if isinstance(output, Tensor) and output.is_floating_point() and output.numel() == count:
        return "wrap it in a module that returns [0, z] for the single logit z"
    return "wrap it in a module that returns only the logits"


def _described(output: Any) -> str:
    """Types and shapes of an output, without values."""
    kind = type(output).__name__
    if isinstance(output, Tensor):
        return f"a tensor of shape {tuple(output.shape)}, {output.dtype}"
    if isinstance(output, dict):
        entries = [f"{key!r}: {_kind(value)}" for key, value in output.items()]
        return f"{kind} with keys {_few(entries)}"
    if isinstance(output, tuple | list):
        return f"{kind} of {_few([_kind(value) for value in output])}"
    if hasattr(output, "logits"):
        return f"{kind} with logits {_kind(output.logits)}"
    return kind


def _kind(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__


def _few(entries: list[str]) -> str:
    more = f" and {len(entries) - 6} more" if len(entries) > 6 else ""
    return (", ".join(entries[:6]) or "nothing") + more
