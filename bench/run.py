"""Measure on this machine what the library promises about speed, as ratios within one run.

    make bench                     # everything: prints a table, writes bench/report.json and bench/details.json
    python bench/run.py kmeans     # only the groups named: recipe users epochs presets levers precision kmeans small memory imports processes
                                   # growth, and compile, which takes minutes and is left out otherwise

Each figure is the median of interleaved repetitions (of training in `users` one run), so that a machine whose speed drifts slows both sides alike. report.json
is one flat object, name: number; details.json holds the spread of each figure, the machine and the growth curves. The page
nbs/explanations/speed.ipynb shows both. CAMVID names the folder with CamVid's images/{train,val} and labels/val; without it,
scenes are drawn.
"""
import json, os, platform, statistics, subprocess, sys, tempfile, time, warnings
from pathlib import Path
warnings.filterwarnings("ignore")
import numpy as np, torch, torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.torch_core import set_seed
from picie_nb.all import *
from picie_nb.backbone import efficientnet_lite0_weights

HERE, REPS, SIZE = Path(__file__).resolve().parent, 5, 160
DATA = Path(os.environ.get("CAMVID", HERE.parent.parent/"shared/data/camvid"))
FEW = dict(labels="snapshot", view_scale=1, average=1, overcluster=1, freeze=0, n_images=64, n_pixels=None)  # K-means on so few images; three seeds on CamVid score as with all of them
FEWEST = dict(view_scale=1, average=1, overcluster=1, freeze=0, n_images=32, n_pixels=400)  # cheaper still, but less steady
REPORT, DETAILS = {}, {"spread": {}, "growth": {}}


def clock(f):
    sync = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None # work on a GPU goes on after a call
    sync()
    start = time.perf_counter()
    f()
    sync()
    return time.perf_counter()-start


def side_by_side(fs, reps=REPS, warm=True):
    "Seconds of each function in {name: function}, `reps` times in turn"
    if warm: [f() for f in fs.values()]
    times = {k: [] for k in fs}
    for _ in range(reps):
        for k, f in fs.items(): times[k].append(clock(f))
    return times


def put(name, values):
    "Report the median of `values`, keep lowest and highest"
    values = values if isinstance(values, (list, tuple)) else [values]
    REPORT[name] = round(statistics.median(values), 4)
    DETAILS["spread"][name] = [round(min(values), 4), round(max(values), 4), len(values)]
    print(f"{name:>28} {REPORT[name]:9.3f}   ({min(values):.3f} - {max(values):.3f})", flush=True)


def put_ratio(name, times, a, b): put(name, [x/y for x, y in zip(times[a], times[b])])


def ratio(name, a, b, reps=REPS): put_ratio(name, side_by_side({"a": a, "b": b}, reps), "a", "b")


# -- training ----------------------------------------------------------------------------------------------------------
def data(n=None, size=SIZE, **kw):
    "DataLoaders of `n` training images, with masks to validate on"
    if DATA.is_dir():
        files = image_files(DATA/"images/train")
        return picie_dls(files[:n] if n else files, size=size, bs=16, valid=DATA/"images/val", masks=DATA/"labels/val",
                         labels="camvid11", **kw)
    return ToyScenes(n=(n or 367)+32, size=2*size, seed=0).dls(bs=16, size=size, valid=32/((n or 367)+32), **kw)


class Times(Callback):
    "Seconds of the training part of an epoch, and of parts of it"
    order = -99
    def __init__(self): self.parts = {}
    def before_train(self): self.start = time.perf_counter()
    def after_train(self): self.parts["epoch"] = time.perf_counter()-self.start


def learner(dls, k=11, **kw):
    set_seed(0)
    learn = picie_learner(dls, "tf_efficientnet_lite0", k, weights=efficientnet_lite0_weights(), path=tempfile.mkdtemp(), **kw)
    learn._do_epoch_validate = lambda *a, **k: None
    return learn


