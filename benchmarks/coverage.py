"""Which networks `layer=auto` takes: torchvision's, timm's and Hugging Face's, with random weights.

    python benchmarks/coverage.py torchvision|timm|transformers [FILE.jsonl]
    python benchmarks/coverage.py table FILE.jsonl...

Of torchvision all classifiers; of each family (module) of timm the two smallest architectures; of
Hugging Face tiny configurations of 37 architectures. Each is one line of FILE: the layer, its
activation, seconds to trace the network and choose, and the first corner's L_pos after a search of
three steps where the network is small; or why not. Networks that FILE already has are passed over,
so a run that was ended goes on. One process, one thread (`OMP_NUM_THREADS=1`).
"""

import gc
import json
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn

from feature_collisions import LossSettings, StopSettings, find_corners
from feature_collisions.graph.flow import following, last_layer
from feature_collisions.graph.graph import trace
from feature_collisions.networks.torchvision_models import Classifier
from feature_collisions.networks.transformers_models import FromTransformers, Pixels

SMALL = 12_000_000  # weights of a network that is searched, too
SIDE = 256  # and the side of its images, at most
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
Network = tuple[str, str, tuple[int, int, int], Callable[[], nn.Module]]


def of_torchvision() -> Iterator[Network]:
    from torchvision import models

    for name in models.list_models(module=models):
        side = models.get_model_weights(name)["DEFAULT"].transforms().crop_size[0]
        special = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        if name.startswith("vit_"):
            special = {"image_size": side}
        yield name, name, (3, side, side), lambda n=name, s=special: models.get_model(n, **s)


def of_timm() -> Iterator[Network]:
    import timm

    for family in timm.list_modules():
        sizes = {}
        for name in timm.list_models(module=family):
            with torch.device("meta"):
                try:
                    network = timm.create_model(name)
                except Exception:  # some cannot be made without values
                    continue
            sizes[name] = sum(parameter.numel() for parameter in network.parameters())
        for name in sorted(sizes, key=lambda name: (sizes[name], name))[:2]:
            size = tuple(timm.get_pretrained_cfg(name).input_size)
            yield name, family, size, lambda n=name: timm.create_model(n)


VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
       "intermediate_size": 64, "image_size": 64, "patch_size": 16}  # fmt: skip
STAGES = {"hidden_sizes": [16, 16, 32, 32], "depths": [1, 1, 1, 1]}
WINDOWS = {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 4, 8], "image_size": 64,
           "patch_size": 2, "window_size": 4}  # fmt: skip
PYRAMID = {"hidden_sizes": [16, 32, 32, 32], "depths": [1, 1, 1, 1], "image_size": 64,
           "num_attention_heads": [1, 2, 2, 2]}  # fmt: skip
TINY = {
    "beit": VIT, "data2vec-vision": VIT, "deit": VIT, "dinov2": VIT, "ijepa": VIT, "vit": VIT,
    "dinov2_with_registers": VIT, "vit_msn": VIT, "clip": {"vision_config": VIT},
    "metaclip_2": {"vision_config": VIT}, "siglip": {"vision_config": VIT},
    "bit": STAGES | {"embedding_size": 16, "num_groups": 8},
    "resnet": STAGES | {"embedding_size": 16},
    "regnet": STAGES | {"embedding_size": 16, "groups_width": 16},
    "convnext": STAGES, "convnextv2": STAGES,
    "cvt": {"embed_dim": [16, 32, 32], "num_heads": [1, 2, 2], "depth": [1, 2, 3]},
    "swin": WINDOWS, "swinv2": WINDOWS, "donut-swin": WINDOWS,
    "efficientnet": {"width_coefficient": 0.25, "depth_coefficient": 0.25, "image_size": 64,
                     "hidden_dim": 320},
    "focalnet": {"embed_dim": 16, "depths": [1, 1, 1, 1], "image_size": 64,
                 "hidden_sizes": [16, 32, 64, 128]},
    "hgnet_v2": {},
    "hiera": {"embed_dim": 16, "image_size": [64, 64], "depths": [1, 1, 1, 1],
              "num_heads": [1, 1, 2, 2]},
    "levit": {"hidden_sizes": [16, 32, 32], "num_attention_heads": [1, 2, 2], "depths": [1, 1, 1],
              "key_dim": [8, 8, 8], "image_size": 64},
    "mobilenet_v1": {"depth_multiplier": 0.25, "image_size": 64},
    "mobilenet_v2": {"depth_multiplier": 0.25, "image_size": 64},
    "mobilevit": {"hidden_sizes": [16, 16, 16], "image_size": 64},
    "mobilevitv2": {"width_multiplier": 0.25, "image_size": 64},
    "perceiver": {"num_latents": 8, "d_latents": 32, "num_blocks": 1,
                  "num_self_attends_per_block": 1, "num_self_attention_heads": 2,
                  "num_cross_attention_heads": 1},
    "poolformer": STAGES, "pp_lcnet": {"scale": 0.25},
    "pvt": PYRAMID | {"sequence_reduction_ratios": [8, 4, 2, 1]},
    "pvt_v2": PYRAMID,
    "segformer": PYRAMID, "swiftformer": {"embed_dims": [16, 16, 32, 32], "depths": [1, 1, 1, 1]},
    "textnet": {},
}  # fmt: skip
SIDES = {"cvt": 64, "perceiver": 56, "swiftformer": 64}


