"Protocols: which scores may stand side by side, and what the generous rules really measure."
import copy, json, math
from dataclasses import fields, replace
import numpy as np
import pytest, torch
from picie_nb.data.labels import LABELSETS, LabelSet, label_set
from picie_nb.evaluate.metrics import ConfusionMatrix, confusion, score
from picie_nb.evaluate.protocols import PROTOCOLS, Protocol, ScoreTable, group_scores, per_image_score, protocol

SEEDS = range(25)
NAMES = ["picie-coco27-320", "picie-city27-320-strict", "picie-city27-320-val", "stego-coco27-320", "stego-city27-320",
         "full-res", "linear", "m2o@K", "per-image"]


def random_mats(seed, n=5, k=7, c=6):
    "Matrices of n images, with a cluster for every class so that scores are not all alike; large counts: no ties"
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(0, 10**6, (n, k, c)) * (1+9*(np.arange(k)[:, None] == rng.permutation(k)[:c])))


def numbers(s): return s.acc, s.miou, s.n_classes, s.iou.tolist()


def close(a, b): np.testing.assert_allclose(a, b, rtol=1e-12)


# --- cards

def test_names_of_the_cards():
    assert list(PROTOCOLS) == NAMES and all(p.name == n == protocol(n).name for n, p in PROTOCOLS.items())
    assert (protocol("picie-coco27-320").n_images, protocol("picie-city27-320-strict").n_images) == (2175, 3475)
    assert {protocol(f"{o}-city27-320{v}").n_images for o, v in (("picie", "-val"), ("stego", ""))} == {500}
    with pytest.raises(ValueError, match="no protocol is called 'coco'; known: picie-coco27-320, "): protocol("coco")


@pytest.mark.parametrize("name", NAMES)
def test_card_survives_json(name):
    p = protocol(name)
    assert Protocol.from_dict(json.loads(json.dumps(p.to_dict()))) == p
    assert p.differences(p) == [] and None not in p.to_dict().values()
    if p.labels: assert len(label_set(p.labels)) == 27


def test_every_rule_counts_and_no_remark_does():
    p = Protocol("a", "data", "val", 10, "toyscenes", "whole", "hungarian", 255, "none", "none", "fresh", "n", "s")
    other = dict(n_images=11, matching="many_to_one", ignore=0)
    for f in fields(Protocol):
        q = replace(p, **{f.name: other.get(f.name, "other")})
        expected = [] if f.name in ("name", "note", "source") else [f.name]
        assert p.differences(q) == q.differences(p) == expected
    assert p.differences(replace(p, split=None)) == ["split"]


def test_a_dictionary_that_is_silent_has_the_defaults():
    p = Protocol("a", geometry="whole")
    assert p.differences(dict(geometry="whole")) == []
    assert p.differences(dict(geometry="whole", tta="mirror", crop=3)) == ["tta", "crop"]


def test_cards_cannot_be_changed_or_misspelt():
    with pytest.raises(Exception, match="cannot assign"): protocol("linear").matching = "hungarian"
    with pytest.raises(ValueError, match="no field 'geometri'"): protocol("full-res").score(torch.eye(3), geometri="x")
    with pytest.raises(ValueError, match="matching='greedy'"): Protocol("x", matching="greedy")


# --- scores

@pytest.mark.parametrize("seed", SEEDS)
def test_card_scores_like_score(seed):
    mats = random_mats(seed)
    for m in ("hungarian", "many_to_one"):
        s = Protocol("x", matching=m).score(mats.sum(0))
        close(numbers(s)[-1], score(mats.sum(0), m).iou.tolist())
        assert (s.acc, s.miou, s.matching, s.protocol["name"]) == (score(mats.sum(0), m).acc, score(mats.sum(0), m).miou, m, "x")
    assert Protocol("x", matching="per_image").score(mats).acc == per_image_score(mats).acc


@pytest.mark.parametrize("seed", SEEDS)
def test_numbers_of_clusters_do_not_matter(seed):
    "No rule but the published cut sees how clusters are numbered; per image, not even another numbering for each image"
    mats, rng = random_mats(seed), np.random.default_rng(seed)
    order = torch.from_numpy(rng.permutation(mats.shape[1]))
    whole = mats.sum(0)
    for m in ("hungarian", "many_to_one"): close(score(whole, m).iou, score(whole[order], m).iou)
    each = torch.stack([m[torch.from_numpy(rng.permutation(len(m)))] for m in mats])
    close(per_image_score(mats).iou, per_image_score(each).iou)
    for mode in ("class", "slice"):
        a, b = (group_scores(m, [1, 4], mode=mode) for m in (whole, whole[order]))
        for g in a: close(a[g].iou, b[g].iou); close(a[g].acc, b[g].acc)


