"""CUDA events that a test moves by hand: a device's time, and how far it has come."""

import torch


class Device:
    """Takes the place of torch.cuda's events. `now` is where the host's next mark will lie, in seconds of the device."""

    def __init__(self, monkeypatch):
        self.now, self.reached, self.made = 0.0, float("inf"), 0
        device = self

        class Event:
            def __init__(self, enable_timing=False):
                self.timed = enable_timing
                device.made += 1

            def record(self):
                self.at = device.now

            def query(self):
                return self.at <= device.reached

            def elapsed_time(self, end):
                assert self.timed
                assert end.timed
                assert self.query()
                assert end.query()
                return 1000 * (end.at - self.at)

        monkeypatch.setattr(torch.cuda, "Event", Event)
