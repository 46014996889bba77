"""Run files as typed records; they are read and checked only here.

A new entry of a file is one line here. Entries are attributes of a record, with the same names as
in files and in `hull.summary["activation"]`.
"""

from collections.abc import Callable, Iterator, KeysView
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from ..data.files import read_json
from ..errors import SettingError

_MOST = 2**53  # more than any number of steps, seconds or units


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("has control characters")
    return text


Text = Annotated[str, AfterValidator(_printable)]
Count = Annotated[int, Field(ge=0, le=_MOST)]
Size = Annotated[float, Field(ge=0, le=_MOST)]
Number = Annotated[float, Field(ge=-_MOST, le=_MOST)]
Share = Annotated[float, Field(ge=0, le=1)]


class Record(BaseModel):
    """Entries of a JSON object. An unset entry is not written, and not `in` the record.

    Reading checks types and ranges; unknown entries are dropped.
    """

    model_config = ConfigDict(strict=True, extra="ignore")

    def entries(self) -> dict[str, Any]:
        """The set entries in JSON's form."""
        return self.model_dump(by_alias=True, exclude_unset=True)

    def keys(self) -> KeysView[str]:
        """Names of the set entries."""
        fields, known = type(self).model_fields, self.model_fields_set
        names = [field.alias or name for name, field in fields.items() if name in known]
        return dict.fromkeys([*names, *self._unknown()]).keys()

    def _unknown(self) -> dict[str, Any]:
        """Unknown entries, if the record keeps them."""
        return self.model_extra or {}

    def __repr_args__(self) -> list[tuple[str, Any]]:
        return self.items()

    def __iter__(self) -> Iterator[str]:  # type: ignore[override]
        return iter(self.keys())

    def __contains__(self, key: str) -> bool:
        return key in self.keys()

    def __getitem__(self, key: str) -> Any:
        for name, field in type(self).model_fields.items():
            if key == (field.alias or name) and name in self.model_fields_set:
                return getattr(self, name)
        return self._unknown()[key]

    def items(self) -> list[tuple[str, Any]]:
        """The entries that are set, as of a dictionary."""
        return [(key, self[key]) for key in self]

    def get(self, key: str, default: Any = None) -> Any:
        """The entry, or `default` if it is not set."""
        return self[key] if key in self else default  # noqa: SIM401

    def at(self, path: str) -> Any:
        """The entry at a path such as `proof.class.outcome`; None if it is not set."""
        found: Any = self
        for key in path.split("."):
            found = found.get(key) if isinstance(found, Record | dict) else None
        return found

    def __setitem__(self, key: str, value: Any) -> None:
        setattr(self, key, value)

    def __or__(self, changes: "Record | dict[str, Any]") -> Self:
        if isinstance(changes, Record):
            known = (
                name for name in type(changes).model_fields if name in changes.model_fields_set
            )
            changes = {name: getattr(changes, name) for name in known} | changes._unknown()
        return self.model_copy(update=changes)


class OpenRecord(Record):
    """A record that keeps unknown entries, for example of a later version."""

    model_config = ConfigDict(strict=True, extra="allow")


Kind = TypeVar("Kind", bound=BaseModel)


def read_record(
    kind: type[Kind],
    path: Path,
    remedy: str = "search again",
    read: Callable[[Path], Any] = read_json,
) -> Kind:
    """Read a file of a run directory as a record.

    Args:
        kind: of the record.
        path: of the file; it may be a stranger's.
        remedy: what to do where it holds something else.
        read: of its format.

    Raises:
        SettingError: at the first entry that is missing, of another type or out of range.
    """
    try:
        return kind.model_validate(read(path))
    except ValidationError as error:
        rule = first_problem(error, f" in {path.name}")
        raise impossible(path.parent, rule, remedy) from None


def first_problem(error: ValidationError, where: str = "") -> str:
    """What is wrong with the first entry that is: `accuracy=nan: Input should be ...`."""
    first = error.errors(include_url=False)[0]
    name = ".".join(map(str, first["loc"])) or "it"
    given = "" if first["type"] == "missing" else f"={first['input']!a:.60}"
    said = first["msg"].removeprefix("Value error, ")
    return f"{name}{given}{where}: {said}"


