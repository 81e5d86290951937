"""Random expressions of digits, + - * and brackets, with their values modulo 5."""

import jax
import jax.numpy as jnp

MODULUS = 5
SYMBOLS = "01234+-*() "
DEEPEST = 4  # how many brackets may be open
_OPEN, _CLOSE, _BLANK = map(SYMBOLS.index, "() ")
_FIRST = SYMBOLS.index("+")  # of the operators, which are in the order + - *


def flat(key, length):
    """Digits and operators in turn; at each digit the value so far is asked.

    Returns:
      ``(xs [T, I], wanted [T], asked bool [T])``.
    """
    digits, operators = _draws(key, length)
    at_digit = jnp.arange(length) % 2 == 0

    def step(level, x):
        digit, operator, is_digit = x
        entered = _entered(level, digit)
        named = level.at[2].set(operator)
        level = jnp.where(is_digit, entered, named)
        return level, _value(level)

    _, wanted = jax.lax.scan(step, _fresh(), (digits, operators, at_digit))
    tokens = jnp.where(at_digit, digits, _FIRST + operators)
    return jax.nn.one_hot(tokens, len(SYMBOLS)), wanted, at_digit


def nested(key, length):
    """The same with brackets; the value is asked where none is open.

    An expression has an odd number of symbols: of an even length the last one is blank.
    """
    drawn, brackets = jax.random.split(key)
    digits, operators = _draws(drawn, length)
    bracket = jax.random.uniform(brackets, (length,))
    last = length - 1 - (length + 1) % 2  # the last symbol that is not blank

    def step(carry, x):
        levels, depth, wants_operand = carry
        digit, operator, chance, t = x
        room = last - t - depth  # for symbols beside this one and the brackets to close
        opens = wants_operand & (chance < 0.3) & (room >= 2) & (depth < DEEPEST)
        closes = ~wants_operand & (depth > 0) & ((chance < 0.3) | (room < 1))
        here = levels[depth]
        outer = levels[jnp.maximum(depth - 1, 0)]
        opened = levels.at[depth + 1].set(_fresh())
        closed = levels.at[depth - 1].set(_entered(outer, _value(here)))
        entered = levels.at[depth].set(_entered(here, digit))
        named = levels.at[depth].set(here.at[2].set(operator))
        blank = t > last
        new = jnp.where(wants_operand, jnp.where(opens, opened, entered), named)
        new = jnp.where(closes, closed, new)
        new = jnp.where(blank, levels, new)
        token = jnp.where(wants_operand, jnp.where(opens, _OPEN, digit), _FIRST + operator)
        token = jnp.where(blank, _BLANK, jnp.where(closes, _CLOSE, token))
        after = depth + jnp.where(blank, 0, opens.astype(int) - closes.astype(int))
        wants = jnp.where(wants_operand, opens, ~closes)
        asked = ~blank & ~wants & (after == 0)
        return (new, after, wants), (token, _value(new[0]), asked)

    begun = jnp.tile(_fresh(), (DEEPEST + 2, 1)), jnp.int32(0), jnp.bool_(True)
    given = digits, operators, bracket, jnp.arange(length)
    _, (tokens, wanted, asked) = jax.lax.scan(step, begun, given)
    return jax.nn.one_hot(tokens, len(SYMBOLS)), wanted, asked


def _draws(key, length):
    digits, operators = jax.random.split(key)
    return (
        jax.random.randint(digits, (length,), 0, MODULUS),
        jax.random.randint(operators, (length,), 0, 3),
    )


# A level is what is read inside of one bracket: the sum of its finished terms, the term that may
# still be multiplied, and the operator before the next operand.


def _fresh():
    return jnp.zeros(3, jnp.int32)


def _entered(level, operand):
    total, term, operator = level
    times = operator == 2
    total = jnp.where(times, total, total + term)
    term = jnp.where(times, term * operand, jnp.where(operator == 1, -operand, operand))
    return jnp.stack([total % MODULUS, term % MODULUS, operator])


def _value(level):
    return (level[0] + level[1]) % MODULUS
