r"""Everything once on a GPU, as a table for docs/how-to/scale.md.

    python benchmarks/gpu.py                    # eight minutes on one NVIDIA GPU
    python benchmarks/gpu.py --dry              # the same on the CPU, in tiny sizes: does it run?
    python benchmarks/gpu.py --out gpu.md       # keep the table

It runs on a bare machine with torch, torchvision, lightning, torchmetrics, scipy and matplotlib.
What else is missing there is named at the start; bring it as wheels, made where there is a network:

    pip wheel --no-deps -w wheels "hydra-core<1.4" "omegaconf<2.4" antlr4-python3-runtime==4.9.3 \
        platformdirs tabulate pytest pytest-timeout iniconfig pluggy pygments
    python benchmarks/gpu.py --wheels wheels    # installs them for this run alone

(hydra-core needs that release of antlr4, which is no wheel yet. These are pure Python, so one
folder serves every machine. wandb, faiss and mlxtend are not needed: no section uses them.)

Weights are random and images synthetic where no others are needed: what is measured does not depend
on them, and nothing has to be carried. A section that fails is a row with its reason; one for which
no time is left is a row that says so. The exit status is 1 unless every section has its figures.
"""

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
NEEDED = ("torch", "torchvision", "lightning", "torchmetrics", "scipy", "matplotlib", "tqdm",
          "hydra", "omegaconf", "antlr4", "platformdirs", "tabulate", "safetensors", "filelock",
          "yaml", "PIL", "jinja2")  # fmt: skip

Row = tuple[str, str]


def main() -> None:
    """Run the sections one after another, and print and keep the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--dry", action="store_true", help="on the CPU, in tiny sizes")
    parser.add_argument("--wheels", type=Path, help="a folder of wheels to use")
    parser.add_argument("--only", help="sections by name, separated by commas")
    parser.add_argument("--out", type=Path, help="where to keep the table")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with tempfile.TemporaryDirectory() as folder:
        find_packages(arguments.wheels, folder)
        import torch

        if not (arguments.dry or torch.cuda.is_available()):
            sys.exit("error: PyTorch sees no GPU here; --dry runs it on the CPU")
        sys.path.insert(0, str(ROOT / "src"))
        rows, whole = run(arguments, time.monotonic() + 60 * arguments.minutes)
    table = "\n".join(
        ["| what | measured |", "| --- | --- |", *(f"| {a} | {b} |" for a, b in rows)]
    )
    print(f"\n{table}")
    if arguments.out:
        arguments.out.write_text(f"{table}\n")
    sys.exit(0 if whole else 1)


def find_packages(wheels: Path | None, folder: str) -> None:
    """Install wheels for this run, and end with their names if packages are missing."""
    if wheels is not None:
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps",
                   "--target", folder, *map(str, sorted(wheels.glob("*.whl")))]  # fmt: skip
        subprocess.run(command, check=True)
        sys.path.insert(0, folder)
        os.environ["PYTHONPATH"] = os.pathsep.join([folder, os.environ.get("PYTHONPATH", "")])
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        sys.exit(f"error: not installed here: {', '.join(missing)}; see the top of {__file__}")


def run(arguments: argparse.Namespace, deadline: float) -> tuple[list[Row], bool]:
    """The rows of all sections, and whether each has its figures."""
    import warnings

    import torch

    warnings.simplefilter("ignore")  # searches end before they converge
    drill = Drill(torch.device("cpu" if arguments.dry else "cuda"), arguments.dry)
    chosen = arguments.only.split(",") if arguments.only else list(SECTIONS)
    rows, whole = [], True
    for name in chosen:
        started = time.monotonic()
        if started > deadline:
            rows.append((name, f"not started: {arguments.minutes:g} minutes were over"))
            whole = False
            continue
        print(f"{name} ...", flush=True)
        try:
            for row in SECTIONS[name](drill):
                rows.append(row)
                print(f"  {row[0]}: {row[1]}", flush=True)
        except Exception as error:  # whatever it is, the other sections must not be lost
            reason = (str(error).strip().splitlines() or [""])[0][:200]
            rows.append((name, f"**failed**: {type(error).__name__}: {reason}"))
            whole = False
            print(f"  {rows[-1][1]}", flush=True)
        print(f"  {time.monotonic() - started:.1f} s", flush=True)
        if not arguments.dry:
            torch.cuda.empty_cache()
    return rows, whole


class Drill:
    """Where everything runs, whether in tiny sizes, and what the card was found to do.

    Attributes:
        rate: bf16 multiplications and additions a second, in products of large matrices.
        bandwidth: bytes a second, read and written, of a copy.
    """

    def __init__(self, device: Any, dry: bool) -> None:
        self.device, self.dry = device, dry
        self.rate = self.bandwidth = float("nan")

    def pick(self, full: Any, tiny: Any) -> Any:
        """`full`, or in a dry run `tiny`."""
        return tiny if self.dry else full

    def seconds(self, work: Callable[[], Any], rounds: int = 10) -> float:
        """Of one call: the mean of `rounds` after three to warm up."""
        for _ in range(self.pick(3, 1)):
            work()
        self.wait()
        started = time.perf_counter()
        for _ in range(self.pick(rounds, 1)):
            work()
        self.wait()
        return (time.perf_counter() - started) / self.pick(rounds, 1)

    def wait(self) -> None:
        """Until the device has done what it was told."""
        import torch

        if not self.dry:
            torch.cuda.synchronize()

    @property
    def trainer(self) -> dict[str, Any]:
        """Lightning's arguments for the device."""
        return {"accelerator": self.pick("gpu", "cpu"), "devices": 1}


