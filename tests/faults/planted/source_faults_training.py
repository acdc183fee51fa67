"""Faults of what a training loop goes through: calls, gradients, random state, clipping, weights, checkpoints."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from stretto.backends.program import fit_sizes
from stretto.driver.checkpoints import checkpoints, optimizer_state, writing
from stretto.driver.model import attribute_guards, clipping, compiled_module, rng_state, variants
from stretto.driver.state import state_tensors, weights
from stretto.frontend.capture import traced
from stretto.frontend.dynamic_sizes import size_guards
from stretto.runtime.program.named_sizes import Symbolic
from stretto.runtime.rank import autograd, unreduced_gradients
from stretto.runtime.threads import session

from .finding import Finder
from .source_faults import Plant, SourceFault, Wrong, around, giving, value


def fault(where: str, plant: Plant, scenario: str, equivalent: str = "") -> SourceFault:
    return SourceFault(where, plant, Finder.TRAINING, scenario=scenario, equivalent=equivalent)


def key_without(**ignored: Any) -> Plant:
    return giving(compiled_module, "key_of", lambda key: replace(key, **ignored))


def tangent_given_twice(right: Wrong) -> Wrong:
    """`step` in a pipeline scales the loss's tangent although the backwards were scaled."""

    def wrong(self: Any, model: Any, args: Any, kwargs: Any, scale: float) -> torch.Tensor:
        full_like = torch.full_like
        torch.full_like = lambda like, fill, **rest: full_like(like, scale, **rest)  # type: ignore[assignment]
        try:
            loss: torch.Tensor = right(self, model, args, kwargs, scale)
        finally:
            torch.full_like = full_like  # type: ignore[assignment]
        return loss

    return wrong


@contextmanager
def never_syncs_again(self: Any) -> Any:
    self._keeps_unreduced = True
    yield


def last_gradient_only(self: Any, output: Any, rank: int, gradient: torch.Tensor) -> None:
    self._outputs[output.name] = output
    self._sums.setdefault(output.name, {})[rank] = gradient


def first_rank_only(right: Wrong) -> Wrong:
    """A delayed reduction takes the first data rank's sum."""

    def wrong(self: Any, unreduced: Any, names: Any = None) -> Any:
        for sums in unreduced._sums.values():
            for rank in list(sums)[1:]:
                sums[rank] = torch.zeros_like(sums[rank])
        return right(self, unreduced, names)

    return wrong


def accumulated_not_added(right: Wrong) -> Wrong:
    """The last backward's own gradient is kept, not added to the accumulated ones."""

    def wrong(self: Any, grads: Any, names: Any) -> Any:
        unreduced = self.accumulation.unreduced
        if self.accumulation.delivers:
            unreduced.clear()
        return right(self, grads, names)

    return wrong


def tangents_reversed(right: Wrong) -> Wrong:
    return lambda self, state, tangents, *rest: right(self, state, tangents[::-1], *rest)


def gradients_of_inputs_reversed(right: Wrong) -> Wrong:
    """Two inputs of one shape get each other's gradient."""

    def wrong(self: Any, grads: Any, names: Any) -> Any:
        gradients = dict(right(self, grads, names))
        if {"x", "y"} <= gradients.keys():
            gradients["x"], gradients["y"] = gradients["y"], gradients["x"]
        return gradients

    return wrong


def step_stands_still(right: Wrong) -> Wrong:
    def wrong(self: Any, session_: Any) -> None:
        before = self.state
        right(self, session_)
        self.state = before

    return wrong


def seed_of_the_first_call(right: property) -> property:
    """torch's seed is read once."""
    return property(lambda self: right.fget(self) if self._state is None else self._state, right.fset)  # type: ignore[misc]


def random_state_one_ahead(right: Wrong) -> Wrong:
    return lambda model, state: right(model, replace(state, step=state.step + 1))


def scaled_up_too(right: Wrong) -> Wrong:
    """Gradients below the limit are scaled up to it."""

    def wrong(model: Any, max_norm: float, *rest: Any, **options: Any) -> torch.Tensor:
        total: torch.Tensor = right(model, max_norm, *rest, **options)
        for parameter in model.parameters():
            if parameter.grad is not None and total < max_norm:
                parameter.grad.mul_(max_norm / total)
        return total

    return wrong


