"""Data flow around a layer: its activation, bypasses of it, and the choice of `auto`."""

import difflib
import math
from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import NamedTuple

from torch import fx, nn

from ..errors import SettingError
from .activations import IDENTITY, RELU, Activation, activation_of, base_name, title_of
from .graph import Graph, end_of, needed_for, shell_of
from .operations import LAYERS, is_new_shape, keeps_values


class Following(NamedTuple):
    """What follows a layer, read from the graph.

    Attributes:
        activation: the function with its flat sides, none if nothing flat follows. Without a
            graph it is a ReLU named `unknown`, which must be checked numerically.
        past: operations through which the output sees more than the activation's values: other
            readers of the layer, and branches that bypass it.
    """

    activation: Activation
    past: tuple[str, ...] = ()


class Chosen(NamedTuple):
    """The layer that `auto` chooses, and the reason."""

    layer: str
    reason: str


def names_of(layer: str) -> list[str]:
    """Split the name of a target layer made of several layers: `a,b`."""
    return layer.split(",")


def following(graph: Graph, layer: str) -> Following:
    """Find the activation that hides the layer's values, and the operations that bypass it.

    Raises:
        SettingError: if a name is not a layer, or several layers have different activations.
    """
    nodes = nodes_of(graph, layer)
    if nodes is None:
        return Following(replace(RELU, name="unknown"))
    activations = [_hidden_by(node)[0] for node in nodes]
    if any(activation != activations[0] for activation in activations):
        named = ", ".join(title_of((each or IDENTITY).name) for each in activations)
        raise SettingError(
            "layer", layer, f"different activations follow ({named})", "name layers with one"
        )
    return Following(activations[0] or IDENTITY, _past(graph, nodes))


def activations_behind(graph: Graph, layer: str) -> list[fx.Node] | None:
    """Operation that hides each named layer's values; None if there is none, or no graph."""
    nodes = [_hidden_by(node)[1][:1] for node in nodes_of(graph, layer) or []]
    return [each for found in nodes for each in found] if nodes and all(nodes) else None


def check_hiding(graph: Graph, layer: str) -> None:
    """Raise SettingError if no flat activation follows the layer: no unit can be pushed down."""
    if not following(graph, layer).activation.sides:
        raise SettingError(
            "layer", layer, "feeds no activation with a flat side, so it hides no unit"
        )


def other_readers(graph: Graph, layer: str) -> list[str]:
    """Names of operations that read the layer's values without hiding any."""
    nodes = nodes_of(graph, layer) or []
    return [each.name for node in nodes for each in _other_readers(node)]


def nodes_of(graph: Graph, layer: str) -> list[fx.Node] | None:
    """Nodes of the target layer, one for each of its names; None without a graph.

    The name of a module stands for its own operation if an activation with a flat side reads it,
    otherwise for the module's output.

    Raises:
        SettingError: if a name is not a layer.
    """
    if graph.network is None:
        return None
    return [_node(graph, name) for name in names_of(layer)]


def _node(graph: Graph, name: str) -> fx.Node:
    places = [each[name] for each in (graph.nodes, graph.ends) if name in each]
    places.sort(key=lambda node: _hidden_by(node)[0] is None)
    if not places:
        rule = "is not a layer of this network"
        if name in modules_of(graph.model):
            rule = "is never run by this network"
        flat = [each for each, node in graph.nodes.items() if _hidden_by(node)[0] is not None]
        choices = _choices(name, flat or list(graph.nodes))
        what = "layers that feed an activation with a flat side" if flat else "its layers"
        near = _similar(name, flat or list(graph.nodes))
        question = f"did you mean {near}? " if near else ""
        raise SettingError("layer", name, rule, f"{question}{what}: {choices}")
    if len(places[0].meta.get("shape", ())) < 2:
        raise SettingError("layer", name, "has no values per image", "choose another layer")
    return places[0]


