"""How good are a few clicks? Simulated clicks on real data sets, by several ways to follow them; results in hints.json, shown on nbs/use/names.ipynb.

    python bench/hints.py                                 # all sets and networks that are there, three series of clicks
    python bench/hints.py --data camvid toy --seeds 0     # a part; results of other parts are kept
    python bench/hints.py --methods hinted "linear probe" # the same for methods

Networks are those that bench/study.py kept beside its results (seed 1, 320 px; --nets names another folder). For each set, up to 30 training images take
clicks and give the small clusters (9 K, of 1200 cells each), and 40 test images are scored, on 3000 cells each, without refinement. A click: a random image of
the 30, in it the largest connected piece of one class that is wrong now, in it a random cell, named by the truth. Scores are by name alone: a class without
a click is missed. "clusters, matched": K clusters of no click, each matched with a class by the masks of the test images (Hungarian).
"""
import argparse, json, tempfile, time
from pathlib import Path
import numpy as np, torch, torch.nn.functional as F
from PIL import Image
from scipy import ndimage
from study import HERE, domains, folders, image_files, match_masks
from picie_nb.all import Segmenter, cut_tree, hungarian, kmeans, merge_clusters, merge_tree, open_image, with_prior
from picie_nb.clustering import scores as centroid_scores
from picie_nb.use.gallery import _features
from picie_nb.use.names import fit_classes, spread_names

CLICKS = (0, 5, 10, 20, 50)
unit = lambda o: F.normalize(o.float(), dim=1)


