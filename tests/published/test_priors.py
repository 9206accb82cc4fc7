"""Published priors: against their authors' outputs, against diffusers, and from files to embeddings."""

import math

import pytest
import torch
from diffusers import PriorTransformer
from torch.nn import functional as F

from composer import Cascade
from composer.__main__ import main
from composer.diffusion.denoiser import SquaredCosine
from composer.diffusion.samplers import cosine_sigmas, dpmpp_2m, latents
from composer.networks.transformer import TransformerBlock
from composer.prior import DiffusionPrior, Prior
from composer.prior.interface import to_sphere
from composer.prior.pca import fit_pca
from composer.prior.taking import load_prior
from composer.published import FAMILIES, Needs, export_diffusers, import_model
from composer.published.engine import Row, Transform, convert, revert
from composer.published.importing import network_of, share_out
from decomposers import Caption
from tests.decomposers.test_clip_decomposers import tiny, write_folder
from tests.published import kit
from tests.published import layouts as own

STATS = {"stats.0": (768,), "stats.1": (768,)}
RELEASED = {
    "karlo-prior": ("karlo_prior", own.karlo_prior() | STATS),
    "alibaba-prior": ("modelscope_prior", own.alibaba_prior()),
}
HEADS = 4  # of the kit's tiny networks; shapes do not tell
DIM, WIDTH, LAYERS = 64, 128, 2


def converted(family, theirs, heads=HEADS):
    """A prior of ours with published weights, and nothing known of empty captions."""
    spec = family.configure(theirs, 0, Needs())
    spec["priors"][0]["init_args"]["heads"] = heads
    prior = network_of(spec)
    state = prior.state_dict()
    rows = [
        row if row.theirs else Row(row.ours, (), Transform("", lambda name=row.ours: state[name]))
        for row in family.rows(prior, Needs())
    ]
    prior.load_state_dict(convert(rows, theirs, state, family.left).tensors)
    return prior.eval()


def estimate(prior, x, t, caption):
    """A prior's estimate at steps of its schedule, of embeddings at unit variance."""
    sigma = SquaredCosine().table[t].exp().float()
    z = x * (sigma**2 + 1).sqrt()[:, None]
    return prior(z[:, None], sigma[:, None], caption, torch.ones(len(x), dtype=torch.bool))[:, 0]


def with_sentence(words, mask, sentence):
    """Encoded captions."""
    words = torch.cat([words, mask.float()[..., None]], -1)
    return torch.cat([words, torch.cat([sentence, torch.ones(len(sentence), 1)], 1)[:, None]], 1)


@kit.needs_kit
@pytest.mark.parametrize("name", RELEASED)
def test_our_layouts_are_the_released_ones(name):
    released, shapes = RELEASED[name]
    assert {key: list(shape) for key, shape in shapes.items() if key not in STATS} == kit.layouts()[released]


@pytest.mark.parametrize("name", RELEASED)
def test_every_tensor_of_a_released_prior_has_its_place(name):
    family, theirs = FAMILIES[name], {k: torch.empty(shape, device="meta") for k, shape in RELEASED[name][1].items()}
    assert family.recognises(theirs)
    assert set(family.released.values()) == {(len(theirs), sum(x.numel() for x in theirs.values()))}
    with torch.device("meta"):
        prior = network_of(family.configure(theirs, 0, Needs()))
    done = convert(family.rows(prior, Needs()), theirs, prior.state_dict(), family.left)
    assert done.tensors.keys() == prior.state_dict().keys()
    assert {n for row in done.report for n in row["theirs"]} | done.left.keys() == theirs.keys()
    assert done.left.keys() <= {"attn_mask"}


@kit.needs_kit
@torch.no_grad()
def test_karlos_estimates_are_those_of_its_authors_code():
    given = kit.inputs("karlo_prior")
    stats = {"stats.0": torch.zeros(20), "stats.1": torch.ones(20)}
    prior = converted(FAMILIES["karlo-prior"], kit.weights("karlo_prior") | stats)
    caption = with_sentence(given["words"], given["mask"], given["sentence"])
    found = estimate(prior, given["x"], given["t"].long(), caption)
    assert (found - kit.output("karlo_prior")).abs().max() < 1e-6


