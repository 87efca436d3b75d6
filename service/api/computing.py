"""Which thread of a server computes on how many; it does not know what is computed.

Where two threads compute in parallel, OpenMP has more threads than processors, lets none of them wait for the next
operator awake, and each operator then wakes them from the kernel: a ResNet's forward takes up to twice as long. So one
thread alone computes on several, and the event loop's, which does what is little, by itself.
"""

import sys
from threading import Thread

import torch

_SWITCH_S = 5e-4  # the computing thread asks for the interpreter at every operator, and would wait ten times as long


def compute_alone() -> None:
    """Let each thread, this one and those that begin later, compute by itself, and have the interpreter soon."""
    torch.set_num_threads(1)
    sys.setswitchinterval(_SWITCH_S)


def compute_on(threads: int) -> None:
    """Let this thread compute on several, and those that begin later on as many as before."""
    before = heed_threads()
    torch.set_num_threads(threads)
    other = Thread(target=torch.set_num_threads, args=(before,))  # the last who is told tells it to later threads too
    other.start()
    other.join()


def heed_threads() -> int:
    """Let this thread heed what threads were told before it began, which some operators would not see to themselves.

    Returns:
        On how many threads it computes.
    """
    return torch.get_num_threads()
