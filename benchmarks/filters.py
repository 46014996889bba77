"""The mean distance between two images by the filter that warped them to 224x224.

    python benchmarks/filters.py DIR

All pairs of the images in DIR, L2 over pixels of 0..255: the figure the paper's Tables 2 to 4 begin
with, 37,538.22. The package resizes by `bilinear`, which Pillow antialiases.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm


def main() -> None:
    """Measure and print."""
    paths = [path for path in sorted(Path(sys.argv[1]).rglob("*")) if path.is_file()]
    pixels: dict[str, list[torch.Tensor]] = {each.name.lower(): [] for each in Image.Resampling}
    for path in tqdm(paths, "Reading", unit="image"):
        image = Image.open(path).convert("RGB")
        for each in Image.Resampling:
            warped = np.array(image.resize((224, 224), each))
            pixels[each.name.lower()].append(torch.from_numpy(warped).flatten())
    for name, images in pixels.items():
        print(
            f"{name}: {mean_distance(torch.stack(images)):,.0f}, {len(images)} images", flush=True
        )


def mean_distance(images: torch.Tensor) -> float:
    """Over all pairs of two different rows; by products, which a CPU is fast at."""
    rows = images.float()
    rows -= rows.mean(0)
    products = rows @ rows.T
    squares = products.diag()
    distances = (squares[:, None] + squares - 2 * products).clamp_min(0).sqrt()
    return float(distances.fill_diagonal_(0).sum() / (len(rows) * (len(rows) - 1)))


if __name__ == "__main__":
    main()
