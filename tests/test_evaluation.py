"The evaluator against other people's counting, on files of every kind, and the probes."
import weakref
import numpy as np
import pytest, torch
from PIL import Image
from sklearn import metrics as sk
from picie_nb.evaluate.report import ari, compare, evaluate, evaluate_folders, nmi, _centre_square
from picie_nb.data.labels import LABELSETS, LabelSet, label_set
from picie_nb.evaluate.protocols import PROTOCOLS, ScoreTable


def random_case(seed, K, C, n=5, size=(9, 13), void=.1):
    "Clusters that know something about the classes, with void pixels"
    rng = np.random.default_rng(seed)
    true = rng.integers(0, C, (n, *size))
    pred = np.where(rng.random(true.shape) < .5, rng.permutation(max(K, C))[true] % K, rng.integers(0, K, true.shape))
    return pred, np.where(rng.random(true.shape) < void, 255, true)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("K, C", [(5, 5), (9, 4), (3, 7), (27, 27)])
@pytest.mark.parametrize("matching", ["hungarian", "many_to_one"])
def test_equals_scikit_learn(seed, K, C, matching):
    pred, true = random_case(seed, K, C)
    ev = evaluate(pred, true, n_classes=C, n_clusters=K)
    p, t = pred[true != 255], true[true != 255]
    assert np.array_equal(ev.mat.numpy(), sk.confusion_matrix(p, t, labels=range(max(K, C)))[:K, :C])
    s = ev.score(matching)
    named, present = s.assignment.numpy()[p], range(C)
    assert s.acc == pytest.approx(sk.accuracy_score(t, named))
    jaccard = sk.jaccard_score(t, named, labels=present, average=None, zero_division=0)
    seen = s.iou.isfinite().numpy()
    assert s.iou.numpy()[seen] == pytest.approx(jaccard[seen]) and s.miou == pytest.approx(jaccard[seen].mean())
    for row, r, q in zip(ev.per_class(matching), sk.recall_score(t, named, labels=present, average=None, zero_division=0),
                         sk.precision_score(t, named, labels=present, average=None, zero_division=0)):
        assert (row["recall"] or 0) == pytest.approx(r) and (row["precision"] or 0) == pytest.approx(q)
    assert nmi(ev.mat) == pytest.approx(sk.normalized_mutual_info_score(t, p))
    assert ari(ev.mat) == pytest.approx(sk.adjusted_rand_score(t, p))


def test_equals_torchmetrics():
    tm = pytest.importorskip("torchmetrics.functional.classification")
    pred, true = (torch.from_numpy(o) for o in random_case(0, 6, 6))
    ev = evaluate(pred, true, n_classes=6)
    named = ev.score().assignment[pred]
    assert ev.score().acc == pytest.approx(tm.multiclass_accuracy(named, true, 6, average="micro", ignore_index=255).item())
    theirs = tm.multiclass_jaccard_index(named, true, 6, average="macro", ignore_index=255).item()
    assert ev.score().miou == pytest.approx(theirs, abs=1e-6)
    assert torch.equal(tm.multiclass_confusion_matrix(pred, true, 6, ignore_index=255).T, ev.mat)


def test_a_card_scores_the_same():
    "The evaluator and `Protocol.score` agree, by every matching"
    pred, true = random_case(1, 27, 27)
    ev = evaluate(pred, true, "picie-coco27-320")
    for matching in ("hungarian", "many_to_one", "none", "per_image"):
        ours = ev.score(matching)
        theirs = PROTOCOLS["picie-coco27-320"].score(ev.mats if matching == "per_image" else ev.mat, matching=matching, n_images=5)
        assert (ours.acc, ours.miou) == pytest.approx((theirs.acc, theirs.miou)) and {**ours.protocol, "name": 0} == {**theirs.protocol, "name": 0}
        assert ours.protocol["name"] == "picie-coco27-320" + (f", but matching {matching}" if matching != "hungarian" else "")
        assert torch.equal(ours.assignment, theirs.assignment)
    assert len(ScoreTable().add("ours", ev.score()).add("theirs", PROTOCOLS["picie-coco27-320"].score(ev.mat, n_images=5))) == 2


def test_streams():
    "Of a generator, no more than a few images are alive at a time"
    alive, most = weakref.WeakSet(), 0
    def images(seed):
        nonlocal most
        rng = np.random.default_rng(seed)
        for _ in range(40):
            a = rng.integers(0, 3, (64, 64)).view(Tracked)
            alive.add(a)
            most = max(most, len(alive))
            yield a
    assert len(evaluate(images(0), images(1), n_classes=3)) == 40
    assert most <= 6


class Tracked(np.ndarray): __hash__ = object.__hash__


