"""A process with a model, single-threaded as a server's, that forks: `python forking.py <model folder> <forks>`.

Each child takes its own number of threads and runs products, convolutions, a recurrent network and the model; it must
end within seconds with the parent's numbers.
"""

import os
import sys
import time
from pathlib import Path

from service.threads import prepare_environment, prevent_monitor

LIMIT_S = 30.0


def tasks() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def main(folder: str, forks: int) -> None:
    prepare_environment()
    prevent_monitor()
    import torch
    from torch import nn

    torch.set_num_threads(1)
    from service.repository import Repository

    repository = Repository(Path(folder), versions_kept=2)
    predictor = repository.predictor(repository.names()[0])
    assert tasks() == 1, f"loading and warming up started threads: {tasks()}"
    x = torch.randn(4, *predictor.inputs[0].shape)
    torch.manual_seed(0)
    convolution, recurrent = nn.Conv2d(3, 16, 3).eval(), nn.LSTM(32, 64, batch_first=True).eval()
    images, steps, square = torch.randn(4, 3, 64, 64), torch.randn(4, 20, 32), torch.randn(512, 512)

    @torch.no_grad()
    def work() -> list[torch.Tensor]:
        found = predictor.predict(x, passes=64)
        return [square @ square, convolution(images), recurrent(steps)[0], found.mean, found.variance]

    expected = work()
    assert tasks() == 1, f"computing started threads: {tasks()}"
    for fork in range(forks):
        pid = os.fork()
        if not pid:
            code = 1
            try:
                torch.set_num_threads(1 + fork % 3)
                for mine, theirs in zip(work(), expected, strict=True):
                    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
                assert fork % 3 == 0 or tasks() > 1, "it computes in one thread"
                code = 0
            finally:
                os._exit(code)
        deadline = time.monotonic() + LIMIT_S
        found, status = 0, 0
        while not found:
            found, status = os.waitpid(pid, os.WNOHANG)
            if not found and time.monotonic() > deadline:
                os.kill(pid, 9)
                raise SystemExit(f"fork {fork} hangs")
            time.sleep(0.002)
        assert status == 0, f"fork {fork}: {status}"
    print(f"{forks} forks")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
