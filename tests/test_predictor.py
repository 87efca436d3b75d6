"""A prediction is what was asked for, of every kind of input and output, or is refused with a cure."""

import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from memory import peak_bytes
from torch import Tensor, nn
from torch.export import Dim, export
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from service import Predictor
from service.errors import BadRequest, InvalidInput, InvalidPlan, InvalidQuantity, ModelFault, NoActiveSite, TooLarge
from service.graph.capture import from_program
from service.graph.compiled import Compiled
from service.graph.drawing import Draw
from service.signature import Activation, Input, Output, Task


def capture(module: nn.Module, example: Any, **options: Any) -> Predictor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.export's own deprecations
        return Predictor.capture(module, example, **options)


def mlp(inputs: int = 4, outputs: int = 3, rate: float = 0.4) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 8), nn.ReLU(), nn.Dropout(rate), nn.Linear(8, outputs)).eval()


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return capture(mlp(), torch.randn(2, 4))


class TwoInputs(nn.Module):
    """A table of numbers and a list of words, and a third that may be left out."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.body = nn.Embedding(7, 4), mlp(8)

    def forward(self, numbers: Tensor, words: Tensor, scale: Tensor | None = None) -> Tensor:
        y = self.body(torch.cat([numbers, self.words(words).mean(1)], 1))
        return y if scale is None else y * scale


NUMBERS, WORDS = torch.randn(3, 4), torch.randint(0, 7, (3, 5))


@pytest.mark.parametrize("example", [(NUMBERS, WORDS), {"numbers": NUMBERS, "words": WORDS}], ids=["tuple", "dict"])
def test_several_inputs_are_served_by_order_and_by_name(example: Any) -> None:
    several = capture(TwoInputs().eval(), example)
    asked = {"passes": 8}
    by_order = several.predict((NUMBERS, WORDS), **asked)
    by_name = several.predict({"words": WORDS, "numbers": NUMBERS}, **asked)

    assert several.inputs == (Input("numbers", "float32", (4,)), Input("words", "int64", (5,)))
    assert torch.equal(by_order.mean, by_name.mean)
    assert by_order.mean.shape == by_order.variance.shape == (3, 3)


def test_keywords_out_of_order_are_served_by_name() -> None:
    module = TwoInputs().eval()
    scale = torch.full((3, 1), 2.0)
    several = capture(module, {"scale": scale, "words": WORDS, "numbers": NUMBERS})
    given = {"numbers": NUMBERS, "words": WORDS, "scale": scale}
    with torch.no_grad():
        expected = module(**given)

    found = several.predict(given, passes=2, quantities=["deterministic"])
    torch.testing.assert_close(found.outputs["output"]["deterministic"], expected)


def test_whole_numbers_are_inputs_too() -> None:
    table = capture(nn.Sequential(nn.Embedding(7, 4), nn.Dropout(0.4)).eval(), WORDS)

    assert table.inputs == (Input("input", "int64", (5,)),)
    assert table.predict(WORDS.tolist(), passes=4).mean.shape == (3, 5, 4)


@dataclass
class Answer:
    """An output class as libraries define them."""

    logits: Tensor
    extra: Tensor


pytree.register_dataclass(Answer, serialized_type_name="tests.predictor.Answer")


class Pair(NamedTuple):
    """A tuple with names."""

    first: Tensor
    second: Tensor


FORMS: dict[str, tuple[Callable[[Tensor], Any], tuple[str, ...]]] = {
    "tensor": (lambda y: y, ("output",)),
    "tuple": (lambda y: (y, y * 2), ("output_0", "output_1")),
    "list": (lambda y: [y, y * 2], ("output_0", "output_1")),
    "dict": (lambda y: {"left": y, "right": y * 2}, ("left", "right")),
    "nested": (lambda y: {"a": y, "b": (y * 2, {"c": y * 3})}, ("a", "b_output_0", "b_output_1_c")),
    "with none": (lambda y: {"a": y, "b": None}, ("a",)),
    "dataclass": (lambda y: Answer(y, y * 2), ("logits", "extra")),
    "named tuple": (lambda y: Pair(y, y * 2), ("first", "second")),
    "names that meet": (lambda y: {"a": {"b": y}, "a_b": y * 2}, ("a_b", "a_b_2")),
    "names that no request could carry": (lambda y: {"a b/ü": y, 7: y * 2}, ("a_b__", "output_7")),
}


class Formed(nn.Module):
    def __init__(self, form: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.body, self.form = mlp(), form

    def forward(self, x: Tensor) -> Any:
        return self.form(self.body(x))


@pytest.mark.parametrize("form", FORMS)
def test_outputs_of_every_form_have_names_and_are_served(form: str, tmp_path: Path) -> None:
    give, names = FORMS[form]
    several = capture(Formed(give).eval(), torch.randn(2, 4))
    prediction = several.predict(torch.randn(5, 4), passes=16)
    means = prediction.mean if len(names) > 1 else {names[0]: prediction.mean}

    assert tuple(prediction.outputs) == tuple(output.name for output in several.outputs) == tuple(means)
    assert tuple(means) == names
    loaded = Predictor.load(several.save(tmp_path / "form").parent)
    assert loaded.outputs == several.outputs
    for times, mean in enumerate(means.values(), start=1):
        torch.testing.assert_close(mean, next(iter(means.values())) * times)


def test_each_output_has_its_own_task_and_quantities() -> None:
    said = [
        Output("kind", Task.CLASSIFICATION, (3,), Activation.SOFTMAX, ("a", "b", "c")),
        Output("size", Task.REGRESSION, (3,), scale=10.0, shift=1.0, noise_precision=4.0),
    ]
    several = capture(Formed(lambda y: (y, y)).eval(), torch.randn(2, 4), outputs=said)
    prediction = several.predict(torch.randn(5, 4), passes=32, quantities=["size.samples", "standard_error"])
    kind, size = prediction.outputs["kind"], prediction.outputs["size"]

    torch.testing.assert_close(kind["mean"].sum(1), torch.ones(5))
    assert kind["label"].dtype == torch.int64
    assert {"entropy", "mutual_information", "standard_error"} < set(kind)
    assert set(size) == {"mean", "variance", "noise_variance", "total_variance", "samples", "standard_error"}
    torch.testing.assert_close(size["samples"].mean(1), size["mean"], rtol=1e-4, atol=1e-4)
    assert prediction.noise == {"kind": "known", "size": "known"}
    assert set(prediction["entropy"]) == {"kind"}


def test_names_with_dots_address_their_own_output() -> None:
    said = [Output("a.b", shape=(3,)), Output("c", shape=(3,))]
    several = capture(Formed(lambda y: (y, y)).eval(), torch.randn(2, 4), outputs=said)
    prediction = several.predict(torch.randn(2, 4), passes=2, quantities=["a.b.samples"])

    assert "samples" in prediction.outputs["a.b"]
    assert "samples" not in prediction.outputs["c"]


def test_a_description_of_too_many_outputs_is_refused() -> None:
    with pytest.raises(ModelFault, match="2 outputs are described, the network has 1: output"):
        capture(mlp(), torch.randn(2, 4), outputs=[Output("a"), Output("b")])
    with pytest.raises(ModelFault, match="0 inputs are described, the network has 1: input"):
        capture(mlp(), torch.randn(2, 4), inputs=[])


@pytest.mark.parametrize("passes", [2, 10_000])
def test_passes_from_2_to_10000_are_served(predictor: Predictor, passes: int) -> None:
    prediction = predictor.predict(torch.randn(1, 4), passes=passes)

    assert prediction.passes == passes
    assert bool(prediction.variance.isfinite().all())


@pytest.mark.parametrize("passes", [1, 0, -3, 10_001, 2.0, True, "9"])
def test_other_numbers_of_passes_are_refused(predictor: Predictor, passes: Any) -> None:
    with pytest.raises(BadRequest, match=r"passes = .* is not a whole number from 2 to 10000"):
        predictor.predict(torch.randn(1, 4), passes=passes)


def test_the_models_own_passes_seed_and_variant_stand_where_none_are_named(predictor: Predictor) -> None:
    own = Predictor(predictor._captured, passes=5, seed=3, variant="gaussian")
    x = torch.randn(2, 4)
    told = own.predict(x, passes=5, seed=3, variant="gaussian")

    assert (own.predict(x).passes, own.predict(x).seed) == (5, 3)
    assert torch.equal(own.predict(x).mean, told.mean)
    assert not torch.equal(own.predict(x).mean, own.predict(x, variant="trained").mean)


def test_a_fresh_seed_is_told_and_another_each_time(predictor: Predictor) -> None:
    x = torch.randn(2, 4)
    first, second = predictor.predict(x, passes=8, seed=None), predictor.predict(x, passes=8, seed=None)

    assert first.seed != second.seed
    assert torch.equal(first.mean, predictor.predict(x, passes=8, seed=first.seed).mean)
    assert max(first.seed, second.seed) < 1 << 53


@pytest.mark.parametrize("seed", [0, (1 << 64) - 1])
def test_seeds_of_64_bits_are_served(predictor: Predictor, seed: int) -> None:
    assert predictor.predict(torch.randn(1, 4), passes=2, seed=seed).seed == seed


@pytest.mark.parametrize("seed", [-1, 1 << 64, 1.0, True, "1"])
def test_other_seeds_are_refused(predictor: Predictor, seed: Any) -> None:
    with pytest.raises(BadRequest, match=r"seed = .* is not a whole number from 0 to 2\*\*64 - 1, or null"):
        predictor.predict(torch.randn(1, 4), passes=2, seed=seed)


def test_scope_row_numbers_rows_from_the_offset(predictor: Predictor) -> None:
    x = torch.randn(6, 4)
    whole = predictor.predict(x, passes=8, scope="row", row_offset=10)
    part = predictor.predict(x[4:], passes=8, scope="row", row_offset=14)

    torch.testing.assert_close(part.mean, whole.mean[4:])
    assert not torch.allclose(predictor.predict(x[4:], passes=8, scope="row").mean, part.mean)
    assert whole.scope == "row"


def test_scope_pass_does_not_look_at_the_offset(predictor: Predictor) -> None:
    x = torch.randn(2, 4)

    assert torch.equal(predictor.predict(x, passes=4).mean, predictor.predict(x, passes=4, row_offset=9).mean)


@pytest.mark.parametrize("scope", ["batch", "", None])
def test_other_scopes_are_refused(predictor: Predictor, scope: Any) -> None:
    with pytest.raises(BadRequest, match=r"scope = .* is neither 'pass' nor 'row'"):
        predictor.predict(torch.randn(1, 4), passes=2, scope=scope)


@pytest.mark.parametrize("offset", [-1, 1 << 62, 1.5, True])
def test_other_row_offsets_are_refused(predictor: Predictor, offset: Any) -> None:
    with pytest.raises(BadRequest, match=r"row_offset = .* is not a whole number from 0"):
        predictor.predict(torch.randn(1, 4), passes=2, scope="row", row_offset=offset)


def test_quantities_that_an_output_does_not_have_are_refused(predictor: Predictor) -> None:
    for name in ("entropy", "median", "quantile_1.5", "other.mean"):
        with pytest.raises(InvalidQuantity, match=rf"'output' \(regression\) has no quantity '{name}'; it has mean"):
            predictor.predict(torch.randn(1, 4), passes=2, quantities=[name])


def test_quantiles_are_of_the_passes(predictor: Predictor) -> None:
    found = predictor.predict(torch.randn(3, 4), passes=50, quantities=["samples", "quantile_0.9"]).outputs["output"]

    torch.testing.assert_close(found["quantile_0.9"], found["samples"].quantile(0.9, dim=1))


@pytest.mark.parametrize("name", ["samples", "quantile_0.5"])
def test_what_keeps_every_pass_is_refused_past_the_memory(predictor: Predictor, name: str) -> None:
    asked = {"passes": 100, "quantities": [name]}
    with pytest.raises(TooLarge, match="12000 bytes for 10 rows and 100 passes, past the limit of 11999"):
        predictor.predict(torch.randn(10, 4), memory_bytes=11_999, **asked)

    assert predictor.predict(torch.randn(10, 4), memory_bytes=12_000, **asked).mean.shape == (10, 3)


@pytest.fixture
def portions(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Return what will hold the rows and the passes that ran together, run by run."""
    seen: list[tuple[int, int]] = []
    run = Compiled.run

    def noting(self: Compiled, values: Any, shapes: Any, draw: Draw) -> list[Tensor]:
        seen.append((shapes[0][0], draw.passes))
        return run(self, values, shapes, draw)

    monkeypatch.setattr(Compiled, "run", noting)
    return seen


