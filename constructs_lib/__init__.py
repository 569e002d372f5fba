"""Reusable constructs. They take plain values and CDK interfaces, and know no environment.

What `api` lists is imported from here, and the CDK with it, when it is first asked for: settings
need constants of single modules, and commands that synthesize nothing must not wait for the CDK.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from constructs_lib.api import *  # noqa: F403
else:

    def __getattr__(name: str) -> Any:
        """Return what `api` has under this name."""
        return getattr(import_module("constructs_lib.api"), name)
