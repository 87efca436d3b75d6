"""Routes that call their endpoint and nothing else, and a short way to them; it does not know what is asked.

FastAPI describes such a route as any other. What it puts around an endpoint, to find out anew for each request what its
parameters are and to end what they began, takes longer than a small network takes to answer.
"""

from collections.abc import Iterable
from inspect import signature
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.guard import route_path


class Direct(APIRoute):
    """A route of an asynchronous endpoint that returns a response.

    It may take `request`, and text by the names that the path has, or else the query.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        names = set(signature(self.endpoint).parameters)
        self._takes_request, self._queried = "request" in names, names - {"request"} - set(self.param_convertors)
        self.app = self._serve

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive, send)
        given: dict[str, Any] = {"request": request} if self._takes_request else {}
        if self._queried and scope["query_string"]:
            given |= {name: request.query_params[name] for name in self._queried if name in request.query_params}
        response: Response = await self.endpoint(**given, **scope["path_params"])
        await response(scope, receive, send)


class Express:
    """Take requests to some routes past everything that FastAPI has between its middleware and them.

    Args:
        app: What answers all other requests.
        routes: The application's; those that are direct and posted to are taken.
    """

    def __init__(self, app: ASGIApp, routes: Iterable[BaseRoute]) -> None:
        self._app = app
        taken = [route for route in routes if isinstance(route, Direct) and "POST" in (route.methods or ())]
        self._named = {route.path: route for route in taken if not route.param_convertors}
        self._patterns = [route for route in taken if route.param_convertors]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one exchange."""
        route = self._find(scope) if scope["type"] == "http" and scope["method"] == "POST" else None
        await (route.app if route else self._app)(scope, receive, send)

    def _find(self, scope: Scope) -> Direct | None:
        """Return the route that takes a request, and tell the scope of it as the application would."""
        named = self._named.get(route_path(scope))
        if named:
            scope["route"], scope["endpoint"], scope["path_params"] = named, named.endpoint, {}
            return named
        for route in self._patterns:
            match, found = route.matches(scope)
            if match is Match.FULL:
                scope.update(found)
                return route
        return None