@pytest.mark.parametrize("scope", ["pass", "row"])
def test_what_runs_together_shrinks_with_the_memory(
    predictor: Predictor, portions: list[tuple[int, int]], scope: str
) -> None:
    x = torch.randn(64, 4)
    whole = predictor.predict(x, passes=50, scope=scope)
    assert portions == [(64, 50)]
    for memory in (200_000, 20_000, 1):
        portions.clear()
        part = predictor.predict(x, passes=50, scope=scope, memory_bytes=memory)
        torch.testing.assert_close(part.mean, whole.mean)
        torch.testing.assert_close(part.variance, whole.variance)
        assert sum(rows * passes for rows, passes in portions) == 64 * 50
        assert len(portions) > 1
    assert set(portions) == {(1, 1)}


@dataclass
class Heavy:
    """A network whose passes are heavy, and where."""

    module: nn.Module
    example: Tensor
    plan: dict[str, Any]


HEAVY = {
    "trunk": Heavy(
        nn.Sequential(nn.Linear(4, 4096), nn.ReLU(), nn.Linear(4096, 8), nn.Dropout(0.5)), torch.randn(512, 4), {}
    ),
    "suffix": Heavy(nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 4096), nn.ReLU()), torch.randn(64, 4), {}),
    "outputs": Heavy(nn.Sequential(nn.Linear(4, 4096), nn.Dropout(0.5)), torch.randn(64, 4), {}),
    "masks": Heavy(nn.Linear(256, 256), torch.randn(64, 256), {"variant": "targeted-weights", "scope": "row"}),
    "packed masks": Heavy(nn.Linear(256, 256), torch.randn(512, 256), {"variant": "dropconnect", "scope": "row"}),
}


