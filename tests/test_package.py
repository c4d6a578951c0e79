"What is installed: wheel, sdist, imports, the public names, the layers."
import ast, json, re, subprocess, sys, tarfile, types, zipfile
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from configparser import ConfigParser
import pytest
from conftest import ROOT
from forked import forked

# floors of the house, from the ground: a module imports from floors below its own only
LAYERS = [["data.labels", "transforms", "backbone"], ["data.scenes", "clustering", "regions", "fpn", "training.distributed"],
          ["data.folders", "losses", "evaluate.metrics"], ["data.catalog", "evaluate.borders", "evaluate.protocols"], ["evaluate.report", "segmenter", "training.checkpoint"],
          ["evaluate.probes", "use.stream", "use.large", "use.tree", "use.annotations", "use.deploy", "callback", "training.health"], ["use.gallery", "published"], ["use.names", "learner"], ["use.widgets"], ["use.app"], ["cli"]]
WITH_FASTAI = ["training.distributed", "training.checkpoint", "training.health", "callback", "published", "learner", "use.app", "cli"]
WITHOUT_FASTAI = [m for ms in LAYERS for m in ms if m not in WITH_FASTAI]


def python(code, *args, **kw):
    return subprocess.run([sys.executable, "-W", "ignore", "-c", code, *args], capture_output=True, text=True, **kw)


@pytest.fixture(scope="module")
def dists(tmp_path_factory):
    "An sdist, and a wheel built from that sdist"
    src, out = tmp_path_factory.mktemp("src"), tmp_path_factory.mktemp("dist")
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    for f in files:
        if not (ROOT/f).exists() or f.startswith("nbs/"): continue
        (src/f).parent.mkdir(parents=True, exist_ok=True)
        (src/f).write_bytes((ROOT/f).read_bytes())
    res = subprocess.run([sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(src)], capture_output=True, text=True)
    assert res.returncode == 0, res.stderr[-3000:]
    return next(out.glob("*.tar.gz")), next(out.glob("*.whl"))


def test_wheel_installs_and_imports(dists, tmp_path):
    "Installed into an empty folder, the package imports from there, and finds its version and commands"
    _, wheel = dists
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path), str(wheel)], check=True)
    res = python("import sys; sys.path.insert(0, sys.argv[1]); import picie_nb.all as a, picie_nb; print(picie_nb.__file__, picie_nb.__version__, a.picie_learner.__name__)",
                 str(tmp_path), cwd=tmp_path)
    assert res.stdout.split() == [str(tmp_path/"picie_nb"/"__init__.py"), _version(), "picie_learner"], res.stderr


def brought(names):
    "These packages and all that they require, as far as they are installed here"
    seen, todo = set(), list(names)
    while todo:
        if (n := todo.pop()) in seen: continue
        seen.add(n)
        try: todo += [_name(o) for o in requires(n) or () if "extra ==" not in o]
        except PackageNotFoundError: pass
    return seen

def _name(line): return re.split(r"[<>=!~;\[ (]", line.strip())[0].lower().replace("_", "-")

def test_requirements_suffice():
    "Everything imports without the packages that only extras bring"
    cfg = ConfigParser(delimiters=["="], interpolation=None)
    cfg.read(ROOT/"settings.ini")
    have = brought(_name(o) for o in cfg["DEFAULT"]["requirements"].splitlines() if o.strip())
    blocked = [m for m, ds in packages_distributions().items() if not {_name(d) for d in ds} & (have | {"picie-nb"})]
    assert {"onnx", "nbdev", "hypothesis"} <= set(blocked) and not {"accelerate", "torch", "sklearn"} & set(blocked)
    res = python(f"import sys; sys.modules.update(dict.fromkeys({blocked})); import picie_nb.all, picie_nb.training.distributed, picie_nb.cli", cwd=ROOT)
    assert res.returncode == 0, res.stderr


def test_wheel_metadata(dists):
    with zipfile.ZipFile(dists[1]) as z:
        meta = z.read(next(n for n in z.namelist() if n.endswith("METADATA"))).decode()
        entry = z.read(next(n for n in z.namelist() if n.endswith("entry_points.txt"))).decode()
        tops = {n.split("/")[0] for n in z.namelist() if ".dist-info" not in n}
    cfg = ConfigParser(delimiters=["="], interpolation=None)
    cfg.read(ROOT/"settings.ini")
    assert f"Summary: {cfg['DEFAULT']['description']}" in meta and f"Version: {_version()}" in meta
    for name in ("nbdev", "torch", "torchvision", "fastai", "faiss-gpu", "ipywidgets", "matplotlib"):
        assert f"Requires-Dist: {name}" in meta, name
    assert 'faiss-gpu>=1.14; sys_platform == "linux" and platform_machine == "x86_64"' in meta
    assert 'faiss-cpu>=1.8; sys_platform != "linux" or platform_machine != "x86_64"' in meta
    assert all(f"picie-{n} = picie_nb.cli:picie_{n}" in entry for n in ("demo", "train", "segment", "evaluate", "check")) and "picie_nb = picie_nb._modidx:d" in entry
    assert tops == {"picie_nb"}