@pytest.mark.parametrize("seed", SEEDS)
def test_per_image_is_naive_renaming(seed):
    "Rename the clusters of every image by its own matching, then count everything as classes"
    rng = np.random.default_rng(seed)
    true, pred = torch.from_numpy(rng.integers(0, 5, (6, 20, 20))), torch.from_numpy(rng.integers(0, 5, (6, 20, 20)))
    true[:, :3] = 255
    renamed = torch.stack([score(confusion(p, t, 5, 5)).assignment[p] for p, t in zip(pred, true)])
    cm = ConfusionMatrix(5, 5).update(renamed, true)
    s, plain = per_image_score(confusion(pred, true, 5, 5, per_image=True)), Protocol("x", matching="none").score(cm)
    close(s.acc, plain.acc); close(s.iou, plain.iou)
    close(s.acc, (renamed == true)[true != 255].double().mean().item())


def test_per_image_is_perfect_on_meaningless_labels():
    torch.manual_seed(0)
    true = torch.randint(0, 9, (400, 4, 4)).repeat_interleave(4, 1).repeat_interleave(4, 2)
    shuffled = torch.stack([torch.randperm(9)[t] for t in true])
    mats = confusion(shuffled, true, 9, 9, per_image=True)
    assert per_image_score(mats).acc == per_image_score(mats).miou == 1.
    assert score(mats.sum(0)).acc < .2
    assert per_image_score(mats).assignment.tolist() == [-1]*9
    json.dumps(per_image_score(mats).to_dict())


def test_a_matrix_that_ignores_something_else_is_refused():
    cm = ConfusionMatrix(3, 3, ignore=-1).update([0, 1], [0, 1])
    with pytest.raises(ValueError, match="ignores -1, full-res says 255"): protocol("full-res").score(cm)
    assert protocol("full-res").score(cm, ignore=-1).protocol["ignore"] == -1


# --- things and stuff

def published_cut(hist, n_things):
    """What the published evaluation computes, restated: rows are classes, columns clusters.

    The row of each class is put where its cluster stands; the square is cut after the first n_things places."""
    from scipy.optimize import linear_sum_assignment
    n = len(hist)
    rows, cols = linear_sum_assignment(hist.max()-hist)
    moved = np.zeros((n, n))
    for c, k in zip(rows, cols): moved[k] = hist[c]
    res = []
    for block in (moved[:n_things, :n_things], moved[n_things:, n_things:]):
        hit = np.diag(block)
        res.append((hit.sum()/block.sum(), np.nanmean(hit/(block.sum(0)+block.sum(1)-hit))))
    return res


@pytest.mark.parametrize("seed", SEEDS)
def test_published_cut(seed):
    mat = random_mats(seed, k=6)[0]
    s = group_scores(mat, [0, 1], mode="published")
    for (acc, miou), g in zip(published_cut(mat.numpy().T, 2), ("things", "stuff")): close((s[g].acc, s[g].miou), (acc, miou))
    assert s["things"].protocol["group_mode"] == "published"


@pytest.mark.parametrize("seed", SEEDS)
def test_class_mode_is_a_part_of_the_whole(seed):
    mat, things = random_mats(seed)[0], [0, 3]
    whole, s = score(mat), group_scores(mat, things)
    close(s["things"].iou, whole.iou[things])
    assert s["things"].n_classes + s["stuff"].n_classes == whole.n_classes
    share = (mat[:, things].sum()/mat.sum().double()).item()
    close(share*s["things"].acc + (1-share)*s["stuff"].acc, whole.acc)
    close((2*s["things"].miou + 4*s["stuff"].miou)/6, whole.miou)


@pytest.mark.parametrize("seed", SEEDS)
def test_slice_drops_what_crosses(seed):
    "Nothing that lies outside the two blocks changes the slice, as long as the matching stays"
    mat = torch.diag(torch.full((6,), 10**7)) + torch.from_numpy(np.random.default_rng(seed).integers(0, 1000, (6, 6)))
    more = mat.clone(); more[:2, 2:] += 10**5; more[2:, :2] += 10**5
    a, b = (group_scores(m, [0, 1], mode="slice") for m in (mat, more))
    assert all(a[g].acc == b[g].acc for g in a)
    assert all(group_scores(more, [0, 1])[g].acc < group_scores(mat, [0, 1])[g].acc for g in a)


def test_things_of_a_label_set():
    labels, mat = LabelSet(list("abcd"), things=[1, 3]), torch.diag(torch.tensor([4, 3, 2, 1]))
    s = group_scores(mat, labels)
    assert s["things"].names == ["b", "d"] and s["stuff"].names == ["a", "c"]
    with pytest.raises(ValueError, match="does not say which classes are things"): group_scores(mat, LabelSet(list("abcd")))
    for bad in ([], [0, 1, 2, 3], [4], [-1]):
        with pytest.raises(ValueError, match="must be things, and some not"): group_scores(mat, bad)
    assert math.isnan(group_scores(torch.diag(torch.tensor([1, 0])), [1])["things"].acc)
    assert [i for i, s in LABELSETS.items() if s.things == list(range(12)) and len(s) == 27] == ["cocostuff27"]


