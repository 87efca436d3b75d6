"""One plan of one network, ready to run: cut, its fastest correct way of running passes chosen, and checked.

It does not know outputs' meaning. Every way of running is compared at once, pass by pass, with the whole graph uncut,
on inputs that the capture has not seen; the first of folded, vmapped and looped that agrees is used.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import UnionType
from typing import Any

import torch
from torch import Tensor

from service.dropout import Variant
from service.errors import SelfCheckFailed
from service.graph.capture import Captured
from service.graph.coupling import CHECK_ROWS, couples_rows, fresh_inputs
from service.graph.drawing import Draw, draw_noises
from service.graph.fixed import fix_weights
from service.graph.footprint import Cost, Footprint, Peaks, memory_named, metered
from service.graph.forms import Counted, Form, Formed, form_on, once, plain_notes
from service.graph.grouped import group_products, run_whole
from service.graph.integrated import integrate
from service.graph.kernels import fault_of
from service.graph.layout import with_rows
from service.graph.passes import RUNNERS, VECTORISED, Mode, of_rows, unfolding
from service.graph.precision import FLOAT32, NOTES, ruled
from service.graph.products import fuse_products
from service.graph.proof import close
from service.graph.rates import measured
from service.graph.replayed import Replays, capture_on
from service.graph.rewrite import Rewritten, rewrite
from service.graph.scaled_convolution import ScaledConvolution, scale_by_channel
from service.graph.split import Split, split
from service.graph.thinning import Thinned, thin
from service.graph.thinning_cost import better_whole, pays
from service.graph.tuned import loosen_views, tune
from service.graph.uncut import run_uncut

_CHECK_PASSES = 2
_CHECK_SEED = 1
_NEAR = 0.1  # of an output's norm: more than coarser products make of it, and less than a fault does
_FOOTPRINTS_KEPT = 64


class Compiled:
    """A plan of a network.

    Args:
        captured: The network.
        plan: The variant of each active site.
        integrated: The outputs' names where their last sites are integrated: then there are twice as many outputs, the
            conditional means and behind them the conditional variances.

    Attributes:
        notes: What the caller should know, such as sites where another form stands in.
        row_notes: What the caller should know besides in scope `row`.
        stochastic: For each output, whether noise reaches it.
        gains_by_passes: Whether many passes of few rows take clearly less time than few of many.
    """

    def __init__(
        self,
        captured: Captured,
        plan: Mapping[str, Variant],
        precision: str = FLOAT32,
        integrated: Sequence[str] = (),
    ) -> None:
        self._captured = captured
        self._precision, self._device = precision, captured.example[0].device
        self._wide = None if precision == FLOAT32 else Compiled(captured, plan)
        self._integrated = integrated
        self._rewritten = self._write(plan, None)
        self._footprints: dict[tuple[Any, ...], Footprint] = {}
        self._thinning: dict[tuple[Any, ...], Thinned | None] = {}
        self._refused: dict[str, str] = {}  # why kernels do not serve a site
        self._prepare(plan, form_on(self._device))
        self._fault = self._kernel_fault()
        if self._fault:
            self._refused |= dict.fromkeys(_sites_of(self._fast, Counted), self._fault)
            self._prepare(plan, None)
            if self._wide is not None:
                self._wide._prepare(plan, None)  # how passes run is found there
        drawn = ((noise.site, noise.variant) for noise in self._fast.noises)
        plain, whole = plain_notes(self._device, drawn, self._refused), self._whole_products(per_row=False)
        narrowed = () if self._wide is None else (NOTES[precision],)
        self.notes = (*self._rewritten.notes, *plain, *whole, *narrowed)
        self.row_notes = tuple(each for each in self._whole_products(per_row=True) if each not in whole)

    def _prepare(self, plan: Mapping[str, Variant], form: Form | None) -> None:
        """Cut the graph, noise in a form where it can be, and make its parts fast."""
        self._fast, self._plain = self._fastest(plan, form)
        on_cpu = self._device.type == "cpu"
        self.thinned = self._thin() if on_cpu else None  # elsewhere, to gather by what is kept waits for the device
        fused = group_products(fuse_products(self._plain))
        loosen_views(fused.suffix)  # the trunk gives values in other orders of memory
        self._split = replace(fused, trunk=fix_weights(fused.trunk), suffix=scale_by_channel(fix_weights(fused.suffix)))
        self._vectorised = replace(self._split, suffix=fused.suffix)
        self._modes: dict[bool, Mode] = {}
        self._replays = Replays(capture_on(self._device))
        self.stochastic = self._split.stochastic
        nodes = self._split.suffix.graph.nodes
        self.gains_by_passes = any(isinstance(node.target, ScaledConvolution) for node in nodes)

    def _kernel_fault(self) -> str | None:
        """Return why kernels that were chosen cannot serve: they are tried at once, for they depend on the device."""
        if not _sites_of(self._fast, Counted):
            return None
        if self._wide is not None and self._wide._fault:
            return self._wide._fault
        try:
            for per_row in (False,) if couples_rows(self._captured) else (False, True):
                if (mode := self.mode(per_row)) is not Mode.FOLDED:
                    return f"with them passes do not run folded but {mode}"
                if self._wide is not None and not self._is_near_the_whole(per_row):
                    return f"in {self._precision} passes are far from the whole graph's"
        except torch.OutOfMemoryError:
            raise  # it is no fault of theirs
        except Exception as error:  # whatever a compiler or a driver raises
            return fault_of(error)
        return None

    def _is_near_the_whole(self, per_row: bool) -> bool:
        """Tell whether passes in another precision, whose products are other kernels, are about the whole graph's."""
        inputs, noises, expected = self._trial(per_row)
        with ruled(self._precision, self._device), torch.inference_mode():
            values = self.trunk(inputs)[: len(self._split.boundaries)]
            found = self._run(self.mode(per_row), values, noises, CHECK_ROWS)
        pairs = zip(found, expected, strict=True)
        return all((mine - theirs).norm() <= _NEAR * theirs.norm() for mine, theirs in pairs)

    def _trial(self, per_row: bool) -> tuple[tuple[Tensor, ...], list[Tensor], list[Tensor]]:
        """Return inputs that the capture has not seen, noise, and the whole graph's outputs that it reaches."""
        inputs = fresh_inputs(self._captured.example)
        draw = Draw(_CHECK_SEED, 0, _CHECK_PASSES, range(CHECK_ROWS) if per_row else None)
        shapes = [tuple(each.shape) for each in inputs]
        noises = self._draw(shapes, draw)
        own = self._draw(shapes, draw, self._rewritten)
        outputs = run_uncut(self._rewritten, inputs, own, _CHECK_PASSES, per_row)
        return inputs, noises, [each for each, noisy in zip(outputs, self.stochastic, strict=True) if noisy]

    def _whole_products(self, per_row: bool) -> tuple[str, ...]:
        """Say where whole products stand in for grouped ones in a scope, and why."""
        sites = {noise.placeholder: noise.site for noise in self._fast.noises}
        reasons = {sites[noise]: why for noise, why in run_whole(self._vectorised, per_row).items()}
        return once("whole products stand in for grouped ones", reasons)

    def _write(self, plan: Mapping[str, Variant], form: Form | None) -> Rewritten:
        """Write the plan into the graph, its last sites integrated where that was asked for."""
        rewritten = rewrite(self._captured, plan, form, precision=self._precision)
        return integrate(rewritten, self._integrated) if self._integrated else rewritten

    def _fastest(self, plan: Mapping[str, Variant], form: Form | None) -> tuple[Rewritten, Split]:
        """Return the graph that passes run on, and its cut; the plain graph is what it is compared with."""
        if form is not None and form.is_of(plan.values()):
            fast = self._write(plan, form)
            self._refused |= fast.refused
            if formed := _sites_of(fast, Formed):
                cut = split(fast)
                if (why := unfolding(fast.noises, cut)) is None:
                    return fast, cut
                self._refused |= dict.fromkeys(formed, why)
        return self._rewritten, split(self._rewritten)

    def rows_for(self, rows: int) -> int:
        """Return how many rows should run in place of so many, so that passes that were captured serve them."""
        return self._replays.rows_for(rows) if any(self.stochastic) else rows

    def trunk(self, inputs: tuple[Tensor, ...]) -> tuple[Any, ...]:
        """Run what no noise reaches, once."""
        with ruled(self._precision, self._device), torch.inference_mode():
            values: tuple[Any, ...] = self._split.trunk.forward(*inputs, inputs[0].shape[0])
        return values

    def trunk_of_rows(self, values: tuple[Any, ...], inputs: tuple[Tensor, ...], rows: Tensor) -> tuple[Any, ...]:
        """Return what `trunk` would give for some rows alone.

        Args:
            values: What it gave for more rows.
            inputs: The inputs of the rows wanted.
            rows: Their places among those that `values` is for.
        """
        with torch.inference_mode():
            found = of_rows(self._split, values, rows)
        return self.trunk(inputs) if found is None else found

    def run(self, values: tuple[Any, ...], shapes: Sequence[tuple[int, ...]], draw: Draw) -> list[Tensor]:
        """Run passes; every output [S, B, …], an output that no noise reaches as a view of its one value.

        Args:
            values: What `trunk` returned.
            shapes: The inputs' shapes.
            draw: Which passes, and the noise for them.
        """
        count = len(self._split.boundaries)
        reached, fixed = iter(self._reached(values[:count], shapes, draw)), iter(values[count:])
        return [next(reached) if noisy else _spread(next(fixed), draw.passes) for noisy in self.stochastic]

    def _reached(self, values: tuple[Any, ...], shapes: Sequence[tuple[int, ...]], draw: Draw) -> list[Tensor]:
        """Run passes of what noise reaches, if there is anything."""
        if not any(self.stochastic):
            return []
        noises = self._draw(shapes, draw)
        mode, rows = self.mode(per_row=draw.rows is not None), shapes[0][0]
        with ruled(self._precision, self._device), torch.inference_mode():
            if thinned := self.thinned_for(shapes, per_row=draw.rows is not None):
                return thinned.run(values, noises, rows)
            return self._replays.run(
                (mode, rows), lambda values, noises: self._run(mode, values, noises, rows), values, noises
            )

    def _run(self, mode: Mode, values: Sequence[Any], noises: Sequence[Tensor], rows: int) -> list[Tensor]:
        return RUNNERS[mode](self._vectorised if mode in VECTORISED else self._split, values, noises, rows)

    def mode(self, per_row: bool) -> Mode:
        """Return how passes run, found at first use by comparison with the whole graph.

        Raises:
            SelfCheckFailed: No way of running agrees with the whole graph.
        """
        if per_row not in self._modes:
            with ruled(self._precision, self._device):
                self._modes[per_row] = self._choose(per_row)
        return self._modes[per_row]

    def _choose(self, per_row: bool) -> Mode:
        if self._wide is not None:
            mode = self._wide.mode(per_row)  # proven where nothing but the order of sums makes a difference
            self.thinned = self.thinned if self._wide.thinned is not None else None
            return mode
        inputs, noises, expected = self._trial(per_row)
        values = self.trunk(inputs)[: len(self._split.boundaries)]
        if not per_row and self.thinned is not None and not self._agrees(self.thinned, values, noises, expected):
            self.thinned = None
        reasons = []
        for mode in self._candidates(per_row):
            try:
                with torch.inference_mode():
                    found = self._run(mode, values, noises, CHECK_ROWS)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # torch names no narrower class for what vmap cannot do
                reasons.append(f"{mode}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
                continue
            if all(close(mine, theirs) for mine, theirs in zip(found, expected, strict=True)):
                return mode
            reasons.append(f"{mode}: its passes differ from the whole graph's")
        raise SelfCheckFailed(f"no way of running several passes agrees with the whole graph ({'; '.join(reasons)})")

    def _agrees(self, thinned: Thinned, values: Any, noises: list[Tensor], expected: list[Tensor]) -> bool:
        """Tell whether the thinned passes are the whole graph's."""
        with torch.inference_mode():
            found = thinned.run(values, noises, CHECK_ROWS)
        return all(close(mine, theirs) for mine, theirs in zip(found, expected, strict=True))

    def thinned_for(self, shapes: Sequence[tuple[int, ...]], per_row: bool) -> Thinned | None:
        """Return what passes run on one by one where that is faster, found the first time that such shapes come."""
        if per_row or self.thinned is None:
            return None
        key = tuple(shapes)
        if key not in self._thinning:
            if len(self._thinning) >= _FOOTPRINTS_KEPT:
                self._thinning.clear()
            self._thinning[key] = self._thinned_by_cost(self.thinned, shapes)
        return self._thinning[key]

    def _thinned_by_cost(self, thinned: Thinned, shapes: Sequence[tuple[int, ...]]) -> Thinned | None:
        noises = self._draw(shapes, Draw(_CHECK_SEED, 0, _CHECK_PASSES, None))
        kept = [
            site.variant.q if site.variant.rated else (noise != 0).double().mean().item()
            for site, noise in zip(self._rewritten.noises, noises, strict=True)
        ]
        given = self._captured.symbols, shapes, kept, measured()
        if whole := better_whole(thinned, *given):
            thinned = self._thin(whole) or thinned
        return thinned if pays(thinned, *given) else None

    def _thin(self, whole: frozenset[str] = frozenset()) -> Thinned | None:
        """Return the thinned suffix, some of its products left whole."""
        thinned = thin(self._plain, self._fast.noises, whole)
        if thinned is not None:
            tune(thinned.module)
            loosen_views(thinned.module)
        return thinned

    def _candidates(self, per_row: bool) -> list[Mode]:
        foldable = unfolding(self._fast.noises, self._split) is None
        foldable = foldable and not couples_rows(self._captured)  # few passes may draw one noise, and not show it
        others = [Mode.ROWS_VMAPPED, Mode.ROWS_LOOPED] if per_row else [Mode.VMAPPED, Mode.LOOPED]
        return [Mode.FOLDED, *others] if foldable else others

    def footprint(self, inputs: tuple[Tensor, ...], per_row: bool) -> Footprint:
        """Return the memory that inputs of these lengths need, measured the first time they come."""
        key = per_row, tuple(tuple(each.shape[1:]) for each in inputs)
        if key not in self._footprints:
            if len(self._footprints) >= _FOOTPRINTS_KEPT:
                self._footprints.clear()
            with memory_named(lambda: "passes of four rows, which tell how much more need"):
                self._footprints[key] = self._measure(inputs, per_row)
        return self._footprints[key]

    def _measure(self, inputs: tuple[Tensor, ...], per_row: bool) -> Footprint:
        two, four = self._peaks(inputs, 2), self._peaks(inputs, 4)
        trunk_row = Cost.through(two.trunk, four.trunk).row
        if per_row:
            one = self._peaks(inputs, 1)
            return Footprint(trunk_row, Cost(0, one.suffix), Cost(0, one.around), one.kept, Cost(0, one.largest))
        suffix, around = Cost.through(two.suffix, four.suffix), Cost.through(two.around, four.around)
        return Footprint(trunk_row, suffix, around, two.kept // 2, Cost.through(two.largest, four.largest))

    def _peaks(self, inputs: tuple[Tensor, ...], rows: int) -> Peaks:
        few = tuple(with_rows(each, rows) for each in inputs)
        draw = Draw(_CHECK_SEED, 0, 1, None)
        noises = self._draw([tuple(each.shape) for each in few], draw)
        values, trunk = metered(self._split.trunk, *few, rows)
        own = [noise[0] for noise in noises]
        outputs, suffix = metered(self._split.suffix, *values[: len(self._split.boundaries)], rows, *own, apart=own)
        return Peaks.of(trunk, suffix, own, outputs)

    def _draw(self, shapes: Sequence[tuple[int, ...]], draw: Draw, of: Rewritten | None = None) -> list[Tensor]:
        return draw_noises((of or self._fast).noises, self._captured.symbols, shapes, draw, self._device)


def _sites_of(rewritten: Rewritten, form: type[Variant] | UnionType) -> list[str]:
    """Return the sites whose noise is of a form."""
    return [noise.site for noise in rewritten.noises if isinstance(noise.variant, form)]


def _spread(value: Tensor, passes: int) -> Tensor:
    return value[None].expand(passes, *value.shape)
