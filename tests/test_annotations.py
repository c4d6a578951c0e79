"Cluster maps as files for annotation tools, and back: exact areas, holes, names, whole or not at all; and what the tools' own readers see."
import gc, importlib.util, io, json, os, subprocess, sys, tracemalloc, zipfile
from pathlib import Path
import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import binary_dilation, label
pytest.importorskip("shapely", reason="outlines need shapely")
pytest.importorskip("pycocotools", reason="masks need pycocotools")
import shapely
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco_mask
from picie_nb.data.folders import match_masks, _drawing, _open_mask
from picie_nb.data.labels import LabelSet, label_set
from picie_nb.evaluate.report import evaluate_folders
from picie_nb.segmenter import Segmentation
from picie_nb.use.annotations import (Annotations, export_annotations, names_from_masks, read_annotations, _FORMATS, _brush, _filled, _joined,
                                      _masks, _outlines, _pieces, _ring, _unbrush)

NAMES = ["sky", "grass, dry", "Straße 道路", "a \"quoted\" <name> & more"]
WAYS = [(f, m) for f, w in _FORMATS.items() for m in (False, True)[:len(w.kinds)]]
ways = pytest.mark.parametrize("fmt, masks", WAYS, ids=[f"{f}-masks" if m else f for f, m in WAYS])


def seg(clusters, source=None, names=NAMES):
    c = np.asarray(clusters, np.uint8)
    return Segmentation(c, np.ones(c.shape, np.float16), Image.fromarray(c).convert("RGB"), LabelSet(names), source)


def blobs(h, w, seed=0, k=4, side=5):
    "Regions with ragged borders, islands, lakes and single pixels"
    rng = np.random.default_rng(seed)
    c = np.kron(rng.integers(0, k, (h//side+1, w//side+1)), np.ones((side, side), int))[:h, :w]
    return np.where(rng.random((h, w)) < .05, rng.integers(0, k, (h, w)), c).astype(np.uint8)


DONUT = np.zeros((9, 12), np.uint8)
DONUT[1:8, 1:8] = 1
DONUT[3:6, 3:6] = 2   # a lake in the island
DONUT[4, 4] = 3       # of one pixel, an island in the lake
DONUT[8, 11] = 3      # one pixel in a corner
DONUT[0, 8] = DONUT[1, 9] = 2 # two that touch by a corner
CASES = dict(donut=DONUT, whole=np.full((6, 7), 2), pixel=np.zeros((1, 1)), column=np.arange(4)[:, None], blobs=blobs(40, 53), noise=np.random.default_rng(1).integers(0, 4, (17, 23)))


@pytest.fixture
def photos(tmp_path):
    "Two photos of one name in two folders"
    files = {}
    for i, d in enumerate("ab"):
        (tmp_path/"photos"/d).mkdir(parents=True)
        files[d] = tmp_path/"photos"/d/"street 1.png"
        Image.fromarray(np.zeros((*blobs(30+i, 41).shape, 3), np.uint8)).save(files[d])
    return files


# ---- outlines

@settings(max_examples=150, deadline=None)
@given(arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 2)))
def test_outlines_follow_the_pixels(c):
    "One valid polygon for each piece, with the area, the holes and the pixels of the piece; its ring cut open, too"
    pieces, of = _pieces(c)
    polygons = _outlines(pieces)
    assert len(polygons) == len(of) == sum(label(c == k)[1] for k in range(3))
    assert shapely.is_valid(polygons).all() and (shapely.area(polygons) == np.bincount(pieces.ravel())).all()
    y, x = np.indices(c.shape)+.5
    for i, p in enumerate(polygons):
        assert (shapely.contains_xy(p, x, y) == (pieces == i)).all()
        ring = _ring(p)
        xs, ys = ring.T
        assert abs(xs@np.roll(ys, -1)-ys@np.roll(xs, -1))/2 == p.area
        rle = coco_mask.frPyObjects([ring.ravel().tolist()], *c.shape)
        assert (coco_mask.decode(rle)[..., 0] == (pieces == i)).all()


@settings(max_examples=60, deadline=None)
@given(arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.integers(0, 2)), st.floats(.1, 8))
def test_simplified_outlines_keep_together(c, tolerance):
    "Simplified, the pieces still cover the image once, and none is lost"
    polygons = _outlines(_pieces(c)[0], tolerance)
    assert shapely.coverage_is_valid(polygons) and shapely.area(polygons).sum() == pytest.approx(c.size)
    assert (shapely.area(polygons) > 0).all() and shapely.is_valid(polygons).all()


def test_simplification_stays_close():
    "A smooth shape: few corners, and little of its area is another's"
    y, x = np.indices((200, 300))
    c = (((x-150)/110)**2+((y-100)/70)**2 < 1).astype(np.uint8)
    exact, simple = (_outlines(_pieces(c)[0], t) for t in (0, 2))
    assert shapely.get_num_coordinates(simple[1]) < .2*shapely.get_num_coordinates(exact[1])
    assert shapely.area(shapely.symmetric_difference(exact, simple)).max() < .015*exact[1].area


@settings(max_examples=60, deadline=None)
@given(arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.integers(0, 3)), st.integers(0, 200))
def test_small_pieces_join(c, min_area):
    pieces, of = _joined(c, min_area)
    n, before = np.bincount(pieces.ravel()), np.bincount(_pieces(c)[0].ravel())
    assert n.min() >= min(min_area, before.max()) and n.sum() == c.size
    keep = before[_pieces(c)[0]] >= min(min_area, before.max())
    assert (of[pieces][keep] == c[keep]).all()


@settings(max_examples=60, deadline=None)
@given(arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 2)))
def test_runs(c):
    "Runs of a piece are those of its mask, row by row, and column by column as pycocotools has them"
    pieces, of = _pieces(c)
    for i, o in enumerate(_masks(pieces, of)):
        m = pieces == i
        rows = o.counts(*c.shape)
        assert (np.repeat(np.arange(len(rows))%2, rows) == m.ravel()[:rows.sum()]).all() and rows.sum() == m.size and (rows[1:] > 0).all()
        rle = coco_mask.frPyObjects(dict(counts=o.turned().counts(*c.shape[::-1]).tolist(), size=[*c.shape]), *c.shape)
        assert rle["counts"] == coco_mask.encode(np.asfortranarray(m.astype(np.uint8)))["counts"]
        assert (_unbrush(_brush(rows)).reshape(*c.shape, 4)[..., 3] == 255*m).all()


# ---- there and back

@ways
@pytest.mark.parametrize("case", CASES)
def test_round_trip(case, fmt, masks, photos, tmp_path):
    "Written and read again, every pixel has its cluster, by name"
    c = np.asarray(CASES[case], np.uint8)
    photo = photos["a"].with_name("one.png")
    Image.fromarray(c).save(photo)
    to = export_annotations([seg(c, photo)], tmp_path/"out", fmt, masks)
    back = read_annotations(to, images=photo.parent, labels=LabelSet(NAMES))
    assert len(back) == 1 and (back[0] == c).all() and back[0].shape == c.shape
    own = read_annotations(to, fmt, images=photo.parent) # classes as the file says
    assert set(own.labels.names) <= set(NAMES)
    names = np.array([*own.labels.names, *[""]*(256-len(own.labels))])
    assert (names[own[0]] == np.array(NAMES)[c]).all()


