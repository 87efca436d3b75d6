"""The laws of the engine, over a zoo of tiny networks each named for its difficulty."""

import functools
import re
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from modes import compare_modes
from specimen import Specimen, build, capture_of, naive
from torch import Tensor

from service import Predictor
from service.ask import Asked
from service.dropout import BY_NAME, VARIANTS
from service.dropout.variant import CellVariant
from service.errors import BadRequest, InvalidPlan, NoActiveSite
from service.graph.compiled import Compiled
from service.graph.rates import measured
from service.graph.replayed import round_rows
from service.plan import make_plan
from service.prediction import Prediction
from service.question import finished, together
from service.run import Run

NAMES = [variant.name for variant in VARIANTS if variant().fixed_passes is None]
RATES = (0.1, 0.5)


def tensors(result: object) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    return list(result) if isinstance(result, tuple) else list(result.values())  # type: ignore[attr-defined] # a dict


def means(prediction: object) -> list[Tensor]:
    return [quantities["mean"] for quantities in prediction.outputs.values()]  # type: ignore[attr-defined] # a Prediction


def plans(predictor: Predictor, rates: tuple[float, ...] = RATES) -> Iterator[dict[str, object]]:
    """Yield the plan as trained, and every variant at these rates where it fits anything; one within cells."""
    if any(site.is_trained for site in predictor.sites):
        yield {}
    fitting = {name for site in predictor.sites for name in predictor.fitting(site.name)}
    for name in NAMES:
        if name in fitting and serves(predictor, name):
            own = rates[:1] if issubclass(BY_NAME[name], CellVariant) else rates  # steps take long
            yield from (plan_of(name, p) for p in (own if BY_NAME[name].rated else own[:1]))


def plan_of(name: str, p: float = RATES[0]) -> dict[str, object]:
    return {"variant": name, "p": p} if BY_NAME[name].rated else {"variant": name}


@functools.cache
def serves(predictor: Predictor, variant: str) -> bool:
    """Tell whether a weight variant may act on every weight of a network; where it may not, it says so."""
    try:
        predictor.compile(make_plan(predictor.sites, **plan_of(variant)))  # type: ignore[arg-type] # a plan
    except InvalidPlan as error:
        if re.search("rows and features only|not every use of this weight|takes images of", str(error)) is None:
            raise
        return False
    return True


def test_with_every_site_off_it_is_the_eval_network(specimen: Specimen, predictor: Predictor) -> None:
    inputs = specimen.inputs(5)
    torch.backends.mha.set_fastpath_enabled(False)  # it answers differently on padded rows
    try:
        with torch.no_grad():
            expected = tensors(build(specimen)(*(each.clone() for each in inputs)))
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    found = [
        predictor.predict(inputs, passes=2, quantities=["deterministic"], **plan).outputs for plan in plans(predictor)
    ]

    assert found
    for outputs in found:
        for mine, theirs in zip(outputs.values(), expected, strict=True):
            if specimen.eval_differs and not torch.allclose(mine["deterministic"], theirs, atol=1e-5):
                continue
            torch.testing.assert_close(mine["deterministic"], theirs, rtol=1e-5, atol=1e-5)


def test_every_way_of_running_passes_is_the_whole_graph(specimen: Specimen, predictor: Predictor) -> None:
    """Trunk and suffix, folded, vmapped and looped, against the uncut graph run pass by pass, on 1 and 4 rows."""
    for plan in plans(predictor):
        compiled = predictor.compile(make_plan(predictor.sites, **plan))  # type: ignore[arg-type] # a plan
        for rows in (4, 1) if not specimen.coupled else (4,):
            compare_modes(compiled, predictor._captured, specimen.inputs(rows))


