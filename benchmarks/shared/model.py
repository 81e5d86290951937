"""A next-byte model: an embedding, k layers of a cell, an output."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

import jaxrnn

BYTES = 256


@dataclasses.dataclass(frozen=True)
class Model:
    """The model's functions; its parameters are a plain dict.

    Each layer's input is added to its output, for every cell alike. Without that, attention alone
    would lose which byte it is at.

    Attributes:
      layer: the cell of each layer.
      width: size of the embedding and of every layer.
      layers: k.
      dtype: the type of the arithmetic. Parameters are trained in it or in float32, whichever is
        larger.
      implementation: see ``jaxrnn.unroll``.
    """

    layer: jaxrnn.Cell
    width: int
    layers: int
    dtype: str = "float32"
    implementation: str | None = None

    @property
    def cell(self):
        """Everything above the embedding, as one cell."""
        return jaxrnn.stack(*[jaxrnn.residual(self.layer)] * self.layers, jaxrnn.project(BYTES))

    def init(self):
        """New parameters, float32 or float64: what training changes."""
        embedding, rest = jax.random.split(jax.random.key(0))
        scale = jnp.asarray(self.width**-0.5)
        return {
            "embedding": jax.random.normal(embedding, (BYTES, self.width)) * scale,
            "cell": self.cell.init(rest, self.width),
        }

    def weights(self):
        """The same in the type of the arithmetic: what forward and decode take."""
        return self.cast(self.init())

    def cast(self, params):
        """The parameters in the type of the arithmetic."""
        return jax.tree.map(lambda p: p.astype(self.dtype), params)

    def forward(self, params, tokens):
        """tokens [T, B] -> logits [T, B, 256]."""
        return self.prefill(params, None, tokens)[1]

    def prefill(self, params, state, tokens):
        """The same from a state, with the state after it: ``(state, logits)``."""
        xs = params["embedding"][tokens]
        options = {"implementation": self.implementation}
        return jaxrnn.unroll(self.cell, params["cell"], xs, state, **options)

    def decode(self, params, state, token):
        """One step of a stream, token [B] -> ``(state, next token)``, the most likely one."""
        state, logits = self.cell.step(params["cell"], state, params["embedding"][token])
        return state, jnp.argmax(logits, -1).astype(token.dtype)

    def loss(self, params, inputs, targets):
        """Mean cross entropy in nats of the next byte."""
        logits = self.forward(self.cast(params), inputs).astype(float)
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()

    def train(self, params, moments, inputs, targets):
        """One step of Adam: ``(params, moments, loss)``."""
        loss, gradient = jax.value_and_grad(self.loss)(params, inputs, targets)
        updates, moments = OPTIMIZER.update(gradient, moments, params)
        return optax.apply_updates(params, updates), moments, loss


OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))


def count(params):
    """How many numbers the parameters are."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
