"""Independent answers in float64, from masks and lengths alone, by loops over blocks."""

import numpy as np


def block_slices(num_tokens, block, text_tokens=0, text_position="none"):
    """Token ranges of the blocks, which restart at the border between text and image."""
    if text_position == "first":
        segments = [(0, text_tokens), (text_tokens, num_tokens)]
    elif text_position == "last":
        border = num_tokens - text_tokens
        segments = [(0, border), (border, num_tokens)]
    else:
        segments = [(0, num_tokens)]
    return [
        slice(start, min(start + block, end))
        for begin, end in segments
        for start in range(begin, end, block)
    ]


def attention(q, k, v, q_blocks, kv_blocks, *, cache, skip, scale=None, seq_len=None, kv_len=None):
    """out (NaN in rows that are not computed) and lse, for masks of 0 and 1."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    batch, num_tokens, num_heads, head_dim = q.shape
    group = num_heads // k.shape[2]
    scale = head_dim**-0.5 if scale is None else scale
    out = np.full(q.shape, np.nan)
    lse = np.full((batch, num_heads, num_tokens), np.nan)
    for b, h, i in np.ndindex(batch, num_heads, len(q_blocks)):
        valid = num_tokens if seq_len is None else seq_len[b]
        rows = np.arange(num_tokens)[q_blocks[i]]
        rows = rows[rows < valid]
        if not cache[b, h, i]:
            continue
        keys = np.concatenate(
            [np.arange(k.shape[1])[s] for j, s in enumerate(kv_blocks) if skip[b, h, i, j]]
            or [np.empty(0, int)]
        )
        keys = keys[keys < (k.shape[1] if kv_len is None else kv_len[b])]
        if keys.size == 0:
            out[b, rows, h], lse[b, h, rows] = 0, -np.inf
            continue
        logits = scale * q[b, rows, h] @ k[b, keys, h // group].T
        maximum = logits.max(axis=1, keepdims=True)
        weights = np.exp(logits - maximum)
        total = weights.sum(axis=1, keepdims=True)
        out[b, rows, h] = weights / total @ v[b, keys, h // group]
        lse[b, h, rows] = (maximum + np.log(total))[:, 0]
    return out, lse


def live_rows(cache, row_blocks, num_rows, seq_len=None):
    """[batch, num_rows, num_heads] bool: what a projection computes, from the cache mask of just
    these row blocks."""
    batch, num_heads, _ = cache.shape
    live = np.zeros((batch, num_rows, num_heads), bool)
    for i, rows in enumerate(row_blocks):
        live[:, rows] = cache[:, None, :, i] != 0
    for b, length in enumerate(seq_len or []):
        live[b, length:] = False
    return live


def project(x, w, bias=None):
    y = np.asarray(x, np.float64) @ np.asarray(w, np.float64).T
    return y if bias is None else y + np.asarray(bias, np.float64)


def project_heads(o, w, heads):
    """Sum of o_h W_h over the heads that `heads` [batch, num_rows, num_heads] selects."""
    batch, num_rows, width = o.shape
    num_heads = heads.shape[2]
    chosen = np.asarray(o, np.float64).reshape(batch, num_rows, num_heads, width // num_heads)
    chosen = np.where(heads[..., None], chosen, 0)
    return chosen.reshape(batch, num_rows, width) @ np.asarray(w, np.float64)[:, :width].T
