"""A trained model takes up a new condition: at first it draws bit for bit what it drew, then the new one learns."""

import json

import lightning as L
import pytest
import torch
from safetensors.torch import load, load_file, save_file

from composer.cascade.cascade import Cascade
from composer.cascade.stage import Stage
from composer.conditioning import ConditionSet, zero
from composer.data.datasets import SceneImages
from composer.data.loading import ImageData
from composer.storage.folder import digest, write_model
from composer.training import checkpoint as checkpoints
from composer.training.callbacks import EMA, AtomicCheckpointIO, Checkpoints
from composer.training.stage import StageTraining
from composer.training.warm_start import warm_start
from conditions import Instances, LowRes, Spatial, Text, TextTransformer, Vector
from decomposers import Intensity, Mask, Palette, Sketch
from tests.conftest import SIZE, TINY

pytestmark = pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have")
ADAPTERS = {
    "spatial": lambda: Spatial(1, 4),
    "instances": lambda: Instances(3, 4),
    "vector": lambda: Vector(5, 32, 16, num_tokens=0),
    "text": lambda: Text(6, 32, 0),
    "words alone": lambda: Text(6, 32, 0, sentence=False),
    "transformer": lambda: TextTransformer(20, 8, 1, 2, 32, 0, length=9),
}
every_adapter = pytest.mark.parametrize("name", ADAPTERS)


def plan():
    """The network and conditions of the tiny model, freshly initialised."""
    torch.manual_seed(1)
    stage = Stage.from_spec(TINY["stages"][0])
    stage.weights().requires_grad_(True).train()
    return stage.denoiser, dict(stage.conditions.items())


def value_of(adapter):
    """A representation that differs from row to row."""
    value = adapter.example(2, (SIZE, SIZE))
    if value.is_floating_point():
        value = value + torch.rand_like(value) * (torch.arange(value.shape[-1]) < value.shape[-1] - 1)
    return value.contiguous() if value.is_floating_point() else torch.ones_like(value)


@pytest.fixture
def reps(cascade):
    image = torch.rand(2, 3, SIZE, SIZE) * 2 - 1
    return dict(cascade.decompose({"image": image, "seed": torch.tensor([1, 2])}))


def estimate(denoiser, conditions, reps):
    x, sigma = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2)), torch.tensor([0.3, 4.0])
    return denoiser.eval()(x, sigma, conditions(reps, (SIZE, SIZE)))


@every_adapter
def test_step_0_is_the_old_model_bit_for_bit(cascade, saved, reps, name):
    denoiser, known = plan()
    conditions = ConditionSet(known | {"ninth": ADAPTERS[name]()})
    given = reps | {"ninth": value_of(conditions["ninth"])}
    fresh = conditions["ninth"](given["ninth"], torch.ones(2, dtype=torch.bool), (SIZE, SIZE))
    assert any(port is not None and bool(port.any()) for port in (fresh.vector, fresh.spatial))  # it was not silent
    assert warm_start(denoiser, conditions, SIZE, saved) == ("base.safetensors", ["ninth"])
    old = cascade.stages[0]
    with torch.no_grad():
        for subset in (reps, {}, {"palette": reps["palette"]}, {"mask": reps["mask"]}):
            want = estimate(old.denoiser, old.conditions, subset)
            assert torch.equal(estimate(denoiser, conditions, subset), want)
            assert torch.equal(estimate(denoiser, conditions, subset | {"ninth": given["ninth"]}), want)


@every_adapter
def test_a_silent_adapter_learns(saved, reps, name):
    """The last layers at once, all of it after a step of theirs."""
    denoiser, known = plan()
    conditions = ConditionSet(known | {"ninth": ADAPTERS[name]()})
    given = reps | {"ninth": value_of(conditions["ninth"])}
    warm_start(denoiser, conditions, SIZE, saved)
    ninth = conditions["ninth"]
    optimizer = torch.optim.SGD(ninth.parameters(), lr=1e-2)
    moved = []
    for _ in range(2):
        optimizer.zero_grad()
        estimate(denoiser, conditions, given).square().mean().backward()
        moved.append({name for name, p in ninth.named_parameters() if p.grad is not None and p.grad.any()})
        optimizer.step()
    assert moved[0] and moved[0] < moved[1]
    assert all(p.grad is not None for p in ninth.parameters())  # none that data-parallel training would wait for
    # a bias of keys never moves a softmax; rows of an embedding that no value names, and padding, are not read
    assert {n for n, _ in ninth.named_parameters()} - moved[1] <= {"pool.to_key.bias", "padding"}


