import hashlib
import warnings
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from loom.errors import UserError
from loom.evaluation import lpips as room
from loom.evaluation.images import Pair, evaluate_pairs
from loom.evaluation.lpips import Lpips, gather_weights

TRUNKS = {"vgg": ("vgg16-00000000.pth", "vgg.pth"), "alex": ("alexnet-00000000.pth", "alex.pth")}


@cache
def trunk_state(net: str) -> dict[str, torch.Tensor]:
    """Random weights of the trunk in torchvision's own layout, scaled so that no layer dies."""
    import torchvision

    model = torchvision.models.vgg16 if net == "vgg" else torchvision.models.alexnet
    with torch.device("meta"):
        shapes = {
            key: value.shape for key, value in model(weights=None).features.state_dict().items()
        }
    generator = torch.Generator().manual_seed(7)
    state = {}
    for key, shape in shapes.items():
        fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 50
        state[f"features.{key}"] = torch.randn(shape, generator=generator) * (2 / fan_in) ** 0.5
    return state


def write_weights(folder: Path, net: str) -> Path:
    trunk, heads = TRUNKS[net]
    folder.mkdir(parents=True, exist_ok=True)
    # torchvision's files hold the classifier too; it must not matter.
    torch.save(trunk_state(net) | {"classifier.0.weight": torch.zeros(2, 2)}, folder / trunk)
    package = find_spec("lpips")
    assert package is not None
    assert package.origin is not None
    shipped = Path(package.origin).parent / "weights" / "v0.1" / heads
    (folder / heads).write_bytes(shipped.read_bytes())
    return folder


@pytest.fixture(scope="module", params=["vgg", "alex"])
def net(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(net, tmp_path_factory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights"), net)


@pytest.fixture(scope="module")
def ours(net, folder) -> Lpips:
    return Lpips.from_files(folder, net)


def pictures(seed: int, height: int = 64, width: int = 70) -> torch.Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed))


def peer_distance(net: str) -> torch.nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import lpips as peer

        theirs = peer.LPIPS(net=net, pnet_rand=True, verbose=False)
    features = {key.removeprefix("features."): value for key, value in trunk_state(net).items()}
    for name, _ in list(theirs.net.named_parameters()):
        theirs.net.get_parameter(name).data.copy_(features[name.split(".", 1)[1]])
    return theirs


def test_the_distance_equals_the_lpips_package_for_the_same_weights(net, ours):
    image, reference = pictures(0), pictures(1)
    theirs = peer_distance(net)(image, reference, normalize=True).flatten()
    assert theirs.min() > 1e-3  # a dead trunk would make any two implementations agree
    torch.testing.assert_close(ours(image, reference), theirs, atol=1e-5, rtol=1e-5)


def test_the_distance_is_zero_for_identical_and_symmetric(ours):
    image, reference = pictures(0), pictures(1)
    assert ours(image, image).abs().max() == 0
    torch.testing.assert_close(ours(image, reference), ours(reference, image))


def test_eight_bit_pictures_are_scored_with_the_weights_on_record(ours, folder):
    image, reference = (
        (255 * pictures(seed)[0].permute(1, 2, 0).numpy()).astype(np.uint8) for seed in (0, 1)
    )
    scores = evaluate_pairs([Pair("r_0", image, reference)], lpips=ours.as_metric())
    as_tensors = [
        torch.from_numpy(p / 255.0).float().permute(2, 0, 1)[None] for p in (image, reference)
    ]
    assert scores.means["lpips"] == pytest.approx(float(ours(*as_tensors)), rel=1e-5)
    files = sorted(folder.iterdir())
    assert scores.lpips_weights == {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files
    }


def test_one_file_with_all_keys_is_as_good_as_a_folder(tmp_path):
    folder = write_weights(tmp_path / "two", "alex")
    both = {}
    for file in folder.iterdir():
        both |= torch.load(file, weights_only=True, map_location="cpu")  # heads were saved on a GPU
    torch.save(both, tmp_path / "one.pth")
    one, two = Lpips.from_files(tmp_path / "one.pth", "alex"), Lpips.from_files(folder, "alex")
    assert torch.equal(one(pictures(0), pictures(1)), two(pictures(0), pictures(1)))
    assert set(one.files) == {"one.pth"}


def test_missing_damaged_and_foreign_weights_are_refused_with_the_file_named(tmp_path):
    with pytest.raises(UserError, match=r"needs one vgg16-\*\.pth and vgg\.pth, found 0 and 0"):
        Lpips.from_files(tmp_path / "nowhere")
    folder = write_weights(tmp_path / "alex", "alex")
    trunk = folder / TRUNKS["alex"][0]
    torch.save(torch.load(trunk, weights_only=True), tmp_path / "alex.pth")
    with pytest.raises(UserError, match=r"vgg: features\.0\.weight is \(64, 3, 11, 11\)"):
        Lpips.from_files(tmp_path / "alex.pth", "vgg")
    trunk.write_bytes(trunk.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"alexnet-00000000\.pth: cannot be read as weights"):
        Lpips.from_files(folder, "alex")


def test_weights_are_gathered_from_what_is_installed_and_nothing_is_fetched(tmp_path, monkeypatch):
    monkeypatch.setattr(room.torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    with pytest.raises(UserError, match=r"no alexnet-\*\.pth"):
        gather_weights(tmp_path / "out", "alex")
    write_weights(tmp_path / "hub" / "checkpoints", "alex")
    gather_weights(tmp_path / "out", "alex")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == sorted(TRUNKS["alex"])
    assert Lpips.from_files(tmp_path / "out", "alex").files