@ways
def test_same_names_in_folders(fmt, masks, photos, tmp_path):
    c = {d: blobs(30+i, 41, seed=i) for i, d in enumerate("ab")}
    for out in ("out", "out.zip"):
        if out == "out.zip" and _FORMATS[fmt].ending: continue
        to = export_annotations([seg(c[d], photos[d]) for d in "ab"], tmp_path/out, fmt, masks)
        back = read_annotations(to, images=tmp_path/"photos", labels=LabelSet(NAMES))
        got = {f.parent.name: y for f, y in zip(back.files, back)}
        assert all((got[d] == c[d]).all() for d in "ab") and len(got) == 2
        assert back.files == [photos[d] for d in "ab"]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["photos", "out"]+["out.zip"]*(not _FORMATS[fmt].ending))


@ways
def test_left_out(fmt, masks, photos, tmp_path):
    "What is left out is without a class when it comes back, and no class of the file; small pieces are gone, too"
    c = blobs(30, 41)
    to = export_annotations(iter([seg(c, photos["a"])]), tmp_path/"out", fmt, masks, min_area=6, leave_out=["grass, dry", 3], root=tmp_path/"photos")
    back = read_annotations(to, images=tmp_path/"photos")
    pieces, of = _joined(c, 6)
    want = np.array(["sky", None, NAMES[2], None])[of[pieces]]
    got = np.array([*back.labels.names, *[None]*(256-len(back.labels))])[back[0]]
    assert (got == want).all() and back[0].max() == back.labels.ignore
    if fmt != "png": assert set(back.labels.names) == {"sky", NAMES[2]}


@pytest.mark.parametrize("fmt, masks", [w for w in WAYS if "polygons" in _FORMATS[w[0]].kinds and not w[1]], ids=str)
def test_simplified_comes_back_close(fmt, masks, photos, tmp_path):
    c = np.asarray(Image.fromarray(np.random.default_rng(3).integers(0, 4, (6, 8), np.uint8)).resize((160, 120), 0))
    y, x = np.indices(c.shape)
    c = np.where((x-70)**2+(y-60)**2 < 900, 2, c)
    Image.fromarray(c).save(photos["a"])
    to = export_annotations([seg(c, photos["a"])], tmp_path/"out", fmt, tolerance=2)
    back = read_annotations(to, images=photos["a"].parent, labels=LabelSet(NAMES))[0]
    assert (back != c).mean() < .01 and (back == 255).mean() < .002


def test_areas_in_coco(photos, tmp_path):
    "area is the number of pixels, boxes fit, and pycocotools draws the same pixels, with polygons cut open and with masks"
    from pycocotools.coco import COCO
    c = CASES["blobs"]
    for masks in (False, True):
        f = export_annotations([seg(c, photos["a"])], tmp_path/f"{masks}.json", masks=masks)
        coco = COCO(str(f))
        pieces, of = _pieces(c)
        assert len(coco.anns) == len(of) and sum(a["area"] for a in coco.anns.values()) == c.size
        assert [o["name"] for o in coco.loadCats(coco.getCatIds())] == NAMES
        seen = np.full(c.shape, 255)
        for a in coco.anns.values():
            m = coco.annToMask(a) > 0
            assert m.sum() == a["area"] and (seen[m] == 255).all()
            seen[m] = a["category_id"]-1
            ys, xs = m.nonzero()
            assert a["bbox"] == [xs.min(), ys.min(), np.ptp(xs)+1, np.ptp(ys)+1]
        assert (seen == c).all() and coco.imgs[1] == dict(id=1, file_name="street 1.png", height=40, width=53)


# ---- whole or not at all

def interrupted(results):
    yield from results
    raise KeyboardInterrupt

@ways
@pytest.mark.parametrize("end", ["", ".zip"])
def test_interrupted(fmt, masks, end, photos, tmp_path):
    "No file where there was none; where there was one, it is still there"
    kind = _FORMATS[fmt]
    if end and kind.ending: return
    out = tmp_path/"made"/f"x{end or kind.ending}"
    with pytest.raises(KeyboardInterrupt): export_annotations(interrupted([seg(DONUT, photos["a"])]*1), out, fmt, masks)
    assert not out.exists() and not [p for p in (tmp_path/"made").rglob("*") if p.is_file()]
    with pytest.raises(ValueError, match="no segmentations"): export_annotations([], out, fmt, masks)
    assert not list((tmp_path/"made").iterdir())
    export_annotations([seg(DONUT, photos["a"])], out, fmt, masks)
    def state(): return {p: p.read_bytes() for p in [out, *out.rglob("*")] if p.is_file()}
    before = state()
    assert before
    for bad in (interrupted([seg(DONUT.T, photos["a"])]), [seg(DONUT.T, photos["a"]), seg(DONUT, photos["b"], NAMES[:3]+["other"])]):
        with pytest.raises((KeyboardInterrupt, ValueError)): export_annotations(bad, out, fmt, masks)
        assert state() == before and len(list((tmp_path/"made").iterdir())) == 1
    export_annotations([seg(DONUT.T, photos["a"])], out, fmt, masks)
    assert state() != before # replaced by what is whole


def test_other_files_stay(photos, tmp_path):
    "A folder that is there keeps what else it holds; photos and drawings of others are not replaced"
    out = tmp_path/"out"
    (out/"a").mkdir(parents=True)
    (out/"notes.txt").write_text("mine")
    export_annotations([seg(DONUT, photos["a"])], out, "labelme")
    assert (out/"notes.txt").read_text() == "mine" and (out/"street 1.json").exists()
    photo = photos["a"].read_bytes()
    with pytest.raises(ValueError, match="not drawn by this library"): export_annotations([seg(DONUT, photos["a"])], photos["a"].parent, "png")
    assert photos["a"].read_bytes() == photo and [p.name for p in photos["a"].parent.iterdir()] == ["street 1.png"]
    for _ in range(2): export_annotations([seg(DONUT, photos["a"])], out, "png")


SPOILT = {"coco": "annotations.json", "cvat": "annotations.xml", "labelme": "street 1.json", "geojson": "street 1.geojson", "yolo": "labels/train/street 1.txt", "labelstudio": "tasks.json",
          "png": "street 1.png", "cvat-mask": "SegmentationClass/street 1.png"}

@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("fmt", SPOILT)
def test_corrections_are_not_replaced(fmt, zipped, photos, tmp_path):
    "Again and again into the same place; but what somebody changed stays, and so do all files beside it"
    if zipped and _FORMATS[fmt].ending: return
    out = tmp_path/("out.zip" if zipped else "out")
    def export(c): return export_annotations([seg(c, photos["a"])], out, fmt)
    for c in (DONUT, DONUT.T, DONUT.T, DONUT): export(c)
    f = out if zipped else out/SPOILT[fmt]
    if zipped:
        with zipfile.ZipFile(f, "a") as z: z.writestr("notes.txt", "mine")
    elif f.suffix == ".png":
        with Image.open(f) as im:
            im.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(f, **_drawing()) # by an editor that keeps comments
    else: f.write_bytes(f.read_bytes().replace(b"1", b"2", 1))
    before = {p: p.read_bytes() for p in [out, *out.rglob("*")] if p.is_file()}
    with pytest.raises(ValueError, match="was changed since, or is not from here"): export(DONUT.T)
    assert before == {p: p.read_bytes() for p in [out, *out.rglob("*")] if p.is_file()}
    f.rename(tmp_path/"mine")
    export(DONUT.T)


