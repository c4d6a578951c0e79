"Files from strangers: nothing in them runs, nothing is written outside the target, and each is refused in a sentence."
import json, os, pickle, struct, subprocess, sys
import numpy as np
import pytest, torch
from conftest import ROOT
from picie_nb.training import checkpoint
from picie_nb.backbone import create_backbone, load_weights
from picie_nb.cli import picie_export, picie_gallery, picie_segment
from picie_nb.fpn import PiCIENet
from picie_nb.data.labels import LabelSet
from picie_nb.data.scenes import ToyScenes
from picie_nb.segmenter import Segmenter
from picie_nb.use.deploy import OnnxSegmenter
from safetensors import SafetensorError
from safetensors.torch import save_file

NET = "test_efficientnet"


class Bomb:
    "Makes a file when it is unpickled"
    def __init__(self, path): self.path = path
    def __reduce__(self): return (os.mkdir, (str(self.path),))


@pytest.fixture(scope="module")
def segmenter():
    torch.manual_seed(0)
    return Segmenter(PiCIENet(create_backbone(NET, pretrained=False), 16), torch.randn(4, 16), size=32)


@pytest.fixture(scope="module")
def header(segmenter): return segmenter.header()


@pytest.mark.parametrize("how", ["pickle", "torch"])
def test_a_pickle_is_never_loaded(how, segmenter, tmp_path):
    "Whatever a pickle is called, and wherever it is given"
    ran, file = tmp_path/"ran", tmp_path/"bomb"
    def bomb(name):
        f = tmp_path/name
        if how == "pickle": f.write_bytes(pickle.dumps(Bomb(ran)))
        else: torch.save({"state_dict": Bomb(ran)}, f)
        return f
    for name in ("m.safetensors", "m.pt"): pytest.raises(ValueError, Segmenter.load, bomb(name))
    with pytest.raises(ValueError): OnnxSegmenter(bomb("m.onnx"))
    for name in ("w.pth", "w.pt", "w.safetensors", "w.bin"):
        with pytest.raises(ValueError): load_weights(create_backbone(NET, pretrained=False), bomb(name))
    f = bomb("c.safetensors")
    f = f.rename(f.with_name(f"epoch-0001-{checkpoint._digest(f)}.safetensors")) # its checksum is right
    with pytest.raises(SafetensorError): checkpoint._read(f)
    assert not ran.exists()
    pickle.loads(pickle.dumps(Bomb(ran))) # the bomb works
    assert ran.exists()


HEADERS = [b"", b"\x00", struct.pack("<Q", 2**63)+b"{}", struct.pack("<Q", 2**40)+b"{}", struct.pack("<Q", 10)+b"{", struct.pack("<Q", 2)+b"[]", struct.pack("<Q", 4)+b"null",
           b'%b{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,8]}}'.replace(b"%b", struct.pack("<Q", 74)),
           b'%b{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,99999999]}}'.replace(b"%b", struct.pack("<Q", 60))]


