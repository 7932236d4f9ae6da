"""What a masker can do beyond being called."""

from typing import Any


def ignores_tokens(masker: Any) -> bool:
    """Whether only the shape and device of tokens, and where PAD is, matter to a masker.

    It says so by an attribute of that name.
    """
    if "ignores_tokens" in getattr(masker, "__dict__", {}):
        return bool(masker.ignores_tokens)
    return has_all(masker, "ignores_tokens") and bool(masker.ignores_tokens)


def has_all(masker: Any, *names: str) -> bool:
    """Whether a masker has methods or attributes that are meant for what it does when called.

    They must stand in the class that defines ``__call__`` (and ``blocks``): what a subclass with
    another mask inherits need not fit.
    """
    calls = ("__call__", "blocks") if hasattr(masker, "blocks") else ("__call__",)
    classes = type(masker).__mro__
    owners = {next((c for c in classes if name in vars(c)), None) for name in (*calls, *names)}
    return len(owners) == 1 and None not in owners
