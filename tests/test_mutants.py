"""The tool that plants faults (`mutants`): it tells what tests notice from what they do not."""

import json
import shutil
import subprocess

import pytest
from mutants import __main__ as main
from mutants import draw, faults
from mutants.edits import edits
from mutants.scratch import Scratch

LIBRARY = """\
def count(n):
    total = 0
    while n > 0:
        total += 1
        n -= 1
    return total
"""
TESTS = """\
import jaxrnn


def test_count():
    assert jaxrnn.count(3) == 3
"""
PLANTED = {  # what is changed, and what comes of it
    "noticed": ("total += 1", "total += 2", "red"),
    "equivalent": ("n > 0", "n >= 1", "green"),
    "endless": ("n -= 1", "n -= 0", "timeout"),
    "no library": ("def count(n):", "import nothing_of_this_name\n\ndef count(n):", "import"),
}


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    """The copy of a checkout with one function and one test; without plugins, to be quick."""
    if shutil.which("git") is None:
        pytest.skip("a checkout is Git's")
    checkout = tmp_path_factory.mktemp("checkout")
    for name, text in {
        "jaxrnn/__init__.py": LIBRARY,
        "tests/test_count.py": TESTS,
        "pyproject.toml": '[tool.pytest.ini_options]\nfilterwarnings = ["error"]\n',
    }.items():
        (checkout / name).parent.mkdir(exist_ok=True)
        (checkout / name).write_text(text)
    subprocess.run(["git", "init", "--quiet", checkout], check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
        yield Scratch(tmp_path_factory.mktemp("copy"), checkout, checkout)


@pytest.mark.parametrize("name", PLANTED)
def test_what_comes_of_a_fault(scratch, name):
    before, after, result = PLANTED[name]
    fault = faults.Fault("jaxrnn/__init__.py", name, before, after, ("tests/test_count.py",))
    outcome = scratch.run(*fault.lines, 2 if result == "timeout" else 60, fault)
    assert outcome.result == result
    assert "test_count" in outcome.by or result == "green"
    assert (scratch.root / fault.path).read_text() == LIBRARY


def test_a_run_is_known_by_what_it_depends_on(scratch):
    key = scratch.key("tests/test_count.py")
    assert scratch.key("tests/test_count.py -k count") != key
    fault = faults.Fault("jaxrnn/__init__.py", "other", "total = 0", "total = 1")
    assert scratch.key("tests/test_count.py", fault) != key
    test = scratch.root / "tests/test_count.py"
    test.write_text(TESTS + "\n")
    assert scratch.key("tests/test_count.py") != key
    test.write_text(TESTS)
    assert scratch.key("tests/test_count.py") == key


def test_tests_that_are_not_there_are_no_green(scratch):
    assert scratch.run("tests/test_of_another_suite.py", 60).result == "broken"
    assert scratch.run("tests/test_count.py -k of_no_test", 60).result == "broken"


def test_what_is_recorded_stays_until_it_is_run_again(tmp_path, monkeypatch):
    """A fault that is in the table no more goes, and one that is another edit now."""
    first, second, third, *_ = faults.table()
    monkeypatch.setattr(main, "RECORD", tmp_path / "results.json")
    recorded = lambda: {
        row["fault"]: (row["date"] != "long ago", row["result"])
        for row in json.loads(main.RECORD.read_text())["rows"]
    }
    run = {"result": "red", "seconds": 1.0, "by": "a test - and how"}
    main._record([(first, run)])
    assert recorded() == {first.name: (True, "red")}
    gone = first._replace(path="gone")
    rows = [
        {"fault": fault.name, "result": "green", "edit": main._digest(edit)}
        for fault, edit in ((first, first), (second, second), (third, second), (gone, gone))
    ]
    main.RECORD.write_text(json.dumps({"date": "long ago", "rows": rows}))
    main._record([(first, run)])
    assert recorded() == {first.name: (True, "red"), second.name: (False, "green")}


def test_every_fault_has_its_place():
    """Else the source has changed: `python -m tests.mutants.draw PATH` draws the file's again."""
    found = faults.table()
    for fault in found:
        text = (draw.ROOT / fault.path).read_text()
        assert fault.planted(text) != text
        files = [
            word for line in fault.lines for word in line.split() if word.startswith("tests/")
        ]
        assert any((draw.ROOT / name).exists() for name in files), fault.name
    assert len({fault.name for fault in found}) == len(found) >= 80
    of_the_seed = faults.read(faults.DRAWN.read_text())
    assert len(of_the_seed) * 2 >= len(found)
    assert faults.read(faults.write(found)) == found


def test_draws_depend_on_the_seed_and_the_file():
    path = "jaxrnn/_src/core/sequence.py"
    text = (draw.ROOT / path).read_text()
    one, again, other = (
        draw.drawn(path, text, 3, draw.is_a_program, seed=seed) for seed in (1, 1, 2)
    )
    assert one == again != other
    assert one[:2] == draw.drawn(path, text, 2, draw.is_a_program, seed=1)
    for fault in one:
        assert draw.is_a_program(path, fault.planted(text))


PYTHON = '''\
def f(a: list[1], b=2):
    """Not 3 < 4."""
    if a[0] < b and g(a, b, k=True):
        raise ValueError(f"{b + 1}", 5)
    return -a * b  # 6 + 7
'''
OF_PYTHON = {
    "b=3):",
    "a[1]",
    "a[0] <= b",
    "b or g",
    "g(b, a,",
    "g(a, b)",
    "k=False",
    "return a",
    "-a + b",
}
CPP = """\
#define N 1
T sum[N];  // 2 + 3
template <int M = 4>
for (int i = 0; i < n; ++i) to[i] += !a * b[i];
"""
OF_CPP = {
    "i = 1",
    "i <= n",
    "to[i + 1] +=",
    "+= a * b",
    "!a + b[i]",
    "b[i + 1]",
}


@pytest.mark.parametrize(
    ("path", "text", "wanted"), [("a.py", PYTHON, OF_PYTHON), ("a.h", CPP, OF_CPP)]
)
def test_edits(path, text, wanted):
    changed = [text[: e.start] + e.new + text[e.end :] for e in edits(path, text)]
    for part in wanted:
        assert sum(part in one for one in changed) == 1, part
    assert len(changed) == len(wanted)


def test_a_name_that_no_fault_has():
    with pytest.raises(SystemExit, match="no fault is named no/such"):
        main.main(["no/such"])