def test_bootstrap_is_the_textbook_one():
    "For the accuracy of images of equal size: standard error of a mean; paired: of the differences"
    rng = np.random.default_rng(0)
    hard = rng.random(200)[:, None, None]
    true = rng.integers(0, 2, (200, 8, 8))
    noise = rng.random(true.shape)
    a, b = (evaluate(np.where(noise < hard*r, 1-true, true), true, n_classes=2) for r in (.4, .46))
    each = [np.array([m.trace().item()/64 for m in e.mats]) for e in (a, b)]
    se = lambda v: v.std()/len(v)**.5
    draws = a.bootstrap(4000).draws[:, 0]
    assert draws.std().item() == pytest.approx(se(each[0]), rel=.06) and draws.mean().item() == pytest.approx(a.score().acc, abs=.003)
    c = compare(a, b, n=4000)
    assert c.draws[:, 0].std().item() == pytest.approx(se(each[0]-each[1]), rel=.06)
    assert se(each[0]-each[1]) < se(each[0])/3 and c["acc"][0] > 0 and c.better("acc") > .99


def test_fitted_on_train_scored_on_valid():
    (p, t), (q, u) = random_case(0, 8, 5, n=20), random_case(0, 8, 5, n=20, void=.3)
    train, valid = evaluate(p, t, n_classes=5, n_clusters=8), evaluate(q, u, n_classes=5, n_clusters=8)
    s = valid.score(train.classes()[0])
    assert s.matching == "given" and s.acc <= valid.score().acc and torch.equal(s.assignment, train.score().assignment)


# -- files

