"Label tables, data set layouts and `check_dataset`, on tiny trees everywhere and on real images where they are."
import json, shutil
from importlib.resources import files
import numpy as np
import pytest
from PIL import Image
from picie_nb.data.catalog import (CITYSCAPES_SPLITS, camvid, check_dataset, cityscapes, cocostuff, curate, folders,
                               open_dataset, pascal, read_list)
from picie_nb.data.labels import LABELSETS, LabelSet, label_set

SIZES = dict(camvid11=11, cityscapes19=19, cityscapes27=27, cocostuff12=12, cocostuff15=15, cocostuff171=171, cocostuff27=27,
             pascal21=21, toyscenes=8)
# ids of the COCO things that were planned and never drawn (category id - 1)
UNUSED = {11: "street sign", 25: "hat", 28: "shoe", 29: "eye glasses", 44: "plate", 65: "mirror", 67: "window", 68: "desk",
          70: "door", 82: "blender", 90: "hair brush"}


def image(path, size=(24, 16), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)).save(path)
    return path


def mask(path, values, size=(24, 16), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).choice(np.array(values, np.uint8), (size[1], size[0]))).save(path)
    return path


# ---- tables

@pytest.mark.parametrize("name", sorted(SIZES))
def test_table_is_sound(name):
    "Sizes, distinct names and colours, every class reachable, a source, and the JSON is what `to_dict` writes"
    labels, raw = label_set(name), json.loads((files("picie_nb")/"tables"/f"{name}.json").read_text(encoding="utf-8"))
    assert len(labels) == SIZES[name] and set(LABELSETS) == set(SIZES)
    assert len(set(labels.names)) == len(np.unique(labels.palette, axis=0)) == len(labels)
    assert set(labels.table.values()) == {*range(len(labels)), 255} and labels.ignore == 255 == labels.map(np.array([255]))[0]
    assert len(raw.pop("source")) > 20 and raw == labels.to_dict()
    assert LabelSet.from_dict(raw) == labels


def test_coco_tables_equal_the_published_grouping(shared):
    ref = json.loads((shared/"data/cocostuff_sample/cocostuff_182_to_27.json").read_text())
    names27 = (shared/"data/cocostuff_sample/classes27.txt").read_text().split("\n")[:27]
    fine = (shared/"data/cocostuff_sample/classes.txt").read_text().split("\n")[:182]
    g27, g171 = label_set("cocostuff27"), label_set("cocostuff171")
    assert g27.names == names27 == ref["coarse_names"]
    assert g27.map(np.arange(182)).tolist() == [c["coarse27"] for c in ref["classes"]]
    assert set(g27.table) == {*range(182), 255}
    used = [c for c in ref["classes"] if c["used"]]
    assert {c["png_value"]: c["name"] for c in ref["classes"] if not c["used"]} == UNUSED
    assert g171.names == [c["name"] for c in used] == [fine[c["png_value"]] for c in used]
    assert g171.map(np.array([c["png_value"] for c in used])).tolist() == list(range(171))
    assert set(g171.table) == {c["png_value"] for c in used} | {255}
    assert g171.things == [i for i, c in enumerate(used) if c["isthing"]] == list(range(80))
    stuff = {c["name"]: c["id"]-1 for c in json.loads((shared/"data/cocostuff_sample/stuff_examples.json").read_text())["categories"]}
    assert all(g171.names[g171.table[v]] == n for n, v in stuff.items() if n != "other") and stuff["other"] not in g171.table


def test_coco_groups_agree():
    "12 + 15 = 27, on every value; the 171 fine classes are spread over the same groups"
    g27, g12, g15, fine = (label_set(f"cocostuff{n}") for n in (27, 12, 15, 171))
    raw = np.arange(182)
    y27, y12, y15 = (g.map(raw) for g in (g27, g12, g15))
    assert (y12 == np.where(y27 < 12, y27, 255)).all() and (y15 == np.where(y27 >= 12, y27-12, 255)).all()
    assert (y27[:91] < 12).all() and (y27[91:] >= 12).all()
    assert g27.names == g12.names+g15.names and (g27.palette == np.concatenate([g12.palette, g15.palette])).all()
    assert g27.things == list(range(12)) == g12.things and g15.things == []
    assert g12 == LabelSet(g12.names, g12.palette, 255, g12.table, range(12))
    assert set(range(182))-set(fine.table) == set(UNUSED)
    with pytest.raises(ValueError, match="values \\[11\\]"): fine.map(np.array([[0, 11]]))
    coarse = g27.coarsen({n: [n] for n in g15.names})
    assert coarse == g15
    assert g27.coarsen({n: [n] for n in g12.names}) == g12


