"""The HTTP face: it translates requests and answers, and delegates; the only folder that imports fastapi.

`create_app` is resolved on first use: what stands in a proxy needs no torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from service.api.app import create_app

__all__ = ["create_app"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'service.api' has no attribute {name!r}; it exports {', '.join(__all__)}")
    from service.api.app import create_app

    return create_app