def machine(drill: Drill) -> Iterator[Row]:
    """The card, its matrix rate and its memory's."""
    import torch

    name = drill.pick(torch.cuda.get_device_name, lambda: "the CPU, dry: figures mean nothing")()
    yield "card", f"{name}; torch {torch.__version__}"
    side = drill.pick(8192, 128)
    first, second = torch.randn(2, side, side, device=drill.device, dtype=torch.bfloat16)
    drill.rate = 2 * side**3 / drill.seconds(lambda: first @ second)
    yield f"bf16 product of two {side} x {side} matrices", f"{drill.rate / 1e12:,.3g} TFLOP/s"
    block = torch.empty(drill.pick(2**32, 2**20), dtype=torch.uint8, device=drill.device)
    drill.bandwidth = 2 * len(block) / drill.seconds(block.clone)
    yield "copy, bytes read and written", f"{drill.bandwidth / 1e9:,.3g} GB/s"


def agreement(drill: Drill) -> Iterator[Row]:
    """The same search on the CPU and on the GPU."""
    import torch
    from torch import nn
    from torchvision.models import squeezenet1_1

    from feature_collisions.data.devices import without_tf32
    from feature_collisions.networks.classifiers import MnistMLP
    from feature_collisions.search.find_corners import find_corners
    from feature_collisions.settings.search import LossSettings, StopSettings

    torch.manual_seed(0)
    cifar = nn.Sequential(
        nn.Conv2d(3, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU(), nn.Flatten(),
        nn.Linear(2048, 100), nn.ReLU(), nn.Linear(100, 10),
    )  # fmt: skip
    side = drill.pick(224, 64)
    cases = {
        "MNIST's network, layer 1": (MnistMLP(), "hidden1", (1, 28, 28), 500, LossSettings.paper()),
        "CIFAR-10's cnn_a": (cifar, "5", (3, 32, 32), 200, LossSettings.paper(10.0, 0.1, hull=2)),
        "SqueezeNet 1.1": (
            squeezenet1_1(), "features.12.squeeze", (3, side, side), 50,
            LossSettings.paper(100.0, 10.0, positive_form="half_square", hull=2),
        ),
    }  # fmt: skip
    for name, (model, layer, size, steps, loss) in cases.items():
        steps = drill.pick(steps, 5)
        images = torch.rand(2, *size)
        settings: dict[str, Any] = {"loss": loss, "stop": StopSettings(None, steps, steps)}
        for precision in drill.pick(("64-true", "32-true"), ("32-true",)):
            found = []
            for place in ({"accelerator": "cpu"}, drill.trainer):
                with without_tf32():
                    model.to("cpu" if place["accelerator"] == "cpu" else drill.device)
                    trainer = place | {"precision": precision}
                    hull = find_corners(
                        model, layer, *images, range(5), trainer=trainer, **settings
                    )
                found.append(hull)
            here, there = (hull.corners.cpu() for hull in found)
            classes = [[e["predicted_class"] for e in h.summary["corners"]] for h in found]
            apart = [float(hull.corner_distances().mean()) for hull in found]
            yield (
                f"{name}, random weights, {steps} steps, {precision}: CPU and GPU",
                f"pixels differ by {float((here - there).abs().max()):.2g} at most; corners "
                f"{apart[0]:.6g} and {apart[1]:.6g} apart; classes "
                + ("equal" if classes[0] == classes[1] else "**differ**"),
            )


def tests(drill: Drill) -> Iterator[Row]:
    """The tests marked `gpu`."""
    if importlib.util.find_spec("pytest") is None:
        raise RuntimeError("pytest is not installed here")
    files = (ROOT / "tests").rglob("test_*.py")  # others may need what is not installed
    chosen = [str(file) for file in files if "pytest.mark.gpu" in file.read_text()]
    plain = ("-o", "addopts=", "-W", "default")  # a warning of another release is no failure
    command = [sys.executable, "-m", "pytest", *plain, "--continue-on-collection-errors", "-q",
               "-m", "gpu", *chosen]  # fmt: skip
    places = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": places}, capture_output=True, text=True,
        check=False, timeout=400,
    )  # fmt: skip
    last = (done.stdout.strip() or done.stderr.strip()).splitlines()[-1].strip("= ")
    if done.returncode:
        print(done.stdout[-4000:], done.stderr[-1000:])
        raise RuntimeError(last)
    yield "tests marked gpu", last