def of_transformers() -> Iterator[Network]:
    from transformers import AutoConfig, AutoModelForImageClassification
    from transformers.models.auto import modeling_auto

    classes = modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

    def made(kind: str, values: dict) -> nn.Module:
        config = AutoConfig.for_model(kind, num_labels=10, **values)
        name = classes[kind]
        config.architectures = [name if isinstance(name, str) else name[0]]
        return AutoModelForImageClassification.from_config(config)

    for kind, values in TINY.items():
        side = SIDES.get(kind, 64)
        yield kind, kind, (3, side, side), lambda k=kind, v=values: made(k, v)


SETS = {"torchvision": of_torchvision, "timm": of_timm, "transformers": of_transformers}


def measured(library: str, size: tuple[int, int, int], make: Callable[[], nn.Module]) -> dict:
    """What `auto` takes of a network, or the reason why it takes nothing."""
    torch.manual_seed(0)
    network = make().eval().requires_grad_(False)
    if library == "transformers":
        pixels = Pixels(size, MEAN, STD, [0, 1, 2])
        model = FromTransformers(network, pixels, tuple(map(str, range(10)))).eval()
    else:
        model = Classifier(network, MEAN, STD).eval()
    weights = sum(each.numel() for each in model.parameters())
    found = {"weights": weights, "size": list(size)}
    started = time.process_time()
    try:
        graph = trace(model, size)
        found |= {"nodes": len(graph.nodes), "reason": graph.reason}
        layer = last_layer(graph).layer
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        return found | {"failed": reason, "seconds": time.process_time() - started}
    found |= {"layer": layer, "seconds": time.process_time() - started}
    found |= {"activation": following(graph, layer).activation.name}
    if weights > SMALL or size[1] > SIDE:
        return found
    try:
        initial, target = torch.rand(2, *size)
        hull = find_corners(
            model, layer, initial, target, corners=range(2), seed=0,
            loss=LossSettings(hull=0), stop=StopSettings(min_steps=3, max_steps=3),
        )  # fmt: skip
        found["steps"] = hull.summary["steps"]
        found["error"] = hull.summary["corners"][0]["positive_relative"]
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        found["search_failed"] = f"{type(error).__name__}: {reason}"
    return found


def run(library: str, file: Path) -> None:
    """Measure each network of a library that `file` has no line of."""
    known = {each["name"] for each in read(file)} if file.exists() else set()
    for name, family, size, make in SETS[library]():
        if name in known:
            continue
        try:
            found = measured(library, size, make)
        except Exception as error:  # it cannot be made here
            found = {"failed": f"{type(error).__name__}: {str(error).splitlines()[:1]}"}
        line = {"library": library, "family": family, "name": name} | found
        with file.open("a") as end:
            end.write(json.dumps(line) + "\n")
        print(line, flush=True)
        gc.collect()


def read(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def table(files: list[Path]) -> None:
    """What was taken of each library, and all refusals."""
    found = [each for file in files for each in read(file)]
    for library in dict.fromkeys(each["library"] for each in found):
        of = [each for each in found if each["library"] == library]
        taken = [each for each in of if "layer" in each]
        searched = [each for each in taken if "steps" in each]
        failed = [each for each in taken if "search_failed" in each]
        seconds = sorted(each["seconds"] for each in taken)
        print(f"\n{library}: {len(taken)} of {len(of)} taken; three steps run on {len(searched)}, ")
        print(
            f"fail on {len(failed)}; seconds to choose: median {seconds[len(seconds) // 2]:.1f}, "
        )
        print(f"most {seconds[-1]:.1f}; {dict(Counter(each['activation'] for each in taken))}")
        for each in of:
            if reason := each.get("failed") or each.get("search_failed"):
                print(f"- {each['name']} ({each['family']}): {reason}")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    what, *files = sys.argv[1:]
    if what == "table":
        table(list(map(Path, files)))
    else:
        run(what, Path(files[0] if files else f"coverage-{what}.jsonl"))
