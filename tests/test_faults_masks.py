"Masks, names and labels as other tools write them: the right classes, or one sentence that says what to do; never a wrong score in silence."
import json, os, subprocess, sys, unicodedata, warnings
from pathlib import Path
import numpy as np
import pytest, torch
from PIL import Image, ImageDraw
from picie_nb.cli import picie_check, picie_evaluate, picie_train
from picie_nb.data.folders import _fitted, _open_mask, match_masks, picie_dls
from picie_nb.data.catalog import check_dataset, open_dataset, read_list
from picie_nb.evaluate.report import evaluate, evaluate_folders
from picie_nb.data.labels import CAMVID11, LABELSETS, LabelSet, label_set
from picie_nb.learner import picie_learner
from picie_nb.evaluate.metrics import ConfusionMatrix, HungarianMetric, score
from picie_nb.evaluate.protocols import per_image_score

PAIR = ["background", "object"]
HALF = np.arange(24)[:, None]//12+np.zeros((24, 32), int) # 0 above, 1 below


def told(f):
    "Result and warnings of a call"
    with warnings.catch_warnings(record=True) as w:
        warnings.simplefilter("always")
        res = f()
    return res, [str(o.message) for o in w if o.category is UserWarning]


def save(path, a, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    im = Image.fromarray(np.asarray(a))
    (im.convert(mode) if mode else im).save(path)
    return path


def u8(a): return np.asarray(a, np.uint8)
def u16(a): return np.asarray(a, np.uint16)


# ---- a class written with the ignore value

WRITTEN = { # what stands for the second class in the files
    "0 and 1": lambda d: save(d, u8(HALF)),
    "boolean": lambda d: save(d, HALF > 0),
    "0 and 255": lambda d: save(d, u8(255*HALF)),
    "0 and 65535": lambda d: save(d, u16(65535*HALF)),
    "0 and 255 in 16 bits": lambda d: save(d, u16(255*HALF)),
    "0 and 255 as RGB": lambda d: save(d, u8(255*HALF), "RGB"),
    "0 and 255 as RGBA": lambda d: save(d, u8(255*HALF), "RGBA"),
    "0 and 255 as LA": lambda d: save(d, u8(255*HALF), "LA"),
    "0 and 255 as a palette": lambda d: save(d, u8(255*HALF), "P"),
    "0 and 1, shown as black and white": lambda d: (im := Image.fromarray(u8(HALF))).putpalette([0]*3+[255]*3) or im.save(d),
}


@pytest.mark.parametrize("labels", [PAIR, tuple(PAIR), "background,object", LabelSet(PAIR, ignore=-1), LabelSet(PAIR, palette=[(0, 0, 0), (255, 0, 0)])], ids=str)
@pytest.mark.parametrize("written", WRITTEN)
def test_two_values_are_two_classes(written, labels, tmp_path):
    "Black and white, in any form: scored as two classes by folder, by batch and in a check, so that one cluster everywhere is half right"
    for i in range(3):
        for d in ("images", "flat"): save(tmp_path/d/f"{i}.png", u8(0*HALF), "RGB" if d == "images" else None)
        (tmp_path/"masks").mkdir(exist_ok=True)
        WRITTEN[written](tmp_path/"masks"/f"{i}.png")
    for pred, acc in (("masks", 1), ("flat", .5)):
        s = told(lambda: evaluate_folders(tmp_path/pred, tmp_path/"masks", labels=labels))[0].score()
        assert (s.acc, s.n_true, s.ignored) == (acc, 2, 0), s
    dls = told(lambda: picie_dls(tmp_path/"images", size=16, bs=2, valid=tmp_path/"images", masks=tmp_path/"masks", labels=labels, device="cpu"))[0]
    assert all((y == torch.from_numpy(HALF)).all() for _, y in dls.valid)
    res = check_dataset(open_dataset(tmp_path, labels=labels, valid=tmp_path/"images"))
    assert res.ok and not any("never occur" in n for n in res.notes), res


SETS = { # values of the masks of a set, and what they become: classes, or a part of the error
    "a mask with 1 and 255: void": ([[0, 1, 255], [0, 255], [0, 1]], [[0, 1, 255], [0, 255], [0, 1]]),
    "an object that is not in every picture": ([[0, 255], [0, 0], [255, 255]], [[0, 1], [0, 0], [1, 1]]),
    "two tools, or void beside nothing": ([[0, 1], [0, 255]], "255 may mean 'object' or ignored"),
    "white everywhere": ([[255, 255]], "255 may mean 'object' or ignored"),
    "black everywhere": ([[0, 0]], [[0, 0]]),
    "a third value": ([[0, 255], [0, 128]], "holds values [128]"),
    "numbers from 1": ([[1, 2]], "holds values [2]"),
}


@pytest.mark.parametrize("kind", SETS)
def test_a_set_of_masks_is_read_as_one(kind, tmp_path):
    values, want = SETS[kind]
    files = [save(tmp_path/f"{i}.png", u8([v])) for i, v in enumerate(values)]
    def read():
        fit = _fitted(LabelSet(PAIR), files)
        return [_open_mask(f, fit)[0].tolist() for f in files]
    if isinstance(want, str):
        with pytest.raises(ValueError) as e: told(read)
        assert want in str(e.value) and "\n" not in str(e.value)
    else: assert told(read)[0] == want


ARRAYS = { # what `evaluate` gets as truth, with which arguments: accuracy of one cluster everywhere, or a part of the error
    "array": (255*HALF, dict(labels=PAIR), .5),
    "tensor": (torch.from_numpy(255*HALF), dict(labels=PAIR), .5),
    "list": ([255*HALF, 255*HALF], dict(labels=PAIR), .5),
    "booleans": (HALF > 0, dict(labels=PAIR), .5),
    "16 bits": (65535*HALF, dict(labels=PAIR), .5),
    "generator of names": (255*HALF, dict(labels=(o for o in PAIR)), .5),
    "number of classes alone": (255*HALF, dict(n_classes=2), .5),
    "negative ignore": (255*HALF, dict(labels=LabelSet(PAIR, ignore=-1)), .5),
    "ignore beyond 255": (255*HALF, dict(labels=LabelSet(PAIR, ignore=1000)), .5),
    "generator": (iter([255*HALF]), dict(labels=PAIR), "give labels.map(true)"),
    "raw values under a table": (255*HALF, dict(labels=LabelSet(PAIR, table={0: 0, 255: 1})), "give labels.map(true)"),
    "raw values under a dict": (255*HALF, dict(labels={"background": 0, "object": 255}), "give labels.map(true)"),
    "one name": (255*HALF, dict(labels=["object"]), "name both"),
    "two formats": ([HALF, 255*HALF], dict(labels=PAIR), "may mean"),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_of_two_values(kind):
    true, args, want = ARRAYS[kind]
    pred = [0*HALF]*len(true) if isinstance(true, list) else 0*HALF if not hasattr(true, "__next__") else [0*HALF]
    if isinstance(want, str):
        with pytest.raises(ValueError, match=want.replace("(", r"\(").replace(")", r"\)")): evaluate(pred, true, **args)
    else:
        s = evaluate(pred, true, **args).score()
        assert (s.acc, s.n_true, s.n_classes) == (want, 2, 2), s


def test_black_and_white_predictions(tmp_path):
    "A prediction in black and white has two clusters; with void in it, or beside other classes, it is refused"
    for name, a in dict(bw=255*HALF, ones=HALF, three=np.where(HALF, 255, np.arange(32)//16)).items(): save(tmp_path/name/"a.png", u8(a))
    assert told(lambda: evaluate_folders(tmp_path/"bw", tmp_path/"ones", labels=PAIR).score("none"))[0].acc == 1
    assert evaluate(HALF > 0, 255*HALF, labels=PAIR).score("none").acc == evaluate(255*HALF, HALF, labels=PAIR).score("none").acc == 1
    for labels, pred in ((PAIR, "three"), (["a", "b", "c"], "bw")):
        with pytest.raises(ValueError, match="means void in masks"): evaluate_folders(tmp_path/pred, tmp_path/"ones", labels=labels)


def test_a_single_mask_does_not_guess():
    assert LabelSet(PAIR).map(np.array([[0, 1, 255]])).tolist() == [[0, 1, 255]]
    for kind in (np.array, torch.tensor):
        with pytest.raises(ValueError, match="table={0: 0, 1: 1, 255: 1}"): LabelSet(PAIR).map(kind([[0, 255]]))
        for c in (1, 255): assert LabelSet(PAIR, table={0: 0, 1: 1, 255: c}).map(kind([[0, 255]])).tolist() == [[0, c]]


def test_many_classes_with_void_are_left_alone(tmp_path):
    "CamVid's way: 255 is void beside many classes, given by name, as a list or saved; nothing is looked at twice, changed or told"
    rng = np.random.default_rng(0)
    for i in range(4): save(tmp_path/"masks"/f"{i}.png", u8(np.where(rng.random((24, 32)) < .3, 255, rng.integers(0, 11, (24, 32))))), save(tmp_path/"images"/f"{i}.png", u8(HALF), "RGB")
    for labels in ("camvid11", CAMVID11, CAMVID11.names, LabelSet.from_dict(json.loads(json.dumps(CAMVID11.to_dict())))):
        ev, said = told(lambda: evaluate_folders(tmp_path/"masks", tmp_path/"masks", labels=labels, n_clusters=256))
        assert not said and ev.score().n_true == 11 and .25 < ev.score().ignored < .35
        dls, said = told(lambda: picie_dls(tmp_path/"images", size=16, bs=2, valid=tmp_path/"images", masks=tmp_path/"masks", labels=labels, device="cpu"))
        assert not said and dls.labels == label_set(labels) and set(np.unique([y.numpy() for _, y in dls.valid])) == {*range(11), 255}
    for l in LABELSETS.values(): assert l.fitted([[0, 255]]) is l
    few = LabelSet(["a", "b", "c"])
    assert few.fitted([[0, 255]]) is few and few.map(np.array([0, 255])).tolist() == [0, 255]


# ---- scores that say what they are about

def cm(true, C, pred=0, **kw): return ConfusionMatrix(2, C, **kw).update(torch.full(np.shape(true), pred), torch.tensor(true))

SAID = { # a matrix, and what is warned
    "both classes, little void": (lambda: score(cm([[0, 1, 1, 255]], 2)), None),
    "half void": (lambda: score(cm([[0, 1, 255, 255]], 2)), None),
    "more than half void": (lambda: score(cm([[0, 1, 255, 255, 255]], 2)), "60% of the pixels are ignored"),
    "all but one class void": (lambda: score(cm([[0, 0, 255]], 2)), "only class 0 of 2 occurs"),
    "only one class": (lambda: score(cm([[1, 1]], 2), labels=PAIR), "only class 'object' of 2 occurs"),
    "only one of eleven": (lambda: score(cm([[3, 3, 255]], 11), labels=CAMVID11), "only class 'road' of 11 occurs"),
    "bare matrix of one class": (lambda: score(torch.tensor([[5, 0], [2, 0]])), "only class 0"),
    "many to one": (lambda: score(cm([[0, 0]], 2), "many_to_one"), "only class 0"),
    "image by image": (lambda: per_image_score(torch.tensor([[[5, 0], [2, 0]]])), "only class 0"),
    "evaluation": (lambda: evaluate(np.zeros((1, 9), int), np.array([[0, 1]+[255]*7]), n_classes=3), "78% of the pixels"),
    "void said to be void": (lambda: evaluate(0*HALF, 255*HALF, labels=PAIR, ignore=255), "only class 'background'"),
    "a table with one class": (lambda: evaluate(0*HALF, np.where(HALF, 255, 0), labels=CAMVID11.coarsen(dict(road=["road"]))), "only class 'road' of 1 occurs"),
}


@pytest.mark.parametrize("kind", SAID)
def test_a_score_says_when_little_is_left(kind):
    make, want = SAID[kind]
    res, said = told(make)
    assert not said if want is None else len(said) == 1 and want in said[0], said


def test_score_counts_classes_and_void():
    s = score(cm([[0, 1, 1, 255]], 3), labels=["a", "b", "c"])
    assert (s.n_true, s.n_classes, s.ignored) == (2, 2, .25) and "25.0% of the pixels ignored" in repr(s)
    assert json.loads(json.dumps(s.to_dict()))["ignored"] == .25 and s.to_dict()["n_true"] == 2
    s = score(torch.tensor([[5, 0, 0], [0, 5, 0], [1, 0, 0]]))
    assert s.n_true == 2 and "3 of 3 classes, of which 2 occur" in repr(s) and s.ignored is None
    assert (cm([[0, 255]], 2)+cm([[255, 255]], 2)).ignored == 3 and cm([[0, 255]], 2).reset().ignored == 0
    mats, void = torch.tensor([[[2, 0], [0, 2]]]), torch.tensor([6])
    from picie_nb.evaluate.report import Evaluation
    assert told(lambda: Evaluation(mats, ignored=void).score())[0].ignored == .6


@pytest.mark.parametrize("void", [False, True])
def test_filled_up_batches_are_not_ignored_pixels(void, tmp_path):
    "Upright and wide photos in one batch: what the batch was filled up with is not counted as ignored, real void is"
    rng = np.random.default_rng(0)
    for i, (h, w) in enumerate([(32, 64), (64, 32), (40, 40)]):
        m = rng.integers(0, 2, (h, w))
        if void: m[:, w//2:] = 255
        save(tmp_path/"images"/f"{i}.png", rng.integers(1, 256, (h, w, 3)).astype(np.uint8))
        save(tmp_path/"masks"/f"{i}.png", u8(m))
    dls = picie_dls(tmp_path/"images", size=32, bs=3, valid=tmp_path/"images", masks=tmp_path/"masks", labels=PAIR, device="cpu")
    learn = picie_learner(dls, "test_efficientnet", 2, pretrained=False)
    s, metric = learn.score(1)[0], next(m for m in learn.metrics if isinstance(m, HungarianMetric))
    with learn.no_bar(), learn.no_logging(): learn.validate()
    assert s.ignored == pytest.approx(.5*void, abs=.02) and metric.score().ignored == pytest.approx(.5*void, abs=.02)


def test_the_learner_asks(tmp_path):
    "Batches of somebody's own, with the object as 255"
    from fastai.data.core import DataLoaders
    from fastai.data.load import DataLoader
    y = torch.from_numpy(255*HALF)
    dl = DataLoader([(torch.rand(3, 24, 32), y)]*4, bs=2)
    def make(classes): return picie_learner(DataLoaders(dl, dl, device="cpu"), "test_efficientnet", 2, pretrained=False, classes=classes)
    with pytest.raises(ValueError, match="255 is not counted"): make(LabelSet(PAIR))
    learn = make(LabelSet(PAIR, table={0: 0, 1: 1})) # so 255 is no class
    s, said = told(lambda: learn.score(1)[0])
    assert any("only class 'background' of 2 occurs in the masks, 50% of the pixels are ignored" in o for o in said) and s.n_true == 1


# ---- masks as tools write them

VOC = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0)]
NAMED = LabelSet(["background", "cat", "dog", "cow"], palette=VOC)
CLASSES = np.kron(np.array([[0, 1, 2, 3], [3, 2, 1, 0]]), np.ones((8, 8), int))

def palette_file(a, colours): # with a full palette: Pillow cuts numbers that lie beyond a short one
    im = Image.fromarray(u8(a))
    im.putpalette((np.array(colours).ravel().tolist()+[0]*768)[:768])
    return im

def coloured(a=CLASSES, labels=NAMED): return Image.fromarray(labels.colorize(a))
def behind_glass(im, alpha=255): im = im.convert("RGBA"); im.putalpha(alpha); return im
def png16(a, channels): # PNG with 16 bits in each of several channels, which Pillow cannot write
    import struct, zlib, io
    rows = b"".join(b"\0"+np.repeat(r[:, None], channels, 1).astype(">u2").tobytes() for r in a)
    part = lambda kind, b: struct.pack(">I", len(b))+kind+b+struct.pack(">I", zlib.crc32(kind+b))
    head = struct.pack(">IIBBBBB", a.shape[1], a.shape[0], 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    return Image.open(io.BytesIO(b"\x89PNG\r\n\x1a\n"+part(b"IHDR", head)+part(b"IDAT", zlib.compress(rows))+part(b"IEND", b"")))
def edges(size=256, out=64, how=Image.Resampling.LANCZOS, ground=(0, 0, 0)):
    im = Image.new("RGB", (size, size), ground)
    d = ImageDraw.Draw(im)
    k = size/256
    d.ellipse((40*k, 40*k, 200*k, 220*k), fill=VOC[1]); d.rectangle((0, 230*k, size, size), fill=VOC[2])
    return im.resize((out, out), how)

PLAIN = LabelSet(NAMED.names)
FORMS = { # (mask, labels, classes or a part of the error)
    "grey": (lambda: Image.fromarray(u8(CLASSES)), PLAIN, CLASSES),
    "grey in RGB (Supervisely)": (lambda: Image.fromarray(u8(CLASSES)).convert("RGB"), PLAIN, CLASSES),
    "grey in opaque RGBA": (lambda: Image.fromarray(u8(CLASSES)).convert("RGBA"), PLAIN, CLASSES),
    "grey with opaque alpha": (lambda: Image.fromarray(u8(CLASSES)).convert("LA"), PLAIN, CLASSES),
    "palette (LabelMe, VOC)": (lambda: palette_file(CLASSES, VOC), PLAIN, CLASSES),
    "palette, colours known": (lambda: palette_file(CLASSES, VOC), NAMED, CLASSES),
    "palette of other colours": (lambda: palette_file(CLASSES, [(9, 8, 7), (250, 0, 9), (1, 2, 3), (77, 0, 77)]), NAMED, CLASSES),
    "palette with void": (lambda: palette_file(np.where(CLASSES == 3, 255, CLASSES), VOC), NAMED, np.where(CLASSES == 3, 255, CLASSES)),
    "colours (CVAT)": (coloured, NAMED, CLASSES),
    "colours in RGBA": (lambda: behind_glass(coloured()), NAMED, CLASSES),
    "colours, black is void": (lambda: coloured(np.where(CLASSES == 3, 255, CLASSES), LabelSet(list("abcd"), palette=VOC[1:]+[(5, 5, 5)])), LabelSet(list("abcd"), palette=VOC[1:]+[(5, 5, 5)]), np.where(CLASSES == 3, 255, CLASSES)),
    "colours as fractions": (coloured, LabelSet(NAMED.names, palette=np.array(VOC)/255), CLASSES),
    "colours as #rrggbb": (coloured, LabelSet(NAMED.names, palette=["#000000", "#800000", "#008000", "#808000"]), CLASSES),
    "colours under a table": (coloured, LabelSet(NAMED.names, palette=VOC, table={7: 0, 8: 1, 9: 2, 11: 3}), CLASSES),
    "colours of a grey class": (lambda: Image.new("RGB", (9, 9), (128, 128, 128)), CAMVID11, np.zeros((9, 9), int)),
    "shrunk to a grey palette": (lambda: palette_file(CLASSES > 1, [(0, 0, 0), (7, 7, 7)]), LabelSet(PAIR, table={0: 0, 7: 1}), (CLASSES > 1)*1),
    "a class shown as white": (lambda: palette_file(CLASSES > 1, [(0, 0, 0), (255, 255, 255)]), LabelSet(PAIR), (CLASSES > 1)*1),
    "colours of nobody": (coloured, PLAIN, "give every class its colour"),
    "a colour too many": (coloured, LabelSet(list("abc"), palette=VOC[:3]), "(128, 128, 0) on 25.0%"),
    "numbers and colours disagree": (lambda: palette_file(CLASSES, VOC[::-1]), NAMED, "by its numbers or by its colours"),
    "shrunk numbers, two ways": (lambda: palette_file(CLASSES > 1, [(0, 0, 0), (3, 3, 3)]), PLAIN, "by its numbers or by its colours"),
    "black alone in colours": (lambda: Image.new("RGB", (9, 9)), CAMVID11, "would be sky or ignored"),
    "transparent": (lambda: behind_glass(coloured(), 200), NAMED, "part of the mask is transparent"),
    "16 bits in RGB": (lambda: png16(CLASSES, 3), PLAIN, "16 bits"),
    "16 bits with alpha": (lambda: png16(CLASSES, 2), PLAIN, "16 bits"),
    "print colours": (lambda: coloured().convert("CMYK"), NAMED, "mode CMYK"),
    "smoothed colours": (edges, NAMED, "smoothed (anti-aliased)"),
    "enlarged colours": (lambda: edges(64, 128, Image.Resampling.BILINEAR), NAMED, "smoothed (anti-aliased)"),
    "smoothed black and white": (lambda: edges().convert("L").point(lambda v: min(255, 12*v)), LabelSet(PAIR, table={0: 0, 255: 1}), "smoothed (anti-aliased)"),
    "a photo": (lambda: Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)), NAMED, "is it a photo"),
    "a whole class that is unknown": (lambda: Image.fromarray(u8(np.where(CLASSES == 3, 77, CLASSES))), PLAIN, "add them"),
}


@pytest.mark.parametrize("form", FORMS)
def test_form_of_a_mask(form, tmp_path):
    make, labels, want = FORMS[form]
    im = make()
    if isinstance(want, str):
        with pytest.raises(ValueError) as e: labels.map(im)
        assert want in str(e.value) and "\n" not in str(e.value) and len(str(e.value)) < 500, e.value
    else: assert (labels.map(im) == want).all()
    if form.startswith(("16", "print")): return
    for ext in ("png", "tif"): # and through a file
        im.save(tmp_path/f"m.{ext}")
        if isinstance(want, str):
            with pytest.raises(ValueError, match=f"m.{ext}") as e: _open_mask(tmp_path/f"m.{ext}", labels)
            assert want in str(e.value)
        else: assert (_open_mask(tmp_path/f"m.{ext}", labels).numpy() == want).all()


def test_colour_masks_everywhere(tmp_path):
    "The same colour masks in a check, in batches, cut to a square, and as the truths of a score"
    for i in range(3):
        save(tmp_path/"images"/f"{i}.png", np.random.default_rng(i).integers(1, 256, (16, 32, 3)).astype(np.uint8))
        (tmp_path/"masks").mkdir(exist_ok=True)
        coloured().save(tmp_path/"masks"/f"{i}.png")
        save(tmp_path/"pred"/f"{i}.png", u8(CLASSES))
    res = check_dataset(open_dataset(tmp_path, labels=NAMED, valid=tmp_path/"images"))
    assert res.ok and res.values == {c: 3*128 for c in range(4)}
    kw = dict(size=16, bs=3, valid=tmp_path/"images", masks=tmp_path/"masks", labels=NAMED, device="cpu")
    assert (picie_dls(tmp_path/"images", **kw).valid.one_batch()[1] == torch.from_numpy(CLASSES)).all()
    assert (picie_dls(tmp_path/"images", valid_crop="center", **kw).valid.one_batch()[1] == torch.from_numpy(CLASSES[:, 8:24])).all()
    assert evaluate_folders(tmp_path/"pred", tmp_path/"masks", labels=NAMED).score("none").acc == 1


# ---- names and lists

@pytest.mark.parametrize("image, mask", [("NFD", "NFC"), ("NFC", "NFD"), ("NFD", "NFD")])
def test_accents_of_another_machine(image, mask, tmp_path):
    "Letters with accents as one sign or as two: masks, predictions, folders, lists and endings match"
    name = lambda form, s: unicodedata.normalize(form, s)
    for i in range(3):
        save(tmp_path/"images"/name(image, f"Fête/Übung {i}.png"), u8(HALF), "RGB")
        save(tmp_path/"masks"/name(mask, f"Fête/Übung {i}.png"), u8(HALF))
        save(tmp_path/"pred"/name(image, f"Fête/Übung {i}.png"), u8(HALF))
        save(tmp_path/"truth"/name(mask, f"Übung {i}_größe.png"), u8(HALF))
    kw = dict(size=16, bs=2, valid=tmp_path/"images", labels=PAIR, device="cpu")
    for masks in (tmp_path/"masks", lambda f: tmp_path/"masks"/f.relative_to(tmp_path/"images")):
        assert len(list(picie_dls(tmp_path/"images", masks=masks, **kw).valid)) == 2
    assert check_dataset(open_dataset(tmp_path, labels=PAIR, valid=tmp_path/"images")).masks == 3
    assert evaluate_folders(tmp_path/"pred", tmp_path/"masks", labels=PAIR).score().acc == 1
    ev = evaluate_folders(tmp_path/"pred", tmp_path/"truth", labels=PAIR, true_suffix=name(image, "_größe"))
    assert ev.images == [f"Übung {i}" for i in range(3)]
    (tmp_path/"list.txt").write_text("\n".join(name(mask, f"Fête/Übung {i}.png") for i in range(3)), encoding="utf-8")
    assert all(f.exists() for f in read_list(tmp_path/"list.txt", tmp_path/"images"))


def test_data_set_layouts_find_masks_with_accents(tmp_path):
    "CamVid's layout, whose masks are looked up by path"
    for s in ("train", "val"):
        save(tmp_path/"images"/s/unicodedata.normalize("NFD", "é.png"), u8(HALF), "RGB")
        save(tmp_path/"labels"/s/unicodedata.normalize("NFC", "é.png"), u8(HALF))
    assert check_dataset(open_dataset(tmp_path, labels=PAIR)).masks == 1


def test_the_same_name_twice_is_refused(tmp_path):
    for form in ("NFC", "NFD"): save(tmp_path/"masks"/unicodedata.normalize(form, "é.png"), u8(HALF))
    if len(list((tmp_path/"masks").iterdir())) < 2: pytest.skip("this disk takes both for one name")
    im = save(tmp_path/"images"/"é.png", u8(HALF), "RGB")
    with pytest.raises(ValueError, match="fits 2 masks"): match_masks([im], tmp_path/"images", tmp_path/"masks")


ENCODINGS = { # bytes of a list of the files a.jpg and ü.jpg in the folder im
    "UTF-8": "a.jpg\nü.jpg\n".encode(), "with a mark": "a.jpg\nü.jpg".encode("utf-8-sig"), "UTF-16": "a.jpg\r\nü.jpg\r\n".encode("utf-16"),
    "UTF-16, big end first": b"\xfe\xff"+"a.jpg\r\nü.jpg\r\n".encode("utf-16-be"), "UTF-16 without a mark": "a.jpg\r\nü.jpg\r\n".encode("utf-16-le"),
    "UTF-32": "a.jpg\nü.jpg\n".encode("utf-32"), "Latin-1": "a.jpg\nü.jpg\n".encode("latin-1"), "Windows": "a.jpg\r\nü.jpg\r\n".encode("cp1252"),
    "old Mac lines": "a.jpg\rü.jpg\r".encode(), "empty lines and blanks": "\n a.jpg \n\n\tü.jpg\n\n".encode(), "backslashes": "im\\a.jpg\r\nim\\ü.jpg\r\n".encode(),
    "deep backslashes": "data\\im\\a.jpg\ndata\\im\\ü.jpg\n".encode(), "a drive": "C:\\x\\im\\a.jpg\r\nD:\\ü.jpg\r\n".encode("utf-16"), "slashes": "im/a.jpg\nim/ü.jpg\n".encode(),
    "ids": "a\nü\n".encode("latin-1"),
}


@pytest.mark.parametrize("kind", ENCODINGS)
def test_list_of_another_machine(kind, tmp_path):
    for n in ("a", "ü"): save(tmp_path/"im"/f"{n}.jpg", u8(HALF), "RGB")
    (tmp_path/"list.txt").write_bytes(ENCODINGS[kind])
    assert [f.relative_to(tmp_path/"im").as_posix() for f in read_list(tmp_path/"list.txt", tmp_path/"im") if f.exists()] == ["a.jpg", "ü.jpg"]


def test_ids_in_folders_with_backslashes(tmp_path):
    save(tmp_path/"im/s1/a.jpg", u8(HALF), "RGB")
    (tmp_path/"list.txt").write_bytes(b"s1\\a\r\n")
    assert read_list(tmp_path/"list.txt", tmp_path/"im") == [tmp_path/"im/s1/a.jpg"]


# ---- own classes

GIVEN = { # what stands for two classes with values 0 and 255
    "dict of names": {"background": 0, "object": 255}, "dict of values": {0: "background", 255: "object"}, "dict with void": {0: "background", 255: "object", 7: None},
    "rows": [{"name": "background", "id": 0}, {"name": "object", "id": 255}], "to_dict": LabelSet(PAIR, table={0: 0, 255: 1}).to_dict(),
    "names and table": {"names": PAIR, "table": {"0": 0, "255": 1}}, "nested": {"background": {"value": 0, "color": "#000000"}, "object": {"value": 255, "color": "#ff0000"}},
}
FILES = {
    **{f"{k}.json": json.dumps(v) for k, v in GIVEN.items()},
    "headings.csv": "name,value\nbackground,0\nobject,255\n", "semicolons.csv": "value;name\n0;background\n255;object\n",
    "Roboflow.csv": "Pixel Value, Class\n0, background\n255, object\n", "colours.csv": "name,r,g,b,value\nbackground,0,0,0,0\nobject,255,0,0,255\n",
    "quoted.csv": 'label,id,color\nbackground,0,"0,0,0"\nobject,255,"255,0,0"\n', "COCO.json": json.dumps({"categories": [{"id": 0, "name": "background"}, {"id": 255, "name": "object"}]}),
    "pairs.txt": "background,0\nobject,255\n", "by value.txt": "0: background\n255: object\n", "tabs.tsv": "255\tobject\n0\tbackground\n", "numbers first.txt": "0 background\n255 object\n",
}


@pytest.mark.parametrize("kind", [*GIVEN, *FILES])
def test_own_classes(kind, tmp_path):
    "Dicts, lists and files of names, colours and values, in Python and in any encoding"
    def right(l): return sorted(l.names) == PAIR and l.map(np.array([[0, 255]])).tolist() == [[l.names.index(n) for n in PAIR]]
    if kind in GIVEN: assert right(label_set(GIVEN[kind])); return
    for code in ("utf-8", "utf-16", "utf-8-sig", "latin-1"):
        (tmp_path/kind).write_bytes(FILES[kind].replace("\n", "\r\n" if code == "utf-16" else "\n").encode(code))
        assert right(label_set(tmp_path/kind)) and right(label_set(str(tmp_path/kind)))


ORDERED = { # files without values: names in order, some with colours
    "names.txt": "background\nobject\n", "LabelMe.txt": "__ignore__\nbackground\nobject\n", "one column.csv": "class\nbackground\nobject\n",
    "labelmap.txt": "# label:color_rgb:parts:actions\nbackground:0,0,0::\nobject:255,0,0::\n", "class_dict.csv": "name,r,g,b\nbackground,0,0,0\nobject,255,0,0\n",
    "CVAT.json": json.dumps([{"name": "background", "color": "#000000"}, {"name": "object", "color": "#ff0000"}]),
    "Supervisely.json": json.dumps({"classes": [{"title": "background", "color": "#000000"}, {"title": "object", "color": "#FF0000"}], "tags": []}),
    "label_colors.txt": "0 0 0\tbackground\n255 0 0\tobject\n", "list.json": json.dumps(PAIR),
}


@pytest.mark.parametrize("kind", ORDERED)
def test_own_classes_in_order(kind, tmp_path):
    (tmp_path/kind).write_text(ORDERED[kind], encoding="utf-8")
    l = label_set(tmp_path/kind)
    assert l.names == PAIR and l.map(np.array([[0, 1, 255]])).tolist() == [[0, 1, 255]]
    if l._coloured: assert l.palette.tolist() == [[0, 0, 0], [255, 0, 0]]
    assert l._coloured == (kind not in ("names.txt", "LabelMe.txt", "one column.csv", "list.json"))


WRONG = { # what is given as labels, and a part of the error
    "unordered": ({"a", "b"}, "in order"), "a number": (5, "in order"), "nothing": ([], "at least one class"), "twice": (["a", "a"], "more than once"),
    "an empty name": ("a,,b", "with a name"), "unknown": ("camvid", "known: camvid11"), "fractions as values": ({"a": 0, "b": .5}, "whole number"),
    "one value, two names": ({"a": 0, "b": 0}, "two classes"), "misspelt": ({"names": ["a"], "colours": ["#000000"]}, "has no ['colours']"),
    "half a palette": ([{"name": "a", "color": "#000000"}, {"name": "b"}], "others none"), "rows of three": ([["a", 1, 2]], "no name"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_no_label_set(kind):
    given, says = WRONG[kind]
    with pytest.raises((ValueError, TypeError)) as e: label_set(given)
    assert says in str(e.value)


SPOILT = {"bad.json": ("{", "bad.json"), "bad.csv": ("name,value\na,0\nb,\n", "others none"), "numbers.txt": ("a,1,2\n", "begin the file with headings"),
          "ends.txt": ("a 0\nb 1\n", "Put a comma"), "empty.txt": ("\n", "at least one class")}


@pytest.mark.parametrize("name", SPOILT)
def test_spoilt_file_of_classes(name, tmp_path):
    text, says = SPOILT[name]
    (tmp_path/name).write_text(text)
    with pytest.raises(ValueError) as e: label_set(tmp_path/name)
    assert says in str(e.value) and name in str(e.value)


def test_arguments_of_a_label_set():
    "Palettes as fractions, bytes, text, tensors; ignore of any size; what int() would round without a word is refused"
    want = [[0, 0, 0], [255, 128, 0]]
    for pal in ([(0, 0, 0), (1, .5, 0)], np.array([[0, 0, 0], [1, .5, 0]], np.float32), torch.tensor([[0, 0, 0], [1, .5, 0]]), ["#000000", "#ff8000"], u8(want), [[0., 0, 0], [255., 127.6, 0]]):
        assert LabelSet(PAIR, palette=pal).palette.tolist() == want and LabelSet(PAIR, palette=pal).palette.dtype == np.uint8
    assert LabelSet(PAIR, palette=[(0, 0, 0), (1, 1, 1)]).palette.tolist() == [[0, 0, 0], [1, 1, 1]]
    for pal in ([(0, 0, 0), (256, 0, 0)], [(0, 0, 0), (-1, 0, 0)], [(0, 0, 0), (float("nan"), 0, 0)], [(0, 0, 0), (1, 2)], ["#000000", "red"]):
        with pytest.raises(ValueError, match="palette"): LabelSet(PAIR, palette=pal)
    for ignore in (-1, -100, 256, 65535, np.int64(254), "255", 255.0):
        l = LabelSet(PAIR, ignore=ignore)
        assert l.map(np.array([[0, 1]])).tolist() == [[0, 1]] and json.loads(json.dumps(l.to_dict()))["ignore"] == int(ignore)
        assert l.colorize(np.array([[0, int(ignore)]]))[0, 1].tolist() == [0, 0, 0]
    for bad in (dict(ignore=.5), dict(ignore=None), dict(ignore=2**31-1), dict(table={0: 0, "0": 1}), dict(table={0: .5}), dict(table={2**40: 0}), dict(things=[.5])):
        with pytest.raises(ValueError): LabelSet(PAIR, **bad)
    for names in ("a,b", {"a": 0}, {"a", "b"}):
        with pytest.raises(TypeError, match="label_set"): LabelSet(names)


@pytest.mark.parametrize("ignore", [-100, 300, 65535])
def test_ignore_outside_a_byte_through_training(ignore, tmp_path):
    "Batches of unequal sizes are filled with it, and it is not scored"
    rng = np.random.default_rng(0)
    labels = LabelSet(list("abc"), ignore=ignore, table={0: 0, 1: 1, 2: 2, 255: ignore})
    for i, (h, w) in enumerate([(32, 48), (48, 32), (32, 32)]):
        save(tmp_path/"images"/f"{i}.png", rng.integers(1, 256, (h, w, 3)).astype(np.uint8))
        save(tmp_path/"masks"/f"{i}.png", u8(rng.choice([0, 1, 2, 255], (h, w))))
    dls = picie_dls(tmp_path/"images", size=32, bs=3, valid=tmp_path/"images", masks=tmp_path/"masks", labels=labels, device="cpu")
    s = picie_learner(dls, "test_efficientnet", 3, pretrained=False).score(1)[0]
    assert s.n_true == 3 and .2 < s.ignored < .3 and set(dls.valid.one_batch()[1].unique().tolist()) == {0, 1, 2, ignore}


# ---- from the shell

@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("own")
    rng = np.random.default_rng(0)
    for i in range(4):
        m = rng.integers(0, 2, (32, 32))
        save(root/"images"/f"{i}.png", u8(np.stack([200*m+20, 50+0*m, 220-200*m], -1)))
        for d, a in dict(masks=255*m, ones=m, pred=m).items(): save(root/d/f"{i}.png", u8(a))
        Image.fromarray(u8(np.stack([255*m, 0*m, 0*m], -1))).save((root/"red").mkdir(exist_ok=True) or root/"red"/f"{i}.png")
    (root/"labels.csv").write_bytes("name,value,color\nbackground,0,#000000\nobject,255,#ff0000\n".encode("utf-16"))
    (root/"labelmap.txt").write_text("# label:color_rgb:parts:actions\nbackground:0,0,0::\nobject:255,0,0::\n")
    return root


@pytest.mark.parametrize("masks, labels", [("masks", "labels.csv"), ("masks", "background,object"), ("ones", "background,object"), ("red", "labelmap.txt"), ("red", "labels.csv"), ("ones", "labelmap.txt")])
def test_own_classes_from_the_shell(masks, labels, world, tmp_path):
    "picie-evaluate, picie-check and picie-train take names or a file"
    labels = labels if "," in labels else str(world/labels)
    r = told(lambda: picie_evaluate(str(world/"pred"), str(world/masks), labels=labels, matching="none", bootstrap=0, quiet=True))[0]
    assert r["score"]["acc"] == 1 and set(r["score"]["iou"]) == set(PAIR) and (r["score"]["n_true"], r["score"]["ignored"]) == (2, 0)
    r = told(lambda: picie_train(str(world/"images"), valid=str(world/"images"), masks=str(world/masks), labels=labels, out=str(tmp_path/"m.safetensors"), backbone="test_efficientnet",
                                 pretrained=False, clusters=2, epochs=1, size=32, bs=2, draws=1, quiet=True))[0]
    assert set(r["after"]["iou"]) == set(PAIR) and r["after"]["acc"] < 1
    (tmp_path/"set").mkdir()
    for d, src in (("images", "images"), ("masks", masks)): os.symlink(world/src, tmp_path/"set"/d)
    assert picie_check(str(tmp_path/"set"), labels=labels, quiet=True) == 0


def test_shell_says_what_labels_can_be(world):
    exe = Path(sys.executable).parent/"picie-evaluate"
    res = subprocess.run([exe, world/"pred", world/"masks", "--labels", "mine"], capture_output=True, text=True)
    assert res.returncode == 1 and "names, separated by commas, or a file" in res.stderr and "Traceback" not in res.stderr
    res = subprocess.run([exe, world/"pred", world/"red", "--labels", "background,object"], capture_output=True, text=True)
    assert res.returncode == 1 and "give every class its colour" in res.stderr and len(res.stderr.strip().splitlines()) == 1


# ---- masks among images, and images of the same name

def beside(tmp_path, n=6):
    "Images with their masks beside them, in two folders"
    for d in ("train", "val"):
        for i in range(n):
            save(tmp_path/d/f"{i}.jpg", np.full((32, 32, 3), 40*i, np.uint8))
            save(tmp_path/d/f"{i}_mask.png", u8(np.full((32, 32), i%2)))
    return lambda f: Path(f).with_name(f"{Path(f).stem}_mask.png")


@pytest.mark.parametrize("valid", ["folder", "list", "share"])
def test_masks_beside_images_are_not_trained_on(tmp_path, valid):
    of = beside(tmp_path)
    v = dict(folder=tmp_path/"val", list=[tmp_path/"val"/f"{i}.jpg" for i in range(6)], share=.2)[valid]
    dls = picie_dls(tmp_path if valid != "folder" else tmp_path/"train", size=32, bs=2, valid=v, masks=of, labels=PAIR)
    assert not [f for f in [*dls.train_ds.items, *dls.valid_ds.items] if "mask" in f.name]
    only = {tmp_path/"val"/f"{i}.jpg" for i in range(6)}
    dls = picie_dls(tmp_path/"train", size=32, bs=2, valid=list(only), masks=lambda f: of(f) if f in only else 1/0, labels=PAIR) # it knows no others
    assert len(dls.valid_ds) == 6


@pytest.mark.parametrize("masks", ["masks", "labels", "annotations", "gt"])
def test_masks_beside_the_images_folder(tmp_path, masks):
    for i in range(5):
        save(tmp_path/"images"/f"{i}.png", np.full((32, 32, 3), 40*i, np.uint8))
        save(tmp_path/masks/f"{i}.png", u8(np.full((32, 32), i%2)))
    ds = open_dataset(tmp_path, labels=PAIR)
    assert len(ds.train)+len(ds.valid) == 5 and ds.mask_of(ds.valid[0]).parent.name == masks


def test_the_mask_of_a_training_image(tmp_path):
    "By its path it belongs to images/0.png, so images/val/0.png has none"
    for o in ("0.png", "1.png", "val/0.png"): save(tmp_path/"images"/o, np.zeros((32, 32, 3), np.uint8))
    for i in range(2): save(tmp_path/"masks"/f"{i}.png", u8(np.zeros((32, 32))))
    with pytest.raises(FileNotFoundError, match="1 of 1 images have no mask"): picie_dls(tmp_path/"images", size=32, bs=1, valid=tmp_path/"images"/"val", masks=tmp_path/"masks", labels=PAIR)
    from picie_nb.data.catalog import folders
    with pytest.raises(ValueError, match="lies outside of"): folders(tmp_path/"images"/"val", tmp_path/"masks", PAIR, valid=[tmp_path/"images"/"1.png"])


@pytest.mark.parametrize("text", ["name,label\nroad,2\nsky,0\ntree,1", "label,name\n2,road\n0,sky", "class,name\n1,road\n0,sky", '[{"label": 2, "name": "road"}, {"label": 0, "name": "sky"}]'])
def test_numbers_under_the_name_of_a_name(tmp_path, text):
    (f := tmp_path/"c.txt").write_text(text)
    with pytest.raises(ValueError, match="are the numbers under '(label|class)' the values"): label_set(f)


def test_a_black_class_in_a_group():
    "It stays a class, however the mask is stored"
    fine = LabelSet(["background", "car", "tree", "sky"], palette=[(0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255)])
    coarse = fine.coarsen({"stuff": ["sky", "background"], "car": ["car"], "tree": ["tree"]})
    y = np.array([[0, 1, 0, 2]], np.uint8)
    coloured = Image.fromarray(fine.colorize(y))
    assert coarse.map(y).tolist() == coarse.map(coarse._values(coloured)).tolist() == [[0, 1, 0, 2]]


def test_a_data_set_in_the_layout_of_another(tmp_path):
    "A score says the name of its folder, unless that is CamVid's"
    for root, name in (("mydrives", "mydrives"), ("CamVid-360", "CamVid")):
        for s in ("train", "val"):
            save(tmp_path/root/"images"/s/"0.png", np.zeros((32, 32, 3), np.uint8)); save(tmp_path/root/"labels"/s/"0.png", u8(np.zeros((32, 32))))
        about = open_dataset(tmp_path/root).about()
        assert (about["dataset"], about["labels"]) == (name, "camvid11")
    assert open_dataset(tmp_path/"mydrives", labels="cityscapes19").about()["dataset"] == "mydrives"


def test_predictions_of_other_folders(tmp_path):
    "Scenes of one name in two cities are no pair"
    for d in ("pred/cityB", "true/cityA"): save(tmp_path/d/"0.png", u8(HALF))
    with pytest.raises(ValueError, match="lie in different folders"): evaluate_folders(tmp_path/"pred", tmp_path/"true", labels=PAIR)
    save(tmp_path/"one"/"0.png", u8(HALF))
    assert len(evaluate_folders(tmp_path/"one", tmp_path/"true", labels=PAIR)) == 1


def test_a_card_with_other_rules():
    from picie_nb.evaluate.protocols import PROTOCOLS
    card = PROTOCOLS["picie-coco27-320"]
    mat = torch.eye(27).long()
    assert card.score(mat).protocol["name"] == card.name == card.score(mat, geometry=card.geometry).protocol["name"]
    assert card.score(mat, refinement="CRF", centroids="mine").protocol["name"] == f"{card.name}, but refinement, centroids"
