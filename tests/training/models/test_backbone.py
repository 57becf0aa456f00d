"""Backbones: sizes as published, weights from folders, and those that cannot be had."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import ConvNextConfig, ConvNextForImageClassification, ResNetForImageClassification

from dense_depth import InputError
from training.models.backbone import BACKBONES, open_backbone


@pytest.mark.parametrize("name", BACKBONES)
def test_backbones(name):
    with torch.device("meta"):
        backbone = open_backbone(name)
        maps = backbone(torch.empty(1, 3, 256, 704)).feature_maps
    sizes = BACKBONES[name]["hidden_sizes"]
    assert [tuple(x.shape[1:]) for x in maps] == [(c, 256 // s, 704 // s) for c, s in zip(sizes, (4, 8, 16, 32))]
    # Millions without the classifier.
    published = {"resnet-18": 11.18, "resnet-50": 23.51, "resnet-101": 42.50, "convnext-tiny": 27.82}
    if name in published:
        assert abs(sum(p.numel() for p in backbone.parameters()) / 1e6 - published[name]) < 0.01


def test_pretrained_backbones(tmp_path):
    torch.manual_seed(0)
    backbone = open_backbone("resnet-tiny")
    backbone.save_pretrained(tmp_path / "tiny")
    for names in (("resnet-tiny", str(tmp_path / "tiny")), (str(tmp_path / "tiny"),)):
        again = open_backbone(*names)
        assert again.channels == [16, 32, 64, 128]
        assert all(torch.equal(a, b) for a, b in zip(backbone.state_dict().values(), again.state_dict().values()))
    # With a classifier, in fp16, as weights are often published.
    classifier = ResNetForImageClassification(backbone.config).half()
    classifier.save_pretrained(tmp_path / "classifier")
    stored = open_backbone("resnet-tiny", str(tmp_path / "classifier")).state_dict()
    expected = classifier.resnet.state_dict()
    assert stored.keys() == expected.keys() and "embedder.embedder.convolution.weight" in stored
    assert all(torch.equal(x, expected[name].to(x.dtype)) for name, x in stored.items())
    assert stored["embedder.embedder.convolution.weight"].dtype == torch.float32


def test_pretrained_convnext(tmp_path):
    """A classifier's weights, as on the hub: all are taken, the norms behind the stages stay as they begin."""
    torch.manual_seed(0)
    sizes = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 24, 32]}
    classifier = ConvNextForImageClassification(ConvNextConfig(**sizes))
    classifier.save_pretrained(tmp_path)
    backbone = open_backbone(str(tmp_path))
    maps = backbone(torch.zeros(1, 3, 64, 96)).feature_maps
    assert [tuple(x.shape[1:]) for x in maps] == [
        (c, 64 // s, 96 // s) for c, s in zip((8, 16, 24, 32), (4, 8, 16, 32))
    ]
    stored, expected = backbone.state_dict(), classifier.convnext.state_dict()
    shared = stored.keys() & expected.keys()
    assert len(shared) > 30 and expected.keys() - shared == {"layernorm.weight", "layernorm.bias"}
    assert all(torch.equal(stored[name], expected[name]) for name in shared)
    for name in stored.keys() - shared:
        assert "norms" in name and torch.equal(stored[name], torch.full_like(stored[name], name.endswith("weight")))
    with pytest.raises(InputError, match="is no convnext-tiny"):
        open_backbone("convnext-tiny", str(tmp_path))


def test_backbones_that_cannot_be_had(tmp_path):
    backbone = open_backbone("resnet-tiny")
    for name in ("tiny", "damaged", "bare", "partial"):
        backbone.save_pretrained(tmp_path / name)
    (tmp_path / "damaged" / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "bare" / "model.safetensors").unlink()
    path = tmp_path / "partial" / "model.safetensors"
    state = load_file(path)
    del state["embedder.embedder.convolution.weight"]
    save_file(state, path, {"format": "pt"})
    for names, reason in (
        (("resnet-18", str(tmp_path / "tiny")), "tiny: is no resnet-18; name one of"),
        (("resnet-18", str(tmp_path / "nothing")), "nothing: .*; name one of resnet-tiny, resnet-18"),
        ((str(tmp_path / "nothing"),), "backbone .*nothing: "),
        ((str(tmp_path / "damaged"),), "backbone .*damaged: "),
        ((str(tmp_path / "bare"),), "backbone .*bare: "),
        ((str(tmp_path / "partial"),), "partial: lacks 1 weights, such as embedder.embedder.convolution"),
    ):
        with pytest.raises(InputError, match=reason) as error:
            open_backbone(*names)
        assert "\n" not in str(error.value)
