"""A plan is what was asked for and nothing else; what does not fit is refused with what would."""

import pytest

from service.dropout import BY_NAME, Kind
from service.errors import InvalidPlan, NoActiveSite
from service.graph.sites import Site
from service.plan import Override, fitting, make_plan

HIDDEN = Site("drop", Kind.ACTIVATION, (8,), "bernoulli", 0.3)
IMAGE = Site("conv.drop", Kind.ACTIVATION, (4, 5, 5), "spatial", 0.2)
IDLE = Site("idle", Kind.ACTIVATION, (8,), "bernoulli", 0.0)
WEIGHT = Site("head.weight", Kind.WEIGHT, (3, 9))
BRANCH = Site("block.drop_path", Kind.RESIDUAL, (8,), "drop-path", 0.1)
SITES = (HIDDEN, IMAGE, IDLE, WEIGHT, BRANCH)


def planned(variant: str | None = "trained", p: float | None = None, **sites: Override) -> dict[str, tuple[str, float]]:
    overrides = {name.replace("_", "."): override for name, override in sites.items()}
    return {name: (chosen.name, chosen.p) for name, chosen in make_plan(SITES, variant, p, overrides).items()}


def test_as_trained_is_every_trained_site_with_its_own_variant_and_rate() -> None:
    trained = {
        "drop": ("bernoulli", 0.3),
        "conv.drop": ("spatial", 0.2),
        "block.drop_path": ("drop-path", 0.1),
    }

    assert planned() == planned(None) == trained


def test_a_rate_replaces_every_trained_rate() -> None:
    assert set(planned(p=0.7).values()) == {("bernoulli", 0.7), ("spatial", 0.7), ("drop-path", 0.7)}


def test_a_variant_goes_to_the_trained_sites_that_it_fits_with_their_rates() -> None:
    assert planned("gaussian") == {
        "drop": ("gaussian", 0.3),
        "conv.drop": ("gaussian", 0.2),
        "block.drop_path": ("gaussian", 0.1),
    }
    assert planned("spatial") == {"conv.drop": ("spatial", 0.2)}


def test_a_variant_that_fits_no_trained_site_goes_to_every_site_that_it_fits() -> None:
    assert planned("dropconnect") == {"head.weight": ("dropconnect", BY_NAME["dropconnect"]().p)}
    assert planned("dropconnect", 0.2) == {"head.weight": ("dropconnect", 0.2)}


def test_an_override_adds_to_the_plan_or_changes_one_site_of_it() -> None:
    trained = planned()

    assert planned(drop=0.6) == trained | {"drop": ("bernoulli", 0.6)}
    assert planned(drop="gaussian") == trained | {"drop": ("gaussian", 0.3)}
    assert planned(drop={"variant": "uniform", "p": 0.1}) == trained | {"drop": ("uniform", 0.1)}
    assert planned(drop={"p": 0.1}) == trained | {"drop": ("bernoulli", 0.1)}
    assert planned(drop={"variant": "uniform"}) == trained | {"drop": ("uniform", 0.3)}
    assert planned(head_weight="dropconnect") == trained | {"head.weight": ("dropconnect", 0.5)}


def test_an_override_of_the_whole_plans_variant_keeps_that_variant() -> None:
    assert planned("gaussian", drop=0.6)["drop"] == ("gaussian", 0.6)
    assert planned("gaussian", drop="trained")["drop"] == ("bernoulli", 0.3)


def test_an_override_without_a_rate_takes_the_plans_rate() -> None:
    assert planned(p=0.25, drop="gaussian", head_weight="dropconnect") == planned(p=0.25) | {
        "drop": ("gaussian", 0.25),
        "head.weight": ("dropconnect", 0.25),
    }


@pytest.mark.parametrize("off", ["off", None, {"variant": "off"}, 0, 0.0, {"p": 0}])
def test_a_site_that_is_switched_off_leaves_the_plan(off: Override) -> None:
    assert set(planned(drop=off)) == {"conv.drop", "block.drop_path"}


def test_off_with_overrides_is_the_overrides_alone() -> None:
    assert planned("off", drop=0.4) == {"drop": ("bernoulli", 0.4)}


@pytest.mark.parametrize("variant", ["trained", "gaussian", "dropconnect"])
def test_a_rate_of_zero_is_zero_and_not_the_default(variant: str) -> None:
    with pytest.raises(NoActiveSite, match="nothing would be random"):
        planned(variant, 0.0)