@pytest.mark.parametrize(
    ("adapter", "says"),
    [
        (lambda: Vector(5, 32, 16), "condition ninth .* or num_tokens: 0"),
        (lambda: Text(6, 32, 16), "condition ninth .* token_dim: 0"),
        (lambda: TextTransformer(20, 8, 1, 2, 32, 16, length=9), "condition ninth .* token_dim: 0"),
        (lambda: LowRes(4), "start from an upsampler"),
        (lambda: Spatial(1, 8), "ninth with the network's spatial_dim of 4, found 8"),
        (lambda: Vector(5, 16, 16, num_tokens=0), "ninth with the network's vector_dim of 32, found 16"),
    ],
)
def test_conditions_that_cannot_be_added(saved, adapter, says):
    denoiser, known = plan()
    with pytest.raises(ValueError, match=says):
        warm_start(denoiser, ConditionSet(known | {"ninth": adapter()}), SIZE, saved)


def test_zeros_as_tokens_would_not_be_nothing(saved, reps):
    """Why tokens are refused: they take their share of attention."""
    denoiser, known = plan()
    conditions = ConditionSet(known | {"ninth": Vector(5, 32, 16)})
    warm_start(denoiser, ConditionSet(known), SIZE, saved)
    zero(conditions["ninth"])
    with torch.no_grad():
        without = estimate(denoiser, conditions, reps)
        assert not torch.equal(estimate(denoiser, conditions, reps | {"ninth": torch.ones(2, 5)}), without)


def test_a_network_without_a_map_takes_none(tmp_path):
    spec = json.loads(json.dumps(TINY))
    (stage,) = spec["stages"]
    stage["denoiser"]["init_args"]["network"]["init_args"]["spatial_dim"] = 0
    stage["conditions"] = {"palette": stage["conditions"]["palette"]}
    spec["decomposers"] = {"palette": spec["decomposers"]["palette"]}
    Cascade.from_spec(spec).save(tmp_path / "model", "")
    built = Stage.from_spec(stage)
    conditions = ConditionSet({**dict(built.conditions.named()), "ninth": Spatial(1, 4)})
    with pytest.raises(ValueError, match=r"ninth is a map, and this network reads none \(spatial_dim: 0\)"):
        warm_start(built.denoiser, conditions, SIZE, tmp_path / "model")


def test_all_else_stays_strict(saved):
    denoiser, known = plan()
    with pytest.raises(ValueError, match=r"foreign \(first: conditions.mask"):
        warm_start(denoiser, ConditionSet({n: c for n, c in known.items() if n != "mask"}), SIZE, saved)
    denoiser, known = plan()
    with pytest.raises(ValueError, match=r"of another shape \(first: conditions.mask.encode.0"):
        warm_start(denoiser, ConditionSet(known | {"mask": Spatial(3, 4, hidden=4)}), SIZE, saved)
    with pytest.raises(ValueError, match="with the condition low_res"):
        warm_start(denoiser, ConditionSet(known | {"low_res": LowRes(4)}), SIZE, saved)
    with pytest.raises(FileNotFoundError, match="expected a model folder"):
        warm_start(denoiser, ConditionSet(known), SIZE, saved / "nowhere")
    weights = load((saved / "base.safetensors").read_bytes())  # load_file may lean on the file, which is written anew
    for gone in ("denoiser.network.first.weight", "conditions.palette.to_vector.0.bias"):
        save_file({n: t for n, t in weights.items() if n != gone}, saved / "base.safetensors")
        manifest = json.loads((saved / "manifest.json").read_text())
        manifest["base.safetensors"] = digest(saved / "base.safetensors")
        (saved / "manifest.json").write_text(json.dumps(manifest))
        denoiser, known = plan()
        with pytest.raises(ValueError, match=rf"1 missing \(first: {gone}\)"):
            warm_start(denoiser, ConditionSet(known | {"ninth": Spatial(1, 4)}), SIZE, saved)


