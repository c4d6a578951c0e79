"Images as they come, in files and in memory: each kind gives the right picture or one clear sentence, and no file is passed over, misnamed or misread in silence."
import contextlib, io, json, re, struct, subprocess, sys, types, warnings, zlib
from pathlib import Path
import numpy as np
import pytest, torch
from PIL import Image
from picie_nb.backbone import create_backbone
from picie_nb.cli import picie_demo, picie_evaluate, picie_gallery, picie_segment, picie_train, _names
from picie_nb.data.folders import image_files, open_image, picie_dls, readable
from picie_nb.fpn import PiCIENet
from picie_nb.use.gallery import cluster_gallery, contact_sheet, similar
from picie_nb.data.scenes import ToyScenes
from picie_nb.segmenter import Segmenter

SCENES = ToyScenes(n=8, size=48, seed=0)
RGB = SCENES[0][0]
PHOTO = Image.fromarray(RGB)
GREY = np.asarray(PHOTO.convert("L"))
X = torch.from_numpy(RGB.copy()).permute(2, 0, 1)
OPAQUE = np.full_like(GREY, 255)
SMALL = dict(backbone="test_efficientnet", pretrained=False, clusters=3, epochs=1, size=32, bs=4, draws=1, quiet=True)


@pytest.fixture(scope="module")
def segmenter():
    torch.manual_seed(0)
    return Segmenter(PiCIENet(create_backbone("test_efficientnet", pretrained=False), 16), torch.randn(4, 16), size=32)


@pytest.fixture
def photos(tmp_path):
    "Eight photos"
    SCENES.save(tmp_path/"world")
    return tmp_path/"world"/"images"


def told(f):
    "Result and warnings of a call"
    with warnings.catch_warnings(record=True) as ws:
        warnings.simplefilter("always")
        return f(), " ".join(str(w.message) for w in ws)


RANGE, SHAPE = "leave out the normalisation", "an image has shape (H,W), (H,W,3)"
IN_MEMORY = { # name: (the same picture in another form, the sentence that refuses it; None: it is the same picture)
    "PIL image": (PHOTO, None),
    "opaque PIL image": (PHOTO.convert("RGBA"), None),
    "array of bytes": (RGB, None),
    "array of a batch of one": (RGB[None], None),
    "array with bands first": (RGB.transpose(2, 0, 1), None),
    "array of integers": (RGB.astype(np.int64), None),
    "array of fractions": (RGB/255, None),
    "array of short fractions": ((RGB/255).astype(np.float16), None),
    "array of 16 bits": (RGB.astype(np.uint16)*257, None),
    "array of 12 bits": ((RGB/255*4095).round().astype(np.uint16), None),
    "array of big-endian 16 bits": ((RGB.astype(np.uint16)*257).astype(">u2"), None),
    "opaque array": (np.dstack([RGB, OPAQUE]), None),
    "opaque array of fractions": (np.dstack([RGB/255, OPAQUE/255]), None),
    "opaque array of 16 bits": (np.dstack([RGB, OPAQUE]).astype(np.uint16)*257, None),
    "array with infrared": (np.dstack([RGB, 255-GREY]), None),
    "array that is not contiguous": (np.asfortranarray(RGB[::-1])[::-1], None),
    "tensor of bytes": (X, None),
    "tensor of fractions": (X/255, None),
    "tensor of doubles": (X.double()/255, None),
    "tensor of halves": ((X/255).half(), None),
    "tensor with a gradient": ((X/255).requires_grad_(), None),
    "tensor of a batch of one": (X[None]/255, None),
    "tensor with bands last": (X.permute(1, 2, 0), None),
    "tensor of integers": (X.long(), None),
    "opaque tensor": (torch.cat([X, torch.full_like(X[:1], 255)]), None),
    "array of fractions to 255": (RGB.astype(np.float32), RANGE),
    "tensor of fractions to 255": (X.float(), RANGE),
    "normalised tensor": ((X/255-.45)/.22, RANGE),
    "tensor from -1 to 1": (X/127.5-1, RANGE),
    "not a number": (X*float("nan"), "these go from nan"),
    "batch of two": (torch.stack([X, X]), "give list(x)"),
    "seven bands": (np.dstack([RGB, RGB, GREY]), SHAPE),
    "a row": (RGB[0, :, 0], SHAPE),
    "no pixels": (RGB[:0], "no pixels"),
    "objects": (RGB.astype(object), "not object"),
    "a number": (3, "give a path, a PIL image, an array or a tensor"),
    "a file that is open": (io.BytesIO(b"x"), "give a path, a PIL image, an array or a tensor"),
}


