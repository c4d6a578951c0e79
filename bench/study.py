"""Recipes x seeds x data sets: which choices help? One file for each run, so that a study can be stopped and goes on.

    python bench/study.py                                   # all recipes, seeds 0 1 2, on CamVid where it is, else on drawn scenes
    python bench/study.py improved official --seeds 0 --data toy
    python bench/study.py start improved --data ~/cocostuff # any data set whose layout is known
    python bench/study.py improved official --test          # score the test images too, with the networks that were trained
    python bench/study.py start improved --data camvid msrc21 dubai wbc toy # several domains, which decide together
    python bench/study.py start improved --data ~/mine --backbone resnet50 # another backbone, by its name, downloaded or with --weights FILE
    python bench/study.py --table                           # what has been measured: a line for each recipe, data set and size

`val`: labelled images whose masks training has never seen, scored as the model is used; `val_raw`: the same without refinement. CamVid's test images are for
the table that is reported, and are read only with --test. nbs/explanations/ablations.ipynb shows both. CAMVID names the folder with images/{train,val,test}
and labels/{train,val,test}, DOMAINS the folder of further data sets, each with images/{train,test}, masks/{train,test} and labels.json (names, ignore),
whose test images stand in for val. Networks are kept beside the results as .safetensors; delete a run's .json to train it again.
Rows that end in before are the runs of start and improved as they were scored when inside was: merged at their own length with three quarters of Ward's
exponent and without a prior. On sets whose photos have several shapes (msrc21, dubai) these and the rows of inside were scored in padded batches, which
moved a score by up to a point; now each photo is scored alone.
Rows two_sizes: as improved, with a teacher whose features are the mean of those at 320 and at 451 pixels.
"""
import argparse, json, os, random, re, tempfile, time, warnings
from pathlib import Path
warnings.filterwarnings("ignore")
import numpy as np, torch
from PIL import Image
from fastai.callback.core import Callback
from fastai.torch_core import set_seed
from picie_nb.all import *
from picie_nb.evaluate.protocols import _FRESH

HERE = Path(__file__).resolve().parent
DRAWS = dict(camvid=8) # of K-means for a score, three elsewhere: on streets they differ most
LITE0 = "tf_efficientnet_lite0"
CAMVID = Path(os.environ.get("CAMVID", HERE.parent.parent/"shared/data/camvid"))
DOMAINS = Path(os.environ.get("DOMAINS", HERE.parent.parent/"shared/data/domains"))
ROWS = dict(
    raw=dict(epochs=0, pca_init=False), # a random FPN, not trained
    start=dict(epochs=0),               # the PCA start, not trained
    official=dict(preset="official"),   # the published procedure
    official_H=dict(preset="official", aux_clusters=100), mdc=dict(preset="official", mdc=True), paper=dict(preset="paper"),
    improved={},                        # the default
    # one choice of `improved` changed
    no_average=dict(average=1.), average7=dict(average=.7), snapshot=dict(labels="snapshot", average=1.), full_views=dict(view_scale=1.), small_views=dict(view_scale=.5),
    smooth=dict(smooth=20), start_smooth=dict(epochs=0, smooth=20),
    k2=dict(overcluster=2.5), k9=dict(overcluster=9), slow=dict(lr=3e-4), long=dict(epochs=12), zoom=dict(min_scale=.25),
    all_learn=dict(freeze=0), noblur=dict(p_blur=0.), plusH=dict(aux_clusters=100),
)


def domains(): return sorted(f.parent.name for f in DOMAINS.glob("*/labels.json"))