def test_of_a_cascade_the_stage_that_fits():
    """`scenes256` ships: a stage of 64 px and one that enlarges to 256."""
    shipped = Cascade.load("scenes256")
    for stage in shipped.stages:
        built = Stage.from_spec(stage.spec)
        assert warm_start(built.denoiser, built.conditions, stage.size, "scenes256") == (stage.spec["file"], [])
        ours, theirs = built.weights().state_dict(), stage.weights().state_dict()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    base = Stage.from_spec(shipped.stages[0].spec)
    with pytest.raises(ValueError, match=r"a stage of 128 px without .* \(64 px, without\), .* \(256 px, with\)"):
        warm_start(base.denoiser, base.conditions, 128, "scenes256")


def training(saved, train_only=("ninth",), **kwargs):
    denoiser, known = plan()
    chosen = None if train_only is None else list(train_only)
    options = {"learning_rate": 1e-2, "warmup_steps": 0, "weight_decay": 0.1} | kwargs
    conditions = known | {"ninth": Spatial(1, 4, hidden=4, dropout=0.2)}
    return StageTraining(denoiser, conditions, SIZE, start_from=str(saved), train_only=chosen, **options)


def fit(root, model, steps=3, resume=None, every=100, size=SIZE, data=None):
    decomposers = {"palette": Palette(), "intensity": Intensity(), "mask": Mask(), "ninth": Sketch()}
    data = data or ImageData(SceneImages("train", size, 8), SceneImages("val", size, 2), decomposers, batch_size=2)
    average = EMA(0.9)
    trainer = L.Trainer(
        accelerator="cpu",
        default_root_dir=root,
        max_steps=steps,
        callbacks=[average, Checkpoints(every)],
        plugins=[AtomicCheckpointIO()],
        val_check_interval=2,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        gradient_clip_val=1.0,
        logger=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    trainer.fit(model, data, ckpt_path=resume)
    return trainer, average


def test_what_is_frozen_stays_and_the_new_condition_moves(saved, tmp_path, capsys):
    old, model = load_file(saved / "base.safetensors"), training(saved)
    trainer, average = fit(tmp_path, model)
    assert "starting from base.safetensors" in (said := capsys.readouterr().err) and "at first: ninth" in said
    now = model.state_dict()
    assert old.keys() < now.keys() and all(torch.equal(now[name], old[name]) for name in old)  # no weight decay either
    ninth = {f"conditions.ninth.encode.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")}
    assert now.keys() - old.keys() == ninth and all(now[name].any() for name in ninth)
    assert average.shadow.keys() == ninth and float(model.grad_norm) > 0
    (group,) = trainer.optimizers[0].param_groups
    assert {id(p) for p in group["params"]} == {id(p) for p in model.conditions["ninth"].parameters()}


def test_the_rest_may_train_too(saved, tmp_path):
    old, model = load_file(saved / "base.safetensors"), training(saved, train_only=None)
    fit(tmp_path, model)
    now = model.state_dict()
    assert sum(not torch.equal(now[name], old[name]) for name in old) > 0.9 * len(old)
    assert now["conditions.ninth.encode.2.weight"].any()


