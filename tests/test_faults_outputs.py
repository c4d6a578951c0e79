"What is written: nothing of somebody else's is replaced, nothing is read by the names of another model, a full disk is told"
import errno, json, threading
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from picie_nb.backbone import create_backbone
from picie_nb.cli import picie_segment
from picie_nb.data.folders import ToyScenes, match_masks
from picie_nb.data.labels import label_set
from picie_nb.fpn import PiCIENet
from picie_nb.segmenter import Segmenter
import picie_nb.all, picie_nb.segmenter as segmenter


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    "Three photos, two models of equal names and colours"
    root = tmp_path_factory.mktemp("outputs")
    ToyScenes(n=3, size=48, seed=0).save(root)
    torch.manual_seed(0)
    net = PiCIENet(create_backbone("test_efficientnet", pretrained=False), 16).eval()
    for name in ("a", "b"): Segmenter(net, torch.randn(4, 16), size=32).save(root/f"{name}.safetensors")
    return root


def segment(model, *paths, **kw): return picie_segment(str(model), *map(str, paths), quiet=True, **kw)
def made_by(out): return {o["model"] for o in json.loads((out/"legend.json").read_text())}


def test_photo_that_cannot_be_read_again(world, photos, tmp_path):
    "Its map was made by another model: it does not stay beside the new legend"
    out = tmp_path/"out"
    assert segment(world/"a.safetensors", photos, out=str(out)) == 0 and (out/"1.png").exists()
    (photos/"1.png").write_bytes((photos/"1.png").read_bytes()[:60])
    (out/"1.overlay.jpg").write_text("mine")
    assert segment(world/"b.safetensors", photos, out=str(out)) == 1
    assert sorted(f.name for f in out.glob("*.png")) == ["0.png", "2.png"] and (out/"1.overlay.jpg").exists()


def test_stopped_before_the_end(world, photos, tmp_path, monkeypatch):
    "The legend is there before the first map, so that what follows knows whose maps these are"
    out, save = tmp_path/"out", segmenter.Segmentation.save
    def stop(self, path):
        if Path(path).name == "1.png": raise KeyboardInterrupt
        return save(self, path)
    with monkeypatch.context() as m:
        m.setattr(segmenter.Segmentation, "save", stop)
        with pytest.raises(KeyboardInterrupt): segment(world/"a.safetensors", photos, out=str(out))
    assert [f.name for f in out.glob("*.png")] == ["0.png"]
    with pytest.raises(ValueError, match="another model has made, such as 0.png"): segment(world/"b.safetensors", photos/"2.png", out=str(out))
    first = made_by(out)
    with monkeypatch.context() as m: # another model over all of them, stopped as well
        m.setattr(segmenter.Segmentation, "save", stop)
        with pytest.raises(KeyboardInterrupt): segment(world/"b.safetensors", photos, out=str(out))
    assert made_by(out) != first and [f.name for f in out.glob("*.png")] == ["0.png"]


def test_files_of_somebody_else(world, photos, tmp_path):
    out = tmp_path/"out"
    for name in ("0.overlay.jpg", "0.png"):
        out.mkdir(exist_ok=True)
        Image.new("RGB", (9, 9)).save(out/name)
        was = (out/name).read_bytes()
        with pytest.raises(ValueError, match="would take the place of"): segment(world/"a.safetensors", photos, out=str(out), overlay=True)
        assert (out/name).read_bytes() == was
        (out/name).unlink()
    for name, text in {"legend.json": "{}", "manifest.json": "[1]"}.items():
        (out/name).write_text(text)
        with pytest.raises(ValueError, match=f"{name} is not from picie-segment"): segment(world/"a.safetensors", photos, out=str(out))
        assert (out/name).read_text() == text and not list(out.glob("*.png"))
        (out/name).unlink()


def test_maps_of_somebody_else(world, photos, tmp_path):
    pytest.importorskip("rasterio", reason="maps need rasterio")
    out, kw = tmp_path/"out", dict(geo=True, polygons=0)
    out.mkdir()
    (out/"0.geojson").write_text("mine")
    assert segment(world/"a.safetensors", photos/"0.png", out=str(out), **kw) == 1 and (out/"0.geojson").read_text() == "mine"
    (out/"0.geojson").unlink()
    for _ in range(2): assert segment(world/"a.safetensors", photos/"0.png", out=str(out), **kw) == 0 # its own it replaces
    Image.new("F", (9, 9)).save(out/"1.tif")
    was = (out/"1.tif").read_bytes()
    assert segment(world/"a.safetensors", photos/"1.png", out=str(out), **kw) == 1 and (out/"1.tif").read_bytes() == was


