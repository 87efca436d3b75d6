"""Every specimen: tiny networks, each named for its difficulty."""

from zoo_attention import ATTENTION
from zoo_graphs import GRAPHS
from zoo_inplace import INPLACE
from zoo_layers import LAYERS
from zoo_paths import PATHS
from zoo_pools import POOLS
from zoo_recurrent import RECURRENT
from zoo_weights import WEIGHTS

ZOO = (*LAYERS, *ATTENTION, *RECURRENT, *INPLACE, *WEIGHTS, *PATHS, *GRAPHS, *POOLS)
