"""Files in, files out: a table of rows becomes a table of means and variances; it does not know who computes them.

`table` reads, asks and writes in blocks of rows; `local` asks a predictor, `remote` a server.
"""

from service.scoring.table import BLOCK_ROWS, Summary, score_table

__all__ = ["BLOCK_ROWS", "Summary", "score_table"]
