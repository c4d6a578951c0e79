"""Put the demo that segments photos in a web browser into a folder, ready for any web server

    python tools/demo.py web/               # as on the documentation site: the clusters of each photo
    python tools/demo.py web/ street.onnx   # with a file that picie-export wrote

The page's own files are in tools/demo/. The network is exported here, and onnxruntime-web fetched by npm; both are kept in ~/.cache/picie_nb.
"""
import hashlib, json, os, shutil, subprocess, sys, tarfile, tempfile
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home()/".cache")/"picie_nb"
RUNTIME = "onnxruntime-web@1.30.0"
SHA256 = "d2228df7e4616bc3348bf504ee888f3bec43789a273f0a63f3e68d203ce3bf71"
FILES = {"dist/ort.wasm.bundle.min.mjs": "ort.mjs", "dist/ort-wasm-simd-threaded.wasm": "ort.wasm"}
PHOTOS = {"sklearn": ("datasets/images", ("china.jpg", "flower.jpg")),
          "skimage": ("data", ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg"))}
EXAMPLES = {"china.jpg": ("a temple above trees and water", 5), "chelsea.png": ("a cat", 5), "coffee.png": ("a cup of coffee on a table", 4),
            "astronaut.png": ("an astronaut beside a flag and a model of a rocket", 7), "flower.jpg": ("a flower", 3)} # and a good number of clusters


def photos()->dict:
    "{name: path} of the photos that come with the installed packages"
    found = {}
    for package, (folder, names) in PHOTOS.items():
        if spec := find_spec(package): found.update((n, Path(spec.origin).parent/folder/n) for n in names)
    return {n: f for n, f in found.items() if f.is_file()}

def segmenter():
    "Pretrained features, reduced to their main directions on a few photos: nothing is trained"
    import torch
    from PIL import Image
    from picie_nb.backbone import create_backbone
    from picie_nb.fpn import PiCIENet, pca_init_
    from picie_nb.segmenter import Segmenter, _tensor
    xs = [_tensor(Image.open(f).convert("RGB"), 320) for f in photos().values()]
    torch.manual_seed(0)
    net = pca_init_(PiCIENet(create_backbone("tf_efficientnet_lite0"), 64), [o[..., :448] for o in xs]).eval()
    return Segmenter(net, torch.zeros(1, 64), size=320, refine=20) # the page finds centroids in each photo

def cached(name:str, make)->Path:
    "A file or folder of the cache, made at the first call: whole or not at all"
    CACHE.mkdir(parents=True, exist_ok=True)
    if not (CACHE/name).exists():
        with tempfile.TemporaryDirectory(dir=CACHE) as tmp:
            make(Path(tmp)/name)
            try: os.replace(Path(tmp)/name, CACHE/name)
            except OSError:
                if not (CACHE/name).exists(): raise # else another process was faster
    return CACHE/name

def model()->Path:
    "The network as ONNX, made once for these sources"
    import torch
    from picie_nb.use.deploy import OnnxSegmenter # noqa: F401, gives to_onnx
    sources = [Path(__file__), *(ROOT/"picie_nb"/f"{o}.py" for o in ("backbone", "fpn", "segmenter", "use/deploy")), *photos().values()]
    key = hashlib.sha256(torch.__version__.encode()+b"".join(f.read_bytes() for f in sources)).hexdigest()[:16]
    return cached(f"demo-{key}.onnx", lambda f: segmenter().to_onnx(f, half=True, features=True))

def runtime():
    "Folder with the files of onnxruntime-web, or None without npm"
    npm = shutil.which("npm")
    if not npm and not (CACHE/RUNTIME).exists(): return
    def fetch(folder):
        folder.mkdir()
        out = subprocess.run([npm, "pack", "--silent", RUNTIME], cwd=folder, capture_output=True, text=True)
        if out.returncode: raise RuntimeError(f"npm pack {RUNTIME} failed: {out.stderr.strip() or out.stdout.strip()}")
        pack, = folder.glob("*.tgz")
        if hashlib.sha256(pack.read_bytes()).hexdigest() != SHA256: raise RuntimeError(f"{RUNTIME} is not the package that was tested")
        with tarfile.open(pack) as tar:
            for inside, name in FILES.items(): (folder/name).write_bytes(tar.extractfile(f"package/{inside}").read())
        pack.unlink()
    return cached(RUNTIME, fetch)

def examples(folder:Path)->list:
    "A few photos as small JPEGs"
    from PIL import Image
    found, shown = photos(), []
    for name, alt, k in [(n, *o) for n, o in EXAMPLES.items() if n in found][:4]:
        im = Image.open(found[name]).convert("RGB")
        im.thumbnail((640, 640), Image.LANCZOS)
        name = Path(name).stem+".jpg"
        im.save(folder/name, quality=88)
        shown.append(dict(file=name, alt=alt, k=k))
    return shown

def build(folder, onnx=None)->bool:
    "Fill a folder; False if onnxruntime-web cannot be had here"
    folder, ort = Path(folder), runtime()
    if ort is None: return False
    onnx = Path(onnx or model())
    folder.mkdir(parents=True, exist_ok=True)
    for f in [*(ROOT/"tools/demo").iterdir(), *ort.iterdir()]: shutil.copy(f, folder/f.name)
    shutil.copy(onnx, folder/"model.onnx")
    about = dict(examples=examples(folder), bytes=sum((folder/o).stat().st_size for o in ("model.onnx", "ort.wasm")))
    (folder/"demo.json").write_text(json.dumps(about, indent=1))
    return True


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3): sys.exit(__doc__)
    if not build(*sys.argv[1:]): sys.exit("npm is missing: install Node.js")
    print(f"look at it with: python -m http.server -d {sys.argv[1]}")
