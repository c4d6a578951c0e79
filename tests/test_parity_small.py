"""The arithmetic of the published code on cases small enough to check by hand, so that parity is tested everywhere.

Every expected number below was worked out on paper from the description of the published procedure; how is said beside it.
The larger cases of `test_parity.py` need data that does not ship."""
import copy, math
from dataclasses import asdict
import pytest, torch
import torch.nn.functional as F
from fastai.torch_core import set_seed
from fastai.vision.all import DataLoader, DataLoaders
from picie_nb.clustering import MiniBatchKMeans, assign, scores
from picie_nb.data.folders import ToyScenes
from picie_nb.fpn import FPN
from picie_nb.learner import picie_config, picie_learner
from picie_nb.losses import PiCIELoss, aux_weights, balance_weights, cluster_loss
from picie_nb.evaluate.metrics import ConfusionMatrix, score
from picie_nb.transforms import Geometric, GeometricParams, Photometric

T = torch.tensor


def close(a, b, tol=1e-5): torch.testing.assert_close(torch.as_tensor(a).float(), torch.as_tensor(b).float(), rtol=tol, atol=tol)


def params(scale, offset, flip): return GeometricParams(T([scale]), T([offset]), T([flip]))


def test_fpn_adds_the_enlarged_coarse_level_to_the_fine_one():
    "Laterals of weight 1: level [0, 1] enlarged twice without corner alignment is [0, .25, .75, 1]; the fine level adds 10"
    fpn = FPN((1, 1), dim=1, strides=(4, 8))
    for l in fpn.laterals: torch.nn.init.ones_(l.weight); torch.nn.init.zeros_(l.bias)
    coarse = T([[0., 1.]]).repeat(2, 1)[None, None]
    out = fpn([torch.full((1, 1, 4, 4), 10.), coarse], (16, 16))
    close(out[0, 0], T([10., 10.25, 10.75, 11.]).repeat(4, 1))


@pytest.mark.parametrize("offset,flip,expected", [
    ([.5, .5], False, [2, 3, 4, 5]),   # side int(.5*8) = 4, start round(4*.5) = 2: columns 2..5, one output column each
    ([.5, .5], True, [5, 4, 3, 2]),    # the crop comes first, then the mirror
    ([0., 1.], False, [4, 5, 6, 7]),   # the second number is the column
    ([0., .6], False, [2, 3, 4, 5]),   # start round(4*.6) = round(2.4) = 2
    ([0., .4], False, [2, 3, 4, 5]),   # start round(1.6) = 2 as well: whole pixels
])
def test_crops_of_whole_pixels(offset, flip, expected):
    x = torch.arange(8.).expand(1, 1, 8, 8)
    close(Geometric(rounded=True).apply(x, params(.5, offset, flip), (4, 4))[0, 0, 0], T(expected))


def test_crop_enlarged():
    "Side int(.6*4) = 2, start round(2*.5) = 1: columns 1, 2 enlarged to 4 columns: 1, 1.25, 1.75, 2"
    x = torch.arange(4.).expand(1, 1, 4, 4)
    close(Geometric(rounded=True).apply(x, params(.6, [.5, .5], False))[0, 0, 0], T([1., 1.25, 1.75, 2.]))


def test_image_and_features_are_cropped_apart():
    "The same draw on 16 and on 4 cells: side 9 of 16 (start 4) is not side 2 of 4 (start 1): what `rounded=False` mends"
    p = params(.6, [.5, .5], False)
    fine, coarse = ((torch.arange(n)+.5).div(n).expand(1, 1, n, n) for n in (16, 4))
    ends = lambda x: Geometric(rounded=True).apply(x, p)[0, 0, 0, [0, -1]]
    close(ends(fine), T([4.5, 12.5])/16)
    close(ends(coarse), T([1.5, 2.5])/4)


def test_assignment():
    "Minus the squared distance: (1,0) to (.8,0): -.04, to (0,.5): -(1+.25); (.6,.8): -(.04+.64) and -(.36+.09)"
    z, mu = T([[1., 0], [.6, .8]]), T([[.8, 0.], [0, .5]])
    close(scores(z, mu), T([[-.04, -1.25], [-.68, -.45]]))
    assert assign(z, mu).tolist() == [0, 1]


def test_labels_and_logits_disagree():
    "(.6,.8) is nearest to the short centroid (0,.5) but has the larger product with the long one: .48 against .40"
    z, mu = T([[.6, .8]]), T([[.8, 0.], [0, .5]])
    assert (assign(z, mu, "euclidean").item(), scores(z, mu, "dot").argmax(1).item()) == (1, 0)


def test_weights_favour_large_clusters():
    "Shares of 1,000,000, 100,000 and 10,000 pixels of 1,110,000"
    close(balance_weights(T([10**6, 10**5, 10**4]), "proportional"), T([100/111, 10/111, 1/111]))


def test_four_losses():
    """Two clusters with logits (a, b): the loss of label 0 is log(1+e^(b-a)).
    z1 = (1,0) and z2 = (0,1) with mu = unit vectors: own label gives log(1+1/e) = .313262, the other 1 + that."""
    eye, z1, z2 = torch.eye(2), T([[1., 0]]), T([[0., 1]])
    own, other = math.log(1+math.exp(-1)), 1+math.log(1+math.exp(-1))
    close(cluster_loss(z1, T([0]), eye, "dot"), own); close(cluster_loss(z1, T([1]), eye, "dot"), other)
    loss = PiCIELoss("dot")
    total = loss(z1, z2, T([0]), T([1]), eye, eye)
    close(loss.within_loss, own); close(loss.cross_loss, other); close(total, (own+other)/2)


