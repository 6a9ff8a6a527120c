"""Settings of every test process: small tensors gain nothing from threads that spin."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
