"""What a process of ``accelerator`` does.

A piece of work is a function that gives messages. After READY, it waits until it may go on: then
nothing else runs on the device. Messages are lines of JSON on standard output; whatever else is
written there goes to standard error.
"""

import argparse
import concurrent.futures
import json
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any

from benchmarks.accelerator.cases import packed, unpacked

READY = "ready"
PACKAGES = ("jax-cuda12-plugin", "jax-cuda13-plugin", "libtpu", "torch", "triton")


def survey(options: dict[str, Any]) -> Iterator[Any]:
    """The device, and what there is to check and to time."""
    import jax

    from benchmarks.accelerator import broadly, checks, rows
    from benchmarks.shared import machine

    chosen = argparse.Namespace(**options)
    device = jax.devices()[0]
    to_check, to_time = checks.cases(chosen, broadly), rows.cases(chosen, broadly)
    yield {
        "machine": machine.describe((*machine.PACKAGES, *PACKAGES), device),
        "precision": precision(),
        "explained": checks.explained(to_check[0]) if to_check else "nothing to check",
        "missing": checks.missing(device),
        "checks": [packed(case) for case in to_check],
        "rows": [packed(case) for case in to_time],
    }


def precision() -> dict[str, Any]:
    """How the libraries multiply in float32, and what they call."""
    import jax

    found = {"jax_default_matmul_precision": jax.config.jax_default_matmul_precision}
    try:
        import torch
    except ImportError:
        return found
    cudnn = torch.backends.cudnn
    return found | {"cudnn": cudnn.version(), "cudnn_allow_tf32": cudnn.allow_tf32}


def check(case: dict[str, Any]) -> Iterator[Any]:
    """A check's row."""
    import jax

    from benchmarks.accelerator import checks, driver

    if case["implementation"] == driver.NAME:
        jax.config.update("jax_platforms", "cpu")
    yield checks.measure(unpacked(checks.Case, case))


def row(case: dict[str, Any], peers: list[str]) -> Iterator[Any]:
    """A timed row, once everything in it is compiled."""
    from benchmarks.accelerator import rows
    from benchmarks.shared import machine

    found = unpacked(rows.Case, case)
    with concurrent.futures.ThreadPoolExecutor(machine.cores()) as pool:
        programs = rows.prepared(pool, found, peers)
    yield READY
    yield rows.measure(found, programs)


def plan(case: dict[str, Any]) -> Iterator[Any]:
    """The time of a kernel with one plan, once it is compiled."""
    from benchmarks import plans

    found = unpacked(plans.Case, case)
    call = plans.prepared(found)
    yield READY
    yield plans.measure(found, call)


def plans_of(options: dict[str, Any]) -> Iterator[Any]:
    """The plans that there are of some shapes."""
    from benchmarks import plans

    yield plans.survey(argparse.Namespace(**options))


KINDS = {f.__name__: f for f in (survey, check, row, plan, plans_of)}


def main(asked: str) -> None:
    """Does a piece of work, which is JSON: the name of its function, and arguments."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    may_go_on = threading.Semaphore(0)
    threading.Thread(target=_listen, args=(may_go_on,), daemon=True).start()
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # others need memory too
    work = json.loads(asked)
    for message in KINDS[work.pop("kind")](**work):
        print(json.dumps(message, allow_nan=False), file=out, flush=True)
        if message == READY:
            may_go_on.acquire()


def _listen(may_go_on: threading.Semaphore) -> None:
    """Ends this process when nobody is there any more who wants its messages."""
    for _ in sys.stdin:
        may_go_on.release()
    os._exit(1)