@pytest.mark.parametrize("name", HEAVY)
def test_the_memory_held_at_once_stays_below_the_ceiling(name: str) -> None:
    heavy, ceiling = HEAVY[name], 6 << 20
    network = capture(heavy.module.eval(), heavy.example[:2])
    network.predict(heavy.example[:2], passes=2, **heavy.plan)  # its checks at first use are not the request's
    answer = network.predict(heavy.example, passes=8, **heavy.plan).outputs["output"]
    joined = 2 * sum(each.nbytes for each in answer.values())  # rows run in blocks, and are put together at the end
    free = peak_bytes(lambda: network.predict(heavy.example, passes=8, **heavy.plan))
    used = peak_bytes(lambda: network.predict(heavy.example, passes=8, memory_bytes=ceiling, **heavy.plan))

    assert used <= ceiling + joined < free


def test_longer_inputs_run_in_smaller_chunks(portions: list[tuple[int, int]]) -> None:
    """Attention needs the square of the length; the memory is measured at the length that comes."""
    network = growing()
    for length in (4, 64):
        network.predict(torch.randn(1, length, 4), passes=64, memory_bytes=4_000_000)

    short, long = (max(passes for _, passes in part) for part in (portions[:1], portions[1:]))
    assert (short, long < 32) == (64, True)


