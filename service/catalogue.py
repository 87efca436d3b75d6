"""The catalogue of variants as plain data, for the wire, the terminal and the documentation."""

from typing import Any

from service.dropout import VARIANTS


def describe_variants() -> list[dict[str, Any]]:
    """Return every variant's name, equation, sampling, sites, parameters with defaults, closed forms and reference."""
    return [
        {
            "name": variant.name,
            "equation": variant.equation,
            "sampled": variant.sampled,
            "shared": variant.shared,
            "sites": sorted(variant.kinds),
            "parameters": variant().parameters(),
            "mean": variant.mean_form,
            "variance": variant.variance_form,
            "joint": variant.joint,
            "reference": variant.reference,
        }
        for variant in VARIANTS
    ]
