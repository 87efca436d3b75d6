"""What a mask for each row costs beside torch's own dropout, in the same run, above a million draws."""

import pytest
import torch
from timing import least_s
from torch.nn import functional as F

from service.dropout import Stream

ROWS, UNITS = 1024, 1024


@pytest.mark.parametrize("p", [0.5, 0.3])
def test_a_mask_for_each_row_is_five_times_as_fast_as_torchs_dropout(p: float) -> None:
    stream, x = Stream(0, "site", 0, 1, range(ROWS)), torch.ones(ROWS, UNITS)
    mine, theirs = least_s(lambda: stream.keep(1 - p, (UNITS,))), least_s(lambda: F.dropout(x, p, True))

    print(f"\n{ROWS * UNITS} draws at p = {p}: {mine * 1e3:.2f} ms, F.dropout {theirs * 1e3:.2f} ms")
    assert mine * 5 < theirs
