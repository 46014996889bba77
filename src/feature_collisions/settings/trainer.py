"""Check the arguments of `trainer` against the machine, before Lightning sees them."""

import os
from typing import Any

import torch

from ..errors import SettingError

MIXED = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
_PRECISIONS = ("32-true", "64-true", *MIXED, "auto")
_ARGUMENTS = ("accelerator", "devices", "precision", "strategy", "num_nodes", "benchmark",
              "deterministic", "detect_anomaly", "profiler")  # fmt: skip
_DEFAULTS = {"accelerator": "auto", "devices": 1, "precision": "32-true", "strategy": "auto"}
_GPUS = ("gpu", "cuda")


def check_trainer(trainer: dict[str, Any]) -> dict[str, Any]:
    """Check the Trainer's arguments and add defaults.

    Raises:
        SettingError: if an argument is not allowed, or the machine lacks the precision or the
            number of devices.
    """
    for name, value in trainer.items():
        if name not in _ARGUMENTS:
            raise SettingError(
                f"trainer.{name}",
                value,
                "is not an argument of a search",
                f"known are {', '.join(_ARGUMENTS)}; set the length of the search with stop",
            )
    trainer = _DEFAULTS | trainer
    _check_one_of("strategy", trainer["strategy"], ("auto", "ddp"))
    if trainer.get("num_nodes", 1) != 1:
        raise SettingError(
            "trainer.num_nodes",
            trainer["num_nodes"],
            "a search stays on one machine",
            "sweep over machines with -m hydra/launcher=submitit_slurm",
        )
    accelerator = trainer["accelerator"] = _accelerator(trainer["accelerator"])
    trainer["precision"] = _precision(str(trainer["precision"]), accelerator)
    trainer["devices"] = _devices(trainer["devices"], accelerator)
    if len(device_ids(trainer)) == 1:
        trainer["strategy"] = "auto"
    return trainer


def single_device(trainer: dict[str, Any]) -> torch.device | None:
    """The device of an unchecked `trainer`; None if it has several."""
    checked = check_trainer(trainer)
    return devices_of(checked)[0] if len(device_ids(checked)) == 1 else None


def arguments_for(device: torch.device) -> dict[str, Any]:
    """The Trainer's arguments for `device`."""
    if device.type == "cuda":
        return {"accelerator": "gpu", "devices": [device.index or 0]}
    return {"accelerator": "mps" if device.type == "mps" else "cpu", "devices": 1}


def devices_of(trainer: dict[str, Any]) -> list[torch.device]:
    """The devices of checked arguments; a CPU is repeated for each process."""
    ids, accelerator = device_ids(trainer), trainer["accelerator"]
    if accelerator in _GPUS:
        return [torch.device("cuda", each) for each in ids]
    return [torch.device(accelerator)] * len(ids)


def device_ids(trainer: dict[str, Any]) -> list[int]:
    """Indices of the devices that a search or an evaluation runs on."""
    devices = trainer["devices"]
    return devices if isinstance(devices, list) else list(range(devices))


def bfloat16_is_fast(accelerator: str) -> bool:
    """Whether a device has native bfloat16 arithmetic; without, bfloat16 takes ten times as long.

    Args:
        accelerator: Lightning's name of it, not `auto`.
    """
    if accelerator == "cpu":
        return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return accelerator in _GPUS and torch.cuda.is_bf16_supported(including_emulation=False)


def _check_one_of(name: str, value: Any, known: tuple[str, ...]) -> None:
    if value not in known:
        raise SettingError(f"trainer.{name}", value, f"must be one of {', '.join(known)}")


def _accelerator(asked: Any) -> str:
    """Lightning's name of the kind of device; `auto` becomes the available one."""
    _check_one_of("accelerator", asked, ("auto", "cpu", *_GPUS, "mps"))
    gpus, apple = torch.cuda.is_available(), torch.backends.mps.is_available()
    if asked == "auto":
        return "gpu" if gpus else "mps" if apple else "cpu"
    if (asked in _GPUS and not gpus) or (asked == "mps" and not apple):
        kind = "GPU of Apple's" if asked == "mps" else "GPU"
        remedy = "choose auto or cpu"
        raise SettingError("trainer.accelerator", asked, f"PyTorch sees no {kind} here", remedy)
    return str(asked)


def _precision(asked: str, accelerator: str) -> str:
    """Lightning's name of the precision; `auto` is kept if the first gradient must decide."""
    asked = {"32": "32-true", "64": "64-true"}.get(asked, asked)
    _check_one_of("precision", asked, _PRECISIONS)
    lacking = {
        ("16-mixed", "cpu"): "the CPU has no float16 arithmetic",
        ("64-true", "mps"): "Apple's GPU has no float64 arithmetic",
    }.get((asked, accelerator))
    if asked == "bf16-mixed" and accelerator in _GPUS and not bfloat16_is_fast(accelerator):
        lacking = f"{torch.cuda.get_device_name()} has no bfloat16 arithmetic"
    if lacking:
        raise SettingError("trainer.precision", asked, lacking, "use 32-true, or another device")
    return "32-true" if asked == "auto" and not bfloat16_is_fast(accelerator) else asked


def _devices(asked: Any, accelerator: str) -> int | list[int]:
    """The number of devices or their indices; `auto` becomes all GPUs, or one CPU."""
    there = torch.cuda.device_count() if accelerator in _GPUS else 1
    if asked in ("auto", -1, "-1"):
        return there
    if accelerator == "cpu":
        there = os.cpu_count() or 1
    each = asked if isinstance(asked, list) else [asked]
    whole = all(str(one).isdecimal() and len(str(one)) < 10 for one in each)
    numbers = [int(one) for one in each] if whole else []
    if asked in (0, "0") or not numbers or len(set(numbers)) < len(numbers):
        raise SettingError(
            "trainer.devices",
            asked,
            "must be a whole number of at least 1, auto, or a list of different devices' "
            "numbers, [0,2]",
        )
    listed = isinstance(asked, list)
    if max(numbers) + listed > there:
        kind = "CPU cores" if accelerator == "cpu" else "GPUs"
        rule = f"there are {there} {kind} here, numbered from 0"
        raise SettingError("trainer.devices", asked, rule)
    return numbers if listed else numbers[0]
