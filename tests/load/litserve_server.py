"""MC dropout as LitServe's user writes it: N copies of the rows in one call, mean and variance over them.

Run with the workload's name, the port, the batch size, the queue (`fast` or `usual`) and the device, such as `cpu`.
"""

import sys
from pathlib import Path
from typing import Any

import litserve
import torch
from torch import Tensor

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent / "performance")]

from by_hand import by_hand  # noqa: E402
from workloads import WORKLOADS  # noqa: E402

WAIT_S = 0.002  # for more of a batch; 0 spins on a core


class ByHand(litserve.LitAPI):
    """A network in training mode, what normalises in eval mode."""

    def __init__(self, name: str, batch: int) -> None:
        super().__init__(max_batch_size=batch, batch_timeout=WAIT_S if batch > 1 else 0.0)
        self.workload = next(each for each in WORKLOADS if each.name == name)

    def setup(self, device: str) -> None:
        self.network = by_hand(self.workload.build()).to(device)

    def decode_request(self, request: dict[str, Any]) -> Tensor:
        return torch.tensor(request["inputs"])

    @torch.inference_mode()
    def predict(self, x: Tensor) -> Tensor:
        """Return mean and variance [2, B, …] of rows [B, …], or [requests, 2, 1, …] of a batch [requests, 1, …]."""
        rows = x.flatten(0, 1) if self.max_batch_size > 1 else x
        passes = self.network(rows.repeat(self.workload.passes, *[1] * (rows.ndim - 1)))
        passes = passes.unflatten(0, (self.workload.passes, len(rows)))
        found = torch.stack([passes.mean(0), passes.var(0)])
        return found.unflatten(1, x.shape[:2]).movedim(1, 0) if self.max_batch_size > 1 else found

    def batch(self, inputs: list[Tensor]) -> Tensor:
        return torch.stack(inputs)

    def unbatch(self, output: Tensor) -> list[Tensor]:
        return list(output)

    def encode_response(self, output: Tensor) -> dict[str, Any]:
        mean, variance = output.tolist()
        return {"mean": mean, "variance": variance}


class AloneByHand(ByHand):
    """The same without batching."""

    batch = litserve.LitAPI.batch  # type: ignore[assignment] # LitServe looks whether they are overridden
    unbatch = litserve.LitAPI.unbatch


if __name__ == "__main__":
    name, port, batch, device = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), torch.device(sys.argv[5])
    api = (ByHand if batch > 1 else AloneByHand)(name, batch)
    place = {"accelerator": device.type, "devices": 1 if device.index is None else [device.index]}
    server = litserve.LitServer(api, **place, timeout=120, fast_queue=sys.argv[4] == "fast")
    server.run(host="127.0.0.1", port=port, log_level="warning", generate_client_file=False)