@pytest.mark.parametrize("name", IN_MEMORY)
def test_in_memory(name, segmenter):
    "The same picture in any form gives the same clusters, patches and features, or one sentence; also as one of a list"
    im, says = IN_MEMORY[name]
    ways = dict(call=lambda: segmenter(im).clusters, stream=lambda: next(iter(segmenter.stream([im], progress=False))).clusters,
                gallery=lambda: cluster_gallery(segmenter, [im], n=1).shares, sheet=lambda: contact_sheet(segmenter, [im]), similar=lambda: similar(segmenter, im, (5, 7)).heat)
    right = dict(call=segmenter(PHOTO).clusters, gallery=cluster_gallery(segmenter, [PHOTO], n=1).shares, sheet=contact_sheet(segmenter, [PHOTO]), similar=similar(segmenter, PHOTO, (5, 7)).heat)
    for way, f in ways.items():
        if not says: assert np.array_equal(np.asarray(told(f)[0]), np.asarray(right.get(way, right["call"]))), way
        else:
            with pytest.raises((ValueError, TypeError)) as e: f()
            assert (says in str(e.value) or way == "sheet") and "\n" not in str(e.value), (way, e.value)


def test_ranges_of_batches(segmenter):
    "Tensors that enter the network directly: bytes are fractions of 255, other ranges are refused"
    x = torch.stack([X, X.flip(-1)])
    right = segmenter.clusters(x/255)
    assert torch.equal(segmenter.clusters(x), right)
    for o in (x.float(), (x/255-.45)/.22, x*float("nan")):
        for f in (segmenter.clusters, segmenter.scores):
            with pytest.raises(ValueError, match="divide by 255"): f(o)


def test_widgets_and_onnx(segmenter, tmp_path):
    "The other two doors take the same forms, and refuse the same"
    w = pytest.importorskip("picie_nb.use.widgets")
    for o in (X, X/255, RGB/255, RGB.astype(np.uint16)*257, X[None]): assert np.array_equal(w._picture(o, 99), RGB)
    with pytest.raises(ValueError, match="cannot be shown.*divide by 255"): w.view_pictures(X.float())
    pytest.importorskip("onnxruntime"); pytest.importorskip("onnxscript")
    from picie_nb.use.deploy import OnnxSegmenter
    run = OnnxSegmenter(segmenter.to_onnx(tmp_path/"m.onnx"))
    right = run(PHOTO).clusters
    for o in (X, X/255, RGB/255, RGB.astype(np.uint16)*257, X[None], np.dstack([RGB, OPAQUE])): assert np.array_equal(run(o).clusters, right)
    with pytest.raises(ValueError, match="divide by 255"): run(X.float())


def tif(a, **tags):
    "A TIFF; tags by number, changed in the bytes, as Pillow writes some of them its own way"
    buf = io.BytesIO()
    Image.fromarray(a).save(buf, "TIFF")
    b = bytearray(buf.getvalue())
    start = struct.unpack("<I", b[4:8])[0]
    for i in range(struct.unpack("<H", b[start:start+2])[0]):
        p = start+2+12*i
        tag = str(struct.unpack("<H", b[p:p+2])[0])
        if tag in tags: b[p+8:p+12] = struct.pack("<HH", tags[tag], 0)
    return bytes(b)

def png(a, colour):
    "A PNG of 16 bits in each band"
    chunk = lambda kind, b: struct.pack(">I", len(b))+kind+b+struct.pack(">I", zlib.crc32(kind+b))
    rows = b"".join(b"\0"+r.astype(">u2").tobytes() for r in a)
    return b"\x89PNG\r\n\x1a\n"+chunk(b"IHDR", struct.pack(">IIBBBBB", a.shape[1], a.shape[0], 16, colour, 0, 0, 0))+chunk(b"IDAT", zlib.compress(rows))+chunk(b"IEND", b"")

def data(im, format, **kw):
    buf = io.BytesIO()
    im.save(buf, format, **kw)
    return buf.getvalue()

