"""What a masker can do beyond being called."""

from typing import Any


def ignores_tokens(masker: Any) -> bool:
    """Whether only the shape and device of tokens, and where PAD is, matter to a masker.

    It says so by an attribute of that name, beside its ``__call__``.
    """
    if "ignores_tokens" in getattr(masker, "__dict__", {}):
        return bool(masker.ignores_tokens)
    return defines_together(masker, "__call__", "ignores_tokens") and bool(masker.ignores_tokens)


def defines_together(masker: Any, *names: str) -> bool:
    """Whether one class defines all of these.

    Where a subclass has another ``__call__``, say, what it inherits beside it need not fit.
    """
    classes = type(masker).__mro__
    owners = [next((c for c in classes if name in vars(c)), None) for name in names]
    return owners[0] is not None and len(set(owners)) == 1