def test_films_of_somebody_else(world, photos, tmp_path):
    av = pytest.importorskip("av", reason="videos need PyAV")
    with av.open(str(tmp_path/"clip.mp4"), "w") as box:
        stream = box.add_stream("libx264", rate=5)
        stream.width = stream.height = 48
        stream.pix_fmt = "yuv420p"
        for i in range(3): box.mux(stream.encode(av.VideoFrame.from_image(Image.new("RGB", (48, 48), (80*i, 0, 0)))))
        box.mux(stream.encode())
    out, film = tmp_path/"out", tmp_path/"clip.mp4"
    assert segment(world/"a.safetensors", photos, out=str(out)) == 0
    with pytest.raises(ValueError, match="another model has made, such as 0.png"): segment(world/"b.safetensors", film, out=str(out))
    (out/"clip.overlay.mp4").write_text("mine")
    with pytest.raises(ValueError, match="would take the place of"): segment(world/"a.safetensors", film, out=str(out), overlay=True)
    assert (out/"clip.overlay.mp4").read_text() == "mine"
    (out/"clip.overlay.mp4").unlink()
    for _ in range(2): assert segment(world/"a.safetensors", film, out=str(out), overlay=True) == 0
    (out/"clip"/"000000.png").write_bytes((photos/"0.png").read_bytes())
    with pytest.raises(ValueError, match="would take the place of"): segment(world/"a.safetensors", film, out=str(out))


def test_maps_of_a_longer_film(world, photos, tmp_path):
    "Of an earlier film of the same name no maps stay; maps of photos do"
    av = pytest.importorskip("av", reason="videos need PyAV")
    out, film = tmp_path/"out", tmp_path/"clip.mp4"
    def record(n):
        with av.open(str(film), "w") as box:
            stream = box.add_stream("libx264", rate=5)
            stream.width = stream.height = 48
            stream.pix_fmt = "yuv420p"
            for i in range(n): box.mux(stream.encode(av.VideoFrame.from_image(Image.new("RGB", (48, 48), (40*i, 0, 0)))))
            box.mux(stream.encode())
        assert segment(world/"a.safetensors", film, out=str(out), every=1) == 0
        return sorted(f.name for f in (out/"clip").iterdir())
    (photos/"clip").mkdir()
    (photos/"0.png").rename(photos/"clip"/"000004.png"), (photos/"1.png").rename(photos/"clip"/"x.png")
    assert segment(world/"a.safetensors", photos, out=str(out)) == 0
    assert record(6) == [f"{i:06}.png" for i in range(6)]+["x.png"]
    (out/"clip"/"notes.txt").write_text("mine")
    assert record(2) == ["000000.png", "000001.png", "000004.png", "notes.txt", "x.png"]
    film.write_text("no film")
    assert segment(world/"a.safetensors", film, out=str(out), every=1) == 1 and (out/"clip"/"000001.png").exists()


def test_parts_of_another_folder(world, photos, tmp_path):
    "A photo of the same name is another photo; a folder that was moved is not"
    other, out = tmp_path/"other", str(tmp_path/"out")
    segment(world/"a.safetensors", photos, out=out, shard="1/1")
    other.mkdir()
    Image.new("RGB", (60, 40)).save(other/"1.png")
    with pytest.raises(ValueError, match="the map of another photo"): segment(world/"a.safetensors", other, out=out, shard="1/1")
    photos.rename(tmp_path/"moved")
    assert segment(world/"a.safetensors", tmp_path/"moved", out=out, shard="1/1") == 0


def test_full_disk(world, photos, tmp_path, monkeypatch):
    "Pillow and GDAL do not always notice: an overlay and a map are whole or not there"
    write = Path.write_bytes
    def full(self, data):
        write(self, data[:100])
        raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError): segment(world/"a.safetensors", photos/"0.png", out=str(tmp_path/"out"), overlay=True)
    assert not list((tmp_path/"out").glob("*.jpg")) and not list((tmp_path/"out").glob(".*"))