def epoch(learn):
    "A function that trains for one epoch and returns the seconds of its parts"
    cb = learn.cluster
    def timed(f, name, parts):
        def g(*a, **k):
            start = time.perf_counter()
            try: return f(*a, **k)
            finally: parts[name] = parts.get(name, 0)+time.perf_counter()-start
        return g
    def run():
        times = Times()
        cb.view, cb.cluster = (timed(getattr(type(cb), o).__get__(cb), o, times.parts) for o in ("view", "cluster"))
        with learn.no_bar(), learn.no_logging(): learn.fit(1, cbs=times)
        return times.parts
    return run


def floor(learn, n, size=SIZE):
    """A function that only runs forward, backward and optimiser on `n` pairs of images held in memory, and a fixed teacher on plain ones. It moves the weights,
    so that `learn` is not one whose epochs are measured"""
    with learn.no_bar(), learn.no_logging(): learn.fit(1) # makes optimiser and teacher
    cb, side = learn.cluster, round(size*learn.cluster.view_scale)
    teacher = cb.snapshot if cb.labels == "start" else None
    batches = [[torch.rand(min(16, n-i), 3, s, s) for s in (size, side, side)] for i in range(0, n, 16)]
    def run():
        start = time.perf_counter()
        with reuse_memory():
            for plain, *pair in batches:
                if teacher:
                    with torch.no_grad(): teacher(plain)
                sum(z.pow(2).mean() for z in learn.model(*pair)).backward()
                learn.opt.step(); learn.opt.zero_grad()
        return dict(epoch=time.perf_counter()-start)
    return run


def in_turn(runs, reps=REPS):
    "Parts of every run, `reps` times in turn after one warm-up"
    for r in runs.values(): r()
    res = {k: [] for k in runs}
    for _ in range(reps):
        for k, r in runs.items(): res[k].append(r())
    return res


def over(res, a, b): return [x["epoch"]/y["epoch"] for x, y in zip(res[a], res[b])]


def written(): return int(Path("/proc/self/io").read_text().split("wchar:")[1].split()[0])


def epochs():
    dls = data()
    a, b = learner(dls, labels="current", **FEWEST), learner(dls, **FEW)
    runs = dict(current=epoch(a), snapshot=epoch(b))
    res = in_turn({"floor": floor(learner(dls, labels="current", **FEWEST), len(dls.train_ds)), **runs})
    put("epoch_over_floor", over(res, "current", "floor"))
    put("epoch_over_floor_snapshot", over(res, "snapshot", "floor"))
    put("views_share", [r["view"]/r["epoch"] for r in res["current"]])
    put("cluster_share", [r["cluster"]/r["epoch"] for r in res["current"]])
    put("snapshot_cluster_share", [r["cluster"]/r["epoch"] for r in res["snapshot"]])
    if sys.platform == "linux":  # all that this process writes in an epoch, wherever it writes it
        start = written()
        runs["snapshot"]()
        put("label_bytes", written()-start)


def presets():
    dls, n = data(96), 96
    published = data(n, crop="center")
    a, b, c, d = learner(dls), learner(published, preset="official"), learner(dls), learner(published, preset="official")
    run = epoch(a)
    def first(): # with its K-means, which later epochs of a training do without
        a.cluster.snapshot = None
        return run()
    res = in_turn(dict(improved=first, official=epoch(b), floor=floor(c, n), official_floor=floor(d, n)))
    put("official_over_improved", over(res, "official", "improved"))
    put("improved_over_floor", over(res, "improved", "floor"))
    put("official_over_floor", over(res, "official", "official_floor"))
    put("improved_cluster_share", [r["cluster"]/r["epoch"] for r in res["improved"]])
    put("official_cluster_share", [r["cluster"]/r["epoch"] for r in res["official"]])