def test_files_of_others_are_not_replaced(photos, tmp_path):
    "Nor is one that was made while the photos were segmented; masks that are saved again are no corrections"
    (tmp_path/"x.json").write_text("{}")
    with pytest.raises(ValueError, match="x.json is there and"): export_annotations([seg(DONUT, photos["a"])], tmp_path/"x.json")
    def meanwhile():
        yield seg(DONUT, photos["a"])
        (tmp_path/"out").mkdir()
        (tmp_path/"out"/"street 1.json").write_text("{}")
    with pytest.raises(ValueError, match="is not from here"): export_annotations(meanwhile(), tmp_path/"out", "labelme")
    assert [f.name for f in (tmp_path/"out").iterdir()] == ["street 1.json"] and (tmp_path/"x.json").read_text() == "{}"
    a = read_annotations(export_annotations([seg(DONUT, photos["a"])], tmp_path/"y.json"))
    for _ in range(2): a.save(tmp_path/"masks")
    (tmp_path/"masks"/"labels.json").write_text("{}")
    with pytest.raises(ValueError, match="labels.json is there and"): a.save(tmp_path/"masks")


@pytest.mark.parametrize("fmt", ["png", "yolo", "cvat-mask"])
def test_numbers_of_other_classes_do_not_stay(fmt, photos, tmp_path):
    "Maps of photos outside an export would be read by its names, unless these are the same"
    other, c = NAMES[::-1], {d: blobs(30+i, 41) for i, d in enumerate("ab")}
    def export(folders, names): return export_annotations([seg(c[d], photos[d], names) for d in folders], tmp_path/"out", fmt, root=tmp_path/"photos")
    export("ab", NAMES)
    export("a", NAMES)
    with pytest.raises(ValueError, match="out holds annotations of other classes, such as .*b/street 1"): export("a", other)
    back = read_annotations(export("ab", other), images=tmp_path/"photos", labels=LabelSet(other))
    assert len(back) == 2 and all((y == c[f.parent.name]).all() for f, y in zip(back.files, back))


def test_labelme_names_its_photo(photos, tmp_path):
    "The photo, as seen from the JSON"
    export_annotations([seg(blobs(30, 41), photos["a"]), seg(blobs(31, 41), photos["b"])], tmp_path/"out"/"deep", "labelme")
    for d in "ab":
        f = tmp_path/"out"/"deep"/d/"street 1.json"
        assert (f.parent/json.loads(f.read_text())["imagePath"]).resolve() == photos[d].resolve()


@pytest.mark.parametrize("fmt, masks", [("coco", False), ("coco", True), ("cvat", False), ("labelstudio", True), ("yolo", False)])
def test_memory_does_not_grow(fmt, masks, tmp_path):
    "While the file grows by kilobytes with each image, the memory grows by what it takes to know a name again"
    held = []
    def stream(n):
        for i in range(n):
            if i in (10, n-1): held.append((gc.collect(), tracemalloc.get_traced_memory()[0])[1])
            yield seg(c, f"/photos/{i//10}/{i}.jpg")
    c, sizes = blobs(60, 60), []
    tracemalloc.start()
    try: to = export_annotations(stream(50), tmp_path/"out", fmt, masks, min_area=3, root="/photos")
    finally: tracemalloc.stop()
    written = sum(p.stat().st_size for p in [to, *to.rglob("*")] if p.is_file())
    assert written > 2e5 and held[1]-held[0] < written/10, (written, held)


# ---- masks and names

def test_masks_for_training_and_scores(photos, tmp_path):
    "Corrected annotations as masks: found by their photos, scored by evaluate_folders"
    c = {d: blobs(30+i, 41, seed=i) for i, d in enumerate("ab")}
    done = export_annotations([seg(c[d], photos[d]) for d in "ab"], tmp_path/"x.json", leave_out=["sky"])
    folder = read_annotations(done, labels=LabelSet(NAMES)).save(tmp_path/"masks")
    labels = label_set(folder/"labels.json")
    assert labels.names == NAMES
    found = match_masks([*photos.values()], tmp_path/"photos", folder)
    for d in "ab":
        y = _open_mask(found[photos[d]], labels).numpy()
        assert (y == np.where(c[d] == 0, 255, c[d])).all()
    pred = export_annotations([seg(c[d], photos[d]) for d in "ab"], tmp_path/"pred", "png")
    ev = evaluate_folders(pred, folder, labels=folder/"labels.json")
    assert ev.score().acc == 1 and int(ev.mats.sum()) == sum((o > 0).sum() for o in c.values())
    again = read_annotations(folder)
    assert all((again[f"{d}/street 1.png"] == np.where(c[d] == 0, 255, c[d])).all() for d in "ab")


@pytest.mark.parametrize("n", [1, 2, 3, 255])
def test_few_and_many_classes(n, tmp_path):
    "One or two classes and pixels without one are no riddle for the reader of masks; nor are 255"
    names, c = [f"class {i}" for i in range(n)], np.arange(600).reshape(20, 30)%n
    c[:3] = n-1
    item = read_annotations(export_annotations([seg(c, names=names)], tmp_path/"x", "png", leave_out=[0] if n > 1 else []))
    folder = item.save(tmp_path/"masks")
    y = _open_mask(next(folder.glob("*.png")), label_set(folder/"labels.json")).numpy()
    assert (y == np.where((c == 0) & (n > 1), 255, c)).all()


def test_more_classes_than_a_png_has():
    many = LabelSet([str(i) for i in range(300)], ignore=300)
    s = Segmentation(np.full((4, 5), 299, np.uint16), None, Image.new("RGB", (5, 4)), many)
    for fmt in ("png", "cvat-mask"):
        with pytest.raises(ValueError, match="255"): export_annotations([s], "nowhere", fmt)
    assert not Path("nowhere").exists()