def test_map_that_was_cut_off(world, photos, tmp_path, monkeypatch):
    pytest.importorskip("rasterio", reason="maps need rasterio")
    from picie_nb.use import large
    seg, out = Segmenter.load(world/"a.safetensors"), tmp_path/"map.tif"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 300, 3), dtype=np.uint8)).save(tmp_path/"m.tif")
    large.segment_raster(seg, tmp_path/"m.tif", out, progress=False)
    was, check = out.read_bytes(), large._check_written
    def cut(path): # as GDAL leaves a file on a full disk
        Path(path).write_bytes(Path(path).read_bytes()[:400])
        check(path)
    monkeypatch.setattr(large, "_check_written", cut)
    with pytest.raises(OSError, match="could not be written whole"): large.segment_raster(seg, tmp_path/"m.tif", out, progress=False)
    assert out.read_bytes() == was and not list(tmp_path.glob(".*"))


def test_long_name(world, tmp_path):
    "As long as a disk allows"
    (tmp_path/"photos").mkdir()
    name = "写"*81
    Image.new("RGB", (40, 30)).save(tmp_path/"photos"/f"{name}.jpg")
    assert segment(world/"a.safetensors", tmp_path/"photos", out=str(tmp_path/"out")) == 0 and (tmp_path/"out"/f"{name}.png").exists()


