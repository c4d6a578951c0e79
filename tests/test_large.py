"Images that do not fit in memory, and videos: files as they come, and how much memory they take"
import json, struct, subprocess, sys, warnings
from fractions import Fraction
import numpy as np, pytest, torch
from PIL import Image
from conftest import ROOT
from picie_nb.backbone import create_backbone
from picie_nb.cli import picie_segment
from picie_nb.data.folders import image_files
from picie_nb.data.scenes import ToyScenes
from picie_nb.fpn import PiCIENet
from picie_nb.segmenter import Segmenter
from picie_nb.use import large
from picie_nb.use.large import Frames, Raster, flicker, raster_polygons, segment_raster, segment_video

rasterio, av, pyogrio, shapely = map(pytest.importorskip, ("rasterio", "av", "pyogrio", "shapely"))
from rasterio.transform import from_origin
pytestmark = pytest.mark.filterwarnings("ignore:Dataset has no geotransform")


def tiny(k=4, **kw):
    torch.manual_seed(0)
    return Segmenter(PiCIENet(create_backbone("test_efficientnet", pretrained=False), 8), torch.randn(k, 8), **{"size": 64, **kw})


def save(path, a, **kw):
    kw = {"crs": "EPSG:32632", "transform": from_origin(500_000, 5_400_000, 2, 2), "driver": "GTiff", **kw}
    with rasterio.open(path, "w", count=len(a), height=a.shape[1], width=a.shape[2], dtype=a.dtype, **kw) as ds: ds.write(a)
    return path


def read(path):
    with rasterio.open(path) as ds: return ds.read(1)


@pytest.fixture(scope="module")
def picture(): return ToyScenes(n=1, size=600, seed=0)[0][0].transpose(2, 0, 1) # (3,600,600) uint8


MEMORY = """
import resource, sys, warnings; warnings.simplefilter("ignore")
sys.path.insert(0, sys.argv[2])
import numpy as np, rasterio, torch
from test_large import tiny
from picie_nb.use.large import Raster, segment_raster
torch.set_num_threads(1)
def write(path, w, h):
    rng, block = np.random.default_rng(0), 500
    with rasterio.Env(GDAL_CACHEMAX=2**27), rasterio.open(path, "w", driver="GTiff", dtype="uint16", count=3, width=w, height=h, tiled=True, blockxsize=256, blockysize=256) as ds:
        for x in range(0, w, block):
            for y in range(0, h, block):
                a = rng.integers(0, 4000, (3, block//20, block//20), dtype=np.uint16).repeat(20, 1).repeat(20, 2)
                ds.write(a, window=rasterio.windows.Window(x, y, block, block))
    return path
peaks = []
for w in (8000, 20000): # both more than GDAL's cache
    out = segment_raster(tiny(tile=256), Raster(write(f"{sys.argv[1]}/{w}.tif", w, 3000), scale=4), f"{sys.argv[1]}/c{w}.tif", margin=32, progress=False)
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024)
with rasterio.open(out) as ds: print(ds.width, ds.height, len(np.unique(ds.read(1))), peaks[1]-peaks[0], peaks[1])
"""

def test_memory(tmp_path):
    "Of an image of 360 MB, two and a half times as large as one before it, the memory sees nothing"
    res = subprocess.run([sys.executable, "-c", MEMORY, str(tmp_path), str(ROOT/"tests")], capture_output=True, text=True)
    assert res.returncode == 0, res.stderr
    w, h, k, more, peak = map(float, res.stdout.split())
    assert (w, h) == (20000, 3000) and k > 1
    assert more < 60, (more, peak) # MB


def test_no_seams(picture, tmp_path):
    "A margin makes windows of any size agree with the whole; without one they do not"
    f, x = save(tmp_path/"a.tif", picture), torch.from_numpy(picture)[None]
    for seg in (tiny(), tiny(refine=8)):
        whole = seg._with(tile=0).clusters(x)[0].numpy()
        differ = {}
        for margin in (0, 128):
            for side in (128, 320): differ[margin, side] = (read(segment_raster(seg._with(tile=side+2*margin), f, tmp_path/"c.tif", margin, False)) != whole).mean()
        assert max(differ[128, s] for s in (128, 320)) < .003 and differ[0, 128] > .005, differ


