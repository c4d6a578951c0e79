"""Measure the building blocks on this machine, as ratios within one run.

    make bench      # prints a table, writes bench/report.json

Each figure is the median of interleaved repetitions, so that a machine whose speed drifts slows both sides alike.
"""
import json, os, platform, statistics, sys, time
from pathlib import Path
import torch
import torch.nn.functional as F
from picie_nb.backbone import create_backbone
from picie_nb.clustering import assign, kmeans
from picie_nb.fpn import PiCIENet
from picie_nb.losses import PiCIELoss
from picie_nb.transforms import Geometric, Photometric

REPS = 5


def ratio(a, b, reps=REPS):
    "Median of time(a)/time(b) over interleaved repetitions, with its range, after one warm-up of each"
    def clock(f):
        start = time.perf_counter()
        f()
        return time.perf_counter()-start
    clock(a), clock(b)
    rs = [clock(a)/clock(b) for _ in range(reps)]
    return statistics.median(rs), min(rs), max(rs)


def main():
    torch.manual_seed(0)
    figures = {}
    z, k, n_iter = F.normalize(torch.randn(100_000, 128), dim=1), 27, 10
    start = z[:k].clone()
    mine = lambda engine: lambda: kmeans(z, k, n_iter=n_iter, init=start, engine=engine)
    figures["kmeans_faiss_over_torch"] = ratio(mine("faiss"), mine("torch"))
    figures["kmeans_over_matmul"] = ratio(mine("torch"), lambda: [z@start.T for _ in range(n_iter)])
    maps, weight = F.normalize(torch.randn(16, 128, 40, 40), dim=1), start[:, :, None, None]
    figures["assign_over_conv"] = ratio(lambda: assign(maps, start), lambda: F.conv2d(maps, weight))

    x, p, g, loss = torch.rand(16, 3, 160, 160), Photometric(), Geometric(), PiCIELoss("dot")
    net = PiCIENet(create_backbone("resnet18", pretrained=False))
    def views():
        q = g.sample(len(x))
        p(x), g.apply(p(x), q)
    def step():
        z1, z2 = (F.normalize(o, dim=1) for o in net(x, x))
        y1, y2 = assign(z1.detach(), start), assign(z2.detach(), start)
        loss(z1, z2, y1, y2, start, start).backward()
    figures["views_over_step"] = ratio(views, step)

    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}; median of {REPS} (lowest - highest)")
    for name, (mid, low, high) in figures.items(): print(f"{name:>26} {mid:7.2f}  ({low:.2f} - {high:.2f})")
    report = Path(__file__).parent/"report.json"
    report.write_text(json.dumps({name: mid for name, (mid, *_) in figures.items()}, indent=1)+"\n")
    print(f"wrote {report}")


if __name__ == "__main__": main()
