"""Load a `.pt2` file that anyone may have written; it does not know folders, sites or plans.

`torch.export.load` alone unpickles weights that the archive flags, retries with pickle where a safe load fails,
evaluates the text of symbolic expressions, writes names into source code that it runs, and takes any operator that a
graph names. So the file is read once, taken apart by rules that allow what is known, and put together again in memory:
torch sees nothing of the file that was not checked.

    loading      bytes → checksum → the two below → torch
    container    the zip file: which entries there may be
    payloads     where each weight lies in its entry
    serialized   the JSON, walked along torch's schema …
    fields       … with a rule for every field of text
    trees        the nesting of inputs and outputs
    expressions  the grammar of symbolic sizes
    operators    the operators that only compute
"""

from service.graph.archive.loading import load_program

__all__ = ["load_program"]
