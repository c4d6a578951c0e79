"Corrections by clicks: they hold, they spread, they stay in the file; old files open; and wrong ones are told in one sentence."
import json, warnings
import numpy as np, pytest, torch, torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from picie_nb.backbone import create_backbone
from picie_nb.fpn import PiCIENet
from picie_nb.segmenter import Hint, Segmenter
from picie_nb.use.annotations import export_annotations, read_annotations
from picie_nb.use.deploy import OnnxSegmenter
from picie_nb.use.names import fit_classes, hints_from_masks, spread_names
from picie_nb.use.tree import ClusterTree

D = 16
PHOTO, OTHER = (Image.fromarray(np.random.default_rng(s).integers(0, 255, (6, 8, 3), np.uint8)).resize((96, 64), Image.BICUBIC) for s in (0, 1))
CLICKS = [(PHOTO, .1, .2, "road"), (PHOTO, .9, .8, "sky"), (OTHER, .5, .5, "tree"), (OTHER, .1, .9, "road"), (PHOTO, .5, .1, "water")]

@pytest.fixture(scope="module")
def segmenter():
    torch.manual_seed(0)
    net = PiCIENet(create_backbone("test_efficientnet", pretrained=False), D)
    return ClusterTree(net, F.normalize(torch.randn(30, D), dim=1), torch.ones(30), size=64).at(5)

def class_at(seg, im, x, y):
    c = seg(im).clusters
    return seg.labels.names[c[int(y*c.shape[0]), int(x*c.shape[1])]]


def test_clicks_hold(segmenter):
    seg = segmenter.hinted(CLICKS)
    assert [class_at(seg, *c[:3]) for c in CLICKS] == [c[3] for c in CLICKS]
    assert set(seg.labels.names) == {"road", "sky", "tree", "water"} and seg.hint_report()["failed"] == []
    assert segmenter.labels.names[0] == "cluster 0" and not segmenter.hints # the old one is as it was
    assert seg.net is segmenter.net

def test_corrected_masks_are_hints(segmenter, tmp_path):
    "Clusters as another tool gives them back, under new names: clicks in the middle of each, which hold"
    pytest.importorskip("shapely"); pytest.importorskip("pycocotools")
    photos = tmp_path/"photos"
    photos.mkdir()
    for n, im in dict(a=PHOTO, b=OTHER).items(): im.save(photos/f"{n}.png")
    seg = segmenter.named({i: f"thing {i}" for i in range(5)})
    a = read_annotations(export_annotations([seg(f) for f in sorted(photos.iterdir())], tmp_path/"c.json", "coco"), images=photos)
    hints = hints_from_masks(a.files, a, a.labels, n=2)
    assert all(a[f"{h.image.name}"][int(h.y*64), int(h.x*96)] == a.labels.names.index(h.name) for h in hints)
    assert {h.image.name for h in hints} == {"a.png", "b.png"} and len({(h.image, h.x, h.y) for h in hints}) == len(hints) > 4
    new = segmenter.hinted(hints)
    assert all(class_at(new, h.image, h.x, h.y) == h.name for h in hints)
    assert hints_from_masks([PHOTO], [np.full((64, 96), 255)], a.labels) == []
    with pytest.raises(ValueError, match="longer"): hints_from_masks(a.files[:1], a, a.labels)
    for wrong in (9, -1):
        with pytest.raises(ValueError, match=rf"has classes \[{wrong}\], which are not in 0..4"): hints_from_masks([PHOTO], [np.full((64, 96), wrong)], a.labels)

def test_calls_add_up(segmenter, tmp_path):
    "In one call, in several, or through a file without the images: the same"
    once, twice = segmenter.hinted(CLICKS), segmenter.hinted(CLICKS[:2]).hinted(CLICKS[2:])
    file = segmenter.hinted(CLICKS[:3]).save(tmp_path/"m.safetensors")
    later = Segmenter.load(file).hinted(CLICKS[3:])
    for o in (twice, later):
        assert torch.equal(o.centroids, once.centroids) and o.labels.names == once.labels.names
        assert [h.to_dict() for h in o.hints] == [h.to_dict() for h in once.hints]

