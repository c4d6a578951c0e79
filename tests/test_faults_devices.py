"What goes wrong on GPUs only, in half precision, in several processes or with a compiled network; all of it shown on a CPU"
from types import SimpleNamespace
import pytest, socket, torch
from elsewhere import Far, elsewhere, far
from fastai.callback.core import Callback, CancelStepException
from fastai.callback.training import GradientAccumulation
from fastai.learner import load_learner
from forked import forked
from picie_nb.all import *
from picie_nb.training.distributed import TeamTrainer, _synced, unwrap
from test_devices import train
from test_faults_state import make


# ---- several processes

@pytest.mark.parametrize("name", ("test_efficientnet", "resnet18"))
def test_synchronised_batchnorm_keeps_activations(name):
    "timm's BatchNorm holds the activation, too"
    net = PiCIENet(create_backbone(name, pretrained=False), 8).eval()
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad(): was, now = net(x), _synced(net)(x)
    assert any(isinstance(m, torch.nn.SyncBatchNorm) for m in net.modules())
    assert torch.equal(was, now)


def test_no_process_waits_for_a_synchronised_batchnorm(make, monkeypatch):
    "In each round of K-means all processes run the network equally often, whoever has images"
    class Two(Team):
        def total(self, t): return t
        def gather(self, t=None): return torch.zeros(1, 128) if t is None else t
    l, calls, x = make(preset="official"), [], torch.rand(3, 3, 32, 32)
    cb, net = l.cluster, _synced(l.model).train()
    monkeypatch.setattr(type(cb), "team", property(lambda self: Two(2, 0)), raising=False)
    net.backbone.register_forward_hook(lambda m, i, o: calls.append(len(i[0])))
    for only, runs in ((None, 2), (1, 1)):
        for own in ([x, x], [x, x[:1]], [x, None], [None]):
            cb._batches, _ = lambda n: iter(own), calls.clear()
            list(cb.stream(net, only=only))
            assert len(calls) == runs*len(own)
    assert all(o.isfinite().all() for o in net.buffers())


def _alone(folder, amp):
    dls = ToyScenes(12, size=32, seed=0).dls(bs=4, valid=.25, seed=0)
    l = picie_learner(dls, "test_efficientnet", 4, pretrained=False, labels="start", batchnorm="eval")
    with l.no_bar(), l.no_logging():
        for _ in range(2):
            with l.distrib_ctx(cpu=True, mixed_precision=amp): l.fit(1)
    assert not any(isinstance(c, TeamTrainer) for c in l.cbs)
    l.export(f"{folder}/e.pkl")
    assert torch.equal(load_learner(f"{folder}/e.pkl").cluster.mu_eval, l.cluster.mu_eval)
    s, x = l.segmenter(), torch.rand(2, 3, 64, 64)
    s.save(f"{folder}/s.safetensors")
    assert torch.equal(s.scores(x), Segmenter.load(f"{folder}/s.safetensors").scores(x))


@pytest.mark.parametrize("amp", (None, "bf16"))
def test_after_a_training_by_accelerate(tmp_path, amp):
    "A learner is exported, and its segmenter is that of the file, also after a team of one, and in half precision"
    with socket.socket() as s: s.bind(("", 0)); port = s.getsockname()[1]
    r = forked(_alone, str(tmp_path), amp, WORLD_SIZE="1", RANK="0", LOCAL_RANK="0", MASTER_ADDR="localhost", MASTER_PORT=str(port))
    assert r.returncode == 0, r.stderr[-2000:]


# ---- networks inside of others

def test_a_compiled_network(make, tmp_path):
    l = make(freeze=8)
    net, l.model = l.model, torch.compile(l.model, backend="eager")
    assert unwrap(l.model) is net
    net.requires_grad_(True)
    l._protect()
    assert l.kept and {n for n, p in net.named_parameters() if not p.requires_grad} == l.kept
    l.cluster.fit_readout()
    l.segmenter().save(tmp_path/"s.safetensors")
    assert Segmenter.load(tmp_path/"s.safetensors").labels == l.segmenter().labels


# ---- accumulated gradients

def test_parts_of_a_step(make):
    "Terms of the loss are those of the batch, and steps those of the optimiser"
    for changes in ({}, dict(mdc=True, labels="snapshot")):
        whole, parts = (make(**changes) for _ in range(2))
        whole.fit(1, lr=0.)
        parts.fit(1, lr=0., cbs=GradientAccumulation(12))
        a, b = (l.history()[-1]["within"] for l in (whole, parts))
        assert a == pytest.approx(b, rel=.02)
        assert (whole.cluster.steps, parts.cluster.steps) == (3, 1)


# ---- tensors on two devices

def test_centroids_from_elsewhere():
    "Such as those of a segmenter, which is on the CPU"
    with elsewhere():
        l, _ = train(True)
        mu = l.cluster.mu_eval
        assert l.score(draws=[mu.near]).miou == l.score(draws=[mu]).miou


def test_counts_from_elsewhere():
    torch.manual_seed(0)
    pred, true = torch.randint(4, (3, 16, 16)), torch.randint(3, (3, 16, 16))
    here = Evaluation(confusion(pred, true, 4, 3, per_image=True))
    with elsewhere():
        mats = confusion(far(pred), far(true), 4, 3, per_image=True)
        assert isinstance(mats, Far)
        there = Evaluation(mats)
        assert there.to_dict(bootstrap=50) == here.to_dict(bootstrap=50)