def test_weighted_mean_divides_by_the_weights():
    "Weights .9 and .1, one pixel of each label, losses .313262 and 1.313262: .9*.313262 + .1*1.313262 over 1"
    z, y = T([[1., 0], [1., 0]]), T([0, 1])
    close(cluster_loss(z, y, torch.eye(2), "dot", weight=T([.9, .1])), .313262+.1)


def test_running_mean():
    "Cluster 0 at 0 stands for 3 points; one at 4 moves it by 1/4 of the way: 1. Cluster 1 gets none and stays"
    km = MiniBatchKMeans(T([[0.], [10.]]), T([3, 5]))
    km.update(T([[4.]]))
    close(km.centroids, T([[1.], [10.]])); assert km.counts.tolist() == [4, 5]


def test_whole_set_matching():
    "Clusters x classes: 9 + 8 + 3 of 30 right; IoU = hits over (pixels of the class + of its cluster - hits)"
    mat = T([[1, 9, 4], [8, 1, 1], [2, 1, 3]])
    s = score(mat)
    assert s.assignment.tolist() == [1, 0, 2]
    close(s.acc, 20/30)
    close(s.iou, T([8/(11+10-8), 9/(11+14-9), 3/(8+6-3)]))
    close(s.miou, sum([8/13, 9/16, 3/11])/3)


def test_accidental_blur():
    "Widths |U(-1.8, .1)|: at most 1.8, and 2/19 of them below .1"
    s = Photometric(p_blur=1, sigma=(-1.8, .1)).sample(100_000, torch.Generator().manual_seed(0)).sigma
    close(s.max(), 1.8, 1e-3); close((s < .1).float().mean(), 2/19, 3e-3)


def test_auxiliary_weights():
    "log 100/(log 27 + log 100) = 2/(2 + 1.431364)"
    close(T(aux_weights(27, 100)), T([2/3.431364, 1.431364/3.431364]))


def test_official_preset():
    "What the published scripts set, field by field"
    c = asdict(picie_config("official"))
    expected = dict(pca_init=False, colour=1., p_jitter=.8, one_coin=False, p_grey=0., p_blur=.5,
        sigma=(-1.8, .1), min_scale=.5, p_hflip=.5, rounded=True, fixed_views=True, colours_first=True, plain_crop=False, spherical=False, metric="euclidean",
        labels="snapshot", n_pixels=None, n_images=None, init_images=5120, update_images=256, n_iter=20, init="random", n_init=1,
        cluster_batchnorm="train", centroids="epoch", logits="dot", tau=1., within=1., cross=1., batchnorm="train", balance="proportional",
        counts="all", readout="dot", lr=1e-4, backbone_lr=1., schedule="constant", wd=0., aux_clusters=0, mdc=False)
    assert {k: c[k] for k in expected} == expected


def test_one_epoch_of_the_published_procedure():
    "An epoch of `official` against the same epoch written down plainly: two passes for K-means, a labelling pass, a step of Adam"
    x = ToyScenes(n=6, size=48, seed=0).batch(range(6))[0]
    data = [DataLoader([(o,) for o in x], bs=6) for _ in range(2)]
    set_seed(0)
    learn = picie_learner(DataLoaders(*data), "resnet18", 3, preset="official", pretrained=False, n_iter=200, engine="torch", dim=16)
    net, cb = copy.deepcopy(learn.model), learn.cluster
    with learn.no_bar(), learn.no_logging(): learn.fit(1)

    g, p1, p2 = cb.draw(x)  # the epoch's parameters, one for each image
    x1, x2 = Photometric().apply(x, p1), Geometric(rounded=True).apply(Photometric().apply(x, p2), g)
    def z(net, v, move):
        f = net(v)
        if move: f = Geometric(rounded=True).apply(f, g)
        return F.normalize(f, dim=1)
    unit = [z(net.train(), v, m).detach().permute(0, 2, 3, 1).flatten(0, 2) for v, m in ((x1, True), (x2, False))]  # moves BatchNorm's statistics
    with torch.no_grad(): labelled = [z(net.eval(), v, m) for v, m in ((x1, True), (x2, False))]
    (mus, ws), = cb.heads
    ys = []
    for u, l, mu, w in zip(unit, labelled, mus, ws):
        near = torch.cdist(u, mu).argmin(1)
        for k in range(3): close(mu[k], u[near == k].mean(0), 1e-4)  # K-means has converged, on features of training mode
        y = torch.cdist(l.permute(0, 2, 3, 1).flatten(0, 2), mu).argmin(1)  # labels by features of evaluation mode
        close(w, y.bincount(minlength=3)/len(y))
        ys.append(y.view(6, *l.shape[-2:]))
    z1, z2 = z(net.train(), x1, True), z(net, x2, False)
    def ce(z, v): return F.cross_entropy(torch.einsum("bdhw,kd->bkhw", z, mus[v]), ys[v], ws[v])
    opt = torch.optim.Adam(net.parameters(), lr=1e-4)
    total = ((ce(z1, 0)+ce(z2, 1))/2+(ce(z1, 1)+ce(z2, 0))/2)/2
    total.backward(); opt.step()
    assert learn.history()[-1]["train_loss"] == pytest.approx(total.item(), rel=1e-5)
    for a, b in zip(learn.model.parameters(), net.parameters()):
        assert (a-b).abs().median() < 1e-6  # a weight with a gradient of zero, up to rounding, may go either way


def test_confusion_counts():
    "4 pixels, one void"
    m = ConfusionMatrix(2, 2, ignore=255).update(T([[0, 1, 1, 0]]), T([[0, 1, 0, 255]]))
    assert m.mat.tolist() == [[1, 0], [1, 1]]