def folders(data):
    "Image and mask folders of each split, label set"
    if data == "camvid": return {s: (CAMVID/"images"/s, CAMVID/"labels"/s) for s in ("train", "val", "test")}, label_set("camvid11")
    if data in domains():
        root, about = DOMAINS/data, json.loads((DOMAINS/data/"labels.json").read_text())
        dirs = {s: (root/"images"/s, root/"masks"/s) for s in ("train", "test")}
        return {**dirs, "val": dirs["test"]}, LabelSet(about["names"], ignore=about["ignore"])
    root = Path(tempfile.gettempdir())/"picie_nb_study"/data
    sets = {s: ToyScenes(n=n, size=192, seed=k) for k, (s, n) in enumerate(dict(train=128, val=64, test=64).items())}
    for s, scenes in sets.items():
        if not (root/s).exists(): scenes.save(root/s)
    return {s: (root/s/"images", root/s/"masks") for s in sets}, sets["train"].labels


def source(data, split):
    "Images to train on, images to score, their masks, label set"
    if data not in ("camvid", "toy", *domains()): # a folder in a known layout; its own split for training is the one that is called train
        ds = open_dataset(data)
        return ds.train, ds.train if split == "train" else ds.valid, ds.mask_of, ds.labels
    dirs, labels = folders(data)
    return dirs["train"][0], *dirs[split], labels


def loaders(data, split, seed, size, **kwargs):
    train, images, masks, labels = source(data, split)
    return picie_dls(train, size=size, bs=16, valid=images, masks=masks, labels=labels, seed=seed, **kwargs)


class Watch(Callback):
    "After every epoch: the score on val"
    order = 70
    def __init__(self): self.rows = []
    def after_epoch(self): self.rows.append(watch(self.learn))


def watch(learn):
    rng = random.getstate(), np.random.get_state(), torch.get_rng_state() # looking must not change the training
    draws = learn.cluster.fresh(2)
    s = learn.score(draws=draws)
    res = dict(acc=s.acc, miou=s.miou, shape=s.shape)
    random.setstate(rng[0]); np.random.set_state(rng[1]); torch.set_rng_state(rng[2])
    return res


def path(data, row, seed, size, backbone=LITE0):
    other = "" if backbone == LITE0 else "-"+re.sub(r"[^\w.]", "_", backbone)
    return HERE/"study"/f"{Path(data).name}-{row}{other}{'' if size == 160 else f'_{size}px'}-{seed}.json"


def run(data, row, seed, epochs, size, test, look, backbone=LITE0, weights=None, again=False):
    "Train one row with one seed, unless that is done, and score it"
    kw = dict(ROWS[row])
    out = path(data, row, seed, size, backbone)
    res = json.loads(out.read_text()) if out.exists() else {}
    if res and ("test" in res or not test) and not again: return
    epochs, start, cpu = kw.pop("epochs", epochs), time.perf_counter(), time.process_time()
    set_seed(seed)
    learn = picie_learner(loaders(data, "val", seed, size, crop="center" if kw.get("preset") == "official" else "random"), backbone, len(source(data, "val")[-1]), weights=weights, **kw)
    net, ds, kept = out.with_suffix(".safetensors"), {}, bool(res)
    if kept: learn.model.load_state_dict(Segmenter.load(net).net.state_dict())
    else:
        seen, cb = ([watch(learn)], Watch()) if look else ([], None)
        if epochs:
            learn.metrics = learn.metrics[:0]
            with learn.no_bar(), learn.no_logging(): learn.fit(epochs, cbs=cb)
        res = dict(data=data, row=row, seed=seed, backbone=backbone, size=size, epochs=epochs, config=kw, history=seen+(cb.rows if cb else []),
                   seconds=time.perf_counter()-start, cpu_seconds=time.process_time()-cpu, threads=torch.get_num_threads())
    if again or not kept: learn.segmenter().save(net)
    split = "test" if test else "val"
    ds.update({split: {}, f"{split}_raw": dict(refine=0)})
    set_seed(seed)
    draws = learn.cluster.fresh(DRAWS.get(data, 3))
    for name, kw in ds.items():
        dls = loaders(data, name.split("_")[0], seed, size)
        res[name] = learn.score(dl=dls.valid, draws=draws, geometry=dls.geometry, centroids=_FRESH, **kw).to_dict()
    out.parent.mkdir(exist_ok=True)
    tmp = out.with_suffix(".tmp")
    tmp.write_text(json.dumps(res, indent=1)+"\n")
    tmp.replace(out)
    print(f"{out.stem:24s}", "  ".join(f"{n} {100*res[n]['acc']:.1f}/{100*res[n]['miou']:.1f}" for n in ("val", "val_raw", "test") if n in res), f"{res['cpu_seconds']:.0f} cpu s", flush=True)


