"""A training script as people wrote them for CUDA, mmcv 1.x and numpy 1.19; written for the tests of tpvformer run.

It writes losses, a first output, the first gradients and the last weights to --work-dir, a file for each process.
"""

import argparse
import os

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from forked.frames import Frames
from forked.model import SEGMENTORS
from nuscenes import NuScenes
from timm.scheduler import CosineLRScheduler


def main(local_rank, args):
    torch.backends.cudnn.benchmark = True
    distributed = args.gpus > 1
    if distributed:
        address = "tcp://127.0.0.1:" + os.environ.get("FORK_PORT", "29563")
        dist.init_process_group(backend="nccl", init_method=address, world_size=args.gpus, rank=local_rank)
    torch.cuda.set_device(local_rank)
    torch.manual_seed(3)
    nusc = NuScenes(version="v1.0-mini", dataroot=args.root, verbose=False)
    frames = Frames(nusc, rank=local_rank, world=args.gpus)
    loader = torch.utils.data.DataLoader(frames, batch_size=1, num_workers=args.workers, pin_memory=True)

    cfg = dict(type="ForkedFormer", backbone=dict(type=args.backbone), classes=np.int(5))
    model = SEGMENTORS.build(cfg)
    model.init_weights()
    if args.load_from:
        content = torch.load(args.load_from, map_location="cuda:%d" % local_rank)
        model.load_state_dict(content["state_dict"])
        print("resumed after", content["score"], flush=True)
    model = model.cuda()
    net = model
    if distributed:
        ddp = torch.nn.parallel.DistributedDataParallel
        net = ddp(model, device_ids=[torch.cuda.current_device()], broadcast_buffers=False)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.01)
    scheduler = CosineLRScheduler(
        optimizer, t_initial=args.steps, lr_min=1e-6, warmup_t=2, warmup_lr_init=1e-5, t_in_epochs=False
    )
    weight = torch.ones(5, device="cuda")
    record = {"losses": [], "rates": []}
    step = 0
    while step < args.steps:
        for images, labels in loader:
            images, labels = images.cuda(non_blocking=True), labels.to(torch.device("cuda", local_rank))
            logits = net(images)
            loss = torch.nn.functional.cross_entropy(logits, labels.type(torch.cuda.LongTensor), weight=weight)
            optimizer.zero_grad()
            loss.backward()
            if step == 0:
                record["output"] = logits.detach().cpu()
                learnt = [(n, p.grad) for n, p in model.named_parameters() if p.grad is not None]
                record["grads"] = {name: grad.detach().cpu().clone() for name, grad in learnt}
            torch.nn.utils.clip_grad_norm_(net.parameters(), 35.0)
            optimizer.step()
            scheduler.step_update(step)
            torch.cuda.empty_cache()
            record["losses"].append(np.float(loss.item()))
            record["rates"].append(optimizer.param_groups[0]["lr"])
            step += 1
            if step == args.steps:
                break
    record["weights"] = {name: value.cpu() for name, value in model.state_dict().items()}
    if distributed:
        total = torch.tensor(record["losses"], dtype=torch.float32).cuda()
        dist.all_reduce(total)
        record["mean"] = total.cpu() / dist.get_world_size()
    os.makedirs(args.work_dir, exist_ok=True)
    torch.save(record, os.path.join(args.work_dir, "rank%d.pth" % local_rank))
    if local_rank == 0:
        saved = {"state_dict": record["weights"], "score": np.float64(record["losses"][-1])}
        torch.save(saved, os.path.join(args.work_dir, "latest.pth"))
    print("rank %d of %d done on %s" % (local_rank, args.gpus, weight.device.type), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--work_dir", required=True)
    parser.add_argument("--root", required=True)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--backbone", default="Small")
    parser.add_argument("--load_from", default="")
    args = parser.parse_args()
    args.gpus = torch.cuda.device_count()
    if args.gpus > 1:
        mp.spawn(main, args=(args,), nprocs=args.gpus)
    else:
        main(0, args)
