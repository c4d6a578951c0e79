"What users really have in their folders: every fault gives one clear message, or the right result."
import io, os, re, struct, warnings, zlib
from pathlib import Path
import numpy as np
import pytest, torch
from PIL import Image
from picie_nb.cli import picie_evaluate, picie_gallery, picie_segment, picie_train
from picie_nb.data.folders import image_files, picie_dls, readable
from picie_nb.fpn import PiCIENet
from picie_nb.backbone import create_backbone
from picie_nb.learner import picie_learner
from picie_nb.data.scenes import ToyScenes
from picie_nb.segmenter import Segmenter

NET = dict(backbone="test_efficientnet", pretrained=False)
SMALL = dict(NET, clusters=4, epochs=1, size=32, bs=4, draws=1, quiet=True)
SCENES = ToyScenes(n=8, size=48, seed=0)


def data(im, format, **kw):
    "An image as the bytes of a file"
    buf = io.BytesIO()
    im.save(buf, format, **kw)
    return buf.getvalue()


def bomb():
    "A PNG of 33 bytes that claims to have 60000 x 60000 pixels"
    chunk = lambda kind, b: struct.pack(">I", len(b))+kind+b+struct.pack(">I", zlib.crc32(kind+b))
    return b"\x89PNG\r\n\x1a\n"+chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))+chunk(b"IDAT", b"")+chunk(b"IEND", b"")


PHOTO = Image.fromarray(SCENES[0][0])
frames = [PHOTO.rotate(90*i) for i in range(3)]
deep = Image.fromarray((np.asarray(PHOTO.convert("L")).astype(np.uint16)*257))
FILES = { # name: (bytes, can it be read?)
    "zero.jpg": (b"", False),
    "cut.jpg": (data(PHOTO, "JPEG")[:400], False),
    "cut.png": (data(PHOTO, "PNG")[:900], False),
    "cut.webp": (data(PHOTO, "WEBP")[:200], False),
    "cut.tif": (data(PHOTO, "TIFF")[:300], False),
    "text.png": (b"not an image", False),
    "page.jpg": (b"<html><body>404</body></html>", False),
    "vector.png": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', False),
    "pickle.png": (b"\x80\x04\x95\x1f\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.", False),
    "bomb.png": (bomb(), False),
    "fractions.tif": (data(Image.fromarray(np.zeros((9, 9), np.float32)), "TIFF"), False),
    "mislabelled.jpg": (data(PHOTO, "PNG"), True),
    "animated.webp": (data(frames[0], "WEBP", save_all=True, append_images=frames[1:]), True),
    "animated.png": (data(frames[0], "PNG", save_all=True, append_images=frames[1:]), True),
    "one pixel.png": (data(PHOTO.resize((1, 1)), "PNG"), True),
    "strip.png": (data(PHOTO.resize((2000, 3)), "PNG"), True),
    "smaller than the stride.png": (data(PHOTO.resize((5, 7)), "PNG"), True),
    "grey.png": (data(PHOTO.convert("L"), "PNG"), True),
    "one bit.png": (data(PHOTO.convert("1"), "PNG"), True),
    "palette.png": (data(PHOTO.convert("P"), "PNG"), True),
    "glass.png": (data(PHOTO.convert("RGBA"), "PNG"), True),
    "grey glass.png": (data(PHOTO.convert("LA"), "PNG"), True),
    "deep.png": (data(deep, "PNG"), True),
    "print.tif": (data(PHOTO.convert("CMYK"), "TIFF"), True),
    "blank.png": (data(Image.new("RGB", (48, 48)), "PNG"), True),
    "ünïcode and spaces ' \" %20.png": (data(PHOTO, "PNG"), True),
}


@pytest.fixture(scope="module")
def segmenter():
    torch.manual_seed(0)
    net = PiCIENet(create_backbone(NET["backbone"], pretrained=False), 16)
    return Segmenter(net, torch.randn(4, 16), size=32)


@pytest.fixture
def photos(tmp_path):
    "Eight good photos"
    SCENES.save(tmp_path/"world")
    return tmp_path/"world"/"images"


@pytest.mark.parametrize("name", FILES)
def test_file(name, photos, segmenter, tmp_path):
    "Among good photos, a file is used or named and left out: segmenting, looking, training"
    content, ok = FILES[name]
    (photos/name).write_bytes(content)
    good, bad = readable(image_files(photos))
    assert [f.name for f in bad] == ([] if ok else [name]) and len(good) == 8+ok
    model = segmenter.save(tmp_path/"m.safetensors")
    assert picie_segment(str(model), str(photos), out=str(tmp_path/"out"), quiet=True) == (0 if ok else 1)
    out = sorted((tmp_path/"out").glob("*.png"))
    assert len(out) == 8+ok and all(Image.open(f).size == Image.open(next(photos.glob(f.stem.replace("[", "[[]")+".*"))).size for f in out)
    assert picie_gallery(str(model), str(photos), out=str(tmp_path/"g.html"), quiet=True) == (0 if ok else 1)
    report = picie_train(str(photos), out=str(tmp_path/"t.safetensors"), **SMALL)
    assert len(report["history"]) == 1 and np.isfinite(report["history"][0]["train_loss"])