@kit.needs_kit
@torch.no_grad()
def test_alibabas_estimates_are_those_of_its_authors_code(monkeypatch):
    plain = TransformerBlock.forward
    monkeypatch.setattr(TransformerBlock, "forward", lambda self, x, attended, extend: plain(self, x, None, extend))
    assert kit.weights("modelscope_prior")["attn_mask"].all()  # the kit's mask is random too, and hides nothing
    given = kit.inputs("modelscope_prior")
    prior = converted(FAMILIES["alibaba-prior"], kit.weights("modelscope_prior"))
    prior.captions.scaled = False  # the kit's embeddings are of any length
    caption = with_sentence(torch.zeros(2, 0, 20), torch.zeros(2, 0), given["y"])
    found = estimate(prior, given["x"], given["t"].long(), caption)
    assert (found - kit.output("modelscope_prior")).abs().max() < 1e-6


@torch.no_grad()
def test_alibabas_estimates_are_torchs_with_a_causal_mask():
    theirs = own.fill(own.alibaba_prior(WIDTH, LAYERS, DIM))
    heads, x, y, t = WIDTH // 64, torch.randn(3, DIM), torch.randn(3, DIM), torch.tensor([0, 431, 998])

    def mlp(name, x):
        (w, b), (w2, b2) = ((theirs[f"{name}.{i}.weight"], theirs[f"{name}.{i}.bias"]) for i in (0, 2))
        return F.linear(F.silu(F.linear(x, w, b)), w2, b2)

    angles = t[:, None] * torch.exp(torch.arange(WIDTH // 2) * (-math.log(10000) / (WIDTH // 2)))
    tokens = [mlp("text_embedding", y), mlp("time_embedding", torch.cat([angles.cos(), angles.sin()], 1))]
    tokens += [mlp("vision_embedding", x), theirs["eos_embedding"][0].expand(3, -1)]
    h = torch.stack(tokens, 1) + theirs["pos_embedding"]
    for i in range(LAYERS):
        layer = torch.nn.TransformerEncoderLayer(WIDTH, heads, 4 * WIDTH, 0, "gelu", batch_first=True, norm_first=True)
        names = {"norm1": "norm1", "norm2": "norm2", "linear1": "ffn.0", "linear2": "ffn.2"}
        names |= {"self_attn.out_proj": "attn.proj"}
        kinds = ("weight", "bias")
        state = {f"{a}.{kind}": theirs[f"blocks.{i}.{b}.{kind}"] for a, b in names.items() for kind in kinds}
        state |= {f"self_attn.in_proj_{kind}": theirs[f"blocks.{i}.attn.to_qkv.{kind}"] for kind in kinds}
        layer.load_state_dict(state)
        h = layer(h, torch.ones(4, 4, dtype=torch.bool).triu(1))
    h = F.layer_norm(h[:, -1], (WIDTH,), theirs["norm.weight"], theirs["norm.bias"])
    prior = converted(FAMILIES["alibaba-prior"], theirs, heads)
    prior.captions.scaled = False
    found = estimate(prior, x, t, with_sentence(torch.zeros(3, 0, DIM), torch.zeros(3, 0), y))
    assert (found - F.linear(h, theirs["head.weight"], theirs["head.bias"])).abs().max() < 1e-5


def independent(length=77):
    """Diffusers' network with random weights."""
    torch.manual_seed(4)
    made = PriorTransformer(
        num_attention_heads=WIDTH // 64,
        attention_head_dim=64,
        num_layers=LAYERS,
        embedding_dim=DIM,
        num_embeddings=length,
    )
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.08)
    made.clip_std.data.abs_().add_(0.5)
    return made.eval()


NAMES = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "proj_in": "clip_img_proj",
    "embedding_proj": "text_emb_proj",
    "encoder_hidden_states_proj": "text_enc_proj",
    "norm_out": "final_ln",
    "proj_to_clip_embeddings": "out_proj",
}
BLOCK = {"norm1": "ln_1", "norm3": "ln_2", "attn1.to_out.0": "attn.c_proj"}
BLOCK |= {"ff.net.0.proj": "mlp.c_fc", "ff.net.2": "mlp.c_proj"}