def _hidden_by(node: fx.Node) -> tuple[Activation | None, list[fx.Node]]:
    """The activation that reads a node's values, at most reshaped, and its nodes.

    If several clipped ReLUs read them, all are flat below 0 and above the largest ceiling. Of
    other activations the first counts; the rest see more.
    """
    found = [(each, activation_of(each)) for each in _readers(node)]
    flat = [(each, activation) for each, activation in found if activation is not None]
    if not flat:
        return None, []
    activations = [activation for _, activation in flat]
    if all(activation.is_rectifier for activation in activations):
        return max(activations, key=lambda a: a.ceiling), [each for each, _ in flat]
    return activations[0], [each for each, a in flat if a == activations[0]]


def _readers(node: fx.Node) -> list[fx.Node]:
    """Nodes that read a node's values in any shape, without those that read its size."""
    found: list[fx.Node] = []
    for user in node.users:
        if keeps_values(user):
            found += _readers(user)
        elif not is_size(user):
            found.append(user)
    return found


def _other_readers(node: fx.Node) -> list[fx.Node]:
    """Nodes that read a node's values in any shape without hiding any."""
    hiding = _hidden_by(node)[1]
    return [each for each in _readers(node) if each not in hiding] if hiding else []


def _past(graph: Graph, nodes: Iterable[fx.Node]) -> tuple[str, ...]:
    """Operations through which the output sees more than the activations of `nodes`.

    A node without a flat activation counts with all its values.
    """
    through, readers = set[fx.Node](), list[fx.Node]()
    for node in nodes:
        through |= set(_hidden_by(node)[1]) or {node}
        readers += _other_readers(node)
    names = {each: name for name, each in graph.nodes.items()}
    found = [names.get(each, each.name) for each in readers]
    return tuple(dict.fromkeys([*found, *bypasses(graph, {*through, *readers})]))


def bypasses(graph: Graph, cut: Collection[fx.Node]) -> list[str]:
    """Names of the operations that read the images, and reach the output around the nodes `cut`."""
    assert graph.network is not None
    names = {each: name for name, each in graph.nodes.items()}
    around = needed_for([graph.network.graph.output_node()], cut)
    return [
        names.get(node, node.name)
        for (image,) in [graph.network.graph.find_nodes(op="placeholder")]
        for node in image.users
        if node in around and not is_size(node)
    ]


def narrowest(graph: Graph, layer: str) -> float:
    """Fewest numbers of an image that everything flows through on its way into the layer.

    Infinity where there is no graph, and of several layers together.
    """
    nodes = nodes_of(graph, layer) or []
    if graph.network is None or len(nodes) != 1:
        return math.inf
    needed = needed_for(nodes)
    fewest, reads = math.inf, dict[fx.Node, int]()  # of what is still read further on
    for node in graph.network.graph.nodes:
        given = [each for each in node.all_input_nodes if each in reads]
        if node in nodes or node not in needed or is_size(node):
            continue
        if not given and node.op != "placeholder":
            continue  # a weight
        for each in given:
            reads[each] -= 1
        reads = {each: left for each, left in reads.items() if left}
        reads[node] = sum(user in needed and not is_size(user) for user in node.users)
        sizes = node.meta.get("shape", (None,))[1:] or (None,)
        if len(reads) == 1 and None not in sizes:
            fewest = min(fewest, math.prod(sizes))
    return fewest


def is_size(node: fx.Node) -> bool:
    """Whether a node computes a size."""
    return base_name(node).startswith("sym_")


# auto

_SHARE, _FEW = 1 / 3, 3  # share or number of linear layers that may follow the layer of auto
_BRANCHES = 16


def last_layer(graph: Graph, output: str = "classes") -> Chosen:
    """Choose the last layer that everything flows through, one that hides something if possible.

    The choice, in this order:

    - A layer before an activation with a flat side. At most a third of the network's linear layers
      (or three) follow it, and at least one unless it is an encoder: a ReLU on the logits is not a
      feature.
    - Several such layers together, the branches of a block.
    - The last feature: the input of the final linear layer, or the output of an encoder.

    Raises:
        SettingError: if the network could not be exported as a graph.
    """
    if graph.network is None:
        raise SettingError(
            "layer",
            "auto",
            graph.reason,
            "auto cannot choose a layer; name the module whose output feeds a ReLU",
        )
    late = _late(graph, least=0 if output == "features" else 1)
    for name, node in reversed(graph.nodes.items()):
        activation = _hidden_by(node)[0]
        if activation and not keeps_values(node) and node in late and not _past(graph, [node]):
            return Chosen(name, f"the last before {title_of(activation.name)}")
    if branches := _branches(graph, late):
        names = {node: name for name, node in graph.nodes.items()}
        return Chosen(
            ",".join(names[node] for node in branches),
            f"{len(branches)} branches that everything flows through together",
        )
    return _last_feature(graph, output)