def test_label_tables_travel(dists):
    "Wheel and sdist hold every label table of the checkout, and the segmenter that comes along"
    tables = {f"picie_nb/tables/{f.name}" for f in (ROOT/"picie_nb/tables").glob("*.json")} | {"picie_nb/segmenters/objects.safetensors"}
    with zipfile.ZipFile(dists[1]) as z: assert tables <= set(z.namelist())
    with tarfile.open(dists[0]) as t: assert tables <= {n.split("/", 1)[-1] for n in t.getnames()}
    assert len(tables) == 10


def test_sdist_has_what_setup_needs(dists):
    with tarfile.open(dists[0]) as t: names = {n.split("/", 1)[1] for n in t.getnames() if "/" in n}
    assert {"settings.ini", "setup.py", "pyproject.toml", "README.md", "LICENSE"} <= names


def _version():
    return next(ast.literal_eval(l.split("=")[1].strip()) for l in (ROOT/"picie_nb/__init__.py").read_text().splitlines() if l.startswith("__version__"))


def _public_names():
    ns = {}
    exec("from picie_nb.all import *", ns)
    print(*sorted(k for k, v in ns.items() if not k.startswith("_") and not isinstance(v, types.ModuleType)))

def _shadowed_names():
    import picie_nb.all as a, fastai.vision.all as f
    print([k for k in vars(a) if not k.startswith("_") and hasattr(f, k) and getattr(a, k) is not getattr(f, k)])

def test_public_names():
    "`from picie_nb.all import *` gives exactly these"
    res = forked(_public_names)
    assert res.stdout.split() == (ROOT/"tests/public_names.txt").read_text().split(), res.stderr


def test_names_do_not_shadow_fastai():
    res = forked(_shadowed_names)
    assert res.stdout.strip() == "[]", res.stdout+res.stderr


IMPORTS = """
import importlib, json, sys, traceback
if sys.argv[1] == "without": sys.modules["fastai"] = None
res = {}
for m in sys.argv[2:]:
    try: importlib.import_module(f"picie_nb.{m}")
    except Exception: res[m] = traceback.format_exc()
    else: res[m] = " ".join(o for o in sys.modules if o.startswith("fastai.")) # "": none of it was loaded
print(json.dumps(res))
"""

def imports(how, modules):
    "What comes of importing one module after the other, from the lowest floor upwards"
    res = python(IMPORTS, how, *modules)
    assert res.returncode == 0, res.stderr
    return json.loads(res.stdout)

def test_imports_without_fastai(): assert not any(imports("without", WITHOUT_FASTAI).values())


def test_does_not_load_fastai():
    "Even where fastai is installed, the lower modules do not pay for it"
    assert not any(imports("with", [m for m in WITHOUT_FASTAI if not m.startswith("evaluate.")]).values())
    assert imports("with", ["callback"])["callback"] # so that the question is not an empty one


def module_file(m): return ROOT/"picie_nb"/(m.replace(".", "/")+".py")

def imported(m):
    "Modules of the package that this one imports, at its top or inside its functions"
    home = ["picie_nb", *m.split(".")[:-1]]
    for n in ast.walk(ast.parse(module_file(m).read_text())):
        if isinstance(n, ast.Import): names = [a.name for a in n.names]
        elif isinstance(n, ast.ImportFrom):
            base = [*home[:len(home)-n.level+1]] if n.level else []
            base += (n.module or "").split(".") if n.module else []
            names = [".".join(base), *(".".join([*base, a.name]) for a in n.names)]
        else: continue
        yield from (o for name in names if (o := name.removeprefix("picie_nb.")) != name and module_file(o).is_file())

def test_imports_go_down():
    level = {m: i for i, ms in enumerate(LAYERS) for m in ms}
    assert sorted(level) == sorted(str(f.relative_to(ROOT/"picie_nb").with_suffix("")).replace("/", ".") for f in (ROOT/"picie_nb").rglob("*.py")
                                   if f.name not in ("__init__.py", "_modidx.py", "all.py"))
    pairs = {(m, o) for m in level for o in imported(m)}
    assert [f"{m} imports {o}" for m, o in sorted(pairs) if level[o] >= level[m]] == [] and len(pairs) > 60


@pytest.mark.parametrize("folder", ["bench", "tools", "tests"])
def test_scripts_are_python(folder):
    "Of the oldest version that is promised"
    for f in (ROOT/folder).glob("*.py"): compile(f.read_text(encoding="utf-8"), f.name, "exec", ast.PyCF_ONLY_AST, dont_inherit=True)


def test_settings_have_one_home():
    "Metadata stands in settings.ini, the version in __init__.py, and nowhere twice"
    text = (ROOT/"pyproject.toml").read_text()
    assert "dependencies =" not in text and "description =" not in text and "torch" not in text
    assert "version" not in (ROOT/"settings.ini").read_text().replace("the version stands", "")