@pytest.mark.parametrize("content", HEADERS)
def test_a_false_frame_is_refused(content, tmp_path):
    "Headers that are too long, cut off, no JSON, or promise arrays that are not there"
    (tmp_path/"m.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="m.safetensors"): Segmenter.load(tmp_path/"m.safetensors")


def test_names_are_only_names(segmenter, tmp_path):
    "A class called like a path or like a page is text in every file that is written"
    names = {0: "../../evil", 1: "/tmp/evil", 2: "<script>alert(1)</script>", 3: "a\x00b\n../c"}
    model = segmenter.named(names).save(tmp_path/"in"/"m.safetensors")
    ToyScenes(n=2, size=32, seed=0).save(tmp_path/"in")
    target = tmp_path/"target"
    before = {f for f in tmp_path.rglob("*")}
    photos = str(tmp_path/"in"/"images")
    assert picie_segment(str(model), photos, out=str(target/"maps"), overlay=True, quiet=True) == 0
    assert picie_gallery(str(model), photos, out=str(target/"g.html"), quiet=True) == 0
    picie_export(str(model), str(target/"m.onnx"), quiet=True)
    new = {f for f in tmp_path.rglob("*")}-before
    assert new and all(target in (f, *f.parents) for f in new)
    assert [o["name"] for o in json.loads((target/"maps"/"legend.json").read_text())] == list(names.values())
    page = (target/"g.html").read_text()
    assert "<script" not in page and "&lt;script&gt;" in page
    assert OnnxSegmenter(target/"m.onnx").labels.names == list(names.values())


def test_loading_needs_no_network_and_little_memory(segmenter, tmp_path):
    "A header that names a huge network is refused before that network is made"
    arrays = {"centroids": segmenter.centroids}
    save_file(arrays, tmp_path/"big.safetensors", metadata={"picie_nb": json.dumps({**segmenter.header(), "backbone": "vit_giant_patch14_dinov2"})})
    code = """
import resource, socket, sys
from picie_nb.segmenter import Segmenter
import timm
def no(*a, **k): raise AssertionError("network")
socket.socket.connect = no
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try: Segmenter.load(sys.argv[1])
except ValueError as e: print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss-before)//1024, e)
"""
    res = subprocess.run([sys.executable, "-W", "ignore", "-c", code, str(tmp_path/"big.safetensors")], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    mb, why = res.stdout.split(" ", 1)
    assert int(mb) < 500 and "do not fit the backbone" in why, res.stdout+res.stderr


def test_files_of_earlier_versions(segmenter, tmp_path):
    "They load as they are; what is gone is told, and what cannot be done without it is refused"
    arrays = {**{f"net.{k}": v.contiguous() for k, v in segmenter.net.state_dict().items()}, "centroids": segmenter.centroids}
    def file(**old):
        h = {k: v for k, v in segmenter.header().items() if k not in ("refine", "groups", "tile")}
        save_file(arrays, tmp_path/"old.safetensors", metadata={"picie_nb": json.dumps({**h, **old})})
        return tmp_path/"old.safetensors"
    x = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    plain = segmenter._with(refine=0)(x).clusters
    assert (Segmenter.load(file()) (x).clusters == plain).all() and (Segmenter.load(file(residual=False, flip=False))(x).clusters == plain).all()
    with pytest.warns(UserWarning, match="flip=True, which is gone"): assert (Segmenter.load(file(flip=True))(x).clusters == plain).all()
    with pytest.raises(ValueError, match="old.safetensors holds a network with residual=True"): Segmenter.load(file(residual=True))


hypothesis = pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, given, settings, strategies as st

PLAIN = st.recursive(st.none()|st.booleans()|st.integers(-2**70, 2**70)|st.floats()|st.text(max_size=8), lambda o: st.lists(o, max_size=4)|st.dictionaries(st.text(max_size=5), o, max_size=4), max_leaves=8)
FUZZ = settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@FUZZ
@given(st.data())
def test_any_header_is_read_or_refused(segmenter, header, tmp_path_factory, data):
    "A header with some fields replaced by anything loads a segmenter that works, or raises ValueError"
    keys = data.draw(st.lists(st.sampled_from(sorted(header)), max_size=3, unique=True))
    h = {**header, **{k: data.draw(PLAIN) for k in keys}}
    for k in data.draw(st.lists(st.sampled_from(sorted(header)), max_size=1)): h.pop(k)
    f = tmp_path_factory.getbasetemp()/f"fuzz{os.getpid()}.safetensors"
    arrays = {f"net.{k}": v.contiguous() for k, v in segmenter.net.state_dict().items()}
    save_file({**arrays, "centroids": segmenter.centroids}, f, metadata={"picie_nb": json.dumps(h)})
    try: s = Segmenter.load(f)
    except ValueError as e: assert str(f) in str(e) or "backbone" in str(e) or "groups" in str(e) or "names" in str(e), e
    else: assert s(np.zeros((8, 8, 3), np.uint8)).clusters.shape == (8, 8)


@FUZZ
@given(st.binary(max_size=200))
def test_any_bytes_are_refused(tmp_path_factory, content):
    f = tmp_path_factory.getbasetemp()/f"bytes{os.getpid()}.safetensors"
    f.write_bytes(content)
    with pytest.raises(ValueError): Segmenter.load(f)


@FUZZ
@given(st.data())
def test_any_label_table(data):
    "A label set of anything is one that works, or is refused"
    kw = data.draw(st.fixed_dictionaries({}, optional=dict(palette=PLAIN, ignore=PLAIN, table=st.dictionaries(PLAIN.filter(lambda o: not isinstance(o, (list, dict))), PLAIN, max_size=4), things=PLAIN)))
    try: ls = LabelSet(data.draw(st.lists(st.text(max_size=4), max_size=5)), **kw)
    except (ValueError, TypeError, OverflowError): return # OverflowError: infinity is no whole number
    assert len(ls.palette) == len(ls.names) and ls.colorize(np.zeros((2, 2), np.int64)).shape == (2, 2, 3)
