"""Certificates of proofs: what is written, what the check makes of it, and what it refuses."""

import struct
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from feature_collisions import SettingError
from feature_collisions.checking.certificate import (
    Kind,
    Statement,
    claimed,
    read_certificate,
    write_certificate,
)
from feature_collisions.checking.check import check
from feature_collisions.data.files import load_tensors, save_tensors
from feature_collisions.evaluation.evaluate import EVALUATION, evaluate
from feature_collisions.hull.hull import Hull
from feature_collisions.proofs.collision import prove_collision
from feature_collisions.proofs.problem import Cover
from feature_collisions.proofs.whole_hull import prove_class
from feature_collisions.runs.evaluation import Evaluation
from feature_collisions.runs.records import read_record
from feature_collisions.settings.evaluate import (
    EdgeSettings,
    EvaluateSettings,
    PlainSettings,
    ProofSettings,
    WorstCaseSettings,
)
from feature_collisions.simplex import dirichlet
from helpers.clocks import count_pieces
from helpers.hulls import collided, deep, hull_of, valley

PROVERS = {"class": prove_class, "collision": prove_collision}


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    count_pieces(monkeypatch)


def wide() -> Hull:
    """Corners far apart of a network whose least margin is small: it takes many subdomains."""
    torch.manual_seed(2)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 3)
    )
    corners = 6 * torch.randn(4, 1, 6, 6)
    weights = dirichlet(2000, 4, torch.Generator().manual_seed(0)).float()
    with torch.no_grad():
        logits = model(torch.cat([corners, torch.tensordot(weights, corners, 1)]))
        model[5].bias[0] += 0.01 - (logits[:, 0] - logits[:, 1:].amax(1)).min()
    return hull_of(model, corners)


def proved(hull: Hull, kind: Kind, directory, seconds: float = 2.0) -> Statement:
    statement = Statement(hull.problem, kind)
    keep = partial(write_certificate, directory, statement)
    PROVERS[kind](hull.problem, seconds, keep=keep)
    return statement


@pytest.mark.parametrize("kind", ["class", "collision"])
def test_a_proof_of_a_convolutional_network_is_checked(kind, tmp_path):
    hull = collided()
    hull.summary["hull_relative"] = 0.9
    statement = proved(hull, kind, tmp_path)
    found = check(tmp_path, statement)
    assert found["share_proved"] == found["scale_proved"] == 1
    assert "reason" not in found


def test_every_subdomain_is_in_the_certificate(tmp_path):
    """Of a hull that takes many, and the same from a cache of an earlier, unfinished proof."""
    hull = wide()
    statement = proved(hull, "class", tmp_path)
    (whole,) = read_certificate(tmp_path / statement.file, statement)
    assert len(whole.leaves()) > 8
    assert claimed([whole]) == (1, 1)
    assert check(tmp_path, statement)["share_proved"] == 1
    resumed, cache = tmp_path / "resumed", tmp_path / "cache"
    keep = partial(write_certificate, resumed, statement)
    first = prove_class(hull.problem, 0.02, cache, keep=keep)
    assert 0 < first["share_proved"] < 1
    said = claimed(read_certificate(resumed / statement.file, statement))
    assert said == pytest.approx((first["scale_proved"], first["share_proved"]), abs=1e-6)
    prove_class(hull.problem, 2.0, cache, keep=keep)
    assert claimed(read_certificate(resumed / statement.file, statement)) == (1, 1)


def test_part_of_a_proof_is_checked_at_its_size(tmp_path):
    hull = wide()
    statement = Statement(hull.problem, "class")
    found = prove_class(hull.problem, 0.02, keep=partial(write_certificate, tmp_path, statement))
    checked = check(tmp_path, statement)
    assert checked["share_proved"] == pytest.approx(found["share_proved"])
    assert checked["scale_proved"] == pytest.approx(found["scale_proved"], abs=1e-6)


@pytest.mark.parametrize("kind", ["class", "collision"])
def test_the_size_that_rests_on_a_shrunk_hull_is_confirmed(kind, tmp_path):
    """And also where a later proof begins with what an earlier one kept."""
    hull = deep(0)
    hull.summary["hull_relative"] = 0.3
    statement = Statement(hull.problem, kind)
    keep = partial(write_certificate, tmp_path, statement)
    for _ in range(2):
        found = PROVERS[kind](hull.problem, 0.02, tmp_path / "cache", keep=keep)
        hull_alone, _ = read_certificate(tmp_path / statement.file, statement)
        assert found["scale_proved"] > 2 * claimed([hull_alone]).scale
        checked = check(tmp_path, statement)
        assert checked["scale_proved"] == pytest.approx(found["scale_proved"], abs=1e-6)
        assert checked["share_proved"] >= found["scale_proved"] ** 4 > 0
        assert "reason" not in checked
        (tmp_path / statement.file).unlink()