def test_threads_save_to_one_file(world, tmp_path):
    seg, wrong = Segmenter.load(world/"a.safetensors"), []
    def save():
        try: seg.save(tmp_path/"m.safetensors")
        except OSError as e: wrong.append(e)
    threads = [threading.Thread(target=save) for _ in range(8)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert not wrong and Segmenter.load(tmp_path/"m.safetensors")


def test_network_left_in_training(world, photos):
    "Looking at features neither depends on the mode of the network nor changes its statistics"
    seg = Segmenter.load(world/"a.safetensors")
    want = picie_nb.all.similar(seg, photos/"0.png", (10, 10)).heat
    seg.net.train()
    was = {k: v.clone() for k, v in seg.net.state_dict().items()}
    assert np.array_equal(picie_nb.all.similar(seg, photos/"0.png", (10, 10)).heat, want)
    assert all(torch.equal(v, was[k]) for k, v in seg.net.state_dict().items())


def test_double_precision(world):
    seg, x = Segmenter.load(world/"a.safetensors"), torch.rand(1, 3, 32, 32)
    assert torch.equal(seg.clusters(x.double()), seg.clusters(x))


def test_merged_into_a_name_that_is_there(world):
    "One name, one class: the cluster that has it joins"
    seg = Segmenter.load(world/"a.safetensors").named({3: "sky"}).merged({"sky": [0]})
    assert list(seg.labels.names) == ["sky", "cluster 1", "cluster 2"] and seg.groups == [0, 1, 2, 0]


def test_merged_after_a_no(world, photos):
    "'Not road', which was soil: when both are ground, it says nothing more; a 'no' that does not hold stays"
    seg, f = Segmenter.load(world/"a.safetensors"), photos/"0.png"
    yes = [(f, .5, .1, "sky"), (f, .5, .9, "soil"), (f, .5, .55, "road")]
    h = seg.hinted([*yes, (f, .48, .9, "road", False)])
    assert [o.yes for o in h.merged({"ground": ["road", "soil"]}).hints] == [True]*3
    assert len(h.merged({"all": ["road", "sky"]}).hints) == 4 and len(h.named({"road": "street"}).hints) == 4


@pytest.mark.parametrize("name", ["costs $5 & $6", r"$\frac$", "_background_"])
def test_names_are_drawn_as_they_are(world, photos, name):
    "Dollars make no formula, and what begins with _ is not left out"
    plt = pytest.importorskip("matplotlib.pyplot")
    from matplotlib.text import Text
    from picie_nb.data.labels import LabelSet
    from picie_nb.evaluate.report import evaluate
    seg = Segmenter.load(world/"a.safetensors").named({k: f"{name}{k}" for k in range(4)})
    def legend(): LabelSet([name, "sky"]).legend()
    def confusion(): evaluate([np.eye(4, dtype=int)], [np.eye(4, dtype=int)], labels=LabelSet([name, "sky"])).plot_confusion()
    for draw in (seg(photos/"0.png").show, picie_nb.all.cluster_gallery(seg, photos, n=1).show, legend, confusion):
        plt.close("all")
        draw()
        plt.gcf().canvas.draw()
        found = [o for o in plt.gcf().findobj(Text) if name in o.get_text()]
        assert found and not any(o.get_parse_math() for o in found), draw
    plt.close("all")


def test_photo_whose_name_is_not_utf8(world, photos, tmp_path):
    "Its patches are shown, with a mark in its name"
    import os
    try: (photos/"0.png").rename(photos/os.fsdecode(b"red\xe9.png"))
    except OSError: pytest.skip("this disk takes names in UTF-8 only")
    page = picie_nb.all.cluster_gallery(Segmenter.load(world/"a.safetensors"), photos).to_html(tmp_path/"g.html", title=os.fsdecode(b"\xe9"))
    assert "red?.png" in page.read_text(encoding="utf-8")


def test_names_that_a_font_lacks(world, photos):
    "All its unknown characters look alike, so the number is written beside them"
    from picie_nb.use.gallery import _drawable
    assert [_drawable(o, 3) for o in ("sky (blue) 2", "路面", "straße")] == ["sky (blue) 2", "3: 路面", "3: straße"]
    seg, sheet = Segmenter.load(world/"a.safetensors"), picie_nb.all.contact_sheet
    assert sheet(seg.named({k: "路面"[k % 2] for k in range(4)}), photos) != sheet(seg.named({k: "路"*(k+1) for k in range(4)}), photos)


def test_what_a_gallery_refuses(world, photos):
    gallery = picie_nb.all.cluster_gallery(Segmenter.load(world/"a.safetensors"), photos, n=1)
    with pytest.raises(ValueError, match="no clusters to show"): gallery.show(clusters=[])
    for window in (4, 0):
        with pytest.raises(ValueError, match=f"window={window}: .* odd"): picie_nb.all.margins(torch.rand(3, 8, 9), window)


def test_fields_of_classes(world, photos, tmp_path):
    "The number of a class is not shown as that of a cluster, which may be the name of another"
    name_clusters = pytest.importorskip("picie_nb.use.widgets").name_clusters
    seg = Segmenter.load(world/"a.safetensors")
    for s, what in ((seg, "cluster"), (seg.merged({"land": [0, 1]}), "class")):
        assert [o.description for o in name_clusters(s, photos, tmp_path/"n.safetensors", n=1).names] == [f"{what} {k}" for k in range(len(s.labels))]


def test_mask_of_another_image(tmp_path):
    "A mask that is the partner of one image is not that of another with the same name"
    for p in ("im/x/1.png", "im/y/1.png", "m/x/1.png"):
        (tmp_path/p).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(tmp_path/p)
    files = [tmp_path/"im/x/1.png", tmp_path/"im/y/1.png"]
    with pytest.raises(FileNotFoundError, match="1 of 2 images have no mask"): match_masks(files, tmp_path/"im", tmp_path/"m")


@pytest.mark.parametrize("name, text", {"x.csv": "class_name,class_id\nsky,1\nroad,0\n", "y.csv": "label;code\nsky;10\nroad;20\n", "x.json": '[{"name": "sky", "train_id": 1}, {"name": "road", "train_id": 0}]',
                                        "x.txt": "lane 1\nlane 2\nsky 0\n"}.items())
def test_numbers_under_another_name(tmp_path, name, text):
    "Values that would be passed over are asked about"
    (tmp_path/name).write_text(text)
    with pytest.raises(ValueError, match="are the numbers under|is the number in"): label_set(tmp_path/name)


def test_numbers_that_are_no_values(tmp_path):
    for text in ("lane 1\nlane 2\nlane 3", "road 1\nroad 2\ntree 1\ntree 2"):
        (tmp_path/"x.txt").write_text(text)
        assert label_set(tmp_path/"x.txt").names == text.split("\n")


def test_undo_of_a_training(world, photos, tmp_path):
    "The network that is taken back is set aside, as any other"
    from picie_nb.use.app import PhotoProject
    a, b = (Segmenter.load(world/f"{o}.safetensors") for o in "ab")
    p = PhotoProject(photos, out=tmp_path/"out")
    p.change(a), p.change(b), p.undo()
    kept = [Segmenter.load(f).centroids for f in (tmp_path/"out").glob("*.safetensors")]
    assert any(torch.equal(o, b.centroids) for o in kept) and torch.equal(Segmenter.load(p.path).centroids, a.centroids)


def test_gallery_of_merged_clusters(world, photos, tmp_path):
    "Its page takes clusters by their names: numbers and names differ"
    from picie_nb.cli import picie_gallery
    Segmenter.load(world/"a.safetensors").merged({"road": [0, 1]}).save(tmp_path/"m.safetensors")
    assert picie_gallery(str(tmp_path/"m.safetensors"), str(photos), out=str(tmp_path/"g.html"), json=str(tmp_path/"g.json"), patches=1, quiet=True) == 0
    clusters = json.loads((tmp_path/"g.json").read_text())["clusters"]
    assert [o["name"] for o in clusters] == ["road", "cluster 2", "cluster 3"]
    assert all(o["name"] not in o["neighbours"] for o in clusters)
    assert "<p>class 1, " in (tmp_path/"g.html").read_text()


def test_outlines_of_an_earlier_map(world, tmp_path, capsys):
    "They do not stay beside the map of another model"
    rasterio = pytest.importorskip("rasterio")
    with rasterio.open(tmp_path/"x.tif", "w", driver="GTiff", width=64, height=48, count=3, dtype="uint8", crs="EPSG:32633", transform=rasterio.transform.from_origin(5e5, 5e6, 1, 1)) as ds:
        ds.write(np.random.default_rng(0).integers(0, 255, (3, 48, 64), np.uint8))
    out = tmp_path/"out"
    geo = lambda m, **kw: picie_segment(str(world/m), str(tmp_path/"x.tif"), geo=True, out=str(out), quiet=True, **kw)
    assert geo("a.safetensors", polygons=10**6) == 0 and (out/"x.geojson").exists() # more than it has: one cluster
    assert geo("b.safetensors") == 1 and "x.geojson has outlines of an earlier map: remove it" in capsys.readouterr().err
    assert geo("b.safetensors", polygons=4) == 0
    (out/"x.geojson").unlink()
    assert geo("a.safetensors") == 0 and not (out/"x.geojson").exists()


def test_outputs_replace_no_file_of_another_kind(world, photos, tmp_path, capsys):
    "A report is not written over a photo, nor a picture over a mask, nor one output over the other"
    from picie_nb.cli import picie_evaluate, picie_export, picie_gallery
    a, photo, page, report = str(world/"a.safetensors"), photos/"0.png", tmp_path/"g.html", tmp_path/"r.json"
    (tmp_path/"p").mkdir(); Image.fromarray(np.uint8([[0, 1], [1, 1]])).save(tmp_path/"p/0.png")
    score = lambda **kw: picie_evaluate(str(tmp_path/"p"), str(tmp_path/"p"), labels="sky,road", bootstrap=0, quiet=True, **kw)
    was = {f: f.read_bytes() for f in (photo, world/"a.safetensors", tmp_path/"p/0.png")}
    for run in (lambda: picie_gallery(a, str(photos), out=str(photo), quiet=True), lambda: picie_gallery(a, str(photos), out=a, quiet=True),
                lambda: segment(a, photo, out=str(tmp_path/"s"), json=str(photo)), lambda: score(json=str(tmp_path/"p/0.png")),
                lambda: score(confusion=str(tmp_path/"p/0.png")), lambda: picie_export(a, str(tmp_path/"m.onnx"), json=str(photo))):
        with pytest.raises(ValueError, match="another kind of file|name of two files"): run()
    for run in (lambda: picie_gallery(a, str(photos), out=str(page), json=str(page)), lambda: score(json=str(tmp_path/"c.png"), confusion=str(tmp_path/"c.png")),
                lambda: picie_export(a, str(tmp_path/"e.onnx"), json=str(tmp_path/"e.onnx"))):
        with pytest.raises(ValueError, match="name of two files"): run()
    assert all(f.read_bytes() == data for f, data in was.items()) and not (tmp_path/"m.onnx").exists()
    for _ in range(2): # one's own are replaced
        picie_gallery(a, str(photos), out=str(page), json=str(report), quiet=True)
        for end in ("png", "jpg", "svg", "pdf"): score(json=str(report), confusion=str(tmp_path/f"c.{end}"))


def test_shares_of_a_gallery_are_of_pixels(world, tmp_path):
    "A small photo counts for less than a large one, as in the maps"
    from picie_nb.use.gallery import cluster_gallery
    seg, rng = Segmenter.load(world/"a.safetensors"), np.random.default_rng(0)
    small, large = (np.uint8(rng.integers(0, 255, (n, n, 3))*[s, 1, 1-s]) for n, s in ((32, 1), (320, 0)))
    both, one = (cluster_gallery(seg, o, n=1).shares for o in ([small, large], [large]))
    assert np.abs(both-one).max() <= .0101 < np.abs(cluster_gallery(seg, [small], n=1).shares-one).max()


def test_size_of_a_folder(world, photos):
    with pytest.raises(ValueError, match="at most 16384"): segment(world/"a.safetensors", photos, size=99999)
