"Parts of a large work, in several processes that are killed: no photo twice, none missing"
import json, os, random, signal, subprocess, sys
from collections import Counter
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from picie_nb.backbone import create_backbone
from picie_nb.cli import picie_segment
from picie_nb.data.scenes import ToyScenes
from picie_nb.fpn import PiCIENet
from picie_nb.segmenter import Segmentation, Segmenter
from picie_nb.use.stream import Shard, join_shards

N, BAD = 60, 2


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    "Photos in two folders, of which some cannot be read, and two small models"
    root = tmp_path_factory.mktemp("parts")
    scenes = ToyScenes(n=6, size=32, seed=0)
    for i in range(N-BAD):
        f = root/"photos"/("a" if i%2 else "b ü")/f"{i}.png"
        f.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(scenes[i%6][0]).save(f)
    for i in range(BAD): (root/"photos"/"a"/f"broken{i}.jpg").write_bytes(b"no photo")
    for name in ("one", "two"):
        torch.manual_seed(len(name)+ord(name[0]))
        net = PiCIENet(create_backbone("test_efficientnet", pretrained=False), 8)
        Segmenter(net, torch.randn(4, 8), size=32).save(root/f"{name}.safetensors")
    return root


def rows(out): return [json.loads(l) for f in out.glob("shard-*") for l in f.read_bytes().splitlines() if l.endswith(b"}")]

def made(out): return Counter(o["map"] for o in rows(out) if "map" in o and "failed" not in o)

def check(world, out):
    "Every photo once, in the record and on disk"
    assert set(made(out).values()) == {1} and len(made(out)) == N-BAD
    assert {p.relative_to(out).as_posix() for p in out.rglob("*.png")} == set(made(out))
    assert len(json.loads((out/"manifest.json").read_text())) == N-BAD
    legend = json.loads((out/"legend.json").read_text())
    assert len(legend) == 4 and abs(sum(o["share"] for o in legend)-1) < 1e-4
    for o in out.rglob("*.png"): Image.open(o).load()


def child(f):
    "Run `f` in a process of its own"
    if pid := os.fork(): return pid
    try: code = f() or 0
    except BaseException as e: print(type(e).__name__, e, flush=True); code = 3
    os._exit(code)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="os.fork is needed to start many processes quickly")
def test_killed(world, tmp_path):
    "Three processes, killed before or after a photo is written, until there is nothing left to do"
    out, torch_threads, save = tmp_path/"out", torch.get_num_threads(), Segmentation.save
    torch.set_num_threads(1) # what is forked must not wait for threads that it has not
    def part(i, n, after):
        "Part `i`; killed at its photo number `n`"
        left = [n]
        def dying(s, path):
            left[0] -= 1
            if left[0] == 0 and not after: os.kill(os.getpid(), signal.SIGKILL)
            res = save(s, path)
            if left[0] == 0: os.kill(os.getpid(), signal.SIGKILL)
            return res
        Segmentation.save = dying # in this process alone
        return picie_segment(str(world/"one.safetensors"), str(world/"photos"), out=str(out), shard=f"{i}/3", bs=2, quiet=True)
    try:
        for deaths in ([3, 7, 5], [1, 6, 99], [2, 99, 99], [99, 99, 99]): # 99: none
            pids = [child(lambda i=i, n=n: part(i+1, n, (i+n)%2)) for i, n in enumerate(deaths)]
            status = [os.waitpid(p, 0)[1] for p in pids]
            assert status == [0 if n == 99 else signal.SIGKILL for n in deaths]
    finally: torch.set_num_threads(torch_threads)
    assert picie_segment(str(world/"one.safetensors"), str(world/"photos"), out=str(out), shard="join", quiet=True) == 1 # some are broken
    check(world, out)


