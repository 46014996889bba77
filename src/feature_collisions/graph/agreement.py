"""Check that the extracted networks compute what the user's model computes."""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..data.devices import may_reduce
from ..errors import SettingError
from .activations import Activation
from .flow import following, module_named, names_of, other_readers
from .graph import Graph, copied, evaluating
from .logits import device_of, first_weight, like_weights, predict
from .target_layer import Observed, TargetLayer, joined

_HALF = (torch.float16, torch.bfloat16)
_REDUCED = 1e-2  # if float32 products use TF32's ten bits


def validate_model(model: nn.Module) -> nn.Module:
    """Return the model, or a float32 copy if its weights are half precision.

    Raises:
        SettingError: if it is not a module, has no weights in memory, or is TorchScript.
    """
    if not isinstance(model, nn.Module):
        raise SettingError(
            "model",
            None,
            f"must be a torch.nn.Module, is {_article(type(model).__name__)}",
            "give the network itself",
        )
    tensors = list(chain(model.named_parameters(), model.named_buffers()))
    scripted = isinstance(model, torch.jit.ScriptModule)
    if scripted or any(tensor.is_meta or is_lazy(tensor) for _, tensor in tensors):
        raise SettingError(
            "model",
            None,
            "is TorchScript, or its weights are lazy or on the meta device",
            "give a torch.nn.Module with its weights loaded",
        )
    half = {tensor.dtype for _, tensor in tensors if tensor.dtype in _HALF}
    if not half:
        return model
    named = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in half))
    warnings.warn(
        f"model: its weights are {named}; corners are found and measured on a copy in float32",
        stacklevel=3,
    )
    return copied(model).float()


def is_double(model: nn.Module) -> bool:
    """Whether the model computes in float64."""
    weight = first_weight(model)
    return weight is not None and weight.dtype == torch.float64


def check_agreement(
    graph: Graph,
    layer: str,
    images: Tensor,
    observed: Observed,
    frozen: Sequence[nn.Module] = (),
) -> tuple[str, ...]:
    """Raise SettingError unless all compute what the model does, up to rounding.

    Args:
        graph: graph of the classifier, which is called in eval mode.
        layer: the target layer.
        images: (B, C, H, W) to compare on.
        observed: shares the model's weights.
        frozen: a copy that replaces the model: a `TargetLayer`, an `Observed` or a classifier.
            Pass it before halving or compiling, whose rounding may hide the effect of a hook.

    Returns:
        The operations that bypass the layer, from `check_hidden`.
    """
    model = graph.model
    alike = partial(_check_alike, may_reduce(device_of(model)))
    with torch.no_grad(), evaluating(model):
        logits, preactivation = _listened(model, layer, images)
        _check_finite(model, logits)
        alike("a second call gives other logits", logits, predict(model, images), _RANDOM)
        alone = torch.cat([predict(model, image[None]) for image in images])
        alike("its logits of an image depend on the batch", logits, alone, _BATCH)
        outputs = [_outputs(observed, images)]
    with torch.no_grad():
        outputs += [_outputs(network, images) for network in frozen]
    for found_logits, found in outputs:
        if found_logits is not None:
            what = "the extracted network gives other logits than model(images)"
            alike(what, logits, found_logits, _suspects(model))
        if found is not None:
            preactivation = found if preactivation is None else preactivation
            what = f"cut at layer={layer}, it gives other pre-activations than model(images)"
            alike(what, preactivation, found, _suspects(model))
    return check_hidden(graph, layer, images)


_EDGE = 1e-3  # distance from the edge to which hidden units are pushed, relative to where they are
_FURTHER = 8.0  # distance to which hidden units are pushed, relative to the layer's largest value


