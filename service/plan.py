"""Which variant acts at which site: what the caller asked for, checked against what fits; it does not run anything.

`variant="trained"` is what the network was trained with. Another variant replaces the whole plan: it goes to the
trained sites that it fits or, if it fits none of them, to every site that it fits, inputs only if nothing else; all
other sites are off. `sites` then adds or overrides one by one.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from service.datasheet import MAX_PASSES
from service.dropout import BY_NAME, Kind, Variant
from service.errors import BadRequest, InvalidPlan, NoActiveSite
from service.graph.sites import Site

TRAINED = "trained"
OFF = "off"
Override = str | float | Mapping[str, Any] | None
Plan = dict[str, Variant]
_LARGEST = 1e300


@dataclass(frozen=True)
class Choice:
    """A variant's name and its parameters, not yet checked against a site."""

    variant: str
    parameters: Mapping[str, Any]


def make_plan(
    sites: Sequence[Site],
    variant: str | None = TRAINED,
    p: float | None = None,
    overrides: Mapping[str, Override] | None = None,
) -> Plan:
    """Return the variant of every active site, by the site's name.

    Args:
        sites: The network's sites.
        variant: `trained`, or the name of the variant that replaces the whole plan.
        p: A drop rate that replaces every rate of the plan; None keeps the trained ones, or the variant's default.
        overrides: By site: a variant's name, a rate, a mapping of `variant` and its parameters, or `off` (or None).

    Raises:
        InvalidPlan: A variant, rate or site is unknown or does not fit.
        NoActiveSite: The plan leaves nothing random.
    """
    by_name = {site.name: site for site in sites}
    choices = _whole_plan(sites, variant or TRAINED, p)
    for name, override in (overrides or {}).items():
        if name not in by_name:
            raise InvalidPlan(
                f"there is no site {name!r}{_did_you_mean(name, by_name)}; the sites are {_listed(by_name)}"
            )
        changed = _override(by_name[name], override, choices.pop(name, None), p)
        if changed is not None:
            choices[name] = changed
    plan = {name: _build(by_name[name], choice) for name, choice in choices.items()}
    active = {name: chosen for name, chosen in plan.items() if chosen.active}
    if not active:
        raise NoActiveSite(_no_active_site(sites, variant or TRAINED))
    return active


def fixed_passes(plan: Plan) -> int | None:
    """Return the only number of passes that a plan can run, where there is one.

    Raises:
        InvalidPlan: Two sites need different numbers.
    """
    wanted = {name: variant.fixed_passes for name, variant in plan.items() if variant.fixed_passes is not None}
    if len(set(wanted.values())) > 1:
        told = ", ".join(f"{name} {passes}" for name, passes in wanted.items())
        raise InvalidPlan(f"sites need different numbers of passes: {told}; give them one number of masks")
    return next(iter(wanted.values()), None)


def choose_passes(plan: Plan, asked: int | None, default: int, tolerance: float | None = None) -> int:
    """Return how many passes a plan runs: those asked for, its fixed number, or the default; at most with a tolerance.

    Raises:
        BadRequest: Another number than its fixed one is asked for, or a tolerance where there is one.
        InvalidPlan: Two sites need different numbers.
    """
    fixed = fixed_passes(plan)
    if fixed is not None and tolerance is not None:
        raise BadRequest(f"this plan is an ensemble of {fixed} fixed masks, which all run; leave the tolerance out")
    if fixed is not None and asked not in (None, fixed):
        raise BadRequest(f"passes = {asked!r}, but this plan is an ensemble of {fixed} fixed masks; ask for {fixed}")
    return asked if asked is not None else fixed or (default if tolerance is None else MAX_PASSES)


def fitting(site: Site) -> tuple[str, ...]:
    """Return the names of the variants that fit a site."""
    return tuple(name for name, variant in BY_NAME.items() if variant().fits(site.kind, site.shape))


def _whole_plan(sites: Sequence[Site], variant: str, p: float | None) -> dict[str, Choice]:
    if variant == OFF:
        return {}
    trained = [site for site in sites if site.is_trained]
    if variant == TRAINED:
        return {site.name: Choice(str(site.variant), _parameters(site, str(site.variant), p)) for site in trained}
    cls = _variant_named(variant)
    fits = [site for site in sites if cls().fits(site.kind, site.shape)]
    if not fits:
        raise InvalidPlan(f"variant {variant!r} fits none of the sites: {_sites_and_fits(sites)}")
    inside = [site for site in fits if site.kind is not Kind.INPUT]
    chosen = [site for site in fits if site in trained] or inside or fits
    return {site.name: Choice(variant, _parameters(site, variant, p)) for site in chosen}


