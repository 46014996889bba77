"""Read a directory of searches on several networks as a survey with the same pairs for each."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import JsonValue
from torch import nn

from ..data.caches import Cache
from ..data.files import write_json
from ..data.images import SQUARES
from ..errors import SettingError
from ..escaping import for_terminal
from ..evaluation.evaluate import reason_of
from ..evaluation.hull_of_run import checked_hull, classifier_of
from ..evaluation.judge import Judge, judge_of
from ..evaluation.survey import measure
from ..runs.records import read_record
from ..runs.rows import Row
from ..runs.run import Run
from ..settings.evaluate import EvaluateSettings
from .csv_files import read_extra

_SHARED = (
    "corner", "corner_order", "loss", "optimizer", "stop", "parameterisation", "patches", "solver",
    "objective", "seed",
)  # fmt: skip
"""The settings that make sizes comparable: the same budget, the same stop."""
_SAID = ("loss.alpha", "loss.beta", "optimizer.name", "optimizer.rate", "stop.min_steps",
         "stop.max_steps", "stop.positive", "stop.positive_relative")  # fmt: skip


def is_survey(runs: Sequence[Run]) -> bool:
    """Whether the hulls are of several networks with the same pairs."""
    if len(set(map(_network, runs))) < 2:
        return False
    of_pair: dict[str, set[tuple[str, ...]]] = {}
    for run in runs:
        of_pair.setdefault(_pair(run), set()).add(_network(run))
    shared = any(len(networks) > 1 for networks in of_pair.values())
    return shared or any(run.config.networks for run in runs)


def _network(run: Run) -> tuple[str, ...]:
    return str(run.summary.classifier_hash), run.summary.layer


def _pair(run: Run) -> str:
    digest = hashlib.sha256(run.initial.numpy().tobytes())
    digest.update(run.target.numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Survey:
    """The hulls of a survey.

    Attributes:
        runs: by network, one hull per pair, in the same order of pairs.
        pairs: names of the pairs.
        reference: the network that others are compared with.
        extra: the user's columns, by network.
        budget: the settings that all searches share.
        left_out: one line per skipped group of hulls.
    """

    runs: Mapping[str, Sequence[Run]]
    pairs: Sequence[str]
    reference: str
    extra: Mapping[str, Mapping[str, float]]
    budget: Mapping[str, str]
    left_out: Sequence[str]

    def measured(self, settings: EvaluateSettings) -> tuple[dict[str, list[Row]], dict[str, str]]:
        """Every hull's row, by network, of the pairs that could be measured in all networks.

        What was measured before, on this machine and of the same corners, is not measured again.

        Returns:
            The rows; and the hulls that could not be measured, and why.

        Raises:
            SettingError: when no pair could be.
        """
        found: dict[str, dict[int, Row]] = {}
        failed: dict[str, str] = {}
        for name, runs in self.runs.items():
            print(for_terminal(name), flush=True)
            model, data = classifier_of(runs[0], settings)
            distances = data.test.mean_distances(SQUARES)
            judge = judge_of(settings.sizes.judge, data)
            found[name] = {}
            for number, run in enumerate(runs):
                try:
                    row = _measured(run, model, distances, settings, judge)
                    found[name][number] = row | {"network": name, "pair": self.pairs[number]}
                except Exception as error:  # of any kind; the other hulls are kept
                    failed[str(run.directory)] = reason_of(error)
        kept = sorted(set.intersection(*(set(each) for each in found.values())))
        if not kept:
            place, reason = next(iter(failed.items()))
            raise SettingError(
                "run", None, f"no pair could be measured in all networks. {place}: {reason}"
            )
        return {name: [each[k] for k in kept] for name, each in found.items()}, failed


def read_survey(settings: EvaluateSettings, runs: Sequence[Run]) -> Survey:
    """Sort the hulls by network and pair.

    Raises:
        SettingError: if searches had different settings, no pair was searched in all networks, or
            `survey` names an unknown network.
    """
    by_network: dict[tuple[str, ...], dict[str, Run]] = {}
    for run in runs:
        by_network.setdefault(_network(run), {})[_pair(run)] = run
    names = _names(by_network)
    _check_budget(runs)
    everywhere = set.intersection(*(set(found) for found in by_network.values()))
    order = [pair for pair in dict.fromkeys(map(_pair, runs)) if pair in everywhere]
    if not order:
        counts = ", ".join(f"{names[key]} {len(found)}" for key, found in by_network.items())
        raise SettingError(
            "run",
            None,
            f"no pair was searched in all networks (pairs of each: {counts})",
            "search the same pairs in all, with a sweep over classifiers and pairs=random:N",
        )
    chosen = {names[key]: [found[pair] for pair in order] for key, found in by_network.items()}
    left_out = [
        f"{names[key]}: {len(found) - len(order)} pairs that other networks lack"
        for key, found in by_network.items()
        if len(found) > len(order)
    ]
    reference = settings.survey.reference or next(iter(chosen))
    if reference not in chosen:
        raise SettingError(
            "survey.reference",
            reference,
            "is none of the networks",
            f"they are {', '.join(chosen)}",
        )
    first = next(iter(chosen.values()))
    pairs = [f"{run.config.initial} to {run.config.target}" for run in first]
    extra = read_extra(settings.survey.extra, list(chosen)) if settings.survey.extra else {}
    return Survey(chosen, pairs, reference, extra, _budget(runs[0]), left_out)


def _names(by_network: Mapping[tuple[str, ...], Mapping[str, Run]]) -> dict[tuple[str, ...], str]:
    """Name of each network: its path or name, with its layer and weights if necessary.

    Weights are named as on the command line, or by their hash.
    """
    runs = {key: next(iter(found.values())) for key, found in by_network.items()}
    plain = {key: _called(run) for key, run in runs.items()}
    full = {key: _called(run, weights=True) for key, run in runs.items()}
    names = {}
    for key, name in plain.items():
        alike = [other for other, called in plain.items() if called == name and other != key]
        others = [other for other in alike if other[0] != key[0]]
        if others:
            same = any(full[other] == full[key] for other in others)
            name = f"{name} {key[0][:6]}" if same else full[key]
        if len(others) < len(alike):
            name = f"{name} {key[1]}"
        names[key] = name
    return names


def _called(run: Run, weights: bool = False) -> str:
    """A network's path or name, on request with its weights, as on the command line."""
    named = run.config.classifier
    name = (named and named.path) or run.summary.classifier
    return f"{name}::{named.weights}" if weights and named and named.weights else name


