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
        block = f"transformer.resblocks.{i}"
        made |= _layer(f"{block}.attn.c_qkv", 3 * text, text) | _layer(f"{block}.attn.c_proj", text, text)
        made |= _layer(f"{block}.ln_1", text) | _layer(f"{block}.ln_2", text)
        made |= _layer(f"{block}.mlp.c_fc", 4 * text, text) | _layer(f"{block}.mlp.c_proj", text, 4 * text)
    made |= _layer("final_ln", text) | {"token_embedding.weight": (words, text)}
    return made | _layer("transformer_proj", 4 * width, text)


def karlo_decoder(width, multipliers, blocks, attention, clip=768, words=768, context=1536):
    """Karlo's decoder."""
    made = unet(width, multipliers, blocks, attention, context=context) | {"cf_param": (clip,)}
    made |= _layer("clip_emb", 4 * width, clip) | _layer("clip_tok_proj", 4 * context, clip)
    made |= _layer("text_seq_proj.0", context, words) | _layer("text_seq_proj.1", context)
    return made | _layer("text_feat_proj", 4 * width, clip)


def fill(shapes, seed=0, scale=0.08):
    """Random weights."""
    generator = torch.Generator().manual_seed(seed)
    return {name: scale * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
