"""The triangles of a hull: parts that are proved, refuted or undecided."""

import itertools

import torch
from torch import Tensor

from ..data.devices import without_cudnn
from ..graph.operations import NotPiecewiseLinear
from ..graph.target import logits_of
from ..runs.evaluation import Faces, Part, Triangle
from ..settings.rules import at_least
from .problem import Problem
from .splitting import Splitting
from .whole_hull import ClassJudge

_PIECES = 300  # per triangle: as many as a picture shows
_CORNERS = 10  # of a hull: 120 triangles; there are 2,024 with 24


@torch.no_grad()
@without_cudnn()
def prove_faces(problem: Problem, seconds: float = 5.0) -> Faces:
    """Prove the class on every triangle of three corners, by bounds over subdomains.

    Args:
        problem: at least three corners, and their target.
        seconds: time for all triangles together.

    Returns:
        `share_proved` of all triangles' area, and `triangles`: each one's `corners` (their
        numbers), `share_proved`, and the `parts` it is cut into. A part is its `state` and its
        three `vertices`, each by the weights of the triangle's second and third corner. States:
        `proved`, `refuted` (the model gives the part's middle another class) or `undecided`. Or the
        `reason` why the network cannot be bounded.

    Raises:
        SettingError: if the time is negative or not a number.
    """
    at_least("seconds", seconds, 0)
    judge = ClassJudge(problem)
    numbers = problem.names
    triangles = list(itertools.combinations(range(len(numbers)), 3))
    if not triangles:
        return Faces(reason="needs three corners")
    if len(numbers) > _CORNERS:
        many = f"{len(triangles):,} triangles of {len(numbers)} corners"
        return Faces(reason=f"{many} are too many to tell apart; {_CORNERS} corners are tried")
    found = list[Triangle]()
    try:
        judge.prepare()
        for three in triangles:
            known = Splitting.of(torch.eye(len(numbers))[list(three)], 2)
            known.keeps = True
            name = "Triangle " + ", ".join(str(numbers[k]) for k in three)
            known.run(judge, seconds / len(triangles), None, name, limit=_PIECES)
            parts, corners = _parts(problem, known, three), [numbers[k] for k in three]
            found.append(Triangle(corners=corners, share_proved=known.share, parts=parts))
    except NotPiecewiseLinear as error:
        return Faces(reason=str(error))
    shares = [triangle.share_proved for triangle in found]
    return Faces(share_proved=sum(shares) / len(shares), triangles=found)


def _parts(problem: Problem, known: Splitting, three: tuple[int, ...]) -> list[Part]:
    """The pieces of a triangle and what is known of each."""
    other = (
        logits_of(problem.graph.model, problem.points(known.open.weights.mean(1))).argmax(1)
        != problem.target_class
    )
    states = ["refuted" if bad else "undecided" for bad in other.tolist()]
    done = torch.cat([*known.done, known.open.weights[:0]])
    return [
        Part(state=state, vertices=_flat(piece, three))
        for state, piece in [
            *(("proved", piece) for piece in done),
            *zip(states, known.open.weights, strict=True),
        ]
    ]


def _flat(piece: Tensor, three: tuple[int, ...]) -> list[list[float]]:
    return [[round(float(w), 6) for w in vertex] for vertex in piece[:, list(three[1:])]]
