"""What blocks exchange, as the call of a kernel knows it: see ``exchange.cu``."""

from jaxrnn._src.ops.recurrence.gpu.tiling import Plan

FLAG = 128  # bytes before the exchange
# How often a thread polls in vain before it gives up; some ten seconds, far more than anything
# that comes takes.
MOST_POLLS = 1 << 24
RING = 64  # places of a ring, whose words are emptied half of it ahead
MOST_EXCHANGE = 64 << 20  # bytes without a ring: about what an L2 cache holds


def ring(plan: Plan, steps: int) -> int:
    """How many steps' places the exchange has, if they are used again; 0 if each has its own."""
    return RING if steps > RING and steps * plan.exchange > MOST_EXCHANGE else 0


def size(plan: Plan, steps: int) -> int:
    """Of the exchange, in bytes."""
    return FLAG + (ring(plan, steps) or steps) * plan.exchange
