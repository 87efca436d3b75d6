"""A route that calls its endpoint and nothing else; it does not know what is asked.

FastAPI describes such a route as any other. To find out anew for each request what an endpoint's parameters are takes
it longer than a small network takes to answer.
"""

from collections.abc import Callable, Coroutine
from inspect import signature
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute


class Direct(APIRoute):
    """A route of an asynchronous endpoint that returns a response.

    It may take `request`, and text by the names that the path has, or else the query.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return what answers a request."""
        endpoint, names = self.endpoint, set(signature(self.endpoint).parameters)
        takes_request, queried = "request" in names, names - {"request"} - set(self.param_convertors)

        async def handle(request: Request) -> Response:
            given: dict[str, Any] = {"request": request} if takes_request else {}
            if queried and request.scope["query_string"]:
                given |= {name: request.query_params[name] for name in queried if name in request.query_params}
            response: Response = await endpoint(**given, **request.path_params)
            return response

        return handle
