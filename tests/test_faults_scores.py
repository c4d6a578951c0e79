"Scores that are about what they say: each image with its own mask, each number with all its rules, and no number that JSON cannot hold."
import json
import numpy as np
import pytest, torch
from PIL import Image
from picie_nb.clustering import MiniBatchKMeans, assign, kmeans, scores
from picie_nb.data.catalog import check_dataset, folders, open_dataset
from picie_nb.data.folders import ToyScenes, match_masks, open_image, picie_dls, _mask_values, _shape
from picie_nb.data.labels import label_set
from picie_nb.evaluate.borders import BoundaryF, PositionShare, mutual_information, shift_test
from picie_nb.evaluate.metrics import ConfusionMatrix
from picie_nb.evaluate.probes import knn_probe, linear_probe
from picie_nb.evaluate.protocols import Protocol, ScoreTable, protocol
from picie_nb.evaluate.report import Scores, compare, evaluate, evaluate_folders, nmi
from picie_nb.backbone import create_backbone
from picie_nb.fpn import PiCIENet, StreamingCovariance, pca_init_
from picie_nb.losses import cluster_loss
from picie_nb.regions import merge_clusters, with_prior
from picie_nb.transforms import gaussian_blur
from picie_nb.learner import picie_learner

pytestmark = pytest.mark.filterwarnings("ignore:only class", "ignore:.*of the pixels are ignored")
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


# ---- numbers that are right

def test_classes_in_eight_bits():
    "Truths as bytes, whose products would not fit into one: the same shares and borders"
    t = ToyScenes(n=4, size=32)
    y = t.batch(range(4))[1]
    p, C = y.roll(3, -1), len(t.labels)
    y[:, :4] = 255
    for make in (lambda: PositionShare(C, C), lambda: PositionShare(None, C), BoundaryF, lambda: BoundaryF(ignore=300)):
        assert repr(make().update(p, y.byte())) == repr(make().update(p, y))


@pytest.mark.parametrize("tol", [0, 1, 2])
def test_perfect_borders_beside_void(tol):
    y = torch.zeros(1, 8, 8, dtype=torch.long)
    y[:, :, 4:], y[:, :3] = 1, 255
    for filled in (255, 2): assert BoundaryF(tol).update(y.where(y != 255, torch.tensor(filled)), y).value == 1


@pytest.mark.parametrize("window, shift", [(.6, .3), (.7, .3), (.65, .3), (.8, .2), (.9, .1), (.5, .25)])
def test_windows_fit_at_every_size(window, shift):
    "By colour, near and far agree; the windows are whole"
    def segment(x): seen.add(x.shape[-2]); return (x*3).round().long().sum(1)
    for h in range(20, 140):
        seen = set()
        assert shift_test(segment, torch.rand(1, 3, h, 6), window, shift) == dict(near=1., far=1., leak=0.) and seen == {round(window*h)}


@pytest.mark.parametrize("mat", [[[9]], [[3, 4]], [[2], [5]], [[5, 0], [0, 5]], [[1, 1], [1, 1]]])
def test_normalised_information_is_that_of_nmi(mat):
    assert mutual_information(torch.tensor(mat), normalize=True) == pytest.approx(nmi(mat)) and mutual_information(mat) >= 0


def test_more_clusters_than_classes_by_number():
    "matching='none' with rows that stay empty has groups, too; with one that does not, an error"
    t = ToyScenes(n=4, size=32)
    y = t.batch(range(4))[1]
    for k in (None, 8, 20):
        ev = evaluate(y.roll(1, -1), y, labels=t.labels, n_clusters=k, matching="none")
        assert ev.groups()["stuff"].acc == evaluate(y.roll(1, -1), y, labels=t.labels, matching="none").groups()["stuff"].acc
        assert ev.to_dict()["groups"].keys() == {"things", "stuff"}
    with pytest.raises(ValueError, match="but they hold 9"): evaluate(y*0+9, y, labels=t.labels, matching="none").groups()


