"""Packages that only some modules need."""

import contextlib


@contextlib.contextmanager
def extra(name, module):
    """Imports inside it are of packages that ``pip install "jaxrnn[name]"`` installs.

    Raises:
      ImportError: one is missing; it names the module that needs it, the package and the extra.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or name).partition(".")[0]
        raise ModuleNotFoundError(
            f'{module} needs {package}, which is not installed: pip install "jaxrnn[{name}]"',
            name=error.name,
        ) from error
