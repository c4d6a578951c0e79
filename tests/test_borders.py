"Borders and position against independent implementations, and on devices and sizes of their own"
import numpy as np, pytest, torch
from scipy.ndimage import distance_transform_cdt
from sklearn.metrics import mutual_info_score
from picie_nb.evaluate.borders import BoundaryF, PositionShare, boundary, rim_share, shift_test
from picie_nb.data.scenes import ToyScenes


def maps(seed, shape=(3, 40, 52), k=4, void=True):
    "Random blocks of clusters and classes, with void pixels in some"
    g = np.random.default_rng(seed)
    block = lambda n: np.kron(g.integers(0, n, (shape[0], 5, 4)), np.ones((1, 8, 13), int))
    pred, true = block(k), np.roll(block(k), g.integers(4), 2)
    if void: true[:, :g.integers(1, 9)] = 255
    return torch.tensor(pred), torch.tensor(true)


def slow_borders(y, ignore=None):
    res = np.zeros(y.shape, bool)
    for i, j in np.ndindex(y.shape):
        for di, dj in ((0, 1), (1, 0), (0, -1), (-1, 0)):
            a, b = i+di, j+dj
            if 0 <= a < y.shape[0] and 0 <= b < y.shape[1] and y[i, j] != y[a, b] and ignore not in (y[i, j], y[a, b]): res[i, j] = True
    return res


def near(b, tol): return distance_transform_cdt(~b, "chessboard") <= tol if b.any() else np.zeros_like(b)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("tol", [0, 1, 2, 5])
def test_boundary_f_by_distances(seed, tol):
    pred, true = maps(seed)
    n = np.zeros(4)
    for p, t in zip(pred.numpy(), true.numpy()):
        pb, tb = slow_borders(p), slow_borders(t, 255)
        judged = pb & ~near(t == 255, max(1, tol)) # what borders on void is not known
        n += [(judged & near(tb, tol)).sum(), judged.sum(), (tb & near(pb, tol)).sum(), tb.sum()]
    f = BoundaryF(tol).update(pred, true)
    assert f.counts.tolist() == n.tolist()
    precision, recall = n[0]/n[1], n[2]/n[3]
    assert f.value == pytest.approx(2*precision*recall/(precision+recall) if precision+recall else 0)


@pytest.mark.parametrize("case, pred, true, want", [
    ("a mask without borders says nothing", [[0, 1]], [[1, 1]], float("nan")),
    ("neither has any", [[0, 0]], [[1, 1]], float("nan")),
    ("none found", [[0, 0]], [[0, 1]], 0.),
    ("all void", [[0, 1]], [[255, 255]], float("nan"))])
def test_boundary_f_at_the_limits(case, pred, true, want):
    v = BoundaryF(0).update(torch.tensor([pred]), torch.tensor([true])).value
    assert v == want or (v != v and want != want), case


@pytest.mark.parametrize("seed", range(4))
def test_position_share_by_scikit_learn(seed):
    pred, true = maps(seed)
    s = PositionShare(4, 4, grid=4).update(pred, true)
    cell = np.broadcast_to((np.arange(40)*4//40)[:, None]*4+np.arange(52)*4//52, pred.shape)
    ok = true.numpy() != 255
    c, x, y = pred.numpy()[ok], cell[ok], true.numpy()[ok]
    share = lambda o: mutual_info_score(o, x)/mutual_info_score(o, o)
    assert s.value == pytest.approx(share(c)) and s.truth == pytest.approx(share(y))
    i, h = (sum((y == k).sum()*mutual_info_score(a[y == k], b[y == k]) for k in range(4)) for a, b in ((c, x), (c, c)))
    assert s.excess == pytest.approx(i/h)


def test_other_ignore_values_and_sizes():
    pred, true = maps(0)
    a, b = ((BoundaryF(ignore=v).update(pred, t), PositionShare(4, 4, v).update(pred, t)) for v, t in ((255, true), (-1, true.masked_fill(true == 255, -1))))
    assert a[0].counts.equal(b[0].counts) and a[1].table.equal(b[1].table)
    with pytest.raises(ValueError, match="pred holds"): PositionShare(2, 4).update(pred, true)


def test_rim_share_of_stripes():
    y = (torch.arange(40)//4 % 2).view(1, 1, -1).expand(1, 40, 40)
    assert rim_share(y, 2, 4).tolist() == [1, 1] and rim_share(y.div(2, rounding_mode="floor"), 1).tolist() == [0]
    assert boundary(y)[0, 0, 3:5].all()


def test_shift_test_moves_what_it_says():
    "A picture of row numbers: the windows see the same rows"
    x = torch.arange(100.).view(1, 1, -1, 1).expand(2, 3, 100, 80)/100
    assert shift_test(lambda o: (o[:, 0]*100).round().long(), x) == dict(near=1, far=1, leak=0)
    sizes = []
    shift_test(lambda o: sizes.append(o.shape[-2:]) or o[:, 0].long(), x)
    assert set(sizes) == {(60, 48)}


def test_evaluations_measure_borders_and_position(tmp_path):
    "Folders, arrays and the learner's measures give the same; clusters that first occur late are counted too"
    from picie_nb.evaluate.report import evaluate, evaluate_folders
    from PIL import Image
    y = ToyScenes(n=4, size=48, seed=1).batch(range(4))[1]
    p = torch.cat([y[:2]//2, y[2:].roll(3, 1)])
    ev = evaluate(p, y, n_classes=8)
    edges, places = BoundaryF().update(p, y), PositionShare(8, 8).update(p, y)
    want = dict(border=edges.value, position=places.value, truth=places.truth, excess=places.excess)
    assert {k: pytest.approx(v) for k, v in want.items()} == ev.shape == ev.to_dict()["shape"]
    for name, maps in (("pred", p), ("true", y)):
        (tmp_path/name).mkdir()
        for i, o in enumerate(maps): Image.fromarray(o.numpy().astype("uint8")).save(tmp_path/name/f"{i}.png")
    assert evaluate_folders(tmp_path/"pred", tmp_path/"true", labels=list("abcdefgh")).shape == ev.shape
