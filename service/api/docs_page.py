"""The interactive documentation as a page of its own files, under a strict policy; it does not know the document.

Links are relative, so the page works behind any proxy's prefix.
"""

from functools import cache
from importlib.resources import files

from fastapi import FastAPI, Response

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>thinnet</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="docs/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""
_START = """SwaggerUIBundle({
  url: "openapi.json", dom_id: "#swagger-ui", deepLinking: true, tryItOutEnabled: true, validatorUrl: null,
});
"""
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_SCRIPT, _STYLE = "text/javascript; charset=utf-8", "text/css; charset=utf-8"


def install(app: FastAPI) -> None:
    """Serve the page at /docs and its files below; their names are fixed, nothing is looked up by a request's path."""
    for path, answer in (
        ("/docs", _page),
        ("/docs/start.js", _start),
        ("/docs/swagger-ui-bundle.js", _bundle),
        ("/docs/swagger-ui.css", _style),
    ):
        app.add_api_route(path, answer, include_in_schema=False)


async def _page() -> Response:
    return Response(_PAGE, media_type="text/html", headers={"Content-Security-Policy": _POLICY})


async def _start() -> Response:
    return Response(_START, media_type=_SCRIPT)


async def _bundle() -> Response:
    return Response(_file("swagger-ui-bundle.js"), media_type=_SCRIPT)


async def _style() -> Response:
    return Response(_file("swagger-ui.css"), media_type=_STYLE)


@cache
def _file(name: str) -> bytes:
    return files("fastapi_swagger").joinpath("resources", name).read_bytes()
