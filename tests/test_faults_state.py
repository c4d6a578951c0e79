"What a learner remembers at the wrong time: after a training was stopped, weights came back, somebody looked on, sizes that are no whole cells"
import numpy as np, pickle, pytest, torch, warnings
from fastai.callback.core import Callback, CancelTrainException
from fastai.callback.schedule import ParamScheduler, SchedLin
from fastai.callback.tracker import SaveModelCallback
from fastai.learner import load_learner
from fastai.torch_core import set_seed
from picie_nb.all import *
from picie_nb.data.folders import _Store
from test_faults_learner import quiet

NAME, WEIGHTS = "test_efficientnet", None


@pytest.fixture
def make(tmp_path):
    def _make(n=16, size=32, k=4, dls=None, **kw):
        set_seed(0)
        w = create_backbone(NAME, pretrained=False).state_dict()
        set_seed(0)
        dls = dls or ToyScenes(n, size=size, seed=0).dls(bs=4, valid=.25, seed=0)
        return quiet(picie_learner(dls, NAME, k, weights=w, **kw), tmp_path)
    return _make


class Stop(Callback):
    order = 90
    def __init__(self, epoch, error=KeyboardInterrupt): self.at, self.error = epoch, error
    def after_batch(self):
        if self.training and self.epoch == self.at: raise self.error("enough")


def stopped(l):
    with pytest.raises(KeyboardInterrupt): l.fit(4, cbs=Stop(2))


def other(l):
    l.fit(3)
    l.dls = ToyScenes(16, size=32, seed=1).dls(bs=4, valid=.25, seed=0)


def found(l):
    l.fit(3)
    l.lr_find(num_it=3, show_plot=False)


LATER = {
    "load": lambda l: (l.fit(3), l.save("a"), [p.data.mul_(1.1) for p in l.model.parameters()], l.load("a")),
    "another folder": other, "lr_find": found, "stopped": stopped,
    "SaveModelCallback": lambda l: l.fit(3, cbs=SaveModelCallback("within", comp=np.less)),
}


@pytest.mark.parametrize("how", LATER)
def test_clusters_in_use_are_made_once(make, how):
    "... also after a training of several epochs, in which a row of the table has rough ones"
    l = make()
    LATER[how](l)
    a, b = (l.predict(l.dls.valid_ds[0][0])[0] for _ in range(2))
    assert torch.equal(a, b)
    assert l.validate()[-2:] == l.validate()[-2:]
    assert len(l.cluster.mu_eval) == 4 and not l.cluster.rough


@pytest.mark.parametrize("stop", (KeyboardInterrupt, OSError))
def test_a_stopped_training_is_over(make, stop):
    "Validation is no row of its history, and what comes after it is not drawn to the old teacher"
    l, new = make(), make(k=4)
    with pytest.raises(stop): l.fit(4, cbs=Stop(2, stop))
    n = len(l.history())
    l.validate()
    assert n == len(l.history()) == 2
    old = l.cluster.snapshot
    assert old is not None
    l.model.load_state_dict({k: v+.1 if v.is_floating_point() else v for k, v in new.model.state_dict().items()})
    l.cluster.check()
    assert l.cluster.snapshot is None


def test_no_photo_goes_with_an_exported_learner(make, tmp_path):
    l = make(size=64)
    l.fit(1)
    cb = l.cluster
    assert cb.xs is cb.teach_xs is cb.g is None
    with pytest.raises(KeyboardInterrupt): l.fit(2, cbs=Stop(1))
    assert cb.xs is cb.teach_xs is cb.g is None
    full = pickle.dumps(l.dls.train.dataset)
    assert len(full) < 64*64*3 # less than one of them
    store, im = _Store(10**6), open_image(np.zeros((10, 20, 3), np.uint8))
    store.add("a", im)
    again = pickle.loads(pickle.dumps(store))
    assert len(store) == 1 and len(again) == 0 and again.room == 10**6


# ---- maps and images cover the same places, whatever the size

