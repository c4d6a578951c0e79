"""Measure on one GPU what a training, K-means and a segmenter cost there.

    python bench/gpu.py            # everything, ten minutes or more: prints a table, writes bench/gpu.json
    python bench/gpu.py kmeans     # only the groups named: train steps kmeans segment
    python bench/gpu.py --tiny     # a few small images, to see on any machine that the script runs; writes nothing

Times are medians of repetitions in turn, of drawn scenes in files; backbones have random weights, which cost the same. The page
nbs/explanations/speed.ipynb shows K-means.
"""
import argparse, json, os, statistics, tempfile, time, warnings
from pathlib import Path
warnings.filterwarnings("ignore")
import torch, torch.nn.functional as F
from fastai.torch_core import default_device, set_seed
from picie_nb.all import *
import run as bench # its clock and its epoch

HERE, TINY, DEVICE, ROWS = Path(__file__).resolve().parent, False, default_device(), {}
NETS, SIZES = dict(lite0="tf_efficientnet_lite0", resnet50="resnet50", vits="vit_small_patch14_dinov2"), (224, 320, 448)
FORMATS = (None, "fp16", "bf16") if DEVICE.type == "cuda" else (None, "bf16")


def medians(fs, reps=5):
    "Median seconds of each function in {name: function}, in turn, after one warm-up"
    return {k: statistics.median(v) for k, v in bench.side_by_side(fs, 1 if TINY else reps).items()}


def put(group, name, **values):
    ROWS.setdefault(group, {})[name] = {k: round(v, 4) for k, v in values.items()}
    print(f"{group:8s} {name:24s}", "  ".join(f"{k} {v:.4g}" for k, v in values.items()), flush=True)


def photos(n, size):
    "A folder of `n` drawn scenes as files"
    root = Path(tempfile.mkdtemp())
    ToyScenes(n=n, size=size, seed=0).save(root)
    return root/"images"


def learner(files, net, size, dtype=None, **kw):
    set_seed(0)
    dls = picie_dls(files, size=size, bs=16, valid=.1, **kw)
    weights = create_backbone(NETS[net], pretrained=False).state_dict()
    learn = picie_learner(dls, NETS[net], 27, weights=weights, path=tempfile.mkdtemp())
    if dtype: getattr(learn, f"to_{dtype}")()
    learn._do_epoch_validate = lambda *a, **k: None
    return learn


def step(learn, xs, dtype=None):
    "Teacher, forward, backward and optimiser on images in memory"
    plain, *pair = xs
    with torch.autocast(DEVICE.type, dict(fp16=torch.float16, bf16=torch.bfloat16).get(dtype), enabled=bool(dtype)):
        with torch.no_grad(): learn.cluster.snapshot(plain)
        sum(z.float().pow(2).mean() for z in learn.model(*pair)).backward()
    learn.opt.step()
    learn.opt.zero_grad()


def images(size, bs=16, scales=(1, .75, .75)):
    return [torch.rand(bs, 3, round(size*s), round(size*s), device=DEVICE) for s in scales]


def train():
    "Epochs of the default recipe over the bare work; how long images are waited for"
    n = 32 if TINY else 256
    files = photos(n, 64 if TINY else 448)
    for net, dtype in ((n, d) for n in NETS for d in (None, "bf16")):
        size = 64 if TINY else 320
        learn = learner(files, net, size, dtype)
        cb, epoch = learn.cluster, bench.epoch(learn)
        def first(): # with its K-means
            cb.snapshot = None
            epoch()
        first()
        if DEVICE.type == "cuda": torch.cuda.reset_peak_memory_stats()
        steps, xs = len(learn.dls.train), images(size, scales=(1, cb.view_scale, cb.view_scale))
        def floor(): [step(learn, xs, dtype) for _ in range(steps)]
        t = medians(dict(later=epoch, first=first, floor=floor, loader=lambda: [0 for _ in learn.dls.train]), 3)
        put("train", f"{net} {size} {dtype or 'fp32'}", images_per_s=len(learn.dls.train_ds)/t["later"],
            over_floor=t["later"]/t["floor"], first_over_floor=t["first"]/t["floor"], loader_share=t["loader"]/t["later"],
            gb=torch.cuda.max_memory_allocated()/1e9 if DEVICE.type == "cuda" else 0)


