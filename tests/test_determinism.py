"The same seed gives the same bits, in processes of their own"
import json, os, subprocess, sys

PROGRAM = """
import hashlib, json, sys, warnings
warnings.filterwarnings("ignore")
from fastai.torch_core import set_seed
from picie_nb.all import *
res = {}
for name, changes in json.loads(sys.argv[1]).items():
    set_seed(int(sys.argv[2]))
    dls = ToyScenes(20, size=48, seed=0).dls(bs=4, valid=.4, seed=0)
    learn = picie_learner(dls, "test_efficientnet", 5, pretrained=False, **{"batchnorm": "eval", **changes})
    with learn.no_bar(), learn.no_logging(): learn.fit(2)
    seg = learn.segmenter()
    seg.save("model.safetensors")
    bits = hashlib.sha256(open("model.safetensors", "rb").read())
    for o in learn.model.state_dict().values(): bits.update(o.numpy().tobytes())
    res[name] = [bits.hexdigest(), str(learn.history()), str(learn.score(2))]
print(json.dumps(res))
"""
VARIANTS = dict(improved={}, official=dict(preset="official", init_images=8, update_images=4, backbone_lr=.5), paper=dict(preset="paper"))

def run(folder, seed, hashseed):
    folder.mkdir()
    r = subprocess.run([sys.executable, "-c", PROGRAM, json.dumps(VARIANTS), str(seed)], cwd=folder, capture_output=True, text=True,
                       env={**os.environ, "PYTHONHASHSEED": str(hashseed)})
    assert r.returncode == 0, r.stderr[-2000:]
    return json.loads(r.stdout.splitlines()[-1])

def test_bit_for_bit(tmp_path):
    one, two, other = run(tmp_path/"1", 0, 1), run(tmp_path/"2", 0, 2), run(tmp_path/"3", 1, 1)
    for name in VARIANTS:
        assert one[name] == two[name], name
        assert one[name][0] != other[name][0], name