def growing() -> Predictor:
    """Return an attention layer over sequences of any length, as an exported program says it."""
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.3, batch_first=True)
    network = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.export's own deprecations
            shapes = ({0: Dim("batch"), 1: Dim("length", max=4096)},)
            program = export(network.train(), (torch.randn(2, 5, 4),), dynamic_shapes=shapes)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    return Predictor(from_program(program))


def test_a_length_that_the_export_left_open_may_vary() -> None:
    network = growing()

    assert network.inputs[0].shape == network.outputs[0].shape == (-1, 4)
    assert [site.shape for site in network.sites if site.kind == "attention"] == [(2, -1, -1)]
    for length in (1, 3, 9):
        assert network.predict(torch.randn(2, length, 4), passes=4).mean.shape == (2, length, 4)


def test_the_samples_of_a_longer_input_count_at_its_length() -> None:
    network, asked = growing(), {"passes": 10, "quantities": ["samples"]}
    with pytest.raises(TooLarge, match="160000 bytes for 1 rows and 10 passes"):
        network.predict(torch.randn(1, 1000, 4), memory_bytes=100_000, **asked)


def test_a_captured_module_takes_the_examples_lengths_only() -> None:
    layer = capture(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.3)).eval(), torch.randn(2, 5, 4))

    assert layer.inputs[0].shape == (5, 4)
    with pytest.raises(InvalidInput, match=r"has the shape \[2, 6, 4\], it should be \[rows, 5, 4\]"):
        layer.predict(torch.randn(2, 6, 4), passes=2)


