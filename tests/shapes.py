"""Checks shapes and dtypes at every call, against what annotations state; other types are mypy's."""

import typing

from beartype import beartype
from jaxtyping import AbstractArray


def checked(function):
    """Return the function with its annotations of arrays checked; the import hook of `jaxtyping` calls this."""
    function.__annotations__ = {name: hint for name, hint in function.__annotations__.items() if states_shape(hint)}
    return beartype(function)


def states_shape(hint):
    is_array = isinstance(hint, type) and issubclass(hint, AbstractArray)
    return is_array or any(map(states_shape, typing.get_args(hint)))
