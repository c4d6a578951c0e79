"Whole trainings on a device that is not there: any tensor made on the wrong one fails; and numbers are those of the CPU"
import pytest, torch
from elsewhere import Far, elsewhere, far
from fastai.torch_core import set_seed
from picie_nb.all import *

VARIANTS = dict(improved={}, official=dict(preset="official", init_images=4, update_images=4), paper=dict(preset="paper"),
                mdc=dict(mdc=True, overcluster=1), aux=dict(aux_clusters=8, balance="inverse"),
                current=dict(labels="current", init="k-means++", n_init=2))

def test_the_device_is_strict():
    with elsewhere():
        x = far(torch.ones(2, 3))
        assert (x+1).device.type == "meta" and (x.new_ones(3)+x).sum().item() == 12
        for wrong in (lambda: x+torch.ones(3), lambda: torch.cat([x, torch.ones(1, 3)]), lambda: x[torch.tensor([0])]+torch.arange(3.)):
            with pytest.raises(RuntimeError, match="two devices"): wrong()

def train(there, **changes):
    set_seed(0)
    dls = ToyScenes(12, size=32, seed=0).dls(bs=4, valid=.4, seed=0)
    learn = picie_learner(dls, "test_efficientnet", 4, pretrained=False, cbs=ClusterHealth(warn=False), **{"batchnorm": "eval", **changes})
    if there:
        dls._device, learn._set_device = torch.device("meta"), lambda b: tuple(far(o.as_subclass(torch.Tensor)) for o in b)
        far(learn.model)
    with learn.no_bar(), learn.no_logging():
        learn.fit(2)
        learn.cluster.fit_readout()
        return learn, learn.score(2).miou

@pytest.mark.filterwarnings("ignore:fixed_views")
@pytest.mark.parametrize("name", VARIANTS)
def test_training(name):
    here, *numbers = train(False, **VARIANTS[name])
    with elsewhere(): there, *same = train(True, **VARIANTS[name])
    assert isinstance(there.cluster.mu_eval, Far) and all(isinstance(p, Far) for p in there.model.parameters())
    for a, b in zip(here.history(), there.history()): assert a == pytest.approx(b, rel=1e-4, nan_ok=True)
    for a, b in zip(numbers, same): assert a == pytest.approx(b, rel=1e-3) # mIoU, and figures without labels

def test_pieces():
    torch.manual_seed(0)
    with elsewhere():
        x, net = far(torch.rand(2, 3, 32, 32)), far(PiCIENet(create_backbone("test_efficientnet", pretrained=False), 16).eval())
        pca_init_(net, [x])
        z, y = torch.nn.functional.normalize(net(x), dim=1), far(torch.randint(3, (2, 32, 32)))
        r = kmeans(z.movedim(1, -1).flatten(0, 2), 4, engine="torch", init="k-means++")
        s = torch.nn.functional.interpolate(scores(z, r.centroids), (32, 32))
        assert isinstance(r.centroids, Far) and isinstance(s, Far)
        for o in (refine(s.softmax(1), x), upsampled_argmax(scores(z, r.centroids), (32, 32))): assert isinstance(o, Far)
        assert ConfusionMatrix(4, 3).update(s.argmax(1), y).mat.sum() == 2*32*32
        mu, n = merge_clusters(r.centroids, r.counts, cut_tree(merge_tree(r.centroids, r.counts), 2))
        assert isinstance(mu, Far) and isinstance(with_prior(mu, n), Far)
        km = MiniBatchKMeans(r.centroids, r.counts)
        km.update(z.movedim(1, -1).flatten(0, 2))
        assert isinstance(km.centroids, Far)