def test_ignored_of_probes():
    t = ToyScenes(n=4, size=32)
    x, y = t.batch(range(4))
    y[:, :8] = 255
    net = torch.nn.Conv2d(3, 8, 4, 4)
    for s in (linear_probe(net, [(x, y)], [(x, y)], t.labels, steps=2), knn_probe(net, [(x, y)], [(x, y)], t.labels)): assert s.ignored == .25


# ---- numbers that say their rules

def labelled(k=None, **kw): return evaluate(np.arange(4).reshape(1, 2, 2), np.arange(4).reshape(1, 2, 2), n_clusters=k, **kw)

def test_scores_say_their_classes():
    "Names of a known set, or all of them: two sets of equally many classes are not one table"
    t = np.arange(27).reshape(1, 3, 9)
    a, b = (evaluate(t, t, labels=o).score() for o in ("cocostuff27", "cityscapes27"))
    with pytest.raises(ValueError, match="different rules: labels"): ScoreTable().add("a", a).add("b", b)
    assert labelled(labels=NAMES).score().protocol["labels"] == "a, b, c, d" and "labels" not in labelled(n_classes=4).score().protocol
    assert labelled(labels=NAMES).protocol.differences(labelled(labels=label_set("a,b,c,d")).protocol) == []
    assert labelled(labels=NAMES, protocol="full-res").score().protocol["labels"] == "a, b, c, d"
    assert evaluate(t, t, "picie-coco27-320").protocol.labels == "cocostuff27"


def test_draws_agree_in_the_number_of_clusters():
    for matching in ("many_to_one", "hungarian"):
        few, many = labelled(n_classes=4).score(matching), labelled(9, n_classes=4).score(matching)
        with pytest.raises(ValueError, match="differ in n_clusters"): ScoreTable().add("both", [few, many])
    assert ScoreTable().add("both", [labelled(k, n_classes=4).score("none") for k in (4, 9)]).rows[0]["n"] == 2


def test_matrices_of_other_void_are_not_added():
    with pytest.raises(ValueError, match="ignores 255, the other -1"): ConfusionMatrix(2, 2)+ConfusionMatrix(2, 2, -1)


def test_a_card_scores_its_own_classes():
    card, mat = protocol("picie-coco27-320"), torch.eye(27).long()
    for other in (label_set("cityscapes27"), [f"c{i}" for i in range(27)]):
        with pytest.raises(ValueError, match="is about the classes of cocostuff27"): card.score(mat, labels=other)
    for same in (None, label_set("cocostuff27"), label_set("cocostuff27").names): assert card.score(mat, labels=same).names[0] == "electronic-thing"


def test_a_comparison_says_both_matchings():
    y = ToyScenes(n=4, size=16).batch(range(4))[1]
    a, b = (evaluate(y.roll(1, -1), y, n_classes=8, matching=m) for m in ("hungarian", "many_to_one"))
    assert "matching hungarian, kept (A) and many_to_one, kept (B)" in repr(compare(a, b, mixed=True)) and compare(a, a).matching == "hungarian, kept"


@pytest.fixture(scope="module")
def flat(tmp_path_factory):
    "Truths of 48 x 51 pixels with values of COCO-Stuff, predictions that are right: whole, cut to a square of 48, and others"
    root, fine = tmp_path_factory.mktemp("flat"), label_set("cocostuff27")
    for i in range(3):
        raw = np.array([148, 123, 96, 168, 2, 0, 154, 95])[ToyScenes(n=3, size=51)[i][1][:48]]
        y = fine.map(raw)
        middle = evaluate_middle(y, 48)
        for d, a in dict(t=raw, whole=y, half=y[::2, ::2], cut=middle, smaller=middle[::2, ::2], odd=y[:, :40], P_val=y).items(): save(root/d/f"{i}.png", a)
        save(root/f"P/val/{i}.png", y), save(root/f"Q/validation/x/{i}.png", y), save(root/f"T/train/{i}.png", raw), save(root/f"V/val2017/{i}.png", raw)
    return root

def evaluate_middle(y, side):
    left = round((y.shape[1]-side)/2)
    return y[:, left:left+side]

CARD = Protocol("small", labels="cocostuff27", geometry="short side 48 (image bilinear, label nearest), centre crop 48 x 48, and so on")

