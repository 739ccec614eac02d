"""A hypothesis test with few examples in `make test` and with many in `make test-slow`."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis.strategies import SearchStrategy


def few_and_many(*strategies: SearchStrategy, few: int = 30, many: int = 400, **named: SearchStrategy) -> Callable:
    """Decorates a check: ``strategies`` draw all of its arguments; ``named`` draw some, and pytest gives the rest."""

    def decorate(check: Callable) -> Callable:
        @pytest.mark.parametrize("examples", [few, pytest.param(many, marks=pytest.mark.slow)])
        def test(examples: int, **others: Any) -> None:
            settings(deadline=None, max_examples=examples)(given(*strategies, **named)(check))(**others)

        kept = (
            [] if strategies else [p for name, p in inspect.signature(check).parameters.items() if name not in named]
        )
        first = inspect.Parameter("examples", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        test.__signature__ = inspect.Signature([first, *kept])
        test.__name__, test.__doc__ = check.__name__, check.__doc__
        return test

    return decorate
