"""A rank under Open MPI's mpirun, or under Hydra (MPICH, Intel MPI).

https://docs.open-mpi.org/en/v4.1.x/faq/running.html names OMPI_COMM_WORLD_*; Hydra's are PMI_* and MPI_LOCAL*.
"""

import re

from distcnn.distributed.launchers.base import Variables, by_accelerate, with_address
from distcnn.distributed.launchers.slurm import Slurm
from distcnn.distributed.world import Environment, World

# rank, size, local rank, local size
OPEN_MPI = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE")
HYDRA = ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS")


class MPI:
    """`mpirun`, `mpiexec`, `accelerate launch --mpirun_hostfile`."""

    rank_names = (OPEN_MPI[0], HYDRA[0])
    local_rank_names = (OPEN_MPI[2], HYDRA[2])

    def detect(self, environment: Environment) -> bool:
        """Whether the variables of either are set. In a Slurm step PMI_* alone are srun's (--mpi=pmi2)."""
        if Slurm().detect(environment):
            return OPEN_MPI[0] in environment or HYDRA[2] in environment
        return any(name in environment for name in (*OPEN_MPI[:2], *HYDRA[:2]))

    def world(self, environment: Environment) -> World:
        """Return the World. Rank 0 is on mpirun's own node, or at MASTER_ADDR."""
        variables = Variables(environment)
        open_mpi = OPEN_MPI[0] in environment or OPEN_MPI[1] in environment
        rank_name, size_name, local_rank_name, local_size_name = OPEN_MPI if open_mpi else HYDRA
        rank, size = variables.number(rank_name), variables.number(size_name, least=1)
        local_rank = variables.number(local_rank_name, None if open_mpi else rank)
        local_size = variables.number(local_size_name, None if open_mpi else size, least=1)
        port = variables.port()
        job = environment.get("PMIX_NAMESPACE") or environment.get("OMPI_MCA_ess_base_jobid")
        hosts = ("127.0.0.1",) if local_size == size else _hosts(environment)
        variables.check({
            f"{rank_name} = {rank} in the environment: should be below {size_name} = {size}; start distcnn with "
            "mpirun, which sets both": rank >= size,
            f"{local_rank_name} = {local_rank}, {local_size_name} = {local_size}, {size_name} = {size}: the local rank "
            "should be below the local size, and that not above the size; start distcnn with mpirun, which sets them":
                not local_rank < local_size <= size,
            "MASTER_ADDR is not set, and rank 0 does not run on mpirun's own node: give mpirun -x MASTER_ADDR=HOST, "
            "the first host of its host file (launch/mpirun.sh does it)":
                local_size != size and rank == 0 and _elsewhere(environment),
            f"MASTER_ADDR is not set, and {rank_name}'s launcher does not say where rank 0 runs: give mpirun "
            "-genv MASTER_ADDR HOST -genv MASTER_PORT 29500 (with Open MPI: -x MASTER_ADDR=HOST)":
                size > 1 and not hosts,
            f"MASTER_PORT is not set, and {rank_name}'s launcher does not name the job, to derive a port from: give "
            "mpirun -genv MASTER_PORT 29500, or any other free port": size > 1 and not job and not port,
        })  # fmt: skip
        launcher = "accelerate" if by_accelerate(environment) else "mpirun"
        world = World(rank, size, local_rank, local_size, rank // local_size, -(-size // local_size), launcher)
        # Accelerate exports MASTER_PORT = 29500 only to the ranks of mpirun's node: a job's name takes precedence.
        return with_address(world, hosts, port, f"mpi-{job}" if job else None)


def _hosts(environment: Environment) -> tuple[str, ...]:
    """Return MASTER_ADDR, and under Open MPI the addresses of mpirun's node.

    Rank 0 runs there unless the host file omits that node.
    """
    given = environment.get("MASTER_ADDR", "")
    addresses = re.findall(r"tcp://([\d.,]+):", environment.get("OMPI_MCA_orte_hnp_uri", ""))
    hosts = [given, *(host for part in addresses for host in part.split(","))]
    return tuple(dict.fromkeys(host for host in hosts if host))


def _elsewhere(environment: Environment) -> bool:
    """Whether this process is on another node than Open MPI's mpirun, and no address is given."""
    uri = environment.get("OMPI_MCA_orte_hnp_uri", "")
    own = environment.get("OMPI_MCA_orte_local_daemon_uri", uri)
    return not environment.get("MASTER_ADDR") and own != uri