def test_odd_sides(picture, tmp_path):
    "What is seen at the end of an image lies there, whatever its size: the map is that of the image with its last pixels repeated"
    a = picture[:, :333, :517]
    whole = np.pad(a, ((0, 0), (0, 3), (0, 3)), "edge")
    for seg in (tiny(tile=256), tiny(tile=256, refine=8)):
        odd, even = (read(segment_raster(seg, save(tmp_path/"a.tif", o), tmp_path/"c.tif", 32, False)) for o in (a, whole))
        assert (odd == even[:333, :517]).all()


def test_what_is_kept(picture, tmp_path):
    "Place, names and colours; any size; masks by nodata, alpha or NaN"
    seg = tiny(tile=256).named({1: "söa", 2: "land"})
    a = np.concatenate([picture, np.full((1, 600, 600), 255, np.uint8)])[:, :333, :517]
    a[3, :40, :50] = 0
    for name, data, kw in (("alpha", a, dict(photometric="rgb", alpha="yes")), ("nodata", np.where(a[3:] == 0, 0, a[:3].astype(np.int16)+1), dict(nodata=0)),
                           ("nan", np.where(a[3:] == 0, np.nan, a[:3]/255).astype(np.float32), {}), ("strips", np.where(a[3:] == 0, 0, a[:3].astype(np.uint16)*50+1), dict(nodata=0, tiled=False))):
        f = segment_raster(seg, save(tmp_path/f"{name}.tif", data, **kw), tmp_path/"out"/f"{name}.tif", 32, False)
        with rasterio.open(f) as ds:
            c = ds.read(1)
            assert ds.shape == (333, 517) and ds.crs.to_epsg() == 32632 and ds.transform == from_origin(500_000, 5_400_000, 2, 2), name
            assert ds.tags()["cluster_1"] == "söa" and ds.colormap(1)[2][:3] == tuple(seg.labels.palette[2]) and ds.nodata == 255
        assert (c[:40, :50] == 255).all() and (c == 255).sum() == 2000 and set(np.unique(c)) <= {0, 1, 2, 3, 255}, name
    many = segment_raster(tiny(k=300, tile=256), tmp_path/"alpha.tif", tmp_path/"many.tif", 32, False)
    assert read(many).dtype == np.uint16 and read(many)[0, 0] == 65535 and 255 < read(many)[100:].max() < 300
    jpeg = tmp_path/"photo.jpg"
    Image.fromarray(a[:3].transpose(1, 2, 0)).save(jpeg)
    assert read(segment_raster(seg, jpeg, tmp_path/"photo.tif", 32, False)).shape == (333, 517)
    gcps = [rasterio.control.GroundControlPoint(r, c, x, y) for r, c, x, y in ((0, 0, 9., 48.), (0, 517, 9.1, 48.), (333, 0, 9., 47.9))]
    f = save(tmp_path/"gcps.tif", a[:3], crs=None, transform=None)
    with rasterio.open(f, "r+") as ds: ds.gcps = gcps, rasterio.CRS.from_epsg(4326)
    with rasterio.open(segment_raster(seg, f, tmp_path/"g.tif", 32, False)) as ds: assert len(ds.gcps[0]) == 3 and ds.gcps[1].to_epsg() == 4326


def test_alpha_of_any_file(picture, tmp_path):
    "A band called alpha masks, however many others there are, and is no colour; one that is asked for is a colour"
    from rasterio.enums import ColorInterp as C
    a = np.concatenate([picture, picture[:1], np.full((1, 600, 600), 255, np.uint8)])[:, :120, :160]
    a[4, :, :40] = 0
    for bands, kinds in (((0, 1, 2, 3, 4), (C.red, C.green, C.blue, C.undefined, C.alpha)), ((0, 1, 4), (C.gray, C.undefined, C.alpha)),
                         ((4, 0, 1, 2), (C.alpha, C.gray, C.undefined, C.undefined))):
        f = save(tmp_path/"a.tif", (a[list(bands)]*257.).astype(np.uint16))
        with rasterio.open(f, "r+") as ds: ds.colorinterp = kinds
        raster, at = Raster(f), kinds.index(C.alpha)
        c = read(segment_raster(tiny(tile=256), raster, tmp_path/"c.tif", 32, False))
        assert (c[:, :40] == 255).all() and (c[:, 40:] < 255).all() and at+1 not in raster.bands, kinds
        a[:4, :, :40] = 0 # nor does what it hides change black and white
        first = [b for b in bands if b != 4]
        assert np.allclose(raster.limits, [np.percentile(a[first[i], :, 40:]*257., (2, 98)) for i in ((0, 1, 2) if len(first) > 2 else (0,)*3)], atol=1), kinds
    assert not (read(segment_raster(tiny(tile=256), Raster(f, bands=(1, 2, 3)), tmp_path/"c.tif", 32, False)) == 255).any()


