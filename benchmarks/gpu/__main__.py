"""python -m benchmarks.gpu [--data PATH] [--airbench FILE] [--only S1,S2]"""

import sys

from benchmarks.gpu import parts, peers, rates  # noqa: F401 - their checks put themselves into the table
from tests.gpu.suites import SPEED

if __name__ == "__main__":
    sys.exit(SPEED.main())
