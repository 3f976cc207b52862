"""The checks for a GPU look for words that distcnn says, and count what a profiler has seen."""

import re

import pytest

from benchmarks.gpu.rates import covered
from distcnn.distributed.device_clock import DevicePlace
from distcnn.distributed.flight_recorder import first_unmatched
from distcnn.distributed.heartbeat import Heartbeat
from distcnn.distributed.process import RankProcess
from tests.gpu.ranks_faults import SPUN, UNENDED


def said(device):
    """As the watchdog's report says it of a rank that is behind."""
    one = Heartbeat(9, RankProcess("host", 17, 0.0), 20, 3, "log", "", device)
    return f"rank 1 on {one.process.host}, process {one.process.pid}: alive, but behind the others, in log{one.progress}, at"


def test_where_a_spinning_device_stands_is_found_in_the_report():
    assert re.search(SPUN.format(20), said(DevicePlace(19, 1)))
    assert not any(re.search(SPUN.format(20), said(place)) for place in (DevicePlace(19, 2), DevicePlace(18, 1), None))


def test_a_collective_that_has_not_ended_is_found_in_the_report():
    entry = {"process_group": ["0", "default_pg"], "collective_seq_id": 4, "profiling_name": "nccl:all_reduce",
             "input_sizes": [[9]], "state": "scheduled"}  # fmt: skip
    assert re.search(UNENDED, first_unmatched({0: {"entries": [entry]}, 1: {"entries": []}}, 2))


@pytest.mark.parametrize(
    ("intervals", "length"),
    [([], 0), ([(1, 3)], 2), ([(5, 7), (1, 3)], 4), ([(1, 4), (2, 3)], 3), ([(1, 3), (2, 5), (2, 4), (9, 10)], 5)],
)
def test_time_that_several_kernels_take_at_once_counts_once(intervals, length):
    assert covered(intervals) == length