def test_what_was_proved_here_is_not_blocked_by_a_larger_claim(tmp_path):
    """A stranger's certificate of a whole hull with a hole: it is put aside, and refused."""
    hull = valley()
    statement = whole_of(hull, tmp_path)
    keep = partial(write_certificate, tmp_path, statement)
    found = prove_class(hull.problem, 0.02, keep=keep)
    assert 0 < found["share_proved"] < 1
    with pytest.warns(UserWarning, match="claims too much"):
        checked = check(tmp_path, statement)
    assert checked["share_proved"] == pytest.approx(found["share_proved"])
    assert "reason" not in checked


def test_a_certificate_that_shows_more_is_not_lost(tmp_path):
    hull = wide()
    statement = proved(hull, "class", tmp_path)
    aside = tmp_path / statement.aside
    before = (tmp_path / statement.file).read_bytes()
    for seconds in (0.02, 0.01):
        proved(hull, "class", tmp_path, seconds)
        assert aside.read_bytes() == before
    assert check(tmp_path, statement)["share_proved"] == 1
    aside.unlink()
    assert check(tmp_path, statement)["share_proved"] < 1
    other = wide()
    other.corners.mul_(0.9)
    proved(other, "class", tmp_path, 0.02)  # of another hull: nothing is put aside
    assert not aside.exists()


def whole_of(hull: Hull, directory, kind: Kind = "class") -> Statement:
    """A certificate that claims all of a hull at once."""
    statement, corners = Statement(hull.problem, kind), len(hull.corners)
    every = torch.eye(corners, dtype=torch.float64)[None]
    write_certificate(directory, statement, [Cover(0 * every[0, 0], every, torch.tensor([True]))])
    return statement


def test_a_hull_with_a_point_of_another_class_is_refused(tmp_path):
    """Its corners are of one class; a strip a hundredth wide between them is not."""
    statement = whole_of(valley(), tmp_path)
    with pytest.raises(SettingError, match="claims too much: the class is another at the mix"):
        check(tmp_path, statement)


def test_a_hull_whose_features_are_too_far_is_refused(tmp_path):
    hull = collided()
    hull.summary["hull_relative"] = 1e-3
    statement = whole_of(hull, tmp_path, "collision")
    with pytest.raises(SettingError, match="the features are beyond the limit"):
        check(tmp_path, statement)


def test_the_checker_cuts_further_where_its_bounds_are_too_loose(tmp_path):
    statement = whole_of(wide(), tmp_path)
    found = check(tmp_path, statement)
    assert 0.99 < found["share_proved"] < 1
    assert 0.8 < found["scale_proved"] < 1
    assert found["subdomains"] == 1 < found["bounds"]
    assert found["reason"].startswith("the checker's bounds do not verify 0.02")


def changed(tree: Tensor, row: int, node: list[int]) -> Tensor:
    found = tree.clone()
    found[row] = torch.tensor(node, dtype=found.dtype)
    return found


def first_leaf(tree: Tensor) -> int:
    return int((tree[:, 0] == -1).nonzero()[0])