def test_cityscapes_tables():
    "ids 7..33 in order; the 19 classes keep their names and colours, and are the ones that the benchmark scores"
    c27, c19 = label_set("cityscapes27"), label_set("cityscapes19")
    assert c27.map(np.arange(7, 34)).tolist() == list(range(27))
    assert c27.map(np.array([-1, *range(7), 255])).tolist() == [255]*9
    kept = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    assert c19.map(np.array(kept)).tolist() == list(range(19))
    assert (c19.map(np.array([-1, *range(34), 255])) != 255).sum() == 19
    assert c19.names == [c27.names[k-7] for k in kept] and (c19.palette == c27.palette[[k-7 for k in kept]]).all()
    assert [c27.names[i] for i in c27.things] == ["person", "rider", "car", "truck", "bus", "caravan", "trailer", "train", "motorcycle", "bicycle"]
    assert [c19.names[i] for i in c19.things] == [n for n in (c27.names[i] for i in c27.things) if n in c19.names]


def test_cityscapes_tables_equal_cityscapesscripts():
    "Where the authors' package is installed"
    ref = pytest.importorskip("cityscapesscripts.helpers.labels").labels
    c27, c19 = label_set("cityscapes27"), label_set("cityscapes19")
    assert set(c27.table) == set(c19.table) == {r.id for r in ref} | {255}
    for r in ref:
        assert c19.table[r.id] == (r.trainId if 0 <= r.trainId < 255 else 255)
        assert c27.table[r.id] == (r.id-7 if 7 <= r.id else 255)
        if 7 <= r.id:
            i = r.id-7
            assert c27.names[i] == r.name and (i in c27.things) == r.hasInstances
            if r.name != "polegroup": assert tuple(c27.palette[i]) == r.color


def test_pascal_and_camvid_tables(shared):
    voc = label_set("pascal21")
    from torchvision.models.segmentation import FCN_ResNet50_Weights
    names = FCN_ResNet50_Weights.DEFAULT.meta["categories"]
    assert voc.names[1:] == names[1:] and voc.names[0] == names[0].strip("_")
    assert voc.palette[:4].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]] and voc.palette[15].tolist() == [192, 128, 128]
    assert label_set("camvid11").names == (shared/"data/camvid/classes.txt").read_text().split()


# ---- COCO-Stuff

def coco_tree(root, masks="annotations", top="images"):
    for split, ids in (("train2017", range(4)), ("val2017", range(4, 7))):
        for i in ids:
            image(root/top/split/f"{i:012}.jpg", seed=i)
            mask(root/masks/split/f"{i:012}.png", [0, 2, 95, 156, 255], seed=i)
    return root


@pytest.mark.parametrize("masks,top", [("annotations", "images"), ("stuffthingmaps", "images"), ("stuffthingmaps", ".")])
def test_coco_layouts(tmp_path, masks, top):
    ds = cocostuff(coco_tree(tmp_path/"images"/"coco", masks, top))
    assert (len(ds.train), len(ds.valid), ds.split) == (4, 3, "val2017, all images")
    assert all(ds.mask_of(f).is_file() and ds.mask_of(f).stem == f.stem for f in ds.train+ds.valid)
    assert check_dataset(ds, train_masks=True).ok and check_dataset(ds).masks == 3


def test_coco_without_annotations_trains(tmp_path):
    shutil.rmtree(coco_tree(tmp_path)/"annotations")
    ds = cocostuff(tmp_path)
    dls = ds.dls(size=16, bs=2, device="cpu")
    assert ds.mask_of is None and [len(b) for b in dls.train] == [1, 1] and all(len(b) == 1 for b in dls.valid)
    assert check_dataset(tmp_path).ok


def test_coco_batches_hold_classes(tmp_path):
    for name in ("cocostuff27", "cocostuff15", "cocostuff12", "cocostuff171"):
        y = cocostuff(coco_tree(tmp_path), name).dls(size=16, bs=3, device="cpu", crop="center").valid.one_batch()[1]
        table = label_set(name).table
        assert set(y.unique().tolist()) == {table[v] for v in (0, 2, 95, 156, 255)}


