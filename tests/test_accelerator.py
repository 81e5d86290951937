"""The command for a GPU or TPU, on a CPU and with tiny sizes: a time is never asserted."""

import concurrent.futures
import ctypes
import functools
import itertools
import json
import math
import pathlib
import subprocess
import sys
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import NO_KERNEL, TOLERANCE
from emulated import emulated, made, run_text
from instead import instead

from benchmarks import accelerator, plans
from benchmarks.accelerator import attention, cases, driver, kinds, linear, plain, processes, work
from benchmarks.accelerator import checks as checking
from benchmarks.accelerator import rows as timed
from benchmarks.accelerator.once import once
from benchmarks.accelerator.processes import ROOT, Died, Process
from benchmarks.accelerator.words import sentences, tables
from benchmarks.shared import contenders, record, scans, timing
from benchmarks.shared.contenders import OURS
from benchmarks.shared.shapes import SHAPES, WIDE, Shape
from jaxrnn._src.ops.attention import blockwise, cudnn
from jaxrnn._src.ops.linear_scan import xla as linear_xla
from jaxrnn._src.ops.recurrence import gpu, xla

NAMES = ("cpu", "xla", "reference")[bool(NO_KERNEL) :]  # of the implementations that run here


@pytest.fixture(scope="module")
def plain_jax():
    """JAX's defaults, in all threads: Flax needs them."""
    names = ("jax_numpy_dtype_promotion", "jax_numpy_rank_promotion")
    before = {name: getattr(jax.config, name) for name in names}
    for name, value in zip(names, ("standard", "allow")):
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


class Here:
    """In place of a process: the work is done in this one, where a test can change it."""

    def __init__(self, asked):
        asked = json.loads(json.dumps(asked))
        self.messages = work.KINDS[asked.pop("kind")](**asked)

    def receive(self, seconds):
        return json.loads(json.dumps(next(self.messages), allow_nan=False))

    def go_on(self):
        pass

    end = go_on


@pytest.fixture(autouse=True, scope="module")
def in_this_process():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, "Process", Here)
        yield


def run(out, *arguments):
    """The exit status and the record of a run."""
    status = accelerator.main(["--tiny", "--out", str(out), *arguments])
    return status, json.loads((out / "accelerator-cpu.json").read_text())


FEW = ("--cells", "elman", "--dtypes", "float32")  # no library has a row for it
LEFT = {"checks": [], "rows": []}


@pytest.fixture(scope="module")
def complete(tmp_path_factory, plain_jax):
    """A run of everything there is for one cell and type."""
    out = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accelerator, "CHECKS", 1)
        return run(out, "--cells", "lstm", "--dtypes", "float32")


def test_every_check_is_right(complete):
    status, content = complete
    assert status == 0 and content["interrupted"] is False
    assert content["not_run"] == LEFT
    assert {row["implementation"] for row in content["checks"]} == set(NAMES)
    ran = {row["kind"] for row in content["checks"] if row["implementation"] == NAMES[0]}
    assert ran == set(kinds.KINDS) - {"float32 weights"}
    for row in content["checks"]:
        assert row["passed"] is True and row["problem"] is None
        assert row["errors"] and all(e < 1e-5 for e in row["errors"].values())


def test_every_row_has_its_times(complete):
    _, content = complete
    assert [row["direction"] for row in content["rows"]] == list(timed.DIRECTIONS)
    for row in content["rows"]:
        ran = set(row["samples"])
        assert row["runs"] == NAMES[0] and {OURS, "linen", "attention"} <= ran
        assert ran | set(row["missing"]) == {OURS, *NAMES[1:-1], *timed.PEERS}
        for kept in ("seconds", "host_seconds", "compile_seconds", "calls"):
            assert set(row[kept]) == ran == {OURS, *row["ratio"]}
        assert len({len(samples) for samples in row["samples"].values()}) == 1
        assert all(min(samples) > 0 for samples in row["samples"].values())
        assert "needs a GPU" in row["missing"]["cudnn"]


def test_the_record_says_where_it_comes_from(complete):
    _, content = complete
    assert content["machine"]["versions"]["jax"] == jax.__version__
    assert {"torch", "triton", "flax", "jax-cuda13-plugin"} <= set(content["machine"]["versions"])
    assert "jax_default_matmul_precision" in content["precision"]
    parts = content["checks"], content["rows"], content["not_run"]
    assert content["words"] == list(sentences(*parts))


