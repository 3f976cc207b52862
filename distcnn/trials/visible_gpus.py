"""The GPUs that a process may use, one by one, in the words of CUDA_VISIBLE_DEVICES."""

from itertools import cycle, islice, takewhile


def places(visible: str | None, count: int, wanted: int | None = None) -> list[str | None]:
    """A value of CUDA_VISIBLE_DEVICES for each of `wanted` processes at once: one for each GPU where that is None.

    Where there are more processes than GPUs they take turns. None for a process that is to inherit the variable as it
    is: there is no GPU to hand out, and it computes on the CPU. `visible` and `count` as in `entries`.
    """
    own = entries(visible, count)
    return list(islice(cycle(own), wanted or len(own))) if own else [None] * (wanted or 1)


def entries(visible: str | None, count: int) -> list[str]:
    """The parts of CUDA_VISIBLE_DEVICES that name this process's GPUs, in the order of their indices in PyTorch.

    `visible` is the variable's value, None where it is not set; `count` is torch.cuda.device_count(). They are handed
    on as they are: the number 0 in another process's list would be the machine's first GPU, which may be somebody
    else's. As for CUDA, the list ends at the first part that names no GPU, such as -1, or one that is not there.

    Of MIG instances a process can use the first that it is given only, so that the count is 1 for any number of them:
    each is one to hand out.
    """
    if visible is None:
        return [str(index) for index in range(count)]
    named = list(takewhile(_names_one, (part.strip() for part in visible.split(","))))
    return named if count and named and named[0].startswith("MIG-") else named[:count]


def _names_one(part: str) -> bool:
    return part[:1].isdecimal() or part.startswith(("GPU-", "MIG-"))