def test_a_plan_with_nothing_active_says_what_could_be() -> None:
    with pytest.raises(NoActiveSite, match=r"as trained, it has no dropout.*head.weight \(dropconnect, dropconnect-"):
        make_plan([WEIGHT])
    with pytest.raises(NoActiveSite, match="with variant 'off' nothing is active"):
        planned("off")
    with pytest.raises(NoActiveSite, match="the network has no sites"):
        make_plan([])


def test_a_site_that_cannot_be_served_as_trained_can_be_overridden() -> None:
    sites = (HIDDEN, Site("all", Kind.ACTIVATION, (8,), "bernoulli", 1.0))

    with pytest.raises(InvalidPlan, match=r"site 'all': bernoulli: p = 1.0 is not a drop probability"):
        make_plan(sites)
    assert set(make_plan(sites, overrides={"all": "off"})) == {"drop"}


def test_an_unknown_variant_is_refused_with_the_nearest() -> None:
    with pytest.raises(InvalidPlan, match=r"no variant 'gausian' \(did you mean 'gaussian'\?\); the variants are "):
        planned("gausian")
    with pytest.raises(InvalidPlan, match="there is no variant 'zzz'; the variants are bernoulli"):
        planned(drop="zzz")
    with pytest.raises(InvalidPlan, match=r"there is no variant \['gaussian'\]"):
        planned(drop={"variant": ["gaussian"]})


def test_an_unknown_site_is_refused_with_the_nearest() -> None:
    with pytest.raises(InvalidPlan, match=r"no site 'drp' \(did you mean 'drop'\?\); the sites are drop, conv.drop"):
        planned(drp=0.5)


def test_many_sites_are_listed_in_part() -> None:
    sites = [Site(f"layer{index}", Kind.ACTIVATION, (8,), "bernoulli", 0.5) for index in range(25)]

    with pytest.raises(InvalidPlan, match=r"layer19 and 5 more"):
        make_plan(sites, overrides={"none": 0.5})
    with pytest.raises(NoActiveSite, match=r"; and 13 more"):
        make_plan(sites, "off")


def test_a_variant_that_does_not_fit_is_refused_with_what_does() -> None:
    with pytest.raises(InvalidPlan, match=r"'spatial' does not fit site 'drop' \(activation, .*what fits: bernoulli"):
        planned(drop="spatial")
    with pytest.raises(InvalidPlan, match="variant 'drop-path' fits none of the sites: drop "):
        make_plan([HIDDEN], "drop-path")


def test_a_rate_for_a_site_without_a_variant_asks_for_one() -> None:
    with pytest.raises(InvalidPlan, match=r"'head.weight' was trained without a variant; name one: dropconnect, "):
        planned(head_weight=0.5)
    with pytest.raises(InvalidPlan, match=r"'head.weight' was trained without a variant"):
        planned(head_weight="trained")


@pytest.mark.parametrize("p", [1, 1.0, -0.1, float("nan"), float("inf"), 2])
def test_a_rate_that_is_no_drop_probability_is_refused(p: float) -> None:
    with pytest.raises(InvalidPlan, match=r"site 'drop': .*p = "):
        planned(p=p)
    with pytest.raises(InvalidPlan, match=r"site 'drop': .*p = "):
        planned(drop=p)


@pytest.mark.parametrize("p", ["0.5", True, [0.5], 10**400])
def test_a_parameter_that_is_no_number_is_refused(p: object) -> None:
    with pytest.raises(InvalidPlan, match=r"site 'drop': p = .* is not a number"):
        planned(drop={"p": p})


def test_an_unknown_parameter_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidPlan, match="site 'drop': bernoulli has no parameter 'rate'; it has p"):
        planned(drop={"rate": 0.5})


@pytest.mark.parametrize("override", [True, [0.5], ("gaussian",)])
def test_an_override_of_another_kind_is_refused(override: object) -> None:
    with pytest.raises(InvalidPlan, match="is neither a variant's name, a rate, a mapping nor 'off'"):
        make_plan(SITES, overrides={"drop": override})  # type: ignore[dict-item] # that is the test


def test_what_fits_a_site_is_what_a_plan_accepts_there() -> None:
    for site in SITES:
        for name in BY_NAME:
            given = {"variant": name, "p": 0.5} if BY_NAME[name].rated else {"variant": name}
            if name in fitting(site):
                assert make_plan([site], "off", overrides={site.name: given})
            else:
                with pytest.raises(InvalidPlan, match="does not fit site"):
                    make_plan([site], "off", overrides={site.name: given})
