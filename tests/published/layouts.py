"""Names and shapes of published networks, written down from their authors' classes: what importing is tested with."""

import torch


def _layer(name, *shape):
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def _block(name, c, c2, vector, scale_shift=True):
    made = _layer(f"{name}.in_layers.0", c) | _layer(f"{name}.in_layers.2", c2, c, 3, 3)
    made |= _layer(f"{name}.emb_layers.1", 2 * c2 if scale_shift else c2, vector)
    made |= _layer(f"{name}.out_layers.0", c2) | _layer(f"{name}.out_layers.3", c2, c2, 3, 3)
    return made if c == c2 else made | _layer(f"{name}.skip_connection", c2, c, 1, 1)


def _attention(name, c, context):
    made = _layer(f"{name}.norm", c) | _layer(f"{name}.qkv", 3 * c, c, 1)
    made |= _layer(f"{name}.encoder_kv", 2 * c, context, 1) if context else {}
    return made | _layer(f"{name}.proj_out", c, c, 1)


def unet(width, multipliers, blocks, attention, channels=3, out=6, context=0, labels=0, vector=None, scale_shift=True):
    """guided-diffusion's `UNetModel` with resblock_updown; `attention` has factors of downsampling."""
    vector = vector or 4 * width
    c = int(width * multipliers[0])
    made = _layer("time_embed.0", vector, width) | _layer("time_embed.2", vector, vector)
    made |= {"label_emb.weight": (labels, vector)} if labels else {}
    made |= _layer("input_blocks.0.0", c, channels, 3, 3)
    skips, n = [c], 1
    for level, times in enumerate(multipliers):
        for _ in range(blocks):
            c2 = int(width * times)
            made |= _block(f"input_blocks.{n}.0", c, c2, vector, scale_shift)
            made |= _attention(f"input_blocks.{n}.1", c2, context) if 2**level in attention else {}
            c, n = c2, n + 1
            skips.append(c)
        if level < len(multipliers) - 1:
            made |= _block(f"input_blocks.{n}.0", c, c, vector, scale_shift)
            n += 1
            skips.append(c)
    middle = 2 ** (len(multipliers) - 1) in attention
    made |= _block("middle_block.0", c, c, vector, scale_shift)
    made |= _attention("middle_block.1", c, context) if middle else {}
    made |= _block(f"middle_block.{1 + middle}", c, c, vector, scale_shift)
    n = 0
    for level, times in reversed(list(enumerate(multipliers))):
        for j in range(blocks + 1):
            c2, attends = int(width * times), 2**level in attention
            made |= _block(f"output_blocks.{n}.0", c + skips.pop(), c2, vector, scale_shift)
            made |= _attention(f"output_blocks.{n}.1", c2, context) if attends else {}
            if level and j == blocks:
                made |= _block(f"output_blocks.{n}.{1 + attends}", c2, c2, vector, scale_shift)
            c, n = c2, n + 1
    return made | _layer("out.0", c) | _layer("out.2", out, c, 3, 3)


def glide(width, multipliers, blocks, attention, channels=3, text=512, layers=16, length=128, words=50257):
    """glide_text2im's `Text2ImUNet`, and those for enlarging and inpainting, which read more channels."""
    made = unet(width, multipliers, blocks, attention, channels, context=text)
    made |= {"positional_embedding": (length, text), "padding_embedding": (length, text)}
    for i in range(layers):
        made |= _openai_block(f"transformer.resblocks.{i}", text)
    made |= _layer("final_ln", text) | {"token_embedding.weight": (words, text)}
    return made | _layer("transformer_proj", 4 * width, text)


def karlo_decoder(width, multipliers, blocks, attention, clip=768, words=768, context=1536):
    """Karlo's decoder."""
    made = unet(width, multipliers, blocks, attention, context=context) | {"cf_param": (clip,)}
    made |= _layer("clip_emb", 4 * width, clip) | _layer("clip_tok_proj", 4 * context, clip)
    made |= _layer("text_seq_proj.0", context, words) | _layer("text_seq_proj.1", context)
    return made | _layer("text_feat_proj", 4 * width, clip)


def _openai_block(name, width):
    made = _layer(f"{name}.attn.c_qkv", 3 * width, width) | _layer(f"{name}.attn.c_proj", width, width)
    made |= _layer(f"{name}.ln_1", width) | _layer(f"{name}.ln_2", width)
    return made | _layer(f"{name}.mlp.c_fc", 4 * width, width) | _layer(f"{name}.mlp.c_proj", width, 4 * width)


def karlo_upsampler(width, multipliers, blocks):
    """Karlo's upsampler: two networks of one plan."""
    made = unet(width, multipliers, blocks, (), 6, 3, scale_shift=False)
    return {f"{part}.{name}": x for part in ("model_first_steps", "model_last_step") for name, x in made.items()}


def karlo_prior(width=2048, layers=20, length=77, clip=768, words=768):
    """Karlo's prior, without the file of statistics."""
    made = {"positional_embedding": (1, length + 4, width), "prd_emb": (1, 1, width)}
    made |= _layer("time_embed.0", width, width) | _layer("time_embed.2", width, width)
    made |= _layer("text_enc_proj", width, words) | _layer("text_emb_proj", width, clip)
    made |= _layer("clip_img_proj", width, clip) | _layer("out_proj", clip, width) | _layer("final_ln", width)
    for i in range(layers):
        made |= _openai_block(f"transformer.resblocks.{i}", width)
    return made


def alibaba_prior(width=2048, layers=24, clip=768):
    """The prior of Alibaba's multi-stage model."""
    made = {"eos_embedding": (1, 1, width), "pos_embedding": (1, 4, width), "attn_mask": (1, 1, 4, 4)}
    for name, dim in (("text", clip), ("time", width), ("vision", clip)):
        made |= _layer(f"{name}_embedding.0", width, dim) | _layer(f"{name}_embedding.2", width, width)
    for i in range(layers):
        block = f"blocks.{i}"
        made |= _layer(f"{block}.norm1", width) | _layer(f"{block}.norm2", width)
        made |= _layer(f"{block}.attn.to_qkv", 3 * width, width) | _layer(f"{block}.attn.proj", width, width)
        made |= _layer(f"{block}.ffn.0", 4 * width, width) | _layer(f"{block}.ffn.2", width, 4 * width)
    return made | _layer("norm", width) | _layer("head", clip, width)


def fill(shapes, seed=0, scale=0.08):
    """Random weights."""
    generator = torch.Generator().manual_seed(seed)
    return {name: scale * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
