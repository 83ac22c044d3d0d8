"""FluxMini in PyTorch: diffusers' FluxTransformer2DModel with its parameter names, and the text
encoder that ships with it. Weights go both ways between this and the shipped files."""

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import nn


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """transformer/config.json."""

    in_channels: int
    num_layers: int
    num_single_layers: int
    attention_head_dim: int
    num_attention_heads: int
    joint_attention_dim: int
    pooled_projection_dim: int
    axes_dims_rope: tuple

    @property
    def hidden_dim(self):
        return self.attention_head_dim * self.num_attention_heads


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """text_encoder/config.json."""

    vocab_size: int
    hidden_size: int
    max_position_embeddings: int
    num_hidden_layers: int
    num_attention_heads: int


def from_json(kind, values):
    """A config of `kind` from the fields of a config.json that it has."""
    return kind(**{field.name: values[field.name] for field in dataclasses.fields(kind)})


def attention(q, k, v):
    """[batch, tokens, heads, head_dim] each -> [batch, tokens, hidden]."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if hasattr(F, "scaled_dot_product_attention"):  # torch 2
        out = F.scaled_dot_product_attention(q, k, v)
    else:
        out = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), -1) @ v
    return out.transpose(1, 2).flatten(2)


def rope_tables(ids, axes, theta=10000.0):
    """Positions [tokens, axes] -> cosines and sines [tokens, head_dim], each angle twice."""
    angles = [ids[:, axis].double()[:, None]
              / theta ** (torch.arange(0, dim, 2, device=ids.device).double() / dim)
              for axis, dim in enumerate(axes)]
    angles = torch.cat(angles, 1).repeat_interleave(2, 1)
    return angles.cos().float(), angles.sin().float()


def rotate(x, rope):
    """Turns the pairs (2i, 2i + 1) of x [batch, tokens, heads, head_dim]."""
    cos, sin = (table[None, :, None] for table in rope)
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([-odd, even], -1).flatten(-2)
    return (x.float() * cos + turned * sin).to(x.dtype)


def normalize(x, shift, scale):
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


class RmsNorm(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        scale = torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6)
        return (x.float() * scale * self.weight).to(x.dtype)


class Modulation(nn.Module):
    """AdaLN: `parts` vectors from the conditioning; zero at first."""

    def __init__(self, dim, parts):
        super().__init__()
        self.parts = parts
        self.linear = nn.Linear(dim, parts * dim)

    def forward(self, condition):
        return self.linear(F.silu(condition))[:, None].chunk(self.parts, -1)


class Embedder(nn.Module):
    def __init__(self, channels, dim):
        super().__init__()
        self.linear_1 = nn.Linear(channels, dim)
        self.linear_2 = nn.Linear(dim, dim)

    def forward(self, x):
        return self.linear_2(F.silu(self.linear_1(x)))


class FeedForward(nn.Module):
    def __init__(self, dim):
        super().__init__()
        up = nn.Module()
        up.proj = nn.Linear(dim, 4 * dim)
        self.net = nn.ModuleList([up, nn.Identity(), nn.Linear(4 * dim, dim)])

    def forward(self, x):
        return self.net[2](F.gelu(self.net[0].proj(x), approximate="tanh"))


class DoubleBlock(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.norm1 = Modulation(dim, 6)
        self.norm1_context = Modulation(dim, 6)
        self.attn = nn.Module()
        for name in ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj",
                     "to_add_out"):
            setattr(self.attn, name, nn.Linear(dim, dim))
        self.attn.to_out = nn.ModuleList([nn.Linear(dim, dim)])
        for name in ("norm_q", "norm_k", "norm_added_q", "norm_added_k"):
            setattr(self.attn, name, RmsNorm(dim // heads))
        self.ff = FeedForward(dim)
        self.ff_context = FeedForward(dim)

    def forward(self, image, text, condition, rope):
        a = self.attn
        shift, scale, gate, ff_shift, ff_scale, ff_gate = self.norm1(condition)
        t_shift, t_scale, t_gate, t_ff_shift, t_ff_scale, t_ff_gate = self.norm1_context(condition)
        x, c = normalize(image, shift, scale), normalize(text, t_shift, t_scale)

        def joint(text_linear, image_linear):  # text first
            both = torch.cat([text_linear(c), image_linear(x)], 1)
            return both.unflatten(-1, (self.heads, -1)).split([c.shape[1], x.shape[1]], 1)

        (tq, q), (tk, k) = joint(a.add_q_proj, a.to_q), joint(a.add_k_proj, a.to_k)
        out = attention(rotate(torch.cat([a.norm_added_q(tq), a.norm_q(q)], 1), rope),
                        rotate(torch.cat([a.norm_added_k(tk), a.norm_k(k)], 1), rope),
                        torch.cat(joint(a.add_v_proj, a.to_v), 1))
        text_out, image_out = out.split([c.shape[1], x.shape[1]], 1)
        image = image + gate * a.to_out[0](image_out)
        text = text + t_gate * a.to_add_out(text_out)
        image = image + ff_gate * self.ff(normalize(image, ff_shift, ff_scale))
        text = text + t_ff_gate * self.ff_context(normalize(text, t_ff_shift, t_ff_scale))
        return image, text


class SingleBlock(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.norm = Modulation(dim, 3)
        self.proj_mlp = nn.Linear(dim, 4 * dim)
        self.proj_out = nn.Linear(5 * dim, dim)
        self.attn = nn.Module()
        for name in ("to_q", "to_k", "to_v"):
            setattr(self.attn, name, nn.Linear(dim, dim))
        self.attn.norm_q = RmsNorm(dim // heads)
        self.attn.norm_k = RmsNorm(dim // heads)

    def forward(self, x, condition, rope):
        a = self.attn
        shift, scale, gate = self.norm(condition)
        y = normalize(x, shift, scale)
        q, k, v = (linear(y).unflatten(-1, (self.heads, -1)) for linear in (a.to_q, a.to_k, a.to_v))
        out = attention(rotate(a.norm_q(q), rope), rotate(a.norm_k(k), rope), v)
        mlp = F.gelu(self.proj_mlp(y), approximate="tanh")
        return x + gate * self.proj_out(torch.cat([out, mlp], -1))


class Transformer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        dim, heads = config.hidden_dim, config.num_attention_heads
        self.x_embedder = nn.Linear(config.in_channels, dim)
        self.context_embedder = nn.Linear(config.joint_attention_dim, dim)
        self.time_text_embed = nn.Module()
        self.time_text_embed.timestep_embedder = Embedder(256, dim)
        self.time_text_embed.guidance_embedder = Embedder(256, dim)
        self.time_text_embed.text_embedder = Embedder(config.pooled_projection_dim, dim)
        self.transformer_blocks = nn.ModuleList(
            DoubleBlock(dim, heads) for _ in range(config.num_layers))
        self.single_transformer_blocks = nn.ModuleList(
            SingleBlock(dim, heads) for _ in range(config.num_single_layers))
        self.norm_out = Modulation(dim, 2)
        self.proj_out = nn.Linear(dim, config.in_channels)
        self._initialize()

    def _initialize(self):
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, Modulation):
                nn.init.zeros_(module.linear.weight)
        nn.init.zeros_(self.proj_out.weight)

    def rope(self, rows, columns, text_tokens, device=None):
        """Text at (0, 0, 0), the image token of row y and column x at (0, y, x)."""
        ids = torch.zeros(rows, columns, 3, device=device)
        ids[..., 1] = torch.arange(rows, device=device)[:, None]
        ids[..., 2] = torch.arange(columns, device=device)
        ids = torch.cat([torch.zeros(text_tokens, 3, device=device), ids.flatten(0, 1)])
        return rope_tables(ids, self.config.axes_dims_rope)

    def forward(self, image, text, pooled, time, guidance, rope):
        """image [batch, tokens, in_channels], text [batch, tokens, joint_attention_dim], pooled
        [batch, pooled_projection_dim], time (1 = noise) and guidance [batch] -> as image."""
        embed = self.time_text_embed
        condition = (embed.timestep_embedder(sinusoid(time * 1000))
                     + embed.guidance_embedder(sinusoid(guidance * 1000))
                     + embed.text_embedder(pooled))
        image, text = self.x_embedder(image), self.context_embedder(text)
        for block in self.transformer_blocks:
            image, text = block(image, text, condition, rope)
        joint = torch.cat([text, image], 1)
        for block in self.single_transformer_blocks:
            joint = block(joint, condition, rope)
        scale, shift = self.norm_out(condition)
        return self.proj_out(normalize(joint[:, text.shape[1]:], shift, scale))


def sinusoid(x, channels=256):
    half = channels // 2
    steps = torch.arange(half, device=x.device, dtype=torch.float32)
    angles = x.float()[:, None] * torch.exp(-math.log(10000) * steps / half)
    return torch.cat([angles.cos(), angles.sin()], -1)


class TextLayer(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.ff = FeedForward(dim)
        self.n1 = nn.LayerNorm(dim)
        self.n2 = nn.LayerNorm(dim)

    def forward(self, x):
        qkv = self.qkv(self.n1(x)).unflatten(-1, (3, self.heads, -1))
        x = x + self.out(attention(*qkv.unbind(2)))
        return x + self.ff(self.n2(x))


class TextEncoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        dim = config.hidden_size
        self.token_embedding = nn.Embedding(config.vocab_size, dim)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, dim)
        self.layers = nn.ModuleList(TextLayer(dim, config.num_attention_heads)
                                    for _ in range(config.num_hidden_layers))
        self.final_norm = nn.LayerNorm(dim)
        nn.init.normal_(self.token_embedding.weight, std=0.5)
        nn.init.normal_(self.position_embedding.weight, std=0.2)

    def forward(self, tokens):
        """[batch, length] ids -> [batch, length, hidden], and the mean over what is no padding.

        Padding (id 0) is attended to, as in FLUX.
        """
        x = self.token_embedding(tokens) + self.position_embedding.weight
        for layer in self.layers:
            x = layer(x)
        x = self.final_norm(x)
        words = (tokens > 0).to(x.dtype)[..., None]
        return x, (x * words).sum(1) / words.sum(1).clamp(min=1)
