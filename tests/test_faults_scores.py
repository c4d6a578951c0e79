"Scores that are about what they say: each image with its own mask, each number with all its rules, and no number that JSON cannot hold."
import json, warnings
import numpy as np
import pytest, torch
from PIL import Image
from picie_nb.data.catalog import check_dataset, folders, open_dataset
from picie_nb.data.folders import ToyScenes, match_masks, open_image, picie_dls, _mask_values, _shape

NAMES = [*"abcd"]
rng = np.random.default_rng(0)


def save(path, a, **kw):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(a, np.uint8)).save(path, **kw)
    return path


def tree(root, *names, size=(8, 8)):
    "Files that are the same everywhere"
    for n in names: save(root/n, np.zeros(size))
    return [root/n for n in names]


# ---- whose mask?

OWN = { # images to score, folders that they are relative to, masks, other images: masks that they get, or a part of the error
    "the same path": ("im/a/1.jpg im/b/1.jpg", "im", "m/a/1.png m/b/1.png", "", "m/a/1.png m/b/1.png"),
    "by name": ("im/a/1.jpg im/b/2.jpg", "im", "m/1.png m/2.png", "", "m/1.png m/2.png"),
    "by name, in subfolders of another name": ("im/1.jpg im/2.jpg", "im", "m/x/1.png m/y/2.png", "", "m/x/1.png m/y/2.png"),
    "by folder": ("im/s/a/1.jpg im/s/b/1.jpg", "im", "m/a/1.png m/b/1.png", "", "m/a/1.png m/b/1.png"),
    "splits numbered alike, masks of one": ("im/val/1.jpg", "im/train im/val", "m/1.png", "im/train/1.jpg", "m/1.png"),
    "splits numbered alike, masks of both": ("im/val/1.jpg im/val/2.jpg", "im/train im/val", "m/train/1.png m/val/1.png m/train/2.png m/val/2.png", "im/train/1.jpg im/train/2.jpg", "m/val/1.png m/val/2.png"),
    "by name, and another's mask has a folder": ("im/s/1.jpg", "im", "m/1.png m/train/1.png", "im/train/1.jpg", "m/1.png"),
    "that of an image of the training": ("im/a/1.jpg", "im", "m/b/1.png", "im/b/1.jpg", "1 of 1 images have no mask"),
    "that of an image on the disk": ("im/a/1.jpg", "im", "m/b/1.png", None, "1 of 1 images have no mask"),
    "that of the other split": ("im/val/1.jpg im/val/2.jpg", "im/train im/val", "m/val/1.png m/train/2.png", "", "1 of 2 images have no mask"),
    "that of the other split alone": ("im/val/2.jpg", "im/train im/val", "m/train/2.png", "im/train/2.jpg", "1 of 1 images have no mask"),
    "folders that others matched by": ("im/a/1.jpg im/b/2.jpg", "im", "m/a/1.png m/c/2.png", "", "m/c/2.png has the name of"),
    "folders that a training image matched by": ("im/b/2.jpg", "im", "m/a/1.png m/c/2.png", "im/a/1.jpg", "m/c/2.png has the name of"),
    "two images, one mask": ("im/a/1.jpg im/b/1.jpg", "im", "m/1.png", "", "fit one mask"),
    "one to score, one to train, one mask": ("im/a/1.jpg", "im", "m/1.png", "im/b/1.jpg", "fit one mask"),
    "two files of one name": ("im/1.jpg im/1.png", "im", "m/1.png", "", "fit one mask"),
    "two masks": ("im/1.jpg", "im", "m/1.png m/1.tif", "", "fits 2 masks"),
}


@pytest.mark.parametrize("kind", OWN)
def test_each_image_has_its_own_mask(kind, tmp_path):
    files, roots, masks, others, want = OWN[kind]
    files, more = tree(tmp_path, *files.split()), tree(tmp_path, *(others or "").split())
    if others is None: tree(tmp_path, "im/b/1.jpg")
    tree(tmp_path, *masks.split())
    roots = [tmp_path/r for r in roots.split()]
    match = lambda: match_masks(files, roots, tmp_path/"m", more)
    if want.startswith("m/") and " has " not in want: assert match() == {f: tmp_path/m for f, m in zip(files, want.split())}
    else:
        with pytest.raises((ValueError, FileNotFoundError)) as e: match()
        assert want in str(e.value) and "give as `masks` a function" in str(e.value) and "\n" not in str(e.value)


def test_masks_of_one_of_two_folders(tmp_path):
    "Both folders are numbered from 0: whatever the draw, an image without a mask is an error, and no other's mask is read"
    for s, v in (("a", 1), ("b", 2)):
        for i in range(4): save(tmp_path/f"images/{s}/{i}.png", np.full((8, 8, 3), v))
    for i in range(4): save(tmp_path/f"masks/b/{i}.png", np.full((8, 8), 2))
    for seed in range(6):
        kw = dict(masks=tmp_path/"masks", labels=NAMES, size=8, valid=.25, seed=seed, device="cpu")
        try: dls = picie_dls(tmp_path/"images", **kw)
        except FileNotFoundError as e: assert "have no mask" in str(e)
        else: assert {f.parent.name for f in dls.valid_ds.items} == {"b"}


