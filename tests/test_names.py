"Names by words: what a cluster is compared with, suggestions that name nothing, and CLIP with random weights from a file."
import json
import numpy as np, pytest, torch
from PIL import Image
from picie_nb.backbone import create_backbone
from picie_nb.fpn import PiCIENet
from picie_nb.segmenter import Segmenter
from picie_nb.use.gallery import ClusterGallery, ImagePatch, cluster_gallery
from picie_nb.use.names import ClipEncoder, cluster_looks, suggest_names, word_list


class Colours:
    "Red or blue, by the mean colour"
    scale = 10
    def encode_images(self, images): return torch.tensor(np.stack([np.asarray(o).reshape(-1, 3).mean(0)[[0, 2]] for o in images]))
    def encode_texts(self, texts): return torch.tensor([[1., 0] if "red" in t else [0, 1.] for t in texts])


@pytest.fixture(scope="module")
def segmenter():
    torch.manual_seed(0)
    return Segmenter(PiCIENet(create_backbone("test_efficientnet", pretrained=False), 16), torch.randn(3, 16), size=64)

def patch(color, mask=None): return ImagePatch("f", 5, 5, 1., Image.new("RGB", (112, 112), color), mask)

@pytest.fixture
def gallery(segmenter):
    return ClusterGallery(segmenter, np.array([.5, .3, .2]), np.zeros((3, 3)), [[patch("red")]*2, [patch("blue")], []], 2, {})


def test_right_words_and_nothing_applied(gallery):
    before = list(gallery.segmenter.labels.names)
    found = suggest_names(gallery, ["blue", "red"], Colours(), n=1)
    assert [o[0][0] if o else None for o in found.words] == ["red", "blue", None]
    assert found.words[0][0][1] == pytest.approx(1/(1+np.exp(-10)), abs=1e-4)
    assert gallery.segmenter.labels.names == before
    assert found.apply().labels.names == ["red", "blue", "cluster 2"]
    assert found.apply([1]).labels.names == ["cluster 0", "blue", "cluster 2"]
    assert "not applied" in repr(found) and found._repr_html_().count("<tr>") == 3

def test_equal_words_are_one_class(gallery):
    gallery.patches[1] = [patch("red")]
    one = suggest_names(gallery, ["blue", "red"], Colours()).apply()
    assert one.labels.names == ["red", "cluster 2"] and one.groups == [0, 0, 1]

def test_mask_hides_the_rest():
    half = np.zeros((112, 112), np.uint8)
    half[:, :56] = 255
    whole, own = cluster_looks(patch("red", Image.fromarray(half)))
    assert whole.getpixel((100, 5)) == (255, 0, 0) == own.getpixel((10, 5)) and own.getpixel((100, 5)) == (122, 116, 104)

def test_gallery_gives_masks(segmenter):
    "A patch's mask is the part of the map of clusters that the patch shows"
    im = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)).resize((192, 128))
    seg = Segmenter(segmenter.net, segmenter.centroids, size=128)
    c = seg._coarse(torch.from_numpy(np.array(im)).permute(2, 0, 1)[None])[0].argmax(0).numpy()
    found = 0
    for k, ps in enumerate(cluster_gallery(seg, [im], n=1, side=.5).patches):
        for p in ps:
            x0, y0 = int(min(max(p.x-.5-31.5, 0), 128)), int(min(max(p.y-.5-31.5, 0), 64))
            share = (c == k).repeat(4, 0).repeat(4, 1)[y0:y0+64, x0:x0+64].mean()
            assert abs((np.asarray(p.mask) > 0).mean()-share) < .05
            found += 0 < share < 1
    assert found

def test_words():
    assert len(word_list("ade20k")) == 150 == len(set(word_list("ade20k"))) and {"road", "sidewalk"} <= set(word_list("cityscapes"))
    with pytest.raises(ValueError, match="no word list 'no such list'"): word_list("no such list")


TINY = dict(embed_dim=16, vision_cfg=dict(image_size=32, layers=1, width=32, head_width=16, patch_size=16),
            text_cfg=dict(context_length=77, vocab_size=49408, width=32, heads=2, layers=1))

@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    "A model of OpenCLIP with random weights in a file"
    clip = pytest.importorskip("open_clip", reason="OpenCLIP is not installed: pip install picie_nb[names]")
    from safetensors.torch import save_file
    folder = tmp_path_factory.mktemp("clip")
    (folder/"picie-tiny.json").write_text(json.dumps(TINY))
    clip.add_model_config(folder/"picie-tiny.json")
    torch.manual_seed(0)
    save_file({k: v.contiguous() for k, v in clip.create_model("picie-tiny").state_dict().items()}, folder/"tiny.safetensors")
    return folder/"tiny.safetensors"

def test_clip_from_a_file(tiny, gallery):
    encoder = ClipEncoder("picie-tiny", tiny, bs=2)
    ims = [Image.new("RGB", (112, 112), c) for c in ("red", "blue", "white")]
    z = encoder.encode_images(ims)
    assert z.shape == (3, 16) and torch.allclose(z[1:2], encoder.encode_images(ims[1:2]), atol=1e-5)
    assert encoder.encode_texts(["road", "sky"]).shape == (2, 16)
    assert torch.equal(z, ClipEncoder("picie-tiny", tiny, bs=2).encode_images(ims)) # the weights of the file, not other random ones
    assert encoder.scale == pytest.approx(1/.07, rel=1e-3)
    found = suggest_names(gallery, "coco-stuff", encoder)
    assert [len(o) for o in found.words] == [3, 3, 0]

def test_clip_says_what_is_wrong(tiny, tmp_path):
    with pytest.raises(ValueError, match="OpenCLIP has no model 'vit'"): ClipEncoder("vit")
    with pytest.raises(ValueError, match="no weights 'nothing' for ViT-B-32: it has openai"): ClipEncoder("ViT-B-32", "nothing")
    with pytest.raises(FileNotFoundError, match="no such file"): ClipEncoder("ViT-B-32", tmp_path/"none.safetensors")
    with pytest.raises(ValueError, match="as a .safetensors file"): ClipEncoder("ViT-B-32", tmp_path/"clip.pt")
    with pytest.raises(ValueError, match="does not hold the weights of RN50"): ClipEncoder("RN50", tiny)

def test_offline(monkeypatch, tiny):
    "One sentence, and no traceback of somebody's client"
    import open_clip
    def offline(*a, **kw): raise OSError("no route to host\nand much more")
    monkeypatch.setattr(open_clip, "create_model_and_transforms", offline)
    with pytest.raises(ValueError) as e: ClipEncoder()
    assert "could not be downloaded (no route to host)" in str(e.value) and "\n" not in str(e.value) and "give its path" in str(e.value)

def test_without_open_clip(monkeypatch):
    import sys
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ImportError, match=r'pip install "picie_nb\[names\]"'): ClipEncoder()
