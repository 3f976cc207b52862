"""model.safetensors of 1, 2 and 3 ranks: with the micro-batch fixed, the same counts, and weights within 1e-6."""

import pytest
from safetensors.torch import load_file

from tests.ranks import run_ranks


@pytest.mark.parametrize(
    "model", [["simple_cnn"], ["resnet9", "--model.args", "{width: 8}"]], ids=lambda words: words[0]
)
def test_the_exported_weights_are_those_of_one_rank(synthetic, tmp_path, model):
    """Integers, such as BatchNorm's counts of steps, to the bit; the others to 1e-6.

    500 images in batches of 240: the last step holds 20, one micro-batch, so two of three ranks have a dummy there.
    """
    found = []
    for ranks in (1, 2, 3):
        arguments = ["train", synthetic, "--model.name", *model, "--train.threads", "1", "--name", f"ranks-{ranks}"]
        outcome = run_ranks(arguments, ranks)
        assert outcome.codes == [0] * ranks, outcome.err
        found.append(load_file(tmp_path / "runs" / f"ranks-{ranks}" / "model.safetensors"))
    counts = [tensor for name, tensor in found[0].items() if name.endswith("num_batches_tracked")]
    assert all(count == 6 for count in counts)  # two epochs of three steps
    assert bool(counts) == (model[0] == "resnet9")
    for other in found[1:]:
        assert other.keys() == found[0].keys()
        for name, tensor in found[0].items():
            if tensor.is_floating_point():
                largest = ((tensor - other[name]).abs() / tensor.abs().clamp_min(1e-12)).max().item()
                assert largest <= 1e-6, f"{name}: {largest}"
            else:
                assert tensor.equal(other[name]), name
