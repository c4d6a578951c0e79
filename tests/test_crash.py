"Killed at any moment, and gone on with: nothing is lost, and the numbers are those of a run that nobody disturbed."
import json, os, subprocess, sys
import pytest
from conftest import ROOT

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="os.fork is needed to start many trainings quickly")

COMMON = """
import json, os, random, signal, sys, time, warnings; warnings.simplefilter("ignore")
from pathlib import Path
import numpy as np, torch
torch.set_num_threads(1)
from picie_nb.training import checkpoint
from picie_nb.learner import picie_learner
from picie_nb.data.scenes import ToyScenes
folder, scenes = Path(sys.argv[1]), ToyScenes(n=16, size=32, seed=0)

def train(run, n=4, **kw):
    "Train in this process; the result is weights and history"
    random.seed(0); np.random.seed(0); torch.manual_seed(0)
    learn = picie_learner(scenes.dls(bs=4, valid=.25, seed=0), "test_efficientnet", 8, pretrained=False, **kw)
    with learn.no_bar(), learn.no_logging(): learn.fit(n, checkpoint=run, resume=True)
    return {k: v.tolist() for k, v in learn.model.state_dict().items()}, learn.history()

def child(f):
    "Run `f` in a process of its own"
    if pid := os.fork(): return pid
    try: f(); code = 0
    except BaseException as e: print(type(e).__name__, e, flush=True); code = 3
    os._exit(code)

def finish(run, n=3, **kw):
    (run/"result.part").write_text(json.dumps(train(run, n, **kw)))
    (run/"result.part").rename(run/"result.json") # a kill while this is written must not leave half of it
"""

KILLS = COMMON + """
train(folder/"first", 1) # what PyTorch and timm prepare once, so that the children need not
os.wait4(child(lambda: finish(folder/"whole")), 0)
whole = json.loads((folder/"whole"/"result.json").read_text())
start = time.perf_counter(); os.wait4(child(lambda: finish(folder/"timed")), 0); span = time.perf_counter()-start

def dies_in(what):
    "A training that kills itself inside one of the steps of writing a checkpoint"
    def f(run):
        real, n = getattr(checkpoint.os, what) if what != "save_file" else checkpoint.save_file, random.randrange(1, 4)
        def fake(*args, **kw):
            nonlocal n
            n -= 1
            if not n:
                if what == "save_file": Path(args[1]).write_bytes(bytes(5000)) # half a file
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kw)
        if what == "save_file": checkpoint.save_file = fake
        else: setattr(checkpoint.os, what, fake)
        finish(run)
    return f

rng, kills, within, runs = random.Random(0), 0, 0, 0
while kills < 20:
    run, runs = folder/f"run{runs}", runs+1
    while not (run/"result.json").exists():
        how = rng.choice(["time", "time", "save_file", "fsync", "replace"])
        pid = child(lambda: finish(run) if how == "time" else dies_in(how)(run))
        if how == "time":
            time.sleep(rng.uniform(0, span)); os.kill(pid, signal.SIGKILL)
        _, status, _ = os.wait4(pid, 0)
        killed = os.WIFSIGNALED(status)
        assert killed or os.WEXITSTATUS(status) == 0, status
        kills, within = kills+killed, within+(killed and how != "time")
        for f in checkpoint._found(run): checkpoint._read(f) # whatever has its final name is whole
    result = json.loads((run/"result.json").read_text())
    assert result == whole, run
print(json.dumps(dict(kills=kills, within=within, runs=runs)))
"""

def python(program, folder):
    res = subprocess.run([sys.executable, "-c", program, str(folder)], capture_output=True, text=True, timeout=900,
                         env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)})
    assert res.returncode == 0, res.stdout[-2000:]+res.stderr[-3000:]
    return json.loads(res.stdout.splitlines()[-1])


def test_twenty_kills(tmp_path):
    "SIGKILL at random moments, also while a checkpoint is written"
    told = python(KILLS, tmp_path)
    assert told["kills"] >= 20 and told["within"] >= 3, told


FULL = COMMON + """
import resource
finish(folder/"whole", n=2)
def limited():
    "A disk that takes no file larger than the first checkpoint, less some bytes"
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    real = checkpoint._write
    def write(run, epoch, arrays, header):
        if epoch == 2: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
        return real(run, epoch, arrays, header)
    checkpoint._write = write
    try: train(folder/"full", n=2)
    except OSError as e: os.write(1, str(e).encode())
    else: os._exit(5)
code = os.waitstatus_to_exitcode(os.wait4(child(limited), 0)[1])
left = sorted(f.name for f in (folder/"full").iterdir() if f.name != ".lock")
finish(folder/"full", n=2)
print()
print(json.dumps(dict(code=code, left=left, same=json.loads((folder/"full"/"result.json").read_text()) == json.loads((folder/"whole"/"result.json").read_text()))))
"""

def test_disk_full(tmp_path):
    "One clear error; the checkpoint before is intact, nothing half-written is left, and the run can go on"
    res = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)})
    assert res.returncode == 0, res.stderr[-3000:]
    told = json.loads(res.stdout.splitlines()[-1])
    assert told["code"] == 0 and told["same"] and len(told["left"]) == 1 and told["left"][0].startswith("epoch-0001-"), told
    assert "could not be written" in res.stdout and "Earlier ones are as they were" in res.stdout


def test_read_only(tmp_path, monkeypatch):
    "A folder that cannot be written to, or that turns read-only during a training: one sentence, and what was there stays"
    import errno
    from picie_nb.training import checkpoint
    from picie_nb.learner import picie_learner
    from picie_nb.data.scenes import ToyScenes
    def train(n=2, **kw):
        learn = picie_learner(ToyScenes(n=12, size=32, seed=0).dls(bs=4, valid=.25, seed=0), "test_efficientnet", 4, pretrained=False)
        with learn.no_bar(), learn.no_logging(): learn.fit(n, checkpoint=tmp_path/"run", **kw)
    with monkeypatch.context() as m:
        m.setattr(checkpoint.os, "access", lambda *a: False)
        with pytest.raises(PermissionError, match="no permission to write checkpoints there"): train()
    real, calls = checkpoint.save_file, []
    def read_only(arrays, path, **kw):
        calls.append(path)
        if len(calls) == 2: raise OSError(errno.EROFS, "Read-only file system", str(path))
        return real(arrays, path, **kw)
    with monkeypatch.context() as m:
        m.setattr(checkpoint, "save_file", read_only)
        with pytest.raises(OSError, match="the checkpoint of epoch 2 could not be written .*Read-only file system.*Earlier ones are as they were"): train()
    assert [f.name[:10] for f in checkpoint._found(tmp_path/"run")] == ["epoch-0001"] and not list((tmp_path/"run").glob("*.tmp"))
    train(resume=True)
    assert checkpoint._found(tmp_path/"run")[0].name.startswith("epoch-0002")