def steps():
    "Bare steps: number formats, layout of memory, compiler"
    files = photos(32, 64)
    for net in NETS:
        for size in (64,) if TINY else SIZES:
            learn = learner(files, net, 64)
            with learn.no_bar(), learn.no_logging(): learn.fit(1) # makes teacher and optimiser
            xs = images(size)
            t = medians({d or "fp32": (lambda d=d: [step(learn, xs, d) for _ in range(4)]) for d in FORMATS})
            put("steps", f"{net} {size}", images_per_s=64/t["fp32"], **{f"{d}_over_fp32": t[d]/t["fp32"] for d in FORMATS if d})
        if TINY: continue
        xs = images(320)
        other = PiCIENet(create_backbone(NETS[net], pretrained=False)).to(DEVICE).eval()
        plain = PiCIENet(create_backbone(NETS[net], pretrained=False)).to(DEVICE).eval().to(memory_format=torch.contiguous_format)
        def run(m, dtype=torch.bfloat16):
            with torch.autocast(DEVICE.type, dtype): sum(z.float().pow(2).mean() for z in m(*xs[1:])).backward()
        t = medians(dict(default=lambda: run(other), contiguous=lambda: run(plain)))
        put("steps", f"{net} 320 layout", contiguous_over_default=t["contiguous"]/t["default"])
        other.compile()
        first = bench.clock(lambda: run(other))
        t = medians(dict(compiled=lambda: run(other), eager=lambda: run(plain)))
        put("steps", f"{net} 320 compiled", seconds=first, over_eager=t["compiled"]/t["eager"])


def kmeans_engines():
    "K-means of both engines, assignment over the product alone"
    n = 20_000 if TINY else 800_000
    z = F.normalize(torch.randn(n, 128, device=DEVICE)+3*torch.randn(200, 128, device=DEVICE)[torch.randint(200, (n,), device=DEVICE)], dim=1)
    for k in (27, 100) if TINY else (27, 100, 1000):
        mu, end = z[torch.randperm(n, device=DEVICE)[:k]].clone(), {}
        def fit(engine): end[engine] = kmeans(z, k, init=mu, engine=engine)
        t = medians({e: (lambda e=e: fit(e)) for e in ("torch", "faiss")}, 3)
        put("kmeans", f"K={k}", torch_seconds=t["torch"], faiss_seconds=t["faiss"], torch_over_faiss=t["torch"]/t["faiss"],
            objective_torch_over_faiss=end["torch"].objective/end["faiss"].objective)
    x = F.normalize(torch.randn(16, 128, 80, 80, device=DEVICE), dim=1)
    for k in (27, 100):
        c = F.normalize(torch.randn(k, 128, device=DEVICE), dim=1)
        t = medians(dict(assign=lambda: [assign(x, c) for _ in range(20)], product=lambda: [F.conv2d(x, c[:, :, None, None]) for _ in range(20)]))
        put("kmeans", f"assign {k}", over_product=t["assign"]/t["product"])


def segment():
    "Photos from files through a segmenter, one by one and in batches, over the bare forward"
    n = 8 if TINY else 128
    files = image_files(photos(n, 64 if TINY else 448))
    for net in NETS:
        size = 64 if TINY else 320
        learn = learner(files, net, size)
        learn.cluster.fit_readout()
        seg = learn.segmenter()
        rough = seg._with(refine=0)
        x = torch.rand(1, 3, size, size, device=seg.device)
        @torch.no_grad()
        def bare(): [(open_image(f), seg.net(x)) for f in files]
        t = medians(dict(refined=lambda: [seg(f) for f in files], unrefined=lambda: [rough(f) for f in files], bare=bare,
                         stream=lambda: [0 for _ in seg.stream(files, bs=16, progress=False)]), 3)
        put("segment", f"{net} {size}", images_per_s=n/t["refined"], streamed_per_s=n/t["stream"],
            over_bare=t["refined"]/t["bare"], unrefined_over_bare=t["unrefined"]/t["bare"])


GROUPS = dict(train=train, steps=steps, kmeans=kmeans_engines, segment=segment)


def main():
    global TINY
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("groups", nargs="*", help=f"{' '.join(GROUPS)}; default all")
    p.add_argument("--tiny", action="store_true", help="a few small images, nothing is written")
    a = p.parse_args()
    TINY, out = a.tiny, HERE/"gpu.json"
    if not TINY and DEVICE.type != "cuda": p.error("no GPU here; --tiny runs on any machine")
    old = json.loads(out.read_text()) if out.exists() else {}
    name = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "CPU"
    print(name, torch.__version__, flush=True)
    for g in a.groups or GROUPS:
        start = time.perf_counter()
        GROUPS[g]()
        ROWS[g]["minutes"] = dict(minutes=round((time.perf_counter()-start)/60, 2))
        if not TINY: out.write_text(json.dumps({**old, "machine": dict(gpu=name, cores=os.cpu_count(), torch=torch.__version__), **ROWS}, indent=1)+"\n")


if __name__ == "__main__": main()