def test_lists(tmp_path):
    "Published folder, files by split, CRLF and byte order mark, ids and paths, and all images on request"
    coco_tree(tmp_path)
    for split, text in (("train2017", "\ufeff000000000002\r\n000000000000\r\n"), ("val2017", "000000000005\n")):
        f = tmp_path/"curated"/split/"Coco164kFull_Stuff_Coarse_7.txt"
        f.parent.mkdir(parents=True)
        f.write_bytes(text.encode())
    ds = cocostuff(tmp_path)
    assert [f.stem for f in ds.train+ds.valid] == ["000000000002", "000000000000", "000000000005"] and ds.split == "val2017, curated list 7"
    assert len(cocostuff(tmp_path, curated=False).train) == 4
    moved = shutil.move(tmp_path/"curated", tmp_path/"lists")
    assert len(cocostuff(tmp_path).train) == 4 and len(cocostuff(tmp_path, curated=moved).train) == 2
    paths = tmp_path/"paths.txt"
    paths.write_text("val2017/000000000004.jpg\nimages/val2017/000000000005.jpg\n000000000006.jpg\n" + str(tmp_path/"images/val2017/000000000006.jpg"))
    ds = cocostuff(tmp_path, curated={"val2017": paths})
    assert [f.stem[-1] for f in ds.valid] == ["4", "5", "6", "6"] and all(f.is_file() for f in ds.valid) and len(ds.train) == 4
    assert [p.what for p in check_dataset(ds).problems] == ["stands 2 times in the validation list"]


@pytest.mark.parametrize("cut,said", [("images/train2017", "no folder train2017"), ("images/val2017", "no folder images/val2017 or val2017")])
def test_coco_missing_folder_draws_the_layout(tmp_path, cut, said):
    shutil.rmtree(coco_tree(tmp_path)/cut)
    with pytest.raises(FileNotFoundError) as e: cocostuff(tmp_path)
    assert said in str(e.value) and "├── annotations" in str(e.value) and "stuffthingmaps_trainval2017.zip" in str(e.value)


# ---- the rule of the curated lists

@pytest.mark.parametrize("h,w,stuff,things,kept", [
    (360, 360, .75, 0, True), (360, 360, .75, .25, True), (360, 1000, 1, 0, True),
    (359, 1000, 1, 0, False), (1000, 359, 1, 0, False),      # both sides, not the area
    (400, 400, .7475, .2525, False), (400, 400, .7, 0, False)])  # of all pixels, not of the labelled ones
def test_curate_rule(tmp_path, h, w, stuff, things, kept):
    y = np.full(h*w, 255, np.uint8)
    y[:round(h*w*(stuff+things))] = 0
    y[:round(h*w*stuff)] = 91
    Image.fromarray(y.reshape(h, w)).save(tmp_path/"000000000001.png")
    assert curate(tmp_path) == (["000000000001"] if kept else [])


def test_curate_refuses_the_wrong_archive(tmp_path):
    mask(tmp_path/"1.png", [92, 183], (400, 400))
    with pytest.raises(ValueError, match="1.png holds unknown values \\[183\\].*stuffthingmaps_trainval2017.zip"): curate(tmp_path)


def test_curate_on_the_sample(shared):
    """What the published rule keeps of the 21 sample images, worked out by hand from sizes and shares.
    The sample's own `curated/` files are in the published format but list every image of the sample, so the rule's result
    is a part of them, not all. (The published list of train2017 has no 000000475177: 65 % of its pixels are stuff, though
    80 % of the labelled ones are. That is why the share is one of all pixels.)"""
    root = shared/"data/cocostuff_sample"
    keep = {s: curate(root/"annotations"/s, n_workers=2) for s in ("train2017", "val2017")}
    assert keep == {"train2017": ["000000138805", "000000203744", "000000350505", "000000500044", "000000580986"],
                    "val2017": ["000000000139", "000000000785", "000000001268"]}
    for s, ids in keep.items():
        listed = [f.stem for f in read_list(root/"curated"/s/"Coco164kFull_Stuff_Coarse_7.txt", root/"images"/s)]
        assert set(ids) < set(listed) and listed == sorted(f.stem for f in (root/"images"/s).iterdir())
    assert "000000001490" not in keep["val2017"]  # 98 % stuff, but 640x315
    assert "000000001490" in curate(root/"annotations/val2017", side=315)
    assert "000000001993" in curate(root/"annotations/val2017", share=.74)  # 74.5 % stuff


# ---- the real samples

def test_the_sample_is_sound(shared):
    ds = cocostuff(shared/"data/cocostuff_sample")
    assert (len(ds.train), len(ds.valid)) == (13, 8) and all(f.is_file() for f in ds.train+ds.valid)
    for name in ("cocostuff27", "cocostuff171"):
        res = check_dataset(ds, labels=name, train_masks=True, n_workers=2)
        assert res.ok and res.masks == 21 and set(res.values) <= set(label_set(name).table), res
    assert check_dataset(shared/"data/cocostuff_sample").to_dict()["masks"] == 8


