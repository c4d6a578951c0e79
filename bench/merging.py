"""How small clusters become K: four rules, each with one step more than the one before, on the same draws of K-means.

    python bench/merging.py                          # all sets, seeds 0 1, untrained and trained
    python bench/merging.py --data toy --seeds 0     # some of them

The networks are those that bench/study.py kept. Small clusters of four draws of K-means are merged by each rule and scored, refined, on up to 60 labelled images
that training has not seen. A line for each network and rule goes into bench/merging.jsonl; lines that are there are not measured again.
"""
import argparse, json
import numpy as np, torch.nn.functional as F
from fastai.torch_core import set_seed
from study import HERE, LITE0, ROWS, loaders, path, source
from picie_nb.all import *
from picie_nb.evaluate.report import score_draws

# centroids at length 1?, power, prior
RULES = {"three quarters of the exponent": (False, .75, 0), "directions only": (True, .75, 0), "half the exponent": (True, .5, 0), "prior": (True, .5, .05)}


def merged(r, k, unit, power, prior):
    tree = merge_tree(F.normalize(r.centroids) if unit else r.centroids, r.counts, power)
    return with_prior(*merge_clusters(r.centroids, r.counts, cut_tree(tree, k)), prior)


def measure(data, row, seed, size=320, n_draws=4, n_images=60):
    set_seed(seed)
    dls, k = loaders(data, "test" if data == "camvid" else "val", seed, size), len(source(data, "val")[-1])
    learn = picie_learner(dls, LITE0, k)
    learn.model.load_state_dict(Segmenter.load(path(data, row, seed, size).with_suffix(".safetensors")).net.state_dict())
    cb, step = learn.cluster, -(-len(dls.valid_ds)//n_images)
    z, = cb.sample(learn.model.eval(), augment=False, least=256)
    fits = [cb.kmeans(z, cb.merge_from) for _ in range(n_draws)]
    draws = [merged(r, k, *rule) for rule in RULES.values() for r in fits]
    batches, seen = [], 0
    for x, y in dls.valid:
        batches.append((x[-seen % step::step], y[-seen % step::step]))
        seen += len(x)
    scores = score_draws(learn.model, draws, [b for b in batches if len(b[0])], learn.classes, "dot", "hungarian", learn.config.refine)
    for i, rule in enumerate(RULES):
        part = scores[i*n_draws:(i+1)*n_draws]
        yield dict(data=data, row=row, seed=seed, rule=rule, acc=float(np.mean([s.acc for s in part])), miou=float(np.mean([s.miou for s in part])))


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--data", nargs="+", default=["camvid", "msrc21", "dubai", "wbc", "toy"])
    ap.add_argument("--rows", nargs="+", default=["start", "improved"], choices=list(ROWS))
    ap.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    a, out = ap.parse_args(), HERE/"merging.jsonl"
    for seed in a.seeds:
        for data in a.data:
            for row in a.rows:
                done = [json.loads(o) for o in out.read_text().splitlines()] if out.exists() else []
                if any((o["data"], o["row"], o["seed"]) == (data, row, seed) for o in done): continue
                lines = "".join(json.dumps(o)+"\n" for o in measure(data, row, seed))
                with out.open("a") as f: f.write(lines)
                print(lines, end="", flush=True)


if __name__ == "__main__": main()