def placed(path, a, points, crs=4326):
    "A file whose place is given by points (row, column, x, y)"
    save(path, a, crs=None, transform=None)
    with rasterio.open(path, "r+") as ds: ds.gcps = [rasterio.control.GroundControlPoint(*p) for p in points], rasterio.CRS.from_epsg(crs)
    return path


def test_polygons_of_a_map_placed_by_points(picture, tmp_path):
    "They lie where the points say, and not in pixels that are called degrees"
    corners = [(0, 0, 10, 50), (0, 150, 11, 50), (110, 0, 10, 49), (110, 150, 11, 49)]
    f = segment_raster(tiny(tile=256), placed(tmp_path/"a.tif", picture[:, :110, :150], corners), tmp_path/"c.tif", 32, False)
    fs = json.loads(raster_polygons(f, tmp_path/"p.geojson").read_text())["features"]
    at = np.concatenate([r for o in fs for r in o["geometry"]["coordinates"]])
    assert np.allclose([at.min(0), at.max(0)], [(10, 49), (11, 50)])
    about = pyogrio.read_info(raster_polygons(f, tmp_path/"p.gpkg"))
    assert about["crs"] == "EPSG:4326" and np.allclose(about["total_bounds"], (10, 49, 11, 50))
    for points in (corners[:1], [(i, i, i, i) for i in range(4)]): # no place follows from these
        f = segment_raster(tiny(tile=256), placed(tmp_path/"b.tif", picture[:, :110, :150], points), tmp_path/"d.tif", 32, False)
        with pytest.raises(ValueError, match="three points"): raster_polygons(f, tmp_path/"q.geojson")


ROTATED = "+proj=ob_tran +o_proj=longlat +o_lon_p=-162 +o_lat_p=39.25 +lon_0=180 +to_meter=0.0174532925199433"

def test_what_is_kept_beside_a_map(picture, tmp_path, monkeypatch):
    "A CRS that GeoTIFF cannot hold goes along with the map; it does not outlive it, and of a failure nothing stays"
    kw, out = dict(margin=32, progress=False), tmp_path/"out"
    rare = save(tmp_path/"a.tif", picture[:, :90, :100], crs=rasterio.CRS.from_string(ROTATED), transform=from_origin(5, 50, .1, .1))
    f = segment_raster(tiny(tile=256), rare, out/"c.tif", **kw)
    assert sorted(o.name for o in out.iterdir()) == ["c.tif", "c.tif.aux.xml"]
    with rasterio.open(rare) as a, rasterio.open(f) as b: assert a.crs == b.crs
    x, y = json.loads(raster_polygons(f, tmp_path/"p.geojson").read_text())["features"][0]["geometry"]["coordinates"][0][0]
    assert not (5 <= x <= 15 and 41 <= y <= 50) # degrees of the earth, not of the turned one
    with monkeypatch.context() as m:
        m.setattr(large, "_check_written", lambda path: 1/0)
        with pytest.raises(ZeroDivisionError): segment_raster(tiny(tile=256), rare, out/"d.tif", **kw)
    assert sorted(o.name for o in out.iterdir()) == ["c.tif", "c.tif.aux.xml"]
    segment_raster(tiny(tile=256), save(tmp_path/"b.tif", picture[:, :90, :100]), f, **kw)
    with rasterio.open(f) as ds: assert ds.crs.to_epsg() == 32632
    assert [o.name for o in out.iterdir()] == ["c.tif"]
    long = tmp_path/("x"*250+".tif") # what would lie beside it has no name
    assert segment_raster(tiny(tile=256), tmp_path/"b.tif", long, **kw).exists()