class Mean(torch.nn.Module):
    "In place of a backbone: means of 4 x 4 pixels"
    name, channels, strides, fixed, pad_to = "mean", [3], [4], False, 4
    def forward(self, x): return [torch.nn.functional.avg_pool2d(x, 4, ceil_mode=True)]


def mean_net():
    net = PiCIENet(Mean(), 3)
    with torch.no_grad():
        net.fpn.laterals[0].weight.copy_(torch.eye(3)[..., None, None])
        net.fpn.laterals[0].bias.zero_()
    return net.eval()


@pytest.mark.parametrize("side", (32, 33, 45, 157, 160))
def test_a_map_covers_its_image(side):
    x = ((torch.arange(side)+.5)/side).expand(1, 3, side, side)
    z = mean_net()(x)[0, 0, 0]
    n = -(-side//4)
    assert len(z) == n
    want = (torch.arange(n)+.5)/n
    assert (z-want)[1:-1].abs().max()*n < .01 # in cells


@pytest.mark.parametrize("side", (45, 64, 157))
def test_views_and_teacher_see_the_same_places(side):
    "A map of places, cropped by G, is that of the cropped image"
    x = ((torch.arange(side)+.5)/side).expand(2, 3, side, side).contiguous()
    g, net, n = Geometric(.5).sample(2), mean_net(), -(-side//4)
    moved, seen = Geometric().apply(net(x), g, (n, n)), net(Geometric().apply(x, g, (side, side)))
    assert (moved-seen)[..., 2:-2].abs().max()*n < .6 # the ends repeat the outermost cell
    assert (moved-seen)[..., 2:-2].abs().mean()*n < .03


@pytest.mark.parametrize("side", (33, 45, 157))
def test_a_segmenter_finds_an_edge_where_it_is(side):
    x, at = torch.zeros(1, 3, side, side), round(.8*side)
    x[..., at:] = 1
    seg = Segmenter(mean_net(), torch.tensor([[0., 0., 0.], [1., 1., 1.]]), size=32, readout="euclidean", refine=0)
    y = seg.clusters(x)[0, side//2]
    assert abs(int((y == 0).sum())-at) <= 2
    assert torch.equal(seg.clusters((255*x).byte()), seg.clusters(x))
    seg.tile = 32 # the last tile of a row is narrow
    assert abs(int((seg.clusters(x)[0, side//2] == 0).sum())-at) <= 2


# ---- to look changes nothing

def test_a_look_in_an_epoch_changes_nothing_else(make):
    "A segmenter in the middle of a training: the teacher stays, and BatchNorm keeps its statistics"
    class Look(Callback):
        order = 90
        def after_batch(self):
            if not (self.training and self.iter == 0): return
            self.learn.segmenter()
            self.modes = [m.training for m in self.learn.model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    l, teachers, made = make(), [], []
    cluster = l.cluster.cluster
    l.cluster.cluster = lambda: (teachers.append(1), cluster())
    l.fit(3, cbs=(look := Look()))
    assert len(teachers) == 1 and l.cluster.steps == 9 and not any(look.modes)


def test_health_changes_nothing(make):
    losses = []
    for cbs in (None, ClusterHealth(warn=False)):
        l = make()
        set_seed(1)
        l.fit(3, cbs=cbs)
        losses.append([r["within"] for r in l.history()])
    assert losses[0] == losses[1]


def test_health_of_a_training_without_a_step(make):
    class Cancel(Callback):
        def before_train(self): raise CancelTrainException
    l = make()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        l.fit(1, cbs=[ClusterHealth(), Cancel()])


def test_prediction_warns_of_nothing(make, tmp_path):
    l = make()
    l.fit(1)
    l.export("a.pkl")
    item = l.dls.valid_ds[0][0]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "eight images")
        l.validate()
        load_learner(tmp_path/"a.pkl").predict(item)
        few = make(n=8)
        with pytest.raises(UserWarning, match="eight images"): few.fit(1)


def test_statistics_are_weights_too(make):
    l = make()
    l.fit(1)
    l.validate()
    next(m for m in l.model.modules() if isinstance(m, torch.nn.BatchNorm2d)).running_mean.add_(1)
    l.cluster.check()
    assert l.cluster.mu_eval is None


def test_training_images_are_predicted_at_the_size_in_use(make):
    seen = []
    class Look(Callback):
        order = 90
        def after_pred(self): seen.append(tuple(self.learn.xb[0].shape[-2:]))
    l = make(dls=ToyScenes(16, size=64, seed=0).dls(bs=4, valid=.25, seed=0, oversample=1.4))
    l.fit(1)
    with l.added_cbs(Look()): l.get_preds(0)
    assert set(seen) == {(64, 64)}


# ---- a training is what was asked for

def test_two_clusters_are_learned_alike_by_both_configurations(make):
    "A field of `PublishedConfig` at its default changes nothing"
    nets = []
    for more in ({}, dict(tau=1.)):
        l = make(k=2, **more)
        set_seed(1)
        l.fit(1)
        nets.append(torch.cat([p.flatten() for p in l.model.parameters()]))
    assert torch.equal(*nets)


@pytest.mark.parametrize("labels", ("start", "snapshot"))
def test_fixed_views_are_new_in_each_epoch(make, labels):
    seeds = []
    class Look(Callback):
        order = 90
        def before_batch(self): seeds.append(self.learn.cluster.seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        l = make(fixed_views=True, labels=labels, average=1., cbs=Look())
    l.fit(3)
    assert len(set(seeds)) == 3


def test_predictions_of_mdc_have_the_clusters_in_use(make):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        l = make(preset="official", mdc=True, n_pixels=50)
    l.fit(1)
    preds, seg = l.get_preds()[0].argmax(1), l.segmenter()
    x = torch.cat([b[0] for b in l.dls.valid]).as_subclass(torch.Tensor)
    assert torch.equal(preds, seg._coarse(x).argmax(1).cpu())


def test_predictions_are_as_sure_as_a_segmenter(make):
    "One photo, one confidence, whichever way one asks"
    l = make(refine=0)
    l.fit(1)
    p, seg = l.get_preds()[0], l.segmenter()
    x = torch.cat([b[0] for b in l.dls.valid]).as_subclass(torch.Tensor)
    torch.testing.assert_close(p.as_subclass(torch.Tensor), (seg._coarse(x)/seg.tau).softmax(1).cpu(), rtol=1e-4, atol=1e-5)


def test_running_means_are_not_merged():
    with pytest.raises(ValueError, match="merge_from=1"): picie_config("improved", n_clusters=4, init_images=8)


def test_start_epoch(make):
    l, epochs = make(), []
    class Look(Callback):
        def before_train(self): epochs.append(self.epoch)
    l.fit(4, start_epoch=3, cbs=Look())
    assert epochs == [3]


def test_the_rate_follows_its_schedule_beside_another(make):
    def rates(cbs):
        l, lrs = make(), []
        class Look(Callback):
            def before_batch(self): lrs.append(self.learn.opt.hypers[-1]["lr"])
        l.fit(2, cbs=[Look(), *cbs])
        return lrs
    assert rates([]) == rates([ParamScheduler({"wd": SchedLin(0, .1)})])
    flat = rates([ParamScheduler({"lr": SchedLin(1e-3, 1e-3)})])
    assert max(flat) == min(flat)


def test_history_without_validation(make):
    dls = ToyScenes(16, size=32, seed=0).dls(bs=4, valid=.25, seed=0)
    dls.loaders = dls.loaders[:1]
    l = make(dls=dls)
    l.fit(2)
    assert all({"within", "cross", "clusters"} <= set(r) for r in l.history())
    l.plot_history()


def test_normalised_images_are_not_scored(make):
    l = make()
    with pytest.raises(ValueError, match=r"\[0,1\]"): l.score(1, dl=[(3*b[0]-1, b[1]) for b in l.dls.valid])


def test_clusters_of_void_pixels_are_not_counted():
    t = torch.randint(0, 3, (1, 16, 16))
    t[0, :4] = 255
    p = t.clone()
    p[0, :4] = 65535
    share = PositionShare(None, 3).update(p, t)
    assert share.table.shape[2] == 3
    assert evaluate([p[0]], [t[0]], n_classes=3).score().acc == 1


class Cut(Callback):
    order = 95 # after the checkpoint
    def __init__(self, epoch): self.at = epoch
    def after_epoch(self):
        if self.epoch+1 == self.at: raise KeyboardInterrupt


def test_other_rates_do_not_go_on(make, tmp_path):
    "Nor another schedule; the callback on its own knows no lr"
    start = lambda f, *a, **kw: getattr(make(), f)(*a, cbs=[CheckpointCallback(tmp_path/"c", **kw), Cut(1)])
    with pytest.raises(KeyboardInterrupt): start("fit", 3, 1e-3)
    for f, *a in (("fit", 3, 1e-1), ("fit_one_cycle", 3, 1e-3)):
        with pytest.raises(ValueError, match="rates="): start(f, *a, resume=True)
    with pytest.raises(KeyboardInterrupt): make().fit(3, 1e-3, cbs=[CheckpointCallback(tmp_path/"c", resume=True), Cut(2)])


def test_other_photos_of_the_same_names_do_not_go_on(make, tmp_path):
    for i in range(2): ToyScenes(12, size=48, seed=i).save(tmp_path/str(i))
    dls = [picie_dls(tmp_path/str(i)/"images", size=32, bs=4, valid=.25) for i in range(2)]
    with pytest.raises(KeyboardInterrupt): make(dls=dls[0]).fit(3, checkpoint=tmp_path/"c", cbs=Cut(1))
    with pytest.raises(ValueError, match="images=.*, not "): make(dls=dls[1]).fit(3, checkpoint=tmp_path/"c", resume=True)


def test_the_best_so_far_stays_the_best(make, tmp_path):
    "Of a callback of fastai's, over a training that was cut off"
    quality = iter([.9, .5, .4])
    from fastai.metrics import ValueMetric
    def go(**kw):
        l = make(metrics=[ValueMetric(lambda: next(quality), "quality")])
        saver = SaveModelCallback("quality")
        try: l.fit(3, checkpoint=tmp_path/"c", cbs=[saver, *kw.pop("cbs", [])], **kw)
        except KeyboardInterrupt: pass
        return saver
    go(cbs=[Cut(2)])
    assert go(resume=True).best == .9


def test_the_new_checkpoint_is_kept(make, tmp_path):
    "Where a damaged one of the same epoch lies beside it, with only one to keep"
    from picie_nb.training.checkpoint import _found, _read
    with pytest.raises(KeyboardInterrupt): make().fit(3, cbs=[CheckpointCallback(tmp_path/"c"), Cut(2)])
    new, _ = _found(tmp_path/"c")
    for name in ("0"*16, "f"*16):
        (tmp_path/"c"/f"epoch-0002-{name}.safetensors").write_bytes(new.read_bytes()[:-1]+b"x")
    new.unlink()
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(KeyboardInterrupt): make().fit(3, cbs=[CheckpointCallback(tmp_path/"c", keep=1, resume=True), Cut(2)])
    (left,) = _found(tmp_path/"c")
    assert _read(left)[0]["epoch"] == 2


def test_rates_that_a_callback_lowers_go_on(make, tmp_path):
    "What counts is the rate that a training began with"
    class Lower(Callback):
        def after_epoch(self): self.opt.set_hyper("lr", self.opt.hypers[-1]["lr"]/10)
    go = lambda *cbs, **kw: super(PiCIELearner, l := make()).fit(3, 1e-3, cbs=[Lower(), CheckpointCallback(tmp_path/"c", **kw), *cbs]) or l
    with pytest.raises(KeyboardInterrupt): go(Cut(1))
    l = go(resume=True)
    assert l.opt.hypers[-1]["lr"] == pytest.approx(1e-6)
