"""Files in, files out: a table of rows becomes a table of means and variances; it does not know who computes them.

`table` reads, asks and writes; `source` opens tables as `block`s of rows; an `engine` answers them: `local` asks a
predictor of this process, `remote` a server; `work_folder` keeps what is done, `output` makes the result of it.
"""

from service.scoring.engine import Parameters
from service.scoring.table import Summary, score_table

__all__ = ["Parameters", "Summary", "score_table"]
