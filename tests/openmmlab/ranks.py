"""MMDistributedDataParallel: two processes over gloo against one process that sees both halves of each batch."""

from __future__ import annotations

import os
import socket
from typing import Any, Dict, List

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from report import DCN, Student, batches, main, outcome, train

_NET = {"depth": 50, "dcn": DCN, "stage_with_dcn": (False, False, False, True), "frozen_stages": 1}
_STEPS, _CLIP = 4, {"max_norm": 0.5}


def _net(deformable: bool) -> Student:
    return Student(**{**_NET, "dcn": dict(DCN)}) if deformable else Student(depth=18)


def _rank(rank: int, port: int, deformable: bool, file: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    from mmcv.parallel import DataContainer, MMDistributedDataParallel
    from mmcv.runner.hooks.optimizer import OptimizerHook

    model = MMDistributedDataParallel(_net(deformable))
    mine: List[Dict[str, Any]] = [{"img": b["img"][rank : rank + 1]} for b in batches(_STEPS)]
    result_of: Dict[str, Any] = {}
    result = {"train": outcome(lambda: result_of.update(train(model, mine, OptimizerHook(grad_clip=dict(_CLIP)))))}
    result.update(result_of, weights={key: value.clone() for key, value in model.module.state_dict().items()})
    with torch.no_grad():  # nothing that waits for the other process, so that errors end both
        result["val"] = outcome(lambda: model.val_step(mine[0], None)["loss"].item())
        result["forward"] = outcome(lambda: model(mine[0]["img"]).sum().item())
        packed = {"img": DataContainer([mine[0]["img"]], stack=True)}  # as mmcv's collate makes them
        result["container"] = outcome(lambda: model.val_step(packed, None)["loss"].item())
    torch.save(result, f"{file}.{rank}")
    dist.destroy_process_group()


def ranks(kind: str, file: str) -> Dict[str, Any]:
    """``kind``: "plain", or "deformable" networks."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    mp.spawn(_rank, (port, kind == "deformable", file), nprocs=2)
    first, second = (torch.load(f"{file}.{rank}", weights_only=True) for rank in (0, 1))
    ended = {what: [first[what], second[what]] for what in ("train", "val", "forward", "container")}
    if set(ended["train"]) != {"fine"}:
        return ended
    single = _net(kind == "deformable")
    start = {key: value.clone() for key, value in single.state_dict().items()}
    from mmcv.runner.hooks.optimizer import OptimizerHook

    alone = train(single, batches(_STEPS), OptimizerHook(grad_clip=dict(_CLIP)))
    weights, reference = first["weights"], single.state_dict()
    return {
        "between_ranks": max(float((weights[k] - second["weights"][k]).abs().max()) for k in weights),
        "to_single": max(float((weights[k] - reference[k]).abs().max()) for k in weights),
        "moved": max(float((start[k] - reference[k]).abs().max()) for k in reference),
        "norms": [first["grad_norm"], alone["grad_norm"]],
        "loss": [[sum(pair) / 2 for pair in zip(first["loss"], second["loss"])], alone["loss"]],
        **ended,
    }


if __name__ == "__main__":
    main({"ranks": ranks})
