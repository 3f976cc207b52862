"""Several ranks on one GPU: python -m tests.gpu.ranks [--nccl FILE] [--only R1,R2]

Two processes that share a GPU take turns on it: what they find is right or wrong, never fast or slow.
"""

import sys

from tests.gpu import ranks_faults, ranks_same  # noqa: F401 - their checks put themselves into the table
from tests.gpu.suites import RANKS

if __name__ == "__main__":
    sys.exit(RANKS.main())