DAMAGED = {
    "a subdomain is missing": (lambda t: {"tree": t["tree"][:-1]}, "ends before its last leaf"),
    "a subdomain too many": (
        lambda t: {"tree": torch.cat([t["tree"], t["tree"][-1:]])}, "behind its last leaf",
    ),
    "a leaf is no leaf": (
        lambda t: {"tree": changed(t["tree"], first_leaf(t["tree"]), [-1, 2])}, "no edge",
    ),
    "a vertex that is none": (lambda t: {"tree": changed(t["tree"], 0, [0, 4])}, "no edge"),
    "an edge that is a vertex": (lambda t: {"tree": changed(t["tree"], 0, [1, 1])}, "no edge"),
    "cut without end": (
        lambda t: {"tree": torch.tensor([[0, 1]] * 60 + [[-1, 1]] * 61, dtype=torch.int16)},
        "more often than 50 times",
    ),
    "no tree": (lambda t: {"tree": t["tree"][:0]}, r"tree is torch.int16 \(0, 2\)"),
    "floating": (lambda t: {"tree": t["tree"].float() * float("nan")}, "tree is torch.float32"),
    "flat": (lambda t: {"tree": t["tree"].flatten()}, r"tree is torch.int16 \(\d+,\)"),
    "deep": (lambda t: {"tree": t["tree"][None]}, r"tree is torch.int16 \(1, "),
    "without axes": (lambda t: {"tree": t["tree"][0, 0]}, r"tree is torch.int16 \(\)"),
    "a part with nothing in it": (
        lambda t: {"inner": t["tree"].clone(), "least": torch.full((4,), 2**48)}, "of no part",
    ),
    "a part beyond the hull": (
        lambda t: {"inner": t["tree"].clone(), "least": torch.tensor([-1, 0, 0, 0])}, "of no part",
    ),
    "a part of another hull": (
        lambda t: {"inner": t["tree"].clone(), "least": torch.zeros(3).long()}, "of no part",
    ),
    "a part without its tree": (lambda t: {"least": torch.zeros(4).long()}, "tree is torch.int64"),
    "another class": (lambda t: {"statement": t["statement"] + 1}, "another statement"),
    "no class": (lambda t: {"statement": t["statement"] * float("nan")}, "another statement"),
    "another network": (lambda t: {"network": t["network"].flip(0)}, "another network"),
    "other corners": (lambda t: {"corners": t["corners"].flip(0)}, "another corners"),
    "another dtype": (lambda t: {"corners": t["corners"].float()}, "another corners"),
    "one more tensor": (lambda t: {"more": t["tree"].clone()}, "no certificate of this statement"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_what_was_tampered_with_is_refused(name, tmp_path):
    statement = proved(wide(), "class", tmp_path)
    path, (change, message) = tmp_path / statement.file, DAMAGED[name]
    tensors = load_tensors(path)
    save_tensors(path, tensors | change(tensors))
    with pytest.raises(SettingError, match=message) as error:
        check(tmp_path, statement)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", struct.pack("<Q", 2**62) + b"{}", struct.pack("<Q", 2) + b"{}", b"\0" * 4096],
)
def test_what_is_no_certificate_is_refused(content, tmp_path):
    statement = Statement(wide().problem, "class")
    (tmp_path / statement.file).write_bytes(content)
    with pytest.raises(SettingError, match=statement.file):
        check(tmp_path, statement)


def test_a_truncated_certificate_is_refused(tmp_path):
    statement = proved(wide(), "class", tmp_path)
    path = tmp_path / statement.file
    whole = path.read_bytes()
    for size in range(0, len(whole), 97):
        path.write_bytes(whole[:size])
        with pytest.raises(SettingError):
            check(tmp_path, statement)


def test_another_hull_network_or_limit_is_named(tmp_path):
    hull = collided()
    hull.summary["hull_relative"] = 0.9
    proved(hull, "collision", tmp_path)
    for name, other in {
        "corners": collided(),
        "network": collided(),
        "statement": collided(),
    }.items():
        other.summary["hull_relative"] = 0.8 if name == "statement" else 0.9
        other.corners[0].mul_(0.5 if name == "corners" else 1.0)
        with torch.no_grad():
            other.model[3].bias.add_(float(name == "network"))
        with pytest.raises(SettingError, match=f"another {name}"):
            check(tmp_path, Statement(other.problem, "collision"))


def test_every_other_tree_claims_less_or_is_refused(tmp_path):
    """Whatever a tree says, it covers the hull: the check never shows more than there is."""
    hull = valley()
    statement = whole_of(hull, tmp_path)
    path, generator = tmp_path / statement.file, torch.Generator().manual_seed(0)
    tensors = load_tensors(path)
    refused = 0
    for _ in range(40):
        tree = torch.randint(-1, 3, (15, 2), generator=generator, dtype=torch.int16)
        save_tensors(path, tensors | {"tree": tree})
        try:
            assert check(tmp_path, statement)["share_proved"] < 1
        except SettingError:
            refused += 1
    assert refused > 20


def test_what_has_no_bound_is_named(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 3))
    statement = whole_of(hull_of(model, torch.rand(3, 1, 2, 2), layer="1", push="apart"), tmp_path)
    found = check(tmp_path, statement)
    assert found["reason"] == "gelu (gelu) has no independent bound yet"
    assert found["share_proved"] == 0


def test_no_certificate_is_said(tmp_path):
    found = check(tmp_path, Statement(wide().problem, "class"))
    assert found["reason"] == "there is no certificate: nothing was proved by subdomains"


def test_evaluate_checks_the_certificates(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    hull = collided()
    hull.summary["hull_relative"] = 0.9
    settings = EvaluateSettings(
        samples=40, worst_case=WorstCaseSettings(2, 3), plain=PlainSettings(0),
        edges=EdgeSettings(seconds=0.0), proof=ProofSettings(2.0, check=True, depth=False),
    )  # fmt: skip
    result = evaluate(hull, lambda: {1: 2.0}, settings, tmp_path)
    assert result == read_record(Evaluation, tmp_path / EVALUATION)
    for proof in (result.proof.class_, result.proof.collision):
        assert proof
        assert proof.checked
        assert proof.checked.share_proved == 1
    (tmp_path / "proof_class.safetensors").write_bytes(b"damaged")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))  # else it is written again
    settings.proof.seconds = 0.0
    failed = evaluate(hull, lambda: {1: 2.0}, settings, tmp_path).failed
    assert failed.keys() == {"class_check"}
    assert "proof_class.safetensors" in failed["class_check"]
