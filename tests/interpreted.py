"""The kernels for TPUs, run on a CPU by Pallas' interpreter."""

import contextlib
import functools

import jax
import pytest
from jax.experimental import io_callback
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxrnn._src.ops import linear_scan, pallas_tpu, recurrence, row_partition

PACKAGES = recurrence, linear_scan  # those with an implementation "tpu"
PARAMETERS = pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan")


@contextlib.contextmanager
def interpreted():
    """Inside, implementation "tpu" runs, with races and reads of unset memory found."""
    effects = _effects()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pallas_tpu, "INTERPRETED", True)
        for package in PACKAGES:
            for primitive in (package._operation.forward, package._operation.backward):
                patch.setattr(primitive, "abstract_eval", _effectful(primitive, effects))
        by_rows = row_partition._by_rows
        patch.setattr(by_rows, "abstract_eval", _if_mapped(by_rows.abstract_eval, effects))
        with pltpu.force_tpu_interpret_mode(PARAMETERS), _in_all_threads("jax_enable_x64"):
            yield


@contextlib.contextmanager
def interpreted_as_jax():
    """Inside, it runs as plain JAX: less is found, but every transform goes through.

    The other interpreter keeps an order, which ``remat`` and a kernel under ``vmap`` cannot.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pallas_tpu, "INTERPRETED", True)
        patch.setattr(pl, "pallas_call", functools.partial(pl.pallas_call, interpret=True))
        yield


@contextlib.contextmanager
def _in_all_threads(option):
    """The interpreter runs in threads that know nothing of this one's ``jax.enable_x64``."""
    here = getattr(jax.config, option)
    jax.config.update(option, here)
    try:
        yield
    finally:
        jax.config.update(option, False)


@functools.cache
def _effects():
    """The interpreter keeps its order by an effect, of which a primitive's type has to tell."""
    return jax.make_jaxpr(lambda: io_callback(lambda: None, None, ordered=True))().effects


def _effectful(primitive, effects):
    plain = primitive.abstract_eval

    def evaluate(*avals, problem, **parameters):
        out, others = plain(*avals, problem=problem, **parameters)
        return out, effects if problem.implementation == "tpu" else others

    return evaluate


def _if_mapped(plain, effects):
    """The same of a call of a kernel, by rows: kernels for TPUs are those that are mapped."""

    def evaluate(*avals, mapped, **parameters):
        out, others = plain(*avals, mapped=mapped, **parameters)
        return out, effects if mapped else others

    return evaluate