CUT = { # predictions, resize: whether they are right, or a part of the error
    "the square": ("cut", False, True), "the square, resized or not": ("cut", "nearest", True), "whole": ("whole", "nearest", True), "a smaller square": ("smaller", "nearest", None),
    "whole at half the size": ("half", "nearest", None), "whole, unasked": ("whole", False, "predict that square"), "a smaller square, unasked": ("smaller", False, "predict at that size"),
    "another shape": ("odd", "nearest", "predict that square"),
}


@pytest.mark.parametrize("kind", CUT)
def test_cut_as_the_card_says(kind, flat):
    "Whole predictions are cut as their truths are, never squeezed into the square"
    pred, resize, want = CUT[kind]
    run = lambda: evaluate_folders(flat/pred, flat/"t", CARD, resize=resize).score("none")
    if isinstance(want, str):
        with pytest.raises(ValueError, match=want): run()
    else: assert (run().acc == 1) == (want is True)


def test_folders_say_what_was_done(flat):
    def rules(*args, **kw): return evaluate_folders(flat/"cut", flat/"t", *args, **kw).score("none").protocol
    plain = evaluate_folders(flat/"whole", flat/"t", labels="cocostuff27").score("none").protocol
    assert "geometry" not in plain and rules(CARD)["geometry"] == CARD.geometry and rules(CARD, crop=48)["name"].startswith("small, but matching")
    cut, card = rules(labels="cocostuff27", crop=48), evaluate_folders(flat/"smaller", flat/"t", CARD, crop=24).score().protocol
    assert "centre crop 48 x 48" in cut["geometry"] and "name" not in cut
    assert "centre crop 24 x 24" in card["geometry"] and "48" not in card["geometry"] and card["name"] == "small, but truths: short side 24 (nearest), centre crop 24 x 24"
    resized = evaluate_folders(flat/"half", flat/"t", labels="cocostuff27", resize="nearest").score("none").protocol
    assert resized["geometry"] == "predictions resized (nearest)" and CARD.differences(rules(CARD, resize="nearest"))[:2] == ["n_images", "geometry"]


def test_files_of_two_splits_are_no_pairs(flat):
    "Numbered alike, in folders that are called after splits"
    with pytest.raises(ValueError, match="prediction val/0 and truth train/0 are of different splits"): evaluate_folders(flat/"P", flat/"T", labels="cocostuff27")
    for p, t in (("P", "V"), ("Q", "V"), ("P", "t"), ("whole", "T"), ("P_val", "T")): assert evaluate_folders(flat/p, flat/t, labels="cocostuff27").score("none").acc == 1


# ---- numbers that JSON cannot hold

def test_reports_are_strict_json():
    "Groups, classes, borders or a pair count that do not exist are null"
    t = ToyScenes(n=4, size=32)
    y = t.batch(range(4))[1]
    y[torch.isin(y, torch.tensor(t.labels.things))] = 255
    stuff = evaluate(y.where(y != 255, 0*y), y, labels=t.labels)
    void = y.clone()
    void[1:] = 255
    one = evaluate(np.zeros((1, 1, 1), int), np.zeros((1, 1, 1), int), n_classes=2)
    pair = evaluate(y.where(y != 255, 0*y), void, labels=t.labels)
    scores = Scores([stuff.groups()["things"]])
    for o in (stuff.to_dict(bootstrap=40), stuff.groups()["things"].to_dict(), one.to_dict(), pair.to_dict(bootstrap=40), compare(pair, pair, n=40).to_dict(), scores.to_dict(),
              ScoreTable().add("things", scores[0]).to_dict()): json.loads(json.dumps(o, allow_nan=False))
    assert stuff.to_dict()["groups"]["things"]["acc"] is None and stuff.to_dict()["groups"]["stuff"]["acc"] == 1


def test_report_of_the_shell_without_things(tmp_path):
    from picie_nb.cli import picie_evaluate
    t = ToyScenes(n=3, size=32)
    for i in range(3):
        y = t[i][1].copy()
        y[np.isin(y, t.labels.things)] = 255
        save(tmp_path/f"t/{i}.png", y), save(tmp_path/f"p/{i}.png", np.where(y == 255, 0, y))
    picie_evaluate(str(tmp_path/"p"), str(tmp_path/"t"), labels="toyscenes", json=str(tmp_path/"r.json"), bootstrap=50, quiet=True)
    assert json.loads((tmp_path/"r.json").read_text())["groups"]["things"]["miou"] is None


