"""One call in one test proves that a method keeps every promise of its kind, yours as well as ours.

    from trimtab.testing.check_method import check_method

    def test_mine():
        check_method(Mine)

The method must be known by its id already: a file under `methods/`, or the entry point group `trimtab.methods` of an
installed package. Every check is a small function of the class; `checks` lists them, so that a test can run them one by one.
"""

from collections.abc import Callable
from typing import Any

from trimtab.core.kinds import Method
from trimtab.core.registry import kind
from trimtab.testing import (
    checks_allocator,
    checks_any,
    checks_channel,
    checks_linear,
    checks_model,
    checks_probe,
    checks_scale,
    checks_scratch,
    checks_taught,
    checks_trained,
)

Check = Callable[[type[Any]], None]

_OF_KIND: dict[str, tuple[Check, ...]] = {
    "block": checks_linear.CHECKS,
    "linear": checks_linear.CHECKS,
    "channel": checks_channel.CHECKS,
    "model": checks_model.CHECKS,
    "scale": checks_scale.CHECKS,
    "taught": checks_taught.CHECKS,
    "allocator": checks_allocator.CHECKS,
    "probe": checks_probe.CHECKS,
    "adapter": checks_trained.ADAPTER_CHECKS,
    "schedule": checks_trained.SCHEDULE_CHECKS,
    "scratch": checks_scratch.CHECKS,
}


def checks(method_class: type[Method]) -> dict[str, Check]:
    """Name -> check, in the order of running. Raises `TrimtabError` for a kind that trimtab does not run."""
    return {check.__name__: check for check in (*checks_any.CHECKS, *_OF_KIND[kind(method_class)])}


def check_method(method_class: type[Method]) -> None:
    """Runs all checks. Raises AssertionError at the first that fails, naming the method and the check."""
    for name in checks(method_class):
        run_check(method_class, name)


def run_check(method_class: type[Method], name: str) -> None:
    """Runs one check by its name. Raises AssertionError naming the method and the check."""
    try:
        checks(method_class)[name](method_class)
    # Whatever a method raises where it should have answered is a failed check; the cause stays attached.
    except Exception as error:
        raise AssertionError(f"{method_class.__name__} fails the check {name}: {error or type(error).__name__}") from error
