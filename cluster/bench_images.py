"""Sets of small images that the continual-learning measurements cut into tasks, and how they are trained on.

digits    1797 handwritten digits of 8 x 8 pixels, which lie in scikit-learn
fashion   Fashion-MNIST, 70,000 pictures of clothes of 28 x 28 pixels, which is a Debian package: `apt-get install
          dataset-fashion-mnist`, or unpacked anywhere and named by AUTONOMOUS_FASHION_MNIST
"""

import gzip
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from train.continual.scenarios import LabelledSet
from train.continual.study import Recipe

NUM_TASKS = 5
"""Into which a set is cut, of two classes each."""
NUM_DIGITS_TEST = 360
"""Of 1797; 1437 are trained."""
LARGEST_DIGIT_PIXEL, LARGEST_PIXEL = 16.0, 255.0
FASHION_FOLDER = Path("/usr/share/datasets/fashion-mnist")
FASHION_VARIABLE = "AUTONOMOUS_FASHION_MNIST"
IDX_HEADER_BYTES = {1: 8, 3: 16}
"""Of a file in the IDX format, by its number of dimensions."""


@dataclass(frozen=True, slots=True)
class ImageSet:
    """A set and its recipe."""

    load: Callable[[int], LabelledSet]
    """Of a seed."""
    recipe: Recipe


def load_digits_set(seed: int) -> LabelledSet:
    """scikit-learn's digits with pixels from 0 to 1; `seed` draws which are tested."""
    from sklearn.datasets import load_digits  # there only where the tests can run

    digits = load_digits()
    x = torch.from_numpy(digits.data / LARGEST_DIGIT_PIXEL).float()
    y = torch.from_numpy(digits.target).long()
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(y)))
    test, train = order[:NUM_DIGITS_TEST], order[NUM_DIGITS_TEST:]
    return LabelledSet(x[train], y[train], x[test], y[test])


def load_fashion_set(seed: int) -> LabelledSet:
    """Fashion-MNIST with pixels from 0 to 1, as its authors divide it whatever the seed.

    Raises FileNotFoundError if it is not installed.
    """
    del seed
    folder = Path(os.environ.get(FASHION_VARIABLE, FASHION_FOLDER))
    if not folder.is_dir():
        raise FileNotFoundError(
            f"Fashion-MNIST is not in {folder}: apt-get install dataset-fashion-mnist, or unpack that package anywhere "
            f"(dpkg-deb -x) and name its folder usr/share/datasets/fashion-mnist in {FASHION_VARIABLE}"
        )
    x, x_test = (
        torch.from_numpy(_read_idx(folder / f"{part}-images-idx3-ubyte.gz", dimensions=3)).float().flatten(1)
        / LARGEST_PIXEL
        for part in ("train", "t10k")
    )
    y, y_test = (
        torch.from_numpy(_read_idx(folder / f"{part}-labels-idx1-ubyte.gz", dimensions=1)).long()
        for part in ("train", "t10k")
    )
    return LabelledSet(x, y, x_test, y_test)


def _read_idx(path: Path, *, dimensions: int) -> np.ndarray:
    """A gzipped file of bytes in the IDX format (yann.lecun.com/exdb/mnist): magic number, sizes, values."""
    data = gzip.decompress(path.read_bytes())
    sizes = np.frombuffer(data, ">i4", count=dimensions, offset=4)
    return np.frombuffer(data, np.uint8, offset=IDX_HEADER_BYTES[dimensions]).reshape(sizes).copy()


IMAGE_SETS: dict[str, ImageSet] = {
    "digits": ImageSet(load_digits_set, Recipe()),
    "fashion": ImageSet(load_fashion_set, Recipe(epochs=2, batch_size=64)),
}