# ---- a learner's draws

def test_draws_of_a_learner():
    learn = picie_learner(ToyScenes(n=8, size=32).dls(bs=4, device="cpu"), "test_efficientnet", 3, pretrained=False)
    mu = torch.stack(learn.cluster.fresh(2))
    assert [s.acc for s in learn.score(draws=mu)] == [s.acc for s in learn.score(draws=list(mu))] and len(learn.score(draws=mu)) == 2
    for kw, says in ((dict(n_draws=0), "n_draws=0: give at least 1"), (dict(draws=[]), "no draws to score"), (dict(draws=mu[:0]), "no draws to score")):
        with pytest.raises(ValueError, match=says): learn.score(**kw)


@pytest.mark.parametrize("off", [0, 1e4, 1e5])
def test_clusters_far_from_the_origin(off):
    "Raw values, such as 16-bit bands or coordinates, lie far from 0, where products of 32 bits cannot tell them apart"
    g = torch.Generator().manual_seed(0)
    mu = torch.randn(8, 16, generator=g)*3
    y = torch.arange(8).repeat_interleave(500)
    z = (mu[y]+torch.randn(4000, 16, generator=g)).double()+off
    r = kmeans(z.float(), 8, init=(mu+off), generator=g)
    exact = (z-r.centroids.double()[y]).pow(2).sum(1)
    assert r.counts.tolist() == [500]*8 and r.objective == pytest.approx(exact.mean().item(), rel=1e-3)
    assert torch.equal(assign(z.float(), r.centroids), y)
    maps = z.float().view(8, 20, 25, 16).permute(0, 3, 1, 2)
    assert torch.equal(assign(maps, r.centroids).flatten(), y)
    s = scores(maps, r.centroids)
    assert torch.allclose(-s.max(1).values.flatten(), exact.float(), rtol=.02, atol=.2)
    assert MiniBatchKMeans(r.centroids, r.counts).update(z.float()) == pytest.approx(exact.mean().item(), rel=1e-2)


def test_shares_and_broken_numbers():
    "Counts may be shares; what is no number does not become a centroid, and whole numbers are no images"
    c, g = torch.tensor([[1.], [3.], [5.]]), torch.tensor([0, 0, 1])
    for n in (torch.tensor([25, 25, 50]), torch.tensor([.25, .25, .5])): assert merge_clusters(c, n, g)[0].flatten().tolist() == [2, 5]
    mb, z = MiniBatchKMeans(c, torch.ones(3)), torch.tensor([[1.], [float("nan")]])
    with pytest.raises(ValueError, match="NaN"): mb.update(z)
    assert torch.equal(mb.centroids, c)
    net = PiCIENet(create_backbone("test_efficientnet", pretrained=False), 8)
    with pytest.raises(ValueError, match="uint8"): pca_init_(net, torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8))


def test_empty_clusters_move_where_points_differ():
    "A large cluster of one repeated point has no second place to give: the next one has"
    z = torch.cat([torch.zeros(1000, 2), torch.tensor([[10., 0]]).expand(5, 2), torch.tensor([[12., 0]]).expand(5, 2)])
    r = kmeans(z, 3, init=torch.tensor([[0., 0], [0, 0], [11, 0]]))
    assert sorted(r.counts.tolist()) == [5, 5, 1000] and r.objective == 0
    assert kmeans(torch.ones(9, 2), 3, generator=torch.Generator().manual_seed(0)).counts.sum() == 9 # ends, with one place for three


def test_the_best_start_where_digits_run_out():
    "Marks of missing values, such as -9999, are far from all else, and sums lose what tells starts apart"
    g = torch.Generator().manual_seed(0)
    y = torch.arange(4).repeat_interleave(500)
    z = torch.tensor([[-9999.]*4, [0, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0]])[y]+.05*torch.randn(2000, 4, generator=g)
    r = kmeans(z, 4, n_init=8, generator=g)
    exact = (z.double()-r.centroids.double()[assign(z, r.centroids)]).pow(2).sum(1).mean()
    assert r.counts.tolist().count(500) == 4 and r.objective == pytest.approx(exact.item(), rel=1e-2) and r.history[-1] == r.objective


