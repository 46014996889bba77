"""The model as its user calls it is the truth: what stands in for it must compute the same."""

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
from .logits import ask, device_of, first_weight, like_weights
from .target_layer import Observed, TargetLayer, joined

_HALF = (torch.float16, torch.bfloat16)
_REDUCED = 1e-2  # where float32 is multiplied with the ten bits of TF32, as GPUs may


def validate_model(model: nn.Module) -> nn.Module:
    """The model, or, where its weights are half precision, a copy of it in float32.

    Raises:
        SettingError: for what is no module, or one without values or of TorchScript.
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
    """Raise SettingError unless all compute what the model does, beyond rounding.

    Args:
        graph: of the classifier, which is called as its user would, in eval mode.
        layer: the target layer.
        images: (B, C, H, W), on which they are compared.
        observed: of the model itself, as it is.
        frozen: what runs in the model's place whatever mode that is in: a `TargetLayer`, an
            `Observed` or a classifier. Compare it before it is halved or compiled: these round
            more than a hook need change.

    Returns:
        What goes past the layer, as `check_hidden` finds it.
    """
    model = graph.model
    alike = partial(_check_alike, may_reduce(device_of(model)))
    with torch.no_grad(), evaluating(model):
        logits, preactivation = _listened(model, layer, images)
        _check_finite(model, logits)
        alike("called twice, it gives other logits", logits, ask(model, images), _RANDOM)
        alone = torch.cat([ask(model, image[None]) for image in images])
        alike("its logits of an image depend on the batch", logits, alone, _BATCH)
        outputs = [_outputs(observed, images)]
    with torch.no_grad():
        outputs += [_outputs(network, images) for network in frozen]
    for found_logits, found in outputs:
        if found_logits is not None:
            what = "what is searched gives other logits than model(images)"
            alike(what, logits, found_logits, _suspects(model))
        if found is not None:
            preactivation = found if preactivation is None else preactivation
            what = f"cut at layer={layer}, it gives other pre-activations than model(images)"
            alike(what, preactivation, found, _suspects(model))
    return check_hidden(graph, layer, images)


_EDGE = 1e-3  # how near to what is seen hidden units are pushed, over where they are
_FURTHER = 8.0  # how far hidden units are pushed, over the layer's largest value


@torch.no_grad()
def check_hidden(graph: Graph, layer: str, images: Tensor) -> tuple[str, ...]:
    """Confirm on the model itself what the layer hides, and that everything flows through it.

    Hidden units are pushed further by a hook in the model: its logits must not move, where the
    activation is exactly flat. Each image is
    given another one's values at the layer: its logits must be the other's, unless something is
    known to go past the layer.

    Args:
        graph: of the classifier.
        layer: the target layer. One that is no module of its own is read from the graph alone.
        images: (B, C, H, W), at least two.

    Returns:
        What goes past the layer, as `Following.past`; without a graph, as the numbers show it.

    Raises:
        SettingError: when hidden units move the logits, or the graph misses what goes past.
    """
    known, model = following(graph, layer), graph.model
    named = [module_named(model, name) for name in names_of(layer)]
    modules = [module for module in named if module is not None]
    if len(modules) < len(named):
        return known.past
    alike = partial(_check_alike, may_reduce(device_of(model)))
    with evaluating(model):
        logits = ask(model, images)

        def further(values: Tensor) -> Tensor:
            far = _FURTHER * values.abs().max()
            return _moved(known.activation, values, lambda depth: depth - far)

        def to_the_edge(values: Tensor) -> Tensor:
            return _moved(known.activation, values, lambda depth: _EDGE * depth)

        shown = known.activation.is_exact and not _read_elsewhere(graph, layer)
        for push in (further, to_the_edge) if shown else ():
            pushed = _with_values(model, modules, images, push)
            alike(f"layer={layer}: what it hides moves the logits", logits, pushed, _NOT_HIDDEN)
        swapped = _with_values(model, modules, images, lambda values: values.roll(1, 0))
        try:
            alike("", logits.roll(1, 0), swapped, "")
        except SettingError:
            if known.activation.name == "unknown":
                return ("a branch past the layer",)
            if not known.past:
                raise SettingError(
                    "model",
                    None,
                    f"layer={layer}: the logits depend on more than its values, which its graph "
                    f"does not show. {_suspects(model)}",
                ) from None
    return known.past


def _moved(activation: Activation, values: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """The values with how far hidden ones are beyond their edge, negative, changed."""
    moved = values
    for side in activation.sides:
        assert side.edge is not None
        depth = side.sign * (values - side.edge)
        moved = torch.where(depth < 0, side.edge + side.sign * change(depth), moved)
    return moved


def _read_elsewhere(graph: Graph, layer: str) -> bool:
    """Whether the graph knows that hidden values move the output: the layer has other readers."""
    return graph.network is not None and bool(other_readers(graph, layer))


def _with_values(
    model: nn.Module,
    modules: Sequence[nn.Module],
    images: Tensor,
    change: Callable[[Tensor], Tensor],
) -> Tensor:
    """The model's logits with modules' outputs changed, at the first call of each."""
    called = set[nn.Module]()

    def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
        first = module not in called
        called.add(module)
        return change(output) if first and isinstance(output, Tensor) else output

    with _observed_by(modules, hook):
        return ask(model, images)


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
    """Raise SettingError unless a graph of all images gives what the model does of each alone.

    Args:
        model: the classifier, called as its user would, in eval mode.
        network: a copy of it as a graph, in any precision, which returns the logits alone.
        images: (B, C, H, W), on which they are compared.
    """
    with evaluating(model):
        alone = torch.cat([ask(model, image[None]) for image in images])
    found = network(like_weights(network, images))
    if not isinstance(found, Tensor):
        raise SettingError("model", None, f"returns {type(found).__name__}, not logits alone")
    what = "as torch.export follows it, it gives other logits than image by image"
    _check_alike(may_reduce(device_of(model)), what, alone, found, f"{_suspects(model)}. {_BATCH}")


@torch.enable_grad()
def check_differentiable(model: nn.Module, image: Tensor) -> None:
    """Raise SettingError for a model that gives no gradient, as under `torch.no_grad()`.

    Args:
        model: the classifier, called as its user would, in eval mode.
        image: (C, H, W), which it takes.
    """
    given = like_weights(model, image[None]).clone().requires_grad_()
    with evaluating(model):
        try:
            output = ask(model, given)
        except SettingError:
            raise
        except Exception:  # whatever its forward raises is said where its layer is computed
            return
    if not output.requires_grad:
        raise _no_gradient()


@torch.enable_grad()
def check_gradient(network: TargetLayer | Observed, images: Tensor) -> None:
    """Raise SettingError unless the layer's values can be traced back to the images."""
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
        "take no_grad, detach, rounding and numpy out of its forward",
    )


