"Networks, exported files and worker processes: each works, or is refused by name before it costs anything."
import math, os, subprocess, sys
from multiprocessing.reduction import ForkingPickler
from unittest import mock
import numpy as np
import pytest, timm, torch, torch.nn.functional as F, torchvision
from PIL import Image
from torch import nn
from torchvision.models import ResNet18_Weights, ResNet50_Weights, VGG11_Weights
from picie_nb.backbone import Pyramid, create_backbone, freeze_
from picie_nb.data.folders import image_files, picie_dls
from picie_nb.fpn import PiCIENet
from picie_nb.learner import picie_learner
from picie_nb.data.scenes import ToyScenes
from picie_nb.segmenter import Segmenter
from picie_nb.use.deploy import OnnxSegmenter


def means(x): return [F.avg_pool2d(x, s, ceil_mode=True) for s in (4, 8, 16, 32)]
def shrunk(x): return F.interpolate(F.interpolate(x, scale_factor=.8), x.shape[-2:])

class Own(Pyramid):
    "Mean colours of what `change` makes of an image"
    def __init__(self, change=lambda x: x, after=lambda ms: ms):
        super().__init__("own", [3]*4, (4, 8, 16, 32), pad_to=32)
        self.change, self.after = change, after
    def levels(self, x): return self.after(means(self.change(x)))