class Halves:
    "A segmenter of three clusters: left, right, and a stripe below"
    labels = LabelSet(["cluster 0", "cluster 1", "cluster 2"])
    def __call__(self, f):
        w, h = Image.open(f).size
        c = np.zeros((h, w), np.uint8)
        c[:, w//2:], c[-4:] = 1, 2
        return Segmentation(c, c, Image.open(f).convert("RGB"), self.labels, f)

def test_names_from_masks(photos, tmp_path):
    "A cluster takes the name of most of its pixels, none where no class has its share, such as a fringe of another's annotation"
    y = np.full((30, 41), 255, np.uint8)
    y[:26, :20], y[:2, :20] = 0, 1 # mostly sky
    y[:, 20:] = np.arange(30)[:, None]%3 # a third each
    y[-4:] = 255
    y[-4:, :3] = 1 # a fringe of the stripe, the rest of which nobody has annotated
    marks = Annotations(LabelSet(["sky", "road", "tree"]), read_annotations(_png_folder(tmp_path/"m"/"a", y)).items)
    assert names_from_masks(Halves(), tmp_path/"photos"/"a", marks) == ["sky", "", ""]
    assert names_from_masks(Halves(), tmp_path/"photos"/"a", tmp_path/"m"/"a", share=.2)[0::2] == ["sky", ""]
    assert names_from_masks(Halves(), tmp_path/"photos"/"a", tmp_path/"m"/"a", share=.2)[1] in ("sky", "road", "tree")
    with pytest.raises(ValueError, match="no photo"): names_from_masks(Halves(), tmp_path/"photos"/"a", export_annotations([seg(DONUT)], tmp_path/"z.json"))

def _png_folder(folder, y):
    folder.mkdir(parents=True)
    Image.fromarray(y).save(folder/"street 1.png")
    (folder/"labels.json").write_text(json.dumps(LabelSet(["sky", "road", "tree"]).to_dict()))
    return folder


def test_maps_of_picie_segment(tmp_path):
    "A folder of maps with a legend of clusters can be read, too"
    seg(DONUT).save(tmp_path/"x.png")
    (tmp_path/"legend.json").write_text(json.dumps([dict(cluster=i, name=n, color="#%02x0000" % (9*i+9), share=.1) for i, n in enumerate(NAMES)]))
    back = read_annotations(tmp_path)
    assert back.labels.names == NAMES and (back[0] == DONUT).all()


@pytest.mark.parametrize("n", [255, 256, 300])
def test_many_clusters(tmp_path, n):
    "More than a byte holds, beside pixels of none"
    many = LabelSet([f"c{i}" for i in range(n)], ignore=max(255, n))
    clusters = np.kron(np.arange(n-4, n).reshape(2, 2), np.ones((6, 6), int)).astype(np.uint16)
    s = Segmentation(clusters, np.ones((12, 12), np.float16), Image.new("RGB", (12, 12)), many, tmp_path/"x.jpg")
    a = read_annotations(export_annotations([s], tmp_path/"a.json", format="coco", root=tmp_path))
    assert len(a.labels) == n and (a[0] == clusters).all()


# ---- what other tools write

def test_shapes_of_tools(tmp_path):
    "Boxes, circles, masks, parts outside the image, shapes above others; what has no area is left out with a warning"
    ten = dict(imageHeight=10, imageWidth=10, imagePath="..\\photos\\x.jpg")
    shapes = [("road", "rectangle", [[8, 9], [0, 1]]), ("sky", "polygon", [[-5, -5], [20, -5], [20, 2], [-5, 2]]), ("car", "circle", [[5, 5], [5, 7]]),
              ("pole", "line", [[0, 0], [5, 5]]), ("speck", "polygon", [[3, 3], [4, 4]])]
    (tmp_path/"x.json").write_text(json.dumps(dict(ten, shapes=[dict(label=n, shape_type=k, points=p) for n, k, p in shapes])))
    with pytest.warns(UserWarning, match="left out what has no outline: 1 line"): a = read_annotations(tmp_path, "labelme")
    assert a.names == ["x.jpg"] and a.labels.names == ["car", "road", "sky", "speck"]
    want = np.full((10, 10), 255)
    want[1:9, :8], want[:2] = 1, 2
    y, x = np.indices(want.shape)+.5
    want[(x-5)**2+(y-5)**2 < 4] = 0
    assert (a[0] != want).sum() <= 4 and (a[0][:2] == 2).all() and a[0][5, 5] == 0


def test_cvat_shapes(tmp_path):
    "Boxes, masks and the order in which they lie above each other"
    (tmp_path/"a.xml").write_text('<annotations><meta><job><labels><label><name>a</name></label><label><name>b</name></label></labels></job></meta>'
        '<image id="0" name="../up/x.jpg" width="6" height="4"><box label="b" xtl="2" ytl="0" xbr="6" ybr="2" z_order="2"/>'
        '<mask label="a" rle="1, 3, 2, 2" left="1" top="1" width="4" height="2" z_order="3"/><polygon label="a" points="0,0;6,0;6,4;0,4" z_order="1"/>'
        '<points label="a" points="1,1"/></image></annotations>')
    with pytest.warns(UserWarning, match="1 points"): a = read_annotations(tmp_path/"a.xml")
    want = np.zeros((4, 6))
    want[:2, 2:] = 1
    want[1:3, 1:5].flat[[1, 2, 3, 6, 7]] = 0
    assert (a[0] == want).all()
    assert a.save(tmp_path/"m") and (tmp_path/"m"/"up"/"x.png").exists() # and not above the folder


def test_label_studio_exports(tmp_path):
    "Corrected annotations win over predictions, the last over earlier ones; uploads lose what was put before their names"
    def result(name, x): return dict(type="rectanglelabels", original_width=10, original_height=5, value=dict(x=x, y=0, width=50, height=100, rotation=0, rectanglelabels=[name]))
    tasks = [dict(data=dict(image="/data/upload/3/0a1b2c3d-my%20photo.jpg"), predictions=[dict(result=[result("guess", 0)])],
                  annotations=[dict(result=[result("old", 0)]), dict(result=[result("a", 0), result("b", 50)]), dict(result=[], was_cancelled=True)]),
             dict(data=dict(image="s3://photos/y.jpg"), predictions=[dict(result=[result("guess", 0)])], annotations=[])]
    (tmp_path/"export.json").write_text(json.dumps(tasks))
    a = read_annotations(tmp_path/"export.json")
    assert a.names == ["my photo.jpg", "photos/y.jpg"] and a.labels.names == ["a", "b", "guess"]
    assert (a[0] == np.repeat([[0, 1]], 5, 1)).all() and (a[1] == np.repeat([[2, 255]], 5, 1)).all()


def test_coco_of_others(tmp_path):
    "Runs that are not packed, several rings, boxes without an outline, images without annotations"
    rle = coco_mask.encode(np.asfortranarray((DONUT == 1).astype(np.uint8)))
    runs = np.diff(np.flatnonzero(np.diff(np.r_[2, (DONUT == 1).T.ravel(), 2]))).tolist()
    anns = [dict(image_id=7, category_id=5, segmentation=dict(size=[9, 12], counts=runs), iscrowd=1), dict(image_id=7, category_id=9, segmentation=[[0, 0, 1, 0, 1, 1, 0, 1], [11, 0, 12, 0, 12, 1, 11, 1]]),
            dict(image_id=7, category_id=9, bbox=[0, 0, 3, 3])]
    d = dict(images=[dict(id=7, file_name="a.jpg", width=12, height=9), dict(id=8, file_name="b.jpg", width=3, height=2)],
             categories=[dict(id=9, name="two"), dict(id=5, name="one")], annotations=anns)
    (tmp_path/"x.json").write_text(json.dumps(d))
    with pytest.warns(UserWarning, match="1 box"): a = read_annotations(tmp_path/"x.json")
    want = np.where(DONUT == 1, 0, 255)
    want[0, [0, 11]] = 1
    assert a.labels.names == ["one", "two"] and (a["a.jpg"] == want).all() and (a["b.jpg"] == np.full((2, 3), 255)).all() and rle["size"] == [9, 12]


def test_geojson_of_others(photos, tmp_path):
    "Several parts, a bare list of features, no size: that of the photo"
    square = lambda x: [[[x, 0], [x+2, 0], [x+2, 2], [x, 2], [x, 0]]]
    d = [dict(type="Feature", geometry=dict(type="MultiPolygon", coordinates=[square(0), square(5)]), properties=dict(classification=dict(name="a")))]
    (tmp_path/"g").mkdir()
    (tmp_path/"g"/"street 1.geojson").write_text(json.dumps(d))
    with pytest.raises(ValueError, match="give images"): read_annotations(tmp_path/"g")[0]
    y = read_annotations(tmp_path/"g", images=photos["a"].parent)[0]
    assert y.shape == (30, 41) and (y == 0).sum() == 8 and (y[:2, [0, 1, 5, 6]] == 0).all()


def test_geojson_with_heights(tmp_path):
    "A third number of a position is no corner"
    ring = [[1, 1, 300.5], [4, 1, 301], [4, 3, 2], [1, 3, 7], [1, 1, 300.5]]
    d = dict(type="FeatureCollection", width=6, height=5, features=[dict(type="Feature", geometry=dict(type="Polygon", coordinates=[ring]), properties=dict(name="a"))])
    (tmp_path/"x.geojson").write_text(json.dumps(d))
    want = np.full((5, 6), 255)
    want[1:3, 1:4] = 0
    assert (read_annotations(tmp_path)[0] == want).all()


@pytest.mark.parametrize("name, text", [("x.json", "{"), ("x.json", "{}"), ("x.json", "[1]"), ("x.json", '{"images": [], "categories": 3, "annotations": []}'), ("x.xml", "<a"), ("x.xml", "<annotations/>"),
                                        ("x.zip", "no zip"), ("x.json", '{"images": [{"id": 1}], "categories": [], "annotations": []}')])
def test_broken_files(name, text, tmp_path):
    "One sentence that names the file"
    (tmp_path/name).write_text(text)
    with pytest.raises(ValueError, match="x\\."): list(read_annotations(tmp_path/name))


def coco_file(tmp_path, size=(4, 3), **ann):
    d = dict(images=[dict(id=1, file_name="../../up.jpg", width=size[0], height=size[1])], categories=[dict(id=1, name="a")], annotations=[dict(image_id=1, category_id=1, **ann)])
    (tmp_path/"x.json").write_text(json.dumps(d))
    return tmp_path/"x.json"

@pytest.mark.parametrize("segmentation", [dict(size=[3, 4], counts=[2**62, 2**62, 12]), dict(size=[3, 4], counts=[-1, 13]), dict(size=[3, 4], counts="ooooo0"), dict(size=[9, 9], counts=[81]),
                                          [["a", 0, 1, 1, 2, 2]], [[0, 0, 1, 1, float("nan"), 2]], dict(size=[3, 4]), [[0, 0, 1]], 7])
def test_hostile_shapes(segmentation, tmp_path):
    "Runs that take memory, sizes that do not fit, corners that are no numbers: one sentence"
    with pytest.raises(ValueError, match="up.jpg|x.json"): read_annotations(coco_file(tmp_path, segmentation=segmentation))[0]


def test_hostile_sizes_and_names(tmp_path):
    far = read_annotations(coco_file(tmp_path, segmentation=[[-1e300, -1e300, 1e300, -1e300, 1e300, 1e300, -1e300, 1e300]]))
    assert (far[0] == 0).all() and far.save(tmp_path/"deep"/"m") and (tmp_path/"deep"/"m"/"up.png").exists() and not (tmp_path/"up.png").exists()
    for size in ((10**6, 10**6), (0, 3), ("4", 3), (-2, -2)):
        with pytest.raises(ValueError, match="up.jpg"): read_annotations(coco_file(tmp_path, size=size, segmentation=[[0, 0, 1, 1, 0, 1]]))[0]
    with zipfile.ZipFile(tmp_path/"b.zip", "w", zipfile.ZIP_DEFLATED) as z: z.writestr("../../x.json", b" "*200_000_000)
    with pytest.raises(ValueError, match="far more"): read_annotations(tmp_path/"b.zip")
    (tmp_path/"x.json").write_text("["*100_000)
    with pytest.raises(ValueError, match="x.json"): read_annotations(tmp_path/"x.json")
    task = dict(data=dict(image="y.jpg"), annotations=[dict(result=[dict(type="brushlabels", original_width=4, original_height=3, value=dict(rle=[255, 255, 255, 255, 0, 0, 0], brushlabels=["a"]))])])
    (tmp_path/"x.json").write_text(json.dumps([task]))
    with pytest.raises(ValueError, match="y.jpg"): read_annotations(tmp_path/"x.json")[0]


def test_command(photos, tmp_path):
    "LabelMe's files beside the photos, a COCO file of any name, a zip; a broken photo is told, and costs the exit code only"
    import torch
    from picie_nb.backbone import create_backbone
    from picie_nb.cli import picie_segment
    from picie_nb.fpn import PiCIENet
    from picie_nb.segmenter import Segmenter
    torch.manual_seed(0)
    for i, f in enumerate(photos.values()): Image.fromarray(np.random.default_rng(i).integers(0, 255, (40, 50, 3), np.uint8)).save(f)
    model = str(Segmenter(PiCIENet(create_backbone("resnet18", pretrained=False), 16), torch.randn(3, 16), size=32, names={0: "sky, blue"}).save(tmp_path/"m.safetensors"))
    (tmp_path/"photos"/"broken.jpg").write_bytes(b"")
    maps = {d: Segmenter.load(model)(f).clusters for d, f in photos.items()}
    for out, fmt in (("photos", "labelme"), ("my.json", "coco"), ("v.zip", "cvat-mask"), ("deep/er", "cvat"), ("p", "png")):
        assert picie_segment(model, str(tmp_path/"photos"), out=str(tmp_path/out), format=fmt, quiet=True) == 1
        to = dict(cvat="deep/er/annotations.xml").get(fmt, out)
        back = read_annotations(tmp_path/to, fmt, images=tmp_path/"photos", labels=["sky, blue", "cluster 1", "cluster 2"])
        assert sorted(f.parent.name for f in back.files) == ["a", "b"]
        for f, y in zip(back.files, back): assert (y == maps[f.parent.name]).all()
    assert (tmp_path/"photos"/"a"/"street 1.json").exists() and photos["a"].exists()
    picie_segment(model, *map(str, photos.values()), out=str(tmp_path/"two.json"), format="coco", leave_out="1,cluster 2", quiet=True)
    assert read_annotations(tmp_path/"two.json").names == ["a/street 1.png", "b/street 1.png"]


@pytest.mark.parametrize("kw, says", [(dict(format="voc"), "known: coco"), (dict(format="yolo", masks=True), "polygons only"), (dict(masks=True, tolerance=1), "exact"), (dict(tolerance=-1), "0 or more"),
                                      (dict(leave_out="sea"), "No cluster 'sea'"), (dict(leave_out="²"), "No cluster '²'"), (dict(leave_out=NAMES), "all clusters"), (dict(root="/elsewhere"), "does not lie in"), (dict(format="png", tolerance=1), "exact")])
def test_mistakes(kw, says, photos, tmp_path):
    with pytest.raises(ValueError, match=says): export_annotations([seg(DONUT, photos["a"])], tmp_path/"out", **kw)
    assert not [p for p in tmp_path.rglob("out*") if p.is_file()]


def test_names_that_collide(photos, tmp_path):
    "From a generator, photos are known by their own names: two of one name are refused, unless there is a root"
    both = lambda: (seg(DONUT, photos[d]) for d in "ab")
    with pytest.raises(ValueError, match="two photos are called street 1.png: give root="): export_annotations(both(), tmp_path/"x.json")
    export_annotations(both(), tmp_path/"x.json", root=tmp_path/"photos")
    assert read_annotations(tmp_path/"x.json").names == ["a/street 1.png", "b/street 1.png"]
    twins = [seg(DONUT, photos["a"]), seg(DONUT, photos["a"].with_suffix(".jpg"))]
    with pytest.raises(ValueError, match="two photos would be written to labels/train/street 1.txt"): export_annotations(twins, tmp_path/"y", "yolo")
    with pytest.raises(ValueError, match="which labels do not"): read_annotations(tmp_path/"x.json", labels=["sky", "road"])[0]


def test_without_the_libraries():
    "What is missing is named, with the command that brings it"
    code = ("import sys; sys.modules['shapely'] = None\nfrom picie_nb.use.annotations import export_annotations\n"
            "try: export_annotations([], 'x.json')\nexcept ImportError as e: print(e)")
    res = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert 'pip install "picie_nb[annotations]"' in res.stdout, res.stderr


# ---- the tools' own readers, where they are installed

def tool(name, why="not in the dev extra: it is large"): return pytest.importorskip(name, reason=f"{name} is not installed ({why})")

def shown(photos, fmt, masks, out, **kw):
    "Two images of ragged regions, exported; {folder: clusters}"
    c = {}
    for i, d in enumerate("ab"):
        c[d] = blobs(30+i, 41, seed=i)
        Image.fromarray(c[d]).save(photos[d])
    export_annotations([seg(c[d], photos[d]) for d in "ab"], out, fmt, masks, **kw)
    return c

def painted(item, shape, label_of):
    "Map of the masks and polygons of an item of datumaro"
    res = np.full(shape, 255)
    for a in item.annotations:
        if a.type.name == 'bbox': continue
        m = a.image if hasattr(a, "image") else coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects([list(map(float, a.points))], *shape)))
        res[np.asarray(m) > 0] = label_of(a)
    return res