def _override(site: Site, override: Override, planned: Choice | None, p: float | None) -> Choice | None:
    """Return what acts at a site after an override; None where it is off."""
    name = planned.variant if planned is not None else site.variant
    given: Mapping[str, Any]
    if override is None or override == OFF:
        return None
    if isinstance(override, str):
        name, given = override, {}
    elif isinstance(override, Mapping):
        given = override
    elif isinstance(override, (int, float)) and not isinstance(override, bool):
        given = {"p": override}
    else:
        raise InvalidPlan(f"site {site.name!r}: {override!r} is neither a variant's name, a rate, a mapping nor 'off'")
    name = given.get("variant", name)
    if name == OFF:
        return None
    if name == TRAINED:
        name = site.variant
    if name is None:
        raise InvalidPlan(f"site {site.name!r} was trained without a variant; name one: {', '.join(fitting(site))}")
    return Choice(
        name, {**_parameters(site, name, p), **{key: value for key, value in given.items() if key != "variant"}}
    )


def _parameters(site: Site, name: Any, p: float | None) -> dict[str, Any]:
    """Return the trained parameters of the site's own variant, with the rate asked for or else the trained one.

    What is neither asked for nor trained is left to the variant's default.
    """
    own = dict(site.parameters) if name == site.variant else {}
    rated = _variant_named(name).rated
    if p is not None:
        return {**own, "p": p}
    return {**own, "p": site.p} if site.p and rated else own


def _build(site: Site, choice: Choice) -> Variant:
    cls = _variant_named(choice.variant)
    parameters = {key: _number(site, cls, key, value) for key, value in choice.parameters.items()}
    try:
        variant = cls(**parameters)
    except InvalidPlan as error:
        raise InvalidPlan(f"site {site.name!r}: {error}") from None
    if not variant.fits(site.kind, site.shape):
        raise InvalidPlan(
            f"variant {cls.name!r} does not fit site {site.name!r} ({site.kind}, shape {site.shape}); "
            f"what fits: {', '.join(fitting(site)) or 'nothing'}"
        )
    return variant


def _number(site: Site, cls: type[Variant], key: str, value: Any) -> float:
    known = cls().parameters()
    if key not in known:
        own = ", ".join(known) or "none"
        raise InvalidPlan(f"site {site.name!r}: {cls.name} has no parameter {key!r}; it has {own}")
    if isinstance(value, bool) or not isinstance(value, (int, float)) or abs(value) > _LARGEST:
        raise InvalidPlan(f"site {site.name!r}: {key} = {value!r} is not a number that {cls.name} can use")
    return float(value)


def _variant_named(name: Any) -> type[Variant]:
    if not isinstance(name, str) or name not in BY_NAME:
        raise InvalidPlan(
            f"there is no variant {name!r}{_did_you_mean(str(name), BY_NAME)}; the variants are {', '.join(BY_NAME)}"
        )
    return BY_NAME[name]


def _no_active_site(sites: Sequence[Site], variant: str) -> str:
    trained = any(site.is_trained for site in sites)
    if variant == TRAINED:
        asked = "every site that it was trained with is off" if trained else "as trained, it has no dropout"
    else:
        asked = f"with variant {variant!r} nothing is active"
    return (
        f"nothing would be random ({asked}), so the variance would be a false 0; "
        f"activate a site with `variant`, `p` or `sites`: {_sites_and_fits(sites)}"
    )


def _sites_and_fits(sites: Sequence[Site], most: int = 12) -> str:
    shown = "; ".join(f"{site.name} ({', '.join(fitting(site)) or 'nothing fits'})" for site in sites[:most])
    rest = f"; and {len(sites) - most} more" if len(sites) > most else ""
    return (shown + rest) or "the network has no sites"


def _listed(names: Mapping[str, Any], most: int = 20) -> str:
    shown = list(names)[:most]
    return ", ".join(shown) + (f" and {len(names) - most} more" if len(names) > most else "")


def _did_you_mean(name: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
