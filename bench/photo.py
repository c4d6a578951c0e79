"""How the small clusters of one photo are merged and read, step by step: agreement with the true classes, without any training.

    python bench/photo.py     # bench/photo.json: {set: {rule: adjusted Rand index}}, means over 30 photos of each set that bench/study.py knows
    python bench/study.py start --seeds 1 --data camvid msrc21 dubai wbc toy --test    # makes the networks

Each photo is clustered on its own (`photo_tree`), and its tree cut where as many clusters are left as classes cover at least 1 % of it. Each rule has one step
more than the one before.
"""
import json
from pathlib import Path
import numpy as np, torch.nn.functional as F
from PIL import Image
from sklearn.metrics import adjusted_rand_score
from picie_nb.regions import merge_tree
from picie_nb.segmenter import Segmenter
from picie_nb.use.tree import photo_tree
from study import path, test_images

RULES = {"Ward's rule": (False, 1, 0), "directions only": (True, 1, 0), "half the exponent": (True, .5, 0), "prior": (True, .5, .05)} # unit length, power, prior

def main():
    res = {}
    for data in ("camvid", "msrc21", "dubai", "wbc", "toy"):
        net, found = Segmenter.load(path(data, "start", 1, 320).with_suffix(".safetensors")).net, {rule: [] for rule in RULES}
        files, truth, labels = test_images(data, 30)
        for file, y in zip(files, truth):
            seen, photo = y != labels.ignore, Image.open(file).convert("RGB")
            k = max(2, (np.unique(y[seen], return_counts=True)[1] > .01*y.size).sum())
            tree = photo_tree(net, photo, refine=0)
            for rule, (unit, power, prior) in RULES.items():
                mu = F.normalize(tree.centroids) if unit else tree.centroids
                tree.tree, tree.prior = merge_tree(mu, tree.counts, power), prior
                found[rule].append(adjusted_rand_score(y[seen], tree.at(k)(photo).clusters[seen]))
        res[data] = {rule: float(np.mean(v)) for rule, v in found.items()}
        print(data, {rule: round(v, 3) for rule, v in res[data].items()}, flush=True)
    Path(__file__).with_name("photo.json").write_text(json.dumps(res, indent=1)+"\n")

if __name__ == "__main__": main()