def test_half_precision_and_empty_batches():
    "Squared lengths overflow 16 bits; a batch of no images is nothing, but no error"
    z = torch.tensor([[300., 0], [0, 300.], [299, 1]])
    mu = torch.tensor([[300., 0], [0, 300]])
    assert assign(z.half(), mu.half()).tolist() == [0, 1, 0] and scores(z.half(), mu.half()).isfinite().all()
    mb = MiniBatchKMeans(mu, torch.ones(2))
    mb.update(z.half().repeat(200, 1))
    assert mb.centroids.isfinite().all()
    assert assign(torch.zeros(0, 2, 4, 5), mu).shape == (0, 4, 5) and scores(torch.zeros(0, 2, 4, 5), mu).shape == (0, 2, 4, 5)
    c = StreamingCovariance()
    c.update(torch.zeros(0, 2)); c.update(z); c.update(z[:0])
    assert c.n == 3 and torch.allclose(c.mean.float(), z.mean(0))


def test_images_that_a_network_cannot_take():
    "Whole numbers are refused at every size; NaN is named; half precision works where sides are no multiples of 4"
    net = PiCIENet(create_backbone("test_efficientnet", pretrained=False), 8).eval()
    for n in (32, 33):
        with pytest.raises(ValueError, match="uint8"): net(torch.zeros(1, 3, n, n, dtype=torch.uint8))
    with pytest.raises(ValueError, match="B,3,H,W"): net(torch.rand(3, 33, 33))
    with pytest.raises(ValueError, match="no images"): pca_init_(net, torch.zeros(0, 3, 32, 32))
    x = torch.rand(4, 3, 32, 32); x[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN"): pca_init_(net, x)
    with torch.no_grad(): assert net.bfloat16()(torch.rand(1, 3, 33, 33).bfloat16()).dtype == torch.bfloat16


def test_priors_of_shares():
    mu, n = torch.eye(3), torch.tensor([5, 1, 0]) # an empty cluster counts as one point
    assert torch.allclose(with_prior(mu, n), with_prior(mu, n/n.sum())) and with_prior(mu, n).isfinite().all()
    with pytest.raises(ValueError, match="all clusters are empty"): with_prior(mu, n*0)


@pytest.mark.parametrize("bad", [255, -1])
def test_labels_that_are_no_clusters(bad):
    z, mu, y = torch.rand(4, 3), torch.eye(3), torch.tensor([0, 1, 2, 0])
    with pytest.raises(ValueError, match=f"{bad}.*labels go from 0 to 2, and -100 is not counted"): cluster_loss(z, torch.tensor([0, 1, 2, bad]), mu)
    assert torch.equal(cluster_loss(z, y.int(), mu), cluster_loss(z, y, mu))
    assert cluster_loss(z.double(), y, mu, weight=torch.ones(3)).dtype == torch.float64


def test_blur_of_no_width():
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(gaussian_blur(x, torch.tensor([1., 2]), 0), x)


@pytest.mark.parametrize("probe, kw", [(knn_probe, dict(tau=0)), (knn_probe, dict(k=2.5)), (knn_probe, dict(n_pixels=0)), (linear_probe, dict(steps=0)), (linear_probe, dict(lr=0)), (linear_probe, dict(bs=0)), (linear_probe, dict(n_pixels=0))])
def test_probes_without_sense(probe, kw):
    (k, v), = kw.items()
    with pytest.raises(ValueError, match=f"{k}={v}: give a .*number above 0"): probe(torch.nn.Identity(), [], [], 2, **kw)


def test_stability_of_one_draw():
    from picie_nb.use.tree import stability
    for kw in (dict(n_draws=1), dict(per_image=7)):
        with pytest.raises(ValueError, match="at least 2 draws, and 400 rows must be whole images"): stability(torch.rand(400, 3), [2], n_leaves=5, **kw)
