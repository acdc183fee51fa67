"""Faults of random numbers: the generator, and the rewriting of torch's random ops to it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from stretto.frontend.graph import expand_random_ops as expanding
from stretto.runtime import philox
from stretto.runtime.program import rank_ops

from .finding import Finder
from .source_faults import Plant, SourceFault, Wrong, around, entry, giving, value
from .users_models import Case

DRAWS, PIPELINE, WIDE = Case("draws", "both"), Case("gpt", "pp"), Case("wide", "dp")
aten = torch.ops.aten
Writer = expanding._Writer


def generator(where: str, plant: Plant, case: Case = DRAWS, equivalent: str = "") -> SourceFault:
    return SourceFault(f"runtime/philox: {where}", plant, Finder.COMPILE_CHECK, case, equivalent=equivalent)


def expansion(where: str, plant: Plant, case: Case = DRAWS, equivalent: str = "") -> SourceFault:
    return SourceFault(
        f"frontend/graph/expand_random_ops: {where}", plant, Finder.VERIFY_TARGET, case, equivalent=equivalent
    )


def key_and_counter(change: Any) -> Plant:
    return giving(philox, "_key_and_counter", lambda both: change(*both))


def first_element(right: Wrong) -> Wrong:
    return lambda part: right(replace(part, starts=(0,) * len(part.starts)))


def blocks_modulo(right: Wrong) -> Wrong:
    return lambda blocks, *rest: right(blocks % philox._BLOCKS, *rest)


def column_major(right: Wrong) -> Wrong:
    """The starts of the first two dims in each other's place."""

    def wrong(part: philox.Part) -> Any:
        first, run = right(part)
        return first.flip(0), run

    return wrong


def other_microbatch(right: Wrong) -> Wrong:
    return lambda self, axes, microbatch: right(self, axes, 0)


def axes_of_dim_reversed(right: Wrong) -> Wrong:
    return lambda text: right(text)[::-1]


GENERATOR_FAULTS = {
    "Philox adds its two round keys in each other's place": generator(
        "philox", value(philox, "_WEYL", philox._WEYL[::-1])
    ),
    "Philox stops after seven rounds": generator("philox", value(philox, "_ROUNDS", 7)),
    "Philox returns its words in reverse": generator("philox", giving(philox, "philox", lambda words: words[::-1])),
    "the step does not enter the counter": generator(
        "_key_and_counter", key_and_counter(lambda key, counter: (key, (counter[0], 0)))
    ),
    "all random ops of a forward draw the same": generator(
        "_key_and_counter", key_and_counter(lambda key, counter: (key, (0, counter[1])))
    ),
    "masks repeat after 256 forwards": generator(
        "_key_and_counter", key_and_counter(lambda key, counter: (key, (counter[0], counter[1] & 0xFF)))
    ),
    "the 65537th random op draws what the first does": generator(
        "_key_and_counter", key_and_counter(lambda key, counter: (key, (counter[0] & 0xFFFF, counter[1])))
    ),
    "seeds that differ in their high half draw the same": generator(
        "_key_and_counter", key_and_counter(lambda key, counter: ((key[0], 0), counter))
    ),
    "a rank draws from the first element, whatever its part": generator(
        "_runs", around(philox, "_runs", first_element)
    ),
    "runs of elements begin in reverse order": generator("_runs", around(philox, "_runs", column_major)),
    "blocks past the first slice repeat it": generator(
        "_block_words", around(philox, "_block_words", blocks_modulo), WIDE
    ),
    "all microbatches draw the same": SourceFault(
        "runtime/program/rank_ops: coordinate",
        around(rank_ops.RankOps, "_coordinate", other_microbatch),
        Finder.COMPILE_CHECK,
        PIPELINE,
    ),
    "a dim sharded over two axes is drawn in the other order": SourceFault(
        "runtime/program/rank_ops: axes_of_dim",
        around(rank_ops, "axes_of_dim", axes_of_dim_reversed),
        Finder.COMPILE_CHECK,
        PIPELINE,
    ),
}


def scaled_by_p(write: Any, x: Any, p: float, mask: Any) -> Any:
    return write(aten.mul.Tensor, write(aten.mul.Tensor, x, mask), 1 / p)


def one_word_for_both(right: Wrong) -> Wrong:
    """Radius and angle of a normal number from the same word."""

    def wrong(self: Any, dtype: torch.dtype, like: Any = None, size: Any = None) -> Any:
        words = self.words(like, size)
        self.words = lambda *unused: words
        try:
            return right(self, dtype, like, size)
        finally:
            del self.words

    return wrong


def doubled(right: Wrong) -> Wrong:
    return lambda self, *rest: self(aten.mul.Tensor, right(self, *rest), 2.0)


def with_arguments(rule: str, **wrong: Any) -> Plant:
    """A rule that reads an argument wrongly."""
    right = expanding._RULES[rule]

    def changed(write: Any, arguments: Any) -> Any:
        return right(write, {**arguments, **{key: change(arguments) for key, change in wrong.items()}})

    return entry(expanding._RULES, rule, changed)


def elementwise_mask(write: Any, arguments: Any) -> Any:
    return write.keep(1 - arguments["p"], arguments["input"])


def one_minus(rule: str) -> Plant:
    right = expanding._RULES[rule]
    return entry(expanding._RULES, rule, lambda write, arguments: write(aten.rsub.Scalar, right(write, arguments), 1))


def descending(write: Any, arguments: Any) -> Any:
    order = write(aten.argsort.stable, write.words(size=[arguments["n"]]), stable=True, dim=0, descending=True)
    return write.cast(order, write.dtype)


EXPANSION_FAULTS = {
    "dropout divides by the share that it drops": expansion(
        "_apply_dropout", value(expanding, "_apply_dropout", scaled_by_p), Case("gpt", "dp_tp")
    ),
    "normal numbers take radius and angle from one word": expansion(
        "normal", around(Writer, "normal", one_word_for_both)
    ),
    "uniform numbers reach 2": expansion("uniform", around(Writer, "uniform", doubled)),
    "random integers reach their upper end": expansion(
        "_randint", with_arguments("randint", high=lambda a: a["high"] + 1)
    ),
    "a bernoulli draw is true with 1 - p": expansion("_bernoulli", one_minus("bernoulli")),
    "exponential numbers have the rate as their mean": expansion(
        "_exponential", with_arguments("exponential_", lambd=lambda a: 1 / a["lambd"])
    ),
    "alpha dropout drops to zero": expansion("_alpha_dropped", value(expanding, "_ALPHA", 0.0)),
    "feature dropout drops single elements": expansion(
        "_feature_mask", value(expanding, "_feature_mask", elementwise_mask)
    ),
    "attention with dropout forgets that it is causal": expansion(
        "_masked_keys", value(expanding, "_masked_keys", lambda write, arguments, sizes: None)
    ),
    "attention with dropout divides by the width, not by its root": expansion(
        "_attention",
        with_arguments("scaled_dot_product_attention", scale=lambda a: 1 / a["query"].meta["val"].shape[-1]),
    ),
    "a permutation sorts its words downwards": expansion(
        "_randperm",
        entry(expanding._RULES, "randperm", descending),
        equivalent="another permutation, as random as before",
    ),
}
RANDOM_FAULTS = GENERATOR_FAULTS | EXPANSION_FAULTS