@pytest.fixture
def copied(shared, tmp_path):
    "A copy of the COCO-Stuff sample that may be damaged"
    root = tmp_path/"coco"
    for d in ("images", "annotations", "curated"):
        shutil.copytree(shared/"data/cocostuff_sample"/d, root/d, copy_function=shutil.copyfile)
    for p in (root, *root.rglob("*")): p.chmod(0o755 if p.is_dir() else 0o644)
    return root


def test_planted_faults_in_the_sample(copied):
    im, gt, lists = copied/"images/val2017", copied/"annotations/val2017", copied/"curated"
    jpg = im/"000000000139.jpg"
    jpg.write_bytes(jpg.read_bytes()[:20000])
    wrong = np.array(Image.open(gt/"000000000785.png"))
    wrong[:10] = 183
    Image.fromarray(wrong).save(gt/"000000000785.png")
    Image.open(gt/"000000001268.png").crop((0, 0, 600, 427)).save(gt/"000000001268.png")
    (gt/"000000001490.png").unlink()
    (gt/"000000001503.png").write_bytes(b"not a mask")
    Image.open(im/"000000001584.jpg").save(gt/"000000001584.png")
    train = lists/"train2017/Coco164kFull_Stuff_Coarse_7.txt"
    train.write_text(train.read_text()+"000000017914\n000000999999\n")
    for n_workers in (0, 3):
        res = check_dataset(copied, n_workers=n_workers)
        got = {(p.file.name, p.what.split(":")[0]) for p in res.problems}
        assert got == {
            ("000000000139.jpg", "cannot be used"), ("000000000785.png", "unknown value 183"), ("000000001490.png", "is missing"),
            ("000000001268.png", "is 600x427, its image 640x427"), ("000000001503.png", "cannot be used"),
            ("000000001584.png", "cannot be used"), ("000000017914.jpg", "stands 2 times in the training list"),
            ("000000999999.jpg", "is in the list, but there is no such image")}
        assert not res.ok and len(res.problems) == 8 and res.values[183] == 10*640
    assert "stuffthingmaps_trainval2017.zip" in next(p.remedy for p in res.problems if "183" in p.what)
    assert "8 problems" in repr(res) and json.loads(json.dumps(res.to_dict()))["problems"][0]["remedy"]


def test_camvid_is_sound(shared):
    ds = camvid(shared/"data/camvid", valid="test")
    assert (len(ds.train), len(ds.valid), ds.split) == (367, 233, "test")
    assert all(ds.mask_of(f).is_file() for f in ds.train+ds.valid) and len(camvid(shared/"data/camvid").valid) == 101
    ds.train, ds.valid = ds.train[::40], ds.valid[::20]
    res = check_dataset(ds)
    assert res.ok and set(res.values) <= {*range(11), 255}, res
    assert open_dataset(shared/"data/camvid").name == "camvid11"


# ---- Cityscapes

def city_tree(root, masks="gtFine", splits=("train", "val", "test", "train_extra")):
    for k, s in enumerate(splits):
        for city in ("aachen", "bonn")[:1+k % 2]:
            for i in range(2):
                name = f"{s}/{city}/{city}_{i:06}_000019"
                image(root/f"leftImg8bit/{name}_leftImg8bit.png", seed=i)
                if s in ("train", "val"): mask(root/f"{masks}/{name}_gtFine_labelIds.png", [*range(34), 255], seed=i)
                if s in ("train", "val"): mask(root/f"{masks}/{name}_gtFine_instanceIds.png", [200])
    return root


@pytest.mark.parametrize("masks", ["gtFine", "annotations/gtFine"])
def test_cityscapes_splits(tmp_path, masks):
    root = city_tree(tmp_path, masks)
    for name, split in (("published", "val + train"), ("standard", "val")):
        ds = cityscapes(root, splits=name)
        for files, splits in ((ds.train, CITYSCAPES_SPLITS[name]["train"]), (ds.valid, CITYSCAPES_SPLITS[name]["valid"])):
            assert list(dict.fromkeys(f.parts[-3] for f in files)) == splits
        assert ds.split == split and all(ds.mask_of(f).is_file() for f in ds.valid)
        res = check_dataset(ds)
        assert res.ok and res.masks == len(ds.valid), res
    assert cityscapes(root, train="test", valid=("val",)).split == "val"
    y = cityscapes(root, "cityscapes19", "standard").dls(size=16, bs=2, device="cpu").valid.one_batch()[1]
    assert set(y.unique().tolist()) == {*range(19), 255}


