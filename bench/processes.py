"""Train an epoch in each of several processes and print its seconds: started by run.py with torch.distributed.run"""
import os, sys, warnings
from pathlib import Path
warnings.filterwarnings("ignore")
import torch
sys.path.insert(0, str(Path(__file__).parent))
from run import Times, data, learner

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
dls = data(32)
several = int(os.environ["WORLD_SIZE"]) > 1
if several:
    for dl in dls.loaders: dl.bs = dl.bs//int(os.environ["WORLD_SIZE"])  # the same images in each step
learn, times = learner(dls), []
for _ in range(2):
    t = Times()
    with learn.no_bar(), learn.no_logging():
        if several:
            with learn.distrib_ctx(): learn.fit(1, cbs=t)
        else: learn.fit(1, cbs=t)
    times.append(t.parts["epoch"])
if int(os.environ["RANK"]) == 0: print(times[-1])
