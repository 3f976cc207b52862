"""One process on one GPU: python -m tests.gpu.correct [--data PATH] [--only T3,T4]"""

import sys

from tests.gpu import correct_bits, correct_numbers, correct_use  # noqa: F401 - their checks put themselves into the table
from tests.gpu.suites import CORRECT

if __name__ == "__main__":
    sys.exit(CORRECT.main())