def test_two_masks_of_one_name_are_refused(tmp_path):
    "By `folders` as by `picie_dls`; those of training images may be as they are"
    for i in range(4): tree(tmp_path, f"images/{i}.png", f"masks/{i}.png")
    tree(tmp_path, "masks/1.tif")
    for valid, ok in ((["1.png"], False), (["2.png"], True)):
        make = lambda: folders(tmp_path/"images", tmp_path/"masks", NAMES, valid=[tmp_path/"images"/o for o in valid])
        if ok: assert check_dataset(make()).ok
        else:
            with pytest.raises(ValueError, match="1.png fits 2 masks"): make()


@pytest.mark.parametrize("cut, ok", [(0, True), (1, True), (3, False)])
def test_proportions_by_one_rule(cut, ok, tmp_path):
    "A mask that lacks a few rows is refused by the loaders as by the check"
    for i in range(4): tree(tmp_path, f"images/{i}.png", size=(32, 32)), tree(tmp_path, f"masks/{i}.png", size=(32-cut, 32))
    assert check_dataset(folders(tmp_path/"images", tmp_path/"masks", NAMES)).ok == ok
    make = lambda: picie_dls(tmp_path/"images", masks=tmp_path/"masks", labels=NAMES, size=32, device="cpu")
    if ok: assert make().valid.one_batch()[1].shape[1:] == (32-cut, 32)
    else:
        with pytest.raises(ValueError, match="different proportions"): make()


# ---- the names of a split

def test_a_random_split_says_how_it_was_drawn(tmp_path):
    root = ToyScenes(n=16, size=16).save(tmp_path/"garden")
    a, b = (folders(root/"images", root/"masks", ["x"], valid=.125, seed=s) for s in (1, 2))
    assert (a.name, a.split, b.split) == ("garden", "random 12.5%, seed 1", "random 12.5%, seed 2") and a.valid != b.valid
    assert folders(root/"masks").name == "masks" and a.about()["dataset"] == "garden"
    assert open_dataset(root, seed=2, valid=.125).valid == b.valid


def test_the_seed_reaches_a_recognised_data_set(tmp_path):
    from picie_nb.cli import _dataset
    root = ToyScenes(n=20, size=16).save(tmp_path/"w")
    drawn = [[f.name for f in _dataset(*a, None, m, "toyscenes", None, dict(size=16, seed=s))[0].valid_ds.items]
             for s in (0, 1) for a, m in (((root, "auto"), None), ((root/"images", None), root/"masks"))]
    assert drawn[0] == drawn[1] != drawn[2] == drawn[3]
    for s in ("train2017", "val2017"): tree(tmp_path/"coco", f"{s}/1.jpg") # a layout that draws nothing takes none
    assert len(_dataset(tmp_path/"coco", "auto", None, None, None, None, dict(size=16, seed=3))[0].valid_ds) == 1


# ---- TIFF files that lie on their side

BACK = {1: lambda a: a, 3: lambda a: a[::-1, ::-1], 6: lambda a: np.rot90(a), 8: lambda a: np.rot90(a, 3)}

@pytest.mark.parametrize("turn", BACK)
@pytest.mark.parametrize("how", [None, "tiff_lzw"])
@pytest.mark.parametrize("kind", ["grey", "16 bits", "palette", "colour"])
def test_turned_tiff(kind, how, turn, tmp_path):
    "Masks and photos, compressed or not: upright once, with the size that their header says"
    a = np.arange(12*20).reshape(12, 20)%251
    raw = np.ascontiguousarray(BACK[turn](a)).astype(np.uint16 if kind == "16 bits" else np.uint8)
    im = Image.fromarray(np.dstack([raw]*3) if kind == "colour" else raw)
    if kind == "palette": im.putpalette([*range(256)]*3)
    im.save(f := tmp_path/"m.tif", tiffinfo={274: turn}, compression=how)
    assert (_mask_values(f) == a).all() and _shape(f) == (20/12, 20) and open_image(f).size == (20, 12)
    if kind in ("grey", "colour"): assert (np.asarray(open_image(f))[..., 0] == a).all()


def test_turned_tiff_photos_are_in_order(tmp_path):
    for i in range(4):
        save(tmp_path/f"images/{i}.tif", rng.integers(0, 256, (20, 12, 3)), tiffinfo={274: 6}, compression="tiff_lzw")
        save(tmp_path/f"masks/{i}.png", np.zeros((12, 20)))
    ds = folders(tmp_path/"images", tmp_path/"masks", NAMES, valid=.5)
    assert check_dataset(ds).ok and check_dataset(ds, quick=True).ok
    assert [b.shape[-2:] for b in ds.dls(size=12, bs=2, device="cpu").valid.one_batch()] == [(12, 20)]*2
