"""LPIPS from made-up weights, beside torchmetrics' own LPIPS with the same; and its refusals."""

import numpy as np
import pytest
import torch
from torch import nn

from accel.errors import AccelError
from accel.measure import lpips
from accel.measure.lpips import Lpips

CHANNELS = (64, 192, 384, 256, 256)


def alexnet_features():
    """The layers of torchvision's AlexNet up to its last pooling, in its order."""
    return nn.Sequential(
        nn.Conv2d(3, 64, kernel_size=11, stride=4, padding=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(kernel_size=3, stride=2),
        nn.Conv2d(64, 192, kernel_size=5, padding=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(kernel_size=3, stride=2),
        nn.Conv2d(192, 384, kernel_size=3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(384, 256, kernel_size=3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(256, 256, kernel_size=3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(kernel_size=3, stride=2),
    )


@pytest.fixture(scope="module")
def backbone():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return alexnet_features()


@pytest.fixture(scope="module")
def heads():
    values = torch.Generator().manual_seed(1)
    return {f"lin{i}.model.1.weight": torch.rand(1, c, 1, 1, generator=values) for i, c in enumerate(CHANNELS)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, backbone, heads):
    place = tmp_path_factory.mktemp("lpips")
    stored = {f"features.{name}": value for name, value in backbone.state_dict().items()}
    stored["classifier.1.weight"] = torch.zeros(2, 2)
    torch.save(stored, place / "alexnet-owt-7be5be79.pth")
    torch.save(heads, place / "alex.pth")
    return place


def clips(frames=3, height=64, width=48):
    rng = np.random.default_rng(0)
    first = rng.random((frames, height, width, 3))
    return first, (first + 0.1 * rng.standard_normal(first.shape)).clip(0, 1)


def test_against_torchmetrics_with_the_same_weights(folder, backbone, monkeypatch):
    theirs = pytest.importorskip("torchmetrics.functional.image.lpips")
    monkeypatch.setattr(theirs, "_get_tv_model_features", lambda name, pretrained: backbone)
    other = theirs._LPIPS(net="alex", model_path=str(folder / "alex.pth"))
    first, second = clips()
    planes = [torch.from_numpy(clip).permute(0, 3, 1, 2).float() for clip in (first, second)]
    expected = other(*planes, normalize=True).mean().item()
    assert expected > 0.01
    assert Lpips(folder)(first, second) == pytest.approx(expected, rel=1e-4)


def test_zero_for_equal_clips_and_more_for_less_alike(folder):
    measure = Lpips(folder)
    first, second = clips()
    assert measure(first, first) == 0.0
    near = measure(0.5 * first + 0.5 * second, first)
    assert 0 < near < measure(second, first)
    assert measure(first, second) == pytest.approx(measure(second, first), rel=1e-6)
    alone = [measure(a, b) for a, b in zip(first, second, strict=True)]
    assert measure(first, second) == pytest.approx(np.mean(alone), rel=1e-5)


def test_parts_of_a_clip_are_averaged_by_their_frames(folder, monkeypatch):
    measure = Lpips(folder)
    first, second = clips(frames=3)
    whole = measure(first, second)
    monkeypatch.setattr(lpips, "_PIXELS_AT_ONCE", 2 * 64 * 48)
    assert measure(first, second) == pytest.approx(whole, rel=1e-5)


def test_the_heads_are_torchmetrics_own_where_the_folder_has_none(folder, tmp_path):
    pytest.importorskip("torchmetrics")
    (tmp_path / "alexnet-owt-0.pth").write_bytes((folder / "alexnet-owt-7be5be79.pth").read_bytes())
    first, second = clips()
    assert 0 < Lpips(tmp_path)(first, second) != Lpips(folder)(first, second)


def test_the_folder_of_torch_hub_is_looked_into(folder, tmp_path, monkeypatch):
    checkpoints = tmp_path / "checkpoints"
    checkpoints.symlink_to(folder)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    first, second = clips()
    assert Lpips()(first, second) == Lpips(folder)(first, second)


def refusal(**given):
    with pytest.raises(AccelError) as caught:
        Lpips(**given)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_missing_files_are_named(folder, tmp_path, monkeypatch):
    assert f"alexnet-owt-*.pth as torchvision publishes them, and {tmp_path} has none" in refusal(folder=tmp_path)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    assert str(tmp_path / "hub" / "checkpoints") in refusal()
    (tmp_path / "alexnet-owt-0.pth").write_bytes((folder / "alexnet-owt-7be5be79.pth").read_bytes())
    monkeypatch.setattr(lpips, "find_spec", lambda name: None)
    assert 'pip install "dit-accel[bench]"' in refusal(folder=tmp_path)


def test_files_that_hold_something_else_are_refused(folder, tmp_path, heads):
    file = tmp_path / "alexnet-owt-0.pth"
    file.write_bytes(b"no weights at all")
    assert f"{file} is not the weights" in refusal(folder=tmp_path)
    torch.save(heads, file)
    assert "features.0.weight" in refusal(folder=tmp_path)
    file.write_bytes((folder / "alexnet-owt-7be5be79.pth").read_bytes())
    torch.save({**heads, "lin2.model.1.weight": torch.zeros(1, 5, 1, 1)}, tmp_path / "alex.pth")
    assert "lin2.model.1.weight has shape (1, 5, 1, 1), not (1, 384, 1, 1)" in refusal(folder=tmp_path)


def test_small_frames_are_refused(folder):
    first, second = clips(height=30)
    with pytest.raises(AccelError, match="31 pixels a side, the frames have 30x48"):
        Lpips(folder)(first, second)
    first, second = clips(height=31, width=31)
    assert Lpips(folder)(first, second) > 0
