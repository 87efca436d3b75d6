"""Numbers that a network looks up in a table are within it, or refused: by their place where that is plain."""

import pytest
import torch
from torch import Tensor, nn

from service import Predictor
from service.errors import InvalidInput
from service.graph.capture import capture
from service.graph.tables import table_lengths


class Words(nn.Module):
    """Looks every word up in two tables, one of them for the words in another order and type."""

    def __init__(self) -> None:
        super().__init__()
        self.long, self.short = nn.Embedding(9, 4), nn.Embedding(7, 4)
        self.drop, self.last = nn.Dropout(0.3), nn.Linear(4, 1)

    def forward(self, x: Tensor, words: Tensor) -> Tensor:
        other = self.short(words.to(torch.int32).transpose(0, 1).reshape(words.shape[1], -1)).transpose(0, 1)
        found: Tensor = self.last(self.drop(self.long(words) + other).mean(1)) + x
        return found


class Columns(nn.Module):
    """Looks each column up in a table of its own, as networks of categories do."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList([nn.Embedding(9, 4), nn.Embedding(5, 4)])
        self.drop, self.last = nn.Dropout(0.3), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.last(self.drop(torch.cat([each(x[:, at]) for at, each in enumerate(self.tables)], 1)))
        return found


def test_an_input_is_bound_by_the_shortest_table_that_it_is_looked_up_in() -> None:
    captured = capture(Words().eval(), (torch.randn(2, 1), torch.randint(0, 7, (2, 3))))
    assert table_lengths(captured.program) == (None, 7)
    predictor = Predictor.capture(Words().eval(), (torch.randn(2, 1), torch.randint(0, 7, (2, 3))))
    with pytest.raises(
        InvalidInput, match=r"row 0, position \[2\] is 7, and the network's table has the places 0 to 6"
    ):
        predictor.predict((torch.zeros(1, 1), torch.tensor([[0, 6, 7]])))


def test_columns_may_have_tables_of_different_lengths() -> None:
    predictor = Predictor.capture(Columns().eval(), torch.randint(0, 5, (2, 2)))
    assert predictor.predict(torch.tensor([[8, 4]])).variance > 0
    with pytest.raises(InvalidInput, match="looks up numbers of the inputs in a table that is shorter; give smaller"):
        predictor.predict(torch.tensor([[4, 8]]))
