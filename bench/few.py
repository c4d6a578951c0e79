"""Few photos: is a training of six epochs too short? Trains on some images of a set, six epochs and more, beside the start.

    python bench/few.py msrc21 --images 64 --epochs 0 6 24    # a line of bench/few.jsonl for each; what is there is not run again

Scored on up to 40 images of the test, three draws, as bench/study.py does, whose sets and folders it uses.
"""
import argparse, json, random, tempfile, time
from pathlib import Path
from study import LITE0, image_files, match_masks, picie_dls, picie_learner, seed_all, source

OUT = Path(__file__).with_name("few.jsonl")

def run(data, n, seed, epochs, folder):
    train, images, masks, labels = source(data, "val")
    files, test = image_files(train), image_files(images)
    random.Random(seed).shuffle(files)
    test = test[::max(1, len(test)//40)]
    mask_of = match_masks(test, images, masks)
    parts = [folder/o for o in ("train", "test", "masks")]
    for part, fs in zip(parts, (files[:n], test, [mask_of[f] for f in test])):
        part.mkdir()
        for f in fs: (part/Path(f).name).symlink_to(Path(f).resolve())
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
