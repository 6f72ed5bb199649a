"""One forward pass of networks of published size: ours and PyTorch's in turn, on the same machine in the same run.

    pip install torch==2.15.0 diffusers==0.40.0 transformers && python benches/full_size.py

PyTorch eager in f32 with all cores and its best CPU layout of the two (channels last or not) for convolutions.
"""

import resource
import statistics
import subprocess
import sys
import time

PASSES = 4  # the first warms up
NETWORKS = ["dit-xl-2", "sd15-unet"]


def torch_run(name):
    import torch
    from diffusers import DiTTransformer2DModel, UNet2DConditionModel

    torch.manual_seed(0)
    with torch.no_grad():
        if name == "dit-xl-2":
            net = DiTTransformer2DModel(sample_size=32, num_layers=28).eval()
            args = (torch.randn(1, 4, 32, 32),)
            kwargs = dict(timestep=torch.tensor([500]), class_labels=torch.tensor([207]))
        else:
            net = UNet2DConditionModel(
                sample_size=64, cross_attention_dim=768, attention_head_dim=8, block_out_channels=(320, 640, 1280, 1280)
            ).eval()
            args = (torch.randn(1, 4, 64, 64), torch.tensor([500]), torch.randn(1, 77, 768))
            kwargs = {}
        parameters = sum(p.numel() for p in net.parameters())
        results = {}
        for layout in [torch.contiguous_format, torch.channels_last]:
            net = net.to(memory_format=layout)
            seconds = []
            for _ in range(PASSES):
                start = time.perf_counter()
                net(*args, **kwargs)
                seconds.append(time.perf_counter() - start)
            results[str(layout)] = statistics.median(seconds[1:])
    layout, best = min(results.items(), key=lambda item: item[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{name:<10} {best:>8.2f} s a forward pass (median of {PASSES - 1}), "
        f"{parameters} parameters, peak {peak:>6.0f} MiB   PyTorch {torch.__version__}, {layout}, {torch.get_num_threads()} threads"
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        torch_run(sys.argv[1])
    else:
        subprocess.run(["cargo", "build", "--release", "--workspace", "--benches"], check=True)
        for network in NETWORKS:
            subprocess.run(["cargo", "bench", "--workspace", "--bench", "full_size", "--", network], check=True)
            subprocess.run([sys.executable, __file__, network], check=True)