class OneFixed(nn.Module):
    """Two outputs; dropout reaches only one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.plain = mlp(), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"noisy": self.body(x), "fixed": self.plain(x)}


def test_an_output_that_no_noise_reaches_has_variance_0_and_a_note() -> None:
    prediction = capture(OneFixed().eval(), torch.randn(2, 4)).predict(torch.randn(3, 4), passes=9)

    assert prediction.notes == ("output 'fixed': no active site reaches it, so its variance is 0",)
    assert not prediction.outputs["fixed"]["variance"].any()
    assert bool(prediction.outputs["noisy"]["variance"].any())


def test_a_plan_that_reaches_no_output_is_refused() -> None:
    network = capture(OneFixed().eval(), torch.randn(2, 4))
    unreached = Predictor(network._captured)
    assert unreached.predict(torch.randn(2, 4), passes=2, variant="off", sites={"plain.weight": "dropconnect"}).notes

    class Unused(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 + F.dropout(x, 0.5, self.training).shape[0]

    with pytest.raises(NoActiveSite, match=r"do not reach any output|it has no dropout"):
        capture(Unused().eval(), torch.randn(2, 4)).predict(torch.randn(2, 4), passes=2)


class Overflowing(nn.Module):
    """The exponential of what it is given, after dropout."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, self.training).exp()


def test_rows_that_are_not_finite_are_named() -> None:
    network = capture(Overflowing().eval(), torch.randn(2, 4))
    x = torch.ones(6, 4)
    x[3], x[5, 1] = 1e4, 1e4

    notes = network.predict(x, passes=8).notes
    assert len(notes) == 1
    assert notes[0].startswith("output 'output': rows 3, 5 are not finite; ")
    assert network.predict(x[:3], passes=8).notes == ()


def test_many_rows_that_are_not_finite_are_named_in_part() -> None:
    network = capture(Overflowing().eval(), torch.randn(2, 4))

    (note,) = network.predict(torch.full((15, 4), 1e4), passes=8).notes
    assert "rows 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 5 more are not finite" in note


def test_exact_masks_that_stand_in_are_told() -> None:
    network = capture(nn.Linear(4, 2), torch.randn(2, 5, 4))

    (note,) = network.predict(torch.randn(2, 5, 4), passes=4, variant="dropconnect-sampled").notes
    assert note == "weight: exact masks stand in, its input has axes besides rows and features"


def test_modules_that_had_to_stay_in_eval_mode_are_told() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                self.seen.add_(1)
            return x

    network = capture(nn.Sequential(Counting(), mlp()).eval(), torch.randn(2, 4))

    assert network.lost == ("0 (Counting)",)
    assert network.predict(torch.randn(2, 4), passes=2).notes == (
        "module 0 (Counting) runs in eval mode: if it is random in training, that is not in the variance",
    )


def test_fitting_names_the_variants_of_a_site(predictor: Predictor) -> None:
    assert predictor.fitting("2") == ("bernoulli", "gaussian", "uniform", "alpha", "concrete")
    with pytest.raises(InvalidPlan, match=r"there is no site 'x'; the sites are 2, 0.weight, 3.weight"):
        predictor.fitting("x")


def test_saving_writes_task_and_labels(predictor: Predictor, tmp_path: Path) -> None:
    predictor.save(tmp_path / "one", task="classification", labels=["a", "b", "c"], score={"accuracy": 0.5})
    loaded = Predictor.load(tmp_path / "one")

    (output,) = loaded.outputs
    assert (output.task, output.activation, output.labels) == (Task.CLASSIFICATION, Activation.SOFTMAX, ("a", "b", "c"))
    assert torch.equal(loaded.predict(torch.ones(1, 4), passes=4).mean.sum(1).round(decimals=5), torch.ones(1))


def test_saving_with_an_unknown_task_is_refused(predictor: Predictor, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="task = 'ranking' is not known; give one of classification, multilabel, "):
        predictor.save(tmp_path / "one", task="ranking")


def test_saving_a_task_for_one_of_several_outputs_is_refused(tmp_path: Path) -> None:
    network = capture(OneFixed().eval(), torch.randn(2, 4))
    with pytest.raises(InvalidInput, match=r"describe a single output; give `outputs` to Predictor.capture"):
        network.save(tmp_path / "one", task="regression")


def test_a_prediction_names_the_quantities_that_it_has(predictor: Predictor) -> None:
    with pytest.raises(KeyError, match="no output has the quantity 'median'; there are mean, variance"):
        predictor.predict(torch.randn(1, 4), passes=2)["median"]


def test_threads_may_predict_at_once(predictor: Predictor) -> None:
    fresh, x = Predictor(predictor._captured), torch.randn(4, 4)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda seed: fresh.predict(x, passes=16, seed=seed % 4).mean, range(32)))

    for seed in range(4):
        assert all(torch.equal(mean, predictor.predict(x, passes=16, seed=seed).mean) for mean in found[seed::4])