@pytest.mark.parametrize("fmt, masks, importer", [("cvat", False, "cvat"), ("cvat", True, "cvat"), ("coco", False, "coco_instances"), ("coco", True, "coco_instances"), ("cvat-mask", False, "voc_segmentation")])
def test_datumaro(fmt, masks, importer, photos, tmp_path):
    "CVAT's own library reads its formats, and COCO, as they were meant"
    dm = tool("datumaro")
    out = dict(cvat=tmp_path/"d"/"annotations.xml", coco=tmp_path/"d"/"annotations"/"instances_default.json").get(fmt, tmp_path/"d")
    c = shown(photos, fmt, masks, out)
    place = tmp_path/"d"/{"cvat": "images", "coco": "images/default", "cvat-mask": "JPEGImages"}[fmt]
    for d in "ab":
        (place/d).mkdir(parents=True)
        (place/d/"street 1.png").write_bytes(photos[d].read_bytes())
    data = dm.Dataset.import_from(str(tmp_path/"d"), importer)
    names = [o.name for o in data.categories()[dm.AnnotationType.label]]
    assert {*NAMES} <= {*names} and len(data) == 2
    for item in data:
        d = item.id.split("/")[0]
        assert (painted(item, c[d].shape, lambda a: NAMES.index(names[a.label])) == c[d]).all()