def levers():
    "What made it cheap, each with and without"
    dls = data(96)
    x = next(iter(dls.train))[0].as_subclass(torch.Tensor)[:16]
    xs, net = [F.interpolate(x, (SIZE, SIZE)) for _ in range(2)], learner(dls).model.eval()
    by_channel = PiCIENet(create_backbone("tf_efficientnet_lite0", pretrained=False)).eval().to(memory_format=torch.contiguous_format)
    def train(net, *batches): sum(z.pow(2).mean() for z in net(*batches)).backward()
    def apart(): train(net, xs[0]); train(net, xs[1])
    with reuse_memory():
        ratio("channels_last_over_default", lambda: train(net, *xs), lambda: train(by_channel, *xs))
        ratio("views_together_over_apart", lambda: train(net, *xs), apart)
        quick, no_grad = folded(net), torch.no_grad()
        ratio("folded_over_whole", no_grad(lambda: quick(xs[0])), no_grad(lambda: net(xs[0])), 15)
    def step(): train(net, *xs)
    def reusing():
        with reuse_memory(): [step() for _ in range(3)]
    ratio("memory_reused_over_returned", reusing, lambda: [step() for _ in range(3)])
    ratio("images_kept_over_read", lambda: [0 for _ in dls.train], lambda c=data(96, cache_gb=0): [0 for _ in c.train])


def precision():
    dls = data(64)
    pair = {o: learner(dls) for o in ("fp32", "bf16")}
    pair["bf16"].to_bf16()
    for l in pair.values():
        del l._do_epoch_validate
        with l.no_bar(), l.no_logging(): l.fit(1)
    if hasattr(dls, "labels"): put("bf16_miou_difference", [100*(pair["bf16"].score(3).miou-pair["fp32"].score(3).miou)])
    for l in pair.values(): l._do_epoch_validate = lambda *a, **k: None
    res = in_turn({k: epoch(l) for k, l in pair.items()})
    put("bf16_over_fp32", over(res, "bf16", "fp32"))


@torch.no_grad()
def score_batches(net, mu, batches, classes):
    cm = ConfusionMatrix(11, len(classes), classes.ignore)
    for x, y in batches: cm.update(upsampled_argmax(scores(F.normalize(net(x), dim=1), mu, "dot"), y.shape[-2:]), y)
    return score(cm)


# -- the default recipe, at its size -----------------------------------------------------------------------------------
def recipe():
    "First and later epochs of the default preset at 320 pixels"
    n, reps = 64, 3
    learn, other = (learner(data(n, size=320)) for _ in range(2))
    cb, run = learn.cluster, epoch(learn)
    def first(): # with its K-means
        cb.snapshot = None
        return run()
    first()
    res = in_turn(dict(later=run, first=first, floor=floor(other, n, 320)), reps)
    put("default_over_floor", over(res, "later", "floor"))
    put("default_first_over_floor", over(res, "first", "floor"))
    seg = learn.segmenter()
    files = image_files(DATA/"images/val")[:48] if DATA.is_dir() else [Path(f) for f in learn.dls.valid_ds.items]
    from picie_nb.segmenter import _tensor
    xs = [_tensor(open_image(f), seg.size) for f in files]
    @torch.no_grad()
    def forward(): [(open_image(f), seg.net(x)) for f, x in zip(files, xs)]
    rough = seg._with(refine=0)
    def folder(s): return lambda: list(s.stream(files, progress=False))
    res = side_by_side(dict(refined=folder(seg), rough=folder(rough), forward=forward), reps)
    put_ratio("default_segment_over_forward", res, "refined", "forward")
    put_ratio("default_segment_unrefined_over_forward", res, "rough", "forward")
    batches = [tuple(o.as_subclass(torch.Tensor) for o in b) for b, _ in zip(learn.dls.valid, range(2))]
    def scored(): return score_batches(seg.net, cb.mu_eval, batches, learn.classes)
    @torch.no_grad()
    def only(): [seg.net(x) for x, _ in batches]
    with reuse_memory(): ratio("default_eval_over_forward", scored, only, reps)


