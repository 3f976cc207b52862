"""Divide the GPUs that this process may use among others, by CUDA_VISIBLE_DEVICES."""

from itertools import cycle, islice, takewhile


def places(visible: str | None, count: int, wanted: int | None = None) -> list[str | None]:
    """Return a CUDA_VISIBLE_DEVICES value for each of `wanted` concurrent processes, by default one per GPU.

    If there are more processes than GPUs, they share them in turn. None means that there is no GPU to assign: the
    process inherits the variable and computes on the CPU. `visible` and `count` are as in `entries`.
    """
    own = entries(visible, count)
    return list(islice(cycle(own), wanted or len(own))) if own else [None] * (wanted or 1)


def entries(visible: str | None, count: int) -> list[str]:
    """Return the entries of CUDA_VISIBLE_DEVICES that name this process's GPUs, in the order of their PyTorch indices.

    `visible` is the variable's value, None if it is not set; `count` is torch.cuda.device_count(). Entries are passed
    on unchanged, because an index would mean the machine's GPU of that number, which may belong to another job. As in
    CUDA, the list ends at the first entry that names no GPU, such as -1, or a missing one.

    A process can use only the first MIG instance that it is given, so `count` is 1 for any number of them; every
    instance is an entry here.
    """
    if visible is None:
        return [str(index) for index in range(count)]
    named = list(takewhile(_names_one, (part.strip() for part in visible.split(","))))
    return named if count and named and named[0].startswith("MIG-") else named[:count]


def _names_one(part: str) -> bool:
    return part[:1].isdecimal() or part.startswith(("GPU-", "MIG-"))
