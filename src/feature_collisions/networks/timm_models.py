"""timm's image classifiers by name, with their normalisation; an optional library."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import nn

from ..errors import SettingError, explained, similar
from ..settings.train import RANDOM, ClassifierSettings
from .saved_folder import CONFIG, WEIGHTS, check_images, printable_names, read_object, saved_folder
from .torchvision_models import Classifier, is_file
from .weights import State, fit_weights, read_weights, untrained


def load_timm(settings: ClassifierSettings, size: Sequence[int]) -> nn.Module:
    """Load a timm classifier with the weights of `classifier.weights`, for images of one size.

    Args:
        settings: `name`, and `weights`: a file, or a tag of timm to download.
        size: (C, H, W) of the images.

    Raises:
        SettingError: if timm is not installed, the name is unknown, or the weights are damaged, do
            not fit or cannot be downloaded.
    """
    timm, name = _timm(), settings.name
    if settings.in_folder:
        return _of_folder(timm, settings, size)
    _check_name(timm, name)
    source = f"classifier.weights={settings.weights or 'null'}"
    tags = [tag.partition(".")[2] for tag in timm.list_pretrained(f"{name.partition('.')[0]}.*")]
    if settings.weights == RANDOM:
        head = {"num_classes": 0} if settings.output == "features" else {}
        network = untrained(lambda: timm.create_model(name, **head))
        return _behind_normalisation(timm, network, f"classifier.name={name}", size)
    if settings.weights is None or not (is_file(settings.weights) or settings.weights in tags):
        raise SettingError(
            source,
            None,
            f"{name} needs weights",
            "give a file, random (untrained), or one of timm's, which is downloaded: "
            f"{', '.join(filter(None, tags)) or 'there are none'}",
        )
    if is_file(settings.weights):
        states = read_weights(settings.weights)
        network = timm.create_model(name, **_head(timm, name, states))
        fit_weights(network, states, source, classes=network.num_classes or None)
    else:
        full = f"{name.partition('.')[0]}.{settings.weights}"
        remedy = "give a file with classifier.weights=FILE"
        with explained(source, None, f"{full} cannot be downloaded or read", remedy):
            network = timm.create_model(full, pretrained=True)
    return _behind_normalisation(timm, network, f"classifier.name={name}", size)


def size_of_timm(settings: ClassifierSettings) -> tuple[int, int]:
    """(H, W) of the images that a timm classifier was trained on.

    Raises:
        SettingError: if timm is not installed, the name is unknown, or the folder has no config.
    """
    timm = _timm()
    if settings.in_folder:
        _, own, _ = _config_of(timm, settings)
    else:
        _check_name(timm, settings.name)
        own = timm.get_pretrained_cfg(settings.name).to_dict()
    height, width = own["input_size"][1:]
    return int(height), int(width)


def _of_folder(timm: Any, settings: ClassifierSettings, size: Sequence[int]) -> nn.Module:
    """Load a network from a folder in timm's format for Hugging Face's hub."""
    source = f"classifier.path={settings.path}"
    name, own, arguments = _config_of(timm, settings)
    rule = f"timm cannot make the {name} that {CONFIG} describes"
    with explained(source, None, rule, "give a folder that timm saved"):
        network = timm.create_model(name, pretrained_cfg=own, **arguments)
    weights = settings.weights or saved_folder(settings.path) / WEIGHTS
    fit_weights(network, read_weights(weights), f"classifier.weights={weights}")
    model = _behind_normalisation(timm, network, source, size)
    labels = own.get("label_names")
    if isinstance(labels, list | tuple) and len(labels) == network.num_classes:
        model.class_names = printable_names(labels)
    return model


def _config_of(
    timm: Any, settings: ClassifierSettings
) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Read a folder's config.json: the architecture, its data, and its arguments."""
    source = f"classifier.path={settings.path}"
    wrong = partial(SettingError, source, None)
    folder = saved_folder(settings.path)
    config = read_object(folder / CONFIG)
    try:
        own = dict(config.get("pretrained_cfg", config))  # older files have only one level
        classes: Any = config.get("num_classes", own.get("num_classes", 1000))
        arguments: dict[str, Any] = {"num_classes": int(classes)}
        arguments |= config.get("model_args", {})
        channels, height, width = map(int, own.get("input_size", (3, 224, 224)))
        sides = arguments.get("img_size", (height, width))
        height, width = (sides, sides) if isinstance(sides, int) else map(int, sides)
        own["input_size"] = (int(arguments.get("in_chans", channels)), height, width)
        own["label_names"] = config.get("label_names", own.get("label_names"))
        name = config["architecture"]
    except (KeyError, TypeError, ValueError) as error:
        raise wrong(
            f"{CONFIG} is not a config of timm ({type(error).__name__}: {error})",
            "a folder of transformers' is read with classifier=transformers",
        ) from None
    _check_name(timm, str(name), f"{source}: architecture {name}")
    if strange := sorted(set(arguments) & _NOT_OF_A_NETWORK):
        raise wrong(
            f"model_args of {CONFIG} has {strange[0]}, which is not an argument of a network",
            "remove it",
        )
    return str(name), own, arguments


_NOT_OF_A_NETWORK = {
    "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir",
    "features_only", "out_indices", "scriptable", "exportable", "no_jit",
}  # fmt: skip


def _head(timm: Any, name: str, states: dict[str, State]) -> dict[str, int]:
    """`num_classes=0` if no state has weights for the head, so the network is an encoder."""
    heads = timm.get_pretrained_cfg(name).classifier or ()
    heads = (heads,) if isinstance(heads, str) else tuple(heads)
    ends = tuple(f"{head}.weight" for head in heads)
    there = any(key.endswith(ends) for state in states.values() for key in state)
    return {"num_classes": 0} if ends and not there else {}


def _behind_normalisation(
    timm: Any, network: nn.Module, source: str, size: Sequence[int]
) -> Classifier:
    own = timm.data.resolve_model_data_config(network)
    mean, std = list(own["mean"]), list(own["std"])
    channels = int(own["input_size"][0])
    if len(mean) != channels or len(std) != channels:
        raise SettingError(
            source,
            None,
            f"takes images of {channels} channels, and its mean and std are of {len(mean)}",
            f"write those of {channels} into pretrained_cfg of its {CONFIG}",
        )
    model = Classifier(network, mean, std)
    model.is_encoder = bool(network.num_classes == 0)
    check_images(source, model, size, own["input_size"])
    return model


def _timm() -> Any:
    try:
        import timm
        import timm.data
    except ImportError:
        raise SettingError(
            "classifier.library",
            "timm",
            "timm is not installed",
            "pip install 'feature_collisions[timm]'",
        ) from None
    return timm


def _check_name(timm: Any, name: str, source: str = "") -> None:
    known = timm.list_models()
    base = name.partition(".")[0]
    if base in known and (base == name or name in timm.list_pretrained()):
        return
    named = source or f"classifier.name={name}"
    raise SettingError(named, None, "is not one of timm's classifiers", similar(base, known))