def sum_of_norms(gradients: Any, p: float) -> torch.Tensor:
    return torch.stack([torch.linalg.vector_norm(gradient, p) for gradient in gradients]).sum()


def states_shifted(right: Wrong) -> Wrong:
    """Two parameters of one shape are saved with each other's state."""

    def wrong(model: Any, optimizer: Any) -> Any:
        saved = right(model, optimizer)
        state, one, two = dict(saved["state"]), "up.weight", "down.weight"
        if one in state and two in state:
            state[one], state[two] = state[two], state[one]
        return {**saved, "state": state}

    return wrong


def options_of_the_new_one(right: Wrong) -> Wrong:
    def wrong(model: Any, optimizer: Any, state: Any, groups: Any) -> None:
        right(model, optimizer, state, optimizer.state_dict()["param_groups"])

    return wrong


def first_checkpoint_stays(right: Wrong) -> Wrong:
    return lambda fresh, path: None if path.exists() else right(fresh, path)


def parameters_alone(model: Any) -> Any:
    yield from model.named_parameters(remove_duplicate=False)


def files_in_order_of_shapes(right: Wrong) -> Wrong:
    """Tensors of one shape are read by their order, last first."""

    def wrong(tensors: Any, files: Any) -> Any:
        pairs = right(tensors, files)
        by_shape: dict[Any, list[str]] = {}
        for tensor, name in pairs:
            by_shape.setdefault(tensor.shape, []).append(name)
        return [(tensor, by_shape[tensor.shape].pop()) for tensor, _ in pairs]

    return wrong


def untied(model: Any) -> None:
    for module in model.modules():
        for members in (module._parameters, module._buffers):
            for name, tensor in members.items():
                if tensor is not None and tensor.is_meta:
                    members[name] = weights._with_memory(tensor)


def buffers_not_written(right: Wrong) -> Wrong:
    def wrong(*args: Any, **kwargs: Any) -> Any:
        outputs, _ = right(*args, **kwargs)
        return outputs, {}

    return wrong


def outputs_in_reverse(right: Wrong) -> Wrong:
    return lambda self, outputs: right(self, outputs[::-1])


def first_scalar(right: Wrong) -> Wrong:
    return lambda outputs: right(outputs)[:1]


def without_offset(right: Wrong) -> Wrong:
    """Numbers that grow with a size, plus one, are taken for the size."""

    def wrong(numbers: Any, terms: Any) -> Any:
        found = right(numbers, terms)
        return found if found is None else (found[0], 0)

    return wrong


def ranges_as_marked(conditions: Any) -> size_guards.SizeGuards:
    """What the trace learned of sizes is forgotten."""
    return size_guards.SizeGuards(dict(conditions._ranges), ())