def write(path, a, palette=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    im = Image.fromarray(a)
    if palette: im.putpalette([i*7 % 256 for i in range(768)])
    im.save(path)


@pytest.mark.parametrize("dtype, palette", [(np.uint8, False), (np.uint8, True), (np.uint16, False)])
def test_kinds_of_png(tmp_path, dtype, palette):
    pred, true = random_case(0, 20, 4)
    for i in range(5):
        write(tmp_path/"p"/f"{i}.png", pred[i].astype(dtype), palette)
        write(tmp_path/"t"/f"{i}.png", true[i].astype(np.uint8))
    ev = evaluate_folders(tmp_path/"p", tmp_path/"t", labels=list("abcd"))
    assert torch.equal(ev.mats, evaluate(pred, true, n_classes=4).mats) and ev.names == list("abcd")


def test_cityscapes_layout(tmp_path):
    "Raw label ids in folders of cities, beside files that are no labels; equal numbers in two cities"
    rng = np.random.default_rng(0)
    labels = label_set("cityscapes27")
    raw = {(c, i): rng.integers(0, 34, (12, 24)).astype(np.uint8) for c in ("aachen", "bonn") for i in range(3)}
    for (c, i), a in raw.items():
        stem = f"{i:06}_000019"
        write(tmp_path/"gtFine/val"/c/f"{stem}_gtFine_labelIds.png", a)
        write(tmp_path/"gtFine/val"/c/f"{stem}_gtFine_color.png", np.repeat(a[..., None], 3, 2)+rng.integers(0, 9, (12, 24, 3)).astype(np.uint8))
        write(tmp_path/"preds"/c/f"{stem}_leftImg8bit.png", np.where(labels.map(a) == 255, 0, labels.map(a)).astype(np.uint8))
    ev = evaluate_folders(tmp_path/"preds", tmp_path/"gtFine"/"val", labels="cityscapes27", pred_suffix="_leftImg8bit", true_suffix="_gtFine_labelIds")
    assert ev.score().acc == ev.score("none").acc == 1 and ev.images[:2] == ["aachen/000000_000019", "aachen/000001_000019"]
    with pytest.raises(FileNotFoundError, match="6 of 6 truths"):
        evaluate_folders(tmp_path/"preds"/"aachen", tmp_path/"gtFine"/"val", labels="cityscapes27", pred_suffix="_leftImg8bit", true_suffix="_gtFine_labelIds")


def test_flat_predictions_for_nested_truths(tmp_path):
    pred, true = random_case(0, 3, 3)
    for i in range(5):
        write(tmp_path/"p"/f"im{i}.png", pred[i].astype(np.uint8))
        write(tmp_path/"t"/f"part{i % 2}"/f"im{i}.png", true[i].astype(np.uint8))
    assert torch.equal(evaluate_folders(tmp_path/"p", tmp_path/"t", labels=list("abc")).mat, evaluate(pred, true, n_classes=3).mat)


@pytest.mark.parametrize("h, w", [(480, 640), (427, 640), (640, 425), (333, 500), (320, 320), (321, 401)])
def test_centre_square_is_torchvisions(h, w):
    tv = pytest.importorskip("torchvision.transforms.functional")
    a = np.random.default_rng(0).integers(0, 183, (h, w)).astype(np.uint8)
    im = tv.center_crop(tv.resize(Image.fromarray(a), 320, tv.InterpolationMode.NEAREST), 320)
    assert np.array_equal(_centre_square(a, 320), np.asarray(im))


def test_card_cuts_the_truths(tmp_path):
    "Predictions of 320 x 320 pixels against raw COCO-Stuff files of any size, with the fine values of the files"
    labels, rng = label_set("cocostuff27"), np.random.default_rng(0)
    for i, (h, w) in enumerate([(330, 400), (400, 340)]):
        raw = rng.choice([0, 5, 91, 105, 156, 181, 255], (h//10, w//10)).repeat(10, 0).repeat(10, 1).astype(np.uint8)
        write(tmp_path/"t"/f"{i}.png", raw)
        write(tmp_path/"p"/f"{i}.png", np.where(_centre_square(labels.map(raw), 320) == 255, 3, _centre_square(labels.map(raw), 320)).astype(np.uint8))
    ev = evaluate_folders(tmp_path/"p", tmp_path/"t", "picie-coco27-320")
    assert ev.score().acc == 1 and ev.n_expected == 2175 and "is about 2175 images" in repr(ev)
    with pytest.raises(ValueError, match="another shape|predict at that size"): evaluate_folders(tmp_path/"p", tmp_path/"t", labels="cocostuff27")


def test_real_coco_masks(shared, tmp_path):
    "Real annotations, scored against their own classes: everything is right, only known classes occur"
    labels, folder = label_set("cocostuff27"), shared/"data"/"cocostuff_sample"/"annotations"/"val2017"
    for f in folder.glob("*.png"):
        c = labels.map(Image.open(f))
        write(tmp_path/f.name, np.where(c == 255, 0, c).astype(np.uint8))
    ev = evaluate_folders(tmp_path, folder, labels="cocostuff27")
    assert len(ev) == 8 and ev.score("none").acc == ev.score().acc == 1 and ev.score().n_classes < 27
    assert {k for k in ev.groups()} == {"things", "stuff"}


@pytest.mark.parametrize("name", sorted(LABELSETS))
def test_every_label_set(name, tmp_path):
    "Truths with each raw value of each label set, as far as a PNG holds it"
    labels = label_set(name)
    raw = np.array([[k for k in labels.table if 0 <= k < 256]], np.uint8)
    write(tmp_path/"t"/"a.png", raw)
    write(tmp_path/"p"/"a.png", np.arange(raw.size, dtype=np.uint8)[None] % 250)
    ev = evaluate_folders(tmp_path/"p", tmp_path/"t", labels=name)
    assert ev.mat.sum() == (labels.map(raw) != labels.ignore).sum() and ev.score("many_to_one").n_classes == len(labels)
    ev.to_dict(bootstrap=0); ev.per_class()


def test_an_ignore_value_below_zero():
    labels = LabelSet(["a", "b"], ignore=-1)
    ev = evaluate([[[0, 1, 1]]], [[[0, 1, -1]]], labels=labels)
    assert ev.mat.sum() == 2 and ev.protocol.ignore == -1


# -- probes

@pytest.fixture(scope="module")
def toy():
    from picie_nb.data.folders import ToyScenes
    scenes = ToyScenes(n=16, size=48, seed=0)
    return scenes.labels, [scenes.batch(range(8))], [scenes.batch(range(8, 16))]


def test_probes_leave_the_network_alone(toy):
    from picie_nb.backbone import create_backbone
    from picie_nb.fpn import PiCIENet
    from picie_nb.evaluate.probes import knn_probe, linear_probe
    labels, train, valid = toy
    torch.manual_seed(0)
    net = PiCIENet(create_backbone("resnet18", pretrained=False), 16).train()
    net.backbone.eval()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    for probe, name in ((linear_probe, "linear"), (knn_probe, "knn")):
        s = probe(net, train, valid, labels, n_pixels=20, split="toy")
        assert s.protocol["name"] == name and s.protocol["split"] == "toy" and s.matching == "none" and 0 < s.acc < 1
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert net.training and not net.backbone.training and all(p.grad is None for p in net.parameters())


def test_probes_take_fastai_batches(toy, tmp_path):
    from picie_nb.data.folders import ToyScenes, picie_dls
    from picie_nb.evaluate.probes import linear_probe
    labels, _, valid = toy
    path = ToyScenes(n=6, size=48, seed=1).save(tmp_path)
    dls = picie_dls(path/"images", size=48, bs=4, valid=path/"images", masks=path/"masks", labels=labels)
    assert 0 < linear_probe(lambda x: x, dls.valid, valid, labels, n_pixels=20, steps=20).acc < 1
    with pytest.raises(ValueError, match="probes need masks"): linear_probe(lambda x: x, dls.train, valid, labels)


def test_probe_ignores_void(toy):
    "Void training pixels teach nothing, void validation pixels do not count"
    from picie_nb.evaluate.probes import linear_probe
    _, train, valid = toy
    net = lambda x: x
    left = torch.arange(48).expand(8, 48, 48) < 24
    two = lambda y: torch.where(y == 255, 255, (y > 3).long()).masked_fill(left, 255)
    half = [[(x, two(y)) for x, y in b] for b in (train, valid)]
    noise = [[(torch.where(left[:, None], torch.rand(x.shape), x), y) for x, y in b] for b in half]
    a, b, c = (linear_probe(net, *o, 2, n_pixels=50, steps=50) for o in (half, noise, [[(x, torch.where(left, 255, 0)) for x, _ in b] for b in half]))
    assert a.acc == b.acc and a.protocol["ignore"] == 255 and c.acc == 1