def test_place_by_a_camera(picture, tmp_path):
    "Rational polynomials, as satellites send them"
    f = save(tmp_path/"a.tif", picture[:, :110, :150], crs=None, transform=None)
    one = lambda i: [float(i == j) for j in range(20)]
    rpcs = rasterio.rpc.RPC(0., 500., 49., .1, one(0), one(2), 55., 55., 10., .1, one(0), one(1), 75., 75., 0., 0.)
    with rasterio.open(f, "r+") as ds: ds.rpcs = rpcs
    with rasterio.open(segment_raster(tiny(tile=256), f, tmp_path/"c.tif", 32, False)) as a, rasterio.open(f) as b: assert a.rpcs and a.rpcs == b.rpcs


def test_parts_of_the_image(picture, tmp_path):
    "A virtual raster is not written over the file it is made of"
    import rasterio.shutil
    f = save(tmp_path/"a.tif", picture)
    rasterio.shutil.copy(f, tmp_path/"a.vrt", driver="VRT")
    was = f.read_bytes()
    with pytest.raises(ValueError, match="the image itself or part of it"): segment_raster(tiny(tile=256), tmp_path/"a.vrt", f, 32, False)
    assert f.read_bytes() == was


def test_places_without_degrees(picture, tmp_path, capsys):
    "GeoJSON cannot hold them: one sentence says what can, and the command goes on with the next file"
    site = rasterio.CRS.from_wkt('LOCAL_CS["site grid",UNIT["metre",1]]')
    sky = rasterio.CRS.from_string("+proj=geos +h=35785831 +lon_0=0 +sweep=y") # beside the earth
    save(tmp_path/"a.tif", picture[:, :90, :100], crs=site), save(tmp_path/"b.tif", picture[:, :90, :100], crs=sky, transform=from_origin(6e6, 6e6, 2, 2))
    save(tmp_path/"c.tif", picture[:, :90, :100])
    for name in "ab":
        f = segment_raster(tiny(tile=256), tmp_path/f"{name}.tif", tmp_path/"map.tif", 32, False)
        with pytest.raises(ValueError, match="map.tif has places without longitude and latitude.*gpkg"): raster_polygons(f, tmp_path/"p.geojson")
        assert not (tmp_path/"p.geojson").exists() and pyogrio.read_info(raster_polygons(f, tmp_path/"p.gpkg"))["features"] > 0
    model, files = tiny(tile=256).save(tmp_path/"m.safetensors"), [str(tmp_path/f"{o}.tif") for o in "abc"]
    assert picie_segment(str(model), *files, geo=True, polygons=0, out=str(tmp_path/"maps")) == 1
    out, err = capsys.readouterr()
    assert len(err.strip().splitlines()) == 2 and "maps/a.tif has places without" in err and "c.geojson" in out
    assert sorted(o.name for o in (tmp_path/"maps").iterdir()) == ["a.tif", "b.tif", "c.geojson", "c.tif"]


def test_names_with_spaces(picture, tmp_path):
    "GeoTIFF forgets a space before a name, and a name of nothing: a segmenter has neither, so that all files agree"
    seg = tiny(tile=256).named({0: " a ", 1: "", 2: "\tb"})
    assert list(seg.labels.names) == ["a", "cluster 1", "b", "cluster 3"] and seg._number(" b") == 2
    assert list(seg.merged({" b ": [0]}).labels.names) == ["b", "cluster 1", "cluster 3"]
    f = segment_raster(seg, save(tmp_path/"a.tif", picture), tmp_path/"c.tif", 32, False)
    with rasterio.open(f) as ds: assert [ds.tags()[f"cluster_{i}"] for i in range(4)] == seg.labels.names
    assert {o["properties"]["name"] for o in json.loads(raster_polygons(f, tmp_path/"p.geojson").read_text())["features"]} <= set(seg.labels.names)