deep = lambda top, a=GREY: (a/255*top).round().astype(np.uint16)
hot = deep(4095)
hot[3, 3] = 65535
LO, HI = (int(np.percentile(GREY, q, method=m)) for q, m in ((.1, "lower"), (99.9, "higher")))
SPREAD = ((GREY.astype(float)-LO)/(HI-LO)*255).clip(0, 255)
DEEP = { # name: (bytes of a file, (the grey or colours it shows, how far off), what is told; or the sentence that refuses it)
    "8 bits in 32.tif": (tif(GREY.astype(np.int32)), (GREY, 0), ""),
    "8 bits in 16.tif": (tif(GREY.astype(np.uint16)), (GREY, 0), ""),
    "10 bits in 16.png": (data(Image.fromarray(deep(1023)), "PNG"), (GREY, 0), "read as 10 bits"),
    "12 bits in 16.png": (data(Image.fromarray(deep(4095)), "PNG"), (GREY, 0), "read as 12 bits"),
    "14 bits in 16.tif": (tif(deep(16383)), (GREY, 0), "read as 14 bits"),
    "16 bits.png": (data(Image.fromarray(deep(65535)), "PNG"), (GREY, 0), ""),
    "12 bits in 32.tif": (tif(deep(4095).astype(np.int32)), (GREY, 0), "read as 12 bits"),
    "12 bits and a dead pixel.png": (data(Image.fromarray(hot), "PNG"), (GREY, .2), "read as 12 bits"),
    "tomography.tif": (tif(GREY.astype(np.int32)*16-1024), (SPREAD, .5), "spread from black to white"),
    "heat.tif": (tif((27000+GREY.astype(int)*8).astype(np.uint16)), (SPREAD, .5), "spread from black to white"),
    "32 bits.tif": (tif(GREY.astype(np.int32)*8_000_000), (SPREAD, .5), "spread from black to white"),
    "black 16 bits.png": (data(Image.fromarray(GREY.astype(np.uint16)*0), "PNG"), (GREY*0, 0), ""),
    "white is zero.tif": (tif(255-GREY, **{"262": 0}), (GREY, 0), ""),
    "white is zero, 16 bits.tif": (tif(65535-deep(65535), **{"262": 0}), (GREY, 0), ""),
    "white is zero, 12 bits.tif": (tif(4095-deep(4095), **{"262": 0}), (GREY, 0), "read as 12 bits"),
    "12 bits.pgm": (b"P5 48 48 4095\n"+deep(4095).astype(">u2").tobytes(), (GREY, 0), ""),
    "colours of 16 bits.png": (png(deep(65535, RGB), 2), (RGB, 0), ""),
    "colours of 12 bits in 16.png": (png(deep(4095, RGB), 2), "nearly black", ""),
    "grey and alpha of 12 bits in 16.png": (png(np.dstack([deep(4095), OPAQUE.astype(np.uint16)*257]), 4), "nearly black", ""),
    "fractions.tif": (tif((GREY/255).astype(np.float32)), "its pixels are fractions", ""),
    "opaque.png": (data(PHOTO.convert("RGBA"), "PNG"), (RGB, 0), ""),
    "infrared called alpha.tif": (tif(np.dstack([RGB, 255-GREY])), (RGB, 0), "is left out"),
    "empty alpha.png": (data(Image.fromarray(np.dstack([RGB, 0*GREY])), "PNG"), (RGB, 0), "is left out"),
    "half glass.png": (data(Image.fromarray(np.dstack([RGB, OPAQUE//2])), "PNG"), (RGB, 0), "is left out"),
    "infrared called premultiplied.tif": (tif(np.dstack([RGB, 255-GREY]), **{"338": 1}), "save it as RGB", ""),
    "infrared, not called alpha.tif": (tif(np.dstack([RGB, 255-GREY]), **{"338": 0}), (RGB, 0), ""),
    "hole.png": (data(Image.fromarray(np.dstack([RGB, np.where(np.arange(48) < 24, 255, 0)[None].repeat(48, 0).astype(np.uint8)])), "PNG"),
                 (np.where(np.arange(48)[None, :, None] < 24, RGB, 255), 0), ""),
}


@pytest.mark.parametrize("name", DEEP)
def test_deep_and_transparent(name, photos, segmenter):
    "Deep, inverted and transparent files keep their contrast, or are refused by name; the guess is told, wherever a file is opened"
    content, right, says = DEEP[name]
    f = photos/name
    f.write_bytes(content)
    if isinstance(right, str):
        with pytest.raises(ValueError, match=f"{re.escape(name)}: .*{right}"): open_image(f)
        assert [o.name for o in readable([f])[1]] == [name]
        return
    want, off = right
    im, text = told(lambda: open_image(f))
    assert im.mode == "RGB" and np.abs(np.asarray(im).astype(float)-(want if want.ndim == 3 else want[..., None])).mean() <= off
    assert says in text and bool(says) == bool(text)
    assert told(lambda: readable([f])) == (([f], {}), text) and told(lambda: segmenter(Image.open(f)))[1] == text
    assert np.array_equal(told(lambda: segmenter(f))[0].clusters, segmenter(im).clusters)


def test_commands_tell(photos, segmenter, tmp_path):
    "In the shell a guess is one line for all files of a kind"
    for i in range(3): Image.fromarray(deep(4095)).save(photos/f"scan{i}.png")
    args = [Path(sys.executable).parent/"picie-segment", segmenter.save(tmp_path/"m.safetensors"), photos, "--out", tmp_path/"out", "--quiet"]
    res = subprocess.run([*map(str, args)], capture_output=True, text=True)
    assert res.returncode == 0 and len(res.stderr.splitlines()) == 1 and res.stderr.startswith("picie-segment: 16-bit pixels below 4096 are read as 12 bits"), res.stderr


FORMATS = { # ending: how Pillow calls it
    ".jfif": "JPEG", ".JPE": "JPEG", ".gif": "GIF", ".jp2": "JPEG2000", ".avif": "AVIF", ".PPM": "PPM", ".tga": "TGA", ".webp": "WEBP", ".TIFF": "TIFF"}

@pytest.mark.parametrize("ending", FORMATS)
def test_format(ending, tmp_path):
    "Every format that Pillow reads is found and read"
    Image.init()
    if FORMATS[ending] not in Image.SAVE: pytest.skip(f"this Pillow writes no {FORMATS[ending]}")
    PHOTO.save(tmp_path/f"a{ending}", FORMATS[ending])
    (f,) = image_files(tmp_path)
    assert np.abs(np.asarray(open_image(f)).astype(int)-RGB).mean() < 10


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
UNREAD = { # name: (bytes, remedy)
    "a.HEIC": (HEIC, "pip install pillow-heif"), "a.hif": (HEIC, "pip install pillow-heif"),
    "a.jxl": (b"\xff\n12", "pip install pillow-jxl-plugin"), "a.nef": (b"II*\0", "save them as JPEG"), "a.DNG": (b"II*\0", "save them as JPEG"),
}

@pytest.fixture
def plain(monkeypatch):
    "A Pillow without plug-ins"
    for o in ("pillow_heif", "pillow_jxl"): monkeypatch.setitem(sys.modules, o, None)
    Image.init()
    for k in (".heic", ".heif", ".hif", ".jxl"): monkeypatch.delitem(Image.EXTENSION, k, raising=False)

@pytest.mark.parametrize("name", UNREAD)
def test_never_in_silence(name, plain, photos, segmenter, tmp_path):
    "What cannot be read is counted and named, with the remedy, and the rest is used; alone, it is the reason why there is nothing"
    content, remedy = UNREAD[name]
    (photos/name).write_bytes(content)
    files, text = told(lambda: image_files(photos))
    assert len(files) == 8 and f"1 {Path(name).suffix.lower()}, first" in text and name in text and remedy in text
    model = str(segmenter.save(tmp_path/"m.safetensors"))
    for f in (lambda: picie_segment(model, str(photos), out=str(tmp_path/"o"), quiet=True), lambda: picie_gallery(model, str(photos), out=str(tmp_path/"g.html"), quiet=True),
              lambda: picie_train(str(photos), out=str(tmp_path/"t.safetensors"), **SMALL), lambda: list(segmenter.stream(photos, progress=False))): assert name in told(f)[1]
    for f in files: f.unlink()
    with pytest.raises(FileNotFoundError, match=f"{name}: .*{remedy}"): image_files(photos)


def test_a_phone_names_heic_jpg(plain, tmp_path):
    "Its first bytes say which plug-in is missing"
    (tmp_path/"IMG_1.JPG").write_bytes(HEIC)
    with pytest.raises(ValueError, match="IMG_1.JPG cannot be read.*pip install pillow-heif"): open_image(tmp_path/"IMG_1.JPG")


def test_a_plug_in_is_used(tmp_path, monkeypatch):
    "An installed plug-in needs no word of the user, not even for a file with another ending"
    def opener(fp=None, filename=None): return Image.open(io.BytesIO(data(PHOTO, "PNG")))
    def register(): Image.register_open("HEIF", opener, lambda head: head[4:12] == b"ftypheic"); Image.register_extensions("HEIF", [".heic"])
    Image.init()
    for table in ("OPEN", "EXTENSION", "ID"): monkeypatch.setattr(Image, table, getattr(Image, table).copy())
    monkeypatch.setitem(sys.modules, "pillow_heif", types.SimpleNamespace(register_heif_opener=register))
    for n in ("a.heic", "b.jpg"): (tmp_path/n).write_bytes(HEIC)
    files, text = told(lambda: image_files(tmp_path))
    assert [f.name for f in files] == ["a.heic", "b.jpg"] and not text
    for f in files: assert np.array_equal(open_image(f), RGB)


JUNK = ["@eaDir/a.jpg/SYNOPHOTO_THUMB_XL.jpg", "@eadir/x.png", "#recycle/x.jpg", "@Recycle/x.jpg", "@__thumb/x.jpg", "#snapshot/x.jpg", "$RECYCLE.BIN/S-1-5/$RX.JPG", "System Volume Information/x.jpg",
        "__MACOSX/._x.jpg", "__MACOSX/x.jpg", "RECYCLER/x.jpg", "lost+found/x.png", ".thumbnails/x.png", ".Trash-1000/files/x.png", ".picasaoriginals/x.jpg", "trip/._IMG_1.jpg", "trip/@eaDir/x.jpg"]

@pytest.mark.parametrize("name", JUNK)
def test_junk(name, photos):
    "Thumbnails, deleted files and what a Mac leaves behind are no photos"
    (photos/name).parent.mkdir(parents=True)
    PHOTO.save(photos/name, "JPEG")
    assert told(lambda: len(image_files(photos))) == (8, "")


def test_names_like_junk(photos):
    "but a folder of the user that begins with such a sign is used"
    for d in ("#holiday", "@home", "thumbs up", "$100"): (photos/d).mkdir(); PHOTO.save(photos/d/"x.png")
    assert len(image_files(photos)) == 12


STEMS = { # photos: names of their results
    ("a.jpg", "b.jpg"): ["a.png", "b.png"],
    ("a.jpg", "a.png", "a_1.jpg"): ["a.jpg.png", "a.png.png", "a_1.png"],
    ("a.jpg", "a.png", "a.jpg.webp"): ["a.jpg_2.png", "a.png.png", "a.jpg.png"],
    ("A.jpg", "a.png"): ["A.jpg.png", "a.png.png"],
    ("é.jpg", "e\u0301.png"): ["é.jpg.png", "e\u0301.png.png"],
    ("x/a.jpg", "y/a.jpg"): ["x/a.png", "y/a.png"],
    ("a.jpg", "a.jpg"): ["a.jpg.png", "a.jpg_2.png"],
    ("a.b.jpg", "a.c.jpg"): ["a.b.png", "a.c.png"],
}

@pytest.mark.parametrize("names", STEMS, ids=" ".join)
def test_stems(names):
    "A result has its photo's name, and never one that another photo has a claim to"
    assert [o.as_posix() for _, o in _names([(n, Path(n)) for n in names])] == STEMS[names]


def test_manifest(segmenter, photos, tmp_path):
    "It maps each file to its photo, over several runs, and the report does the same"
    model, out = str(segmenter.save(tmp_path/"m.safetensors")), tmp_path/"out"
    PHOTO.rotate(90).save(photos/"00000.jpg"); PHOTO.rotate(180).save(photos/"00000_1.png")
    picie_segment(model, str(photos), out=str(out), json=str(tmp_path/"r.json"), quiet=True)
    made = json.loads((out/"manifest.json").read_text())
    assert made == json.loads((tmp_path/"r.json").read_text())["files"] and len(made) == 10
    for png, photo in made.items(): assert np.array_equal(np.asarray(Image.open(out/png)), segmenter(photo).clusters)
    PHOTO.save(tmp_path/"more.jpg")
    (out/"00003.png").unlink()
    picie_segment(model, str(tmp_path/"more.jpg"), out=str(out), quiet=True)
    assert json.loads((out/"manifest.json").read_text()) == {**{k: v for k, v in made.items() if k != "00003.png"}, "more.png": str(tmp_path/"more.jpg")}
    (out/"manifest.json").write_text("[]")
    with pytest.raises(ValueError, match="is not from picie-segment"): picie_segment(model, str(tmp_path/"more.jpg"), out=str(out), quiet=True)
    assert (out/"manifest.json").read_text() == "[]"


def segment(m, d, out, *paths, **kw): picie_segment(m, *map(str, paths or [d]), out=str(out), overlay=True, quiet=True, **kw)
def evaluate(m, d):
    SCENES.save(d.parent/"pred")
    picie_evaluate(str(d.parent/"pred"/"masks"), str(d.parent/"masks"), labels="toyscenes", confusion=str(d/"confusion.png"), bootstrap=0, quiet=True)
def copied(m, d):
    segment(m, d, d.parent/"elsewhere")
    (d.parent/"elsewhere").rename(d/"renamed")

OWN = { # what was done inside the folder of photos
    "maps and overlays": lambda m, d: segment(m, d, d/"segments"),
    "maps beside the photos": lambda m, d: segment(m, d, d, *map(Path, jpegs(d))),
    "two folders of maps": lambda m, d: [segment(m, d, d/o) for o in ("one", "two/deep")],
    "maps under another name": copied,
    "a model and its sheet": lambda m, d: picie_train(str(d), out=str(d/"m.safetensors"), **SMALL),
    "a model in a folder of its own": lambda m, d: picie_train(str(d), out=str(d/"models"/"m.safetensors"), **SMALL),
    "a confusion matrix": evaluate,
    "a map saved by hand": lambda m, d: Segmenter.load(m)(PHOTO).save(d/"by hand.png"),
}

def jpegs(d):
    "The photos as JPEG, so that a map may stand beside its photo"
    for f in image_files(d): Image.open(f).save(f.with_suffix(".jpg"), quality=95); f.unlink()
    return image_files(d)

@pytest.mark.parametrize("name", OWN)
def test_own_outputs(name, segmenter, photos, tmp_path):
    "What the library drew inside the folder of photos is no photo: to look, to segment again, to train, to stream"
    model = str(segmenter.save(tmp_path/"m.safetensors"))
    OWN[name](model, photos)
    every = len([f for f in photos.rglob("*") if f.suffix in (".png", ".jpg")])
    assert every > 8 and len(image_files(photos)) == 8 and len(image_files(photos, drawn=True)) == every
    out = io.StringIO()
    with contextlib.redirect_stdout(out): picie_gallery(model, str(photos), out=str(tmp_path/"g.html")); picie_train(str(photos), out=str(tmp_path/"t.safetensors"), **{**SMALL, "quiet": False})
    assert "in 8 images" in out.getvalue() and "7 training and 1 validation" in out.getvalue()
    picie_segment(model, str(photos), out=str(tmp_path/"again"), quiet=True)
    assert len(json.loads((tmp_path/"again"/"manifest.json").read_text())) == 8 == len(list(segmenter.stream(photos, progress=False)))
    picie_segment(model, *map(str, image_files(photos, drawn=True)), out=str(tmp_path/"shell"), quiet=True) # as a shell gives them
    assert len(json.loads((tmp_path/"shell"/"manifest.json").read_text())) == 8


def test_demo_is_drawn(photos, monkeypatch):
    picie_demo(out=str(photos/"demo"), epochs=1, images=4, size=32, quiet=True)
    assert (photos/"demo"/"demo.png").exists() and len(image_files(photos)) == 8


def test_maps_are_read_where_they_are_wanted(segmenter, photos, tmp_path):
    "To be scored, and as masks"
    model = str(segmenter.save(tmp_path/"m.safetensors"))
    picie_segment(model, str(photos), out=str(tmp_path/"maps"), quiet=True)
    assert picie_evaluate(str(tmp_path/"maps"), str(photos.parent/"masks"), labels="toyscenes", bootstrap=0, quiet=True)["n_images"] == 8
    dls = picie_dls(photos, size=32, bs=4, valid=.25, masks=tmp_path/"maps", labels=[f"c{i}" for i in range(4)])
    assert len(dls.valid.one_batch()) == 2


def test_no_photo_is_overwritten(segmenter, photos, tmp_path):
    "Neither the photo itself nor another, nor a file of another program"
    model, other = str(segmenter.save(tmp_path/"m.safetensors")), tmp_path/"other"
    other.mkdir()
    PHOTO.save(other/"00003.jpg")
    before = {f: f.read_bytes() for f in image_files(photos)}
    for paths in ([photos/"00003.png"], [other]):
        with pytest.raises(ValueError, match="would take the place of the photo"): picie_segment(model, *map(str, paths), out=str(photos), quiet=True)
    s = segmenter(photos/"00003.png")
    with pytest.raises(ValueError, match="is the photo itself"): s.save(photos/"00003.png")
    with pytest.raises(ValueError, match="is the photo itself"): s.save(photos.parent/"masks"/".."/"images"/"00003.png")
    assert before == {f: f.read_bytes() for f in image_files(photos)}


@pytest.fixture
def guard(monkeypatch):
    "Pillow's guard, set so low that photos of 48 x 48 are too large"
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)

def test_large_photo_is_not_called_broken(guard, photos, segmenter, tmp_path):
    f = image_files(photos)[0]
    for call in (lambda: open_image(f), lambda: segmenter(f), lambda: picie_dls(photos, size=32)):
        with pytest.raises(ValueError) as e: call()
        assert all(o in str(e.value) for o in ("megapixels", "MAX_IMAGE_PIXELS", "PICIE_MAX_MEGAPIXELS=", "cut it into parts")) and "no image" not in str(e.value)
    assert all("MAX_IMAGE_PIXELS" in o for o in readable([f])[1].values())


def test_large_photo_way_out(guard, photos, segmenter, tmp_path, monkeypatch):
    "In functions and in commands"
    model, f = str(segmenter.save(tmp_path/"m.safetensors")), image_files(photos)[0]
    assert picie_segment(model, str(photos), out=str(tmp_path/"o"), quiet=True) == 1
    monkeypatch.setenv("PICIE_MAX_MEGAPIXELS", "0.01")
    assert picie_segment(model, str(photos), out=str(tmp_path/"o"), quiet=True) == 0
    assert picie_train(str(photos), out=str(tmp_path/"t.safetensors"), **SMALL)
    monkeypatch.setenv("PICIE_MAX_MEGAPIXELS", "many")
    with pytest.raises(ValueError, match="PICIE_MAX_MEGAPIXELS=many: give a number"): open_image(f)
    monkeypatch.delenv("PICIE_MAX_MEGAPIXELS")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert open_image(f).size == (48, 48)


def test_large_photo_in_tiles(segmenter):
    "Its tiles enter the network one at a time, as bytes until then; above 4 megapixels of scores the winner is chosen at their size"
    seg, seen = segmenter._with(tile=256), []
    seg._run = lambda x: seen.append((x.shape, x.dtype)) or Segmenter._run(seg, x)
    im = PHOTO.resize((1100, 900), Image.BICUBIC)
    s = seg(im, size=900)
    assert s.clusters.shape == (900, 1100) and len(seen) > 9 and all(max(o[-2:]) <= 256 and t == torch.uint8 for o, t in seen)
    fine = torch.zeros(1, 4, 2100, 2100)
    fine[0, 1, ::2] = 1 # every second row: lost at 4 megapixels
    c = segmenter._finish(fine, Image.new("RGB", (4200, 4200)), None).clusters
    assert c.shape == (4200, 4200) and (c[::4] == 1).all() and (c[2::4] == 0).all()


def test_few_large_photos_are_read_ahead(segmenter, monkeypatch):
    "As many as have so many pixels together, whatever the size of the batch"
    import picie_nb.use.stream as made
    monkeypatch.setattr(made, "_open", lambda f, g: g(Image.new("1", (10_000, 9000))))
    stream = segmenter.stream([Path("x")]*20, bs=8, progress=False)
    assert [len(list(stream._few(iter(enumerate(stream.images)), n))) for n in (2, 16)] == [2, 3]


def test_wider_than_a_jpeg(segmenter, tmp_path):
    "A strip of 70000 pixels: its map is whole, its overlay made smaller"
    Image.new("RGB", (70_000, 4)).save(tmp_path/"strip.png")
    segment(str(segmenter.save(tmp_path/"m.safetensors")), tmp_path, tmp_path/"out", tmp_path/"strip.png")
    assert [Image.open(tmp_path/"out"/f"strip{o}").width for o in (".png", ".overlay.jpg")] == [70_000, 65_500]