def test_supervision_reads_yolo(photos, tmp_path):
    sv = tool("supervision")
    c = shown(photos, "yolo", False, tmp_path/"y")
    for d in "ab":
        data = sv.DetectionDataset.from_yolo(str(photos[d].parent), str(tmp_path/"y"/"labels"/"train"/d), str(tmp_path/"y"/"data.yaml"), force_masks=True)
        assert data.classes == NAMES and len(data) == 1
        _, _, found = data[0]
        pieces, of = _pieces(c[d])
        assert len(found) == len(of) and sorted(found.class_id) == sorted(of)
        for m, k in zip(found.mask, found.class_id): # drawn with OpenCV, which paints the outline, too
            own = [pieces == i for i in np.unique(pieces[m & (c[d] == k)])]
            assert any(m[o].all() and binary_dilation(o, np.ones((3, 3)))[m].all() for o in own)


def test_label_studio_brush(photos, tmp_path):
    if not (sdk := importlib.util.find_spec("label_studio_sdk")): pytest.skip("label_studio_sdk is not installed (not in the dev extra: it is large)")
    spec = importlib.util.spec_from_file_location("brush", Path(sdk.origin).parent/"converter"/"brush.py") # alone, without what its neighbours import
    brush = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(brush)
    c = shown(photos, "labelstudio", True, tmp_path/"l")
    for task, d in zip(json.loads((tmp_path/"l"/"tasks.json").read_text()), "ab"):
        seen = np.full(c[d].shape, 255)
        for r in task["predictions"][0]["result"]:
            m = brush.decode_rle(r["value"]["rle"]).reshape(*c[d].shape, 4)[..., 3] > 0
            seen[m] = NAMES.index(r["value"]["brushlabels"][0])
        assert (seen == c[d]).all()
        m = (c[d] == 1).astype(np.uint8)*255
        assert (_unbrush(brush.mask2rle(m)).reshape(*m.shape, 4)[..., 0] == m).all()


def test_label_studio_brush_by_hand():
    "Five pixels, the first and the last two painted: the bytes that Label Studio's own encoder gives"
    assert _brush([0, 1, 2, 2]) == BRUSH and (_unbrush(BRUSH)[3::4] == [255, 0, 0, 255, 255]).all()

BRUSH = [0, 0, 0, 20, 57, 27, 252, 127, 243, 128, 79, 254]


def test_labelme_schema(photos, tmp_path):
    "The keys and types that LabelMe asks for, for polygons and masks"
    for masks in (False, True):
        c = shown(photos, "labelme", masks, tmp_path/f"{masks}")
        d = json.loads((tmp_path/f"{masks}"/"a"/"street 1.json").read_text())
        assert set(d) == {"version", "flags", "shapes", "imagePath", "imageData", "imageHeight", "imageWidth"} and (d["imageHeight"], d["imageWidth"]) == c["a"].shape
        for o in d["shapes"]:
            assert set(o) == {"label", "points", "group_id", "shape_type", "flags", "description", "mask"} and isinstance(o["label"], str)
            assert all(len(p) == 2 and all(isinstance(v, (int, float)) for v in p) for p in o["points"])
            if masks: # of just the size that its two corners say
                (l, t), (r, b) = o["points"]
                m = np.asarray(Image.open(io.BytesIO(__import__("base64").b64decode(o["mask"]))))
                assert o["shape_type"] == "mask" and m.shape == (b-t+1, r-l+1) and (c["a"][t:b+1, l:r+1][m.astype(bool)] == NAMES.index(o["label"])).all()
            else: assert o["shape_type"] == "polygon" and len(o["points"]) > 3


