"""Functions whose keyword arguments are a TypedDict: their signature, and the error of an unknown keyword."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Container, Mapping
from typing import Any, TypeVar, cast

__all__ = ["check_keywords", "keywords"]

F = TypeVar("F", bound=Callable[..., Any])


def check_keywords(
    options: Mapping[str, object], kind: type, function: str, *, without: Container[str] = ()
) -> None:
    """Raise the TypeError of a call with a keyword that the options do not have.

    Args:
        options: the keyword arguments.
        kind: the TypedDict of those that there are.
        function: the name of the function, for the error.
        without: those of them that this function lacks.
    """
    known = [name for name in kind.__annotations__ if name not in without]
    for name in options:
        if name not in known:
            allowed = ", ".join(sorted(known))
            raise TypeError(f"{function}() got an unexpected keyword argument {name!r}: it takes {allowed}")


def keywords(kind: type, default: object = ..., **defaults: object) -> Callable[[F], F]:
    """Return a decorator that shows the keywords of a TypedDict instead of ``**options``.

    ``inspect.signature``, ``help`` and notebooks read it; type checkers read the annotation of the function.

    Args:
        kind: the TypedDict.
        default: the default of a keyword that ``defaults`` does not have; ``...`` if they differ.
        **defaults: other defaults by keyword.
    """

    def decorate(function: F) -> F:
        signature = inspect.signature(function)
        *own, _ = signature.parameters.values()
        listed = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=defaults.get(name, default),
                annotation=getattr(annotation, "__forward_arg__", annotation),
            )
            for name, annotation in kind.__annotations__.items()
        ]
        cast("Any", function).__signature__ = signature.replace(parameters=[*own, *listed])
        return function

    return decorate