def test_the_file(segmenter, tmp_path):
    photo = tmp_path/"private"/"photo.png"
    photo.parent.mkdir()
    PHOTO.save(photo)
    seg = segmenter.hinted([Hint(photo, .1, .2, "road"), Hint(PHOTO, .9, .8, "road", False)])
    again = Segmenter.load(seg.save(tmp_path/"m.safetensors"))
    with safe_open(tmp_path/"m.safetensors", "pt") as f: text = f.metadata()["picie_nb"]
    told = json.loads(text)["hints"]
    assert told[0] == dict(image="photo.png", x=.1, y=.2, name="road", yes=True) and "private" not in text
    assert len(told[1]["image"]) == 12 and told[1]["yes"] is False
    assert torch.equal(again.fine, seg.fine) and torch.equal(again.hints[0].z, seg.hints[0].z)
    assert np.array_equal(again(OTHER).clusters, seg(OTHER).clusters) and again.labels == seg.labels

def test_old_files_open(segmenter, tmp_path):
    "A file without small clusters and hints, as earlier versions wrote it"
    segmenter.save(tmp_path/"new.safetensors")
    with safe_open(tmp_path/"new.safetensors", "pt") as f:
        header, arrays = json.loads(f.metadata()["picie_nb"]), {k: f.get_tensor(k) for k in f.keys() if k != "fine"}
    del header["hints"]
    save_file(arrays, tmp_path/"old.safetensors", metadata={"picie_nb": json.dumps(header)})
    old = Segmenter.load(tmp_path/"old.safetensors")
    assert old.fine is None and old.hints == []
    seg = old.hinted(CLICKS) # from the clusters themselves
    assert [class_at(seg, *c[:3]) for c in CLICKS] == [c[3] for c in CLICKS]

def test_no(segmenter):
    "Not road: the nearest other class, or a class of its own"
    a, b = (PHOTO, .1, .2), (PHOTO, .9, .8)
    assert segmenter.hinted([(*a, "road"), (*b, "road", False)]).labels.names == ["road", "not road"]
    seg = segmenter.hinted([(*a, "road"), (OTHER, .5, .5, "sky"), (*b, "road", False)])
    assert class_at(seg, *b) == "sky" and class_at(seg, *a) == "road" and set(seg.labels.names) == {"road", "sky"}
    seg = seg.hinted([(*b, "sky", False)]) # neither, then
    assert class_at(seg, *b) in ("not road", "not sky")

def test_denied_for_every_class(segmenter):
    "Two 'no' at one place, and nothing else was clicked: one class, which holds"
    b = (PHOTO, .9, .8)
    seg = segmenter.hinted([(PHOTO, .1, .2, "road"), (OTHER, .5, .5, "sky"), (*b, "road", False), (*b, "sky", False)])
    assert seg.labels.names == ["road", "sky", "not road"] and seg.hint_report()["failed"] == [] and class_at(seg, *b) == "not road"

@pytest.mark.parametrize("change, names", [(dict(named={"not road": "soil"}), ["road", "soil"]), (dict(named={"road": "street"}), ["street", "not road"]),
    (dict(merged={"ground": ["road", "not road"]}), ["ground"])])
def test_what_came_from_a_no_is_named(segmenter, change, names):
    "It has its name, before and after further clicks, and is neither lost nor called wrong"
    b = (PHOTO, .9, .8)
    (method, arg), = change.items()
    seg = getattr(segmenter.hinted([(PHOTO, .1, .2, "road"), (*b, "road", False)]), method)(arg)
    later = seg.hinted([(OTHER, .5, .5, "tree")])
    for s, want in ((seg, names), (later, [*names, "tree"])):
        assert s.labels.names == want and class_at(s, *b) == names[-1] and list(s.hint_report()["clicks"]) == want and s.hint_report()["failed"] == []

def test_alone_and_named(segmenter):
    "The same where nothing but a 'no' was clicked; and with other settings it stays a 'no'"
    seg = segmenter.hinted([(PHOTO, .9, .8, "road", False)])
    assert not seg._with(refine=3).hints[0].yes
    assert seg.named({"not road": "soil"}).hinted([(OTHER, .5, .5, "tree")]).labels.names == ["soil", "tree"]

def test_renamed_to_what_was_denied(segmenter):
    "Sky here, no road there; then sky is called road: the name counts, as it came later"
    seg = segmenter.hinted([(PHOTO, .1, .2, "sky"), (PHOTO, .9, .8, "road", False)]).named({"sky": "road"})
    assert seg.hint_report() == dict(clicks=dict(road=1), split=[], failed=[])
    assert seg.hinted([(OTHER, .5, .5, "tree")]).labels.names == ["road", "tree"]

