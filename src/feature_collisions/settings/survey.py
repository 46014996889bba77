"""A sweep over classifiers is a survey: every job gets the list of all, to draw the same pairs."""

from collections.abc import Iterator
from itertools import product
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import OverrideParseException
from omegaconf import OmegaConf

from .train import NETWORK


def tell_of_networks(arguments: list[str], conf: Path) -> list[str]:
    """Add `networks` to the arguments of a sweep over classifiers with random pairs.

    Args:
        arguments: arguments of the command line.
        conf: the configuration's folder, for `classifier=NAME,NAME`.

    Example:
        >>> tell_of_networks(["classifier.path=m:a,m:b", "pairs=random:8"], Path("conf"))[-1]
        'networks=[{path:"m:a"},{path:"m:b"}]'
    """
    given = [each for each in arguments if "=" in each and each[:1] not in "-~"]
    if not any(each.startswith("pairs=random") for each in given):
        return arguments
    if any(each.startswith("networks=") for each in given):
        return arguments
    try:
        parsed = OverridesParser.create().parse_overrides(given)
    except OverrideParseException:  # Hydra reports it
        return arguments
    swept = [list(_choices(each, conf)) for each in parsed if each.is_sweep_override()]
    swept = [choices for choices in swept if any(choices)]
    if not swept:
        return arguments
    networks = [{k: v for part in parts for k, v in part.items()} for parts in product(*swept)]
    texts = dict.fromkeys(
        "{" + ",".join(_entry(*each) for each in net.items()) + "}" for net in networks
    )
    return [*arguments, f"networks=[{','.join(texts)}]"]


def _choices(override: Override, conf: Path) -> Iterator[dict[str, str | None]]:
    """Settings of the network in each choice of a sweep, if any."""
    _, _, key = override.key_or_group.partition("classifier.")
    if not (override.key_or_group == "classifier" or key in NETWORK):
        return
    for choice in override.sweep_iterator():
        choice = choice.text if isinstance(choice, QuotedString) else choice
        if key:
            yield {key: None if choice is None else str(choice)}
            continue
        path = conf / "classifier" / f"{choice}.yaml"
        values = OmegaConf.to_container(OmegaConf.load(path)) if path.is_file() else {}
        assert isinstance(values, dict)
        yield {name: values[name] for name in NETWORK if values.get(name) not in (None, "???")}


def _entry(name: str, value: str | None) -> str:
    if value is None:
        return f"{name}:null"
    text = value.replace("${", r"\${")  # which omegaconf reads as a reference
    return f"{name}:{QuotedString(text, Quote.double).with_quotes()}"
