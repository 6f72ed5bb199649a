"""Reads what `unguided export` wrote with the programs that it was written for.

Called by tests/export/main.rs: python reads.py COMMAND ARGUMENTS. Recorded with torch 2.15.0, diffusers 0.42.1,
transformers 5.24.0 and peft 0.21.2.
"""

import json
import sys

import torch
from safetensors.torch import load_file, save_file

torch.set_grad_enabled(False)
torch.set_num_threads(2)


def pipeline(folder, **more):
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True, **more)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def predict(unet, given, output, scale=None):
    """Predicts the noise for x [B,C,H,W], t [B] and context [B,L,D], at a guidance scale if the network reads one."""
    more = {}
    if scale is not None:
        from diffusers import StableDiffusionPipeline

        embedding = StableDiffusionPipeline.get_guidance_scale_embedding(
            None, torch.full((len(given["x"]),), scale - 1.0), unet.config.time_cond_proj_dim, dtype=torch.float32
        )
        more["timestep_cond"] = embedding
    prediction = unet(given["x"], given["t"], encoder_hidden_states=given["context"], **more).sample
    save_file({"prediction": prediction.contiguous()}, output)


def unet(folder, given, output, scale=None):
    from diffusers import UNet2DConditionModel

    network, info = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", output_loading_info=True)
    assert not any(info.values()), info
    predict(network.eval(), load_file(given), output, None if scale is None else float(scale))


def draw(folder, prompt, scale, output):
    """Opens the folder as a pipeline, draws an image in one pass per step, and encodes the prompt."""
    pipe = pipeline(folder)
    passes = []
    forward = pipe.unet.forward

    def counted(x, *arguments, **more):
        passes.append(len(x))
        return forward(x, *arguments, **more)

    pipe.unet.forward = counted
    image = pipe(prompt, guidance_scale=float(scale), num_inference_steps=3, output_type="np").images[0]
    assert passes == [1, 1, 1], passes
    assert image.std() > 0.0
    embeds, _ = pipe.encode_prompt(prompt, "cpu", 1, False)
    latent = torch.linspace(-2, 2, 4 * 12 * 12).reshape(1, 4, 12, 12)
    decoded = pipe.vae.decode(latent / pipe.vae.config.scaling_factor).sample
    tensors = {"image": torch.from_numpy(image), "embeds": embeds, "latent": latent, "decoded": decoded}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, output)


def lora(base, folder, name, given, output):
    """Adds the adapters to the base pipeline, predicts, and draws an image."""
    pipe = pipeline(base)
    pipe.load_lora_weights(folder, weight_name=name)
    assert pipe.get_active_adapters(), "no adapter was loaded"
    predict(pipe.unet.eval(), load_file(given), output)
    image = pipe("two red circles", guidance_scale=2.0, num_inference_steps=2, output_type="np").images[0]
    assert image.std() > 0.0


def extra(base, folder, given, output, scale):
    """The model card's way to load adapters together with a new guidance input."""
    from diffusers import UNet2DConditionModel

    network = UNet2DConditionModel.from_pretrained(
        base, subfolder="unet", time_cond_proj_dim=512, low_cpu_mem_usage=False
    )
    network.load_state_dict(load_file(f"{folder}/extra.safetensors"), strict=False)
    pipe = pipeline(base, unet=network)
    pipe.load_lora_weights(folder, weight_name="pytorch_lora_weights.safetensors")
    predict(pipe.unet.eval(), load_file(given), output, float(scale))


def dit(folder, given, output):
    """Predicts with DiT, in the spacing of diffusers (`stock`) and in the published one (`prediction`)."""
    from diffusers import DiTTransformer2DModel

    network, info = DiTTransformer2DModel.from_pretrained(folder, subfolder="transformer", output_loading_info=True)
    assert not any(info.values()), info
    network.eval()
    given = load_file(given)
    run = lambda: network(given["x"], given["t"], class_labels=given["y"]).sample.contiguous()
    stock = run()
    for block in network.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 0
    save_file({"stock": stock, "prediction": run()}, output)


def dit_pipeline(folder, output):
    from diffusers import DiTPipeline

    pipe = DiTPipeline.from_pretrained(folder, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    for block in pipe.transformer.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 0
    image = pipe(class_labels=[3], guidance_scale=1.0, num_inference_steps=2, output_type="np").images[0]
    save_file({"image": torch.from_numpy(image).contiguous()}, output)


def torch_file(path, output):
    """Lists the tensors of a torch file, and writes them as safetensors."""
    loaded = torch.load(path, weights_only=True)
    entries = [key for key, value in loaded.items() if isinstance(value, dict)]
    flat = loaded[entries[0]] if entries else loaded
    save_file({name: tensor.contiguous() for name, tensor in flat.items()}, output, {"entry": "".join(entries)})


def peft(base, folder, output):
    """Merges peft adapters into linear layers that stand for the published network."""
    from peft import PeftModel

    weights = load_file(base)
    root = torch.nn.Module()
    for name, tensor in weights.items():
        *path, last = name.split(".")
        if last != "weight" or tensor.dim() != 2:
            continue
        node = root
        for part in path[:-1]:
            if part not in node._modules:
                node.add_module(part, torch.nn.Module())
            node = node._modules[part]
        layer = torch.nn.Linear(tensor.shape[1], tensor.shape[0], bias=False)
        layer.weight.copy_(tensor)
        node.add_module(path[-1], layer)
    merged = PeftModel.from_pretrained(root, folder).merge_and_unload()
    save_file({name: tensor.contiguous() for name, tensor in merged.state_dict().items()}, output)


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    globals()[command.replace("-", "_")](*arguments)
    print(json.dumps({"done": command}))