def folder(n):
    "`n` photos, their masks as arrays of classes, label set"
    if DATA.is_dir():
        images, masks, labels = DATA/"images/train", DATA/"labels/train", label_set("camvid11")
    else:
        scenes, root = ToyScenes(n=n, size=320, seed=0), Path(tempfile.mkdtemp())
        scenes.save(root)
        images, masks, labels = root/"images", root/"masks", scenes.labels
    files = image_files(images)
    files = files[::max(1, len(files)//n)][:n]
    of = match_masks(files, images, masks)
    from PIL import Image
    return files, [labels.map(Image.open(of[f])) for f in files], labels


def users():
    "Seconds from 100 photos to their first segments: twenty lines with a backbone and scikit-learn, this library untrained and trained"
    from sklearn.cluster import KMeans
    files, truth, labels = folder(100)
    k = len(labels)
    def script(): # what one writes without a library
        net = create_backbone("tf_efficientnet_lite0", weights=efficientnet_lite0_weights()).eval()
        zs, sizes = [], []
        with torch.no_grad():
            for f in files:
                im = open_image(f)
                sizes.append(im.size[::-1])
                s = 320/min(im.size)
                im = im.resize([round(o*s/32)*32 for o in im.size])
                zs.append(net(torch.from_numpy(np.array(im)).permute(2, 0, 1)[None].float()/255)[-2])
        rows = [F.normalize(z[0].flatten(1), dim=0).T.numpy() for z in zs]
        km = KMeans(k, n_init=1, random_state=0).fit(np.concatenate([r[::4] for r in rows]))
        maps = [torch.from_numpy(km.predict(r)).view(1, 1, *z.shape[-2:]).float() for r, z in zip(rows, zs)]
        return [F.interpolate(m, s, mode="nearest")[0, 0].long().numpy() for m, s in zip(maps, sizes)]
    def ours(epochs):
        set_seed(0)
        learn = picie_learner(picie_dls(files, size=320, bs=16, valid=.1), "tf_efficientnet_lite0", k, weights=efficientnet_lite0_weights(), path=tempfile.mkdtemp())
        with learn.no_bar(), learn.no_logging():
            if epochs: learn.fit(epochs)
        return [s.clusters for s in learn.segmenter().stream(files, progress=False)]
    found = {}
    def keep(name, f): return lambda: found.update({name: f()})
    times = side_by_side(dict(script=keep("script", script), start=keep("start", lambda: ours(0))), 3) # after a first, for what is imported
    times["trained"] = [clock(keep("trained", lambda: ours(6)))]
    put_ratio("start_over_script", times, "start", "script")
    times = {n: statistics.median(t) for n, t in times.items()}
    put("trained_over_script", times["trained"]/times["script"])
    for name, maps in found.items():
        s = evaluate(maps, truth, labels=labels, n_clusters=k).score()
        put(f"{name}_miou", 100*s.miou)
        put(f"{name}_accuracy", 100*s.acc)
    DETAILS["seconds_for_100_photos"] = {n: round(t, 1) for n, t in times.items()}


# -- K-means -----------------------------------------------------------------------------------------------------------
def features(n=500_000):
    "Features of training images, (n,128)"
    learn = learner(data(), n_images=None, n_pixels=1500)
    z = torch.cat([learn.cluster.sample(learn.model.eval(), augment=False)[0] for _ in range(1 if DATA.is_dir() else 2)])
    return z[torch.randperm(len(z))[:n]].contiguous()


def kmeans_engines():
    from sklearn.cluster import MiniBatchKMeans as Sklearn
    z = features()
    for k in (27, 100):
        start, end = z[torch.randperm(len(z))[:k]].clone(), {}
        def run(engine): end[engine] = kmeans(z, k, init=start, engine=engine)
        def sk(batch, iters):
            km = Sklearn(k, init=start.numpy(), n_init=1, batch_size=batch, max_iter=iters, max_no_improvement=None, tol=0.).fit(z.numpy())
            end["sklearn"] = -scores(z, torch.from_numpy(km.cluster_centers_)).amax(1).mean().item()
        run("auto")
        goal, settings = end["auto"].objective, None
        for settings in ((1024, 1), (4096, 1), (4096, 2), (16384, 2), (16384, 4), (65536, 8), (65536, 16)):  # cheapest that gets as far
            sk(*settings)
            if end["sklearn"] <= 1.01*goal: break
        else: print(f"scikit-learn gets to {end['sklearn']/goal:.3f} of our objective at best")
        res = side_by_side(dict(auto=lambda: run("auto"), faiss=lambda: run("faiss"), sklearn=lambda: sk(*settings)), warm=False)
        put_ratio(f"kmeans_vs_faiss_{k}", res, "faiss", "auto")
        put_ratio(f"kmeans_vs_sklearn_{k}", res, "sklearn", "auto")
        DETAILS[f"objectives_{k}"] = {"auto": goal, "faiss": end["faiss"].objective, "sklearn": end["sklearn"], "sklearn_batch_epochs": settings}
        steps = len(end["auto"].history)
        ratio(f"kmeans_over_matmul_{k}", lambda: run("auto"), lambda: [z@start.T for _ in range(steps)])
    for name in ("kmeans_vs_faiss", "kmeans_vs_sklearn"): REPORT[name] = min(REPORT[f"{name}_{k}"] for k in (27, 100))
    REPORT["kmeans_over_matmul"] = max(REPORT[f"kmeans_over_matmul_{k}"] for k in (27, 100))


# -- labelling, scoring, segmenting ------------------------------------------------------------------------------------
def small():
    dls = data(64)
    learn, cb = (l := learner(dls)), l.cluster
    cb.fit_readout()
    net, mu = learn.model.eval(), cb.mu_eval
    with torch.no_grad():
        z = F.normalize(net(torch.rand(16, 3, SIZE, SIZE)), dim=1)
    for k in (27, 100):
        c = F.normalize(torch.randn(k, 128), dim=1)
        ratio(f"assign_over_matmul_{k}", lambda: [assign(z, c) for _ in range(5)], lambda: [F.conv2d(z, c[:, :, None, None]) for _ in range(5)], 15)
    REPORT["assign_over_matmul"] = REPORT["assign_over_matmul_27"]

    batches = [tuple(o.as_subclass(torch.Tensor) for o in b) for b in dls.valid]
    for name, over in (("", net), ("_resnet50", PiCIENet(create_backbone("resnet50", pretrained=False)).eval())):
        @torch.no_grad()
        def forward(): [over(x) for x, _ in batches]
        def scored(): return score_batches(over, mu, batches, learn.classes)
        with reuse_memory(): ratio(f"eval_over_forward{name}", scored, forward)

    seg = learn.segmenter()
    files = image_files(DATA/"images/val")[:24] if DATA.is_dir() else [Path(f) for f in dls.valid_ds.items]
    from picie_nb.segmenter import _tensor
    xs = [_tensor(open_image(f), seg.size) for f in files]
    @torch.no_grad()
    def bare(): [(open_image(f), seg.net(x)) for f, x in zip(files, xs)]
    ratio("segment_over_forward", lambda: [seg(f) for f in files], bare)

    import onnxruntime
    path, x = seg.to_onnx(Path(tempfile.mkdtemp())/"m.onnx"), torch.rand(1, 3, SIZE, SIZE)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session, image = onnxruntime.InferenceSession(str(path), options), x.numpy()
    def eager():
        best, c = seg.scores(x).max(1)
        return c
    ratio("onnx_over_torch", lambda: [session.run(None, {"images": image}) for _ in range(10)], lambda: [eager() for _ in range(10)], 7)


# -- memory, imports, processes ----------------------------------------------------------------------------------------
def python(code, **env):
    r = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, env={**os.environ, **env})
    if r.returncode: raise RuntimeError(r.stderr[-800:])
    return r.stdout


CLUSTER = """
import sys, resource, torch
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.optimizer import Adam
from fastai.learner import Learner
from picie_nb.all import *
class Simulated:
    def __init__(self, n): self.n = n
    def __len__(self): return self.n
    def __getitem__(self, i): return (torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(i)),)
torch.manual_seed(0)
dls = DataLoaders(*(DataLoader(Simulated(int(sys.argv[1])), bs=50, shuffle=True) for _ in range(2)))
net = PiCIENet(create_backbone("resnet18", pretrained=False))
learn = Learner(dls, net, loss_func=ClusterLoss(), opt_func=Adam, cbs=ClusterCallback(n_clusters=27, n_images=500))
learn.cluster.cluster()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def memory():
    peak = lambda n: float(python(f"import sys; sys.argv = ['', '{n}']\n{CLUSTER}"))
    pairs = [(peak(100_000), peak(1_000)) for _ in range(REPS)]
    put("rss_growth", [a/b for a, b in pairs])


def imports():
    mods = "transforms losses clustering data.labels backbone fpn"
    code = "import time; t = time.perf_counter(); import torch; u = time.perf_counter(); {}; print(u-t, time.perf_counter()-u)"
    runs = [python(code.format("; ".join(f"import picie_nb.{m}" for m in mods.split()))).split() for _ in range(REPS)]
    put("import_seconds_over_torch", [float(b) for _, b in runs])


def processes():
    "Two processes with one thread each against one process with two threads, on the same images"
    script = str(HERE/"processes.py")
    def run(n):
        cmd = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={n}", script]
        r = subprocess.run(cmd, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": str(2//n), "ACCELERATE_USE_CPU": "true"})
        if r.returncode: raise RuntimeError(r.stderr[-1500:])
        return float(r.stdout.split()[-1])
    put("ddp2_efficiency", [run(1)/run(2) for _ in range(REPS)])


def growth():
    "Seconds of an epoch, as one thing at a time grows"
    def seconds(n=32, size=96, k=11, dim=128, **kw):
        run = epoch(learner(data(n, size=size), k, dim=dim, **kw))
        run()
        return round(min(run()["epoch"] for _ in range(2)), 3)
    curves = dict(n_images=[("n", v) for v in (16, 32, 64)], size=[("size", v) for v in (64, 96, 128, 160)],
                  n_clusters=[("k", v) for v in (11, 27, 100)], dim=[("dim", v) for v in (64, 128, 256)])
    for name, points in curves.items():
        DETAILS["growth"][name] = [[v, seconds(**{k: v})] for k, v in points]
        print(name, DETAILS["growth"][name], flush=True)


def compiled():
    "torch.compile: seconds to compile, and what a step costs afterwards"
    nets = [PiCIENet(create_backbone("tf_efficientnet_lite0", weights=efficientnet_lite0_weights())).eval() for _ in range(2)]
    pair = [torch.rand(16, 3, SIZE, SIZE) for _ in range(2)]
    def step(net): sum(z.pow(2).mean() for z in net(*pair)).backward()
    nets[0].compile()
    with reuse_memory():
        step(nets[1])
        put("compile_seconds", clock(lambda: step(nets[0])))
        ratio("compiled_over_eager", lambda: step(nets[0]), lambda: step(nets[1]))


GROUPS = dict(recipe=recipe, users=users, epochs=epochs, presets=presets, levers=levers, precision=precision, kmeans=kmeans_engines, small=small, memory=memory,
              imports=imports, processes=processes, growth=growth, compile=compiled)


def main():
    names = sys.argv[1:] or [n for n in GROUPS if n != "compile"]
    start = time.perf_counter()
    old = {n: json.loads((HERE/f"{n}.json").read_text()) for n in ("report", "details") if (HERE/f"{n}.json").exists() and sys.argv[1:]}
    cpu = next((l.split(":")[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name")), "") if sys.platform == "linux" else ""
    DETAILS["machine"] = dict(cpu=cpu or platform.processor() or platform.machine(), cores=os.cpu_count(), threads=torch.get_num_threads(), torch=torch.__version__,
                              system=platform.platform(terse=True), data=DATA.name if DATA.is_dir() else "drawn scenes", repetitions=REPS)
    print(", ".join(f"{k} {v}" for k, v in DETAILS["machine"].items()), flush=True)
    for n in names:
        GROUPS[n]()
        minutes = round((time.perf_counter()-start)/60, 1)
        if not sys.argv[1:]: DETAILS["minutes"] = minutes # of all
        before = old.get("details", {})
        DETAILS["cpus"] = {**DETAILS.get("cpus", {}), n: DETAILS["machine"]["cpu"]} # groups can be measured on several machines
        details = {**before, **DETAILS, **{k: {**before.get(k, {}), **DETAILS[k]} for k in ("spread", "growth", "cpus")}}
        for name, o in (("report", {**old.get("report", {}), **REPORT}), ("details", details)):
            (HERE/f"{name}.json").write_text(json.dumps(o, indent=1)+"\n")
    print(f"wrote {HERE/'report.json'} after {minutes} minutes")


if __name__ == "__main__": main()
