"""Set before NumPy is loaded: the references do many tiny factorisations, which a threaded BLAS slows down."""

import os

for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ.setdefault(name, "1")
