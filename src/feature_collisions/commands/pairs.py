"""Many pairs of images, one run directory each, with their outcomes and reasons."""

import errno
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from torch import nn

from ..data.files import write_json, write_text
from ..data.image_set import ImageSet
from ..errors import SettingError
from ..evaluation.evaluate import Subject, measured, reason_of
from ..hull.hull import Hull
from ..hull.statistics import OUTCOMES
from ..report.runs import pairs_table
from ..report.tables import as_markdown
from ..runs.directories import CHECKPOINT, CORNERS
from ..runs.records import read_record
from ..runs.rows import FAILED, Row, row_of
from ..runs.run import load_run
from ..settings.evaluate import EvaluateSettings
from .csv_files import csv_lines, shown
from .deciding import Deciding, differences_to
from .random_pairs import Pair, random_pairs
from .start import on_command_line

OUTCOME = "outcome.json"
_RULE = (
    "give a CSV file with lines of initial,target, random:N, random:N:0 for images that the "
    "classifier is right about, or random:N:P for targets that it gives a probability above P"
)


def parse_pairs(
    setting: str,
    images: ImageSet,
    seed: int,
    models: Sequence[nn.Module],
    output: str = "classes",
) -> list[Pair]:
    """Read `pairs`: a CSV file, or `random:N`, N pairs of images of two classes.

    Args:
        setting: `random:N:0` draws images that the classifiers get right, as does `random:N` for
            several classifiers; `random:N:P` draws targets with a probability above P.
        images: the images to choose from.
        seed: of the choice.
        models: the classifiers that get these pairs.
        output: `features` for encoders, which have no classes.

    Raises:
        SettingError: if the file has no pairs, or a line does not name two images; with its number.
    """
    wrong = partial(SettingError, "pairs", setting)
    if setting.split(":")[0] == "random":
        form = re.fullmatch(r"random:(\d{1,9})(?::(0|0?\.\d+))?", setting)
        if not form or int(form[1]) < 1:
            raise wrong("N must be a whole number of at least 1, and P in [0, 1)", _RULE)
        if form[2] and output == "features":
            raise wrong("needs classes, but the output is features", f"give random:{form[1]}")
        right = form[2] == "0" or (len(models) > 1 and output == "classes")
        least = float(form[2] or 0)
        return random_pairs(setting, int(form[1]), images, seed, models, right, least)
    pairs = []
    for number, line in read_pairs_file(setting):
        if len(line) != 2 or not all(line):
            raise wrong(f"line {number} is {shown(line)}", "it must be initial,target")
        try:
            for name, choice in zip(Pair._fields, line, strict=True):
                images.find(name, choice)
        except SettingError as error:
            raise wrong(f"line {number}: {error}") from None
        except OSError as error:  # for example a name that is too long
            raise wrong(f"line {number}, {shown(line)}: {error.strerror}") from None
        pairs.append(Pair(*line))
    if not pairs:
        raise wrong("it contains no pair", _RULE)
    return pairs


def read_pairs_file(path: str) -> list[tuple[int, list[str]]]:
    """The fields of each line of a CSV file of pairs, with the line's number.

    A header initial,target and empty columns after the second are skipped.

    Raises:
        SettingError: as for `csv_lines`.
    """
    lines = csv_lines("pairs", path, _RULE)
    for _, fields in lines:
        while len(fields) > 2 and not fields[-1]:
            fields.pop()
    named = bool(lines) and [name.lower() for name in lines[0][1]] == ["initial", "target"]
    return lines[1:] if named else lines


def check_earlier(
    pairs: Sequence[Pair], directory: Path, decisive: Callable[[Pair], Deciding]
) -> None:
    """Check the results of an earlier start in `directory`.

    Args:
        pairs: the pairs.
        directory: of `run_pairs`.
        decisive: the settings that determine a pair's hull.

    Raises:
        SettingError: if a pair was searched there with other settings. Nothing is overwritten, and
            a table never mixes settings.
    """
    for number, pair in enumerate(pairs):
        place = _place(directory, number, pair)
        if not any((place / name).exists() for name in (OUTCOME, CORNERS, CHECKPOINT)):
            continue
        if differing := differences_to(place, decisive(pair)):
            raise SettingError(
                "hydra.run.dir",
                directory,
                f"{place.name} was searched with other settings ({'; '.join(differing)})",
                "use those settings, or choose another directory",
            )


def run_pairs(
    pairs: Sequence[Pair],
    directory: Path,
    search: Callable[[Pair, Path], Hull],
    samples: int = 2000,
) -> list[Row]:
    """Search all pairs one after another; an error is the pair's outcome, and the next follows.

    Pairs that were finished in `directory` are not searched again; `check_earlier` says whether
    they may be there.

    Args:
        pairs: the pairs.
        directory: where `000_initial_to_target/`, one per pair, and the summary go.
        search: finds and writes a pair's hull, and what decides it.
        samples: interpolations per pair.

    Returns:
        One row per pair, as `pairs.json` has them.

    Raises:
        OSError: when the disk is full.
    """
    directories = [_place(directory, number, pair) for number, pair in enumerate(pairs)]
    known = [_known(place) for place in directories]
    if count := sum(row is not None for row in known):
        print(f"{directory}: {count} of {len(pairs)} pairs are already there, with these settings",
              flush=True)  # fmt: skip
    rows: list[Row] = []
    for number, (pair, place) in enumerate(zip(pairs, directories, strict=True)):
        row, earlier = known[number], " (found earlier)"
        if row is None:
            row, earlier = _searched(pair, place, search, samples), ""
        rows.append(row | {"run": place.name, **pair._asdict()})
        print(f"pair {number}: {pair.initial} to {pair.target}: {row.verdict}{earlier}", flush=True)
        write_json(directory / "pairs.json", [each.entries() for each in rows])
        table = pairs_table(rows)
        write_text(directory / "pairs.md", f"# {table.heading}\n\n{as_markdown(table)}\n")
    return rows


def _place(directory: Path, number: int, pair: Pair) -> Path:
    return directory / f"{number:03d}_{_slug(pair.initial)}_to_{_slug(pair.target)}"


def _slug(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name)[-60:]


def _known(place: Path) -> Row | None:
    """The outcome stored in `place`; None if it is incomplete and must be searched again."""
    try:
        load_run(place)
        row = read_record(Row, place / OUTCOME)
    except SettingError:
        return None
    return row if row.samples and row.outcome in OUTCOMES else None


def _searched(pair: Pair, place: Path, search: Callable[[Pair, Path], Hull], samples: int) -> Row:
    try:
        row = row_of_sample(search(pair, place), samples)
        write_json(place / OUTCOME, row.entries())
    except Exception as error:  # of any kind; the other pairs continue
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        return Row(outcome=FAILED, reasons=[on_command_line(reason_of(error))])
    return row


def row_of_sample(hull: Hull, samples: int) -> Row:
    """A hull's row, by `samples` uniform interpolations and a search for the worst features.

    Raises:
        CollisionError: when the classifier's answers are not finite.
    """
    subject = Subject(hull, EvaluateSettings(samples=samples))
    asked = ("dirichlet", "worst_features", "outcome", "distances")
    return row_of(hull.summary, measured(subject, asked))