def test_scale(picture, tmp_path):
    "The same ground at half the resolution, with half the scale, has the same clusters; other scales see other things"
    seg = tiny(tile=256)
    f, half = save(tmp_path/"a.tif", picture), save(tmp_path/"b.tif", picture.reshape(3, 300, 2, 300, 2).mean((2, 4)).round().astype(np.uint8))
    full = read(segment_raster(seg, Raster(f, scale=4), tmp_path/"c.tif", 64, False))
    less = read(segment_raster(seg, Raster(half, scale=2), tmp_path/"d.tif", 64, False))
    assert (full[::2, ::2] == less).mean() > .95
    assert (read(segment_raster(seg, Raster(f, scale=1), tmp_path/"e.tif", 64, False)) == full).mean() < .9


def test_polygons_cover(picture, tmp_path):
    "Outlines painted back are the map, in the file's own coordinates"
    from rasterio.features import rasterize
    f = segment_raster(tiny(tile=256), save(tmp_path/"a.tif", picture, crs=None, transform=None), tmp_path/"c.tif", 32, False)
    for least in (0, 50):
        fs = json.loads(raster_polygons(f, tmp_path/"p.geojson", least).read_text())["features"]
        back = rasterize([(o["geometry"], o["properties"]["cluster"]) for o in fs], (600, 600), fill=99)
        assert (back == read(f)).mean() > (.9 if least else .99999)
        assert len(fs) > 1
        table = pyogrio.raw.read(raster_polygons(f, tmp_path/"p.gpkg", least))
        assert table[0]["fields"].tolist() == ["cluster", "name", "fill"] and table[0]["geometry_type"] == "Polygon"
        assert (rasterize(zip(shapely.from_wkb(table[2]), table[3][0]), (600, 600), fill=99) == back).all()
    save(tmp_path/"none.tif", np.full((1, 20, 20), 255, np.uint8), nodata=255)
    with rasterio.open(tmp_path/"none.tif", "r+") as ds: ds.update_tags(cluster_0="a"); ds.write_colormap(1, {0: (0, 0, 0)})
    assert json.loads(raster_polygons(tmp_path/"none.tif", tmp_path/"p.geojson").read_text())["features"] == []
    assert pyogrio.read_info(raster_polygons(tmp_path/"none.tif", tmp_path/"p.gpkg"))["features"] == 0