@pytest.mark.parametrize("masks", [False, True])
def test_labelme_reads_what_was_written(masks, photos, tmp_path):
    "Its own reader finds the photo, and its own painter the clusters"
    LabelFile, utils = tool("labelme", "not in the dev extra: it brings a graphical interface").LabelFile, tool("labelme").utils
    c = shown(photos, "labelme", masks, tmp_path/"out")
    for d, y in c.items():
        f = LabelFile(str(tmp_path/"out"/d/"street 1.json"))
        assert Image.open(io.BytesIO(f.imageData)).size == y.shape[::-1]
        named = {n: i+1 for i, n in enumerate(NAMES)}
        painted, _ = utils.shapes_to_label(y.shape, f.shapes, named)
        right = (painted == y+1).mean()
        assert right == 1 if masks else right > .8 # it paints the corners of polygons, too: half a pixel more on two sides


def test_files_that_are_read_by_tools_of_text(photos, tmp_path):
    "YAML and XML keep quotes, commas and other alphabets"
    import yaml
    import xml.etree.ElementTree as ET
    shown(photos, "yolo", False, tmp_path/"y", leave_out=["sky"])
    assert list(yaml.safe_load((tmp_path/"y"/"data.yaml").read_text())["names"].values()) == NAMES[1:]
    assert (tmp_path/"y"/"train.txt").read_text().splitlines() == ["./images/train/a/street 1.png", "./images/train/b/street 1.png"]
    shown(photos, "labelstudio", False, tmp_path/"l")
    assert [o.get("value") for o in ET.parse(tmp_path/"l"/"config.xml").iter("Label")] == NAMES
    shown(photos, "cvat-mask", False, tmp_path/"v.zip")
    with zipfile.ZipFile(tmp_path/"v.zip") as z:
        assert sorted(z.namelist()) == ["ImageSets/Segmentation/default.txt", "SegmentationClass/a/street 1.png", "SegmentationClass/b/street 1.png", "labelmap.txt"]
        assert z.read("labelmap.txt").decode().splitlines()[1:3] == ["background:0,0,0::", "sky:%d,%d,%d::" % tuple(LabelSet(NAMES).palette[0])]


@ways
def test_photos_that_are_called_alike(fmt, masks, tmp_path):
    "In a folder that is called as YOLO's split, beside one of another ending, or with accents of another machine: each is found, alone, too"
    photos = tmp_path/"photos"
    files = [photos/f for f in ("x.jpg", "train/x.jpg", "train/train/x.jpg", "y/\u00fc.jpg", "y/u\u0308.jpg", "z/x.bmp")]
    for i, f in enumerate(files):
        f.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((4, 5+i, 3), np.uint8)).save(f)
    segs = [seg(np.full((4, 5+i), i%4), f) for i, f in enumerate(files)]
    for name, some in [("all", segs), *((str(i), [s]) for i, s in enumerate(segs))]:
        back = read_annotations(export_annotations(some, tmp_path/name, fmt, masks, root=photos), images=photos, labels=LabelSet(NAMES))
        assert {f: (y.shape, y[0, 0]) for f, y in zip(back.files, back)} == {s.source: (s.clusters.shape, s.clusters[0, 0]) for s in some}
    named = names_from_masks(Halves(), photos, back) # of the last, whose shape no other photo has
    assert named == ["", "", NAMES[5%4]]


def test_yolo_tells_endings(tmp_path):
    "Of two photos of one stem the one that train.txt names"
    for f in ("x.jpg", "x.png"): Image.fromarray(np.zeros((6, 7, 3), np.uint8)).save(tmp_path/f)
    for f in ("x.jpg", "x.png"):
        back = read_annotations(export_annotations([seg(np.zeros((6, 7)), tmp_path/f)], tmp_path/f"y{f[-3:]}", "yolo"), images=tmp_path)
        assert back.files == [tmp_path/f]


@ways
def test_names_that_are_no_text(fmt, masks, photos, tmp_path):
    "A photo whose name is not UTF-8 is named and to be renamed, before anything is written; PNGs can have such names"
    source = photos["a"].with_name(os.fsdecode(b"\xe9.png"))
    try: photos["a"].rename(source)
    except OSError: pytest.skip("this disk knows UTF-8 only")
    if fmt == "png":
        back = read_annotations(export_annotations([seg(DONUT, source)], tmp_path/"photos"/"out", fmt), images=tmp_path/"photos")
        assert back.files == [source] and (back[0] == DONUT).all()
    before = {*tmp_path.rglob("*")}
    for out in ("out", "out.zip"):
        if (fmt, out) == ("png", "out") or out == "out.zip" and _FORMATS[fmt].ending: continue
        with pytest.raises(ValueError, match=r"\\udce9.png': these files need names in UTF-8, rename it"): export_annotations([seg(DONUT, photos["b"]), seg(DONUT, source)], tmp_path/out, fmt, masks)
        assert {*tmp_path.rglob("*")}-{tmp_path/"out"} == before


@pytest.mark.parametrize("fmt", ["cvat", "cvat-mask", "labelstudio"])
@pytest.mark.parametrize("name", ["a\nb", " a", "a ", "a\x01", "\ta", "a\x85b", "#a", "a:b"])
def test_classes_that_are_no_line(name, fmt, tmp_path):
    if fmt != "cvat-mask" and name in ("#a", "a:b"): return
    with pytest.raises(ValueError, match="has no room for"): export_annotations([seg(DONUT, names=["x", name, "y", "z"])], tmp_path/"out", fmt)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


@pytest.mark.parametrize("greys", [[0, 255], [3, 2, 1, 0], [255, 0, 1]], ids=str)
def test_grey_classes_are_numbers(greys, tmp_path):
    "The library's own maps of grey classes, with pixels of none, too"
    names = NAMES[:len(greys)]
    c = blobs(20, 30, k=len(greys))
    s = Segmentation(c, c, Image.fromarray(c).convert("RGB"), LabelSet(names, [[g]*3 for g in greys]), tmp_path/"x.jpg")
    assert (read_annotations(export_annotations([s], tmp_path/"a", "png"))[0] == c).all()
    part = read_annotations(export_annotations([s], tmp_path/"b", "png", leave_out=[0]))
    assert (part[0] == np.where(c == 0, 255, c)).all()
    assert (read_annotations(part.save(tmp_path/"c"))[0] == part[0]).all()


def test_endings_in_capitals(photos, tmp_path):
    for fmt in ("labelme", "png"):
        to = export_annotations([seg(DONUT, photos["a"])], tmp_path/f"{fmt}.ZIP", fmt)
        assert zipfile.is_zipfile(to) and (read_annotations(to, labels=LabelSet(NAMES))[0] == DONUT).all()
    with zipfile.ZipFile(tmp_path/"labelme.ZIP") as z: assert json.loads(z.read("street 1.json"))["imagePath"] == "street 1.png"
    with pytest.raises(ValueError, match="folder of files"): export_annotations([seg(DONUT, photos["a"])], tmp_path/"x.JSON", "labelme")


