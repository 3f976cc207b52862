"""Normalisation: the statistics of the training images, and the arithmetic."""

import numpy as np
import pytest
import torch

from distcnn.data.normalize import Normalize, statistics


@pytest.mark.parametrize("n", [1, 511, 513])
def test_statistics_are_those_of_numpy(n):
    pictures = np.random.default_rng(n).integers(0, 256, (n, 4, 5, 3), np.uint8)
    pictures[..., 1] //= 7
    got = statistics(pictures)
    real = pictures.reshape(-1, 3) / 255
    np.testing.assert_allclose(got.mean, real.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(got.std, real.std(axis=0), rtol=1e-9)


def test_statistics_of_extremes_and_of_a_constant_channel():
    white = np.full((1100, 8, 8, 3), 255, np.uint8)
    white[..., 2] = 77
    assert statistics(white) == Normalize((1.0, 1.0, 77 / 255), (1.0, 1.0, 1.0))
    white[::2, ..., 0] = 0
    assert statistics(white) == Normalize((0.5, 1.0, 77 / 255), (0.5, 1.0, 1.0))


def test_normalize_constants():
    scale, shift = Normalize((0.5, 0.25, 0.0), (0.5, 0.25, 1.0)).constants(torch.device("cpu"))
    levels = torch.tensor([0.0, 127.5, 255.0])
    torch.testing.assert_close(levels[:, None] * scale + shift, (levels[:, None] / 255 - torch.tensor([0.5, 0.25, 0])) /
                               torch.tensor([0.5, 0.25, 1]), rtol=0, atol=1e-6)  # fmt: skip