def test_a_package_in_parts(picture, tmp_path):
    "Segments are written a few at a time, in the coordinates of the map; one that fails leaves nothing"
    f = segment_raster(tiny(tile=256), save(tmp_path/"a.tif", picture), tmp_path/"c.tif", 32, False)
    n = len(json.loads(raster_polygons(f, tmp_path/"p.geojson").read_text())["features"])
    with rasterio.open(f) as ds:
        for few in (1+n//3, n, n+1):
            (tmp_path/"p.gpkg").unlink(missing_ok=True)
            large._geopackage(tmp_path/"p.gpkg", ds, large._segments(ds, 0), few)
            about = pyogrio.read_info(tmp_path/"p.gpkg")
            assert about["features"] == n and about["crs"] == "EPSG:32632" and np.allclose(about["total_bounds"], ds.bounds)
    (tmp_path/"d").mkdir()
    with pytest.raises(ValueError, match="not written by segment_raster"): raster_polygons(tmp_path/"a.tif", tmp_path/"d/p.gpkg")
    assert not list((tmp_path/"d").iterdir())


@pytest.mark.parametrize("big", ["no", "yes"])
def test_maps_are_no_photos(big, picture, tmp_path, monkeypatch):
    "A folder of maps is not mixed up with what was made of them"
    like = rasterio.open
    monkeypatch.setattr(rasterio, "open", lambda *a, **kw: like(*a, **{**kw, **(dict(bigtiff=big) if "driver" in kw else {})}))
    f = save(tmp_path/"a.tif", picture)
    segment_raster(tiny(tile=256), f, tmp_path/"c.tif", 32, False)
    assert image_files(tmp_path) == [f] and len(image_files(tmp_path, drawn=True)) == 2


def record(path, frames, codec="libx264", times=None, sound=False, **kw):
    with av.open(str(path), "w") as box:
        stream = box.add_stream(codec, rate=10, **kw)
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "yuv420p"
        if times: stream.codec_context.time_base = Fraction(1, 1000)
        if sound: audio = box.add_stream("aac", rate=8000)
        for i, f in enumerate(frames):
            f = av.VideoFrame.from_ndarray(f, format="rgb24")
            if times: f.pts, f.time_base = times[i], Fraction(1, 1000)
            box.mux(stream.encode(f))
        box.mux(stream.encode())
        if sound:
            a = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            a.sample_rate, a.pts = 8000, 0
            box.mux(audio.encode(a)); box.mux(audio.encode())
    return path


@pytest.fixture(scope="module")
def film(): # a camera that goes to the right, (12,96,128,3)
    a = ToyScenes(n=1, size=256, seed=1)[0][0]
    return [np.ascontiguousarray(a[60:156, 4*t:4*t+128]) for t in range(12)]


def test_overlay(film, tmp_path):
    "Size, speed and times of the film, odd sides, no sound; bounded in memory"
    seg, taken = tiny(), []
    clip = record(tmp_path/"a.mp4", film, sound=True)
    n = segment_video(Frames(seg, clip), tmp_path/"o.mp4", tmp_path/"maps", every=5, progress=False)
    assert n == dict(frames=12, maps=3) and sorted(f.name for f in (tmp_path/"maps").iterdir()) == ["000000.png", "000005.png", "000010.png"]
    with av.open(str(tmp_path/"o.mp4")) as box:
        v = box.streams.video[0]
        assert (v.width, v.height, v.average_rate, v.frames, len(box.streams.audio)) == (128, 96, 10, 12, 0)
    times = [0, 100, 150, 600, 700, 720, 740, 900, 1000, 1500, 1501, 2000]
    uneven = record(tmp_path/"v.mp4", film, times=times)
    segment_video(Frames(seg, uneven), tmp_path/"o.mp4", progress=False)
    with av.open(str(tmp_path/"o.mp4")) as box: assert [round(1000*f.pts*f.time_base) for f in box.decode(video=0)] == times
    odd = record(tmp_path/"odd.mkv", [o[:95, :127] for o in film], codec="ffv1") if "ffv1" in av.codecs_available else None
    if odd:
        segment_video(Frames(seg, odd), tmp_path/"o.mp4", tmp_path/"odd", progress=False)
        with av.open(str(tmp_path/"o.mp4")) as box: assert (box.streams.video[0].width, box.streams.video[0].height) == (126, 94)
        assert Image.open(tmp_path/"odd"/"000000.png").size == (127, 95)
    frames = Frames(seg, clip, bs=3)
    pictures = frames._pictures
    frames._pictures = lambda: (taken.append(1) or o for o in pictures())
    for i, s in zip(range(4), frames): pass
    assert len(taken) == 6


def test_portrait(film, tmp_path):
    "A note to turn the picture by 90 degrees, as phones write it, is followed"
    clip = record(tmp_path/"a.mp4", film)
    b = bytearray(clip.read_bytes())
    at = b.index(b"tkhd")+4+40
    b[at:at+36] = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 0, 0, 1<<30)
    (tmp_path/"p.mp4").write_bytes(b)
    flat, turned = (next(iter(Frames(tiny(), f))).image for f in (clip, tmp_path/"p.mp4"))
    assert turned.size == (96, 128) and (np.asarray(turned) == np.rot90(np.asarray(flat), -1)).all() # clockwise


def test_smooth(film):
    "What stays the same is calm; what changes altogether does not listen to the past"
    from picie_nb.use.large import _calm
    torch.manual_seed(0)
    s, past, x = torch.randn(3, 4, 5), torch.randn(3, 4, 5), torch.rand(3, 4, 5)*.2
    torch.testing.assert_close(_calm(s, x, past, x, .7), .7*past+.3*s)
    torch.testing.assert_close(_calm(s, x, past, x+.8, .7), s, atol=1e-5, rtol=0)
    torch.testing.assert_close(_calm(s, x, past, x, 0.), s)
    assert flicker([[[0, 1]], [[1, 1]], [[1, 1]]], fps=8) == 2


def test_flicker_of_a_real_photo(tmp_path):
    "A pan over a photo with a noisy sensor: fewer changes with smoothing, and none from the batches"
    from sklearn.datasets import load_sample_image
    a, rng = load_sample_image("china.jpg"), np.random.default_rng(0)
    at = [(100+rng.integers(-2, 3), 100+4*t+rng.integers(-2, 3)) for t in range(16)]
    clip = record(tmp_path/"c.mp4", [(a[y:y+192, x:x+256]+rng.normal(0, 5, (192, 256, 3))).clip(0, 255).astype(np.uint8) for y, x in at])
    rate = {k: flicker([s.clusters for s in Frames(tiny(size=96), clip, smooth=k)], 10) for k in (0, .7)}
    assert rate[.7] < .95*rate[0], rate