def test_a_larger_size_starts_from_a_smaller_one(saved, tmp_path, capsys, monkeypatch):
    """A model of one stage gives its weights to the same plan at any size; the average begins anew with them."""
    denoiser, known = plan()
    model = StageTraining(denoiser, known, 2 * SIZE, start_from=str(saved), learning_rate=1e-2, warmup_steps=0)
    seen = []

    def keep(*_):
        seen.append({n: p.detach().clone() for n, p in model.named_parameters()})

    monkeypatch.setattr(model, "on_train_batch_start", keep)
    _, average = fit(tmp_path, model, steps=1, size=2 * SIZE)
    assert "starting from base.safetensors" in capsys.readouterr().err
    old = load_file(saved / "base.safetensors")
    assert old.keys() == seen[0].keys() and all(torch.equal(seen[0][name], old[name]) for name in old)
    for name, p in model.named_parameters():  # the first update keeps 2 / 11
        torch.testing.assert_close(average.shadow[name], torch.lerp(old[name], p.detach(), 9 / 11))


def test_a_resumed_run_is_the_run_that_was_not_interrupted(saved, tmp_path):
    whole, broken, resumed = training(saved), training(saved), training(saved)
    _, want = fit(tmp_path / "whole", whole, steps=5)
    fit(tmp_path / "broken", broken, steps=2)
    _, got = fit(tmp_path / "broken", resumed, steps=5, resume=tmp_path / "broken/checkpoints/last.ckpt")
    for a, b in ((whole.state_dict(), resumed.state_dict()), (want.shadow, got.shadow)):
        assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    saves = [checkpoints.load(tmp_path / name / "checkpoints/last.ckpt") for name in ("whole", "broken")]
    moments = [save["optimizer_states"][0]["state"] for save in saves]
    assert len(moments[0]) == 4  # of two convolutions
    assert all(torch.equal(moments[0][i][key], moments[1][i][key]) for i in moments[0] for key in moments[0][i])


def test_what_train_only_may_name(saved):
    with pytest.raises(ValueError, match="train_only out of palette, intensity, mask, ninth, first; found nineth"):
        training(saved, train_only=["nineth"])
    with pytest.raises(ValueError, match="found none"):
        training(saved, train_only=[])
    denoiser, known = plan()
    with pytest.raises(ValueError, match="name that model with start_from"):
        StageTraining(denoiser, known, SIZE, train_only=["mask"])


def widened(saved, was, to, **more):
    """A trained model whose network has `was` map channels, the same plan with `to`, and new conditions."""
    spec = json.loads(json.dumps(TINY["stages"][0]))
    network = spec["denoiser"]["init_args"]["network"]["init_args"]
    spec["conditions"] = {"palette": spec["conditions"]["palette"]}
    if was:
        spec["conditions"]["mask"] = {
            "class_path": "conditions.Spatial",
            "init_args": {"in_channels": 4, "spatial_dim": was},
        }
    network["spatial_dim"] = was
    torch.manual_seed(3)
    old = Cascade.from_spec(
        {**TINY, "stages": [spec], "decomposers": {k: TINY["decomposers"][k] for k in spec["conditions"]}}
    )
    for parameter in old.stages[0].weights().parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    old.save(saved / "old")
    network["spatial_dim"] = to
    if was:
        spec["conditions"]["mask"]["init_args"]["spatial_dim"] = to
    new = Stage.from_spec(spec)
    new.weights().requires_grad_(True)
    return old.stages[0], new.denoiser, ConditionSet(dict(new.conditions.named()) | more)


@pytest.mark.parametrize("was", [0, 4])
def test_maps_join_a_network_that_had_fewer(tmp_path, reps, was):
    old, denoiser, conditions = widened(tmp_path, was, 7, sketch=Spatial(1, 7), instances=Instances(3, 7))
    warm_start(denoiser, conditions, SIZE, tmp_path / "old")
    known = {name: reps[name] for name in old.conditions}
    new = {"sketch": torch.rand(2, 1, SIZE, SIZE), "instances": torch.ones(2, 2, SIZE, SIZE)}
    with torch.no_grad():
        want = estimate(old.denoiser, old.conditions, known)
        for given in (known, known | new):
            torch.testing.assert_close(estimate(denoiser, conditions, given), want, atol=1e-5, rtol=0)
    trained = [denoiser.network.first.weight, *conditions["sketch"].parameters()]
    optimizer = torch.optim.SGD(trained, lr=1e-2)
    before = [p.clone() for p in trained]
    for _ in range(2):
        optimizer.zero_grad()
        estimate(denoiser, conditions, known | new).square().mean().backward()
        optimizer.step()
    assert all(not torch.equal(a, b) for a, b in zip(before, trained, strict=True))
    assert not torch.equal(before[0][:, -1], trained[0][:, -1])  # the new columns


