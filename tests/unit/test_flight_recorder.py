"""Which of NCCL's collectives has not ended, and who is not in it, from dumps made by hand."""

import json
import threading

import pytest
import torch

from distcnn.distributed import flight_recorder as recorder


def dump(*entries, group="0"):
    """Of one rank: (number, name, state) each."""
    return {"version": "2.10", "entries": [
        {"process_group": [group, "default_pg"], "collective_seq_id": number, "p2p_seq_id": 0, "is_p2p": False,
         "profiling_name": f"nccl:{name}", "state": state, "input_sizes": [[100]], "time_created_ns": 1000 + number}
        for number, name, state in entries
    ]}  # fmt: skip


def done(*numbers):
    return [(number, "all_reduce", "completed") for number in numbers]


STARTED = (4, "all_reduce", "started")


def test_a_rank_that_has_not_begun_is_named_with_its_last():
    dumps = {0: dump(*done(2, 3), STARTED, (5, "all_reduce", "scheduled")), 1: dump(*done(1, 2, 3)), 2: dump(STARTED)}
    assert recorder.first_unmatched(dumps, 3) == (
        "NCCL's collective 4 of group 0, all_reduce [[100]], has not ended; begun on ranks 0, 2, not on rank 1 "
        "(rank 1's last is 3)"
    )


def test_a_collective_that_all_have_begun_is_nobodys_fault_alone():
    dumps = {0: dump(*done(3), STARTED), 1: dump(*done(3, 4)), 2: dump(STARTED)}
    assert recorder.first_unmatched(dumps, 3) == (
        "NCCL's collective 4 of group 0, all_reduce [[100]], has not ended; begun on ranks 0, 1, 2; ended on rank 1"
    )


def test_ranks_that_do_different_things_are_told_apart():
    found = recorder.first_unmatched({0: dump(STARTED), 1: dump((4, "broadcast", "started"))}, 2)
    assert "the ranks differ: all_reduce [[100]] on rank 0, broadcast [[100]] on rank 1" in found


def test_ranks_without_a_dump_or_without_an_exchange_in_it():
    assert "nothing is known of ranks 1, 3" in recorder.first_unmatched({0: dump(STARTED), 2: dump(STARTED)}, 4)
    assert "not on rank 1 (rank 1's last is none)" in recorder.first_unmatched({0: dump(STARTED), 1: {}}, 2)


def test_the_buffer_forgets_what_is_old_and_that_is_no_fault():
    assert recorder.first_unmatched({0: dump(*done(1, 2, 3)), 1: dump(*done(3))}, 2) == ""
    late = recorder.first_unmatched({0: dump((1, "all_reduce", "started"), *done(2, 3)), 1: dump(*done(3))}, 2)
    assert "not on" not in late


def test_the_oldest_of_several_groups_is_named_and_messages_are_left_out():
    first, second = dump((9, "all_gather", "started"), group="7"), dump(*done(3), STARTED)
    first["entries"][0]["time_created_ns"] = 5
    message = dump((1, "recv", "started"))["entries"][0] | {"is_p2p": True, "time_created_ns": 1}
    both = {"entries": [message, *second["entries"], *first["entries"]]}
    assert "collective 9 of group 7, all_gather" in recorder.first_unmatched({0: both, 1: both}, 2)


@pytest.mark.parametrize(
    "key", ["is_p2p", "process_group", "collective_seq_id", "time_created_ns", "state", "profiling_name", "input_sizes"]
)
def test_a_key_that_another_release_does_not_have_is_done_without(key):
    whole = dump(STARTED)
    del whole["entries"][0][key]
    found = recorder.first_unmatched({0: whole, 1: dump(*done(3))}, 2)
    if key in ("process_group", "collective_seq_id"):  # then nothing is known of it
        assert found == ""
    else:
        assert "NCCL's collective 4 of group 0, " in found
        assert "not on rank 1 (rank 1's last is 3)" in found


def test_dumps_are_written_read_and_forgotten(tmp_path, monkeypatch):
    text = json.dumps(dump(STARTED)).encode()
    monkeypatch.setattr(torch._C._distributed_c10d, "_dump_nccl_trace_json", lambda: text)
    assert recorder.dump(tmp_path, 1)
    (tmp_path / "nccl_trace_rank0.json").write_bytes(text[:50])  # its rank died while it wrote
    assert recorder.read(tmp_path, 3) == {1: dump(STARTED)}
    recorder.remove(tmp_path, 1)
    recorder.remove(tmp_path, 2)
    assert recorder.read(tmp_path, 3) == {}


def test_without_nccl_nothing_is_written(tmp_path):
    assert not recorder.dump(tmp_path, 0)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("torch_has_it", [True, False])
def test_a_dump_that_does_not_come_is_not_waited_for(tmp_path, monkeypatch, torch_has_it):
    freed = threading.Event()
    monkeypatch.setattr(recorder, "_DUMP_TIMEOUT_S", 0.05)
    name = "_dump_nccl_trace_json"

    def late():
        freed.wait(20)
        return json.dumps(dump(STARTED)).encode()

    if torch_has_it:
        monkeypatch.setattr(torch._C._distributed_c10d, name, late)
    else:
        monkeypatch.delattr(torch._C._distributed_c10d, name)
    assert not recorder.dump(tmp_path, 0)
    freed.set()
