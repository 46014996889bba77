"""What OmegaConf says of a value of the wrong type, as one message: setting, value, rule."""

import re
from collections.abc import Iterable

from omegaconf import Container
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
    """One message: the setting, its value and what it must be."""
    name = error.full_key or error.key
    said = (str(error).splitlines() or [""])[0]
    if isinstance(error, ConfigKeyError | ConfigAttributeError):
        return f"{name}: there is no such setting; known here are {_listed(error.parent_node)}"
    if (found := _WRONG_TYPE.match(said)) and found[2] in _KINDS:
        return f"{name}={found[1]}: must be {_KINDS[found[2]]}"
    if said.endswith("is not Optional"):
        return f"{name}=null: must have a value; leave it out for the default"
    if found := _GROUP.match(said):
        return f"{name}={found[1]}: is a group of settings; give one of them, {name}.NAME=VALUE"
    if said == "Cannot merge DictConfig with ListConfig":
        return f"{name}: takes a list where it is one, and NAME=VALUE in it where it is a group"
    if found := re.match("Cannot convert '(.*)' to string: '(.*)'", said):
        return f"{name}={found[2]}: must be {_KINDS['str']}"
    if _MISSING.match(said) or said.startswith("Missing mandatory value"):
        return f"{name}: has no value; give {name}=VALUE"
    return f"{name}: {said}"


def _listed(parent: object) -> str:
    names: Iterable[object] = parent if isinstance(parent, Container) else ["none"]
    return ", ".join(map(str, names))
