"""Turn OmegaConf's type errors into one message: setting, value, rule."""

import re
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import Any

from omegaconf import Container, DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

_KINDS = {
    "Integer": "a whole number, without a decimal point",
    "Float": "a number",
    "bool": "true or false",
    "str": "a word, in quotes where it has brackets or commas",
    "String": "a word, in quotes where it has brackets or commas",
}
_WRONG_TYPE = re.compile(r"Value '(.*?)' .*(?:converted to|is not a valid) (\w+)")
_GROUP = re.compile(r"Invalid type assigned: \w+ is not a subclass of \w+\. value: (.*)")
_MISSING = re.compile(r"Structured config of type .* has missing mandatory value: (\w+)")


def in_plain_words(error: OmegaConfBaseException) -> str:
    """Message with the setting, its value and the required type."""
    name = error.full_key or error.key
    said = (str(error).splitlines() or [""])[0]
    if isinstance(error, ConfigKeyError | ConfigAttributeError):
        return f"{name}: there is no such setting; {_known(str(name), error.parent_node)}"
    if (found := _WRONG_TYPE.match(said)) and found[2] in _KINDS:
        return f"{name}={found[1]}: must be {_KINDS[found[2]]}"
    if said.endswith("is not Optional"):
        return f"{name}=null: must have a value; leave it out for the default"
    if found := _GROUP.match(said):
        return f"{name}={found[1]}: is a group of settings; set one of them with {name}.NAME=VALUE"
    if said == "Cannot merge DictConfig with ListConfig":
        return f"{name}: a list takes a list, a group takes NAME=VALUE"
    if found := re.match("Cannot convert '(.*)' to string: '(.*)'", said):
        return f"{name}={found[2]}: must be {_KINDS['str']}"
    if _MISSING.match(said) or said.startswith("Missing mandatory value"):
        return f"{name}: has no value; give {name}=VALUE"
    return f"{name}: {said}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Suggest a known name for an unknown one; empty if none is similar.

    Example:
        >>> did_you_mean("experimnt", ["experiment", "corner"])
        'did you mean experiment?'
    """
    near = get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean {near[0]}?" if near else ""


def _known(name: str, parent: Any) -> str:
    """Suggest settings with a similar name, or with this name in another group."""
    group, _, key = name.rpartition(".")
    names = [str(each) for each in parent or () if each not in ("hydra", None)]
    if question := did_you_mean(key, names):
        return question.replace("mean ", f"mean {group}." if group else "mean ")
    if elsewhere := [each for each in _all(parent) if each.rpartition(".")[2] == key]:
        return f"did you mean {' or '.join(elsewhere)}?"
    return f"the settings here are {', '.join(names) or 'none'}"


def _all(parent: Any) -> Iterator[str]:
    """Names of all settings of the config that contains `parent`."""
    root: Any = parent._get_root() if isinstance(parent, Container) else {}
    for group in map(str, root):
        values = {} if group == "hydra" or OmegaConf.is_missing(root, group) else root[group]
        if isinstance(values, DictConfig):
            yield from (f"{group}.{key}" for key in map(str, values))