MISPLACED = { # name: (backbone, what is said); kind: features that lie elsewhere than their cells
    "unpadded convolutions": ("inception_v3", "inception_v3 makes maps of 28x36, 13x17"),
    "unpadded convolutions, other family": ("inception_v4", "inception_v4 makes maps of"),
    "unpadded stem": ("legacy_xception", "legacy_xception makes maps of 31x39"),
    "resizes its input": ("crossvit_tiny_240", "crossvit_tiny_240 makes maps of 20x20"),
    "patches that overlap": ("pit_ti_224", "pit_ti_224 makes maps of 27x27"),
    "another order of axes": ("qwen3_vit_88m_merge", "qwen3_vit_88m_merge"),
    "mirrored": (Own(lambda x: x.flip(-1)), "wrong places"),
    "upside down": (Own(lambda x: x.flip(-2)), "wrong places"),
    "turned": (Own(lambda x: x.rot90(2, (-2, -1))), "wrong places"),
    "shifted by three cells": (Own(lambda x: F.pad(x, (12, 0))[..., :-12]), "wrong places"),
    "rolled by half": (Own(lambda x: x.roll(x.shape[-1]//2, -1)), "wrong places"),
    "a cut, stretched": (Own(lambda x: F.interpolate(x[..., :x.shape[-1]*4//5], x.shape[-2:])), "wrong places"),
    "one level mirrored": (Own(after=lambda ms: [ms[0], ms[1].flip(-1), *ms[2:]]), "map of stride 8"),
    "tokens in another order": (Own(after=lambda ms: [m.transpose(2, 3).reshape(m.shape) for m in ms]), "wrong places"),
    "rows for columns": (Own(lambda x: x.transpose(2, 3)), "own makes maps of"),
    "a fixed grid": (Own(lambda x: F.interpolate(x, (224, 224))), "own makes maps of 56x56"),
    "a mean of everything": (Own(lambda x: x.mean((2, 3), keepdim=True).expand_as(x)), "do not depend on where"),
    "blind": (Own(torch.zeros_like), "do not depend on where"),
    "not a number": (Own(lambda x: x*math.nan), "do not depend on where"),
    "rounded down": (Own(after=lambda ms: [m[..., :-1, :-1] for m in ms]), "own makes maps of"),
    "too few maps": (Own(after=lambda ms: ms[:3]), "own makes maps of"),
    "too many maps": (Own(after=lambda ms: [*ms, ms[-1]]), "own makes maps of"),
    "other widths": (Own(after=lambda ms: [m.repeat(1, 2, 1, 1) for m in ms]), "own makes maps of"),
    "fails": (Own(lambda x: x @ x), "own fails on images"),
}

@pytest.mark.parametrize("name", MISPLACED)
def test_misplaced(name):
    "Refused when it is made, in one sentence that names it"
    backbone, says = MISPLACED[name]
    with pytest.raises(ValueError) as e: create_backbone(backbone, pretrained=False)
    assert says in str(e.value) and "Take another backbone" in str(e.value) and "\n" not in str(e.value)


PLACED = "resnet18 convnext_atto tf_efficientnet_lite0 mobilevitv2_050 levit_128s swin_tiny_patch4_window7_224 test_vit vit_tiny_patch16_224 hrnet_w18_small".split()

@pytest.mark.parametrize("name", PLACED)
def test_placed(name):
    "Maps of ceil(H/s) cells at awkward sizes and at the size of its training, where what changes, changes"
    torch.manual_seed(0)
    net = create_backbone(name, pretrained=False).eval()
    for h, w in ((224, 224), (97, 130), (224, 200), (1, 1)):
        if not net.fits(h, w): continue
        with torch.no_grad(): maps = net(torch.rand(1, 3, h, w))
        assert [m.shape[1:] for m in maps] == [(c, -(-h//s), -(-w//s)) for c, s in zip(net.channels, net.strides)]
    assert net.fits(224, 224) and net.fits(224, 200) and net.fits(97, 130) == (name != "levit_128s")


def test_own_pyramid():
    "A subclass of `Pyramid` is tried and used itself"
    own = Own()
    assert create_backbone(own) is own and PiCIENet(own, 8)(torch.rand(1, 3, 50, 61)).shape == (1, 8, 13, 16)


def test_trying_leaves_no_trace():
    "Neither random numbers nor modes nor statistics change, whether a name is tried or was tried before"
    import picie_nb.backbone as module
    after = []
    for _ in range(2):
        torch.manual_seed(3)
        net = create_backbone("test_resnet", pretrained=False)
        assert all(m.training for m in net.modules()) and all(p.requires_grad and p.grad is None for p in net.parameters())
        assert not net.net.bn1.running_mean.any()
        after.append(torch.rand(4))
    assert "test_resnet" in module._tried and torch.equal(*after)
    own = Own()
    own.part = nn.BatchNorm2d(3).eval()
    create_backbone(own)
    assert own.training and not own.part.training


def test_no_memory():
    "On the meta device nothing is tried, and shapes are right"
    with torch.device("meta"): net = PiCIENet(create_backbone("convnextv2_atto", pretrained=False), 16)
    assert net(torch.empty(1, 3, 65, 33, device="meta")).shape == (1, 16, 17, 9)


GIVEN = { # name: (what makes what is given as backbone, name found); kind: names in the spelling of other libraries
    "a name": (lambda: "resnet18", "resnet18"), "numpy's": (lambda: np.str_("resnet18"), "resnet18"),
    "hub": (lambda: "hf-hub:timm/resnet18.a1_in1k", "resnet18.a1_in1k"), "hub, old": (lambda: "hf_hub:timm/test_vit.r160_in1k", "test_vit.r160_in1k"),
    "hub, short": (lambda: "timm/test_vit", "test_vit"), "hub, address": (lambda: "https://huggingface.co/timm/test_vit.r160_in1k", "test_vit.r160_in1k"),
    "function": (lambda: torchvision.models.resnet34, "resnet34"), "timm's function": (lambda: timm.models.test_vit, "test_vit"),
    "weights": (lambda: ResNet18_Weights.DEFAULT, "resnet18"), "list of weights": (lambda: ResNet50_Weights, "resnet50"),
    "timm has it too": (lambda: VGG11_Weights.DEFAULT, "vgg11"),
    "module": (lambda: torchvision.models.resnet50(), "resnet50"), "timm's module": (lambda: timm.create_model("test_vit"), "test_vit.r160_in1k"),
    "features": (lambda: timm.create_model("test_resnet", features_only=True), "test_resnet.r160_in1k"),
    "no weights of its name": (lambda: timm.create_model("test_maxvit"), "test_maxvit"),
}

@pytest.mark.parametrize("name", GIVEN)
def test_given(name):
    "One name, whose network a file can be opened with; the weights of a module are copied"
    make, want = GIVEN[name]
    o = make()
    net = create_backbone(o, pretrained=False)
    assert net.name == want and create_backbone(net.name, pretrained=False).strides == net.strides
    if isinstance(o, nn.Module):
        mine = {v.data_ptr() for v in net.state_dict().values()}
        same = [any(v.shape == p.shape and torch.equal(v, p) for p in o.parameters()) for k, v in net.named_parameters()]
        assert all(same) and not mine & {v.data_ptr() for v in o.state_dict().values()}


def test_weights_are_fetched():
    "Those that were named, and not others"
    sd = torchvision.models.resnet50().state_dict()
    for o, kw in ((ResNet50_Weights.IMAGENET1K_V2, {}), ("resnet50", dict(weights=ResNet50_Weights.IMAGENET1K_V2))):
        with mock.patch("torchvision.models._api.load_state_dict_from_url", return_value=sd) as get: net = create_backbone(o, **kw)
        assert get.call_args.args[0] == ResNet50_Weights.IMAGENET1K_V2.url and torch.equal(net.conv1.weight, sd["conv1.weight"])


NO_BACKBONE = { # name: (what makes what is given, error, what is said)
    "None": (lambda: None, TypeError, "None is no backbone"), "number": (lambda: 18, TypeError, "18 is no backbone"),
    "module": (lambda: nn.Linear(2, 2), TypeError, "a Linear is no backbone"), "class": (lambda: nn.Linear, TypeError, "is no backbone"),
    "other torchvision module": (torchvision.models.mobilenet_v2, TypeError, "a MobileNetV2 is no backbone"),
    "other list of weights": (lambda: torchvision.models.Swin_T_Weights.DEFAULT, ValueError, "no backbone is called 'swin_t'"),
    "other function": (lambda: torchvision.models.swin_t, ValueError, "no backbone is called 'swin_t'"),
    "somebody's hub": (lambda: "hf-hub:facebook/dinov2-small", ValueError, "weights=PATH"), "path": (lambda: "weights/my.pth", ValueError, "weights=PATH"),
}

@pytest.mark.parametrize("name", NO_BACKBONE)
def test_no_backbone(name):
    make, error, says = NO_BACKBONE[name]
    with pytest.raises(error) as e: create_backbone(make(), pretrained=False)
    assert says in str(e.value)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    "Eight scenes, and eight photos that are no squares"
    d = tmp_path_factory.mktemp("world")
    ToyScenes(8, size=64, seed=0).save(d)
    (d/"wide").mkdir()
    for f in image_files(d/"images"): Image.open(f).resize((90, 64)).save(d/"wide"/f.name)
    return d


def quiet(learn):
    from fastai.callback.progress import ProgressCallback
    learn.remove_cb(ProgressCallback)
    learn.logger = lambda *a: None
    return learn

SIZES = { # name: (folder, arguments of picie_dls, what is said, or None); kind: a network that takes 160x160 alone
    "training size": ("images", dict(size=96), "training images are 96x96: use picie_dls(size=160)"),
    "whole photos": ("wide", dict(size=160), "validation images are 160x224: use picie_dls(size=160, valid_crop='center')"),
    "one photo of many": ("mixed", dict(size=160, bs=1), "validation images are 160x224"),
    "squares": ("wide", dict(size=160, valid_crop="center"), None),
    "photos that are squares": ("images", dict(size=160), None),
    "a little smaller": ("images", dict(size=140), None),
}

@pytest.mark.parametrize("name", SIZES)
def test_fixed_size(name, world, tmp_path):
    "Found out before the first epoch, or not a fault; the trained model takes all photos"
    folder, kw, says = SIZES[name]
    if folder == "mixed": files = [*image_files(world/"images")[:7], image_files(world/"wide")[7]]
    dls = picie_dls(world/folder if folder != "mixed" else files, **{"bs": 4, "oversample": 1, "valid": files[4:] if folder == "mixed" else .5, **kw})
    def make(): return quiet(picie_learner(dls, timm.create_model("test_maxvit", pretrained=False), 3, dim=16, path=tmp_path))
    if says:
        with pytest.raises(ValueError) as e: make()
        assert "test_maxvit" in str(e.value) and "takes images of 160x160 pixels only" in str(e.value) and says in str(e.value)
        return
    learn = make()
    learn.fit(1)
    seg = learn.segmenter()
    again = Segmenter.load(seg.save(tmp_path/"m.safetensors"))
    for w, h in ((90, 64), (64, 64), (40, 300)):
        im = Image.fromarray(np.random.default_rng(0).integers(0, 256, (h, w, 3), np.uint8))
        assert np.array_equal(seg(im).clusters, again(im).clusters) and seg(im).clusters.shape == (h, w)


def test_fixed_size_of_segmenter(tmp_path):
    net = PiCIENet(create_backbone("test_maxvit", pretrained=False), 16).eval()
    seg = Segmenter(net, torch.randn(3, 16), size=160)
    with pytest.raises(ValueError, match="test_maxvit.*to_torch"): seg.to_onnx(tmp_path/"m.onnx")
    with pytest.raises(ValueError, match="test_maxvit.*height and width must be equal"): seg.to_torch(tmp_path/"m.pt2", 64, 90)
    assert seg.to_torch(tmp_path/"m.pt2", 64, 64).exists()
    with pytest.raises(ValueError, match="test_maxvit takes images of 160x160 pixels only: use size=160"): Segmenter(net, torch.randn(3, 16), size=96)
    assert Segmenter(net, torch.randn(3, 16), size=320, tile=0).tile == 160
    assert freeze_(net.backbone, 32) is net.backbone


def noise(w, h, seed=0): return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (h, w, 3), np.uint8))

def segmenter(name, size=64, k=5, **kw):
    torch.manual_seed(0)
    return Segmenter(PiCIENet(create_backbone(name, pretrained=False), 16), torch.randn(k, 16), size=size, **kw)

EXPORTED = { # name: (width, height); kind: noise, made smaller or larger
    "smaller": (200, 150), "smaller, upright": (97, 131), "much smaller": (700, 520), "half": (128, 128), "its own size": (64, 64),
    "larger": (40, 51), "much larger": (9, 7), "panorama": (640, 70), "a line": (300, 1), "one pixel": (1, 1), "five megapixels": (2500, 2000),
    "rounding": (331, 297),
}
NETS = "test_efficientnet resnet18 test_vit vit_tiny_patch16_224 convnext_atto".split()

@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    made = {}
    def get(name):
        if name not in made:
            seg = segmenter(name)
            made[name] = seg, OnnxSegmenter(seg.to_onnx(tmp_path_factory.mktemp("onnx")/f"{name}.onnx"))
        return made[name]
    return get

@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("name", EXPORTED)
def test_onnx(name, net, exported):
    "onnxruntime gives what PyTorch gives, at the borders too; where they differ, by the rounding of a grey level"
    seg, onnx = exported(net)
    a, b = (f(noise(*EXPORTED[name])) for f in (seg, onnx))
    assert a.clusters.shape == b.clusters.shape and (a.clusters == b.clusters).mean() > .97
    d = np.abs(a.confidence.astype(float)-b.confidence)
    assert d.mean() < .01 and d.max() < .2


def test_onnx_of_scenes(exported, world):
    "Of pictures, which are no noise, hardly a pixel differs"
    for net in NETS:
        seg, onnx = exported(net)
        for f in (*image_files(world/"images")[:2], *image_files(world/"wide")[:2]):
            a, b = seg(f), onnx(f)
            assert (a.clusters == b.clusters).mean() > .995 and np.abs(a.confidence.astype(float)-b.confidence).max() < .1


def test_resized_as_by_pillow():
    "What enters the exported network is what enters the network: whole grey levels, of which a few, halfway between two levels, are off by one or two"
    onnxruntime = pytest.importorskip("onnxruntime")
    from onnx import helper, TensorProto
    from picie_nb.segmenter import _tensor
    from picie_nb.use.deploy import _Ops, _before
    for size, (w, h) in ((64, (331, 297)), (64, (40, 51)), (64, (640, 70)), (64, (96, 64)), (30, (57, 41)), (224, (300, 230)), (50, (125, 100))):
        g = helper.make_graph([], "g", [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, "h", "w"])],
                              [helper.make_tensor_value_info("resized", TensorProto.FLOAT, [1, 3, "H", "W"])])
        model = helper.make_model(g, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        _before(_Ops(model.graph), size)
        im = noise(w, h)
        got, = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"images": np.asarray(im, np.float32).transpose(2, 0, 1)[None]/255})
        off = np.abs(got-_tensor(im, size).numpy())*255
        assert off.max() < 2.01 and (off > .01).mean() < .12, (size, w, h)


NOT_EXPORTED = { # name: (backbone, size); kind: files that would not open, fail at other sizes, or differ
    "not opened": ("eva02_tiny_patch14_224", 56), "one size only, not told": ("mobilevitv2_050", 64), "one size only": ("levit_128s", 224),
}

@pytest.mark.parametrize("name", NOT_EXPORTED)
def test_not_exported(name, tmp_path):
    "Refused by name; a file that was there before stays, and nothing else is left"
    backbone, size = NOT_EXPORTED[name]
    (tmp_path/"m.onnx").write_bytes(b"before")
    with pytest.raises(ValueError, match=backbone) as e: segmenter(backbone, size).to_onnx(tmp_path/"m.onnx")
    assert [f.name for f in tmp_path.iterdir()] == ["m.onnx"] and (tmp_path/"m.onnx").read_bytes() == b"before"
    assert "\n" not in str(e.value) and len(str(e.value)) < 400


class Recorded(Own):
    "What it does with the first image becomes a constant of the file"
    def levels(self, x): return means(x if int(x.shape[-2]) > 128 else x.flip(-1)+float(x.shape[-1]))

@pytest.mark.parametrize("kind", ("runs and differs", "no such operation"))
def test_export_of_own(kind, tmp_path):
    own = Recorded() if kind == "runs and differs" else Own(lambda x: x+torch.linalg.matrix_rank(x[:, 0])[:, None, None, None]*1e-6)
    torch.manual_seed(0)
    with pytest.raises(ValueError, match="own cannot be written as ONNX") as e:
        Segmenter(PiCIENet(own, 16), torch.randn(4, 16), size=200).to_onnx(tmp_path/"m.onnx")
    assert not list(tmp_path.iterdir()) and "\n" not in str(e.value)


@pytest.mark.parametrize("field, most", dict(size=2**14, tile=2**14, refine=1000).items())
def test_what_no_file_may_hold(field, most, tmp_path):
    "Is refused when a segmenter is made, not when its file is opened a year later"
    net, mu = PiCIENet(create_backbone("test_resnet", pretrained=False), 16), torch.randn(4, 16)
    again = Segmenter.load(Segmenter(net, mu, **{field: most}).save(tmp_path/"m.safetensors"))
    assert getattr(again, field) == most
    for bad, says in ({field: most+1}, f"{field}={most+1}: at least"), ({field: -1}, f"{field}=-1: at least"), (dict(tau=0), "tau=0.0: more than 0"):
        with pytest.raises(ValueError, match=says) as e: again._with(**bad)
        assert "\n" not in str(e.value)


@pytest.mark.parametrize("net", NETS[:3])
@pytest.mark.parametrize("w,h", ((200, 150), (40, 51), (64, 64)))
def test_torch_export(net, w, h, tmp_path):
    seg = segmenter(net)
    run = torch.export.load(seg.to_torch(tmp_path/"m.pt2", h, w)).module()
    im = noise(w, h)
    c, conf = run(torch.from_numpy(np.array(im)).permute(2, 0, 1)[None]/255)
    want = seg(im)
    assert (c[0].numpy() == want.clusters).mean() > .97 and np.abs(conf[0].numpy()-want.confidence).mean() < .01


LOADERS = { # name: (arguments of picie_dls, which loader); kind: what a worker process is sent
    "train": ({}, "train"), "train, middle": (dict(crop="center"), "train"), "valid": ({}, "valid"),
    "valid, squares": (dict(valid_crop="center"), "valid"),
    "valid, masks": (dict(masks="masks", labels="toyscenes"), "valid"),
    "valid, masks, squares": (dict(masks="masks", labels="toyscenes", valid_crop="center"), "valid"),
    "valid, own classes": (dict(masks="masks", labels="a b c d e f g h".split()), "valid"),
    "train, drawn": ({}, "train drawn"), "valid, drawn": (dict(masks="masks", labels="toyscenes"), "valid drawn"),
    "test": ({}, "test"), "renewed": ({}, "new"),
}

def loader(name, world, num_workers=0):
    kw, which = LOADERS[name]
    kw = {**kw, "masks": world/"masks"} if "masks" in kw else kw
    dls = picie_dls(world/"images", size=32, bs=4, valid=.5, oversample=1, num_workers=num_workers, **kw)
    dl = getattr(dls, which.split()[0], None)
    if "drawn" in which: dl.show_batch() # which keeps the types of what was drawn
    return dls.test_dl(image_files(world/"images")) if which == "test" else dls.train.new(shuffle=False) if which == "new" else dl

@pytest.mark.parametrize("name", LOADERS)
def test_loader_is_sent(name, world):
    "All of a loader can be sent to a process that shares no memory, and what comes back is the same"
    dl = loader(name, world)
    here = ForkingPickler.loads(ForkingPickler.dumps(dl))
    assert [tuple(o.shape for o in b) for b in here] == [tuple(o.shape for o in b) for b in dl]
    assert [type(o) for o in here.one_batch()] == [type(o) for o in dl.one_batch()]
    assert b"<locals>" not in bytes(ForkingPickler.dumps(dl))


def test_workers_spawn(world, tmp_path):
    "With a process that was started anew, as on macOS and Windows; `test_loader_is_sent` has loaders of every kind"
    names = ["valid, masks, squares"]
    script = tmp_path/"run.py"
    script.write_text("import multiprocessing, sys\nfrom pathlib import Path\nimport matplotlib; matplotlib.use('agg')\n"
        f"sys.path.insert(0, {os.path.dirname(__file__)!r})\n"
        "if __name__ == '__main__':\n    from test_faults_networks import loader\n    multiprocessing.set_start_method('spawn')\n"
        f"    for name in {names}: print(name, len(list(loader(name, Path({str(world)!r}), num_workers=1))), flush=True)\n")
    res = subprocess.run([sys.executable, "-W", "ignore", str(script)], capture_output=True, text=True, timeout=600)
    assert res.returncode == 0 and len(res.stdout.splitlines()) == len(names), res.stdout+res.stderr[-2000:]
