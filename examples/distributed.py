"""One training in several processes, any of which may be killed: a language model, and Orbax.

    python examples/distributed.py [--processes 2] [--devices 2] [--steps 100] [--directory job]

Each process has --devices devices and reads its own rows of the text. Here all run on one CPU; on
several machines, start one on each, with --processes, --process and --coordinator. If one dies
(--die-at), the job ends; started again, on any devices, it goes on from its latest checkpoint.
"""

import argparse
import pathlib
import signal
import socket
import subprocess
import sys
import time
from pydoc_data.topics import topics

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax import P
from jax.experimental import multihost_utils

import jaxrnn

BYTES, BATCH, LENGTH = 256, 16, 32


def launch(argv, count):
    """Starts all processes, and ends all of them if one dies."""
    with socket.create_server(("localhost", 0)) as free:
        address = f"localhost:{free.getsockname()[1]}"
    given = [sys.executable, __file__, *argv, "--coordinator", address, "--process"]
    workers = [subprocess.Popen([*given, str(n)]) for n in range(count)]
    while None in (codes := [worker.poll() for worker in workers]) and not any(codes):
        time.sleep(0.1)
    for worker in workers:
        worker.kill()  # those that have ended do not mind; the others would wait for the dead one
    if any(codes):
        raise SystemExit("a process has died: start the job again to go on")


def work(options):
    """The training, as one of the processes; returns the loss of each step that it made."""
    if options.process is not None:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(options.coordinator, options.processes, options.process)
    mine, processes = jax.process_index(), jax.process_count()
    auto = jax.sharding.AxisType.Auto
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(auto,))
    whole, rows, timed = (jax.NamedSharding(mesh, p) for p in (P(), P("data"), P(None, "data")))
    if mine == 0:
        text = "\n".join(topics[name] for name in sorted(topics)).encode()
        options.directory.mkdir(exist_ok=True, parents=True)
        (options.directory / "text").write_bytes(text[: len(text) // BATCH * BATCH])
    multihost_utils.sync_global_devices("the text is there")
    streams = np.memmap(options.directory / "text", np.uint8, "r").reshape(BATCH, -1)
    streams = streams[BATCH * mine // processes : BATCH * (mine + 1) // processes]
    cell = jaxrnn.stack(jaxrnn.gru(options.hidden), jaxrnn.project(BYTES))
    rule = optax.adam(4e-3)

    @jax.jit(out_shardings=(whole, whole, rows))
    def begin(params):
        return params, rule.init(params), cell.initial_state(params, (BATCH,))

    @jax.jit(out_shardings=((whole, whole, rows), whole))
    def update(training, tokens):
        def loss_of(params, state):
            xs = jax.nn.one_hot(tokens[:-1], BYTES)
            state, logits = jaxrnn.unroll(cell, params, xs, state)
            nats = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[1:])
            return nats.mean(), state

        params, optimizer, state = training
        (loss, state), gradient = jax.value_and_grad(loss_of, has_aux=True)(params, state)
        change, optimizer = rule.update(gradient, optimizer, params)
        return (optax.apply_updates(params, change), optimizer, state), loss

    # On one device: several on as few cores wait for each other in jaxlib's QR decomposition.
    params = jax.tree.map(np.asarray, cell.init(jax.random.key(0), BYTES))
    training, losses = begin(params), {}
    kept = ocp.CheckpointManagerOptions(save_interval_steps=options.every, max_to_keep=2)
    with ocp.CheckpointManager(options.directory.absolute() / "kept", options=kept) as checkpoints:
        done = checkpoints.latest_step() or 0
        if done:  # each array comes back as it is to be on the mesh of today
            training = checkpoints.restore(done, args=ocp.args.StandardRestore(training))
        for number in range(done + 1, options.steps + 1):
            place = (number - 1) * LENGTH % (streams.shape[1] - LENGTH)
            tokens = streams[:, place : place + LENGTH + 1].T.astype(np.int32)
            tokens = jax.make_array_from_process_local_data(timed, tokens)
            training, loss = update(training, tokens)
            losses[number] = float(loss)
            checkpoints.save(number, args=ocp.args.StandardSave(training))
            if number == options.die_at and mine == processes - 1:
                signal.raise_signal(signal.SIGKILL)
    if mine == 0:
        print(f"{processes} processes, {mesh.size} devices, nats per byte of each step: {losses}")
    return losses


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.set_defaults(processes=1, steps=100, every=10, hidden=128)
    for name in ("processes", "steps", "every", "hidden", "devices", "process", "die-at"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--directory", type=pathlib.Path, default="job", help="seen by all")
    parser.add_argument("--coordinator", help="where process 0 is, as host:port")
    options = parser.parse_args(argv)
    if options.devices:
        jax.config.update("jax_num_cpu_devices", options.devices)
    if options.process is None and options.processes > 1:
        return launch(sys.argv[1:] if argv is None else argv, options.processes)
    return work(options)


if __name__ == "__main__":
    main()
