"""The GPU path without a GPU: on pretend CUDA tensors a mix-up of devices or a read of a value on the host raises."""

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from distcnn.data.augment import Augment, Normalize, SmallAtFirst
from distcnn.data.loader import Preprocess
from distcnn.data.mix import Mix
from distcnn.data.samplers import MicroBatchSampler
from distcnn.models import build_model

CUDA = torch.device("cuda", 0)


@pytest.mark.parametrize("mode", ["zeros", "reflect"])
@pytest.mark.parametrize("name", ["simple_cnn", "compact_cnn", "resnet9", "resnet18"])
def test_a_batch_is_made_and_classified_on_the_device(mode, name):
    augment = Augment(flip=True, crop_padding=4, crop_mode=mode, cutout=8)
    model = build_model(name, 10, 32)
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        preprocess = Preprocess(Normalize((0.5,) * 3, (0.5,) * 3), CUDA, augment, dtype=torch.bfloat16)
        images = torch.empty(100, 32, 32, 3, dtype=torch.uint8, device=CUDA)
        indices = torch.zeros(20, dtype=torch.int64, device=CUDA)
        draws = torch.zeros(20, 5, dtype=torch.int64, device=CUDA)
        batch = preprocess.input(augment.batch(images.index_select(0, indices), draws), draws)
        assert (batch.device, batch.shape, batch.dtype) == (CUDA, (20, 3, 32, 32), torch.bfloat16)
        assert batch.is_contiguous(memory_format=torch.channels_last)
        on_device = {key: fake.from_tensor(t).to(CUDA) for key, t in model.state_dict().items()}
        with torch.no_grad():
            logits = torch.func.functional_call(model.eval(), on_device, (batch.float(),))
        assert (logits.device, logits.shape) == (CUDA, (20, 10))


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_a_batch_is_mixed_and_reduced_on_the_device(kind):
    augment = Augment("alternating", crop_padding=4, mix=Mix(kind, 1.0, 10))
    positions = np.arange(60)
    real = augment.draw(0, 0, positions, positions, 32, 32)
    sampler = MicroBatchSampler(60, batch_size=20, micro_batch=20)
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        small = SmallAtFirst(32, (24,), 2, CUDA)
        preprocess = Preprocess(Normalize((0.5,) * 3, (0.5,) * 3), CUDA, augment, dtype=torch.bfloat16, small=small)
        draws = fake.from_tensor(real).to(CUDA)
        sizes = []
        for micro in sampler.micro_batches():
            images = torch.empty(20, 32, 32, 3, dtype=torch.uint8, device=CUDA)
            labels = torch.zeros(20, dtype=torch.int64, device=CUDA)
            chosen = draws[micro.start : micro.stop]
            batch = preprocess.batch(augment.batch(images, chosen), labels, chosen, sampler, micro, 0)
            assert (batch.images.device, batch.images.dtype) == (CUDA, torch.bfloat16)
            assert batch.images.is_contiguous(memory_format=torch.channels_last)
            assert (batch.labels.device, batch.labels.shape) == (CUDA, (20, 10))
            sizes.append(batch.images.shape[2])
        assert sizes == [24, 24, 32]
