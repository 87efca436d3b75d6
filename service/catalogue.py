"""The catalogue of variants as plain data, for the wire, the terminal and the documentation."""

from typing import Any

from torch import nn

from service import dropout
from service.dropout import VARIANTS

LAYERS: dict[str, tuple[type[nn.Module], ...]] = {
    "bernoulli": (nn.Dropout,),
    "gaussian": (dropout.GaussianDropout,),
    "uniform": (dropout.UniformDropout,),
    "spatial": (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
    "alpha": (nn.AlphaDropout,),
    "feature-alpha": (nn.FeatureAlphaDropout,),
    "dropconnect": (dropout.DropConnectLinear, dropout.DropConnectConv2d),
    "dropconnect-sampled": (dropout.DropConnectLinear,),
    "concrete": (dropout.ConcreteDropout,),
    "spatial-concrete": (dropout.SpatialConcreteDropout,),
    "layer-drop": (dropout.LayerDropPath,),
    "shake-drop": (dropout.ShakeDropPath,),
    "shake-shake": (dropout.ShakeShakeMix,),
    "standout": (dropout.StandoutLinear, dropout.StandoutGate),
    "masksembles": (dropout.Masksembles1d, dropout.Masksembles2d),
    "variational-a": (dropout.VariationalLinear, dropout.LearnedVariationalLinear),
    "variational-b": (dropout.VariationalLinear, dropout.LearnedVariationalLinear),
    "shakeout": (dropout.ShakeoutLinear,),
    "targeted-weights": (dropout.TargetedLinear,),
    "targeted-units": (dropout.TargetedLinear,),
    "word-dropout": (dropout.WordDropoutEmbedding,),
    "locked": (dropout.LockedDropout,),
    "weight-dropped": (dropout.WeightDropLSTM, dropout.WeightDropGRU),
    "sparse-variational": (dropout.SparseVariationalLinear,),
    "sparse-variational-joint": (dropout.SparseVariationalLinear,),
    "max-pooling-dropout": (dropout.MaxPoolDropout1d, dropout.MaxPoolDropout2d, dropout.MaxPoolDropout3d),
    "stochastic-pooling": (dropout.StochasticPool1d, dropout.StochasticPool2d, dropout.StochasticPool3d),
    "max-drop": (dropout.MaxDrop2d,),
    "max-drop-channel": (dropout.MaxDrop2d,),
    "masked-max-pooling": (dropout.MaskedMaxPool1d, dropout.MaskedMaxPool2d, dropout.MaskedMaxPool3d),
    "dropblock": (dropout.DropBlock2d,),
    "cutout": (dropout.Cutout2d,),
    "variational-rnn": (dropout.DropoutLSTM, dropout.DropoutGRU),
    "rnn-drop": (dropout.DropoutLSTM,),
    "recurrent-dropout": (dropout.DropoutLSTM, dropout.DropoutGRU),
    "zoneout": (dropout.DropoutLSTM, dropout.DropoutGRU),
}
"""The layers to train with, by variant: torch's, or those of `service.dropout`."""
_OTHERS = {"drop-path": ("timm's DropPath", "torchvision's StochasticDepth")}


def describe_variants() -> list[dict[str, Any]]:
    """Return every variant's name, equation, sampling, sites, layers, parameters with defaults, forms and reference."""
    return [
        {
            "name": variant.name,
            "equation": variant.equation,
            "sampled": variant.sampled,
            "shared": variant.shared,
            "sites": sorted(variant.kinds),
            "layers": [*map(_told, LAYERS.get(variant.name, ())), *_OTHERS.get(variant.name, ())],
            "parameters": variant().parameters(),
            "mean": variant.mean_form,
            "variance": variant.variance_form,
            "joint": variant.joint,
            "reference": variant.reference,
        }
        for variant in VARIANTS
    ]


def _told(layer: type[nn.Module]) -> str:
    return f"torch.nn.{layer.__name__}" if layer.__module__.startswith("torch.") else layer.__name__
