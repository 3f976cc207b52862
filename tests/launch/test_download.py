"""Cold processes without data cause one download; one that was killed in the middle leaves nothing that harms."""

import hashlib
import pickle
import tarfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from tests.ranks import TIMEOUT, run_ranks, start
from tests.records import metrics


@pytest.fixture
def archive(tmp_path) -> Path:
    """A small archive in CIFAR-10's own format: five training batches and one for testing."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in (
        "data_batch_1",
        "data_batch_2",
        "data_batch_3",
        "data_batch_4",
        "data_batch_5",
        "test_batch",
    ):
        content = {"data": rng.integers(0, 256, (20, 3072), np.uint8), "labels": [i % 10 for i in range(20)]}
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"c{i}" for i in range(10)]}))
    path = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        tar.add(folder, folder.name)
    return path


class Server(ThreadingHTTPServer):
    """Stands for the remote server; counts requests, and can stall in the middle of the first answer."""

    def __init__(self, content: bytes, *, stall_first: bool = False):
        self.content, self.stall_first, self.requests = content, stall_first, 0
        self.half_sent, self.go_on = threading.Event(), threading.Event()
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server_port}/cifar-10-python.tar.gz"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        self.server.requests += 1
        stall = self.server.stall_first and self.server.requests == 1
        content = self.server.content
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        half = len(content) // 2
        self.wfile.write(content[:half])
        self.wfile.flush()
        if stall:
            self.server.half_sent.set()
            self.server.go_on.wait(TIMEOUT)
            return
        self.wfile.write(content[half:])

    def log_message(self, *args):
        pass


def arguments(config, server, archive, data, name="run"):
    md5 = hashlib.md5(archive.read_bytes()).hexdigest()
    return ["train", config, "--data.source", "cifar10", "--data.root", data,
            "--data.args", "{}", "--data.args.url", server.url, "--data.args.md5", md5,
            "--data.image_size", "32", "--train.duration", "1step", "--train.batch_size", "40", "--name", name]  # fmt: skip


def test_four_cold_processes_download_once(synthetic, tmp_path, archive):
    server, data = Server(archive.read_bytes()), tmp_path / "data"
    cold = [*arguments(synthetic, server, archive, data), "--train.micro_batch", "10"]
    outcome = run_ranks(cold, 4)
    assert outcome.codes == [0] * 4, outcome.err
    assert server.requests == 1
    assert [line["total"] for line in metrics(tmp_path / "runs" / "run", "eval")] == [20]
    assert sorted(path.name for path in data.iterdir()) == [".cifar10.lock", "cifar-10-batches-py"]


def test_killed_in_mid_download_and_started_again(synthetic, tmp_path, archive):
    server, data = Server(archive.read_bytes(), stall_first=True), tmp_path / "data"
    with start(arguments(synthetic, server, archive, data)):
        assert server.half_sent.wait(TIMEOUT)
        time.sleep(0.5)  # let what was sent reach the disk
    server.go_on.set()
    assert not (data / "cifar-10-batches-py").exists()

    outcome = run_ranks(arguments(synthetic, server, archive, data))
    assert outcome.codes == [0], outcome.err
    assert server.requests == 2
    assert sorted(path.name for path in data.iterdir()) == [".cifar10.lock", "cifar-10-batches-py"]


def test_wrong_checksum_and_no_network(synthetic, tmp_path, archive):
    server, data = Server(archive.read_bytes() + b"x"), tmp_path / "data"
    outcome = run_ranks(arguments(synthetic, server, archive, data))
    assert outcome.codes == [2]
    assert "could not be downloaded" in outcome.err
    server.shutdown()
    server.server_close()
    outcome = run_ranks(arguments(synthetic, server, archive, data), 2)
    assert outcome.codes == [2, 2]
    assert outcome.err.count("could not be downloaded") == 1
    for choice in ("put cifar-10-python.tar.gz", "--data.source folder", "digits"):
        assert choice in outcome.err
    assert not (data / "cifar-10-batches-py").exists()


def test_an_archive_put_there_by_hand_is_used(synthetic, tmp_path, archive):
    server, data = Server(b""), tmp_path / "data"
    data.mkdir()
    (data / archive.name).write_bytes(archive.read_bytes())
    outcome = run_ranks(arguments(synthetic, server, archive, data))
    assert outcome.codes == [0], outcome.err
    assert server.requests == 0