def impossible(directory: Path, rule: str, remedy: str = "search again") -> SettingError:
    """The error for a run directory with impossible content."""
    return SettingError("run", directory, rule, remedy)


class NamedClassifier(OpenRecord):
    """What `config.yaml` says of the classifier; `path` may be MODULE:NAME, which is code."""

    name: Text
    weights: Text | None = None
    layer: Text
    path: Text | None = None
    train: bool = False
    library: Text = "torchvision"


class NamedData(OpenRecord):
    """What `config.yaml` says of the images."""

    name: Text
    root: Text | None
    size: int | list[int] | None = 224
    resize: Text = "warp"


class Config(OpenRecord):
    """`config.yaml`: the entries that are read, next to all others."""

    name: Text | None = None
    classifier: NamedClassifier | None = None
    data: NamedData | None = None
    initial: JsonValue = None
    target: JsonValue = None
    seed: Annotated[int | None, Field(ge=0, lt=2**63)] = None
    loss: dict[str, JsonValue] = Field(default_factory=dict)
    networks: list[JsonValue] = Field(default_factory=list)
    channels_last: bool = False
    corner_order: Text = "flat"


class Corner(Record):
    """One corner in `summary.json`."""

    corner: Count
    unit: Count = -1  # -1 if no unit is pushed; `negative` and `unit_preactivation` are then unset
    side: Text | None = None  # `below` or `above`: side on which the activation hides the unit
    positive: Size
    positive_relative: Size | None = None
    negative: Number = 0.0
    unit_preactivation: Number = 0.0
    predicted_class: Count = -1  # -1 if the output is features; `probability` is then unset
    probability: Share = 0.0
    cosine: Number | None = None  # with the target's output, if it is features
    output_relative: Size | None = None
    total_variation: Size | None = None


OF_OUTPUT = {
    "classes": (
        ("predicted_class", "probability"),
        ("initial_class", "target_class", "target_probability"),
    ),
    "features": (("cosine", "output_relative"), ("initial_cosine",)),
}
"""By the network's output: what a corner's entry has, and what is said of the two images."""


class Summary(Record):
    """`summary.json`: figures of a search; docs/reference/run.md describes them."""

    experiment: Text
    classifier: Text
    classifier_hash: Text | None = None
    layer: Text
    activation: Text = "unknown"
    tolerance: Size = 0.0
    push: Text = "unit"
    bypassed: bool = False
    output: Literal["classes", "features"] = "classes"
    threshold: Number | None = None
    returns: Text = "logits"
    initial_class: Count = -1  # -1 if the output is features, as is the target's
    target_class: Count = -1
    initial_label: Count | None = None
    target_label: Count | None = None
    target_probability: Share = 0.0
    initial_cosine: Number | None = None
    distance_scale: Count
    solver: Text = "gradient"
    objective: Text | None = None
    hull_relative: Size | None = None
    converged: bool
    residual: Size | None = None
    unmet: list[Text] = Field(default_factory=list)
    floor: Size | None = None
    limits: Text | None = None
    precision: Text | None = None
    precision_reason: Text | None = None
    steps: Count
    usual_steps: Count | None = None
    seconds: Size
    seconds_total: Size
    corner_feature_relative_max: Size | None = None
    corner_distance_mean: Size | None = None
    corners: list[Corner]

    @model_validator(mode="after")
    def _says_what_the_output_was(self) -> Self:
        of_corner, of_pair = OF_OUTPUT[self.output]
        missing = [name for name in of_pair if name not in self]
        missing += [name for each in self.corners for name in of_corner if name not in each]
        if missing:
            raise PydanticCustomError("missing", "has no {name}", {"name": missing[0]})
        return self

    @classmethod
    def of(cls, entries: dict[str, Any]) -> Self:
        """A summary of some entries, which are not checked."""
        corners = [
            each if isinstance(each, Corner) else Corner.model_construct(**each)
            for each in entries.get("corners", ())
        ]
        return cls.model_construct(**entries | {"corners": corners})

    def figures(self) -> dict[str, Any]:
        """All entries except the corners'."""
        return {key: value for key, value in self.entries().items() if key != "corners"}

    @property
    def numbers(self) -> list[int]:
        """Indices of the corners."""
        return [entry.corner for entry in self.corners]