def authors_layout(network):
    """Diffusers' weights under Karlo's own names."""
    state, made, heads = network.state_dict(), {}, WIDTH // 64
    layers = dict(NAMES)
    for i in range(LAYERS):
        ours, theirs = f"transformer_blocks.{i}", f"transformer.resblocks.{i}"
        layers |= {f"{ours}.{a}": f"{theirs}.{b}" for a, b in BLOCK.items()}
        for kind in ("weight", "bias"):
            parts = [state[f"{ours}.attn1.to_{part}.{kind}"].unflatten(0, (heads, -1)) for part in "qkv"]
            made[f"{theirs}.attn.c_qkv.{kind}"] = torch.stack(parts, 1).flatten(0, 2)
    for theirs, name in layers.items():
        made |= {f"{name}.{kind}": state[f"{theirs}.{kind}"] for kind in ("weight", "bias")}
    made |= {"positional_embedding": state["positional_embedding"], "prd_emb": state["prd_embedding"]}
    assert {name: tuple(x.shape) for name, x in made.items()} == own.karlo_prior(WIDTH, LAYERS, 77, DIM, DIM)
    return made, (state["clip_mean"][0], state["clip_std"][0])


@torch.no_grad()
def test_karlos_estimates_are_diffusers():
    network = independent()
    theirs, (mean, std) = authors_layout(network)
    prior = converted(FAMILIES["karlo-prior"], theirs | {"stats.0": mean, "stats.1": std}, WIDTH // 64)
    words, sentence, x = torch.randn(3, 77, DIM), torch.randn(3, DIM), torch.randn(3, DIM)
    mask, t = torch.arange(77) < torch.tensor([[5], [77], [2]]), torch.tensor([0, 431, 998])
    expected = network(x, t, sentence, words, mask).predicted_image_embedding
    found = estimate(prior, x, t, with_sentence(words, mask, sentence))
    assert (found - expected).abs().max() < 1e-5


@torch.no_grad()
def test_karlos_prior_in_diffusers_layout_is_read_and_written(tmp_path, clip):
    network = independent()
    network.save_pretrained(tmp_path / "theirs")
    file = tmp_path / "theirs/diffusion_pytorch_model.safetensors"
    (done,) = import_model({"karlo-prior-diffusers": file}, tmp_path / "ours", Needs(clip=clip))
    assert {name for row in done.report for name in row["theirs"]} == network.state_dict().keys()
    prior = Prior.load(tmp_path / "ours")
    words, sentence, x = torch.randn(3, 77, DIM), torch.randn(3, DIM), torch.randn(3, DIM)
    mask, t = torch.arange(77) < torch.tensor([[5], [77], [2]]), torch.tensor([0, 431, 998])
    expected = network(x, t, sentence, words, mask).predicted_image_embedding
    assert (estimate(prior, x, t, with_sentence(words, mask, sentence)) - expected).abs().max() < 1e-5
    (path,) = export_diffusers(tmp_path / "ours", tmp_path / "again")
    again = PriorTransformer.from_pretrained(path)
    assert (again(x, t, sentence, words, mask).predicted_image_embedding - expected).abs().max() < 1e-5
    assert (again.post_process_latents(x) - network.post_process_latents(x)).abs().max() < 1e-6


def test_the_released_prior_has_a_place_for_every_tensor_in_diffusers_layout():
    shapes = RELEASED["karlo-prior"][1]
    theirs = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    spec = FAMILIES["karlo-prior"].configure(theirs, 0, Needs())
    with torch.device("meta"):
        prior = network_of(spec)
    family, state = FAMILIES["karlo-prior-diffusers"], prior.state_dict()
    made = revert(family.rows(prior, Needs()), state)
    assert family.recognises(made) and family.configure(made, 0, Needs()) == spec
    assert (len(made), sum(x.numel() for x in made.values())) in family.released.values()
    assert convert(family.rows(prior, Needs()), made, state).tensors.keys() == state.keys()


def test_priors_that_diffusers_has_no_class_for_are_refused(tmp_path):
    with pytest.raises(ValueError, match="scenes_prior_diffusion: diffusers has no class for this prior"):
        export_diffusers("scenes_prior_diffusion", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def clip(tmp_path):
    return write_folder(tiny(True, embed_dim=DIM), tmp_path / "clip", True, embed_dim=DIM)


@torch.no_grad()
def test_from_karlos_files_to_embeddings(tmp_path, clip, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    network = independent()
    theirs, stats = authors_layout(network)
    torch.save({"state_dict": {f"model.{name}": x for name, x in theirs.items()}}, "prior.ckpt")
    torch.save(stats, "stats.th")
    assert not main(["import", "prior.ckpt", "stats.th", "--as", "karlo-prior", "--check"])
    assert "prior.ckpt and stats.th: 42 tensors" in capsys.readouterr().out
    assert not main(["import", "prior.ckpt", "stats.th", "--as", "karlo-prior", "--out", "prior", "--clip", clip])
    prior = Prior.load("prior")
    assert isinstance(prior, DiffusionPrior)
    prior.steps = 5
    found = prior.sample(["a red cube", ""], seeds=[3, 4])

    values = Caption(weights=clip, empty=True)({"caption": ["a red cube", ""]})
    words, mask, sentence = values[:, :77, :DIM], values[:, :77, -1] > 0.5, values[:, 77, :DIM]

    def ask(x, t, row):
        rows = [row, row] if isinstance(row, int) else row
        return network(x, t, sentence[rows], words[rows], mask[rows]).predicted_image_embedding

    def denoise(z, sigma):
        x, t = z * (sigma**2 + 1).rsqrt()[:, None], 1000 * SquaredCosine().step(sigma)
        asked, nothing = ask(x, t, [0, 1]), ask(x, t, 1)
        return (nothing + 4 * (asked - nothing)).clamp(-10, 10)

    sigmas = cosine_sigmas(5)
    drawn = dpmpp_2m(denoise, latents([3, 4], (DIM,)) * sigmas[0], sigmas)
    assert (found - network.post_process_latents(drawn)).abs().max() < 1e-4
    torch.save(own.fill(own.karlo_decoder(32, (1, 2), 1, (2,), clip=DIM, words=DIM, context=24)), "decoder.pt")
    assert not main(["import", "decoder.pt", "--as", "karlo-decoder", "--out", "karlo", "--clip", clip])
    few = ["--caption", "a red cube", "--steps", "2", "--out", "out"]
    assert not main(["compose", "--model", "karlo", "--prior", "prior", *few])
    assert not torch.allclose(found.norm(dim=1), torch.tensor(math.sqrt(DIM)), rtol=0.01)  # as long as CLIP's


@torch.no_grad()
def test_from_alibabas_file_to_embeddings(tmp_path, clip):
    tensors = own.fill(own.alibaba_prior(WIDTH, LAYERS, DIM)) | {"attn_mask": torch.ones(1, 1, 4, 4)}
    torch.save(tensors, tmp_path / "prior.pt")
    with pytest.raises(ValueError, match="expected attn_mask to hide later tokens"):
        import_model({"alibaba-prior": tmp_path / "prior.pt"}, tmp_path / "prior", Needs(clip=clip))
    torch.save(tensors | {"attn_mask": torch.ones(1, 1, 4, 4).tril()}, tmp_path / "prior.pt")
    import_model({"alibaba-prior": tmp_path / "prior.pt"}, tmp_path / "prior", Needs(clip=clip))
    torch.save(own.fill(own.karlo_decoder(32, (1, 2), 1, (2,), clip=DIM, words=DIM, context=24)), tmp_path / "karlo.pt")
    import_model({"karlo-decoder": tmp_path / "karlo.pt"}, tmp_path / "karlo", Needs(clip=clip))
    with pytest.raises(
        ValueError, match=r"reads embeddings as long as CLIP makes them.* draws them of length sqrt\(64\)"
    ):
        load_prior(Cascade.load(tmp_path / "karlo"), str(tmp_path / "prior"), ())
    prior = Prior.load(tmp_path / "prior")
    assert isinstance(prior, DiffusionPrior)
    prior.steps = 3
    drawn = prior.sample(["a red cube", "a blue disc"], n=2)
    torch.testing.assert_close(drawn, to_sphere(drawn))
    assert (drawn[:2] - drawn[2:]).abs().max() > 1e-3

    z, sigma = torch.randn(1, 1, DIM), torch.tensor([[2.0]])
    dropped = prior(z, sigma, prior.encode({"caption": ["a red cube"]}), torch.tensor([False]))
    empty = Caption(weights=clip, empty=True)({"caption": [""]})
    torch.testing.assert_close(dropped, prior(z, sigma, empty, torch.tensor([True])))


def test_what_is_wrong_with_a_priors_files_is_said(tmp_path, clip):
    stats, prior = tmp_path / "stats.th", tmp_path / "prior.pt"
    torch.save((torch.zeros(DIM), torch.ones(DIM)), stats)
    torch.save(own.fill(own.karlo_prior(WIDTH, LAYERS, 77, DIM, DIM)), prior)
    torch.save(own.fill(own.alibaba_prior(WIDTH, LAYERS, DIM)), tmp_path / "alibaba.pt")
    for files, said in (
        ({"karlo-prior": prior}, "made of 2 files, in this order: the prior; ViT-L-14_stats.th"),
        ({"karlo-prior": [stats, prior]}, "stats.th is not a file of karlo-prior"),
        ({"karlo-prior": [prior, prior]}, "2 tensors are missing in the file, the first of them stats.0"),
        ({"karlo-prior": [prior, stats], "alibaba-prior": tmp_path / "alibaba.pt"}, "import it alone"),
    ):
        with pytest.raises(ValueError, match=said):
            import_model(files, tmp_path / "out", Needs(clip=clip))
        assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="karlo-prior is made of 2, found 1 files"):
        share_out([str(prior)], ["karlo-prior"])
    with pytest.raises(ValueError, match="each family of --as once"):
        share_out(["a.pt", "b.pt"], ["adm-64", "adm-64"])


def embeddings(n):
    torch.manual_seed(0)
    return torch.randn(n, 6) @ torch.randn(6, 6) + 3


def options(**changes):
    return DiffusionPrior(dim=6, caption_dim=6, width=16, layers=1, heads=2, length=4, steps=2, **changes)


def test_a_standardised_prior_learns_in_units_of_its_data():
    z, caption = embeddings(50), torch.ones(50, 5, 7)
    prior = options(standardised=True, scaled=False)
    with pytest.raises(ValueError, match="no principal components"):
        prior.check_ready()
    prior.adopt(fit_pca(z, z))
    prior.check_ready()
    torch.testing.assert_close(prior.standard.mean, z.mean(0))
    torch.testing.assert_close(prior.standard.std, z.std(0, correction=0))
    plain, keep = options(scaled=False), torch.ones(50, dtype=torch.bool)
    plain.load_state_dict({k: v for k, v in prior.state_dict().items() if not k.startswith("standard.")})
    units = (z - z.mean(0)) / z.std(0, correction=0)
    losses = [p.loss(v, caption, keep, torch.Generator().manual_seed(1)) for p, v in ((prior, z), (plain, units))]
    torch.testing.assert_close(*losses)
    prior.candidates = plain.candidates = 1
    with torch.no_grad():
        drawn = [p.draw(caption[:2], [0, 1], 1.0, lambda steps: steps) for p in (prior, plain)]
    torch.testing.assert_close(drawn[0], drawn[1] * z.std(0, correction=0) + z.mean(0))


def test_estimates_are_clamped_after_guidance():
    prior, caption = options(clamp=0.01), torch.ones(2, 5, 7)
    z, sigma = torch.randn(2, 6), torch.tensor([1.0, 2.0])
    free = options()
    free.load_state_dict(prior.state_dict())
    with torch.no_grad():
        found, expected = (p.denoiser(caption, 3.0)(z, sigma) for p in (prior, free))
    assert expected.abs().max() > 0.01
    torch.testing.assert_close(found, expected.clamp(-0.01, 0.01))


def test_contradicting_options_are_refused():
    for changes, said in (
        ({"time": "step"}, "Cosine has no steps"),
        ({"linear": True, "standardised": True}, "found both"),
        ({"null_length": 6}, "at most 4 words"),
    ):
        with pytest.raises(ValueError, match=said):
            options(**changes)
