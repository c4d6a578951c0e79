"""Seconds and memory that a folder of many small photos takes before the first step: `python bench/files.py [NUMBER]` writes bench/files.json"""
import io, json, resource, sys, tempfile, time, warnings
warnings.filterwarnings("ignore")
from pathlib import Path
from PIL import Image

n, rows = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000, {}
folder = tempfile.TemporaryDirectory()
buf = io.BytesIO()
Image.effect_noise((40, 32), 60).convert("RGB").save(buf, "JPEG")
for i in range(n):
    if i % 1000 == 0: (d := Path(folder.name, str(i//1000))).mkdir()
    (d/f"{i}.jpg").write_bytes(buf.getvalue())

def did(what):
    global start
    rows[what] = dict(seconds=round(time.perf_counter()-start, 1), peak_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss//1024)
    print(f"{what:40} {rows[what]}", flush=True)
    start = time.perf_counter()

start = time.perf_counter()
import fastai.vision.all
from picie_nb.all import *
did("import picie_nb and fastai")
files = image_files(folder.name); did("find the files")
readable(files); did("open each of them once")
dls = picie_dls(folder.name, size=32, bs=16); did("picie_dls")
learn = picie_learner(dls, "test_efficientnet", 5, pretrained=False, batchnorm="eval"); did("picie_learner")
it = iter(dls.train); next(it); did("the first batch")
learn.model.eval(); learn.cluster.fit_readout(); did("K-means on 2000 of the images")
(Path(__file__).parent/"files.json").write_text(json.dumps(dict(files=n, rows=rows), indent=1)+"\n")
