"""A table's blocks as Ray Data reads them: one task for each reading; it does not know what a table is."""

from collections.abc import Sequence

from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata
from ray.data.context import DataContext

from service.cluster.tasks import Reading


class Blocks(Datasource):
    """Readings as Ray Data's read tasks.

    Args:
        readings: What is read, in order.
    """

    def __init__(self, readings: Sequence[Reading]) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # it ships without types
        self._readings = readings

    @property
    def supports_distributed_reads(self) -> bool:
        """Read on this machine alone: a path is one of its own."""
        return False

    def estimate_inmemory_data_size(self) -> int | None:
        """Return how large it all is: nobody knows."""
        return None

    def get_read_tasks(
        self,
        parallelism: int,
        per_task_row_limit: int | None = None,
        data_context: DataContext | None = None,
    ) -> list[ReadTask]:
        """Return a task for each reading."""
        unknown = BlockMetadata(num_rows=None, size_bytes=None, exec_stats=None, input_files=None)
        return [ReadTask(reading, unknown) for reading in self._readings]
