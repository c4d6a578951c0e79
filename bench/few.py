"""Few photos, and few clusters: is a training of six epochs too short, does it help? Trains on some images of a set, beside the start.

    python bench/few.py msrc21 --images 64 --epochs 0 6 24    # a line of bench/few.jsonl for each; what is there is not run again
    python bench/few.py animals --images 83 --epochs 0 6      # photos of msrc21 with one kind of animal: two clusters, ground and animal

Scored on up to 40 images of the test (of the animals: of all), three draws, as bench/study.py does, whose sets and folders it uses.
"""
import argparse, json, random, shutil, tempfile, time
from pathlib import Path
import numpy as np
from PIL import Image
from study import LITE0, image_files, match_masks, picie_dls, picie_learner, seed_all, source

OUT = Path(__file__).with_name("few.jsonl")

def animals(folder):
    "Photos of msrc21 with one kind of animal, and {photo: mask of ground 0 and animal 1}"
    mask_of = {}
    for split in ("train", "val"):
        _, images, masks, labels = source("msrc21", split)
        ids = [labels.names.index(o) for o in ("cow", "sheep", "bird", "cat", "dog")]
        for f, mask in match_masks(image_files(images), images, masks).items():
            y = labels.map(Image.open(mask))
            animal = np.isin(y, ids)
            if len(np.intersect1d(y, ids)) != 1 or animal.mean() < .03: continue
            mask_of[f] = folder/f"{Path(f).stem}.png"
            Image.fromarray(np.where(y == 255, 255, animal).astype(np.uint8)).save(mask_of[f])
    return list(mask_of), mask_of

def photos(data, folder):
    "Photos to train on, photos to score, masks of these, names of the classes"
    if data == "animals": files, mask_of = animals(folder); return list(files), files, mask_of, ["ground", "animal"]
    train, images, masks, labels = source(data, "val")
    test = image_files(images)
    return image_files(train), test, match_masks(test, images, masks), labels

def run(data, n, seed, epochs, folder):
    files, test, mask_of, labels = photos(data, folder)
    random.Random(seed).shuffle(files)
    test = test[::max(1, len(test)//40)]
    parts = [folder/o for o in ("train", "test", "masks")]
    for part, fs in zip(parts, (files[:n], test, [mask_of[f] for f in test])):
        part.mkdir()
        for f in fs: shutil.copy(f, part) # no links: behind them, `picie_dls` would know the animals that it scores, and not train on them
    seed_all(seed)
    dls = picie_dls(parts[0], size=320, bs=16, valid=parts[1], masks=parts[2], labels=labels, seed=seed)
    learn, start = picie_learner(dls, LITE0, len(labels)), time.perf_counter()
    if epochs:
        learn.metrics = learn.metrics[:0]
        with learn.no_bar(), learn.no_logging(): learn.fit(epochs)
    seconds = time.perf_counter()-start
    seed_all(seed)
    s = learn.score(draws=learn.cluster.fresh(3))
    return dict(data=data, images=n, seed=seed, epochs=epochs, steps=learn.cluster.steps, acc=s.acc, miou=s.miou, border=s.shape["border"], seconds=seconds)


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("data", nargs="+")
    p.add_argument("--images", type=int, default=8)
    p.add_argument("--epochs", type=int, nargs="+", default=[0, 6, 48])
    p.add_argument("--seed", type=int, default=0)
    args = p.parse_args()
    for data in args.data:
        for epochs in args.epochs:
            done = [json.loads(o) for o in OUT.read_text().splitlines()] if OUT.exists() else []
            if (data, args.images, args.seed, epochs) in {(o["data"], o["images"], o["seed"], o["epochs"]) for o in done}: continue
            with tempfile.TemporaryDirectory() as tmp: res = run(data, args.images, args.seed, epochs, Path(tmp))
            with OUT.open("a") as f: f.write(json.dumps(res)+"\n")
            print(f"{data:8s} {res['images']:4d} images, {epochs:2d} epochs, {res['steps']:3d} steps: {100*res['acc']:.1f}/{100*res['miou']:.1f}, border {100*res['border']:.0f}", flush=True)
