"""One edge of a hull, walked and bounded: `python benchmarks/edge.py run=DIR --seconds 60`.

The share of the edge between the first two corners that each proves in so many seconds of processor
time to be the target's class: the walk as it is, between points and bend by bend, and bend by bend
alone, in float64 and in float32; and bounds over pieces that are halved until they decide, where
the network is one that they take.
"""

import argparse
import time

import torch

from feature_collisions.evaluation.hull_of_run import hull_of
from feature_collisions.graph.operations import NotPiecewiseLinear
from feature_collisions.hull.hull import Hull
from feature_collisions.proofs.edges import Edge, Walker
from feature_collisions.proofs.splitting import Splitting
from feature_collisions.proofs.whole_hull import ClassJudge
from feature_collisions.runs.run import load_run
from feature_collisions.settings.evaluate import EdgeSettings, EvaluateSettings


def walked(
    hull: Hull, seconds: float, start: float, precision: int, bounds: bool
) -> tuple[float, int]:
    """The share of the edge that a walk proves, with bounds or without, and its pieces."""
    walker, edge = Walker(hull.problem, EdgeSettings(precision=precision)), Edge((0, 1), start)
    walker.width, walker.is_unbounded = 2.0**-12, not bounds
    started = time.process_time()
    while edge.walked < 1 and time.process_time() < started + seconds:
        walker.advance(edge, (0, 1), 1.0)
    return edge.held - start, edge.pieces


def bounded(hull: Hull, seconds: float) -> tuple[float, int]:
    """The share of the edge that bounds prove, and the pieces judged."""
    judge = ClassJudge(hull.problem)
    judge.prepare()
    known = Splitting.of(torch.eye(len(hull.corners))[:2], 2)
    known.run(judge, seconds, None, "Edge")
    return known.share, known.count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", help="a run directory, as run=DIR")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--start", type=float, default=0.0, help="place where walks begin")
    given = parser.parse_args()
    hull, _ = hull_of(load_run(given.run.removeprefix("run=")), EvaluateSettings())
    where = given.seconds, given.start
    ways = {
        "walked, float64": lambda: walked(hull, *where, 64, bounds=True),
        "walked, float32": lambda: walked(hull, *where, 32, bounds=True),
        "bend by bend, float64": lambda: walked(hull, *where, 64, bounds=False),
        "bend by bend, float32": lambda: walked(hull, *where, 32, bounds=False),
        "bounds": lambda: bounded(hull, given.seconds),
    }
    with torch.no_grad():
        for name, way in ways.items():
            started = time.process_time()
            try:
                share, pieces = way()
            except NotPiecewiseLinear as error:
                print(f"{name}: {error}")
                continue
            took = time.process_time() - started
            pace = 100 * share / took * 60
            print(f"{name}: {pace:.4f} % of the edge a minute; {pieces} pieces in {took:.0f} s")


if __name__ == "__main__":
    main()
