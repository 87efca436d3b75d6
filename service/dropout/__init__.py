"""The catalogue: every dropout variant, one file each, listed here once; it does not know networks."""

from service.dropout.alpha import Alpha
from service.dropout.bernoulli import Bernoulli
from service.dropout.cell_layers import DropoutGRU, DropoutLSTM
from service.dropout.concrete import Concrete, ConcreteDropout, SpatialConcrete, SpatialConcreteDropout
from service.dropout.cutout import Cutout, Cutout2d
from service.dropout.drop_block import DropBlock, DropBlock2d
from service.dropout.drop_path import DropPath
from service.dropout.dropconnect import DropConnect, DropConnectLinear
from service.dropout.dropconnect_conv import DropConnectConv2d
from service.dropout.dropconnect_sampled import DropConnectSampled
from service.dropout.fast import Fast
from service.dropout.feature_alpha import FeatureAlpha
from service.dropout.gaussian import Gaussian, GaussianDropout
from service.dropout.layer_drop import LayerDrop, LayerDropPath
from service.dropout.locked import Locked, LockedDropout
from service.dropout.masked_max_pooling import MaskedMaxPool1d, MaskedMaxPool2d, MaskedMaxPool3d, MaskedMaxPooling
from service.dropout.masksembles import Masksembles, Masksembles1d, Masksembles2d
from service.dropout.max_drop import MaxDrop, MaxDrop2d, MaxDropChannel
from service.dropout.max_pooling_dropout import (
    MaxPoolDropout1d,
    MaxPoolDropout2d,
    MaxPoolDropout3d,
    MaxPoolingDropout,
)
from service.dropout.noise import Stream
from service.dropout.recurrent_dropout import RecurrentDropout
from service.dropout.rnn_drop import RNNDrop
from service.dropout.shake_drop import ShakeDrop, ShakeDropPath
from service.dropout.shake_shake import ShakeShake, ShakeShakeMix
from service.dropout.shakeout import Shakeout, ShakeoutLinear
from service.dropout.sparse_variational import (
    SparseVariational,
    SparseVariationalJoint,
    SparseVariationalLinear,
)
from service.dropout.spatial import Spatial
from service.dropout.standout import Standout, StandoutGate, StandoutLinear
from service.dropout.stochastic_pooling import (
    StochasticPool1d,
    StochasticPool2d,
    StochasticPool3d,
    StochasticPooling,
)
from service.dropout.targeted_units import TargetedUnits
from service.dropout.targeted_weights import TargetedLinear, TargetedWeights
from service.dropout.uniform import Uniform, UniformDropout
from service.dropout.variant import Kind, Variant
from service.dropout.variational_a import VariationalA, VariationalLinear
from service.dropout.variational_b import VariationalB
from service.dropout.variational_learned import LearnedVariationalLinear
from service.dropout.variational_rnn import VariationalRNN
from service.dropout.weight_dropped import WeightDropGRU, WeightDropLSTM, WeightDropped
from service.dropout.word_dropout import WordDropout, WordDropoutEmbedding
from service.dropout.zoneout import Zoneout

VARIANTS: tuple[type[Variant], ...] = (
    Bernoulli,
    Gaussian,
    Uniform,
    Spatial,
    Alpha,
    FeatureAlpha,
    DropConnect,
    DropConnectSampled,
    DropPath,
    Concrete,
    SpatialConcrete,
    LayerDrop,
    ShakeDrop,
    ShakeShake,
    Standout,
    Masksembles,
    Fast,
    VariationalA,
    VariationalB,
    Shakeout,
    TargetedWeights,
    TargetedUnits,
    WordDropout,
    Locked,
    WeightDropped,
    SparseVariational,
    SparseVariationalJoint,
    MaxPoolingDropout,
    StochasticPooling,
    MaxDrop,
    MaxDropChannel,
    MaskedMaxPooling,
    DropBlock,
    Cutout,
    VariationalRNN,
    RNNDrop,
    RecurrentDropout,
    Zoneout,
)
BY_NAME: dict[str, type[Variant]] = {variant.name: variant for variant in VARIANTS}

__all__ = [
    "BY_NAME",
    "VARIANTS",
    "Alpha",
    "Bernoulli",
    "Concrete",
    "ConcreteDropout",
    "Cutout",
    "Cutout2d",
    "DropBlock",
    "DropBlock2d",
    "DropConnect",
    "DropConnectConv2d",
    "DropConnectLinear",
    "DropConnectSampled",
    "DropPath",
    "DropoutGRU",
    "DropoutLSTM",
    "Fast",
    "FeatureAlpha",
    "Gaussian",
    "GaussianDropout",
    "Kind",
    "LayerDrop",
    "LayerDropPath",
    "LearnedVariationalLinear",
    "Locked",
    "LockedDropout",
    "MaskedMaxPool1d",
    "MaskedMaxPool2d",
    "MaskedMaxPool3d",
    "MaskedMaxPooling",
    "Masksembles",
    "Masksembles1d",
    "Masksembles2d",
    "MaxDrop",
    "MaxDrop2d",
    "MaxDropChannel",
    "MaxPoolDropout1d",
    "MaxPoolDropout2d",
    "MaxPoolDropout3d",
    "MaxPoolingDropout",
    "RNNDrop",
    "RecurrentDropout",
    "ShakeDrop",
    "ShakeDropPath",
    "ShakeShake",
    "ShakeShakeMix",
    "Shakeout",
    "ShakeoutLinear",
    "SparseVariational",
    "SparseVariationalJoint",
    "SparseVariationalLinear",
    "Spatial",
    "SpatialConcrete",
    "SpatialConcreteDropout",
    "Standout",
    "StandoutGate",
    "StandoutLinear",
    "StochasticPool1d",
    "StochasticPool2d",
    "StochasticPool3d",
    "StochasticPooling",
    "Stream",
    "TargetedLinear",
    "TargetedUnits",
    "TargetedWeights",
    "Uniform",
    "UniformDropout",
    "Variant",
    "VariationalA",
    "VariationalB",
    "VariationalLinear",
    "VariationalRNN",
    "WeightDropGRU",
    "WeightDropLSTM",
    "WeightDropped",
    "WordDropout",
    "WordDropoutEmbedding",
    "Zoneout",
]
