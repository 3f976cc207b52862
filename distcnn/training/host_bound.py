"""Detect a GPU that waits for the host; reported once, with the reason and a fix."""

from distcnn.config.plan import Plan

# A device that has only the last launches left keeps the host waiting for less than this. An absolute time, not a
# fraction of the interval: if CUDA's queue is full, a thousand launches are left, yet a small fraction of all.
_IDLE_S = 0.001
_DATA_FRACTION = 0.5  # of the host's busy time
_IN_A_ROW = 5  # log points


class HostBound:
    """Checks at each log point whether the device had finished before the host began to wait for it.

    The device is then the faster of the two and idles between operations: either launches limit the rate, each costing
    the host some microseconds however small the kernel, or the host is busy making batches.
    """

    def __init__(self, plan: Plan, *, streaming: bool):
        self.plan, self.streaming = plan, streaming
        self.in_a_row, self.reported = 0, False

    def log_point(self, seconds: float, device_s: float, others_s: float, data_s: float) -> str:
        """Return a message, or "" if there is nothing to report.

        Of the `seconds` since the last log point, the main thread spent `device_s` waiting for the device, `others_s`
        waiting for other ranks, and `data_s` making batches or waiting for them.
        """
        own_s = seconds - others_s
        idle = device_s < _IDLE_S and own_s > seconds / 2  # otherwise another rank is the bottleneck
        self.in_a_row = self.in_a_row + 1 if idle else 0
        if self.reported or self.in_a_row < _IN_A_ROW:
            return ""
        self.reported = True
        fraction = data_s / own_s
        if fraction > _DATA_FRACTION:
            fix = "fewer augmentations, or smaller images"
            if self.streaming:
                fix = "more data.workers, if there are cores for them, or data.loader: resident, if the images fit"
            return f"the GPU waits for batches, which take {fraction:.0%} of the host's time; try {fix}"
        return (
            f"the GPU waits for the host to launch work (batches take {fraction:.0%} of the host's time, launches the "
            f"rest); {self._launch_fix()}"
        )

    def _launch_fix(self) -> str:
        micro = self.plan.micro_batch
        if self.plan.accumulation == 1:
            return f"try model.compile; train.micro_batch, {micro}, is as large as train.batch_size allows"
        most = micro * self.plan.accumulation
        return f"try a larger train.micro_batch (now {micro}, at most {most} for this batch), or model.compile"