def test_images_that_are_gone(segmenter):
    "A generator of images in memory: none takes the features of another that had its place"
    def image(i): return np.random.default_rng(i).integers(0, 255, (64, 96, 3), np.uint8)
    listed, streamed = (segmenter.hinted(kind((image(i), .5, .5, f"class {i}") for i in range(12))) for kind in (list, iter))
    assert streamed.labels.names == listed.labels.names and all(torch.equal(a.z, b.z) for a, b in zip(streamed.hints, listed.hints))

def test_nameless_stays_nameless(segmenter):
    "No cluster gets the number of another for a name: that one's would change, and count as given by hand"
    with pytest.raises(ValueError, match="'cluster 3' is what another cluster without a name is called"): segmenter.named({0: "cluster 3"})
    assert segmenter.named({0: "cluster 9"}).hinted([(PHOTO, .5, .5, "road")]).labels.names == ["road"]
    assert segmenter.merged({"cluster 3": [0]}).labels.names == ["cluster 3", "cluster 1", "cluster 2", "cluster 4"]
    with pytest.raises(ValueError, match="No cluster '²'"): segmenter.named({"²": "road"})

def test_later_click_counts(segmenter):
    with pytest.warns(UserWarning, match="1 of 2 clicks contradict a later one"):
        seg = segmenter.hinted([(PHOTO, .1, .2, "road"), (PHOTO, .1, .2, "sky")])
    assert seg.labels.names == ["sky"] and len(seg.hints) == 1
    with pytest.warns(UserWarning, match="contradict"): seg = seg.hinted([(PHOTO, .1, .2, "sky", False)])
    assert seg.labels.names == ["not sky"]
    with warnings.catch_warnings():
        warnings.simplefilter("error") # these can be true together
        segmenter.hinted([(PHOTO, .1, .2, "road"), (PHOTO, .1, .2, "sky", False), (PHOTO, .1, .2, "road")])

def test_split_small_cluster():
    "Two names inside one small cluster: both hold, and the report says so"
    fine = F.normalize(torch.tensor([[1., 0, 0], [0, 1, 0], [0, 0, 1]]), dim=1)
    z = F.normalize(torch.tensor([[1, .05, 0], [1, 0, .05], [0, 1, .1]]), dim=1)
    mu = fit_classes(fine, z, torch.tensor([0, 1, 0]))
    assert (z@mu.T).argmax(1).tolist() == [0, 1, 0]

def test_report_of_a_split(segmenter):
    u = F.normalize(segmenter.fine[0], dim=0)
    v = F.normalize(u+.05*F.normalize(segmenter.fine[1], dim=0), dim=0)
    seg = segmenter.hinted([Hint("a", .1, .1, "road", z=u), Hint("a", .2, .1, "sky", z=v), Hint("a", .9, .9, "sky", z=F.normalize(segmenter.fine[7], dim=0))])
    assert seg.hint_report() == dict(clicks=dict(road=1, sky=2), split=[["road", "sky"]], failed=[])

def test_names_spread():
    "Two arcs: names go along an arc, not across the gap to the other, though a click there is nearer"
    arc = lambda a, b, n: torch.stack([torch.linspace(a, b, n).cos(), torch.linspace(a, b, n).sin(), torch.zeros(n)], 1)
    fine = torch.cat([arc(0, 1.6, 40), arc(2.1, 2.5, 12)])
    got = spread_names(fine, fine[[0, -1]], torch.tensor([0, 1]))
    assert got[:40].tolist() == [0]*40 and got[40:].tolist() == [1]*12
    assert (fine[39]@fine[51]) > (fine[39]@fine[0]) # nearest click: the other

def test_given_names_stay(segmenter):
    "What was named by hand keeps its name; renaming later reaches the clicks"
    seg = segmenter.named({0: "road", 1: "sky"}).hinted([(PHOTO, .5, .5, "tree")])
    assert set(seg.labels.names) == {"road", "sky", "tree"}
    old = segmenter.labels.palette
    assert seg.labels.palette[seg.labels.names.index("sky")].tolist() == old[1].tolist()
    new = seg.named({"tree": "plant"}).merged({"ground": ["road", "sky"]})
    assert sorted(h.name for h in new.hints) == ["ground", "ground", "plant"]
    assert set(new.hinted([(OTHER, .1, .1, "plant")]).labels.names) == {"ground", "plant"}

