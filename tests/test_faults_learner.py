"What goes on with a plausible wrong answer in a learner: scores without masks, yesterday's teacher, a lost size, layers that thaw"
import numpy as np, pytest, random, torch, warnings
from fastai.callback.core import Callback
from fastai.callback.mixup import MixUp
from fastai.callback.progress import ProgressCallback
from fastai.callback.tracker import SaveModelCallback
from fastai.data.block import DataBlock
from fastai.data.core import DataLoaders
from fastai.data.transforms import RandomSplitter
from fastai.learner import Metric, load_learner
from fastai.vision.augment import Resize
from fastai.vision.core import PILImage
from fastai.vision.data import ImageBlock, ImageDataLoaders, SegmentationDataLoaders
from PIL import Image
from torch.nn.functional import normalize
from picie_nb.all import *

SMALL = dict(bs=4, valid=.25, seed=0)


def photos(folder, n=16, shape=(48, 40), seed=0):
    folder.mkdir(parents=True, exist_ok=True)
    g = np.random.default_rng(seed)
    for i in range(n): Image.fromarray(np.kron(g.integers(0, 255, (4, 4, 3)), np.ones((shape[0]//4, shape[1]//4, 1))).astype(np.uint8)).save(folder/f"{seed}{i}.png")
    return folder


def quiet(learn, path):
    learn.remove_cb(ProgressCallback); learn.logger, learn.path = lambda *a: None, path
    return learn


@pytest.fixture
def make(tmp_path):
    def _make(n=12, size=32, k=4, dls=None, **kw):
        torch.manual_seed(0)
        return quiet(picie_learner(dls or ToyScenes(n, size=size, seed=0).dls(**SMALL), "test_efficientnet", k, pretrained=False, **kw), tmp_path)
    return _make


@pytest.fixture
def folder(tmp_path): return picie_dls(photos(tmp_path/"other", seed=1), size=32, bs=4)


# ---- no metric is told the prediction as the truth
class Sees(Metric):
    "A metric of a user's own"
    def __init__(self): self.reset()
    def reset(self): self.ys = []
    def accumulate(self, learn): self.ys.append(learn.y)
    @property
    def value(self): return float(sum(o.numel() for o in self.ys))


WITHOUT_MASKS = {
    "files": lambda l, f: l.validate(dl=l.dls.test_dl(list(l.dls.valid_ds.items))),
    "training images": lambda l, f: l.validate(0),
    "a folder": lambda l, f: l.validate(dl=f.valid),
    "dls without masks": lambda l, f: setattr(l, "dls", f) or l.validate(),
}


@pytest.mark.parametrize("kind", WITHOUT_MASKS)
@pytest.mark.parametrize("mdc", [False, True])
def test_validation_without_masks_has_no_score(make, folder, kind, mdc):
    l = make(metrics=Sees(), mdc=mdc)
    l.fit(1)
    names, v = list(l.recorder.metric_names), WITHOUT_MASKS[kind](l, folder)
    got = dict(zip(["valid_loss", *(m.name for m in l.metrics)], v))
    assert got["accuracy"] != got["accuracy"] and got["miou"] != got["miou"] and 0 < got["valid_loss"] < 99
    assert got["sees"] == 0 # not a single pixel


def test_fit_without_masks_has_no_score(make, folder):
    l = make()
    l.fit(1)
    assert l.history()[-1]["accuracy"] > 0
    l.dls = folder
    l.fit(1)
    row = l.history()[-1]
    assert row["accuracy"] != row["accuracy"] and row["miou"] != row["miou"] and row["valid_loss"] > 0


@pytest.mark.parametrize("dl", [lambda l: l.dls.test_dl(list(l.dls.valid_ds.items)), lambda l: l.dls.train, lambda l: [torch.rand(2, 3, 32, 32)]])
def test_score_needs_masks(make, dl):
    l = make()
    with pytest.raises(ValueError, match="There are no masks in these batches"): l.score(1, dl=dl(l))


def test_get_preds_with_loss(make, folder):
    l = make()
    l.fit(1)
    for dl in (l.dls.valid, folder.valid):
        p, y, loss = l.get_preds(dl=dl, with_loss=True)
        assert len(loss) == len(p) and loss.isfinite().all()
    assert y.numel() == 0 # no masks, and none invented


# ---- what was made from other weights or other images is made again
def state(l): return dict(teacher={k: v.clone() for k, v in l.cluster.snapshot.state_dict().items()}, heads=l.cluster.heads[0][0][0].clone())


@pytest.fixture
def pretrained(tmp_path):
    def _make(dls): return quiet(picie_learner(dls, "test_efficientnet", 4, weights=create_backbone("test_efficientnet", pretrained=False).state_dict()), tmp_path)
    return _make


CHANGES = {
    "load": lambda l, f: [l.save("a"), [p.data.mul_(1.5) for p in l.model.parameters()], l.save("b"), l.load("a"), l.load("b")],
    "dls": lambda l, f: setattr(l, "dls", f),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_what_was_made_from_something_else_is_made_again(pretrained, tmp_path, folder, kind):
    l = pretrained(picie_dls(photos(tmp_path/"photos"), size=32, bs=4, oversample=1))
    assert l.config.labels == "start"
    l.fit(1)
    old, mu = state(l), l.segmenter().centroids
    CHANGES[kind](l, folder)
    assert l.cluster.snapshot is None and l.cluster.mu_eval is None and l.cluster.heads == []
    assert not torch.equal(l.segmenter().centroids, mu)
    l.fit(1)
    new = state(l)
    assert not torch.equal(new["heads"], old["heads"])
    assert any(not torch.equal(v, old["teacher"][k]) for k, v in new["teacher"].items())


def test_what_did_not_change_is_kept(pretrained, tmp_path):
    "The same data again, lr_find and export leave teacher, centroids and readout as they are"
    l = pretrained(picie_dls(photos(tmp_path/"photos"), size=32, bs=4, oversample=1))
    l.fit(1)
    teacher, mu = l.cluster.snapshot, l.cluster.mu_eval
    l.dls = l.dls
    l.export(tmp_path/"l.pkl")
    assert l.cluster.snapshot is teacher and l.cluster.mu_eval is mu
    l.lr_find(num_it=4, show_plot=False)
    assert l.cluster.snapshot is teacher


def test_new_label_set_follows_the_data(make, tmp_path):
    l = make()
    l.fit(1)
    d = tmp_path/"two"
    photos(d/"images"); (d/"masks").mkdir()
    for f in (d/"images").iterdir(): Image.fromarray((np.arange(48*40).reshape(48, 40)//960).astype(np.uint8)).save(d/"masks"/f.name)
    l.dls = picie_dls(d/"images", size=32, bs=4, valid=.5, masks=d/"masks", labels=["up", "down"])
    assert l.classes.names == ("up", "down") or list(l.classes.names) == ["up", "down"]
    l.fit(1)
    assert [m.name for m in l.metrics][-2:] == ["accuracy", "miou"] and 0 < l.history()[-1]["accuracy"] <= 1


# ---- the size at which centroids were found goes with them
def test_size_of_a_data_block(make, tmp_path):
    d = photos(tmp_path/"photos")
    block = DataBlock(ImageBlock, n_inp=1, get_items=image_files, item_tfms=Resize(64))
    l = make(dls=block.dataloaders(d, bs=4))
    l.fit(1)
    assert l.segmenter().size == 64 and l.segmenter(size=96).size == 96


def test_size_survives_export(make, tmp_path):
    l = make(size=48)
    l.fit(1)
    l.export(tmp_path/"l.pkl")
    l = load_learner(tmp_path/"l.pkl")
    assert l.segmenter().size == 48
    with pytest.raises(ValueError, match="at least 1"): l.segmenter(size=-1)


def test_size_follows_the_data(make, tmp_path):
    l = make(size=32)
    l.fit(1)
    l.dls = picie_dls(photos(tmp_path/"large", shape=(96, 80)), size=64, bs=4)
    assert l.segmenter().size == 64


# ---- what is protected stays so
@pytest.mark.parametrize("call", ["unfreeze", "freeze", "freeze_to", "fine_tune"])
def test_protected_layers_never_learn(make, call):
    l = make(freeze=8)
    kept = {n for n, p in l.model.named_parameters() if not p.requires_grad}
    before = {n: p.clone() for n, p in l.model.named_parameters() if n in kept}
    assert kept and not any(n.startswith("fpn") for n in kept)
    getattr(l, call)(*dict(freeze_to=[0], fine_tune=[1]).get(call, []))
    if call != "fine_tune": l.fit(1)
    now = dict(l.model.named_parameters())
    assert all(torch.equal(v, now[n]) and not now[n].requires_grad for n, v in before.items())
    assert call == "freeze" or any(p.requires_grad for n, p in now.items() if n.startswith("backbone"))


def test_lr_find_leaves_no_row(make):
    l = make()
    l.lr_find(num_it=5, show_plot=False)
    assert l.history() == []
    l.fit(1)
    assert len(l.history()) == 1 == l.segmenter().info["epochs"]
    l.plot_history()


# ---- numbers of other libraries
@pytest.mark.parametrize("lr", [1e-3, np.float32(1e-3), np.float64(1e-3), 1])
def test_learning_rates(make, lr):
    l = make(backbone_lr=.5)
    l.fit(1, lr=lr, cbs=None)
    assert len(l.history()) == 1


@pytest.mark.parametrize("k, ok", [(4, True), (4., True), (np.int64(4), True), (np.float32(4), True), (4.5, False), ("4", False), (None, False), (0, False), (float("nan"), False)])
def test_numbers_of_clusters(make, k, ok):
    if ok: assert type(make(k=k).config.n_clusters) is int
    else:
        with pytest.raises(ValueError, match="n_clusters"): make(k=k)


@pytest.mark.parametrize("form", [list, tuple, iter, lambda fs: (f for f in fs), lambda fs: map(str, fs), np.array])
def test_files_in_any_collection(tmp_path, form):
    files = image_files(photos(tmp_path/"photos", 8))
    assert len(picie_dls(form(files), size=32, bs=4).train_ds) == 7


@pytest.mark.parametrize("size", [(32, 48), [32], "32", None])
def test_size_is_one_number(tmp_path, size):
    with pytest.raises(ValueError, match="short side as one number"): picie_dls(photos(tmp_path/"photos"), size=size)


@pytest.mark.parametrize("size", [64, 96])
def test_sizes_at_which_clusters_are_whole_images(make, tmp_path, size):
    dls = picie_dls(photos(tmp_path/"photos"), size=size, bs=4)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        make(dls=dls)
    assert any("test_efficientnet are a grid of 2 x 2" in str(o.message) for o in seen) == (size == 64)


def blocks(folder, mask=None, **kw):
    "A user's own data: photos, perhaps with masks that `mask` makes of an index"
    files, where = image_files(photos(folder/"photos", 8)), folder/"masks"
    if not mask: return DataBlock((ImageBlock,), get_items=lambda _: files, splitter=RandomSplitter(.25, 1), **kw).dataloaders(folder, bs=4)
    where.mkdir()
    for i, f in enumerate(files): Image.fromarray(mask(i)).save(where/f.name)
    return SegmentationDataLoaders.from_label_func(folder, files, lambda f: where/f.name, codes=["ground", "thing"], bs=4, valid_pct=.25, seed=1)


def halves(value): # black and white
    return lambda i: np.repeat(np.array([[0, value]], np.uint8), 48, 0).repeat(20, 1)


@pytest.mark.parametrize("value, classes, ok", [
    (255, ["ground", "thing"], False), (1, ["ground", "thing"], True), (1, "ground, thing", True),
    (255, LabelSet(["ground", "thing"], table={0: 0, 1: 1}), True), (255, ["ground", "thing", "else"], True)])
def test_black_and_white_masks_of_a_data_block(make, tmp_path, value, classes, ok):
    "White would not be counted, and accuracy would be that of the background"
    d = blocks(tmp_path, halves(value))
    if ok: assert make(dls=d, k=2, classes=classes).score(1).acc >= 0
    else:
        with pytest.raises(ValueError, match="hold 0 and 255, never 1"): make(dls=d, k=2, classes=classes)


def test_masks_that_nobody_explains(make, tmp_path):
    with pytest.raises(ValueError, match="picie_learner classes="): make(dls=blocks(tmp_path, halves(1))).score(1)


def test_size_in_use_of_photos_of_many_sizes(make, tmp_path):
    "Not that of the photo that came last"
    for i in range(8): Image.new("RGB", (64+8*i,)*2, (i, 0, 0)).save(tmp_path/f"{i}.png")
    def size(seed):
        d = DataBlock((ImageBlock,), get_items=image_files, splitter=lambda o: (range(7), [7])).dataloaders(tmp_path, bs=1)
        torch.manual_seed(seed), random.seed(seed)
        return picie_learner(d, "test_efficientnet", 4, pretrained=False).segmenter().size
    assert [size(i) for i in range(3)] == [88]*3


def test_the_best_epoch_is_not_on_its_way_back(make):
    with pytest.warns(UserWarning, match="SaveModelCallback brings back"):
        make(n=24, labels="start", average=.5).fit(1, cbs=SaveModelCallback(monitor="valid_loss"))


def test_loaders_of_torch(make):
    d = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.rand(8, 3, 32, 32)), batch_size=4)
    with pytest.raises(ValueError, match="loaders of fastai, not of torch"): make(dls=DataLoaders(d, d))


def test_prediction_of_photos_that_have_categories(make, tmp_path):
    files = image_files(photos(tmp_path/"photos", 8))
    l = make(dls=ImageDataLoaders.from_path_func(tmp_path, files, lambda f: f.stem[-1], bs=4, valid_pct=.25))
    x, best, again, s = l.predict(files[0], with_input=True)
    assert x.shape == (3, 48, 40) and s.shape == (4, 12, 10) and torch.equal(best, s.argmax(0)) and torch.equal(best, again)


def test_photos_in_memory_are_predicted_like_files(make, folder):
    l, f = make(dls=folder), folder.valid_ds.items[0]
    want = l.predict(f)[2]
    for item in (str(f), Image.open(f), PILImage.create(f), np.array(Image.open(f))):
        torch.testing.assert_close(l.predict(item)[2], want)


def test_centroids_of_one_draw_are_scored(make):
    l = make(n=8)
    mu = l.cluster.fresh(1)[0]
    assert l.score(draws=mu).acc == l.score(draws=[mu]).acc == l.score(draws=mu[None]).acc


@pytest.mark.parametrize("form", ["{}_mask.png", "{}.png", "{}-labels.png"])
def test_photos_and_masks_in_one_folder(tmp_path, form):
    files = image_files(photos(tmp_path/"photos", 8))
    for f in files:
        Image.open(f).save(f.with_suffix(".jpg"))
        f.rename(f.with_name(form.format(f.stem)))
    with pytest.warns(UserWarning, match="16 images have the name of another.*if these are masks"): picie_dls(tmp_path/"photos", size=32, bs=4)


def test_names_that_look_alike_are_no_masks(tmp_path):
    files = image_files(photos(tmp_path/"photos", 8))
    for i, f in enumerate(files): f.rename(f.with_name(("street_day", "street_night", "street")[i%3]+f"_{i//3}.png"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        picie_dls(tmp_path/"photos", size=32, bs=4)


@pytest.mark.parametrize("z", [np.random.default_rng(0).random((50, 4), dtype=np.float32), torch.rand(50, 4)])
def test_kmeans_takes_arrays(z): assert kmeans(z, 3).centroids.shape == (3, 4)


@pytest.mark.parametrize("ids", [np.int64(1), 1, "cluster 1", (1, np.int32(2)), [1], np.array([1, 2]), torch.tensor(1)])
def test_ids_of_clusters(ids):
    seg = Segmenter(PiCIENet(create_backbone("test_efficientnet", pretrained=False), 16), torch.randn(5, 16), size=32)
    assert "a" in seg.merged({"a": ids}).labels.names
    assert "b" in seg.named({np.int64(0): "b"}).labels.names


# ---- other weights, by whatever way they came
OTHER_WEIGHTS = {
    "load_state_dict": lambda l: l.model.load_state_dict({k: v*1.5 if v.is_floating_point() else v for k, v in l.model.state_dict().items()}),
    "learn.model": lambda l: setattr(l, "model", PiCIENet(create_backbone("test_efficientnet", pretrained=False), l.model.dim)),
    "in place": lambda l: [p.data.mul_(1.5) for p in l.model.parameters()],
}


@pytest.mark.parametrize("kind", OTHER_WEIGHTS)
def test_other_weights_have_another_teacher_and_readout(pretrained, tmp_path, kind):
    l = pretrained(picie_dls(photos(tmp_path/"photos"), size=32, bs=4, oversample=1))
    l.fit(1)
    old, mu = state(l), l.segmenter().centroids
    OTHER_WEIGHTS[kind](l)
    assert not torch.equal(l.segmenter().centroids, mu)
    l.fit(1, reset_opt=True)
    assert any(not torch.equal(v, old["teacher"][k]) for k, v in state(l)["teacher"].items())


def test_training_on_keeps_the_teacher(pretrained, tmp_path):
    l = pretrained(picie_dls(photos(tmp_path/"photos"), size=32, bs=4, oversample=1))
    l.fit(1)
    teacher = l.cluster.snapshot
    l.validate(); l.segmenter(); l.fit(1)
    assert l.cluster.snapshot is teacher


def test_colours_follow_the_readout(make):
    l = make()
    l.fit(1)
    l.cluster.fit_readout() # other clusters than those that were matched
    assert (l._cluster_colors() == palette(4)).all()


@pytest.mark.parametrize("stop", [False, True])
def test_few_images_are_for_the_table_only(make, stop):
    "Rows on the way are fitted on few images; what is used afterwards never is, also when training was stopped early"
    from fastai.callback.core import CancelFitException
    class Stop(Callback):
        order = 100
        def after_epoch(self):
            if stop: raise CancelFitException
    l, limits = make(), []
    cb, stream = l.cluster, l.cluster.stream
    cb.stream = lambda *a, most=None, **kw: (limits.append(most), stream(*a, most=most, **kw))[1]
    l.fit(2, cbs=Stop())
    assert 128 in limits
    limits.clear()
    l.segmenter()
    assert cb.mu_eval is not None and not cb.rough and 128 not in limits
    assert (len(limits) > 0) == stop # after the last epoch it was at hand
    n = [len(z) for _, (z,) in stream(l.model.eval(), augment=False, most=2)]
    assert sum(n) == 2*64 # all 8 x 8 of two images


# ---- lr_find is no training
@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("kw", [dict(labels="start"), dict(labels="snapshot")])
def test_lr_find_leaves_teacher_and_centroids(make, tmp_path, first, kw):
    l = make(cbs=ClusterHealth(warn=False), **kw)
    if first: l.fit(1)
    of = lambda: [None if t is None else t.clone() for t in (l.cluster.mu_eval, *(m for ms, _ in l.cluster.heads for m in ms), *(l.cluster.snapshot.parameters() if l.cluster.snapshot else ()))]
    was = of()
    l.lr_find(num_it=6, show_plot=False)
    assert len(was) == len(of()) and all(a is b or torch.equal(a, b) for a, b in zip(was, of()))
    assert len(l.cluster_health.rows) == len(l.history()) == first


def test_lr_find_leaves_no_checkpoint(make, tmp_path):
    l = make(cbs=CheckpointCallback(tmp_path/"run"))
    l.lr_find(num_it=6, show_plot=False)
    assert not (tmp_path/"run").exists()


# ---- size, centroids and geometry come from where they were made
def test_size_survives_a_resumed_training(make, tmp_path):
    d = photos(tmp_path/"photos")
    data = lambda: DataBlock(ImageBlock, n_inp=1, get_items=image_files, splitter=RandomSplitter(seed=0), item_tfms=Resize(64)).dataloaders(d, bs=4)
    for resume in (False, True):
        l = make(dls=data())
        l.fit(1, checkpoint=tmp_path/"run", resume=resume)
        assert l.segmenter().size == 64


def test_export_before_training_holds_centroids(make, tmp_path):
    l = make(size=48)
    l.export(tmp_path/"l.pkl")
    there = load_learner(tmp_path/"l.pkl")
    assert torch.equal(there.segmenter().centroids, l.segmenter().centroids)
    there.cluster.forget()
    with pytest.raises(ValueError, match="no training images"): there.segmenter()


@pytest.mark.parametrize("size, ok", [(40, True), (40., True), (np.int64(40), True), (0, False), (40.5, False), ("40", False)])
def test_size_of_a_segmenter(make, size, ok):
    if ok: assert make().segmenter(size=size).size == 40
    else:
        with pytest.raises(ValueError, match="size="): make().segmenter(size=size)


def test_geometry_of_other_batches(make):
    l, other = make(), ToyScenes(8, size=48, seed=1).dls(bs=4, valid=.5)
    assert l.score(1)[0].protocol["geometry"] == l.score(1, dl=l.dls.valid)[0].protocol["geometry"] == l.dls.geometry
    assert l.score(1, dl=other.valid)[0].protocol["geometry"] == "batches as they come"
    with pytest.raises(ValueError, match="no pixel"): l.score(1, dl=[])


# ---- what is protected, whoever thaws it
@pytest.mark.parametrize("thaw", [lambda l: l.model.requires_grad_(True), lambda l: (l.create_opt(), l.opt.unfreeze()), lambda l: (l.create_opt(), l.opt.freeze_to(0))])
def test_what_was_thawed_behind_the_learner(make, thaw):
    l = make(freeze=8)
    before = {n: p.clone() for n, p in l.model.named_parameters() if not p.requires_grad}
    thaw(l)
    l.fit(1)
    assert before and all(torch.equal(v, dict(l.model.named_parameters())[n]) for n, v in before.items())


# ---- whole numbers and numbers of other libraries, in every field
@pytest.mark.parametrize("field, value", [("dim", 16.), ("dim", np.int64(16)), ("n_pixels", 50.), ("n_images", np.float32(8)), ("n_iter", torch.tensor(3)), ("n_draws", 2.), ("lr", np.float32(1e-3)), ("tau", np.array(1.))])
def test_numbers_in_a_configuration(make, tmp_path, field, value):
    l = make(**{field: value})
    l.fit(1., wd=np.float32(0), checkpoint=tmp_path/"run")
    assert type(getattr(l.config, field)) in (int, float) and getattr(l.config, field) == float(value)
    assert Segmenter.load(l.segmenter().save(tmp_path/"s.safetensors")).info["config"][field] == float(value)


@pytest.mark.parametrize("call", [lambda l: picie_config(dim=16.5), lambda l: picie_config(n_iter="3"), lambda l: picie_config(n_draws=None), lambda l: l.fit(1.5), lambda l: l.score(1.5), lambda l: l.cluster_tree(20.5)])
def test_no_whole_number(make, call):
    with pytest.raises(ValueError, match="give a whole number"): call(make())


@pytest.mark.parametrize("how", ["fit_one_cycle", "fit_flat_cos", "fine_tune"])
@pytest.mark.parametrize("lr", [np.float32(1e-3), torch.tensor(1e-3)])
def test_learning_rates_of_other_schedules(make, how, lr):
    l = make()
    getattr(l, how)(1, lr)
    assert l.history()[-1]["within"] > 0


def test_a_finished_training_is_averaged_once(pretrained, tmp_path):
    "... even if another one was cut off before it is resumed"
    class Stop(Callback):
        order = 90
        def after_batch(self): raise KeyboardInterrupt
    l = pretrained(picie_dls(photos(tmp_path/"photos"), size=32, bs=4, oversample=1))
    l.fit(1, checkpoint=tmp_path/"run")
    want = {k: v.clone() for k, v in l.model.state_dict().items()}
    with pytest.raises(KeyboardInterrupt): l.fit(1, cbs=Stop())
    l.fit(1, checkpoint=tmp_path/"run", resume=True)
    assert all(torch.equal(v, want[k]) for k, v in l.model.state_dict().items())


@pytest.mark.parametrize("stop", (KeyboardInterrupt, OSError))
def test_what_is_stopped_is_averaged(pretrained, tmp_path, stop):
    "... by hand or by an error, so that of eight photos nothing is kept then either, and of more a part"
    class Stop(Callback):
        order = 90
        def after_batch(self):
            if self.training and self.epoch: raise stop("enough")
    class Raw(Callback):
        order = 80
        def after_batch(self): self.weights = [p.detach().clone() for p in self.learn.model.parameters()]
    for n, train, part in ((10, 8, 0.), (16, 13, .5/24*5/24)):
        l, raw = pretrained(picie_dls(photos(tmp_path/f"photos{n}", n), size=32, bs=16, valid=.2, oversample=1)), Raw()
        start = [p.detach().clone() for p in l.model.parameters()]
        with pytest.raises(stop): l.fit(3, lr=.1, cbs=[raw, Stop()])
        steps = l.cluster.steps
        assert steps == 2 and len(l.dls.train_ds) == train
        for p, a, b in zip(l.model.parameters(), start, raw.weights): assert torch.allclose(p, a+part*steps*(b-a), atol=1e-6)
        assert any(not torch.equal(a, b) for a, b in zip(start, raw.weights))


def test_a_score_does_not_depend_on_what_enters_together(pretrained, tmp_path):
    "Photos of several shapes are scored as if each was alone, and as the segmenter shows them: padding would change their features"
    for i, shape in enumerate(((48, 40), (40, 48), (48, 80))):
        photos(tmp_path/"images", 4, shape, seed=i)
        for f in (tmp_path/"images").glob(f"{i}*.png"):
            (tmp_path/"masks").mkdir(exist_ok=True)
            Image.fromarray((np.asarray(Image.open(f))[..., 0]//64).astype(np.uint8)).save(tmp_path/"masks"/f.name)
    files = image_files(tmp_path/"images")
    l = pretrained(picie_dls(files, size=32, bs=8, valid=files, masks=tmp_path/"masks", labels=list("abcd"), oversample=1))
    draws = l.cluster.fresh(1)
    for rounds in (0, 8):
        seg = Segmenter(l.model, draws[0], size=32, refine=rounds)
        found = evaluate([seg(f).clusters for f in files], [np.asarray(Image.open(tmp_path/"masks"/f.name)) for f in files], labels=list("abcd"), n_clusters=4)
        s = l.score(draws=draws, refine=rounds)
        assert (s.acc, s.miou) == pytest.approx((found.score().acc, found.score().miou), abs=1e-6)


def test_one_thin_photo(make, tmp_path):
    Image.fromarray(np.zeros((2, 600, 3), np.uint8)).save(tmp_path/"line.png")
    l = make(dls=picie_dls(photos(tmp_path/"photos"), valid=[tmp_path/"line.png"], size=32, bs=4))
    assert next(iter(l.dls.valid))[0].shape[-2:] == (4, 256)
    l.validate()


def test_predictions_of_several_shapes(make, tmp_path):
    photos(tmp_path/"photos", 4, (48, 64)); photos(tmp_path/"photos", 4, (64, 48), seed=1)
    l = make(dls=picie_dls(photos(tmp_path/"train"), valid=tmp_path/"photos", size=32, bs=4))
    p, _, best = l.get_preds(with_decoded=True)
    assert sorted(tuple(o.shape) for o in p) == [(4, 8, 11)]*4+[(4, 11, 8)]*4
    for a, b in zip(p, best): assert torch.allclose(a.sum(0), torch.ones(())) and torch.equal(a.argmax(0), b)


# ---- fastai's events around validation, cancelled parts, and what is not there

def test_published_readout_is_made_once(make, tmp_path):
    "A validation is no training: centroids are those of the weights, as often as they are used"
    l = make(preset="official")
    l.fit(1)
    maps = [l.predict(l.dls.valid_ds.items[0])[0] for _ in range(3)]
    assert all(torch.equal(m, maps[0]) for m in maps) and l.validate()[-2:] == l.validate()[-2:]
    l.export("m.pkl")
    again = load_learner(tmp_path/"m.pkl")
    for _ in range(2): assert torch.equal(again.predict(l.dls.valid_ds.items[0])[0], maps[0])


def test_health_beside_predictions(make):
    l = make(cbs=ClusterHealth(n_images=2))
    l.fit(1)
    l.validate(); l.predict(l.dls.valid_ds.items[0])
    assert len(l.cluster_health.rows) == 1


@pytest.mark.parametrize("before", ["lr_find", "load"])
def test_mdc_after(make, before):
    "fastai makes another state of the optimiser"
    l = make(preset="paper", mdc=True)
    if before == "lr_find": l.lr_find(num_it=3, show_plot=False, suggest_funcs=())
    else:
        l.fit(1)
        l.save("a"); l.load("a")
    l.fit(1)
    assert l.history()[-1]["within"] > 0


def test_epoch_that_is_cut_short(make):
    "Values stay under their names"
    from fastai.callback.training import ShortEpochCallback
    l = make()
    l.fit(1, cbs=ShortEpochCallback(.5, short_valid=False))
    row = l.history()[0]
    assert {k: row[k] for k in ("within", "cross", "clusters")} == pytest.approx(l.cluster.health) and 0 <= row["miou"] <= 1 and "train_loss" not in row


def block(folder, bs=4, splitter=None):
    from fastai.data.transforms import get_image_files
    return DataBlock((ImageBlock,), get_items=get_image_files, splitter=splitter, item_tfms=Resize(32)).dataloaders(folder, bs=bs)


def test_nothing_to_validate(make, tmp_path):
    "An empty validation set, and none at all"
    from fastai.data.core import DataLoaders
    images = photos(tmp_path/"photos", 8)
    l = make(dls=block(images, splitter=lambda o: (list(range(len(o))), [])))
    l.fit(2, checkpoint=tmp_path/"ck")
    assert len(l.history()) == 2 and list((tmp_path/"ck").glob("epoch-0002-*"))
    l = make(dls=DataLoaders(picie_dls(images, size=32, bs=4).train))
    l.fit(2, checkpoint=tmp_path/"ck1")
    assert [o["train_loss"] > 0 for o in l.history()] == [True]*2


class Cancel(Callback):
    "Leave out the first batch, or the first epoch's training"
    def __init__(self, event, exception, order): self.event, self.exception, self.order = event, exception, order
    def __call__(self, event):
        if event == self.event and (event == "before_train" or self.training and self.iter == 0) and not self.epoch: raise self.exception
        return super().__call__(event)


@pytest.mark.parametrize("event, order", [("before_batch", 50), ("after_pred", 50), ("before_train", 1)])
def test_cancelled(make, event, order):
    from fastai.callback.core import CancelBatchException, CancelTrainException
    l = make(16)
    l.fit(2, cbs=Cancel(event, CancelTrainException() if event == "before_train" else CancelBatchException(), order))
    full = len(l.dls.train)
    skipped = full if event == "before_train" else 1
    assert len(l.history()) == 2-(skipped == full) and l.cluster.steps == 2*full-skipped


def test_no_whole_batch(make, tmp_path):
    "A DataBlock drops the last batch: with few images nothing is left"
    l = make(dls=block(photos(tmp_path/"photos", 8), bs=16))
    with pytest.raises(ValueError, match="make `bs` smaller"): l.fit(1)


def test_checkpoints_only_of_trainings(make, tmp_path):
    "A callback that stays neither brings weights back nor writes when somebody validates"
    l = make(cbs=CheckpointCallback(tmp_path/"ck", resume=True))
    l.fit(1)
    was = {f.name: f.stat().st_mtime_ns for f in (tmp_path/"ck").iterdir()}
    with torch.no_grad(): l.model.fpn.laterals[0].weight.zero_()
    l.validate()
    assert not l.model.fpn.laterals[0].weight.any() and {f.name: f.stat().st_mtime_ns for f in (tmp_path/"ck").iterdir()} == was


@pytest.mark.parametrize("change", ["oversample", "bf16"])
def test_other_settings_do_not_go_on(make, tmp_path, change):
    images = photos(tmp_path/"photos", 8)
    dls = lambda **kw: picie_dls(images, size=32, bs=4, valid=.25, **kw)
    make(dls=dls()).fit(1, checkpoint=tmp_path/"ck")
    l = make(dls=dls(oversample=1.2) if change == "oversample" else dls())
    if change == "bf16": l.to_bf16()
    with pytest.raises(ValueError, match="belongs to a training with"): l.fit(1, checkpoint=tmp_path/"ck", resume=True)


def test_masks_that_come_later(make, folder):
    "Other data, of the same labels: their columns appear"
    scenes = ToyScenes(12, size=32, seed=0)
    bare = folder
    bare.labels = scenes.labels
    l = make(dls=bare)
    assert not any(hasattr(m, "cm") for m in l.metrics)
    l.dls = scenes.dls(**SMALL)
    assert {"accuracy", "miou"} <= {m.name for m in l.metrics}


def test_ignored_whatever_the_batch(tmp_path):
    "Photos with black frames, and no padding: as much is void in one batch as one by one"
    rng = np.random.default_rng(0)
    for i in range(4):
        x, y = rng.integers(1, 256, (32, 32, 3), np.uint8), rng.integers(0, 2, (32, 32), np.uint8)
        if i%2: x[24:], y[24:] = 0, 255
        for d, a in dict(images=x, masks=y).items(): (tmp_path/d).mkdir(exist_ok=True); Image.fromarray(a).save(tmp_path/d/f"{i}.png")
    for bs in (1, 4):
        dls = picie_dls(tmp_path/"images", valid=tmp_path/"images", masks=tmp_path/"masks", labels=["a", "b"], size=32, bs=bs, device="cpu")
        l = picie_learner(dls, "test_efficientnet", 2, pretrained=False)
        with l.no_bar(), l.no_logging(): l.validate()
        assert l.score(1)[0].ignored == next(m for m in l.metrics if hasattr(m, "cm")).score().ignored == .125


def test_better_of_itself():
    "Resamples in which nothing counts are neither better nor worse"
    t = np.random.default_rng(0).integers(0, 4, (3, 10, 10))
    t[:2] = 255
    e = evaluate(np.random.default_rng(1).integers(0, 4, (3, 10, 10)), t, n_classes=4)
    assert compare(e, e).better("acc") == .5


def test_segmenter_of_no_numbers(make, tmp_path):
    l = make()
    s = l.segmenter()
    s.net.fpn.laterals[0].weight.data[0] = float("nan")
    with pytest.raises(ValueError, match="not finite"): Segmenter.load(s.save(tmp_path/"m.safetensors"))


def test_published_validation_after_a_training_that_ended_early(make):
    "A readout of few images, which is dropped, is no reason to stop"
    from fastai.callback.core import CancelFitException
    class End(Callback):
        def after_epoch(self): raise CancelFitException
    l = make(preset="official")
    l.fit(3, cbs=End())
    for _ in range(2): assert 0 <= l.validate()[-1] <= 1
    assert l.predict(l.dls.valid_ds.items[0])[0].shape


# ---- what cannot work is said in a sentence

def test_requests_that_cannot_be_met_are_explained(make, tmp_path):
    l = make()
    l.recorder.train_metrics = True
    with pytest.raises(ValueError, match="no masks to score against"): l.fit(1)
    l.recorder.train_metrics = False
    l.fit(1)
    l.export("a.pkl")
    with pytest.raises(ValueError, match="no images to show"): load_learner(tmp_path/"a.pkl").show_results()
    ev = evaluate([np.eye(4, dtype=int)], [np.eye(4, dtype=int)], n_clusters=2, n_classes=2)
    for given in ([0., 1.], [False, True]):
        with pytest.raises(ValueError, match="2 classes 0..1"): ev.score(given)
    assert ev.score([0, 1]).acc == 1


# ---- features that take a side
class Asks(Callback):
    "What the teacher says of the last batch, and what it should say"
    order = 16 # after ClusterCallback
    def after_pred(self):
        if not self.training: return
        cb, size = self.cluster, self.learn.pred[0].shape[-2:]
        (x,), (self.says,) = cb.teach_xs, cb.teach(size)
        with torch.no_grad(): z = cb.teacher(x)
        self.plain, self.smooth = (normalize(cb.geometric.apply(o, cb.g, size), dim=1) for o in (z, smooth_features(z, x, 5)))


def test_smooth_features_are_what_is_clustered_and_taught(make):
    learn, asks = make(size=64, smooth=5, n_pixels=None, labels="start"), Asks()
    cb, model = learn.cluster, learn.model.eval()
    x = torch.cat([b[0] for b in learn.dls.train.new(shuffle=False, drop_last=False)]).as_subclass(torch.Tensor)
    with torch.no_grad(): z = normalize(model(x), dim=1)
    sampled, = cb.sample(model, augment=False)
    expected, plain = (sample_pixels(smooth_features(z, x, n)).sum(0) for n in (5, 0))
    torch.testing.assert_close(sampled.sum(0), expected, rtol=1e-3, atol=1e-2)
    assert (expected-plain).abs().max() > 1
    with learn.no_logging(): learn.fit(1, cbs=asks)
    torch.testing.assert_close(asks.says, asks.smooth, rtol=1e-3, atol=1e-4)
    assert (asks.says-asks.plain).abs().max() > .05
    assert learn.segmenter().info["config"]["smooth"] == 5


def test_predict_gives_clusters():
    "As numbers, not as an image of 0 and 255"
    dls = ToyScenes(12, size=32, seed=0).dls(bs=4, valid=.25, seed=0)
    l = picie_learner(dls, "test_efficientnet", 6, pretrained=False)
    x, item = dls.valid.one_batch()[0], dls.valid_ds.items[0]
    with l.no_bar():
        first, best, s = l.predict(item)
        assert torch.equal(first, best) and torch.equal(first, s.argmax(0)) and len(l.predict(item, with_input=True)) == 4
        assert len(l.get_preds(dl=[(x,)])[0]) == len(x)


def test_scores_say_whose_centroids(make):
    l = make()
    own = l.cluster.fresh(1)
    assert (l.score(1)[0].protocol["centroids"], l.score(draws=own)[0].protocol["centroids"]) == ("fresh K-means on training images", "given")
    for bad in (True, 1.5, -1, 1001):
        with pytest.raises(ValueError, match=f"refine={bad}"): l.score(1, refine=bad)


def test_mixed_images(make):
    with pytest.raises(ValueError, match="MixUp and CutMix mix labels"): make().fit(1, cbs=MixUp())


def test_predict_takes_a_path_as_text(folder, tmp_path):
    l = quiet(picie_learner(folder, "test_efficientnet", 4, pretrained=False), tmp_path)
    f = folder.valid_ds.items[0]
    with l.no_bar(): assert torch.equal(l.predict(str(f))[0], l.predict(f)[0])