def test_no_64_bit_elsewhere(monkeypatch):
    "An Apple GPU has none"
    double = torch.Tensor.double
    def refused(t):
        assert not isinstance(t, Far), "Cannot convert a MPS Tensor to float64"
        return double(t)
    y = torch.randint(3, (2, 16, 16), generator=torch.Generator().manual_seed(0))
    mat = confusion(y, y.flip(1), 3, 3)
    with elsewhere():
        monkeypatch.setattr(torch.Tensor, "double", refused)
        for f in (nmi, ari, mutual_information): assert f(far(mat)) == f(mat)
        assert torch.equal(rim_share(far(y), 3, 1), rim_share(y, 3, 1))


def test_beyond_the_last_cell(tmp_path, monkeypatch):
    "Apple's GPUs have no `padding_mode='border'` before PyTorch 2.13"
    from picie_nb.use.gallery import _feature_at
    sample, z = torch.nn.functional.grid_sample, torch.nn.functional.normalize(torch.rand(8, 5, 7)-.5, dim=0)
    def old(*args, padding_mode="zeros", **kwargs):
        assert padding_mode != "border", "MPS: Unsupported Border padding mode"
        return sample(*args, padding_mode=padding_mode, **kwargs)
    monkeypatch.setattr(torch.nn.functional, "grid_sample", old)
    for point, cell in {(0, 0): (0, 0), (69, 0): (0, 6), (0, 49): (4, 0), (69, 49): (4, 6), (-.5, 24.5): (2, 0)}.items():
        torch.testing.assert_close(_feature_at(z, point, (70, 50)), z[:, cell[0], cell[1]])
    pytest.importorskip("rasterio")
    import rasterio
    seg = Segmenter(PiCIENet(create_backbone("resnet18", pretrained=False), 8), torch.randn(3, 8), tile=128)
    open_image(ToyScenes(1, size=100, seed=0)[0][0]).save(tmp_path/"a.png")
    segment_raster(seg, tmp_path/"a.png", tmp_path/"a.tif", progress=False)
    with rasterio.open(tmp_path/"a.tif") as ds: got = torch.from_numpy(ds.read(1)).long()
    with rasterio.open(tmp_path/"a.png") as ds: x = torch.from_numpy(ds.read())[None]
    assert (got == seg.clusters(x)[0]).float().mean() > .999


def test_steps_that_overflow_are_none(make):
    "In half precision the first steps are skipped, and teach nothing"
    class Skip(Callback):
        order = 10
        def before_step(self): raise CancelStepException
    l = make()
    l.fit(1, cbs=Skip())
    assert l.cluster.steps == 0


def test_pixels_lose_the_mean_of_their_own_image(make, monkeypatch):
    "Whatever the images of other processes are like"
    class Two(Team):
        def total(self, t): return 2*t
        def gather(self, t=None): return torch.cat([t, torch.randn(7, t.shape[1])])
    l = make(k=2)
    monkeypatch.setattr(type(l.cluster), "team", property(lambda self: Two(2, 0)), raising=False)
    x = torch.rand(2, 3, 32, 32)
    monkeypatch.setattr(type(l.cluster), "_batches", lambda self, n=None: iter([x]))
    _, (z, c) = next(l.cluster.stream(l.model.eval(), augment=False, centre=.5))
    z, c = (o[:-7].view(2, -1, o.shape[1]) for o in (z, c))
    torch.testing.assert_close(c, torch.nn.functional.normalize(z-.5*z.mean(1, keepdim=True), dim=2))


def _cut_off(folder):
    dls = ToyScenes(12, size=32, seed=0).dls(bs=4, valid=.25, seed=0)
    l = picie_learner(dls, "test_efficientnet", 4, pretrained=False)
    class Stop(Callback):
        def after_batch(self): raise KeyboardInterrupt
    with l.no_bar(), l.no_logging():
        l.fit(1)
        try:
            with l.distrib_ctx(cpu=True): l.fit(2, cbs=Stop())
        except KeyboardInterrupt: pass
    assert type(l.model) is PiCIENet
    l.export(f"{folder}/e.pkl")
    load_learner(f"{folder}/e.pkl")


def test_a_cut_off_training_leaves_no_wrapping(tmp_path):
    with socket.socket() as s: s.bind(("", 0)); port = s.getsockname()[1]
    r = forked(_cut_off, str(tmp_path), WORLD_SIZE="1", RANK="0", LOCAL_RANK="0", MASTER_ADDR="localhost", MASTER_PORT=str(port))
    assert r.returncode == 0, r.stderr


def test_half_precision_without_a_scaled_loss(make):
    "accelerate's own fp16 scales the loss in its backward, which fastai does not call"
    l, trainer = make(), Callback()
    trainer.accelerator = SimpleNamespace(mixed_precision="fp16")
    with pytest.raises(ValueError, match=r"use 'bf16', or learn.to_fp16\(\)"): l.fit(1, cbs=trainer)
    trainer.accelerator.mixed_precision = "bf16"
    with l.no_bar(), l.no_logging(): l.fit(1, cbs=trainer)
