"""Few photos, or two clusters: does training help there? Trains on some images of a set for six epochs, beside the start.

    python bench/few.py msrc21 toy --images 8 --seeds 0 1 2    # lines of bench/few.jsonl; what is there is not run again
    python bench/few.py things --images 100                    # photos of msrc21 with such things: two clusters, they and the ground
    python bench/few.py animals --images 83                    # likewise; there are no more
    python bench/few.py town pets meadow water people          # photos of msrc21 with nothing but such classes, all of them
    python bench/few.py dubai toy --images 64 --smooth 20      # features take a side before K-means

Lines with "before" were measured when an eighth of a training on eight photos was kept; now nothing is, and the network is its start to the bit.
Lines with "centre": 0 were measured when two clusters were found among features that had kept the mean of their image.
Scored on up to 40 images of the test (where there are two clusters: of all), three draws, as bench/study.py does, whose sets and folders it uses.
"""
import argparse, json, random, shutil, tempfile, time
from pathlib import Path
import numpy as np
from PIL import Image
from fastai.torch_core import set_seed
from study import LITE0, image_files, match_masks, picie_dls, picie_learner, source

OUT = Path(__file__).with_name("few.jsonl")

TWO = dict(animals="cow sheep bird cat dog", things="aeroplane car bicycle flower sign chair boat face body")

SOME = dict(town="building tree sky road car bicycle sign body grass", pets="cat dog road grass building chair bird", meadow="grass cow sheep tree sky bird",
            water="water boat bird sky building grass tree", people="face body book building grass tree")

def masked():
    "Photos of msrc21, all of them, and their masks as arrays"
    for split in ("train", "val"):
        _, images, masks, labels = source("msrc21", split)
        for f, mask in match_masks(image_files(images), images, masks).items(): yield f, labels.map(Image.open(mask)), labels.names

def some_classes(folder, names):
    "Photos of msrc21 that show these classes, other pixels 2 in 100 at most; {photo: mask}; the names of the classes that three photos show"
    mask_of, maps, names = {}, {}, names.split()
    for f, y, all_names in masked():
        if np.isin(y[y != 255], [all_names.index(o) for o in names]).mean() > .98: maps[f] = y
    present = [i for i in range(len(all_names)) if sum((y == i).mean() > .01 for y in maps.values()) > 2]
    number = np.full(256, 255, np.uint8)
    number[present] = range(len(present))
    for f, y in maps.items():
        mask_of[f] = folder/f"{Path(f).stem}.png"
        Image.fromarray(number[y]).save(mask_of[f])
    return list(mask_of), mask_of, [all_names[i] for i in present]

def two_classes(folder, names):
    "Photos of msrc21 that show some of these things, and {photo: mask of ground 0 and things 1}"
    mask_of = {}
    for f, y, all_names in masked():
        thing = np.isin(y, [all_names.index(o) for o in names.split()])
        if thing.mean() < .03: continue
        mask_of[f] = folder/f"{Path(f).stem}.png"
        Image.fromarray(np.where(y == 255, 255, thing).astype(np.uint8)).save(mask_of[f])
    return list(mask_of), mask_of

def photos(data, folder):
    "Photos to train on, photos to score, masks of these, names of the classes"
    if data in TWO: files, mask_of = two_classes(folder, TWO[data]); return list(files), files, mask_of, ["ground", data]
    if data in SOME: files, mask_of, names = some_classes(folder, SOME[data]); return list(files), files, mask_of, names
    train, images, masks, labels = source(data, "val")
    test = image_files(images)
    return image_files(train), test, match_masks(test, images, masks), labels

def run(data, n, seed, epochs, labels_per_k, smooth, folder):
    files, test, mask_of, labels = photos(data, folder)
    random.Random(seed).shuffle(files)
    if data not in SOME: test = test[::max(1, len(test)//40)]
    parts = [folder/o for o in ("train", "test", "masks")]
    for part, fs in zip(parts, (files[:n or None], test, [mask_of[f] for f in test])):
        part.mkdir()
        for f in fs: shutil.copy(f, part) # no links: behind them, `picie_dls` would know the animals that it scores, and not train on them
    set_seed(seed)
    dls = picie_dls(parts[0], size=320, bs=16, valid=parts[1], masks=parts[2], labels=labels, seed=seed)
    learn, start = picie_learner(dls, LITE0, len(labels), overcluster=labels_per_k, smooth=smooth), time.perf_counter()
    if epochs:
        learn.metrics = learn.metrics[:0]
        with learn.no_bar(), learn.no_logging(): learn.fit(epochs)
    seconds = time.perf_counter()-start
    set_seed(seed)
    s = learn.score(draws=learn.cluster.fresh(3))
    return dict(data=data, images=n, photos=len(files[:n or None]), clusters=len(labels), seed=seed, epochs=epochs, overcluster=labels_per_k, smooth=smooth, steps=learn.cluster.steps, acc=s.acc, miou=s.miou, border=s.shape["border"], seconds=seconds)


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("data", nargs="+")
    p.add_argument("--images", type=int, default=8)
    p.add_argument("--epochs", type=int, nargs="+", default=[0, 6])
    p.add_argument("--overcluster", type=float, help="labels that are learned, as a multiple of K, in place of the default")
    p.add_argument("--smooth", type=int, default=0, help="rounds in which features take a side before K-means")
    p.add_argument("--seeds", type=int, nargs="+", default=[0])
    args = p.parse_args()
    for data, seed in ((d, s) for s in args.seeds for d in args.data):
        for epochs in args.epochs:
            n = 0 if data in SOME else args.images # 0: all
            done = [json.loads(o) for o in OUT.read_text().splitlines()] if OUT.exists() else []
            this = dict(data=data, images=n, seed=seed, epochs=epochs, overcluster=args.overcluster, smooth=args.smooth)
            if any(this == {k: o.get(k) for k in this} for o in ({"smooth": 0, **o} for o in done) if not o.get("before") and o.get("centre") != 0): continue
            with tempfile.TemporaryDirectory() as tmp: res = run(*this.values(), Path(tmp))
            with OUT.open("a") as f: f.write(json.dumps(res)+"\n")
            print(f"{data:8s} {res['images'] or 'all':>4} images, {epochs:2d} epochs, {res['steps']:3d} steps, smooth {args.smooth:2d}: {100*res['acc']:.1f}/{100*res['miou']:.1f}, border {100*res['border']:.0f}", flush=True)