@pytest.mark.parametrize("how", ["wrong", "broken"])
def test_a_wrong_implementation_is_told(tmp_path, capsys, how):
    right = xla.backward

    def backward(*arguments):
        if how == "broken":
            raise NotImplementedError("nobody [wrote] it")
        gradients = right(*arguments)
        return gradients._replace(r=-gradients.r)

    with instead((xla, "backward", backward)):
        status, content = run(tmp_path, *FEW)
    assert status == 1 and content["not_run"] == LEFT
    for row in content["checks"]:
        assert row["passed"] is (row["implementation"] != "xla")
    problems = {row["problem"] for row in content["checks"]} - {None}
    said = "worst gradients.params.r: an error of" if how == "wrong" else "nobody [wrote] it"
    assert problems and all(said in problem for problem in problems)
    assert "Failed: elman plain float32 xla: " in capsys.readouterr().out


def test_the_linear_recurrence(tmp_path, monkeypatch, capsys):
    """All of its checks and rows; then with a backward that gives a wrong gradient of factors."""
    monkeypatch.setattr(accelerator, "CHECKS", 1)
    status, content = run(tmp_path, "--cells", *linear.CELLS, "--dtypes", "float32")
    assert status == 0 and content["not_run"] == LEFT
    runs = "xla" if NO_KERNEL else "cpu"
    assert len(content["checks"]) == 2 * 2 * (2 + (runs == "cpu"))  # cells, kinds, implementations
    assert all(row["passed"] for row in content["checks"])
    for row in content["rows"]:
        assert row["runs"] == runs
        assert set(row["samples"]) - {"xla"} == {OURS, *scans.PEERS}
    assert len(content["rows"]) == 2
    assert "the faster of associative and scan" in capsys.readouterr().out

    right = linear_xla.backward

    def backward(*arguments):
        gradients = right(*arguments)
        return gradients._replace(constant=2 * gradients.constant)

    with instead((linear_xla, "backward", backward)):
        status, content = run(tmp_path, "--cells", "linear_scan complex", "--dtypes", "float32")
    assert status == 1
    for row in content["checks"]:
        assert row["passed"] is (row["implementation"] != "xla")
        assert row["passed"] or "gradients.params.a" in row["problem"]


def test_attention(tmp_path, monkeypatch):
    """All of its checks; then with a backward that forgets a gradient; cuDNN where it can run."""
    arguments = "--cells", *attention.CELLS, "--dtypes", "float32"
    monkeypatch.setattr(accelerator, "CHECKS", 1)
    status, content = run(tmp_path, *arguments)
    assert status == 0 and content["not_run"] == LEFT and content["rows"] == []
    assert len(content["checks"]) == 2 * 2 * len(NAMES)  # cells, kinds
    assert all(row["passed"] for row in content["checks"])

    right = blockwise.backward

    def backward(*given):
        gradients = right(*given)
        return gradients._replace(k=0 * gradients.k)

    with instead((blockwise, "backward", backward)):
        status, content = run(tmp_path, "--cells", attention.NAME, "--dtypes", "float32")
    assert status == 1
    for row in content["checks"]:
        assert row["passed"] is (row["implementation"] != "xla")
        assert row["passed"] or "worst gradients." in row["problem"]

    monkeypatch.setattr(cudnn, "_capability", lambda chip: 9.0)
    on_a_gpu = types.SimpleNamespace(platform="gpu", device_kind="one")
    for dtype, names in (("bfloat16", ["gpu", "xla", "reference"]), ("float32", NAMES[-2:])):
        layer = checking._layer(attention.NAME, dtype, kinds.SHAPES["base"])
        able = [
            n for n in checking._BEST_FIRST if not checking.why_not(n, *layer, platform=on_a_gpu)
        ]
        assert able == list(names)