def test_maps_join_a_model_with_a_gate(tmp_path, reps):
    old, denoiser, conditions = widened(tmp_path, 0, 7, palette=Vector(156, 32, 16, shares=True, gate=True))
    folder = tmp_path / "old"
    gated = ConditionSet(dict(old.conditions.named()) | {"palette": conditions["palette"]})
    trained = torch.nn.ModuleDict({"denoiser": old.denoiser, "conditions": gated})
    config = json.loads((folder / "config.json").read_text())
    config["stages"][0]["conditions"]["palette"]["init_args"]["gate"] = True
    write_model(folder, config, {"base.safetensors": trained.state_dict()}, "")
    assert warm_start(denoiser, conditions, SIZE, folder) == ("base.safetensors", [])


@pytest.mark.parametrize("kind", ["vector", "text"])
def test_tokens_join_behind_a_gate(saved, reps, cascade, kind):
    """Step 0 is the old model within 1e-3; without tokens (above) it is that bit for bit."""
    denoiser, known = plan()
    ninth = Vector(5, 32, 16, gate=True) if kind == "vector" else Text(6, 32, 16, gate=True)
    conditions = ConditionSet(known | {"ninth": ninth})
    warm_start(denoiser, conditions, SIZE, saved)
    for parameter in denoiser.parameters():  # the tiny model attends to nothing yet
        parameter.data += 0.05 * torch.randn_like(parameter)
    given = reps | {"ninth": value_of(ninth)}
    with torch.no_grad():
        want = estimate(denoiser, ConditionSet(known), reps)
        assert 0 < (estimate(denoiser, conditions, given) - want).abs().max() < 1e-3
        ninth.gate.logarithm.zero_()
        assert (estimate(denoiser, conditions, given) - want).abs().max() > 3e-3
        ninth.gate.close()
    optimizer = torch.optim.AdamW(ninth.parameters(), lr=1e-3, weight_decay=0)
    before = ninth.gate(torch.ones(1, 1, dtype=torch.bool)).item()
    for _ in range(3):
        optimizer.zero_grad()
        estimate(denoiser, conditions, given).square().mean().backward()
        optimizer.step()
    after = ninth.gate(torch.ones(1, 1, dtype=torch.bool)).item()
    assert abs(after / before - 1) > 0.1  # three steps at 1e-3: it moves fast


def test_a_gate_weighs_tokens_in_attention():
    """A weight of 2 is a token that stands twice: e^s counts twice in the softmax."""
    from composer.networks.attention import Attention, attend_by_matmul
    from composer.networks.norm import GroupNorm

    layer = Attention(32, 16, 8, lambda c: GroupNorm(1, c))
    torch.nn.init.normal_(layer.out.weight)
    x, tokens = torch.randn(2, 32, 4, 4), torch.randn(2, 3, 8)
    twice = torch.cat([tokens, tokens[:, :1]], 1)
    weighed = layer(x, layer.keys_values(tokens), torch.tensor([[2.0, 1.0, 1.0]]).expand(2, 3))
    torch.testing.assert_close(weighed, layer(x, layer.keys_values(twice)), atol=1e-5, rtol=0)
    none = layer(x, layer.keys_values(tokens), torch.tensor([[0.0, 1.0, 1.0]]).expand(2, 3))
    torch.testing.assert_close(none, layer(x, layer.keys_values(tokens[:, 1:])), atol=1e-5, rtol=0)
    q, mask = torch.randn(1, 2, 5, 8), torch.tensor([[[[0.0, -1.0, 0.5, -torch.inf, 2.0]]]])
    want = torch.nn.functional.scaled_dot_product_attention(q, q, q, mask)
    torch.testing.assert_close(attend_by_matmul(q, q, q, mask), want, atol=1e-5, rtol=0)
