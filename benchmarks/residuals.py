"""What ``residuals=`` costs: memory and time of a gradient through two LSTM layers."""

import argparse
import functools
import time

import jax
import jax.numpy as jnp

import jaxrnn
from benchmarks.shared import display, machine, record, timing

NOTES = {
    "memory": "bytes that the gradient needs beside its arguments and results, as XLA plans it;"
    " what a kernel takes for itself, some steps long, is not in it",
    "samples": "CPU seconds of value and grad, of all threads, contenders in turn: what other"
    " programs take of the machine is not in it; with one core, threads that wait are not either",
    "scan": "implementation='reference': JAX's own derivative of a scan of the step",
}


def parse(argv):
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks residuals",
        description="Measures memory and time of a gradient, by what it stores.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--length", type=int, default=4096, help="T")
    parser.add_argument("--batch", type=int, default=8, help="B")
    parser.add_argument("--hidden", type=int, default=128, help="H, and I")
    parser.add_argument("--rounds", type=int, default=5, help="calls of each")
    record.add_folder(parser)
    return parser.parse_args(argv)


def main(argv=None):
    """Runs the job; its exit status."""
    chosen, console = parse(argv), display.console()
    about = machine.describe()
    path = chosen.out / f"residuals-{about['platform']}.json"
    begun = record.begun("residuals", about, NOTES, chosen)
    console.print(f"[bold]What is stored for a gradient[/]\n{machine.line(about)}\n")
    rows = measure(chosen)
    record.save(path, begun | {"words": [sentence(row) for row in rows], "rows": rows})
    for row in rows:
        console.print(sentence(row))
    console.print(f"\nwritten: {path}")
    return 0


def measure(chosen):
    """A row for each contender."""
    sizes = chosen.length, chosen.batch, chosen.hidden
    xs = jax.random.normal(jax.random.key(1), sizes)
    contenders = {name: (name, None) for name in ("gates", "states", "chunks")}
    contenders["scan"] = "gates", "reference"
    calls, memory = {}, {}
    for name, (residuals, implementation) in contenders.items():
        cell = jaxrnn.stack(*[jaxrnn.lstm(chosen.hidden, residuals=residuals)] * 2)
        params = cell.init(jax.random.key(0), chosen.hidden)
        gradient = jax.value_and_grad(functools.partial(loss, cell, implementation))
        program, _ = timing.compiled(gradient, params, xs)
        memory[name] = program.memory_analysis().temp_size_in_bytes
        calls[name] = functools.partial(program, params, xs)
        cpu_seconds(calls[name])  # the first call also allocates
    samples = {name: [] for name in calls}
    for _ in range(chosen.rounds):
        for name, call in calls.items():
            samples[name].append(cpu_seconds(call))
    return [
        {
            "name": name,
            "memory": memory[name],
            "samples": samples[name],
            "ratio": timing.ratio(samples[name], samples["gates"]),
        }
        for name in contenders
    ]


def cpu_seconds(call):
    begin = time.process_time()
    timing.wait(call())
    return time.process_time() - begin


def loss(cell, implementation, params, xs):
    return jnp.mean(jaxrnn.unroll(cell, params, xs, implementation=implementation)[1] ** 2)


def sentence(row):
    """What a row says."""
    seconds, *_ = timing.summary(row["samples"])
    ratio, low, high = row["ratio"]
    name = "a scan of the step" if row["name"] == "scan" else f"`residuals={row['name']!r}`"
    return (
        f"{name}: {row['memory'] / 2**20:.0f} MiB, {seconds:.2f} CPU seconds, {ratio:.2f} times"
        f" the default's ({low:.2f} to {high:.2f})."
    )
