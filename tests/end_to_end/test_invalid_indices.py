"""An index or a label that the model refuses is refused under every plan."""

from __future__ import annotations

import pytest
import stretto
import torch
from stretto.diagnostics import StrettoError
from torch import Tensor, nn
from torch.nn import functional

VOCAB = 10


class _Lookup(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCAB, 6)
        self.head = nn.Linear(6, VOCAB)

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(self.head(self.table(tokens)), labels)


@pytest.mark.parametrize(
    "plan", ["mesh (dp=2)", 'mesh (tp=3)\nshard "table", "head" vocab over tp\n'], ids=["dp", "uneven vocab"]
)
def test_what_is_no_entry_of_the_vocabulary_is_refused(plan: str) -> None:
    torch.manual_seed(0)
    plain = _Lookup()
    model = stretto.compile(plain, plan=plan)
    tokens = torch.randint(0, VOCAB, (8,))
    labels = tokens.roll(1)
    labels[3] = -100
    assert torch.allclose(model(tokens, labels), plain(tokens, labels))
    for which in (0, 1):
        for bad in (VOCAB, VOCAB + 1, VOCAB + 40, -1):
            inputs = [tokens.clone(), labels.clone()]
            inputs[which][0] = bad
            with pytest.raises(StrettoError) as caught:
                model(*inputs)
            assert caught.value.code == "E0320"