def steps(drill: Drill) -> Iterator[Row]:
    """A step of VGG-16 in bf16, 1 to 64 corners, over the bare network's."""
    import torch
    from torchvision.models import squeezenet1_1, vgg16

    from feature_collisions.graph.graph import trace
    from feature_collisions.graph.target_layer import TargetLayer
    from feature_collisions.search.find_corners import Search
    from feature_collisions.settings.search import LogSettings, StopSettings

    with torch.device(drill.device):
        model = drill.pick(vgg16, squeezenet1_1)(num_classes=1000).eval().requires_grad_(False)
    name, layer = drill.pick(("VGG-16", "classifier.0"), ("SqueezeNet 1.1", "features.12.squeeze"))
    side, every = drill.pick(224, 64), drill.pick(25, 2)
    operations = 4 * drill.pick(15.45e9, 0.03e9)  # forward and backward, to the images alone
    for count in drill.pick((1, 4, 16, 64), (1, 2)):
        images = torch.rand(2, 3, side, side, device=drill.device)
        if not drill.dry:
            torch.cuda.reset_peak_memory_stats()
        search = Search(
            model, layer, *images, range(count),
            trainer=drill.trainer | {"precision": "bf16-mixed"},
            stop=StopSettings(None, 3 * every, 3 * every), log=LogSettings(every=every),
        )  # fmt: skip
        module, marks = search.module, []
        step = module.training_step

        def training_step(
            *given: Any, step: Any = step, marks: Any = marks, m: Any = module
        ) -> None:
            step(*given)
            marks.append(m.seconds)

        module.training_step = training_step
        search.run()
        ours = (marks[-1] - marks[0]) / (2 * every)  # the first of them warms up
        memory = 0 if drill.dry else torch.cuda.max_memory_allocated()
        cut = TargetLayer(trace(model, (3, side, side)), layer).bfloat16()
        given = torch.rand(count, 3, side, side, device=drill.device, dtype=torch.bfloat16)
        given.requires_grad_()

        def bare(cut: Any = cut, given: Any = given) -> None:
            torch.autograd.grad(cut(given).sum(), given)

        floor = drill.seconds(bare, every)
        yield (
            f"{name}, bf16, {count} corners: a step",
            f"{1e3 * ours:.3g} ms, {ours / floor:.2f} of a bare forward and backward; "
            f"{operations * count / ours / drill.rate:.0%} of the matrix rate; "
            f"peak memory {memory / 2**30:.3g} GiB",
        )