def _listened(model: nn.Module, layer: str, images: Tensor) -> tuple[Tensor, Tensor | None]:
    """The model's logits and, where the layer is a module, what that really gave on the way."""
    named = [module_named(model, name) for name in names_of(layer)]
    modules, copies = [each for each in named if each is not None], dict[nn.Module, Tensor]()

    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            copies.setdefault(module, output.detach().clone())

    with _observed_by(modules, keep):
        logits = ask(model, images)
    if len(copies) < len(named):
        return logits, None
    return logits, joined([copies[module] for module in modules])


def _outputs(network: nn.Module, images: Tensor) -> tuple[Tensor | None, Any]:
    if isinstance(network, Observed):
        logits, preactivation = network(like_weights(network, images))
        return logits, preactivation
    if isinstance(network, TargetLayer):
        return None, network(like_weights(network, images))
    return ask(network, images), None


def _check_finite(model: nn.Module, logits: Tensor) -> None:
    if logits.isfinite().all():
        return
    tensors = chain(model.named_parameters(), model.named_buffers())
    broken = [name for name, tensor in tensors if not tensor.isfinite().all()]
    cause = "mend its forward"
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
    here, there = expected.cpu(), found.cpu()  # one of them may be where there is no float64
    difference = float((here - there).abs().max())
    scale = float(torch.maximum(here.abs().max(), there.abs().max()))
    if not difference <= _rounding(reduced, expected, found) * scale:
        raise SettingError(
            "model",
            None,
            f"{what}: they differ by {difference:.3g}, the largest is {scale:.3g}. {cause}",
        )


def _rounding(reduced: bool, *outputs: Tensor) -> float:
    """What two ways of computing the same may differ by, as a share of the largest value."""
    share = math.sqrt(max(torch.finfo(output.dtype).eps for output in outputs))
    return max(share, _REDUCED) if reduced else share


_NOT_HIDDEN = (
    "No ReLU follows, or something else reads the layer; choose a layer that feeds a ReLU, or "
    "write the network so that torch.export can follow it"
)
_RANDOM = (
    "It looks like randomness (dropout that eval() does not turn off) or a state that calls "
    "change; make its forward a fixed function of the images"
)
_BATCH = (
    "It looks like a normalisation over the batch (BatchNorm without running averages); give a "
    "model that takes each image on its own"
)


def _suspects(model: nn.Module) -> str:
    """What of a call the cut network may have missed."""
    found = []
    for name, module in model.named_modules():
        place = name or "the model itself"
        if "forward" in vars(module):
            found.append(f"a forward patched on {place}")
        if module._forward_pre_hooks or module._forward_hooks:
            found.append(f"a forward hook on {place}")
    devices = {str(tensor.device) for tensor in model.parameters()}
    dtypes = {str(tensor.dtype).removeprefix("torch.") for tensor in model.parameters()}
    for what, kinds in (("devices", devices), ("dtypes", dtypes)):
        if len(kinds) > 1:
            found.append(f"weights of several {what} ({', '.join(sorted(kinds))})")
    if not found:
        return (
            "It looks like a forward that does more than torch.export records (autocast, another "
            "precision, values of its own); make it a plain function of the images"
        )
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return f"It looks like {', '.join(found[:3])}{more}; put what it does into a module's own class"


def _article(name: str) -> str:
    return f"an {name}" if name[0] in "aeiouAEIOU" else f"a {name}"