def test_cityscapes_mistakes(tmp_path):
    root = city_tree(tmp_path, splits=("train", "val"))
    with pytest.raises(FileNotFoundError, match="no folder leftImg8bit/test;(.|\n)*splits=\"published\""): cityscapes(root)
    with pytest.raises(ValueError, match="use published or standard"): cityscapes(root, splits="paper")
    with pytest.raises(FileNotFoundError, match="no folder leftImg8bit"): cityscapes(root/"gtFine")
    ds = cityscapes(root, splits="standard")
    mask(ds.mask_of(ds.valid[0]), [7, 60])
    (ds.mask_of(ds.train[0])).unlink()
    res = check_dataset(ds)
    assert [p.what.split(":")[0] for p in res.problems] == ["unknown value 60"] and "labelIds.png" in res.problems[0].remedy
    assert len(check_dataset(ds, train_masks=True).problems) == 2


# ---- Pascal, folders, anything

def test_pascal(tmp_path):
    (tmp_path/"ImageSets/Segmentation").mkdir(parents=True)
    for s, ids in (("train", "ab"), ("val", "c"), ("trainval", "abc")):
        (tmp_path/f"ImageSets/Segmentation/{s}.txt").write_text("\n".join(f"2007_{i}" for i in ids)+"\n")
    for i in "abc":
        image(tmp_path/f"JPEGImages/2007_{i}.jpg")
        m = mask(tmp_path/f"SegmentationClass/2007_{i}.png", [0, 15, 255])
        im = Image.open(m)
        im.putpalette([*label_set("pascal21").palette.ravel().tolist(), *[0]*702, 224, 224, 192]) # the colour of the real ones
        im.save(m)
        assert Image.open(m).mode == "P"
    ds = pascal(tmp_path)
    assert [f.stem for f in ds.train+ds.valid] == ["2007_a", "2007_b", "2007_c"] and check_dataset(tmp_path, train_masks=True).masks == 3
    assert set(ds.dls(size=16, bs=1, device="cpu").valid.one_batch()[1].unique().tolist()) == {0, 15, 255}
    assert len(pascal(tmp_path, train="trainval").train) == 3
    Image.open(ds.mask_of(ds.valid[0])).convert("RGB").save(ds.mask_of(ds.valid[0]))
    res = check_dataset(ds)
    assert "has colours (mode RGB)" in res.problems[0].what and "SegmentationClass" in res.problems[0].remedy


def test_folders(tmp_path, monkeypatch):
    "Nested, other suffixes, dots in names, relative roots, no masks"
    for i, n in enumerate(("a/x", "a/y.1", "b/x", "b/z")):
        image(tmp_path/f"images/{n}.jpg", seed=i)
        mask(tmp_path/f"masks/{n}.bmp", [0, 1], seed=i)
    monkeypatch.chdir(tmp_path)
    for root in (tmp_path, type(tmp_path)(".")):
        ds = folders(root/"images", root/"masks", ["a", "b"], valid=.5)
        assert [ds.mask_of(f).relative_to(root/"masks").with_suffix("") for f in ds.train] == [f.relative_to(root/"images").with_suffix("") for f in ds.train]
        assert check_dataset(ds, train_masks=True).masks == 4 and len(ds.valid) == 2
        assert len(ds.dls(size=16, bs=2, device="cpu").valid.one_batch()) == 2
    gone = ds.mask_of(ds.valid[0])
    gone.unlink()
    assert [(p.file.stem, p.what) for p in check_dataset(folders(tmp_path/"images", tmp_path/"masks", ["a", "b"], valid=.5)).problems] == \
        [(gone.stem, "is missing: the mask of a validation image")]
    assert check_dataset(tmp_path/"images").notes == ["no masks: training works, scores do not"]


def test_memory_does_not_grow(tmp_path):
    "Many large masks, one at a time: the peak stays near that of one of them"
    import tracemalloc
    for i in range(12):
        image(tmp_path/f"images/{i}.png", (512, 512), i)
        mask(tmp_path/f"masks/{i}.png", range(8), (512, 512), i)
    def peak(n):
        ds = folders(tmp_path/"images", tmp_path/"masks", [str(i) for i in range(8)], valid=.1)
        ds.train, ds.valid = [], sorted(ds.train+ds.valid)[:n]
        tracemalloc.start()
        assert check_dataset(ds).masks == n
        res = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return res
    peak(2)
    assert peak(12) < 1.5*peak(2)
