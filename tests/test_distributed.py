"Several processes train as one does, and one that dies ends the job with a message and without loss. Processes on CPUs, with gloo"
import json, math, os, re, shutil, socket, subprocess, sys, numpy as np, pytest
from pathlib import Path
import distributed_job
from forked import together

def job(folder, n, *choices):
    "Trainings in `n` processes, which begin as torchrun's do: for each process, what each training gave"
    folder.mkdir(exist_ok=True)
    with socket.socket() as s: s.bind(("", 0)); port = s.getsockname()[1] # one that is free
    world = dict(MASTER_ADDR="localhost", MASTER_PORT=str(port), WORLD_SIZE=str(n), LOCAL_WORLD_SIZE=str(n))
    ranks = [dict(RANK=str(i), LOCAL_RANK=str(i), **world) for i in range(n)]
    codes, told = together(distributed_job.main, [(str(folder), choices)]*n, ranks)
    assert codes == [0]*n, told[-3000:]
    return [json.loads((folder/f"rank{i}.json").read_text()) for i in range(n)]

def failing(folder, n, choices):
    "The messages of a training in `n` processes that torchrun starts, and that must fail"
    folder.mkdir(exist_ok=True)
    r = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n}", distributed_job.__file__, str(folder), json.dumps([choices])],
                       capture_output=True, text=True, timeout=600, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert r.returncode, "should have failed"
    return r.stderr

def same(ranks, *names):
    for k in names: assert all(r[k] == ranks[0][k] for r in ranks), k

def test_many_train_as_one_does(tmp_path):
    "The same training, without chance, in one, two and three processes; 37 images, batches of 12, three epochs"
    got = {n: [r[0] for r in job(tmp_path/str(n), n, {})] for n in (1, 2, 3)}
    one = got[1][0]
    assert len(one["losses"]) == 9 and len(set(one["losses"])) == 9
    assert (np.array(one["mats"]).sum((1, 2)) == 11*64*64).all()
    for n, ranks in got.items():
        same(ranks, "mus", "mats", "weights", "mu_eval", "history", "health")
        assert [r["images"] for r in ranks] == [3*36//n]*n
        np.testing.assert_allclose(np.mean([r["losses"] for r in ranks], 0), one["losses"], rtol=1e-4)
        np.testing.assert_allclose(ranks[0]["mus"], one["mus"], rtol=1e-3)
        for a, b in zip(ranks[0]["history"], one["history"]):
            for k in ("within", "cross", "clusters", "agree"): assert a[k] == pytest.approx(b[k], rel=1e-2), k
        mats = np.array(ranks[0]["mats"])
        assert (mats.sum((1, 2)) == 11*64*64).all() # no image is counted twice, though 11 are divided by 2 and 3
        assert abs(mats-one["mats"]).sum()/2 < .001*mats.sum() # rounding moves single pixels

VARIANTS = dict(improved={}, official=dict(preset="official", init_images=12, update_images=8), paper=dict(preset="paper"),
                mdc=dict(mdc=True, overcluster=1), aux=dict(aux_clusters=8, balance="inverse"),
                sample=dict(n_pixels=20, n_images=5),
                accumulate=dict(acc=24))

def test_variants(tmp_path):
    got = job(tmp_path, 2, *({"still": False, "epochs": 1, **o} for o in VARIANTS.values()))
    for i, (name, o) in enumerate(VARIANTS.items()):
        ranks = [r[i] for r in got]
        same(ranks, "mus", "mats", "weights", "mu_eval", "history", "teachers")
        assert ranks[0]["losses"] != ranks[1]["losses"], name # each its own images and views
        assert all(map(math.isfinite, ranks[0]["losses"])) and 0 < ranks[0]["alone"] < 1, name
        assert len(ranks[0]["losses"]) == 3*o.get("epochs", 1), name

def test_accumulated_gradients(tmp_path):
    whole, parts = job(tmp_path, 1, dict(epochs=2, schedule="constant"), dict(acc=12, bs=6, epochs=2, schedule="constant"))[0]
    assert len(parts["losses"]) == 2*len(whole["losses"])
    np.testing.assert_allclose(np.array(parts["losses"]).reshape(-1, 2).mean(1), whole["losses"], rtol=1e-4)

def test_an_error_of_one_is_an_error_of_all(tmp_path):
    told = failing(tmp_path, 2, dict(fail=True))
    assert told.count("nothing to cluster") and all("nothing to cluster" in (tmp_path/f"rank{i}.json").read_text() for i in range(2))

def test_bf16(tmp_path):
    "Half precision in the forward pass, here on CPUs: nearly the same losses"
    ranks = [r[0] for r in job(tmp_path/"bf16", 2, dict(amp="bf16", epochs=1))]
    same(ranks, "mus", "weights")
    full = [r[0] for r in job(tmp_path/"fp32", 2, dict(epochs=1))]
    a, b = (np.mean([r["losses"] for r in rs], 0) for rs in (ranks, full))
    assert (a != b).all() and abs(a-b).max() < .05

def test_a_killed_process(tmp_path):
    "Rank 1 is killed in the second epoch; others go on with what was kept"
    told = failing(tmp_path/"killed", 2, dict(still=False, checkpoint=True, die=[1, 1]))
    assert re.search(r"Root Cause.*rank\s*: 1.*Signal 9 \(SIGKILL\)", told, re.S)
    kept = tmp_path/"killed"/"run"
    assert [f.name[:10] for f in kept.glob("*.safetensors")] == ["epoch-0001"]
    whole, = job(tmp_path/"whole", 2, dict(still=False, checkpoint=True))[0]
    for n in (2, 1, 3):
        shutil.copytree(kept, tmp_path/str(n)/"run")
        ranks = [r[0] for r in job(tmp_path/str(n), n, dict(still=False, checkpoint=True, resume=True))]
        same(ranks, "mus", "weights", "mu_eval", "history")
        assert len(ranks[0]["history"]) == 3 and len(ranks[0]["losses"]) == 6 # the two epochs that were missing
        if n != 2: continue # with as many processes as before, the end is that of a training which nobody killed
        for k in ("weights", "mu_eval"): assert whole[k] == ranks[0][k], k
        drop = lambda rows: [{k: v for k, v in r.items() if k != "churn"} for r in rows] # ClusterHealth looks back on nothing
        assert drop(whole["history"]) == drop(ranks[0]["history"])
        assert whole["losses"][3:] == ranks[0]["losses"]

def test_the_command(tmp_path):
    "`picie-train` in two processes: one table, one segmenter, one line for a mistake"
    from picie_nb.data.scenes import ToyScenes
    ToyScenes(n=10, size=32, seed=0).save(tmp_path/"photos")
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    def run(*args):
        cmd = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python", "picie-train", *args]
        return subprocess.run(cmd, cwd=tmp_path, capture_output=True, text=True, timeout=300, env=env)
    tiny = "--backbone test_efficientnet --no-pretrained --clusters 3 --epochs 2 --size 32 --bs 2".split()
    r = run("photos/images", *tiny, "--json", "report.json")
    assert r.returncode == 0, r.stderr
    assert r.stdout.count("wrote segmenter.safetensors") == 1 and r.stdout.count(" epoch ") == 1
    assert len(json.loads((tmp_path/"report.json").read_text())["history"]) == 2
    assert not (tmp_path/"segmenter.run").exists()
    r = run("nowhere", *tiny)
    assert r.returncode and "nowhere does not exist" in r.stderr and "picie_nb/cli.py" not in r.stderr
