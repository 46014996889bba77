"""Refuse overrides that have no effect on a job."""

from collections.abc import Sequence

from ..errors import SettingError

OBJECTIVES = ("eq2", "unit", "random", "near")
_SOLVERS = {"linear_program": "linear programs solve", "exact": "solver=exact solves"}
_OF_A_SEARCH = {
    "loss", "rates", "optimizer", "stop", "log", "patches", "trainer", "corners_per_batch",
    "channels_last", "compile",
}  # fmt: skip
_AS_IT_IS = {"trainer.precision=64-true", "trainer.precision=64"}  # linear programs are in float64


def check_used(
    solver: str,
    overrides: Sequence[str],
    objective: str = "eq2",
    pairs: str | None = None,
    parameterisation: str = "composite",
) -> None:
    """Raise SettingError for an override without effect under this `solver` or `pairs`.

    Only overrides of the command line are checked. An experiment's file may contain settings of a
    search that linear programs ignore: `experiment=mnist solver=linear_program` is valid.

    Args:
        solver: `gradient`, `linear_program` or `exact`.
        overrides: those of the command line, in Hydra's form.
        objective: of exact corners; `near` uses `loss.nearness` with linear programs.
        pairs: source of the image pairs, if any.
        parameterisation: `pixels` does not use patches.

    Example:
        >>> check_used("linear_program", ["solver=linear_program", "corner_order=inactive_first"])
    """
    for override in overrides:
        name = override.lstrip("+~").partition("=")[0]
        group = name.partition(".")[0].partition("@")[0]
        if pairs is not None and name in ("initial", "target"):
            raise SettingError(
                override, None, f"pairs={pairs} names the images", "leave one of them out"
            )
        if solver == "gradient" and parameterisation == "pixels" and group == "patches":
            raise SettingError(
                override,
                None,
                f"a search over pixels does not use {name}",
                "leave it out, or set parameterisation=composite",
            )
        if solver == "exact" and name == "objective" and objective not in ("near", "random"):
            raise SettingError(
                override, None, "solver=exact takes near or random", "set one of them"
            )
        if solver == "linear_program" and objective == "near" and name == "loss.nearness":
            continue
        if solver == "gradient" and group == "objective":
            raise SettingError(
                override,
                None,
                "only linear_program and exact have an objective",
                "set solver=linear_program, or leave it out",
            )
        if solver != "gradient" and group in _OF_A_SEARCH and override not in _AS_IT_IS:
            raise SettingError(
                override,
                None,
                f"{_SOLVERS[solver]} for the corners exactly, without {name}",
                f"leave it out, or leave out solver={solver}",
            )
