"""The HTTP face: it translates requests and answers, and delegates; the only folder that imports fastapi."""

from service.api.app import create_app

__all__ = ["create_app"]
