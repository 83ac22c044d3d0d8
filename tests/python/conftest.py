import numpy as np
import pytest

import flashomni as fo

AVAILABLE = [info.name for info in fo.backends() if info.available and info.name != "cuda"]


@pytest.fixture
def rng():
    return np.random.default_rng(20250925)


@pytest.fixture(scope="session", params=AVAILABLE)
def backend(request):
    """Every backend that computes on host memory."""
    return fo.Backend(request.param, num_threads=2)
