"""Every backend x operation x workload, each checked before it is timed, beside the copy floor."""

from __future__ import annotations

import numpy as np
import pytest

import pyce
from bench import measure
from bench.workloads import WORKLOADS, Data

ITEMS = [
    *(("floor", name) for name in ("read", "copy")),
    *((backend, name) for name in measure.OPERATIONS for backend in pyce.backends()),
]


def pytest_generate_tests(metafunc):
    full = metafunc.config.getoption("--full")
    workloads = [w for w in WORKLOADS if full or w.quick]
    metafunc.parametrize(
        "data", workloads, indirect=True, scope="module", ids=[w.name for w in workloads]
    )
    metafunc.parametrize(("backend", "operation"), ITEMS, ids=["-".join(i[::-1]) for i in ITEMS])


@pytest.fixture(scope="module")
def data(request):
    """The workload's arrays, kept for its items and then freed before the next."""
    try:
        made = Data(request.param)
    except ImportError as error:
        pytest.skip(str(error))
    yield made
    del made


def bench_loss(benchmark, measured, data, backend, operation):
    about = measure.machine()
    workload = data.workload
    benchmark.extra_info.update(
        workload=workload.name,
        stands_for=workload.stands_for,
        backend=backend,
        operation=operation,
        bytes=measure.bytes_moved(data, operation),
        threads=about["threads"],
        isa=about["isa"] if backend == "c" else None,
    )
    if backend == "floor":
        how, call = measure.floor(data, operation)
        benchmark.extra_info["how"] = how
        data.floor_times[operation] = measured(call)
        return
    with pyce.use_backend(backend):
        call = measure.operation(data, operation)
        data.grad.fill(np.nan)  # so that no result of another item passes for this one's
        check(data, operation, call())  # compiles, too
        floor = data.floor_times.get(measure.FLOOR_OF[operation])
        measured(call, floor)


def check(data, operation, result):
    if operation == "fused":
        data.check_loss(result[0])
    elif operation == "forward":
        data.check_loss(result)
    if operation != "forward":
        data.check_grad(data.grad)