def labelled(seg, folder, masks, labels, n):
    "Features (D,h,w) and classes (h,w) of up to n images, evenly spread"
    files = image_files(folder)
    files, of = files[::max(1, len(files)//n)][:n], match_masks(files, folder, masks)
    for f in files:
        z, y = _features(seg, open_image(f)), np.asarray(labels.map(Image.open(of[f])))
        rows, cols = (((np.arange(a)+.5)*b/a).astype(int) for a, b in zip(z.shape[1:], y.shape))
        yield z, torch.from_numpy(y[rows[:, None], cols].astype(np.int64))


def features(nets, cache, data, row):
    "What the network sees of a data set, from the cache or computed"
    file = cache/f"{data}-{row}.pt"
    if file.exists(): return torch.load(file)
    seg, (dirs, labels) = Segmenter.load(nets/f"{data}-{row}_320px-1.safetensors"), folders(data)
    g, some = torch.Generator().manual_seed(0), lambda z, n: torch.randperm(z.shape[1]*z.shape[2], generator=g)[:n]
    d = dict(click=[], click_y=[], sample=[], z=[], y=[], names=list(labels.names), readout=seg.readout)
    for z, y in labelled(seg, *dirs["train"], labels, 30):
        d["sample"].append(z.flatten(1).T[some(z, 1200)].half()); d["click"].append(z.half()); d["click_y"].append(y)
    for z, y in labelled(seg, *dirs["test"], labels, 40):
        i = some(z, 3000)
        d["z"].append(z.flatten(1).T[i].half()); d["y"].append(y.flatten()[i])
    d.update({k: torch.cat(d[k]) for k in ("sample", "z", "y")})
    torch.save(d, file)
    return d


def world(d):
    "Small clusters, their tree, K clusters"
    torch.manual_seed(0)
    K = d["K"] = len(d["names"])
    r = kmeans(unit(d["sample"]), 9*K, generator=torch.Generator().manual_seed(0))
    d["tree"] = merge_tree(unit(r.centroids), r.counts, .5)
    mu, n = merge_clusters(r.centroids, r.counts, cut_tree(d["tree"], K))
    d["mu"], d["fine"], d["merged"] = mu, r.centroids, with_prior(mu, n)
    known = (d["y"] >= 0) & (d["y"] < K)
    d["z"], d["y"] = d["z"][known].float(), d["y"][known]
    return d


# each: what is known of the images, features and classes of the clicks -> vectors (C,D), intercepts, class of each vector
def hinted(d, z, y, fine="fine"):
    c, y = y.unique(return_inverse=True)
    return fit_classes(d[fine], z, y), 0, c

def propagation(d, z, y):
    c, i = y.unique(return_inverse=True)
    return torch.cat([d["fine"], z]), 0, torch.cat([c[spread_names(unit(d["fine"]), z, i)], y])

def nearest(d, z, y): return z, 0, y

def small(d, z, y): return torch.cat([d["fine"], z]), 0, torch.cat([y[(unit(d["fine"])@z.T).argmax(1)], y])

def recut(d, z, y):
    "Each small cluster: the most similar click in the smallest part of the tree that has one"
    fine, n = unit(d["fine"]), len(d["fine"])
    leaf, members, name = (z@fine.T).argmax(1), [[i] for i in range(n)], torch.full((n,), -1)
    inside = [(leaf == i).nonzero()[:, 0].tolist() for i in range(n)]
    for a, b in [(i, None) for i in range(n)]+d["tree"][:, :2].astype(int).tolist():
        if b is not None: members.append(members[a]+members[b]); inside.append(inside[a]+inside[b])
        here, clicks = (members[-1], inside[-1]) if b is not None else (members[a], inside[a])
        for i in here if clicks else ():
            if name[i] < 0: name[i] = y[clicks][(z[clicks]@fine[i]).argmax()]
    return torch.cat([d["fine"], z]), 0, torch.cat([name, y])

def probe(d, z, y):
    from sklearn.linear_model import LogisticRegression
    if len(c := y.unique()) < 2: return z[:1], 0, c
    lr = LogisticRegression(C=10, max_iter=300).fit(z.numpy(), y.numpy())
    w, b = torch.from_numpy(lr.coef_).float(), torch.from_numpy(lr.intercept_).float()
    return (w, b, c) if len(w) > 1 else (torch.cat([-w, w]), torch.cat([-b, b]), c)

METHODS = {"hinted": hinted, "hinted, K clusters only": lambda d, z, y: hinted(d, z, y, "mu"), "linear probe": probe, "nearest click": nearest,
           "propagation alone": propagation, "small clusters, nearest click": small, "tree cut again": recut}


def predict(z, model):
    w, b, c = model
    return c[(z@w.T+b).argmax(1)]


def scores(pred, y, K):
    cm = torch.bincount(pred*K+y, minlength=K*K).view(K, K).double()
    hit, there = cm.diagonal(), cm.sum(0) > 0
    return float(hit.sum()/cm.sum()), float((hit/(cm.sum(0)+cm.sum(1)-hit).clamp_min(1))[there].mean())


def click(d, model, rng):
    "A cell of the largest wrong piece of a random image, and its class"
    for i in rng.permutation(len(d["click"])):
        z, y = d["click"][i].float(), d["click_y"][i]
        p = torch.full(y.shape, -1) if model is None else predict(z.flatten(1).T, model).view(y.shape)
        wrong, y, best = ((p != y) & (y >= 0) & (y < d["K"])).numpy(), y.numpy(), (0, None, None)
        for c in np.unique(y[wrong]):
            parts, _ = ndimage.label(wrong & (y == c))
            sizes = np.bincount(parts.ravel())[1:]
            if sizes.max() > best[0]: best = sizes.max(), np.argwhere(parts == sizes.argmax()+1), c
        if best[0]:
            r, c = best[1][rng.integers(len(best[1]))]
            return F.normalize(z[:, r, c], dim=0), int(best[2])


def series(d, method, seed):
    "Scores after each number of clicks, and seconds for the last answer"
    rng, zs, ys, model = np.random.default_rng(seed), [], [], None
    for n in range(1, max(CLICKS)+1):
        if found := click(d, model, rng): zs.append(found[0]); ys.append(found[1])
        start = time.perf_counter()
        model = method(d, torch.stack(zs), torch.tensor(ys))
        seconds = time.perf_counter()-start
        held = float((predict(torch.stack(zs), model) == torch.tensor(ys)).float().mean())
        if n in CLICKS: yield n, *scores(predict(d["z"], model), d["y"], d["K"]), held, seconds


def matched(d):
    "K clusters, matched with classes by masks"
    K, c = d["K"], centroid_scores(d["z"], d["merged"], "dot").argmax(1)
    of = torch.as_tensor(np.asarray(hungarian(torch.bincount(c*K+d["y"], minlength=K*K).view(K, K))))
    return scores(of[c], d["y"], K)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", nargs="+", default=["camvid", *domains(), "toy"])
    p.add_argument("--rows", nargs="+", default=["improved", "start"])
    p.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    p.add_argument("--nets", type=Path, default=HERE/"study", help="folder with the networks of bench/study.py")
    p.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir())/"picie_nb_hints", help="folder for features")
    a, out = p.parse_args(), HERE/"hints.json"
    a.cache.mkdir(exist_ok=True)
    key = lambda o: (o["data"], o["row"], o["method"], o["seed"], o["clicks"])
    done = {key(o): o for o in json.loads(out.read_text())} if out.exists() else {}
    for row, data in ((r, d) for r in a.rows for d in a.data):
        d, new = world(features(a.nets, a.cache, data, row)), []
        about = dict(data=data, row=row)
        acc, miou = matched(d)
        new.append(dict(**about, method="clusters, matched", seed=0, clicks=0, acc=round(acc, 4), miou=round(miou, 4)))
        for name, seed in ((m, s) for m in a.methods for s in a.seeds):
            for n, acc, miou, held, sec in series(d, METHODS[name], seed):
                new.append(dict(**about, method=name, seed=seed, clicks=n, acc=round(acc, 4), miou=round(miou, 4), held=round(held, 4), seconds=round(sec, 3)))
            print(f"{row:9s}{data:8s}{name:30s}{seed}", "  ".join(f"{o['clicks']}: {100*o['acc']:.0f}/{100*o['miou']:.0f}" for o in new[-len(CLICKS)+1:]), flush=True)
        done.update({key(o): o for o in new})
        tmp = out.with_suffix(".tmp")
        tmp.write_text("[\n"+",\n".join(map(json.dumps, done.values()))+"\n]\n")
        tmp.replace(out)


if __name__ == "__main__": main()