def test_broken_films(film, tmp_path):
    "One clear line; of a film that breaks off, what there is"
    seg, clip = tiny(), record(tmp_path/"a.mp4", film)
    with av.open(str(tmp_path/"sound.wav"), "w") as box:
        s = box.add_stream("pcm_s16le", rate=8000)
        f = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono"); f.sample_rate = 8000
        box.mux(s.encode(f)); box.mux(s.encode())
    sound = (tmp_path/"sound.mp4"); sound.write_bytes((tmp_path/"sound.wav").read_bytes())
    empty, text = tmp_path/"empty.mp4", tmp_path/"text.mp4"
    empty.write_bytes(b""); text.write_text("no film "*100)
    for f, why in ((empty, "no video"), (text, "no video"), (sound, "only sound"), (tmp_path/"gone.mp4", "no such file")):
        with pytest.raises((ValueError, FileNotFoundError), match=why): list(Frames(seg, f))
    whole = record(tmp_path/"a.ts", film*4, gop_size=4).read_bytes()
    (tmp_path/"cut.ts").write_bytes(whole[:len(whole)//2])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert 4 < len(list(Frames(seg, tmp_path/"cut.ts"))) < 48
    with pytest.raises(ValueError, match="no video|no frame|no pictures"): (tmp_path/"b.mp4").write_bytes(clip.read_bytes()[:500]); list(Frames(seg, tmp_path/"b.mp4"))


def test_the_command(film, picture, tmp_path, capsys):
    model = tiny(tile=256).save(tmp_path/"m.safetensors")
    save(tmp_path/"a.tif", picture); record(tmp_path/"a.mp4", film); (tmp_path/"b.tif").write_bytes(b"no map")
    assert picie_segment(str(model), str(tmp_path/"a.tif"), str(tmp_path/"b.tif"), geo=True, bands="3,2,1", scale=2., polygons=5, out=str(tmp_path/"maps")) == 1
    out, err = capsys.readouterr()
    assert "a.geojson" in out and "b.tif is no image that GDAL reads" in err and len(err.strip().splitlines()) == 1
    assert sorted(f.name for f in (tmp_path/"maps").iterdir()) == ["a.geojson", "a.tif"]
    again = lambda: picie_segment(str(model), str(tmp_path/"a.tif"), geo=True, polygons=5, format="gpkg", out=str(tmp_path/"maps"))
    assert again() == 1 and "a.geojson has outlines of an earlier map" in capsys.readouterr().err # of other bands and another scale
    (tmp_path/"maps/a.geojson").unlink()
    assert again() == 0
    assert pyogrio.read_info(tmp_path/"maps/a.gpkg")["features"] > 1
    assert picie_segment(str(model), str(tmp_path/"a.mp4"), overlay=True, every=6, out=str(tmp_path/"films"), json=str(tmp_path/"r.json"), quiet=True) == 0
    assert sorted(f.relative_to(tmp_path/"films").as_posix() for f in (tmp_path/"films").rglob("*.*")) == ["a.overlay.mp4", "a/000000.png", "a/000006.png", "legend.json"]
    assert len(json.loads((tmp_path/"r.json").read_text())["files"]) == 2
    for kw, why in ((dict(geo=True, size=64), "--size is not for --geo"), (dict(geo=True, format="coco", polygons=5), "geojson or gpkg"), (dict(shard="1/2"), "--shard is not for videos")):
        with pytest.raises(ValueError, match=why): picie_segment(str(model), str(tmp_path/"a.mp4"), **kw)


@pytest.mark.parametrize("module, extra", [("rasterio", "geo"), ("av", "video")])
def test_without(module, extra, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, module, None)
    (tmp_path/"a.mp4").write_bytes(b"")
    with pytest.raises(ImportError, match=rf"picie_nb\[{extra}\]"): Raster(tmp_path/"a.mp4") if extra == "geo" else Frames(tiny(), tmp_path/"a.mp4")
