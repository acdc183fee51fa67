"""Run by torchrun: resumes a checkpoint, fills a model from weights, and saves both again.

Arguments: the mesh, the folder that holds `from` and `from.safetensors`, where `to` and `to.safetensors` are written.
"""

import json
import os
import sys
from pathlib import Path

import stretto
import torch
from models import PLAN, Small, adamw, seeded, train


def main() -> None:
    """Train three steps more, twice."""
    plan, folder = PLAN.format(mesh=sys.argv[1]), Path(sys.argv[2])
    model = stretto.compile(seeded(1), plan=plan)
    optimizer = adamw(model)
    step = stretto.load_checkpoint(folder / "from", model, optimizer)["step"]
    with stretto.meta_parameters():
        empty = Small().double()
    filled = stretto.compile(empty, plan=plan, weights=folder / "from.safetensors")
    same = [bool((a - b).abs().max() == 0) for a, b in zip(filled.parameters(), model.parameters(), strict=True)]
    losses = train(model, optimizer, range(step, step + 3))
    stretto.save_checkpoint(folder / "to", model, optimizer, step=step + 3)
    stretto.save_weights(model, folder / "to.safetensors")
    anew = adamw(filled)
    filled.up.requires_grad_(False)
    stretto.save_checkpoint(folder / "fresh", filled, anew)
    fresh = train(filled, anew, range(2))
    filled.up.requires_grad_(True)
    stretto.save_checkpoint(folder / "part", filled, anew)
    fresh += train(filled, anew, range(2, 4))
    plain = {name: tensor.contiguous() for name, tensor in seeded(2).state_dict().items()}
    model.load_state_dict(plain)
    loaded = [torch.equal(parameter.full_tensor(), plain[name]) for name, parameter in model.named_parameters()]
    if os.environ["RANK"] == "0":
        kind = type(filled.up.weight).__name__
        print(json.dumps({"losses": losses, "same": same, "kind": kind, "loaded": loaded, "fresh": fresh}))


if __name__ == "__main__":
    main()
