"""FastAPI routes that return the JSON of a file, under uvicorn: what the overhead of the service is told beside.

`usual` is as FastAPI's own pages write one, with uvicorn's line in the log for each request; `bytes` parses nothing,
writes nothing and logs nothing: what no service can beat.
"""

import json
import sys
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response

port, file, kind = sys.argv[1:]
app = FastAPI()
BYTES = Path(file).read_bytes()
ANSWER = json.loads(BYTES)


@app.post("/predict")
async def predict(asked: dict[str, Any]) -> dict[str, Any]:
    """Read what is asked and answer."""
    return ANSWER


@app.post("/bytes")
async def raw(request: Request) -> Response:
    """Read the body and return the file."""
    await request.body()
    return Response(BYTES, media_type="application/json")


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="info" if kind == "usual" else "warning")