def test_all_files_at_once(photos, segmenter):
    "The same, in one folder: all good ones come out, all bad ones are reported, in the order of the list"
    for name, (content, _) in FILES.items(): (photos/name).write_bytes(content)
    files = image_files(photos)
    stream = segmenter.stream(files, bs=3, progress=False)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        done = [s.source for s in stream]
    bad = {n for n, (_, ok) in FILES.items() if not ok}
    assert done == [f for f in files if f.name not in bad] and {Path(f).name for f in stream.failed} == bad
    assert all(name in why for name, why in ((Path(f).name, w) for f, w in stream.failed.items()))
    assert f"{len(bad)} of {len(files)} images were left out" in str(told[-1].message)


FOLDERS = { # name: (what to do with the photos, arguments, message or None if it works)
    "one image": (lambda d: [f.unlink() for f in sorted(d.iterdir())[1:]], {}, "one image is too few"),
    "two images, one of which validates": (lambda d: [f.unlink() for f in sorted(d.iterdir())[2:]], {}, "one image is too few"),
    "three images": (lambda d: [f.unlink() for f in sorted(d.iterdir())[3:]], {}, None),
    "identical images": (lambda d: [PHOTO.save(f) for f in d.iterdir()], {}, None),
    "blank images": (lambda d: [Image.new("RGB", (48, 48)).save(f) for f in d.iterdir()], {}, None),
    "tiny images": (lambda d: [PHOTO.resize((3, 2)).save(f) for f in d.iterdir()], {}, None),
    "K = 1": (lambda d: None, dict(clusters=1), None),
    "as many clusters as pixels": (lambda d: None, dict(clusters=400), None),
    "more clusters than pixels": (lambda d: None, dict(clusters=5000), "choose fewer clusters"),
    "batch larger than the data": (lambda d: None, dict(bs=64), None),
    "all files broken": (lambda d: [f.write_bytes(b"x") for f in d.iterdir()], {}, "none of 8 images can be read"),
    "empty folder": (lambda d: [f.unlink() for f in d.iterdir()], {}, "no images in"),
    "a file of another kind": (lambda d: (d/"notes.txt").write_text("?"), {}, None),
    "a folder called x.jpg": (lambda d: (d/"x.jpg").mkdir(), {}, None),
    "a link to nowhere": (lambda d: os.symlink(d/"gone.png", d/"link.png"), {}, None),
    "a folder inside itself": (lambda d: os.symlink(d, d/"loop"), {}, None),
    "learning rate far too high": (lambda d: None, dict(config="lr=1e30", epochs=3), "lower the learning rate"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_folder(name, photos, tmp_path, capsys):
    "A training works, or ends in one sentence and leaves no model behind"
    change, args, says = FOLDERS[name]
    change(photos)
    out = tmp_path/"m.safetensors"
    if not says:
        report = picie_train(str(photos), out=str(out), **{**SMALL, **args})
        assert out.exists() and np.isfinite(report["history"][-1]["train_loss"])
        s = Segmenter.load(out)(PHOTO)
        assert s.clusters.shape == (48, 48) and np.isfinite(s.confidence).all()
    else:
        with pytest.raises((ValueError, OSError)) as e: picie_train(str(photos), out=str(out), **{**SMALL, **args})
        assert says in str(e.value) and len(str(e.value)) < 400, e.value
        assert not out.exists() and not list(tmp_path.rglob("*.tmp"))


def test_a_photo_disappears(photos, tmp_path):
    "Between two epochs: one sentence that names it, and the checkpoint of the epoch before stays"
    from fastai.callback.core import Callback
    class Delete(Callback):
        def after_epoch(self):
            if self.epoch == 0: victim.unlink()
    torch.manual_seed(0)
    dls = picie_dls(photos, valid=.25, size=32, bs=3, cache_gb=0)
    victim = Path(dls.train_ds.items[0])
    learn = picie_learner(dls, n_clusters=4, **NET)
    with learn.no_bar(), learn.no_logging(), pytest.raises((ValueError, OSError)) as e: learn.fit(3, checkpoint=tmp_path/"run", cbs=Delete())
    assert victim.name in str(e.value)
    assert len(list((tmp_path/"run").glob("epoch-0001-*"))) == 1


def test_not_a_number(photos, tmp_path):
    "A loss that is no number stops the training in its batch, and the last good checkpoint stays"
    from fastai.callback.core import Callback
    class Poison(Callback):
        order = -5
        def before_batch(self):
            if self.training and self.epoch == 1 and self.iter == 1:
                with torch.no_grad(): next(self.learn.model.fpn.parameters()).fill_(float("nan"))
    torch.manual_seed(0)
    learn = picie_learner(picie_dls(photos, valid=.25, size=32, bs=2), n_clusters=4, **NET)
    with learn.no_bar(), learn.no_logging(), pytest.raises(ValueError, match="in batch 2 of epoch 2") as e: learn.fit(3, checkpoint=tmp_path/"run", cbs=Poison())
    assert "lower the learning rate" in str(e.value)
    assert [f.name[:10] for f in (tmp_path/"run").glob("epoch-*")] == ["epoch-0001"]


def values(f, change):
    "Change the numbers of a mask"
    Image.fromarray(change(np.asarray(Image.open(f)))).save(f)

def fraction(f):
    Image.fromarray(np.asarray(Image.open(f)).astype(np.float32)).save(f.with_suffix(".tif"))
    f.unlink()

def lossy(f):
    Image.open(f).save(f.with_suffix(".jpg"))
    f.unlink()

ONE, ALL = (lambda fs: fs[:1]), (lambda fs: fs)
MASKS = { # name: (which of them, what is done, what training says, what evaluating says; None if it works)
    "missing": (ONE, Path.unlink, "1 of 8 images have no mask", "have no truth"),
    "none at all": (ALL, Path.unlink, "no images in", "no images in"),
    "smaller": (ONE, lambda f: Image.open(f).resize((20, 20)).save(f), None, 'ask for resize="nearest"'),
    "another shape": (ONE, lambda f: Image.open(f).resize((30, 48)).save(f), "different proportions", "another shape"),
    "unknown value": (ONE, lambda f: values(f, lambda a: np.where(a == a.max(), 77, a).astype(np.uint8)), "holds values [77]", "holds values [77]"),
    "one void": (ONE, lambda f: values(f, lambda a: np.full_like(a, 255)), None, None),
    "all void": (ALL, lambda f: values(f, lambda a: np.full_like(a, 255)), "are all masks void?", "are all masks void?"),
    "saved as grey RGB": (ALL, lambda f: Image.open(f).convert("RGB").save(f), None, None),
    "colours": (ONE, lambda f: Image.merge("RGB", [Image.open(f).convert("L"), *Image.new("RGB", (48, 48), (1, 2, 3)).split()[:2]]).save(f), "has colours", "colours"),
    "JPEG": (ALL, lossy, "holds values", "not JPEG"),
    "cut": (ONE, lambda f: f.write_bytes(f.read_bytes()[:60]), "cannot be read", "cannot be read"),
    "no bytes": (ONE, lambda f: f.write_bytes(b""), "cannot be read", "cannot be read"),
    "text": (ONE, lambda f: f.write_text("mask"), "cannot be read", "cannot be read"),
    "bomb": (ONE, lambda f: f.write_bytes(bomb()), "cannot be read", "cannot be read"),
    "16 bits": (ALL, lambda f: values(f, lambda a: a.astype(np.uint16)), None, None),
    "one bit": (ALL, lambda f: Image.open(f).point(lambda v: 255*(v > 0)).convert("1").save(f), None, None),
    "fractions": (ONE, fraction, "whole numbers", "fractions"),
    "two for one image": (ONE, lambda f: Image.open(f).save(f.with_suffix(".tif")), "fits 2 masks", "have the same name"),
}


@pytest.mark.parametrize("name", MASKS)
def test_mask(name, photos, tmp_path):
    "Masks are read for scores only, before the first epoch: a fault costs no training, and is told with the file's name"
    which, change, *says = MASKS[name]
    masks, out = photos.parent/"masks", tmp_path/"m.safetensors"
    SCENES.save(tmp_path/"pred")
    for f in which(sorted(masks.iterdir())): change(f)
    def train(): return picie_train(str(photos), valid=str(photos), masks=str(masks), labels="toyscenes", out=str(out), **SMALL)
    def evaluate(): return picie_evaluate(str(tmp_path/"pred"/"masks"), str(masks), labels="toyscenes", quiet=True)
    for f, says in zip((train, evaluate), says):
        if not says: assert f()
        else:
            with pytest.raises((ValueError, OSError), match=re.escape(says)) as e: f()
            assert "masks" in str(e.value) and "\n" not in str(e.value)
    assert out.exists() == (not MASKS[name][2]) and not (tmp_path/"m.run").exists()
