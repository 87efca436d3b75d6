"""Whether a mean and a variance are those of the passes; it does not know who gave them."""

import math
from dataclasses import dataclass

import torch
from contenders import HandLoop, Moments
from torch import Tensor
from workloads import Workload

SIGMAS = 6
_ROWS = 4
_PASSES = 200  # at least: fewer may miss what a rare drop does


@dataclass(frozen=True)
class Judge:
    """The passes of a careful hand loop, and how far an answer of `asked` passes may be from them."""

    passes: Tensor
    asked: int

    @staticmethod
    def of(workload: Workload, x: Tensor) -> "Judge":
        """Loop over the first rows."""
        network = HandLoop(workload).network
        with torch.inference_mode():
            passes = torch.stack([network(x[:_ROWS]) for _ in range(max(workload.passes, _PASSES))]).double()
        return Judge(passes, workload.passes)

    def fault(self, answer: Moments) -> str:
        """Return what is wrong with a mean and a variance, if anything is."""
        mean, variance = (each[: self.passes.shape[1]].to(self.passes) for each in answer)
        if (variance == 0).all():
            return "variance 0"
        share, centred = 1 / self.asked + 1 / len(self.passes), self.passes - self.passes.mean(0)
        expected = centred.square().mean(0)
        off = ((mean - self.passes.mean(0)).abs() / (expected * share).sqrt()).max().item()
        if off > SIGMAS:
            return f"mean off by {off:.0f} standard errors"
        kurtosis = (centred.pow(4).mean(0) / expected.square()).mean().item()
        ratio = (variance.sum() / expected.sum()).item()
        error = math.sqrt(share * max(kurtosis - 1, 1))
        return f"variance {ratio:.2f} times" if abs(math.log(ratio)) > SIGMAS * error else ""
