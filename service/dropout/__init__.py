"""The catalogue: every dropout variant, one file each, listed here once; it does not know networks."""

from service.dropout.alpha import Alpha
from service.dropout.bernoulli import Bernoulli
from service.dropout.drop_path import DropPath
from service.dropout.dropconnect import DropConnect, DropConnectLinear
from service.dropout.dropconnect_conv import DropConnectConv2d
from service.dropout.dropconnect_sampled import DropConnectSampled
from service.dropout.fast import Fast
from service.dropout.feature_alpha import FeatureAlpha
from service.dropout.gaussian import Gaussian, GaussianDropout
from service.dropout.noise import Stream
from service.dropout.shakeout import Shakeout, ShakeoutLinear
from service.dropout.spatial import Spatial
from service.dropout.targeted_units import TargetedUnits
from service.dropout.targeted_weights import TargetedLinear, TargetedWeights
from service.dropout.uniform import Uniform, UniformDropout
from service.dropout.variant import Kind, Variant
from service.dropout.variational_a import VariationalA, VariationalLinear
from service.dropout.variational_b import VariationalB
from service.dropout.word_dropout import WordDropout, WordDropoutEmbedding

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
    Fast,
    VariationalA,
    VariationalB,
    Shakeout,
    TargetedWeights,
    TargetedUnits,
    WordDropout,
)
BY_NAME: dict[str, type[Variant]] = {variant.name: variant for variant in VARIANTS}

__all__ = [
    "BY_NAME",
    "VARIANTS",
    "Alpha",
    "Bernoulli",
    "DropConnect",
    "DropConnectConv2d",
    "DropConnectLinear",
    "DropConnectSampled",
    "DropPath",
    "Fast",
    "FeatureAlpha",
    "Gaussian",
    "GaussianDropout",
    "Kind",
    "Shakeout",
    "ShakeoutLinear",
    "Spatial",
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
    "WordDropout",
    "WordDropoutEmbedding",
]