@pytest.mark.parametrize("readout, k", [("dot", 0), ("euclidean", 1), ("cosine", 1)])
def test_colour_of_the_cluster_clicked(segmenter, readout, k):
    "The cluster that the segmenter says is there, by its own readout"
    mu = torch.zeros(2, D)
    mu[0, 0], mu[1, :2] = 2, torch.tensor([.8, .6])
    seg = Segmenter(segmenter.net, mu, size=64, readout=readout)
    assert seg.hinted([Hint("a", .5, .5, "road", z=mu[1])]).labels.palette[0].tolist() == seg.labels.palette[k].tolist()

def test_colours_are_distinct(segmenter):
    seg = segmenter.hinted([(PHOTO, x, y, f"{x}{y}") for x in (.1, .3, .5, .7, .9) for y in (.1, .5, .9)])
    assert len(np.unique(seg.labels.palette, axis=0)) == 15

def test_dozens_need_no_network(segmenter, monkeypatch):
    "Clicks that hold their features are fitted without a look at any image; bench/hints.json has the seconds"
    g = torch.Generator().manual_seed(0)
    seg = segmenter._with(fine=torch.randn(243, D, generator=g))
    hints = [Hint("a", .5, .5, f"class {i % 12}", z=F.normalize(torch.randn(D, generator=g), dim=0)) for i in range(60)]
    monkeypatch.setattr(type(seg.net), "forward", None)
    new = seg.hinted(hints)
    assert len(new.labels) == 12 and len(new.hints) == 60 and len(new.hint_report()["failed"]) <= 1

@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 8))
def test_always_holds(seed, n, k):
    "Up to 40 random clicks in 64 dimensions"
    g = torch.Generator().manual_seed(seed)
    fine, z = (F.normalize(torch.randn(m, 64, generator=g), dim=1) for m in (50, n))
    y = torch.randint(k, (n,), generator=g).unique(return_inverse=True)[1]
    mu = fit_classes(fine, z, y)
    assert mu.shape == (int(y.max())+1, 64) and torch.equal((z@mu.T).argmax(1), y)

@pytest.mark.parametrize("hints, told", [([(PHOTO, 64, 20, "road")], "fractions of width and height"), ([(PHOTO, .5)], "a click is"), ([3], "a click is"),
    ([(PHOTO, .5, .5, "")], "a name"), ([(PHOTO, .5, .5, 3)], "a name"), ([("none.png", .5, .5, "road")], "none.png")])
def test_mistakes(segmenter, hints, told):
    with pytest.raises((ValueError, FileNotFoundError), match=told): segmenter.hinted(hints)

def test_other_readouts(segmenter):
    seg = segmenter._with(readout="euclidean", centroids=segmenter.centroids[:, :D]).hinted(CLICKS)
    assert seg.readout == "dot" and [class_at(seg, *c[:3]) for c in CLICKS] == [c[3] for c in CLICKS]

def test_biases_travel(segmenter, tmp_path):
    "The prior of a tree's clusters is in the file and in the exported network"
    assert segmenter.centroids.shape[1] == D+1
    later = Segmenter.load(segmenter.save(tmp_path/"m.safetensors"))
    assert torch.equal(later.centroids, segmenter.centroids) and (later(PHOTO).clusters == segmenter(PHOTO).clusters).all()
    pytest.importorskip("onnxruntime")
    exported = OnnxSegmenter(segmenter.to_onnx(tmp_path/"m.onnx"))
    assert (exported(PHOTO).clusters == segmenter(PHOTO).clusters).mean() > .999

def test_numbers_after_merging(segmenter):
    "Clusters keep their names, so that a number may mean two of them: it is refused, a name never is"
    seg = segmenter.merged({"road": [1, 2]})
    assert seg.labels.names == ["cluster 0", "road", "cluster 3", "cluster 4"]
    for change in (lambda: seg.named({3: "sky"}), lambda: seg.merged({"sky": ["3"]})):
        with pytest.raises(ValueError, match="3 may be 'cluster 3' or number 3, 'cluster 4': give the name"): change()
    assert seg.named({"cluster 3": "sky", 1: "street"}).labels.names == ["cluster 0", "street", "sky", "cluster 4"]
    with pytest.raises(ValueError, match="two names for one cluster"): segmenter.named({3: "a", "cluster 3": "b"})
    from picie_nb.use.widgets import with_names
    assert with_names(seg, ["", "", "", "sky"]).labels.names == ["cluster 0", "road", "cluster 3", "sky"]

@pytest.mark.parametrize("yes", ["False", "no", None])
def test_yes_that_is_no_answer(segmenter, yes):
    with pytest.raises(ValueError, match="give True or False"): segmenter.hinted([(PHOTO, .5, .5, "road", yes)])
