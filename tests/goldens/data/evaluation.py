"""Records `evaluation_metrics.safetensors` and `evaluation_inception.safetensors`.

Usage: python evaluation.py FOLDER

Needs torch, torchvision, scipy, safetensors, pytorch-fid, torch-fidelity, clean-fid and prdc; MANIFEST.md states the
versions. The weights of the Inception network come from a formula, so that no file has to be stored:
`plugins/features/tests/reference.rs` has the same formula.
"""

import sys
import tempfile

import numpy as np
import torch
from safetensors.numpy import save_file


def hashes(name, count):
    """Returns `count` numbers in [0, 1): a hash of the name and the index."""
    seed = 2166136261
    for byte in name.encode():
        seed = ((seed ^ byte) * 16777619) % 2**32
    with np.errstate(over="ignore"):
        h = np.arange(count, dtype=np.uint32) * np.uint32(0x9E3779B1) + np.uint32(seed)
        h ^= h >> np.uint32(16)
        h *= np.uint32(0x7FEB352D)
        h ^= h >> np.uint32(15)
        h *= np.uint32(0x846CA68B)
        h ^= h >> np.uint32(16)
    return h.astype(np.float64) / 2**32


def value(name, shape):
    """Returns the weights of one tensor."""
    u = hashes(name, int(np.prod(shape)))
    if name.endswith("conv.weight"):
        v = (u - 0.5) * np.sqrt(24.0 / np.prod(shape[1:]))
    elif name.endswith("bn.weight"):
        v = 0.8 + 0.4 * u
    elif name.endswith("running_var"):
        v = 0.5 + u
    elif name == "fc.weight":
        v = (u - 0.5) * np.sqrt(12.0 / shape[1])
    else:
        v = 0.4 * (u - 0.5)
    return torch.tensor(v.reshape(shape), dtype=torch.float32)


def pixels(name, shape):
    """Returns an image of 8 bits."""
    return np.floor(hashes(name, int(np.prod(shape))) * 256).astype(np.uint8).reshape(shape)


def metrics():
    from cleanfid.fid import kernel_distance
    from prdc import compute_prdc
    from pytorch_fid.fid_score import calculate_frechet_distance
    from torch_fidelity.metric_fid import fid_statistics_to_metric
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    rng = np.random.default_rng(5)
    mix = rng.normal(size=(24, 24)) / 5
    samples = (rng.normal(size=(90, 24)) @ mix + 0.1).astype(np.float32)
    real = (rng.normal(size=(90, 24)) @ (mix + 0.05 * rng.normal(size=(24, 24)))).astype(np.float32)
    logits = (3 * rng.normal(size=(90, 12))).astype(np.float32)
    out = {"samples": samples, "real": real, "logits": logits}
    statistics = {}
    for name, x in [("samples", samples), ("real", real)]:
        x = x.astype(np.float64)
        statistics[name] = {"mu": np.mean(x, axis=0), "sigma": np.cov(x, rowvar=False)}
        out[f"{name}.mu"], out[f"{name}.sigma"] = statistics[name]["mu"], statistics[name]["sigma"]
    one, two = statistics["samples"], statistics["real"]
    out["fid.pytorch_fid"] = calculate_frechet_distance(one["mu"], one["sigma"], two["mu"], two["sigma"])
    fidelity = fid_statistics_to_metric(one, two, verbose=False)
    out["fid.torch_fidelity"] = fidelity["frechet_inception_distance"]
    # A subset that holds everything does not depend on the random numbers.
    a, b = torch.tensor(samples, dtype=torch.float64), torch.tensor(real, dtype=torch.float64)
    kid = kid_features_to_metric(a, b, kid_subsets=1, kid_subset_size=90, verbose=False)
    out["kid.torch_fidelity"] = kid["kernel_inception_distance_mean"]
    out["kid.clean_fid"] = kernel_distance(samples.astype(np.float64), real.astype(np.float64), num_subsets=1)
    score = isc_features_to_metric(torch.tensor(logits), splits=1, shuffle=False)
    out["isc.torch_fidelity"] = score["inception_score_mean"]
    prc = prc_features_to_metric(a, b, prc_neighborhood=3, save_cpu_ram=False, verbose=False)
    out["precision.torch_fidelity"], out["recall.torch_fidelity"] = prc["precision"], prc["recall"]
    for name, x in compute_prdc(real_features=real, fake_features=samples, nearest_k=5).items():
        out[f"{name}.prdc"] = x
    return {name: np.ascontiguousarray(np.asarray(x)) for name, x in out.items()}


def inception():
    import pytorch_fid.inception
    import torch_fidelity.feature_extractor_inceptionv3 as fidelity
    from cleanfid.resize import build_resizer

    # The package checks for 8 bits. The images of clean-fid are resized before, to floats.
    fidelity.vassert = lambda *_: None
    # Our weights, with the names and shapes of the published file.
    shapes = pytorch_fid.inception._inception_v3(num_classes=1008, aux_logits=False, weights=None).state_dict()
    state = {
        name: value(name, tuple(tensor.shape)) if tensor.is_floating_point() else tensor
        for name, tensor in shapes.items()
    }
    pytorch_fid.inception.load_state_dict_from_url = lambda *_, **__: state
    first = pytorch_fid.inception.InceptionV3([3], resize_input=True, use_fid_inception=True).eval()
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/weights.pth"
        torch.save(state, path)
        second = fidelity.FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=path
        ).eval()
    spatial = []
    second.Mixed_6d.branch1x1.register_forward_hook(lambda *args: spatial.append(args[2]))
    out = {}
    with torch.no_grad():
        for name, shape in [("small", (2, 3, 20, 24)), ("large", (1, 3, 340, 310))]:
            images = pixels(name, shape)
            tensor = torch.tensor(images)
            out[f"{name}.bilinear"] = first(tensor.float() / 255)[0][:, :, 0, 0].numpy()
            spatial.clear()
            vectors, logits = second(tensor)
            out[f"{name}.bilinear_tf1"] = vectors.numpy()
            if name == "small":
                out[f"{name}.logits"] = logits.numpy()
                positions = spatial[0][:, :7].permute(0, 2, 3, 1)
                out[f"{name}.spatial"] = positions.reshape(len(images), -1).numpy()
            resize = build_resizer("clean")
            resized = np.stack([resize(image.transpose(1, 2, 0)).transpose(2, 0, 1) for image in images])
            out[f"{name}.clean"] = second(torch.tensor(resized))[0].numpy()
    return {name: np.ascontiguousarray(x, dtype=np.float32) for name, x in out.items()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = sys.argv[1]
    save_file(metrics(), f"{folder}/evaluation_metrics.safetensors")
    save_file(inception(), f"{folder}/evaluation_inception.safetensors")
