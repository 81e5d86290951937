"""In place of a process of ``accelerator`` on a GPU: a device that works, hangs, or breaks.

A case goes as its name says. Nothing of the library is imported, so it begins at once.
"""

import fcntl
import json
import os
import signal
import sys
import time

SHAPE = {"name": "base", "B": 3, "T": 4, "I": 3, "H": 6}
CHECKS = ["fine", "hangs", "fine too", "breaks", "dies", "says nothing", "last"]
ROWS = ["first", "hangs", "breaks", "dies when it is ready", "hangs when it is ready", "final"]
ERROR = "CUDA_ERROR_ILLEGAL_ADDRESS: an illegal memory access was encountered"


PLATFORM = os.environ.get("STUB_PLATFORM", "gpu")


def say(message):
    print(json.dumps(message), flush=True)


def survey():
    say(
        {
            "machine": {
                "cpu": "one",
                "cores": 2,
                "python": "3",
                "platform": PLATFORM,
                "device": "Stub GPU",
                "versions": {"jaxrnn": "0", "jax": "0"},
            },
            "precision": {},
            "explained": "gpu runs",
            "missing": os.environ.get("STUB_MISSING"),
            "checks": [
                {
                    "kind": "plain",
                    "cell": cell,
                    "dtype": "float32",
                    "shape": SHAPE,
                    "implementation": "gpu",
                }
                for cell in CHECKS
            ],
            "rows": [
                {"direction": "forward", "dtype": "float32", "shape": SHAPE, "cell": cell}
                for cell in ROWS
            ],
        }
    )


def check(case):
    problem = ERROR if case["cell"] == "breaks" else None
    say(
        case
        | {
            "name": case["cell"],
            "passed": problem is None,
            "errors": {"ys": 0.0},
            "problem": problem,
        }
    )


def row(case):
    say("ready")
    sys.stdin.readline()
    if "when it is ready" in case["cell"]:
        misbehave(case["cell"])
    broken = case["cell"] == "breaks"
    say(
        case
        | {
            "name": case["cell"],
            "runs": "gpu",
            "missing": {"jaxrnn": ERROR} if broken else {},
            "seconds": {} if broken else {"jaxrnn": 1e-3},
            "ratio": {},
            "host_seconds": {} if broken else {"jaxrnn": 1e-5},
        }
    )


def misbehave(how):
    if how.startswith("hangs"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(1000)
    if how.startswith("dies"):
        print("the driver fell over", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "says nothing":
        sys.exit("it gave up")


asked = json.loads(sys.argv[1])
kind = asked.pop("kind")
if "STUB_ALONE" in os.environ:  # a device that only one process can have
    device = os.open(os.environ["STUB_ALONE"], os.O_CREAT | os.O_RDWR)
    fcntl.flock(device, fcntl.LOCK_EX | fcntl.LOCK_NB)
if kind == "survey":
    if os.environ.get("STUB_HANGS"):
        misbehave("hangs")
    survey()
else:
    if "when" not in asked["case"]["cell"]:
        misbehave(asked["case"]["cell"])
    {"check": check, "row": row}[kind](asked["case"])
