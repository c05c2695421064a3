"""As the worker's kernels: on a GPU where there is one, else under Triton's interpreter."""

from tests.unit.worker.kernels.conftest import device as device
from tests.unit.worker.kernels.conftest import fresh_random_inputs as fresh_random_inputs
from tests.unit.worker.kernels.conftest import pytest_make_collect_report as pytest_make_collect_report
