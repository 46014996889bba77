"""Outputs of a network: logits, probabilities (converted to logits by a logarithm), or features."""

import copy
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import SettingError
from .graph import evaluating
from .logits import like_weights, logits_in, rows_in

_NEAR_ONE = 1e-3  # error of a row's sum; half precision in the network rounds as much
_NOISE = 4  # images of noise
_SIGMOIDS = ("SigmoidBackward0", "HardsigmoidBackward0")


def giving(model: nn.Module, images: Tensor, output: str) -> nn.Module:
    """A model that returns logits (`classes`, see `giving_logits`) or an encoder's `features`.

    Args:
        model: any network.
        images: (B, C, H, W), the initial image and the target.
        output: `classes` or `features`.

    Raises:
        SettingError: if the model returns neither.
    """
    check_kind(model, output)
    if output == "classes":
        return giving_logits(model, images)
    with evaluating(model), torch.no_grad():
        try:
            found = model(like_weights(model, images))
        except Exception:  # any error of the user's forward; later checks report it
            return model
    rows_in(found, len(images), "features (B, D)")
    return model


def check_kind(model: nn.Module, output: str, setting: str = "output") -> None:
    """Raise SettingError if `output` does not fit the model: classes of an encoder or the reverse.

    Args:
        model: a library's model has `is_encoder`; any other is accepted.
        output: `classes` or `features`.
        setting: its name, for messages.
    """
    encodes = getattr(model, "is_encoder", None)
    if encodes is True and output == "classes":
        raise SettingError(
            setting, output, "the network is an encoder: it returns features, not classes",
            "set classifier.output=features (in Python output='features'), or take one with a "
            "head",
        )  # fmt: skip
    if encodes is False and output == "features":
        raise SettingError(
            setting, output, "the network is a classifier: it returns logits, not features",
            "leave it out, or load the network without its head: timm's with num_classes=0, "
            "transformers' as an AutoModel",
        )  # fmt: skip


def giving_logits(model: nn.Module, images: Tensor) -> nn.Module:
    """Return the model, or a wrapper of one with probabilities that returns their logarithm.

    Rows are probabilities if they are non-negative and sum to 1 for every image and for noise.
    This is decided once, first, so that everything else reads the same logits.

    Args:
        model: any classifier. If its forward fails it is returned unchanged; later checks say why.
        images: (B, C, H, W), the initial image and the target.

    Raises:
        SettingError: if the outputs are sigmoids, which are not classes.
    """
    noise = torch.rand(_NOISE, *images.shape[1:], generator=torch.Generator().manual_seed(0))
    images = torch.cat([images, noise.to(images)])  # on two images logits may add up to 1 by chance
    try:
        with evaluating(model), torch.enable_grad():
            given = like_weights(model, images).detach().clone().requires_grad_()
            rows = logits_in(model(given), len(images))
    except Exception:  # any error of the user's forward
        return model
    if rows.grad_fn is not None and rows.grad_fn.name() in _SIGMOIDS:
        raise SettingError(
            "model",
            None,
            "returns sigmoids, which are independent labels and not classes",
            "choose one label, and wrap the model so that it returns [0, z], z the label's logit",
        )
    rows = rows.detach()
    if not (bool((rows >= 0).all()) and bool(((rows.sum(1) - 1).abs() < _NEAR_ONE).all())):
        return model
    taken = copy.copy(model)
    taken._forward_hooks = OrderedDict(model._forward_hooks)
    taken.register_forward_hook(_logarithm)
    return taken


def gives_probabilities(model: nn.Module) -> bool:
    """Whether `giving_logits` wrapped this model."""
    return _logarithm in model._forward_hooks.values()


def _logarithm(model: nn.Module, given: tuple[Any, ...], output: Any) -> Tensor:
    rows = logits_in(output, given[0].shape[0])  # len() would fix the number of images
    return rows.clamp_min(torch.finfo(rows.dtype).tiny).log()
