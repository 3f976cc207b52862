"""Which GPUs `distcnn trials` hands out: those of its own CUDA_VISIBLE_DEVICES, in its words."""

import pytest

from distcnn.trials.visible_gpus import entries, places

ONE, TWO = "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6", "GPU-0d6bc2a1"
SLICE, OTHER = "MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f", "MIG-GPU-8932f937/3/0"


@pytest.mark.parametrize(
    ("visible", "count", "own"),
    [
        (None, 3, ["0", "1", "2"]),
        (None, 0, []),
        ("0", 1, ["0"]),
        ("4,5", 2, ["4", "5"]),
        ("5,4", 2, ["5", "4"]),
        (" 4 , 5 ", 2, ["4", "5"]),
        (f"{ONE},{TWO}", 2, [ONE, TWO]),
        (f"{ONE}, {TWO}", 2, [ONE, TWO]),
        ("", 0, []),
        ("-1", 0, []),
        ("NoDevFiles", 0, []),  # Slurm's word for none
        ("4,-1,5", 1, ["4"]),
        ("4,,5", 1, ["4"]),
        ("4,5,9", 2, ["4", "5"]),  # there is no GPU 9: CUDA sees what stands before it
        (f"{ONE},GPU-ffff", 1, [ONE]),
        ("4,4", 0, []),  # the same twice: CUDA sees none
        # However many instances are named, a process can use one, and PyTorch counts one.
        (SLICE, 1, [SLICE]),
        (f"{SLICE},{OTHER}", 1, [SLICE, OTHER]),
        (f"{SLICE},-1,{OTHER}", 1, [SLICE]),
        (f"{SLICE},{OTHER}", 0, []),
    ],
)
def test_the_entries_are_handed_on_as_they_are(visible, count, own):
    assert entries(visible, count) == own
    assert places(visible, count) == (own or [None])
    assert places(visible, count, 1) == (own[:1] or [None])


def test_more_processes_than_gpus_take_turns():
    assert places("4,5", 2, 5) == ["4", "5", "4", "5", "4"]
    assert places(f"{SLICE},{OTHER}", 1, 3) == [SLICE, OTHER, SLICE]


def test_without_a_gpu_the_variable_stays_as_it_is():
    assert places("4,5", 0, 2) == places(None, 0, 2) == [None, None]