class HostsDriver:
    """CUDA's driver, as far as it is used, for kernels that are compiled for a CPU."""

    def __init__(self):
        self.kept, self.modules, self.launches, self.spoil = {}, [], [], False

    def __getattr__(self, name):
        return lambda *given: 0  # what has nothing to do here

    def cuMemAlloc_v2(self, place, size):
        memory = ctypes.create_string_buffer(b"\x5a" * size.value, size.value)
        place._obj.value = ctypes.addressof(memory)
        self.kept[place._obj.value] = memory
        return 0

    def cuMemHostAlloc(self, word, size, flags):
        return self.cuMemAlloc_v2(word, size)

    def cuMemFree_v2(self, place):
        return 0 if self.kept.pop(place.value, None) else 1

    def cuMemsetD8_v2(self, place, byte, size):
        ctypes.memset(place.value, byte.value, size.value)
        return 0

    def cuMemcpyHtoD_v2(self, to, source, size):
        ctypes.memmove(to.value, source.value, size.value)
        return 0

    cuMemcpyDtoH_v2 = cuMemcpyHtoD_v2

    def cuModuleGetFunction(self, function, module, name):
        function._obj.value = module.value
        return 0

    def cuModuleLoadData(self, module, code):
        self.modules.append(ctypes.create_string_buffer(code))
        module._obj.value = ctypes.addressof(self.modules[-1])
        return 0

    def cuLaunchKernel(self, function, blocks, *more):
        *_, threads, _, _, shared, _, parameters, _ = more
        return self.launched(function, blocks, threads, shared, parameters)

    def cuLaunchCooperativeKernel(self, function, blocks, *more):
        *_, threads, _, _, shared, _, parameters = more
        return self.launched(function, blocks, threads, shared, parameters)

    def cuLaunchKernelEx(self, config, function, parameters, extra):
        c = config._obj
        given = {c.attributes[i].id: tuple(c.attributes[i].value[:3]) for i in range(c.count)}
        assert given[2][0] == 1 and given[4][1:] == (1, 1), "a cluster that may wait for its turn"
        where = function, c.grid[0], c.block[0], c.shared, parameters
        return self.launched(*where, given[4][0])

    def launched(self, function, blocks, threads, shared, parameters, cluster=1):
        args = ctypes.cast(parameters[0], ctypes.POINTER(driver.Args))[0]
        assert args.first == 0 and blocks % args.groups == 0
        numbers = [blocks // args.groups, args.groups, threads, shared]
        numbers += [args.steps, args.rows, args.tiles, args.groups, True, cluster]
        pointers = [place for place in args.array if place]
        text = ctypes.string_at(function.value).decode().rstrip()
        wrong, _ = run_text(text, pointers, list(args.member), numbers)
        if self.spoil:
            ctypes.memset(pointers[-2], 0, 4)
        self.launches.append((blocks, cluster))
        return 1 if wrong else 0


@pytest.mark.parametrize(
    ("cell", "kind", "clusters"),
    [("lstm", "plain", 0), ("lstm", "plain", 2), (linear.NAME, "all flags", 0)],
)
def test_the_driver_alone(monkeypatch, cell, kind, clusters):
    """A check of a kernel that no part of XLA for GPUs takes part in."""
    cuda = HostsDriver()
    text = lambda text, _: np.frombuffer(text.encode() + b" " * (-len(text) % 4), np.int32)
    monkeypatch.setattr(driver.cubins, "machine_code", text)
    shape = linear.fitted(cell, kinds.TINY)
    with emulated(clusters=clusters) as emulation:
        on_host = driver.Driver(cuda, emulation.chip)
        with instead((driver, "found", lambda: on_host)):
            case = checking.Case(kind, cell, "float32", shape, driver.NAME)
            row = checking.measure(case)
            assert row["passed"] and not emulation.launched, row
            assert len(cuda.modules) == 3 <= len(cuda.launches)  # forward twice, once to keep
            assert {cluster for _, cluster in cuda.launches} == {4 if clusters else 1}
            assert len(cuda.kept) == 1, "beside the host's word, memory is not given back"
            cuda.spoil = True
            assert checking.measure(case)["passed"] is False
            cuda.cuCtxSynchronize = cuda.cuMemFree_v2 = lambda *given: 700
            problem = checking.measure(case)["problem"]
            assert "cuCtxSynchronize: CUDA's driver gives 700" in problem
            assert "cuMemFree" not in problem, "what went wrong first is what is said"


def test_the_driver_comes_first_where_its_kernels_run(monkeypatch):
    chosen = accelerator.parse([])
    for name, runs in (("gpu", True), ("cpu", False)):
        monkeypatch.setattr(checking, "_names", lambda *_, name=name: [name, "xla"])
        cases = checking.cases(chosen, accelerator.broadly)
        first = list(itertools.takewhile(lambda case: case.implementation == "driver", cases))
        assert [c for c in cases if c.implementation == "driver"] == first
        assert ({"lstm", "gru", linear.NAME} <= {c.cell for c in first}) == runs
        kinds_of_them = {"plain", "all flags", "repeated", "rounded"}
        assert {c.kind for c in first} == (kinds_of_them if runs else set())
    monkeypatch.setattr(driver.library, "missing", lambda: "it is not there")
    case = checking.Case("plain", "lstm", "float32", kinds.TINY, driver.NAME)
    assert checking.measure(case)["problem"] == "Failed: it is not there"


def test_what_runs_on_request_is_timed_too(monkeypatch):
    """A kernel that no such chip has confirmed, beside what a user gets."""
    monkeypatch.setattr(timed, "implementations", lambda *layer: ["gpu", "xla", "reference"])
    monkeypatch.setattr(timed, "usual", lambda *layer: "xla")
    case = timed.Case("forward", "float32", linear.SHAPES[0], linear.NAME)
    assert timed._ours(case) == ["xla", "gpu"]
    assert list(timed._contenders(case, ())) == [OURS, "gpu", *scans.PEERS]


def test_what_the_time_was_up_for_is_listed(tmp_path):
    status, content = run(tmp_path, "--seconds", "0")
    assert status == 0 and content["checks"] == content["rows"] == []
    chosen = accelerator.parse(["--tiny"])
    for name, part in (("checks", checking), ("rows", timed)):
        names = list(map(str, part.cases(chosen, accelerator.broadly)))
        assert content["not_run"][name] == names and len(set(names)) == len(names)
    assert content["words"][0].startswith("Checks: 0 right, 0 failed")


@pytest.mark.parametrize("part", [checking, timed])
def test_an_interrupt_keeps_what_there_is(tmp_path, monkeypatch, part):
    rows = []

    def measure(case, *programs):
        if len(rows) == 2:
            raise KeyboardInterrupt
        rows.append(str(case))
        return {
            "name": str(case),
            "passed": None,
            "missing": {},
            "seconds": {},
            "ratio": {},
            "direction": "forward",
            "cell": "",
            "dtype": "",
            "runs": "",
            "shape": {"name": ""},
        }

    monkeypatch.setattr(accelerator.machine, "cores", lambda: 1)
    monkeypatch.setattr(part, "measure", measure)
    monkeypatch.setattr(timed, "prepared", lambda pool, case, peers: {})
    if part is timed:
        monkeypatch.setattr(accelerator, "CHECKS", 0)
    status, content = run(tmp_path)
    name = "checks" if part is checking else "rows"
    assert status == 130 and content["interrupted"] is True
    assert [row["name"] for row in content[name]] == rows and len(rows) == 2
    assert content["not_run"][name]


def test_it_needs_jax_alone(tmp_path):
    """Without rich, Flax and all other packages, and with jaxrnn not installed but here."""
    program = """import sys
sys.modules |= dict.fromkeys(("rich", "matplotlib", "optax", "flax", "torch"))
from benchmarks.__main__ import main
sys.exit(main(sys.argv[1:]))"""
    command = ["accelerator", "--tiny", "--seconds", "0", "--out", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-c", program, *command],
        capture_output=True,
        text=True,
        cwd=pathlib.Path(accelerator.__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Checks and times\n") and "Rows: 0 timed" in done.stdout


def test_a_cpu_is_no_accelerator():
    with pytest.raises(SystemExit, match="no GPU or TPU here"):
        accelerator.main([])


# the order


def test_every_shape_has_a_place():
    assert set(timed.LAYERS) == {*SHAPES, *WIDE}
    assert {shape.H for shape in WIDE.values()} == {512, 768, 1024, 2048}


def test_a_cut_leaves_something_of_everything():
    chosen = accelerator.parse([])
    rows = timed.cases(chosen, accelerator.broadly)
    assert [str(row) for row in rows[:3]] == [
        "lstm h768-b16-t1024 float16 value and grad",
        "lstm h768-b16-t1024 float16 forward",
        "lstm h768-b16-t1024 bfloat16 value and grad",
    ]
    layers = [row for row in rows if row.cell != linear.NAME]
    assert len(set(layers)) == len(layers) == 2 * 3 * 2 * len(timed.LAYERS) + 2 * 2
    assert len(set(rows)) == len(rows) == len(layers) + 2 * 2 * len(linear.SHAPES)
    assert len(layers) / 5 < rows.index(next(row for row in rows if row not in layers))
    first = [set(values) for values in zip(*rows[:12])]
    assert [len(values) for values in first] == [2, 3, 3, 2]
    checks = checking.cases(chosen, accelerator.broadly)
    assert len(set(checks)) == len(checks)
    first = checks[: len(checks) // 3]
    assert {case.implementation for case in first} == set(NAMES)
    late = {"elman", f"{linear.NAME} complex", f"{attention.NAME} window", kinds.MEMORY}
    assert {case.cell for case in first} >= set(kinds.CELLS) - late
    half = {case.cell for case in checks[: len(checks) // 2]}
    assert half >= set(kinds.CELLS) - {f"{attention.NAME} window", kinds.MEMORY}
    assert {case.dtype for case in first} == set(timed.DTYPES)


# what is checked


def test_the_tolerances_are_the_tests():
    assert checking.TOLERANCE.items() <= TOLERANCE.items()


@pytest.mark.parametrize(
    ("kind", "cell", "dtype"),
    [
        ("plain", "user", "float16"),
        ("all flags", "gru", "bfloat16"),
        ("heads", "gru", "float16"),
        ("float32 weights", "gru", "bfloat16"),
        ("vmap of weights", "gru", "bfloat16"),
    ],
)
@pytest.mark.parametrize("implementation", NAMES)
def test_other_checks(kind, cell, dtype, implementation):
    row = checking.measure(checking.Case(kind, cell, dtype, kinds.TINY, implementation))
    assert row["passed"], row


def test_an_implementation_that_cannot_run_has_not_failed():
    row = checking.measure(checking.Case("plain", "lstm", "float32", kinds.TINY, "gpu"))
    assert row["passed"] is None and "gpu" in row["problem"]
    said = next(sentences([row], [], LEFT))
    assert said.endswith(" 1 of what an implementation cannot run, 0 not run.")


def test_a_truth_is_made_once(monkeypatch):
    """For implementations that are checked at the same time, and compiled once for all types."""
    asked, computed, shape = [], checking._computed, Shape("base", 2, 3, 4, 5)

    def count(given, kind, implementation):
        asked.append((given.moving[1].dtype, implementation))
        return computed(given, kind, implementation)

    monkeypatch.setattr(checking, "_computed", count)
    cases = [
        checking.Case("plain", "elman", dtype, shape, name)
        for dtype in ("float32", "bfloat16")
        for name in ("xla", "reference")
    ]
    with concurrent.futures.ThreadPoolExecutor(len(cases)) as pool:
        rows = list(pool.map(checking.measure, cases))
    assert all(row["passed"] for row in rows)
    assert len(asked) == 4 + 2 and asked.count((jnp.float64, "reference")) == 2


def test_nothing_is_tuned_for_a_check_on_a_gpu(monkeypatch):
    given, programs = checking._given("plain", "elman", "float32", kinds.TINY), []
    stub = lambda *args: programs.append(args) or (lambda *arrays: {})
    monkeypatch.setattr(checking, "_program", stub)
    with jax.default_device(jax.devices("cpu")[0]):
        checking._computed(given, "plain", "xla")
    monkeypatch.setattr(jax, "devices", lambda: [types.SimpleNamespace(platform="gpu")])
    checking._computed(given, "plain", "xla")
    assert [args[-1] for args in programs] == [(), checking.GPU]


def test_xla_knows_the_options():
    assert jax.jit(jnp.sin, compiler_options=dict(checking.GPU))(0.0) == 0
    with pytest.raises(Exception, match="xla_gpu_autotune_levels"):
        jax.jit(jnp.cos, compiler_options={"xla_gpu_autotune_levels": 0})(0.0)


def test_once():
    made = []

    @once(None)
    def double(number):
        made.append(number)
        return 2 * number

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(double, [1, 2] * 20)) == [2, 4] * 20
    assert sorted(made) == [1, 2]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_no_number_is_no_small_error(monkeypatch, value):
    """Wherever it stands, and it can be written down."""
    computed = checking._computed

    def last(given, kind, implementation):
        found = computed(given, kind, implementation)
        if implementation == "xla":
            found["outputs.ys"] = found["outputs.ys"].copy()
            found["outputs.ys"][-1, -1, -1] = value
        return found

    monkeypatch.setattr(checking, "_computed", last)
    row = checking.measure(checking.Case("plain", "elman", "float32", kinds.TINY, "xla"))
    assert row["passed"] is False and row["errors"]["outputs.ys"] is None
    assert row["problem"].endswith("worst outputs.ys: not finite")
    json.dumps(row, allow_nan=False)


# what is timed


def test_cudnns_lstm_is_called_as_it_wants(monkeypatch):
    """Traced, with the one function of its library that tracing needs."""
    from jax.experimental import rnn

    library = types.SimpleNamespace(
        compute_rnn_workspace_reserve_space_sizes=lambda *sizes: (0, 16)
    )
    monkeypatch.setattr(rnn, "gpu_rnn", library)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    shape = SHAPES["small"]
    apply, weights = contenders.cudnn("lstm", shape, "float32")
    xs = jax.ShapeDtypeStruct((shape.B, shape.T, shape.I), jnp.float32)
    ys = jax.ShapeDtypeStruct((shape.B, shape.T, shape.H), jnp.float32)
    assert jax.eval_shape(contenders.timed(apply, "forward"), weights, xs, ys) == ys
    gradients = jax.eval_shape(contenders.timed(apply, "value_and_grad"), weights, xs, ys)[1]
    assert gradients == (weights, xs)
    for cell, dtype in (("gru", "float32"), ("lstm", "bfloat16")):
        with pytest.raises(ImportError, match="LSTM in float32 alone"):
            contenders.cudnn(cell, shape, dtype)


def test_attention_has_heads_of_one_width():
    shape = SHAPES["small"]
    apply, params = timed.attention("lstm", shape, "float32")
    xs = jax.ShapeDtypeStruct((shape.T, shape.B, shape.I), jnp.float32)
    assert jax.eval_shape(apply, params, xs).shape == (shape.T, shape.B, shape.H)
    assert params["qkv"].shape == (shape.I, 3, shape.H // timed.HEAD, timed.HEAD)
    with pytest.raises(ImportError, match="H=16"):
        timed.attention("lstm", SHAPES["tiny-long"], "float32")


def test_what_takes_long_is_compiled_seldom(monkeypatch):
    """In four rows, and wherever this command is only tried."""
    monkeypatch.setattr(timed, "_ours", lambda case: ["gpu", "xla"])
    cases = timed.cases(accelerator.parse([]), accelerator.broadly)
    layers = [case for case in cases if case.cell != linear.NAME]
    everyone = {OURS, "xla", *timed.PEERS}
    full = [row for row in layers if everyone == set(timed._contenders(row, timed.PEERS))]
    assert len(full) == 4 and {row.shape.name for row in full} == {"h1024-b16"}
    others = [timed._contenders(row, timed.PEERS) for row in layers if row not in full]
    assert all({OURS, "torch"} <= set(row) and not set(timed.SELDOM) & set(row) for row in others)


def test_torch_takes_its_weights_as_they_lie(monkeypatch):
    """On a GPU, which is not there: PyTorch asks this before it lays them out for cuDNN."""
    torch = pytest.importorskip("torch")
    known = torch.backends.cudnn.CUDNN_TENSOR_DTYPES
    before = set(known)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    try:
        contenders.torch("lstm", SHAPES["small"], "forward", "bfloat16")
        assert known >= {torch.float16, torch.float32, torch.bfloat16}
    finally:
        known &= before


def test_who_fails_does_not_stop_the_others():
    case = timed.Case("forward", "float32", timed.TINY, "lstm")

    def fails():
        raise MemoryError("all of it")

    works = lambda: functools.partial(jnp.zeros, 3)
    programs = {
        OURS: (works, 1.0, None),
        "linen": (lambda: fails, 2.0, None),
        "torch": ImportError("none"),
    }
    row = timed.measure(case, programs)
    assert set(row["samples"]) == {OURS} and row["ratio"] == {}
    assert row["missing"] == {"linen": "MemoryError: all of it", "torch": "ImportError: none"}
    other = {OURS: programs["linen"], "linen": programs[OURS]}
    row = timed.measure(case, programs | other)
    assert set(row["samples"]) == {"linen"} and row["ratio"] == {}
    assert row["missing"][OURS] == "MemoryError: all of it"
    assert list(tables(plain, [row])) and timed.brief(row) == "[red]failed[/]"


def test_a_batch_takes_as_long_as_it_should(monkeypatch):
    monkeypatch.setattr(timing, "once", lambda call: call() or 0.001 * len(made))
    made = []
    several, count = timing.batched(lambda: made.append(1), 0.02)
    assert count == 16 and len(made) == 31  # 1 + 2 + 4 + 8 + 16 calls
    assert timing.batched(lambda: made.append(1), 0)[1] == 1


# what is said


def rows_of(shape, dtype="bfloat16", **ratios):
    return {
        "name": f"lstm {shape}",
        "direction": "forward",
        "cell": "lstm",
        "dtype": dtype,
        "shape": {"name": shape, "T": 100},
        "runs": "xla",
        "missing": {"torch": "No\nTorch"},
        "seconds": {OURS: 1e-3, **dict.fromkeys(ratios, 2e-3)},
        "host_seconds": {OURS: 1e-3 if shape == "b" else 1e-5, **dict.fromkeys(ratios, 1e-5)},
        "ratio": {name: [ratio, ratio - 0.1, ratio + 0.1] for name, ratio in ratios.items()},
    }


def test_words():
    rows = [rows_of("a", linen=2.0, cudnn=4.0, attention=0.5), rows_of("b", linen=0.5)]
    checks = [
        {"name": "lstm plain", "passed": False, "problem": "an error of 1\nand more"},
        {"name": "gru plain", "passed": True},
    ]
    left = {"checks": ["c"], "rows": ["d", "e"]}
    assert list(sentences(checks, rows, left)) == [
        "Checks: 1 right, 1 failed, 0 of what an implementation cannot run, 1 not run.",
        "Failed: lstm plain: an error of 1.",
        "Rows: 2 timed, 2 not run.",
        "lstm forward, bfloat16: 1.00 times as fast as the best of linen, cudnn and torch"
        " (geometric mean; 0.50 to 2.00), slower by more than 5% at b 0.50.",
        "lstm forward, bfloat16: 0.50 times as fast as attention (geometric mean; 0.50 to 0.50),"
        " slower by more than 5% at a 0.50.",
        "torch did not run in 2 rows; in the first: No.",
        "The host may be what is timed, as it takes as long: lstm b.",
    ]


def test_tables_in_plain_text(capsys):
    rows = [rows_of("a", linen=2.0), rows_of("b", linen=0.5, cudnn=1.0)]
    (table,) = tables(plain, rows)
    plain.console().print(table)
    assert capsys.readouterr().out.splitlines() == [
        "forward: ys",
        "cell  shape  type      runs  µs a step       linen       cudnn",
        "lstm  a      bfloat16  xla          10  2.00 ±0.10           -",
        "lstm  b      bfloat16  xla         10*  0.50 ±0.10  1.00 ±0.10",
    ]
    with plain.progress(plain.console(), 1) as step, step("one") as done:
        done("[red]it[/] [bold]is[/]")
    plain.console().print("[red]", markup=False)
    assert capsys.readouterr().out == "one  it is\n[red]\n"


def test_a_device_is_a_part_of_a_files_name():
    assert record.slug("NVIDIA H200") == "nvidia-h200"
    assert record.slug("TPU v5 lite") == "tpu-v5-lite"


# processes


STUB = sys.executable, "-S", str(pathlib.Path(__file__).with_name("stub_work.py"))


@pytest.fixture
def stub(monkeypatch):
    """Processes on a device that is not one, and little patience."""
    monkeypatch.setattr(processes, "Process", functools.partial(Process, command=STUB))
    seconds = dict.fromkeys(processes.DEADLINES, 3.0)
    monkeypatch.setattr(processes, "DEADLINES", seconds | {"survey": 30.0})


def test_a_device_that_hangs_breaks_or_dies(tmp_path, stub, capsys):
    """What does so is a row and says why; all other rows are there, and no process is left."""
    status = accelerator.main(["--out", str(tmp_path)])
    content = json.loads((tmp_path / "accelerator-stub-gpu.json").read_text())
    assert status == 1 and content["not_run"] == LEFT
    checks = {row["cell"]: row["problem"] for row in content["checks"]}
    assert [name for name, problem in checks.items() if problem is None] == [
        "fine",
        "fine too",
        "last",
    ]
    killed = "nothing came within 3 seconds, so it was killed"
    died = "its process ended with signal 9: the driver fell over"
    assert checks["hangs"] == killed and checks["dies"] == died
    assert checks["breaks"].startswith("CUDA_ERROR_ILLEGAL_ADDRESS")
    assert checks["says nothing"] == "its process ended with status 1: it gave up"
    rows = {row["cell"]: row["missing"].get(OURS) for row in content["rows"]}
    assert rows["first"] is None and rows["final"] is None and len(rows) == 6
    assert rows["hangs"] == rows["hangs when it is ready"] == killed
    assert rows["dies when it is ready"] == died and "ILLEGAL" in rows["breaks"]
    lines = (tmp_path / "accelerator-stub-gpu.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == content["checks"] + content["rows"]
    assert "Rows: 6 timed, 0 not run." in capsys.readouterr().out
    assert not processes._running


def test_a_tpu_belongs_to_one_process(tmp_path, stub, monkeypatch):
    monkeypatch.setenv("STUB_PLATFORM", "tpu")
    monkeypatch.setenv("STUB_ALONE", str(tmp_path / "tpu"))
    monkeypatch.setattr(processes, "DEADLINES", dict.fromkeys(processes.DEADLINES, 1.5))
    accelerator.main(["--out", str(tmp_path)])
    content = json.loads((tmp_path / "accelerator-stub-gpu.json").read_text())
    fine = {row["cell"] for row in content["checks"] if row["passed"]}
    fine |= {row["cell"] for row in content["rows"] if OURS not in row["missing"]}
    assert fine == {"fine", "fine too", "last", "first", "final"}


def test_what_still_runs_at_the_end_was_not_run(tmp_path, stub, monkeypatch):
    """No deadline is later than the end of all."""
    monkeypatch.setattr(accelerator, "CHECKS", 1)
    monkeypatch.setattr(processes, "DEADLINES", {**processes.DEADLINES, "check": 100.0})
    begin = time.monotonic()
    accelerator.main(["--out", str(tmp_path), "--seconds", "4"])
    assert time.monotonic() - begin < 60
    content = json.loads((tmp_path / "accelerator-stub-gpu.json").read_text())
    assert content["rows"] == [] and len(content["not_run"]["rows"]) == 6
    assert [row["cell"] for row in content["checks"]] == ["fine"]  # in order, up to what hung


def test_a_device_that_cannot_be_asked(tmp_path, stub, monkeypatch):
    monkeypatch.setenv("STUB_MISSING", "nobody built it")
    with pytest.raises(SystemExit, match="is missing: nobody built it"):
        accelerator.main(["--out", str(tmp_path)])
    monkeypatch.setenv("STUB_HANGS", "1")
    monkeypatch.setattr(processes, "DEADLINES", {"survey": 1.0})
    with pytest.raises(SystemExit, match="cannot be asked: nothing came within 1 seconds"):
        accelerator.main(["--out", str(tmp_path)])


def test_a_process_does_what_it_is_asked():
    case = checking.Case("plain", "elman", "float32", kinds.TINY, "reference")
    process = Process({"kind": "check", "case": cases.packed(case)})
    row = process.receive(300)
    assert row["passed"] and row["name"] == str(case)
    with pytest.raises(Died, match="ended with status 0"):
        process.receive(60)


def test_who_is_asked_by_nobody_ends():
    """As when the command itself was killed: its processes may hang for ever."""
    program = """import itertools, time
from benchmarks.accelerator import work
work.KINDS["hang"] = lambda: (time.sleep(1) for _ in itertools.count())
work.main('{"kind": "hang"}')"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, timeout=300)
    assert done.returncode == 1


def test_runs_that_differ_are_told(monkeypatch):
    """Those of a kernel whose blocks race."""
    computed, runs = checking._computed, []

    def race(given, kind, implementation):
        found = computed(given, kind, implementation)
        runs.append(None)
        if len(runs) == 13:
            found["gradients.xs"] = np.nextafter(found["gradients.xs"], np.float32(9))
        return found

    case = checking.Case("repeated", "elman", "float32", kinds.TINY, "xla")
    assert checking.measure(case)["passed"]
    monkeypatch.setattr(checking, "_computed", race)
    row = checking.measure(case)
    assert row["passed"] is False and len(runs) == 20
    assert row["problem"] == "of 20 runs, some differ in gradients.xs"


def test_every_plan_is_timed(tmp_path, monkeypatch, capsys):
    """For a GPU that is not there: what is timed has the plan that it says."""
    monkeypatch.setattr(gpu, "plan", gpu.plan)
    with made() as found:
        status = plans.main(["--tiny", "--out", str(tmp_path)])
    (path,) = tmp_path.glob("*.json")
    rows = json.loads(path.read_text())["rows"]
    layer = plans.TINY
    known = [
        [p._asdict() for p in plans.ordered("lstm", "bfloat16", layer, direction, found.chip)]
        for direction in ("forward", "backward")
    ]
    assert status == 0 and [row["plan"] for row in rows] == sum(known, [])
    used = {tuple(numbers[:4]) for numbers in found.numbers}
    assert used >= {
        (p["blocks"], p["at_once"], 32 * p["warps"], p["shared"]) for p in sum(known, [])
    }
    said = capsys.readouterr().out
    assert said.count("the plan that is called cheapest takes") == 2
