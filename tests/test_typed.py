"""Types at run time: a user's script, and annotated signatures; `make lint` checks the types."""

import inspect

import jax
import pytest
import typed

import jaxrnn
import jaxrnn.interop

PUBLIC = {
    name: value
    for module in (jaxrnn, jaxrnn.inside, jaxrnn.interop)
    for name, value in vars(module).items()
    if not name.startswith("_")
    and (inspect.isfunction(value) or isinstance(value, jaxrnn.constructor))
    and value.__module__.startswith(module.__name__)
    and not value.__module__.startswith("jaxrnn._src")
}


def test_a_users_script_runs():
    assert jax.eval_shape(lambda: typed.train(1)).shape == ()
    typed.others()


@pytest.mark.parametrize("call", typed.WRONG)
def test_what_checkers_refuse_is_refused(call):
    with pytest.raises((TypeError, ValueError)):
        call()


@pytest.mark.parametrize("name", PUBLIC)
def test_signatures_are_annotated(name):
    signature = inspect.signature(PUBLIC[name])
    for parameter in signature.parameters.values():
        assert parameter.annotation is not parameter.empty, parameter
    assert signature.return_annotation is not signature.empty
    if isinstance(PUBLIC[name], jaxrnn.constructor):
        assert signature.return_annotation is jaxrnn.Cell


def test_errors_show_signatures_without_types():
    with pytest.raises(TypeError, match=r"it takes gru\(hidden, \*, reset_after=True, act"):
        jaxrnn.gru(hidden_size=4)