def _check_budget(runs: Sequence[Run]) -> None:
    first = _flat(runs[0])
    for run in runs[1:]:
        other = _flat(run)
        for name in dict.fromkeys([*first, *other]):
            if first.get(name) != other.get(name):
                raise SettingError(
                    "run",
                    None,
                    f"{name} was {first.get(name)} in {runs[0].directory} and {other.get(name)} in "
                    f"{run.directory}",
                    "sizes are comparable only under the same settings: search again, or evaluate "
                    "the networks one by one",
                )


def _flat(run: Run) -> dict[str, JsonValue]:
    found: dict[str, JsonValue] = {"trainer.precision": run.summary.precision}  # choice of `auto`
    for name in _SHARED:
        value = run.config.get(name)
        inner = value if isinstance(value, dict) else {None: value}
        found |= {name if key is None else f"{name}.{key}": each for key, each in inner.items()}
    return found


def _budget(run: Run) -> dict[str, str]:
    known = _flat(run) | {"corners": len(run.corners)}
    return {name: str(known[name]) for name in ("corners", *_SAID) if known.get(name) is not None}


def _measured(
    run: Run,
    model: nn.Module,
    distances: dict[int, float],
    settings: EvaluateSettings,
    judge: Judge | None,
) -> Row:
    """A hull's row, from the user's cache where it is there."""
    return Cache("survey", _RECIPE, "a hull's figures").get_or_make(
        _key(run, distances[1], settings, judge),
        lambda: measure(checked_hull(model, run, settings), distances, settings, judge),
        lambda path: read_record(Row, path),
        lambda path, row: write_json(path, row.entries()),
    )


def _key(run: Run, distance: float, settings: EvaluateSettings, judge: Judge | None) -> str:
    """Hash of everything that the figures depend on."""
    worst = settings.worst_case
    digest = hashlib.sha256()
    for tensor in (run.corners, run.initial, run.target, run.units):
        digest.update(tensor.numpy().tobytes())
    rest = [
        *_network(run), run.summary.seconds, run.summary.distance_scale, distance,
        settings.samples, settings.seed, worst.starts, worst.steps, settings.proof.seconds,
        *((judge.name, judge.distance) if judge else ()),
    ]  # fmt: skip
    digest.update(json.dumps(rest).encode())
    return digest.hexdigest()[:32]


_RECIPE = 8