STATE_FAULTS = {
    "an evaluation runs the program of training": fault(
        "driver/model/variants: key_of",
        key_without(training=(), mode=variants.Mode.TRAIN),
        "evaluation",
        equivalent="reads of `training` in the forward are guarded by themselves",
    ),
    "a layer that is trained again stays frozen": fault(
        "driver/model/variants: key_of", key_without(trainable=()), "freezing"
    ),
    "a changed attribute goes unseen": fault(
        "driver/model/attribute_guards: are_unchanged",
        value(attribute_guards.ReadAttributes, "are_unchanged", lambda self, modules: True),
        "attribute",
    ),
    "new values of buffers are not written into the model": fault(
        "driver/model/variants: call", around(variants, "run", buffers_not_written), "steps"
    ),
    "results are put into the model's structure in reverse": fault(
        "driver/model/variants: result", around(variants.Variant, "result", outputs_in_reverse), "steps"
    ),
    "only the first of two losses has a tangent": fault(
        "frontend/capture/traced: _differentiable", around(traced, "_differentiable", first_scalar), "losses"
    ),
    "two losses get each other's tangent": fault(
        "runtime/threads/session: backward", around(session.RankThreads, "backward", tangents_reversed), "losses"
    ),
    "two inputs get each other's gradient": fault(
        "runtime/rank/autograd: backward", around(autograd._Call, "backward", gradients_of_inputs_reversed), "inputs"
    ),
    "a pipeline's step is scaled twice": fault(
        "driver/model/compiled_module: step",
        around(compiled_module.CompiledModule, "step", tangent_given_twice),
        "pipeline",
    ),
    "no_sync never ends": fault(
        "driver/model/compiled_module: no_sync",
        value(compiled_module.CompiledModule, "no_sync", never_syncs_again),
        "accumulation",
    ),
    "of several backwards the last gradient stays": fault(
        "runtime/rank/unreduced_gradients: add",
        value(unreduced_gradients.UnreducedGradients, "add", last_gradient_only),
        "accumulation",
    ),
    "a delayed reduction takes one rank's sum": fault(
        "runtime/threads/session: reduce", around(session.RankThreads, "reduce", first_rank_only), "accumulation"
    ),
    "accumulated gradients are dropped by the last backward": fault(
        "runtime/rank/autograd: backward", around(autograd._Call, "backward", accumulated_not_added), "accumulation"
    ),
}
RANDOM_STATE_FAULTS = {
    "every step draws the same": fault(
        "driver/model/rng_state: advance", around(rng_state.ModelRngState, "advance", step_stands_still), "dropout"
    ),
    "a new seed goes unseen": fault(
        "driver/model/rng_state: state", around(rng_state.ModelRngState, "state", seed_of_the_first_call), "dropout"
    ),
    "a checkpoint's random state is one step ahead": fault(
        "driver/checkpoints: load_checkpoint", around(checkpoints, "set_random_state", random_state_one_ahead), "resume"
    ),
    "a checkpoint's random state is not loaded": fault(
        "driver/checkpoints: load_checkpoint",
        value(checkpoints, "set_random_state", lambda model, state: None),
        "resume",
    ),
}
FILE_FAULTS = {
    "clipping scales small gradients up": fault(
        "driver/model/clipping: clip_grad_norm_",
        lambda patch: patch.setattr("stretto.clip_grad_norm_", scaled_up_too(clipping.clip_grad_norm_), raising=False),
        "clipping",
    ),
    "clipping adds norms of parameters": fault(
        "driver/model/clipping: _norm", value(clipping, "_norm", sum_of_norms), "clipping"
    ),
    "a checkpoint exchanges the state of two parameters": fault(
        "driver/checkpoints/optimizer_state: state_by_name",
        around(checkpoints, "state_by_name", states_shifted),
        "optimizer_state",
    ),
    "a checkpoint's learning rate is not loaded": fault(
        "driver/checkpoints/optimizer_state: fill_optimizer",
        around(checkpoints, "fill_optimizer", options_of_the_new_one),
        "resume",
    ),
    "a second checkpoint does not replace the first": fault(
        "driver/checkpoints/writing: _replace_folder",
        around(writing, "_replace_folder", first_checkpoint_stays),
        "resume",
    ),
    "saved weights lack the buffers": fault(
        "driver/state/state_tensors: _named", value(state_tensors, "_named", parameters_alone), "weights"
    ),
    "weights of one shape are read in another order": fault(
        "driver/state/weights: _matched", around(weights, "_matched", files_in_order_of_shapes), "weights"
    ),
    "a tied weight becomes two when it gets memory": fault(
        "driver/state/weights: materialize", value(weights, "materialize", untied), "tied"
    ),
    "an optimizer's state is looked at without a step": fault(
        "driver/checkpoints/optimizer_state: _after_zero_step",
        value(optimizer_state, "_after_zero_step", contextmanager(lambda optimizer: iter([None]))),
        "resume",
    ),
}
SIZE_FAULTS = {
    "a branch on a size is not guarded": fault(
        "frontend/dynamic_sizes/size_guards: found",
        value(size_guards._Conditions, "found", ranges_as_marked),
        "dynamic",
    ),
    "a program is called with sizes that its guards exclude": fault(
        "runtime/program/named_sizes: refusal", value(Symbolic, "refusal", lambda self, sizes: ""), "dynamic"
    ),
    "an expression of a size loses its offset": fault(
        "backends/program/fit_sizes: _line",
        around(fit_sizes, "_line", without_offset),
        "dynamic",
        equivalent="the compiler compares with a program of another size, and compiles every size by itself",
    ),
}
TRAINING_FAULTS = STATE_FAULTS | RANDOM_STATE_FAULTS | FILE_FAULTS | SIZE_FAULTS