def _late(graph: Graph, least: int) -> set[fx.Node]:
    """Nodes followed by few linear layers, but at least `least`."""
    assert graph.network is not None
    found, passed = set[fx.Node](), 0
    most = max(_FEW, _SHARE * sum(node.target in LAYERS for node in graph.network.graph.nodes))
    for node in reversed(graph.network.graph.nodes):
        if least <= passed <= most:
            found.add(node)
        passed += node.target in LAYERS
    return found


def _branches(graph: Graph, late: set[fx.Node]) -> list[fx.Node]:
    """Layers before activations of one kind that together form a cut, or []."""
    assert graph.network is not None
    names = {node: name for name, node in graph.nodes.items()}
    tried = set[str]()
    for last in reversed(graph.nodes.values()):
        kind = activation_of(last)
        if kind is None or kind.name in tried or last not in late:
            continue
        tried.add(kind.name)
        cut = {each for each in late if activation_of(each) == kind}
        around = needed_for([graph.network.graph.output_node()], cut)
        read = {source for each in around for source in each.all_input_nodes} & cut
        found = {_unshaped(each.all_input_nodes[0]) for each in read}
        branches = [node for node in names if node in found]  # in the network's order
        if 1 < len(branches) <= _BRANCHES and not _past(graph, branches):
            return branches
    return []


def _unshaped(node: fx.Node) -> fx.Node:
    while is_new_shape(node):
        node = node.all_input_nodes[0]
    return node


def _last_feature(graph: Graph, output: str) -> Chosen:
    """Input of the final linear layer, or output of an encoder."""
    assert graph.network is not None
    linear, end = 0, end_of(graph.network)
    names: dict[fx.Node, str] = {}
    for name, node in graph.nodes.items():  # an inactive dropout has its input's node
        names.setdefault(node, name)
    for node, name in reversed(names.items()):
        if output == "features":
            break
        if linear and len(node.meta.get("shape", ())) >= 2 and not _past(graph, [node]):
            return Chosen(name, "the last feature, as no flat activation is in the last third")
        linear += node.target in LAYERS
    if end not in names:
        raise SettingError(
            "layer", "auto", "the output of this network has no name", "name a layer"
        )
    return Chosen(names[end], "the output, as no flat activation is in the last third")


# Names


def module_named(model: nn.Module, name: str) -> nn.Module | None:
    """Module with the name of a layer; None if there is none."""
    return modules_of(model).get(name)


def modules_of(model: nn.Module) -> dict[str, nn.Module]:
    """Modules of a model by layer name."""
    prefix = shell_of(model)
    return {name.removeprefix(prefix): module for name, module in model.named_modules()}


def module_of(model: nn.Module, layer: str) -> nn.Module:
    """Module with the name of a layer.

    Raises:
        SettingError: if there is none.
    """
    modules = modules_of(model)
    if layer not in modules:
        raise SettingError(
            "layer",
            layer,
            "is not a layer of this network",
            f"its modules are {_choices(layer, [name for name in modules if name])}",
        )
    return modules[layer]


_MANY = 60  # names that fit in a message


def _similar(layer: str, names: list[str]) -> str:
    """The name most like `layer`: one that contains it, with dots around, or one of its letters."""
    within = [name for name in names if f".{layer}." in f".{name}."]
    return (within[-1:] or difflib.get_close_matches(layer, names, 1, 0.6) or [""])[0]


def _choices(layer: str, names: list[str]) -> str:
    """List all names or, of many, those most similar to `layer` and the last ones."""
    if len(names) <= _MANY:
        return ", ".join(names)
    near = difflib.get_close_matches(layer, names, 10, 0.3)
    shown = [*near, *(name for name in names[-10:] if name not in near)]
    return f"{', '.join(shown)} and {len(names) - len(shown)} others"
