"""Numbers that a network looks up in a table are within it, or refused: by their place where that is plain."""

import pytest
import torch
from torch import Tensor, nn

from service import Predictor
from service.errors import InvalidInput
from service.graph.capture import capture
from service.graph.tables import NOWHERE, table_lengths


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
    """Looks columns up in tables of their own, as networks of categories do, and takes the last one as a number."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList([nn.Embedding(9, 4), nn.Embedding(5, 4)])
        self.drop, self.last = nn.Dropout(0.3), nn.Linear(9, 1)

    def forward(self, x: Tensor) -> Tensor:
        looked_up = [each(x[:, at]) for at, each in enumerate(self.tables)]
        found: Tensor = self.last(self.drop(torch.cat([*looked_up, x[:, 2:].float()], 1)))
        return found


class Shifted(nn.Module):
    """Looks up what it computes from words."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.drop, self.last = nn.Embedding(9, 4), nn.Dropout(0.3), nn.Linear(4, 1)

    def forward(self, words: Tensor) -> Tensor:
        found: Tensor = self.last(self.drop(self.table(words + 2).mean(1)))
        return found


def lengths(module: nn.Module, *example: Tensor) -> list[object]:
    return [None if each is None else each.tolist() for each in table_lengths(capture(module.eval(), example).program)]


def test_an_input_is_bound_by_the_shortest_table_that_it_is_looked_up_in() -> None:
    example = torch.randn(2, 1), torch.randint(0, 7, (2, 3))
    assert lengths(Words(), *example) == [None, 7]
    predictor = Predictor.capture(Words().eval(), example)
    with pytest.raises(
        InvalidInput, match=r"row 0, position \[2\] is 7, and the network's table has the places 0 to 6"
    ):
        predictor.predict((torch.zeros(1, 1), torch.tensor([[0, 6, 7]])))


def test_columns_have_tables_of_their_own() -> None:
    example = torch.randint(0, 5, (2, 3))
    assert lengths(Columns(), example) == [[9, 5, NOWHERE]]
    predictor = Predictor.capture(Columns().eval(), example)
    assert predictor.predict(torch.tensor([[8, 4, -70]])).variance > 0
    with pytest.raises(
        InvalidInput, match=r"row 0, position \[1\] is 5, and the network's table has the places 0 to 4"
    ):
        predictor.predict(torch.tensor([[8, 5, 0]]))


def test_rows_that_are_picked_bind_nothing() -> None:
    class Second(Shifted):
        def forward(self, words: Tensor) -> Tensor:
            found: Tensor = super().forward(words) + self.table(words[1]).mean()
            return found

    assert lengths(Second(), torch.randint(0, 5, (2, 3))) == [NOWHERE]


def test_what_is_computed_from_numbers_is_refused_where_it_is_looked_up() -> None:
    predictor = Predictor.capture(Shifted().eval(), torch.randint(0, 5, (2, 3)))
    assert predictor.predict(torch.tensor([[-2, 0, 6]])).variance > 0
    with pytest.raises(InvalidInput, match="looks up numbers of the inputs in a table that is shorter; give smaller"):
        predictor.predict(torch.tensor([[0, 0, 7]]))
