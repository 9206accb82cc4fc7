"""Muon against the singular value decomposition, torch's own for matrices, and AdamW; and that it resumes exactly."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from composer.training.muon import Muon, orthogonalise
from composer.training.stage import StageTraining
from tests.training.test_warm_start import plan


def draws(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(24, 60), (60, 24), (32, 32)])
def test_singular_values_become_about_1_and_vectors_stay(shape):
    u, s, v = torch.linalg.svd(draws(*shape), full_matrices=False)
    s = s * torch.logspace(0, -1, len(s))  # some directions are much rarer than others
    turned = u.T @ orthogonalise(u @ s.diag() @ v).float() @ v.T  # diagonal, if the vectors stayed
    wanted = s.double() / s.norm()
    for _ in range(5):
        wanted = 3.4445 * wanted - 4.7750 * wanted**3 + 2.0315 * wanted**5
    assert (turned - wanted.float().diag()).abs().max() < 0.06  # bfloat16
    assert s.max() / s.min() > 15 and wanted.max() / wanted[:-1].min() < 2


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has it from 2.9 on")
@pytest.mark.parametrize("shape", [(12, 20), (20, 12)])
def test_a_matrix_moves_as_by_torchs_muon(shape):
    ours, theirs, bias = (nn.Parameter(draws(*shape)), nn.Parameter(draws(*shape)), nn.Parameter(torch.zeros(1)))
    optimizers = [Muon([ours], [bias], 0.1, 0.9, 0.05), torch.optim.Muon([theirs], 0.1, 0.05, 0.9)]
    for step in range(5):
        ours.grad, theirs.grad = draws(*shape, seed=step), draws(*shape, seed=step)
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(ours, theirs)
    assert (ours - draws(*shape)).abs().max() > 0.1


def test_a_convolution_moves_as_its_matrix():
    """In channels_last too, as the U-Net has it."""
    start = draws(8, 4, 3, 3)
    conv = nn.Parameter(start.clone().contiguous(memory_format=torch.channels_last))
    matrix, bias = nn.Parameter(start.flatten(1)), nn.Parameter(torch.zeros(1))
    optimizer = Muon([conv, matrix], [bias])
    for step in range(3):
        gradient = draws(8, 4, 3, 3, seed=step)
        conv.grad, matrix.grad = gradient.contiguous(memory_format=torch.channels_last), gradient.flatten(1)
        optimizer.step()
    torch.testing.assert_close(conv.detach().flatten(1), matrix.detach())


def test_the_others_move_as_by_adamw():
    ours, theirs = [nn.Parameter(draws(5, 6))], [nn.Parameter(draws(5, 6))]
    options: dict[str, Any] = {"lr": 1e-2, "betas": (0.8, 0.9), "weight_decay": 0.1, "fused": True}
    idle = nn.Parameter(draws(3, 3))
    optimizers = [Muon([idle], ours, **options), torch.optim.AdamW(theirs, **options)]
    for step in range(4):
        for (p,), optimizer in zip((ours, theirs), optimizers, strict=True):
            p.grad = draws(5, 6, seed=step)
            optimizer.step()
    assert torch.equal(*ours, *theirs)
    assert torch.equal(idle, draws(3, 3))  # it had no gradient


def test_a_stage_gives_muon_its_inner_convolutions():
    denoiser, conditions = plan()
    model = StageTraining(denoiser, conditions, size=16, muon_rate=0.03, learning_rate=1e-3, warmup_steps=1)
    optimizer = model.configure_optimizers()["optimizer"]
    adamw, muon = optimizer.param_groups
    names = {id(p): name for name, p in model.named_parameters()}
    inner = {names[id(p)] for p in muon["params"]}
    convolutions = {
        name for name, p in model.named_parameters() if p.ndim == 4 and name.startswith("denoiser.network.")
    }
    assert inner == convolutions - {"denoiser.network.first.weight", "denoiser.network.last.2.weight"}
    assert len(inner) > 4 and inner.isdisjoint(names[id(p)] for p in adamw["params"])
    assert len(muon["params"]) + len(adamw["params"]) == len(names)
    assert (adamw["initial_lr"], muon["initial_lr"]) == (1e-3, 0.03)
    assert muon["lr"] / muon["initial_lr"] == adamw["lr"] / adamw["initial_lr"] == 0.5  # the warm-up is of both
    with pytest.raises(ValueError, match="muon_rate > 0"):
        StageTraining(denoiser, conditions, size=16, muon_rate=0)


def test_a_loaded_state_goes_on_exactly():
    def make():
        matrix, bias = nn.Parameter(draws(6, 9)), nn.Parameter(draws(6))
        return matrix, bias, Muon([matrix], [bias], lr=1e-2, fused=True)

    def step(pair, number):
        matrix, bias, optimizer = pair
        matrix.grad, bias.grad = draws(6, 9, seed=number), draws(6, seed=number)
        optimizer.step()

    whole, broken = make(), make()
    for number in range(6):
        step(whole, number)
    for number in range(3):
        step(broken, number)
    resumed = make()
    with torch.no_grad():
        for new, old in zip(resumed[:2], broken[:2], strict=True):
            new.copy_(old)
    resumed[2].load_state_dict(copy.deepcopy(broken[2].state_dict()))
    for number in range(3, 6):
        step(resumed, number)
    assert all(torch.equal(a, b) for a, b in zip(whole[:2], resumed[:2], strict=True))
