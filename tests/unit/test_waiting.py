"""A wait is silent while it is short, and says what it is for when it is not."""

import threading
import time

import pytest

from distcnn import files as module
from distcnn.files import locked, waiting


def heard(capsys, lines=1):
    """What stands on stderr as soon as it is so many lines."""
    text, end = "", time.monotonic() + 60
    while text.count("\n") < lines:
        assert time.monotonic() < end, f"silence after {text!r}"
        time.sleep(0.01)
        text += capsys.readouterr().err
    return text


def speakers():
    return [thread for thread in threading.enumerate() if thread.name == "distcnn-waiting"]


def test_a_short_wait_is_silent(capsys):
    with waiting("the bus"):
        pass
    assert capsys.readouterr() == ("", "")
    assert not speakers()


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_a_long_wait_speaks_again_and_again_and_then_stops(capsys, monkeypatch, error):
    monkeypatch.setattr(module, "FIRST_S", 0.02)
    monkeypatch.setenv("RANK", "3")
    try:
        with waiting("the bus"):
            text = heard(capsys, lines=3)
            if error:
                raise error
    except KeyboardInterrupt:
        assert error
    assert text.startswith("rank 3 on ")
    assert text.count(" s for the bus\n") == text.count("\n") >= 3
    assert not speakers()


def test_a_lock_says_what_for_both_to_its_holder_and_to_the_next(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(module, "FIRST_S", 0.02)
    entered, leave = threading.Event(), threading.Event()

    def hold():
        with locked(tmp_path / "lock", "decoding images"):
            entered.set()
            leave.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    assert entered.wait(60)
    assert " s for decoding images\n" in heard(capsys)

    def come():
        with locked(tmp_path / "lock", "decoding again"):
            pass

    second = threading.Thread(target=come)
    second.start()
    text = ""
    while "another process: decoding again" not in text:
        text += heard(capsys)
    leave.set()
    for thread in (holder, second):
        thread.join(60)
        assert not thread.is_alive()
    assert not speakers()