def test_torchrun(world, tmp_path):
    "Three processes of torchrun share the photos; broken ones stop none; what is missing is named; the whole is that of one process"
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=3", "--no-python"]
    args = ["picie-segment", world/"one.safetensors", world/"photos", "--out", tmp_path/"out"]
    res = subprocess.run([*map(str, run+args)], capture_output=True, text=True, timeout=300, env=env)
    assert res.returncode == 0, res.stderr
    assert res.stdout.count("wrote") == 1 and res.stderr.count("broken") >= BAD
    assert len(list((tmp_path/"out").glob("shard-*-of-3.jsonl"))) == 3
    report = tmp_path/"r.json"
    join = lambda *a: picie_segment(*map(str, args[1:3]), out=str(tmp_path/"out"), shard="join", json=str(report), quiet=True)
    assert join() == 1
    check(world, tmp_path/"out")
    r = json.loads(report.read_text())
    assert len(r["failed"]) == BAD and r["missing"] == [] and r["images"] == N-BAD
    gone = next((tmp_path/"out").rglob("*.png"))
    gone.unlink()
    assert join() == 1 and [Path(o).stem for o in json.loads(report.read_text())["missing"]] == [gone.stem]
    picie_segment(*map(str, args[1:3]), out=str(tmp_path/"one"), quiet=True)
    for o in (tmp_path/"one").rglob("*.png"):
        if o.name != gone.name: assert (np.asarray(Image.open(o)) == np.asarray(Image.open(tmp_path/"out"/o.relative_to(tmp_path/"one")))).mean() > .99


def test_one_model(world, tmp_path):
    "Another model, another size: refused before anything is written"
    args = dict(out=str(tmp_path/"out"), quiet=True)
    photos = str(world/"photos")
    picie_segment(str(world/"one.safetensors"), photos, shard="1/2", **args)
    n = len(rows(tmp_path/"out"))
    for kw in (dict(model="two"), dict(size=64), dict(overlay=True)):
        model = str(world/f"{kw.pop('model', 'one')}.safetensors")
        for shard in ("1/2", "2/2", "1/1"):
            with pytest.raises(ValueError, match="go on with the same, or give another folder"): picie_segment(model, photos, shard=shard, **args, **kw)
    with pytest.raises(ValueError, match="go on with the same"): picie_segment(str(world/"two.safetensors"), photos, shard="join", **args)
    with pytest.raises(ValueError, match="go on with --shard"): picie_segment(str(world/"two.safetensors"), photos, **args)
    assert len(rows(tmp_path/"out")) == n


def test_the_record(world, tmp_path):
    "Bytes of any kind at the end of a record, as a crash leaves them, cost no more than that line"
    model, rng = world/"one.safetensors", random.Random(0)
    jobs = [(world/f"{i}.jpg", f"{i}.png") for i in range(30)]
    for i, (f, o) in enumerate(jobs):
        part = Shard(tmp_path, "1/1", model)
        (tmp_path/o).write_bytes(b"map")
        part.done(f, o)
        part.file.close()
        with open(part.path, "ab") as w: w.write(rng.choice([b"", b'{"map": "29.p', b"\xff\xfe\x00", b"[1]\n", b"{}\n7\n", rng.randbytes(20)]))
    r = join_shards(tmp_path, jobs, model)
    assert set(r["done"]) == {o for _, o in jobs} and r["missing"] == []
    assert Shard(tmp_path, "1/1", model).todo(jobs) == []


def test_a_photo_that_was_replaced(world, tmp_path):
    "Under the same name: its part makes the map anew"
    f, out = tmp_path/"p"/"0.png", tmp_path/"out"
    f.parent.mkdir()
    for size in ((40, 50), (60, 30)):
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size[::-1], 3), np.uint8)).save(f)
        assert picie_segment(str(world/"one.safetensors"), str(f.parent), out=str(out), shard="1/1", quiet=True) == 0
        assert Image.open(out/"0.png").size == size
    assert picie_segment(str(world/"one.safetensors"), str(f.parent), out=str(out), shard="join", quiet=True) == 0


def test_several_processes_without_a_rank(world, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2"); monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ValueError, match="WORLD_SIZE=2 without RANK"): picie_segment(str(world/"one.safetensors"), str(world/"photos"), out=str(tmp_path/"o"), quiet=True)
