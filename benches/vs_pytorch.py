"""Compares Unguided with PyTorch in one run on one machine: forward passes, training steps and cached decoding.

    pip install torch==2.15.0 diffusers==0.42.1 && python benches/vs_pytorch.py [CASE ...]

The two take turns. PyTorch runs in eager mode on all cores, with fused attention, fused AdamW, and the faster of its
two memory layouts for convolutions. Everything runs in f32 except train_bf16, which keeps the weights in f32: autocast
in PyTorch, `"precision": "bf16"` in Unguided. Both sides have the same layers and sizes. The values of the weights do
not affect the timing.
"""

import math
import resource
import statistics
import subprocess
import sys
import time

ROUNDS = 2  # ours, theirs, ours, theirs; the better median of each counts
DECODED = 64  # tokens
CASES = {
    "digits-dit": (128, ["train", "forward"]),
    "dit-s-2": (8, ["train", "train_bf16", "forward"]),
    "sit-s-2": (8, ["train", "forward"]),
    "llamagen-b": (2, ["train", "train_bf16", "forward", "decode"]),
    "var-d16-4": (2, ["train", "train_bf16", "forward"]),
    "sd15-half": (2, ["train", "train_bf16", "forward"]),
    "dit-xl-2": (1, ["forward"]),
    "sd15": (1, ["forward"]),
}