@torch.no_grad()
def check_hidden(graph: Graph, layer: str, images: Tensor) -> tuple[str, ...]:
    """Check on the model itself what the layer hides, and that everything flows through it.

    A hook pushes hidden units further. If the activation is exactly flat, the logits must not
    change. A second hook gives each image another image's values at the layer. Its logits must
    become those of the other image, unless the graph shows a bypass.

    Args:
        graph: graph of the classifier.
        layer: the target layer. If it is not a module, only the graph is read.
        images: (B, C, H, W), at least two.

    Returns:
        The operations that bypass the layer, as `Following.past`; without a graph, those that
        the logits reveal.

    Raises:
        SettingError: if hidden units change the logits, or the graph misses a bypass.
    """
    known, model = following(graph, layer), graph.model
    named = [module_named(model, name) for name in names_of(layer)]
    modules = [module for module in named if module is not None]
    if len(modules) < len(named):
        return known.past
    alike = partial(_check_alike, may_reduce(device_of(model)))
    with evaluating(model):
        logits = predict(model, images)

        def further(values: Tensor) -> Tensor:
            far = _FURTHER * values.abs().max()
            return _moved(known.activation, values, lambda depth: depth - far)

        def to_the_edge(values: Tensor) -> Tensor:
            return _moved(known.activation, values, lambda depth: _EDGE * depth)

        shown = known.activation.is_exact and not other_readers(graph, layer)
        for push in (further, to_the_edge) if shown else ():
            pushed = _with_values(model, modules, images, push)
            alike(f"layer={layer}: its hidden units change the logits", logits, pushed, _NOT_HIDDEN)
        swapped = _with_values(model, modules, images, lambda values: values.roll(1, 0))
        try:
            alike("", logits.roll(1, 0), swapped, "")
        except SettingError:
            if known.activation.name == "unknown":
                return ("a branch that bypasses the layer",)
            if not known.past:
                raise SettingError(
                    "model",
                    None,
                    f"layer={layer}: the logits depend on more than its values, which its graph "
                    f"does not show. {_suspects(model)}",
                ) from None
    return known.past


def _moved(activation: Activation, values: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply `change` to the (negative) distance of hidden units beyond their edge."""
    moved = values
    for side in activation.sides:
        assert side.edge is not None
        depth = side.sign * (values - side.edge)
        moved = torch.where(depth < 0, side.edge + side.sign * change(depth), moved)
    return moved


def _with_values(
    model: nn.Module,
    modules: Sequence[nn.Module],
    images: Tensor,
    change: Callable[[Tensor], Tensor],
) -> Tensor:
    """Logits of the model with the output of modules changed, at the first call of each."""
    called = set[nn.Module]()

    def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
        first = module not in called
        called.add(module)
        return change(output) if first and isinstance(output, Tensor) else output

    with _observed_by(modules, hook):
        return predict(model, images)


@contextmanager
def _observed_by(modules: Sequence[nn.Module], hook: Callable[..., Any]) -> Iterator[None]:
    listeners = [module.register_forward_hook(hook) for module in modules]
    try:
        yield
    finally:
        for listener in listeners:
            listener.remove()


@torch.no_grad()
def check_graph(model: nn.Module, network: nn.Module, images: Tensor) -> None:
    """Raise SettingError unless the graph gives for a batch what the model gives image by image.

    Args:
        model: the classifier, in eval mode.
        network: its graph, in any precision; returns only the logits.
        images: (B, C, H, W) to compare on.
    """
    with evaluating(model):
        alone = torch.cat([predict(model, image[None]) for image in images])
    found = network(like_weights(network, images))
    if not isinstance(found, Tensor):
        raise SettingError("model", None, f"returns {type(found).__name__}, not only logits")
    what = "its export gives other logits than the model image by image"
    _check_alike(may_reduce(device_of(model)), what, alone, found, f"{_suspects(model)}. {_BATCH}")


@torch.enable_grad()
def check_differentiable(model: nn.Module, image: Tensor) -> None:
    """Raise SettingError if the model gives no gradient, for example under `torch.no_grad()`.

    Args:
        model: the classifier, in eval mode.
        image: (C, H, W), a valid input.
    """
    given = like_weights(model, image[None]).clone().requires_grad_()
    with evaluating(model):
        try:
            output = predict(model, given)
        except SettingError:
            raise
        except Exception:  # any error of its forward is reported where its layer is computed
            return
    if not output.requires_grad:
        raise _no_gradient()


@torch.enable_grad()
def check_gradient(network: TargetLayer | Observed, images: Tensor) -> None:
    """Raise SettingError unless the layer's values have a gradient with respect to the images."""
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(0)).to(images)
    given = like_weights(network, torch.cat([images, noise])).clone().requires_grad_()
    output = _outputs(network, given)[1]
    if output.requires_grad:
        weights = torch.rand(output.shape, generator=torch.Generator().manual_seed(1))
        (gradient,) = torch.autograd.grad((output * weights.to(output)).sum(), given)
        if gradient.any():
            return
    raise _no_gradient()