@pytest.mark.parametrize("other", ["labelme", "geojson"])
def test_coco_beside_others(other, photos, tmp_path):
    "The file by which a folder is known is the one that is read"
    for fmt, c in ((other, DONUT.T), ("coco", DONUT)): export_annotations([seg(c, photos[d], NAMES) for d in "ab"], tmp_path/"out", fmt)
    for fmt in (None, "coco"): assert (read_annotations(tmp_path/"out", fmt)[0] == DONUT).all()
    (tmp_path/"out"/"annotations.json").rename(tmp_path/"out"/"mine.json")
    if other == "labelme":
        with pytest.raises(ValueError, match="there are 3 files"): read_annotations(tmp_path/"out", "coco")


def test_two_photos_of_one_stem(tmp_path):
    files = [tmp_path/"x.jpg", tmp_path/"x.png", tmp_path/"y.png"]
    for f in files: Image.fromarray(np.zeros((6, 7, 3), np.uint8)).save(f)
    segs = [seg(np.full((6, 7), i), f) for i, f in enumerate(files)]
    for fmt, kw in (("coco", {}), ("cvat", {})):
        got = read_annotations(export_annotations(segs, tmp_path/f"out-{fmt}", fmt, **kw), images=tmp_path)
        assert {Path(f).name: int(m[0, 0]) for f, m in zip(got.files, got)} == {"x.jpg": 0, "x.png": 1, "y.png": 2}


def test_cvat_mask_has_one_background(tmp_path):
    with pytest.raises(ValueError, match="calls background what has no class"):
        export_annotations([seg(DONUT, names=["background", "b", "c", "d"])], tmp_path/"out", "cvat-mask")


# ---- what would be read wrongly, in silence

def test_classes_go_by_name(tmp_path):
    "Labels in another order, or with more classes: PNGs, too, say what their numbers mean"
    y = blobs(12, 15)
    to = export_annotations([seg(y, "a.png", ["sky", "road", "tree", "sea"])], tmp_path/"out", "png")
    for names in (["road", "sea", "tree", "sky"], ["water", "sky", "road", "tree", "sea"]):
        assert np.array_equal(np.array(names)[read_annotations(to, labels=names)[0]], np.array(["sky", "road", "tree", "sea"])[y])
    with pytest.raises(ValueError, match="has the class 'sea', which labels do not"): read_annotations(to, labels=["sky", "road", "tree"])[0]

@pytest.mark.parametrize("names, says", [("{1: road, 0: sky}", "road"), ("[sky, road]", "road"), ("{1: sky, 2: road}", "sky"), ("{0: sky, 2: road}", None)])
def test_numbers_of_yolo(tmp_path, names, says):
    "Class 1 is what the file calls 1, in whatever order"
    (tmp_path/"labels").mkdir()
    (tmp_path/"data.yaml").write_text(f"names: {names}")
    (tmp_path/"README.dataset.txt").write_text("Provided by somebody")
    (tmp_path/"labels"/"a.txt").write_text("1 0 0 1 0 1 1 0 1")
    Image.new("RGB", (8, 6)).save(tmp_path/"a.png")
    read = lambda: read_annotations(tmp_path, "yolo", images=tmp_path)
    if says is None:
        with pytest.raises(ValueError, match="cannot be read"): read()
    else: assert {read().labels.names[c] for c in np.unique(read()[0])} == {says}

def test_corners_far_outside(tmp_path):
    "An outline is cut at the image's surroundings; its edges stay straight"
    for ring in ([(0, 0), (100, 50), (0, 50)], [(0, 0), (40, 20), (0, 20)], [(0, 0), (19, 9.5), (0, 19)], [(-1e6, -5e5), (1e6, 5e5), (-1e6, 5e5)]):
        where, m = _filled([ring], 10, 10)
        got = np.zeros((10, 10), bool); got[where] = m
        i, j = np.mgrid[:10, :10]+.5
        off = i-j/2 # all four lie below this edge
        assert got[off > 1].all() and not got[off < -1].any()

def test_two_annotations_have_not_one_photo(photos, tmp_path):
    "Of one name in two folders: the mask of another folder's photo is not laid on this one"
    to = export_annotations([seg(blobs(30, 41), photos["a"]), seg(blobs(31, 41), photos["b"])], tmp_path/"c.json", root=tmp_path/"photos")
    assert read_annotations(to, images=tmp_path/"photos").files == [photos["a"], photos["b"]]
    assert read_annotations(to, images=tmp_path/"photos"/"b").files == [None, photos["b"]]

def test_numbers_to_leave_out(tmp_path):
    "After merging, a number may mean two clusters"
    s = seg(np.zeros((4, 4)), "a.png", ["road", "cluster 2", "cluster 3"])
    with pytest.raises(ValueError, match="leave_out: 2 may be 'cluster 2' or number 2, 'cluster 3': give the name"): export_annotations([s], tmp_path/"c.json", leave_out=2)

def test_stopped_while_it_replaces(tmp_path, monkeypatch):
    "New maps are never read by the old table"
    names = ["sky", "road"]
    export = lambda names: export_annotations([seg(np.zeros((4, 4)), f"{o}.png", names) for o in "abc"], tmp_path/"out", "png")
    export(names)
    move, left = os.replace, [4]
    def some(*a):
        left[0] -= 1
        if left[0] < 0: raise KeyboardInterrupt
        return move(*a)
    monkeypatch.setattr(os, "replace", some)
    with pytest.raises(KeyboardInterrupt): export(names[::-1])
    monkeypatch.undo()
    with pytest.raises(ValueError): read_annotations(tmp_path/"out", "png")
    assert (tmp_path/"out"/"a.png").exists()

def test_colours_and_fields_of_other_tools(tmp_path):
    "Names of colours; an id beside the photo; an annotation of no image"
    task = dict(data=dict(id="abc", photo="/data/upload/1/a.png"), annotations=[dict(result=[dict(type="polygonlabels", original_width=8, original_height=6, value=dict(points=[[0, 0], [100, 0], [100, 100]], polygonlabels=["sky"]))])])
    (tmp_path/"tasks.json").write_text(json.dumps([task]))
    (tmp_path/"config.xml").write_text('<View><PolygonLabels name="l" toName="i"><Label value="sky" background="green"/></PolygonLabels></View>')
    a = read_annotations(tmp_path, "labelstudio")
    assert a.names == ["a.png"] and a.labels.palette.tolist() == [[0, 128, 0]]
    d = dict(images=[dict(id=1, file_name="a.png", width=8, height=6)], categories=[dict(id=1, name="sky", color="a shade of red")], annotations=[dict(image_id=1, category_id=1, segmentation=[[0, 0, 8, 0, 8, 6]])])
    (f := tmp_path/"c.json").write_text(json.dumps(d))
    assert read_annotations(f).labels.names == ["sky"]
    d["annotations"][0]["image_id"] = 2
    f.write_text(json.dumps(d))
    with pytest.raises(ValueError, match="annotates image 2, which is not among its images"): read_annotations(f)
