"""Is the GPU waiting for the host? Said once, with the reason and the cure."""

from distcnn.config.plan import Plan

# So long at most the host waits for a device that has only what was launched last to do. No share of the time between
# two log points: where CUDA's queue is full, a thousand launches are left, which may be little beside all of them.
_IDLE_S = 0.001
_DATA_SHARE = 0.5  # of the time in which the host is at work
_IN_A_ROW = 5  # log points


class HostBound:
    """Looks at each log point whether the device had done its work before the host came to wait for it.

    Then the device is the faster of the two, and idles between operations: launched one by one, each of them costs the
    host some microseconds, however small its work is. Or the host is busy with the batches: it has not stood still for
    the device there, which would still be at work.
    """

    def __init__(self, plan: Plan, *, streaming: bool):
        self.plan, self.streaming = plan, streaming
        self.in_a_row, self.said = 0, False

    def log_point(self, seconds: float, device_s: float, others_s: float, data_s: float) -> str:
        """What to say, "" mostly. Of the `seconds` since the last log point the main thread has waited for the device,
        has waited for other ranks, and has made batches, or waited for them, so long.
        """
        own_s = seconds - others_s
        idle = device_s < _IDLE_S and own_s > seconds / 2  # else another rank is the slow one
        self.in_a_row = self.in_a_row + 1 if idle else 0
        if self.said or self.in_a_row < _IN_A_ROW:
            return ""
        self.said = True
        share = data_s / own_s
        if share > _DATA_SHARE:
            cure = "fewer augmentations, or smaller images"
            if self.streaming:
                cure = "more data.workers, if there are cores for them, or data.loader: resident, if the images fit"
            return f"the GPU waits for batches, which take {share:.0%} of the host's time: {cure}"
        return (
            f"the GPU is done before the host has launched more (batches take {share:.0%} of the host's time, the rest "
            f"are launches): {self._cure()}"
        )

    def _cure(self) -> str:
        micro = self.plan.micro_batch
        if self.plan.accumulation == 1:
            return f"model.compile; train.micro_batch, {micro}, is as large as train.batch_size allows"
        most = micro * self.plan.accumulation
        return f"a larger train.micro_batch (now {micro}, at most {most} for this batch), or model.compile"