def test_any_chunking_gives_the_same_answer(
    specimen: Specimen, predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = specimen.inputs(3)
    scopes = ("pass",) if specimen.coupled else ("pass", "row")
    for plan in plans(predictor, RATES[:1]):
        for scope in scopes:
            whole = predictor.predict(inputs, passes=4, scope=scope, **plan)
            with monkeypatch.context() as patch:
                patch.setattr("service.run.measured", lambda: replace(measured(), cache_bytes=1))
                one_by_one = predictor.predict(inputs, passes=4, scope=scope, **plan)
            tiny = predictor.predict(inputs, passes=4, scope=scope, memory_bytes=1, **plan)
            for mine, theirs, tight in zip(means(whole), means(one_by_one), means(tiny), strict=True):
                torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
                torch.testing.assert_close(mine, tight, rtol=1e-4, atol=1e-5)


def test_all_passes_at_once_are_to_the_bit_those_of_a_block(
    specimen: Specimen, predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one question, and where rows do not meet of two that run together."""
    inputs, bounds = specimen.inputs(5), [(0, 5)] if specimen.coupled else [(0, 2), (2, 5)]
    at_once, taken = Run._at_once, []
    monkeypatch.setattr(Run, "_at_once", lambda *given: taken.append(at_once(*given)) or taken[-1])
    for plan in plans(predictor, RATES[:1]):
        for scope in ("pass",) if specimen.coupled else ("pass", "row"):
            asked = Asked(passes=6, scope=scope, quantities=["deterministic", "samples", "quantile_0.9"], **plan)  # type: ignore[arg-type] # a plan
            several = [predictor.question(tuple(each[start:end] for each in inputs), asked) for start, end in bounds]
            for questions in ([several[0]], several):
                found = finished(together(questions))
                assert taken.pop() is not None
                with monkeypatch.context() as patch:
                    patch.setattr(Run, "_at_once", lambda *_: None)
                    of_blocks = finished(together(questions))
                assert found.keys() == of_blocks.keys() == set(range(len(questions)))
                for place, prediction in found.items():
                    same(prediction, of_blocks[place])


def same(mine: Prediction, theirs: Prediction) -> None:
    assert replace(mine, outputs={}) == replace(theirs, outputs={})
    assert mine.outputs.keys() == theirs.outputs.keys()
    for name, quantities in mine.outputs.items():
        assert quantities.keys() == theirs.outputs[name].keys()
        for what, values in quantities.items():
            torch.testing.assert_close(values, theirs.outputs[name][what], rtol=0, atol=0, equal_nan=True)


def test_the_neighbours_change_nothing(specimen: Specimen, predictor: Predictor) -> None:
    inputs = specimen.inputs(5)
    if specimen.coupled:
        assert predictor.couples_rows
        with pytest.raises(BadRequest, match="couples its rows"):
            predictor.predict(inputs, passes=2, scope="row")
        return
    assert not predictor.couples_rows
    for plan in plans(predictor, RATES[:1]):
        for scope in ("pass", "row"):
            together = predictor.predict(inputs, passes=5, scope=scope, **plan)
            alone = predictor.predict(tuple(each[3:4] for each in inputs), passes=5, scope=scope, row_offset=3, **plan)
            for mine, theirs in zip(means(alone), means(together), strict=True):
                torch.testing.assert_close(mine, theirs[3:4], rtol=1e-4, atol=1e-5)


def test_spare_rows_that_make_their_number_round_change_nothing(
    specimen: Specimen, predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = specimen.inputs(5)
    for plan in plans(predictor, RATES[:1]):
        for scope in ("pass",) if specimen.coupled else ("pass", "row"):
            exact = predictor.predict(inputs, passes=5, scope=scope, **plan)
            with monkeypatch.context() as patch:
                patch.setattr(Compiled, "rows_for", lambda compiled, rows: round_rows(rows))
                filled = predictor.predict(inputs, passes=5, scope=scope, **plan)
            for mine, theirs in zip(means(filled), means(exact), strict=True):
                torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_the_same_question_has_the_same_answer_and_other_seeds_another(
    specimen: Specimen, predictor: Predictor
) -> None:
    inputs = specimen.inputs(2)
    for plan in plans(predictor, RATES[:1]):
        first, again = (predictor.predict(inputs, passes=64, seed=9, **plan) for _ in range(2))
        every, others = (predictor.predict(inputs, passes=64, seed=s, quantities=["samples"], **plan) for s in (9, 10))
        fresh = predictor.predict(inputs, passes=64, seed=None, **plan)
        assert all(torch.equal(a, b) for a, b in zip(means(first), means(again), strict=True))
        assert not all(torch.equal(q["samples"], others.outputs[name]["samples"]) for name, q in every.outputs.items())
        replayed = predictor.predict(inputs, passes=64, seed=fresh.seed, **plan)
        assert all(torch.equal(a, b) for a, b in zip(means(fresh), means(replayed), strict=True))


def test_the_number_of_threads_changes_nothing(specimen: Specimen, predictor: Predictor) -> None:
    inputs, threads = specimen.inputs(3), torch.get_num_threads()
    several = predictor.predict(inputs, passes=6) if any(site.is_trained for site in predictor.sites) else None
    torch.set_num_threads(1)
    try:
        if several is not None:
            for mine, theirs in zip(means(predictor.predict(inputs, passes=6)), means(several), strict=True):
                torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    finally:
        torch.set_num_threads(threads)


def test_passes_of_a_seed_are_the_same_networks_however_many(specimen: Specimen, predictor: Predictor) -> None:
    inputs = specimen.inputs(2)
    few = predictor.predict(inputs, passes=3, quantities=["samples"])
    many = predictor.predict(inputs, passes=8, quantities=["samples"])
    for name in few.outputs:
        torch.testing.assert_close(
            few.outputs[name]["samples"], many.outputs[name]["samples"][:, :3], rtol=1e-4, atol=1e-5
        )


def test_products_in_bfloat16_stay_near_those_in_float32(specimen: Specimen, predictor: Predictor) -> None:
    """Half of what the passes give is within 1 %; a variant that chooses by value may choose otherwise now and then."""
    inputs = specimen.inputs(3)
    wide, narrow = (
        predictor.predict(inputs, passes=30, quantities=["samples"], precision=each).outputs
        for each in ("float32", "bfloat16")
    )
    for name, quantities in narrow.items():
        theirs = wide[name]["samples"]
        assert (quantities["samples"] - theirs).abs().median() < 0.01 * theirs.abs().max()


def moments(samples: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return mean, variance and the standard errors of both, over axis 0."""
    samples = samples.double()
    n, mean, variance = len(samples), samples.mean(0), samples.var(0)
    fourth = (samples - mean).pow(4).mean(0)
    return (
        mean,
        variance,
        (variance / n).sqrt(),
        ((fourth - variance.square() * (n - 3) / (n - 1)) / n).clamp_min(0).sqrt(),
    )


def with_total(passes: Tensor) -> Tensor:
    """Return the passes of one row [S, …] flat, and their sum, which sees the covariances too."""
    flat = passes.flatten(1)
    return torch.cat([flat, flat.sum(1, keepdim=True)], 1)


def test_mean_and_variance_are_a_careful_hand_loops(specimen: Specimen, predictor: Predictor) -> None:
    """A loop in training mode, normalisation layers in eval: within 5 standard errors, and no variance is zero."""
    inputs = specimen.inputs(1)
    loop = naive(build(specimen))
    with torch.no_grad():
        passes = [tensors(loop(*(each.clone() for each in inputs))) for _ in range(1500)]
    for scope in ("pass",) if specimen.coupled else ("pass", "row"):
        prediction = predictor.predict(inputs, passes=4000, scope=scope, quantities=["samples"])
        for index, quantities in enumerate(prediction.outputs.values()):
            mine = moments(with_total(quantities["samples"][0]))
            theirs = moments(with_total(torch.stack([each[index] for each in passes])[:, 0]))
            for k in (0, 1):
                error = (mine[k + 2].square() + theirs[k + 2].square()).sqrt()
                assert bool(((mine[k] - theirs[k]).abs() <= 5 * error + 1e-7).all())
            assert specimen.coupled or bool((quantities["variance"] > 0).any())  # one coupled row is its own mean


def test_one_pass_is_one_network_for_all_rows(specimen: Specimen, predictor: Predictor) -> None:
    """In scope pass two equal rows get equal answers in every pass; in scope row they do not."""
    inputs = tuple(each[:1].repeat(2, *[1] * (each.dim() - 1)) for each in specimen.inputs(2))
    shared = predictor.predict(inputs, passes=64, quantities=["samples"])
    for quantities in shared.outputs.values():
        torch.testing.assert_close(quantities["samples"][0], quantities["samples"][1], rtol=1e-4, atol=1e-5)
    if not specimen.coupled:
        apart = predictor.predict(inputs, passes=64, scope="row", quantities=["samples"])
        assert any(not torch.allclose(q["samples"][0], q["samples"][1]) for q in apart.outputs.values())


def test_the_callers_module_is_untouched(specimen: Specimen) -> None:
    """What every law here was captured from, some of it in training mode."""
    capture, inputs, before = capture_of(specimen), specimen.inputs(2), torch.get_rng_state()

    capture.predictor.predict(inputs, passes=2)

    assert not capture.drew
    assert torch.equal(before, torch.get_rng_state())
    assert capture.flags == [child.training for child in capture.module.modules()]
    assert all(torch.equal(value, capture.state[name]) for name, value in capture.module.state_dict().items())


def test_a_plan_that_leaves_nothing_random_is_refused_with_what_could_be(
    specimen: Specimen, predictor: Predictor
) -> None:
    with pytest.raises(NoActiveSite, match=r"false 0; activate a site .*\("):
        predictor.predict(specimen.inputs(2), variant="off")
