"""The process that tests run in, put in order before anything else is loaded."""

import os
import signal

# The references do many tiny factorisations, which a threaded BLAS slows down; NumPy's reads this once.
for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ.setdefault(name, "1")

# A shell starts background jobs with Ctrl-C ignored, and children would inherit that: the tests of Ctrl-C need it.
signal.signal(signal.SIGINT, signal.default_int_handler)

import strategies  # noqa: E402, F401  (loads the hypothesis profile, for every test file)
