"""The variables that real launchers set, and a table of what can be wrong with them."""

# A person's own, or a wrapper's: rank 1 of 2.
BARE = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
# torchrun --standalone --nproc_per_node 2, its second worker
TORCHRUN = BARE | {
    "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0", "GROUP_WORLD_SIZE": "1", "ROLE_RANK": "1", "ROLE_WORLD_SIZE": "2", "ROLE_NAME": "default",
    "TORCHELASTIC_RUN_ID": "0f5c", "TORCHELASTIC_RESTART_COUNT": "0", "TORCHELASTIC_MAX_RESTARTS": "0", "TORCHELASTIC_USE_AGENT_STORE": "True",
}  # fmt: skip
# srun -N 2 -n 2, its first task
SRUN = {
    "SLURM_JOB_ID": "1", "SLURM_STEP_ID": "0", "SLURM_STEPID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_TASKS_PER_NODE": "1(x2)", "SLURM_STEP_NODELIST": "node[1-2]", "SLURM_PROCID": "0", "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0", "SLURM_NTASKS": "2", "SLURM_NNODES": "2", "SLURM_CLUSTER_NAME": "try",
}  # fmt: skip
# a batch script's own shell in an allocation of two tasks
BATCH = {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "2", "SLURM_NNODES": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0",
         "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_TASKS_PER_NODE": "1(x2)", "SLURM_CLUSTER_NAME": "try"}  # fmt: skip
# mpirun -n 2 on one node (Open MPI 4.1), its second rank
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "PMIX_NAMESPACE": "716111873", "PMIX_RANK": "1",
    "OMPI_MCA_orte_hnp_uri": "716111872.0;tcp://10.0.0.2,10.1.0.2:38403;tcp6://[fd00::2]:33823",
    "OMPI_MCA_orte_local_daemon_uri": "716111872.0;tcp://10.0.0.2,10.1.0.2:38403;tcp6://[fd00::2]:33823",
}  # fmt: skip
# the first of two ranks on mpirun's own node, one on another
OPEN_MPI_2 = OPEN_MPI | {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_LOCAL_RANK": "0",
                         "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}  # fmt: skip
ELSEWHERE = {"OMPI_MCA_orte_local_daemon_uri": "716111872.1;tcp://10.0.0.3:41111"}
# mpiexec.hydra -ppn 1 -n 2 (MPICH 4.0) with -genv, its second rank
HYDRA = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "0", "MPI_LOCALNRANKS": "1", "PMI_FD": "8",
         "MASTER_ADDR": "10.0.0.2", "MASTER_PORT": "29500"}  # fmt: skip
# accelerate launch --cpu --num_processes 2: the simple launcher, one process
ACCELERATE = {"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_USE_CPU": "True", "ACCELERATE_DYNAMO_BACKEND": "NO"}
ALONE = ACCELERATE | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


def less(environment: dict[str, str], *names: str) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name not in names}


