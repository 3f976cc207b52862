"""Launchers' variables that cannot be right, and ranks that cannot meet: one message, exit code 2, nothing half made."""

import socket
from concurrent.futures import ThreadPoolExecutor
from socketserver import BaseRequestHandler, TCPServer
from threading import Thread

import pytest

from tests.broken_environments import BARE, BROKEN, OPEN_MPI
from tests.ranks import free_port, start

HANG = 120  # seconds until a process counts as hung
STUB = "raise SystemExit('torch was imported: a process group could exist')\n"


def train(config, *arguments, **environment):
    """One process with exactly these launcher's variables, in the config's folder."""
    with start(["train", config, *arguments], cwd=config.parent, **environment) as process:
        return process.outcome(HANG)


@pytest.mark.slow
def test_every_broken_environment_ends_with_one_message(synthetic, tmp_path):
    (tmp_path / "torch.py").write_text(STUB)
    with ThreadPoolExecutor(6) as pool:  # ranks other than 0 wait a little before they speak
        outcomes = pool.map(lambda wrong: train(synthetic, **BROKEN[wrong][0]), BROKEN)
    failures = {}
    for (wrong, (_, variable, cure)), outcome in zip(BROKEN.items(), outcomes, strict=True):
        title, *problems = outcome.err.splitlines() or [""]
        named = [f" {variable}" in problem and cure in problem for problem in problems].count(True)
        whole = title == "distcnn: bad environment" and all(problem.startswith("  ") for problem in problems)
        if not (whole and named == 1 and outcome.codes == [2] and not outcome.out):
            failures[wrong] = outcome
    assert not failures
    assert not (tmp_path / "runs").exists()


# who is alone → (environment, what is said of the others)
ALONE = {
    "the first": (BARE | {"RANK": "0", "LOCAL_RANK": "0"}, "missing: rank 1"),
    "the second": (BARE, "no rank 0 of this job"),
    "the first under mpirun": (OPEN_MPI | {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}, "could not reach the others"),
    "the second under mpirun": (OPEN_MPI | {"PMIX_NAMESPACE": "2"}, "no rank 0 of mpi-2"),
}  # fmt: skip


@pytest.mark.slow
def test_nobody_else_comes(synthetic, tmp_path):
    def alone(environment):
        port = {"MASTER_PORT": str(free_port())} if "MASTER_PORT" in environment else {}
        return train(synthetic, "--train.timeout", "5", **(environment | port))

    with ThreadPoolExecutor() as pool:
        outcomes = list(pool.map(alone, [environment for environment, _ in ALONE.values()]))
    for (_, said), outcome in zip(ALONE.values(), outcomes, strict=True):
        assert outcome.codes == [1], outcome.err  # another try may find them
        assert outcome.err.count("distcnn: failed") == 1
        assert "within 5 s (train.timeout)" in outcome.err
        assert said in outcome.err, outcome.err
        assert "Traceback" not in outcome.err
    assert not (tmp_path / "runs").exists()


def test_a_port_in_use(synthetic, tmp_path):
    """By another program, that hangs up on whoever calls. Each rank knows of its own trouble only."""
    with TCPServer(("", 0), BaseRequestHandler) as other, ThreadPoolExecutor() as pool:
        Thread(target=other.serve_forever, daemon=True).start()
        shared = BARE | {"MASTER_PORT": str(other.server_address[1])}
        ranks = [shared | {"RANK": rank, "LOCAL_RANK": rank} for rank in "01"]
        outcomes = list(pool.map(lambda own: train(synthetic, "--train.timeout", "5", **own), ranks))
        other.shutdown()
    for outcome, code, title in zip(outcomes, (2, 1), ("bad environment", "failed"), strict=True):
        assert outcome.codes == [code], outcome.err
        assert outcome.err.count(f"distcnn: {title}") == 1
        assert f"MASTER_PORT = {shared['MASTER_PORT']}" in outcome.err
        assert "Traceback" not in outcome.err
    assert "is in use by another program" in outcomes[0].err
    assert "export another" in outcomes[0].err
    assert not (tmp_path / "runs").exists()


def test_a_port_of_a_program_that_never_answers(synthetic, tmp_path):
    with socket.create_server(("", 0)) as other:
        outcome = train(synthetic, "--train.timeout", "5", **(BARE | {"MASTER_PORT": str(other.getsockname()[1])}))
    assert outcome.codes == [1], outcome.err
    assert "could not reach the others" in outcome.err
    assert not (tmp_path / "runs").exists()