# --- tables

CARD = Protocol("card", "data", "val", 5, geometry="whole")


def some(seed=0, **changes): return CARD.score(random_mats(seed).sum(0), **changes)


def test_table_takes_equal_rules_and_no_others():
    t = ScoreTable().add("a", some()).add("b", some(1)).add("c", some(2), mixed=False)
    for k, v in dict(dataset="d", split="train", n_images=6, geometry="crop", ignore=0, tta="mirror", refinement="CRF",
                     centroids="stale", matching="many_to_one").items():
        with pytest.raises(ValueError, match=rf"'a' and 'z' were measured by different rules: {k} \("): t.add("z", some(**{k: v}))
    fewer = CARD.score(random_mats(0).sum(0)[:, :5])
    with pytest.raises(ValueError, match=r"n_classes \(6 of 6 / 5 of 5\)"): t.add("z", fewer)
    assert len(t) == 3 and t.differing() == [] and t.shared()["protocol"] == "card"


def test_number_of_clusters_counts_for_many_to_one_only():
    small, large = random_mats(0, k=7).sum(0), random_mats(0, k=9).sum(0)
    ScoreTable().add("a", CARD.score(small)).add("b", CARD.score(large))
    t = ScoreTable().add("a", CARD.score(small, matching="many_to_one"))
    with pytest.raises(ValueError, match=r"n_clusters \(7 / 9\)"): t.add("b", CARD.score(large, matching="many_to_one"))


def test_mixed_table_shows_what_differs():
    for t in (ScoreTable(mixed=True).add("a", some()), ScoreTable().add("a", some(), mixed=True)):
        t.add("b", some(split="train")).add("c", some(tta="mirror"))
        assert t.differing() == ["split", "tta"] and "split" not in t.shared()
        for text in (repr(t), t.markdown(), t._repr_html_()): assert all(o in text for o in ("split", "train", "mirror", "hungarian"))


def test_dictionaries_of_plain_scores_work():
    "As `learn.score()` makes them"
    rules = dict(geometry="whole images", centroids="fresh")
    a, b = (score(random_mats(i).sum(0), **rules) for i in (0, 1))
    t = ScoreTable().add("a", a).add("b", b)
    assert t.shared()["geometry"] == "whole images" and t.shared()["tta"] == "none"
    with pytest.raises(ValueError, match="dataset"): t.add("c", some())


def test_mean_and_spread():
    from picie_nb.evaluate.report import Scores
    draws = Scores([some(i) for i in range(4)])
    r = ScoreTable().add("a", draws).rows[0]
    close([r["acc"], r["miou"], r["std"]["acc"], r["std"]["miou"]], [draws.acc, draws.miou, draws.std["acc"], draws.std["miou"]])
    assert r["n"] == 4 and "(n=4)" in repr(ScoreTable().add("a", draws))
    with pytest.raises(ValueError, match="differ in split"): ScoreTable().add("a", [some(), some(split="train")])
    with pytest.raises(TypeError, match="neither a Score nor a list"): ScoreTable().add("a", [])


def test_numbers_from_elsewhere():
    ok = dict(acc=.5, miou=.2, protocol="picie-coco27-320", source="a log")
    for drop, say in dict(protocol="has no protocol", source="has no source").items():
        with pytest.raises(ValueError, match=say): ScoreTable().add("a", **{k: v for k, v in ok.items() if k != drop})
    with pytest.raises(ValueError, match="give a fraction, 0.5, not percent"): ScoreTable().add("a", **{**ok, "acc": 50})
    with pytest.raises(ValueError, match="no protocol is called"): ScoreTable().add("a", **{**ok, "protocol": "coco"})
    t = ScoreTable().add("a", **ok).add("b", **{**ok, "acc": None})
    assert "a log" in repr(t) and t.rows[1]["acc"] is None and t.to_dict()["rows"][0]["source"] == "a log"
    mine = protocol("picie-coco27-320").score(torch.eye(27))
    with pytest.raises(ValueError, match=r"n_classes \(not said / 27 of 27\)"): t.add("mine", mine)
    ScoreTable().add("a", **ok, n_classes=27).add("mine", mine)
    with pytest.raises(ValueError, match="n_classes"): ScoreTable().add("a", **ok, n_classes=(25, 27)).add("mine", mine)


def test_table_survives_json_and_escapes():
    t = ScoreTable().add("a|<b>", some())
    assert json.loads(json.dumps(t.to_dict())) == t.to_dict()
    assert "a\\|<b>" in t.markdown() and "a|&lt;b&gt;" in t._repr_html_()
    assert repr(ScoreTable()) == ScoreTable().markdown() == "ScoreTable without rows"
    kept = copy.deepcopy(t.to_dict()); t.to_dict()["rows"][0]["name"] = "other"
    assert t.to_dict() == kept
