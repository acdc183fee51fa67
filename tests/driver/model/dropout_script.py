"""A training script with a dropout: `python` makes its ranks threads, `torchrun` processes.

Prints one JSON object: the losses of some steps, the step that comes next, and the code of what processes with
different seeds raise (empty for threads).
"""

import json
import os

import stretto
import torch
from stretto.driver.model.compiled_module import random_state
from torch import Tensor, nn
from torch.nn import functional as F

PLAN = """
mesh (tp=2)
shard "up"   columns over tp
shard "down" rows    over tp
"""


@stretto.compile(plan=PLAN)
class Model(nn.Module):
    """A feed-forward with a dropout where it is sharded, and one where it is whole."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.drop = nn.Linear(8, 13), nn.Linear(13, 8), nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.down(self.drop(F.gelu(self.up(x))))).pow(2).mean()


def main() -> None:
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(3)
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(6, 8)
    losses = []
    for _ in range(3):
        loss = model(x)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    step, code = random_state(model).step, ""
    torch.manual_seed(int(os.environ.get("RANK", "0")))
    try:
        model(x)
    except stretto.StrettoError as error:
        code = error.code
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps({"losses": losses, "step": step, "code": code}))


if __name__ == "__main__":
    main()