def test_images(data, n=60):
    "Up to `n` images that training has not seen, evenly spaced, their masks as arrays of classes, label set"
    _, folder, masks, labels = source(data, "test" if data == "camvid" else "val")
    files = image_files(folder)
    files, of = files[::max(1, len(files)//n)], match_masks(files, folder, masks)
    return files, [labels.map(Image.open(of[f])) for f in files], labels


def painted(data, row, seed, size, files, truth, labels):
    "Class of every pixel by Hungarian matching over these images, for each of them, with the network that was kept; -1: none"
    seg = Segmenter.load(path(data, row, seed, size).with_suffix(".safetensors"))
    found = [seg(f).clusters for f in files]
    classes = evaluate(found, truth, labels=labels, n_clusters=len(labels)).classes()[0].numpy()
    return [classes[o] for o in found]


def table():
    "Means over seeds of all that has been measured on labelled images outside the test"
    groups = {}
    for f in sorted((HERE/"study").glob("*.json")):
        o = json.loads(f.read_text())
        for s in ("val", "val_raw", "test"):
            if s in o: groups.setdefault((o["data"], o["row"]+("" if o.get("backbone", LITE0) == LITE0 else f" {o['backbone']}"), o["size"], s), []).append((o[s], o["cpu_seconds"]))
    print(f"{'data':8s} {'row':14s} {'px':>4s} {'images':8s} seeds accuracy mIoU border position (truth) excess  cpu s")
    for (data, row, size, s), rs in groups.items():
        mean = lambda f: np.mean([f(o) for o, _ in rs])
        shape = all(o.get("shape") for o, _ in rs)
        looks = "{:6.1f} {:8.1f} {:7.1f} {:6.1f}".format(*(100*mean(lambda o: o["shape"][k]) for k in ("border", "position", "truth", "excess"))) if shape else "     -        -       -      -"
        print(f"{Path(data).name:8s} {row:14s} {size:4d} {s:8s} {len(rs):5d} {100*mean(lambda o: o['acc']):8.1f} {100*mean(lambda o: o['miou']):4.1f} {looks} {np.mean([c for _, c in rs]):6.0f}")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("rows", nargs="*", help=f"recipes: {' '.join(ROWS)}; default all")
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    p.add_argument("--data", nargs="+", default=["camvid" if CAMVID.is_dir() else "toy"], help="camvid, toy, the name of a folder in DOMAINS, or a folder in a layout that open_dataset knows")
    p.add_argument("--table", action="store_true", help="print what has been measured, and run nothing")
    p.add_argument("--epochs", type=int, default=6)
    p.add_argument("--size", type=int, default=320, help="short side of the images, in pixels")
    p.add_argument("--backbone", default=LITE0, help="a torchvision ResNet or any timm model")
    p.add_argument("--weights", help="file with its weights, instead of a download")
    p.add_argument("--watch", action="store_true", help="score every epoch by the masks of val")
    p.add_argument("--test", action="store_true", help="score the test images as well")
    p.add_argument("--again", action="store_true", help="score the networks that were kept once more")
    a = p.parse_args()
    if a.table: return table()
    for d in a.data:
        if d not in ("camvid", "toy", *domains()) and not Path(d).is_dir(): p.error(f"--data {d}: camvid, toy, {', '.join(domains())}{', ' if domains() else ''}or a folder")
    for r in a.rows:
        if r not in ROWS: p.error(f"no recipe {r!r}: there are {', '.join(ROWS)}")
    for seed in a.seeds:
        for data in a.data:
            for row in a.rows or ROWS: run(data, row, seed, a.epochs, a.size, a.test, a.watch, a.backbone, a.weights, a.again)


if __name__ == "__main__": main()
