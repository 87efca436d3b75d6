"""A bare FastAPI route that returns the JSON of a file, under uvicorn as thinnet runs it: what no service can beat."""

import sys
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Request, Response

app = FastAPI()
ANSWER = Path(sys.argv[2]).read_bytes()


@app.post("/predict")
async def predict(request: Request) -> Response:
    """Read the body and return the file."""
    await request.body()
    return Response(ANSWER, media_type="application/json")


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