def networks():
    import torch
    import torch.nn.functional as F
    from torch import nn

    def attention(q, k, v, heads, **options):
        split = lambda x: x.unflatten(2, (heads, -1)).transpose(1, 2)
        return F.scaled_dot_product_attention(split(q), split(k), split(v), **options).transpose(1, 2).flatten(2)

    class DitBlock(nn.Module):
        def __init__(self, width, heads):
            super().__init__()
            self.heads = heads
            self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
            self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
            self.ada = nn.Linear(width, 6 * width)

        def forward(self, x, c):
            shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = self.ada(c).unsqueeze(1).chunk(6, 2)
            q, k, v = self.qkv(self.norm(x) * (1 + scale) + shift).chunk(3, 2)
            x = x + gate * self.proj(attention(q, k, v, self.heads))
            h = self.norm(x) * (1 + scale_mlp) + shift_mlp
            return x + gate_mlp * self.fc2(F.gelu(self.fc1(h), approximate="tanh"))

    class Dit(nn.Module):
        def __init__(self, width, depth, heads, size, channels, out, classes):
            super().__init__()
            self.size, self.channels, self.out = size, channels, out
            self.patch = nn.Linear(4 * channels, width)
            self.place = nn.Parameter(torch.randn(1, (size // 2) ** 2, width), requires_grad=False)
            self.time = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
            self.label = nn.Embedding(classes + 1, width)
            self.blocks = nn.ModuleList(DitBlock(width, heads) for _ in range(depth))
            self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
            self.ada, self.last = nn.Linear(width, 2 * width), nn.Linear(width, 4 * out)

        def forward(self, x, t, y):
            half = self.size // 2
            patches = x.unflatten(3, (half, 2)).unflatten(2, (half, 2)).permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
            frequencies = torch.exp(-math.log(10000) * torch.arange(128) / 128)
            angles = t[:, None] * frequencies[None]
            c = F.silu(self.time(torch.cat([angles.cos(), angles.sin()], 1)) + self.label(y))
            x = self.patch(patches) + self.place
            for block in self.blocks:
                x = block(x, c)
            shift, scale = self.ada(c).unsqueeze(1).chunk(2, 2)
            return self.last(self.norm(x) * (1 + scale) + shift)

    class LlamaBlock(nn.Module):
        def __init__(self, width, heads, hidden):
            super().__init__()
            self.heads = heads
            self.norm1, self.norm2 = nn.RMSNorm(width, eps=1e-5), nn.RMSNorm(width, eps=1e-5)
            linear = lambda a, b: nn.Linear(a, b, bias=False)
            self.qkv, self.proj = linear(width, 3 * width), linear(width, width)
            self.w1, self.w3, self.w2 = linear(width, hidden), linear(width, hidden), linear(hidden, width)

        def forward(self, x, turn, cache=None, start=0):
            q, k, v = self.qkv(self.norm1(x)).chunk(3, 2)

            def rotate(x):
                pairs = torch.view_as_complex(x.unflatten(2, (self.heads, -1, 2)))
                return torch.view_as_real(pairs * turn[:, None]).flatten(3).flatten(2)

            q, k = rotate(q), rotate(k)
            if cache is not None:
                end = start + x.shape[1]
                cache[0][:, start:end], cache[1][:, start:end] = k, v
                k, v = cache[0][:, :end], cache[1][:, :end]
            x = x + self.proj(attention(q, k, v, self.heads, is_causal=cache is None))
            h = self.norm2(x)
            return x + self.w2(F.silu(self.w1(h)) * self.w3(h))

    class Llama(nn.Module):
        def __init__(self, width=768, depth=12, heads=12, hidden=2048, vocabulary=16384, length=256):
            super().__init__()
            self.label, self.tokens = nn.Embedding(1001, width), nn.Embedding(vocabulary, width)
            self.blocks = nn.ModuleList(LlamaBlock(width, heads, hidden) for _ in range(depth))
            self.norm, self.head = nn.RMSNorm(width, eps=1e-5), nn.Linear(width, vocabulary, bias=False)
            angles = torch.arange(length)[:, None] * 10000 ** (-torch.arange(0, width // heads, 2) / (width // heads))
            self.register_buffer("turn", torch.polar(torch.ones_like(angles), angles))

        def forward(self, ids, y):
            x = torch.cat([self.label(y)[:, None], self.tokens(ids[:, :-1])], 1)
            for block in self.blocks:
                x = block(x, self.turn)
            return self.head(self.norm(x))

        @torch.no_grad()
        def decode(self, ids, y):
            caches = [torch.empty(2, len(y), DECODED, self.norm.weight.shape[0]) for _ in self.blocks]
            x = self.label(y)[:, None]
            for i in range(DECODED):
                for block, cache in zip(self.blocks, caches):
                    x = block(x, self.turn[i : i + 1], cache, i)
                logits = self.head(self.norm(x))
                assert logits.max().isfinite()
                x = self.tokens(ids[:, i : i + 1])

    class VarBlock(nn.Module):
        def __init__(self, width, heads):
            super().__init__()
            self.heads = heads
            self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
            self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.scale = nn.Parameter(torch.zeros(heads, 1, 1))
            self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
            self.ada = nn.Linear(width, 6 * width)

        def forward(self, x, c, mask):
            shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = self.ada(c).unsqueeze(1).chunk(6, 2)
            q, k, v = self.qkv(self.norm(x) * (1 + scale) + shift).unflatten(2, (3, self.heads, -1)).unbind(2)
            q, k, v = (part.transpose(1, 2) for part in (q, k, v))
            q, k = F.normalize(q, dim=3) * self.scale.exp(), F.normalize(k, dim=3)
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)
            x = x + gate * self.proj(mixed.transpose(1, 2).flatten(2))
            h = self.norm(x) * (1 + scale_mlp) + shift_mlp
            return x + gate_mlp * self.fc2(F.gelu(self.fc1(h), approximate="tanh"))

    class Var(nn.Module):
        def __init__(self, width=1024, depth=4, heads=16, vocabulary=4096, channels=32):
            super().__init__()
            sides = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
            level = torch.cat([torch.full((side * side,), i) for i, side in enumerate(sides)])
            self.register_buffer("mask", torch.where(level[:, None] >= level[None], 0.0, -torch.inf))
            self.register_buffer("level", level)
            self.label, self.word = nn.Embedding(1001, width), nn.Linear(channels, width)
            self.levels, self.places = nn.Embedding(len(sides), width), nn.Parameter(torch.randn(1, len(level), width))
            self.start = nn.Parameter(torch.randn(1, 1, width))
            self.blocks = nn.ModuleList(VarBlock(width, heads) for _ in range(depth))
            self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
            self.ada, self.head = nn.Linear(width, 2 * width), nn.Linear(width, vocabulary)

        def forward(self, features, y):
            c = self.label(y)
            x = torch.cat([c[:, None] + self.start, self.word(features[:, 1:])], 1)
            x, c = x + self.levels(self.level) + self.places, F.silu(c)
            for block in self.blocks:
                x = block(x, c, self.mask)
            scale, shift = self.ada(c).unsqueeze(1).chunk(2, 2)
            return self.head(self.norm(x) * (1 + scale) + shift)

    return Dit, Llama, Var


def example(name, batch):
    import torch

    Dit, Llama, Var = networks()
    y = torch.arange(batch) % 10
    if name == "llamagen-b":
        return Llama(), (torch.arange(batch * 256).reshape(batch, 256) * 7919 % 16384, y)
    if name == "var-d16-4":
        return Var(), (torch.randn(batch, 680, 32), y)
    if name.startswith("sd15"):
        from diffusers import UNet2DConditionModel

        half = name == "sd15-half"
        size, widths = (32, (160, 320, 640, 640)) if half else (64, (320, 640, 1280, 1280))
        net = UNet2DConditionModel(
            sample_size=size, cross_attention_dim=768, attention_head_dim=8, block_out_channels=widths
        )
        return net, (torch.randn(batch, 4, size, size), torch.full((batch,), 500), torch.randn(batch, 77, 768))
    sizes = {
        "digits-dit": (64, 3, 4, 8, 1, 1, 10),
        "dit-s-2": (384, 12, 6, 32, 4, 4, 1000),
        "sit-s-2": (384, 12, 6, 32, 4, 8, 1000),
        "dit-xl-2": (1152, 28, 16, 32, 4, 8, 1000),
    }[name]
    return Dit(*sizes), (torch.randn(batch, sizes[4], sizes[3], sizes[3]), torch.full((batch,), 500.0), y)


def torch_run(name, mode):
    import torch
    import torch.nn.functional as F

    torch.manual_seed(0)
    batch, train = CASES[name][0], mode.startswith("train")
    net, args = example(name, batch)
    passes = 20 if name == "digits-dit" else 4
    results = {}
    layouts = [torch.contiguous_format] + [torch.channels_last] * name.startswith("sd15")
    for layout in layouts:
        net = net.to(memory_format=layout)
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, fused=True)
        seconds = []
        for _ in range(passes):
            start = time.perf_counter()
            if mode == "decode":
                net.decode(*args)
                seconds.append(time.perf_counter() - start)
                continue
            with torch.set_grad_enabled(train), torch.autocast("cpu", torch.bfloat16, enabled=mode == "train_bf16"):
                out = net(*args)
                out = out.sample if hasattr(out, "sample") else out
                if name == "llamagen-b":
                    loss = F.cross_entropy(out.flatten(0, 1), args[0].flatten())
                else:
                    loss = (out * out).mean()
            if train:
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
            assert math.isfinite(loss.item())
            seconds.append(time.perf_counter() - start)
        results[str(layout)] = statistics.median(seconds[1:])
        del optimizer
    layout, best = min(results.items(), key=lambda item: item[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    parameters = sum(p.numel() for p in net.parameters())
    print(f"{name:<11} {mode:<10} batch {batch:>3} {best:>9.4} s {peak:>6.0f} MiB  {parameters} parameters, {layout}")


def measured(line):
    words = line.split()
    return float(words[words.index("s") - 1]), float(words[words.index("MiB") - 1])


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[2] in ("train", "train_bf16", "forward", "decode"):
        torch_run(*sys.argv[1:])
        sys.exit()
    bench = ["cargo", "bench", "--workspace", "--bench", "vs_pytorch", "--"]
    subprocess.run(bench[:-1] + ["--no-run"], check=True)
    print("| network | | batch | ours s | PyTorch s | speed | ours MiB | PyTorch MiB |\n|---|---|---|---|---|---|---|---|")
    speeds = {"f32": [], "bf16": []}
    for name in sys.argv[1:] or CASES:
        batch, modes = CASES[name]
        for mode in modes:
            ours, theirs = [], []
            for _ in range(ROUNDS):
                for results, command in ((ours, bench), (theirs, [sys.executable, __file__])):
                    run = subprocess.run(command + [name, mode], check=True, capture_output=True, text=True)
                    results.append(measured(run.stdout.strip().splitlines()[-1]))
            (a, a_mib), (b, b_mib) = min(ours), min(theirs)
            speeds["bf16" if "bf16" in mode else "f32"].append(b / a)
            print(f"| {name} | {mode} | {batch} | {a:.4f} | {b:.4f} | {b / a:.2f} | {a_mib:.0f} | {b_mib:.0f} |", flush=True)
    for dtype, all_speeds in speeds.items():
        if all_speeds:
            print(f"geometric mean of speed in {dtype}: {math.exp(statistics.fmean(map(math.log, all_speeds))):.2f}")
