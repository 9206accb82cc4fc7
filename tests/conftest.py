import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


@pytest.fixture
def batch():
    """Two small images with structure, as a dataset would yield them."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, 32), torch.linspace(-1, 1, 32), indexing="ij")
    disc = ((x**2 + y**2) < 0.4).float() * 2 - 1
    image = torch.stack([torch.stack([disc, x, y]), torch.stack([y, disc, -x])])
    return {"image": image, "caption": ["a red disc", "a green disc"], "seed": torch.tensor([1, 2])}
