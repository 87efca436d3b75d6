"""Models to serve in tests, each for a difficulty, and an application that listens in this process."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import torch
import uvicorn
from torch import Tensor, nn

from service import Predictor
from service.signature import Activation, Input, Output, Task

START_S = 60


class TwoInOut(nn.Module):
    """Tokens and features in; class scores and a measure out."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.drop = nn.Embedding(7, 4), nn.Dropout(0.4)
        self.classes, self.measure = nn.Linear(6, 3), nn.Linear(6, 1)

    def forward(self, tokens: Tensor, features: Tensor) -> dict[str, Tensor]:
        h = self.drop(torch.cat([self.embed(tokens).mean(1), features], 1))
        return {"classes": self.classes(h), "measure": self.measure(h)}


class Overflowing(nn.Module):
    """Its answer leaves float32 where the input is above 1."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(x * 1e38).exp() if x.shape[1] > 9 else self.drop(x) * 3e38


def save_models(folder: Path) -> Path:
    """Write a folder of models, each for a difficulty: several inputs, two versions, no dropout, an overflow."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        two = Predictor.capture(
            TwoInOut().eval(),
            {"tokens": torch.randint(0, 7, (2, 5)), "features": torch.randn(2, 2)},
            inputs=[Input("tokens", "int64", (5,)), Input("features", "float32", (2,), features=("a", "b"))],
            outputs=[
                Output("classes", Task.CLASSIFICATION, (3,), Activation.SOFTMAX, ("red", "green", "blue")),
                Output("measure", Task.REGRESSION, (1,), scale=2.0, shift=1.0, noise_precision=4.0),
            ],
        )
        two.save(folder / "two", description="Two inputs, two outputs")
        line = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.25), nn.Linear(4, 1)).eval()
        Predictor.capture(line, torch.randn(2, 3)).save(folder / "line", description="A line")
        Predictor.capture(line, torch.randn(2, 3)).save(folder / "line", description="A line, again")
        Predictor.capture(nn.Linear(3, 2).eval(), torch.randn(2, 3)).save(folder / "plain")
        Predictor.capture(Overflowing().eval(), torch.randn(2, 2)).save(folder / "overflowing")
    return folder


@contextmanager
def listening(app: Any, root_path: str = "", port: int = 0) -> Iterator[str]:
    """Serve an application on a port of the loopback, a free one where none is named, and give its address."""
    config = uvicorn.Config(app, port=port, root_path=root_path, log_config=None, access_log=False)
    server = uvicorn.Server(config)
    with config.bind_socket() as listener:
        thread = Thread(target=asyncio.run, args=(server.serve([listener]),))
        thread.start()
        deadline = time.monotonic() + START_S
        while not server.started:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(START_S)
