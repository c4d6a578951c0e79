"""What `test_distributed.py` starts in several processes: `distributed_job.py FOLDER CHOICES`, a list of trainings as JSON"""
import json, os, random, signal, sys, warnings
warnings.filterwarnings("ignore", category=FutureWarning)
import torch
from pathlib import Path
from fastai.callback.core import Callback
from fastai.callback.training import GradientAccumulation
from fastai.torch_core import num_distrib, rank_distrib, set_seed
from picie_nb import callback
from picie_nb.training.health import ClusterHealth
from picie_nb.learner import picie_learner
from picie_nb.data.scenes import ToyScenes

N_TRAIN, N_VALID, BATCH = 37, 11, 12 # neither number of images can be divided by 2 or 3
STILL = dict(p_jitter=0, p_blur=0, p_grey=0, p_hflip=0, min_scale=1., n_draws=1) # no chance, to compare numbers

class Watch(Callback):
    "Keep what must be equal in all processes, or for all numbers of processes"
    order = 12
    def __init__(self, still, die): self.still, self.die, self.mus, self.losses, self.mats, self.teachers, self.images = still, die, [], [], [], [], 0
    def after_batch(self):
        if not self.training: return
        self.images += len(self.learn.xb[0])
        self.losses.append(self.learn.loss.item())
        if self.die == [rank_distrib(), self.epoch]: os.kill(os.getpid(), signal.SIGKILL)
    def after_train(self):
        self.mus.append([o.double().sum().item() for o in self.learn.cluster.mu])
        self.teachers.append([o.double().sum().item() for o in self.learn.cluster.snapshot.state_dict().values()])
    def before_validate(self):
        if self.still: random.seed(0) # the order of images for the readout
    def after_validate(self): self.mats.append(next(m.cm for m in self.learn.metrics if hasattr(m, "cm")).mat.tolist())

def train(folder, bs=None, epochs=3, lr=1e-3, die=None, resume=False, checkpoint=False, fail=False, still=True, acc=None, amp=None, **changes):
    set_seed(0)
    dls = ToyScenes(N_TRAIN+N_VALID, size=64, seed=0).dls(bs=bs or BATCH//max(1, num_distrib()), valid=N_VALID/(N_TRAIN+N_VALID), seed=0)
    assert len(dls.train_ds) == N_TRAIN and len(dls.valid_ds) == N_VALID
    watch = Watch(still, die)
    learn = picie_learner(dls, "test_efficientnet", 5, pretrained=False, cbs=[watch, ClusterHealth(warn=False)]+([GradientAccumulation(acc)] if acc else []),
                          **{"batchnorm": "eval", "labels": "snapshot", "n_pixels": None, "n_iter": 5, **(STILL if still else {}), **changes})
    fit = learn.cluster.kmeans
    def kmeans(*args, **kwargs): # starts without chance, too
        if still: torch.manual_seed(0)
        return fit(*args, **kwargs)
    learn.cluster.kmeans = kmeans
    def fails(*args, **kwargs): raise ValueError("nothing to cluster")
    if fail and not rank_distrib(): callback.kmeans = fails
    with learn.distrib_ctx(cpu=True, mixed_precision=amp), learn.no_bar(), learn.no_logging():
        learn.fit(epochs, lr=lr, checkpoint=Path(folder, "run") if checkpoint else None, resume=resume)
    assert not hasattr(learn.model, "module")
    weights = torch.cat([o.double().flatten() for o in learn.model.state_dict().values()])
    res = dict(weights=[weights.sum().item(), weights.norm().item()], mus=watch.mus, losses=watch.losses, mats=watch.mats, images=watch.images, teachers=watch.teachers,
               history=learn.history(), health=learn.cluster_health.rows)
    res["mu_eval"] = None if learn.cluster.mu_eval is None else learn.cluster.mu_eval.double().sum().item() # official has none of its own
    if not rank_distrib(): # alone again: nobody else takes part
        res["alone"] = learn.score(1).miou
        learn.segmenter().save(Path(folder, "segmenter.safetensors"))
    return res

def main(folder, choices):
    def say(o): Path(folder, f"rank{rank_distrib()}.json").write_text(json.dumps(o))
    try: say([train(folder, **o) for o in choices])
    except ValueError as e:
        say(str(e))
        raise

if __name__ == "__main__": main(sys.argv[1], json.loads(sys.argv[2]))