# what is wrong → (environment, the variable that the message must name, a part of the cure that it must tell)
BROKEN = {
    "RANK missing": (less(BARE, "RANK"), "RANK is not set", "export all of RANK, WORLD_SIZE"),
    "WORLD_SIZE missing": (less(BARE, "WORLD_SIZE"), "WORLD_SIZE is not set", "for each process"),
    "LOCAL_RANK missing": (less(BARE, "LOCAL_RANK"), "LOCAL_RANK is not set", "to run one process, unset RANK WORLD_SIZE MASTER_ADDR MASTER_PORT"),
    "MASTER_ADDR missing": (less(BARE, "MASTER_ADDR"), "MASTER_ADDR is not set", "export all of"),
    "MASTER_PORT missing": (less(BARE, "MASTER_PORT"), "MASTER_PORT is not set", "export all of"),
    "WORLD_SIZE only": ({"WORLD_SIZE": "2"}, "RANK is not set, but WORLD_SIZE is", "unset WORLD_SIZE"),
    "RANK only": ({"RANK": "0"}, "MASTER_PORT is not set, but RANK is", "unset RANK"),
    "RANK is a word": (BARE | {"RANK": "two"}, "RANK = 'two'", "whole number of 0 or more"),
    "RANK is empty": (BARE | {"RANK": ""}, "RANK = ''", "whole number of 0 or more"),
    "WORLD_SIZE is 0": (BARE | {"WORLD_SIZE": "0"}, "WORLD_SIZE = '0'", "whole number of 1 or more"),
    "LOCAL_RANK is negative": (BARE | {"LOCAL_RANK": "-1"}, "LOCAL_RANK = '-1'", "as the launcher sets it"),
    "RANK beyond": (BARE | {"RANK": "2"}, "RANK = 2", "below WORLD_SIZE = 2; ranks start at 0"),
    "LOCAL_RANK beyond": (BARE | {"LOCAL_RANK": "2"}, "LOCAL_RANK = 2", "export the counts of this node"),
    "LOCAL_WORLD_SIZE beyond": (BARE | {"LOCAL_WORLD_SIZE": "3"}, "LOCAL_WORLD_SIZE = 3", "not above the world size"),
    "MASTER_PORT too high": (BARE | {"MASTER_PORT": "70000"}, "MASTER_PORT = 70000", "29500 is the usual one"),
    "MASTER_PORT is 0": (BARE | {"MASTER_PORT": "0"}, "MASTER_PORT = 0", "29500 is the usual one"),
    "MASTER_PORT too high under Hydra": (HYDRA | {"MASTER_PORT": "70000"}, "MASTER_PORT = 70000", "29500 is the usual one"),
    "GROUP_RANK is a word": (TORCHRUN | {"GROUP_RANK": "x"}, "GROUP_RANK = 'x'", "as the launcher sets it"),
    "an agent under each of mpirun's ranks": (OPEN_MPI | TORCHRUN, "OMPI_COMM_WORLD_SIZE = 2", "--nnodes 2 --rdzv-backend c10d"),
    "MASTER_PORT is a word": (BARE | {"MASTER_PORT": "auto"}, "MASTER_PORT = 'auto'", "whole number"),
    "MASTER_ADDR is empty": (BARE | {"MASTER_ADDR": ""}, "MASTER_ADDR is empty", "the host of rank 0"),
    "variables against srun": (BARE | SRUN | {"SLURM_PROCID": "0"}, "SLURM_PROCID = 0", "Unset RANK and WORLD_SIZE"),
    "one rank in each of two tasks": (BARE | SRUN | {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}, "SLURM_STEP_NUM_TASKS = 2", "two launchers disagree"),
    "variables against mpirun": (BARE | OPEN_MPI | {"OMPI_COMM_WORLD_SIZE": "4"}, "OMPI_COMM_WORLD_SIZE = 4", "Unset RANK and WORLD_SIZE"),
    "torchrun agents alone in a step": (TORCHRUN | SRUN, "SLURM_STEP_NUM_TASKS = 2", "--nnodes 2 --rdzv-backend c10d"),
    "torchrun without LOCAL_RANK": (less(TORCHRUN, "LOCAL_RANK"), "LOCAL_RANK is not set", "export all of"),
    "torchrun's agents uncountable": (TORCHRUN | {"GROUP_WORLD_SIZE": "1:4"}, "GROUP_WORLD_SIZE = '1:4'", "whole number"),
    "accelerate without MASTER_PORT": (less(TORCHRUN, "MASTER_PORT") | ACCELERATE, "MASTER_PORT is not set", "export all of"),
    "accelerate --cpu started one process": (ALONE, "ACCELERATE_USE_CPU", "--mpirun_hostfile FILE"),
    "srun: number of tasks missing": (less(SRUN, "SLURM_STEP_NUM_TASKS"), "SLURM_STEP_NUM_TASKS is not set", "as the launcher sets it"),
    "srun: rank missing": (less(SRUN, "SLURM_PROCID"), "SLURM_PROCID is not set", "as the launcher sets it"),
    "srun: local rank missing": (less(SRUN, "SLURM_LOCALID"), "SLURM_LOCALID is not set", "as the launcher sets it"),
    "srun: job missing": (less(SRUN, "SLURM_JOB_ID"), "SLURM_JOB_ID is not set", "as the launcher sets it"),
    "srun: tasks are a word": (SRUN | {"SLURM_STEP_NUM_TASKS": "2(x1)"}, "SLURM_STEP_NUM_TASKS = '2(x1)'", "whole number of 1 or more"),
    "srun: rank beyond": (SRUN | {"SLURM_PROCID": "2"}, "SLURM_PROCID = 2", "start distcnn with srun"),
    "srun: local rank beyond": (SRUN | {"SLURM_LOCALID": "1"}, "SLURM_LOCALID = 1", "start distcnn with srun"),
    "srun: node beyond": (SRUN | {"SLURM_NODEID": "2"}, "SLURM_NODEID = 2", "start distcnn with srun"),
    "srun: node is a word": (SRUN | {"SLURM_NODEID": "node1"}, "SLURM_NODEID = 'node1'", "whole number"),
    "srun: counts do not add up": (SRUN | {"SLURM_STEP_TASKS_PER_NODE": "2(x2)"}, "SLURM_STEP_TASKS_PER_NODE = 2(x2)", "should add up; start distcnn with srun"),
    "srun: counts unreadable": (SRUN | {"SLURM_STEP_TASKS_PER_NODE": "1(x2"}, "SLURM_STEP_TASKS_PER_NODE = '1(x2'", "Unset it"),
    "srun: node list empty": (SRUN | {"SLURM_STEP_NODELIST": ""}, "SLURM_STEP_NODELIST = ''", "start distcnn with srun"),
    "srun: node list missing": (less(SRUN, "SLURM_STEP_NODELIST"), "SLURM_STEP_NODELIST = ''", "start distcnn with srun"),
    "mpirun: rank missing": (less(OPEN_MPI, "OMPI_COMM_WORLD_RANK"), "OMPI_COMM_WORLD_RANK is not set", "as the launcher sets it"),
    "mpirun: size missing": (less(OPEN_MPI, "OMPI_COMM_WORLD_SIZE"), "OMPI_COMM_WORLD_SIZE is not set", "as the launcher sets it"),
    "mpirun: local rank missing": (less(OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_RANK"), "OMPI_COMM_WORLD_LOCAL_RANK is not set", "as the launcher sets it"),
    "mpirun: local size missing": (less(OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_SIZE"), "OMPI_COMM_WORLD_LOCAL_SIZE is not set", "as the launcher sets it"),
    "mpirun: size is a word": (OPEN_MPI | {"OMPI_COMM_WORLD_SIZE": "all"}, "OMPI_COMM_WORLD_SIZE = 'all'", "whole number"),
    "mpirun: rank beyond": (OPEN_MPI | {"OMPI_COMM_WORLD_RANK": "2"}, "OMPI_COMM_WORLD_RANK = 2", "start distcnn with mpirun"),
    "mpirun: local rank beyond": (OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_RANK": "2"}, "OMPI_COMM_WORLD_LOCAL_RANK = 2", "start distcnn with mpirun"),
    "mpirun: local size beyond": (OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "3"}, "OMPI_COMM_WORLD_LOCAL_SIZE = 3", "start distcnn with mpirun"),
    "mpirun: no job and no port": (less(OPEN_MPI, "PMIX_NAMESPACE"), "MASTER_PORT is not set", "-genv MASTER_PORT 29500"),
    "mpirun: several nodes, no address": (less(OPEN_MPI_2, "OMPI_MCA_orte_hnp_uri"), "MASTER_ADDR is not set", "-x MASTER_ADDR=HOST"),
    "mpirun: rank 0 on another node": (OPEN_MPI_2 | ELSEWHERE, "MASTER_ADDR is not set", "the first host of its host file"),
    "hydra: rank missing": (less(HYDRA, "PMI_RANK"), "PMI_RANK is not set", "as the launcher sets it"),
    "hydra: size missing": (less(HYDRA, "PMI_SIZE"), "PMI_SIZE is not set", "as the launcher sets it"),
    "hydra: rank beyond": (HYDRA | {"PMI_RANK": "2"}, "PMI_RANK = 2", "start distcnn with mpirun"),
    "hydra: local rank beyond": (HYDRA | {"MPI_LOCALRANKID": "1"}, "MPI_LOCALRANKID = 1", "start distcnn with mpirun"),
    "hydra: no address": (less(HYDRA, "MASTER_ADDR"), "MASTER_ADDR is not set", "-genv MASTER_ADDR HOST"),
    "hydra: empty address": (HYDRA | {"MASTER_ADDR": ""}, "MASTER_ADDR is not set", "-genv MASTER_ADDR HOST"),
    "hydra: no port": (less(HYDRA, "MASTER_PORT"), "MASTER_PORT is not set", "any other free port"),
    "hydra: port is a word": (HYDRA | {"MASTER_PORT": "any"}, "MASTER_PORT = 'any'", "whole number"),
}  # fmt: skip
