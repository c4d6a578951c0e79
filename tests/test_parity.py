"Numbers of the published code, where they are at hand: the same inputs give the same outputs."
import numpy as np
import pytest, torch
from picie_nb.clustering import MiniBatchKMeans, assign, scores
from picie_nb.fpn import FPN
from picie_nb.losses import PiCIELoss, balance_weights, cluster_loss
from picie_nb.evaluate.metrics import ConfusionMatrix, score
from picie_nb.transforms import Geometric, GeometricParams


@pytest.fixture(scope="module")
def golden(shared):
    return {k: torch.from_numpy(v) if v.ndim else v.item() for k, v in np.load(shared/"golden"/"official.npz").items()}


def close(a, b, rel=1e-5):
    a, b = torch.as_tensor(a).double(), torch.as_tensor(b).double()
    assert a.shape == b.shape and (a-b).abs().max() <= rel*b.abs().max(), (a-b).abs().max()


def test_fpn(golden):
    fpn = FPN((64, 128, 256, 512))
    for lateral, r in zip(fpn.laterals, (2, 3, 4, 5)):
        lateral.load_state_dict(dict(weight=golden[f"fpn_w_res{r}"], bias=golden[f"fpn_b_res{r}"]))
    out = golden["fpn_out"]
    close(fpn([golden[f"fpn_in_res{r}"].float() for r in (2, 3, 4, 5)], (4*out.shape[2], 4*out.shape[3])).detach(), out, 5e-3)


@pytest.mark.parametrize("what", ["image", "feature"])
def test_published_geometry(golden, what):
    p = GeometricParams(golden["geo_scale"].float(), golden["geo_offset_wh"].float(), golden["geo_flip"])
    out = golden[f"geo_{what}_out"]
    close(Geometric(rounded=True).apply(golden[f"geo_{what}"], p, out.shape[-2:]), out)


def test_assignment_and_weights(golden):
    z, mu = golden["assign_z"], golden["assign_mu"]
    close(scores(z, mu), golden["assign_score"])
    assert torch.equal(assign(z, mu), golden["assign_label"])
    w = balance_weights(golden["assign_counts"], "proportional")
    close(w/w.sum(), golden["assign_weight"]/golden["assign_weight"].sum())


def test_loss_terms(golden):
    g = {k[5:]: v for k, v in golden.items() if k.startswith("loss_")}
    for a in "12":
        for b in "12": close(cluster_loss(g[f"z{a}"], g[f"y{b}"], g[f"mu{b}"], "dot", weight=g[f"w{b}"]), g[f"loss{a}{b}"])
    loss, args = PiCIELoss("dot"), [g[k] for k in ("z1", "z2", "y1", "y2", "mu1", "mu2")]
    close(loss(*args, g["w1"], g["w2"]), g["total"])
    close(loss.within_loss, g["within"]); close(loss.cross_loss, g["cross"])
    close(loss(*args), g["total_unweighted"])


def test_mini_batch_kmeans(golden):
    batches = golden["km_batches"].permute(0, 2, 3, 1).flatten(1, 2)
    first = torch.cat([batches[0], batches[1]])
    km = MiniBatchKMeans(golden["km_init"], torch.bincount(assign(first, golden["km_init"]), minlength=len(golden["km_init"])))
    for b in batches[2:]: km.update(b)
    close(km.centroids, golden["km_final"])


def test_scores(golden):
    true, pred = golden["eval_label"].long(), golden["eval_pred"].long()
    s = score(ConfusionMatrix(27, 27, ignore=-1).update(pred, true))
    close(100*s.acc, golden["eval_acc"]); close(100*s.miou, golden["eval_miou"])
    close(100*s.iou.nan_to_num(0).sort().values, golden["eval_iou_sorted"])