def composite(drill: Drill) -> Iterator[Row]:
    """Five composites of 625 sources with R(P), forward and backward, beside what they move."""
    import warnings

    import torch

    from feature_collisions.patches.composite import Sources, blend, layers
    from feature_collisions.search.parameterisations import PatchComposite

    torch.manual_seed(0)
    patch, stride, side = 56, drill.pick(7, 56), 224
    starts = torch.arange(0, side - patch + 1, stride) - 4
    top, left = starts.repeat_interleave(len(starts)), starts.repeat(len(starts))
    windows = torch.rand(len(top), 3, 64, 64, device=drill.device)
    sources = Sources(windows, top, left, (side, side))
    corners = drill.pick(5, 2)
    made = PatchComposite(sources, corners).to(drill.device)

    def once() -> None:
        images, variation = made.penalised()
        torch.autograd.grad(images.square().sum() + variation.sum(), made.control)

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        spent = drill.seconds(once, 50)
    # P is read by the blend, R and the gradient; the gradient is written; sources are read twice.
    least = 4 * made.control.nbytes + 2 * windows.nbytes
    kind = "planes" if isinstance(made.layout, torch.Tensor) else "kernel"
    kind = ": ".join([kind, *(str(each.message) for each in said)])  # why there is no kernel
    yield (
        f"{corners} composites of {len(top)} sources with R(P), forward and backward ({kind})",
        f"{1e3 * spent:.3g} ms; {least / spent / drill.bandwidth:.0%} of the copy's rate for the "
        f"{least / 1e6:,.0f} MB that must move",
    )
    places = 10 * torch.arange(36)
    windows = torch.rand(36, 3, 24, 24, device=drill.device)
    few = Sources(windows, places // 60 * 10, places % 60, (70, 70))
    small = PatchComposite(few, 2).to(drill.device)
    with torch.no_grad():
        small.control += torch.randn_like(small.control)
    found = small.penalised()
    planes = layers(few).to(drill.device)
    logits = small.control.detach().double().requires_grad_()
    expected = blend(logits, few.like(logits), planes)
    slope = torch.autograd.grad(found[0].sum() + found[0].square().sum() + found[1].sum(),
                                small.control)[0]  # fmt: skip
    truth = torch.autograd.grad(
        expected[0].sum() + expected[0].square().sum() + expected[1].sum(), logits
    )[0]
    pairs = [(found[0], expected[0]), (found[1], expected[1]), (slope, truth)]
    off = [float((a.double() - b).abs().max() / b.abs().max()) for a, b in pairs]
    yield (
        "the same against float64 planes: images, R, gradient",
        "off by " + ", ".join(f"{each:.1e}" for each in off),
    )


def patches(drill: Drill) -> Iterator[Row]:
    """625 queries, exact, against as many synthetic patches as the paper has."""
    import torch
    import torch.nn.functional as F

    from feature_collisions.patches.database import PatchDatabase
    from feature_collisions.patches.nearest_patches import exact_search

    count, queried = drill.pick((128_066, 625), (24, 9))
    generator = torch.Generator(drill.device).manual_seed(0)
    images = torch.empty(count, 3, 128, 128, dtype=torch.uint8)
    for part in images.split(1024):  # as smooth as photographs: windows differ in few directions
        total = 0.15 * torch.rand(len(part), 3, 128, 128, device=drill.device, generator=generator)
        for cells, weight in ((4, 0.5), (16, 0.25), (64, 0.1)):
            coarse = torch.rand(
                len(part), 3, cells, cells, device=drill.device, generator=generator
            )
            total += weight * F.interpolate(coarse, 128, mode="bilinear")
        part.copy_((255 * total).byte())
    nothing: Any = None
    database = PatchDatabase(images, nothing, torch.arange(count), 32, 6, Path())
    seed = (images[0].float() + images[1].float()) / (2 * 255)
    edge = drill.pick(25, 3)
    windows = seed.unfold(1, 32, 4).unfold(2, 32, 4)[:, :edge, :edge]
    queries = windows.permute(1, 2, 0, 3, 4).flatten(0, 1)[:queried].clone()
    queries[0] = images[count // 2, :, 6:38, 12:44] / 255  # its match is known
    queries = queries.to(drill.device)
    none = torch.zeros(count, dtype=torch.bool)
    drill.wait()
    started = time.perf_counter()
    found = exact_search(database, queries, 1, none, progress=False)
    spent = time.perf_counter() - started
    planted = (int(found.image[0, 0]), int(found.row[0, 0]), int(found.column[0, 0]))
    right = planted == (count // 2, 6, 12)
    few = PatchDatabase(images[:100], nothing, torch.arange(min(count, 100)), 32, 6, Path())
    part = exact_search(few, queries, 1, none[:100], progress=False)
    cut = images[:100].unfold(2, 32, 6).unfold(3, 32, 6).permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
    all_windows = (cut.flatten(1).double() / 255).to(drill.device)
    distances = torch.cdist(queries.flatten(1).double(), all_windows).amin(1).cpu()
    off = float((part.distance[:, 0] - distances).abs().max())
    yield (
        f"{queried} queries, exact, in {len(database):,} synthetic patches",
        f"{spent:.3g} s; a planted patch is {'found' if right else '**not found**'}; nearest "
        f"distances in 100 images off by {off:.1e} from float64's",
    )


def hull_of_squeezenet(drill: Drill) -> Any:
    """A hull of random corners: neither its samples' cost nor its edges' depends on them."""
    import torch
    from torchvision.models import squeezenet1_1

    from feature_collisions.hull.hull import Hull

    torch.manual_seed(0)
    side = drill.pick(224, 64)
    model = squeezenet1_1().eval().requires_grad_(False).to(drill.device)
    model.to(memory_format=torch.channels_last)
    corners = (0.5 + 0.05 * torch.randn(5, 3, side, side)).clamp(0, 1)
    corners = corners.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        logits = model(corners[:1].to(drill.device))[0]
    summary = {
        "target_class": int(logits.argmax()), "distance_scale": 255,
        "target_probability": float(logits.softmax(0).max()),
        "corners": [{"corner": k} for k in range(5)],
    }  # fmt: skip
    layer, units = "features.12.squeeze", torch.arange(5)
    return Hull(model, layer, corners, corners[0], corners[1], units, summary)


def samples(drill: Drill) -> Iterator[Row]:
    """2000 points of a hull beside a bare batched forward."""
    import torch

    hull, count = hull_of_squeezenet(drill), drill.pick(2000, 40)
    images = hull.points(torch.full((hull.evaluator.batch_size, 5), 0.2))

    @torch.inference_mode()
    def bare() -> None:
        for _ in range(max(1, count // len(images))):
            hull.model(images)

    floor = drill.seconds(bare, 3) / (max(1, count // len(images)) * len(images))
    spent = drill.seconds(lambda: hull.sample(count), 3) / count
    yield (
        f"{count} points of a SqueezeNet hull, float32, {len(images)} at once",
        f"{1 / spent:,.0f} points/s, {floor / spent:.2f} of a bare forward's {1 / floor:,.0f}",
    )
    started = time.perf_counter()
    worst = hull.worst_case(*drill.pick((32, 50), (1, 3)))
    yield "its worst case", f"{time.perf_counter() - started:.3g} s ({worst.probability:.3g})"


def edges(drill: Drill) -> Iterator[Row]:
    """Its ten edges, walked for a while."""
    from feature_collisions.proofs.edges import prove_edges
    from feature_collisions.settings.evaluate import EdgeSettings

    hull, seconds = hull_of_squeezenet(drill), drill.pick(60.0, 1.0)
    for precision in drill.pick((64, 32), (64,)):
        settings = EdgeSettings(
            None, seconds / drill.pick(2, 1), precision, memory=drill.pick(8, 0.05), resume=False
        )
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            found = prove_edges(hull.problem, settings, Path(folder))
        spent = time.perf_counter() - started
        if "reason" in found:
            raise RuntimeError(found["reason"])
        pieces = sum(edge["pieces"] for edge in found["edges"])
        walked = sum(edge["walked"] for edge in found["edges"]) / len(found["edges"])
        yield (
            f"ten SqueezeNet edges, float{precision}, walked for {spent:.0f} s",
            f"{pieces:,} pieces, {pieces / spent:,.0f} a second; {walked:.3%} of the edges",
        )


SECTIONS: dict[str, Callable[[Drill], Iterator[Row]]] = {
    "machine": machine, "agreement": agreement, "tests": tests, "steps": steps,
    "composite": composite, "patches": patches, "samples": samples, "edges": edges,
}  # fmt: skip


if __name__ == "__main__":
    main()
