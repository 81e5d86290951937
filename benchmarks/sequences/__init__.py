"""The main job: LSTM, GRU or attention for long sequences, on this machine?

Times a next-byte model on real English text over longer and longer sequences, at equal width and
equal tokens a batch, and says what came out: a table, a chart, a JSON file and a few sentences.
"""

import contextlib
import datetime
import time

import jax

import jaxrnn
from benchmarks.sequences import chart, modes, options, table, words
from benchmarks.sequences.rows import Row, exponent, of
from benchmarks.shared import display, machine, record, timing
from benchmarks.shared.model import Model, count

INTERRUPTED = 130  # the exit status of a program ended by Ctrl-C
LEAST = 0.5  # seconds of timing a row, even when the time for all of them is up

NOTES = {
    "length": "T; in decode the steps of context before the token (attention: keys in its cache)",
    "samples": "seconds of each call, after one to warm up: a whole batch in forward and train,"
    f" {modes.STREAM} tokens one after another in decode",
    "quartiles": "half of the samples lie between the two",
    "compile_seconds": "tracing and compiling, apart from every sample",
    "memory_bytes": "arguments, outputs and temporaries of the compiled program, as XLA plans it",
    "device_peak_bytes": "the most the device has held since the process began, where it tells",
    "exponents": "slope of log(time) over log(T), least squares; the time is that of one sequence"
    " of length T, in decode of one token after T",
}


def main(argv=None):
    """Runs the job; its exit status."""
    chosen = options.parse(argv)
    with contextlib.ExitStack() as settings:
        settings.enter_context(jax.default_device(chosen.device))
        settings.enter_context(jax.enable_x64(chosen.dtype == "float64"))
        return run(chosen)


def run(chosen):
    """Measures what was chosen; shows and writes it; the exit status."""
    console = display.console()
    about = machine.describe(device=chosen.device)
    path = chosen.out / f"sequences-{chosen.device.platform}.json"
    begin = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    rows, interrupted = [], False

    def content():
        return {
            "benchmark": "sequences",
            "date": begin,
            "interrupted": interrupted,
            "machine": about,
            "options": options.to_json(chosen),
            "notes": NOTES,
            "words": words.sentences(rows),
            "exponents": exponents(rows),
            "rows": [row.to_json() for row in rows],
        }

    console.print(f"[bold]{options.title(chosen)}[/]\n{machine.line(about)}\n")
    try:
        for row in measured(chosen, console):
            rows.append(row)
            record.save(path, content())
    except KeyboardInterrupt:
        interrupted = True
        console.print("interrupted: what was measured is kept")
    record.save(path, content())
    table.show(console, rows)
    written = [path]
    if any(row.samples for row in rows):
        written.append(path.with_suffix(".png"))
        chart.draw(written[-1], rows, options.title(chosen), machine.line(about))
    console.print(f"written: {', '.join(map(str, written))}\n")
    for sentence in words.sentences(rows):
        console.print(sentence)
    return INTERRUPTED if interrupted else 0


def measured(chosen, console):
    """The rows, one after another, as they are measured."""
    cases = [
        (mode, length, name)
        for mode in chosen.mode
        for length in chosen.lengths
        for name in chosen.cells
    ]
    end = time.monotonic() + chosen.seconds
    with display.progress(console, len(cases)) as step:
        for i, (mode, length, name) in enumerate(cases):
            with step(f"{mode:<8} {name:<10} T={length:<7,}") as done:
                now = time.monotonic()
                row = measure(chosen, mode, name, length, now + (end - now) / (len(cases) - i))
                done(table.brief(row))
            yield row


def measure(chosen, mode, name, length, end):
    """One row, its calls timed until ``end`` or until there are enough of them."""
    batch = 1 if mode == "decode" else options.batch(chosen, length)
    row = Row(mode, name, length, batch)
    try:
        layer = options.cell(chosen.cells[name], chosen.width, length, mode)
        model = Model(layer, chosen.width, chosen.layers, chosen.dtype, chosen.implementation)
        row.parameters = count(jax.eval_shape(model.init))
        ready = modes.MODES[mode](model, length, batch)
        row.runs = "step" if mode == "decode" else runs(model, length, batch, chosen.device)
        row.tokens, row.compile_seconds = ready.tokens, ready.compile_seconds
        row.memory_bytes = ready.memory_bytes
        seconds = max(end - time.monotonic(), LEAST)
        row.samples = timing.measure(ready.call, seconds=seconds, rounds=chosen.repeats)
        row.device_peak_bytes = (chosen.device.memory_stats() or {}).get("peak_bytes_in_use")
    except MemoryError as error:
        row.problem = f"out of memory: {error}"
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and "out of memory" not in str(error).lower():
            raise
        row.problem = f"out of memory: {str(error).splitlines()[0]}"
    except ValueError as error:
        if chosen.implementation is None:
            raise
        row.problem = f"cannot run: {error}"  # the implementation that was asked for
    return row


def runs(model, length, batch, device):
    """The names of the implementations that the model's layers run on."""
    params = jax.eval_shape(model.weights)["cell"]
    xs = jax.ShapeDtypeStruct((length, batch, model.width), model.dtype)
    explained = jaxrnn.explain(
        model.cell, params, xs, platform=device.platform, implementation=model.implementation
    )
    return ", ".join(dict.fromkeys(choice.runs for choice in explained.choices))


def exponents(rows):
    """``{mode: {cell: exponent}}`` of what was measured at two lengths or more."""
    return {
        mode: {cell: exponent(by_length) for cell, by_length in of(rows, mode).items()}
        for mode in dict.fromkeys(row.mode for row in rows)
    }