def _no_gradient() -> SettingError:
    return SettingError(
        "model",
        None,
        "no gradient reaches the image, or it is zero everywhere",
        "remove no_grad, detach, rounding and numpy from its forward",
    )


def _listened(model: nn.Module, layer: str, images: Tensor) -> tuple[Tensor, Tensor | None]:
    """Logits of the model and, if the layer is a module, its output observed by a hook."""
    named = [module_named(model, name) for name in names_of(layer)]
    modules, copies = [each for each in named if each is not None], dict[nn.Module, Tensor]()

    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            copies.setdefault(module, output.detach().clone())

    with _observed_by(modules, keep):
        logits = predict(model, images)
    if len(copies) < len(named):
        return logits, None
    return logits, joined([copies[module] for module in modules])


def _outputs(network: nn.Module, images: Tensor) -> tuple[Tensor | None, Any]:
    if isinstance(network, Observed):
        logits, preactivation = network(like_weights(network, images))
        return logits, preactivation
    if isinstance(network, TargetLayer):
        return None, network(like_weights(network, images))
    return predict(network, images), None


def _check_finite(model: nn.Module, logits: Tensor) -> None:
    if logits.isfinite().all():
        return
    tensors = chain(model.named_parameters(), model.named_buffers())
    broken = [name for name, tensor in tensors if not tensor.isfinite().all()]
    cause = "correct its forward"
    if broken:
        cause = f"{broken[0]} holds NaN or infinite values; load other weights"
    raise SettingError("model", None, "its logits are not finite numbers", cause)


def _check_alike(reduced: bool, what: str, expected: Tensor, found: Tensor, cause: str) -> None:
    if expected.shape != found.shape:
        raise SettingError(
            "model",
            None,
            f"{what}: of shape {tuple(found.shape)}, not {tuple(expected.shape)}. {cause}",
        )
    here, there = expected.cpu(), found.cpu()  # one device may lack float64
    difference = float((here - there).abs().max())
    scale = float(torch.maximum(here.abs().max(), there.abs().max()))
    if not difference <= _rounding(reduced, expected, found) * scale:
        raise SettingError(
            "model",
            None,
            f"{what}: they differ by {difference:.3g}, and the largest is {scale:.3g}. {cause}",
        )


def _rounding(reduced: bool, *outputs: Tensor) -> float:
    """Relative tolerance for two computations of the same values."""
    share = math.sqrt(max(torch.finfo(output.dtype).eps for output in outputs))
    return max(share, _REDUCED) if reduced else share


_NOT_HIDDEN = (
    "No ReLU follows, or something else reads the layer; choose a layer that feeds a ReLU, or "
    "rewrite the network so that torch.export can trace it"
)
_RANDOM = (
    "Possible cause: randomness (dropout that eval() does not turn off) or a state that calls "
    "change; make its forward a fixed function of the images"
)
_BATCH = (
    "Possible cause: normalisation over the batch (BatchNorm without running averages); give a "
    "model that treats each image separately"
)


def _suspects(model: nn.Module) -> str:
    """Name the parts of a call that the cut network may have missed."""
    found = []
    for name, module in model.named_modules():
        called = name or "the model itself"
        if "forward" in vars(module):
            found.append(f"a forward patched on {called}")
        if module._forward_pre_hooks or module._forward_hooks:
            found.append(f"a forward hook on {called}")
    devices = {str(tensor.device) for tensor in model.parameters()}
    dtypes = {str(tensor.dtype).removeprefix("torch.") for tensor in model.parameters()}
    for what, kinds in (("devices", devices), ("dtypes", dtypes)):
        if len(kinds) > 1:
            found.append(f"weights of several {what} ({', '.join(sorted(kinds))})")
    if not found:
        return (
            "Possible cause: a forward that does more than torch.export records (autocast, another "
            "precision, stored values); make it a plain function of the images"
        )
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return f"Possible cause: {', '.join(found[:3])}{more}; move its code into a module's class"


def _article(name: str) -> str:
    return f"an {name}" if name[0] in "aeiouAEIOU" else f"a {name}"
